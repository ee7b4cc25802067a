//! `snap_create`. Raw: a copy. qcow2: the layer `s` that the disk writes to is frozen, an empty one `s+1`
//! over it becomes the disk. A leftover `s+1` is kept aside, it blocks nobody (L4).
//!
//! A persistent disk's layers are in the image's domain and its link is in the VM's. The layer comes first,
//! then the link. Whoever crashes between them leaves an empty layer that the disk does not use: both show
//! the same content, whatever the VM writes meanwhile; the next `snap_create` replaces it, and a `ln` that
//! takes it for the active one loses nothing. So there is nothing to finish in another domain.

use super::super::disk::Disk;
use super::super::op::Snap;
use super::super::{DiskFormat, Tm};
use crate::data::Sparse;
use crate::engine::Name;
use crate::image::Format;
use crate::sdm::Work;
use crate::sdm::record::Step;
use crate::sys::Class;
use crate::verb::snaps::{Snaps, children};
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};

pub(in crate::verb::tm) fn run(tm: &Tm<'_>, op: &Snap) -> Result<()> {
    let disk = super::open(tm, op)?;
    let is_chain = disk.format == DiskFormat::Qcow2;
    let decides = if is_chain { &disk.at } else { disk.home() };
    if tm.recorded(&decides.domain)? {
        return Ok(());
    }
    disk.home().not_in_use()?;
    if !is_chain {
        return copy(tm, &disk, op.snapshot);
    }
    // What had to stay while the machine ran; its number may be this one's.
    super::drop_all(tm, &disk, &disk.snaps(tm)?.going()?)?;
    Freeze::new(tm, &disk, op)?.run()
}

fn copy(tm: &Tm<'_>, disk: &Disk, snapshot: i64) -> Result<()> {
    let home = disk.home();
    let snaps = disk.snaps(tm)?;
    let mut work = tm.begin(home)?;
    work.parent(&home.snap()?)?;
    let slab = fill::copy(tm.job, &mut work, &fill::open(&disk.path()?)?, Sparse::Keep)?;
    work.flush(&slab)?;
    let step = work.step_to(&slab, &snaps.numbered(snapshot)?)?;
    tm.commit(home, work, vec![step])
}

/// Freezing the active layer of a chain.
struct Freeze<'a> {
    tm: &'a Tm<'a>,
    disk: &'a Disk,
    snaps: Snaps<'a>,
    /// The number of the layer that the disk writes to, and of the snapshot.
    active: i64,
    snapshot: i64,
    frozen: Name,
}

impl<'a> Freeze<'a> {
    fn new(tm: &'a Tm<'a>, disk: &'a Disk, op: &Snap) -> Result<Freeze<'a>> {
        let snaps = disk.snaps(tm)?;
        let active = disk.file.last().parse().ok().context("the disk's layer has no number")?;
        let frozen = snaps.numbered(op.snapshot)?;
        Ok(Freeze { tm, disk, snaps, active, snapshot: op.snapshot, frozen })
    }

    fn run(&self) -> Result<()> {
        let next = self.snapshot.checked_add(1).context("no number follows")?;
        let layers = self.snaps.layers()?;
        if self.active == self.snapshot {
            let over = self.snaps.numbered(next)?;
            if !children(&layers, &over).is_empty() {
                return Err(self.odd("its next layer is in use"));
            }
            return self.put(next, |_| Ok(Vec::new()));
        }
        let taken = self.snaps.file_of(self.snapshot)?.is_some() || self.snaps.look(&self.frozen)?.is_some();
        if !taken {
            // The number was skipped, or came again after all others went: the file gets that name, too.
            return self.put(next.max(self.active), |work| {
                let slab = work.adopt(&self.disk.file)?;
                let slab = slab.ok_or_else(|| self.odd("this storage gives no file a second name"))?;
                Ok(vec![work.step_to(&slab, &self.frozen)?])
            });
        }
        let on_frozen = children(&layers, &self.frozen);
        match on_frozen.as_slice() {
            [only] if only.name == self.disk.file && self.active == next => self.again(),
            _ => Err(self.odd("snapshots in between are in use")),
        }
    }

    /// The layer goes on top; the disk's link follows where its number is new.
    fn put(&self, n: i64, first: impl FnOnce(&mut Work<'_>) -> Result<Vec<Step>>) -> Result<()> {
        let (tm, home) = (self.tm, self.disk.home());
        let name = self.snaps.numbered(n)?;
        let mut work = tm.begin(home)?;
        let mut steps = first(&mut work)?;
        let (size, format) = self.under()?;
        let slab = self.snaps.layer(&mut work, &self.frozen, format, size)?;
        work.flush(&slab)?;
        steps.push(work.step_to(&slab, &name)?);
        // Under its second name the frozen file needs no first one.
        let spare = (n != self.active && self.active != self.snapshot).then_some(&self.disk.file);
        if n == self.active {
            return tm.commit(home, work, steps);
        }
        let to = self.snaps.linked_as(&name).to_string_lossy().into_owned();
        if self.disk.image.is_none() {
            let link = work.link(&to)?;
            work.flush(&link)?;
            steps.push(work.step_to(&link, self.disk.at.name())?);
            if let Some(spare) = spare {
                steps.extend(work.step_bury(spare, false)?);
            }
            return tm.commit(home, work, steps);
        }
        tm.commit(home, work, steps)?;
        let mut work = tm.begin(&self.disk.at)?;
        let link = work.link(&to)?;
        work.flush(&link)?;
        let step = work.step_to(&link, self.disk.at.name())?;
        tm.commit(&self.disk.at, work, vec![step])?;
        let Some(spare) = spare else { return Ok(()) };
        let mut work = tm.begin(home)?;
        let steps = work.step_bury(spare, false)?.into_iter().collect();
        tm.commit(home, work, steps)
    }

    fn under(&self) -> Result<(crate::sys::Bytes, Format)> {
        let found = crate::image::probe(&fill::open(&self.disk.path()?)?)?;
        Ok((fill::disk_size(&found), found.format))
    }

    /// The snapshot is there, and the disk went on over it: somebody made it and nobody heard of it. It is
    /// made anew: what the disk is now takes its place, under the same layers. Each of the two steps leaves
    /// the disk's content as it was.
    fn again(&self) -> Result<()> {
        let (tm, home) = (self.tm, self.disk.home());
        let mut work = tm.begin(home)?;
        let (merged, size) = self.snaps.merged(&mut work, &self.disk.file, &self.frozen)?;
        work.flush(&merged)?;
        let is_link =
            self.snaps.look(&self.frozen)?.is_some_and(|o| matches!(o.kind, crate::engine::Kind::Link(_)));
        let to = if is_link { home.name().clone() } else { self.frozen.clone() };
        let slab = self.snaps.layer(&mut work, &self.frozen, Format::Qcow2, size)?;
        work.flush(&slab)?;
        let steps = vec![work.step_to(&merged, &to)?, work.step_to(&slab, &self.disk.file)?];
        tm.commit(home, work, steps)
    }

    fn odd(&self, why: &str) -> anyhow::Error {
        let text = format!(
            "{} writes to layer {}, so that it cannot become snapshot {}: {why}; nothing was changed",
            self.disk.at.spot.text(),
            self.active,
            self.snapshot
        );
        refuse(Class::Integrity, text)
    }
}
