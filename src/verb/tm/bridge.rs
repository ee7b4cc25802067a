//! Datastore verbs on a host that was asked for them, and the sources that are read on another host.
//! The front-end chose the host; whatever lists of hosts the message has is its matter.

use super::Tm;
use super::clone;
use super::ln::resolved;
use super::op::{Datastore, Told};
use super::place::Spot;
use super::send::source_of;
use crate::data::Source;
use crate::data::extent::Sender;
use crate::image::{self, Format};
use crate::lock::Mode;
use crate::one::{DsDump, DsRequest, ImagePath};
use crate::sdm::{Job, Work};
use crate::sys::Class;
use crate::verb::datastore::{by_name, clone as ds_clone, cp};
use crate::verb::fill::{self, Conversion, Own, disk_size};
use crate::verb::{Ctx, refuse, stream};
use anyhow::Result;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

fn request(ctx: &Ctx<'_>, message: &BTreeMap<String, String>) -> Result<DsRequest> {
    Ok(DsDump::of(message)?.request(&ctx.settings.paths.datastores)?)
}

pub(super) fn run(ctx: &Ctx<'_>, job: &Job, op: &Datastore) -> Result<String> {
    let request = request(ctx, &op.message)?;
    match (op.stream, op.verb.as_str(), by_name(&op.verb)) {
        (true, "cp", _) => cp::take(ctx, &request, job, true),
        (true, "clone", _) => ds_clone::take(ctx, &request, job, true),
        (false, _, Some(run)) => run(ctx, &request, job),
        (_, verb, _) => Err(refuse(Class::Unsupported, format!("{verb:?} on a host is not known here"))),
    }
}

/// Gives a file that is to become an image.
pub(super) fn outside(
    tm: &Tm<'_>,
    path: &str,
    limit: Option<u64>,
    message: &BTreeMap<String, String>,
) -> Result<Told> {
    let request = request(tm.ctx, message)?;
    let Source::File(file) = cp::open(tm.ctx, &request, &ImagePath::Local(path.into()))? else {
        return Err(refuse(Class::Internal, format!("{path} is no file")));
    };
    give(tm, stream::identity(None, &[path, &stream::state(&file)?]), limit, &file)
}

/// Gives an image of a datastore, leased meanwhile.
pub(super) fn whole(tm: &Tm<'_>, path: &str, limit: Option<u64>) -> Result<Told> {
    let image = tm.open(Spot::image(tm.ctx, path)?)?;
    let _image = tm.lease(&image, Mode::Shared)?;
    let name = resolved(&image)?;
    let (file, at) = (clone::open(&image, &name)?, image.path(&name)?);
    let found = image::probe(&file)?;
    fill::known_chain(tm.ctx, &[Own::of(&at), Own::of(Path::new(path))], &at, &found)?;
    let mut work;
    let file = if found.backing.is_some() {
        work = Work::begin(&image.domain, tm.job, std::slice::from_ref(image.name()))?;
        let how = Conversion { from: found.format, to: Format::Qcow2, size: disk_size(&found), sparse: true };
        let slab = fill::converted(tm.ctx, tm.job, &mut work, &at, how)?;
        fill::open(&slab.path)?
    } else {
        file
    };
    give(tm, source_of(tm, &image, &[&file])?, limit, &file)
}

fn give(tm: &Tm<'_>, source: String, limit: Option<u64>, file: &File) -> Result<Told> {
    let entries = |sender: &mut Sender<'_>| Ok(sender.file(stream::NAME, 0o644, file).map(drop)?);
    let digest = stream::give(tm.ctx, tm.job, (&source, limit), entries)?;
    Ok(Told { source, digest })
}
