//! A machine with thick volumes goes from one host to another while it runs: two micro-VMs with a kernel and a sanlock
//! daemon each, one group, a network between them and a real ssh server. The machine is a process that counts on its
//! disks past all caches, as qemu with `cache=none`: what libvirt does when it moves one is shown elsewhere.

use crate::lvmmeet::{Blow, Here, LIFE, Meeting, PLACE, changes, network, passed, seqno};
use crate::lvmverbs::{GROUP, Host, MIB, root, said, volumes};
use crate::power::Random;
use crate::vm;
use onesdm::sys::direct::{BLOCK, Direct};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Where the machine counts: one block after the other, and again from the first.
const PLACES: u64 = 32;
const STRIDE: u64 = 64 << 10;
/// A count in the mail is this higher.
const COUNT: u64 = 1_000_000;

/// The machine goes on from what its disks say, and writes down which count they have.
#[test]
#[ignore = "runs until it is ended"]
fn machine() {
    let [disks, done] = ["DISKS", "DONE"].map(|v| std::env::var(format!("ONESDM_TEST_{v}")).unwrap());
    let disks: Vec<Direct> = disks.split(' ').map(|d| Direct::open_device(Path::new(d)).unwrap()).collect();
    for n in count(&disks) + 1.. {
        for d in &disks {
            d.write(n % PLACES * STRIDE, &n.to_be_bytes().repeat(BLOCK / 8)).unwrap();
        }
        std::fs::write(&done, n.to_string()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The last count that all disks have; one may be a count further, and none has lost one before its last.
#[track_caller]
fn count(disks: &[Direct]) -> u64 {
    let of = |d: &Direct| {
        let block = |at| d.read(at * STRIDE, BLOCK).unwrap();
        let mut all: Vec<u64> =
            (0..PLACES).map(|at| u64::from_be_bytes(block(at)[..8].try_into().unwrap())).collect();
        all.sort_unstable();
        let last = *all.last().unwrap();
        let want: Vec<u64> = (0..PLACES).map(|n| (last + n + 1).saturating_sub(PLACES)).collect();
        assert_eq!(all, want);
        last
    };
    let last: Vec<u64> = disks.iter().map(of).collect();
    let (least, most) = (*last.iter().min().unwrap(), *last.iter().max().unwrap());
    assert!(most - least < 2, "{last:?}");
    least
}

struct Machine {
    process: Child,
    done: PathBuf,
}

impl Machine {
    fn on(disks: &[PathBuf; 2]) -> Machine {
        let done = std::env::temp_dir().join("counted");
        let _ = std::fs::remove_file(&done);
        let disks = disks.each_ref().map(|d| d.display().to_string()).join(" ");
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "--ignored", "lvmmigrate::machine"]).env("ONESDM_TEST_DISKS", disks);
        let process = c.env("ONESDM_TEST_DONE", &done).stdout(Stdio::null()).spawn().unwrap();
        let m = Machine { process, done };
        m.goes_on();
        m
    }

    fn counted(&self) -> u64 {
        std::fs::read_to_string(&self.done).ok().and_then(|n| n.parse().ok()).unwrap_or(0)
    }

    #[track_caller]
    fn goes_on(&self) {
        let (began, from) = (Instant::now(), self.counted());
        while self.counted() < from + 2 * PLACES {
            assert!(began.elapsed() < Duration::from_secs(60), "the machine stands still at {from}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// It runs here no more. What its disks have at least.
    fn stop(mut self) -> u64 {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.counted()
    }
}

const THERE: &str = "10.9.0.2";

/// VM 1 and its two disks, none of which lies in a pool.
struct Vm<'a> {
    here: &'a Here,
    document: (u64, String),
    dir: PathBuf,
    disks: [PathBuf; 2],
}

impl Vm<'_> {
    fn new(here: &Here) -> Vm<'_> {
        let thick = "<LVM_THIN_ENABLE>no</LVM_THIN_ENABLE></DISK>";
        let document = here.vm(1, 2).1.replace("<VM><ID>2<", "<VM><ID>1<").replace("</DISK>", thick);
        let document = (1, document.replace("</TEMPLATE>", &format!("{CD}</TEMPLATE>")));
        let dir = here.h.at("var/datastores/101/1");
        let disks = ["disk.0", "disk.1"].map(|d| dir.join(d));
        Vm { here, document, dir, disks }
    }

    fn call(&self, verb: &str, (from, to): (&str, &str), env: &[(&str, &str)]) -> (i32, String) {
        let h = &self.here.h;
        let mut c = h.command(&h.at("var/remotes/tm/lvm").join(verb));
        let c = c.args([from, to, self.dir.to_str().unwrap(), "1", "101"]).envs(env.iter().copied());
        let c = c.env("ONESDM_VM_XML", &self.document.1).stdin(Stdio::null());
        let (status, text) = said(&c.output().unwrap());
        println!("{verb} {from} {to} {env:?} {status} {text}");
        (status, text)
    }

    #[track_caller]
    fn ok(&self, verb: &str, way: (&str, &str)) {
        let (status, text) = self.call(verb, way, &[]);
        assert_eq!(status, 0, "{verb} {way:?}: {text}");
    }

    fn open(&self) -> [Direct; 2] {
        self.disks.each_ref().map(|d| Direct::open_device(d).unwrap())
    }

    /// What this host has of it: nothing, or all.
    #[track_caller]
    fn is_here(&self) -> bool {
        let all = [0, 1]
            .map(|n| (self.disks[n].exists(), Path::new(&format!("/dev/{GROUP}/{}", NAMES[n])).exists()));
        let whole = (self.disks[0].is_symlink(), self.dir.join("disk.2").exists());
        assert!(all == [(whole.0, whole.0); 2] && whole.0 == whole.1, "{all:?} {whole:?}");
        whole.0
    }
}

/// An image that machines only read.
const CD: &str = "<DISK><DISK_ID>3</DISK_ID><TYPE>CDROM</TYPE><CLONE>NO</CLONE><READONLY>YES</READONLY><TM_MAD>lvm</TM_MAD>\
<DATASTORE_ID>100</DATASTORE_ID><SIZE>6</SIZE><SOURCE>vg-one-100/img-one-3</SOURCE></DISK>";

fn has_cd() -> bool {
    Path::new(&format!("/dev/{GROUP}/img-one-3")).exists()
}

const NAMES: [&str; 2] = ["vm-one-1-0", "img-one-2"];

/// Who has the disks, by their tags; both are the same.
fn tags() -> String {
    let of = |name: &&str| {
        let said = root(&["lvs", "--noheadings", "-o", "lv_tags", &format!("{GROUP}/{name}")]);
        let mut tags: Vec<&str> = said.trim().split(',').filter_map(|t| t.strip_prefix("sdm.")).collect();
        tags.retain(|t| !t.starts_with("host."));
        tags.sort_unstable();
        tags.join(" ")
    };
    let all: Vec<String> = NAMES.iter().map(of).collect();
    assert_eq!(all[0], all[1]);
    all[0].clone()
}

fn made(here: &Here) -> Vm<'_> {
    let (h, vm) = (&here.h, Vm::new(here));
    here.source("one.raw", &vec![0; 4 * MIB]);
    for image in [1, 2, 3] {
        h.ok("cp", &format!("<ID>{image}</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>"));
    }
    here.tm(&vm.document, "clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "1", "100"]);
    here.tm(&vm.document, "ln", &["fe:vg-one-100/img-one-2", "DIR/disk.1", "1", "100"]);
    here.tm(&vm.document, "ln", &["fe:vg-one-100/img-one-3", "DIR/disk.3", "1", "100"]);
    std::fs::write(vm.dir.join("disk.2"), "the context").unwrap();
    vm
}

fn front_end(here: &Here) {
    let (h, meet) = (&here.h, &here.meet);
    let before = seqno();
    meet.at(3);
    let _ = std::fs::remove_file(h.at("history"));
    let vm = made(here);
    let (there, back) = (("localhost", THERE), (THERE, "localhost"));
    let machine = Machine::on(&vm.disks);
    // What cannot go with it: a disk in a pool, a file that it writes to.
    let thin = (9, here.vm(1, 2).1.replace("<ID>1</ID><STATE>", "<ID>9</ID><STATE>"));
    here.tm(&thin, "clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "9", "100"]);
    let pooled =
        h.tm_of((9, &thin.1), "premigrate", &["localhost", THERE, "/one/var/datastores/101/9", "9", "101"]);
    assert!(pooled.0 == 5 && pooled.1.contains("vm-one-9-0 lies in a thin pool"), "{pooled:?}");
    assert!(!pooled.1.contains("not undone"), "{pooled:?}");
    here.tm(&thin, "delete", &["DIR", "9", "101"]);
    assert_eq!(tags(), "active.1.1");
    vm.ok("premigrate", there);
    assert_eq!(tags(), "active.1.1 active.2.1 lent.1.1");
    // As at a boot, in the middle of it; and by mistake.
    let (status, text) = h.own(&["activate", PLACE]);
    assert!(status == 0 && !text.contains("vm-one-1-0"), "{status} {text}");
    let (status, text) = h.tm_of((1, &vm.document.1), "delete", &["DIR", "1", "101"]);
    assert!(status == 9 && text.contains("host 2"), "{status} {text}");
    machine.goes_on();
    meet.at(4);
    let last = machine.stop();
    meet.say(COUNT + last);
    meet.wait(5);
    vm.ok("postmigrate", there);
    assert!(!vm.is_here() && !has_cd() && tags() == "active.2.1", "{}", tags());
    meet.at(6);
    meet.at(7);
    // It does not come back, and then it does.
    vm.ok("premigrate", back);
    assert!(vm.is_here() && tags() == "active.1.1 active.2.1 lent.2.1", "{}", tags());
    vm.ok("failmigrate", back);
    assert!(!vm.is_here() && tags() == "active.2.1", "{}", tags());
    vm.ok("failmigrate", back);
    vm.ok("premigrate", back);
    let incoming = vm.open();
    meet.say(8);
    meet.wait(COUNT);
    let theirs = meet.of(2) - COUNT;
    println!("{last} counted here, then up to {theirs} there");
    assert!(theirs > last, "it went on there: {last} {theirs}");
    let counted = count(&incoming);
    assert!((theirs..=theirs + 1).contains(&counted), "{theirs} {counted}");
    let machine = Machine::on(&vm.disks);
    vm.ok("postmigrate", back);
    machine.goes_on();
    assert_eq!(tags(), "active.1.1");
    meet.say(9);
    meet.wait(2 * COUNT);
    tell(here);
    println!("number: {before} {}", seqno());
    drop(incoming);
    machine.stop();
    // Who is killed gives no lock back.
    cut_off(&vm, there);
    meet.say(10);
    here.tm(&vm.document, "delete", &["DIR", "1", "101"]);
    assert_eq!(volumes(), ["img-one-1", "img-one-2", "img-one-3", "sdm-leases", "sdm-meta"]);
    root(&["vgck", GROUP]);
}

/// Each verb is killed after some of its effects here, and done again or undone: nothing else is left of it.
fn cut_off(vm: &Vm<'_>, there: (&str, &str)) {
    let (h, mut random) = (&vm.here.h, Random::seeded());
    let log = h.at("effects");
    let steps = |verb| {
        let _ = std::fs::remove_file(&log);
        let (status, text) = vm.call(verb, there, &[("ONESDM_TEST_LOG", log.to_str().unwrap())]);
        assert_eq!(status, 0, "{verb}: {text}");
        std::fs::read_to_string(&log).unwrap().lines().count() as u64
    };
    let mut points = Vec::new();
    for verb in ["premigrate", "failmigrate", "premigrate", "postmigrate"] {
        let all = steps(verb);
        assert!(all > 3, "{verb}: {all} effects");
        let seen = points.iter().any(|(v, _)| *v == verb);
        points.extend((1..=all).filter(|_| !seen).map(|n| (verb, n)));
    }
    let back = (there.1, there.0);
    vm.ok("premigrate", back);
    vm.ok("postmigrate", back);
    let some = if crate::kill::full() { points.len() } else { 3 };
    for _ in 0..some {
        let (verb, n) = points.swap_remove(random.below(points.len()));
        if verb != "premigrate" {
            vm.ok("premigrate", there);
        }
        let kill = format!("{n}:after");
        let (status, text) = vm.call(verb, there, &[("ONESDM_TEST_KILL", &kill)]);
        assert!(!(0..=128).contains(&status), "{verb} {n}: {status} {text}");
        let leaves = verb == "postmigrate";
        vm.ok(if leaves { verb } else { "failmigrate" }, there);
        assert!(
            vm.is_here() != leaves && tags() == if leaves { "active.2.1" } else { "active.1.1" },
            "{}",
            tags()
        );
        if leaves {
            vm.ok("premigrate", back);
            vm.ok("postmigrate", back);
        }
        assert!(vm.is_here() && tags() == "active.1.1", "{}", tags());
    }
    println!("{some} kills of {}", points.len() + some);
    let (status, text) = h.own(&["check", PLACE]);
    assert!(status == 0 && text.contains("no broken rule"), "{text}");
}

fn destination(here: &Here) {
    let (meet, vm) = (&here.meet, Vm::new(here));
    let _ = std::fs::remove_file(here.h.at("history"));
    meet.at(3);
    meet.at(4);
    assert!(vm.is_here() && has_cd());
    // It is in another machine here, too, whatever becomes of the first one.
    let other =
        (2, format!("<VM><ID>2</ID><STATE>8</STATE><LCM_STATE>0</LCM_STATE><TEMPLATE>{CD}</TEMPLATE></VM>"));
    here.tm(&other, "ln", &["fe:vg-one-100/img-one-3", "DIR/disk.3", "2", "100"]);
    assert_eq!(std::fs::read_to_string(vm.dir.join("disk.2")).unwrap(), "the context");
    // As a hypervisor has them open that waits for the machine.
    let incoming = vm.open();
    meet.wait(COUNT);
    let theirs = meet.of(1) - COUNT;
    let counted = count(&incoming);
    assert!((theirs..=theirs + 1).contains(&counted), "{theirs} {counted}");
    let machine = Machine::on(&vm.disks);
    drop(incoming);
    let grow = ("resize", ["DIR/disk.0", "12", "1", "100"]);
    let (status, text) = here.h.tm_of((1, &vm.document.1), grow.0, &grow.1);
    assert!(status == 9 && text.contains("host 1"), "{status} {text}");
    meet.say(5);
    // A count is more than any step.
    until(meet, 6);
    meet.say(6);
    here.tm(&vm.document, grow.0, &grow.1);
    assert_eq!(vm.open()[0].size().unwrap(), 12 << 20);
    machine.goes_on();
    meet.at(7);
    while meet.of(1) != 8 {
        machine.goes_on();
    }
    meet.say(COUNT + machine.stop());
    until(meet, 9);
    assert!(!vm.is_here() && has_cd(), "the machine has left, and the other one has the CD");
    here.tm(&other, "delete", &["DIR/disk.3", "2", "100"]);
    assert!(!has_cd());
    tell(here);
    meet.say(2 * COUNT);
    until(meet, 10);
}

/// The front-end is just there.
fn until(meet: &Meeting, step: u64) {
    let began = Instant::now();
    while meet.of(1) != step {
        assert!(began.elapsed() < Duration::from_secs(600), "{} and not {step}", meet.of(1));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Which of its processes had the lock when.
fn tell(here: &Here) {
    for l in std::fs::read_to_string(here.h.at("history")).unwrap().lines() {
        println!("history: {l}");
    }
}

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn moves_inside() {
    let here = Here::joined_at(Host::at_place(vm::PLACE));
    if here.id == 1 { front_end(&here) } else { destination(&here) }
}

#[test]
fn a_machine_on_thick_volumes_goes_to_another_host_while_it_runs() {
    let changes = changes(&passed(network("lvmmigrate::moves_inside", None)));
    assert!(changes > 20, "{changes}");
}

/// So far is a host that is to be killed; so is its next life, which is higher.
const DIES: u64 = 2 * COUNT;

/// The machine is on its way from this host to the other one, which is the front-end, or from there to this one, and
/// this one dies.
fn dying(here: &Here, leaves: bool) {
    let meet = &here.meet;
    if meet.life() > 0 {
        // What it had is the other one's.
        let (status, text) = here.h.own(&["activate", PLACE]);
        assert!(status == 0 && !text.contains("/dev/"), "{status} {text}");
        assert!(!NAMES.iter().any(|n| Path::new(&format!("/dev/{GROUP}/{n}")).exists()));
        assert_eq!(tags(), "active.2.1");
        meet.say(LIFE + DIES);
        std::thread::sleep(Duration::from_secs(600));
        return;
    }
    meet.at(3);
    if leaves {
        let machine = Machine::on(&made(here).disks);
        meet.at(4);
        meet.wait(5);
        meet.say(COUNT + machine.stop());
        meet.wait(6);
    } else {
        meet.at(4);
        meet.wait(5);
        assert!(Vm::new(here).is_here());
    }
    meet.say(DIES);
    std::thread::sleep(Duration::from_secs(600));
}

fn living(here: &Here, leaves: bool) {
    let (h, meet) = (&here.h, &here.meet);
    meet.at(3);
    let there = "10.9.0.1";
    let (vm, way) =
        if leaves { (Vm::new(here), (there, "localhost")) } else { (made(here), ("localhost", there)) };
    let mut machine = (!leaves).then(|| Machine::on(&vm.disks));
    meet.at(4);
    vm.ok("premigrate", way);
    meet.say(5);
    if leaves {
        let incoming = vm.open();
        meet.wait(COUNT);
        let theirs = meet.of(1) - COUNT;
        assert!((theirs..=theirs + 1).contains(&count(&incoming)), "{theirs}");
        machine = Some(Machine::on(&vm.disks));
        meet.say(6);
    }
    meet.wait(DIES);
    let (killed, machine) = (Instant::now(), machine.unwrap());
    machine.goes_on();
    // Its host cannot be asked, and is not known to be dead at once.
    let (status, text) = vm.call(if leaves { "postmigrate" } else { "failmigrate" }, way, &[]);
    assert!([6, 7].contains(&status) && text.contains(there), "{status} {text}");
    while !leaves && tags() != "active.2.1" {
        assert!(killed.elapsed() < Duration::from_secs(300), "{}", tags());
        std::thread::sleep(Duration::from_secs(2));
        vm.call("failmigrate", way, &[]);
    }
    meet.say(LIFE);
    meet.wait(LIFE + DIES);
    machine.goes_on();
    let last = machine.stop();
    assert!(count(&vm.open()) >= last);
    for disk in [0, 1, 3] {
        here.tm(&vm.document, "delete", &[&format!("DIR/disk.{disk}"), "1", "100"]);
    }
    here.tm(&vm.document, "delete", &["DIR", "1", "101"]);
    for image in [1, 2, 3] {
        h.ok("rm", &crate::lvmmeet::img(image));
    }
    assert_eq!(volumes(), ["sdm-leases", "sdm-meta"]);
    root(&["vgck", GROUP]);
}

fn with_death(leaves: bool) {
    let here = Here::joined_at(Host::at_place(vm::PLACE));
    if here.id == 1 { dying(&here, leaves) } else { living(&here, leaves) }
}

#[test]
#[ignore = "runs in the micro-VMs of the next tests"]
fn source_inside() {
    with_death(true);
}

#[test]
#[ignore = "runs in the micro-VMs of the next tests"]
fn destination_inside() {
    with_death(false);
}

fn dies(test: &'static str) {
    let outs = network(test, Some(Blow::Kill(DIES, 2)));
    let [first, second] = outs.map(|o| (o.status.code(), crate::lvmmeet::said(&o)));
    println!("{}\n=======\n{}", first.1, second.1);
    assert!(second.0 == Some(0) && second.1.contains("1 passed"), "see above");
}

#[test]
fn a_machine_that_has_left_goes_on_when_its_old_host_dies() {
    dies("lvmmigrate::source_inside");
}

#[test]
fn a_machine_that_has_not_left_goes_on_when_the_other_host_dies() {
    dies("lvmmigrate::destination_inside");
}
