//! Datastore verbs on a volume group (contract 2.5). An image is a volume: thin in a pool of its own when
//! it is persistent, which is what snapshots need, thick otherwise and where the datastore wants no pools; which of the two it is, is told by what
//! is there (D25). All of an image's volumes are one slab, and a verb on it is one commit: whatever is cut
//! off leaves no volume behind, and nothing is removed by its name alone (D23, L1).

mod fetch;
mod snap;

pub(super) use fetch::{clone, cp};
pub(super) use snap::{delete as snap_delete, flatten as snap_flatten, revert as snap_revert};

use super::export::answer;
use super::{Ctx, monitor as plain};
use crate::data;
use crate::engine::Usage;
use crate::image::Format;
use crate::lock::{Mode, SlabLease};
use crate::one::{DsRequest, Volume};
use crate::sdm::event::What;
use crate::sdm::trend::{SOON, Trend};
use crate::sdm::{Job, Work, remove, settle};
use crate::sys::{Bytes, Class};
use crate::verb::blank::Blank;
use crate::verb::group::{Group, Staged, name, pool};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::fs::File;

/// One request at work.
struct Block<'a> {
    req: &'a DsRequest,
    g: Group<'a>,
}

impl<'a> Block<'a> {
    fn open(ctx: &'a Ctx<'a>, req: &'a DsRequest, job: &'a Job) -> Result<Block<'a>> {
        super::offered(req)?;
        Ok(Block { req, g: Group::open(ctx, job, req.datastore.id)? })
    }

    fn recorded(&self) -> Result<Option<String>> {
        if !self.g.ctx.repeatable {
            return Ok(None);
        }
        Ok(settle::recorded(&self.g.domain, self.g.job)?.map(|c| c.answer))
    }

    fn new_image(&self) -> Result<Volume> {
        let id = self.req.image()?.id;
        let id = id.ok_or_else(|| refuse(Class::Usage, "IMAGE/ID is missing in the driver message"))?;
        let v = Volume::image(self.req.datastore.id, id);
        self.g.job.object(&v.source());
        Ok(v)
    }

    /// The image that SOURCE names.
    fn source(&self) -> Result<Volume> {
        let source = self.req.image()?.source.as_deref();
        let source =
            source.ok_or_else(|| refuse(Class::Usage, "IMAGE/SOURCE is missing in the driver message"))?;
        let v = Volume::parse_of(self.req.datastore.id, source)?;
        self.g.job.object(&v.source());
        Ok(v)
    }

    /// A volume for a new image, which reads zero.
    fn stage(&self, work: &mut Work<'_>, leases: &[SlabLease], v: &Volume, size: Bytes) -> Result<Staged> {
        if self.is_thin()? { self.g.thin(work, leases, v, size) } else { Group::thick(work, size) }
    }

    fn is_thin(&self) -> Result<bool> {
        Ok(self.req.image()?.persistent && self.req.datastore.lvm_thin_enable)
    }

    /// Gives a staged image its name. What had it, and is of another request, is kept for a while.
    fn publish(
        &self,
        mut work: Work<'_>,
        staged: Staged,
        v: &Volume,
        (request, answer): (&str, &str),
    ) -> Result<()> {
        let mut steps = self.g.steps(&mut work, staged, v)?;
        if !self.is_thin()? {
            steps.extend(work.step_bury(&pool(v)?, true)?);
        }
        (self.g.ctx.ready)()?;
        work.commit(request, answer, steps)?;
        self.g.detach(&self.g.whole(v)?);
        Ok(())
    }

    /// Which of the two it is to be.
    fn kind(&self) -> Result<&'static str> {
        Ok(if self.is_thin()? { "thin" } else { "thick" })
    }

    fn request(&self, parts: &[&str]) -> String {
        super::request(self.g.job, self.req, parts)
    }

    /// What an earlier request of the same words answered, if what it made is still there.
    fn made(&self, v: &Volume, request: &str) -> Result<Option<String>> {
        let made = settle::made_by(&self.g.domain, &name(v)?)?;
        Ok(made.filter(|c| c.request == request).map(|c| c.answer))
    }
}

