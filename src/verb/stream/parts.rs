//! What an attempt that was cut had received of the same source, file by file: what of it is still what was
//! sent is not sent again. Nothing is believed that was not read back, and read from the medium: the
//! descriptor that saw errors of writing is gone with its job.

use crate::data::DataError;
use crate::data::extent::{Have, digests};
use crate::engine::{Access, Kind, Object};
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work};
use crate::sys::effect::{Effect, step};
use crate::sys::fs::{self, Dir, Kind as Entry};
use crate::sys::{Bytes, copy as calls};
use anyhow::{Context as _, Result};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Bytes of a file, or of all that arrived: fewer are sent again in no time.
const WORTH: u64 = 1 << 20;

/// By the path that they have in the stream.
#[derive(Default)]
pub struct Parts(HashMap<String, Part>);

enum Part {
    Slab(Object),
    /// In a directory that is no place for it now.
    File(PathBuf),
}

impl Parts {
    /// Of slabs that were taken over: a file is `file` in the stream, what lies in a directory lies in `dir`.
    pub fn of(job: &Job, work: &Work<'_>, had: Vec<Object>, file: &str, dir: &str) -> Result<(Parts, Have)> {
        let mut found = Vec::new();
        for o in had {
            match (&o.kind, work.domain.engine.attach(&o.place, Access::Read)) {
                (Kind::File, Ok(at)) => found.push((file.to_owned(), at.path, Part::Slab(o))),
                (Kind::Dir, Ok(at)) => below(&Dir::open(&at.path)?, dir, &mut found)?,
                _ => {}
            }
        }
        let (mut parts, mut have, mut most) = (Parts::default(), Have::default(), HashMap::new());
        for (path, at, part) in found {
            job.phase("reading what arrived before");
            let reading = || format!("reading {}", at.display());
            let opened = File::options().read(true).write(true).open(&at).with_context(reading)?;
            if opened.metadata()?.len() < WORTH {
                continue;
            }
            fs::sync_file(&opened, &at).with_context(reading)?;
            calls::forget(&opened);
            let chunks = digests(&opened, &job.watch())?;
            let before = most.get(&path).copied().unwrap_or(0);
            if chunks.len() > before {
                most.insert(path.clone(), chunks.len());
                if have.add(&path, chunks) {
                    parts.0.insert(path, part);
                }
            }
        }
        Ok((parts, have))
    }

    /// The slab that this is, with what it has, or an empty one. `sparse`: or space for all of it is taken.
    pub fn slab(&mut self, work: &mut Work<'_>, path: &str, size: u64, sparse: bool) -> Result<Slab> {
        let slab = match self.0.remove(path) {
            Some(Part::Slab(o)) => work.reopen(&o)?,
            _ => work.file(Bytes(0))?,
        };
        if let Some(file) = slab.file.as_ref().filter(|_| !sparse && size > 0) {
            step(Effect::Truncate, &[&slab.path], || calls::reserve(file, size))
                .context("reserving space")?;
        }
        Ok(slab)
    }

    /// The file that this is, put into its place with what it has; `None`: there is none.
    pub fn file(&mut self, path: &str, dir: &Dir, name: &OsStr) -> Result<Option<File>> {
        let Some(Part::File(at)) = self.0.remove(path) else { return Ok(None) };
        let (Some(from), Some(old)) = (at.parent(), at.file_name()) else { return Ok(None) };
        Dir::open(from)?.rename_new(old, dir, name)?;
        Ok(Some(dir.open_file(Path::new(name), true)?))
    }
}

/// Why a transfer ended. After a cut what arrived stays, for a repeat or the collector, as after a crash; who
/// stops us wants nothing of it.
pub fn kept(job: &Job, work: Work<'_>, e: anyhow::Error) -> anyhow::Error {
    let engine = &work.domain.engine;
    let arrived = || -> Result<u64> {
        let staged = engine.staged(job.id)?;
        staged.iter().try_fold(0, |sum, o| Ok(sum + engine.weight(&o.place)?.0))
    };
    let is_cut = matches!(e.downcast_ref(), Some(DataError::Gone { .. }));
    if is_cut && !job.cancel().is_requested() && arrived().is_ok_and(|bytes| bytes >= WORTH) {
        work.leave();
    }
    e
}

fn below(dir: &Dir, at: &str, out: &mut Vec<(String, PathBuf, Part)>) -> Result<()> {
    for name in dir.names()? {
        let Some(path) = name.to_str().map(|n| format!("{at}/{n}")) else { continue };
        match dir.entry(&name)?.map(|e| e.kind) {
            Some(Entry::Dir) => below(&dir.sub(Path::new(&name))?, &path, out)?,
            Some(Entry::File) => {
                let file = dir.path().join(&name);
                out.push((path, file.clone(), Part::File(file)));
            }
            _ => {}
        }
    }
    Ok(())
}
