//! The front-end's process, the agent, the host or its network dies at seeded moments of whole lives of VMs;
//! each call is made again as oned's operator would. Whatever happened in between: the right content, in the
//! right files, and nothing left over.

use crate::hosts::Cloud;
use crate::kill::full;
use crate::runner::{self, Caller, Disk, Kind, Plain, Vm, source};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Output;
use std::time::{Duration, Instant};

/// Numbers that follow from a seed.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Blow {
    FrontEnd,
    Agent,
    Host,
    Network,
}

const BLOWS: [Blow; 4] = [Blow::FrontEnd, Blow::Agent, Blow::Host, Blow::Network];

/// Kills what runs under this name on one host of the bed.
pub fn kill(vm: &Vm<'_>, host: &str, word: &str) {
    signal(vm, host, word, "KILL");
}

pub fn signal(vm: &Vm<'_>, host: &str, word: &str, signal: &str) {
    signal_on(vm.cloud, host, word, signal);
}

pub fn signal_on(cloud: &Cloud, host: &str, word: &str, signal: &str) {
    // The words of what looks for it are not it.
    let (head, last) = word.split_at(word.len() - 1);
    let script = format!(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline 2>/dev/null | grep -q '{head}[{last}]' && kill -{signal} ${{p#/proc/}}; done; :"
    );
    let _ = cloud.command(host, &["sh", "-c", &script]).output();
}

/// Strikes some of the calls, mends, and calls until it is done.
struct Storm {
    dice: RefCell<Dice>,
    /// One call of so many.
    of: u64,
    met: RefCell<Met>,
}

/// Blows that met a running call.
#[derive(Default)]
struct Met {
    /// The call was about a disk that goes back into its image, and about one that does not.
    persistent: usize,
    other: usize,
    blows: BTreeMap<Blow, usize>,
    verbs: BTreeMap<String, usize>,
    /// It was over.
    late: usize,
}

impl Caller for Storm {
    fn call(&self, vm: &Vm<'_>, verb: &str, args: &[String]) -> Output {
        let disk = args.iter().find_map(|a| a.split_once("/disk.")?.1.parse().ok());
        let is_idle = verb == "mv" && disk.is_some() || verb == "resize" && vm.lcm == 62;
        if is_idle || self.below(self.of) > 0 {
            return Plain.call(vm, verb, args);
        }
        let hosts: Vec<&str> =
            ["h1", "h2"].into_iter().filter(|h| args.iter().any(|a| a.starts_with(h))).collect();
        let blow = BLOWS[usize::try_from(self.below(4)).unwrap()];
        let host = hosts[usize::try_from(self.below(hosts.len() as u64)).unwrap()];
        let most = 1 + self.below(350);
        let after = Duration::from_millis(self.below(most));
        let words = runner::words(vm.cloud, vm.driver, verb, &vm.stdin(verb), args);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut first = vm.cloud.command("fe", &words).spawn().unwrap();
        std::thread::sleep(after);
        let is_met = first.try_wait().unwrap().is_none();
        match blow {
            Blow::FrontEnd => kill(vm, "fe", "remotes/tm/"),
            Blow::Agent => kill(vm, host, "onesdm agent"),
            Blow::Host => drop(vm.cloud.ok(&["crash", host])),
            Blow::Network => drop(vm.cloud.ok(&["cut", host])),
        }
        first.wait().unwrap();
        match blow {
            Blow::Host => drop(vm.cloud.ok(&["boot", host])),
            Blow::Network => drop(vm.cloud.ok(&["heal", host])),
            Blow::FrontEnd | Blow::Agent => {}
        }
        println!(
            "{verb} {args:?}: {blow:?} of {host} at {after:?}{}",
            if is_met { "" } else { ", too late" }
        );
        let persistent = disk.map(|n: u32| vm.disks.get(&n).is_some_and(|d| d.persistent));
        self.met.borrow_mut().add(verb, blow, is_met, persistent);
        let end = Instant::now() + Duration::from_secs(40);
        loop {
            let out = Plain.call(vm, verb, args);
            if out.status.success() {
                return out;
            }
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(Instant::now() < end, "{verb} after {blow:?} of {host} at {after:?}: {said}");
        }
    }
}

impl Met {
    /// `persistent`: of the disk; `None` when it was the whole VM.
    fn add(&mut self, verb: &str, blow: Blow, is_met: bool, persistent: Option<bool>) {
        if !is_met {
            self.late += 1;
            return;
        }
        self.persistent += usize::from(persistent != Some(false));
        self.other += usize::from(persistent != Some(true));
        *self.blows.entry(blow).or_default() += 1;
        *self.verbs.entry(verb.to_owned()).or_default() += 1;
    }

    fn report(&self) -> String {
        let mut out = format!(
            "{} about persistent disks, {} about others, {} too late;",
            self.persistent, self.other, self.late
        );
        for (blow, n) in &self.blows {
            let _ = write!(out, " {blow:?} {n}");
        }
        for (verb, n) in &self.verbs {
            let _ = write!(out, " {verb} {n}");
        }
        out
    }
}

impl Storm {
    fn below(&self, n: u64) -> u64 {
        self.dice.borrow_mut().below(n)
    }
}

/// `ONESDM_FULL=1`: as many lives as 50 blows for each sort of disk take. Else one, and few blows.
const ENOUGH: usize = 50;

fn lives(kind: Kind, driver: &'static str, seed: u64) {
    let of = if full() { 1 } else { 5 };
    let storm = Storm { dice: RefCell::new(Dice(seed)), of, met: RefCell::default() };
    for n in 1.. {
        let cloud = runner::cloud_for(driver);
        let mut vm = Vm::new(&cloud, driver, 7);
        vm.caller = &storm;
        crate::tm::life(&mut vm, kind, if full() { 4 } else { 1 });
        let met = storm.met.borrow();
        println!("{driver}, {}, {n} lives: {}", kind.name(), met.report());
        let least = met.persistent.min(met.other);
        assert!(least > 0 && n < 20, "the blows come too late");
        if !full() || least >= ENOUGH {
            return;
        }
    }
}

#[test]
fn raw_disks_survive_whatever_dies() {
    lives(Kind::Raw, "shared", 11);
}

#[test]
fn qcow2_disks_survive_whatever_dies() {
    lives(Kind::Qcow2, "shared", 112);
}

#[test]
fn raw_disks_on_local_survive_whatever_dies() {
    lives(Kind::Raw, "ssh", 211);
}

#[test]
fn qcow2_disks_on_local_survive_whatever_dies() {
    lives(Kind::Qcow2, "local", 312);
}

/// The agent dies once, at each change of storage in turn. Before the commit the call fails and nothing is
/// there; after it the same call finds out by itself that it was done.
#[test]
fn a_reply_that_got_lost_is_found_again() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("os", Kind::Qcow2, 1);
    let disk = |vm: &mut Vm<'_>, n: u32| {
        let (content, snaps) = (vm.images["os"].1.clone(), BTreeMap::new());
        let image = Some("os".to_owned());
        let new =
            Disk { kind: Kind::Qcow2, image, persistent: false, content, snaps, active: Some(0), tm: None };
        vm.disks.insert(n, new);
    };
    let from = format!("fe:{}", source("os"));
    arm(&vm, "ONESDM_TEST_LOG=/tmp/effects");
    disk(&mut vm, 0);
    vm.ok("clone", &[&from, &vm.disk(0)], 100);
    arm(&vm, "ONESDM_TEST_LOG=/tmp/effects2");
    disk(&mut vm, 1);
    vm.ok("clone", &[&from, &vm.disk(1)], 100);
    let effects = cloud.read("h1", "/tmp/effects2").lines().count();
    assert!(effects > 10, "{effects}");
    let (mut done, mut failed) = (0, 0);
    let step = if full() { 1 } else { 3 };
    for (n, at) in (1..=effects).step_by(step).enumerate() {
        let n = 2 + u32::try_from(n).unwrap();
        arm(&vm, &format!("ONESDM_TEST_KILL={at}:after"));
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

/// An agent on a host that is armed once, for its next start.
pub fn arm_on(host: &str, vm: &Vm<'_>, what: &str) {
    let script = format!(
        "#!/bin/sh\nif mkdir /tmp/first 2>/dev/null; then export $(cat /tmp/arm); fi\nexec {} \"$@\" --silence 3\n",
        crate::bed::program().display()
    );
    vm.cloud.place_script(host, &script);
    vm.cloud.write(host, "/tmp/arm", what);
    vm.cloud.inside(host, || drop(std::fs::remove_dir("/tmp/first")));
}

fn arm(vm: &Vm<'_>, what: &str) {
    arm_on("h1", vm, what);
}

/// oned's time limit sends SIGTERM: it goes through to the host, and nothing is left there.
#[test]
fn being_asked_to_stop_goes_through_to_the_host() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("os", Kind::Raw, 1);
    let document =
        "<VM><ID>7</ID><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>raw</FORMAT></DISK></TEMPLATE></VM>";
    let args = [format!("fe:{}", source("os")), vm.disk(0), "7".into(), "100".into()];
    // It stands still when all is staged, before it asks whether it counts.
    arm(&vm, "ONESDM_TEST_STOP=14");
    let words = runner::words(&cloud, "shared", "clone", "", &args);
    cloud.write("fe", "/var/lib/one/xml/vm-7.xml", document);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let call = cloud.command("fe", &words).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let stopped = ["sh", "-c", "grep -l 'State:.T' /proc/[0-9]*/status"];
    crate::hosts::eventually("the agent stands still", Duration::from_secs(20), || {
        cloud.command("h1", &stopped).output().unwrap().status.success()
    });
    it_is_seen_from_the_front_end(&cloud);
    signal(&vm, "fe", "remotes/tm/", "TERM");
    std::thread::sleep(Duration::from_millis(300));
    signal(&vm, "h1", "onesdm agent", "CONT");
    let out = call.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(130) && said.contains("stopped on request"), "{} {said}", out.status);
    crate::hosts::eventually("the job on the host ends", Duration::from_secs(20), || {
        cloud.inside("h1", || crate::bed::names("/var/lib/one/datastores/101/.sdm/new".as_ref()).is_empty())
    });
    // The directory of the VM may stay, empty.
    assert_eq!(cloud.inside("h1", || crate::bed::names("/var/lib/one/datastores/101/7".as_ref())), [""; 0]);
    crate::tm::sound(&cloud);
}

