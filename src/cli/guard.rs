//! `onesdm guard`, which our own verbs start while they hold a running machine still.

use super::world::World;
use crate::config::Env;
use crate::lock::JobId;
use crate::sdm::job::Topic;
#[cfg(feature = "failpoints")]
use crate::sdm::known;
use crate::sdm::{Domain, SdmError};
use crate::sys::companion::Ends;
use crate::sys::detach::detach;
use crate::sys::user;
use crate::verb::tm::{Answer, Op, perform};
use crate::verb::{self, Ctx};
use anyhow::{Context as _, Result};
use clap::Command;
use std::collections::BTreeMap;
use std::path::Path;

pub fn command() -> Command {
    Command::new(verb::GUARD).hide(true).about("lets a machine go on when the verb that held it is no more")
}

/// Serves the process at the other end of standard input and output.
pub fn run(env: &Env) -> Result<u8> {
    detach().context("leaving the session")?;
    crate::obs::journal::start();
    let mut ends = Ends::standard().context("talking to the verb")?;
    let Some(charge) = verb::charge(&mut ends)? else { return Ok(0) };
    let world = World::new(env, BTreeMap::new(), charge.set.clone())?;
    let follow = |watched: &verb::Watched| {
        let op = Op::Follow(watched.clone());
        // The verb used it; nothing is made.
        let open = |dir: &Path, _: i64| owned(dir).and_then(|()| Domain::open_dir(dir));
        on(&world, &op, JobId::generate(), false, &open).map(drop)
    };
    verb::guard(&charge, &world.tools, &mut ends, &follow)?;
    Ok(0)
}

fn owned(dir: &Path) -> Result<(), SdmError> {
    user::become_owner(dir).map_err(|source| SdmError::Io { what: dir.display().to_string(), source })
}

/// One operation on this host's storage, as a job.
fn on(w: &World, op: &Op, id: JobId, repeatable: bool, open: &verb::Open<'_>) -> Result<Answer> {
    let (settings, tools, jobs) = (&w.config.settings, &w.tools, &w.jobs);
    let ctx = Ctx { settings, tools, jobs, job: id, repeatable, open, ready: &|| Ok(()), peer: None };
    let job = jobs.start(id, Topic { verb: "tm".to_owned(), ..Topic::default() });
    match perform(op, &ctx, &job) {
        Ok(answer) => {
            job.succeed();
            Ok(answer)
        }
        Err(e) => {
            job.fail(verb::class_of(&e), &verb::one_line(&e));
            Err(e)
        }
    }
}

/// An operation on standard input, for the tests: a process that can be killed at any of its steps.
#[cfg(feature = "failpoints")]
pub fn perform_one(env: &Env, set: Vec<(String, String)>, job: Option<&str>) -> Result<u8> {
    let world = World::new(env, BTreeMap::new(), set)?;
    let op: Op = serde_json::from_reader(std::io::stdin().lock()).context("reading the operation")?;
    let (id, repeatable) = super::world::job_id(env, job)?;
    let open = |dir: &Path, ds: i64| {
        owned(dir).and_then(|()| known::open(&world.paths.state, Some(&ds.to_string()), dir))
    };
    on(&world, &op, id, repeatable, &open)?;
    Ok(0)
}

#[cfg(feature = "failpoints")]
pub fn op_command() -> Command {
    Command::new("op").hide(true).about("performs the operation on standard input")
}
