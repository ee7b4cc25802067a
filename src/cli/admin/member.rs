//! `onesdm domain join` and `leave`: this host's membership in domains whose locks are sanlock's.

use super::World;
use super::domain::path_of;
use super::garbage::all_known;
use crate::cli::render;
use crate::lock::{LockError, SanlockLocks, sanlock};
use crate::sdm::{Domain, group};
use crate::sys::sanlock::Watchdog;
use crate::sys::{Class, user};
use crate::verb::{one_line, refuse};
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The domains named; without any, all that this host knows or that lie where datastores lie, as far as
/// their locks need members.
fn wanted(w: &World, m: &ArgMatches) -> Result<Vec<Domain>> {
    let given: Vec<&OsString> = m.get_many::<OsString>("domain").into_iter().flatten().collect();
    let all = given.is_empty();
    let paths: BTreeSet<PathBuf> = if all {
        let below = std::fs::read_dir(&w.paths.datastores).into_iter().flatten().flatten();
        let known = all_known(w).into_iter().map(|(_, k)| k.path);
        known.chain(below.map(|e| e.path())).collect()
    } else {
        given.into_iter().map(|a| path_of(w, a)).collect::<Result<_>>()?
    };
    let mut out = Vec::new();
    for path in paths {
        match w.open(&path) {
            Ok(d) if d.header.lock == sanlock::NAME => out.push(d),
            Ok(d) if !all => {
                let text = format!("{}: its locks ({}) have no members", d.place, d.header.lock);
                return Err(refuse(Class::Usage, text));
            }
            Err(e) if !all => return Err(e).with_context(|| format!("opening {}", path.display())),
            _ => {}
        }
    }
    Ok(out)
}

/// Makes this host a member, unless its daemon could not end a host that lost its leases.
pub fn join(w: &World, locks: &SanlockLocks, place: &str, id: u32) -> Result<()> {
    let s = &w.config.settings.sanlock;
    if id == 0 {
        let text = format!(
            "{place}: which host is this? Set sanlock.host_id, a number from 1 that no other host has, or give --host-id"
        );
        return Err(refuse(Class::Usage, text));
    }
    watched(w, place, sanlock::watchdog())?;
    let group = group::group_of(Path::new(place)).filter(|_| matches!(locks.membership(), Ok(None)));
    if let Some(group) = group {
        w.groups().let_go(group).with_context(|| format!("joining {place}"))?;
    }
    locks.join(id.into(), s.io_timeout).with_context(|| format!("joining {place} as host {id}"))?;
    for e in group.map_or(Ok(Vec::new()), |g| w.groups().regain(g))? {
        render::log("WARN", "domain", &format!("{place}: a volume that this host had stays inactive: {e}"));
    }
    Ok(())
}

/// Refuses a daemon that could not end a host which lost its leases, unless the settings accept that.
pub fn watched(w: &World, place: &str, dog: Result<Watchdog, LockError>) -> Result<()> {
    let s = &w.config.settings.sanlock;
    match dog? {
        Watchdog::Used => {}
        Watchdog::Off(why) if s.without_watchdog => {
            let text = format!(
                "{place}: no watchdog ({why}): a host that loses its leases may still write while another host has them"
            );
            render::log("WARN", "domain", &text);
        }
        Watchdog::Off(why) => {
            let text = format!(
                "{place}: refused: sanlock runs without a watchdog ({why}), so a host that loses its leases may still \
                 write while another host has them; enable wdmd, or accept that with sanlock.without_watchdog = true"
            );
            return Err(refuse(Class::Refused, text));
        }
        Watchdog::Unknown => {
            let text = format!("{place}: whether sanlock uses a watchdog could not be seen");
            render::log("WARN", "domain", &text);
        }
    }
    Ok(())
}

/// Of groups that this host left. What stays would be of volumes that others may remove.
fn no_devices<'a>(w: &World, places: impl Iterator<Item = &'a str>) {
    for group in places.filter_map(|p| group::group_of(Path::new(p))) {
        if let Err(e) = w.groups().forget(group) {
            let text = format!("{group}: devices of the manager's own volumes stay on this host: {e}");
            render::log("WARN", "domain", &text);
        }
    }
}

pub fn run(w: &World, m: &ArgMatches, joins: bool, as_json: bool) -> Result<u8> {
    let given = if joins { m.get_one::<u32>("host-id") } else { None };
    let id = given.copied().unwrap_or(w.config.settings.sanlock.host_id);
    let (mut docs, mut lines, mut failed) = (Vec::new(), Vec::new(), None);
    let domains = wanted(w, m)?;
    // One account for all: root becomes nobody in between, it could not come back.
    if let [d] = &domains[..] {
        user::become_owner(d.place.as_ref()).with_context(|| format!("becoming the owner of {}", d.place))?;
    }
    // Joining is waiting: all at once.
    let results: Vec<(String, Result<String>)> = std::thread::scope(|scope| {
        let works = domains.iter().map(|d| {
            let one = move || -> Result<String> {
                let Some(locks) = d.sanlock()? else { return Ok(String::new()) };
                if joins {
                    join(w, &locks, &d.place, id)?;
                    return Ok(format!("joined as host {id}"));
                }
                if let Some(group) = group::group_of(Path::new(&d.place))
                    && matches!(locks.membership(), Ok(Some(_)))
                {
                    w.groups().let_go(group)?;
                }
                Ok(if locks.leave()? { "left" } else { "was no member" }.to_owned())
            };
            (d.place.clone(), scope.spawn(one))
        });
        let works: Vec<_> = works.collect();
        let panicked = |_| Err(refuse(Class::Internal, "the thread that did it died"));
        works.into_iter().map(|(place, t)| (place, t.join().unwrap_or_else(panicked))).collect()
    });
    let several = domains.len() > 1;
    drop(domains);
    if !joins {
        no_devices(w, results.iter().filter(|(_, r)| r.is_ok()).map(|(place, _)| place.as_str()));
    }
    for (place, result) in results {
        match result {
            Ok(text) => {
                lines.push(format!("{place}: {text}"));
                docs.push(json!({ "domain": place, "result": text }));
            }
            Err(e) => {
                if failed.is_some() || several {
                    render::log("ERROR", "domain", &one_line(&e));
                }
                failed = failed.or(Some(e));
            }
        }
    }
    if as_json {
        render::json(&docs)?;
    } else {
        render::print(&lines.join("\n"))?;
    }
    failed.map_or(Ok(0), Err)
}
