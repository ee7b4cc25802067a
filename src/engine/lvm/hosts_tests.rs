//! What hosts do to one group: locks lost between changes, writers without the lock, devices of others.

use super::tests::{Bed, engine, knowing, mem, name, public};
use super::*;
use crate::config::Wipe;
use crate::lock::{Held, JobId, LeaseId, LockError, OwnerLease};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};

/// The domain lock of a host to which something happens just before its n-th change.
#[derive(Debug)]
struct Eventful {
    locks: Arc<dyn LockBackend>,
    left: Arc<AtomicI64>,
    event: fn(&Bed),
    /// Whether the lock is lost with it.
    lost: bool,
    bed: Arc<Bed>,
}

#[derive(Debug)]
struct EventfulHeld(Box<dyn Held>, Arc<AtomicI64>, fn(&Bed), bool, Arc<Bed>, LeaseId);

impl LockBackend for Eventful {
    fn name(&self) -> &'static str {
        "eventful"
    }

    fn try_acquire(&self, id: &LeaseId, mode: lock::Mode) -> std::result::Result<Box<dyn Held>, LockError> {
        let held = self.locks.try_acquire(id, mode)?;
        let (left, bed) = (Arc::clone(&self.left), Arc::clone(&self.bed));
        Ok(Box::new(EventfulHeld(held, left, self.event, self.lost, bed, id.clone())))
    }

    fn is_held(&self, id: &LeaseId) -> std::result::Result<bool, LockError> {
        self.locks.is_held(id)
    }
}

impl Held for EventfulHeld {
    fn still_held(&self) -> std::result::Result<(), LockError> {
        let left = self.1.fetch_sub(1, Ordering::SeqCst);
        if left == 0 {
            (self.2)(&self.4);
        }
        if left <= 0 && self.3 { Err(LockError::Lost(self.5.clone())) } else { self.0.still_held() }
    }
}

/// A job on a host, with a staged slab.
pub(super) struct Job<'a> {
    engine: &'a LvmEngine,
    locks: &'a Arc<dyn LockBackend>,
    owner: OwnerLease,
}

impl<'a> Job<'a> {
    pub(super) fn new(engine: &'a LvmEngine, locks: &'a Arc<dyn LockBackend>) -> Job<'a> {
        let owner = lock::owner_lease(&**locks, JobId::generate()).unwrap();
        engine.begin(&owner).unwrap();
        Job { engine, locks, owner }
    }

    fn lock(&self) -> DomainLock {
        lock::domain_lock(&**self.locks, Duration::from_secs(30), &Cancel::default()).unwrap()
    }

    fn staged(&self, n: u32) -> Identity {
        self.engine.create(&self.owner, n, &Spec::File(Bytes(1))).unwrap().id
    }

    pub(super) fn publish(&self, n: u32, to: &str) -> Identity {
        let id = self.staged(n);
        self.engine.publish(&self.lock(), self.owner.job(), n, id, &name(to)).unwrap();
        id
    }

    fn grave(&self, n: u32, keep: bool) -> Grave {
        Grave { job: self.owner.job(), n, keep }
    }
}

/// A group with its records, ready for jobs.
pub(super) fn domain(bed: &Arc<Bed>, locks: &Arc<dyn LockBackend>) -> LvmEngine {
    let e = engine(bed, 1, locks);
    e.prepare().unwrap();
    e
}

