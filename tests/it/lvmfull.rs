//! A volume group without room, and a pool without: an error that says so, nothing lost, nothing left, and room again.

use crate::lvmbed::{Bed, Call, root};
use crate::lvmkill::in_machine;
use crate::lvmverbs::GROUP;
use Call::{Ds, Tm};
use std::io::Write as _;

const MIB: usize = 1 << 20;
const CLONE: Call = Tm("clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "7", "100"]);
const CP: Call = Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH>");

/// What needs room in the group.
const WISHES: [Call; 8] = [
    CP,
    Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH><PERSISTENT>1</PERSISTENT>"),
    Ds("mkfs", "<ID>5</ID><SIZE>2</SIZE>"),
    Ds("clone", "<ID>5</ID><SIZE>2</SIZE><PATH>vg-one-100/img-one-1</PATH>"),
    Tm("snap_create", &["DIR/disk.0", "0", "7", "100"]),
    Tm("resize", &["DIR/disk.0", "4", "7", "100"]),
    Tm("mkimage", &["2", "raw", "DIR/disk.2", "7", "101"]),
    Tm("cpds", &["DIR/disk.0", "vg-one-100/img-one-9", "-1", "7", "100"]),
];

/// It fails for want of room, and all is as before.
fn refused(bed: &Bed, call: Call, words: &[&str]) {
    let before = bed.view();
    let ended = bed.run(call, "", &[]);
    println!("{call:?}: {:?} {}", ended.status, ended.text);
    assert!(ended.status.is_some_and(|s| s > 0), "{call:?}: {:?}", ended.status);
    assert!(words.iter().any(|w| ended.text.contains(w)), "{call:?} does not say why: {}", ended.text);
    bed.sound("").unwrap_or_else(|e| panic!("{call:?}: {e}"));
    assert_eq!(bed.view(), before, "{call:?}");
}

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn full_inside() {
    let mut bed = Bed::new();
    bed.scene(&[CLONE]);
    pool(&bed);
    group(&bed);
}

fn group(bed: &Bed) {
    bed.back();
    root(&["lvcreate", "-q", "-y", "-an", "-l", "100%FREE", "-n", "filler", GROUP]);
    for call in WISHES {
        refused(bed, call, &["no space left", "No space left"]);
    }
    // A removal needs none, and gives it.
    let ended = bed.run(Ds("rm", "<SOURCE>vg-one-100/img-one-2</SOURCE>"), "", &[]);
    assert_eq!(ended.status, Some(0), "{}", ended.text);
    bed.sound("").unwrap();
    let ended = bed.run(CP, "", &[]);
    assert_eq!(ended.status, Some(0), "there is room again: {}", ended.text);
}

/// Somebody else's volume fills the pool that a disk is to be made in.
fn pool(bed: &Bed) {
    bed.back();
    let pool = format!("{GROUP}/vm-one-7-pool");
    root(&["lvextend", "-q", "-L", "16m", &pool]);
    root(&["lvchange", "--errorwhenfull", "y", &pool]);
    root(&["lvcreate", "-q", "-y", "-V", "24m", "--thinpool", &pool, "-n", "scratch"]);
    let at = format!("/dev/{GROUP}/scratch");
    let mut scratch = std::fs::File::options().write(true).open(at).unwrap();
    while scratch.write_all(&vec![9; MIB / 16]).and_then(|()| scratch.sync_all()).is_ok() {}
    drop(scratch);
    let used = root(&["lvs", "--noheadings", "-o", "data_percent", &pool]);
    println!("the pool is full to {}", used.trim());
    // The disk is made anew, beside the old one.
    refused(bed, CLONE, &["space", "Input/output error"]);
    root(&["lvremove", "-q", "-y", &format!("{GROUP}/scratch")]);
    let before = bed.view();
    let ended = bed.run(CLONE, "", &[]);
    assert_eq!(ended.status, Some(0), "there is room again: {}", ended.text);
    assert_eq!(bed.view(), before, "the same image once more");
}

#[test]
fn a_group_or_a_pool_that_is_full_is_an_error_and_loses_nothing() {
    in_machine("lvmfull::full_inside");
}
