//! `cp` and `clone` onto volumes. How large a volume has to be is known when the source has been seen
//! whole, so a source that is packed, has a digest or is no plain disk comes into a nameless file first,
//! where it is judged as on a file domain (S2, S3, B12); then its disk is poured.

use super::Block;
use crate::data::{self, FetchOptions, archive, fetch};
use crate::image::{self, Format, Probe, probe};
use crate::lock::Mode;
use crate::one::{self, DsRequest, Volume};
use crate::sdm::{Job, Work};
use crate::sys::Class;
use crate::sys::effect::{only_looks, scratch};
use crate::sys::fs::Dir;
use crate::verb::datastore::{cp as plain, fetch_options};
use crate::verb::fill::{self, disk_size};
use crate::verb::group::{Group, Staged, lease_two, name};
use crate::verb::stream::{self, Incoming};
use crate::verb::{Ctx, refuse};
use anyhow::{Context as _, Result};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

/// Where what comes in is put meanwhile, as stock drivers do.
const STAGING: &str = "/var/tmp";

pub fn cp(ctx: &Ctx<'_>, req: &DsRequest, job: &Job, given: bool) -> Result<String> {
    let watch = job.watch();
    let stream = if given { Some(Incoming::begin(ctx, job, &watch)?) } else { None };
    let b = Block::open(ctx, req, job)?;
    if let Some(answer) = b.recorded()? {
        stream.map_or(Ok(()), Incoming::decline)?;
        return Ok(answer);
    }
    let path = req.image()?.path.clone().unwrap_or_default();
    let from = one::image_path(&path)?;
    let opts = fetch_options(ctx.settings, req)?;
    let source = if given { None } else { Some(plain::open(ctx, req, &from)?) };
    let v = b.new_image()?;
    let lease = b.g.lease(&[(&v, Mode::Exclusive)])?;
    let digests: Vec<&str> = opts.digests.iter().map(data::Expected::hex).collect();
    let unpacked = if opts.decompress { "" } else { "as it is" };
    let request = b.request(&[&path, &digests.join(" "), unpacked, b.kind()?]);
    if let Some(answer) = b.made(&v, &request)? {
        stream.map_or(Ok(()), Incoming::decline)?;
        return Ok(answer);
    }
    let shown = || format!("taking {} into datastore {}", from.shown(), req.datastore.id);
    let file = match (source, stream) {
        (Some(data::Source::File(file)), _) if is_plain(&file, &opts)? => file,
        (Some(source), _) => fetched(req, job, &source, &opts).with_context(shown)?,
        (None, Some(stream)) => stream::unnamed(job, stream, &opts, || staging(req)).with_context(shown)?,
        (None, None) => return Err(refuse(Class::Internal, "a source that is nowhere")),
    };
    let found = judged(ctx, &file, opts.decompress).with_context(shown)?;
    let size = disk_size(&found).max(req.image()?.size.unwrap_or_default());
    let mut work = b.g.begin(&v)?;
    let to = b.stage(&mut work, &lease, &v, size)?;
    pour(&b, &work, &file, found.format, &to).with_context(shown)?;
    let answer = format!("{} raw", v.source());
    b.publish(work, to, &v, (&request, &answer))?;
    Ok(answer)
}

/// *Named*, as `cp`; of an image of this or another datastore on volumes.
pub fn clone(ctx: &Ctx<'_>, req: &DsRequest, job: &Job, given: bool) -> Result<String> {
    let b = Block::open(ctx, req, job)?;
    if let Some(answer) = b.recorded()? {
        return Ok(answer);
    }
    let source = Volume::parse(req.image()?.path.as_deref().unwrap_or_default())?;
    let v = b.new_image()?;
    if source == v || given {
        let text =
            format!("{source} cannot be cloned from another host, or into itself; nothing was changed");
        return Err(refuse(Class::Unsupported, text));
    }
    let request = b.request(&[&source.source(), b.kind()?]);
    let other = if source.ds == v.ds { None } else { Some(Group::open(ctx, job, source.ds)?) };
    let from = other.as_ref().unwrap_or(&b.g);
    let leases = lease_two([(&b.g, &v, Mode::Exclusive), (from, &source, Mode::Shared)])?;
    if let Some(answer) = b.made(&v, &request)? {
        return Ok(answer);
    }
    let size = from.there(&source)?.size;
    let mut work = b.g.begin(&v)?;
    let to = b.stage(&mut work, &leases, &v, size)?;
    from.pour(&name(&source)?, &to.slab).with_context(|| format!("cloning {source}"))?;
    let answer = format!("{} raw", v.source());
    b.publish(work, to, &v, (&request, &answer))?;
    Ok(answer)
}

/// Whether a file is the disk already, to be read where it is.
fn is_plain(file: &File, opts: &FetchOptions) -> Result<bool> {
    let packed = opts.decompress && fetch::is_packed(file)?;
    Ok(!packed && opts.digests.is_empty() && opts.limit.is_none() && probe(file)?.format.is_raw())
}

/// A file without a name.
fn staging(req: &DsRequest) -> Result<File> {
    let dir = req.datastore.staging_dir.as_deref().unwrap_or(STAGING);
    let file = Dir::open(&scratch().unwrap_or_else(|| dir.into())).and_then(|d| d.unnamed());
    file.with_context(|| format!("making a file in {dir} (STAGING_DIR)"))
}

/// The source in such a one, verified and unpacked.
fn fetched(req: &DsRequest, job: &Job, source: &data::Source, opts: &FetchOptions) -> Result<File> {
    let file = staging(req)?;
    let fetched = fetch::fetch(source, &file, opts, &job.watch())?;
    job.method(fetched.method.as_str());
    Ok(file)
}

fn judged(ctx: &Ctx<'_>, file: &File, unpack: bool) -> Result<Probe> {
    let mut head = [0; archive::HEAD];
    let n = file.read_at(&mut head, 0).context("reading the head of the image")?;
    if unpack && archive::kind(&head[..n]).is_some() {
        return Err(refuse(
            Class::Unsupported,
            "it is an archive, which a volume cannot hold; give a disk image",
        ));
    }
    let found = probe(file)?;
    image::admit(&found, &fill::admit(ctx))?;
    image::whole(file, &found)?;
    Ok(found)
}

/// What the disk in `file` reads as, into a staged image.
fn pour(b: &Block<'_>, work: &Work<'_>, file: &File, format: Format, to: &Staged) -> Result<()> {
    if format.is_raw() {
        let target = to.slab.file.as_ref().context("a staged volume has no device")?;
        let copied = data::pour(file, target, &b.g.job.watch())?;
        b.g.job.method(copied.method.as_str());
        return Ok(());
    }
    let size = disk_size(&probe(file)?);
    fill::pour(b.g.ctx, b.g.job, &work.keep_held(), (&by_descriptor(file), format), &to.slab.path, size)
}

/// A path to a file that has none, as long as this process lives.
fn by_descriptor(file: &File) -> PathBuf {
    if only_looks() {
        return data::path_of(file).into();
    }
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()))
}
