//! Datastore verbs on a volume group (contract 2.5). An image is a volume: thin in a pool of its own when
//! it is persistent, which is what snapshots need, thick otherwise; which of the two it is, is told by what
//! is there (D25). All of an image's volumes are one slab, and a verb on it is one commit: whatever is cut
//! off leaves no volume behind, and nothing is removed by its name alone (D23, L1).

mod fetch;
mod snap;

pub(super) use fetch::{clone, cp};
pub(super) use snap::{delete as snap_delete, flatten as snap_flatten, revert as snap_revert};

use super::export::answer;
use super::{Ctx, monitor as plain};
use crate::data;
use crate::engine::{Access, Kind, Name, Object, Place, Spec};
use crate::image::Format;
use crate::lock::{Mode, SlabLease};
use crate::one::{DsRequest, Volume, volume};
use crate::sdm::event::What;
use crate::sdm::work::Slab;
use crate::sdm::{Domain, Job, Work, remove, settle};
use crate::sys::{Bytes, Class};
use crate::verb::blank::Blank;
use crate::verb::{fill, hold, refuse};
use anyhow::{Context as _, Result};
use std::path::Path;

/// One request at work.
struct Block<'a> {
    ctx: &'a Ctx<'a>,
    req: &'a DsRequest,
    job: &'a Job,
    domain: Domain,
}

/// A staged image: its volume, and its pool when it is thin.
struct Staged {
    slab: Slab,
    pool: Option<Slab>,
}

impl<'a> Block<'a> {
    fn open(ctx: &'a Ctx<'a>, req: &'a DsRequest, job: &'a Job) -> Result<Block<'a>> {
        super::offered(req)?;
        let ds = req.datastore.id;
        let domain = (ctx.open)(&volume::group(ds), ds).with_context(|| format!("opening datastore {ds}"))?;
        Ok(Block { ctx, req, job, domain })
    }

    fn recorded(&self) -> Result<Option<String>> {
        if !self.ctx.repeatable {
            return Ok(None);
        }
        Ok(settle::recorded(&self.domain, self.job)?.map(|c| c.answer))
    }

    fn new_image(&self) -> Result<Volume> {
        let id = self.req.image()?.id;
        let id = id.ok_or_else(|| refuse(Class::Usage, "IMAGE/ID is missing in the driver message"))?;
        let v = Volume::image(self.req.datastore.id, id);
        self.job.object(&v.source());
        Ok(v)
    }

    /// The image that SOURCE names.
    fn source(&self) -> Result<Volume> {
        let source = self.req.image()?.source.as_deref();
        let source =
            source.ok_or_else(|| refuse(Class::Usage, "IMAGE/SOURCE is missing in the driver message"))?;
        let v = Volume::parse_of(self.req.datastore.id, source)?;
        self.job.object(&v.source());
        Ok(v)
    }

    /// Leases on images of this datastore, and what dead jobs left on them settled.
    fn lease(&self, wanted: &[(&Volume, Mode)]) -> Result<Vec<SlabLease>> {
        lease(&self.domain, self.job, wanted)
    }

    fn look(&self, name: &Name) -> Result<Option<Object>> {
        Ok(self.domain.engine.look(&Place::Public(name.clone()))?)
    }

    fn there(&self, v: &Volume) -> Result<Object> {
        let missing = || refuse(Class::NotFound, format!("image {v} does not exist"));
        self.look(&name(v)?)?.filter(|o| o.kind == Kind::File).ok_or_else(missing)
    }

    /// All that an image is: its volume first, its snapshots, its pool last.
    fn parts(&self, v: &Volume) -> Result<Vec<Name>> {
        let mut out = vec![name(v)?];
        for o in self.domain.engine.list(None)? {
            if let Place::Public(name) = o.place
                && v.is_made_of(name.as_str())
            {
                out.push(name);
            }
        }
        out.push(Name::parse(&v.pool())?);
        Ok(out)
    }

    /// Refuses when a machine of this host has the image open.
    fn not_in_use(&self, v: &Volume) -> Result<()> {
        let parts: Result<Vec<Name>> = self.parts(v)?.into_iter().filter_map(|n| self.active(n)).collect();
        hold::not_in_use(&self.domain, &parts?)
    }

    /// A volume that has a device here; of others no machine here can be a user.
    fn active(&self, name: Name) -> Option<Result<Name>> {
        let group = volume::group(self.req.datastore.id);
        // Elsewhere than on device mapper it is asked.
        let here = !group.exists() || group.join(name.as_str()).exists();
        here.then_some(Ok(name))
    }

    fn begin(&self, v: &Volume) -> Result<Work<'_>> {
        Ok(Work::begin(&self.domain, self.job, &[name(v)?, Name::parse(&v.pool())?])?)
    }

    /// Volumes for a new image, which read zero.
    fn stage(&self, work: &mut Work<'_>, size: Bytes) -> Result<Staged> {
        if !self.req.image()?.persistent {
            return Ok(Staged { slab: work.file(size)?, pool: None });
        }
        let pool = work.pool(size)?;
        let slab = work.slab(&Spec::Thin { pool: work.place(&pool), size })?;
        Ok(Staged { slab, pool: Some(pool) })
    }

    /// Gives a staged image its names. What had them, and is of another request, is kept for a while.
    fn publish(
        &self,
        mut work: Work<'_>,
        staged: Staged,
        v: &Volume,
        (request, answer): (&str, &str),
    ) -> Result<()> {
        work.flush(&staged.slab)?;
        let mut steps = vec![work.step_to(&staged.slab, &name(v)?)?];
        let pool = Name::parse(&v.pool())?;
        for part in self.parts(v)?.into_iter().skip(1).filter(|n| *n != pool) {
            steps.extend(work.step_bury(&part, true)?);
        }
        match &staged.pool {
            Some(slab) => steps.push(work.step_to(slab, &pool)?),
            None => steps.extend(work.step_bury(&pool, true)?),
        }
        // Closed: a device that is open stays.
        drop(staged);
        (self.ctx.ready)()?;
        work.commit(request, answer, steps)?;
        self.detach(&self.parts(v)?);
        Ok(())
    }

    /// This host needs these volumes no longer.
    fn detach(&self, names: &[Name]) {
        for name in names {
            if let Err(e) = self.domain.engine.detach(&Place::Public(name.clone())) {
                self.job.tell(What::Warning { text: format!("{name} stays active on this host: {e}") });
            }
        }
    }

    fn request(&self, parts: &[&str]) -> String {
        super::request(self.job, self.req, parts)
    }

    /// What an earlier request of the same words answered, if what it made is still there.
    fn made(&self, v: &Volume, request: &str) -> Result<Option<String>> {
        let made = settle::made_by(&self.domain, &name(v)?)?;
        Ok(made.filter(|c| c.request == request).map(|c| c.answer))
    }
}

