//! What single lines of the commit protocol are there for: each test fails when its line is left out. In memory, with
//! hosts that lose their leases. Whole verbs, cut off anywhere, are `verb`'s tests.

use super::job::{Topic, Waits};
use super::record::{self, Commit, Step};
use super::turn::Copies;
use super::work::Slab;
use super::{Domain, Job, Jobs, Result, SdmError, Work, gc, remove, settle};
use crate::engine::faulty::Faulty;
use crate::engine::mem::MemEngine;
use crate::engine::{Access, EngineError, Grave, Identity, Name, Place, Record};
use crate::lock::{self, JobId, LockError, MemLocks};
use crate::obs::jsonl::Log;
use crate::sys::{Bytes, Cancel, Class};
use std::time::{Duration, Instant};

/// A domain, and another host on it.
struct Bed {
    dir: tempfile::TempDir,
    engine: MemEngine,
    /// Of the host under test.
    locks: MemLocks,
    domain: Domain,
    other: Domain,
}

fn name(s: &str) -> Name {
    Name::parse(s).unwrap()
}

impl Bed {
    fn new() -> Bed {
        let (engine, here) = (MemEngine::default(), MemLocks::default());
        let locks = here.another_host();
        let [domain, other] = [&locks, &here].map(|l| Domain::in_memory(&engine, l).unwrap());
        Bed { dir: tempfile::tempdir().unwrap(), engine, locks, domain, other }
    }

    /// A process: what asks one to stop does not reach the others.
    fn jobs(&self) -> Jobs {
        let log = |n: &str| Log { path: self.dir.path().join(n), max_size: 1 << 20, keep: 1 };
        let waits = Waits { lock: Duration::from_millis(200), grace: Duration::from_millis(50) };
        let run = std::path::PathBuf::from("/proc/nowhere");
        Jobs {
            run,
            events: log("events"),
            history: log("history"),
            cancel: Cancel::default(),
            waits,
            copies: Copies::default(),
            plan: None,
        }
    }

    fn job(&self) -> Job {
        self.job_as(JobId::generate())
    }

    fn job_as(&self, id: JobId) -> Job {
        self.jobs().start(id, Topic { verb: "test".into(), ..Topic::default() })
    }

    fn make(&self, n: &str) -> Identity {
        let job = self.job();
        let (mut work, slab) = begun(&self.domain, &job, n);
        let step = work.step_to(&slab, &name(n)).unwrap();
        commit(work, vec![step]).unwrap();
        self.id(n).unwrap()
    }

    fn id(&self, n: &str) -> Option<Identity> {
        self.other.engine.look(&Place::Public(name(n))).unwrap().map(|o| o.id)
    }

    fn remove(&self, n: &str) {
        let job = self.job();
        remove::remove(&self.other, &job, &[name(n)], "r").unwrap();
    }

    /// Tombstones: the objects, and whether they are kept.
    fn dead(&self) -> Vec<(Identity, bool)> {
        let kept = |p: &Place| matches!(p, Place::Dead(g) if g.keep);
        self.other.engine.dead().unwrap().into_iter().map(|o| (o.id, kept(&o.place))).collect()
    }

    fn ends(&self, dead: JobId) -> settle::Settled {
        let owner = lock::owner_lease(&*self.other.locks, dead).unwrap();
        settle::settle(&self.other, &owner, &self.job()).unwrap()
    }

    fn plan(&self) -> Vec<gc::Finding> {
        gc::plan(&self.other, &policy(3600)).unwrap()
    }
}

fn policy(keep: u64) -> gc::Policy {
    let [trash_keep, done_age] = [keep, 3600].map(Duration::from_secs);
    gc::Policy { trash_keep, done_max: 1000, done_age, short: false }
}

fn begun<'a>(domain: &'a Domain, job: &'a Job, n: &str) -> (Work<'a>, Slab) {
    let mut work = Work::begin(domain, job, &[name(n)]).unwrap();
    let slab = work.file(Bytes(4096)).unwrap();
    std::fs::write(&slab.path, [7; 4096]).unwrap();
    (work, slab)
}

