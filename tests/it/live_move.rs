//! Machines that had snapshots made while they ran, and then move: cold, saved, and live to another hypervisor
//! that sees the same storage.

use crate::bed::{names, tool};
use crate::hypervisor::{Hypervisor, Libvirt};
use std::ffi::OsStr;
use std::path::Path;

/// What a layer says it builds on.
fn backing(layer: &Path) -> Option<String> {
    let words = ["info", "-U", "--output=json"].map(OsStr::new);
    let said = tool("qemu-img", &[&words[..], &[layer.as_os_str()]].concat());
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    said["backing-filename"].as_str().map(str::to_owned)
}

fn cold(driver: &str) {
    let h = Hypervisor::up();
    h.one.store(102);
    h.deploy("qcow2", false);
    if driver == "local" {
        // A disk of this driver builds on no image.
        let words = ["rebase", "-f", "qcow2", "-b", ""].map(OsStr::new);
        tool("qemu-img", &[&words[..], &[h.at("101/7/disk.0.snap/0").as_os_str()]].concat());
    }
    h.boot("qcow2");
    for (n, letter) in ['A', 'B'].into_iter().enumerate() {
        h.write(letter, n);
        h.did("snap_create_live", i64::try_from(n).unwrap());
    }
    h.write('C', 2);
    h.power_off();
    let xml = h.one.root().join("xml");
    std::fs::create_dir_all(&xml).unwrap();
    let document = "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>qcow2</FORMAT><SIZE>16</SIZE></DISK>\
                    </TEMPLATE></VM>";
    std::fs::write(xml.join("vm-7.xml"), document).unwrap();
    let go = |from: u32, to: u32| {
        let vm = |ds| format!("localhost:{}/7", h.one.base_path(ds));
        let call = h.one.tm(driver, "mv").env("ONESDM_XML_DIR", &xml);
        [&*vm(from), &vm(to), "7", &to.to_string()].into_iter().fold(call, crate::call::Call::arg).run().ok();
    };
    go(101, 102);
    assert_eq!(names(&h.at("101/7")), [""; 0], "{driver}");
    let layers = h.at("102/7/disk.0.snap");
    assert_eq!(std::fs::read_link(h.at("102/7/disk.0")).unwrap(), Path::new("disk.0.snap/2"), "{driver}");
    assert_eq!(std::fs::read_link(layers.join("disk.0.snap")).unwrap(), Path::new("."), "{driver}");
    for n in [1, 2] {
        let name = backing(&layers.join(n.to_string()));
        assert_eq!(name, Some(format!("disk.0.snap/{}", n - 1)), "{driver}: layer {n}");
    }
    assert_eq!(h.says(&h.at("102/7/disk.0")), "ABC", "{driver}");
    go(102, 101);
    h.boot("qcow2");
    h.sees("ABC");
    h.did("snap_create_live", 2);
    h.write('D', 3);
    h.did("snap_delete_live", 1);
    h.sees("ABCD");
    h.power_off();
    let shown = [0, 1, 2].map(|n| h.snapshot(false, n));
    assert_eq!(shown, [Some("A".into()), None, Some("ABC".into())], "{driver}");
    h.did("snap_revert", 2);
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABC", "{driver}");
    h.did("snap_delete", 0);
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABC", "{driver}");
}

#[test]
fn a_chain_made_while_the_machine_ran_moves_cold_and_goes_on() {
    for driver in ["qcow2", "local"] {
        cold(driver);
    }
}

/// Libvirt hands on the names by which it knows files, and one of them leads elsewhere since a snapshot was made
/// while the machine ran. Qemu's locks notice; so it has to be started anew first, as with stock drivers.
#[test]
fn a_machine_moves_live_and_is_restored_once_it_was_started_anew() {
    let (h, other) = (Hypervisor::up(), Libvirt::up());
    let uri = other.ok(&["uri"]);
    h.deploy("qcow2", false);
    h.boot("qcow2");
    h.write('A', 0);
    h.did("snap_create_live", 0);
    h.write('B', 1);
    let to = ["virsh", "migrate", "--live", "--unsafe", "one-7", &uri, "tcp://127.0.0.1"];
    let (went, said) = h.command(&to);
    assert!(!went, "if this works now, the manual has to say so: {said}");
    assert_eq!(h.state(), "running");
    h.sees("AB");
    h.write('C', 2);
    let checkpoint = h.text("101/7/checkpoint");
    h.ok(&["virsh", "save", "one-7", &checkpoint]);
    assert!(!h.command(&["virsh", "restore", &checkpoint]).0, "if this works now, the manual has to say so");
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABC", "nothing is lost");
    // With the name that the manual says, and from then on.
    let description = h.ok(&["virsh", "save-image-dumpxml", &checkpoint]);
    let link = format!("'{}'", h.text("101/7/disk.0"));
    assert!(description.contains(&link), "{description}");
    let corrected = h.one.root().join("corrected.xml");
    let layer = format!("'{}'", h.text("101/7/disk.0.snap/0"));
    std::fs::write(&corrected, description.replace(&link, &layer)).unwrap();
    h.ok(&["virsh", "restore", &checkpoint, "--xml", corrected.to_str().unwrap()]);
    h.sees("ABC");
    h.power_off();
    // Started anew: all its names are right.
    h.boot("qcow2");
    h.ok(&["virsh", "save", "one-7", &checkpoint]);
    h.ok(&["virsh", "restore", &checkpoint]);
    h.ok(&to);
    let there = |letter: &str, mib: &str| other.ok(&["read", "one-7", "vda", letter, mib, "64k"]);
    for (letter, mib) in [("A", "0M"), ("B", "1M"), ("C", "2M")] {
        there(letter, mib);
    }
    // And all goes on there.
    for op in ["snap_create_live", "snap_delete_live"] {
        let mut op = h.snap(op, i64::from(op == "snap_create_live"));
        op["machine"]["uri"] = uri.clone().into();
        h.op(&op).run().ok();
    }
    other.ok(&["write", "one-7", "vda", "D", "3M", "64k"]);
    there("C", "2M");
    other.ok(&["virsh", "destroy", "--graceful", "one-7"]);
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCD");
    assert_eq!([0, 1].map(|n| h.snapshot(false, n)), [None, Some("ABC".into())]);
    h.did("snap_revert", 1);
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABC");
}
