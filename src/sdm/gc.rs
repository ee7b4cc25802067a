//! The collector. Garbage is proved, not guessed: it lies in our area, and its owner's lease is free.
//! A job that had not decided is undone, one that had is finished, tombstones are deleted, kept ones
//! after their time; nothing else is ever touched. It may be killed anywhere and run again, and runs
//! on a full disk. Deleting and copying never happen under the domain lock.

use super::event::What;
use super::{Domain, Job, Result, SdmError, settle};
use crate::engine::{EngineError, Finished, Grave, Kind, Object, Place};
use crate::lock::{self, JobId, LockError};
use crate::sys::Bytes;
use serde::Serialize;
use std::time::Duration;

/// How long what is kept is kept.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Kept tombstones; two runs of the collector must both find them older than this.
    pub trash_keep: Duration,
    pub done_max: usize,
    pub done_age: Duration,
    /// Space is short: kept tombstones go now.
    pub short: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Take away what a dead job staged.
    Undo,
    /// Take the remaining steps of a dead job that had decided.
    Finish,
    /// Delete a tombstone.
    Delete,
    /// A kept tombstone's time is over: the next run deletes it.
    Release,
    /// Drop an old done record.
    Forget,
    Stay,
}

/// One thing the collector looked at, what it does with it and why.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    pub what: String,
    pub action: Action,
    pub why: String,
    pub bytes: Bytes,
    #[serde(skip)]
    subject: Subject,
}

#[derive(Clone, Debug)]
enum Subject {
    Job(JobId),
    Grave(Grave, Object),
    Done(JobId),
}

/// What the collector would do now. Takes no lease and changes nothing.
pub fn plan(domain: &Domain, policy: &Policy) -> Result<Vec<Finding>> {
    let mut out = Vec::new();
    for job in domain.engine.jobs()? {
        out.push(of_job(domain, job)?);
    }
    let mut dead = domain.engine.dead()?;
    // What lies in a pool goes before it.
    dead.sort_by_key(|o| o.kind == Kind::Pool);
    for o in dead {
        if let Place::Dead(grave) = o.place {
            out.push(of_grave(domain, policy, grave, o)?);
        }
    }
    let done = domain.engine.done()?;
    let oldest = now().saturating_sub(seconds(policy.done_age));
    let over = done.len().saturating_sub(policy.done_max);
    let mut by_age = done;
    by_age.sort_by_key(|d| d.changed);
    for (i, Finished { job, changed, .. }) in by_age.into_iter().enumerate() {
        if i < over || changed < oldest {
            let why = if i < over { "more records than kept" } else { "older than kept" };
            out.push(Finding {
                what: format!("done record of job {job}"),
                action: Action::Forget,
                why: why.to_owned(),
                bytes: Bytes(0),
                subject: Subject::Done(job),
            });
        }
    }
    Ok(out)
}

fn of_job(domain: &Domain, job: JobId) -> Result<Finding> {
    let mut bytes = 0;
    for o in domain.engine.staged(job)? {
        bytes += domain.engine.weight(&o.place)?.0;
    }
    let intent = settle::intent_of(domain, job);
    let what = intent.map_or_else(
        || format!("job {job}"),
        |i| {
            let names: Vec<&str> = i.targets.iter().map(crate::engine::Name::as_str).collect();
            format!("{} of {} by job {job} on host {}", i.who.verb, names.join(", "), i.who.host)
        },
    );
    let (action, why) = if domain.locks.is_held(&lock::LeaseId::Owner(job))? {
        (Action::Stay, "its owner lives".to_owned())
    } else {
        match settle::commit_of(domain, job) {
            Err(e) => (Action::Stay, e.to_string()),
            Ok(None) => (Action::Undo, "its owner is dead and had decided nothing".to_owned()),
            Ok(Some(c)) => match super::work::decided(&*domain.engine, &c)? {
                Some(true) => (Action::Finish, "its owner is dead and had decided".to_owned()),
                _ => (Action::Undo, "its owner is dead and had not taken the first step".to_owned()),
            },
        }
    };
    Ok(Finding { what, action, why, bytes: Bytes(bytes), subject: Subject::Job(job) })
}

