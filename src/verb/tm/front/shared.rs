//! `sdm_shared`, `shared`, `qcow2`: datastores that every host sees. With the suffix `ssh` the image's
//! datastore is shared and the system datastore is the host's own. Contract 3.1, 3.2.

use super::super::op::{self, DiskFormat, Marker, Op};
use super::{At, Front, local};
use crate::one::{
    self, Cpds, DatastoreDoc, FromImage, Leaf, Mkimage, Mkswap, Mv, Mvds, Place, Resize, Snap, TmCall, Vm,
    VmPath, lcm,
};
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

/// The marker's text of a system datastore that is its host's own.
const LOCAL: &str = "ssh";

pub(super) fn run(front: &Front<'_>, verb: &str, ssh: bool, call: TmCall) -> Result<String> {
    let of = Of { front, ssh };
    match call {
        TmCall::Clone(c) => of.clone(&c),
        TmCall::Ln(c) => of.ln(&c),
        TmCall::Mv(c) => of.mv(&c),
        TmCall::Mvds(c) => of.mvds(&c),
        TmCall::Cpds(c) => of.cpds(&c),
        TmCall::Delete(c) => of.delete(&c),
        TmCall::Mkimage(c) => of.mkimage(&c),
        TmCall::Mkswap(c) => of.mkswap(&c),
        TmCall::SnapCreate(c) => of.snap(&c, Op::SnapCreate),
        TmCall::SnapDelete(c) => of.snap_delete(&c),
        TmCall::SnapRevert(c) => of.snap(&c, Op::SnapRevert),
        TmCall::Resize(c) => of.resize(&c),
        TmCall::SnapCreateLive(c) => of.snap_live(&c, &*of.vm(c.object)?, Op::SnapCreateLive),
        // Done before it is known whose disk it is.
        TmCall::Context(_)
        | TmCall::Monitor(_)
        | TmCall::MonitorDs(_)
        | TmCall::Premigrate(_)
        | TmCall::Postmigrate(_)
        | TmCall::Failmigrate(_) => Err(not_yet(verb)),
    }
}

pub(super) fn not_yet(what: &str) -> anyhow::Error {
    refuse(Class::Unsupported, format!("{what}: not supported yet; nothing was changed"))
}

pub(super) struct Of<'a> {
    pub front: &'a Front<'a>,
    /// The system datastore is the host's own.
    pub ssh: bool,
}

