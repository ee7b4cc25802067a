//! `onesdm domain` and `onesdm lock show`.

use super::World;
use super::garbage::all_known;
use crate::cli::render;
use crate::cli::table::VERBS;
use crate::engine::Capabilities;
use crate::lock::{self, DomainLock, JobId, LeaseId, SanlockLocks, sanlock};
use crate::sdm::record::Intent;
use crate::sdm::{Domain, group, known, settle};
use crate::sys::{Cancel, Class, fs::Dir, user};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use serde_json::{json, to_value};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// The directory an argument names: a path, a datastore's number, or a domain's id.
pub fn path_of(w: &World, arg: &OsStr) -> Result<PathBuf> {
    let text = arg.to_string_lossy();
    if text.contains('/') || Path::new(arg).is_dir() {
        return Ok(arg.into());
    }
    let known = all_known(w);
    let by_number = known.iter().find(|(id, _)| *id == text);
    let found = by_number.or_else(|| known.iter().find(|(_, k)| k.domain.to_string() == text));
    if let Some((_, k)) = found {
        return Ok(k.path.clone());
    }
    let below = w.paths.datastores.join(arg);
    if text.bytes().all(|b| b.is_ascii_digit()) && below.is_dir() {
        return Ok(below);
    }
    Err(refuse(
        Class::NotFound,
        format!("{text:?} is no directory, no datastore's number and no known domain's id"),
    ))
}

