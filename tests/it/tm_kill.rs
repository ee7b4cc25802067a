//! The front-end's process, the agent, the host or its network dies at seeded moments of a transfer verb; the
//! verb is called again as oned's operator would. Whatever happened in between: the right content, in the
//! right files, and nothing left over.

use crate::kill::full;
use crate::runner::{self, Disk, Kind, MIB, Vm, source};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Clone, Copy, Debug)]
enum Blow {
    FrontEnd,
    Agent,
    Host,
    Network,
}

const BLOWS: [Blow; 4] = [Blow::FrontEnd, Blow::Agent, Blow::Host, Blow::Network];

/// Kills what runs under this name on one host of the bed.
fn kill(vm: &Vm<'_>, host: &str, word: &str) {
    let script = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '{word}' && kill -9 ${{p#/proc/}}; done; :"
    );
    let _ = vm.cloud.command(host, &["sh", "-c", &script]).output();
}

/// Makes the call, strikes in between, mends, and calls until it is done.
fn struck(vm: &Vm<'_>, dice: &mut Dice, verb: &str, args: &[&str], ds: u32) {
    vm.tell();
    let blow = BLOWS[usize::try_from(dice.below(4)).unwrap()];
    let after = Duration::from_millis(dice.below(350));
    let mut all: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
    all.extend([vm.id.to_string(), ds.to_string()]);
    let words = runner::words(vm.cloud, vm.driver, verb, "", &all);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut first = vm.cloud.command("fe", &words).spawn().unwrap();
    std::thread::sleep(after);
    match blow {
        Blow::FrontEnd => kill(vm, "fe", "remotes/tm/"),
        Blow::Agent => kill(vm, "h1", "onesdm agent"),
        Blow::Host => drop(vm.cloud.ok(&["crash", "h1"])),
        Blow::Network => drop(vm.cloud.ok(&["cut", "h1"])),
    }
    first.wait().unwrap();
    match blow {
        Blow::Host => drop(vm.cloud.ok(&["boot", "h1"])),
        Blow::Network => drop(vm.cloud.ok(&["heal", "h1"])),
        Blow::FrontEnd | Blow::Agent => {}
    }
    let end = Instant::now() + Duration::from_secs(40);
    loop {
        let out = vm.run(verb, args, ds);
        if out.status.success() {
            break;
        }
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(Instant::now() < end, "{verb} after {blow:?} at {after:?}: {said}");
    }
    println!("{verb}: {blow:?} at {after:?}");
    vm.check();
}

fn life(kind: Kind, seed: u64) {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    let dice = &mut Dice(seed);
    let active = (kind == Kind::Qcow2).then_some(0);
    for (n, image, persistent) in [(0, "os", false), (1, "data", true)] {
        vm.image(image, kind, 8);
        let (content, snaps) = (vm.images[image].1.clone(), BTreeMap::new());
        let from = format!("fe:{}", source(image));
        let image = Some(image.to_owned());
        vm.disks.insert(n, Disk { kind, image, persistent, content, snaps, active, tm: None });
        struck(&vm, dice, if persistent { "ln" } else { "clone" }, &[&from, &vm.disk(n)], 100);
    }
    let (content, snaps) = (vec![0; 4 * MIB], BTreeMap::new());
    let blank =
        Disk { kind: Kind::Raw, image: None, persistent: false, content, snaps, active: None, tm: None };
    vm.disks.insert(2, blank);
    struck(&vm, dice, "mkimage", &["4", "raw", &vm.disk(2)], 101);
    for n in [0, 1] {
        vm.guest(n);
        let disk = vm.disks.get_mut(&n).unwrap();
        disk.snaps.insert(0, disk.content.clone());
        disk.active = disk.active.map(|_| 1);
        struck(&vm, dice, "snap_create", &[&vm.disk(n), "0"], 100);
        vm.guest(n);
        let disk = vm.disks.get_mut(&n).unwrap();
        disk.content = disk.snaps[&0].clone();
        if n == 1 {
            vm.images.get_mut("data").unwrap().1.clone_from(&disk.content);
        }
        struck(&vm, dice, "snap_revert", &[&vm.disk(n), "0"], 100);
    }
    vm.images.insert("saved".to_owned(), (kind, vm.disks[&0].content.clone()));
    struck(&vm, dice, "cpds", &[&vm.disk(0), &source("saved"), "-1"], 100);
    vm.disks.get_mut(&2).unwrap().content.resize(5 * MIB, 0);
    struck(&vm, dice, "resize", &[&vm.disk(2), "5"], 101);
    let (a, b) = (vm.at("h1", 101, None), vm.at("h1", 102, None));
    vm.ds = 102;
    struck(&vm, dice, "mv", &[&a, &b], 102);
    struck(&vm, dice, "mvds", &[&vm.disk(1), &source("data")], 100);
    let disk = vm.disk(2);
    vm.disks.remove(&2);
    struck(&vm, dice, "delete", &[&disk], 102);
    crate::tm::sound(&cloud);
}

#[test]
fn raw_disks_survive_whatever_dies() {
    (0..if full() { 8 } else { 1 }).for_each(|seed| life(Kind::Raw, 11 + seed));
}

#[test]
fn qcow2_disks_survive_whatever_dies() {
    (0..if full() { 8 } else { 1 }).for_each(|seed| life(Kind::Qcow2, 112 + seed));
}

/// The agent dies once, at each change of storage in turn. Before the commit the call fails and nothing is
/// there; after it the same call finds out by itself that it was done.
#[test]
fn a_reply_that_got_lost_is_found_again() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("os", Kind::Qcow2, 1);
    let script = format!(
        "#!/bin/sh\nif mkdir /tmp/first 2>/dev/null; then export $(cat /tmp/arm); fi\nexec {} \"$@\" --silence 3\n",
        crate::bed::program().display()
    );
    cloud.place_script("h1", &script);
    let arm = |what: &str| {
        cloud.write("h1", "/tmp/arm", what);
        cloud.inside("h1", || drop(std::fs::remove_dir("/tmp/first")));
    };
    let disk = |vm: &mut Vm<'_>, n: u32| {
        let (content, snaps) = (vm.images["os"].1.clone(), BTreeMap::new());
        let image = Some("os".to_owned());
        let new =
            Disk { kind: Kind::Qcow2, image, persistent: false, content, snaps, active: Some(0), tm: None };
        vm.disks.insert(n, new);
    };
    let from = format!("fe:{}", source("os"));
    arm("ONESDM_TEST_LOG=/tmp/effects");
    disk(&mut vm, 0);
    vm.ok("clone", &[&from, &vm.disk(0)], 100);
    arm("ONESDM_TEST_LOG=/tmp/effects2");
    disk(&mut vm, 1);
    vm.ok("clone", &[&from, &vm.disk(1)], 100);
    let effects = cloud.read("h1", "/tmp/effects2").lines().count();
    assert!(effects > 10, "{effects}");
    let (mut done, mut failed) = (0, 0);
    let step = if full() { 1 } else { 3 };
    for (n, at) in (1..=effects).step_by(step).enumerate() {
        let n = 2 + u32::try_from(n).unwrap();
        arm(&format!("ONESDM_TEST_KILL={at}:after"));
        let known = vm.disks.clone();
        disk(&mut vm, n);
        let out = vm.run("clone", &[&from, &vm.disk(n)], 100);
        if out.status.success() {
            done += 1;
        } else {
            failed += 1;
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.code() == Some(6) && said.contains("before it was committed"), "{at}: {said}");
            let now = std::mem::replace(&mut vm.disks, known);
            vm.check();
            vm.disks = now;
            vm.ok("clone", &[&from, &vm.disk(n)], 100);
        }
        vm.check();
    }
    assert!(done > 1 && failed > 1, "{done} were done, {failed} failed, of {effects}");
    crate::tm::sound(&cloud);
}
