//! `mkimage`, `mkswap`: empty disks that live and die with their VM. *Again*: a disk that is there is kept
//! aside. Contract 3.8.

use super::Tm;
use super::op::{MakeImage, MakeSwap};
use super::place::Spot;
use crate::lock::Mode;
use crate::sys::{Bytes, Class};
use crate::verb::blank::Blank;
use crate::verb::{fill, refuse};
use anyhow::Result;

pub(super) fn swap(tm: &Tm<'_>, op: &MakeSwap) -> Result<()> {
    make(tm, &op.disk, op.size_mib, ("swap", None), true)
}

pub(super) fn image(tm: &Tm<'_>, op: &MakeImage) -> Result<()> {
    let fs = op.fs.as_deref().filter(|fs| !fs.is_empty());
    make(tm, &op.disk, op.size_mib, (&op.format, fs), op.sparse)
}

fn make(tm: &Tm<'_>, disk: &str, mib: u64, what: (&str, Option<&str>), sparse: bool) -> Result<()> {
    let blank = Blank::plan(tm.ctx, what.0, what.1)?;
    let limit = fill::admit(tm.ctx).max_size;
    let size = Bytes::mib(mib).filter(|s| s.0 > 0 && *s <= limit).ok_or_else(|| {
        let text = format!("a disk of {mib} MiB is not possible; the limit is {limit} (`image.max_size`)");
        refuse(Class::Usage, text)
    })?;
    let at = tm.open(Spot::disk(tm.ctx, disk)?)?;
    if tm.recorded(&at.domain)? {
        return Ok(());
    }
    let _disk = tm.lease(&at, Mode::Exclusive)?;
    at.not_in_use()?;
    let mut work = tm.begin(&at)?;
    let slab = blank.make(tm.ctx, tm.job, &mut work, size, sparse)?;
    work.flush(&slab)?;
    let mut steps = vec![work.step_to(&slab, at.name())?];
    steps.extend(work.step_bury(&at.snap()?, true)?);
    tm.commit(&at, work, steps)
}
