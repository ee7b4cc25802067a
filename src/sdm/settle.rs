//! Ending what a dead job began. Whoever calls holds the dead job's owner lease, so it is dead or
//! paused; a paused one that wakes later finds its source entry gone and can commit nothing.

use super::event::What;
use super::record::{self, Commit, Intent, Step, Undo};
use super::{Domain, Job, Result, SdmError, work};
use crate::engine::{Engine, EngineError, Grave, Kind, Name, Place, Record, Recorded};
use crate::lock::{self, DomainLock, JobId, LockError, Mode, OwnerLease};
use crate::sys::effect::{bug, only_looks};
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Tombstones of undone slabs are numbered from here, after those of the job's own steps.
pub(super) const UNDONE: u32 = 1 << 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It can never commit now.
    Undone,
    /// It had decided; the rest was done.
    Finished,
}

/// Takes the domain lock; where somebody else keeps it, the refusal names who that may be.
pub fn lock_domain(domain: &Domain, by: &Job, wait: Duration) -> Result<DomainLock> {
    lock::domain_lock(&*domain.locks, wait, by.cancel()).map_err(|e| match (&e, deciding(domain)) {
        (LockError::Busy(what), Some(i)) => SdmError::Held { what: what.to_string(), holder: named(&i) },
        _ => backend_knows(domain, e),
    })
}

/// The refusal, with the holder as the backend itself knows it.
fn backend_knows(domain: &Domain, e: LockError) -> SdmError {
    let holder = match &e {
        LockError::Busy(what) => domain.locks.holder(what),
        _ => None,
    };
    match holder {
        Some(h) => SdmError::Held { what: h.what.clone(), holder: h.to_string() },
        None => e.into(),
    }
}

/// A living job that has written down what it decided: it holds the domain lock or waits for it.
pub fn deciding(domain: &Domain) -> Option<Intent> {
    let lives = |job: &JobId| domain.locks.is_held(&lock::LeaseId::Owner(*job)).unwrap_or(false);
    let decides = |job: &JobId| matches!(commit_of(domain, *job), Ok(Some(_)));
    let job = domain.engine.jobs().ok()?.into_iter().find(|j| lives(j) && decides(j))?;
    intent_of(domain, job)
}

fn named(i: &Intent) -> String {
    let who = &i.who;
    format!(
        "job {} ({} on host {}, pid {}, since {}); it ends by itself, or `onesdm job cancel` ends it",
        i.job, who.verb, who.host, who.pid, who.since
    )
}

/// The commit record of a job that has one.
pub fn commit_of(domain: &Domain, job: JobId) -> Result<Option<Commit>> {
    let bytes = domain.engine.record(job, Record::Commit)?;
    bytes.map(|b| record::decode(&format!("commit of job {job}"), &b)).transpose()
}

/// What a job intends, if that can be read: advice, for messages and for finding rivals.
pub fn intent_of(domain: &Domain, job: JobId) -> Option<Intent> {
    decoded("intent", domain.engine.record(job, Record::Intent))
}

fn decoded<T: DeserializeOwned>(what: &str, bytes: Recorded) -> Option<T> {
    record::decode(what, &bytes.ok()??).ok()
}

fn undo_of(domain: &Domain, job: JobId) -> Result<Option<Undo>> {
    let bytes = domain.engine.record(job, Record::Undo)?;
    let undo: Option<Undo> = bytes.map(|b| record::decode(&format!("undo of job {job}"), &b)).transpose()?;
    Ok(undo.filter(|u| u.job == job && !u.parts.is_empty()))
}

/// Puts back what a job that decided nothing was changing in place.
pub(super) fn mend(domain: &Domain, dead: &OwnerLease) -> Result<()> {
    let Some(undo) = undo_of(domain, dead.job())? else { return Ok(()) };
    let bytes = undo.bytes()?;
    match domain.engine.mend(dead, &Place::Public(undo.name), undo.id, &bytes) {
        // It was removed or replaced.
        Err(EngineError::Absent(_) | EngineError::Changed(_)) => Ok(()),
        r => Ok(r?),
    }
}

/// `settle` by somebody who does not hold the slab that the job was at: `None` when it is held by others. They have
/// settled it, or will, and may be changing what would be put back.
pub fn settle_alone(domain: &Domain, dead: &OwnerLease, by: &Job) -> Result<Option<Settled>> {
    let undo = undo_of(domain, dead.job())?;
    let slab = undo.iter().map(|u| (u.slab.as_str(), Mode::Exclusive)).collect::<Vec<_>>();
    let _lease = match lock::slab_leases(&*domain.locks, &slab, Duration::ZERO, by.cancel()) {
        Err(LockError::Busy(_) | LockError::Dying { .. }) => return Ok(None),
        lease => lease?,
    };
    settle(domain, dead, by).map(Some)
}

