//! Snapshots: content through every one of them, before and after.

use super::*;
use DiskFormat::{Qcow2, Raw};

pub const IMG: Option<&str> = Some("100/img");

/// Disk 0 of VM 7 with `AB`, persistent or not.
pub fn with_disk(format: DiskFormat, persistent: bool) -> Bed {
    let bed = Bed::new();
    bed.image("img", if format == Raw { "raw" } else { "qcow2" }, "AB");
    if persistent {
        bed.ok(&link(&bed, "100/img", "101/7/disk.0", format));
    } else {
        bed.ok(&Op::Clone(clone(&bed, "100/img", "101/7/disk.0", format)));
    }
    bed
}

/// Where the snapshots are.
fn home(persistent: bool) -> &'static str {
    if persistent { "100/img.snap" } else { "101/7/disk.0.snap" }
}

pub const KINDS: [(DiskFormat, bool); 4] = [(Raw, false), (Raw, true), (Qcow2, false), (Qcow2, true)];

/// The seed's sequence: two snapshots, back to the first, the second gone.
#[test]
fn snapshots_keep_their_content() {
    for (format, persistent) in KINDS {
        let (bed, what) = (with_disk(format, persistent), format!("{format:?} {persistent}"));
        let at = |n: &str| format!("{}/{n}", home(persistent));
        let op = |n| snap(&bed, IMG, format, n);
        let link_before = format == Raw && persistent;
        bed.ok(&Op::SnapCreate(op(0)));
        bed.write("101/7/disk.0", 1, '1');
        bed.ok(&Op::SnapCreate(op(1)));
        bed.write("101/7/disk.0", 2, '2');
        let all = |s0: &str, s1: &str, now: &str| {
            assert_eq!((bed.says(&at("0")), bed.says(&at("1"))), (s0.into(), s1.into()), "{what}");
            assert_eq!(bed.says("101/7/disk.0"), now, "{what}");
        };
        all("AB", "A1", "A12");
        bed.ok(&Op::SnapRevert(op(0)));
        all("AB", "A1", "AB");
        bed.write("101/7/disk.0", 3, '3');
        bed.ok(&Op::SnapRevert(op(1)));
        all("AB", "A1", "A1");
        bed.ok(&Op::SnapDelete(op(1)));
        assert!(!bed.at(&at("1")).exists(), "{what}");
        assert_eq!((bed.says(&at("0")).as_str(), bed.says("101/7/disk.0").as_str()), ("AB", "A1"), "{what}");
        bed.ok(&Op::SnapDelete(op(1)));
        if link_before {
            // D2: the image is reverted, the link stays.
            assert_eq!(bed.link("101/7/disk.0"), bed.text("100/img"));
            assert_eq!(bed.says("100/img"), "A1");
        }
        bed.collect();
    }
}

#[test]
fn layers_are_named_and_linked_to_the_letter() {
    for persistent in [false, true] {
        let bed = with_disk(Qcow2, persistent);
        bed.ok(&Op::SnapCreate(snap(&bed, IMG, Qcow2, 0)));
        bed.ok(&Op::SnapCreate(snap(&bed, IMG, Qcow2, 1)));
        let recorded = |n: &str| {
            if persistent { bed.text(&format!("100/img.snap/{n}")) } else { format!("disk.0.snap/{n}") }
        };
        assert_eq!(bed.link("101/7/disk.0"), recorded("2"));
        for (layer, on) in [("1", "0"), ("2", "1")] {
            assert_eq!(bed.backing(&format!("{}/{layer}", home(persistent))), Some(recorded(on)));
        }
        bed.ok(&Op::SnapRevert(snap(&bed, IMG, Qcow2, 0)));
        assert_eq!(bed.link("101/7/disk.0"), recorded("2"), "the link stays");
        assert_eq!(bed.backing(&format!("{}/2", home(persistent))), Some(recorded("0")));
        // From where a hypervisor driver opens it, and in the directory itself.
        bed.img(&["info", "--backing-chain", "-U", &bed.text("101/7/disk.0")]);
        bed.img(&["info", "--backing-chain", "-U", &bed.text(&format!("{}/2", home(persistent)))]);
        bed.sound();
    }
}

