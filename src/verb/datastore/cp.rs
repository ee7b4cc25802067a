//! `cp`: takes an image into the datastore. *Named*: the name derives from the request, so a repeat
//! finds what it made. Fetch, verify, decompress, judge, convert, flush, publish; nothing is visible
//! before the last step. Contract 2.4; seed 002.

use super::{Ctx, Ds, block};
use crate::data::{DataError, FetchOptions, Source, archive, fetch};
use crate::engine::Name;
use crate::image::{self, Format, probe};
use crate::one::{self, BlockDevices, DirPolicy, DsRequest, ImagePath};
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work, settle};
use crate::sys::{Bytes, Class};
use crate::verb::fill::{self, disk_size};
use crate::verb::refuse;
use crate::verb::stream::{self, Incoming};
use anyhow::{Context as _, Result};
use std::os::unix::fs::FileExt as _;

/// Files in an archive; more is no image but an attack or a mistake.
const MAX_ENTRIES: u64 = 1_000_000;

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    take(ctx, req, job, false)
}

/// The same; `given`: the peer gives the content of the source.
pub(in crate::verb) fn take(ctx: &Ctx<'_>, req: &DsRequest, job: &Job, given: bool) -> Result<String> {
    if req.datastore.is_block() {
        return block::cp(ctx, req, job, given);
    }
    super::offered(req)?;
    let watch = job.watch();
    let stream = if given { Some(Incoming::begin(ctx, job, &watch)?) } else { None };
    if ctx.repeatable
        && let Some(answer) = Ds::open(ctx, req, job)?.recorded()?
    {
        stream.map_or(Ok(()), Incoming::decline)?;
        return Ok(answer);
    }
    let path = req.image()?.path.clone().unwrap_or_default();
    let from = one::image_path(&path)?;
    let opts = super::fetch_options(ctx.settings, req)?;
    // What comes along was judged where it is.
    let source = if given { None } else { Some(open(ctx, req, &from)?) };

    let ds = Ds::open(ctx, req, job)?;
    let (name, place) = ds.new_name()?;
    let _lease = ds.lease_for(&place, stream.as_ref())?;
    let digests: Vec<&str> = opts.digests.iter().map(crate::data::Expected::hex).collect();
    let target = req.target_format().unwrap_or_default();
    let request =
        ds.request(&[&path, &digests.join(" "), target, if opts.decompress { "" } else { "as it is" }]);
    if let Some(made) = settle::made_by(&ds.domain, &place)?
        && made.request == request
    {
        stream.map_or(Ok(()), Incoming::decline)?;
        return Ok(made.answer);
    }

    let copied = match (source, stream) {
        (_, Some(stream)) => ds.receive(&place, stream, &opts),
        (Some(source), None) => fetched(&ds, &place, &source, &opts),
        (None, None) => Err(refuse(Class::Internal, "a source that is nowhere")),
    };
    let (mut work, slab) =
        copied.with_context(|| format!("copying {} into datastore {}", from.shown(), req.datastore.id))?;
    let (slab, format) = shape(&ds, &mut work, slab, opts.decompress)
        .with_context(|| format!("taking {} into datastore {}", from.shown(), req.datastore.id))?;
    work.flush(&slab)?;
    let answer = format!("{} {format}", name.source(&req.datastore.base_path));
    let step = work.step_to(&slab, &place)?;
    (ctx.ready)()?;
    work.commit(&request, &answer, vec![step])?;
    Ok(answer)
}

/// The source becomes a slab of a new job.
fn fetched<'d>(
    ds: &'d Ds<'_>,
    place: &Name,
    source: &Source,
    opts: &FetchOptions,
) -> Result<(Work<'d>, Slab)> {
    let mut work = Work::begin(&ds.domain, ds.job, std::slice::from_ref(place))?;
    let slab = work.file(Bytes(0))?;
    let file = slab.file.as_ref().context("a staged file has no file")?;
    let fetched = fetch::fetch(source, file, opts, &ds.job.watch()).inspect_err(|e| {
        if let (DataError::Planned, Some(plan)) = (e, &ds.job.jobs.plan) {
            plan.target(&ds.domain, place);
        }
    })?;
    ds.job.method(fetched.method.as_str());
    let slab = match source {
        Source::File(source) => fill::as_source(slab, source)?,
        Source::Http(_) => slab,
    };
    Ok((work, slab))
}

/// The source, opened and checked where it really is.
pub(in crate::verb) fn open(ctx: &Ctx<'_>, req: &DsRequest, from: &ImagePath) -> Result<Source> {
    match from {
        ImagePath::Http(url) => Ok(Source::Http(url.clone())),
        ImagePath::Ssh(..) => Err(stream::elsewhere(from)),
        ImagePath::Local(path) => {
            let restricted = ctx.settings.paths.restricted();
            let policy = DirPolicy::new(&restricted, &req.datastore, BlockDevices::Allow);
            let file = one::open_checked(path, &policy)?;
            if file.metadata().context("looking at the source")?.is_dir() {
                let text = format!("{} is a directory; give a disk image or an archive", path.display());
                return Err(refuse(Class::Usage, text));
            }
            Ok(Source::File(file))
        }
    }
}

/// What was fetched becomes what is stored: an archive a directory, a foreign format the datastore's.
/// Answers the slab to publish and the word for its format.
fn shape(ds: &Ds<'_>, work: &mut Work<'_>, slab: Slab, unpack: bool) -> Result<(Slab, &'static str)> {
    let file = slab.file.as_ref().context("a staged file has no file")?;
    let mut head = [0; archive::HEAD];
    let n = file.read_at(&mut head, 0).context("reading the head of the image")?;
    if unpack && let Some(kind) = archive::kind(&head[..n]) {
        let dir = work.dir()?;
        ds.job.phase("unpacking");
        let limits = archive::Limits { entries: MAX_ENTRIES, bytes: fill::admit(ds.ctx).max_size.0 };
        archive::unpack(kind, file, &dir.path, limits, &ds.job.watch()).context("unpacking the archive")?;
        ds.job.method("unpack");
        return Ok((dir, "dir"));
    }
    let found = probe(file)?;
    image::admit(&found, &fill::admit(ds.ctx))?;
    image::whole(file, &found)?;
    let wanted = ds.req.target_format().and_then(Format::from_word);
    match wanted {
        // What is encrypted can only be kept as it is.
        Some(to) if found.format != Format::Luks && to.opennebula() != found.format.opennebula() => {
            let slab = ds.convert(work, &slab.path, found.format, to, disk_size(&found))?;
            Ok((slab, to.opennebula()))
        }
        _ => Ok((slab, found.format.opennebula())),
    }
}
