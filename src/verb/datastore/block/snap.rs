//! Snapshots of a persistent image that no VM uses: thin volumes in its pool. What `revert` displaces is
//! not kept: nobody would see that it takes space in the pool.

use super::Block;
use crate::engine::{Name, Spec};
use crate::lock::{Mode, SlabLease};
use crate::one::{DsRequest, Volume};
use crate::sdm::{Job, remove, settle};
use crate::sys::Class;
use crate::verb::group::name;
use crate::verb::{Ctx, refuse};
use anyhow::Result;

struct Snap<'a> {
    b: Block<'a>,
    image: Volume,
    /// The snapshot's volume, which may be gone.
    name: Name,
    id: i64,
    lease: Vec<SlabLease>,
}

impl<'a> Snap<'a> {
    fn open(ctx: &'a Ctx<'a>, req: &'a DsRequest, job: &'a Job) -> Result<Snap<'a>> {
        let id = req.target_snapshot.filter(|id| *id >= 0);
        let id =
            id.ok_or_else(|| refuse(Class::Usage, "TARGET_SNAPSHOT is missing in the driver message"))?;
        let b = Block::open(ctx, req, job)?;
        let image = b.source()?;
        let lease = b.g.lease(&[(&image, Mode::Exclusive)])?;
        settle::acknowledge(&b.g.domain, &name(&image)?, job);
        b.g.not_in_use(&b.g.parts(&image)?)?;
        let name = Name::parse(&image.snapshot(id))?;
        Ok(Snap { b, image, name, id, lease })
    }

    fn request(&self) -> String {
        self.b.request(&[self.image.as_str(), &self.id.to_string()])
    }

    /// The image reads as its snapshot; with `flatten` that is all that is left.
    fn back(&self, flatten: bool) -> Result<()> {
        if self.b.recorded()?.is_some() {
            return Ok(());
        }
        if self.b.g.look(&self.name)?.is_none() {
            // This very wish came true, and whoever made it did not hear of it.
            if flatten && self.b.made(&self.image, &self.request())?.is_some() {
                return Ok(());
            }
            let text = format!("image {} has no snapshot {}; nothing was changed", self.image, self.id);
            return Err(refuse(Class::NotFound, text));
        }
        let size = self.b.g.look(&self.name)?.map(|o| o.size).unwrap_or_default();
        self.b.g.room(&self.lease, &self.image, size)?;
        let mut work = self.b.g.begin(&self.image)?;
        let slab = work.slab(&Spec::Clone(self.name.clone()))?;
        work.flush(&slab)?;
        let image = name(&self.image)?;
        let mut steps = vec![work.step_over(&slab, &image, false)?];
        drop(slab);
        if flatten {
            for part in self.b.g.parts(&self.image)?.into_iter().skip(1) {
                steps.extend(work.step_bury(&part, false)?);
            }
        }
        (self.b.g.ctx.ready)()?;
        work.commit(&self.request(), "", steps)?;
        self.b.g.detach(&self.b.g.whole(&self.image)?);
        Ok(())
    }
}

/// *State*.
pub fn delete(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let s = Snap::open(ctx, req, job)?;
    (ctx.ready)()?;
    remove::remove(&s.b.g.domain, job, std::slice::from_ref(&s.name), &s.request())?;
    Ok(String::new())
}

/// *Again*.
pub fn revert(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    Snap::open(ctx, req, job)?.back(false).map(|()| String::new())
}

/// *Again*.
pub fn flatten(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    Snap::open(ctx, req, job)?.back(true).map(|()| String::new())
}
