//! Every operation cut off at every change of storage, before it happens and after, by a host that is
//! never seen again; then another host's collector, then the same call.

use super::bed::View;
use super::transfer;
use super::way::Tape;
use super::*;
use crate::lock::JobId;

/// What it is, what makes the datastores it finds, the operation, and what besides the old and the new a
/// reader may see: a harmless rest, which this takes out of the view.
pub(super) struct Scene {
    pub what: &'static str,
    pub memory: bool,
    pub before: fn(&Bed),
    pub op: fn(&Bed) -> Op,
    pub rest: fn(&mut View),
}

pub(super) fn nothing(_: &Bed) {}
fn no_rest(_: &mut View) {}

fn raw_image(b: &Bed) {
    b.image("img", "raw", "AB");
    b.image("other", "raw", "CD");
}

fn qcow2_image(b: &Bed) {
    b.image("img", "qcow2", "AB");
}

fn raw_disk(b: &Bed) {
    raw_image(b);
    b.ok(&Op::Clone(clone(b, "100/img", "101/7/disk.0", DiskFormat::Raw)));
}

fn raw_persistent(b: &Bed) {
    raw_image(b);
    b.ok(&link(b, "100/img", "101/7/disk.0", DiskFormat::Raw));
}

fn raw_snapshots(b: &Bed) {
    raw_disk(b);
    b.ok(&Op::SnapCreate(snap(b, None, DiskFormat::Raw, 0)));
    b.publish(101, "7/disk.0", &bed::content("xy"));
}

fn chain(b: &Bed, persistent: bool) {
    qcow2_image(b);
    if persistent {
        b.ok(&link(b, "100/img", "101/7/disk.0", DiskFormat::Qcow2));
    } else {
        b.ok(&Op::Clone(clone(b, "100/img", "101/7/disk.0", DiskFormat::Qcow2)));
    }
    for n in 0..2 {
        b.ok(&Op::SnapCreate(snap(b, Some("100/img"), DiskFormat::Qcow2, n)));
        b.write("101/7/disk.0", 2 + usize::try_from(n).unwrap(), 'x');
    }
}

fn own_chain(b: &Bed) {
    chain(b, false);
}

fn image_chain(b: &Bed) {
    chain(b, true);
}

fn on_raw(b: &Bed, n: i64) -> op::Snap {
    snap(b, None, DiskFormat::Raw, n)
}

fn on_chain(b: &Bed, n: i64) -> op::Snap {
    snap(b, Some("100/img"), DiskFormat::Qcow2, n)
}

fn clone_raw(b: &Bed) -> Op {
    let op = clone(b, "100/other", "101/7/disk.0", DiskFormat::Raw);
    Op::Clone(op::Clone {
        size_mib: Some(2),
        original_mib: Some(1),
        marker: Marker::Write("ssh".into()),
        ..op
    })
}

fn clone_qcow2(b: &Bed) -> Op {
    Op::Clone(clone(b, "100/img", "101/7/disk.0", DiskFormat::Qcow2))
}

fn pull(b: &Bed) -> Op {
    let (image, disk) = (b.text("100/img"), b.text("101/7/disk.0"));
    Op::Pull(op::Pull { image, disk, format: DiskFormat::Qcow2, marker: Marker::Write("ssh".into()) })
}

fn pulled(b: &Bed) {
    qcow2_image(b);
    b.ok(&pull(b));
    b.ok(&Op::SnapCreate(on_chain(b, 0)));
    b.write("101/7/disk.0", 2, 'x');
}

fn put_iso(b: &Bed) -> Op {
    put::put(b, &put::iso(b'I'))
}

fn received(b: &Bed) {
    transfer::with_snapshot(b, DiskFormat::Qcow2);
}

fn two_places(b: &Bed) {
    own_chain(b);
    b.ok(&Op::Clone(clone(b, "100/img", "102/7/disk.0", DiskFormat::Raw)));
}

fn save(b: &Bed, format: DiskFormat) -> Op {
    let disk = disk(b, "101/7/disk.0", Some("100/img"), format);
    Op::Cpds(op::Cpds { disk, snapshot: None, target: b.text("100/saved"), live: None })
}

fn receive(into: op::Into) -> Op {
    Op::Receive(op::Receive { into })
}

fn retire(b: &Bed) -> Op {
    let (_, told) = Tape::record(b, transfer::vm(b).0);
    transfer::retire(b, &told)
}

