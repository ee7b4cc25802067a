//! Transfer verbs of shared datastores on the bed of hosts, over real ssh, called as oned calls them: whole
//! lives of VMs, by the seed's words and longer. After every call each disk, snapshot and image is read and
//! compared, and so is the tree.

use crate::hosts::Cloud;
use crate::runner::{self, Disk, Kind, MIB, STORES, Vm, source};
use std::collections::BTreeMap;

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

/// A live migration between hosts of which each has its own: the hypervisor copies the disks itself.
fn migrate(vm: &mut Vm<'_>, to: &'static str) {
    let (from, dir, at) = (vm.host, format!("{STORES}//{}/{}", vm.ds, vm.id), format!("{STORES}/{}", vm.ds));
    let out = vm.run("premigrate", &[from, to, &dir], vm.ds);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let copy = format!("tar -C {at} -cSf - {} | ssh {to} tar -C {at} -xSf -", vm.id);
    vm.cloud.on(from, &["sh", "-c", &copy]);
    (vm.before, vm.host) = (Some(vm.ds), to);
    vm.ok("postmigrate", &[from, to, &dir], vm.ds);
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
    let cloud = runner::cloud_for("shared");
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

/// Nothing is left in anybody's area.
pub fn sound(cloud: &Cloud) {
    let program = crate::bed::program();
    for host in ["fe", "h1", "h2"] {
        for verb in ["gc", "check"] {
            cloud.on(host, &[program.to_str().unwrap(), verb]);
        }
        for (ds, dir) in [100, 101, 102].into_iter().flat_map(|ds| [(ds, "new"), (ds, "del")]) {
            let path = format!("{STORES}/{ds}/.sdm/{dir}");
            let left = cloud.inside(host, || match std::fs::read_dir(&path) {
                Ok(entries) => entries.flatten().map(|e| e.file_name().into_string().unwrap()).collect(),
                Err(_) => Vec::new(),
            });
            assert!(left.iter().all(|n| n.contains(".keep")), "{host}:{path}: {left:?}");
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

/// A disk of no image.
pub fn blank(kind: Kind, content: Vec<u8>) -> Disk {
    let snaps = BTreeMap::new();
    Disk { kind, image: None, persistent: false, content, snaps, active: None, tm: None }
}

/// A disk whose bits are its maker's affair, except for what must be at one place.
fn made(vm: &mut Vm<'_>, n: u32, (verb, args): (&str, &[&str]), (at, what): (usize, &str)) {
    let disk = vm.disk(n);
    let out = vm.run(verb, &[args, &[disk.as_str()]].concat(), vm.ds);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let path = format!("{STORES}/{}/{}/disk.{n}", vm.ds, vm.id);
    let content = vm.cloud.inside(vm.host, || std::fs::read(path).unwrap());
    assert!(content[at..].starts_with(what.as_bytes()), "{verb}: no {what} at {at}");
    vm.disks.insert(n, blank(Kind::Raw, content));
    vm.check();
}

/// `resize`, of a VM that runs and of one that does not.
fn grow(vm: &mut Vm<'_>, n: u32) {
    vm.lcm = 62;
    vm.ok("resize", &[&vm.disk(n), "99"], 100);
    vm.lcm = 63;
    let (disk, copies) = (vm.disks.get_mut(&n).unwrap(), vm.copies);
    disk.content.resize(disk.content.len() + 2 * MIB, 0);
    let mib = (disk.content.len() / MIB).to_string();
    if let Some(image) = disk.image.clone().filter(|_| disk.persistent && !copies) {
        vm.images.get_mut(&image).unwrap().1.clone_from(&disk.content);
    }
    vm.ok("resize", &[&vm.disk(n), &mib], 100);
    vm.lcm = 3;
}

/// `mvds`: the disk is the image again, with its snapshots.
pub fn store(vm: &mut Vm<'_>, n: u32) {
    let disk = vm.disks[&n].clone();
    let name = disk.image.clone().unwrap();
    if vm.copies {
        vm.images.insert(name.clone(), (disk.kind, disk.content.clone()));
        vm.stored.insert(name.clone(), disk);
    }
    vm.ok("mvds", &[&vm.disk(n), &source(&name)], 100);
}

/// The VM's directory, the rest of its disks with it.
pub fn end(vm: &mut Vm<'_>) {
    let dir = vm.at(vm.host, vm.ds, None);
    vm.disks.clear();
    for _ in 0..2 {
        vm.ok("delete", &[&dir], vm.ds);
    }
}

/// A longer life: all that is offered to a VM that does not run.
pub fn life(vm: &mut Vm<'_>, kind: Kind, mib: usize) {
    vm.image("os", kind, mib);
    vm.image("data", kind, mib);
    // One that is given up.
    deploy(vm, 0, "os", false, 0);
    end(vm);
    deploy(vm, 0, "os", false, 1);
    deploy(vm, 1, "data", true, 0);
    for (n, kind) in [(2, Kind::Raw), (3, Kind::Qcow2)] {
        vm.disks.insert(n, blank(kind, vec![0; 4 * MIB]));
        vm.ok("mkimage", &["4", kind.name(), &vm.disk(n)], 101);
        vm.guest(n);
    }
    made(vm, 5, ("mkswap", &["1"]), (4086, "SWAPSPACE2"));
    vm.cloud.write("fe", "/var/lib/one/vms/7/context.sh", "TOKEN='x'\n");
    made(vm, 6, ("context", &["/var/lib/one/vms/7/context.sh"]), (0x8028, "CONTEXT"));
    for n in [0, 1] {
        vm.guest(n);
        snapshot(vm, n, 0);
        snapshot(vm, n, 1);
        save(vm, n, Some(0), &format!("snap{n}"));
        revert(vm, n, 0);
        snapshot(vm, n, 2);
        forget(vm, n, 1);
        save(vm, n, None, &format!("now{n}"));
    }
    for n in 0..4 {
        grow(vm, n);
    }
    // Attach and detach, another host, another system datastore, the front-end.
    deploy(vm, 4, "now0", false, 0);
    delete(vm, 4);
    for (host, ds) in [("h2", 101), ("h2", 102), ("fe", 101), ("h1", 102)] {
        travel(vm, host, ds);
        for n in 0..4 {
            vm.guest(n);
        }
    }
    for n in [0, 1] {
        revert(vm, n, 2);
        forget(vm, n, 2);
    }
    if vm.copies {
        migrate(vm, "h2");
        // The image is as it was until then.
        snapshot(vm, 1, 5);
    }
    store(vm, 1);
    for n in [0, 2, 3] {
        delete(vm, n);
    }
    vm.check();
    if vm.copies {
        end(vm);
        // Elsewhere, with its snapshots; and once more, without.
        (vm.id, vm.host, vm.ds) = (17, "h2", 102);
        deploy(vm, 0, "data", true, 0);
        vm.guest(0);
        revert(vm, 0, 5);
        forget(vm, 0, 0);
        store(vm, 0);
        end(vm);
    }
    sound(vm.cloud);
}

fn long(kind: Kind, driver: &'static str) {
    let cloud = runner::cloud_for(driver);
    life(&mut Vm::new(&cloud, driver, 7), kind, 1);
}

#[test]
fn a_long_life_of_raw_disks() {
    long(Kind::Raw, "shared");
}

#[test]
fn a_long_life_of_qcow2_disks() {
    long(Kind::Qcow2, "sdm_shared");
}

#[test]
fn a_long_life_of_raw_disks_on_local() {
    long(Kind::Raw, "local");
}

#[test]
fn a_long_life_of_qcow2_disks_on_local() {
    long(Kind::Qcow2, "sdm_local");
}

#[test]
fn a_long_life_of_qcow2_disks_on_ssh() {
    long(Kind::Qcow2, "ssh");
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
