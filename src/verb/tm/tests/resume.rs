//! Transfers that are cut and asked for again: what had arrived is not sent again, and what came of it is the
//! source, whatever happened to either in between.

use super::bed::MIB;
use super::transfer::{image, into_disk, vm};
use super::way::{Done, NEVER, transfer};
use super::*;
use crate::lock::JobId;
use DiskFormat::{Qcow2, Raw};

/// Blocks after which it is cut: eight MiB and heads.
const CUT: i64 = 12;

/// Bytes that nobody can compress.
fn noise(mib: usize, seed: u8) -> Vec<u8> {
    let mut out = vec![0; mib * MIB];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut out);
    out
}

fn with_image(bed: &Bed, format: DiskFormat, seed: u8) {
    std::fs::write(bed.at("../raw"), noise(16, seed)).unwrap();
    let name = if format == Qcow2 { "qcow2" } else { "raw" };
    bed.img(&["convert", "-q", "-O", name, &bed.text("../raw"), &bed.text("100/img")]);
}

fn clones(bed: &Bed, format: DiskFormat, blocks: i64) -> Done {
    transfer(bed, image(bed, "100/img", format), into_disk(bed, "101/7/disk.0", format), blocks)
}

fn moves(bed: &Bed, blocks: i64) -> Done {
    let (what, into) = vm(bed);
    transfer(bed, what, into, blocks)
}

#[track_caller]
fn is_cut(done: Done) {
    assert_eq!(class_of(&done.sent.unwrap_err()), Class::Remote);
    assert_eq!(class_of(&done.received.unwrap_err()), Class::Remote);
}

/// All of it went, or about half.
#[track_caller]
fn went(done: Done, half: bool) {
    let mib = done.went / MIB as u64;
    assert!(if half { (5..13).contains(&mib) } else { (16..18).contains(&mib) }, "{mib} MiB went");
    done.ok();
}

fn staged(bed: &Bed, ds: i64) -> usize {
    bed.domain(ds).engine.jobs().unwrap().len()
}

#[track_caller]
fn shows(bed: &Bed, disk: &str, seed: u8) {
    assert!(bed::read(&bed.at(disk))[..16 * MIB] == noise(16, seed), "{disk} is another");
}

#[test]
fn what_arrived_of_a_disk_is_not_sent_again() {
    for format in [Raw, Qcow2] {
        let bed = Bed::new();
        with_image(&bed, format, 1);
        is_cut(clones(&bed, format, CUT));
        assert_eq!(staged(&bed, 101), 1, "it waits for a repeat");
        is_cut(clones(&bed, format, 4));
        assert_eq!(staged(&bed, 101), 1, "one takes over from the other");
        went(clones(&bed, format, NEVER), true);
        shows(&bed, "101/7/disk.0", 1);
        bed.collect();
    }
}

#[test]
fn what_arrived_of_a_vm_is_not_sent_again() {
    let bed = Bed::new();
    with_image(&bed, Qcow2, 1);
    clones(&bed, Qcow2, NEVER).ok();
    bed.ok(&Op::SnapCreate(snap(&bed, None, Qcow2, 0)));
    bed.write("101/7/disk.0", 2, 'x');
    is_cut(moves(&bed, CUT));
    went(moves(&bed, NEVER), true);
    shows(&bed, "102/7/disk.0.snap/0", 1);
    assert!(bed::read(&bed.at("102/7/disk.0")) == bed::read(&bed.at("101/7/disk.0")));
    bed.collect();
}

#[test]
fn what_arrived_of_another_source_is_not_used() {
    let bed = Bed::new();
    with_image(&bed, Raw, 1);
    is_cut(clones(&bed, Raw, CUT));
    // A block that is the same would be, by its digest.
    let mut other = noise(16, 1);
    other[9 * MIB] ^= 1;
    std::fs::write(bed.at("100/img"), &other).unwrap();
    went(clones(&bed, Raw, NEVER), false);
    assert!(std::fs::read(bed.at("101/7/disk.0")).unwrap()[..16 * MIB] == other);
    assert_eq!(staged(&bed, 101), 0);
    bed.collect();
}

#[test]
fn what_arrived_and_was_damaged_is_sent_again() {
    let bed = Bed::new();
    with_image(&bed, Raw, 1);
    is_cut(clones(&bed, Raw, CUT));
    let job = bed.domain(101).engine.jobs().unwrap()[0];
    let part = std::fs::read_dir(bed.at(&format!("101/.sdm/new/{job}"))).unwrap().flatten();
    let part = part.max_by_key(|e| e.metadata().unwrap().len()).unwrap().path();
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::File::options().write(true).open(part).unwrap(),
        b"not this",
        3 * MIB as u64 + 5,
    )
    .unwrap();
    went(clones(&bed, Raw, NEVER), true);
    shows(&bed, "101/7/disk.0", 1);
    bed.collect();
}

#[test]
fn what_arrived_goes_with_the_collector_and_with_what_it_was_for() {
    let bed = Bed::new();
    with_image(&bed, Raw, 1);
    is_cut(clones(&bed, Raw, CUT));
    bed.collect();
    went(clones(&bed, Raw, NEVER), false);
    bed.ok(&delete(&bed, "101/7"));
    is_cut(clones(&bed, Raw, CUT));
    bed.ok(&delete(&bed, "101/7"));
    assert_eq!(staged(&bed, 101), 0);
    bed.sound();
}

/// Whoever takes over may die at any step of it.
#[test]
fn taking_over_may_end_at_any_change() {
    for format in [Raw, Qcow2] {
        for n in 0.. {
            let bed = Bed::new();
            with_image(&bed, format, 1);
            is_cut(clones(&bed, format, CUT));
            let (what, into) = (image(&bed, "100/img", format), into_disk(&bed, "101/7/disk.0", format));
            let (tape, _) = way::Tape::record(&bed, what);
            let op = Op::Receive(op::Receive { into });
            // It says all over again what it has to say.
            let died =
                bed.cut_with(JobId::generate(), &op, (n, n % 2 == 0), &|| Ok(()), Some(&tape)).is_err();
            let done = clones(&bed, format, NEVER);
            assert!(!died || done.went < 18 * MIB as u64);
            done.ok();
            shows(&bed, "101/7/disk.0", 1);
            bed.collect();
            if !died {
                assert!(n > 8, "{n}");
                break;
            }
        }
    }
}

#[test]
fn in_memory_a_slab_is_taken_over_too() {
    let bed = Bed::in_memory();
    bed.publish(100, "img", &noise(16, 1));
    is_cut(clones(&bed, Raw, CUT));
    went(clones(&bed, Raw, NEVER), true);
    bed.collect();
}
