//! From a command line to an exit status. Called by a driver's name it is that driver's verb; called
//! by its own it offers people's commands and, with `--as`, any verb. The only room that prints.

pub mod table;

mod admin;
mod agent;
mod args;
mod doctor;
mod generate;
mod guard;
mod install;
pub mod invocation;
mod monitord;
mod plan;
mod progress;
mod render;
mod world;

use crate::config::Env;
use crate::verb;
use invocation::Invocation;
use std::ffi::OsString;
use table::Role;

/// Runs one process: `argv` as the kernel gave it. Answers the exit status.
pub fn main(argv: Vec<OsString>, vars: impl Iterator<Item = (OsString, OsString)>) -> u8 {
    render::one_line_panics();
    crate::sys::user::dump_no_core();
    let env = Env::from_vars(vars);
    let outcome = match Invocation::of(&argv) {
        Some(call) => run_verb(&env, &call),
        None => admin::run(&env, argv),
    };
    match outcome {
        Ok(status) => status,
        Err(e) => {
            let class = verb::class_of(&e);
            // Nobody reads any more: that is the reader's decision, not a failure.
            if e.chain().any(|c| c.downcast_ref::<std::io::Error>().is_some_and(render::is_broken_pipe)) {
                return 0;
            }
            render::failure(&e);
            class.status()
        }
    }
}

/// Runs a verb as oned calls it and prints its answer.
fn run_verb(env: &Env, call: &Invocation) -> anyhow::Result<u8> {
    let def = table::find(call)?;
    let answer = match def.role {
        Role::Datastore => world::datastore_verb(env, def, call)?,
        Role::Tm => world::tm_verb(env, def, call)?,
    };
    if !answer.is_empty() {
        render::answer(&answer)?;
    }
    Ok(0)
}
