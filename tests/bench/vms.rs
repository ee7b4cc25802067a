//! What the VMs of a system datastore take: one call for ten thousand of them, beside `du` on their disks.

use crate::Options;
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, least, median};
use crate::store::{PROGRAM, Store};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// Milliseconds.
const AIM: f64 = 1000.0;

pub fn bench(place: &Place, options: &Options) -> Row {
    let vms: u32 = if options.quick { 1000 } else { 10_000 };
    let dir = place.dir.join("vms");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    let own = store.root.join("var/datastores/101");
    for n in 0..vms {
        let vm = own.join(n.to_string());
        std::fs::create_dir_all(vm.join("disk.0.snap")).unwrap();
        for file in ["disk.0.snap/0", "disk.0.snap/1", "disk.1", "vm.xml"] {
            std::fs::write(vm.join(file), "x").unwrap();
        }
        symlink("disk.0.snap/1", vm.join("disk.0")).unwrap();
    }
    let link = store.root.join("var/remotes/tm/shared");
    std::fs::create_dir_all(&link).unwrap();
    symlink(PROGRAM, link.join("monitor_ds")).unwrap();
    let ours = || {
        let mut c = Command::new(link.join("monitor_ds"));
        c.arg(&own).env_clear().env("ONESDM_CONFIG", store.root.join("onesdm.toml"));
        run::run(&mut c, b"").0.ms()
    };
    let du = || run::run(Command::new("du").args(["-smL"]).arg(&own), b"").0.ms();
    let (mut took, mut rival) = (Vec::new(), Vec::new());
    for _ in 0..options.runs(10) {
        took.push(ours());
        rival.push(du());
    }
    std::fs::remove_dir_all(Path::new(&dir)).unwrap();
    let ms = median(&took);
    Row::new("fixed cost", &format!("monitor_ds, {vms} VMs"), &place.fs)
        .number("ms", ms)
        .number("ms_least", least(&took))
        .number("aim_ms", AIM)
        .detail("one du", median(&rival))
        .within(ms <= AIM)
}
