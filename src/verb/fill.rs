//! Filling staged slabs, with copies and conversions, and judging what they are made from. Datastore
//! and transfer-manager verbs share it.

use super::{Ctx, refuse};
use crate::config::Settings;
use crate::data::{self, HttpOptions, Planned, Sparse};
use crate::image::{self, Admit, Convert, Format, Probe, Space, Target};
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work};
use crate::sys::effect::{Effect, only_looks, step};
use crate::sys::fs::{self, Dir};
use crate::sys::{Bytes, Class, copy as calls};
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

/// The rules for images that come in.
pub(super) fn admit(ctx: &Ctx<'_>) -> Admit {
    Admit { max_size: max_size(ctx.settings), allow: ctx.settings.image.allow.clone() }
}

pub(super) fn max_size(s: &Settings) -> Bytes {
    s.image.max_size.unwrap_or(Admit::default().max_size)
}

/// How servers are asked.
pub(super) fn http(s: &Settings) -> HttpOptions {
    HttpOptions {
        connect_timeout: s.http.connect_timeout,
        stall_timeout: s.http.stall_timeout,
        retries: s.http.retries,
        ca_file: s.http.ca_file.clone(),
        insecure: s.http.insecure,
        ..HttpOptions::default()
    }
}

/// The size of the disk in an image, or of the image where the format does not say.
pub(super) fn disk_size(probe: &Probe) -> Bytes {
    probe.virtual_size.or(probe.length).unwrap_or_default()
}

pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}

/// Opens an image by its own name: no link is followed to what may be no image.
pub(super) fn open_image(path: &Path) -> Result<File> {
    let (dir, name) = (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default());
    let opened = Dir::open(dir).and_then(|d| d.open_file(Path::new(name), false));
    opened.map_err(|e| match e.kind() {
        ErrorKind::NotFound => refuse(Class::NotFound, format!("{} does not exist", path.display())),
        ErrorKind::PermissionDenied => anyhow::Error::from(e).context(format!("opening {}", path.display())),
        _ => refuse(Class::Unsupported, format!("{} is no file that can be cloned: {e}", path.display())),
    })
}

/// What an image is, as its header says.
pub(super) fn header(path: &Path) -> Result<Probe> {
    image::probe(&open(path)?).with_context(|| format!("looking at {}", path.display()))
}

/// Looks at what a tool was to make: one that ends with status 0 has not always done its work.
pub(super) fn made(path: &Path, format: Format, size: Bytes) -> Result<()> {
    if only_looks() {
        return Ok(());
    }
    let found = header(path)?;
    if found.format.opennebula() == format.opennebula() && disk_size(&found) >= size {
        return Ok(());
    }
    let text =
        format!("qemu-img made {} of {} instead of {format} of {size}", found.format, disk_size(&found));
    Err(refuse(Class::Integrity, text))
}

/// A new slab with the bytes of `source`.
pub(super) fn copy(job: &Job, work: &mut Work<'_>, source: &File, sparse: Sparse) -> Result<Slab> {
    let slab = work.file(Bytes(0))?;
    let file = slab.file.as_ref().context("a staged file has no file")?;
    let copied = data::copy(source, file, sparse, &job.watch())?;
    job.method(copied.method.as_str());
    as_source(slab, source)
}

/// To a plan the copy is the source.
pub(super) fn as_source(slab: Slab, source: &File) -> Result<Slab> {
    if !only_looks() {
        return Ok(slab);
    }
    Ok(Slab { path: data::path_of(source).into(), file: Some(source.try_clone()?), ..slab })
}

/// How to convert an image.
#[derive(Clone, Copy)]
pub(super) struct Conversion {
    pub from: Format,
    pub to: Format,
    /// Of the disk, for progress.
    pub size: Bytes,
    pub sparse: bool,
}

