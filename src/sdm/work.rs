//! A job that makes something: a staging area, slabs in it, and one commit that makes them visible.
//! Dropped uncommitted, it takes back all it made; killed, it leaves what the collector takes back.

use super::event::What;
use super::record::{self, Commit, FORMAT, Intent, Step, Undo};
use super::{Domain, Job, Result, SdmError, settle};
use crate::data;
use crate::engine::{Access, Engine, EngineError, Grave, Identity, Name, Object, Part, Place, Record, Spec};
use crate::lock::{self, DomainLock, JobId, LockError, OwnerLease, SlabLease};
use crate::sys::effect::{self, bug, only_looks};
use crate::sys::{Bytes, fs};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A publish does not give up on the domain lock while its job lives: the copy may have taken hours.
const PUBLISH_WAIT: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub struct Work<'a> {
    pub domain: &'a Domain,
    pub job: &'a Job,
    owner: OwnerLease,
    /// The first target, which names the slab that all are under.
    home: Option<Name>,
    slabs: u32,
    graves: u32,
    committed: bool,
}

/// A staged object. `file` was open before any other writer was: its fsync is the proof that what
/// they wrote is durable.
#[derive(Debug)]
pub struct Slab {
    pub n: u32,
    pub id: Identity,
    pub path: PathBuf,
    pub file: Option<File>,
}

