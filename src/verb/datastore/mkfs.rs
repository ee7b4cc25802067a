//! `mkfs`: an empty image: raw, qcow2, swap, or with a file system. *Named*. The format `save_as` only
//! gives a name, for the contents that a later verb brings. Contract 2.4.

use super::{Ctx, Ds, block};
use crate::lock::Mode;
use crate::one::DsRequest;
use crate::sdm::{Job, Work, settle};
use crate::sys::Class;
use crate::verb::blank::Blank;
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    if req.datastore.is_block() {
        return block::mkfs(ctx, req, job);
    }
    let image = req.image()?;
    let format = image.format.clone().unwrap_or_else(|| "raw".to_owned());
    let fs = image.fs.clone().filter(|f| !f.is_empty());
    let plan = match format.as_str() {
        "save_as" => None,
        _ => Some(Blank::plan(ctx, &format, fs.as_deref())?),
    };
    let ds = Ds::open(ctx, req, job)?;
    if let Some(answer) = ds.recorded()? {
        return Ok(answer);
    }
    let (name, place) = ds.new_name()?;
    let answer = name.source(&req.datastore.base_path);
    let Some(plan) = plan else { return Ok(answer) };
    let size = image.size.filter(|s| s.0 > 0).ok_or_else(|| {
        refuse(Class::Usage, format!("image {name}: SIZE is missing or zero in the driver message"))
    })?;
    if size > fill::admit(ctx).max_size {
        let text =
            format!("image {name}: {size} is more than `image.max_size` ({})", fill::admit(ctx).max_size);
        return Err(refuse(Class::Refused, text));
    }
    let _lease = ds.lease(&[(&place, Mode::Exclusive)])?;
    let request = ds.request(&[&format, fs.as_deref().unwrap_or_default(), &size.0.to_string()]);
    if let Some(made) = settle::made_by(&ds.domain, &place)?
        && made.request == request
    {
        return Ok(made.answer);
    }
    let mut work = Work::begin(&ds.domain, job, std::slice::from_ref(&place))?;
    let slab = plan
        .make(ctx, job, &mut work, size, req.datastore.sparse)
        .with_context(|| format!("making a {format} image of {size} in datastore {}", req.datastore.id))?;
    work.flush(&slab)?;
    let step = work.step_to(&slab, &place)?;
    (ctx.ready)()?;
    work.commit(&request, &answer, vec![step])?;
    Ok(answer)
}
