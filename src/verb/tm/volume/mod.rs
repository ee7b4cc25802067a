//! Disks on volume groups (contract 3.7): a persistent one is its image's volume, any other a thin volume in
//! the VM's pool in the image's group, or a thick one, each by its own datastore (D24). `disk.<n>` leads to the device. The
//! volume is published first, then the link decides; a removal goes the other way, so that no link leads
//! nowhere. Nothing here happens under a name alone: what is removed is what this disk's name says.

mod make;
mod snap;

use super::op::{self, Delete, Machine};
use super::place::Spot;
use super::{At, DiskFormat, Tm, delete, live};
use crate::engine::{Access, Handover, Name, Spec};
use crate::lock::Mode;
use crate::one::Volume;
use crate::sdm::work::Slab;
use crate::sdm::{Work, group, remove};
use crate::sys::Class;
use crate::sys::effect::only_looks;
use crate::verb::group::{Group, name, pool};
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnVolume {
    /// `<datastores>/<system ds>/<vm>/disk.<n>`
    pub disk: String,
    /// `<group>/<volume>` that the disk is.
    pub volume: String,
    /// An image that machines only read: those of several hosts may have it.
    #[serde(default)]
    pub readonly: bool,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// A copy of an image. *Again*.
    Clone { image: String, size_mib: Option<u64>, thin: bool },
    /// The image itself. *State*.
    Link,
    /// An empty disk. *Again*.
    Make { size_mib: u64, format: String, fs: Option<String>, thin: bool },
    /// The image has it all already; the link goes, and the device. *State*.
    Store,
    /// The disk, or a snapshot of it, becomes the content of an image. *Again*.
    Save { snapshot: Option<i64>, target: String },
    /// The same of the disk of a machine that runs, as it is at one moment. *Again*.
    SaveLive { target: String, machine: Machine },
    /// This host has its device no longer: another one is to have it. The link stays. *State*.
    Release,
    /// Its machine goes to another host while it runs, which may have the device, too, from here on. *State*.
    Lend,
    /// This host has the device, too, and the link. *State*.
    Borrow,
    /// Its machine stays: this host has the device alone. *State*.
    Keep,
    /// The link goes, and a volume that is the VM's own. *State*.
    Delete,
    /// *Again*.
    SnapCreate { snapshot: i64 },
    /// Of the disk of a machine that runs. *Again*.
    SnapCreateLive { snapshot: i64, machine: Machine },
    /// *Again*.
    SnapRevert { snapshot: i64 },
    /// *State*.
    SnapDelete { snapshot: i64 },
    /// Grows it, also while its machine runs. *State*.
    Resize { size_mib: u64 },
}

/// All that a VM has, of the groups of these datastores too. *State*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gone {
    /// `<datastores>/<system ds>/<vm>`
    pub dir: String,
    pub stores: Vec<i64>,
}

/// A disk at work: its place, its volume, its group.
struct Disk<'a> {
    tm: &'a Tm<'a>,
    at: At,
    v: Volume,
    g: Group<'a>,
    readonly: bool,
}

pub(super) fn run(tm: &Tm<'_>, op: &OnVolume) -> Result<()> {
    let at = tm.open(Spot::disk(tm.ctx, &op.disk)?)?;
    let v = Volume::parse_any(&op.volume)?;
    let own = |vm, disk| format!("{vm}/disk.{disk}") == at.name().as_str();
    if v.vm_and_disk().is_some_and(|(vm, disk)| !own(vm, disk)) {
        let text = format!("{} is not the volume of {}; nothing was changed", op.volume, op.disk);
        return Err(refuse(Class::Usage, text));
    }
    let g = Group::open(tm.ctx, tm.job, v.ds)?;
    let readonly = op.readonly && v.vm_and_disk().is_none();
    let disk = Disk { tm, at, v, g, readonly };
    match &op.what {
        What::Clone { image, size_mib, thin } => make::clone(&disk, image, *size_mib, *thin),
        What::Link => make::link(&disk),
        What::Make { size_mib, format, fs, thin } => {
            make::blank(&disk, *size_mib, (format, fs.as_deref()), *thin)
        }
        What::Store => disk.store(),
        What::Save { snapshot, target } => make::save(&disk, *snapshot, target),
        What::SaveLive { target, machine } => make::save_live(&disk, target, machine),
        What::Release => disk.release(),
        What::Lend => disk.hand_over(Handover::Lend),
        What::Borrow => disk.borrow(),
        What::Keep => disk.hand_over(Handover::Keep),
        What::Delete => disk.delete(),
        What::SnapCreate { snapshot } => snap::create(&disk, *snapshot, None),
        What::SnapCreateLive { snapshot, machine } => snap::create(&disk, *snapshot, Some(machine)),
        What::SnapRevert { snapshot } => snap::revert(&disk, *snapshot),
        What::SnapDelete { snapshot } => snap::delete(&disk, *snapshot),
        What::Resize { size_mib } => snap::resize(&disk, *size_mib),
    }
}

