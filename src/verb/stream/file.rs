//! One file through a stream: a source that is to become an image.

use super::{Incoming, Parts, odd};
use crate::data::extent::{Have, Land};
use crate::data::{FetchOptions, Source, Sparse, fetch};
use crate::engine::Object;
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work};
use crate::sys::{Bytes, fs};
use anyhow::{Context as _, Result};
use std::fs::File;

/// What the only entry is called.
pub const NAME: &str = "disk";

/// Takes it as a slab, with its digests verified and unpacked as what comes from anywhere else. `had`: what an
/// earlier attempt had of it.
pub fn file(
    job: &Job,
    work: &mut Work<'_>,
    stream: Incoming<'_>,
    had: Vec<Object>,
    opts: &FetchOptions,
) -> Result<Slab> {
    let (parts, have) = Parts::of(job, work, had, NAME, NAME)?;
    let mut one = One { work, parts, sparse: opts.sparse != Sparse::Full, slab: None };
    stream.take(have, &mut one)?;
    let slab = one.slab.ok_or_else(|| odd("nothing"))?;
    let came = opened(&slab)?;
    let mut plain = None;
    unpacked(job, &came, opts, || opened(plain.insert(work.file(Bytes(0))?)))?;
    let Some(plain) = plain else { return Ok(slab) };
    // Its space is needed for what comes next.
    fs::set_len(&came, &slab.path, 0)?;
    Ok(plain)
}

/// The same as a file without a name, which `make` makes: nobody resumes it.
pub fn unnamed(
    job: &Job,
    stream: Incoming<'_>,
    opts: &FetchOptions,
    make: impl Fn() -> Result<File>,
) -> Result<File> {
    let came = make()?;
    stream.take(Have::default(), &mut Nameless(&came))?;
    Ok(unpacked(job, &came, opts, make)?.unwrap_or(came))
}

/// Verified, and, where it is compressed, unpacked into another file.
fn unpacked(
    job: &Job,
    came: &File,
    opts: &FetchOptions,
    make: impl FnOnce() -> Result<File>,
) -> Result<Option<File>> {
    if !opts.decompress || !fetch::is_packed(came)? {
        fetch::verify(came, &opts.digests, &job.watch())?;
        return Ok(None);
    }
    let plain = make()?;
    let opts = FetchOptions { limit: None, ..opts.clone() };
    fetch::fetch(&Source::File(came.try_clone()?), &plain, &opts, &job.watch())?;
    Ok(Some(plain))
}

fn opened(slab: &Slab) -> Result<File> {
    Ok(slab.file.as_ref().context("a staged file has no file")?.try_clone()?)
}

struct One<'a, 'w> {
    work: &'a mut Work<'w>,
    parts: Parts,
    sparse: bool,
    slab: Option<Slab>,
}

impl Land for One<'_, '_> {
    type Error = anyhow::Error;

    fn dir(&mut self, path: &str, _: u32) -> Result<()> {
        Err(odd(path))
    }

    fn link(&mut self, path: &str, _: &str) -> Result<()> {
        Err(odd(path))
    }

    fn file(&mut self, path: &str, _: u32, size: u64) -> Result<File> {
        if path != NAME {
            return Err(odd(path));
        }
        let slab = self.parts.slab(self.work, path, size, self.sparse)?;
        let file = opened(&slab)?;
        self.slab = Some(slab);
        Ok(file)
    }

    fn complete(&mut self, _: &str, _: &File) -> Result<()> {
        Ok(())
    }
}

struct Nameless<'a>(&'a File);

impl Land for Nameless<'_> {
    type Error = anyhow::Error;

    fn dir(&mut self, path: &str, _: u32) -> Result<()> {
        Err(odd(path))
    }

    fn link(&mut self, path: &str, _: &str) -> Result<()> {
        Err(odd(path))
    }

    fn file(&mut self, path: &str, _: u32, _: u64) -> Result<File> {
        if path == NAME { Ok(self.0.try_clone()?) } else { Err(odd(path)) }
    }

    fn complete(&mut self, _: &str, _: &File) -> Result<()> {
        Ok(())
    }
}
