//! Transfers between two hosts, of which each has one of the system datastores.

use super::bed::Bed;
use super::way::{Done, NEVER, Tape, transfer};
use super::*;
use crate::data::extent::Sender;
use crate::lock::JobId;
use DiskFormat::{Qcow2, Raw};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::mpsc::sync_channel;

type Entries<'a> = &'a dyn Fn(&mut Sender<'_>);

pub fn image(bed: &Bed, path: &str, format: DiskFormat) -> op::What {
    op::What::Image { path: bed.text(path), format, snapshots: true }
}

pub fn into_disk(bed: &Bed, path: &str, format: DiskFormat) -> op::Into {
    let marker = Marker::Write("ssh".into());
    let path = bed.text(path);
    op::Into::Disk { path, format, sparse: true, size_mib: Some(2), original_mib: Some(1), marker }
}

pub fn into_image(bed: &Bed, path: &str, format: DiskFormat) -> op::Into {
    op::Into::Image { path: bed.text(path), format }
}

pub fn vm(bed: &Bed) -> (op::What, op::Into) {
    (
        op::What::Vm { dir: bed.text("101/7"), to: bed.text("102/7"), runs: false },
        op::Into::Vm { dir: bed.text("102/7") },
    )
}

fn moves(bed: &Bed) -> Done {
    let (what, into) = vm(bed);
    transfer(bed, what, into, NEVER)
}

pub fn retire(bed: &Bed, told: &op::Told) -> Op {
    Op::Retire(op::Retire { dir: bed.text("101/7"), source: told.source.clone() })
}

fn keys(bed: &Bed, below: &str) -> Vec<String> {
    bed.view().into_iter().filter(|(k, _)| k.starts_with(below)).map(|(k, v)| format!("{k} {v}")).collect()
}

/// A disk of VM 7 on its host, with a snapshot, and what its guest wrote since.
pub fn with_snapshot(bed: &Bed, format: DiskFormat) {
    let name = if format == Qcow2 { "qcow2" } else { "raw" };
    bed.image("img", name, "AB");
    transfer(bed, image(bed, "100/img", format), into_disk(bed, "101/7/disk.0", format), NEVER).ok();
    bed.ok(&Op::SnapCreate(snap(bed, None, format, 0)));
    bed.write("101/7/disk.0", 2, 'x');
}

#[test]
fn a_clone_has_the_layout_of_the_driver() {
    let bed = Bed::new();
    with_snapshot(&bed, Raw);
    assert_eq!(
        keys(&bed, "101/"),
        ["101/.monitor 0 s", "101/7/disk.0 2048 ABx", "101/7/disk.0.snap/0 2048 AB"]
    );
    bed.collect();
    let bed = Bed::new();
    with_snapshot(&bed, Qcow2);
    assert_eq!(bed.link("101/7/disk.0"), "disk.0.snap/1");
    assert_eq!(bed.backing("101/7/disk.0.snap/1").unwrap(), "0");
    assert_eq!((bed.says("101/7/disk.0").as_str(), bed.says("101/7/disk.0.snap/0").as_str()), ("ABx", "AB"));
    assert!(bed.view()["101/7/disk.0"].starts_with("-> "));
    bed.ok(&Op::SnapRevert(snap(&bed, None, Qcow2, 0)));
    assert_eq!(bed.says("101/7/disk.0"), "AB");
    assert_eq!(bed.backing("101/7/disk.0.snap/1").unwrap(), "0");
    bed.collect();
}

#[test]
fn a_move_takes_everything_and_leaves_nothing() {
    for format in [Raw, Qcow2] {
        let bed = Bed::new();
        with_snapshot(&bed, format);
        std::fs::write(bed.at("101/7/vm.xml"), "<VM/>").unwrap();
        std::fs::write(bed.at("101/7/disk.0.snap/4.current"), bed.text("101/7/disk.0.snap/0")).unwrap();
        bed.write_link(&bed.text("100/img"), "101/7/disk.1");
        bed.write_link("/dev/null", "101/7/disk.2");
        let told = moves(&bed).ok();
        let both = keys(&bed, "102/7/");
        assert_eq!(both.len(), keys(&bed, "101/7/").len());
        bed.ok(&retire(&bed, &told));
        assert_eq!(keys(&bed, "101/7"), Vec::<String>::new());
        assert_eq!(keys(&bed, "102/7/"), both);
        assert_eq!(bed.says("102/7/disk.0"), "ABx");
        assert_eq!(bed.link("102/7/disk.1"), bed.text("100/img"));
        let current = std::fs::read_to_string(bed.at("102/7/disk.0.snap/4.current")).unwrap();
        assert_eq!(current.trim(), bed.text("102/7/disk.0.snap/0"));
        assert_eq!(std::fs::read_to_string(bed.at("102/.monitor")).unwrap(), "ssh\n");
        bed.ok(&retire(&bed, &told));
        // All of it again finds that it was done; not when the VM is nowhere.
        let again = moves(&bed).ok();
        assert_eq!((again.source, again.digest), (told.source, None));
        assert_eq!(keys(&bed, "102/7/"), both);
        bed.ok(&Op::Delete(op::Delete { path: bed.text("102/7") }));
        let nowhere = moves(&bed);
        assert_eq!(class_of(&nowhere.sent.unwrap_err()), Class::NotFound);
        nowhere.received.unwrap_err();
        bed.collect();
    }
}

/// Red team 1.3: the front-end died between publish and retire.
#[test]
fn a_destination_is_reused_only_for_this_very_source() {
    let bed = Bed::new();
    with_snapshot(&bed, Raw);
    let first = moves(&bed).ok();
    bed.write("102/7/disk.0", 4, 'o');
    let again = moves(&bed).ok();
    assert_eq!((again.source == first.source, again.digest), (true, None), "nothing went twice");
    assert_eq!(bed.says("102/7/disk.0"), "ABx.o");
    // The VM runs on where it was.
    bed.write("101/7/disk.0", 3, 'y');
    let e = bed.refused(&retire(&bed, &first), Class::Integrity);
    assert!(e.contains("changed since it was copied"), "{e}");
    let third = moves(&bed).ok();
    assert!(third.digest.is_some() && third.source != first.source);
    assert_eq!(bed.says("102/7/disk.0"), "ABxy", "the old one was kept aside");
    let held = bed.hold("101/7/disk.0");
    bed.refused(&retire(&bed, &third), Class::InUse);
    let refused = moves(&bed);
    assert_eq!(class_of(&refused.sent.unwrap_err()), Class::InUse);
    refused.received.unwrap_err();
    bed.let_go(held, "101/7/disk.0");
    bed.ok(&retire(&bed, &third));
    bed.collect();
}

#[test]
fn a_disk_goes_back_into_its_image_and_can_be_saved_as_another() {
    for format in [Raw, Qcow2] {
        let bed = Bed::new();
        with_snapshot(&bed, format);
        let own = || disk(&bed, "101/7/disk.0", None, format);
        let content = |snapshot| op::What::Content { disk: own(), snapshot, live: None };
        for (snapshot, says) in [(None, "ABx"), (Some(0), "AB")] {
            transfer(&bed, content(snapshot), into_image(&bed, "100/saved", DiskFormat::Other), NEVER).ok();
            assert_eq!(bed.says("100/saved"), says);
            let is_alone = format == Raw || bed.backing("100/saved").is_none();
            assert!(is_alone, "it needs no other file");
        }
        let what = op::What::Disk { disk: own() };
        transfer(&bed, what, into_image(&bed, "100/img", format), NEVER).ok();
        assert_eq!((bed.says("100/img").as_str(), bed.says("100/img.snap/0").as_str()), ("ABx", "AB"));
        if format == Qcow2 {
            assert_eq!(bed.link("100/img"), "img.snap/1");
        }
        // And out again, with its snapshots, as a persistent disk.
        transfer(&bed, image(&bed, "100/img", format), into_disk(&bed, "102/8/disk.0", format), NEVER).ok();
        assert_eq!(
            (bed.says("102/8/disk.0").as_str(), bed.says("102/8/disk.0.snap/0").as_str()),
            ("ABx", "AB")
        );
        bed.ok(&Op::SnapDelete(op::Snap { disk: disk(&bed, "102/8/disk.0", None, format), snapshot: 0 }));
        assert_eq!(bed.says("102/8/disk.0"), "ABx");
        bed.collect();
    }
}

#[test]
fn what_is_cut_leaves_the_source_whole_and_nothing_else() {
    for n in 0..16 {
        let bed = Bed::new();
        with_snapshot(&bed, Qcow2);
        let before = bed.view();
        let (what, into) = vm(&bed);
        let done = transfer(&bed, what, into, n);
        if done.sent.is_ok() {
            assert!(n > 10, "{n}");
            break;
        }
        assert_eq!(class_of(&done.sent.unwrap_err()), Class::Remote);
        assert_eq!(class_of(&done.received.unwrap_err()), Class::Remote);
        bed.sound();
        assert_eq!(bed.view(), before, "{n}");
        bed.ok(&retire(&bed, &moves(&bed).ok()));
        assert_eq!(bed.says("102/7/disk.0"), "ABx");
    }
}

/// What two hosts say of a directory of each, run as a front-end does.
fn meet(bed: &Bed, a: &str, b: &str) -> (op::Met, op::Met) {
    let (one, two) = (JobId::generate(), JobId::generate());
    let run = |id, dir: &str, other, first, ready: &crate::verb::Ready<'_>| -> op::Met {
        let op = Op::Meet(op::Meet { dir: bed.text(dir), other, first });
        let done = bed.cut_with(id, &op, (i64::MAX, false), ready, None).unwrap();
        serde_json::from_str(&done.text).unwrap()
    };
    let ((begin, begun), (here, signs), (over, ended)) =
        (sync_channel::<()>(0), sync_channel::<()>(0), sync_channel::<()>(0));
    let (signs, ended) = (Mutex::new(signs), Mutex::new(ended));
    std::thread::scope(|s| {
        let (ended, here, run) = (&ended, &here, &run);
        let second = s.spawn(move || {
            begun.recv().unwrap();
            run(two, b, one, false, &|| {
                here.send(()).unwrap();
                ended.lock().unwrap().recv().unwrap();
                Ok(())
            })
        });
        let first = run(one, a, two, true, &|| {
            begin.send(()).unwrap();
            signs.lock().unwrap().recv().unwrap();
            Ok(())
        });
        over.send(()).unwrap();
        (first, second.join().unwrap())
    })
}

