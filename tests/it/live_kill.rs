//! The verb killed at its steps while a machine runs: the machine goes on by itself, its disk's link shows
//! what it last saw, and the same call made again does what it was asked.

use crate::bed::names;
use crate::hypervisor::Hypervisor;
use crate::kill::full;
use rustix::process::{Signal, kill_process};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Until the machine runs and nobody works on its disk.
fn settled(h: &Hypervisor, at: &str) {
    let end = Instant::now() + Duration::from_secs(30);
    let quiet = || h.state() == "running" && !guards(h);
    while !quiet() {
        assert!(Instant::now() < end, "{at}: {} and nobody lets it go on", h.state());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a guard of this bed is at work.
fn guards(h: &Hypervisor) -> bool {
    let root = h.one.root().to_str().unwrap().to_owned();
    names("/proc".as_ref()).iter().any(|pid| {
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        args.ends_with(b"\0guard\0") && String::from_utf8_lossy(&env).contains(&root)
    })
}

/// How many steps a call takes that is not killed.
fn steps(h: &Hypervisor, op: &Value) -> usize {
    let log = h.one.root().join("effects");
    let _ = std::fs::remove_file(&log);
    h.op(op).env("ONESDM_TEST_LOG", &log).run().ok();
    std::fs::read_to_string(&log).unwrap().lines().count()
}

/// The letters the guest wrote, one MiB each, going round.
pub struct Guest<'a> {
    h: &'a Hypervisor,
    saw: Vec<char>,
    n: usize,
}

impl<'a> Guest<'a> {
    pub fn new(h: &'a Hypervisor) -> Guest<'a> {
        Guest { h, saw: vec![], n: 0 }
    }

    pub fn write(&mut self) {
        let letter = char::from(b'a' + u8::try_from(self.n % 26).unwrap());
        let at = self.n % 4;
        self.h.write(letter, at);
        self.saw.resize(self.saw.len().max(at + 1), letter);
        self.saw[at] = letter;
        self.n += 1;
    }

    pub fn saw(&self) -> String {
        self.saw.iter().collect()
    }

    /// The machine itself, and who reads the disk by its link as after a power loss.
    pub fn unharmed(&self, at: &str) {
        self.h.sees(&self.saw());
        assert_eq!(self.h.says(&self.h.at("101/7/disk.0")), self.saw(), "{at}: by the link");
    }
}

fn every(points: usize) -> usize {
    if full() { 1 } else { points.div_ceil(5) }
}

fn created(persistent: bool) {
    let h = Hypervisor::up();
    h.deploy("qcow2", persistent);
    h.boot("qcow2");
    let mut guest = Guest::new(&h);
    guest.write();
    let points = steps(&h, &h.snap("snap_create_live", 0));
    assert!(points > 20, "{points}");
    let mut snapshot = 1;
    for n in (1..=points).step_by(every(points)) {
        for when in ["before", "after"] {
            let (at, op) = (format!("{n}:{when}"), h.snap("snap_create_live", snapshot));
            guest.write();
            assert!(h.op(&op).env("ONESDM_TEST_KILL", &at).run().killed(), "{at}");
            settled(&h, &at);
            guest.unharmed(&at);
            guest.write();
            let before = guest.saw();
            guest.unharmed(&at);
            h.one.onesdm(&["gc"]).run().ok();
            h.op(&op).run().ok();
            guest.write();
            assert_eq!(h.snapshot(persistent, snapshot), Some(before), "{at}");
            guest.unharmed(&at);
            snapshot += 1;
        }
    }
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), guest.saw());
    h.one.onesdm(&["check"]).run().ok();
}

#[test]
fn a_live_snapshot_killed_at_its_steps() {
    created(false);
}

#[test]
fn a_live_snapshot_of_a_persistent_disk_killed_at_its_steps() {
    created(true);
}

#[test]
fn a_live_deletion_killed_at_its_steps() {
    let h = Hypervisor::up();
    h.deploy("qcow2", false);
    h.boot("qcow2");
    let mut guest = Guest::new(&h);
    let mut contents = std::collections::BTreeMap::new();
    for n in 0..4 {
        guest.write();
        h.did("snap_create_live", n);
        contents.insert(n, guest.saw());
    }
    guest.write();
    // In the middle, so that one layer goes down into another.
    let points = steps(&h, &h.snap("snap_delete_live", 1));
    contents.remove(&1);
    assert!(points > 20, "{points}");
    let (mut next, mut gone) = (4, 2);
    for n in (1..=points).step_by(every(points)) {
        let when = if n % 2 == 0 { "before" } else { "after" };
        let (at, op) = (format!("{n}:{when}"), h.snap("snap_delete_live", gone));
        guest.write();
        h.did("snap_create_live", next);
        contents.insert(next, guest.saw());
        next += 1;
        guest.write();
        let killed = h.op(&op).env("ONESDM_TEST_KILL", &at).run();
        // Some take fewer steps.
        assert!(killed.killed() || killed.answer().is_ok(), "{at}: {}", killed.err());
        settled(&h, &at);
        guest.unharmed(&at);
        contents.remove(&gone);
        let keep = |at: &str| {
            for (n, content) in &contents {
                assert_eq!(h.snapshot(false, *n).as_ref(), Some(content), "{at}: snapshot {n}");
            }
        };
        keep(&at);
        h.op(&op).run().ok();
        keep(&format!("{at} again"));
        assert_eq!(h.snapshot(false, gone), None, "{at} again");
        guest.unharmed(&at);
        gone += 1;
    }
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), guest.saw());
}

/// Killed by the clock and not by its steps: also while libvirt works for it, with all its group or alone.
#[test]
fn saving_and_snapshots_killed_at_random_moments() {
    let h = Hypervisor::up();
    h.deploy("qcow2", false);
    h.boot("qcow2");
    let mut guest = Guest::new(&h);
    guest.write();
    let save = serde_json::json!({"op": "cpds", "disk": h.disk("qcow2"), "snapshot": null,
        "target": h.text("100/saved"), "live": h.machine()});
    let mut random = crate::power::Random::seeded();
    for n in 0..if full() { 60 } else { 8 } {
        guest.write();
        let op = if n % 2 == 0 { save.clone() } else { h.snap("snap_create_live", n) };
        let call = h.op(&op).start();
        std::thread::sleep(Duration::from_millis(u64::try_from(random.below(400)).unwrap()));
        let at = format!("{n}: {op}");
        if n % 3 == 0 {
            call.signal(Signal::KILL);
        } else {
            let _ = kill_process(call.pid(), Signal::KILL);
        }
        let _ = call.wait();
        settled(&h, &at);
        guest.unharmed(&at);
        assert_eq!(
            h.ok(&["virsh", "blockjob", "one-7", "vda", "--info", "--raw"]),
            "",
            "{at}: no job goes on"
        );
        let now = guest.saw();
        h.op(&op).run().ok();
        guest.write();
        let made = if n % 2 == 0 { Some(h.says(&h.at("100/saved"))) } else { h.snapshot(false, n) };
        assert_eq!(made, Some(now), "{at}");
    }
}
