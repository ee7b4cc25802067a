//! `onesdm doctor`: what will make trouble on this machine, each finding with its remedy. Looking is here
//! and in the files beside; judging what was seen is in functions that look at nothing.

mod host;
pub mod hosts;
mod leases;
mod mounts;
mod remotes;
mod store;

use super::admin::{all_known, path_of};
use super::render;
use super::world::World;
use crate::config::{Config, Env, Inputs};
use crate::sdm::{group, trend::Trend};
use crate::sys::{Class, user};
use crate::verb::one_line;
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A look at storage that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Ok,
    /// It works, with a loss that is said.
    Warn,
    /// Verbs fail, or data is at risk.
    Bad,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Stable, one word.
    pub check: Cow<'static, str>,
    pub object: String,
    pub verdict: Verdict,
    pub detail: String,
    /// A command or a sentence; empty when nothing need be done.
    pub remedy: String,
}

impl Finding {
    fn ok(check: &'static str, object: impl Display, detail: impl Display) -> Finding {
        Finding::new(check, object, Verdict::Ok, detail, "")
    }
    fn warn(
        check: &'static str,
        object: impl Display,
        detail: impl Display,
        remedy: impl Display,
    ) -> Finding {
        Finding::new(check, object, Verdict::Warn, detail, remedy)
    }
    fn bad(check: &'static str, object: impl Display, detail: impl Display, remedy: impl Display) -> Finding {
        Finding::new(check, object, Verdict::Bad, detail, remedy)
    }
    fn new(
        check: &'static str,
        object: impl Display,
        verdict: Verdict,
        detail: impl Display,
        remedy: impl Display,
    ) -> Finding {
        let (object, detail, remedy) = (object.to_string(), detail.to_string(), remedy.to_string());
        Finding { check: check.into(), object, verdict, detail, remedy }
    }
}

pub fn command() -> Command {
    Command::new("doctor")
        .about("look for what will make trouble, each with its remedy; 8 when something is bad")
        .arg(
            Arg::new("domain")
                .value_name("DOMAIN")
                .help("directory, domain id or datastore number; all known ones when none is given")
                .num_args(0..)
                .value_parser(value_parser!(OsString)),
        )
        .arg(
            Arg::new("host")
                .long("host")
                .value_name("HOST")
                .action(ArgAction::Append)
                .help("this host, too, as OpenNebula names it: one row each, one column for each domain"),
        )
        .arg(
            Arg::new("all")
                .long("all")
                .action(ArgAction::SetTrue)
                .conflicts_with("host")
                .help("all hosts that oned has, too, those that are off left out"),
        )
}

/// Looks at everything it can: broken settings and tools are findings, not failures.
pub fn run(env: &Env, set: Vec<(String, String)>, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let mut found = Vec::new();
    match Config::load(&Inputs { env: env.clone(), attributes: BTreeMap::new(), set }) {
        Ok(config) => {
            found.extend(host::settings(config.warnings()));
            let tools = host::overrides(&config.settings.tools, &mut found)?;
            let world = World::of(config, tools)?;
            let given: Vec<&OsString> = m.get_many("domain").into_iter().flatten().collect();
            let paths = domains(&world, &given)?;
            look(&world, paths.clone(), &mut found)?;
            let names = hosts::names(env, &world, m)?;
            if !names.is_empty() {
                return hosts::run(&world, &names, &paths, found, as_json);
            }
        }
        Err(e) => {
            let detail = format!("{}; nothing else could be looked at", one_line(&e.into()));
            found.push(Finding::bad(
                "settings",
                "onesdm.toml",
                detail,
                "correct the setting; `onesdm config defaults` explains them",
            ));
        }
    }
    if as_json {
        render::json(&found)?;
    } else {
        render::print(&shown(&found))?;
    }
    let bad = found.iter().any(|f| f.verdict == Verdict::Bad);
    Ok(if bad { Class::Integrity.status() } else { 0 })
}

