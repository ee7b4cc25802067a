//! A volume on its way from one host to another: who may do what with it at each step.

use super::hosts_tests::{Job, domain};
use super::tests::{Bed, knowing, mem, public};
use super::*;
use crate::lock::Mode;

/// A host in one of its lives, and those lives that it knows to be over.
#[derive(Debug)]
struct Knows(Host, Vec<Host>);

impl Peers for Knows {
    fn us(&self) -> Result<Host> {
        Ok(self.0)
    }

    fn is_dead(&self, host: &Host) -> bool {
        self.1.contains(host)
    }
}

fn life(id: u64, generation: u64) -> Host {
    Host { id, generation }
}

fn names(objects: &[Object]) -> Vec<String> {
    objects.iter().map(|o| o.place.to_string()).collect()
}

fn had(e: &LvmEngine) -> Vec<String> {
    names(&e.attached().unwrap().into_iter().map(|(o, _)| o).collect::<Vec<_>>())
}

fn in_use(r: &Result<()>) {
    assert!(matches!(r, Err(EngineError::InUse { .. })), "{r:?}");
}

struct Way {
    bed: Arc<Bed>,
    locks: Arc<dyn LockBackend>,
}

impl Way {
    fn host(&self, us: Host, dead: &[Host]) -> LvmEngine {
        knowing(&self.bed, &self.locks, Box::new(Knows(us, dead.to_vec())))
    }

    fn tags(&self) -> Vec<String> {
        let said = self.bed.lvm(&["lvs", "--noheadings", "-o", "lv_tags", &format!("{}/a", self.bed.name)]);
        let mut tags: Vec<String> =
            said.split(',').filter(|t| !t.contains("host")).map(str::to_owned).collect();
        tags.sort();
        tags
    }
}

/// Volume `a`, which host 1 has.
fn way() -> Way {
    let (bed, locks) = (Bed::new(120 << 20), mem());
    let h1 = domain(&bed, &locks);
    Job::new(&h1, &locks).publish(0, "a");
    Way { bed, locks }
}

#[test]
fn a_volume_is_had_by_two_hosts_only_while_one_lends_it() {
    let w = way();
    let [h1, h2, h3] = [1, 2, 3].map(|id| w.host(life(id, 1), &[]));
    let a = public("a");
    in_use(&h2.hand_over(&a, Handover::Borrow));
    let missing = h2.hand_over(&a, Handover::Lend);
    assert!(matches!(missing, Err(EngineError::Absent(_))), "only who has it lends it: {missing:?}");
    for _ in 0..2 {
        h1.hand_over(&a, Handover::Lend).unwrap();
    }
    assert_eq!(w.tags(), ["sdm.active.1.1", "sdm.lent.1.1"]);
    in_use(&h2.attach(&a, Access::Write).map(drop));
    in_use(&h2.attach(&a, Access::Read).map(drop));
    for _ in 0..2 {
        h2.hand_over(&a, Handover::Borrow).unwrap();
    }
    assert_eq!(w.tags(), ["sdm.active.1.1", "sdm.active.2.1", "sdm.lent.1.1"]);
    // A third one could not tell whose it will be.
    in_use(&h3.hand_over(&a, Handover::Borrow));
    in_use(&h1.hand_over(&a, Handover::Keep));
    let slab = lock::slab_leases(&*w.locks, &[("a", Mode::Exclusive)], Duration::ZERO, &Cancel::default());
    for h in [&h1, &h2] {
        in_use(&h.resize(&slab.as_ref().unwrap()[0], &a, Bytes(8 << 20)));
        assert!(h.used_elsewhere(&[Name::parse("a").unwrap()]).unwrap().is_some());
    }
    assert_eq!((had(&h1), names(&h1.moved().unwrap())), (vec![], vec!["a".to_owned()]));
    assert_eq!((had(&h2), names(&h2.moved().unwrap())), (vec!["a".to_owned()], vec![]));
    // It stays.
    h2.detach(&a, Access::Write).unwrap();
    h1.hand_over(&a, Handover::Keep).unwrap();
    assert_eq!(w.tags(), ["sdm.active.1.1"]);
    // It goes.
    h1.hand_over(&a, Handover::Lend).unwrap();
    h2.hand_over(&a, Handover::Borrow).unwrap();
    h1.detach(&a, Access::Write).unwrap();
    assert_eq!(w.tags(), ["sdm.active.2.1"]);
    in_use(&h1.attach(&a, Access::Write).map(drop));
    h2.resize(&slab.unwrap()[0], &a, Bytes(8 << 20)).unwrap();
}

