//! A file that one host gives and another takes: its length, then its bytes, once the taker wants them.

use super::{Ctx, refuse};
use crate::data::{DataError, FetchOptions, Fetched, Given, Source, fetch};
use crate::host::Link;
use crate::one::ImagePath;
use crate::sdm::Job;
use crate::sys::{Class, copy as calls};
use anyhow::{Context as _, Result};
use std::fs::File;

const BLOCK: usize = 1 << 20;

fn peer<'a>(ctx: &Ctx<'a>) -> Result<&'a dyn Link> {
    ctx.peer.context("nobody is at the other end")
}

fn gone(doing: &'static str) -> DataError {
    DataError::Gone { doing }
}

/// Gives all of `file`, unless the taker has it already and ends without a word.
pub(super) fn give(ctx: &Ctx<'_>, file: &File, job: &Job) -> Result<()> {
    let link = peer(ctx)?;
    let failed = || gone("sending");
    if link.receive().map_err(|_| failed())?.is_none() {
        return Ok(());
    }
    let (_, len) = calls::measure(file).context("looking at the source")?;
    link.send(len.to_le_bytes().into()).map_err(|_| failed())?;
    job.phase("sending");
    let mut at = 0;
    loop {
        let mut block = vec![0; BLOCK];
        let n = calls::read_full(file, &mut block, at).context("reading the source")?;
        at += n as u64;
        if at > len || (n < BLOCK && at != len) {
            return Err(DataError::SourceChanged { before: len, after: at }.into());
        }
        if n == 0 {
            return Ok(());
        }
        block.truncate(n);
        link.send(block).map_err(|_| failed())?;
    }
}

/// Takes what the peer gives through the pipeline of all that comes in.
pub(super) fn fetched(ctx: &Ctx<'_>, dst: &File, opts: &FetchOptions, job: &Job) -> Result<Fetched> {
    let link = peer(ctx)?;
    let failed = || gone("receiving");
    link.send(vec![1]).map_err(|_| failed())?;
    let len =
        link.receive().map_err(|_| failed())?.and_then(|b| Some(u64::from_le_bytes(b.try_into().ok()?)));
    let len = len.ok_or_else(failed)?;
    let next = || link.receive().map_err(|_| failed());
    Ok(fetch::fetch(&Source::Given(&Given { len, next: &next }), dst, opts, &job.watch())?)
}

/// For verbs that were handed a source on another host as if it were here.
pub(super) fn elsewhere(from: &ImagePath) -> anyhow::Error {
    refuse(Class::Usage, format!("{} is on another host", from.shown()))
}
