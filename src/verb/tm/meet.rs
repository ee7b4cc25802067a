//! Whether a datastore's directory is the same storage on two hosts. Each side leaves a sign of a random
//! name, the staging area of a job, and looks for the other's: no cache can know such a name. The first side
//! looks when it is told that both signs are there, the second before it says that its own is. Red team 1.1.

use super::Tm;
use super::op::{Meet, Met};
use super::place::Spot;
use crate::engine::Record;
use crate::sdm::Work;
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::{Context as _, Result};

pub(super) fn run(tm: &Tm<'_>, op: &Meet) -> Result<Met> {
    let (dir, ds) = Spot::datastore(tm.ctx, &op.dir)?;
    let domain = (tm.ctx.open)(&dir, ds).with_context(|| format!("opening datastore {ds}"))?;
    if op.other == tm.job.id {
        return Err(refuse(Class::Usage, "a host meets another, not itself"));
    }
    let _sign = Work::begin(&domain, tm.job, &[])?;
    let found = || Ok::<_, anyhow::Error>(domain.engine.record(op.other, Record::Intent)?.is_some());
    let answer = if op.first {
        tm.ready()?;
        found()?
    } else {
        let answer = found()?;
        tm.ready()?;
        answer
    };
    Ok(Met { domain: domain.header.id, found: answer })
}
