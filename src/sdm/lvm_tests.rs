//! The commit protocol on a volume group: cut off at every change of the engine, then ended by another
//! host. Real LVM metadata, no device mapper.

use super::job::{Topic, Waits};
use super::record::Step;
use super::turn::Copies;
use super::{Domain, Job, Jobs, Work, check, gc, remove, settle};
use crate::engine::faulty::Faulty;
use crate::engine::lvm::tests::{Bed, engine, knowing};
use crate::engine::lvm::{Host, Peers};
use crate::engine::{Identity, Name, Place};
use crate::lock::{JobId, LockBackend, MemLocks};
use crate::obs::jsonl::Log;
use crate::sys::{Bytes, Cancel};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn jobs(dir: &std::path::Path) -> Jobs {
    let log = |n: &str| Log { path: dir.join(n), max_size: 1 << 20, keep: 1 };
    let waits = Waits { lock: Duration::from_secs(30), grace: Duration::from_millis(100) };
    let (run, cancel) = (dir.join("run"), Cancel::default());
    Jobs {
        run,
        events: log("events"),
        history: log("history"),
        cancel,
        waits,
        copies: Copies::default(),
        plan: None,
    }
}

fn start(jobs: &Jobs) -> Job {
    jobs.start(JobId::generate(), Topic { verb: "cp".into(), object: "x".into(), ..Topic::default() })
}

fn name(s: &str) -> Name {
    Name::parse(s).unwrap()
}

/// A new image in the place of `a`, and `b` goes.
fn verb(domain: &Domain, jobs: &Jobs) -> super::Result<()> {
    let job = start(jobs);
    let mut work = Work::begin(domain, &job, &[name("a"), name("b")])?;
    let slab = work.file(Bytes(1))?;
    work.flush(&slab)?;
    let mut steps: Vec<Step> = vec![work.step_to(&slab, &name("a"))?];
    steps.extend(work.step_bury(&name("b"), false)?);
    work.commit("request", "answer", steps)
}

/// What host 2 knows of host 1.
#[derive(Clone, Debug, Default)]
struct Other(Arc<AtomicBool>);

impl Peers for Other {
    fn us(&self) -> crate::engine::Result<Host> {
        Ok(Host { id: 2, generation: 1 })
    }

    fn is_dead(&self, _host: &Host) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// A job of host 1 is cut off, and host 2 ends it: at once as far as names go; what host 1 may still have open is
/// removed when that host is dead.
#[test]
fn a_commit_cut_off_at_any_change_leaves_the_old_or_the_new() {
    let (bed, t) = (Bed::new(200 << 20), tempfile::tempdir().unwrap());
    let jobs = jobs(t.path());
    let locks: Arc<dyn LockBackend> = Arc::new(MemLocks::default());
    let mem = || Box::new(Arc::clone(&locks)) as Box<dyn LockBackend>;
    let other = Other::default();
    let open = || Domain::in_group(knowing(&bed, &locks, Box::new(other.clone())), mem()).unwrap();
    let h2 = open();
    assert_eq!(open().header, h2.header, "it is made once");
    let tags = bed.lvm(&["vgs", "--noheadings", "-o", "vg_tags", &bed.to_string()]);
    assert_eq!(tags, format!("sdm.domain.{}", h2.header.id));
    let ids = || ["a", "b"].map(|n| h2.engine.look(&Place::Public(name(n))).unwrap().map(|o| o.id));
    let make = |n: &str| {
        let job = start(&jobs);
        let mut work = Work::begin(&h2, &job, &[name(n)]).unwrap();
        let slab = work.file(Bytes(1)).unwrap();
        let step = work.step_to(&slab, &name(n)).unwrap();
        work.commit("r", "", vec![step]).unwrap();
    };
    let policy = gc::Policy {
        trash_keep: Duration::ZERO,
        done_max: 9,
        done_age: Duration::from_secs(99),
        short: true,
    };
    let (mut olds, mut news, mut left) = (0, 0, 0);
    make("a");
    for k in 0..40 {
        if ids()[1].is_none() {
            make("b");
        }
        let old: [Option<Identity>; 2] = ids();
        let faulty = Faulty::new(engine(&bed, 1, &locks), k, true);
        let h1 = Domain {
            engine: Box::new(faulty),
            locks: mem(),
            place: h2.place.clone(),
            header: h2.header.clone(),
        };
        let done = verb(&h1, &jobs);
        let job = start(&jobs);
        settle::settle_names(&h2, &[name("a"), name("b")], None, &job).unwrap();
        let report = gc::collect(&h2, &job, &policy).unwrap();
        assert_eq!(
            (report.errors.as_slice(), check::check(&h2).unwrap().as_slice()),
            (&[][..], &[][..]),
            "{k}"
        );
        let dead = h2.engine.dead().unwrap();
        assert!(report.stayed.len() >= dead.len(), "{k}: what stays is said");
        let now = ids();
        left += dead.len();
        other.0.store(true, Ordering::SeqCst);
        gc::collect(&h2, &job, &policy).unwrap();
        other.0.store(false, Ordering::SeqCst);
        assert_eq!(ids(), now, "{k}: what was decided stays decided");
        assert_eq!(check::check(&h2).unwrap(), [], "{k}");
        assert!(check::garbage(&h2, &policy).unwrap().iter().all(|f| f.action == gc::Action::Forget), "{k}");
        if now == old {
            olds += 1;
            assert!(done.is_err(), "{k}: it said it was done");
        } else {
            news += 1;
            assert!(now[0].is_some() && now[0] != old[0] && now[1].is_none(), "{k}: {now:?}");
        }
        assert!(h2.engine.dead().unwrap().is_empty() && h2.engine.jobs().unwrap().is_empty(), "{k}");
        if done.is_ok() {
            break;
        }
    }
    assert!(olds > 3 && news > 3 && left > 3, "{olds} {news} {left}");
    other.0.store(true, Ordering::SeqCst);
    remove::remove(&h2, &start(&jobs), &[name("a")], "r").unwrap();
    assert_eq!(ids(), [None, None]);
    assert_eq!(bed.lvm(&["lvs", "--noheadings", "-o", "lv_name", &bed.to_string()]), "sdm-meta");
}