fn of_grave(domain: &Domain, policy: &Policy, grave: Grave, o: Object) -> Result<Finding> {
    let age = now().saturating_sub(o.changed);
    let (action, why) = if domain.locks.is_held(&lock::LeaseId::Owner(grave.job))? {
        (Action::Stay, "the job that removed it is still at it".to_owned())
    } else if !grave.keep {
        (Action::Delete, "removed".to_owned())
    } else if policy.short {
        (Action::Delete, "replaced; kept no longer, space is short".to_owned())
    } else if age >= seconds(policy.trash_keep) {
        (Action::Release, "replaced; its time is over".to_owned())
    } else {
        let left = seconds(policy.trash_keep) - age.max(0);
        (Action::Stay, format!("replaced; kept for {} more hours", left / 3600 + 1))
    };
    let bytes = domain.engine.weight(&o.place)?;
    Ok(Finding { what: format!("tombstone {grave}"), action, why, bytes, subject: Subject::Grave(grave, o) })
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn seconds(d: Duration) -> i64 {
    i64::try_from(d.as_secs()).unwrap_or(i64::MAX)
}

/// What a run did, and what it could not do.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub done: Vec<Finding>,
    pub stayed: Vec<Finding>,
    /// One line each; the run went on.
    pub errors: Vec<String>,
}

/// Does what `plan` says, each thing under the lease that proves it, as `job`.
pub fn collect(domain: &Domain, job: &Job, policy: &Policy) -> Result<Report> {
    let mut report = Report::default();
    for finding in plan(domain, policy)? {
        if finding.action == Action::Stay {
            report.stayed.push(finding);
            continue;
        }
        if job.cancel().is_requested() {
            return Err(LockError::Cancelled(lock::LeaseId::Owner(job.id)).into());
        }
        match act(domain, job, &finding) {
            Ok(true) => {
                let action = format!("{:?}", finding.action).to_lowercase();
                job.tell(What::Garbage { what: finding.what.clone(), action, bytes: finding.bytes.0 });
                report.done.push(finding);
            }
            Ok(false) => report.stayed.push(finding),
            // Another host may have it open: that one removes it, or anybody when it is dead.
            Err(SdmError::Engine(e @ EngineError::InUse { .. })) => {
                report.stayed.push(Finding { action: Action::Stay, why: e.to_string(), ..finding });
            }
            Err(e) => report.errors.push(format!("{}: {e}", finding.what)),
        }
    }
    let lock = settle::lock_domain(domain, job, job.jobs.waits.lock)?;
    domain.engine.tidy(&lock)?;
    Ok(report)
}

/// `false` when its owner turned out to live, or somebody works on what it was changing.
fn act(domain: &Domain, job: &Job, finding: &Finding) -> Result<bool> {
    let engine = &*domain.engine;
    let lock = || settle::lock_domain(domain, job, job.jobs.waits.lock);
    if let Subject::Done(id) = finding.subject {
        engine.forget(&lock()?, id)?;
        return Ok(true);
    }
    let (Subject::Job(dead) | Subject::Grave(Grave { job: dead, .. }, _)) = &finding.subject else {
        return Ok(true);
    };
    let owner = match lock::owner_lease(&*domain.locks, *dead) {
        Err(LockError::Busy(_)) => return Ok(false),
        o => o?,
    };
    match &finding.subject {
        Subject::Job(_) => return Ok(settle::settle_alone(domain, &owner, job)?.is_some()),
        Subject::Grave(grave, o) if finding.action == Action::Release => {
            let released = Grave { keep: false, ..*grave };
            engine.bury(&lock()?, &o.place, o.id, &released)?;
        }
        Subject::Grave(grave, _) => engine.purge(&owner, grave)?,
        Subject::Done(_) => {}
    }
    Ok(true)
}