/// The domains named on the command line; without any, all this host knows.
pub fn named(w: &World, m: &ArgMatches, arg: &str) -> Result<Vec<Domain>> {
    let given: Vec<&OsString> = m.get_many::<OsString>(arg).into_iter().flatten().collect();
    let paths: Vec<PathBuf> = if given.is_empty() {
        all_known(w).into_iter().map(|(_, k)| k.path).collect()
    } else {
        given.into_iter().map(|a| path_of(w, a)).collect::<Result<_>>()?
    };
    paths
        .into_iter()
        .map(|path| w.inspect(&path).with_context(|| format!("opening {}", path.display())))
        .collect()
}

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let Some((verb, m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    match verb {
        "list" => return list(w, as_json),
        "join" | "leave" => return super::member::run(w, m, verb == "join", as_json),
        _ => {}
    }
    let arg = m.get_one::<OsString>("domain").cloned().unwrap_or_default();
    let path = path_of(w, &arg)?;
    user::become_owner(&path).with_context(|| format!("becoming the owner of {}", path.display()))?;
    match verb {
        "init" if group::group_of(&path).is_some() => init_group(w, &path, m, as_json),
        "init" => {
            let d = match m.get_one::<String>("lock") {
                Some(kind) => Domain::init_dir_with(&path, kind),
                None => Domain::init_dir(&path),
            };
            tell(as_json, &d.with_context(|| format!("making {} a domain", path.display()))?)
        }
        "show" => show(w, &path, as_json),
        "adopt" => {
            let d = w.inspect(&path)?;
            d.adopt(m.get_flag("new-id")).with_context(|| format!("adopting {}", path.display()))?;
            for (id, k) in all_known(w) {
                if k.path == path {
                    known::forget(&w.paths.state, &id).context("forgetting the datastore's old domain")?;
                }
            }
            tell(as_json, &w.open(&path)?)
        }
        _ => remove(w, &path, as_json),
    }
}

/// A group is taken over whole, by a decision: stock verbs would change it past our locks, and who the
/// others are that use it is not to be seen from here.
fn init_group(w: &World, path: &Path, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let group = group::group_of(path).unwrap_or_default();
    if let Some(verb) = stock_verb(&w.paths.remotes) {
        let text = format!(
            "{}: {} is a stock driver's, which would change the group past our locks; `onesdm install --replace lvm` first, \
             and move away what we do not offer",
            path.display(),
            verb.display()
        );
        return Err(refuse(Class::Refused, text));
    }
    match w.groups().grown_at(group) {
        Ok(None) => {}
        Ok(Some(percent)) => {
            let text = format!(
                "{}: dmeventd of this host makes thin pools larger from {percent} % on, past our locks; set \
                 activation/thin_pool_autoextend_threshold = 100 in /etc/lvm/lvm.conf, on each host that uses the group",
                path.display()
            );
            return Err(refuse(Class::Refused, text));
        }
        Err(e) => {
            let text =
                format!("{}: whether dmeventd makes thin pools larger cannot be seen: {e}", path.display());
            render::log("WARN", "domain", &text);
        }
    }
    let Some(lock) = m.get_one::<String>("lock") else {
        let text = format!(
            "{}: which hosts use this group? `--lock ofd` when it is this one alone, `--lock sanlock` for several",
            path.display()
        );
        return Err(refuse(Class::Usage, text));
    };
    if lock == sanlock::NAME {
        super::member::watched(w, &path.display().to_string(), sanlock::watchdog())?;
    }
    let d = w.groups().init(group, lock).with_context(|| format!("making {} a domain", path.display()))?;
    tell(as_json, &d)
}

/// A verb of the stock driver `lvm` that is not ours; one that we do not offer, too.
pub fn stock_verb(remotes: &Path) -> Option<PathBuf> {
    let own = std::env::current_exe().unwrap_or_default();
    let leads_here = |verb: &Path| verb.canonicalize().is_ok_and(|p| p == own) || is_shim(verb, &own);
    let mut verbs = VERBS.iter().map(|v| remotes.join(v.role.to_string()).join("lvm").join(v.name));
    verbs.find(|verb| verb.exists() && !leads_here(verb))
}

fn is_shim(verb: &Path, program: &Path) -> bool {
    std::fs::read_to_string(verb).is_ok_and(|t| t.len() < 4096 && t.contains(&*program.to_string_lossy()))
}

fn tell(as_json: bool, d: &Domain) -> Result<u8> {
    if as_json {
        render::json(&d.header)?;
    } else {
        render::print(&format!("{}: domain {}, format {}", d.place, d.header.id, d.header.format))?;
    }
    Ok(0)
}

fn list(w: &World, as_json: bool) -> Result<u8> {
    let known = all_known(w);
    let state = |k: &known::Known| match w.open(&k.path) {
        Ok(d) if d.header.id == k.domain => "ok".to_owned(),
        Ok(d) => format!("is domain {} now", d.header.id),
        Err(e) => e.to_string(),
    };
    if as_json {
        let docs: Result<Vec<_>> = known
            .iter()
            .map(|(id, k)| {
                let mut doc = to_value(k)?;
                doc["datastore"] = json!(id);
                doc["state"] = json!(state(k));
                Ok(doc)
            })
            .collect();
        render::json(&docs?)?;
    } else {
        let rows: Vec<Vec<String>> = known
            .iter()
            .map(|(id, k)| vec![id.clone(), k.domain.to_string(), k.path.display().to_string(), state(k)])
            .collect();
        render::print(&render::table(&["DATASTORE", "DOMAIN", "DIRECTORY", "STATE"], &rows))?;
    }
    Ok(0)
}

/// Capabilities, found by doing in a staging area that is removed again.
pub fn capabilities(d: &Domain) -> Result<Capabilities> {
    let owner = lock::own_lease(&*d.locks, JobId::generate(), &Cancel::default())?;
    d.engine.begin(&owner)?;
    let caps = d.engine.capabilities(&owner);
    d.engine.end(&owner)?;
    Ok(caps?)
}

fn show(w: &World, path: &Path, as_json: bool) -> Result<u8> {
    let d = w.inspect(path)?;
    let usable = d.usable();
    let locks = d.sanlock()?;
    // What the storage can do is found under a lock.
    let joined = locks.as_ref().is_none_or(|l| matches!(l.membership(), Ok(Some(_))));
    let caps = if usable.is_ok() && joined { to_value(capabilities(&d)?)? } else { serde_json::Value::Null };
    let usage = d.engine.usage()?;
    let members = locks.map(|l| l.members().unwrap_or_default());
    let state = usable.err().map_or_else(
        || if joined { "ok" } else { "this host has not joined (`onesdm domain join`)" }.to_owned(),
        |e| e.to_string(),
    );
    if as_json {
        let header = to_value(&d.header)?;
        render::json(
            &json!({ "place": d.place, "header": header, "state": state, "usage": usage, "capabilities": caps, "members": members }),
        )?;
        return Ok(0);
    }
    let h = &d.header;
    let mut text = format!(
        "domain    {}\nplace     {}\nformat    {}\nengine    {}\nlocks     {}\ncreated   {}\nstate     {state}\n",
        h.id, d.place, h.format, h.engine, h.lock, h.created
    );
    text += &format!("space     {} free of {}\n", usage.free, usage.total);
    for m in members.into_iter().flatten() {
        text += &format!("member    {} {}, {}, joined {}\n", m.host_id, m.host, m.state, m.since);
    }
    if let Some(caps) = caps.as_object() {
        let can: Vec<&str> =
            caps.iter().filter(|(_, v)| **v == json!(true)).map(|(k, _)| k.as_str()).collect();
        text += &format!("can       {}\n", can.join(", "));
    }
    render::print(&text)?;
    Ok(0)
}

/// Takes the area away when it holds nothing that anybody needs.
fn remove(w: &World, path: &Path, as_json: bool) -> Result<u8> {
    let group = group::group_of(path);
    // What was cut off when it was decided goes on.
    let begun = group.map(|g| w.groups().retiring(g)).transpose()?.flatten();
    let (locks, mut lock) = match begun {
        Some(locks) => (locks, None),
        None => retire(w, path).map(|(locks, lock)| (locks, Some(lock)))?,
    };
    if let Some(locks) = locks {
        no_other_member(&path.display().to_string(), &locks)?;
        // A lease cannot be given back in a file that is gone.
        drop(lock.take());
        locks.leave()?;
    }
    if let Some(group) = group {
        drop(lock.take());
        w.groups().clear(group).context("removing what is left of the domain")?;
    } else {
        let root = Dir::open(path).context("opening the directory")?;
        root.remove_tree(OsStr::new(crate::engine::file::AREA)).context("removing the area")?;
        root.sync().context("flushing the directory")?;
    }
    drop(lock);
    for (id, k) in all_known(w) {
        if k.path == path {
            known::forget(&w.paths.state, &id).context("forgetting the datastore")?;
        }
    }
    let place = path.display();
    if as_json {
        render::json(&json!({ "removed": path }))?;
    } else {
        render::print(&format!("{place} is no domain any more"))?;
    }
    Ok(0)
}

/// Sees that nobody needs the domain. Of a group that is when it ends, since what is left goes without the lock.
fn retire(w: &World, path: &Path) -> Result<(Option<SanlockLocks>, DomainLock)> {
    let d = w.open(path).with_context(|| format!("opening {}", path.display()))?;
    let lock = crate::lock::domain_lock(&*d.locks, w.jobs.waits.lock, &w.jobs.cancel)?;
    let (busy, dead) = (d.engine.jobs()?.len(), d.engine.dead()?.len());
    let refused = |why: String| Err(refuse(Class::Refused, format!("{}: {why}", d.place)));
    if busy + dead > 0 {
        let what = format!("{busy} jobs and {dead} tombstones are left");
        return refused(format!("{what}; run `onesdm gc --short {}` first", d.place));
    }
    let locks = d.sanlock()?;
    if let Some(locks) = &locks {
        no_other_member(&d.place, locks)?;
    }
    if let Some(group) = group::group_of(path) {
        if let Some(stray) = d.engine.strays()?.first() {
            return refused(format!("{stray}; remove or rename it first"));
        }
        w.groups().retire(group, &lock)?;
    }
    Ok((locks, lock))
}

fn no_other_member(place: &str, locks: &SanlockLocks) -> Result<()> {
    let us = locks.membership()?;
    let mut others = locks.members()?.into_iter().filter(|m| Some(m.host_id) != us && m.state != "left");
    let Some(m) = others.next() else { return Ok(()) };
    let (id, host) = (m.host_id, m.host);
    let text = format!("{place}: host {id} ({host}) is a member; `onesdm domain leave` there first");
    Err(refuse(Class::Refused, text))
}

fn who(i: &Intent) -> String {
    format!("job {}, {} on {}, pid {}, since {}", i.job, i.who.verb, i.who.host, i.who.pid, i.who.since)
}

/// Who holds what: living jobs and their objects, by the locks; the records only name them.
pub fn locks(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let Some((_, m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    let mut rows = Vec::new();
    let mut docs = Vec::new();
    for domain in named(w, m, "domain")? {
        if let Some(holders) = domain.locks.holders()? {
            for h in holders {
                rows.push(vec![domain.place.clone(), h.what.clone(), h.to_string()]);
                docs.push(
                    json!({ "domain": domain.place, "lease": h.what, "holder": h.to_string(), "by": h }),
                );
            }
            continue;
        }
        let mut add = |what: String, who: String| {
            docs.push(json!({ "domain": domain.place, "lease": what, "holder": who }));
            rows.push(vec![domain.place.clone(), what, who]);
        };
        if domain.locks.is_held(&LeaseId::Domain)? {
            let who = settle::deciding(&domain).map_or_else(
                || "a job without a record here; `onesdm job list` on its host shows it".to_owned(),
                |i| who(&i),
            );
            add(LeaseId::Domain.to_string(), who);
        }
        for job in domain.engine.jobs()? {
            if !domain.locks.is_held(&LeaseId::Owner(job))? {
                continue;
            }
            let intent = settle::intent_of(&domain, job);
            let who = intent.as_ref().map_or_else(|| format!("job {job}"), who);
            add(LeaseId::Owner(job).to_string(), who.clone());
            for t in intent.map(|i| i.targets).unwrap_or_default() {
                let id = LeaseId::Slab(t.to_string());
                if domain.locks.is_held(&id)? {
                    add(id.to_string(), who.clone());
                }
            }
        }
    }
    if as_json {
        render::json(&docs)?;
    } else {
        render::print(&render::table(&["DOMAIN", "LEASE", "HOLDER"], &rows))?;
    }
    Ok(0)
}
