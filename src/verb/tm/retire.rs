//! The last step of a move between hosts: the source goes, and is kept aside. *State*. Only after its
//! destination was published, and only when it is still, file by file, what was sent from here, and nobody
//! has it open; else both places have the VM, and the one line says so. Design 5; red team 1.3.

use super::Tm;
use super::op::Retire;
use super::place::Spot;
use super::send::vm_source;
use super::tree::{self, Seen, Users};
use crate::lock::Mode;
use crate::sdm::Work;
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::Result;

pub(super) fn run(tm: &Tm<'_>, op: &Retire) -> Result<()> {
    let at = tm.open(Spot::vm(tm.ctx, &op.dir)?)?;
    let _leases = tree::lease(tm, &at, &tree::names(&at)?, Mode::Exclusive)?;
    if at.look(at.name())?.is_none() {
        return Ok(());
    }
    let seen = Seen::of(&at)?;
    if vm_source(&at, &seen) != op.source {
        let text = format!(
            "{} changed since it was copied; the copy is at its destination, and the source was left: look which \
             one is right and delete the other",
            op.dir
        );
        return Err(refuse(Class::Integrity, text));
    }
    seen.unused(&at, Users::None)?;
    let mut work = Work::begin(&at.domain, tm.job, std::slice::from_ref(at.name()))?;
    let steps = work.step_bury(at.name(), true)?.into_iter().collect();
    tm.ready()?;
    // What it was is remembered: the whole move may be asked for again.
    Ok(work.commit(&tm.request, &op.source, steps)?)
}
