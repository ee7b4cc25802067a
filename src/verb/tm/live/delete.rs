//! `snap_delete` of a running machine. A snapshot directly below what the machine writes to is pulled up
//! into it. Any other takes in the layer above it, whose snapshot is in its file from then on (`.current`).
//! One that the machine does not build on goes as if nothing ran.
//!
//! The layer that takes in another is neither snapshot while libvirt works. So it is marked as going first:
//! its snapshot is no more from then on, and its file is only what others build on. The layer above stays,
//! with its content, until the other has all of it; a crash between leaves both, and whoever deletes again
//! goes on from what is there.

use super::super::op::SnapLive;
use super::super::{DiskFormat, Tm, snap};
use super::virsh::Virsh;
use super::{Live, Open, held, inode, layer_of, staged_marker};
use crate::data::Planned;
use crate::engine::Name;
use crate::lock::Mode;
use crate::sdm::event::What;
use crate::sdm::plan::Plan;
use crate::sdm::record::request_digest;
use crate::sdm::remove;
use crate::sys::{Cancel, Class, ToolError};
use crate::verb::snaps::{Layer, Snaps, children};
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};

pub(in crate::verb::tm) fn delete(tm: &Tm<'_>, op: &SnapLive) -> Result<()> {
    let mut live = Live::open(tm, &op.snap.disk, &op.machine, Mode::Exclusive)?;
    snap::fits(&op.snap, &live.disk)?;
    let virsh = Virsh::new(tm, &op.machine, tm.job.cancel());
    if live.disk.format != DiskFormat::Qcow2 {
        let (snaps, home) = (live.disk.snaps(tm)?, live.disk.home());
        let Some(file) = snaps.file_of(op.snap.snapshot)? else { return Ok(()) };
        tm.ready()?;
        let names = [file, snaps.marker(op.snap.snapshot)?];
        remove::remove(&home.domain, tm.job, &names, &tm.request)?;
        return Ok(());
    }
    live.ready(&virsh)?;
    let snaps = live.disk.snaps(tm)?;
    let wanted = snaps.file_of(op.snap.snapshot)?.map(|f| (op.snap.snapshot, f));
    // Those of before first: what is asked for now may build on them.
    let gone: Vec<(i64, Name)> = snaps.going()?.into_iter().chain(wanted).collect();
    if gone.is_empty() {
        return Ok(());
    }
    tm.job.may_move()?;
    tm.ready()?;
    gone.iter().try_for_each(|(n, file)| Deletion { live: &live, virsh: &virsh, n: *n, file }.run())
}

/// One snapshot on its way out.
struct Deletion<'a> {
    live: &'a Live<'a>,
    virsh: &'a Virsh<'a>,
    n: i64,
    file: &'a Name,
}