/// Every snapshot, in every order of deleting, keeps its content until it goes; so does the disk.
#[test]
fn deleting_any_snapshot_of_a_branched_chain_keeps_all_others() {
    let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [1, 0, 3, 2], [2, 0, 1, 3], [1, 2, 0, 3]];
    for (order, persistent) in orders.iter().flat_map(|o| [(o, false), (o, true)]) {
        let bed = with_disk(Qcow2, persistent);
        let op = |n| snap(&bed, IMG, Qcow2, n);
        let mut expected = Vec::new();
        for n in 0..4 {
            bed.write("101/7/disk.0", usize::try_from(n).unwrap() + 2, '0');
            expected.push(bed.says("101/7/disk.0"));
            bed.ok(&Op::SnapCreate(op(n)));
            bed.write("101/7/disk.0", 1, char::from(b'a' + u8::try_from(n).unwrap()));
            if n == 1 {
                bed.ok(&Op::SnapRevert(op(0)));
            }
        }
        let now = bed.says("101/7/disk.0");
        let mut left: Vec<i64> = vec![0, 1, 2, 3];
        for gone in order {
            bed.ok(&Op::SnapDelete(op(*gone)));
            left.retain(|n| n != gone);
            for n in &left {
                let file = format!("{}/{n}", home(persistent));
                let is = bed.says(&file);
                assert_eq!(is, expected[usize::try_from(*n).unwrap()], "{n} after {gone} of {order:?}");
            }
            assert_eq!(bed.says("101/7/disk.0"), now, "{order:?} {persistent}");
        }
        if persistent {
            assert_eq!(bed.says("100/img"), now, "{order:?}: the image's own name shows what it is");
            bed.ok(&Op::Clone(clone(&bed, "100/img", "101/8/disk.0", Qcow2)));
            assert_eq!(bed.says("101/8/disk.0"), now);
        }
        bed.ok(&Op::SnapCreate(op(4)));
        assert_eq!(bed.says("101/7/disk.0"), now);
        bed.collect();
    }
}

/// After a live delete of snapshot 1 its file holds the content of snapshot 2; the directory has moved since.
#[test]
fn a_current_file_is_followed_and_never_deleted_by_its_number() {
    for persistent in [false, true] {
        let bed = with_disk(Qcow2, persistent);
        let op = |n| snap(&bed, IMG, Qcow2, n);
        for n in 0..3 {
            bed.write("101/7/disk.0", 2, char::from(b'0' + u8::try_from(n).unwrap()));
            bed.ok(&Op::SnapCreate(op(n)));
        }
        let dir = bed.at(home(persistent));
        // What libvirt does: 2 committed into 1, 3 on top of it.
        bed.img(&[
            "rebase",
            "-u",
            "-f",
            "qcow2",
            "-b",
            &dir.join("1").to_string_lossy(),
            "-F",
            "qcow2",
            &dir.join("3").to_string_lossy(),
        ]);
        bed.write(&format!("{}/1", home(persistent)), 2, '2');
        std::fs::remove_file(dir.join("2")).unwrap();
        let elsewhere = Path::new("/elsewhere").join(dir.file_name().unwrap()).join("1");
        std::fs::write(dir.join("2.current"), elsewhere.to_str().unwrap()).unwrap();
        let file = format!("{}/1", home(persistent));
        assert_eq!(bed.says(&file), "AB2");
        bed.ok(&Op::SnapDelete(op(1)));
        assert_eq!(bed.says(&file), "AB2", "file 1 is snapshot 2");
        bed.refused(&Op::SnapRevert(op(1)), Class::NotFound);
        bed.write("101/7/disk.0", 3, 'x');
        let cpds =
            op::Cpds { disk: op(2).disk, snapshot: Some(2), target: bed.text("100/saved"), live: None };
        bed.ok(&Op::Cpds(cpds));
        assert_eq!(bed.says("100/saved"), "AB2");
        bed.ok(&Op::SnapRevert(op(2)));
        assert_eq!(bed.says("101/7/disk.0"), "AB2");
        bed.ok(&Op::SnapDelete(op(2)));
        assert_eq!(bed.says("101/7/disk.0"), "AB2");
        assert!(!dir.join("2.current").exists() && !dir.join("1").exists());
        assert_eq!(bed.says(&format!("{}/0", home(persistent))), "AB0");
        bed.collect();
    }
}