fn commit(work: Work<'_>, steps: Vec<Step>) -> Result<()> {
    work.commit("request", "answer", steps)
}

fn is_fenced<T>(r: &Result<T>) -> bool {
    matches!(r, Err(SdmError::Fenced(_)))
}

/// What a crash leaves of a job that was making `n`, before it decided or with its decision written down.
fn died(bed: &Bed, n: &str, decided: impl FnOnce(&mut Work<'_>, &Slab) -> Option<Vec<Step>>) -> JobId {
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, n);
    let steps = decided(&mut work, &slab);
    work.leave();
    if let Some(steps) = steps {
        put_commit(bed, job.id, job.id, steps);
    }
    job.id
}

fn put_commit(bed: &Bed, into: JobId, of: JobId, steps: Vec<Step>) {
    let who = bed.job().who();
    let (request, answer) = ("request".to_owned(), "answer".to_owned());
    let commit = Commit { format: record::FORMAT, job: of, who, request, answer, steps, token: None };
    let owner = lock::owner_lease(&*bed.domain.locks, into).unwrap();
    let bytes = record::encode("commit", &commit).unwrap();
    bed.domain.engine.put_record(&owner, Record::Commit, &bytes).unwrap();
}

#[test]
fn an_earlier_life_of_a_job_is_ended_before_it_begins_again() {
    let bed = Bed::new();
    let job = bed.job();
    begun(&bed.domain, &job, "x").0.leave();
    let again = bed.job_as(job.id);
    let (work, slab) = begun(&bed.domain, &again, "x");
    assert_eq!(slab.n, 0, "nothing of the earlier life is staged");
    drop(work);
    // Nor while it still runs.
    let _lives = begun(&bed.domain, &job, "x");
    assert!(matches!(Work::begin(&bed.other, &again, &[name("x")]), Err(SdmError::Running(_))));
}

fn resumed<'a>(bed: &'a Bed, job: &'a Job, target: &str, source: &str) -> (Work<'a>, usize) {
    let (work, had) = Work::resume(&bed.domain, job, &[name(target)], source).unwrap();
    (work, had.len())
}

#[test]
fn what_a_dead_job_had_is_taken_over_once_by_who_makes_the_same_of_the_same() {
    let bed = Bed::new();
    let first = bed.job();
    let (mut work, _) = resumed(&bed, &first, "x", "s");
    work.file(Bytes(4096)).unwrap();
    work.leave();
    for (target, source) in [("y", "s"), ("x", "t")] {
        let job = bed.job();
        assert_eq!(resumed(&bed, &job, target, source).1, 0, "{target} of {source} is something else");
    }
    let job = bed.job();
    let (work, had) = resumed(&bed, &job, "x", "s");
    assert_eq!((had, bed.other.engine.jobs().unwrap()), (1, vec![job.id]), "nothing is left of the first");
    work.leave();
    // What has decided is no part of anything.
    put_commit(&bed, job.id, job.id, Vec::new());
    assert!(settle::part_of(&bed.other, job.id, "s").is_none());
}

#[test]
fn a_job_whose_work_was_taken_away_says_so_wherever_it_is() {
    let bed = Bed::new();
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, "x");
    assert!(!remove::outrank(&bed.other, &bed.job(), &[name("x")]).unwrap(), "it does not end by itself");
    assert!(is_fenced(&work.reopen(&staged(&slab, &job))), "what it staged is gone");
    // What it makes now is not taken away, but comes to nothing.
    let late = work.file(Bytes(4096)).unwrap();
    let step = work.step_to(&late, &name("x")).unwrap();
    assert!(is_fenced(&commit(work, vec![step])));
    assert!(bed.id("x").is_none() && bed.other.engine.jobs().unwrap().is_empty());
}

fn staged(slab: &Slab, job: &Job) -> crate::engine::Object {
    let (place, kind, size) = (Place::Staged(job.id, slab.n), crate::engine::Kind::File, Bytes(4096));
    crate::engine::Object { place, kind, id: slab.id, size, allocated: Bytes(0), changed: 0 }
}