impl Disk<'_> {
    /// What the link says.
    fn target(&self) -> String {
        format!("/dev/{}", self.v.source())
    }

    /// A thin snapshot of what the machine's disk is at one moment, staged.
    fn moment(&self, work: &mut Work<'_>, machine: &Machine) -> Result<Slab> {
        let disk = op::Disk { path: self.at.spot.text(), image: None, format: DiskFormat::Raw };
        let (volume, device) = (name(&self.v)?, PathBuf::from(self.target()));
        self.g.attach(&volume, Access::Write)?;
        live::still(self.tm, (&disk, &device), machine, || {
            if !only_looks() {
                // What this host's memory holds of it belongs to it.
                fill::open(&device)?.sync_all().with_context(|| format!("flushing {}", self.v))?;
            }
            Ok(work.slab(&Spec::Clone(volume))?)
        })
    }

    /// The device is there and the link leads to it.
    fn show(&self) -> Result<()> {
        self.g.attach(&name(&self.v)?, if self.readonly { Access::Share } else { Access::Write })?;
        let to = self.target();
        if self.at.link()?.as_deref() == Some(to.as_str()) {
            return Ok(());
        }
        let mut work = self.tm.begin(&self.at)?;
        let link = work.link(&to)?;
        work.flush(&link)?;
        let steps = vec![work.step_to(&link, self.at.name())?];
        self.tm.commit(&self.at, work, steps)
    }

    /// Takes the link away; one to anything else is not ours to take, nor is a file where a link to an image should
    /// be: what is in it is nowhere else.
    fn hide(&self) -> Result<()> {
        if self.at.look(self.at.name())?.is_none() {
            return Ok(());
        }
        let to = self.at.link()?;
        let is_ours = to.as_ref().map_or(self.v.vm_and_disk().is_some(), |to| *to == self.target());
        if !is_ours {
            let text = format!("{} does not lead to {}; nothing was changed", self.at.spot.text(), self.v);
            return Err(refuse(Class::Integrity, text));
        }
        self.tm.ready()?;
        let names = [self.at.name().clone(), self.at.snap()?];
        remove::remove(&self.at.domain, self.tm.job, &names, &self.tm.request)?;
        Ok(())
    }

    fn store(&self) -> Result<()> {
        let _volume = self.g.lease(&[(&self.v, Mode::Exclusive)])?;
        let _disk = self.tm.lease(&self.at, Mode::Exclusive)?;
        if self.readonly {
            self.hide()?;
            return self.leave();
        }
        let parts = self.g.parts(&self.v)?;
        self.g.not_in_use(&parts)?;
        self.hide()?;
        self.tm.ready()?;
        self.g.detach(&[parts, vec![pool(&self.v)?]].concat());
        Ok(())
    }

    /// The device stays as long as a disk of another VM leads there, whether that VM runs or not.
    fn leave(&self) -> Result<()> {
        self.tm.ready()?;
        let (own, device) = (self.at.spot.path(), PathBuf::from(self.target()));
        let root = self.at.spot.dir.parent().unwrap_or(&self.at.spot.dir);
        if group::is_linked(root, &device, &own)? { Ok(()) } else { self.g.leave(&name(&self.v)?) }
    }

    /// With all that shares its pool, which is one host's or another's as a whole.
    fn release(&self) -> Result<()> {
        let _volume = self.g.lease(&[(&self.v, Mode::Exclusive)])?;
        if self.readonly {
            return self.leave();
        }
        let pool = pool(&self.v)?;
        let all = match self.g.look(&pool)? {
            Some(_) => [self.g.in_pool(&self.v)?, vec![pool]].concat(),
            None => self.g.parts(&self.v)?,
        };
        self.tm.ready()?;
        self.g.release(&all)
    }

    fn hand_over(&self, step: Handover) -> Result<()> {
        if self.readonly {
            // Both may have it anyway.
            return Ok(());
        }
        let _volume = self.g.lease(&[(&self.v, Mode::Exclusive)])?;
        self.tm.ready()?;
        self.g.hand_over(&self.v, step)
    }

    fn borrow(&self) -> Result<()> {
        let _volume = self.g.lease(&[(&self.v, Mode::Exclusive)])?;
        let _disk = self.tm.lease(&self.at, Mode::Exclusive)?;
        if !self.readonly {
            self.g.hand_over(&self.v, Handover::Borrow)?;
        }
        self.show()
    }

    fn delete(&self) -> Result<()> {
        if self.v.vm_and_disk().is_none() {
            return self.store();
        }
        let own = [self.at.name().clone(), self.at.snap()?];
        let volume = [name(&self.v)?];
        let ended = remove::outrank(&self.at.domain, self.tm.job, &own)?;
        let ended = remove::outrank(&self.g.domain, self.tm.job, &volume)? && ended;
        let _leases = if ended {
            let volume = self.g.lease(&[(&self.v, Mode::Exclusive)])?;
            [volume, self.tm.lease(&self.at, Mode::Exclusive)?].into_iter().flatten().collect()
        } else {
            Vec::new()
        };
        self.g.not_in_use(&self.g.parts(&self.v)?)?;
        self.hide()?;
        self.tm.ready()?;
        remove::remove(&self.g.domain, self.tm.job, &self.g.whole(&self.v)?, &self.tm.request)?;
        Ok(())
    }
}

/// The VM's directory, then what is left of it in the groups.
pub(super) fn gone(tm: &Tm<'_>, op: &Gone) -> Result<()> {
    let vm = Spot::vm(tm.ctx, &op.dir)?.name;
    delete::run(tm, &Delete { path: op.dir.clone() })?;
    for ds in &op.stores {
        // Any of the VM's disks will do: they lie in one pool.
        let Some(v) = vm.as_str().parse().ok().map(|vm| Volume::disk(*ds, vm, 0)) else { continue };
        let g = Group::open(tm.ctx, tm.job, *ds)?;
        let all = || -> Result<Vec<Name>> { Ok([g.in_pool(&v)?, vec![pool(&v)?]].concat()) };
        let ended = remove::outrank(&g.domain, tm.job, &all()?)?;
        let _lease = if ended { g.lease(&[(&v, Mode::Exclusive)])? } else { Vec::new() };
        g.not_in_use(&g.in_pool(&v)?)?;
        tm.ready()?;
        remove::remove(&g.domain, tm.job, &all()?, &tm.request)?;
    }
    Ok(())
}
