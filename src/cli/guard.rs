//! `onesdm guard`, which our own verbs start while they hold a running machine still.

use super::world::World;
use crate::config::Env;
use crate::lock::JobId;
use crate::sdm::event::What;
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
use clap::{Arg, ArgMatches, Command, value_parser};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub fn command() -> Command {
    let left = Arg::new("left").long("left").value_name("RECORD").value_parser(value_parser!(PathBuf));
    Command::new(verb::GUARD)
        .hide(true)
        .about("lets a machine go on when the verb that held it is no more")
        .arg(left.help("of a verb that died together with its guard"))
}

/// Serves the process at the other end of standard input and output.
pub fn run(env: &Env, m: &ArgMatches) -> Result<u8> {
    detach().context("leaving the session")?;
    crate::obs::journal::start();
    let mut ends = Ends::standard().context("talking to the verb")?;
    if let Some(left) = m.get_one::<PathBuf>("left") {
        return recover(env, left, &mut ends);
    }
    let Some(charge) = verb::charge(&mut ends)? else { return Ok(0) };
    let world = World::new(env, BTreeMap::new(), charge.set.clone())?;
    verb::guard(&charge, &world.tools, &mut ends, &|watched| follow(&world, watched))?;
    Ok(0)
}

/// Tells the process at the other end what came of it.
fn recover(env: &Env, left: &Path, ends: &mut Ends) -> Result<u8> {
    // Its owner's settings, tools and places count, not its own.
    let set = vec![("lock.wait".to_owned(), "3s".to_owned())];
    let world = World::new(env, BTreeMap::new(), set)?;
    let found = match verb::recover(left, &world.tools, &|watched| follow(&world, watched)) {
        Ok(None) => return Ok(0),
        Ok(Some(found)) => found,
        Err(e) => verb::Found { done: false, text: verb::one_line(&e) },
    };
    let topic = Topic { verb: verb::GUARD.to_owned(), quiet: true, ..Topic::default() };
    let job = world.jobs.start(JobId::generate(), topic);
    job.tell(What::Warning { text: found.text.clone() });
    job.succeed();
    // Whoever asked may not be there any more.
    let _ = ends.say(&serde_json::to_string(&found).context("writing down what came of it")?);
    Ok(0)
}

fn follow(world: &World, watched: &verb::Watched) -> Result<()> {
    // The verb used it; nothing is made.
    let open = |dir: &Path, _: i64| owned(dir).and_then(|()| Domain::open_dir(dir));
    on(world, &Op::Follow(watched.clone()), JobId::generate(), false, &open).map(drop)
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