/// Steps that would succeed.
fn would(bed: &Bed, before: impl FnOnce(&Job)) -> Result<()> {
    let job = bed.job();
    let (work, slab) = begun(&bed.domain, &job, "x");
    let step = Step::Publish { from: slab.n, id: slab.id, to: name("x") };
    before(&job);
    let done = commit(work, vec![step]);
    assert_eq!(done.is_ok(), bed.id("x").is_some(), "{done:?}");
    done
}

#[test]
fn a_commit_asks_whether_it_is_still_wanted_and_still_its_own() {
    let bed = Bed::new();
    let class = would(&bed, |job| job.cancel().request()).unwrap_err().class();
    assert_eq!(class, Class::Cancelled);
    let lost = would(&bed, |_| bed.locks.lose());
    assert!(matches!(lost, Err(SdmError::Lock(LockError::Lost(_)))), "{lost:?}");
    let fenced = would(&bed, |job| {
        let lock = settle::lock_domain(&bed.other, &bed.job(), Duration::ZERO).unwrap();
        bed.other.engine.fence(&lock, job.id).unwrap();
    });
    assert!(is_fenced(&fenced));
    would(&bed, |_| {}).unwrap();
}

/// The host loses its leases between the lock and the step that decides, and the other one decides first.
#[test]
fn a_lock_that_was_lost_decides_nothing() {
    let bed = Bed::new();
    bed.make("x");
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, "x");
    let step = work.step_to(&slab, &name("x")).unwrap();
    let record = Commit {
        format: record::FORMAT,
        job: job.id,
        who: job.who(),
        request: String::new(),
        answer: String::new(),
        steps: vec![step],
        token: None,
    };
    let lock = settle::lock_domain(&bed.domain, &job, Duration::ZERO).unwrap();
    bed.locks.lose();
    let first = super::work::first_step(&*bed.domain.engine, &lock, &record);
    assert!(matches!(first, Err(SdmError::Lock(LockError::Lost(_)))), "{first:?}");
}

/// The storage answers an error, but has done it.
#[test]
fn an_error_is_not_believed_before_it_was_looked_at() {
    let (mut fine, mut failed, mut late) = (0, 0, 0);
    for k in 0..40 {
        let bed = Bed::new();
        let old = bed.make("x");
        let domain = Domain {
            engine: Box::new(Faulty::new(bed.engine.clone(), k, true).once()),
            ..Domain::in_memory(&bed.engine, &bed.locks).unwrap()
        };
        let job = bed.job();
        let done = Work::begin(&domain, &job, &[name("x")]).and_then(|mut work| {
            let slab = work.file(Bytes(4096))?;
            let step = work.step_to(&slab, &name("x"))?;
            work.commit("request", "answer", vec![step])
        });
        let changed = bed.id("x") != Some(old);
        assert!(changed || done.is_err(), "change {k}");
        if changed && done.is_err() {
            // Visible, but not known to be durable: whoever comes next ends it.
            assert_eq!(bed.ends(job.id), settle::Settled::Finished, "change {k}: {done:?}");
            late += 1;
        }
        *(if done.is_ok() { &mut fine } else { &mut failed }) += 1;
    }
    // The area, the slab and both records before it decides; then the step, flushes, and tidying.
    assert!(failed - late == 4 && fine > 20, "{failed} {late} {fine}");
}

#[test]
fn what_somebody_else_removed_first_is_removed() {
    let bed = Bed::new();
    bed.make("x");
    let job = bed.job();
    let mut work = Work::begin(&bed.domain, &job, &[name("x")]).unwrap();
    let step = work.step_bury(&name("x"), false).unwrap().unwrap();
    bed.remove("x");
    commit(work, vec![step]).unwrap();
    bed.remove("x");
}

