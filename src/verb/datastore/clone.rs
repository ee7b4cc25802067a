//! `clone`: a copy of an image of this or another datastore under a new name. *Named*. The source is
//! leased shared to the end of the copy where it lies in a domain. Contract 2.4; defects B3, L2, P7.

use super::{Ctx, Ds, block};
use crate::data::{self, FetchOptions};
use crate::engine::{Kind, Name};
use crate::image::{self, Format};
use crate::lock::{self, Mode, SlabLease};
use crate::one::{self, DsRequest, ImagePath};
use crate::sdm::work::Slab;
use crate::sdm::{Domain, Job, SdmError, Work, settle};
use crate::sys::Class;
use crate::verb::fill::{self, disk_size};
use crate::verb::refuse;
use crate::verb::stream::Incoming;
use anyhow::{Context as _, Result};
use std::fs::File;
use std::path::{Path, PathBuf};

/// The image to copy: where tools find it, what it is, and what keeps it unchanged meanwhile.
struct Original {
    path: PathBuf,
    file: File,
    found: image::Probe,
    _domain: Option<Domain>,
    _lease: Option<SlabLease>,
}

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    take(ctx, req, job, false)
}

/// The same; `given`: the peer gives the image as one file that needs no other.
pub(in crate::verb) fn take(ctx: &Ctx<'_>, req: &DsRequest, job: &Job, given: bool) -> Result<String> {
    if req.datastore.is_block() {
        return block::clone(ctx, req, job, given);
    }
    let path = req.image()?.path.clone().unwrap_or_default();
    if !matches!(one::image_path(&path)?, ImagePath::Local(_)) {
        return Err(refuse(Class::Usage, format!("{} is no image of a datastore", data::shown(&path))));
    }
    let watch = job.watch();
    let stream = if given { Some(Incoming::begin(ctx, job, &watch)?) } else { None };
    let ds = Ds::open(ctx, req, job)?;
    if let Some(answer) = ds.recorded()? {
        stream.map_or(Ok(()), Incoming::decline)?;
        return Ok(answer);
    }
    let (name, place) = ds.new_name()?;
    // Only the words of the request: the original may be gone when a repeat asks.
    let wanted = req.datastore.driver.as_deref().and_then(Format::from_word);
    let request = ds.request(&[&path, wanted.map_or("", Format::opennebula)]);
    let (original, _leases) = if given {
        (None, ds.lease_for(&place, stream.as_ref())?)
    } else if let Ok(source) = one::source_name(&req.datastore.base_path, &path) {
        let source = Name::parse(source.as_str())?;
        let leases = ds.lease(&[(&place, Mode::Exclusive), (&source, Mode::Shared)])?;
        settle::acknowledge(&ds.domain, &source, job);
        (Some(own(&ds, &source)?), leases)
    } else {
        let original = foreign(&ds, &path)?;
        let leases = ds.lease(&[(&place, Mode::Exclusive)])?;
        (Some(original), leases)
    };
    if let Some(made) = settle::made_by(&ds.domain, &place)?
        && made.request == request
    {
        stream.map_or(Ok(()), Incoming::decline)?;
        return Ok(made.answer);
    }
    let (mut work, original, staged) = match (original, stream) {
        (Some(original), _) => (Work::begin(&ds.domain, job, std::slice::from_ref(&place))?, original, None),
        (None, Some(stream)) => came(&ds, &place, stream).with_context(|| format!("cloning {path}"))?,
        (None, None) => return Err(refuse(Class::Internal, "an image that is nowhere")),
    };
    let from = original.found.format;
    // A chain, or another format, is read as the guest reads it; everything else byte for byte.
    // What is encrypted can only be copied as it is.
    let to = wanted.filter(|_| from != Format::Luks).unwrap_or(from);
    let (slab, format) = if original.found.backing.is_some() || to.opennebula() != from.opennebula() {
        let slab = ds.convert(&mut work, &original.path, from, to, disk_size(&original.found))?;
        (slab, to)
    } else if let Some(slab) = staged {
        (slab, from)
    } else {
        let slab = fill::copy(job, &mut work, &original.file, ds.sparse_as_source())
            .with_context(|| format!("cloning {path}"))?;
        (slab, from)
    };
    work.flush(&slab)?;
    let answer = format!("{} {}", name.source(&req.datastore.base_path), format.opennebula());
    let step = work.step_to(&slab, &place)?;
    (ctx.ready)()?;
    work.commit(&request, &answer, vec![step])?;
    Ok(answer)
}

/// What the peer gives, staged.
fn came<'d>(
    ds: &'d Ds<'_>,
    place: &Name,
    stream: Incoming<'_>,
) -> Result<(Work<'d>, Original, Option<Slab>)> {
    let opts = super::fetch_options(ds.ctx.settings, ds.req)?;
    let opts = FetchOptions { decompress: false, digests: Vec::new(), ..opts };
    let (work, slab) = ds.receive(place, stream, &opts)?;
    let file = slab.file.as_ref().context("a staged file has no file")?.try_clone()?;
    let found = look(&slab.path, &file)?;
    image::admit(&found, &fill::admit(ds.ctx))?;
    let path = slab.path.clone();
    Ok((work, Original { path, file, found, _domain: None, _lease: None }, Some(slab)))
}

/// An image of this very datastore; its lease is taken by the caller.
fn own(ds: &Ds<'_>, source: &Name) -> Result<Original> {
    let object = ds.resolve(source)?;
    let crate::engine::Place::Public(name) = &object.place else {
        return Err(refuse(Class::Internal, format!("{source} leads to no public object")));
    };
    if object.kind != Kind::File {
        return Err(refuse(Class::Unsupported, format!("{name} is no file that can be cloned")));
    }
    let path = ds.path(name)?;
    let file = fill::open(&path)?;
    let found = look(&path, &file)?;
    ds.known_chain(&path, &found)?;
    Ok(Original { path, file, found, _domain: None, _lease: None })
}

/// An image elsewhere: of another datastore, whose lease is taken when it is a domain of ours.
fn foreign(ds: &Ds<'_>, path: &str) -> Result<Original> {
    let plain: PathBuf = Path::new(path).components().collect();
    let datastores = &ds.ctx.settings.paths.datastores;
    let dir = plain.parent().filter(|d| d.parent().is_some_and(|p| same_dir(p, datastores)));
    let Some(dir) = dir else {
        let text = format!("{path} is not an image of a datastore below {}", datastores.display());
        return Err(refuse(Class::Refused, text));
    };
    let name = one::source_name(&dir.to_string_lossy(), path)?;
    let path = dir.join(name.as_str());
    let domain = match Domain::open_dir(dir) {
        Ok(d) => Some(d),
        // A datastore that stock drivers serve takes no part in our locks.
        Err(SdmError::NotADomain { .. }) => None,
        Err(e) => return Err(e.into()),
    };
    let lease = match &domain {
        Some(d) => {
            let waits = ds.job.jobs.waits.lock;
            lock::slab_leases(&*d.locks, &[(name.as_str(), Mode::Shared)], waits, ds.job.cancel())?.pop()
        }
        None => None,
    };
    let file = fill::open_image(&path)?;
    let found = look(&path, &file)?;
    ds.known_chain(&path, &found)?;
    Ok(Original { path, file, found, _domain: domain, _lease: lease })
}

fn same_dir(a: &Path, b: &Path) -> bool {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_owned());
    a == b || real(a) == real(b)
}

fn look(path: &Path, file: &File) -> Result<image::Probe> {
    image::probe(file).with_context(|| format!("looking at {}", path.display()))
}
