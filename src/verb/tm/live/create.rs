//! `snap_create_live`. A raw disk is copied. The layer of a qcow2 disk is frozen and an empty one above it
//! goes under the running machine; nothing the machine has open is ever renamed or replaced, so a number
//! that was skipped, or comes again, is kept in a `.current`.

use super::super::op::{Follow, SnapLive};
use super::super::{DiskFormat, Tm, snap};
use super::drives::Drive;
use super::guard::For;
use super::virsh::{Virsh, is_answer};
use super::{Live, held, inode, layer_of, save, staged_marker};
use crate::engine::Name;
use crate::lock::{LeaseId, LockError, Mode};
use crate::sdm::record::{Step, request_digest};
use crate::sys::{Cancel, Class};
use crate::verb::refuse;
use crate::verb::snaps::{Snaps, children};
use anyhow::{Context as _, Result};
use std::path::Path;

pub(in crate::verb::tm) fn create(tm: &Tm<'_>, op: &SnapLive) -> Result<()> {
    let mut live = Live::open(tm, &op.snap.disk, &op.machine, Mode::Exclusive)?;
    snap::fits(&op.snap, &live.disk)?;
    let is_chain = live.disk.format == DiskFormat::Qcow2;
    let decides = if is_chain { &live.disk.at } else { live.disk.home() };
    if tm.recorded(&decides.domain)? {
        return Ok(());
    }
    let virsh = Virsh::new(tm, &op.machine, tm.job.cancel());
    let drives = live.ready(&virsh)?;
    if is_chain {
        // Once the machine is held nothing is cut short.
        return Switch::new(&live, op)?.run(&Virsh::new(tm, &op.machine, &Cancel::default()), &drives);
    }
    save::snapshot(&live, op.snap.snapshot)
}

/// Putting a new layer under the machine.
struct Switch<'a> {
    live: &'a Live<'a>,
    op: &'a SnapLive,
    snaps: Snaps<'a>,
    /// The layer that will be written to.
    layer: Name,
}

