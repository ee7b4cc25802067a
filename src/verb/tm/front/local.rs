//! `sdm_local`, `local`, `ssh`: a system datastore is its host's own, and images are where the call says,
//! which is the front-end. Disks are copies; a persistent one goes back into its image. Contract 3.3, 3.4.

use super::super::op::{self, Delete, DiskFormat, Into, Marker, Op, What};
use super::pair::{Line, is_shared, reach_both, transfer};
use super::shared::{self, Of, text};
use super::{At, Front, migrate};
use crate::one::{Cpds, Disk, FromImage, HostPath, Leaf, Migrate, Mv, Mvds, TmCall, Vm, VmDir, VmPath, lcm};
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::Result;
use std::os::unix::fs::MetadataExt as _;

/// The marker's text of a system datastore that is its host's own.
const MARKER: &str = "ssh";

pub(super) fn run(front: &Front<'_>, verb: &str, call: TmCall) -> Result<String> {
    let of = own(front);
    let done = match call {
        TmCall::Clone(c) => of.disk(&c, false),
        TmCall::Ln(c) => of.disk(&c, true),
        TmCall::Mv(c) => of.mv(&c),
        TmCall::Mvds(c) => of.mvds(&c),
        TmCall::Cpds(c) => of.cpds(&c),
        TmCall::Premigrate(m) => of.premigrate(&m),
        TmCall::Postmigrate(m) => of.postmigrate(&m),
        TmCall::Failmigrate(m) => migrate::fail(front, &m),
        call => return shared::run(front, verb, true, call),
    };
    done.map(|()| String::new())
}

/// Between the hosts' own system datastores, whoever has the images.
pub(super) fn mv(front: &Front<'_>, c: &Mv) -> Result<()> {
    own(front).mv(c)
}

fn own<'a>(front: &'a Front<'a>) -> Own<'a> {
    Own { of: Of { front, ssh: true }, front }
}

struct Own<'a> {
    of: Of<'a>,
    front: &'a Front<'a>,
}

/// A place in the VM's directory on its host.
fn on_host(at: &VmPath) -> At<'_> {
    At { host: at.host.as_ref(), dir: &at.dir, local: true }
}

fn receive(into: Into) -> Op {
    Op::Receive(op::Receive { into })
}

/// What there may be of disks to be sent: their holes are not known here.
fn weight<'a>(disks: impl IntoIterator<Item = &'a Disk>) -> Bytes {
    let each = disks.into_iter().filter_map(|d| d.size.max(d.original_size));
    Bytes(each.fold(0, |all, disk| all.saturating_add(disk.0)))
}

/// The datastore of an image; it is no VM's.
pub(super) fn of_image(image: &HostPath) -> Result<VmDir> {
    let wrong = || refuse(Class::Usage, format!("{} is no image of a datastore", image.path.display()));
    let store = image.path.parent().ok_or_else(wrong)?;
    VmDir::parse(&store.join("0")).ok_or_else(wrong)
}

