//! Power loss under a volume group. In a machine with the kernel's device mapper the disk of the group is on
//! `dm-log-writes`, which logs each write and each flush that reaches it; so is the file system (ext4) with the
//! datastores and all else that this host knows. A verb runs; from the log follows what the disk may hold when the power
//! goes (`writelog.rs`): all that came before some flush, and of what came between it and the next one any choice,
//! each write whole, lost, or cut at a sector (LVM's metadata, our records) or a page (the rest). Each such disk
//! is laid out, with no device made yet, the file system mounted, and put to the test as after a kill: `gc`, `check`,
//! `vgck`, old or new with all contents, and the same call made again. What was answered is there at once.
//!
//! LVM flushes nothing by itself, nor puts its writes in order: it leaves that to disks that lose no write. A group
//! that cannot be read then is mended as docs/operations.md says, before all else is asked of it.
//!
//! `ONESDM_FULL=1` takes all states of all scenes of `lvmkill.rs` (`ONESDM_TEST_SCENE` chooses scenes, `ONESDM_TEST_PART=9` every
//! ninth state), without it some of each for as long as two minutes allow, others each time.

use crate::lvmbed::{BEFORE, Bed, View, root};
use crate::lvmkill::{SCENES, Scene, between, seen};
use crate::lvmverbs::GROUP;
use crate::power::{JOB, Random};
use crate::writelog::{State, Writes};
use crate::{bed, vm};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// In place of the layers of `lvmkill.rs`: `disk` holds the group (`lun`) and the file system (`home`), and is
/// what a scene starts from (`under`), that with a log, or that with what is laid out.
const LAYERS: &str = r#"
cat >/usr/sbin/bed-disk <<'X'
#!/bin/sh
export DM_DISABLE_UDEV=1
make() { dmsetup create $1 --table "$2"; }
size=$(blockdev --getsz /dev/vda) home=131072
off() {
    umount /home
    for d in $(dmsetup ls | cut -f1); do dmsetup resume $d; done
    for n in 1 2 3 4; do for d in $(dmsetup ls | cut -f1 | grep ^vg--one); do dmsetup remove $d; done; done 2>/dev/null
    rm -rf /dev/vg-one-100 /run/lvm/*
    dmsetup remove home; dmsetup remove lun; dmsetup remove disk
    ! [ -e /dev/mapper/point ] || dmsetup remove point
}
parts() {
    make lun "0 $((size - home)) linear /dev/mapper/disk 0"
    make home "0 $home linear /dev/mapper/disk $((size - home))"
}
point() { make point "0 $size snapshot /dev/mapper/under /dev/vdc N 8"; }
case $1 in
base) make disk "0 $size linear /dev/vda 0"; parts; /usr/sbin/mke2fs -q -t ext4 -E lazy_itable_init=0,lazy_journal_init=0 /dev/mapper/home
    mkdir -p /home ;;
scene) off; ! [ -e /dev/mapper/under ] || dmsetup remove under
    make under "0 $size snapshot /dev/vda /dev/vdb N 8"; make disk "0 $size linear /dev/mapper/under 0"; parts ;;
log) off; point; make disk "0 $size log-writes /dev/mapper/point /dev/vdd"; parts ;;
mark) dmsetup message disk 0 mark begin; exit ;;
answered) dmsetup reload disk --table "0 $size linear /dev/mapper/point 0"
    dmsetup suspend disk; dmsetup resume disk; blockdev --flushbufs /dev/vdd; exit ;;
lay) off; point; make disk "0 $size linear /dev/mapper/point 0"; exit ;;
laid) parts ;;
esac
mount -t ext4 -o commit=600 /dev/mapper/home /home
X
export TMPDIR=/home
"#;
const DISK: u64 = 448 << 20;
/// LVM's own, and the volume that begins there, of the records.
const SECTORS: u64 = 67 << 20;

fn grain(at: u64) -> u64 {
    if at < SECTORS { 512 } else { 4096 }
}

/// What LVM is asked about the group by somebody who knows nothing of it.
fn readable() -> bool {
    Command::new("vgs").arg(GROUP).output().unwrap().status.success()
}

/// Puts the newest metadata on the disk that is whole in force again, as docs/operations.md says.
fn mended() -> Result<(), String> {
    let (disk, text) = ("/dev/mapper/lun", "/fault/text");
    let found = Command::new("lvm").args(["pvck", "--dump", "metadata_search", disk]).output().unwrap();
    let (texts, warnings) = (String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr));
    let texts = texts.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let texts = texts.filter(|w| w.len() > 10 && w[0] == "metadata" && w[8] == GROUP);
    // What was cut off is listed, too, with a warning.
    let whole = texts.filter(|w| !warnings.lines().any(|l| l.ends_with(&format!("metadata at {}", w[2]))));
    let newest = whole.max_by_key(|w| w[10].parse::<u64>().unwrap()).ok_or("no metadata is left")?;
    let at = format!("metadata_offset={}", newest[2]);
    // pvck leaves a file that is there as it is, and ends with success.
    let _ = std::fs::remove_file(text);
    root(&["lvm", "pvck", "--dump", "metadata_search", "--settings", &at, "--file", text, disk]);
    root(&["lvm", "pvck", "--repair", "--yes", "--file", text, disk]);
    if readable() { Ok(()) } else { Err("the group cannot be read".to_owned()) }
}

/// What was tried, and what was wrong.
#[derive(Default)]
struct Sum {
    states: usize,
    acked: usize,
    mended: usize,
    wrong: Vec<String>,
}

/// Loses power during a call: at so many of the states, those after the answer first.
fn lose(bed: &mut Bed, scene: &Scene, most: fn(usize) -> usize, dice: &mut Random, bug: &str, sum: &mut Sum) {
    bed.scene(scene.before);
    let old = bed.view();
    root(&["bed-disk", "log"]);
    bed.wake();
    root(&["sync"]);
    File::open("/dev/mapper/lun").and_then(|lun| lun.sync_all()).unwrap();
    root(&["bed-disk", "mark"]);
    let ended = bed.run(scene.call, "", &[("ONESDM_JOB_ID", JOB), ("ONESDM_TEST_BUG", bug)]);
    root(&["bed-disk", "answered"]);
    assert_eq!(ended.status, Some(0), "{}: {}", scene.name, ended.text);
    let new = bed.view();
    let (log, mark) = Writes::of(File::open("/dev/vdd").unwrap(), grain);
    let mut states = log.states(mark, if crate::kill::full() { 4 } else { 2 }, dice);
    println!("floor: {}: {} states", scene.name, states.len());
    if bug.is_empty() {
        states.sort_by_cached_key(|s| (!s.acked, dice.below(1 << 20)));
    } else {
        // A wrong variant shows where least is left, and most was done.
        states.retain(|s| s.kept().1 > 0);
        states.reverse();
        states.sort_by_key(State::kept);
    }
    let (headless, mendings) = (log.headless(mark).filter(|_| bug.is_empty()), sum.mended);
    for state in headless.iter().chain(states.iter().take(most(states.len()))) {
        let begin = Instant::now();
        root(&["bed-disk", "lay"]);
        let disk = File::options().read(true).write(true).open("/dev/mapper/disk").unwrap();
        log.lay(state, &disk);
        disk.sync_all().unwrap();
        drop(disk);
        root(&["bed-disk", "laid"]);
        sum.states += 1;
        sum.acked += usize::from(state.acked);
        let mut found = Ok(());
        if !readable() {
            sum.mended += 1;
            found = mended();
        }
        let same = state.acked || !bug.is_empty() || sum.states.is_multiple_of(2);
        let found = found.and_then(|()| holds(bed, scene, (&old, &new), state, same));
        println!("{} {state} {:.1?} {found:?}", scene.name, begin.elapsed());
        if let Err(e) = found {
            sum.wrong.push(format!("{}: power lost {state}: {e}", scene.name));
            if !bug.is_empty() {
                break;
            }
        }
    }
    assert!(headless.is_none() || sum.mended > mendings, "{}: a group without its text was read", scene.name);
}

/// What holds after any power loss.
fn holds(
    bed: &Bed,
    scene: &Scene,
    (old, new): (&View, &View),
    state: &State,
    same: bool,
) -> Result<(), String> {
    bed.sound("")?;
    let now = bed.view();
    if state.acked && seen(&now) != seen(new) {
        return Err(format!("the answer was given: {now:?}\nnot {new:?}"));
    }
    between(old, new, &now)?;
    let id = [("ONESDM_JOB_ID", JOB)];
    let again = bed.run(scene.call, "", if same { &id } else { &[] });
    // What is done already may be refused, as long as the line says so.
    if again.status != Some(0) && !(!same && again.status == Some(3) && seen(&now) == seen(new)) {
        let same = if same { ", same job" } else { "" };
        return Err(format!("again{same}: {:?} {}", again.status, again.text));
    }
    let end = bed.view();
    if end == *new { Ok(()) } else { Err(format!("at the end: {end:?}\nnot {new:?}")) }
}

/// One in so many, as the run was told.
fn part(all: usize) -> usize {
    let part = std::env::var("ONESDM_TEST_PART").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    all.div_ceil(part)
}

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn power_inside() {
    let (began, mut dice, full) = (Instant::now(), Random::seeded(), crate::kill::full());
    let mut bed = Bed::new();
    println!("ready after {:.0?}", began.elapsed());
    let only = std::env::var("ONESDM_TEST_SCENE").unwrap_or_default();
    let mut scenes: Vec<&Scene> = SCENES.iter().collect();
    scenes.retain(|s| only.is_empty() || only.split(';').any(|o| o == s.name));
    scenes.sort_by_cached_key(|_| dice.below(1 << 20));
    let (mut sum, begin) = (Sum::default(), Instant::now());
    for scene in scenes {
        if !full && begin.elapsed() > Duration::from_secs(40) {
            break;
        }
        lose(&mut bed, scene, if full { part } else { |_| 3 }, &mut dice, "", &mut sum);
        let Sum { states, acked, mended, wrong } = &sum;
        println!(
            "so far: {states} states, {acked} after the answer, {mended} mended, {} wrong, {:.0?}",
            wrong.len(),
            began.elapsed()
        );
    }
    let wrong = &sum.wrong;
    assert!(wrong.is_empty(), "{} of the states were not recovered:\n{}", wrong.len(), wrong.join("\n"));
}

/// The wrong variants: commits of LVM's are not flushed, as it leaves them, or nothing at all is.
#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn wrong_inside() {
    let mut bed = Bed::new();
    for (bug, name) in [("drop-disk-flush", "cp"), ("drop-fsync", "cp")] {
        let scene = SCENES.iter().find(|s| s.name == name).unwrap();
        let mut sum = Sum::default();
        lose(&mut bed, scene, |_| 12, &mut Random(1), bug, &mut sum);
        let said = sum.wrong.first().unwrap_or_else(|| panic!("{bug}: no power loss showed it"));
        println!("caught: {bug}: {said}");
    }
}

fn in_machine(test: &str) {
    let tmp = bed::scratch();
    let disks = ["disk", "scene", "point", "log"].map(|name| vm::disk(tmp.path(), name, DISK));
    let programs = ["/usr/bin/qemu-img", "/usr/sbin/mkswap", "/usr/sbin/mke2fs"].map(Into::into);
    let programs: Vec<_> = [bed::program()].into_iter().chain(programs).collect();
    let disks: Vec<&Path> = disks.iter().map(AsRef::as_ref).collect();
    vm::passes_as_root(&["dm-log-writes"], &(BEFORE.to_owned() + LAYERS), test, &disks, &programs);
}

#[test]
fn power_lost_under_a_group() {
    in_machine("lvmpower::power_inside");
}

#[test]
fn a_commit_that_was_not_flushed_is_caught() {
    in_machine("lvmpower::wrong_inside");
}
