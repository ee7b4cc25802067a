//! How a disk's volume comes to be, and how its content is saved.

use super::super::op::Machine;
use super::{Disk, snap};
use crate::engine::Name;
use crate::lock::Mode;
use crate::one::Volume;
use crate::sdm::Work;
use crate::sys::{Bytes, Class};
use crate::verb::blank::Blank;
use crate::verb::group::{Group, Staged, lease_two, name};
use crate::verb::refuse;
use anyhow::Result;

fn mib(n: u64) -> Result<Bytes> {
    Bytes::mib(n).ok_or_else(|| refuse(Class::Usage, format!("a disk of {n} MiB is not possible")))
}

pub(super) fn clone(d: &Disk<'_>, image: &str, size_mib: Option<u64>, thin: bool) -> Result<()> {
    if d.tm.recorded(&d.at.domain)? {
        return d.show();
    }
    let image = Volume::parse_of(d.v.ds, image)?;
    let volumes = d.g.lease(&[(&image, Mode::Shared), (&d.v, Mode::Exclusive)])?;
    let _disk = d.tm.lease(&d.at, Mode::Exclusive)?;
    d.g.not_in_use(&d.g.parts(&d.v)?)?;
    let size = d.g.there(&image)?.size.max(mib(size_mib.unwrap_or(0))?);
    let mut work = d.g.begin(&d.v)?;
    let staged = d.g.stage(&mut work, &volumes, &d.v, size, thin)?;
    d.g.pour(&name(&image)?, &staged.slab)?;
    publish(d, work, staged)
}

pub(super) fn link(d: &Disk<'_>) -> Result<()> {
    let _volume = d.g.lease(&[(&d.v, Mode::Exclusive)])?;
    let _disk = d.tm.lease(&d.at, Mode::Exclusive)?;
    d.g.there(&d.v)?;
    d.show()
}

pub(super) fn blank(
    d: &Disk<'_>,
    size_mib: u64,
    (format, fs): (&str, Option<&str>),
    thin: bool,
) -> Result<()> {
    // A volume has no format of its own.
    let plan = Blank::plan(d.tm.ctx, if format == "swap" { format } else { "raw" }, fs)?;
    if d.tm.recorded(&d.at.domain)? {
        return d.show();
    }
    let volumes = d.g.lease(&[(&d.v, Mode::Exclusive)])?;
    let _disk = d.tm.lease(&d.at, Mode::Exclusive)?;
    d.g.not_in_use(&d.g.parts(&d.v)?)?;
    let mut work = d.g.begin(&d.v)?;
    let staged = d.g.stage(&mut work, &volumes, &d.v, mib(size_mib)?, thin)?;
    plan.fill(d.tm.ctx, d.tm.job, &work, &staged.slab)?;
    publish(d, work, staged)
}

/// The volume has its name, and then the link leads to it. A disk that was there before is not kept: nobody
/// would see that it takes space in the pool.
fn publish(d: &Disk<'_>, mut work: Work<'_>, staged: Staged) -> Result<()> {
    let steps = d.g.steps(&mut work, staged, &d.v)?;
    d.tm.ready()?;
    work.commit(&d.tm.request, "", steps)?;
    d.show()
}

/// The target is the name that `mkfs` gave for `save_as`. It becomes a thick volume: whether the image will be
/// persistent is not known by now.
pub(super) fn save(d: &Disk<'_>, snapshot: Option<i64>, target: &str) -> Result<()> {
    let target = Volume::parse(target)?;
    let other = if target.ds == d.v.ds { None } else { Some(Group::open(d.tm.ctx, d.tm.job, target.ds)?) };
    let g = other.as_ref().unwrap_or(&d.g);
    if d.tm.recorded(&g.domain)? {
        return Ok(());
    }
    let _volumes = lease_two([(g, &target, Mode::Exclusive), (&d.g, &d.v, Mode::Shared)])?;
    let source = match snapshot {
        None => name(&d.v)?,
        Some(n) => Name::parse(&d.v.snapshot(n))?,
    };
    let missing = || refuse(Class::NotFound, format!("{source} of {} does not exist", d.v));
    let size = d.g.look(&source)?.ok_or_else(missing)?.size;
    if snapshot.is_none() {
        d.g.not_in_use(std::slice::from_ref(&source))?;
    }
    let mut work = g.begin(&target)?;
    let staged = Group::thick(&mut work, size)?;
    d.g.pour(&source, &staged.slab)?;
    saved(d, g, work, staged, &target)
}

/// The same of a disk that its machine writes to. The moment is a thin snapshot that nobody else sees, which goes
/// when it is copied.
pub(super) fn save_live(d: &Disk<'_>, target: &str, machine: &Machine) -> Result<()> {
    let target = Volume::parse(target)?;
    let other = if target.ds == d.v.ds { None } else { Some(Group::open(d.tm.ctx, d.tm.job, target.ds)?) };
    let g = other.as_ref().unwrap_or(&d.g);
    if d.tm.recorded(&g.domain)? {
        return Ok(());
    }
    let volumes = lease_two([(g, &target, Mode::Exclusive), (&d.g, &d.v, Mode::Exclusive)])?;
    snap::in_pool(d)?;
    let size = d.g.there(&d.v)?.size;
    // The moment takes room in the disk's pool: whoever counts what is in there must find it gone. In another group
    // it is staged there.
    let mut aside = if other.is_some() { Some(d.g.begin(&d.v)?) } else { None };
    let mut work = if other.is_some() { g.begin(&target)? } else { g.begin_on(&[&target, &d.v])? };
    // Zeroed before the machine stands still, which may take long.
    let staged = Group::thick(&mut work, size)?;
    d.g.room(&volumes, &d.v, size)?;
    let moment = d.moment(aside.as_mut().unwrap_or(&mut work), machine)?;
    d.g.pour_moment(&name(&d.v)?, moment, &staged.slab)?;
    saved(d, g, work, staged, &target)
}

fn saved(d: &Disk<'_>, g: &Group<'_>, mut work: Work<'_>, staged: Staged, target: &Volume) -> Result<()> {
    let steps = g.steps(&mut work, staged, target)?;
    d.tm.ready()?;
    work.commit(&d.tm.request, "", steps)?;
    g.detach(&[name(target)?]);
    Ok(())
}
