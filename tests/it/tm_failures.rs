//! What goes wrong around a transfer: dead hosts, full disks, disks in use, datastores that are not mounted,
//! deletions that come in between, twenty at once, two versions. The source stays whole, and one line says so.

use crate::hosts::{Cloud, eventually};
use crate::runner::{self, Kind, MIB, STORES, Vm, source, words};
use crate::tm::{blank, deploy, end, snapshot, travel};
use crate::tm_kill::{arm_on, signal};
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

/// An image without holes and zeros.
fn dense(vm: &mut Vm<'_>, name: &str, mib: usize) {
    vm.image(name, Kind::Raw, mib);
    let content: Vec<u8> = (0..mib * MIB).map(|n| u8::try_from(n % 251).unwrap() | 1).collect();
    vm.cloud.inside("fe", || std::fs::write(format!("{STORES}/100/{name}"), &content).unwrap());
    vm.images.insert(name.to_owned(), (Kind::Raw, content));
}

/// The call fails in one line, which has these words, and everything is as it was.
#[track_caller]
fn fails(vm: &Vm<'_>, (verb, args, ds): (&str, &[&str], u32), code: i32, says: &[&str]) {
    let out = vm.run(verb, args, ds);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let errors = said.lines().filter(|l| !l.starts_with("WARN: ")).count();
    // Whether a host that is not there is refused or silent depends on when it went.
    let found = out.status.code().map(|c| if c == 7 { 6 } else { c });
    assert!(found == Some(code) && errors == 1, "{verb}: {:?} {said}", out.status);
    assert!(says.iter().all(|w| said.contains(w)), "{verb}: {said}");
}

/// A call that is under way.
pub fn start(vm: &Vm<'_>, verb: &str, args: &[&str], ds: u32) -> Child {
    vm.tell();
    let all: Vec<String> =
        args.iter().map(|a| (*a).to_owned()).chain([vm.id.to_string(), ds.to_string()]).collect();
    let words = words(vm.cloud, vm.driver, verb, "", &all);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    vm.cloud.command("fe", &words).stderr(Stdio::piped()).spawn().unwrap()
}

fn small(cloud: &Cloud, host: &str, ds: u32, mib: u32) {
    let dir = format!("{STORES}/{ds}");
    cloud.on(host, &["mkdir", "-p", &dir]);
    cloud.on(host, &["mount", "-t", "tmpfs", "-o", &format!("size={mib}m"), "small", &dir]);
}

fn staged(cloud: &Cloud, host: &str, ds: u32) -> bool {
    let dir = format!("{STORES}/{ds}/.sdm/new");
    cloud.inside(host, || std::fs::read_dir(dir).is_ok_and(|mut d| d.next().is_some()))
}

#[test]
fn a_dead_host_leaves_the_source_whole() {
    let cloud = runner::cloud(&[]);
    let mut vm = Vm::new(&cloud, "local", 7);
    vm.image("os", Kind::Qcow2, 1);
    deploy(&mut vm, 0, "os", false, 0);
    snapshot(&mut vm, 0, 0);
    let (a, b) = (vm.at("h1", 101, None), vm.at("h2", 101, None));
    cloud.ok(&["crash", "h2"]);
    fails(&vm, ("mv", &[&a, &b], 101), 6, &["h2"]);
    fails(&vm, ("clone", &[&format!("fe:{}", source("os")), &vm.at("h2", 101, Some(0))], 100), 6, &["h2"]);
    vm.reads();
    cloud.ok(&["boot", "h2"]);
    vm.check();
    cloud.ok(&["crash", "h1"]);
    fails(&vm, ("mv", &[&a, &b], 101), 6, &["h1"]);
    fails(&vm, ("cpds", &[&vm.disk(0), &source("saved"), "-1"], 100), 6, &["h1"]);
    // Its machines are lost, oned says: there is nothing to be had from it, and that is no failure.
    vm.lcm = 60;
    assert!(vm.run("mv", &[&a, &b], 101).status.success());
    vm.lcm = 3;
    cloud.ok(&["boot", "h1"]);
    vm.check();
    travel(&mut vm, "h2", 101);
    crate::tm::sound(&cloud);
}

