//! `sdm_lvm`, `lvm`: a disk is a volume of its image's group, a volatile one of the group of the VM's first image;
//! the VM's directory has links. Contract 3.7; each disk has the group of its own datastore (D24).

use super::super::op::{self, Op};
use super::super::volume::{Gone, OnVolume, What};
use super::shared::{Of, not_yet, text};
use super::{At, Front, local};
use crate::one::{
    Cpds, Disk, FromImage, Leaf, Migrate, Mkimage, Mv, Mvds, Place, TmCall, Vm, VmPath, Volume, lcm,
};
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

pub(super) fn run(front: &Front<'_>, verb: &str, call: TmCall) -> Result<String> {
    let of = Lvm { of: Of { front, ssh: true }, front };
    match call {
        TmCall::Clone(c) => of.clone(&c),
        TmCall::Ln(c) => of.ask(&c.to, &image(&c.image.path)?, What::Link),
        TmCall::Mkimage(c) => of.mkimage(&c),
        TmCall::Mkswap(c) => {
            let make = What::Make { size_mib: c.size.as_mib_up(), format: "swap".to_owned(), fs: None };
            of.ask(&c.disk, &volatile(&*of.of.vm(c.object)?, &c.disk)?, make)
        }
        TmCall::Mvds(c) => of.mvds(&c),
        TmCall::Cpds(c) => of.cpds(&c),
        TmCall::Delete(c) => of.delete(&c),
        TmCall::SnapCreate(c) => of.on(&c.disk, c.object, What::SnapCreate { snapshot: c.snapshot.into() }),
        TmCall::SnapRevert(c) => of.on(&c.disk, c.object, What::SnapRevert { snapshot: c.snapshot.into() }),
        TmCall::SnapDelete(c) => of.on(&c.disk, c.object, What::SnapDelete { snapshot: c.snapshot.into() }),
        TmCall::Resize(c) => of.on(&c.disk, c.object, What::Resize { size_mib: c.size.as_mib_up() }),
        TmCall::Mv(c) => of.mv(verb, c),
        TmCall::Premigrate(m) | TmCall::Postmigrate(m) => of.stays(&m),
        // Nothing was done.
        TmCall::Failmigrate(_) => Ok(String::new()),
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
    vm.disks.iter().find_map(|d| Volume::parse(d.source.as_deref()?).ok())
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
    let is_image = disk.clone == Some(false) || disk.persistent || disk.readonly;
    Ok(if is_image { image } else { Volume::disk(image.ds, vm.id, disk.id) })
}

struct Lvm<'a> {
    of: Of<'a>,
    front: &'a Front<'a>,
}

impl Lvm<'_> {
    fn ask(&self, at: &VmPath, v: &Volume, what: What) -> Result<String> {
        let op = Op::OnVolume(OnVolume { disk: text(&at.path()), volume: v.source(), what });
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
        self.ask(&c.to, &v, What::Clone { image: image.source(), size_mib })
    }

    fn mkimage(&self, c: &Mkimage) -> Result<String> {
        let vm = self.of.vm(c.object)?;
        let v = volatile(&vm, &c.disk)?;
        // Older cores give the file system in place of the format.
        let is_format = ["raw", "qcow2", "swap"].contains(&c.format.as_str());
        let disk = vm.need_disk(c.disk.disk_id().unwrap_or_default())?;
        let (format, fs) = if is_format {
            (c.format.clone(), disk.fs.clone())
        } else {
            ("raw".to_owned(), Some(c.format.clone()))
        };
        self.ask(&c.disk, &v, What::Make { size_mib: c.size.as_mib_up(), format, fs })
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
                return self.ask(&c.at, &volume(&vm, &c.at)?, What::Delete);
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

    /// Two hosts that have one pool active destroy it, and a VM that moves while it runs is on two.
    fn stays(&self, m: &Migrate) -> Result<String> {
        if m.from == m.to {
            return Ok(String::new());
        }
        let vm = self.of.vm(m.object)?;
        let all: Vec<String> = disks(&vm).iter().map(|(id, v)| format!("disk {id} is {v}")).collect();
        let text = format!(
            "VM {} does not move while it runs: a volume is on one host at a time ({}); power it off or suspend it, and \
             migrate it then; nothing was changed",
            vm.id,
            all.join(", ")
        );
        Err(refuse(Class::Unsupported, text))
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
            let own = |d: &&(u32, Volume)| is_dir || Some(d.0) == c.to.disk_id();
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
        disks: impl IntoIterator<Item = &'a (u32, Volume)>,
        what: &What,
    ) -> Result<String> {
        for (id, v) in disks {
            self.ask(&VmPath { leaf: Leaf::Disk(*id), ..dir.clone() }, v, what.clone())?;
        }
        Ok(String::new())
    }
}

/// The VM's disks that are volumes.
fn disks(vm: &Vm) -> Vec<(u32, Volume)> {
    let of = |d: &Disk| match &d.source {
        Some(_) => volume_of(vm, d).ok(),
        None => first(vm).map(|image| Volume::disk(image.ds, vm.id, d.id)),
    };
    vm.disks.iter().filter_map(|d| Some((d.id, of(d)?))).collect()
}

fn on_host(at: &VmPath) -> At<'_> {
    At { host: at.host.as_ref(), dir: &at.dir, local: true }
}
