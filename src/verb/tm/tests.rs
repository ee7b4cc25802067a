//! Operations on real directories and on the in-memory engine: an image datastore 100, system datastores
//! 101 and 102, VM 7. Layouts are compared with contract 3.0.4 to the letter, contents by reading.

mod bed;
mod disks;
mod layout;
mod mover;
mod put;
mod resume;
mod snaps;
mod sweep;
mod transfer;
mod volumes;
mod way;

use super::op::{self, Op};
use super::{Answer, DiskFormat, Marker};
use crate::sys::{Class, fork};
use crate::verb::class_of;
use bed::Bed;
use std::path::Path;

/// Fills 64 KiB of a disk, as its guest does.
fn guest_writes(disk: &Path, at: usize, letter: char) {
    // What a machine is started with is where the link leads.
    let to = std::fs::read_link(disk).map(|to| disk.parent().unwrap().join(to));
    let disk = to.as_deref().unwrap_or(disk);
    let format = if std::fs::read(disk).unwrap().starts_with(b"QFI") { "qcow2" } else { "raw" };
    let write = format!("write -q -P {} {at} 64k", u32::from(letter));
    let mut qemu = std::process::Command::new("/usr/bin/qemu-io");
    let done =
        fork::output(qemu.args(["-f", format, "-c", &write]).arg(disk)).expect("these tests need qemu-io");
    assert!(done.status.success() && done.stderr.is_empty() && done.stdout.is_empty(), "{done:?}");
}

fn disk(bed: &Bed, path: &str, image: Option<&str>, format: DiskFormat) -> op::Disk {
    op::Disk { path: bed.text(path), image: image.map(|i| bed.text(i)), format }
}

fn clone(bed: &Bed, image: &str, disk: &str, format: DiskFormat) -> op::Clone {
    let (image, disk) = (bed.text(image), bed.text(disk));
    let marker = Marker::Keep;
    op::Clone {
        image,
        disk,
        format,
        standalone: false,
        sparse: true,
        size_mib: None,
        original_mib: None,
        marker,
    }
}

fn link(bed: &Bed, image: &str, disk: &str, format: DiskFormat) -> Op {
    Op::Link(op::Link { image: bed.text(image), disk: bed.text(disk), format })
}

fn delete(bed: &Bed, path: &str) -> Op {
    Op::Delete(op::Delete { path: bed.text(path) })
}

/// A snapshot of disk 0 of VM 7.
fn snap(bed: &Bed, image: Option<&str>, format: DiskFormat, snapshot: i64) -> op::Snap {
    op::Snap { disk: disk(bed, "101/7/disk.0", image, format), snapshot }
}