impl<'a> Work<'a> {
    /// Starts to make or change `targets`, for which the caller holds the slab leases.
    pub fn begin(domain: &'a Domain, job: &'a Job, targets: &[Name]) -> Result<Work<'a>> {
        Work::start(domain, job, targets, None)
    }

    /// The same for what comes from a source of this identity. What dead jobs have staged of it, for the same
    /// targets, is taken over: whole slabs, in which any part may be missing, or wrong.
    pub fn resume(
        domain: &'a Domain,
        job: &'a Job,
        targets: &[Name],
        source: &str,
    ) -> Result<(Work<'a>, Vec<Object>)> {
        let mut work = Work::start(domain, job, targets, Some(source))?;
        if let Some(plan) = &job.jobs.plan {
            targets.iter().take(1).for_each(|name| plan.target(domain, name));
            return Ok((work, Vec::new()));
        }
        work.take_over(targets, source)?;
        let had = domain.engine.staged(job.id)?;
        Ok((work, had))
    }

    fn start(domain: &'a Domain, job: &'a Job, targets: &[Name], source: Option<&str>) -> Result<Work<'a>> {
        let owner = own(domain, job)?;
        if let Some(plan) = &job.jobs.plan {
            plan.begin(domain);
            return Ok(Work { domain, job, owner, home: None, slabs: 0, graves: 0, committed: true });
        }
        // An earlier life of this very job id, dead now since the lease is ours.
        let before = domain.engine.jobs()?.contains(&job.id);
        let goes_on = before && source.is_some_and(|source| is_part(domain, job.id, targets, source));
        if before && !goes_on {
            settle::settle(domain, &owner, job)?;
        }
        let (token, targets, home) = (owner.token()?, targets.to_vec(), targets.first().cloned());
        let source = source.map(str::to_owned);
        let intent = Intent { format: FORMAT, job: job.id, who: job.who(), targets, source, token };
        let bytes = record::encode("intent", &intent)?;
        let mut slabs = 0;
        if goes_on {
            slabs = domain.engine.staged(job.id)?.iter().map(|o| number(o) + 1).max().unwrap_or(0);
        } else {
            domain.engine.begin(&owner)?;
        }
        let work = Work { domain, job, owner, home, slabs, graves: 0, committed: false };
        domain.engine.put_record(&work.owner, Record::Intent, &bytes)?;
        Ok(work)
    }

    /// Under the domain lock, so that a job that was only paused finds the source entries of its steps gone.
    fn take_over(&mut self, targets: &[Name], source: &str) -> Result<()> {
        let (domain, engine) = (self.domain, &*self.domain.engine);
        for job in engine.jobs()?.into_iter().filter(|job| *job != self.job.id) {
            if !is_part(domain, job, targets, source) {
                continue;
            }
            let dead = match lock::owner_lease(&*domain.locks, job) {
                Err(LockError::Busy(_)) => continue,
                dead => dead?,
            };
            let lock = settle::lock_domain(domain, self.job, self.job.jobs.waits.lock)?;
            for o in engine.staged(job)? {
                match engine.take_over(&lock, (&dead, number(&o), o.id), &self.owner, self.slabs) {
                    Err(EngineError::Unsupported { .. }) => break,
                    taken => self.unless_fenced(taken)?,
                }
                self.slabs += 1;
            }
            drop(lock);
            settle::settle(domain, &dead, self.job)?;
        }
        Ok(())
    }

    /// A slab that was taken over, open for writing.
    pub fn reopen(&self, o: &Object) -> Result<Slab> {
        self.open(Slab { n: number(o), id: o.id, path: PathBuf::new(), file: None })
    }

    /// Leaves what is staged as a crash would: for a job that resumes it, or the collector.
    pub fn leave(mut self) {
        self.committed = true;
    }

    fn stage(
        &mut self,
        make: impl FnOnce(&dyn Engine, &OwnerLease, u32) -> std::result::Result<Identity, EngineError>,
    ) -> Result<Slab> {
        let n = self.slabs;
        self.slabs += 1;
        if only_looks() {
            let id = Identity { ino: 0, born: 0 };
            return Ok(Slab { n, id, path: PathBuf::new(), file: None });
        }
        let made = make(&*self.domain.engine, &self.owner, n);
        let id = self.unless_fenced(made)?;
        Ok(Slab { n, id, path: PathBuf::new(), file: None })
    }

    /// What is gone together with the intent was taken away: somebody decided against this job.
    fn unless_fenced<T>(&self, r: std::result::Result<T, EngineError>) -> Result<T> {
        match r {
            Err(EngineError::Absent(_))
                if self.domain.engine.record(self.job.id, Record::Intent)?.is_none() =>
            {
                Err(SdmError::Fenced(self.job.id))
            }
            r => Ok(r?),
        }
    }

    /// A new slab that reads zero, open for writing.
    pub fn file(&mut self, size: Bytes) -> Result<Slab> {
        let slab = self.slab(&Spec::File(size))?;
        if let Some(plan) = self.job.jobs.plan.as_ref().filter(|_| !self.domain.engine.reads_zero()) {
            plan.note(format!(
                "the new volume of {} is made to read zero first",
                self.domain.engine.rounded(size)?
            ));
        }
        if let Some(file) = slab.file.as_ref().filter(|_| !self.domain.engine.reads_zero()) {
            data::zero(file, &self.job.watch())?;
        }
        Ok(slab)
    }

    /// A new slab, open for writing.
    pub fn slab(&mut self, spec: &Spec) -> Result<Slab> {
        let slab = self.stage(|e, o, n| Ok(e.create(o, n, spec)?.id))?;
        if let Some(plan) = &self.job.jobs.plan {
            plan.makes(self.domain, spec)?;
            let size = match spec {
                Spec::File(size) | Spec::Thin { size, .. } => *size,
                _ => Bytes(0),
            };
            let path = scratch()?.join(slab.n.to_string());
            let make = || File::options().read(true).write(true).create_new(true).open(&path);
            let file = make().and_then(|f| f.set_len(size.0).map(|()| f));
            let file = file.map_err(|source| SdmError::Io { what: path.display().to_string(), source })?;
            return Ok(Slab { path, file: Some(file), ..slab });
        }
        self.open(slab)
    }

    fn open(&self, mut slab: Slab) -> Result<Slab> {
        slab.path = self.path(slab.n)?;
        let file = File::options().read(true).write(true).open(&slab.path).map_err(|source| {
            let what = slab.path.display().to_string();
            if source.kind() == ErrorKind::NotFound {
                EngineError::Absent(what)
            } else {
                EngineError::Io { what, source }
            }
        });
        slab.file = Some(self.unless_fenced(file)?);
        Ok(slab)
    }

    /// A public slab becomes larger by one that was staged, and flushed.
    pub fn append(&self, slab: Slab, to: &Name, lease: &SlabLease) -> Result<()> {
        let n = slab.n;
        // A device that is open cannot go.
        drop(slab);
        let done = self.domain.engine.append(lease, &self.owner, n, &Place::Public(to.clone()));
        self.unless_fenced(done)
    }

    /// Space for slabs of this job, and later for others.
    pub fn pool(&mut self, size: Bytes) -> Result<Slab> {
        if let Some(plan) = &self.job.jobs.plan {
            plan.makes(self.domain, &Spec::Pool(size))?;
        }
        self.stage(|e, o, n| Ok(e.create(o, n, &Spec::Pool(size))?.id))
    }

    /// Where a staged slab of this job is.
    pub fn place(&self, slab: &Slab) -> Place {
        Place::Staged(self.job.id, slab.n)
    }

    /// A new directory; what is put below its path is published with it.
    pub fn dir(&mut self) -> Result<Slab> {
        let mut slab = self.stage(|e, o, n| Ok(e.create(o, n, &Spec::Dir)?.id))?;
        if only_looks() {
            let path = scratch()?.join(slab.n.to_string());
            let made = fs::Dir::open(&scratch()?)
                .and_then(|d| d.mkdir(path.file_name().unwrap_or_default(), 0o700, false));
            made.map_err(|source| SdmError::Io { what: path.display().to_string(), source })?;
            return Ok(Slab { path, ..slab });
        }
        // An engine without paths below directories still has directories; nobody can write there.
        slab.path = self.path(slab.n).unwrap_or_default();
        Ok(slab)
    }

    /// A link to be published; its text is not looked at.
    pub fn link(&mut self, to: &str) -> Result<Slab> {
        self.stage(|e, o, n| Ok(e.create(o, n, &Spec::Link(to.to_owned()))?.id))
    }

    /// Sees to it that a directory is there which steps of this job publish into. It appears empty by a
    /// bare rename and stays when the job ends without a result: a step never makes a parent, so that
    /// whoever removes the directory stops the job.
    pub fn parent(&mut self, dir: &Name) -> Result<()> {
        let engine = &*self.domain.engine;
        let there = || -> Result<bool> { Ok(engine.look(&Place::Public(dir.clone()))?.is_some()) };
        if there()? || only_looks() {
            return Ok(());
        }
        let slab = self.dir()?;
        self.flush(&slab)?;
        let lock = settle::lock_domain(self.domain, self.job, PUBLISH_WAIT)?;
        self.owner.still_held()?;
        match self.unless_fenced(engine.publish(&lock, self.job.id, slab.n, slab.id, dir)) {
            Ok(()) => Ok(engine.sync(&[Place::Public(dir.clone()), Place::Staged(self.job.id, slab.n)])?),
            // Another job made it at this very moment; ours goes with the staging area.
            Err(SdmError::Engine(EngineError::Exists(_))) if there()? => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// A second name for a public slab; `None` where the storage cannot give one.
    pub fn adopt(&mut self, name: &Name) -> Result<Option<Slab>> {
        match self.stage(|e, o, n| Ok(e.adopt(o, n, name)?.id)) {
            Err(SdmError::Engine(EngineError::Unsupported { .. })) => Ok(None),
            r => r.map(Some),
        }
    }

    fn path(&self, n: u32) -> Result<PathBuf> {
        let at = Place::Staged(self.job.id, n);
        Ok(self.unless_fenced(self.domain.engine.attach(&at, Access::Write))?.path)
    }

    /// Makes a slab's content durable. An error is final for the slab.
    pub fn flush(&self, slab: &Slab) -> Result<()> {
        if only_looks() {
            return Ok(());
        }
        match &slab.file {
            Some(f) => fs::sync_file(f, &slab.path)
                .map_err(|source| SdmError::Io { what: format!("flushing {}", slab.path.display()), source }),
            None => Ok(self.domain.engine.flush(&self.owner, slab.n)?),
        }
    }

    /// What a child must keep open so that the job's lease is held as long as it writes.
    pub fn keep_held(&self) -> Vec<BorrowedFd<'_>> {
        self.owner.fd().into_iter().collect()
    }

    /// Makes durable what these places of a published file hold, which is changed there from now on: it is put back when
    /// the job ends before it decides. With no places, the file is whole again.
    pub fn changes(&self, name: &Name, parts: &[Part]) -> Result<()> {
        let look = self.domain.engine.look(&Place::Public(name.clone()))?;
        let (Some(o), Some(slab)) = (look, self.home.clone()) else { return Ok(()) };
        let parts = parts.iter().map(|(at, bytes)| (*at, STANDARD.encode(bytes))).collect();
        let undo = Undo { format: FORMAT, job: self.job.id, slab, name: name.clone(), id: o.id, parts };
        let bytes = record::encode("undo", &undo)?;
        self.unless_fenced(self.domain.engine.put_record(&self.owner, Record::Undo, &bytes))
    }

    /// The next tombstone of this job.
    fn grave(&mut self, keep: bool) -> Result<Grave> {
        let grave = settle::free_grave(&*self.domain.engine, self.job.id, self.graves, keep)?;
        self.graves = grave.n + 1;
        Ok(grave)
    }

    /// A step that gives a slab its name: free, or taken from what is there now, which is kept.
    pub fn step_to(&mut self, slab: &Slab, to: &Name) -> Result<Step> {
        self.step_over(slab, to, true)
    }

    /// The same, and what is there now is kept for a while or goes at once.
    pub fn step_over(&mut self, slab: &Slab, to: &Name, keep: bool) -> Result<Step> {
        let (from, id, to) = (slab.n, slab.id, to.clone());
        Ok(match self.domain.engine.look(&Place::Public(to.clone()))? {
            None => Step::Publish { from, id, to },
            Some(old) => Step::Replace { from, id, to, old: old.id, grave: self.grave(keep)? },
        })
    }

    /// A step that removes a name, if it is there.
    pub fn step_bury(&mut self, name: &Name, keep: bool) -> Result<Option<Step>> {
        let at = self.domain.engine.look(&Place::Public(name.clone()))?;
        let Some(o) = at else { return Ok(None) };
        Ok(Some(Step::Bury { name: name.clone(), id: o.id, grave: self.grave(keep)? }))
    }

    /// Decides: the record becomes durable, the steps are taken under the domain lock, the first one
    /// makes the result visible. On an error nothing is visible and all is taken back.
    pub fn commit(mut self, request: &str, answer: &str, steps: Vec<Step>) -> Result<()> {
        if let Some(plan) = &self.job.jobs.plan {
            plan.commit(self.domain, &steps);
            return Ok(());
        }
        let (engine, job) = (&*self.domain.engine, self.job.id);
        let (request, answer) = (request.to_owned(), answer.to_owned());
        let (who, token) = (self.job.who(), self.owner.token()?);
        let commit = Commit { format: FORMAT, job, who, request, answer, steps, token };
        self.job.phase("committing");
        let bytes = record::encode("commit", &commit)?;
        let decide = || self.unless_fenced(engine.put_record(&self.owner, Record::Commit, &bytes));
        if !bug("swap-steps") {
            decide()?;
        }
        let lock = settle::lock_domain(self.domain, self.job, PUBLISH_WAIT)?;
        if let Some(t) = lock.token()? {
            tracing::info!(JOB_ID = %job, host_id = t.host_id, generation = t.generation, version = t.version, "publishing under the domain lock");
        }
        self.owner.still_held()?;
        if self.job.cancel().is_requested() {
            return Err(LockError::Cancelled(lock.id().clone()).into());
        }
        // Under the lock: whoever removes the target may have come before anything was staged.
        if engine.record(job, Record::Intent)?.is_none() {
            return Err(SdmError::Fenced(job));
        }
        if let Err(e) = first_step(engine, &lock, &commit) {
            // Look again before believing it: what failed may be a flush, or only the answer.
            match is_taken(engine, &commit) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Err(e),
                // It cannot be told. What is staged may be the old object, so whoever settles decides.
                Ok(None) | Err(_) => {
                    self.committed = !matches!(e, SdmError::Fenced(_));
                    return Err(e);
                }
            }
        }
        if bug("swap-steps") {
            decide()?;
        }
        self.committed = true;
        finish(engine, &lock, &commit)?;
        if let Err(e) = engine.close(&lock, &self.owner) {
            // All is done and durable; whoever settles writes that down.
            self.job.tell(What::Warning { text: format!("left for the collector: {e}") });
            return Ok(());
        }
        drop(lock);
        settle::clean_up(self.domain, &self.owner, self.job);
        Ok(())
    }
}

