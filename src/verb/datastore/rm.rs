//! `rm`: removes an image with its snapshots and its cached digest. *State*: what is already gone is
//! no error. It outranks a job that is making the image. Contract 2.4, defects E4 and S10.

use super::{Ctx, Ds, block};
use crate::lock::Mode;
use crate::one::DsRequest;
use crate::sdm::{Job, remove};
use anyhow::{Context as _, Result};

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    if req.datastore.is_block() {
        return block::rm(ctx, req, job);
    }
    let ds = Ds::open(ctx, req, job)?;
    let (name, place) = ds.source()?;
    let names = [place.clone(), place.with_suffix(".snap")?, place.with_suffix(".md5sum")?];
    // Else the lease is with a job that can publish nothing any more, and may never end.
    let ended = remove::outrank(&ds.domain, job, &names)?;
    let _lease = if ended { ds.lease(&[(&place, Mode::Exclusive)])? } else { Vec::new() };
    ds.not_in_use(&place)?;
    (ctx.ready)()?;
    remove::remove(&ds.domain, job, &names, &ds.request(&[place.as_str()]))
        .with_context(|| format!("removing image {name} from datastore {}", req.datastore.id))?;
    Ok(String::new())
}
