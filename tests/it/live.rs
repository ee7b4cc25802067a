//! Operations on running machines: a real libvirtd, real qemu. Content is read through every snapshot, by
//! tools that are not ours, and by the machine itself.

use crate::bed::{names, tool};
use crate::hypervisor::Hypervisor;
use serde_json::json;

/// Snapshots 0, 1, 2, a letter written after each.
fn with_snapshots(persistent: bool) -> Hypervisor {
    let h = Hypervisor::up();
    h.deploy("qcow2", persistent);
    h.boot("qcow2");
    h.write('A', 0);
    for (n, letter) in [(0, 'B'), (1, 'C'), (2, 'D')] {
        h.did("snap_create_live", n);
        h.write(letter, usize::try_from(n).unwrap() + 1);
    }
    h
}

/// What snapshots 0, 1, … show, `-` for one that is not there.
fn each(h: &Hypervisor, persistent: bool, upto: i64) -> String {
    let says = |n| h.snapshot(persistent, n).unwrap_or_else(|| "-".into());
    (0..upto).map(says).collect::<Vec<_>>().join(" ")
}

fn made_deleted_and_gone_on(persistent: bool) {
    let h = with_snapshots(persistent);
    assert_eq!((h.state().as_str(), h.link().as_str()), ("running", "3"));
    assert_eq!(each(&h, persistent, 3), "A AB ABC");
    h.sees("ABCD");
    // In the middle: the layer above goes down into it.
    h.did("snap_delete_live", 1);
    assert_eq!(each(&h, persistent, 3), "A - ABC");
    h.did("snap_delete_live", 1);
    h.sees("ABCD");
    h.write('x', 4);
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCDx");
    assert_eq!(each(&h, persistent, 3), "A - ABC");
    // The machine comes back on the same disk, and all goes on.
    h.boot("qcow2");
    h.sees("ABCDx");
    h.did("snap_create_live", 3);
    h.write('y', 5);
    assert_eq!(each(&h, persistent, 4), "A - ABC ABCDx");
    // Directly below what it writes to: pulled up.
    h.did("snap_delete_live", 3);
    assert_eq!(each(&h, persistent, 4), "A - ABC -");
    h.sees("ABCDxy");
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCDxy");
    for n in [0, 2] {
        h.did("snap_delete", n);
        assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCDxy");
    }
    let left: Vec<String> =
        names(&h.layers(persistent)).into_iter().filter(|n| n.ends_with(".current")).collect();
    assert_eq!(left, [""; 0], "no mark is left");
}

#[test]
fn snapshots_of_a_running_machine_with_its_own_disk() {
    made_deleted_and_gone_on(false);
}

#[test]
fn snapshots_of_a_running_machine_with_a_persistent_disk() {
    made_deleted_and_gone_on(true);
}

/// Qemu opens files by name again when it may write to them, and it knows the first one by the disk's link.
/// Stock commits into whatever that leads to: `Commit complete`, and the guest's data is gone.
#[test]
fn a_layer_that_is_known_by_the_link_is_not_merged_into_before_the_machine_was_off() {
    for persistent in [false, true] {
        let h = with_snapshots(persistent);
        h.did("snap_delete_live", 0);
        assert_eq!(each(&h, persistent, 3), "- AB ABC");
        h.sees("ABCD");
        h.did("snap_delete_live", 2);
        assert_eq!(each(&h, persistent, 3), "- AB -");
        h.sees("ABCD");
        h.op(&h.snap("snap_revert", 0)).run().fails(3);
        h.power_off();
        assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCD");
        h.boot("qcow2");
        // Now it is known by its own name, and goes with the next one that is deleted.
        h.did("snap_create_live", 3);
        h.did("snap_delete_live", 1);
        h.sees("ABCD");
        assert_eq!(each(&h, persistent, 4), "- - - ABCD");
        h.power_off();
        assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCD");
        assert_eq!(h.snapshot(persistent, 3).as_deref(), Some("ABCD"));
    }
}

#[test]
fn a_disk_is_saved_while_its_machine_runs() {
    for format in ["raw", "qcow2"] {
        let h = Hypervisor::up();
        h.deploy(format, false);
        h.boot(format);
        h.write('A', 0);
        if format == "qcow2" {
            h.did("snap_create_live", 0);
        }
        h.write('B', 1);
        let cpds = json!({"op": "cpds", "disk": h.disk(format), "snapshot": null, "target": h.text("100/saved"),
            "live": h.machine()});
        h.op(&cpds).run().ok();
        h.write('C', 2);
        assert_eq!(h.says(&h.at("100/saved")), "AB");
        assert_eq!((h.state().as_str(), job(&h).as_str()), ("running", ""));
        if format == "qcow2" {
            let of = json!({"op": "cpds", "disk": h.disk(format), "snapshot": 0, "target": h.text("100/old"),
                "live": h.machine()});
            h.op(&of).run().ok();
            assert_eq!(h.says(&h.at("100/old")), "A");
        } else {
            let snap = json!({"disk": h.disk(format), "snapshot": 0});
            h.op(&json!({"op": "snap_create_live", "snap": snap, "machine": h.machine()})).run().ok();
            h.write('D', 3);
            assert_eq!(h.says(&h.at("101/7/disk.0.snap/0")), "ABC");
            h.op(&json!({"op": "snap_delete_live", "snap": snap, "machine": h.machine()})).run().ok();
            assert!(!h.at("101/7/disk.0.snap/0").exists());
        }
        h.sees("ABC");
    }
}

fn job(h: &Hypervisor) -> String {
    h.ok(&["virsh", "blockjob", "one-7", "vda", "--info", "--raw"])
}