impl Drop for Work<'_> {
    /// Nobody saw what is staged: the owner may simply remove it.
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        match settle::mend(self.domain, &self.owner) {
            Ok(()) => settle::clean_up(self.domain, &self.owner, self.job),
            Err(e) => self.job.tell(What::Warning { text: format!("left for the collector: {e}") }),
        }
    }
}

/// Where a plan stages.
fn scratch() -> Result<PathBuf> {
    let none = || SdmError::Io {
        what: "a plan without a directory".to_owned(),
        source: std::io::ErrorKind::NotFound.into(),
    };
    effect::scratch().ok_or_else(none)
}

/// Whether a job that has decided nothing was making just this of this source.
fn is_part(domain: &Domain, job: JobId, targets: &[Name], source: &str) -> bool {
    settle::part_of(domain, job, source).is_some_and(|i| i.targets == targets)
}

/// That of a staged slab.
fn number(o: &Object) -> u32 {
    if let Place::Staged(_, n) = o.place { n } else { 0 }
}

/// The owner lease of a job of ours; held already means that the same id runs elsewhere.
pub fn own(domain: &Domain, job: &Job) -> Result<OwnerLease> {
    match lock::own_lease(&*domain.locks, job.id, job.cancel()) {
        Err(LockError::Busy(_)) => Err(SdmError::Running(job.id)),
        r => Ok(r?),
    }
}

