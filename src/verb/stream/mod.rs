//! Streams of extents between hosts, for whoever gives or takes in one: the peer of a request is the other
//! end. The giver says first what its source is; the taker answers what it has of it, or that it wants nothing.

mod file;
mod parts;

pub use file::{NAME, file, unnamed};
pub use parts::{Parts, kept};

use super::fill::admit;
use super::{Ctx, refuse};
use crate::data::extent::{Have, Land, Limits, Received, Receiver, Sender};
use crate::data::{DataError, Watch};
use crate::host::Link;
use crate::one::ImagePath;
use crate::sdm::Job;
use crate::sdm::record::request_digest;
use crate::sys::Class;
use crate::sys::effect::only_looks;
use anyhow::{Context as _, Result};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

/// Of a VM's directory with all its disks and snapshots.
const ENTRIES: usize = 100_000;

fn peer<'a>(ctx: &Ctx<'a>) -> Result<&'a dyn Link> {
    ctx.peer.ok_or_else(|| refuse(Class::Usage, "a transfer needs another side to it"))
}

/// What tells a source, unchanged, from every other. Begins with its domain, if it has one.
pub(super) fn identity(domain: Option<uuid::Uuid>, state: &[&str]) -> String {
    let domain = domain.map_or_else(|| "-".to_owned(), |id| id.to_string());
    format!("{domain} {}", request_digest(state))
}

/// A file's part in it.
pub(super) fn state(file: &File) -> Result<String> {
    let m = file.metadata().context("looking at the source")?;
    Ok(format!("{} {} {}.{:09}", m.ino(), m.len(), m.mtime(), m.mtime_nsec()))
}

/// Gives the entries, unless nothing is wanted; the stream's digest.
pub(super) fn give(
    ctx: &Ctx<'_>,
    job: &Job,
    (source, limit): (&str, Option<u64>),
    entries: impl FnOnce(&mut Sender<'_>) -> Result<()>,
) -> Result<Option<String>> {
    let (link, watch) = (peer(ctx)?, job.watch());
    let gone = || DataError::Gone { doing: "sending" };
    let mut sink = |block| if only_looks() { Ok(()) } else { link.send(block).map_err(|_| gone()) };
    job.phase("sending");
    let mut sender = Sender::begin(source, limit, &watch, &mut sink)?;
    if only_looks() {
        return entries(&mut sender).map(|()| None);
    }
    if !sender.wanted(|| link.receive().ok().flatten().ok_or_else(gone))? {
        return Ok(None);
    }
    entries(&mut sender)?;
    let sent = sender.end()?;
    tracing::debug!(sent.size, sent.data, sent.wire, "sent");
    job.method("extents");
    Ok(Some(sent.digest))
}

/// A stream that has begun, and nothing of it yet.
pub(super) struct Incoming<'a> {
    link: &'a dyn Link,
    job: &'a Job,
    receiver: Receiver<'a>,
    pub source: String,
}

fn gone() -> DataError {
    DataError::Gone { doing: "receiving" }
}

impl<'a> Incoming<'a> {
    pub fn begin(ctx: &Ctx<'a>, job: &'a Job, watch: &'a Watch) -> Result<Incoming<'a>> {
        let limits = Limits { entries: ENTRIES, size: admit(ctx).max_size.0 };
        let (link, receiver) = (peer(ctx)?, Receiver::new(limits, watch));
        let mut stream = Incoming { link, job, receiver, source: String::new() };
        if only_looks() {
            return Ok(stream);
        }
        job.phase("receiving");
        match stream.next(&mut Nothing)? {
            Received::Begun { source } => Ok(Incoming { source, ..stream }),
            _ => Err(refuse(Class::Integrity, "a stream that does not begin")),
        }
    }

    fn next(&mut self, land: &mut impl Land<Error = anyhow::Error>) -> Result<Received> {
        let block = self.link.receive().ok().flatten().ok_or_else(gone)?;
        self.receiver.take(&block, land)
    }

    fn answer(&mut self, have: Have, wanted: bool) -> Result<()> {
        for block in self.receiver.answer(have, wanted)? {
            self.link.send(block).map_err(|_| gone())?;
        }
        Ok(())
    }

    /// What comes of it is there already.
    pub fn decline(mut self) -> Result<()> {
        self.answer(Have::default(), false)
    }

    /// All of it, except for what is here.
    pub fn take(mut self, have: Have, land: &mut impl Land<Error = anyhow::Error>) -> Result<()> {
        if only_looks() {
            return Err(DataError::Planned.into());
        }
        self.answer(have, true)?;
        self.job.phase("receiving");
        while !matches!(self.next(land)?, Received::Ended { .. }) {}
        self.job.method("extents");
        Ok(())
    }
}

/// The refusal of an entry that nobody expects.
pub(super) fn odd(path: &str) -> anyhow::Error {
    let text = format!("{path:?} has no place in what is received; nothing was changed");
    refuse(Class::Refused, text)
}

/// For verbs that were handed a source on another host as if it were here.
pub(super) fn elsewhere(from: &ImagePath) -> anyhow::Error {
    refuse(Class::Usage, format!("{} is on another host", from.shown()))
}

/// Nothing was asked for, so nothing comes.
struct Nothing;

impl Land for Nothing {
    type Error = anyhow::Error;
    fn dir(&mut self, path: &str, _: u32) -> Result<()> {
        Err(odd(path))
    }
    fn link(&mut self, path: &str, _: &str) -> Result<()> {
        Err(odd(path))
    }
    fn file(&mut self, path: &str, _: u32, _: u64) -> Result<File> {
        Err(odd(path))
    }
    fn complete(&mut self, path: &str, _: &File) -> Result<()> {
        Err(odd(path))
    }
}
