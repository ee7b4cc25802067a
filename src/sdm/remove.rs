//! Removal. It outranks creation: a job that is making what is to be removed is asked to stop, given
//! a little time, and if it does not, what it would publish is taken away. Then the names go.

use super::job::JobInfo;
use super::record::Step;
use super::{Domain, Job, Result, SdmError, Work, settle, turn, work};
use crate::engine::{EngineError, Name, Object, Place};
use crate::lock::{self, LockError};
use crate::sys::effect::only_looks;
use std::time::{Duration, Instant};

/// Stops every job that is making one of these names or something below them. Afterwards none of them
/// can publish it. The
/// caller need not hold the slab lease: such a job holds it, and keeps it when it does not even end
/// (`false`); then it is not to be waited for. A removal is no rival.
pub fn outrank(domain: &Domain, job: &Job, names: &[Name]) -> Result<bool> {
    let mut ended = true;
    stop_waiters(job);
    for rival in domain.engine.jobs()? {
        let goes = |t: &Name| names.iter().any(|n| t.is_within(n));
        let makes = settle::intent_of(domain, rival).is_some_and(|i| i.targets.iter().any(goes));
        let commit = settle::commit_of(domain, rival).unwrap_or_default();
        let removes = commit.is_some_and(|c| matches!(c.steps.first(), Some(Step::Bury { .. })));
        if rival == job.id || !makes || removes {
            continue;
        }
        let asked = job.jobs.cancel(rival).unwrap_or(false);
        tracing::info!(%rival, asked, "removal outranks creation");
        let end = Instant::now() + job.jobs.waits.grace;
        let dead = loop {
            match lock::owner_lease(&*domain.locks, rival) {
                Ok(dead) => break Some(dead),
                Err(LockError::Busy(_)) if Instant::now() < end => {}
                Err(LockError::Busy(_)) => break None,
                Err(e) => return Err(e.into()),
            }
            if !job.cancel().wait(Duration::from_millis(10)) {
                return Err(LockError::Cancelled(lock::LeaseId::Owner(rival)).into());
            }
        };
        if let Some(dead) = dead {
            // It may have ended without leaving anything; settling nothing is fine.
            settle::settle_alone(domain, &dead, job)?;
        } else {
            let lock = settle::lock_domain(domain, job, job.jobs.waits.lock)?;
            domain.engine.fence(&lock, rival)?;
            settle::take_away(&*domain.engine, &lock, (rival, None), job.id, false)?;
            ended = false;
        }
    }
    Ok(ended)
}

/// Who waits for its turn to make the same object has nothing in the domain that could be taken away.
fn stop_waiters(job: &Job) {
    let (object, end) = (job.named(), Instant::now() + job.jobs.waits.grace);
    let waits = |j: &JobInfo| j.id != job.id && j.object == object && j.phase == turn::WAITS;
    let waiters = || job.jobs.active().unwrap_or_default().into_iter().filter(waits).map(|j| j.id);
    loop {
        let asked = waiters().filter(|id| job.jobs.cancel(*id).unwrap_or(false)).count();
        if asked == 0 || Instant::now() > end || !job.cancel().wait(Duration::from_millis(10)) {
            return;
        }
    }
}

/// Removes these names, the first being the object and the rest its companions; answers how many were
/// there. The caller holds the object's slab lease. One name goes by one bare rename, which works on a
/// full disk; several are one commit, decided by its record.
pub fn remove(domain: &Domain, job: &Job, names: &[Name], request: &str) -> Result<usize> {
    let mut there: Vec<Object> = Vec::new();
    for n in names {
        there.extend(domain.engine.look(&Place::Public(n.clone()))?);
    }
    if there.len() > 1 || only_looks() {
        match together(domain, job, names, request) {
            // No room even for a record: then one after the other, the object first, so that a crash
            // leaves companions that the same call removes when it is made again.
            Err(SdmError::Engine(EngineError::NoSpace(_))) => {}
            r => return r.map(|()| there.len()),
        }
    }
    let owner = work::own(domain, job)?;
    {
        let lock = settle::lock_domain(domain, job, job.jobs.waits.lock)?;
        for o in &there {
            lock.still_held()?;
            let grave = settle::free_grave(&*domain.engine, job.id, 0, false)?;
            match domain.engine.bury(&lock, &o.place, o.id, &grave) {
                // Somebody without our locks removed it first.
                Ok(()) | Err(EngineError::Absent(_)) => {}
                Err(e) => return Err(e.into()),
            }
            domain.engine.sync(&[Place::Dead(grave), o.place.clone()])?;
        }
    }
    settle::clean_up(domain, &owner, job);
    Ok(there.len())
}

fn together(domain: &Domain, job: &Job, names: &[Name], request: &str) -> Result<()> {
    let mut work = Work::begin(domain, job, names)?;
    let mut steps: Vec<Step> = Vec::new();
    for n in names {
        steps.extend(work.step_bury(n, false)?);
    }
    work.commit(request, "", steps)
}
