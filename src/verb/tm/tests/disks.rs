//! What else happens to disks that exist: grown, saved, copied and brought back, monitored.

use super::snaps::{IMG, KINDS, with_disk};
use super::*;
use DiskFormat::{Qcow2, Raw};

#[test]
fn disks_grow_and_never_shrink() {
    for (format, persistent) in KINDS {
        let bed = with_disk(format, persistent);
        let resize = |size_mib, sparse| {
            Op::Resize(op::Resize { disk: disk(&bed, "101/7/disk.0", IMG, format), size_mib, sparse })
        };
        for (size, sparse) in [(1, true), (2, true), (2, true), (4, false)] {
            bed.ok(&resize(size, sparse));
            let now = bed::read(&bed.at("101/7/disk.0"));
            assert_eq!(now.len() as u64, size << 20);
            assert_eq!(bed.says("101/7/disk.0"), "AB");
        }
        bed.refused(&resize(3, true), Class::Usage);
        bed.collect();
    }
}

/// What an interrupted snapshot of a persistent disk leaves would show the old size to the next VM.
#[test]
fn growing_leaves_no_smaller_layer_on_top() {
    let bed = with_disk(Qcow2, true);
    let (base, left) = (bed.text("100/img.snap/0"), bed.text("100/img.snap/1"));
    bed.img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "qcow2", &left]);
    let disk = disk(&bed, "101/7/disk.0", IMG, Qcow2);
    bed.ok(&Op::Resize(op::Resize { disk, size_mib: 2, sparse: true }));
    bed.ok(&link(&bed, "100/img", "101/8/disk.0", Qcow2));
    assert_eq!(bed::read(&bed.at("101/8/disk.0")).len(), 2 << 20);
    bed.collect();
}

/// A numbered link to somebody else's image is no snapshot.
#[test]
fn a_snapshot_that_leads_elsewhere_is_nobodys() {
    let bed = with_disk(Raw, false);
    bed.image("victim", "raw", "S");
    std::fs::create_dir_all(bed.at("101/7/disk.0.snap")).unwrap();
    bed.write_link(&bed.text("100/victim"), "101/7/disk.0.snap/0");
    let op = snap(&bed, IMG, Raw, 0);
    bed.refused(&Op::SnapRevert(op.clone()), Class::Refused);
    bed.refused(&Op::SnapDelete(op.clone()), Class::Refused);
    let target = bed.text("100/t");
    bed.refused(&Op::Cpds(op::Cpds { disk: op.disk, snapshot: Some(0), target, live: None }), Class::Refused);
}

#[test]
fn a_disk_or_a_snapshot_is_saved_as_an_image() {
    for (format, persistent) in KINDS {
        let bed = with_disk(format, persistent);
        bed.ok(&Op::SnapCreate(snap(&bed, IMG, format, 0)));
        bed.write("101/7/disk.0", 0, 'x');
        let cpds = |snapshot, target: &str| {
            let disk = disk(&bed, "101/7/disk.0", IMG, format);
            Op::Cpds(op::Cpds { disk, snapshot, target: bed.text(target), live: None })
        };
        for (snapshot, says) in [(None, "xB"), (Some(0), "AB"), (None, "xB")] {
            bed.ok(&cpds(snapshot, "100/saved"));
            assert_eq!(bed.says("100/saved"), says, "{format:?} {persistent}");
        }
        if format == Qcow2 {
            assert_eq!(bed.backing("100/saved"), None, "it needs nothing else");
        }
        bed.refused(&cpds(Some(9), "100/saved"), Class::NotFound);
        bed.refused(&cpds(Some(0), "100/img"), Class::Refused);
        if persistent {
            bed.ok(&cpds(None, "100/img"));
        }
        bed.collect();
    }
}

/// D2 as others left it: the private file would go with the VM's directory.
#[test]
fn storing_a_disk_that_is_not_the_image_is_refused() {
    for format in [Raw, Qcow2] {
        let bed = with_disk(format, true);
        let disk = disk(&bed, "101/7/disk.0", IMG, format);
        let op = Op::Mvds(op::Mvds { disk, target: bed.text("100/img") });
        bed.ok(&op);
        std::fs::remove_file(bed.at("101/7/disk.0")).unwrap();
        bed.ok(&op);
        std::fs::copy(bed.at("100/img"), bed.at("101/7/disk.0")).unwrap();
        bed.refused(&op, Class::Integrity);
    }
}

