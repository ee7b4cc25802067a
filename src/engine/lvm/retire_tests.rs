//! A group that is given back, cut off at every change, under real LVM metadata.

use super::tests::{Bed, engine, mem, name, public};
use super::*;
use crate::lock::{Held, JobId, LeaseId, LockError};
use std::sync::atomic::{AtomicI64, Ordering};

/// Locks that are lost after so many looks at them: the process ends there.
#[derive(Debug)]
struct Lost(Arc<dyn LockBackend>, Arc<AtomicI64>);

#[derive(Debug)]
struct LostHeld {
    held: Box<dyn Held>,
    left: Arc<AtomicI64>,
    id: LeaseId,
}

impl LockBackend for Lost {
    fn name(&self) -> &'static str {
        "lost"
    }

    fn try_acquire(&self, id: &LeaseId, mode: lock::Mode) -> std::result::Result<Box<dyn Held>, LockError> {
        let (held, left) = (self.0.try_acquire(id, mode)?, Arc::clone(&self.1));
        Ok(Box::new(LostHeld { held, left, id: id.clone() }))
    }

    fn is_held(&self, id: &LeaseId) -> std::result::Result<bool, LockError> {
        self.0.is_held(id)
    }
}

impl Held for LostHeld {
    fn still_held(&self) -> std::result::Result<(), LockError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
            return self.held.still_held();
        }
        Err(LockError::Lost(self.id.clone()))
    }
}

/// A domain with two images, one of them in use here.
fn domain(bed: &Arc<Bed>, locks: &Arc<dyn LockBackend>) -> LvmEngine {
    let e = engine(bed, 1, locks);
    e.prepare().unwrap();
    e.init(b"header").unwrap();
    e.mark(uuid::Uuid::now_v7()).unwrap();
    e.make_leases(&|_| Ok(())).unwrap();
    let owner = lock::owner_lease(&**locks, JobId::generate()).unwrap();
    e.begin(&owner).unwrap();
    for (n, image) in ["img-one-1", "img-one-2"].into_iter().enumerate() {
        let n = u32::try_from(n).unwrap();
        let id = e.create(&owner, n, &Spec::File(Bytes(1))).unwrap().id;
        let lock = lock::domain_lock(&**locks, Duration::ZERO, &Cancel::default()).unwrap();
        e.publish(&lock, owner.job(), n, id, &name(image)).unwrap();
    }
    e.detach(&public("img-one-1"), Access::Write).unwrap();
    e.end(&owner).unwrap();
    e
}

/// As `onesdm domain remove` goes about it.
fn give_back(e: &LvmEngine, locks: &dyn LockBackend) -> Result<()> {
    if e.retiring()?.is_none() {
        let lock = lock::domain_lock(locks, Duration::ZERO, &Cancel::default())?;
        e.retire(&lock)?;
    }
    e.clear()
}

#[test]
fn a_group_that_is_given_back_has_its_images_only_and_wherever_it_is_cut_off_it_goes_on() {
    let (bed, locks) = (Bed::new(400 << 20), mem());
    let before = domain(&bed, &locks);
    let sound = || engine(&bed, 1, &locks);
    let automatic = || bed.lvm(&["vgs", "--noheadings", "-o", "vg_tags,vg_autoactivation", &bed.name]);
    assert!(automatic().starts_with("sdm.domain.") && !automatic().contains("enabled"));
    // Lost a look later each time until the first change is made; from then on each makes one or two.
    let (mut looks, mut states) = (0, Vec::new());
    for _ in 0..30 {
        let losing: Arc<dyn LockBackend> =
            Arc::new(Lost(Arc::clone(&locks), Arc::new(AtomicI64::new(looks))));
        let done = give_back(&engine(&bed, 1, &losing), &*losing);
        let is_domain = sound().header().unwrap().is_some();
        looks += i64::from(is_domain);
        if !is_domain {
            // A process that looked at the domain before has its records open.
            let owner = lock::owner_lease(&*locks, JobId::generate()).unwrap();
            let refused = before.begin(&owner);
            assert!(matches!(refused, Err(EngineError::Absent(_))), "{refused:?}");
        }
        let is_over = !is_domain && sound().retiring().unwrap().is_none();
        assert!(is_over || done.is_err(), "somebody has to go on: {states:?}");
        if is_over {
            break;
        }
        states.push(bed.lvm(&["lvs", "--noheadings", "-o", "lv_name,lv_tags", &bed.name]));
    }
    states.dedup();
    assert!(states.len() >= 4, "{states:?}");
    let rows = ["--noheadings", "--separator", ";", "-o", "lv_name,lv_tags,lv_skip_activation"];
    let left = bed.lvm(&[&["lvs"], &rows[..], &[&bed.name]].concat());
    let left: Vec<&str> = left.lines().map(str::trim).collect();
    assert_eq!(left, ["img-one-1;;skip activation", "img-one-2;;skip activation"]);
    assert_eq!(automatic(), "enabled");
    assert!(sound().header().unwrap().is_none() && sound().retiring().unwrap().is_none());
}