/// Does it; what is received comes from where its scene has it.
fn perform(b: &Bed, id: JobId, op: &Op, (left, after): (i64, bool)) -> anyhow::Result<Answer> {
    let Op::Receive(o) = op else { return b.cut(id, op, left, after) };
    let what = match &o.into {
        op::Into::Vm { .. } => transfer::vm(b).0,
        op::Into::Disk { format, .. } => transfer::image(b, "100/img", *format),
        op::Into::Image { format, .. } => op::What::Disk { disk: disk(b, "101/7/disk.0", None, *format) },
    };
    let (tape, _) = Tape::record(b, what);
    b.cut_with(id, op, (left, after), &|| Ok(()), Some(&tape))
}

pub(super) fn scene(what: &'static str, memory: bool, before: fn(&Bed), op: fn(&Bed) -> Op) -> Scene {
    Scene { what, memory, before, op, rest: no_rest }
}

fn scenes() -> Vec<Scene> {
    let layout: fn(&mut View) = |v| v.retain(|k, _| !k.starts_with("100/img.snap/"));
    let layer: fn(&mut View) = |v| drop(v.remove("100/img.snap/3"));
    let link_raw: fn(&Bed) -> Op = |b| link(b, "100/img", "101/7/disk.0", DiskFormat::Raw);
    let link_qcow2: fn(&Bed) -> Op = |b| link(b, "100/img", "101/7/disk.0", DiskFormat::Qcow2);
    vec![
        scene("clone raw", true, raw_image, clone_raw),
        scene("clone raw over a disk with snapshots", true, raw_snapshots, clone_raw),
        scene("ln raw", true, raw_image, link_raw),
        scene("ln raw over a disk with snapshots", true, raw_snapshots, link_raw),
        scene("mkimage", true, nothing, |b| {
            let (disk, format) = (b.text("101/7/disk.0"), "raw".to_owned());
            Op::MakeImage(op::MakeImage { disk, size_mib: 1, format, fs: None, sparse: true })
        }),
        scene("context", true, nothing, put_iso),
        scene("context over a disk with snapshots", true, raw_snapshots, |b| match put_iso(b) {
            Op::Put(o) => Op::Put(op::Put { disk: b.text("101/7/disk.0"), ..o }),
            op => op,
        }),
        scene("context again", true, |b| b.ok(&put_iso(b)), put_iso),
        scene("delete disk", true, raw_snapshots, |b| delete(b, "101/7/disk.0")),
        scene("delete persistent disk", true, raw_persistent, |b| delete(b, "101/7/disk.0")),
        scene("delete VM", true, raw_snapshots, |b| delete(b, "101/7")),
        scene("delete nothing", true, nothing, |b| delete(b, "101/7")),
        scene("cpds raw", true, raw_disk, |b| save(b, DiskFormat::Raw)),
        scene("first raw snapshot", true, raw_disk, |b| Op::SnapCreate(on_raw(b, 0))),
        scene("raw snapshot of a persistent disk", true, raw_persistent, |b| Op::SnapCreate(on_raw(b, 0))),
        scene("revert raw", true, raw_snapshots, |b| Op::SnapRevert(on_raw(b, 0))),
        scene("delete raw snapshot", true, raw_snapshots, |b| Op::SnapDelete(on_raw(b, 0))),
        scene("resize raw", true, raw_disk, |b| {
            let disk = disk(b, "101/7/disk.0", None, DiskFormat::Raw);
            Op::Resize(op::Resize { disk, size_mib: 2, sparse: true })
        }),
        scene("receive raw", true, raw_image, |b| {
            receive(transfer::into_disk(b, "101/7/disk.0", DiskFormat::Raw))
        }),
        scene("receive qcow2 over a disk", false, received, |b| {
            receive(transfer::into_disk(b, "101/7/disk.0", DiskFormat::Qcow2))
        }),
        scene("receive an image", false, received, |b| {
            receive(transfer::into_image(b, "100/img", DiskFormat::Qcow2))
        }),
        scene("receive a VM", false, own_chain, |b| receive(transfer::vm(b).1)),
        scene("receive a VM over another", false, two_places, |b| receive(transfer::vm(b).1)),
        scene("retire", false, own_chain, retire),
        scene("clone qcow2", false, qcow2_image, clone_qcow2),
        scene("clone qcow2 over a raw disk", false, raw_disk, |b| {
            let op = clone(b, "100/other", "101/7/disk.0", DiskFormat::Qcow2);
            Op::Clone(op::Clone { standalone: true, ..op })
        }),
        scene("clone qcow2 over a chain", false, own_chain, clone_qcow2),
        Scene { rest: layout, ..scene("ln qcow2", false, qcow2_image, link_qcow2) },
        scene("ln qcow2 over a chain", false, own_chain, |b| {
            link(b, "100/img", "101/7/disk.0", DiskFormat::Raw)
        }),
        scene("ln.ssh", false, |b| chain(b, true), pull),
        scene("ln.ssh over a chain", false, own_chain, pull),
        scene("mvds.ssh", false, pulled, |b| {
            let disk = disk(b, "101/7/disk.0", Some("100/img"), DiskFormat::Qcow2);
            Op::Store(op::Store { disk, target: b.text("100/img") })
        }),
        scene("delete chain", false, own_chain, |b| delete(b, "101/7/disk.0")),
        scene("cpds qcow2", false, own_chain, |b| save(b, DiskFormat::Qcow2)),
        scene("snapshot", false, own_chain, |b| Op::SnapCreate(on_chain(b, 2))),
        scene("snapshot again", false, own_chain, |b| Op::SnapCreate(on_chain(b, 1))),
        Scene {
            rest: layer,
            ..scene("persistent snapshot", false, image_chain, |b| Op::SnapCreate(on_chain(b, 2)))
        },
        scene("persistent snapshot again", false, image_chain, |b| Op::SnapCreate(on_chain(b, 1))),
        scene("revert", false, own_chain, |b| Op::SnapRevert(on_chain(b, 0))),
        scene("revert persistent", false, image_chain, |b| Op::SnapRevert(on_chain(b, 0))),
        scene("delete first snapshot", false, own_chain, |b| Op::SnapDelete(on_chain(b, 0))),
        scene("delete middle snapshot", false, own_chain, |b| Op::SnapDelete(on_chain(b, 1))),
        scene("delete the image's own snapshot", false, image_chain, |b| Op::SnapDelete(on_chain(b, 0))),
        scene("resize qcow2", false, own_chain, |b| {
            let disk = disk(b, "101/7/disk.0", None, DiskFormat::Qcow2);
            Op::Resize(op::Resize {
                disk: op::Disk { image: Some(b.text("100/img")), ..disk },
                size_mib: 2,
                sparse: true,
            })
        }),
        Scene {
            // The destination is there before the source goes, never neither.
            rest: |v| {
                if v.keys().any(|k| k.starts_with("101/7/")) {
                    v.retain(|k, _| !k.starts_with("102/7/"));
                }
            },
            ..scene("mv", false, own_chain, |b| Op::Mv(op::Mv { from: b.text("101/7"), to: b.text("102/7") }))
        },
    ]
}