/// Its context goes along, which it has open; a disk that it writes to does not.
#[test]
fn the_directory_of_a_machine_that_runs_goes_while_it_only_reads_there() {
    let bed = Bed::new();
    with_snapshot(&bed, Raw);
    let go = |runs| {
        let what = op::What::Vm { dir: bed.text("101/7"), to: bed.text("102/7"), runs };
        transfer(&bed, what, op::Into::Vm { dir: bed.text("102/7") }, NEVER)
    };
    let (disk, before) = ("101/7/disk.0", bed.view());
    let refused = |runs| {
        assert_eq!(class_of(&go(runs).sent.unwrap_err()), Class::InUse, "{runs}");
        bed.sound();
        assert_eq!(bed.view(), before);
    };
    let writes = bed.hold_at(disk, 101);
    refused(true);
    bed.let_go(writes, disk);
    let reads = bed.hold(disk);
    refused(false);
    go(true).ok();
    bed.let_go(reads, disk);
    let of = |vm| keys(&bed, vm).iter().map(|k| k[vm.len()..].to_owned()).collect::<Vec<_>>();
    assert!(of("101/7/") == of("102/7/") && !of("102/7/").is_empty(), "{:?}", bed.view());
}

/// Red team 1.1.
#[test]
fn one_storage_is_told_from_two() {
    let bed = Bed::new();
    with_snapshot(&bed, Raw);
    let (a, b) = meet(&bed, "101", "101");
    assert!(a.found && b.found && a.domain == b.domain);
    let (a, b) = meet(&bed, "101", "102");
    assert!(!a.found && !b.found && a.domain != b.domain);
    bed.collect();
    // A datastore is no destination of itself, even when nobody looked.
    let before = bed.view();
    let what = op::What::Vm { dir: bed.text("101/7"), to: bed.text("101/8"), runs: false };
    let done = transfer(&bed, what, op::Into::Vm { dir: bed.text("101/8") }, NEVER);
    assert_eq!(class_of(&done.received.unwrap_err()), Class::Refused);
    assert_eq!(class_of(&done.sent.unwrap_err()), Class::Remote);
    bed.sound();
    assert_eq!(bed.view(), before);
}

