//! Moving a VM's directory between two system datastores.

use super::*;
use crate::lock::JobId;

/// A VM with one disk of each kind, snapshots and files of the hypervisor driver.
fn with_vm() -> Bed {
    let bed = Bed::new();
    bed.image("img", "qcow2", "AB");
    bed.image("raw", "raw", "CD");
    bed.ok(&Op::Clone(clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2)));
    bed.ok(&Op::SnapCreate(snap(&bed, Some("100/img"), DiskFormat::Qcow2, 0)));
    bed.write("101/7/disk.0", 2, 'x');
    bed.ok(&link(&bed, "100/raw", "101/7/disk.1", DiskFormat::Raw));
    bed.ok(&Op::Clone(clone(&bed, "100/raw", "101/7/disk.2", DiskFormat::Raw)));
    std::fs::write(bed.at("101/7/deployment.0"), "<domain/>").unwrap();
    std::fs::write(bed.at("101/7/disk.0.snap/9.current"), bed.text("101/7/disk.0.snap/0")).unwrap();
    bed
}

fn mv(bed: &Bed, from: &str, to: &str) -> Op {
    Op::Mv(op::Mv { from: bed.text(from), to: bed.text(to) })
}

/// What is there of the VM in one datastore, without its number.
fn vm(bed: &Bed, ds: &str) -> Vec<(String, String)> {
    let own = format!("{ds}/7/");
    let of = |(path, text): (String, String)| {
        let rel = path.strip_prefix(&own)?.to_owned();
        (!rel.ends_with(".current")).then_some((rel, text))
    };
    bed.view().into_iter().filter_map(of).collect()
}

#[test]
fn a_vm_moves_whole_and_its_source_is_kept_aside() {
    let bed = with_vm();
    let before = vm(&bed, "101");
    let kept = || std::fs::read_dir(bed.at("101/.sdm/del")).unwrap().count();
    let kept_before = kept();
    bed.ok(&mv(&bed, "101/7/disk.0", "102/7/disk.0"));
    bed.ok(&mv(&bed, "101/7", "101/7"));
    assert_eq!(vm(&bed, "101"), before, "a disk goes with its directory");
    bed.ok(&mv(&bed, "101/7", "102/7"));
    assert_eq!((vm(&bed, "101"), vm(&bed, "102")), (vec![], before.clone()));
    let marker = std::fs::read_to_string(bed.at("102/7/disk.0.snap/9.current")).unwrap();
    assert_eq!(marker.trim(), bed.text("102/7/disk.0.snap/0"), "a recorded path moves, too");
    assert_eq!(kept(), kept_before + 1);
    bed.ok(&mv(&bed, "101/7", "102/7"));
    bed.collect();
    bed.ok(&mv(&bed, "102/7", "101/7"));
    assert_eq!(vm(&bed, "101"), before);
    bed.refused(&mv(&bed, "101/9", "102/9"), Class::NotFound);
    bed.refused(&mv(&bed, "101/7", "102/8"), Class::Usage);
}

/// Red team 1.3: what is at the destination is taken for the result only when it is this very source.
#[test]
fn an_old_destination_never_comes_back() {
    let bed = with_vm();
    let (id, op) = (JobId::generate(), mv(&bed, "101/7", "102/7"));
    // The host dies when the destination is published; the VM goes on at the source.
    let published = |n| {
        let bed = with_vm();
        let _ = bed.cut(id, &mv(&bed, "101/7", "102/7"), n, false);
        bed.collect();
        bed.at("102/7").exists() && bed.at("101/7").exists()
    };
    let n = (0..100).find(|n| published(*n)).unwrap();
    assert!(bed.cut(id, &op, n, false).is_err());
    bed.collect();
    std::fs::remove_file(bed.at("101/7/deployment.0")).unwrap();
    std::fs::write(bed.at("101/7/deployment.0"), "newer").unwrap();
    bed.ok(&op);
    assert_eq!(std::fs::read_to_string(bed.at("102/7/deployment.0")).unwrap(), "newer");
    assert!(!bed.at("101/7").exists());
}

#[test]
fn a_vm_that_runs_or_changes_is_not_moved() {
    let bed = with_vm();
    let held = bed.hold("101/7/disk.2");
    bed.refused(&mv(&bed, "101/7", "102/7"), Class::InUse);
    bed.let_go(held, "101/7/disk.2");
    let before = vm(&bed, "101");
    let open = |_: &Path, ds: i64| Ok(bed.domain(ds));
    let ready = || {
        bed.write("101/7/disk.2", 3, 'z');
        Ok(())
    };
    let e = bed.with(JobId::generate(), &open, &ready, &mv(&bed, "101/7", "102/7")).unwrap_err();
    assert_eq!(class_of(&e), Class::Integrity, "{e:#}");
    assert_ne!(vm(&bed, "101"), before, "the source stays, with what was written");
    bed.ok(&mv(&bed, "101/7", "102/7"));
    assert_eq!(bed.says("102/7/disk.2"), "CD.z");
}