/// Where those that are named are, or all that this host knows.
fn domains(w: &World, given: &[&OsString]) -> Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = if given.is_empty() {
        all_known(w).into_iter().map(|(_, k)| k.path).collect()
    } else {
        given.iter().map(|a| Ok(std::path::absolute(path_of(w, a)?)?)).collect::<Result<_>>()?
    };
    paths.sort();
    paths.dedup();
    Ok(paths)
}

fn look(w: &World, mut paths: Vec<PathBuf>, found: &mut Vec<Finding>) -> Result<()> {
    let known = all_known(w);
    // Whose rights count: those the verbs will have. A datastore that does not answer is found out here,
    // and not touched again.
    let mut owners = Vec::new();
    paths.retain(|path| {
        if group::group_of(path).is_some() {
            return true;
        }
        let p = path.clone();
        match within(PATIENCE, move || store::owner(&p)) {
            None => {
                found.push(store::hangs(path));
                false
            }
            Some(owner) => {
                owners.extend(owner);
                true
            }
        }
    });
    owners.sort_unstable();
    owners.dedup();
    host::look(w, &owners, found);
    found.extend(remotes::look(&w.paths.remotes));
    if let ([_], Some(path)) = (&owners[..], paths.iter().find(|p| p.is_dir())) {
        user::become_owner(path).with_context(|| format!("becoming the owner of {}", path.display()))?;
    }
    let table = crate::sys::mounts::read().unwrap_or_default();
    let trend = Trend::load(&w.paths.state);
    for path in paths {
        let known = known.iter().find(|(_, k)| k.path == path).map(|(_, k)| k.clone());
        let (policy, table, p) = (w.gc_policy(), table.clone(), path.clone());
        let trend = trend.clone();
        let without = w.config.settings.sanlock.without_watchdog;
        if group::group_of(&path).is_some() {
            let (groups, remotes) = (w.groups(), w.paths.remotes.clone());
            let look =
                move || store::look_group(&groups, &p, known.as_ref(), &policy, (&remotes, &trend), without);
            out_of_patience(found, &path, within(PATIENCE, look));
            continue;
        }
        let answer =
            within(PATIENCE, move || store::look(&p, known.as_ref(), &policy, (&table, &trend), without));
        out_of_patience(found, &path, answer);
    }
    Ok(())
}

fn out_of_patience(found: &mut Vec<Finding>, path: &Path, answer: Option<Vec<Finding>>) {
    found.extend(answer.unwrap_or_else(|| vec![store::hangs(path)]));
}

/// What `f` answers, unless it takes too long: a storage call that hangs is left behind.
pub fn within<T: Send + 'static>(limit: Duration, f: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, answer) = std::sync::mpsc::channel();
    let thread = std::thread::Builder::new().name("look".to_owned());
    thread.spawn(move || drop(tell.send(f()))).ok()?;
    answer.recv_timeout(limit).ok()
}

fn word(v: Verdict) -> &'static str {
    match v {
        Verdict::Ok => "ok",
        Verdict::Warn => "warn",
        Verdict::Bad => "BAD",
    }
}

fn shown(found: &[Finding]) -> String {
    let mut out = String::new();
    for f in found {
        out += &format!("{:4}  {:12}  {}: {}\n", word(f.verdict), f.check, f.object, f.detail);
        if !f.remedy.is_empty() {
            out += &format!("{:20}remedy: {}\n", "", f.remedy);
        }
    }
    let count = |v| found.iter().filter(|f| f.verdict == v).count();
    let (bad, warn) = (count(Verdict::Bad), count(Verdict::Warn));
    out += &format!("{bad} bad, {warn} to know, {} fine\n", found.len() - bad - warn);
    out
}

/// A path's nearest ancestor that exists, itself included.
fn nearest(path: &Path) -> &Path {
    path.ancestors().find(|a| a.symlink_metadata().is_ok()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_left_behind() {
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(20), move || never.recv().is_ok()), None);
        assert_eq!(within(PATIENCE, || 7), Some(7));
    }

    #[test]
    fn every_finding_is_shown_with_its_remedy() {
        let text = shown(&[Finding::ok("a", "x", "fine"), Finding::bad("b", "y", "broken", "mend it")]);
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("remedy: mend it") && text.ends_with("1 bad, 0 to know, 1 fine\n"));
    }
}