/// The lock goes before each change of a replacement in turn: readers see the old or the new at every
/// moment, and the next holder of the lock finishes what was decided.
#[test]
fn a_replacement_is_decided_by_one_commit_and_finished_by_anybody() {
    let (bed, locks) = (Bed::new(140 << 20), mem());
    let sound = domain(&bed, &locks);
    let job = Job::new(&sound, &locks);
    let (mut decided, mut old) = (0, job.publish(0, "a"));
    for k in 0..7u32 {
        let event = Eventful {
            locks: Arc::clone(&locks),
            left: Arc::new(AtomicI64::new(i64::from(k))),
            event: |_| {},
            lost: true,
            bed: Arc::clone(&bed),
        };
        let new = job.staged(k + 1);
        let losing: Arc<dyn LockBackend> = Arc::new(event);
        let lock = lock::domain_lock(&*losing, Duration::ZERO, &Cancel::default()).unwrap();
        let grave = job.grave(k, true);
        let done = sound.replace(&lock, (job.owner.job(), k + 1, new), &name("a"), old, &grave);
        drop(lock);
        assert_eq!(done.is_ok(), k == 6, "{k}: {done:?}");
        let at = |p: &Place| sound.look(p).unwrap().map(|o| o.id);
        let seen = (at(&public("a")), at(&Place::Dead(grave)), at(&Place::Staged(job.owner.job(), k + 1)));
        let (before, after) = ((Some(old), None, Some(new)), (Some(new), Some(old), None));
        assert!(seen == before || seen == after, "{k}: {seen:?}");
        sound.tidy(&job.lock()).unwrap();
        assert_eq!(
            (at(&public("a")), at(&Place::Dead(grave))),
            (seen.0, seen.1),
            "{k}: tidying decides nothing"
        );
        let names = bed.lvm(&["lvs", "--noheadings", "-o", "lv_name", &bed.name]);
        assert!(names.lines().any(|l| l.trim() == "a"), "{k}: other programs see it, too: {names}");
        if seen == after {
            let kept = sound.look(&Place::Dead(grave)).unwrap().unwrap();
            assert!(jiff::Timestamp::now().as_second() - kept.changed < 600);
            (decided, old) = (decided + 1, new);
        }
    }
    assert_eq!(decided, 5, "a lock lost before the tag changed nothing, later ones changed all");
    sound.end(&job.owner).unwrap();
    assert!(sound.staged(job.owner.job()).unwrap().is_empty());
}

/// Red team 1.6: two writers without a common lock lose volumes, and LVM says nothing.
#[test]
fn a_writer_without_the_lock_is_noticed() {
    let (bed, locks) = (Bed::new(120 << 20), mem());
    let sound = domain(&bed, &locks);
    let job = Job::new(&sound, &locks);
    let id = job.staged(0);
    let event = Eventful {
        locks: Arc::clone(&locks),
        left: Arc::new(AtomicI64::new(1)),
        event: |bed| {
            bed.lvm(&["lvcreate", "-q", "-y", "-an", "-Wn", "-Zn", "-l1", "-n", "foreign", &bed.name]);
        },
        lost: false,
        bed: Arc::clone(&bed),
    };
    let lock = lock::domain_lock(&event, Duration::ZERO, &Cancel::default()).unwrap();
    let done = sound.publish(&lock, job.owner.job(), 0, id, &name("a"));
    assert!(matches!(done, Err(EngineError::Foreign { .. })), "{done:?}");
    assert_eq!(done.unwrap_err().class(), crate::sys::Class::Integrity);
    drop(lock);
    assert!(sound.look(&public("foreign")).unwrap().is_some(), "what it made is not touched");
}

#[derive(Debug)]
struct AllDead;

impl Peers for AllDead {
    fn us(&self) -> Result<Host> {
        Ok(Host { id: 1, generation: 1 })
    }

    fn is_dead(&self, _host: &Host) -> bool {
        true
    }
}

/// Red team 1.7 and 1.8: what a host has active stays its own until that host is proven dead.
#[test]
fn what_another_host_has_active_is_neither_opened_changed_nor_removed() {
    let (bed, locks) = (Bed::new(120 << 20), mem());
    let (h1, h2) = (domain(&bed, &locks), engine(&bed, 2, &locks));
    let job = Job::new(&h1, &locks);
    let id = job.publish(0, "a");
    let slab =
        lock::slab_leases(&*locks, &[("a", lock::Mode::Exclusive)], Duration::ZERO, &Cancel::default());
    let slab = &slab.unwrap()[0];
    let in_use = |r: Result<()>| assert!(matches!(r, Err(EngineError::InUse { .. })), "{r:?}");
    let has = |e: &LvmEngine| e.attached().unwrap().len();
    assert_eq!((has(&h1), has(&h2)), (1, 0), "what a host made is its own, also after it was started anew");
    in_use(h2.attach(&public("a"), Access::Read).map(drop));
    in_use(h2.resize(slab, &public("a"), Bytes(8 << 20)));
    h1.detach(&public("a"), Access::Write).unwrap();
    // Several may read.
    h1.attach(&public("a"), Access::Read).unwrap();
    assert_eq!(has(&h1), 0);
    h2.attach(&public("a"), Access::Read).unwrap();
    in_use(h2.attach(&public("a"), Access::Write).map(drop));
    h1.detach(&public("a"), Access::Write).unwrap();
    h2.attach(&public("a"), Access::Write).unwrap();
    assert_eq!(has(&h2), 1);
    h1.bury(&job.lock(), &public("a"), id, &job.grave(0, false)).unwrap();
    in_use(h1.purge(&job.owner, &job.grave(0, false)));
    assert_eq!(h1.look(&Place::Dead(job.grave(0, false))).unwrap().map(|o| o.id), Some(id));
    let knowing = knowing(&bed, &locks, Box::new(AllDead));
    knowing.purge(&job.owner, &job.grave(0, false)).unwrap();
    assert!(h1.dead().unwrap().is_empty());
}