/// Takes the step that decides. A missing source entry means that somebody decided against it.
pub(super) fn first_step(engine: &dyn Engine, lock: &DomainLock, commit: &Commit) -> Result<()> {
    let Some(step) = commit.steps.first() else { return Ok(()) };
    lock.still_held()?;
    match take(engine, lock, commit.job, step) {
        Err(EngineError::Absent(_)) if staged_is_gone(engine, commit.job, step)? => {
            Err(SdmError::Fenced(commit.job))
        }
        // Somebody without our locks removed it first.
        Err(EngineError::Absent(_)) if matches!(step, Step::Bury { .. }) => Ok(()),
        r => Ok(r?),
    }
}

fn staged_is_gone(engine: &dyn Engine, job: JobId, step: &Step) -> Result<bool> {
    match step {
        Step::Publish { from, .. } | Step::Replace { from, .. } => {
            Ok(engine.look(&Place::Staged(job, *from))?.is_none())
        }
        Step::Bury { .. } => Ok(false),
    }
}

/// Takes the steps and makes all of them durable. Steps already taken are passed over,
/// so this also finishes the work of a dead job. A name that meanwhile belongs to another object is
/// left to it; what should have had it is kept as a tombstone.
pub(super) fn finish(engine: &dyn Engine, lock: &DomainLock, commit: &Commit) -> Result<()> {
    // Targets before sources: an object may have two names for a while, never none.
    let places = |step: &Step| match step {
        Step::Publish { from, to, .. } | Step::Replace { from, to, .. } => {
            [Place::Public(to.clone()), Place::Staged(commit.job, *from)]
        }
        Step::Bury { name, grave, .. } => [Place::Dead(*grave), Place::Public(name.clone())],
    };
    let mut rest = Vec::new();
    for (i, step) in commit.steps.iter().enumerate() {
        lock.still_held()?;
        match take(engine, lock, commit.job, step) {
            Ok(()) | Err(EngineError::Absent(_)) => {}
            Err(EngineError::Changed(_) | EngineError::Exists(_)) => {
                set_aside(engine, lock, commit.job, step)?;
            }
            Err(e) => return Err(e.into()),
        }
        // The first decides, and must not be lost while a later one is kept.
        if i == 0 {
            engine.sync(&places(step))?;
        } else {
            rest.extend(places(step));
        }
    }
    // All of them before the record becomes a done record, which nobody finishes.
    Ok(engine.sync(&rest)?)
}

