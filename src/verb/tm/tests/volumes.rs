//! Disks on volumes, with the engine in memory as the group of datastore 100.

use super::bed::{View, content};
use super::sweep::{Scene, nothing, scene};
use super::*;
use crate::engine::{Access, Name, Place, Spec};
use crate::lock::JobId;
use crate::sdm::Work;
use crate::sdm::job::Topic;
use crate::sys::Bytes;
use crate::verb::tm::volume::{Gone, OnVolume, What};
use std::os::unix::fs::FileExt as _;

fn on(b: &Bed, disk: u32, volume: &str, what: What) -> Op {
    let (disk, volume) = (b.text(&format!("101/7/disk.{disk}")), format!("vg-one-100/{volume}"));
    Op::OnVolume(OnVolume { disk, volume, readonly: false, what })
}

/// On the VM's own disk 0.
fn own(b: &Bed, what: What) -> Op {
    on(b, 0, "vm-one-7-0", what)
}

fn image(b: &Bed, what: What) -> Op {
    on(b, 0, "img-one-5", what)
}

fn clone(b: &Bed) -> Op {
    own(b, What::Clone { image: "vg-one-100/img-one-4".into(), size_mib: Some(2), thin: true })
}

fn thick(b: &Bed) -> Op {
    own(b, What::Clone { image: "vg-one-100/img-one-4".into(), size_mib: Some(2), thin: false })
}

fn snapshot(b: &Bed, snapshot: i64) -> Op {
    own(b, What::SnapCreate { snapshot })
}

fn gone(b: &Bed) -> Op {
    Op::Gone(Gone { dir: b.text("101/7"), stores: vec![100] })
}

fn write(b: &Bed, volume: &str, text: &str) {
    let at = Place::Public(Name::parse(volume).unwrap());
    let path = b.domain(100).engine.attach(&at, Access::Write).unwrap().path;
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&content(text), 0).unwrap();
}

/// A thick image 4 and a thin one 5.
fn images(b: &Bed) {
    b.publish(100, "img-one-4", &content("AB"));
    let (d, job) = (b.domain(100), b.start(Topic::default()));
    let name = |s: &str| Name::parse(s).unwrap();
    let mut work = Work::begin(&d, &job, &[name("img-one-5")]).unwrap();
    let pool = work.pool(Bytes(1 << 20)).unwrap();
    let slab = work.slab(&Spec::Thin { pool: work.place(&pool), size: Bytes(1 << 20) }).unwrap();
    let steps =
        [(&slab, "img-one-5"), (&pool, "img-one-5-pool")].map(|(s, n)| work.step_to(s, &name(n)).unwrap());
    work.commit("", "", steps.to_vec()).unwrap();
    write(b, "img-one-5", "CD");
}

fn cloned(b: &Bed) {
    images(b);
    b.ok(&clone(b));
}

fn linked(b: &Bed) {
    images(b);
    b.ok(&image(b, What::Link));
}

fn linked_thick(b: &Bed) {
    images(b);
    b.ok(&on(b, 0, "img-one-4", What::Link));
}

fn snapshots(b: &Bed) {
    cloned(b);
    for (n, text) in [(0, "x"), (1, "xy")] {
        b.ok(&snapshot(b, n));
        write(b, "vm-one-7-0", text);
    }
}

fn two_disks(b: &Bed) {
    snapshots(b);
    b.ok(&on(b, 1, "vm-one-7-1", What::Make { size_mib: 1, format: "raw".into(), fs: None, thin: true }));
}

/// Without its link a volume of the VM is there for nobody: a repeat or the VM's end takes it.
fn unlinked(v: &mut View) {
    for disk in 0..2 {
        if !v.contains_key(&format!("101/7/disk.{disk}")) {
            v.retain(|k, _| !k.starts_with(&format!("100/vm-one-7-{disk}")));
        }
    }
    if !v.keys().any(|k| k.starts_with("100/vm-one-7-") && !k.ends_with("-pool")) {
        v.remove("100/vm-one-7-pool");
    }
}