/// Two hosts at once, each command of either under the lock: nothing reported is lost.
#[test]
fn two_hosts_lose_nothing() {
    let (bed, locks) = (Bed::new(160 << 20), mem());
    domain(&bed, &locks);
    let before: u64 = bed.lvm(&["vgs", "--noheadings", "-o", "vg_seqno", &bed.name]).parse().unwrap();
    let made: Vec<(String, Identity)> = std::thread::scope(|s| {
        let hosts: Vec<_> = [1, 2]
            .map(|id| {
                let (bed, locks) = (&bed, &locks);
                s.spawn(move || {
                    let e = engine(bed, id, locks);
                    let job = Job::new(&e, locks);
                    (0..4)
                        .map(|n| (format!("v{id}-{n}"), job.publish(n, &format!("v{id}-{n}"))))
                        .collect::<Vec<_>>()
                })
            })
            .into_iter()
            .collect();
        hosts.into_iter().flat_map(|h| h.join().unwrap()).collect()
    });
    let e = engine(&bed, 1, &locks);
    for (n, id) in &made {
        assert_eq!(e.look(&public(n)).unwrap().map(|o| o.id), Some(*id), "{n}");
    }
    let after: u64 = bed.lvm(&["vgs", "--noheadings", "-o", "vg_seqno", &bed.name]).parse().unwrap();
    assert_eq!(after - before, 2 * made.len() as u64, "a birth and a publication each");
}

#[test]
fn names_and_devices_that_could_be_more_than_names_are_refused() {
    let tools = || Tools::new(BTreeMap::new()).unwrap();
    let group = |name: &str, device: &str| {
        Group::new(name, &[device.into()], tools(), Duration::ZERO, Cancel::default(), &[]).map(drop)
    };
    group("vg-one-1", "/dev/mapper/36001405aa-part1").unwrap();
    for (name, device) in [
        ("", "/dev/sda"),
        ("-h", "/dev/sda"),
        ("a b", "/dev/sda"),
        ("a/b", "/dev/sda"),
        ("vg", "sda"),
        ("vg", "/dev/../etc/x"),
        ("vg", "/dev/a\"] } global{x=\""),
        ("vg", "/dev/a|b"),
    ] {
        assert!(matches!(group(name, device), Err(EngineError::BadName { .. })), "{name} {device}");
    }
    for bad in ["-a", "a b", "sdm-meta", "sdm-new-x", "a@b", "\u{e4}"] {
        let r = view::volume_name(&public(bad));
        assert!(matches!(r, Err(EngineError::BadName { .. })), "{bad}");
    }
}

#[test]
fn space_is_asked_for_before_it_is_taken() {
    let (bed, locks) = (Bed::new(100 << 20), mem());
    let e = domain(&bed, &locks);
    let job = Job::new(&e, &locks);
    let free = e.usage().unwrap().free;
    let r = e.create(&job.owner, 0, &Spec::File(Bytes(free.0 + 1)));
    assert!(matches!(r, Err(EngineError::NoSpace(_))), "{r:?}");
    assert!(e.staged(job.owner.job()).unwrap().is_empty());
    e.create(&job.owner, 0, &Spec::File(free)).unwrap();
    assert_eq!(e.usage().unwrap().free, Bytes(0));
    // A full group still lets go of what it has.
    e.end(&job.owner).unwrap();
    assert_eq!(e.usage().unwrap().free, free);
}

/// Entries share blocks, and a host writes whole blocks: only the lock keeps what the other one wrote. Reads are
/// past all caches: each sees at once what the other wrote.
#[test]
fn records_of_two_hosts_lie_side_by_side_and_none_is_lost() {
    let (bed, locks) = (Bed::new(100 << 20), mem());
    domain(&bed, &locks);
    let hosts = [1, 2].map(|id| engine(&bed, id, &locks));
    let written: Vec<OwnerLease> = std::thread::scope(|s| {
        let write = |e| {
            let locks = &locks;
            move || {
                let jobs = (0..8).map(|_| Job::new(e, locks).owner);
                let put = |o: &OwnerLease| e.put_record(o, Record::Commit, o.job().to_string().as_bytes());
                jobs.inspect(|o| put(o).unwrap()).collect::<Vec<_>>()
            }
        };
        let threads = hosts.each_ref().map(|e| s.spawn(write(e)));
        threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    });
    for (e, owner) in hosts.iter().flat_map(|e| written.iter().map(move |o| (e, o))) {
        let found = e.record(owner.job(), Record::Commit).unwrap();
        assert_eq!(found, Some(owner.job().to_string().into_bytes()));
    }
    let lost = Eventful {
        locks: Arc::clone(&locks),
        left: Arc::new(AtomicI64::new(0)),
        event: |_| {},
        lost: true,
        bed: Arc::clone(&bed),
    };
    let late = engine(&bed, 1, &(Arc::new(lost) as Arc<dyn LockBackend>));
    let r = late.put_record(&written[0], Record::Commit, b"late");
    assert!(matches!(r, Err(EngineError::Lock(LockError::Lost(_)))), "{r:?}");
}