/// What comes is another host's word.
#[test]
fn what_has_no_place_is_refused_and_nothing_is_left() {
    let bed = Bed::new();
    bed.image("img", "raw", "AB");
    let blocks = |entries: Entries<'_>| {
        let (mut blocks, watch) = (VecDeque::new(), crate::data::Watch::default());
        let mut sink = |b| {
            blocks.push_back(b);
            Ok(())
        };
        let mut sender = Sender::begin("elsewhere", None, &watch, &mut sink).unwrap();
        entries(&mut sender);
        sender.end().unwrap();
        blocks
    };
    let disk = |f| into_disk(&bed, "101/7/disk.0", f);
    let house = || op::Into::Vm { dir: bed.text("102/7") };
    let layer = |backing: &str, format: &str| {
        let (at, base) = (bed.text("../layer"), bed.text("100/img"));
        bed.img(&["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format, &at, "1M"]);
        drop(base);
        std::fs::read(bed.at("../layer")).unwrap()
    };
    let (up, to_passwd, self_made) = (layer("1", "qcow2"), layer("/etc/passwd", "raw"), layer("0", "qcow2"));
    let (whole, on_raw) = (std::fs::read(bed.at("100/img")).unwrap(), layer("0", "raw"));
    let layers = |s: &mut Sender<'_>, layers: &[&[u8]], active: &str| {
        s.dir("snap", 0o755).unwrap();
        for (n, bytes) in layers.iter().enumerate() {
            s.bytes(&format!("snap/{n}"), 0o644, bytes).unwrap();
        }
        s.link("disk", active).unwrap();
    };
    let cases: [(op::Into, Entries<'_>, Class); 14] = [
        (disk(Raw), &|_| (), Class::Integrity),
        (disk(Raw), &|s| drop(s.bytes("disk.1", 0o644, b"x").unwrap()), Class::Refused),
        (disk(Raw), &|s| s.link("disk", "/etc/passwd").unwrap(), Class::Refused),
        (disk(Raw), &|s| s.link("disk", "snap/x").unwrap(), Class::Refused),
        (disk(Raw), &|s| layers(s, &[&whole], "snap/0"), Class::Integrity),
        (disk(Qcow2), &|s| drop(s.bytes("disk", 0o644, b"x").unwrap()), Class::Integrity),
        (disk(Qcow2), &|s| layers(s, &[&whole], "snap/0"), Class::Refused),
        (disk(Qcow2), &|s| layers(s, &[&to_passwd], "snap/0"), Class::Refused),
        (disk(Qcow2), &|s| layers(s, &[&up, &self_made], "snap/0"), Class::Refused),
        (disk(Qcow2), &|s| layers(s, &[&whole, &on_raw], "snap/0"), Class::Refused),
        (disk(Qcow2), &|s| layers(s, &[&to_passwd, &on_raw], "snap/7"), Class::Refused),
        (house(), &|s| drop(s.bytes("disk", 0o644, b"x").unwrap()), Class::Refused),
        (
            house(),
            &|s| s.dir("vm", 0o755).and_then(|()| s.link("vm/disk.0", "/etc/x")).unwrap(),
            Class::Refused,
        ),
        (house(), &|_| (), Class::Refused),
    ];
    let before = bed.view();
    for (n, (into, entries, class)) in cases.into_iter().enumerate() {
        let (op, tape) = (Op::Receive(op::Receive { into }), Tape::of(blocks(entries)));
        let done = bed.cut_with(JobId::generate(), &op, (i64::MAX, false), &|| Ok(()), Some(&tape));
        let Err(e) = done else { panic!("case {n}") };
        assert_eq!(class_of(&e), class, "case {n}: {e:#}");
        assert_eq!(bed.view(), before, "case {n}");
        bed.sound();
    }
    // A raw layer in which a guest wrote a header stays what it is.
    let tape = Tape::of(blocks(&|s| layers(s, &[&to_passwd, &on_raw], "snap/1")));
    let op = Op::Receive(op::Receive { into: disk(Qcow2) });
    bed.cut_with(JobId::generate(), &op, (i64::MAX, false), &|| Ok(()), Some(&tape)).unwrap();
    assert!(std::fs::read(bed.at("101/7/disk.0.snap/0")).unwrap() == to_passwd);
    let alone = Op::Receive(op::Receive { into: house() });
    let e = bed.with_peer(JobId::generate(), &alone, None).unwrap_err();
    assert_eq!(class_of(&e), Class::Usage, "nobody is there");
}
