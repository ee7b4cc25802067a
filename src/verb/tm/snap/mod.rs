//! Snapshots of a disk that no machine has open: made, reverted to and deleted. Whether they are whole
//! copies or layers is the format on record and the links that are there. Everything changes in one domain,
//! except that making one of a persistent qcow2 disk ends with its link: see `create`.

pub(super) mod create;

use super::disk::Disk;
use super::op::Snap;
use super::{DiskFormat, Tm};
use crate::data::Sparse;
use crate::engine::{Kind, Name};
use crate::lock::Mode;
use crate::sdm::record::Step;
use crate::sdm::{Work, remove};
use crate::sys::Class;
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};

/// The disk gets a snapshot's content: the object that its name leads to, never the link (D2), by
/// replacing it whole (D16).
pub(super) fn revert(tm: &Tm<'_>, op: &Snap) -> Result<()> {
    let disk = open(tm, op)?;
    let home = disk.home();
    if tm.recorded(&home.domain)? {
        return Ok(());
    }
    let snaps = disk.snaps(tm)?;
    let file = snaps.there(op.snapshot)?;
    home.not_in_use()?;
    let mut work = tm.begin(home)?;
    let (slab, to) = if disk.format == DiskFormat::Qcow2 {
        not_the_disk(&disk, &file, op.snapshot)?;
        (snaps.overlay(&mut work, &snaps.layers()?, &file)?, real(&disk)?)
    } else {
        (fill::copy(tm.job, &mut work, &fill::open(&snaps.path(&file)?)?, Sparse::Keep)?, disk.file.clone())
    };
    work.flush(&slab)?;
    let mut steps = vec![work.step_to(&slab, &to)?];
    steps.extend(no_digest(&disk, &mut work)?);
    tm.commit(home, work, steps)
}

/// Takes a snapshot away; every other keeps its content, and so does the disk.
pub(super) fn delete(tm: &Tm<'_>, op: &Snap) -> Result<()> {
    let disk = open(tm, op)?;
    let home = disk.home();
    let snaps = disk.snaps(tm)?;
    let file = snaps.file_of(op.snapshot)?;
    if disk.format != DiskFormat::Qcow2 {
        let Some(file) = file else { return Ok(()) };
        home.not_in_use()?;
        tm.ready()?;
        remove::remove(&home.domain, tm.job, &[file, snaps.marker(op.snapshot)?], &tm.request)?;
        return Ok(());
    }
    let mut gone: Vec<_> = file.map(|f| (op.snapshot, f)).into_iter().collect();
    gone.extend(snaps.going()?);
    drop_all(tm, &disk, &gone)
}

/// Takes the layers of snapshots away. What builds on them is written to in place, in a way that can be run
/// again.
pub(super) fn drop_all(tm: &Tm<'_>, disk: &Disk, gone: &[(i64, Name)]) -> Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    disk.home().not_in_use()?;
    for (n, file) in gone {
        not_the_disk(disk, file, *n)?;
    }
    tm.ready()?;
    gone.iter().try_for_each(|(n, file)| drop_one(tm, disk, *n, file))
}

/// The same of one that nobody has open.
pub(super) fn drop_one(tm: &Tm<'_>, disk: &Disk, n: i64, file: &Name) -> Result<()> {
    let also = match &disk.image {
        Some(image) => vec![image.name().with_suffix(".md5sum")?],
        None => Vec::new(),
    };
    disk.snaps(tm)?.drop_snapshot(disk.home().name(), n, file, &also, &tm.request)
}

/// The disk, leased, in one of the layouts that have snapshots.
fn open(tm: &Tm<'_>, op: &Snap) -> Result<Disk> {
    let disk = Disk::open(tm, &op.disk, Mode::Exclusive)?;
    fits(op, &disk)?;
    Ok(disk)
}

/// Whether the disk has such snapshots.
pub(super) fn fits(op: &Snap, disk: &Disk) -> Result<()> {
    if op.snapshot < 0 {
        return Err(refuse(Class::Usage, format!("{} is no number of a snapshot", op.snapshot)));
    }
    if disk.format == DiskFormat::Qcow2 && !disk.layered() {
        let text = format!("{} is one qcow2 file without the layout of snapshots", op.disk.path);
        return Err(refuse(Class::Unsupported, text));
    }
    Ok(())
}

/// A layer that is the disk's own is no snapshot.
pub(super) fn not_the_disk(disk: &Disk, file: &Name, snapshot: i64) -> Result<()> {
    if *file == disk.file {
        let text = format!("{file} is what the disk writes to, not snapshot {snapshot}; nothing was changed");
        return Err(refuse(Class::Integrity, text));
    }
    Ok(())
}

/// The file that a disk's layer is: itself, or the image when it is a link to that.
fn real(disk: &Disk) -> Result<Name> {
    let o = disk.home().look(&disk.file)?.context("the disk is gone")?;
    Ok(if matches!(o.kind, Kind::Link(_)) { disk.home().name().clone() } else { disk.file.clone() })
}

/// A replica's cached digest is of content that is no more.
fn no_digest(disk: &Disk, work: &mut Work<'_>) -> Result<Option<Step>> {
    match &disk.image {
        Some(image) => Ok(work.step_bury(&image.name().with_suffix(".md5sum")?, false)?),
        None => Ok(None),
    }
}
