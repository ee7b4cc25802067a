//! Snapshots of an image that no VM uses: `snap_delete` (*state*), `snap_revert` and `snap_flatten`
//! (*again*: what they displace is kept for a while). Whether snapshots are copies or a qcow2 chain is
//! decided by the image's format and what is there, never by a driver's name. Contract 2.4; defects B5, D3, D16, D18.

use super::{Ctx, Ds, block};
use crate::data::Sparse;
use crate::engine::{Name, Place};
use crate::image::Format;
use crate::lock::{Mode, SlabLease};
use crate::one::DsRequest;
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work, remove, settle};
use crate::sys::Class;
use crate::verb::fill::{self, Own, disk_size, header, open};
use crate::verb::refuse;
use crate::verb::snaps::{Found, Layer, Snaps};
use anyhow::{Context as _, Result};

/// The image and the snapshot a request is about, leased for changing.
struct Snap<'a> {
    ds: Ds<'a>,
    image: Name,
    dir: Name,
    id: i64,
    /// The file that holds the snapshot's content; `None` when there is no such snapshot.
    file: Option<Name>,
    layout: Layout,
    _lease: Vec<SlabLease>,
}

#[derive(Debug)]
enum Layout {
    /// Each snapshot is a whole copy.
    Copies,
    /// Each file builds on the one before; the disk's own writes go to this one.
    Chain { active: Name, layers: Vec<Layer> },
}

pub fn delete(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    if req.datastore.is_block() {
        return block::snap_delete(ctx, req, job);
    }
    let s = Snap::open(ctx, req, job)?;
    let Some(file) = &s.file else { return Ok(String::new()) };
    (ctx.ready)()?;
    match &s.layout {
        Layout::Copies => {
            let names = [file.clone(), s.snaps().marker(s.id)?, s.image.with_suffix(".md5sum")?];
            remove::remove(&s.ds.domain, job, &names, &s.request())?;
        }
        Layout::Chain { active, .. } if active == file => {
            let text =
                format!("snapshot {} of {} is the disk's current state; it cannot be deleted", s.id, s.image);
            return Err(refuse(Class::Refused, text));
        }
        Layout::Chain { .. } => {
            let also = [s.image.with_suffix(".md5sum")?];
            s.snaps().drop_snapshot(&s.image, s.id, file, &also, &s.request())?;
        }
    }
    Ok(String::new())
}

pub fn revert(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    if req.datastore.is_block() {
        return block::snap_revert(ctx, req, job);
    }
    let s = Snap::open(ctx, req, job)?;
    if s.ds.recorded()?.is_some() {
        return Ok(String::new());
    }
    let file = s.there()?;
    let mut work = Work::begin(&s.ds.domain, job, &s.touched()?)?;
    let (slab, to) = match &s.layout {
        Layout::Copies => {
            // The object the name leads to is reverted; a link to it stays a link.
            let Place::Public(to) = s.ds.resolve(&s.image)?.place else { return Err(s.no_image()) };
            (s.copy(&mut work, file)?, to)
        }
        Layout::Chain { active, layers } => (s.snaps().overlay(&mut work, layers, file)?, active.clone()),
    };
    work.flush(&slab)?;
    let step = work.step_to(&slab, &to)?;
    s.commit(work, vec![step])
}