#[test]
fn a_removal_that_fails_is_not_done() {
    let done = |after| {
        let bed = Bed::new();
        bed.make("x");
        // The area, the intent, the commit; then the step.
        let engine = Box::new(Faulty::new(bed.engine.clone(), 3, after).once());
        let domain = Domain { engine, ..Domain::in_memory(&bed.engine, &bed.locks).unwrap() };
        let job = bed.job();
        let mut work = Work::begin(&domain, &job, &[name("x")]).unwrap();
        let step = work.step_bury(&name("x"), false).unwrap().unwrap();
        let done = commit(work, vec![step]);
        assert_eq!(bed.id("x").is_none(), done.is_ok(), "{done:?}");
        done.is_ok()
    };
    assert_eq!([false, true].map(done), [false, true]);
}

/// Of two steps the second comes too late: the name is left to whoever has it, and what should have had it is kept.
#[test]
fn a_step_that_comes_too_late_is_set_aside() {
    let bed = Bed::new();
    bed.make("y");
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, "x");
    let second = work.file(Bytes(4096)).unwrap();
    let steps = vec![work.step_to(&slab, &name("x")).unwrap(), work.step_to(&second, &name("y")).unwrap()];
    bed.remove("y");
    let others = bed.make("y");
    commit(work, steps).unwrap();
    assert_eq!((bed.id("x"), bed.id("y")), (Some(slab.id), Some(others)));
    assert_eq!(bed.dead(), [(second.id, true)]);
}

#[test]
fn tombstones_of_one_job_do_not_meet() {
    let bed = Bed::new();
    let [x, y] = ["x", "y"].map(|n| bed.make(n));
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, "x");
    let second = work.file(Bytes(4096)).unwrap();
    let steps = vec![work.step_to(&slab, &name("x")).unwrap(), work.step_to(&second, &name("y")).unwrap()];
    commit(work, steps).unwrap();
    let mut dead = bed.dead();
    dead.sort_by_key(|(id, _)| id.ino);
    assert_eq!(dead, [(x, true), (y, true)], "what was replaced is kept");
    // A later life of the same id finds the numbers taken.
    let again = bed.job_as(job.id);
    let (mut work, slab) = begun(&bed.domain, &again, "x");
    let step = work.step_over(&slab, &name("x"), true).unwrap();
    assert!(matches!(step, Step::Replace { grave: Grave { n, .. }, .. } if n >= 2), "{step:?}");
    let gone = work.step_bury(&name("y"), false).unwrap().unwrap();
    commit(work, vec![step, gone]).unwrap();
    assert_eq!(bed.dead().len(), 3, "what goes at once is gone, what is kept is there");
}

/// A job died between the two halves of a replacement: what it replaced still lies where the new one was staged.
#[test]
fn what_was_replaced_is_kept_by_whoever_ends_the_job() {
    let bed = Bed::new();
    let [old, earlier] = ["x", "y"].map(|n| bed.make(n));
    bed.make("y");
    let taken = bed.other.engine.dead().unwrap().remove(0).place;
    let Place::Dead(taken) = taken else { panic!("{taken}") };
    let mut made = None;
    let dead = died(&bed, "x", |work, slab| {
        made = Some((slab.n, slab.id));
        Some(vec![work.step_over(slab, &name("x"), true).unwrap()])
    });
    let (n, new) = made.unwrap();
    let lock = settle::lock_domain(&bed.other, &bed.job(), Duration::ZERO).unwrap();
    let half = bed.other.engine.replace(&lock, (dead, n, new), &name("x"), old, &taken);
    assert!(matches!(half, Err(EngineError::Exists(_))), "{half:?}: the tombstone it was told has another's");
    drop(lock);
    assert_eq!(bed.ends(dead), settle::Settled::Finished);
    let mut kept = bed.dead();
    kept.sort_by_key(|(id, _)| id.ino);
    assert_eq!((bed.id("x"), kept), (Some(new), vec![(old, true), (earlier, true)]));
}

