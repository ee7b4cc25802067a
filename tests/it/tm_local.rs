//! Whole lives of VMs where each host has its own system datastores, on the bed of hosts, over real ssh,
//! called as oned calls them: the seed's words and longer, for both formats, persistent and not. After every
//! call each disk, snapshot and image is read and compared, and so is the tree of every host.

use crate::hosts::Cloud;
use crate::runner::{self, Disk, Kind, MIB, STORES, Vm, source};
use crate::tm::{delete, deploy, forget, revert, save, snapshot, travel};
use std::collections::BTreeMap;

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

/// A disk of no image.
pub fn blank(kind: Kind, content: Vec<u8>) -> Disk {
    let snaps = BTreeMap::new();
    Disk { kind, image: None, persistent: false, content, snaps, active: None, tm: None }
}

/// `mvds`: the disk is the image again, with its snapshots.
pub fn store(vm: &mut Vm<'_>, n: u32) {
    let name = keep(vm, n);
    vm.ok("mvds", &[&vm.disk(n), &source(&name)], 100);
}

/// What the image will be then.
pub fn keep(vm: &mut Vm<'_>, n: u32) -> String {
    let disk = vm.disks[&n].clone();
    let name = disk.image.clone().unwrap();
    vm.images.insert(name.clone(), (disk.kind, disk.content.clone()));
    vm.stored.insert(name.clone(), disk);
    name
}

/// The VM's directory, the rest of its disks with it.
pub fn end(vm: &mut Vm<'_>) {
    let dir = vm.at(vm.host, vm.ds, None);
    vm.disks.clear();
    for _ in 0..2 {
        vm.ok("delete", &[&dir], vm.ds);
    }
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

/// The seed's "Example VM", as it stands.
fn example(driver: &'static str) {
    let cloud = runner::cloud(&[]);
    let mut images = (BTreeMap::new(), BTreeMap::new());
    for (id, kind) in [(1, Kind::Raw), (2, Kind::Qcow2)] {
        let mut vm = Vm::local(&cloud, driver, id);
        (vm.images, vm.stored) = std::mem::take(&mut images);
        let (os, data) = (format!("os{id}"), format!("data{id}"));
        vm.image(&os, kind, 2);
        vm.image(&data, kind, 2);
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
        store(&mut vm, 1);
        end(&mut vm);
        // The next VM finds what this one wrote.
        let mut next = Vm::local(&cloud, driver, id + 10);
        (next.images, next.stored) = (vm.images, vm.stored);
        deploy(&mut next, 0, &data, true, 0);
        end(&mut next);
        images = (next.images, next.stored);
    }
    sound(&cloud);
}

#[test]
fn the_example_vm_of_the_seed_on_local() {
    example("local");
}

#[test]
fn the_example_vm_of_the_seed_on_ssh() {
    example("ssh");
}

/// All that such a datastore offers to a VM that does not run.
fn life(kind: Kind, driver: &'static str) {
    let cloud = runner::cloud(&[]);
    let mut vm = Vm::local(&cloud, driver, 7);
    vm.image("os", kind, 1);
    vm.image("data", kind, 1);
    deploy(&mut vm, 0, "os", false, 1);
    deploy(&mut vm, 1, "data", true, 0);
    for (n, kind) in [(2, Kind::Raw), (3, Kind::Qcow2)] {
        vm.disks.insert(n, blank(kind, vec![0; 4 * MIB]));
        vm.ok("mkimage", &["4", kind.name(), &vm.disk(n)], 101);
        vm.guest(n);
    }
    made(&mut vm, 5, ("mkswap", &["1"]), (4086, "SWAPSPACE2"));
    cloud.write("fe", "/var/lib/one/vms/7/context.sh", "TOKEN='x'\n");
    made(&mut vm, 6, ("context", &["/var/lib/one/vms/7/context.sh"]), (0x8028, "CONTEXT"));
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
    for (n, mib) in [(0, 3), (1, 2), (2, 6), (3, 6)] {
        vm.lcm = 62;
        vm.ok("resize", &[&vm.disk(n), "99"], 100);
        vm.lcm = 63;
        vm.disks.get_mut(&n).unwrap().content.resize(mib * MIB, 0);
        vm.ok("resize", &[&vm.disk(n), &mib.to_string()], 100);
        vm.lcm = 3;
    }
    // Attach and detach, another host, another system datastore, the front-end.
    deploy(&mut vm, 4, "now0", false, 0);
    delete(&mut vm, 4);
    for (host, ds) in [("h2", 101), ("h2", 102), ("fe", 101), ("h1", 102)] {
        travel(&mut vm, host, ds);
        for n in 0..4 {
            vm.guest(n);
        }
    }
    for n in [0, 1] {
        revert(&mut vm, n, 2);
        forget(&mut vm, n, 2);
    }
    snapshot(&mut vm, 1, 5);
    // The image is as it was until then.
    store(&mut vm, 1);
    for n in [0, 2, 3] {
        delete(&mut vm, n);
    }
    end(&mut vm);
    // Elsewhere, with its snapshots; and once more, without.
    let mut next = Vm::local(&cloud, driver, 17);
    (next.host, next.ds, next.images, next.stored) = ("h2", 102, vm.images, vm.stored);
    deploy(&mut next, 0, "data", true, 0);
    next.guest(0);
    revert(&mut next, 0, 5);
    forget(&mut next, 0, 0);
    store(&mut next, 0);
    end(&mut next);
    sound(&cloud);
}

#[test]
fn a_long_life_of_raw_disks_on_local() {
    life(Kind::Raw, "local");
}

#[test]
fn a_long_life_of_qcow2_disks_on_local() {
    life(Kind::Qcow2, "sdm_local");
}

#[test]
fn a_long_life_of_qcow2_disks_on_ssh() {
    life(Kind::Qcow2, "ssh");
}