/// `top` of the host, of all that oned has, and of one that is not there.
fn it_is_seen_from_the_front_end(cloud: &Cloud) {
    let pool = "<HOST_POOL><HOST><ID>0</ID><NAME>h1</NAME><STATE>2</STATE></HOST><HOST><ID>1</ID><NAME>h2</NAME>\
                <STATE>4</STATE></HOST></HOST_POOL>";
    cloud.write("fe", "/var/lib/one/xml/hosts.xml", pool);
    let program = crate::bed::program();
    let top = |words: &[&str]| {
        let head = ["env", "ONESDM_XML_DIR=/var/lib/one/xml", program.to_str().unwrap(), "top", "--json"];
        let out = cloud.command("fe", &[&head[..], words].concat()).output().unwrap();
        let jobs: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
        let seen: Vec<String> = jobs.iter().map(|j| format!("{} {}", j["host"], j["verb"])).collect();
        (out.status.code(), seen, String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (there, here) = ("\"h1\" \"clone\"".to_owned(), "\"fe\" \"clone\"".to_owned());
    assert_eq!(top(&["h1"]), (Some(0), vec![there.clone()], String::new()));
    assert_eq!(top(&[]), (Some(0), vec![here], String::new()));
    // The front-end's job and the host's are one.
    assert_eq!((top(&["--all"]).0, top(&["--all"]).1.len()), (Some(0), 1));
    let (status, seen, said) = top(&["h1", "h9"]);
    assert_eq!((status, seen), (Some(6), vec![there]), "{said}");
    assert!(said.contains("h9") && said.lines().count() == 1, "{said}");
}

/// A host where a share is not mounted is told by the front-end what should be there.
#[test]
fn a_share_that_is_not_mounted_is_refused_and_nothing_is_made() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("os", Kind::Raw, 1);
    let from = format!("fe:{}", source("os"));
    let (content, snaps) = (vm.images["os"].1.clone(), BTreeMap::new());
    let image = Some("os".to_owned());
    vm.disks.insert(
        0,
        Disk { kind: Kind::Raw, image, persistent: false, content, snaps, active: None, tm: None },
    );
    vm.ok("clone", &[&from, &vm.disk(0)], 100);
    for ds in [101, 100] {
        let dir = format!("{}/{ds}", runner::STORES);
        cloud.on("h2", &["umount", &dir]);
        for (verb, args) in [
            ("clone", vec![from.clone(), vm.at("h2", 101, Some(0))]),
            ("delete", vec![vm.at("h2", 101, Some(0))]),
        ] {
            if ds == 100 && verb == "delete" {
                continue; // it has nothing to do with images
            }
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let out = vm.run(verb, &args, 100);
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.code() == Some(10) && said.contains("mounted"), "{verb} {ds}: {said}");
            assert!(said.contains("host h2: ") && said.lines().count() == 1, "{said}");
            assert_eq!(cloud.on("h2", &["ls", "-A", &dir]), "", "{verb}");
        }
        cloud.on("h2", &["rmdir", &dir]);
        let out = vm.run("clone", &[&from, &vm.at("h2", 101, Some(0))], 100);
        assert_eq!(out.status.code(), Some(10), "{}", String::from_utf8_lossy(&out.stderr));
    }
    vm.check();
}