/// A number that was skipped, one that comes again, and a snapshot that was made although nobody heard of it.
#[test]
fn numbers_need_not_follow_each_other() {
    let h = with_snapshots(false);
    h.did("snap_create_live", 7);
    h.write('E', 4);
    assert_eq!(h.snapshot(false, 7).as_deref(), Some("ABCD"));
    h.did("snap_create_live", 7);
    h.write('F', 5);
    assert_eq!(h.snapshot(false, 7).as_deref(), Some("ABCDE"), "of the second wish's moment");
    assert_eq!(each(&h, false, 3), "A AB ABC");
    h.sees("ABCDEF");
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABCDEF");
    h.did("snap_delete", 7);
    assert_eq!(each(&h, false, 3), "A AB ABC");
    h.did("snap_create", 8);
    assert_eq!(h.snapshot(false, 8).as_deref(), Some("ABCDEF"));
}

#[test]
fn what_does_not_run_or_is_another_machine_is_refused() {
    let h = Hypervisor::up();
    h.deploy("qcow2", false);
    let op = h.snap("snap_create_live", 0);
    let said = h.op(&op).run().fails(10);
    assert!(said.contains("does not run"), "{said}");
    h.boot("qcow2");
    let before = names(&h.layers(false));
    for (key, value, status) in [
        ("domain", "one-8", 10),
        ("domain", "--all", 2),
        ("target", "vdb", 8),
        ("target", "a b", 2),
        ("uri", "", 2),
    ] {
        let mut other = op.clone();
        other["machine"][key] = json!(value);
        h.op(&other).run().fails(status);
    }
    assert_eq!((names(&h.layers(false)), h.link()), (before, "0".to_owned()), "nothing was changed");
    // By hand, so it stays as it is.
    h.ok(&["virsh", "suspend", "one-7"]);
    h.op(&op).run().ok();
    assert_eq!(h.state(), "paused");
}

/// As oned calls the drivers, with the hypervisor's own settings.
#[test]
fn drivers_called_for_a_running_machine() {
    let h = Hypervisor::up();
    h.deploy("qcow2", false);
    h.boot("qcow2");
    h.write('A', 0);
    let rc = h.one.remotes().join("etc/vmm/kvm");
    std::fs::create_dir_all(&rc).unwrap();
    let text =
        format!("# stock\nexport LIBVIRT_URI=\"{}\"\nVIRSH_TIMEOUT=20\nVIRSH_RETRIES=3\n", h.ok(&["uri"]));
    std::fs::write(rc.join("kvmrc"), text).unwrap();
    let disk = format!("localhost:{}/7/disk.0", h.one.base_path(101));
    let saved = format!("{}/saved", h.one.base_path(100));
    let call = |verb: &str, state: u32, args: &[&str]| {
        let call = h.one.tm("shared", verb).env("ONESDM_XML_DIR", h.document(state));
        args.iter().fold(call, crate::call::Call::arg).run().ok();
    };
    for (n, letter) in [("0", 'B'), ("1", 'C')] {
        call("snap_create_live", 57, &[&disk, n, "7", "100"]);
        h.write(letter, n.parse::<usize>().unwrap() + 1);
    }
    call("cpds", 26, &[&disk, &saved, "-1", "7", "100"]);
    assert_eq!(h.says(&h.at("100/saved")), "ABC");
    call("snap_delete", 59, &[&disk, "1", "7", "100"]);
    assert_eq!(each(&h, false, 2), "A -");
    h.sees("ABC");
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), "ABC");
}

/// Where the system datastore is the host's own, what is streamed is a staged copy of one moment.
#[test]
fn the_local_driver_saves_the_disk_of_a_running_machine() {
    for format in ["raw", "qcow2"] {
        let h = Hypervisor::up();
        h.deploy(format, false);
        if format == "qcow2" {
            // A disk of this driver builds on no image.
            let layer = h.at("101/7/disk.0.snap/0");
            let words = ["rebase", "-f", "qcow2", "-b", ""].map(std::ffi::OsStr::new);
            tool("qemu-img", &[&words[..], &[layer.as_os_str()]].concat());
        }
        h.boot(format);
        h.write('A', 0);
        let rc = h.one.remotes().join("etc/vmm/kvm");
        std::fs::create_dir_all(&rc).unwrap();
        std::fs::write(rc.join("kvmrc"), format!("LIBVIRT_URI=\"{}\"\n", h.ok(&["uri"]))).unwrap();
        let xml = h.one.root().join("xml");
        std::fs::create_dir_all(&xml).unwrap();
        let document = format!(
            "<VM><ID>7</ID><DEPLOY_ID>one-7</DEPLOY_ID><LCM_STATE>26</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID>\
             <FORMAT>{format}</FORMAT><TARGET>vda</TARGET><SIZE>16</SIZE></DISK></TEMPLATE><HISTORY_RECORDS>\
             <HISTORY><SEQ>0</SEQ><VM_MAD>kvm</VM_MAD></HISTORY></HISTORY_RECORDS></VM>"
        );
        std::fs::write(xml.join("vm-7.xml"), document).unwrap();
        let disk = format!("localhost:{}/7/disk.0", h.one.base_path(101));
        let saved = format!("{}/saved", h.one.base_path(100));
        let call = h.one.tm("local", "cpds").env("ONESDM_XML_DIR", &xml);
        [&*disk, &saved, "-1", "7", "100"].into_iter().fold(call, crate::call::Call::arg).run().ok();
        h.write('B', 1);
        assert_eq!(h.says(&h.at("100/saved")), "A");
        assert_eq!((h.state().as_str(), job(&h).as_str()), ("running", ""));
        assert_eq!(names(&h.at("101/.sdm/new")), [""; 0], "what was staged is gone");
        h.sees("AB");
    }
}
