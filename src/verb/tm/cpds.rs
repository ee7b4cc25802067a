//! `cpds`: what a disk is, or was in a snapshot, becomes the content of an image. *Again*: what is there is
//! kept aside. The disk is not in use, or a snapshot is meant; see `live` for what a running machine's disk is now.

use super::disk::Disk;
use super::op::Cpds;
use super::place::Spot;
use super::{DiskFormat, Tm, live};
use crate::data::Sparse;
use crate::image::{self, Format};
use crate::lock::Mode;
use crate::sys::Class;
use crate::verb::fill::{self, Conversion, disk_size};
use crate::verb::refuse;
use anyhow::Result;

pub(super) fn run(tm: &Tm<'_>, op: &Cpds) -> Result<()> {
    if let Some(machine) = op.live.as_ref().filter(|_| op.snapshot.is_none()) {
        return live::save(tm, op, machine);
    }
    if let Some(image) = &op.disk.image
        && Spot::image(tm.ctx, image)? == Spot::image(tm.ctx, &op.target)?
    {
        return is_there_already(tm, op);
    }
    let target = tm.open(Spot::image(tm.ctx, &op.target)?)?;
    if tm.recorded(&target.domain)? {
        return Ok(());
    }
    let _target = tm.lease(&target, Mode::Exclusive)?;
    let disk = Disk::open(tm, &op.disk, Mode::Shared)?;
    let snaps = disk.snaps(tm)?;
    let file = match op.snapshot {
        None => disk.file.clone(),
        Some(n) => snaps.there(n)?,
    };
    // Below what a machine writes to nothing changes.
    if op.live.is_none() {
        disk.home().not_in_use()?;
    }
    let path = disk.home().path(&file)?;
    let mut work = tm.begin(&target)?;
    let slab = if disk.format == DiskFormat::Qcow2 {
        let found = image::probe(&fill::open(&path)?)?;
        snaps.readable(&file, found.format)?;
        let how = Conversion { from: found.format, to: Format::Qcow2, size: disk_size(&found), sparse: true };
        fill::converted(tm.ctx, tm.job, &mut work, &path, how)?
    } else {
        fill::copy(tm.job, &mut work, &fill::open(&path)?, Sparse::Keep)?
    };
    work.flush(&slab)?;
    let step = work.step_to(&slab, target.name())?;
    tm.commit(&target, work, vec![step])
}

/// The disk's own image as the target: what the disk is now is in it already.
fn is_there_already(tm: &Tm<'_>, op: &Cpds) -> Result<()> {
    let disk = Disk::open(tm, &op.disk, Mode::Shared)?;
    if op.snapshot.is_none() && disk.image.is_some() {
        return Ok(());
    }
    let text = format!("{} is the image that the disk builds on; it is not replaced", op.target);
    Err(refuse(Class::Refused, text))
}
