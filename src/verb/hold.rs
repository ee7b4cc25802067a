//! Holding what a verb works on: leases, with what dead jobs left settled, and the question whether a
//! running machine has it open.

use super::refuse;
use crate::engine::{Access, Kind, Name, Place};
use crate::lock::{self, Mode, SlabLease};
use crate::sdm::{Domain, Job, settle};
use crate::sys::effect::bug;
use crate::sys::{self, Class};
use anyhow::{Context as _, Result};
use std::fs::File;
use std::time::Duration;

/// Leases on images or disks of a domain, and what dead jobs left on them settled.
pub(super) fn lease(domain: &Domain, job: &Job, wanted: &[(&Name, Mode)]) -> Result<Vec<SlabLease>> {
    lease_for(domain, job, wanted, None)
}

/// The same to make something of this source, of which dead jobs may have a part.
pub(super) fn lease_for(
    domain: &Domain,
    job: &Job,
    wanted: &[(&Name, Mode)],
    source: Option<&str>,
) -> Result<Vec<SlabLease>> {
    let mut touched = Vec::new();
    for (name, _) in wanted {
        touched.extend([(*name).clone(), name.with_suffix(".snap")?, name.with_suffix(".md5sum")?]);
    }
    lease_of(domain, job, wanted, &|target| touched.iter().any(|n| target.is_within(n)), source)
}

/// The same; `touched` tells the names that lie under these leases.
pub(super) fn lease_of(
    domain: &Domain,
    job: &Job,
    wanted: &[(&Name, Mode)],
    touched: &dyn Fn(&Name) -> bool,
    source: Option<&str>,
) -> Result<Vec<SlabLease>> {
    let names: Vec<(&str, Mode)> = wanted.iter().map(|(n, m)| (n.as_str(), *m)).collect();
    let names = if bug("skip-slab-lease") { Vec::new() } else { names };
    let take = |wait| lock::slab_leases(&*domain.locks, &names, wait, job.cancel());
    let leases = match take(Duration::ZERO) {
        Err(e) if e.class() == Class::Busy && !job.jobs.waits.lock.is_zero() => {
            let before = job.info().phase;
            job.follow(lock::WAITS, 0, None);
            let leases = take(job.jobs.waits.lock);
            job.follow(&before, 0, None);
            leases
        }
        leases => leases,
    };
    let leases = leases.map_err(|e| match wanted.first() {
        Some((name, _)) => settle::holder_of(domain, name, e),
        None => e.into(),
    })?;
    settle::settle_all(domain, touched, source, job)?;
    Ok(leases)
}

/// The first of these objects that a running qemu has open, links not followed.
pub(super) fn in_use<'a>(domain: &Domain, names: &'a [Name]) -> Result<Option<&'a Name>> {
    held(domain, names, sys::qemu_holds)
}

fn held<'a>(
    domain: &Domain,
    names: &'a [Name],
    holds: fn(&File) -> std::io::Result<bool>,
) -> Result<Option<&'a Name>> {
    for name in names {
        let at = Place::Public(name.clone());
        if domain.engine.look(&at)?.is_none_or(|o| o.kind != Kind::File) {
            continue;
        }
        let path = domain.engine.attach(&at, Access::Read)?.path;
        let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        if holds(&file).with_context(|| format!("looking for users of {name}"))? {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Refuses when a running qemu has one of these objects open.
pub(super) fn not_in_use(domain: &Domain, names: &[Name]) -> Result<()> {
    let Some(name) = in_use(domain, names)? else { return Ok(()) };
    let text = format!("{name} is open in a running VM; power it off or detach the image first");
    Err(refuse(Class::InUse, text))
}

/// Refuses when a running qemu may write to one of these objects.
pub(super) fn not_written(domain: &Domain, names: &[Name]) -> Result<()> {
    let Some(name) = held(domain, names, sys::qemu_writes)? else { return Ok(()) };
    Err(refuse(Class::InUse, format!("a running VM writes to {name}, which is on this host only")))
}

/// An image or a disk and what lies in its `.snap`.
pub(super) fn with_snapshots(domain: &Domain, base: &Name) -> Result<Vec<Name>> {
    let mut out = vec![base.clone()];
    for o in domain.engine.list(Some(&base.with_suffix(".snap")?))? {
        if let Place::Public(name) = o.place {
            out.push(name);
        }
    }
    Ok(out)
}
