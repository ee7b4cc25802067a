//! `sdm_lvm`, `lvm`: a disk is a volume of its image's group, a volatile one of the group of the VM's first image;
//! the VM's directory has links. Contract 3.7; each disk has the group of its own datastore (D24).

use super::super::op::{self, Op, What as Sent};
use super::super::volume::{Gone, OnVolume, What};
use super::pair::{is_shared, reach_both, transfer};
use super::shared::{Of, not_yet, text};
use super::{At, Front, local, migrate};
use crate::one::{
    Cpds, Disk, FromImage, HostName, Leaf, Migrate, Mkimage, Mv, Mvds, Place, TmCall, Vm, VmPath, Volume, lcm,
};
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

pub(super) fn run(front: &Front<'_>, verb: &str, call: TmCall) -> Result<String> {
    let of = Lvm { of: Of { front, ssh: true }, front };
    match call {
        TmCall::Clone(c) => of.clone(&c),
        TmCall::Ln(c) => {
            let vm = of.of.vm(c.object)?;
            let readonly = vm.disks.iter().any(|d| Some(d.id) == c.to.disk_id() && is_shared_image(d));
            of.ask_of(&c.to, &image(&c.image.path)?, readonly, What::Link)
        }
        TmCall::Mkimage(c) => of.mkimage(&c),
        TmCall::Mkswap(c) => {
            let vm = of.of.vm(c.object)?;
            of.make(&vm, &c.disk, c.size, ("swap".to_owned(), None))
        }
        TmCall::Mvds(c) => of.mvds(&c),
        TmCall::Cpds(c) => of.cpds(&c),
        TmCall::Delete(c) => of.delete(&c),
        TmCall::SnapCreate(c) => of.on(&c.disk, c.object, What::SnapCreate { snapshot: c.snapshot.into() }),
        TmCall::SnapRevert(c) => of.on(&c.disk, c.object, What::SnapRevert { snapshot: c.snapshot.into() }),
        TmCall::SnapDelete(c) => of.on(&c.disk, c.object, What::SnapDelete { snapshot: c.snapshot.into() }),
        TmCall::Resize(c) => of.on(&c.disk, c.object, What::Resize { size_mib: c.size.as_mib_up() }),
        TmCall::Mv(c) => of.mv(verb, c),
        TmCall::Premigrate(m) => of.premigrate(&m),
        TmCall::Postmigrate(m) => of.postmigrate(&m),
        TmCall::Failmigrate(m) => of.failmigrate(&m),
        TmCall::SnapCreateLive(c) => {
            let vm = of.of.vm(c.object)?;
            let machine = of.of.machine(&vm, &c.disk)?;
            let what = What::SnapCreateLive { snapshot: c.snapshot.into(), machine };
            of.ask(&c.disk, &volume(&vm, &c.disk)?, what)
        }
        // Done before it is known whose disk it is.
        TmCall::Context(_) | TmCall::Monitor(_) | TmCall::MonitorDs(_) => Err(not_yet(verb)),
    }
}

fn image(path: &Path) -> Result<Volume> {
    let none = || refuse(Class::Usage, format!("{} is no image on a volume group", path.display()));
    Volume::of_device(path).ok_or_else(none)
}

/// The volume that a volatile disk is to be.
fn volatile(vm: &Vm, at: &VmPath) -> Result<Volume> {
    let none = || {
        let text =
            format!("VM {} has no image on a volume group: where its volatile disks go is not known", vm.id);
        refuse(Class::Usage, text)
    };
    Ok(Volume::disk(first(vm).ok_or_else(none)?.ds, vm.id, at.disk_id().unwrap_or_default()))
}

fn first(vm: &Vm) -> Option<Volume> {
    Volume::parse(first_disk(vm)?.source.as_deref()?).ok()
}

fn first_disk(vm: &Vm) -> Option<&Disk> {
    vm.disks.iter().find(|d| d.source.as_deref().is_some_and(|s| Volume::parse(s).is_ok()))
}

/// The volume that a disk of the VM is.
fn volume(vm: &Vm, at: &VmPath) -> Result<Volume> {
    let id = at.disk_id().unwrap_or_default();
    let disk = vm.need_disk(id)?;
    if disk.source.is_none() { volatile(vm, at) } else { volume_of(vm, disk) }
}