pub fn mkfs(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let image = req.image()?;
    // A volume has no format of its own.
    let format = image.format.as_deref().filter(|f| ["swap", "save_as"].contains(f)).unwrap_or("raw");
    let fs = image.fs.as_deref().filter(|f| !f.is_empty());
    let plan = match format {
        "save_as" => None,
        _ => Some(Blank::plan(ctx, format, fs)?),
    };
    let b = Block::open(ctx, req, job)?;
    if let Some(answer) = b.recorded()? {
        return Ok(answer);
    }
    let v = b.new_image()?;
    let answer = v.source();
    let Some(plan) = plan else { return Ok(answer) };
    let size = image.size.filter(|s| s.0 > 0).ok_or_else(|| {
        refuse(Class::Usage, format!("image {v}: SIZE is missing or zero in the driver message"))
    })?;
    let lease = b.g.lease(&[(&v, Mode::Exclusive)])?;
    let request = b.request(&[format, fs.unwrap_or_default(), &size.0.to_string(), b.kind()?]);
    if let Some(answer) = b.made(&v, &request)? {
        return Ok(answer);
    }
    let mut work = b.g.begin(&v)?;
    let staged = b.stage(&mut work, &lease, &v, size)?;
    plan.fill(ctx, job, &work, &staged.slab)
        .with_context(|| format!("making a {format} image of {size} in datastore {}", req.datastore.id))?;
    b.publish(work, staged, &v, (&request, &answer))?;
    Ok(answer)
}

/// *State*: what is gone is no error, of whatever kind it was.
pub fn rm(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    let v = b.source()?;
    let ended = remove::outrank(&b.g.domain, job, &b.g.whole(&v)?)?;
    let _lease = if ended { b.g.lease(&[(&v, Mode::Exclusive)])? } else { Vec::new() };
    b.g.not_in_use(&b.g.parts(&v)?)?;
    (ctx.ready)()?;
    remove::remove(&b.g.domain, job, &b.g.whole(&v)?, &b.request(&[v.as_str()]))
        .with_context(|| format!("removing image {v}"))?;
    Ok(String::new())
}

pub fn monitor(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    job.object(&req.datastore.id.to_string());
    let usage = b.g.domain.engine.usage()?;
    filling(ctx, job, &b.g.domain.place, &usage);
    Ok(plain::answer(usage))
}

/// Remembers how full the group is, and says so when it will not last. None of it is worth a failure.
fn filling(ctx: &Ctx<'_>, job: &Job, place: &str, u: &Usage) {
    let (state, now) = (&ctx.settings.paths.state, jiff::Timestamp::now().as_second());
    let mut trend = Trend::load(state);
    if !trend.note(place, u.used, u.total, now) || trend.save(state).is_err() {
        return;
    }
    if let Some(left) = trend.full_in(place, u.used, u.total, now).filter(|left| *left < SOON) {
        let hours = left.as_secs() / 3600;
        let text = format!(
            "{place} has {} free, and is full in {hours} hours if it goes on as in the last day",
            u.free
        );
        job.tell(What::Warning { text });
    }
}

pub fn export(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    let v = b.source()?;
    let _lease = b.g.lease(&[(&v, Mode::Shared)])?;
    settle::acknowledge(&b.g.domain, &name(&v)?, job);
    let size = req.image()?.size.unwrap_or(b.g.there(&v)?.size);
    let digest = |file: &File| data::digest_of(file, data::Algo::Md5, &job.watch()).map_err(Into::into);
    let md5 = b.g.read(&name(&v)?, digest).with_context(|| format!("reading image {v}"))?;
    Ok(answer(&v.source(), &md5, size, Format::Raw))
}