#[test]
fn cleaning_up_leaves_what_is_another_jobs() {
    let bed = Bed::new();
    let [one, two] = [(); 2].map(|()| bed.job());
    let doomed = bed.make("x");
    let keep_lease = lock::owner_lease(&*bed.domain.locks, one.id).unwrap();
    {
        let lock = settle::lock_domain(&bed.domain, &one, Duration::ZERO).unwrap();
        let grave = Grave { job: one.id, n: 0, keep: false };
        bed.domain.engine.bury(&lock, &Place::Public(name("x")), doomed, &grave).unwrap();
    }
    drop(begun(&bed.other, &two, "y"));
    assert_eq!(bed.dead(), [(doomed, false)]);
    let [found] = <[_; 1]>::try_from(bed.plan()).unwrap();
    assert_eq!(
        (found.action, found.why.as_str()),
        (gc::Action::Stay, "the job that removed it is still at it")
    );
    drop(keep_lease);
    assert_eq!(bed.plan()[0].action, gc::Action::Delete);
}

#[test]
fn a_dead_job_is_ended_by_what_it_wrote_down_itself() {
    let bed = Bed::new();
    let old = bed.make("x");
    // It had not taken its step: all of it goes.
    let dead = died(&bed, "x", |work, slab| Some(vec![work.step_to(slab, &name("x")).unwrap()]));
    let [found] = <[_; 1]>::try_from(bed.plan()).unwrap();
    assert_eq!(found.action, gc::Action::Undo);
    assert!(found.bytes.0 >= 4096, "{found:?}");
    assert_eq!(bed.ends(dead), settle::Settled::Undone);
    assert_eq!((bed.id("x"), bed.dead()), (Some(old), Vec::new()));
    // A record that was copied from elsewhere is not believed.
    let dead = died(&bed, "x", |_, _| None);
    let bury = Step::Bury { name: name("x"), id: old, grave: Grave { job: dead, n: 0, keep: false } };
    put_commit(&bed, dead, JobId::generate(), vec![bury]);
    assert_eq!(bed.ends(dead), settle::Settled::Undone);
    assert_eq!(bed.id("x"), Some(old));
    // Another job decided after it: what it displaced lies where its own was, and is kept.
    let mut displaced = None;
    let dead = died(&bed, "x", |_, slab| {
        displaced = Some(slab.id);
        Some(vec![Step::Publish { from: 0, id: Identity { ino: 999, born: 1 }, to: name("z") }])
    });
    assert_eq!(bed.ends(dead), settle::Settled::Undone);
    assert_eq!(bed.dead(), [(displaced.unwrap(), true)]);
}

#[test]
fn a_record_nobody_can_read_is_in_the_way_of_what_it_was_about() {
    let bed = Bed::new();
    let dead = died(&bed, "x", |_, _| None);
    let owner = lock::owner_lease(&*bed.domain.locks, dead).unwrap();
    bed.domain.engine.put_record(&owner, Record::Commit, b"{}\n").unwrap();
    drop(owner);
    let settles = |n: &str| settle::settle_names(&bed.other, &[name(n)], None, &bed.job());
    settles("y").unwrap();
    assert_eq!(settles("x").unwrap_err().class(), Class::Integrity);
    assert!(bed.plan().iter().all(|f| f.action == gc::Action::Stay), "nor does the collector touch it");
}

#[test]
fn a_living_job_is_left_alone() {
    let bed = Bed::new();
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, "x");
    let lives = bed.plan();
    assert_eq!((lives[0].action, lives[0].why.as_str()), (gc::Action::Stay, "its owner lives"));
    settle::settle_names(&bed.other, &[name("x")], None, &bed.job()).unwrap();
    let report = gc::collect(&bed.other, &bed.job(), &policy(0)).unwrap();
    assert_eq!((report.done.len(), report.errors.len()), (0, 0));
    let step = work.step_to(&slab, &name("x")).unwrap();
    commit(work, vec![step]).unwrap();
}

#[test]
fn a_collection_stops_when_it_is_told_to() {
    let bed = Bed::new();
    let dead = died(&bed, "x", |_, _| None);
    let job = bed.job();
    job.cancel().request();
    assert_eq!(gc::collect(&bed.other, &job, &policy(0)).unwrap_err().class(), Class::Cancelled);
    assert_eq!(bed.other.engine.jobs().unwrap(), [dead]);
}