impl Deletion<'_> {
    fn run(&self) -> Result<()> {
        let (tm, disk) = (self.live.tm, &self.live.disk);
        snap::not_the_disk(disk, self.file, self.n)?;
        let snaps = disk.snaps(tm)?;
        let layers = snaps.layers()?;
        let opened = self.live.opened(self.virsh, &layers)?;
        let at = inode(&disk.home().path(self.file)?)?;
        match opened.iter().position(|o| o.at() == at) {
            None => self.aside(&layers),
            Some(0) => Err(refuse(Class::Integrity, format!("the machine writes to {}", self.file))),
            Some(1) => self.pull(&snaps, &opened),
            Some(i) => self.commit(&snaps, &layers, &opened, i),
        }
    }

    /// Nobody has it open, nor what builds on it.
    fn aside(&self, layers: &[Layer]) -> Result<()> {
        let (tm, disk) = (self.live.tm, &self.live.disk);
        let on = children(layers, self.file);
        for name in [self.file].into_iter().chain(on.iter().map(|l| &l.name)) {
            if held(&disk.home().path(name)?)? {
                let text =
                    format!("{name} is open in a running VM, which does not name it; nothing was changed");
                return Err(refuse(Class::InUse, text));
            }
        }
        snap::drop_one(tm, disk, self.n, self.file)
    }

    /// What the machine writes to gets what it has from the snapshot.
    fn pull(&self, snaps: &Snaps<'_>, opened: &[Open]) -> Result<()> {
        let [top, file, below @ ..] = opened else { return Ok(()) };
        let base = below.first();
        let relative = top.names_relatively() && base.is_some() && file.names_relatively();
        if base.is_some_and(|b| b.stale) && !relative {
            return self.later(snaps);
        }
        let handle = base.map(|b| self.live.handle(b)).transpose()?;
        if let Some(plan) = self.planned(file, "pull")? {
            let (path, file) = (top.file.real.display(), self.file);
            plan.end(format!(
                "{path} gets what it has from {file}, which then goes as it would from a disk at rest"
            ));
            return Ok(());
        }
        self.live.tm.job.phase("pulling");
        self.work(self.virsh.pull(handle.as_deref(), relative))?;
        let layers = snaps.layers()?;
        let at = inode(&self.live.disk.home().path(self.file)?)?;
        if self.live.opened(self.virsh, &layers)?.iter().any(|o| o.at() == at) {
            return Err(refuse(
                Class::Remote,
                format!("libvirt did not take {} out of the chain", self.file),
            ));
        }
        // Layers that no machine has open may build on it, too.
        self.aside(&layers)
    }

    /// The layer above goes down into the snapshot's file.
    fn commit(&self, snaps: &Snaps<'_>, layers: &[Layer], opened: &[Open], i: usize) -> Result<()> {
        let (tm, home) = (self.live.tm, self.live.disk.home());
        let (over, top, file) = (&opened[i - 2], &opened[i - 1], &opened[i]);
        if file.stale || (i > 2 && over.stale) {
            // Libvirt would open another file by this name, and write to that.
            return self.later(snaps);
        }
        let upper = layer_of(layers, top.at()).context("a layer of the machine is none of the disk")?;
        // What builds on the snapshot beside the machine keeps what it shows.
        let others: Vec<&Layer> =
            children(layers, self.file).into_iter().filter(|l| l.at != top.at()).collect();
        if !others.is_empty() {
            for other in &others {
                if held(&home.path(&other.name)?)? {
                    return Err(refuse(Class::InUse, format!("{} is open in a running VM", other.name)));
                }
            }
            let work = tm.begin(home)?;
            snaps.relieve(&work, &others, self.file)?;
        }
        if self.planned(top, "merge")?.is_some() {
            return self.hand_over(snaps, &upper.name, upper.n);
        }
        self.mark_going(snaps)?;
        let relative = over.names_relatively() && top.names_relatively();
        let handles = (self.live.handle(top)?, self.live.handle(file)?);
        tm.job.phase("merging");
        self.work(self.virsh.commit(&handles.0, &handles.1, relative))?;
        let now = self.live.opened(self.virsh, &snaps.layers()?)?;
        let at = inode(&home.path(self.file)?)?;
        if now.iter().any(|o| o.at() == upper.at)
            || !now.iter().any(|o| o.at() == at)
            || held(&home.path(&upper.name)?)?
        {
            return Err(refuse(
                Class::Remote,
                format!("libvirt did not take {} out of the chain", upper.name),
            ));
        }
        self.hand_over(snaps, &upper.name, upper.n)
    }

    /// To a plan, what libvirt would move while the machine runs.
    fn planned(&self, of: &Open, how: &str) -> Result<Option<&Plan>> {
        let job = self.live.tm.job;
        if job.jobs.plan.is_some() {
            job.watch().progress.plan(Planned::file(&fill::open(&of.file.real)?, how)?);
        }
        Ok(job.jobs.plan.as_ref())
    }

    /// The snapshots whose content was in `upper` have it in the file now; `upper` goes.
    fn hand_over(&self, snaps: &Snaps<'_>, upper: &Name, number: i64) -> Result<()> {
        let (tm, disk, home) = (self.live.tm, &self.live.disk, self.live.disk.home());
        let markers = snaps.markers()?;
        let mut whose: Vec<i64> =
            markers.iter().filter(|m| m.file == *upper && !m.going).map(|m| m.n).collect();
        if snaps.file_of(number)?.as_ref() == Some(upper) {
            whose.push(number);
        }
        let mut work = tm.begin(home)?;
        let dir = home.spot.dir.join(home.snap()?.as_str());
        let mut steps = Vec::new();
        for n in whose {
            let mark = staged_marker(&mut work, &dir, self.file, false)?;
            steps.push(work.step_to(&mark, &snaps.marker(n)?)?);
        }
        for m in markers.iter().filter(|m| m.n == self.n || (m.file == *upper && m.going)) {
            steps.extend(work.step_bury(&snaps.marker(m.n)?, false)?);
        }
        steps.extend(work.step_bury(upper, false)?);
        if let Some(image) = &disk.image {
            // The image itself may have changed.
            steps.extend(work.step_bury(&image.name().with_suffix(".md5sum")?, false)?);
        }
        Ok(work.commit(&tm.request, "", steps)?)
    }

    /// The snapshot is no more; its file stays for what builds on it.
    fn mark_going(&self, snaps: &Snaps<'_>) -> Result<()> {
        let (tm, home) = (self.live.tm, self.live.disk.home());
        if snaps.going()?.iter().any(|(n, _)| *n == self.n) {
            return Ok(());
        }
        let mut work = tm.begin(home)?;
        let dir = home.spot.dir.join(home.snap()?.as_str());
        let mark = staged_marker(&mut work, &dir, self.file, true)?;
        let step = work.step_to(&mark, &snaps.marker(self.n)?)?;
        Ok(work.commit(&request_digest(&["going", &tm.request]), "", vec![step])?)
    }

    fn later(&self, snaps: &Snaps<'_>) -> Result<()> {
        self.mark_going(snaps)?;
        let text = format!(
            "snapshot {} is deleted, but its layer {} stays until the VM was powered off: the machine knows a file by \
             a name that leads to another one now",
            self.n, self.file
        );
        self.live.tm.job.tell(What::Warning { text });
        Ok(())
    }

    /// A block job that was cut short is ended, so that it does not go on unseen.
    fn work(&self, done: Result<(), ToolError>) -> Result<()> {
        let Err(e) = done else { return Ok(()) };
        let never = Cancel::default();
        let virsh = Virsh { cancel: &never, ..*self.virsh };
        if matches!(virsh.job(), Ok(Some(_))) {
            let _ = virsh.end_job();
        }
        Err(anyhow::Error::from(e).context(format!("taking {} out of the chain of the machine", self.file)))
    }
}