impl Own<'_> {
    fn transfer(&self, (from, what): (At<'_>, What), (to, into): (At<'_>, Into), data: Bytes) -> Result<()> {
        let (mut from, mut to) = reach_both(self.front, (from, to), data)?;
        transfer(self.front, (&mut from, what), (&mut to, receive(into))).map(drop)
    }

    fn disk(&self, c: &FromImage, persistent: bool) -> Result<()> {
        let (path, marker) = (text(&c.to.path()), Marker::Write(MARKER.to_owned()));
        let format = DiskFormat::Other;
        let plain = Into::Disk { path, format, sparse: true, size_mib: None, original_mib: None, marker };
        let (format, into) = match (c.to.leaf.clone(), plain) {
            (Leaf::Disk(id), Into::Disk { path, marker, .. }) => {
                let vm = self.of.vm(c.object)?;
                let disk = vm.need_disk(id)?;
                self.of.look_at(&c.to, c.object, disk)?;
                let mib = |b: Option<Bytes>| b.map(Bytes::as_mib_up);
                let (size_mib, original_mib) = (mib(disk.size), mib(disk.original_size));
                let (format, sparse) = (self.of.format(disk), disk.sparse);
                (format, Into::Disk { path, format, sparse, size_mib, original_mib, marker })
            }
            // A kernel or a ramdisk is in no document.
            (_, plain) => (format, plain),
        };
        let store = of_image(&c.image)?;
        // Images are here, as a rule.
        let data = std::fs::metadata(&c.image.path).map_or(0, |m| m.blocks().saturating_mul(512));
        let from = At { host: c.image.host.as_ref(), dir: &store, local: false };
        let what = What::Image { path: text(&c.image.path), format, snapshots: persistent };
        self.transfer((from, what), (on_host(&c.to), into), Bytes(data))
    }

    fn mvds(&self, c: &Mvds) -> Result<()> {
        let vm = self.of.vm(c.object)?;
        let disk = self.of.disk(&vm, &c.disk)?;
        let into = Into::Image { path: text(&c.image.path), format: disk.format };
        self.to_image((&vm, &c.disk, What::Disk { disk }), &c.image, into)
    }

    fn cpds(&self, c: &Cpds) -> Result<()> {
        let vm = self.of.vm(c.object)?;
        let live = self.of.saved_from(&vm, &c.disk)?;
        let disk = self.of.disk(&vm, &c.disk)?;
        let into = Into::Image { path: text(&c.image.path), format: disk.format };
        let what = What::Content { disk, snapshot: c.snapshot.map(i64::from), live };
        self.to_image((&vm, &c.disk, what), &c.image, into)
    }

    fn to_image(&self, (vm, disk, what): (&Vm, &VmPath, What), image: &HostPath, into: Into) -> Result<()> {
        let id = disk.disk_id();
        let data = weight(vm.disks.iter().filter(|d| Some(d.id) == id));
        let store = of_image(image)?;
        let to = At { host: image.host.as_ref(), dir: &store, local: false };
        self.transfer((on_host(disk), what), (to, into), data)
    }

    /// A disk goes with its directory.
    fn mv(&self, c: &Mv) -> Result<()> {
        if c.to.leaf != Leaf::Dir || c.from == c.to {
            return Ok(());
        }
        let lost = [lcm::PROLOG_MIGRATE_UNKNOWN, lcm::PROLOG_MIGRATE_UNKNOWN_FAILURE];
        let vm = self.of.vm(c.object)?;
        if vm.in_lcm(&lost) {
            // The source host is dead; there is nothing to be had from it.
            return Ok(());
        }
        let (from, to) = (text(&c.from.path()), text(&c.to.path()));
        let (mut a, mut b) = reach_both(self.front, (on_host(&c.from), on_host(&c.to)), weight(&vm.disks))?;
        match a.is_machine(&b) {
            Some(true) => {
                drop(a);
                return self.front.ask_over(b, &Op::Mv(op::Mv { from, to })).map(drop);
            }
            Some(false) => {}
            None => {
                let text = "whether source and destination are one machine is not clear (/etc/machine-id); nothing was changed";
                return Err(refuse(Class::Remote, text));
            }
        }
        if from == to && self.is_shared(&mut a, &mut b, &c.from)? {
            return Ok(());
        }
        let what = What::Vm { dir: from.clone(), to: to.clone(), runs: false };
        let (told, _) = transfer(self.front, (&mut a, what), (&mut b, receive(Into::Vm { dir: to })))?;
        drop(b);
        if let Some(plan) = &self.front.job.jobs.plan {
            plan.note(format!("then {from} goes at its source, and is kept for a while"));
            return Ok(());
        }
        let retire = op::Retire { dir: from, source: told.source };
        self.front.ask_over(a, &Op::Retire(retire)).map(drop)
    }

    fn is_shared(&self, a: &mut Line<'_>, b: &mut Line<'_>, at: &VmPath) -> Result<bool> {
        is_shared(self.front, a, b, &text(&at.dir.datastore()))
    }

    /// What is at the destination would be in the way of the hypervisor's copy.
    fn premigrate(&self, m: &Migrate) -> Result<()> {
        if m.from == m.to {
            return Ok(());
        }
        let at = At { host: Some(&m.to), dir: &m.dir.dir, local: true };
        self.front.ask(&at, &Op::Delete(Delete { path: text(&m.dir.dir.path()) }))?;
        migrate::others(self.front, m)
    }

    /// The hypervisor has copied it, so the source goes, after the other drivers had it.
    fn postmigrate(&self, m: &Migrate) -> Result<()> {
        migrate::others(self.front, m)?;
        let before = match m.caller {
            None => self.front.cloud.vm(m.object.vm)?.previous.as_ref().and_then(|h| h.ds_id),
            Some(_) => None,
        };
        let ds = before.unwrap_or(m.dir.dir.ds);
        if m.caller.is_some() || (m.from == m.to && ds == m.dir.dir.ds) {
            return Ok(());
        }
        let dir = VmDir { ds, ..m.dir.dir.clone() };
        let at = At { host: Some(&m.from), dir: &dir, local: true };
        self.front.ask(&at, &Op::Delete(Delete { path: text(&dir.path()) })).map(drop)
    }
}