#[test]
fn a_reader_lets_go_of_what_it_read_and_not_of_what_a_machine_has() {
    let (bed, locks) = (Bed::new(100 << 20), mem());
    let (h1, h2) = (domain(&bed, &locks), engine(&bed, 2, &locks));
    let job = Job::new(&h1, &locks);
    job.publish(0, "a");
    let (a, names) = (public("a"), [name("b"), name("a")]);
    h1.attach(&a, Access::Read).unwrap();
    h1.detach(&a, Access::Read).unwrap();
    assert_eq!(h1.attached().unwrap().len(), 1, "who made it has it");
    assert_eq!(h2.used_elsewhere(&names).unwrap(), Some((&names[1], "host 1".to_owned())));
    assert_eq!(h1.used_elsewhere(&names).unwrap(), None);
    h1.detach(&a, Access::Write).unwrap();
    h1.attach(&a, Access::Read).unwrap();
    assert_eq!(h2.used_elsewhere(&names).unwrap(), None, "it only reads");
    h1.detach(&a, Access::Read).unwrap();
    h2.attach(&a, Access::Write).unwrap();
}

/// What a device reads as, past what the kernel remembers of it.
fn bytes(path: &Path) -> Vec<u8> {
    let file = std::fs::File::open(path).unwrap();
    crate::sys::copy::forget(&file);
    let mut out = Vec::new();
    std::io::Read::read_to_end(&mut &file, &mut out).unwrap();
    out
}

/// What goes is wiped under its tombstone's name, also by a collector whose settings do not ask for it.
#[test]
fn a_volume_is_wiped_before_it_is_removed_and_who_was_stopped_leaves_the_tombstone() {
    let (bed, locks) = (Bed::new(120 << 20), mem());
    let asked = |how| WipeSettings { how, limit: None };
    let plain = domain(&bed, &locks);
    for (n, how) in [(0, Wipe::Zero), (1, Wipe::Discard), (2, Wipe::No)] {
        let e = engine(&bed, 1, &locks).wiping(asked(how));
        let job = Job::new(&e, &locks);
        let id = job.publish(n, "a");
        let path = e.attach(&public("a"), Access::Write).unwrap().path;
        let mut device = std::fs::File::options().write(true).open(&path).unwrap();
        std::io::Write::write_all(&mut device, &vec![b'x'; 1 << 20]).unwrap();
        device.sync_all().unwrap();
        drop(device);
        let grave = job.grave(n, false);
        e.bury(&job.lock(), &public("a"), id, &grave).unwrap();
        if how == Wipe::Zero {
            // Stopped after a part of it.
            let cancel = Cancel::default();
            let limit = Some(Bytes(100 << 10));
            let slow = engine(&bed, 1, &locks).wiping(WipeSettings { how, limit });
            let slow = LvmEngine { cancel: cancel.clone(), ..slow };
            let stop = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(2));
                cancel.request();
            });
            let stopped = slow.purge(&job.owner, &grave);
            stop.join().unwrap();
            assert!(stopped.is_err() && plain.look(&Place::Dead(grave)).unwrap().is_some(), "{stopped:?}");
        }
        plain.purge(&job.owner, &grave).unwrap();
        assert!(plain.look(&Place::Dead(grave)).unwrap().is_none());
        assert_eq!(bytes(&path).iter().all(|b| *b == 0), how != Wipe::No, "{how:?}");
        // Where it was never asked for, who removes it may ask.
        e.end(&job.owner).unwrap();
    }
}

