//! Datastores on NFS: a server and two clients in the micro-VM (tests/bed/nfs). The tests of `nfs_inside`, `nfs_stale` and
//! `nfs_auto` run there.

use crate::{bed, vm};
use std::process::Command;

#[test]
fn datastores_on_nfs() {
    in_machine("nfs_inside::");
}

#[test]
fn datastores_that_another_host_changes() {
    in_machine("nfs_stale::");
}

#[test]
fn shares_that_datastores_ask_for() {
    in_machine("nfs_auto::");
}

/// Runs the tests of a module there.
fn in_machine(module: &str) {
    let tmp = bed::scratch();
    let disk = vm::disk(tmp.path(), "export", 400 << 20);
    bed::tool("mkfs.xfs", &["-q".as_ref(), "-m".as_ref(), "reflink=1".as_ref(), disk.as_os_str()]);
    let mut command = Command::new(vm::script());
    command.args(["run", "-t", "600", "-m", "1024", "-d"]).arg(&disk);
    for module in ["xfs", "nfsd", "nfsv4", "nfsv3", "veth"] {
        command.args(["-k", module]);
    }
    let test = std::env::current_exe().unwrap();
    command.arg("-f").arg(&test).arg("-f").arg(bed::program());
    for program in [
        "/usr/bin/ip",
        "/usr/bin/qemu-img",
        "/usr/bin/qemu-io",
        "/usr/sbin/mkfs.ext4",
        "/usr/sbin/mkswap",
        "/usr/bin/mount",
        "/usr/bin/umount",
        "/usr/sbin/mount.nfs",
    ] {
        command.args(["-f", program]);
    }
    let only = std::env::var("ONESDM_ONLY").unwrap_or_default();
    let full = std::env::var("ONESDM_FULL").unwrap_or_default();
    let run = format!(
        "printf %s \"$NFS\" >/usr/bin/nfs; chmod 755 /usr/bin/nfs; nfs up || exit 9\n\
         printf 'root:x:0:0::/:/bin/sh\n' >/etc/passwd; printf 'root:x:0:\n' >/etc/group; chmod 1777 /tmp\n\
         ln -s mke2fs /usr/sbin/mkfs.ext4; printf %s \"$NETCONFIG\" >/etc/netconfig\n\
         nfs mount a /a vers=4.2 && nfs mount b /b vers=4.2 || exit 9\n\
         ONESDM_FULL={full} {} --ignored --nocapture --test-threads=1 {module}{only} || {{ dmesg | tail -n 30; exit 1; }}",
        test.display()
    );
    let nfs = format!("NFS={}", include_str!("../bed/nfs"));
    // The transports that mount.nfs knows.
    let netconfig = format!("NETCONFIG={}", std::fs::read_to_string("/etc/netconfig").unwrap());
    let out = command.args(["--", "env", &nfs, &netconfig, "sh", "-c", &run]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && said.contains("test result: ok"), "{said}");
    println!("{said}");
}
