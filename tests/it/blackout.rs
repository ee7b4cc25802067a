//! Power loss on real file systems. A verb runs on XFS, ext4 or btrfs over a disk that logs what reaches it
//! (`writelog.rs`); each state that the log allows is mounted in its place, the file system's own journal is
//! replayed, and what must hold after any power loss is put to the test as in `power.rs`: collected, checked, the
//! call made again; what was answered is there, content and all. `power.rs` knows the steps of the program and
//! assumes what a file system may do with them; this assumes nothing of the kind.
//!
//! Without `ONESDM_FULL=1` a few verbs on each file system and a choice of states, all of those after the
//! answer among them. The seed decides what is kept of which write; the file system's own timing is not its.

use crate::fsbed::Kind;
use crate::kill::{full, ready};
use crate::power::{JOB, Random, recovered};
use crate::scenes::{self, Scene};
use crate::tm_scenes;
use crate::writelog::Disk;
use std::time::Instant;

/// What is tried on each file system without `ONESDM_FULL=1`.
const SLICE: [(Kind, [&str; 4]); 3] = [
    (Kind::Xfs, ["cp raw", "rm raw with snapshots", "snap_delete raw", "tm snap_create qcow2"]),
    (Kind::Ext4, ["mkfs qcow2", "snap_revert raw", "clone raw", "tm mv"]),
    (Kind::Btrfs, ["cp raw", "snap_revert qcow2", "rm raw alone", "tm snap_create qcow2"]),
];

/// Says that this process has a mount namespace of its own.
const ALONE: &str = "ONESDM_TEST_ALONE";

/// Loses power during a call, at about `most` of the states it may leave, besides those after its answer.
/// How many were tried, and what was wrong.
fn lose(
    kind: Kind,
    scene: &Scene,
    (random, most): (usize, usize),
    dice: &mut Random,
    bug: Option<&str>,
) -> (usize, Vec<String>) {
    assert!(std::env::var_os(ALONE).is_some(), "it is played by another test");
    let disk = Disk::new(kind);
    let bed = ready(Some(&disk.stores()), true);
    let stage = scene.stage(&bed);
    disk.sync();
    let start = disk.logged();
    let call = scene.call(&stage).env("ONESDM_JOB_ID", JOB);
    let done = bug.into_iter().fold(call, |c, bug| c.env("ONESDM_TEST_BUG", bug)).run();
    let end = disk.logged();
    stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));
    let mut log = disk.off(end);
    let (mut tried, mut wrong) = (0, Vec::new());
    let states = log.states(start, random, dice);
    for state in &states {
        if !state.acked && dice.below(states.len()) >= most {
            continue;
        }
        tried += 1;
        let same = state.acked || tried % 2 == 0;
        let found = log.mount(state).and_then(|_mount| recovered(scene, &stage, &[], state.acked, same));
        if let Err(e) = found {
            wrong.push(format!("{} on {}: power lost {state}: {e}", scene.name, kind.name()));
            if bug.is_some() {
                break;
            }
        }
    }
    (tried, wrong)
}

fn power_lost_on(kind: Kind) {
    let (began, mut dice, mut wrong, mut sum) = (Instant::now(), Random::seeded(), Vec::new(), 0);
    let slice = SLICE.iter().find(|(k, _)| *k == kind).unwrap().1;
    for scene in scenes::all().into_iter().chain(tm_scenes::all()) {
        let changes = !["stat", "export", "monitor"].contains(&scene.verb) && scene.name != "rm of nothing";
        if if full() { !changes } else { !slice.contains(&scene.name) } {
            continue;
        }
        let (tried, found) =
            lose(kind, &scene, if full() { (8, usize::MAX) } else { (1, 4) }, &mut dice, None);
        println!("blackout  {:5}  {:30} {tried} states", kind.name(), scene.name);
        sum += tried;
        wrong.extend(found);
    }
    println!("blackout  {:5}  {sum} states in {:.0?}", kind.name(), began.elapsed());
    assert!(wrong.is_empty(), "{} of the states were not recovered:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sum >= slice.len());
}

/// Plays a test of this module where no other test sees its mounts: what another one copied into a namespace of
/// its own would stay mounted as long as that lives, and the same file system cannot be mounted twice.
fn alone(test: &str) {
    let mut unshare = std::process::Command::new("unshare");
    unshare.args(["--mount", "--propagation", "private"]).arg(std::env::current_exe().unwrap());
    unshare
        .args(["--ignored", "--exact", "--nocapture", "--test-threads=1"])
        .arg(format!("blackout::{test}"));
    let out = unshare.env(ALONE, "1").output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("1 passed"), "{said}");
    println!("{}", said.trim());
}

#[test]
fn power_lost_on_xfs() {
    alone("on_xfs");
}

#[test]
fn power_lost_on_ext4() {
    alone("on_ext4");
}

#[test]
fn power_lost_on_btrfs() {
    alone("on_btrfs");
}

#[test]
fn a_dropped_fsync_is_caught_on_each() {
    alone("without_flushes");
}

#[test]
#[ignore = "played by power_lost_on_xfs"]
fn on_xfs() {
    power_lost_on(Kind::Xfs);
}

#[test]
#[ignore = "played by power_lost_on_ext4"]
fn on_ext4() {
    power_lost_on(Kind::Ext4);
}

#[test]
#[ignore = "played by power_lost_on_btrfs"]
fn on_btrfs() {
    power_lost_on(Kind::Btrfs);
}

/// The wrong variants: nothing is flushed, or directories only.
#[test]
#[ignore = "played by a_dropped_fsync_is_caught_on_each"]
fn without_flushes() {
    for (kind, bug) in [
        (Kind::Xfs, "drop-fsync"),
        (Kind::Ext4, "drop-fsync"),
        (Kind::Btrfs, "drop-fsync"),
        (Kind::Xfs, "drop-file-fsync"),
        (Kind::Ext4, "drop-file-fsync"),
    ] {
        let (_, wrong) = lose(kind, &scenes::named("cp raw"), (2, usize::MAX), &mut Random(1), Some(bug));
        let said =
            wrong.first().unwrap_or_else(|| panic!("{bug} on {}: no power loss showed it", kind.name()));
        println!("caught: {}", said.split(": [").next().unwrap());
    }
}