/// B1: every snapshot is reported, above number 9, too.
#[test]
fn monitoring_reports_all_disks_and_snapshots() {
    use base64::Engine as _;
    let bed = with_disk(Qcow2, false);
    for n in 0..11 {
        bed.ok(&Op::SnapCreate(snap(&bed, IMG, Qcow2, n)));
    }
    bed.write("101/7/disk.0.snap/4", 0, 'x');
    std::fs::write(bed.at("101/7/disk.0.snap/20.current"), bed.text("101/7/disk.0.snap/4")).unwrap();
    bed.ok(&link(&bed, "100/img", "101/7/disk.1", Raw));
    std::fs::create_dir_all(bed.at("101/8")).unwrap();
    bed.write_link("/nowhere", "101/8/disk.0");
    let monitor = |vms| bed.run(&Op::Monitor(op::Monitor { dir: bed.text("101"), vms })).unwrap().text;
    let words: Vec<String> =
        monitor(false).split(' ').map(|w| w.split('=').next().unwrap().to_owned()).collect();
    assert_eq!(words, ["USED_MB", "FREE_MB", "TOTAL_MB"]);
    let text = monitor(true);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2, "a VM without a disk is no line: {text}");
    let coded = lines[1].strip_prefix("VM=[ID=7, MONITOR=\"").unwrap().strip_suffix("\"]").unwrap();
    let vm = String::from_utf8(base64::engine::general_purpose::STANDARD.decode(coded).unwrap()).unwrap();
    let mut expected = vec!["DISK_SIZE = [ ID=0, SIZE=1 ]".to_owned()];
    let snaps = (0..11).chain([20]).map(|n| format!("SNAPSHOT_SIZE = [ ID={n}, DISK_ID=0, SIZE=1 ]"));
    expected.extend(snaps);
    expected.push("DISK_SIZE = [ ID=1, SIZE=1 ]".to_owned());
    assert_eq!(vm.lines().collect::<Vec<_>>(), expected);
}

/// `ln.ssh`, work, `mvds.ssh`, and both once more: contract 3.2.
#[test]
fn a_private_copy_takes_snapshots_along_and_brings_them_back() {
    for format in [Raw, Qcow2] {
        let bed = Bed::new();
        bed.image("img", if format == Raw { "raw" } else { "qcow2" }, "AB");
        let pull = |disk: &str| {
            let (image, disk, marker) = (bed.text("100/img"), bed.text(disk), Marker::Write("ssh".into()));
            Op::Pull(op::Pull { image, disk, format, marker })
        };
        let store = |path: &str| {
            Op::Store(op::Store { disk: disk(&bed, path, None, format), target: bed.text("100/img") })
        };
        let op = |n| snap(&bed, IMG, format, n);
        bed.ok(&pull("101/7/disk.0"));
        bed.ok(&Op::SnapCreate(op(0)));
        bed.write("101/7/disk.0", 2, 'x');
        bed.ok(&Op::SnapCreate(op(1)));
        bed.write("101/7/disk.0", 3, 'y');
        assert_eq!(bed.says("100/img"), "AB", "{format:?}");
        for _ in 0..2 {
            bed.ok(&store("101/7/disk.0"));
            assert_eq!(bed.says("100/img"), "ABxy", "{format:?}");
            assert_eq!((bed.says("100/img.snap/0"), bed.says("100/img.snap/1")), ("AB".into(), "ABx".into()));
        }
        if format == Qcow2 {
            assert_eq!(bed.link("100/img"), "img.snap/2");
            assert_eq!(bed.link("100/img.snap/img.snap"), ".");
            assert_eq!(bed.backing("100/img.snap/2"), Some("img.snap/1".into()));
            bed.img(&["info", "--backing-chain", "-U", &bed.text("100/img")]);
        }
        bed.ok(&delete(&bed, "101/7"));
        bed.ok(&pull("102/7/disk.0"));
        assert_eq!(std::fs::read_to_string(bed.at("102/.monitor")).unwrap(), "ssh\n");
        assert_eq!(bed.says("102/7/disk.0"), "ABxy", "{format:?}");
        assert_eq!(bed.says("102/7/disk.0.snap/1"), "ABx");
        if format == Qcow2 {
            assert_eq!(bed.link("102/7/disk.0"), "disk.0.snap/2");
            assert_eq!(bed.backing("102/7/disk.0.snap/1"), Some("disk.0.snap/0".into()));
            assert_eq!(bed.backing("102/7/disk.0.snap/0"), None);
        }
        let other = op::Snap { disk: disk(&bed, "102/7/disk.0", IMG, format), snapshot: 0 };
        bed.ok(&Op::SnapRevert(other));
        bed.ok(&store("102/7/disk.0"));
        assert_eq!(bed.says("100/img"), "AB");
        bed.ok(&link(&bed, "100/img", "101/8/disk.0", format));
        assert_eq!(bed.says("101/8/disk.0"), "AB");
        bed.refused(&store("101/8/disk.0"), Class::Integrity);
        bed.collect();
    }
}