/// The same of a disk that has an image.
fn volume_of(vm: &Vm, disk: &Disk) -> Result<Volume> {
    let image = Volume::parse(disk.source.as_deref().unwrap_or_default())?;
    Ok(if is_image(disk) { image } else { Volume::disk(image.ds, vm.id, disk.id) })
}

/// Whether the disk is the image, and no copy of it.
fn is_image(disk: &Disk) -> bool {
    disk.clone.map_or(disk.persistent || disk.readonly, |clone| !clone)
}

/// One that machines only read: a CD-ROM, an immutable image.
fn is_shared_image(disk: &Disk) -> bool {
    is_image(disk) && disk.readonly
}

struct Lvm<'a> {
    of: Of<'a>,
    front: &'a Front<'a>,
}

impl Lvm<'_> {
    fn ask(&self, at: &VmPath, v: &Volume, what: What) -> Result<String> {
        self.ask_of(at, v, false, what)
    }

    fn ask_of(&self, at: &VmPath, v: &Volume, readonly: bool, what: What) -> Result<String> {
        let op = Op::OnVolume(OnVolume { disk: text(&at.path()), volume: v.source(), readonly, what });
        self.front.ask(&on_host(at), &op)
    }

    fn on(&self, at: &VmPath, object: crate::one::Object, what: What) -> Result<String> {
        self.ask(at, &volume(&*self.of.vm(object)?, at)?, what)
    }

    fn clone(&self, c: &FromImage) -> Result<String> {
        let Leaf::Disk(id) = c.to.leaf else {
            return Err(refuse(Class::Usage, format!("{} is no disk", c.to.path().display())));
        };
        let (vm, image) = (self.of.vm(c.object)?, image(&c.image.path)?);
        let disk = vm.need_disk(id)?;
        self.of.look_at(&c.to, c.object, disk)?;
        let size_mib = disk.size.map(crate::sys::Bytes::as_mib_up);
        let v = Volume::disk(image.ds, c.to.dir.vm, id);
        let (image, thin) = (image.source(), disk.lvm_thin_enable);
        self.ask(&c.to, &v, What::Clone { image, size_mib, thin })
    }

    fn mkimage(&self, c: &Mkimage) -> Result<String> {
        let vm = self.of.vm(c.object)?;
        // Older cores give the file system in place of the format.
        let is_format = ["raw", "qcow2", "swap"].contains(&c.format.as_str());
        let disk = vm.need_disk(c.disk.disk_id().unwrap_or_default())?;
        let (format, fs) = if is_format {
            (c.format.clone(), disk.fs.clone())
        } else {
            ("raw".to_owned(), Some(c.format.clone()))
        };
        self.make(&vm, &c.disk, c.size, (format, fs))
    }

    fn make(
        &self,
        vm: &Vm,
        at: &VmPath,
        size: Bytes,
        (format, fs): (String, Option<String>),
    ) -> Result<String> {
        let own = vm.disks.iter().find(|d| Some(d.id) == at.disk_id());
        // Its own datastore may say nothing of that group.
        let thin = own.into_iter().chain(first_disk(vm)).all(|d| d.lvm_thin_enable);
        self.ask(at, &volatile(vm, at)?, What::Make { size_mib: size.as_mib_up(), format, fs, thin })
    }

    fn mvds(&self, c: &Mvds) -> Result<String> {
        self.ask(&c.disk, &image(&c.image.path)?, What::Store)
    }

    fn cpds(&self, c: &Cpds) -> Result<String> {
        let vm = self.of.vm(c.object)?;
        let (snapshot, target) = (c.snapshot.map(i64::from), image(&c.image.path)?.source());
        let machine = if snapshot.is_none() { self.of.saved_from(&vm, &c.disk)? } else { None };
        let what = match machine {
            Some(machine) => What::SaveLive { target, machine },
            None => What::Save { snapshot, target },
        };
        self.ask(&c.disk, &volume(&vm, &c.disk)?, what)
    }

    fn delete(&self, c: &Place) -> Result<String> {
        let path = text(&c.at.path());
        self.front.outrank(&path);
        let vm = self.of.vm(c.object)?;
        let op = match c.at.leaf {
            Leaf::Disk(id) if vm.disks.iter().any(|d| d.id == id) => {
                let readonly = is_shared_image(vm.need_disk(id)?);
                return self.ask_of(&c.at, &volume(&vm, &c.at)?, readonly, What::Delete);
            }
            Leaf::Dir => {
                let stores: BTreeSet<i64> = vm
                    .disks
                    .iter()
                    .filter_map(|d| Some(Volume::parse(d.source.as_deref()?).ok()?.ds))
                    .collect();
                Op::Gone(Gone { dir: path, stores: stores.into_iter().collect() })
            }
            _ => Op::Delete(op::Delete { path }),
        };
        self.front.ask(&on_host(&c.at), &op)
    }

    /// The source lets the destination have its volumes, too, which then has them; nobody can do anything else with
    /// them until one of the two gives them up. Neither does one of the machine's while it may write.
    fn premigrate(&self, m: &Migrate) -> Result<String> {
        if m.from == m.to {
            return Ok(String::new());
        }
        let vm = self.of.vm(m.object)?;
        let all = disks(&vm);
        let (from, to) = ends(m);
        let lent = self.each(&from, &all, &What::Lend);
        let is_lent = lent.is_ok();
        let done = lent
            .and_then(|_| self.copy(m))
            .and_then(|()| self.each(&to, &all, &What::Borrow))
            .and_then(|_| migrate::others(self.front, m));
        let Err(e) = done else { return Ok(String::new()) };
        let undone = if is_lent { self.undo(m, &all) } else { self.each(&from, &all, &What::Keep).map(drop) };
        if let Err(e) = undone {
            (self.front.warn)(&format!("what was prepared for the migration is not undone: {e:#}"));
        }
        Err(e)
    }

    /// The machine is at the destination.
    fn postmigrate(&self, m: &Migrate) -> Result<String> {
        if m.from == m.to {
            return Ok(String::new());
        }
        let others = migrate::others(self.front, m);
        let vm = self.of.vm(m.object)?;
        self.each(&ends(m).0, &disks(&vm), &What::Release)?;
        self.drop_dir(m, &m.from)?;
        others.map(|()| String::new())
    }

    /// The machine stayed, or the destination would not give up what it has open.
    fn failmigrate(&self, m: &Migrate) -> Result<String> {
        if m.from == m.to {
            return Ok(String::new());
        }
        let others = migrate::others(self.front, m);
        let vm = self.of.vm(m.object)?;
        self.undo(m, &disks(&vm))?;
        others.map(|()| String::new())
    }

    fn undo(&self, m: &Migrate, all: &[OnDisk]) -> Result<()> {
        let (from, to) = ends(m);
        // A destination that is dead needs not answer.
        let gone = self.each(&to, all, &What::Release);
        let kept = self.each(&from, all, &What::Keep);
        gone.and(kept)?;
        self.drop_dir(m, &m.to)
    }

    /// The VM's directory goes along: its context, which the machine has open. Where another driver has the system
    /// datastore, that one sees to it.
    fn copy(&self, m: &Migrate) -> Result<()> {
        let (from, to) = ends(m);
        if m.caller.is_some() {
            return Ok(());
        }
        let (mut a, mut b) = reach_both(self.front, (on_host(&from), on_host(&to)), Bytes(0))?;
        if a.is_machine(&b) != Some(false) {
            let text = format!("{} and {} are one machine, or cannot be told apart", m.from, m.to);
            return Err(refuse(Class::Remote, text));
        }
        if is_shared(self.front, &mut a, &mut b, &text(&m.dir.dir.datastore()))? {
            return Ok(());
        }
        let dir = text(&m.dir.dir.path());
        let what = Sent::Vm { dir: dir.clone(), to: dir.clone(), runs: true };
        let into = Op::Receive(op::Receive { into: op::Into::Vm { dir } });
        transfer(self.front, (&mut a, what), (&mut b, into)).map(drop)
    }

    /// The host that has the machine no more needs its directory no more, unless it is the other one's, too.
    fn drop_dir(&self, m: &Migrate, host: &HostName) -> Result<()> {
        let (from, to) = ends(m);
        let (own, other) = if *host == m.from { (&from, &to) } else { (&to, &from) };
        if m.caller.is_some() {
            return Ok(());
        }
        let (mut a, mut b) = reach_both(self.front, (on_host(own), on_host(other)), Bytes(0))?;
        let one = a.is_machine(&b) != Some(false);
        if one || is_shared(self.front, &mut a, &mut b, &text(&m.dir.dir.datastore()))? {
            return Ok(());
        }
        drop(b);
        let path = text(&m.dir.dir.path());
        self.front.ask_over(a, &Op::Delete(op::Delete { path })).map(drop)
    }

    /// A disk goes with its directory. Its volume is where it was: one host lets go of it, then the other has it.
    fn mv(&self, verb: &str, c: Mv) -> Result<String> {
        if c.from == c.to {
            return Ok(String::new());
        }
        let vm = self.of.vm(c.object)?;
        let is_dir = c.to.leaf == Leaf::Dir;
        if vm.in_lcm(&[lcm::PROLOG_MIGRATE_UNKNOWN, lcm::PROLOG_MIGRATE_UNKNOWN_FAILURE]) {
            // The source host is dead, and the links with it.
            let own = |d: &&OnDisk| is_dir || Some(d.id) == c.to.disk_id();
            return self.each(&c.to, disks(&vm).iter().filter(own), &What::Link);
        }
        if !is_dir || c.from.host == c.to.host {
            return if is_dir { local::run(self.front, verb, TmCall::Mv(c)) } else { Ok(String::new()) };
        }
        // At the front-end, where a VM that does not run has its directory, nobody needs its devices.
        let [resumes, undeploys] = [lcm::PROLOG_RESUME, lcm::PROLOG_UNDEPLOY];
        let from_front =
            vm.in_lcm(&[resumes, undeploys, lcm::PROLOG_RESUME_FAILURE, lcm::PROLOG_UNDEPLOY_FAILURE]);
        let [stops, leaves] = [lcm::EPILOG_STOP, lcm::EPILOG_UNDEPLOY];
        let to_front = vm.in_lcm(&[stops, leaves, lcm::EPILOG_STOP_FAILURE, lcm::EPILOG_UNDEPLOY_FAILURE]);
        let all = disks(&vm);
        if !from_front {
            self.each(&c.from, &all, &What::Release)?;
        }
        if let Err(e) = local::run(self.front, verb, TmCall::Mv(c.clone())) {
            if !from_front && let Err(e) = self.each(&c.from, &all, &What::Link) {
                (self.front.warn)(&format!("the VM's volumes stay inactive at the source: {e:#}"));
            }
            return Err(e);
        }
        if to_front { Ok(String::new()) } else { self.each(&c.to, &all, &What::Link) }
    }

    /// The same for these disks of the VM that has its directory there.
    fn each<'a>(
        &self,
        dir: &VmPath,
        disks: impl IntoIterator<Item = &'a OnDisk>,
        what: &What,
    ) -> Result<String> {
        for OnDisk { id, volume, readonly } in disks {
            let at = VmPath { leaf: Leaf::Disk(*id), ..dir.clone() };
            self.ask_of(&at, volume, *readonly, what.clone())?;
        }
        Ok(String::new())
    }
}

/// The VM's directory at the source and at the destination.
fn ends(m: &Migrate) -> (VmPath, VmPath) {
    let on = |host: &HostName| VmPath { host: Some(host.clone()), ..m.dir.clone() };
    (on(&m.from), on(&m.to))
}

/// A disk that is a volume.
struct OnDisk {
    id: u32,
    volume: Volume,
    readonly: bool,
}

/// The VM's disks that are volumes.
fn disks(vm: &Vm) -> Vec<OnDisk> {
    let of = |d: &Disk| match &d.source {
        Some(_) => volume_of(vm, d).ok(),
        None => first(vm).map(|image| Volume::disk(image.ds, vm.id, d.id)),
    };
    let on = |d: &Disk| Some(OnDisk { id: d.id, volume: of(d)?, readonly: is_shared_image(d) });
    vm.disks.iter().filter_map(on).collect()
}

fn on_host(at: &VmPath) -> At<'_> {
    At { host: at.host.as_ref(), dir: &at.dir, local: true }
}
