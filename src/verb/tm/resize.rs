//! `resize` of a disk that no machine has open. *State*: it only grows, in place; a crash at any byte
//! leaves the same content, and the same call completes it.

use super::disk::Disk;
use super::op::Resize;
use super::{DiskFormat, Tm};
use crate::engine::Place;
use crate::image::{self, Format};
use crate::lock::Mode;
use crate::sys::{Bytes, Class, fs};
use crate::verb::fill::{self, disk_size};
use crate::verb::refuse;
use crate::verb::snaps::children;
use anyhow::{Context as _, Result};
use std::fs::File;

pub(super) fn run(tm: &Tm<'_>, op: &Resize) -> Result<()> {
    let size = Bytes::mib(op.size_mib);
    let size =
        size.ok_or_else(|| refuse(Class::Usage, format!("a disk of {} MiB is not possible", op.size_mib)))?;
    let disk = Disk::open(tm, &op.disk, Mode::Exclusive)?;
    let home = disk.home();
    let path = disk.path()?;
    let file = File::options().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let found = match disk.format {
        DiskFormat::Raw => image::probe_as(&file, Format::Raw)?,
        DiskFormat::Qcow2 => image::probe_as(&file, Format::Qcow2)?,
        DiskFormat::Other => image::probe(&file)?,
    };
    let now = disk_size(&found);
    if size < now {
        let text = format!("{} has {now}; disks only grow", op.disk.path);
        return Err(refuse(Class::Usage, text));
    }
    if size == now {
        return Ok(());
    }
    let limit = fill::admit(tm.ctx).max_size;
    if size > limit {
        let text = format!("{size} is more than `image.max_size` ({limit})");
        return Err(refuse(Class::Refused, text));
    }
    home.not_in_use()?;
    disk.snaps(tm)?.readable(&disk.file, found.format)?;
    tm.ready()?;
    if disk.layered() {
        no_leftovers(tm, &disk)?;
    }
    // While it lives, others can see who is at it; nothing is staged.
    let work = tm.begin(home)?;
    if found.format.is_raw() && op.sparse {
        home.domain.engine.resize(disk.lease()?, &Place::Public(disk.file.clone()), size)?;
    } else {
        let keep = work.keep_held();
        fill::grow(tm.ctx, tm.job, &keep, (&file, &path, found.format), size, op.sparse)?;
        fs::sync_file(&file, &path).context("flushing the disk")?;
    }
    Ok(())
}

/// A layer that an interrupted snapshot left over the disk's would go on showing the old size, and may be
/// taken for the active one later.
fn no_leftovers(tm: &Tm<'_>, disk: &Disk) -> Result<()> {
    let layers = disk.snaps(tm)?.layers()?;
    let left = children(&layers, &disk.file);
    if left.is_empty() {
        return Ok(());
    }
    let mut work = tm.begin(disk.home())?;
    let mut steps = Vec::new();
    for layer in left {
        steps.extend(work.step_bury(&layer.name, true)?);
    }
    tm.commit(disk.home(), work, steps)
}