fn bed(s: &Scene) -> Bed {
    let bed = if s.memory { Bed::in_memory() } else { Bed::new() };
    (s.before)(&bed);
    bed
}

/// A view without the names of its bed's directory.
fn view(bed: &Bed) -> View {
    let root = bed.text("");
    bed.view().into_iter().map(|(k, v)| (k, v.replace(&root, "/ds/"))).collect()
}

fn sweep(memory: bool) -> usize {
    let mut points = 0;
    for s in scenes().iter().chain(&super::volumes::scenes()).filter(|s| s.memory == memory) {
        let whole = bed(s);
        let start = if s.memory { None } else { Some(whole.capture()) };
        let old = view(&whole);
        perform(&whole, JobId::generate(), &(s.op)(&whole), (i64::MAX, false)).unwrap();
        let new = view(&whole);
        whole.collect();
        assert_eq!(view(&whole), new, "{}: collecting touches nothing public", s.what);
        for n in 0..1000 {
            let mut over = true;
            for after in [false, true] {
                let fresh = s.memory.then(|| bed(s));
                let bed = fresh.as_ref().unwrap_or(&whole);
                if let Some(start) = &start {
                    bed.restore(start);
                }
                let at = format!("{} cut at {n} {after}", s.what);
                let op = (s.op)(bed);
                let first = perform(bed, JobId::generate(), &op, (n, after));
                let clean =
                    [100, 101, 102].iter().all(|ds| bed.domain(*ds).engine.jobs().unwrap().is_empty());
                over &= first.is_ok() && clean;
                bed.collect();
                let mut now = view(bed);
                if first.is_ok() {
                    assert_eq!(now, new, "{at}: what was answered is there");
                }
                if now != new {
                    (s.rest)(&mut now);
                }
                assert!(now == old || now == new, "{at}: {now:#?}\nold {old:#?}\nnew {new:#?}");
                let again = perform(bed, JobId::generate(), &op, (i64::MAX, false));
                again.unwrap_or_else(|e| panic!("{at} again: {e:#}"));
                assert_eq!(view(bed), new, "{at} again");
                bed.collect();
                points += 1;
            }
            if over {
                break;
            }
        }
    }
    points
}

#[test]
fn every_operation_in_memory_leaves_the_old_or_the_new() {
    let points = sweep(true);
    assert!(points > 500, "only {points} points");
}

#[test]
fn every_operation_on_directories_leaves_the_old_or_the_new() {
    let points = sweep(false);
    assert!(points > 250, "only {points} points");
}