/// Converts the disk that `src` shows, with its whole chain, into `dst`, which the job has open already.
pub(super) fn convert(
    ctx: &Ctx<'_>,
    job: &Job,
    keep: &[BorrowedFd<'_>],
    files: (&Path, &Path),
    how: Conversion,
) -> Result<()> {
    convert_as(ctx, job, keep, files, how, false)
}

/// The same; the source may be open in a machine that stands still.
pub(super) fn convert_as(
    ctx: &Ctx<'_>,
    job: &Job,
    keep: &[BorrowedFd<'_>],
    (src, dst): (&Path, &Path),
    how: Conversion,
    in_use: bool,
) -> Result<()> {
    run(ctx, job, keep, (src, dst), how, (Target::Create, in_use))?;
    made(dst, how.to, how.size)
}

/// Pours the disk that `src` shows into a slab that reads zero and is large enough.
pub(super) fn pour(
    ctx: &Ctx<'_>,
    job: &Job,
    keep: &[BorrowedFd<'_>],
    (src, from): (&Path, Format),
    dst: &Path,
    size: Bytes,
) -> Result<()> {
    let how = Conversion { from, to: Format::Raw, size, sparse: true };
    run(ctx, job, keep, (src, dst), how, (Target::Zeroed, false))
}

fn run(
    ctx: &Ctx<'_>,
    job: &Job,
    keep: &[BorrowedFd<'_>],
    (src, dst): (&Path, &Path),
    how: Conversion,
    (target, in_use): (Target, bool),
) -> Result<()> {
    job.may_move()?;
    job.phase("converting");
    let watch = job.watch();
    if only_looks() {
        let (from, method) = (src.display().to_string(), format!("convert {} to {}", how.from, how.to));
        watch.progress.plan(Planned { from, size: Some(how.size.0), data: None, how: method, device: None });
        return Ok(());
    }
    watch.progress.total(how.size.0);
    let mut last = 0;
    let mut report = |done: Bytes| {
        watch.progress.add(done.0.saturating_sub(last));
        last = done.0;
    };
    let progress = Some(image::Progress { total: how.size, report: &mut report });
    let args = Convert { target, sparse: how.sparse, in_use, options: &[], progress };
    ctx.qemu(job, keep).convert((src, how.from), (dst, how.to), args)?;
    job.method("convert");
    Ok(())
}

/// The same into a new slab.
pub(super) fn converted(
    ctx: &Ctx<'_>,
    job: &Job,
    work: &mut Work<'_>,
    src: &Path,
    how: Conversion,
) -> Result<Slab> {
    let slab = work.file(Bytes(0))?;
    convert(ctx, job, &work.keep_held(), (src, &slab.path), how)?;
    Ok(slab)
}

/// Grows a disk, staged or leased, that the job has open; what is large enough stays as it is. Not
/// flushed. A crash leaves the same content, and the same call made again completes it.
pub(super) fn grow(
    ctx: &Ctx<'_>,
    job: &Job,
    keep: &[BorrowedFd<'_>],
    (file, path, format): (&File, &Path, Format),
    size: Bytes,
    sparse: bool,
) -> Result<()> {
    if let Some(plan) = &job.jobs.plan {
        plan.note(format!("the new one is grown to {size}"));
        return Ok(());
    }
    if !format.is_raw() {
        let space = if sparse { Space::AsNeeded } else { Space::Reserved };
        ctx.qemu(job, keep).resize(path, format, size, space)?;
        return made(path, format, size);
    }
    let now = file.metadata().with_context(|| format!("looking at {}", path.display()))?.len();
    let larger = size.0 > now;
    let reserved = larger && !sparse && step(Effect::Truncate, &[path], || calls::reserve(file, size.0))?;
    if larger && !reserved {
        fs::set_len(file, path, size.0)?;
    }
    Ok(())
}

/// The files of one image or disk: itself and those directly in its `.snap`.
#[derive(Clone, Debug)]
pub(super) struct Own {
    image: PathBuf,
    snap: PathBuf,
}

impl Own {
    /// Of the image that `path` is or is a snapshot of; links are followed.
    pub fn of(path: &Path) -> Own {
        Own::at(&path.canonicalize().unwrap_or_else(|_| path.to_owned()))
    }

    /// Of the name `path`, even when a link has it; only its directory is resolved.
    pub fn named(path: &Path) -> Own {
        let real = path.parent().and_then(|d| d.canonicalize().ok());
        Own::at(&real.zip(path.file_name()).map_or_else(|| path.to_owned(), |(d, n)| d.join(n)))
    }

    fn at(path: &Path) -> Own {
        let dir = path.parent().filter(|d| d.extension().is_some_and(|e| e == "snap"));
        let image = dir.map_or_else(|| path.to_owned(), |d| d.with_extension(""));
        let mut snap = image.clone().into_os_string();
        snap.push(".snap");
        Own { image, snap: snap.into() }
    }

    pub fn has(&self, real: &Path) -> bool {
        real == self.image || real.parent() == Some(&self.snap)
    }
}

/// Refuses an image that reads files other than those of `own`: a guest may have written the header,
/// and what it names may be another tenant's disk.
pub(super) fn known_chain(ctx: &Ctx<'_>, own: &[Own], path: &Path, found: &Probe) -> Result<()> {
    if found.backing.is_none() && found.data_file.is_none() && found.extents.is_empty() {
        return Ok(());
    }
    let allowed = |p: &OsStr| {
        let words = ctx.settings.image.allow.iter();
        words.filter_map(|w| w.strip_prefix("backing:")).any(|w| OsStr::new(w) == p)
    };
    for link in image::chain_as(path, found.format)? {
        if !own.iter().any(|o| o.has(&link.real)) && !allowed(link.real.as_os_str()) {
            let (path, real) = (path.display(), link.real.display());
            let text = format!(
                "{path} builds on {real}, which is no part of it; if that is meant, add \"backing:{real}\" to `image.allow`"
            );
            return Err(refuse(Class::Refused, text));
        }
        image::admit(&Probe { backing: None, ..link.probe }, &admit(ctx))?;
    }
    Ok(())
}