/// Undoes or finishes the dead job whose lease this is, as `by`, and removes what is left of it.
pub fn settle(domain: &Domain, dead: &OwnerLease, by: &Job) -> Result<Settled> {
    let (engine, job) = (&*domain.engine, dead.job());
    let settled = {
        let lock = lock_domain(domain, by, by.jobs.waits.lock)?;
        // A commit record that cannot be read is reported and left: it may name live objects.
        let commit = commit_of(domain, job)?.filter(|c| c.job == job && !bug("forget-commit"));
        if let Some(c) = commit.as_ref().filter(|_| !bug("drop-foreign")) {
            work::put_back(engine, &lock, c)?;
        }
        let undo = |commit: Option<&Commit>, keep: bool| {
            if !keep {
                mend(domain, dead)?;
            }
            take_away(engine, &lock, (job, commit), job, keep).map(|()| Settled::Undone)
        };
        match commit {
            Some(c) => match work::decided(engine, &c)? {
                Some(true) => {
                    work::finish(engine, &lock, &c)?;
                    engine.close(&lock, dead)?;
                    Settled::Finished
                }
                Some(false) => undo(Some(&c), false)?,
                // It had decided, and somebody else decided after it: what it displaced is not ours to drop.
                None => undo(None, true)?,
            },
            None => undo(None, false)?,
        }
    };
    let action = if settled == Settled::Finished { "finished" } else { "undone" };
    by.tell(What::Garbage { what: format!("job {job}"), action: action.to_owned(), bytes: 0 });
    clean_up(domain, dead, by);
    Ok(settled)
}

