//! Transfer verbs of shared datastores on the bed of hosts, over real ssh, called as oned calls them: whole
//! lives of VMs, by the seed's words and longer. After every call each disk, snapshot and image is read and
//! compared, and so is the tree.

use crate::runner::{self, Disk, Kind, MIB, STORES, Vm, source};
use std::collections::BTreeMap;

const SHARED: &[u32] = &[100, 101, 102];

/// Puts an image into a VM: `clone`, or `ln` of a persistent one.
pub fn deploy(vm: &mut Vm<'_>, n: u32, image: &str, persistent: bool, grown: usize) {
    let (kind, mut content) = vm.images[image].clone();
    content.resize(content.len() + grown * MIB, 0);
    let from = format!("fe:{}", source(image));
    let stored = vm.stored.get(image).filter(|_| persistent);
    let snaps = stored.map(|d| d.snaps.clone()).unwrap_or_default();
    let active = stored.map_or(vm.first_layer(kind), |d| d.active);
    let image = Some(image.to_owned());
    vm.disks.insert(n, Disk { kind, image, persistent, content, snaps, active, tm: None });
    vm.ok(if persistent { "ln" } else { "clone" }, &[&from, &vm.disk(n)], 100);
}

/// `mv` of all disks and then of the directory, as oned does for stop, resume and migrations.
pub fn travel(vm: &mut Vm<'_>, to: &'static str, ds: u32) {
    let (host, from) = (vm.host, vm.ds);
    let image_ds = |vm: &Vm<'_>, n: u32| if vm.disks[&n].image.is_some() { 100 } else { ds };
    for n in vm.disks.keys().copied().collect::<Vec<_>>() {
        let out = vm.run("mv", &[&vm.at(host, from, Some(n)), &vm.at(to, ds, Some(n))], image_ds(vm, n));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let (a, b) = (vm.at(host, from, None), vm.at(to, ds, None));
    vm.before = Some(vm.ds);
    (vm.host, vm.ds) = (to, ds);
    vm.ok("mv", &[&a, &b], ds);
}

/// A disk goes.
pub fn delete(vm: &mut Vm<'_>, n: u32) {
    let ds = if vm.disks[&n].image.is_some() { 100 } else { vm.ds };
    let disk = vm.disk(n);
    vm.disks.remove(&n);
    vm.tell();
    let out = vm.run("delete", &[&disk], ds);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// The seed's "Example VM", as it stands, for both formats.
#[test]
fn the_example_vm_of_the_seed() {
    let cloud = runner::cloud(SHARED);
    for (id, kind, driver) in [(1, Kind::Raw, "shared"), (2, Kind::Qcow2, "qcow2")] {
        let mut vm = Vm::new(&cloud, driver, id);
        let (os, data) = (format!("os{id}"), format!("data{id}"));
        vm.image(&os, kind, 2);
        vm.image(&data, kind, 2);
        if id == 2 {
            let other = [("os1", Kind::Raw), ("data1", Kind::Raw)];
            for (name, kind) in other {
                let bytes = cloud.inside("fe", || std::fs::read(format!("{STORES}/100/{name}")).unwrap());
                vm.images.insert(name.to_owned(), (kind, bytes));
            }
        }
        deploy(&mut vm, 0, &os, false, 0);
        deploy(&mut vm, 1, &data, true, 0);
        vm.guest(0);
        vm.guest(1);
        // Stop, resume, migrate.
        for host in ["fe", "h1", "h2"] {
            travel(&mut vm, host, 101);
            vm.guest(0);
            vm.guest(1);
        }
        // Shut down.
        delete(&mut vm, 0);
        vm.ok("mvds", &[&vm.disk(1), &source(&data)], 100);
        let dir = vm.at("h2", 101, None);
        let kept = vm.disks.remove(&1).unwrap();
        assert!(vm.run("delete", &[&dir], 101).status.success());
        assert!(vm.run("delete", &[&dir], 101).status.success(), "what is gone is no error");
        // The next VM finds what this one wrote.
        let mut next = Vm::new(&cloud, driver, id + 10);
        next.images = vm.images.clone();
        next.disks.insert(0, Disk { snaps: BTreeMap::new(), ..kept });
        next.ok("ln", &[&format!("fe:{}", source(&data)), &next.disk(0)], 100);
        let dir = next.at("h1", 101, None);
        next.disks.clear();
        assert!(next.run("delete", &[&dir], 101).status.success());
    }
    sound(&cloud);
}

pub fn sound(cloud: &crate::hosts::Cloud) {
    let program = crate::bed::program();
    for verb in ["gc", "check"] {
        cloud.on("fe", &[program.to_str().unwrap(), verb]);
    }
    for ds in SHARED {
        for dir in ["new", "del"] {
            let path = format!("{STORES}/{ds}/.sdm/{dir}");
            let left = cloud.inside("fe", || crate::bed::names(path.as_ref()));
            let garbage: Vec<_> = left.iter().filter(|n| !n.contains(".keep")).collect();
            assert!(garbage.is_empty(), "{path}: {left:?}");
        }
    }
}

/// `snap_create`, as the layout of its format has it.
pub fn snapshot(vm: &mut Vm<'_>, n: u32, id: u32) {
    let disk = vm.disks.get_mut(&n).unwrap();
    disk.snaps.insert(id, disk.content.clone());
    disk.active = disk.active.map(|_| id + 1);
    let ds = if disk.image.is_some() { 100 } else { vm.ds };
    vm.ok("snap_create", &[&vm.disk(n), &id.to_string()], ds);
    vm.guest(n);
}

/// `snap_revert`.
pub fn revert(vm: &mut Vm<'_>, n: u32, id: u32) {
    let disk = vm.disks.get_mut(&n).unwrap();
    disk.content = disk.snaps[&id].clone();
    if let Some(image) = disk.image.clone().filter(|_| disk.persistent && !vm.copies) {
        vm.images.get_mut(&image).unwrap().1.clone_from(&disk.content);
    }
    vm.ok("snap_revert", &[&vm.disk(n), &id.to_string()], 100);
    vm.guest(n);
}

/// `snap_delete`.
pub fn forget(vm: &mut Vm<'_>, n: u32, id: u32) {
    vm.tell();
    vm.disks.get_mut(&n).unwrap().snaps.remove(&id).unwrap();
    vm.ok("snap_delete", &[&vm.disk(n), &id.to_string()], 100);
    vm.guest(n);
}

/// `cpds`: what the disk is, or was, is a new image.
pub fn save(vm: &mut Vm<'_>, n: u32, snap: Option<u32>, name: &str) {
    let disk = &vm.disks[&n];
    let content = snap.map_or(&disk.content, |s| &disk.snaps[&s]).clone();
    vm.images.insert(name.to_owned(), (disk.kind, content));
    let id = snap.map_or("-1".to_owned(), |s| s.to_string());
    vm.ok("cpds", &[&vm.disk(n), &source(name), &id], 100);
}

/// A longer life: all that a shared datastore offers to a VM that does not run.
fn life(kind: Kind, driver: &'static str) {
    let cloud = runner::cloud(SHARED);
    let mut vm = Vm::new(&cloud, driver, 7);
    vm.image("os", kind, 1);
    vm.image("data", kind, 1);
    deploy(&mut vm, 0, "os", false, 1);
    deploy(&mut vm, 1, "data", true, 0);
    for (n, format) in [(2, "raw"), (3, "qcow2")] {
        let kind = if format == "raw" { Kind::Raw } else { Kind::Qcow2 };
        let (content, snaps) = (vec![0; 4 * MIB], BTreeMap::new());
        vm.disks
            .insert(n, Disk { kind, image: None, persistent: false, content, snaps, active: None, tm: None });
        vm.ok("mkimage", &["4", format, &vm.disk(n)], 101);
        vm.guest(n);
    }
    for n in [0, 1] {
        vm.guest(n);
        snapshot(&mut vm, n, 0);
        snapshot(&mut vm, n, 1);
        save(&mut vm, n, Some(0), &format!("snap{n}"));
        revert(&mut vm, n, 0);
        snapshot(&mut vm, n, 2);
        forget(&mut vm, n, 1);
        save(&mut vm, n, None, &format!("now{n}"));
    }
    for (n, mib) in [(0, 3), (2, 6), (3, 6)] {
        let before = vm.disks[&n].content.len();
        vm.lcm = 62;
        vm.ok("resize", &[&vm.disk(n), "99"], 100);
        vm.lcm = 63;
        vm.disks.get_mut(&n).unwrap().content.resize(mib * MIB, 0);
        vm.ok("resize", &[&vm.disk(n), &mib.to_string()], 100);
        assert!(vm.disks[&n].content.len() > before);
        vm.lcm = 3;
    }
    // Attach and detach, another system datastore, other hosts.
    deploy(&mut vm, 4, "now0", false, 0);
    delete(&mut vm, 4);
    travel(&mut vm, "h2", 101);
    travel(&mut vm, "h2", 102);
    for n in 0..4 {
        vm.guest(n);
    }
    travel(&mut vm, "fe", 101);
    travel(&mut vm, "h1", 102);
    for n in [0, 1] {
        revert(&mut vm, n, 2);
        forget(&mut vm, n, 2);
    }
    vm.ok("mvds", &[&vm.disk(1), &source("data")], 100);
    for n in [0, 2, 3] {
        delete(&mut vm, n);
    }
    vm.check();
    sound(&cloud);
}

#[test]
fn a_long_life_of_raw_disks() {
    life(Kind::Raw, "shared");
}

#[test]
fn a_long_life_of_qcow2_disks() {
    life(Kind::Qcow2, "sdm_shared");
}

/// An image datastore that all hosts see, and a system datastore that each has its own of: the suffix `ssh`.
fn on_its_own_storage(kind: Kind) {
    let cloud = runner::cloud(&[100]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    for name in ["os", "data"] {
        vm.image(name, kind, 1);
    }
    (vm.copies, vm.suffix) = (true, ".ssh");
    deploy(&mut vm, 0, "os", false, 1);
    deploy(&mut vm, 1, "data", true, 0);
    assert_eq!(cloud.read("h1", &format!("{STORES}/101/.monitor")), "ssh\n");
    for n in [0, 1] {
        vm.guest(n);
        snapshot(&mut vm, n, 0);
        revert(&mut vm, n, 0);
        snapshot(&mut vm, n, 1);
        save(&mut vm, n, Some(1), &format!("saved{n}"));
    }
    forget(&mut vm, 1, 0);
    vm.disks.get_mut(&0).unwrap().content.resize(3 * MIB, 0);
    vm.ok("resize", &[&vm.disk(0), "3"], 100);
    // Among hosts without common storage, and to another of a host's own.
    for (to, ds) in [("h2", 101), ("fe", 102), ("h1", 101), ("h1", 102), ("h1", 101)] {
        travel(&mut vm, to, ds);
        vm.guest(0);
        vm.guest(1);
    }
    assert!(vm.run("mvds", &[&vm.disk(1), &source("data")], 100).status.success());
    let stored = vm.disks[&1].clone();
    delete(&mut vm, 0);
    assert!(vm.run("delete", &[&vm.at("h1", 101, None)], 101).status.success());
    // On the other host: what the first one wrote, with its snapshot.
    let mut next = Vm::new(&cloud, "shared", 17);
    (next.host, next.copies, next.suffix) = ("h2", true, ".ssh");
    next.images.insert("data".to_owned(), (kind, stored.content.clone()));
    next.disks.insert(0, stored);
    let out = next.run("ln", &[&format!("fe:{}", source("data")), &next.disk(0)], 100);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    next.reads();
    assert!(next.run("delete", &[&next.at("h2", 101, None)], 101).status.success());
    // Each host's own is remembered by itself.
    assert_eq!(cloud.on("fe", &["sh", "-c", "ls /var/lib/one/onesdm/datastore | grep -c 101@"]), "2");
}

#[test]
fn raw_disks_on_their_hosts_own_storage() {
    on_its_own_storage(Kind::Raw);
}

#[test]
fn qcow2_disks_on_their_hosts_own_storage() {
    on_its_own_storage(Kind::Qcow2);
}