/// What a job staged goes the same way.
#[test]
fn what_a_dead_job_staged_is_wiped_too_and_no_faster_than_allowed() {
    let (bed, locks) = (Bed::new(120 << 20), mem());
    let sound = domain(&bed, &locks);
    let job = Job::new(&sound, &locks);
    job.staged(0);
    let path = sound.attach(&Place::Staged(job.owner.job(), 0), Access::Write).unwrap().path;
    std::fs::write(&path, vec![b'x'; 1 << 20]).unwrap();
    let limit = Some(Bytes(2 << 20));
    let e = engine(&bed, 1, &locks).wiping(WipeSettings { how: Wipe::Zero, limit });
    let begin = std::time::Instant::now();
    e.end(&job.owner).unwrap();
    assert!(begin.elapsed() > Duration::from_millis(400), "{:?} for half a second's worth", begin.elapsed());
    assert!(bytes(&path).iter().all(|b| *b == 0));
    assert!(sound.staged(job.owner.job()).unwrap().is_empty());
}

/// What others left on the extents is not part of what grows onto them.
#[test]
fn a_thick_volume_grows_by_what_reads_zero() {
    let (bed, locks) = (Bed::new(120 << 20), mem());
    let e = domain(&bed, &locks);
    let job = Job::new(&e, &locks);
    let slab =
        lock::slab_leases(&*locks, &[("a", lock::Mode::Exclusive)], Duration::ZERO, &Cancel::default());
    let slab = &slab.unwrap()[0];
    let staged = |n: u32, mib: u64, fill: u8| {
        e.create(&job.owner, n, &Spec::File(Bytes(mib << 20))).unwrap();
        let path = e.attach(&Place::Staged(job.owner.job(), n), Access::Write).unwrap().path;
        std::fs::write(path, vec![fill; usize::try_from(mib << 20).unwrap()]).unwrap();
        e.look(&Place::Staged(job.owner.job(), n)).unwrap().unwrap().id
    };
    // Something lies behind it, and behind that what somebody left.
    for (n, name) in [(0, "a"), (1, "b"), (2, "c")] {
        let id = staged(n, 2, b'a' + u8::try_from(n).unwrap());
        e.publish(&job.lock(), job.owner.job(), n, id, &self::name(name)).unwrap();
    }
    let of = |name: &str| e.look(&public(name)).unwrap().map(|o| o.size.0 >> 20);
    let id = e.look(&public("c")).unwrap().unwrap().id;
    e.bury(&job.lock(), &public("c"), id, &job.grave(0, false)).unwrap();
    e.purge(&job.owner, &job.grave(0, false)).unwrap();
    staged(3, 2, 0);
    e.append(slab, &job.owner, 3, &public("a")).unwrap();
    assert_eq!((of("a"), of("b"), e.staged(job.owner.job()).unwrap().len()), (Some(4), Some(2), 0));
    let view = e.group.extents("a").unwrap();
    assert_eq!(view.len(), 2, "around the other one: {view:?}");
    let first = |range: &String| {
        range.rsplit_once(':').unwrap().1.split('-').next().unwrap().parse::<usize>().unwrap()
    };
    let disk = std::fs::read(bed.file()).unwrap();
    for (range, fill) in view.iter().zip([b'a', 0]) {
        // The first megabyte is the disk's own.
        let at = (first(range) + 1) << 20;
        assert!(disk[at..at + (2 << 20)].iter().all(|b| *b == fill), "{range}");
    }
    // What is not there, or not for this.
    let absent = e.append(slab, &job.owner, 3, &public("a"));
    assert!(matches!(absent, Err(EngineError::Absent(_))), "{absent:?}");
    staged(4, 1, 0);
    let other = engine(&bed, 2, &locks).append(slab, &job.owner, 4, &public("a"));
    assert!(matches!(other, Err(EngineError::InUse { .. })), "{other:?}");
    assert_eq!(of("a"), Some(4));
    // The lock goes before each change in turn: grown, or as it was, and only the part may be gone.
    for k in 0..5 {
        let event = Eventful {
            locks: Arc::clone(&locks),
            left: Arc::new(AtomicI64::new(k)),
            event: |_| {},
            lost: true,
            bed: Arc::clone(&bed),
        };
        let n = 5 + u32::try_from(k).unwrap();
        staged(n, 1, 0);
        let before = of("a").unwrap();
        let losing = engine(&bed, 1, &(Arc::new(event) as Arc<dyn LockBackend>));
        let done = losing.append(slab, &job.owner, n, &public("a"));
        let part = e.look(&Place::Staged(job.owner.job(), n)).unwrap().is_some();
        let now = of("a").unwrap();
        assert!(now == before || now == before + 1 && !part, "{k}: {done:?} {before} {now} {part}");
        assert!(done.is_err() || now == before + 1, "{k}: {done:?}");
    }
}
