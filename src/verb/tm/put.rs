//! What the front-end made and sends along becomes a disk of a VM: the context ISO. *Again*: an ISO that is
//! there goes, for it may hold secrets; anything else is kept aside. Contract 3.8.

use super::op::Put;
use super::place::Spot;
use super::{At, Tm};
use crate::engine::Kind;
use crate::lock::Mode;
use crate::sdm::Work;
use crate::sdm::work::Slab;
use crate::sys::effect::{Effect, step};
use crate::sys::{Bytes, Class, copy as calls, hex};
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::FileExt as _;

pub(super) fn run(tm: &Tm<'_>, op: &Put) -> Result<()> {
    let limit = fill::admit(tm.ctx).max_size;
    if op.size > limit.0 {
        let text = format!("{} of data; the limit is {limit} (`image.max_size`)", Bytes(op.size));
        return Err(refuse(Class::Usage, text));
    }
    let at = tm.open(Spot::disk(tm.ctx, &op.disk)?)?;
    if tm.recorded(&at.domain)? {
        return Ok(());
    }
    let _disk = tm.lease(&at, Mode::Exclusive)?;
    let iso = is_iso(&at)?;
    // A VM that runs keeps the ISO it has open, and gets the new one when its core says so.
    if !iso {
        at.not_in_use()?;
    }
    let mut work = tm.begin(&at)?;
    let slab = receive(tm, op, &mut work)?;
    work.flush(&slab)?;
    let mut steps = vec![work.step_over(&slab, at.name(), !iso)?];
    steps.extend(work.step_bury(&at.snap()?, true)?);
    tm.commit(&at, work, steps)
}

/// Whether the disk that is there now has the signature of a file system on CD-ROM.
fn is_iso(at: &At) -> Result<bool> {
    let plain = at.look(at.name())?.is_some_and(|o| o.kind == Kind::File);
    if !plain {
        return Ok(false);
    }
    let mut found = [0; 5];
    let file = fill::open(&at.path(at.name())?)?;
    let n =
        calls::read_full(&file, &mut found, 0x8001).with_context(|| format!("reading {}", at.spot.text()))?;
    Ok(n == found.len() && found == *b"CD001")
}

fn receive(tm: &Tm<'_>, op: &Put, work: &mut Work<'_>) -> Result<Slab> {
    let peer = tm.ctx.peer.context("nobody gives the data")?;
    let slab = work.file(Bytes(0))?;
    let file = slab.file.as_ref().context("a staged file has no file")?;
    let (mut at, mut digest) = (0, Sha256::new());
    tm.job.phase("receiving");
    let wrong = |what: &str| {
        let text = format!("the data for {} {what}; nothing was changed, try again", op.disk);
        refuse(Class::Integrity, text)
    };
    loop {
        let block = peer.receive().map_err(|e| refuse(Class::Remote, format!("receiving the data: {e}")))?;
        let Some(block) = block else { break };
        let end = at + block.len() as u64;
        if end > op.size {
            return Err(wrong("is longer than announced"));
        }
        digest.update(&block);
        step(Effect::Write, &[&slab.path], || file.write_all_at(&block, at))
            .with_context(|| format!("writing {}", op.disk))?;
        at = end;
    }
    if at != op.size {
        return Err(wrong("ends early"));
    }
    if hex(&digest.finalize()) != op.sha256 {
        return Err(wrong("is not what its digest says"));
    }
    Ok(slab)
}