#[test]
fn a_full_disk_leaves_the_source_whole_on_local() {
    let cloud = runner::cloud(&[]);
    small(&cloud, "fe", 100, 11);
    small(&cloud, "h2", 101, 5);
    let mut vm = Vm::new(&cloud, "local", 7);
    dense(&mut vm, "os", 6);
    deploy(&mut vm, 0, "os", false, 0);
    let (a, b) = (vm.at("h1", 101, None), vm.at("h2", 101, None));
    for _ in 0..2 {
        fails(&vm, ("mv", &[&a, &b], 101), 70, &["h2", "space"]);
        fails(
            &vm,
            ("clone", &[&format!("fe:{}", source("os")), &vm.at("h2", 101, Some(0))], 100),
            70,
            &["h2", "space"],
        );
        fails(&vm, ("cpds", &[&vm.disk(0), &source("saved"), "-1"], 100), 70, &["space"]);
        for (host, ds) in [("fe", 100), ("h2", 101)] {
            assert!(!staged(&cloud, host, ds), "left on {host}");
        }
        vm.reads();
    }
    cloud.on("h2", &["mount", "-o", "remount,size=20m", &format!("{STORES}/101")]);
    vm.host = "h2";
    vm.ok("mv", &[&a, &b], 101);
}

#[test]
fn a_full_disk_leaves_the_source_whole_on_shared() {
    let cloud = runner::cloud(&[100, 101]);
    small(&cloud, "h1", 102, 5);
    let mut vm = Vm::new(&cloud, "shared", 7);
    dense(&mut vm, "os", 6);
    deploy(&mut vm, 0, "os", false, 0);
    for _ in 0..2 {
        fails(&vm, ("mv", &[&vm.at("h1", 101, None), &vm.at("h1", 102, None)], 102), 70, &["h1", "space"]);
        vm.check();
        fails(
            &vm,
            ("clone", &[&format!("fe:{}", source("os")), &vm.at("h1", 102, Some(0))], 100),
            70,
            &["h1", "space"],
        );
        assert!(!staged(&cloud, "h1", 102));
        // The directory of the VM may stay, empty.
        cloud.on("h1", &["rm", "-d", &format!("{STORES}/102/7")]);
    }
    vm.check();
}

/// Where a host has a file system of its own for its datastore, which is not mounted.
#[test]
fn a_datastore_that_is_not_mounted_is_refused_on_local() {
    let cloud = runner::cloud(&[]);
    for (host, ds) in [("h1", 101), ("h2", 101), ("fe", 100)] {
        small(&cloud, host, ds, 50);
    }
    let mut vm = Vm::new(&cloud, "local", 7);
    vm.image("os", Kind::Raw, 1);
    deploy(&mut vm, 0, "os", false, 0);
    travel(&mut vm, "h2", 101);
    travel(&mut vm, "h1", 101);
    let (a, b) = (vm.at("h1", 101, None), vm.at("h2", 101, None));
    cloud.on("h2", &["umount", &format!("{STORES}/101")]);
    fails(&vm, ("mv", &[&a, &b], 101), 10, &["h2", "mounted"]);
    let from = format!("fe:{}", source("os"));
    fails(&vm, ("clone", &[&from, &vm.at("h2", 101, Some(0))], 100), 10, &["h2", "mounted"]);
    assert_eq!(cloud.on("h2", &["ls", "-A", &format!("{STORES}/101")]), "");
    vm.check();
    // Where the images are, and where the disk is.
    let (disk, saved) = (vm.disk(0), source("saved"));
    let (images, disks) = (format!("{STORES}/100"), format!("{STORES}/101"));
    for (host, dir) in [("h1", &disks), ("fe", &images)] {
        cloud.on(host, &["umount", dir]);
        for verb in ["cpds", "mvds"] {
            let args: &[&str] = if verb == "cpds" { &[&disk, &saved, "-1"] } else { &[&disk, &from[3..]] };
            fails(&vm, (verb, args, 100), 10, &[dir, "mounted"]);
        }
        assert_eq!(cloud.on(host, &["ls", "-A", dir]), "");
    }
}