#[test]
fn a_removal_is_no_rival_of_a_removal() {
    let bed = Bed::new();
    let id = bed.make("x");
    let job = bed.job();
    let work = Work::begin(&bed.domain, &job, &[name("x")]).unwrap();
    let owner = |d: &Domain| lock::owner_lease(&*d.locks, job.id);
    let bury = Step::Bury { name: name("x"), id, grave: Grave { job: job.id, n: 0, keep: false } };
    // It has decided: its lease is taken for a moment to write that down.
    bed.locks.lose();
    put_commit(&bed, job.id, job.id, vec![bury]);
    let _lives = owner(&bed.domain).unwrap();
    let began = Instant::now();
    assert!(remove::outrank(&bed.other, &bed.job(), &[name("x")]).unwrap());
    assert!(began.elapsed() < Duration::from_millis(50), "it is not waited for");
    assert!(settle::intent_of(&bed.other, job.id).is_some(), "nor fenced");
    work.leave();
}

#[test]
fn a_removal_ends_what_died_making_it_and_takes_away_what_lives() {
    let bed = Bed::new();
    died(&bed, "x", |_, _| None);
    assert!(remove::outrank(&bed.other, &bed.job(), &[name("x")]).unwrap());
    assert!(bed.other.engine.jobs().unwrap().is_empty(), "the dead one");
    let job = bed.job();
    let (work, _) = begun(&bed.domain, &job, "x");
    let began = Instant::now();
    let remover = bed.job();
    assert!(!remove::outrank(&bed.other, &remover, &[name("x")]).unwrap());
    assert!(began.elapsed() >= Duration::from_millis(50), "it is given time to end by itself");
    assert!(bed.other.engine.staged(job.id).unwrap().is_empty(), "its space is had at once");
    drop(work);
}

/// Somebody without our locks is faster.
#[test]
fn a_removal_meets_one_of_a_stranger() {
    let bed = Bed::new();
    let id = bed.make("x");
    let job = bed.job();
    let held = settle::lock_domain(&bed.other, &bed.job(), Duration::ZERO).unwrap();
    std::thread::scope(|s| {
        let removal = s.spawn(|| remove::remove(&bed.domain, &job, &[name("x")], "r"));
        // It has looked, and waits for the lock.
        std::thread::sleep(Duration::from_millis(60));
        let grave = Grave { job: JobId::generate(), n: 0, keep: false };
        bed.other.engine.bury(&held, &Place::Public(name("x")), id, &grave).unwrap();
        drop(held);
        assert_eq!(removal.join().unwrap().unwrap(), 1);
    });
}

#[test]
fn what_was_answered_is_answered_again_and_listed_until_somebody_heard_it() {
    let bed = Bed::new();
    let x = bed.make("x");
    let lost = || settle::unacknowledged(&bed.other).unwrap();
    let [(n, made)] = <[_; 1]>::try_from(lost()).unwrap();
    assert_eq!(n, name("x"));
    assert_eq!(settle::recorded(&bed.other, &bed.job_as(made.job)).unwrap(), Some(made.clone()));
    assert_eq!(settle::made_by(&bed.other, &name("x")).unwrap().map(|c| c.job), Some(made.job));
    // Without an answer nobody misses one; and what is gone nobody looks for.
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, "quiet");
    let step = work.step_to(&slab, &name("quiet")).unwrap();
    work.commit("request", "", vec![step]).unwrap();
    bed.make("gone");
    bed.remove("gone");
    assert_eq!(lost().len(), 1);
    settle::acknowledge(&bed.other, &name("x"), &bed.job());
    assert!(lost().is_empty());
    assert_eq!(bed.id("x"), Some(x));
    // One that died with its decision taken had answered, too.
    let dead = died(&bed, "y", |_, slab| {
        let lock = settle::lock_domain(&bed.domain, &bed.job(), Duration::ZERO).unwrap();
        let Place::Staged(job, n) = staged_place(&bed) else { panic!("nothing is staged") };
        bed.domain.engine.publish(&lock, job, n, slab.id, &name("y")).unwrap();
        Some(vec![Step::Publish { from: slab.n, id: slab.id, to: name("y") }])
    });
    let again = settle::recorded(&bed.other, &bed.job_as(dead)).unwrap();
    assert_eq!(again.map(|c| c.answer).as_deref(), Some("answer"));
}

