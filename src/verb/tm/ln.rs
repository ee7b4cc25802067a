//! `ln`: a disk that is the image itself. *State*: the right link is left as it is. For qcow2 the image
//! gets its snapshot layout first, which changes nothing that a reader sees; then the link decides. Which
//! layer is the active one is told from the chain (R8), the format from OpenNebula's record (E10).

use super::clone::new_layout;
use super::op::Link;
use super::place::Spot;
use super::{At, DiskFormat, Tm};
use crate::engine::{Kind, Name};
use crate::lock::Mode;
use crate::sdm::Work;
use crate::sys::Class;
use crate::sys::fs::Dir;
use crate::verb::fill::Own;
use crate::verb::refuse;
use crate::verb::snaps::Snaps;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;

pub(super) fn run(tm: &Tm<'_>, op: &Link) -> Result<()> {
    let at = tm.open(Spot::disk(tm.ctx, &op.disk)?)?;
    let image = tm.open(Spot::image(tm.ctx, &op.image)?)?;
    let _image = tm.lease(&image, Mode::Exclusive)?;
    let _disk = tm.lease(&at, Mode::Exclusive)?;
    image.look(&resolved(&image)?)?.ok_or_else(|| not_there(&image))?;
    let to = match op.format {
        DiskFormat::Raw | DiskFormat::Other => image.spot.text(),
        DiskFormat::Qcow2 => {
            let layer = match active_layer(tm, &image)? {
                Some(layer) => layer,
                None => make_layout(tm, &image)?,
            };
            image.spot.dir.join(layer.as_str()).to_string_lossy().into_owned()
        }
    };
    let stale = at.look(&at.snap()?)?.is_some();
    let right = at.link()?.as_deref() == Some(to.as_str());
    if right && !stale {
        return Ok(());
    }
    at.not_in_use()?;
    let mut work = tm.begin(&at)?;
    let mut steps = Vec::new();
    if !right {
        let link = work.link(&to)?;
        work.flush(&link)?;
        steps.push(work.step_to(&link, at.name())?);
    }
    // What a copy had of snapshots has nothing to do with the image.
    steps.extend(work.step_bury(&at.snap()?, true)?);
    tm.commit(&at, work, steps)
}

fn not_there(image: &At) -> anyhow::Error {
    refuse(Class::NotFound, format!("image {} does not exist", image.spot.text()))
}

/// The file of an image: its name, or what the name leads to in the directory of its snapshots.
pub(super) fn resolved(image: &At) -> Result<Name> {
    let Some(to) = image.link()? else { return Ok(image.name().clone()) };
    let snap = image.snap()?;
    if let Some(layer) = to.strip_prefix(snap.as_str()).and_then(|rest| rest.strip_prefix('/')) {
        return Ok(snap.child(layer)?);
    }
    let text = format!("{} points to {to}, outside its snapshots; nothing was changed", image.name());
    Err(refuse(Class::Refused, text))
}

/// The layers of an image.
pub(super) fn layers_of<'s>(tm: &'s Tm<'_>, image: &'s At) -> Result<Snaps<'s>> {
    let dir = image.snap()?;
    let called = image.spot.dir.join(dir.as_str());
    let own = vec![Own::named(&image.spot.path())];
    Ok(Snaps { ctx: tm.ctx, job: tm.job, domain: &image.domain, dir, called, own })
}

/// The layer that is the image's content now; `None` when it has no layers.
pub(super) fn active_layer(tm: &Tm<'_>, image: &At) -> Result<Option<Name>> {
    let snaps = layers_of(tm, image)?;
    snaps.active(&snaps.layers()?)
}

/// Makes `<image>.snap` with the self link and layer 0, a link to the image. Answers that layer.
fn make_layout(tm: &Tm<'_>, image: &At) -> Result<Name> {
    let snap = image.snap()?;
    let zero = snap.child("0")?;
    let mut work = Work::begin(&image.domain, tm.job, &[image.name().clone(), snap.clone()])?;
    let steps = match image.look(&snap)?.map(|o| o.kind) {
        None => {
            let dir = new_layout(&mut work, snap.last())?;
            let to = image.spot.path();
            Dir::open(&dir.path)?.symlink(to.as_os_str(), OsStr::new("0")).context("making layer 0")?;
            work.flush(&dir)?;
            vec![work.step_to(&dir, &snap)?]
        }
        // Made, and not filled, by somebody who was interrupted.
        Some(Kind::Dir) => {
            let mut steps = Vec::new();
            for (name, to) in [(snap.child(snap.last())?, ".".to_owned()), (zero.clone(), image.spot.text())]
            {
                if image.look(&name)?.is_none() {
                    let link = work.link(&to)?;
                    work.flush(&link)?;
                    steps.push(work.step_to(&link, &name)?);
                }
            }
            steps
        }
        Some(_) => {
            let text = format!("{snap} is not a directory; nothing was changed");
            return Err(refuse(Class::Integrity, text));
        }
    };
    tm.commit(image, work, steps)?;
    Ok(zero)
}
