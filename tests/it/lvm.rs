//! The LVM engine with the kernel's device mapper, in the micro-VM: thick and thin volumes.

use crate::{bed, vm};
use onesdm::engine::lvm::{Alone, Host, LvmEngine, Options};
use onesdm::engine::{Engine, conformance};
use onesdm::lock::MemLocks;
use onesdm::sys::{Cancel, Tools};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// As root: the test arranges it, not the engine.
fn lvm(words: &[&str]) {
    let out = Command::new("sudo").arg("-n").args(words).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
}

const GROUP: &str = "vg-one-1";

fn engine(id: u64, locks: &MemLocks) -> LvmEngine {
    LvmEngine::open(Options {
        group: GROUP.to_owned(),
        devices: vec!["/dev/vda".into()],
        peers: Box::new(Alone(Host { id, generation: 1 })),
        tools: Tools::new(BTreeMap::new()).unwrap(),
        locks: Arc::new(locks.clone()),
        wait: Duration::from_secs(60),
        deadline: Duration::from_secs(120),
        cancel: Cancel::default(),
    })
    .unwrap()
}

/// Rules that need devices; `ONESDM_FULL=1` tries all of them here, too.
const DEVICES: [&str; 2] = ["burying", "clones"];

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn conforms_inside() {
    let full = std::env::var("ONESDM_FULL").is_ok_and(|v| v == "1");
    let begin = Instant::now();
    let wanted = |rule: &str| {
        let is = full || DEVICES.iter().any(|d| rule.starts_with(d));
        println!("{:6.1} s {} {rule}", begin.elapsed().as_secs_f32(), if is { "rule" } else { "left" });
        is
    };
    let first = std::cell::Cell::new(true);
    let make = || -> Box<dyn Engine> {
        if !first.replace(false) {
            lvm(&["/usr/sbin/vgremove", "-qff", "-y", GROUP]);
        }
        lvm(&["/usr/sbin/vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
        Box::new(engine(1, &MemLocks::default()))
    };
    conformance::run_some(&make, &wanted);
    println!("{:6.1} s", begin.elapsed().as_secs_f32());
    lvm(&["/usr/sbin/vgck", GROUP]);
}

#[test]
fn thick_and_thin_volumes_conform_on_device_mapper() {
    let tmp = bed::scratch();
    let disk = vm::disk(tmp.path(), "lun", 512 << 20);
    vm::passes("lvm::conforms_inside", &[&disk]);
}
