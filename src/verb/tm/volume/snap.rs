//! Snapshots of a disk: thin volumes in its pool, made and taken back at no cost; and its size.

use super::super::op::Machine;
use super::Disk;
use crate::engine::{Access, Name, Place, Spec};
use crate::lock::{Mode, SlabLease};
use crate::sdm::remove;
use crate::sys::{Bytes, Class};
use crate::verb::group::name;
use crate::verb::refuse;
use anyhow::Result;

/// Leases of a disk whose volume lies in a pool.
fn leased(d: &Disk<'_>, idle: bool) -> Result<Vec<SlabLease>> {
    let leases = d.g.lease(&[(&d.v, Mode::Exclusive)])?;
    in_pool(d)?;
    if idle {
        d.g.not_in_use(&[name(&d.v)?])?;
    }
    Ok(leases)
}

/// Refuses a volume that lies in none.
pub(super) fn in_pool(d: &Disk<'_>) -> Result<()> {
    d.g.there(&d.v)?;
    if !d.g.is_thin(&d.v)? {
        let text = format!(
            "{} is a thick volume, which has no snapshots; thin are an image that is persistent when \
             it is made and a VM's own disk, unless LVM_THIN_ENABLE says NO then",
            d.v
        );
        return Err(refuse(Class::Unsupported, text));
    }
    Ok(())
}

fn called(d: &Disk<'_>, n: i64) -> Result<Name> {
    Ok(Name::parse(&d.v.snapshot(n))?)
}

/// Of a running machine, if that is given.
pub(super) fn create(d: &Disk<'_>, n: i64, machine: Option<&Machine>) -> Result<()> {
    if d.tm.recorded(&d.g.domain)? {
        return Ok(());
    }
    let leases = leased(d, machine.is_none())?;
    let snapshot = called(d, n)?;
    d.g.room(&leases, &d.v, d.g.there(&d.v)?.size)?;
    let mut work = d.g.begin(&d.v)?;
    let slab = match machine {
        Some(machine) => d.moment(&mut work, machine)?,
        None => work.slab(&Spec::Clone(name(&d.v)?))?,
    };
    let steps = vec![work.step_over(&slab, &snapshot, false)?];
    drop(slab);
    d.tm.ready()?;
    work.commit(&d.tm.request, "", steps)?;
    d.g.detach(&[snapshot]);
    Ok(())
}

/// The disk reads as its snapshot, under its own name; what it was is not kept.
pub(super) fn revert(d: &Disk<'_>, n: i64) -> Result<()> {
    let volume = name(&d.v)?;
    if !d.tm.recorded(&d.g.domain)? {
        let leases = leased(d, true)?;
        let snapshot = called(d, n)?;
        let missing = || refuse(Class::NotFound, format!("{} has no snapshot {n}; nothing was changed", d.v));
        let size = d.g.look(&snapshot)?.ok_or_else(missing)?.size;
        d.g.room(&leases, &d.v, size)?;
        let mut work = d.g.begin(&d.v)?;
        let slab = work.slab(&Spec::Clone(snapshot))?;
        let steps = vec![work.step_over(&slab, &volume, false)?];
        drop(slab);
        d.tm.ready()?;
        work.commit(&d.tm.request, "", steps)?;
    }
    // The machine will want it.
    d.g.attach(&volume, Access::Write)?;
    Ok(())
}

pub(super) fn delete(d: &Disk<'_>, n: i64) -> Result<()> {
    let _lease = d.g.lease(&[(&d.v, Mode::Exclusive)])?;
    let snapshot = called(d, n)?;
    d.g.not_in_use(std::slice::from_ref(&snapshot))?;
    d.tm.ready()?;
    remove::remove(&d.g.domain, d.tm.job, &[snapshot], &d.tm.request)?;
    Ok(())
}

/// By its whole size, never by a difference (D27).
pub(super) fn resize(d: &Disk<'_>, size_mib: u64) -> Result<()> {
    let leases = d.g.lease(&[(&d.v, Mode::Exclusive)])?;
    let (size, now) = (Bytes(size_mib.saturating_mul(1 << 20)), d.g.there(&d.v)?.size);
    if size <= now {
        return Ok(());
    }
    if !d.g.is_thin(&d.v)? {
        return d.g.grow(&leases, &d.v, size, || d.tm.ready());
    }
    d.tm.ready()?;
    d.g.room(&leases, &d.v, Bytes(size.0 - now.0))?;
    if let Some(plan) = &d.tm.job.jobs.plan {
        return Ok(plan.grows(&d.g.domain, &name(&d.v)?, size)?);
    }
    if let Some(lease) = leases.first() {
        d.g.domain.engine.resize(lease, &Place::Public(name(&d.v)?), size)?;
    }
    Ok(())
}
