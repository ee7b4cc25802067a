//! `delete`: removes a disk with its snapshots, or a VM's directory. *State*: what is gone is no error. It
//! outranks a job that is making what goes (contract 1.6: a cancelled `clone` runs on beside it). A
//! persistent disk is a link, and only the link goes.

use super::op::Delete;
use super::place::Spot;
use super::{At, Tm};
use crate::engine::{Kind, Name, Place};
use crate::lock::Mode;
use crate::sdm::remove;
use crate::verb::hold;
use anyhow::Result;
use std::time::{Duration, Instant};

pub(super) fn run(tm: &Tm<'_>, op: &Delete) -> Result<()> {
    let spot = Spot::disk(tm.ctx, &op.path).or_else(|_| Spot::vm(tm.ctx, &op.path))?;
    let at = tm.open(spot)?;
    let is_vm = at.spot.parent().is_none();
    let names = if is_vm { vec![at.name().clone()] } else { vec![at.name().clone(), at.snap()?] };
    // Else the leases are with a job that can publish nothing any more, and may never end.
    let ended = remove::outrank(&at.domain, tm.job, &names)?;
    let held = if is_vm { disks(&at)? } else { vec![at.name().clone()] };
    let wanted: Vec<(&Name, Mode)> = held.iter().map(|n| (n, Mode::Exclusive)).collect();
    let _leases = if ended { hold::lease(&at.domain, tm.job, &wanted)? } else { Vec::new() };
    let mut files = Vec::new();
    for name in &held {
        files.extend(hold::with_snapshots(&at.domain, name)?);
    }
    unused(tm, &at, &files)?;
    tm.ready()?;
    remove::remove(&at.domain, tm.job, &names, &tm.request)?;
    Ok(())
}

/// What lies directly in a VM's directory, companions left out.
pub(super) fn disks(at: &At) -> Result<Vec<Name>> {
    let mut out = Vec::new();
    for o in at.domain.engine.list(Some(at.name()))? {
        if let Place::Public(name) = o.place
            && o.kind != Kind::Dir
        {
            out.push(name);
        }
    }
    Ok(out)
}

/// A machine that was just told to stop may need a moment to let go.
fn unused(tm: &Tm<'_>, at: &At, files: &[Name]) -> Result<()> {
    let end = Instant::now() + tm.job.jobs.waits.grace;
    while Instant::now() < end && hold::in_use(&at.domain, files)?.is_some() {
        if !tm.job.cancel().wait(Duration::from_millis(20)) {
            break;
        }
    }
    hold::not_in_use(&at.domain, files)
}
