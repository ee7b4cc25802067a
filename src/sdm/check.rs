//! The invariants of a domain, looked at without changing anything. `onesdm check` and every test
//! use this one list.

use super::record::{Commit, Step};
use super::{Domain, Result, gc, settle};
use crate::engine::{Access, Kind, Object, Place, Record};
use serde::Serialize;
use std::fmt::Display;

/// A broken rule. Garbage that the collector will take is not one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Stable, one word: `area`, `record`, `lost`, `dangling`, `kind`.
    pub rule: &'static str,
    pub object: String,
    pub detail: String,
}

fn problem(rule: &'static str, object: impl Display, detail: impl Display) -> Problem {
    Problem { rule, object: object.to_string(), detail: detail.to_string() }
}

/// Every broken rule of a domain.
pub fn check(domain: &Domain) -> Result<Vec<Problem>> {
    let mut out: Vec<Problem> =
        domain.engine.strays()?.into_iter().map(|s| problem("area", ".sdm", s)).collect();
    if let Err(e) = domain.usable() {
        out.push(problem("area", ".sdm/domain.json", e));
    }
    commits(domain, &mut out)?;
    for job in domain.engine.done()?.into_iter().map(|d| d.job) {
        let bytes = domain.engine.record(job, Record::Done).unwrap_or_default().unwrap_or_default();
        if let Err(e) = super::record::decode::<Commit>("done record", &bytes) {
            out.push(problem("record", job, e));
        }
    }
    tree(domain, domain.engine.list(None)?, 0, &mut out)?;
    Ok(out)
}

/// A decided commit whose remaining objects are neither where they were nor where they go is a loss.
fn commits(domain: &Domain, out: &mut Vec<Problem>) -> Result<()> {
    for job in domain.engine.jobs()? {
        let commit = match settle::commit_of(domain, job) {
            Ok(Some(c)) => c,
            Ok(None) => continue,
            Err(e) => {
                out.push(problem("record", job, e));
                continue;
            }
        };
        if commit.job != job {
            out.push(problem("record", job, format!("its commit is of job {}", commit.job)));
        }
        if super::work::decided(&*domain.engine, &commit)? != Some(true) {
            continue;
        }
        for step in &commit.steps {
            if let Step::Publish { from, id, to } | Step::Replace { from, id, to, .. } = step {
                let is =
                    |p: Place| -> Result<bool> { Ok(domain.engine.look(&p)?.is_some_and(|o| o.id == *id)) };
                if !is(Place::Public(to.clone()))? && !is(Place::Staged(job, *from))? {
                    out.push(problem("lost", to, format!("job {job} decided to publish it and it is gone")));
                }
            }
        }
    }
    Ok(())
}

fn tree(domain: &Domain, objects: Vec<Object>, depth: u32, out: &mut Vec<Problem>) -> Result<()> {
    for o in objects {
        let Place::Public(name) = &o.place else { continue };
        match &o.kind {
            Kind::Other => out.push(problem("kind", name, "neither a file, a directory nor a link")),
            Kind::Link(to) => {
                let path = domain.engine.attach(&o.place, Access::Read);
                // An in-memory link has no path to follow; its target is then a name of the domain.
                let there = match path {
                    Ok(a) => a.path.exists(),
                    Err(_) => crate::engine::Name::parse(to)
                        .ok()
                        .is_some_and(|n| domain.engine.look(&Place::Public(n)).ok().flatten().is_some()),
                };
                if !there {
                    out.push(problem("dangling", name, format!("it points to {to}, which does not exist")));
                }
            }
            // Two levels are all the layouts use below an image; directory images go deeper.
            Kind::Dir if depth < 2 => tree(domain, domain.engine.list(Some(name))?, depth + 1, out)?,
            Kind::Dir | Kind::File | Kind::Pool => {}
        }
    }
    Ok(())
}

/// What the collector would do something about: empty after a run of it with nobody at work.
pub fn garbage(domain: &Domain, policy: &gc::Policy) -> Result<Vec<gc::Finding>> {
    let mut plan = gc::plan(domain, policy)?;
    plan.retain(|f| f.action != gc::Action::Stay);
    Ok(plan)
}