fn staged_place(bed: &Bed) -> Place {
    let job = bed.other.engine.jobs().unwrap()[0];
    bed.other.engine.staged(job).unwrap()[0].place.clone()
}

#[test]
fn what_cannot_be_removed_in_one_step_is_refused_by_the_engine_alone() {
    let bed = Bed::new();
    bed.make("x");
    let job = bed.job();
    let (work, slab) = begun(&bed.domain, &job, "x");
    // A free name is taken meanwhile: the step says so, and nothing is visible.
    let step = Step::Publish { from: slab.n, id: slab.id, to: name("x") };
    let done = commit(work, vec![step]);
    assert!(matches!(done, Err(SdmError::Engine(EngineError::Exists(_)))), "{done:?}");
    assert!(bed.other.engine.jobs().unwrap().is_empty() && bed.dead().is_empty());
}

/// A job that died while it changed a published file in place, with what that was on record.
fn changing(bed: &Bed, n: &str, decides: bool) -> JobId {
    let job = bed.job();
    let (mut work, slab) = begun(&bed.domain, &job, n);
    work.changes(&name(n), &[(1, b"old".to_vec())]).unwrap();
    let at = bed.domain.engine.attach(&Place::Public(name(n)), Access::Write).unwrap();
    std::fs::write(at.path, b"xtorn").unwrap();
    let steps = decides.then(|| vec![work.step_to(&slab, &name("other")).unwrap()]);
    let (id, n, slab) = (job.id, slab.n, slab.id);
    work.leave();
    if let Some(steps) = steps {
        put_commit(bed, id, id, steps);
        let lock = lock::domain_lock(&*bed.domain.locks, Duration::ZERO, &Cancel::default()).unwrap();
        bed.domain.engine.publish(&lock, id, n, slab, &name("other")).unwrap();
    }
    id
}

fn reads(bed: &Bed, n: &str) -> Vec<u8> {
    std::fs::read(bed.other.engine.attach(&Place::Public(name(n)), Access::Read).unwrap().path).unwrap()
}

#[test]
fn what_was_being_changed_in_place_is_put_back_by_whoever_ends_the_job() {
    let bed = Bed::new();
    bed.make("a");
    let dead = changing(&bed, "a", false);
    assert_eq!(reads(&bed, "a"), b"xtorn");
    // Somebody works on it.
    let wanted = [("a", lock::Mode::Exclusive)];
    let held = lock::slab_leases(&*bed.domain.locks, &wanted, Duration::ZERO, &Cancel::default()).unwrap();
    gc::collect(&bed.other, &bed.job(), &policy(0)).unwrap();
    assert_eq!(reads(&bed, "a"), b"xtorn");
    drop(held);
    gc::collect(&bed.other, &bed.job(), &policy(0)).unwrap();
    assert_eq!(reads(&bed, "a"), b"xoldn");
    assert!(bed.other.engine.record(dead, Record::Undo).unwrap().is_none());
    // By the job itself.
    let job = bed.job();
    let work = Work::begin(&bed.domain, &job, &[name("a")]).unwrap();
    work.changes(&name("a"), &[(0, b"y".to_vec())]).unwrap();
    drop(work);
    assert_eq!(reads(&bed, "a"), b"yoldn");
    // What is whole again, was decided, or is another object, stays.
    let job = bed.job();
    let work = Work::begin(&bed.domain, &job, &[name("a")]).unwrap();
    work.changes(&name("a"), &[(0, b"z".to_vec())]).unwrap();
    work.changes(&name("a"), &[]).unwrap();
    drop(work);
    assert_eq!(reads(&bed, "a"), b"yoldn");
    let dead = changing(&bed, "a", true);
    assert_eq!(bed.ends(dead), settle::Settled::Finished);
    assert_eq!(reads(&bed, "a"), b"xtorn");
    let dead = changing(&bed, "a", false);
    bed.remove("a");
    bed.make("a");
    assert_eq!(bed.ends(dead), settle::Settled::Undone);
    assert_eq!(reads(&bed, "a"), [7; 4096]);
}