pub(super) fn scenes() -> Vec<Scene> {
    let two = |what, before: fn(&Bed), op: fn(&Bed) -> Op| Scene {
        rest: unlinked,
        ..scene(what, true, before, op)
    };
    vec![
        two("clone on volumes", images, clone),
        two("clone on volumes over a disk with snapshots", snapshots, clone),
        two("mkimage on volumes", images, |b| {
            own(b, What::Make { size_mib: 1, format: "raw".into(), fs: None, thin: true })
        }),
        scene("ln on volumes", true, images, |b| image(b, What::Link)),
        scene("mvds on volumes", true, linked, |b| image(b, What::Store)),
        scene("cpds on volumes", true, cloned, |b| {
            own(b, What::Save { snapshot: None, target: "vg-one-100/img-one-9".into() })
        }),
        scene("cpds of a snapshot on volumes", true, snapshots, |b| {
            own(b, What::Save { snapshot: Some(0), target: "vg-one-100/img-one-9".into() })
        }),
        scene("release on volumes", true, snapshots, |b| own(b, What::Release)),
        scene("release a persistent disk on volumes", true, linked, |b| image(b, What::Release)),
        two("clone thick on volumes", images, thick),
        two("clone thick on volumes over a thin disk", snapshots, thick),
        scene("lend a volume", true, images, |b| on(b, 0, "img-one-4", What::Lend)),
        scene("borrow a volume", true, images, |b| on(b, 0, "img-one-4", What::Borrow)),
        scene("keep a volume", true, images, |b| on(b, 0, "img-one-4", What::Keep)),
        two("delete a disk on volumes", snapshots, |b| own(b, What::Delete)),
        two("delete one of two disks on volumes", two_disks, |b| own(b, What::Delete)),
        scene("delete a persistent disk on volumes", true, linked, |b| image(b, What::Delete)),
        two("delete a VM on volumes", two_disks, gone),
        two("delete a VM without anything", nothing, gone),
        scene("snapshot on volumes", true, cloned, |b| snapshot(b, 0)),
        scene("snapshot again on volumes", true, snapshots, |b| snapshot(b, 0)),
        scene("persistent snapshot on volumes", true, linked, |b| image(b, What::SnapCreate { snapshot: 0 })),
        scene("revert on volumes", true, snapshots, |b| own(b, What::SnapRevert { snapshot: 0 })),
        scene("delete a snapshot on volumes", true, snapshots, |b| own(b, What::SnapDelete { snapshot: 0 })),
        scene("resize a thick volume", true, linked_thick, |b| {
            on(b, 0, "img-one-4", What::Resize { size_mib: 3 })
        }),
        scene("resize on volumes", true, snapshots, |b| own(b, What::Resize { size_mib: 3 })),
    ]
}