impl<'a> Switch<'a> {
    fn new(live: &'a Live<'a>, op: &'a SnapLive) -> Result<Switch<'a>> {
        let snaps = live.disk.snaps(live.tm)?;
        let layers = snaps.layers()?;
        let over: Vec<&Name> = children(&layers, &live.disk.file).iter().map(|l| &l.name).collect();
        // Above all that means something.
        let numbers = snaps.objects()?.into_iter().filter(|(_, name, _)| !over.contains(&name)).map(|o| o.0);
        let marks = snaps.markers()?.into_iter().map(|m| m.n);
        let top = numbers.chain(marks).chain([op.snap.snapshot]).max().unwrap_or(op.snap.snapshot);
        let layer = snaps.numbered(top.checked_add(1).context("no number follows")?)?;
        Ok(Switch { live, op, snaps, layer })
    }

    fn run(&self, virsh: &Virsh<'_>, drives: &[Drive]) -> Result<()> {
        let (tm, disk) = (self.live.tm, &self.live.disk);
        self.publish()?;
        let path = disk.home().path(&self.layer)?;
        let mut work = tm.begin(&disk.at)?;
        let link = work.link(&self.snaps.recorded_as(&self.layer).to_string_lossy())?;
        work.flush(&link)?;
        let step = work.step_to(&link, disk.at.name())?;
        if let Some(plan) = &tm.job.jobs.plan {
            let (target, path) = (&self.op.machine.target, path.display());
            virsh.planned(plan, &format!("until its disk {target} goes on in {path}"))?;
            return tm.commit(&disk.at, work, vec![step]);
        }
        tm.job.phase("switching");
        let held = self.live.guard(virsh, For::Switch).and_then(|mut guard| guard.hold().map(|()| guard));
        let mut guard = match held {
            Ok(guard) => guard,
            Err(e) => {
                drop(work);
                return self.undo(e);
            }
        };
        let switched = if tm.job.cancel().is_requested() {
            Err((LockError::Cancelled(LeaseId::Domain).into(), true))
        } else {
            self.switch(virsh, drives, &path)
        };
        if let Err((e, is_over)) = switched {
            drop(work);
            guard.free()?;
            guard.end();
            return if is_over { self.undo(e) } else { Err(e) };
        }
        if let Err(e) = tm.commit(&disk.at, work, vec![step]) {
            // Such as a request to stop. The guard, which nobody stops, moves the link once our leases are free.
            guard.leave();
            return Err(e.context(format!("the machine writes to {} now", self.layer)));
        }
        // A machine that was let go too early has its link now.
        guard.free()?;
        guard.end();
        Ok(())
    }

    /// The layer gets its name, and the snapshot a mark where its number is not that of its file. Nobody uses
    /// either before the machine does. What an earlier attempt left above the machine's layer is kept aside.
    fn publish(&self) -> Result<()> {
        let (tm, disk, home) = (self.live.tm, &self.live.disk, self.live.disk.home());
        let layers = self.snaps.layers()?;
        let mut work = tm.begin(home)?;
        let slab = self.snaps.overlay(&mut work, &layers, &disk.file)?;
        work.flush(&slab)?;
        let mut steps = vec![work.step_to(&slab, &self.layer)?];
        for left in children(&layers, &disk.file) {
            if held(&home.path(&left.name)?)? {
                let text = format!("{} is above what the machine writes to, and in use", left.name);
                return Err(refuse(Class::Integrity, text));
            }
            if left.name != self.layer {
                steps.extend(work.step_bury(&left.name, true)?);
            }
        }
        let (s, own) = (self.op.snap.snapshot, disk.file.last() == self.op.snap.snapshot.to_string());
        for m in self.snaps.markers()? {
            if m.n == s && m.going && m.file != self.snaps.numbered(s)? {
                let text =
                    format!("snapshot {s} was deleted while the machine ran, and its layer is still there");
                return Err(refuse(Class::Busy, text));
            }
            // No snapshot's content is in what is being written to.
            if m.file == disk.file && m.n != s || m.n == s && own {
                steps.extend(work.step_bury(&self.snaps.marker(m.n)?, true)?);
            }
        }
        if !own {
            let at = home.spot.dir.join(home.snap()?.as_str());
            let mark = staged_marker(&mut work, &at, &disk.file, false)?;
            steps.push(work.step_to(&mark, &self.snaps.marker(s)?)?);
        }
        tm.ready()?;
        // Not yet what was asked for, so this record answers no repeat.
        Ok(work.commit(&request_digest(&["prepared", &tm.request]), "", steps)?)
    }

    /// On failure, whether it is certain that nothing happened or will.
    fn switch(&self, virsh: &Virsh<'_>, drives: &[Drive], layer: &Path) -> Result<(), (anyhow::Error, bool)> {
        let others: Vec<&str> = drives.iter().skip(1).map(|d| d.target.as_str()).collect();
        let number = self.live.disk.at.name().last().trim_start_matches("disk.");
        let name = format!("{number}-{}", self.op.snap.snapshot);
        let Err(e) = virsh.switch(&name, layer, &others) else { return arrived(layer) };
        if !is_answer(&e) {
            // Libvirt may be at it still; it serves one request at a time, so this one's end is that one's.
            let _ = virsh.suspend();
        }
        // Whatever was said: a machine that has the layer open writes to it.
        if held(layer).unwrap_or(true) {
            return Ok(());
        }
        let is_over = is_answer(&e);
        Err((anyhow::Error::from(e).context("putting the new layer under the machine"), is_over))
    }

    /// Takes back what nobody came to use.
    fn undo(&self, why: anyhow::Error) -> Result<()> {
        let (tm, disk, home) = (self.live.tm, &self.live.disk, self.live.disk.home());
        let undo = || -> Result<()> {
            let mut work = tm.begin(home)?;
            let mut steps: Vec<Step> = work.step_bury(&self.layer, false)?.into_iter().collect();
            if disk.file.last() != self.op.snap.snapshot.to_string() {
                steps.extend(work.step_bury(&self.snaps.marker(self.op.snap.snapshot)?, false)?);
            }
            Ok(work.commit(&request_digest(&["undone", &tm.request]), "", steps)?)
        };
        match undo() {
            Ok(()) => Err(why),
            Err(e) => Err(why.context(format!("{} is left, unused ({e:#})", self.layer))),
        }
    }
}

/// What was said is believed when the machine has the layer open, or nobody can tell.
fn arrived(layer: &Path) -> Result<(), (anyhow::Error, bool)> {
    if let Ok(false) = held(layer) {
        let text = "virsh said that the machine uses its new layer, but it does not have it open";
        return Err((refuse(Class::Remote, text), true));
    }
    Ok(())
}

pub(in crate::verb::tm) fn follow(tm: &Tm<'_>, op: &Follow) -> Result<()> {
    let live = Live::open(tm, &op.disk, &op.machine, Mode::Exclusive)?;
    let virsh = Virsh::new(tm, &op.machine, tm.job.cancel());
    if live.disk.format == DiskFormat::Qcow2 && virsh.drives()?.is_some() {
        catch_up(&live, Live::top(&virsh.disks()?))?;
    }
    Ok(())
}

/// Moves the disk's link to the layer that the machine writes to, if that builds on the one it leads to.
/// Answers the layer where the link was moved.
pub(super) fn catch_up(live: &Live<'_>, top: &Path) -> Result<Option<Name>> {
    let (tm, disk) = (live.tm, &live.disk);
    let now = inode(&disk.path()?)?;
    let writes = inode(top)?;
    if writes == now {
        return Ok(None);
    }
    let snaps = disk.snaps(tm)?;
    let layers = snaps.layers()?;
    let layer = layer_of(&layers, writes).filter(|l| !l.is_link);
    let ahead = match layer {
        Some(_) => {
            crate::image::chain_as(top, crate::image::Format::Qcow2)?.iter().any(|f| (f.dev, f.ino) == now)
        }
        None => false,
    };
    let Some(layer) = layer.filter(|_| ahead) else {
        let (path, name) = (top.display(), disk.at.spot.text());
        let text =
            format!("the machine writes to {path}, which does not build on {name}; nothing was changed");
        return Err(refuse(Class::Integrity, text));
    };
    let mut work = tm.begin(&disk.at)?;
    let link = work.link(&snaps.recorded_as(&layer.name).to_string_lossy())?;
    work.flush(&link)?;
    let step = work.step_to(&link, disk.at.name())?;
    tm.ready()?;
    work.commit(&request_digest(&["followed", &tm.request]), "", vec![step])?;
    Ok(Some(layer.name.clone()))
}
