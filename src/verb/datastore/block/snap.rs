//! Snapshots of a persistent image that no VM uses: thin volumes in its pool. What `revert` displaces is
//! not kept: nobody would see that it takes space in the pool.

use super::{Block, name};
use crate::engine::{Name, Place, Spec};
use crate::lock::{Mode, SlabLease};
use crate::one::{DsRequest, Volume};
use crate::sdm::{Job, remove, settle};
use crate::sys::{Bytes, Class};
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
        let lease = b.lease(&[(&image, Mode::Exclusive)])?;
        settle::acknowledge(&b.domain, &name(&image)?, job);
        b.not_in_use(&image)?;
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
        if self.b.look(&self.name)?.is_none() {
            // This very wish came true, and whoever made it did not hear of it.
            if flatten && self.b.made(&self.image, &self.request())?.is_some() {
                return Ok(());
            }
            let text = format!("image {} has no snapshot {}; nothing was changed", self.image, self.id);
            return Err(refuse(Class::NotFound, text));
        }
        let pool = Name::parse(&self.image.pool())?;
        let size = self.b.look(&self.name)?.map(|o| o.size).unwrap_or_default();
        self.room(&pool, size)?;
        let mut work = self.b.begin(&self.image)?;
        let slab = work.slab(&Spec::Clone(self.name.clone()))?;
        work.flush(&slab)?;
        let image = name(&self.image)?;
        let mut steps = vec![work.step_over(&slab, &image, false)?];
        drop(slab);
        if flatten {
            for part in self.b.parts(&self.image)?.into_iter().filter(|n| *n != pool && *n != image) {
                steps.extend(work.step_bury(&part, false)?);
            }
        }
        (self.b.ctx.ready)()?;
        work.commit(&self.request(), "", steps)?;
        self.b.detach(&self.b.parts(&self.image)?);
        Ok(())
    }

    /// A pool is as large as all that lies in it, so that it cannot run full.
    fn room(&self, pool: &Name, more: Bytes) -> Result<()> {
        let mut need = more.0;
        for part in self.b.parts(&self.image)?.into_iter().filter(|n| n != pool) {
            need += self.b.look(&part)?.map_or(0, |o| o.size.0);
        }
        let now = self.b.look(pool)?.map_or(0, |o| o.size.0);
        if let Some(lease) = self.lease.first().filter(|_| need > now) {
            let at = Place::Public(pool.clone());
            self.b.domain.engine.resize(lease, &at, Bytes(need))?;
        }
        Ok(())
    }
}

/// *State*.
pub fn delete(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let s = Snap::open(ctx, req, job)?;
    (ctx.ready)()?;
    remove::remove(&s.b.domain, job, std::slice::from_ref(&s.name), &s.request())?;
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