/// One step, or nothing when it has been taken already.
fn take(
    engine: &dyn Engine,
    lock: &DomainLock,
    job: JobId,
    step: &Step,
) -> std::result::Result<(), EngineError> {
    let has = |at: &Place, id: &Identity| -> std::result::Result<bool, EngineError> {
        Ok(engine.look(at)?.is_some_and(|o| o.id == *id))
    };
    match step {
        Step::Publish { from, id, to } => {
            if has(&Place::Public(to.clone()), id)? {
                return Ok(());
            }
            engine.publish(lock, job, *from, *id, to)
        }
        Step::Replace { from, id, to, old, grave } => {
            if has(&Place::Public(to.clone()), id)? {
                // Taken; the old object may still wait for its tombstone where the new one was staged.
                let at = Place::Staged(job, *from);
                return if has(&at, old)? { engine.bury(lock, &at, *old, grave) } else { Ok(()) };
            }
            engine.replace(lock, (job, *from, *id), to, *old, grave)
        }
        Step::Bury { name, id, grave } => {
            let at = Place::Public(name.clone());
            if has(&at, id)? { engine.bury(lock, &at, *id, grave) } else { Ok(()) }
        }
    }
}

/// Keeps the staged source of a step that cannot be taken any more.
fn set_aside(engine: &dyn Engine, lock: &DomainLock, job: JobId, step: &Step) -> Result<()> {
    if let Step::Publish { from, id, .. } | Step::Replace { from, id, .. } = step {
        let grave = settle::free_grave(engine, job, settle::UNDONE.saturating_add(*from), true)?;
        engine.bury(lock, &Place::Staged(job, *from), *id, &grave)?;
    }
    Ok(())
}

