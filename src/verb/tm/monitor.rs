//! What a system datastore has and its VMs take: `monitor` of a shared one, its space in one line and a line
//! per VM with the sizes of its disks and all their snapshots (B1); `monitor_ds` of one that is a host's own,
//! the VMs alone. Takes no lock, needs no domain, starts no process, reads no image. Contract 5.2, 5.3.

use super::Tm;
use super::op::Monitor;
use super::place::Spot;
use crate::sys::fs::Dir;
use crate::sys::{Bytes, copy};
use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::{DirEntry, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

pub(super) fn run(tm: &Tm<'_>, op: &Monitor) -> Result<String> {
    let (path, _) = Spot::datastore(tm.ctx, &op.dir)?;
    let dir = Dir::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let (total, free, used) = dir.space().with_context(|| format!("asking for the space of {}", op.dir))?;
    let mib = |n| Bytes(n).as_mib_up();
    let mut out = format!("USED_MB={} FREE_MB={} TOTAL_MB={}", mib(used), mib(free), mib(total));
    if op.vms {
        for (vm, text) in vms(&dir).with_context(|| format!("reading {}", op.dir))? {
            let _ = write!(out, "\nVM=[ID={vm}, MONITOR=\"{text}\"]");
        }
    }
    Ok(out)
}

/// `monitor_ds`, of any directory: a host may have its datastores elsewhere than its settings say.
pub fn local(path: &Path) -> Result<String> {
    let dir = Dir::open(path).with_context(|| format!("opening {}", path.display()))?;
    let vms = vms(&dir).with_context(|| format!("reading {}", path.display()))?;
    let lines: Vec<String> =
        vms.into_iter().map(|(vm, text)| format!("VM = [ ID = {vm}, MONITOR = \"{text}\" ]")).collect();
    Ok(lines.join("\n"))
}

/// The VMs of a datastore that have disks, with what each reports, in base64.
fn vms(dir: &Dir) -> io::Result<Vec<(u64, String)>> {
    let mut vms: Vec<u64> = dir.names()?.iter().filter_map(|n| number(n.to_str()?)).collect();
    vms.sort_unstable();
    // A VM that goes meanwhile is not worth an error, nor are its sizes.
    let reports = vms.into_iter().map(|vm| (vm, of_vm(&dir.path().join(vm.to_string())).unwrap_or_default()));
    Ok(reports.filter(|(_, text)| !text.is_empty()).map(|(vm, text)| (vm, STANDARD.encode(text))).collect())
}

/// A number as one writes it.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

/// The names that are text, and whether each is a link. The kernel tells both in one call for many.
fn names(dir: &Path) -> io::Result<Vec<(String, bool)>> {
    let entry = |e: io::Result<DirEntry>| {
        let e = e?;
        Ok(e.file_name().into_string().ok().map(|n| (n, e.file_type().is_ok_and(|t| t.is_symlink()))))
    };
    std::fs::read_dir(dir)?.filter_map(|e| entry(e).transpose()).collect()
}

fn of_vm(dir: &Path) -> io::Result<String> {
    let names = names(dir)?;
    let disk = |(name, is_link): &(String, bool)| Some((number(name.strip_prefix("disk.")?)?, *is_link));
    let mut disks: Vec<(u64, bool)> = names.iter().filter_map(disk).collect();
    disks.sort_unstable();
    let mut out = String::new();
    for (id, is_link) in disks {
        let disk = dir.join(format!("disk.{id}"));
        let Ok(size) = allocated(&disk) else { continue };
        let _ = writeln!(out, "DISK_SIZE = [ ID={id}, SIZE={size} ]");
        let beside = format!("disk.{id}.snap");
        if is_link || names.iter().any(|(n, _)| *n == beside) {
            for (snap, size) in snapshots(&disk, is_link).unwrap_or_default() {
                let _ = writeln!(out, "SNAPSHOT_SIZE = [ ID={snap}, DISK_ID={id}, SIZE={size} ]");
            }
        }
    }
    Ok(out)
}

/// MiB that a file takes, links followed; of a volume its size.
fn allocated(path: &Path) -> io::Result<u64> {
    let meta = std::fs::metadata(path)?;
    let bytes = if meta.file_type().is_block_device() {
        copy::measure(&File::open(path)?)?.1
    } else {
        meta.blocks().saturating_mul(512)
    };
    Ok(Bytes(bytes).as_mib_up())
}

/// The disk's snapshots with what each takes. The layer that the disk writes to is the disk.
fn snapshots(disk: &Path, is_link: bool) -> io::Result<Vec<(u64, u64)>> {
    let with_snap = |p: &Path| {
        let mut name = p.as_os_str().to_owned();
        name.push(".snap");
        PathBuf::from(name)
    };
    let (dir, active) = if is_link {
        let to = disk.parent().unwrap_or(disk).join(std::fs::read_link(disk)?);
        match to.parent().filter(|p| p.extension().is_some_and(|e| e == "snap")) {
            Some(dir) => (dir.to_owned(), to.file_name().map(ToOwned::to_owned)),
            None => (with_snap(&to), None),
        }
    } else {
        (with_snap(disk), None)
    };
    let mut out = Vec::new();
    for (name, _) in names(&dir)?.into_iter().filter(|(n, _)| active.as_deref() != Some(OsStr::new(n))) {
        let marked = name.strip_suffix(".current");
        let Some(id) = number(marked.unwrap_or(&name)) else { continue };
        let is_marked = marked.is_some();
        let file = if is_marked { elsewhere(&dir, &name) } else { Some(name.into()) };
        if let Some(Ok(size)) = file.map(|f| allocated(&dir.join(f))) {
            out.push((id, size, is_marked));
        }
    }
    // Where a marker says that the content is elsewhere, a file of that number is not it.
    out.sort_unstable_by_key(|(id, _, marked)| (*id, !marked));
    out.dedup_by_key(|(id, ..)| *id);
    Ok(out.into_iter().map(|(id, size, _)| (id, size)).collect())
}

/// The file, in the same directory, that a `.current` names.
fn elsewhere(dir: &Path, marker: &str) -> Option<OsString> {
    let mut text = String::new();
    let file = Dir::open(dir).and_then(|d| d.open_file(Path::new(marker), false));
    file.ok()?.take(4096).read_to_string(&mut text).ok()?;
    Path::new(text.trim()).file_name().map(ToOwned::to_owned)
}