impl Of<'_> {
    fn ask(&self, at: &VmPath, op: &Op) -> Result<String> {
        let at = At { host: at.host.as_ref(), dir: &at.dir, local: self.ssh };
        self.front.ask(&at, op)
    }

    pub fn vm(&self, object: one::Object) -> Result<Arc<Vm>> {
        let vm = self.front.cloud.vm(object.vm);
        vm.with_context(|| format!("asking for the document of VM {}", object.vm))
    }

    fn marker(&self) -> Marker {
        if self.ssh { Marker::Write(LOCAL.to_owned()) } else { Marker::Remove }
    }

    fn clone(&self, c: &FromImage) -> Result<String> {
        let image = as_seen(&c.to, &c.image.path)?;
        let disk = text(&c.to.path());
        let clone = op::Clone {
            image,
            disk,
            format: DiskFormat::Other,
            standalone: self.ssh,
            sparse: true,
            size_mib: None,
            original_mib: None,
            marker: self.marker(),
        };
        let Leaf::Disk(id) = c.to.leaf else {
            // A kernel or a ramdisk is in no document.
            return self.ask(&c.to, &Op::Clone(clone));
        };
        let vm = self.vm(c.object)?;
        let disk = vm.need_disk(id)?;
        self.look_at(&c.to, c.object, disk)?;
        let mib = |b: Option<Bytes>| b.map(Bytes::as_mib_up);
        let clone = op::Clone {
            format: format(disk),
            standalone: self.ssh || disk.qcow2_standalone,
            sparse: disk.sparse,
            size_mib: mib(disk.size),
            original_mib: mib(disk.original_size),
            ..clone
        };
        self.ask(&c.to, &Op::Clone(clone))
    }

    fn ln(&self, c: &FromImage) -> Result<String> {
        let Leaf::Disk(id) = c.to.leaf else {
            return Err(refuse(Class::Usage, format!("{} is no disk", c.to.path().display())));
        };
        let vm = self.vm(c.object)?;
        let disk = vm.need_disk(id)?;
        self.look_at(&c.to, c.object, disk)?;
        let (image, path, format) = (as_seen(&c.to, &c.image.path)?, text(&c.to.path()), format(disk));
        let op = if self.ssh {
            Op::Pull(op::Pull { image, disk: path, format, marker: self.marker() })
        } else {
            Op::Link(op::Link { image, disk: path, format })
        };
        self.ask(&c.to, &op)
    }

    /// What the datastores' attributes ask for and is not done here is said, or refused where something
    /// would go wrong. A datastore that nobody describes is taken as it is.
    pub fn look_at(&self, to: &VmPath, object: one::Object, disk: &one::Disk) -> Result<()> {
        let warn = self.front.warn;
        if disk.recovery_snapshot_freq.is_some_and(|f| f > 0) {
            warn("RECOVERY_SNAPSHOT_FREQ of the disk is ignored: recovery snapshots are not supported");
        }
        let image = object.ds.filter(|ds| *ds != to.dir.ds);
        for ds in image.into_iter().chain([to.dir.ds]) {
            match self.front.cloud.datastore(ds) {
                Ok(doc) => self.attributes(&doc)?,
                Err(e) => warn(&format!("the attributes of datastore {ds} are not known ({e})")),
            }
        }
        Ok(())
    }

    fn attributes(&self, ds: &DatastoreDoc) -> Result<()> {
        let id = ds.id;
        self.front.shares.tell(ds)?;
        if ds.replica_host.is_some() {
            (self.front.warn)(&format!("REPLICA_HOST of datastore {id} is ignored: not supported"));
        }
        if ds.cache_enable {
            (self.front.warn)(&format!("CACHE_ENABLE of datastore {id} is ignored: not supported"));
        }
        Ok(())
    }

    /// A disk goes with its directory. Where all hosts see both directories, or one host has both, the one at
    /// the destination moves it.
    fn mv(&self, c: &Mv) -> Result<String> {
        if c.to.leaf != Leaf::Dir || (c.from.dir.ds == c.to.dir.ds && !self.ssh) {
            return Ok(String::new());
        }
        if self.ssh && c.from.host != c.to.host {
            return local::mv(self.front, c).map(|()| String::new());
        }
        let from = as_seen(&c.to, &c.from.dir.path())?;
        self.ask(&c.to, &Op::Mv(op::Mv { from, to: text(&c.to.path()) }))
    }

    fn mvds(&self, c: &Mvds) -> Result<String> {
        let target = as_seen(&c.disk, &c.image.path)?;
        if self.ssh {
            let disk = self.disk(&*self.vm(c.object)?, &c.disk)?;
            return self.ask(&c.disk, &Op::Store(op::Store { disk, target }));
        }
        if self.is_seen_here(c) {
            return Ok(String::new());
        }
        // Which layout it has, its links tell; no document is needed.
        let disk = op::Disk { path: text(&c.disk.path()), image: None, format: DiskFormat::Qcow2 };
        self.ask(&c.disk, &Op::Mvds(op::Mvds { disk, target }))
    }

    /// Whether the datastores, as this machine sees them, say that the disk leads to the image: what its VM
    /// wrote is there, and no host need be asked.
    fn is_seen_here(&self, c: &Mvds) -> bool {
        let (disk, stores) = (c.disk.path(), &self.front.settings.paths.datastores);
        let is_ours = disk.starts_with(stores) && c.image.path.starts_with(stores);
        let one = |path: &Path| {
            std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|m| (m.dev(), m.ino()))
        };
        is_ours && disk.is_symlink() && one(&disk).is_some_and(|at| one(&c.image.path) == Some(at))
    }

    fn cpds(&self, c: &Cpds) -> Result<String> {
        let vm = self.vm(c.object)?;
        let op = op::Cpds {
            disk: self.disk(&vm, &c.disk)?,
            snapshot: c.snapshot.map(i64::from),
            target: as_seen(&c.disk, &c.image.path)?,
            live: self.saved_from(&vm, &c.disk)?,
        };
        self.ask(&c.disk, &Op::Cpds(op))
    }

    /// The machine that runs while its disk is saved.
    pub fn saved_from(&self, vm: &Vm, disk: &VmPath) -> Result<Option<op::Machine>> {
        if !vm.in_lcm(&[lcm::HOTPLUG_SAVEAS]) {
            return Ok(None);
        }
        let mad = vm.history.as_ref().and_then(|h| h.vm_mad.as_deref()).unwrap_or_default();
        if mad != "kvm" {
            let text = format!("saving the disk of a running VM is not supported on {mad:?}");
            return Err(refuse(Class::Unsupported, text));
        }
        self.machine(vm, disk).map(Some)
    }

    fn delete(&self, c: &Place) -> Result<String> {
        let path = text(&c.at.path());
        self.front.outrank(&path);
        self.ask(&c.at, &Op::Delete(op::Delete { path }))
    }

    fn mkimage(&self, c: &Mkimage) -> Result<String> {
        if c.format == "swap" {
            return self.swap(&c.disk, c.size);
        }
        let vm = self.vm(c.object)?;
        let disk = vm.need_disk(c.disk.disk_id().unwrap_or_default())?;
        // Older cores give the file system in place of the format.
        let is_format = ["raw", "qcow2"].contains(&c.format.as_str());
        let (format, fs) =
            if is_format { (c.format.as_str(), disk.fs.as_deref()) } else { ("raw", Some(&*c.format)) };
        let op = op::MakeImage {
            disk: text(&c.disk.path()),
            size_mib: c.size.as_mib_up(),
            format: format.to_owned(),
            fs: fs.map(str::to_owned),
            sparse: disk.sparse,
        };
        self.ask(&c.disk, &Op::MakeImage(op))
    }

    fn mkswap(&self, c: &Mkswap) -> Result<String> {
        self.swap(&c.disk, c.size)
    }

    fn swap(&self, disk: &VmPath, size: Bytes) -> Result<String> {
        let op = op::MakeSwap { disk: text(&disk.path()), size_mib: size.as_mib_up() };
        self.ask(disk, &Op::MakeSwap(op))
    }

    fn snap(&self, c: &Snap, op: fn(op::Snap) -> Op) -> Result<String> {
        let disk = self.disk(&*self.vm(c.object)?, &c.disk)?;
        self.ask(&c.disk, &op(op::Snap { disk, snapshot: c.snapshot.into() }))
    }

    fn snap_delete(&self, c: &Snap) -> Result<String> {
        let vm = self.vm(c.object)?;
        if vm.in_lcm(&[lcm::DISK_SNAPSHOT_DELETE]) {
            return self.snap_live(c, &vm, Op::SnapDeleteLive);
        }
        self.snap(c, Op::SnapDelete)
    }

    fn snap_live(&self, c: &Snap, vm: &Vm, op: fn(op::SnapLive) -> Op) -> Result<String> {
        let snap = op::Snap { disk: self.disk(vm, &c.disk)?, snapshot: c.snapshot.into() };
        self.ask(&c.disk, &op(op::SnapLive { snap, machine: self.machine(vm, &c.disk)? }))
    }

    /// The running machine, as its host's libvirt knows it.
    pub fn machine(&self, vm: &Vm, at: &VmPath) -> Result<op::Machine> {
        let disk = vm.need_disk(at.disk_id().unwrap_or_default())?;
        let missing = |what: &str| {
            refuse(
                Class::Usage,
                format!("the document of VM {} has no {what} of its disk {}", vm.id, disk.id),
            )
        };
        let mad = vm.history.as_ref().and_then(|h| h.vm_mad.as_deref()).unwrap_or_default();
        if mad == "lxc" {
            let text = "the disks of a running container are not supported yet; power it off first";
            return Err(refuse(Class::Unsupported, text));
        }
        let libvirt = &self.front.settings.libvirt;
        Ok(op::Machine {
            uri: libvirt.uri.clone(),
            domain: vm.deploy_id.clone().ok_or_else(|| missing("DEPLOY_ID"))?,
            target: disk.target.clone().ok_or_else(|| missing("TARGET"))?,
            timeout: libvirt.timeout.as_secs(),
            freeze: op::Freeze::Try,
        })
    }

    fn resize(&self, c: &Resize) -> Result<String> {
        let vm = self.vm(c.object)?;
        if vm.in_lcm(&[lcm::DISK_RESIZE]) {
            // The hypervisor does it.
            return Ok(String::new());
        }
        let sparse = vm.need_disk(c.disk.disk_id().unwrap_or_default())?.sparse;
        let disk = self.disk(&vm, &c.disk)?;
        self.ask(&c.disk, &Op::Resize(op::Resize { disk, size_mib: c.size.as_mib_up(), sparse }))
    }

    /// The driver `ssh` knows no layers: to it a qcow2 disk is a file like any other.
    pub fn format(&self, disk: &one::Disk) -> DiskFormat {
        match format(disk) {
            DiskFormat::Qcow2 if self.front.name == "ssh" => DiskFormat::Other,
            format => format,
        }
    }

    /// The disk with the image that it is or builds on. A copy of its own builds on none.
    pub fn disk(&self, vm: &Vm, at: &VmPath) -> Result<op::Disk> {
        let disk = vm.need_disk(at.disk_id().unwrap_or_default())?;
        let image = disk.source.as_deref().filter(|_| !self.ssh);
        let image = image.map(|s| as_seen(at, Path::new(s))).transpose()?;
        Ok(op::Disk { path: text(&at.path()), image, format: self.format(disk) })
    }
}

/// What OpenNebula has on record; not what the first bytes, which are the guest's, look like.
fn format(disk: &one::Disk) -> DiskFormat {
    match disk.format.as_deref().or(disk.driver.as_deref()) {
        Some("raw") => DiskFormat::Raw,
        Some("qcow2") => DiskFormat::Qcow2,
        _ => DiskFormat::Other,
    }
}

/// A front-end's path below its datastores as the host of this VM sees it.
fn as_seen(at: &VmPath, path: &Path) -> Result<String> {
    let number = path.parent().and_then(|p| p.file_name()?.to_str()?.parse::<u32>().ok());
    let seen = number.and_then(|_| at.dir.translate(path));
    let seen =
        seen.ok_or_else(|| refuse(Class::Usage, format!("{} is not in a datastore", path.display())))?;
    Ok(text(&seen))
}

pub(super) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