/// Whichever of the two dies, the other one goes on, and who comes back takes nothing from it.
#[test]
fn a_host_that_dies_on_the_way_leaves_the_volume_to_the_other() {
    for dies in [1, 2] {
        let w = way();
        let [h1, h2] = [1, 2].map(|id| w.host(life(id, 1), &[]));
        let a = public("a");
        h1.hand_over(&a, Handover::Lend).unwrap();
        h2.hand_over(&a, Handover::Borrow).unwrap();
        let dead = [life(dies, 1)];
        let lives = w.host(life(3 - dies, 1), &dead);
        let again = w.host(life(dies, 2), &dead);
        assert_eq!(again.attached().unwrap().len(), 0, "{dies}: what it had is another host's");
        assert_eq!(names(&again.moved().unwrap()), ["a"]);
        in_use(&again.attach(&a, Access::Write).map(drop));
        for o in again.moved().unwrap() {
            again.detach(&o.place, Access::Write).unwrap();
        }
        if dies == 2 {
            lives.hand_over(&a, Handover::Keep).unwrap();
        }
        let living = 3 - dies;
        assert_eq!(w.tags(), [format!("sdm.active.{living}.1")]);
        assert_eq!(had(&lives), ["a"]);
        // Also when it does not come back.
        let w = way();
        let h1 = w.host(life(1, 1), &[]);
        h1.hand_over(&a, Handover::Lend).unwrap();
        w.host(life(2, 1), &[]).hand_over(&a, Handover::Borrow).unwrap();
        let lives = w.host(life(living, 1), &dead);
        if dies == 2 {
            lives.hand_over(&a, Handover::Keep).unwrap();
        }
        lives.detach(&a, Access::Write).unwrap();
        assert!(w.tags().iter().all(String::is_empty), "{dies}: {:?}", w.tags());
    }
}

/// A CD-ROM is in machines of several hosts at once, and stays when somebody has read it for a moment.
#[test]
fn what_machines_only_read_several_hosts_have() {
    let w = way();
    let [h1, h2] = [1, 2].map(|id| w.host(life(id, 1), &[]));
    let a = public("a");
    in_use(&h2.attach(&a, Access::Share).map(drop));
    h1.detach(&a, Access::Write).unwrap();
    for h in [&h1, &h2, &h1] {
        h.attach(&a, Access::Share).unwrap();
    }
    assert_eq!(w.tags(), ["sdm.shares.1.1", "sdm.shares.2.1"]);
    assert!(h1.used_elsewhere(&[Name::parse("a").unwrap()]).unwrap().is_some());
    h1.attach(&a, Access::Read).unwrap();
    h1.detach(&a, Access::Read).unwrap();
    assert_eq!(w.tags(), ["sdm.shares.1.1", "sdm.shares.2.1"]);
    assert!(h1.attached().unwrap().iter().any(|(o, how)| o.place == a && *how == Access::Share));
    in_use(&h1.attach(&a, Access::Write).map(drop));
    in_use(&h1.hand_over(&a, Handover::Borrow));
    // In its next life it has it again.
    let again = w.host(life(1, 2), &[life(1, 1)]);
    for (o, how) in again.attached().unwrap() {
        again.attach(&o.place, how).unwrap();
    }
    assert_eq!(w.tags(), ["sdm.shares.1.2", "sdm.shares.2.1"]);
    again.detach(&a, Access::Share).unwrap();
    h2.attach(&a, Access::Write).unwrap();
    assert_eq!(w.tags(), ["sdm.active.2.1"]);
}
