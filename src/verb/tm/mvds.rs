//! `mvds` where the image's datastore is shared: what the VM wrote is in the image already. That is looked
//! at, because the VM's directory is deleted next: a private file in place of the link, as some drivers left
//! it, would be lost with it.

use super::Tm;
use super::disk::Disk;
use super::op::{self, Mvds};
use super::place::Spot;
use crate::lock::Mode;
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::Result;

pub(super) fn run(tm: &Tm<'_>, op: &Mvds) -> Result<()> {
    let at = tm.open(Spot::disk(tm.ctx, &op.disk.path)?)?;
    if at.look(at.name())?.is_none() {
        // Done before, and the VM's directory deleted since.
        return Ok(());
    }
    let disk = op::Disk { image: Some(op.target.clone()), ..op.disk.clone() };
    let disk = Disk::open(tm, &disk, Mode::Shared)?;
    if disk.image.is_some() {
        return Ok(());
    }
    let text = format!(
        "{} is a file of its own and not {}: what the VM wrote is not in the image; copy it there first",
        op.disk.path, op.target
    );
    Err(refuse(Class::Integrity, text))
}