/// L4: a layer that a failed attempt left blocks nobody; D15: nor does a link that was not moved.
#[test]
fn a_leftover_layer_is_kept_aside() {
    let bed = with_disk(Qcow2, false);
    std::fs::write(bed.at("101/7/disk.0.snap/1"), "half").unwrap();
    let e = bed.run(&Op::SnapCreate(snap(&bed, IMG, Qcow2, 0)));
    assert_eq!(class_of(&e.unwrap_err()), Class::Integrity, "what cannot be read is not judged");
    std::fs::remove_file(bed.at("101/7/disk.0.snap/1")).unwrap();
    let (base, left) = (bed.text("101/7/disk.0.snap/0"), bed.text("101/7/disk.0.snap/1"));
    bed.img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &left]);
    bed.write("101/7/disk.0", 0, 'x');
    bed.ok(&Op::SnapCreate(snap(&bed, IMG, Qcow2, 0)));
    assert_eq!(bed.link("101/7/disk.0"), "disk.0.snap/1");
    assert_eq!(bed.says("101/7/disk.0"), "xB");
}

/// Red team 1.15: a snapshot that was made, and asked for again, is of the moment of the second wish.
#[test]
fn a_snapshot_asked_for_again_is_of_now() {
    for (format, persistent) in KINDS {
        let bed = with_disk(format, persistent);
        let op = |n| Op::SnapCreate(snap(&bed, IMG, format, n));
        let id = crate::lock::JobId::generate();
        bed.cut(id, &op(0), i64::MAX, false).unwrap();
        bed.write("101/7/disk.0", 2, 'x');
        let zero = format!("{}/0", home(persistent));
        bed.cut(id, &op(0), i64::MAX, false).unwrap();
        assert_eq!(bed.says(&zero), "AB", "the same request gets its answer and nothing happens");
        bed.ok(&op(0));
        assert_eq!(bed.says(&zero), "ABx");
        assert_eq!(bed.says("101/7/disk.0"), "ABx");
        bed.write("101/7/disk.0", 2, 'y');
        assert_eq!(bed.says(&zero), "ABx");
        bed.ok(&op(1));
        bed.ok(&op(1));
        assert_eq!(bed.says(&format!("{}/1", home(persistent))), "ABy");
        // Numbers that were skipped, and that come again when all others are gone.
        bed.ok(&op(5));
        bed.write("101/7/disk.0", 3, 'z');
        assert_eq!(bed.says(&format!("{}/5", home(persistent))), "ABy");
        for n in [0, 1, 5] {
            bed.ok(&Op::SnapDelete(snap(&bed, IMG, format, n)));
        }
        bed.ok(&op(0));
        bed.write("101/7/disk.0", 3, '!');
        assert_eq!((bed.says(&zero).as_str(), bed.says("101/7/disk.0").as_str()), ("AByz", "ABy!"));
        bed.collect();
    }
}

/// Red team 1.9, D16.
#[test]
fn a_disk_that_a_machine_has_open_is_left_alone() {
    for (format, persistent) in KINDS {
        let bed = with_disk(format, persistent);
        bed.ok(&Op::SnapCreate(snap(&bed, IMG, format, 0)));
        let held = bed.hold("101/7/disk.0");
        let op = snap(&bed, IMG, format, 0);
        let resize = op::Resize { disk: op.disk.clone(), size_mib: 2, sparse: true };
        for busy in [
            Op::SnapCreate(op::Snap { snapshot: 1, ..op.clone() }),
            Op::SnapRevert(op.clone()),
            Op::SnapDelete(op.clone()),
            Op::Resize(resize),
            Op::Cpds(op::Cpds {
                disk: op.disk.clone(),
                snapshot: None,
                target: bed.text("100/t"),
                live: None,
            }),
        ] {
            bed.refused(&busy, Class::InUse);
        }
        if !persistent {
            bed.refused(&Op::Clone(clone(&bed, "100/img", "101/7/disk.0", format)), Class::InUse);
            bed.refused(&delete(&bed, "101/7"), Class::InUse);
        }
        bed.let_go(held, "101/7/disk.0");
        bed.ok(&Op::SnapRevert(op));
    }
    // The image below is open in every machine that builds on it.
    let bed = with_disk(Qcow2, false);
    let _others = bed.hold("100/img");
    bed.ok(&Op::SnapCreate(snap(&bed, IMG, Qcow2, 0)));
    bed.ok(&Op::SnapDelete(snap(&bed, IMG, Qcow2, 0)));
}
