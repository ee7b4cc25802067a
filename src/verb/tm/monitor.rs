//! `monitor` of a system datastore: its space in one line, and a line per VM with what its disks and all
//! their snapshots take (B1). Takes no lock, needs no domain, starts no process, reads no image. Contract 5.2.

use super::Tm;
use super::op::Monitor;
use super::place::Spot;
use crate::sys::Bytes;
use crate::sys::fs::Dir;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub(super) fn run(tm: &Tm<'_>, op: &Monitor) -> Result<String> {
    let (path, _) = Spot::datastore(tm.ctx, &op.dir)?;
    let dir = Dir::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let (total, free, used) = dir.space().with_context(|| format!("asking for the space of {}", op.dir))?;
    let mib = |n| Bytes(n).as_mib_up();
    let mut out = format!("USED_MB={} FREE_MB={} TOTAL_MB={}", mib(used), mib(free), mib(total));
    if op.vms {
        let mut vms = numbers(&dir.names().with_context(|| format!("reading {}", op.dir))?, "");
        vms.sort_unstable();
        for vm in vms {
            // A VM that goes meanwhile is not worth an error, nor are its sizes.
            let text = of_vm(&path.join(vm.to_string())).unwrap_or_default();
            if !text.is_empty() {
                let text = STANDARD.encode(text);
                out.push_str(&format!("\nVM=[ID={vm}, MONITOR=\"{text}\"]"));
            }
        }
    }
    Ok(out)
}

/// The numbers in names that consist of this and a number.
fn numbers(names: &[OsString], before: &str) -> Vec<u64> {
    let number = |n: &OsString| n.to_str()?.strip_prefix(before)?.parse().ok();
    names.iter().filter_map(number).collect()
}

fn names(dir: &Path) -> std::io::Result<Vec<OsString>> {
    Dir::open(dir)?.names()
}

fn of_vm(dir: &Path) -> std::io::Result<String> {
    let mut disks = numbers(&names(dir)?, "disk.");
    disks.sort_unstable();
    let mut out = String::new();
    for id in disks {
        let disk = dir.join(format!("disk.{id}"));
        let Ok(size) = allocated(&disk) else { continue };
        let _ = writeln!(out, "DISK_SIZE = [ ID={id}, SIZE={size} ]");
        for (snap, size) in snapshots(&disk).unwrap_or_default() {
            let _ = writeln!(out, "SNAPSHOT_SIZE = [ ID={snap}, DISK_ID={id}, SIZE={size} ]");
        }
    }
    Ok(out)
}

/// MiB that a file takes, links followed.
fn allocated(path: &Path) -> std::io::Result<u64> {
    Ok(Bytes(std::fs::metadata(path)?.blocks().saturating_mul(512)).as_mib_up())
}

/// The disk's snapshots with what each takes. The layer that the disk writes to is the disk.
fn snapshots(disk: &Path) -> std::io::Result<Vec<(u64, u64)>> {
    let with_snap = |p: &Path| {
        let mut name = p.as_os_str().to_owned();
        name.push(".snap");
        PathBuf::from(name)
    };
    let (dir, active) = match std::fs::read_link(disk) {
        Err(_) => (with_snap(disk), None),
        Ok(to) => {
            let to = disk.parent().unwrap_or(disk).join(to);
            match to.parent().filter(|p| p.extension().is_some_and(|e| e == "snap")) {
                Some(dir) => (dir.to_owned(), to.file_name().map(ToOwned::to_owned)),
                None => (with_snap(&to), None),
            }
        }
    };
    let mut out = Vec::new();
    for name in names(&dir)? {
        let Some(name) = name.to_str().filter(|n| active.as_ref().is_none_or(|a| a != n)) else { continue };
        let marked = name.strip_suffix(".current");
        let Ok(id) = marked.unwrap_or(name).parse() else { continue };
        let file = match marked {
            Some(_) => std::fs::read_to_string(dir.join(name))
                .ok()
                .and_then(|to| Some(dir.join(Path::new(to.trim()).file_name()?))),
            None => Some(dir.join(name)),
        };
        if let Some(Ok(size)) = file.as_deref().map(allocated) {
            out.push((id, size, marked.is_some()));
        }
    }
    // Where a marker says that the content is elsewhere, a file of that number is not it.
    out.sort_unstable_by_key(|(id, _, marked)| (*id, !marked));
    out.dedup_by_key(|(id, ..)| *id);
    Ok(out.into_iter().map(|(id, size, _)| (id, size)).collect())
}
