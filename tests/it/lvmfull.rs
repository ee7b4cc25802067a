//! A volume group without room, and a pool without: an error that says so, nothing lost, nothing left, and room again.

use crate::lvmbed::{Bed, Call, root};
use crate::lvmkill::in_machine;
use crate::lvmverbs::GROUP;
use Call::{Ds, Tm};
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Of a pool.
const BLOCK: usize = 1 << 16;
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

/// By somebody else's volume, with so many blocks of a pool's if it has them. A write that finds no room is an error at once.
fn fill(pool: &str, blocks: usize) {
    root(&["lvchange", "--errorwhenfull", "y", pool]);
    root(&["lvcreate", "-q", "-y", "-V", "24m", "--thinpool", pool, "-n", "scratch"]);
    let at = format!("/dev/{GROUP}/scratch");
    let mut scratch = std::fs::File::options().write(true).open(at).unwrap();
    let mut write = |_: &usize| scratch.write_all(&vec![9; BLOCK]).and_then(|()| scratch.sync_all()).is_ok();
    (0..blocks).take_while(|n| write(n)).for_each(drop);
    let used = root(&["lvs", "--noheadings", "-o", "data_percent", pool]);
    println!("the pool is full to {} %", used.trim());
}

/// Somebody else's volume fills the pool that a disk is to be made in.
fn pool(bed: &Bed) {
    bed.back();
    let pool = format!("{GROUP}/vm-one-7-pool");
    root(&["lvextend", "-q", "-L", "16m", &pool]);
    fill(&pool, usize::MAX);
    // The disk is made anew, beside the old one.
    refused(bed, CLONE, &["no space left"]);
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

/// By our own copy, and by `qemu-img`.
const DATA: [Call; 2] = [
    Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH><PERSISTENT>1</PERSISTENT>"),
    Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.qcow2</PATH><PERSISTENT>1</PERSISTENT>"),
];
/// A minute where nobody says otherwise.
const QUEUE: &str = "/sys/module/dm_thin_pool/parameters/no_space_timeout";
const SHORT: Duration = Duration::from_secs(9);

/// Data that are to go where the pool has little left: there is one already that the image's volume is made in.
#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn data_inside() {
    let mut bed = Bed::new();
    bed.scene(&[]);
    let [raw, qcow2] = ["raw", "qcow2"].map(|f| bed.h.at(&format!("images/one.{f}")));
    let words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"];
    root(&[&words[..], &[raw.to_str().unwrap(), qcow2.to_str().unwrap()]].concat());
    std::fs::write(QUEUE, SHORT.as_secs().to_string()).unwrap();
    let pool = format!("{GROUP}/img-one-5-pool");
    let full = || {
        bed.back();
        root(&["lvcreate", "-q", "-y", "--type", "thin-pool", "-L", "4m", "-n", "img-one-5-pool", GROUP]);
        fill(&pool, (4 << 20) / BLOCK - 4);
    };
    let ok = |call| {
        let ended = bed.run(call, "", &[]);
        assert_eq!(ended.status, Some(0), "there is room again: {}", ended.text);
    };
    for call in DATA {
        bed.back();
        ok(call);
        let want = bed.view()["img-one-5"].clone();
        for waits in [false, true] {
            full();
            if waits {
                root(&["lvchange", "--errorwhenfull", "n", &pool]);
            }
            let began = Instant::now();
            refused(&bed, call, &["pool img-one-5-pool is full", "No space left on device"]);
            println!("waits: {waits}, {:.1?}", began.elapsed());
            assert!(!waits || began.elapsed() > SHORT, "it did not meet the pool");
            root(&["lvremove", "-q", "-y", &format!("{GROUP}/scratch")]);
            ok(call);
            assert_eq!(bed.view()["img-one-5"], want);
        }
        // Whoever waits goes on when there is room.
        full();
        root(&["lvchange", "--errorwhenfull", "n", &pool]);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(SHORT / 3);
                root(&["lvextend", "-q", "-L", "8m", &pool]);
            });
            ok(call);
        });
        assert_eq!(bed.view()["img-one-5"], want);
    }
}

#[test]
fn data_that_meet_a_full_pool_are_an_error_or_wait_for_room() {
    in_machine("lvmfull::data_inside");
}