/// Where a host lost a share that the others have; its directory is there, and then not even that.
#[test]
fn a_share_that_is_not_mounted_is_refused_on_shared() {
    for lost in [100, 101] {
        let cloud = runner::cloud(&[100, 101]);
        let mut vm = Vm::new(&cloud, "shared", 7);
        for (n, name, kind) in [(0, "os", Kind::Qcow2), (1, "data", Kind::Qcow2), (2, "raw", Kind::Raw)] {
            vm.image(name, kind, 1);
            deploy(&mut vm, n, name, n > 0, 0);
            snapshot(&mut vm, n, 0);
        }
        let (disk, dir) = (vm.disk(0), format!("{STORES}/{lost}"));
        let kept = [vm.disk(1), vm.disk(2)];
        let (saved, from) = (source("saved"), format!("fe:{}", source("os")));
        cloud.on("h1", &["umount", &dir]);
        for command in [&["true"][..], &["rmdir", &dir]] {
            cloud.on("h1", command);
            let calls: [(&str, &[&str], u32); 8] = [
                ("cpds", &[&kept[0], &saved, "-1"], 100),
                ("cpds", &[&kept[1], &saved, "-1"], 100),
                ("cpds", &[&kept[1], &saved, "0"], 100),
                ("cpds", &[&disk, &saved, "-1"], 100),
                ("cpds", &[&disk, &saved, "0"], 100),
                ("clone", &[&from, &disk], 100),
                ("snap_create", &[&disk, "1"], 100),
                ("snap_delete", &[&disk, "0"], 100),
            ];
            for call in calls.into_iter().filter(|c| lost == 101 || ["cpds", "clone"].contains(&c.0)) {
                fails(&vm, call, 10, &["h1", &dir, "mounted"]);
            }
            let left = cloud.inside("h1", || std::fs::read_dir(&dir).map_or(0, Iterator::count));
            assert_eq!(left, 0);
        }
    }
}

/// Red team 1.9: what a machine has open is neither moved nor replaced, wherever it runs.
#[test]
fn a_disk_that_a_host_has_open_stays() {
    let cloud = runner::cloud(&[]);
    let mut vm = Vm::new(&cloud, "local", 7);
    vm.image("os", Kind::Qcow2, 1);
    deploy(&mut vm, 0, "os", false, 0);
    snapshot(&mut vm, 0, 0);
    let path = format!("{STORES}/101/7/disk.0.snap/1");
    let mut machine = cloud.command("h1", &["qemu-io", "-f", "qcow2", &path]);
    let mut machine = machine.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It asks for a command once it has opened the file, which whoever looks at it before could keep it from.
    machine.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let info = cloud.command("h1", &["qemu-img", "info", &path]).output().unwrap();
    assert!(!info.status.success(), "it is not open");
    fails(
        &vm,
        ("mv", &[&vm.at("h1", 101, None), &vm.at("h2", 101, None)], 101),
        9,
        &["is open in a running VM"],
    );
    fails(&vm, ("snap_revert", &[&vm.disk(0), "0"], 100), 9, &["is open in a running VM"]);
    fails(&vm, ("mvds", &[&vm.disk(0), &source("os")], 100), 9, &["is open in a running VM"]);
    fails(&vm, ("cpds", &[&vm.disk(0), &source("saved"), "-1"], 100), 9, &["is open in a running VM"]);
    drop(machine.stdin.take());
    machine.wait().unwrap();
    vm.check();
    travel(&mut vm, "h2", 101);
}

