//! The seed's "Example VM" where each host has its own system datastores, on the bed of hosts, over real ssh,
//! called as oned calls them. After every call each disk, snapshot and image is read and compared, and so is
//! the tree of every host. A longer life is `tm::life`.

use crate::runner::{self, Kind, Vm};
use crate::tm::{delete, deploy, end, sound, store, travel};
use std::collections::BTreeMap;

/// The seed's "Example VM", as it stands.
fn example(driver: &'static str) {
    let cloud = runner::cloud_for(driver);
    let mut images = (BTreeMap::new(), BTreeMap::new());
    for (id, kind) in [(1, Kind::Raw), (2, Kind::Qcow2)] {
        let mut vm = Vm::new(&cloud, driver, id);
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
        let mut next = Vm::new(&cloud, driver, id + 10);
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
