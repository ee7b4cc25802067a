//! `ln.ssh` and `mvds.ssh`: a persistent disk whose VM works on a copy of its own, in a system datastore that
//! is local to its host, while the image's datastore is shared. The copy takes the image's snapshots along,
//! and brings them back. Nothing is moved over a network here. Contract 3.2.

use super::disk::Disk;
use super::ln::{layers_of, resolved};
use super::op::{Pull, Store};
use super::place::Spot;
use super::{At, DiskFormat, Tm, clone, marker};
use crate::data::Sparse;
use crate::engine::{Kind, Name};
use crate::lock::Mode;
use crate::sdm::Work;
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sys::Class;
use crate::verb::snaps::Snaps;
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};

/// *Again*: a disk that is there is kept aside.
pub(super) fn pull(tm: &Tm<'_>, op: &Pull) -> Result<()> {
    let Some((disk, image)) = tm.take_image(&op.disk, &op.image)? else { return Ok(()) };
    let (at, image) = (&disk.at, &image.at);
    let snaps = layers_of(tm, image)?;
    let mut work = tm.begin(at)?;
    let from = if op.format == DiskFormat::Qcow2 { snaps.active(&snaps.layers()?)? } else { None };
    let mut steps = if op.format == DiskFormat::Qcow2 {
        chain(tm, &snaps, (image, from.as_ref()), at, &mut work)?
    } else {
        let source = clone::open(image, &resolved(image)?)?;
        copies(tm, &snaps, &source, at, &mut work)?
    };
    steps.extend(marker::steps(at, &mut work, &op.marker)?);
    tm.commit(at, work, steps)
}

/// *Again*: what the image was is kept aside. The disk stays; it is deleted by a call of its own.
pub(super) fn store(tm: &Tm<'_>, op: &Store) -> Result<()> {
    let image = tm.open(Spot::image(tm.ctx, &op.target)?)?;
    if tm.recorded(&image.domain)? {
        return Ok(());
    }
    let _image = tm.lease(&image, Mode::Exclusive)?;
    image.not_in_use()?;
    // The lease on the image is ours already.
    let disk = Disk::private(tm, &op.disk)?;
    disk.at.not_in_use()?;
    let snaps = disk.snaps(tm)?;
    let mut work = tm.begin(&image)?;
    let mut steps = if disk.layered() {
        chain(tm, &snaps, (&disk.at, Some(&disk.file)), &image, &mut work)?
    } else {
        copies(tm, &snaps, &fill::open(&disk.path()?)?, &image, &mut work)?
    };
    steps.extend(work.step_bury(&image.name().with_suffix(".md5sum")?, false)?);
    tm.commit(&image, work, steps)
}

/// Whole copies, of the disk and of its snapshots.
fn copies(
    tm: &Tm<'_>,
    snaps: &Snaps<'_>,
    source: &std::fs::File,
    to: &At,
    work: &mut Work<'_>,
) -> Result<Vec<Step>> {
    let slab = fill::copy(tm.job, work, source, Sparse::Keep)?;
    work.flush(&slab)?;
    let mut steps = vec![work.step_to(&slab, to.name())?];
    let files = snaps.objects()?;
    if files.is_empty() {
        steps.extend(work.step_bury(&to.snap()?, true)?);
        return Ok(steps);
    }
    let dir = work.dir()?;
    for (n, name, _) in files {
        snaps.copy_into(&name, &dir.path, &n.to_string())?;
    }
    work.flush(&dir)?;
    // The snapshots first: without the disk they are harmless, a disk without them has lost them.
    steps.insert(0, work.step_to(&dir, &to.snap()?)?);
    Ok(steps)
}

/// A directory of layers that name each other anew, and the link to the active one.
fn chain(
    tm: &Tm<'_>,
    snaps: &Snaps<'_>,
    (from, active): (&At, Option<&Name>),
    to: &At,
    work: &mut Work<'_>,
) -> Result<Vec<Step>> {
    let snap = to.snap()?;
    let dir: Slab = clone::new_layout(work, snap.last())?;
    let active = if let Some(active) = active {
        let files = to.spot.dir.join(snap.as_str());
        snaps.copy_layers(work, &dir.path, snap.last().as_ref(), &files)?;
        active.last()
    } else {
        whole(tm, from)?;
        snaps.copy_into(from.name(), &dir.path, "0")?;
        "0"
    };
    work.flush(&dir)?;
    let link = work.link(&format!("{}/{active}", snap.last()))?;
    work.flush(&link)?;
    Ok(vec![work.step_to(&dir, &snap)?, work.step_to(&link, to.name())?])
}

/// An image without layers: one file that needs no other.
fn whole(tm: &Tm<'_>, image: &At) -> Result<()> {
    let o = image.look(image.name())?.context("the image is gone")?;
    if o.kind != Kind::File {
        return Err(refuse(Class::Unsupported, format!("{} is not a file", image.spot.text())));
    }
    let path = image.path(image.name())?;
    fill::known_chain(tm.ctx, &[fill::Own::named(&image.spot.path())], &path, &fill::header(&path)?)
}