/// Renames all that `job` has staged, the source of its first step among it, into tombstones of `by`. From then on `job` can publish nothing.
pub(super) fn take_away(
    engine: &dyn Engine,
    lock: &DomainLock,
    (job, commit): (JobId, Option<&Commit>),
    by: JobId,
    keep: bool,
) -> Result<()> {
    for slab in engine.staged(job)? {
        lock.still_held()?;
        if let Place::Staged(_, n) = slab.place {
            let grave = free_grave(engine, by, UNDONE.saturating_add(n), keep)?;
            let meant = commit.and_then(|c| c.staged(n)).unwrap_or(slab.id);
            match engine.bury(lock, &slab.place, meant, &grave) {
                Ok(()) | Err(EngineError::Absent(_)) => {}
                // Its owner took it back or published it at this very moment.
                Err(EngineError::Changed(_)) if meant == slab.id => {}
                // Its owner exchanged it at this very moment. What it displaced stays; the next look puts it back.
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok(())
}

/// The first unused tombstone from number `n` on: an earlier life of the same job id may have left some.
pub(super) fn free_grave(engine: &dyn Engine, job: JobId, n: u32, keep: bool) -> Result<Grave> {
    let mut grave = Grave { job, n, keep };
    while engine.look(&Place::Dead(grave))?.is_some() {
        grave.n = grave.n.saturating_add(1);
    }
    Ok(grave)
}

/// Deletes the owner's staging area and its tombstones, the kept ones excepted. Whatever cannot be
/// deleted now is garbage in its place, and the collector will say so.
pub(super) fn clean_up(domain: &Domain, owner: &OwnerLease, by: &Job) {
    let engine = &*domain.engine;
    let mut errors = Vec::new();
    match engine.buried(owner.job()) {
        Err(e) => errors.push(e),
        Ok(mut dead) => {
            // What lies in a pool goes before it.
            dead.sort_by_key(|o| o.kind == Kind::Pool);
            for o in dead {
                if let Place::Dead(grave) = o.place
                    && !grave.keep
                {
                    errors.extend(engine.purge(owner, &grave).err());
                }
            }
        }
    }
    errors.extend(engine.end(owner).err());
    for e in errors {
        by.tell(What::Warning { text: format!("left for the collector: {e}") });
    }
}

/// What a job that has decided nothing was making of this source.
pub(super) fn part_of(domain: &Domain, job: JobId, source: &str) -> Option<Intent> {
    let intent = intent_of(domain, job).filter(|i| i.source.as_deref() == Some(source))?;
    matches!(commit_of(domain, job), Ok(None)).then_some(intent)
}

/// Settles dead jobs that meant to touch one of these names or what lies below it, before a verb works on
/// them. What they have of `source` is left for `Work::resume`.
pub fn settle_names(domain: &Domain, names: &[Name], source: Option<&str>, by: &Job) -> Result<()> {
    settle_all(domain, &|target| names.iter().any(|n| target.is_within(n)), source, by)
}

/// The same of names that are told by what they are.
pub fn settle_all(
    domain: &Domain,
    ours: &dyn Fn(&Name) -> bool,
    source: Option<&str>,
    by: &Job,
) -> Result<()> {
    if only_looks() {
        return Ok(());
    }
    let mut touching = Vec::new();
    domain.engine.each_job(&mut |job, commit, intent| {
        let touches = match decoded::<Commit>("commit", commit) {
            Some(c) => c.steps.iter().any(|s| ours(s.target())),
            // A damaged commit is in the way of what it was about, not of everything.
            None => decoded::<Intent>("intent", intent()).is_some_and(|i| i.targets.iter().any(ours)),
        };
        touching.extend(touches.then_some(job).filter(|j| *j != by.id));
    })?;
    touching.sort_unstable();
    for job in touching {
        if source.is_some_and(|s| part_of(domain, job, s).is_some()) {
            continue;
        }
        match lock::owner_lease(&*domain.locks, job) {
            Ok(dead) => drop(settle(domain, &dead, by)?),
            // It lives; the slab lease will say so.
            Err(LockError::Busy(_)) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// The answer this job id was given, here or before a crash.
pub fn recorded(domain: &Domain, job: &Job) -> Result<Option<Commit>> {
    let done = |bytes: Vec<u8>| record::decode(&format!("done record of job {}", job.id), &bytes);
    if let Some(bytes) = domain.engine.record(job.id, Record::Done)? {
        return done(bytes).map(Some);
    }
    if only_looks() || !domain.engine.jobs()?.contains(&job.id) {
        return Ok(None);
    }
    let dead = work::own(domain, job)?;
    // What had decided nothing may be gone on with.
    if !matches!(commit_of(domain, job.id), Ok(None)) {
        settle(domain, &dead, job)?;
    }
    domain.engine.record(job.id, Record::Done)?.map(done).transpose()
}

/// The done record of whoever published the object that has this name now.
pub fn made_by(domain: &Domain, name: &Name) -> Result<Option<Commit>> {
    let Some(now) = domain.engine.look(&Place::Public(name.clone()))? else { return Ok(None) };
    let mut jobs = domain.engine.makers(now.id, true)?.into_iter();
    Ok(jobs.find_map(|job| done_of(domain, job).filter(|c| c.made(name, now.id))))
}

/// The done record of whoever last took this name away.
pub fn buried_by(domain: &Domain, name: &Name) -> Result<Option<Commit>> {
    let is_it = |s: &Step| matches!(s, Step::Bury { name: n, .. } if n == name);
    let mut done = domain.engine.done()?.into_iter().rev();
    Ok(done.find_map(|d| done_of(domain, d.job).filter(|c| c.steps.iter().any(is_it))))
}

fn done_of(domain: &Domain, job: JobId) -> Option<Commit> {
    decoded("done", domain.engine.record(job, Record::Done))
}

/// A later request names this object, so the answer of the job that made it reached somebody. Best
/// effort: what is not marked now is marked by a later request, or stays in the collector's list; no verb fails for it.
pub fn acknowledge(domain: &Domain, name: &Name, by: &Job) {
    if only_looks() {
        return;
    }
    let mark = || -> Result<()> {
        let Some(now) = domain.engine.look(&Place::Public(name.clone()))? else { return Ok(()) };
        for job in domain.engine.makers(now.id, false)? {
            if done_of(domain, job).is_some_and(|c| c.made(name, now.id)) {
                let lock = lock_domain(domain, by, Duration::ZERO)?;
                domain.engine.acknowledge(&lock, job)?;
                break; // nobody else made this very object
            }
        }
        Ok(())
    };
    if let Err(e) = mark() {
        tracing::debug!(%e, %name, "not acknowledged");
    }
}

/// Objects that a job of ours published and no later request named: their answer may have been lost.
pub fn unacknowledged(domain: &Domain) -> Result<Vec<(Name, Commit)>> {
    let mut out = Vec::new();
    for d in domain.engine.done()?.into_iter().filter(|d| !d.acknowledged) {
        // Without an answer nothing could be lost: the caller named the object.
        let Some(commit) = done_of(domain, d.job).filter(|c| !c.answer.is_empty()) else { continue };
        for name in commit.steps.iter().map(record::Step::target) {
            let now = domain.engine.look(&Place::Public(name.clone()))?;
            if now.is_some_and(|o| commit.made(name, o.id)) {
                out.push((name.clone(), commit.clone()));
            }
        }
    }
    Ok(out)
}

/// Who holds a slab, as far as records tell: for the message of a refused lock.
pub fn holder_of(domain: &Domain, name: &Name, e: LockError) -> SdmError {
    let LockError::Busy(what) = &e else { return e.into() };
    let jobs = domain.engine.jobs().unwrap_or_default();
    let found = jobs.into_iter().find_map(|job| {
        let i = intent_of(domain, job)?;
        i.targets.iter().any(|t| root(t) == root(name)).then_some(i)
    });
    match found {
        None => backend_knows(domain, e),
        Some(i) => SdmError::Held { what: what.to_string(), holder: named(&i) },
    }
}

/// The first component without a companion's suffix: `x` for `x.snap/1`.
fn root(n: &Name) -> &str {
    let first = n.as_str().split('/').next().unwrap_or_default();
    first.strip_suffix(".snap").unwrap_or(first)
}