fn name(v: &Volume) -> Result<Name> {
    Ok(Name::parse(v.as_str())?)
}

fn lease(domain: &Domain, job: &Job, wanted: &[(&Volume, Mode)]) -> Result<Vec<SlabLease>> {
    let mut touched = Vec::new();
    for (v, _) in wanted {
        touched.extend([name(v)?, Name::parse(&v.pool())?]);
    }
    let names: Vec<(&Name, Mode)> =
        touched.iter().step_by(2).zip(wanted).map(|(n, (_, m))| (n, *m)).collect();
    hold::lease_of(domain, job, &names, (&touched, None))
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
    let _lease = b.lease(&[(&v, Mode::Exclusive)])?;
    let kind = if image.persistent { "thin" } else { "thick" };
    let request = b.request(&[format, fs.unwrap_or_default(), &size.0.to_string(), kind]);
    if let Some(answer) = b.made(&v, &request)? {
        return Ok(answer);
    }
    let mut work = b.begin(&v)?;
    let staged = b.stage(&mut work, size)?;
    plan.fill(ctx, job, &work, &staged.slab)
        .with_context(|| format!("making a {format} image of {size} in datastore {}", req.datastore.id))?;
    b.publish(work, staged, &v, (&request, &answer))?;
    Ok(answer)
}

/// *State*: what is gone is no error, of whatever kind it was.
pub fn rm(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    let v = b.source()?;
    let ended = remove::outrank(&b.domain, job, &b.parts(&v)?)?;
    let _lease = if ended { b.lease(&[(&v, Mode::Exclusive)])? } else { Vec::new() };
    b.not_in_use(&v)?;
    (ctx.ready)()?;
    remove::remove(&b.domain, job, &b.parts(&v)?, &b.request(&[v.as_str()]))
        .with_context(|| format!("removing image {v}"))?;
    Ok(String::new())
}

pub fn monitor(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    job.object(&req.datastore.id.to_string());
    Ok(plain::answer(b.domain.engine.usage()?))
}

pub fn export(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    let v = b.source()?;
    let _lease = b.lease(&[(&v, Mode::Shared)])?;
    settle::acknowledge(&b.domain, &name(&v)?, job);
    let object = b.there(&v)?;
    let path = b.domain.engine.attach(&object.place, Access::Read)?.path;
    let md5 = md5(&path, job).with_context(|| format!("reading image {v}"));
    b.detach(&[name(&v)?]);
    Ok(answer(&v.source(), &md5?, req.image()?.size.unwrap_or(object.size), Format::Raw))
}

fn md5(path: &Path, job: &Job) -> Result<String> {
    Ok(data::digest_of(&fill::open(path)?, data::Algo::Md5, &job.watch())?)
}