pub fn flatten(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    if req.datastore.is_block() {
        return block::snap_flatten(ctx, req, job);
    }
    let s = Snap::open(ctx, req, job)?;
    if s.ds.recorded()?.is_some() {
        return Ok(String::new());
    }
    if s.ds.look(&s.dir)?.is_none()
        && let Some(made) = settle::made_by(&s.ds.domain, &s.image)?
        && made.request == s.request()
    {
        // This very wish came true, and whoever made it did not hear of it.
        return Ok(String::new());
    }
    let file = s.there()?;
    let mut work = Work::begin(&s.ds.domain, job, &s.touched()?)?;
    let slab = match &s.layout {
        // The snapshot itself becomes the image, under a second name until it does.
        Layout::Copies => match work.adopt(file)? {
            Some(slab) => slab,
            None => s.copy(&mut work, file)?,
        },
        Layout::Chain { .. } => {
            let path = s.ds.path(file)?;
            let found = header(&path)?;
            s.ds.convert(&mut work, &path, found.format, Format::Qcow2, disk_size(&found))?
        }
    };
    if slab.file.is_some() {
        work.flush(&slab)?;
    }
    let mut steps = vec![work.step_to(&slab, &s.image)?];
    steps.extend(work.step_bury(&s.dir, true)?);
    s.commit(work, steps)
}

impl<'a> Snap<'a> {
    fn open(ctx: &'a Ctx<'a>, req: &'a DsRequest, job: &'a Job) -> Result<Snap<'a>> {
        let id = req.target_snapshot.filter(|id| *id >= 0);
        let id =
            id.ok_or_else(|| refuse(Class::Usage, "TARGET_SNAPSHOT is missing in the driver message"))?;
        let ds = Ds::open(ctx, req, job)?;
        let (_, image) = ds.source()?;
        let dir = image.with_suffix(".snap")?;
        let lease = ds.lease(&[(&image, Mode::Exclusive)])?;
        settle::acknowledge(&ds.domain, &image, job);
        let mut s = Snap { ds, image, dir, id, file: None, layout: Layout::Copies, _lease: lease };
        s.file = s.snaps().file_of(id)?;
        s.layout = s.layout()?;
        s.ds.not_in_use(&s.image)?;
        Ok(s)
    }

    fn snaps(&self) -> Snaps<'_> {
        let dir = self.ds.req.datastore.dir();
        let own = vec![Own::named(&dir.join(self.image.as_str()))];
        let called = dir.join(self.dir.as_str());
        let (ctx, job, domain) = (self.ds.ctx, self.ds.job, &self.ds.domain);
        Snaps { ctx, job, domain, dir: self.dir.clone(), called, own }
    }

    fn there(&self) -> Result<&Name> {
        self.file.as_ref().ok_or_else(|| {
            let text = format!("image {} has no snapshot {}; nothing was changed", self.image, self.id);
            refuse(Class::NotFound, text)
        })
    }

    fn no_image(&self) -> anyhow::Error {
        refuse(Class::NotFound, format!("image {} does not exist", self.image))
    }

    fn layout(&self) -> Result<Layout> {
        if self.ds.raw_on_record() {
            return Ok(Layout::Copies);
        }
        let snaps = self.snaps();
        let found = snaps.scan()?;
        if !found.iter().any(Found::is_chained) {
            return Ok(Layout::Copies);
        }
        let layers = snaps.judge(found)?;
        Ok(match snaps.active(&layers)? {
            Some(active) => Layout::Chain { active, layers },
            None => Layout::Copies,
        })
    }

    /// What the commit touches, for rivals and the collector.
    fn touched(&self) -> Result<Vec<Name>> {
        Ok(vec![self.image.clone(), self.dir.clone(), self.image.with_suffix(".md5sum")?])
    }

    fn request(&self) -> String {
        self.ds.request(&[self.image.as_str(), &self.id.to_string()])
    }

    /// The replica's cached digest is of content that is no more.
    fn commit(&self, mut work: Work<'_>, mut steps: Vec<Step>) -> Result<String> {
        steps.extend(work.step_bury(&self.image.with_suffix(".md5sum")?, false)?);
        (self.ds.ctx.ready)()?;
        work.commit(&self.request(), "", steps)?;
        Ok(String::new())
    }

    fn copy(&self, work: &mut Work<'_>, from: &Name) -> Result<Slab> {
        let source = open(&self.ds.path(from)?)?;
        fill::copy(self.ds.job, work, &source, Sparse::Keep)
            .with_context(|| format!("copying snapshot {} of {}", self.id, self.image))
    }
}
