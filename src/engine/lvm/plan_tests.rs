//! What a plan can do to a group: nothing. Real LVM metadata, no device mapper, and a process of its own, which only
//! looks from some moment on.

use super::tests::{Bed, engine, mem, name, public};
use super::*;
use crate::lock::{JobId, Mode};
use crate::sys::effect::only_look;
use crate::sys::fork;
use sha2::{Digest as _, Sha256};
use std::process::Command;

/// Run by the next test.
#[test]
#[ignore = "half of every_call_that_changes_a_group_is_refused_to_a_plan"]
fn only_looking() {
    let (bed, locks) = (Bed::new(200 << 20), mem());
    let e = engine(&bed, 1, &locks);
    e.prepare().unwrap();
    e.init(b"header").unwrap();
    let owner = lock::owner_lease(&*locks, JobId::generate()).unwrap();
    let lock = || lock::domain_lock(&*locks, Duration::ZERO, &Cancel::default()).unwrap();
    e.begin(&owner).unwrap();
    let (one, two) = [0, 1].map(|n| e.create(&owner, n, &Spec::File(Bytes(1))).unwrap().id).into();
    e.publish(&lock(), owner.job(), 0, one, &name("img-one-1")).unwrap();
    e.detach(&public("img-one-1"), Access::Write).unwrap();
    let written = || Sha256::digest(std::fs::read(bed.file()).unwrap());
    let before = written();
    let slab =
        lock::slab_leases(&*locks, &[("img-one-1", Mode::Exclusive)], Duration::ZERO, &Cancel::default());
    let (slab, grave) = (slab.unwrap(), Grave { job: owner.job(), n: 0, keep: true });
    only_look(None);
    let at = public("img-one-1");
    let calls: [(&str, Result<()>); 14] = [
        ("attach", e.attach(&at, Access::Read).map(drop)),
        ("begin", e.begin(&lock::owner_lease(&*locks, JobId::generate()).unwrap())),
        ("create", e.create(&owner, 7, &Spec::File(Bytes(1))).map(drop)),
        ("flush", e.flush(&owner, 1)),
        ("resize", e.resize(&slab[0], &at, Bytes(9 << 20))),
        ("end", e.end(&owner)),
        ("put_record", e.put_record(&owner, Record::Intent, b"x")),
        ("publish", e.publish(&lock(), owner.job(), 1, two, &name("img-one-2"))),
        ("replace", e.replace(&lock(), (owner.job(), 1, two), &name("img-one-1"), one, &grave)),
        ("bury", e.bury(&lock(), &at, one, &grave)),
        ("put_header", e.put_header(b"other")),
        ("mark", e.mark(uuid::Uuid::now_v7())),
        ("retire", e.retire(&lock())),
        ("make_leases", e.make_leases(&|_| Ok(()))),
    ];
    for (what, done) in calls {
        assert!(done.is_err(), "{what}");
    }
    assert_eq!(written(), before);
    // What a plan asks is answered.
    assert_eq!(e.look(&at).unwrap().map(|o| o.size), Some(Bytes(1 << 20)));
    assert_eq!(e.header().unwrap().as_deref(), Some(&b"header"[..]));
    assert_eq!(e.takes(&Spec::File(Bytes(1))).unwrap(), Some(Bytes(1 << 20)));
    let free = e.usage().unwrap().free;
    assert_eq!(e.takes(&Spec::Pool(Bytes(8 << 20))).unwrap(), Some(Bytes(12 << 20)), "{free} are free");
}

#[test]
fn every_call_that_changes_a_group_is_refused_to_a_plan() {
    let name = "engine::lvm::plan_tests::only_looking";
    let out =
        fork::output(Command::new(std::env::current_exe().unwrap()).args(["--exact", "--ignored", name]));
    let out = out.unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(
        out.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&out.stderr)
    );
}
