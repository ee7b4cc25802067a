//! A machine held still for a moment in which something is done to its disk that libvirt has no part in.

use super::super::Tm;
use super::super::op::{self, Machine};
use super::guard::For;
use super::virsh::Virsh;
use super::{Live, guard, inode};
use crate::sys::{Cancel, Class};
use crate::verb::refuse;
use anyhow::Result;
use std::path::Path;

/// Does it while nobody writes to this device, the machine's disk, the guest's file systems flushed where its agent
/// does that. What was done while the machine had gone on meanwhile is an error, and the caller's to undo.
pub(in crate::verb::tm) fn still<T>(
    tm: &Tm<'_>,
    (disk, device): (&op::Disk, &Path),
    machine: &Machine,
    act: impl FnOnce() -> Result<T>,
) -> Result<T> {
    // Once it is held nothing is cut short.
    let never = Cancel::default();
    let virsh = Virsh::new(tm, machine, &never);
    virsh.sound()?;
    let drives = virsh.disks()?;
    let (top, name) = (Live::top(&drives), &machine.domain);
    if inode(top)? != inode(device)? {
        let (top, target, device) = (top.display(), &machine.target, device.display());
        let text =
            format!("machine {name} has {top} as its disk {target}, not {device}; nothing was changed");
        return Err(refuse(Class::Integrity, text));
    }
    if let Some(plan) = &tm.job.jobs.plan {
        virsh.planned(plan, &format!("for as long as a snapshot of {} takes", device.display()))?;
        return act();
    }
    let mut guard = guard(tm, &virsh, disk, For::Copy)?;
    guard.hold()?;
    let done = act();
    let whole = guard.free()?;
    guard.end();
    let done = done?;
    if !whole {
        let text = format!("machine {name} could not be held still for as long as it took");
        return Err(refuse(Class::Timeout, text));
    }
    Ok(done)
}
