//! Transfer-manager verbs on a file domain, the half that runs where the storage is. `Op` says what to
//! do, `perform` does it: leases first (the image's domain before the VM's), what dead jobs left settled,
//! everything filled and flushed, then the steps. Layouts are those of contract 3.0.4, to the letter:
//! hypervisor drivers and existing VMs depend on them.

mod bridge;
mod clone;
mod cpds;
mod delete;
mod disk;
mod flow;
pub mod front;
pub mod live;
mod ln;
mod locks;
mod make;
mod marker;
mod meet;
mod monitor;
mod mv;
mod mvds;
pub mod op;
mod pass;
mod place;
mod private;
mod put;
mod receive;
mod resize;
mod retire;
mod send;
pub mod serve;
mod snap;
#[cfg(test)]
mod tests;
mod tree;
mod turn;
pub mod volume;

pub use op::{Answer, DiskFormat, Freeze, Machine, Marker, Op, perform};
pub use serve::Server;

use super::{Ctx, hold};
use crate::engine::{Access, EngineError, Kind, Name, Object, Place};
use crate::lock::{Mode, SlabLease};
use crate::sdm::record::{Step, request_digest};
use crate::sdm::{Domain, Job, SdmError, Work, settle};
use anyhow::{Context as _, Result};
use place::Spot;
use std::cell::Cell;
use std::path::PathBuf;

/// One operation at work.
struct Tm<'a> {
    ctx: &'a Ctx<'a>,
    job: &'a Job,
    /// Digest of what makes this request this request.
    request: String,
    asked: Cell<bool>,
}

/// A name in a domain that is open.
#[derive(Debug)]
struct At {
    domain: Domain,
    spot: Spot,
}

/// One that others keep away from.
struct Leased {
    at: At,
    _lease: Vec<SlabLease>,
}

impl At {
    fn name(&self) -> &Name {
        &self.spot.name
    }

    fn look(&self, name: &Name) -> Result<Option<Object>> {
        Ok(self.domain.engine.look(&Place::Public(name.clone()))?)
    }

    /// Where tools find a public object.
    fn path(&self, name: &Name) -> Result<PathBuf> {
        Ok(self.domain.engine.attach(&Place::Public(name.clone()), Access::Read)?.path)
    }

    /// The directory of the snapshots.
    fn snap(&self) -> Result<Name> {
        Ok(self.name().with_suffix(".snap")?)
    }

    /// The text of the link that has this name.
    fn link(&self) -> Result<Option<String>> {
        Ok(match self.look(self.name())?.map(|o| o.kind) {
            Some(Kind::Link(to)) => Some(to),
            _ => None,
        })
    }

    /// Refuses when a running qemu has the disk's or image's own files open. What a layer builds on is
    /// shared with other machines and is not asked.
    fn not_in_use(&self) -> Result<()> {
        hold::not_in_use(&self.domain, &hold::with_snapshots(&self.domain, self.name())?)
    }
}

impl<'a> Tm<'a> {
    fn new(ctx: &'a Ctx<'a>, job: &'a Job, op: &Op) -> Result<Tm<'a>> {
        let text = serde_json::to_string(op).context("writing down the request")?;
        Ok(Tm { ctx, job, request: request_digest(&["tm", &text]), asked: Cell::new(false) })
    }

    fn open(&self, spot: Spot) -> Result<At> {
        let domain =
            (self.ctx.open)(&spot.dir, spot.ds).with_context(|| format!("opening datastore {}", spot.ds))?;
        Ok(At { domain, spot })
    }

    fn lease(&self, at: &At, mode: Mode) -> Result<Vec<SlabLease>> {
        hold::lease(&at.domain, self.job, &[(at.name(), mode)])
    }

    /// Whether this very request was served before, if the caller named it.
    fn recorded(&self, domain: &Domain) -> Result<bool> {
        if !self.ctx.repeatable {
            return Ok(false);
        }
        Ok(settle::recorded(domain, self.job)?.is_some_and(|c| c.request == self.request))
    }

    /// A disk that is to be, and the image that it comes from, each with its lease. `None`: this very request
    /// was served before.
    fn take_image(&self, disk: &str, image: &str) -> Result<Option<(Leased, Leased)>> {
        let disk = self.open(Spot::disk(self.ctx, disk)?)?;
        if self.recorded(&disk.domain)? {
            return Ok(None);
        }
        let image = self.open(Spot::image(self.ctx, image)?)?;
        let read = self.lease(&image, Mode::Shared)?;
        let write = self.lease(&disk, Mode::Exclusive)?;
        disk.not_in_use()?;
        Ok(Some((Leased { at: disk, _lease: write }, Leased { at: image, _lease: read })))
    }

    /// Starts work on an image or disk and its snapshots. The directory of the VM is made when missing.
    fn begin<'w>(&'w self, at: &'w At) -> Result<Work<'w>> {
        let work = Work::begin(&at.domain, self.job, &[at.name().clone(), at.snap()?])?;
        Tm::housed(at, work)
    }

    /// The same for what comes from this source, with what an earlier attempt had of it.
    fn resume<'w>(&'w self, at: &'w At, source: &str) -> Result<(Work<'w>, Vec<Object>)> {
        let (work, had) = Work::resume(&at.domain, self.job, &[at.name().clone(), at.snap()?], source)?;
        Ok((Tm::housed(at, work)?, had))
    }

    fn housed<'w>(at: &At, mut work: Work<'w>) -> Result<Work<'w>> {
        if let Some(vm) = at.spot.parent() {
            work.parent(&vm)?;
        }
        Ok(work)
    }

    /// Asks, the first time, whether what is filled and flushed may become visible.
    fn ready(&self) -> Result<()> {
        if !self.asked.replace(true) {
            (self.ctx.ready)()?;
        }
        Ok(())
    }

    /// Makes it visible. A parent that is gone was removed, and whoever removed it decided against us.
    fn commit(&self, at: &At, work: Work<'_>, steps: Vec<Step>) -> Result<()> {
        self.ready()?;
        let parent = at.spot.parent();
        match work.commit(&self.request, "", steps) {
            Err(SdmError::Engine(EngineError::Absent(_)))
                if parent.as_ref().is_some_and(|p| matches!(at.look(p), Ok(None))) =>
            {
                Err(SdmError::Fenced(self.job.id).into())
            }
            r => Ok(r?),
        }
    }
}