/// Gives a name back that a job took from the wrong object: somebody else changed it between the job's last look
/// and its step, and the job died before it saw what came out. That lies where the job's own was staged.
pub(super) fn put_back(engine: &dyn Engine, lock: &DomainLock, commit: &Commit) -> Result<()> {
    let at = |p: &Place| -> Result<Option<Identity>> { Ok(engine.look(p)?.map(|o| o.id)) };
    for step in &commit.steps {
        if let Step::Replace { from, id, to, old, .. } = step
            && at(&Place::Public(to.clone()))? == Some(*id)
            && let Some(other) = at(&Place::Staged(commit.job, *from))?.filter(|o| o != old)
        {
            lock.still_held()?;
            let grave = settle::free_grave(engine, commit.job, settle::UNDONE.saturating_add(*from), true)?;
            engine.replace(lock, (commit.job, *from, other), to, *id, &grave)?;
        }
    }
    Ok(())
}

/// Whether the step that decides was taken. `None`: it can no longer be told apart or taken.
pub(super) fn decided(engine: &dyn Engine, commit: &Commit) -> Result<Option<bool>> {
    let at = |p: &Place| -> Result<Option<Identity>> { Ok(engine.look(p)?.map(|o| o.id)) };
    Ok(match commit.steps.first() {
        Some(Step::Publish { from, id, to } | Step::Replace { from, id, to, .. }) => {
            if at(&Place::Public(to.clone()))? == Some(*id) {
                Some(true)
            } else if at(&Place::Staged(commit.job, *from))? == Some(*id) {
                Some(false)
            } else {
                None
            }
        }
        // A removal with a durable record is a decision: nothing is staged that could be taken away.
        None | Some(Step::Bury { .. }) => Some(true),
    })
}

/// Whether the first step was taken, as far as what is there tells.
fn is_taken(engine: &dyn Engine, commit: &Commit) -> Result<Option<bool>> {
    match commit.steps.first() {
        Some(Step::Bury { name, id, .. }) => {
            let there = engine.look(&Place::Public(name.clone()))?;
            Ok(Some(there.is_none_or(|o| o.id != *id)))
        }
        _ => decided(engine, commit),
    }
}

/// A path as text, for tools; ours are text by construction.
pub fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