#[test]
fn a_disk_is_a_volume_in_the_vm_s_pool_and_its_link_leads_to_the_device() {
    let b = Bed::in_memory();
    two_disks(&b);
    let of = |b: &Bed| -> Vec<(String, String)> {
        b.view().into_iter().filter(|(k, _)| k.contains("/vm-one") || k.starts_with("101/")).collect()
    };
    let want = [
        ("100/vm-one-7-0", "2048 xy"),
        ("100/vm-one-7-0_one_s0", "2048 AB"),
        ("100/vm-one-7-0_one_s1", "2048 x"),
        ("100/vm-one-7-1", "1024 "),
        ("100/vm-one-7-pool", "pool"),
        ("101/7/disk.0", "-> /dev/vg-one-100/vm-one-7-0"),
        ("101/7/disk.1", "-> /dev/vg-one-100/vm-one-7-1"),
    ];
    let text = |want: &[(&str, &str)]| -> Vec<(String, String)> {
        want.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    assert_eq!(of(&b), text(&want));
    let pool = Place::Public(Name::parse("vm-one-7-pool").unwrap());
    let size = b.domain(100).engine.look(&pool).unwrap().unwrap().size;
    assert!(size.0 >= 7 << 20, "it holds all that its volumes can take: {size}");
    for (n, content) in [(0, "2048 AB"), (1, "2048 x")] {
        b.ok(&own(&b, What::SnapRevert { snapshot: n }));
        assert_eq!(b.view()["100/vm-one-7-0"], content);
    }
    b.ok(&own(&b, What::SnapDelete { snapshot: 0 }));
    b.ok(&own(&b, What::SnapDelete { snapshot: 0 }));
    b.ok(&own(&b, What::SnapRevert { snapshot: 1 }));
    b.ok(&own(&b, What::Delete));
    assert_eq!(of(&b), text(&[want[3], want[4], want[6]]), "the other disk stays, with the pool");
    b.ok(&on(&b, 1, "vm-one-7-1", What::Delete));
    assert!(of(&b).is_empty());
    b.sound();
}

/// Contract 8, R2 and the pool of a VM that several of its disks want to make.
#[test]
fn many_disks_of_one_image_are_made_at_once() {
    let b = Bed::in_memory();
    images(&b);
    let wanted: Vec<(u32, u32)> = (0..4).flat_map(|vm| (0..3).map(move |disk| (vm, disk))).collect();
    std::thread::scope(|s| {
        for (vm, disk) in &wanted {
            let what = What::Clone { image: "vg-one-100/img-one-4".into(), size_mib: None, thin: true };
            let (b, path) = (&b, b.text(&format!("101/{vm}/disk.{disk}")));
            let volume = format!("vg-one-100/vm-one-{vm}-{disk}");
            s.spawn(move || b.ok(&Op::OnVolume(OnVolume { disk: path, volume, readonly: false, what })));
        }
    });
    let v = b.view();
    for (vm, disk) in wanted {
        assert_eq!(v[&format!("100/vm-one-{vm}-{disk}")], "1024 AB");
        assert_eq!(v[&format!("101/{vm}/disk.{disk}")], format!("-> /dev/vg-one-100/vm-one-{vm}-{disk}"));
        let pool = Place::Public(Name::parse(&format!("vm-one-{vm}-pool")).unwrap());
        assert!(b.domain(100).engine.look(&pool).unwrap().unwrap().size.0 >= 3 << 20);
    }
    b.sound();
}

#[test]
fn a_persistent_disk_is_the_image_and_outlives_its_vm() {
    let b = Bed::in_memory();
    linked(&b);
    let before = b.view();
    assert_eq!(before["101/7/disk.0"], "-> /dev/vg-one-100/img-one-5");
    b.ok(&image(&b, What::SnapCreate { snapshot: 0 }));
    write(&b, "img-one-5", "EF");
    b.ok(&image(&b, What::Save { snapshot: None, target: "vg-one-100/img-one-9".into() }));
    b.ok(&image(&b, What::Delete));
    b.ok(&gone(&b));
    let v = b.view();
    let has = |k: &str, text: &str| assert_eq!(v[k], text, "{k}");
    has("100/img-one-5", "1024 EF");
    has("100/img-one-5_one_s0", "1024 CD");
    has("100/img-one-9", "1024 EF");
    assert!(!v.keys().any(|k| k.starts_with("101/7/")));
}

#[test]
fn what_is_another_disk_s_or_cannot_be_is_refused() {
    let b = Bed::in_memory();
    snapshots(&b);
    let refused = |op: &Op, class| b.refused(op, class);
    refused(&on(&b, 1, "vm-one-7-0", What::Delete), Class::Usage);
    refused(&on(&b, 0, "vm-one-8-0", What::Delete), Class::Usage);
    refused(&on(&b, 0, "vm-one-7-pool", What::Delete), Class::Usage);
    // The link leads to the VM's own volume, not to the image.
    let text = refused(&image(&b, What::Store), Class::Integrity);
    assert!(text.contains("nothing was changed"), "{text}");
    b.publish(101, "7/disk.3", &content("X"));
    refused(&on(&b, 3, "img-one-5", What::Store), Class::Integrity);
    refused(&own(&b, What::SnapRevert { snapshot: 7 }), Class::NotFound);
    refused(&on(&b, 0, "img-one-4", What::SnapCreate { snapshot: 0 }), Class::Unsupported);
    refused(
        &own(&b, What::Clone { image: "vg-one-101/img-one-4".into(), size_mib: None, thin: true }),
        Class::Refused,
    );
    refused(
        &own(&b, What::Clone { image: "vg-one-100/img-one-1".into(), size_mib: None, thin: true }),
        Class::NotFound,
    );
    b.ok(&own(&b, What::Keep));
    for what in [What::Lend, What::Borrow] {
        let text = refused(&own(&b, what), Class::Unsupported);
        assert!(text.contains("LVM_THIN_ENABLE") && text.contains("nothing was changed"), "{text}");
    }
    // Beside disks in the VM's pool.
    b.ok(&on(&b, 2, "vm-one-7-2", What::Make { size_mib: 1, format: "raw".into(), fs: None, thin: false }));
    refused(&on(&b, 2, "vm-one-7-2", What::SnapCreate { snapshot: 0 }), Class::Unsupported);
    b.ok(&on(&b, 2, "vm-one-7-2", What::Resize { size_mib: 9 }));
    assert_eq!(b.view()["100/vm-one-7-2"], "9216 ");
    b.ok(&on(&b, 2, "vm-one-7-2", What::Lend));
    let none = JobId::generate();
    assert!(b.with_peer(none, &on(&b, 3, "img-one-1", What::Link), None).is_err());
}

/// A CD-ROM that machines of one host share: what one of them does with it is nothing to the other.
#[test]
fn an_image_that_is_only_read_is_in_several_machines() {
    let b = Bed::in_memory();
    images(&b);
    let cd = |vm: u32, what| {
        let (disk, volume) = (b.text(&format!("101/{vm}/disk.1")), "vg-one-100/img-one-4".to_owned());
        Op::OnVolume(OnVolume { disk, volume, readonly: true, what })
    };
    for vm in [7, 8] {
        b.ok(&cd(vm, What::Link));
    }
    for what in [What::Lend, What::Borrow, What::Keep, What::Release, What::Delete, What::Delete] {
        b.ok(&cd(7, what));
    }
    let v = b.view();
    assert!(!v.contains_key("101/7/disk.1") && v["101/8/disk.1"] == "-> /dev/vg-one-100/img-one-4");
    b.ok(&cd(8, What::Store));
    b.sound();
}
