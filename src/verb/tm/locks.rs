//! Whether this host's locks in a datastore and those of the front-end exclude each other: the front-end holds one
//! byte and has let go of another.

use super::Tm;
use super::op::{Locks, Tried};
use super::place::Spot;
use crate::sdm::proof;
use anyhow::{Context as _, Result};

pub(super) fn run(tm: &Tm<'_>, op: &Locks) -> Result<Tried> {
    let (dir, ds) = Spot::datastore(tm.ctx, &op.dir)?;
    let domain = (tm.ctx.open)(&dir, ds).with_context(|| format!("opening datastore {ds}"))?;
    let alone = domain.is_alone()?.is_some();
    Ok(Tried { alone, held: proof::is_free(&domain, &op.held)?, free: proof::is_free(&domain, &op.free)? })
}
