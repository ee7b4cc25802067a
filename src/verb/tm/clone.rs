//! `clone`: a disk that is a copy of an image, or a qcow2 layer over it. *Again*: a disk that is there is
//! kept aside. Grown before it is visible, so that nobody sees a disk of the wrong size (D5); other
//! formats are copied as they are (E11). Contract 3.0.4, 3.1, 3.2.

use super::op::Clone;
use super::{At, DiskFormat, Tm, ln, marker};
use crate::data::Sparse;
use crate::engine::{Kind, Name};
use crate::image::{self, Format, Probe};
use crate::sdm::Work;
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sys::fs::{self, Dir};
use crate::sys::{Bytes, Class};
use crate::verb::fill::{self, Conversion, Own, disk_size};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::path::PathBuf;

pub(super) fn run(tm: &Tm<'_>, op: &Clone) -> Result<()> {
    let Some((disk, image)) = tm.take_image(&op.disk, &op.image)? else { return Ok(()) };
    let (at, image) = (&disk.at, &image.at);
    let grow = wanted(op.size_mib, op.original_mib)?;
    let mut work = tm.begin(at)?;
    let mut steps = match op.format {
        DiskFormat::Qcow2 => layered(tm, op, image, at, &mut work, grow)?,
        DiskFormat::Raw | DiskFormat::Other => copied(tm, op, image, at, &mut work, grow)?,
    };
    steps.extend(marker::steps(at, &mut work, &op.marker)?);
    tm.commit(at, work, steps)
}

/// The size to grow to, where one is asked for.
pub(super) fn wanted(size_mib: Option<u64>, original_mib: Option<u64>) -> Result<Option<Bytes>> {
    let Some(size) = size_mib.filter(|s| original_mib.is_some_and(|o| *s > o)) else {
        return Ok(None);
    };
    let bytes = Bytes::mib(size);
    Ok(Some(bytes.ok_or_else(|| refuse(Class::Usage, format!("a disk of {size} MiB is not possible")))?))
}

/// A file of the image's bytes. What was a chain before goes after the disk is the new one.
fn copied(
    tm: &Tm<'_>,
    op: &Clone,
    image: &At,
    at: &At,
    work: &mut Work<'_>,
    grow: Option<Bytes>,
) -> Result<Vec<Step>> {
    let source = open(image, &ln::resolved(image)?)?;
    let sparse = if op.sparse { Sparse::Keep } else { Sparse::Full };
    let slab = fill::copy(tm.job, work, &source, sparse)?;
    if let Some(size) = grow {
        let file = slab.file.as_ref().context("a staged file has no file")?;
        let format = if op.format == DiskFormat::Raw { Format::Raw } else { image::probe(file)?.format };
        fill::grow(tm.ctx, tm.job, &work.keep_held(), (file, &slab.path, format), size, op.sparse)?;
    }
    work.flush(&slab)?;
    let mut steps = vec![work.step_to(&slab, at.name())?];
    steps.extend(work.step_bury(&at.snap()?, true)?);
    Ok(steps)
}

/// The snapshot layout with one layer. The directory is one object; then the link decides what the disk
/// is. Where there was a disk before that led into a directory of the same name, it leads nowhere between
/// the two steps, and whoever settles takes the second.
fn layered(
    tm: &Tm<'_>,
    op: &Clone,
    image: &At,
    at: &At,
    work: &mut Work<'_>,
    grow: Option<Bytes>,
) -> Result<Vec<Step>> {
    let (from, found) = original(tm, image)?;
    let size = grow.map_or(disk_size(&found), |g| g.max(disk_size(&found)));
    let snap = at.snap()?;
    let dir = new_layout(work, snap.last())?;
    let path = dir.path.join("0");
    // Open before anybody else writes to it: its flush is the proof.
    let file = Dir::open(&dir.path)?.create(OsStr::new("0"), 0o666, false)?;
    let keep = work.keep_held();
    if op.standalone {
        let size_now = disk_size(&found);
        let how = Conversion { from: found.format, to: Format::Qcow2, size: size_now, sparse: op.sparse };
        fill::convert(tm.ctx, tm.job, &keep, (&from, &path), how)?;
        if size > size_now {
            fill::grow(tm.ctx, tm.job, &keep, (&file, &path, Format::Qcow2), size, op.sparse)?;
        }
    } else {
        let backing = Some((from.as_os_str(), found.format));
        tm.ctx.qemu(tm.job, &keep).create(&path, Format::Qcow2, size, backing, &[])?;
        fill::made(&path, Format::Qcow2, size)?;
    }
    fs::sync_file(&file, &path).context("flushing the new layer")?;
    work.flush(&dir)?;
    let link = work.link(&format!("{}/0", snap.last()))?;
    work.flush(&link)?;
    Ok(vec![work.step_to(&dir, &snap)?, work.step_to(&link, at.name())?])
}

/// A staged directory of layers with its link to itself, by which names relative to the disk resolve.
pub(super) fn new_layout(work: &mut Work<'_>, name: &str) -> Result<Slab> {
    let dir = work.dir()?;
    Dir::open(&dir.path)?.symlink(OsStr::new("."), OsStr::new(name)).context("making the self link")?;
    Ok(dir)
}

/// A file of an image's datastore, opened.
pub(super) fn open(image: &At, name: &Name) -> Result<File> {
    match image.look(name)?.map(|o| o.kind) {
        Some(Kind::File) => fill::open(&image.path(name)?),
        None => Err(refuse(Class::NotFound, format!("image {} does not exist", image.spot.text()))),
        Some(_) => {
            let text = format!("{} is not a file; it cannot be cloned", image.spot.text());
            Err(refuse(Class::Unsupported, text))
        }
    }
}

/// What the image is now, as a path that may be recorded, and its header.
fn original(tm: &Tm<'_>, image: &At) -> Result<(PathBuf, Probe)> {
    let layer = ln::active_layer(tm, image)?;
    let path = image.spot.dir.join(layer.as_ref().unwrap_or(image.name()).as_str());
    let found = fill::header(&path)?;
    fill::known_chain(tm.ctx, &[Own::named(&image.spot.path())], &path, &found)?;
    Ok((path, found))
}