/// Red team 3.3: oned gave up a copy that is still running, and takes the VM away.
#[test]
fn a_delete_during_a_clone_wins() {
    for driver in ["shared", "local"] {
        let cloud = runner::cloud_for(driver);
        // It stands still before the host has a record of what is made, then when all is staged.
        for id in [7, 8] {
            let mut vm = Vm::new(&cloud, driver, id);
            vm.image("os", Kind::Raw, 1);
            let content = vm.images["os"].1.clone();
            vm.disks.insert(0, runner::Disk { image: Some("os".into()), ..blank(Kind::Raw, content) });
            arm_on("h1", &vm, "ONESDM_TEST_STOP=14");
            let clone = start(&vm, "clone", &[&format!("fe:{}", source("os")), &vm.disk(0)], 100);
            let stopped = ["sh", "-c", "grep -l 'State:.T' /proc/[0-9]*/status"];
            eventually("the agent stands still", SOON, || {
                cloud.command("h1", &stopped).output().unwrap().status.success()
            });
            let out = vm.run("delete", &[&vm.at("h1", 101, None)], 101);
            assert!(out.status.success(), "{driver}: {}", String::from_utf8_lossy(&out.stderr));
            signal(&vm, "h1", "onesdm agent", "CONT");
            let out = clone.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(!out.status.success() && said.lines().count() == 1, "{driver}: {:?} {said}", out.status);
            println!("{driver}: {said}");
            vm.disks.clear();
            eventually("nothing is left", SOON, || !staged(&cloud, "h1", 101));
            let disk = format!("{STORES}/101/{id}/disk.0");
            assert!(!cloud.inside("h1", || Path::new(&disk).exists()), "{driver}: {said}");
            end(&mut vm);
        }
    }
}

#[test]
fn twenty_deployments_at_once() {
    for driver in ["shared", "local"] {
        let cloud = runner::cloud_for(driver);
        let mut first = Vm::new(&cloud, driver, 0);
        first.image("os", Kind::Qcow2, 1);
        let mut vms = Vec::new();
        for id in 1..=20 {
            let mut vm = Vm::new(&cloud, driver, id);
            vm.images = first.images.clone();
            vm.host = if id % 2 == 0 { "h1" } else { "h2" };
            let mut disk = blank(Kind::Qcow2, vm.images["os"].1.clone());
            (disk.image, disk.active) = (Some("os".into()), Some(0));
            vm.disks.insert(0, disk);
            vms.push(vm);
        }
        let begin = std::time::Instant::now();
        let from = format!("fe:{}", source("os"));
        let calls: Vec<_> = vms.iter().map(|vm| start(vm, "clone", &[&from, &vm.disk(0)], 100)).collect();
        for call in calls {
            let out = call.wait_with_output().unwrap();
            assert!(out.status.success(), "{driver}: {}", String::from_utf8_lossy(&out.stderr));
        }
        println!("{driver}: 20 deployments in {} ms", begin.elapsed().as_millis());
        for vm in &mut vms {
            vm.check();
            vm.guest(0);
        }
        vms.iter().for_each(Vm::check);
    }
}

/// A program of another version, as another front-end and as what hosts have.
#[test]
fn two_versions_work_on_one_domain() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut bytes = std::fs::read(crate::bed::program()).unwrap();
    let (ours, theirs) = (env!("CARGO_PKG_VERSION").as_bytes(), b"9.1.9");
    assert_eq!(ours.len(), theirs.len());
    for at in (0..bytes.len() - ours.len()).rev() {
        if bytes[at] == ours[0] && bytes[at..].starts_with(ours) {
            bytes[at..at + ours.len()].copy_from_slice(theirs);
        }
    }
    let other = "/usr/local/bin/onesdm";
    cloud.inside("h2", || {
        std::fs::remove_file(other).unwrap();
        std::fs::write(other, &bytes).unwrap();
    });
    cloud.on("h2", &["chmod", "755", other]);
    let says = cloud.on("h2", &[other, "--version"]);
    assert!(says.contains("9.1.9"), "{says}");
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("os", Kind::Qcow2, 1);
    deploy(&mut vm, 0, "os", false, 0);
    // The front-end's version on one host, the other on the other; then back.
    for (host, id) in [("h2", 0), ("h1", 1), ("h2", 2)] {
        travel(&mut vm, host, 101);
        snapshot(&mut vm, 0, id);
    }
    // The other one by itself: it reads our records and we its.
    for verb in ["gc", "check"] {
        cloud.on("h2", &[other, verb, &format!("{STORES}/101"), &format!("{STORES}/100")]);
    }
    travel(&mut vm, "h1", 102);
    crate::tm::sound(&cloud);
}
