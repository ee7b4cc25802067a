//! What a running machine's disk is at one moment, copied. Libvirt mirrors the disk into a staged file until
//! that has caught up; then the machine is held still for as long as it takes to end the mirror. Where that
//! is not possible the machine stands still for the whole copy, and a copy that takes too long is none.

use super::super::op::{self, Cpds, Machine};
use super::super::place::Spot;
use super::super::{DiskFormat, Tm};
use super::Live;
use super::guard::For;
use super::virsh::{Virsh, is_answer};
use crate::data::{self, Planned, Sparse};
use crate::image::{self, Format};
use crate::lock::Mode;
use crate::sdm::Work;
use crate::sdm::event::What;
use crate::sdm::work::Slab;
use crate::sys::{Bytes, Cancel, Class};
use crate::verb::fill::{self, Conversion, disk_size};
use crate::verb::refuse;
use anyhow::{Context as _, Result};

/// `cpds` of a running machine. Its image is no target: it is open.
pub(in crate::verb::tm) fn save(tm: &Tm<'_>, op: &Cpds, machine: &Machine) -> Result<()> {
    let target = tm.open(Spot::image(tm.ctx, &op.target)?)?;
    if tm.recorded(&target.domain)? {
        return Ok(());
    }
    let _target = tm.lease(&target, Mode::Exclusive)?;
    let live = Live::settled(tm, &op.disk, machine)?;
    let mut work = tm.begin(&target)?;
    let slab = live.copied(&mut work)?;
    work.flush(&slab)?;
    let step = work.step_to(&slab, target.name())?;
    tm.commit(&target, work, vec![step])
}

impl<'a> Live<'a> {
    /// To be copied: what it builds on must not change, and its link must not move.
    pub(in crate::verb::tm) fn settled(
        tm: &'a Tm<'a>,
        disk: &'a op::Disk,
        machine: &'a Machine,
    ) -> Result<Live<'a>> {
        let mut live = Live::open(tm, disk, machine, Mode::Exclusive)?;
        live.ready(&Virsh::new(tm, machine, tm.job.cancel()))?;
        Ok(live)
    }

    /// What the disk is now, staged.
    pub(in crate::verb::tm) fn copied(&self, work: &mut Work<'_>) -> Result<Slab> {
        copied(self, work)
    }
}

/// A snapshot of a raw disk: a copy beside it.
pub(super) fn snapshot(live: &Live<'_>, n: i64) -> Result<()> {
    let (tm, home) = (live.tm, live.disk.home());
    let snaps = live.disk.snaps(tm)?;
    let mut work = tm.begin(home)?;
    work.parent(&home.snap()?)?;
    let slab = copied(live, &mut work)?;
    work.flush(&slab)?;
    let step = work.step_to(&slab, &snaps.numbered(n)?)?;
    tm.commit(home, work, vec![step])
}

fn copied(live: &Live<'_>, work: &mut Work<'_>) -> Result<Slab> {
    let (tm, disk) = (live.tm, &live.disk);
    // Not when the machine stands still.
    tm.job.may_move()?;
    let is_chain = disk.format == DiskFormat::Qcow2;
    let snaps = disk.snaps(tm)?;
    let layers = if is_chain { snaps.layers()? } else { Vec::new() };
    let virsh = Virsh::new(tm, live.machine, tm.job.cancel());
    let opened = live.opened(&virsh, &layers)?;
    let top = &opened.first().context("a machine without a file")?.file;
    let (format, size) =
        if is_chain { (Format::Qcow2, disk_size(&top.probe)) } else { (Format::Raw, length(live)?) };
    let slab = work.file(Bytes(0))?;
    if let Some(plan) = &tm.job.jobs.plan {
        let what = Planned::file(&fill::open(&top.real)?, "mirror")?;
        // Of a chain each file has some of it.
        let data = what.data.filter(|_| !is_chain);
        tm.job.watch().progress.plan(Planned { size: Some(size.0), data, ..what });
        let when = "for a moment when libvirt's mirror of the disk has caught up, or for the whole copy where there is none";
        virsh.planned(plan, when)?;
        return Ok(slab);
    }
    let file = slab.file.as_ref().context("a staged file has no file")?;
    if is_chain {
        tm.ctx.qemu(tm.job, &work.keep_held()).create(&slab.path, Format::Qcow2, size, None, &[])?;
    } else {
        crate::sys::fs::set_len(file, &slab.path, size.0)?;
    }
    if mirrored(live, &virsh, &slab, format)? {
        fill::made(&slab.path, format, size)?;
        return Ok(slab);
    }
    tm.job.phase("copying");
    let never = Cancel::default();
    let calm = Virsh::new(tm, live.machine, &never);
    let mut guard = live.guard(&calm, For::Copy)?;
    guard.hold()?;
    let done = if is_chain {
        // Its layers were judged; what is open is read with the same rights as by other readers.
        let how = Conversion { from: Format::Qcow2, to: Format::Qcow2, size, sparse: true };
        fill::convert_as(tm.ctx, tm.job, &work.keep_held(), (&top.real, &slab.path), how, true)
    } else {
        data::copy(&fill::open(&disk.path()?)?, file, Sparse::Keep, &tm.job.watch())
            .map(|c| tm.job.method(c.method.as_str()))
            .map_err(anyhow::Error::from)
    };
    let whole = guard.free()?;
    guard.end();
    done?;
    if !whole {
        let text =
            format!("machine {} could not be held still for as long as the copy took", live.machine.domain);
        return Err(refuse(Class::Timeout, text));
    }
    Ok(slab)
}

fn length(live: &Live<'_>) -> Result<Bytes> {
    let found = image::probe_as(&fill::open(&live.disk.path()?)?, Format::Raw)?;
    Ok(disk_size(&found))
}

/// `false`: libvirt cannot do it for this disk.
fn mirrored(live: &Live<'_>, virsh: &Virsh<'_>, slab: &Slab, format: Format) -> Result<bool> {
    let tm = live.tm;
    tm.job.phase("mirroring");
    let never = Cancel::default();
    let calm = Virsh::new(tm, live.machine, &never);
    // Dropped, it ends the mirror.
    let mut guard = live.guard(&calm, For::Mirror(&slab.path))?;
    match virsh.mirror(&slab.path, format.opennebula()) {
        Ok(()) => {}
        Err(e) if is_answer(&e) && calm.job()?.is_none() => {
            guard.end();
            let text = format!("the disk is copied while the machine stands still: {e}");
            tm.job.tell(What::Warning { text });
            return Ok(false);
        }
        Err(e) => return Err(anyhow::Error::from(e).context("mirroring the disk")),
    }
    guard.hold()?;
    let ended = calm.end_job();
    let whole = guard.free()?;
    ended.context("ending the mirror of the disk")?;
    guard.end();
    if !whole {
        let text = format!("machine {} did not stand still while its mirror was ended", live.machine.domain);
        return Err(refuse(Class::Timeout, text));
    }
    tm.job.method("mirror");
    Ok(true)
}
