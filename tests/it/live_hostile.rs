//! A `virsh` that lies, fails or hangs at one command, before a real machine: one clear line, the machine runs,
//! and its disk is whole.

use crate::bed;
use crate::hypervisor::Hypervisor;
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub struct Peer {
    pub h: Hypervisor,
    pub dir: PathBuf,
}

impl Peer {
    /// With a machine that has written `A`.
    pub fn new() -> Peer {
        let p = Peer::up();
        p.h.deploy("qcow2", false);
        p.h.boot("qcow2");
        p.h.write('A', 0);
        p
    }

    pub fn up() -> Peer {
        let h = Hypervisor::up();
        let dir = h.one.root().join("peer");
        std::fs::create_dir(&dir).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/virsh.c");
        let virsh = dir.join("virsh");
        let args = ["-O1", "-w", "-o"].map(OsStr::new);
        bed::tool("cc", &[&args[..], &[virsh.as_os_str(), source.as_os_str()]].concat());
        let config = h.one.root().join("onesdm.toml");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, format!("{text}\n[tools]\nvirsh = \"{}\"\n", virsh.display())).unwrap();
        Peer { h, dir }
    }

    pub fn rules(&self, rules: &[(&str, &str, &str)]) {
        let text: String = rules.iter().map(|(w, a, t)| format!("{w}\t{a}\t{t}\n")).collect();
        std::fs::write(self.dir.join("rules"), text).unwrap();
        let _ = std::fs::remove_file(self.dir.join("calls"));
    }

    pub fn calls(&self) -> String {
        std::fs::read_to_string(self.dir.join("calls")).unwrap_or_default()
    }

    pub fn create(&self, n: i64, timeout: u64) -> crate::call::Call<'_> {
        let mut op = self.h.snap("snap_create_live", n);
        op["machine"]["timeout"] = timeout.into();
        self.h.op(&op)
    }

    pub fn whole(&self, saw: &str, what: &str) {
        assert_eq!(self.h.state(), "running", "{what}");
        self.h.sees(saw);
        assert_eq!(self.h.says(&self.h.at("101/7/disk.0")), saw, "{what}");
    }
}

#[test]
fn answers_nobody_understands_change_nothing() {
    let p = Peer::new();
    let before = bed::names(&p.h.layers(false));
    for (word, action, text, status) in [
        ("domstats", "say", "on fire", 6),
        ("domstats", "fail", "authentication failed", 6),
        ("dumpxml", "say", "<domain><devices>", 6),
        ("dumpxml", "say", "<domain id='1'><devices/></domain>", 8),
        (
            "dumpxml",
            "say",
            "<domain id='1'><devices><disk><source file='/etc/passwd'/><target dev='vda'/></disk></devices></domain>",
            8,
        ),
        ("dumpxml", "off", "/dev/zero-not-there", 6),
        ("blockjob", "fail", "no", 70),
        ("suspend", "fail", "operation failed", 6),
        ("snapshot-create-as", "fail", "cannot open file", 70),
        ("snapshot-create-as", "say", "Domain snapshot created", 6),
    ] {
        p.rules(&[(word, action, text)]);
        let said = p.create(0, 3).run().fails(status);
        let what = format!("{word} {action}: {said}");
        p.whole("A", &what);
        assert_eq!((bed::names(&p.h.layers(false)), p.h.link()), (before.clone(), "0".to_owned()), "{what}");
    }
    p.rules(&[]);
    p.create(0, 20).run().ok();
}

#[test]
fn a_virsh_that_hangs_is_not_waited_for() {
    let p = Peer::new();
    for (word, status) in [("domstats", 6), ("dumpxml", 7), ("suspend", 6), ("snapshot-create-as", 7)] {
        p.rules(&[(word, "hang", "")]);
        let began = Instant::now();
        let said = p.create(0, 1).run().fails(status);
        assert!(began.elapsed() < Duration::from_secs(20), "{word}: {said}");
        p.whole("A", &said);
    }
    // The guest's agent may hang, too: then the machine is only suspended.
    let ping = ("qemu-agent-command", "say", "{}");
    p.rules(&[ping, ("domfsfreeze", "hang", ""), ("domfsthaw", "say", "")]);
    p.create(0, 1).run().ok();
    p.h.write('B', 1);
    p.whole("AB", "an agent that hangs");
    assert!(p.calls().contains("domfsthaw"), "it may have come to pass");
    // One that has to answer.
    let mut op = p.h.snap("snap_create_live", 1);
    op["machine"]["freeze"] = "agent".into();
    p.rules(&[]);
    let said = p.h.op(&op).run().fails(6);
    assert!(said.contains("agent"), "{said}");
    p.whole("AB", &said);
    p.rules(&[ping, ("domfsfreeze", "say", "Froze 1 filesystem(s)"), ("domfsthaw", "say", "")]);
    p.h.op(&op).run().ok();
    let calls = p.calls();
    let order: Vec<usize> = ["domfsfreeze", "suspend", "snapshot-create-as", "resume", "domfsthaw"]
        .map(|c| calls.find(&format!(" {c} ")).unwrap_or_else(|| panic!("no {c} in {calls}")))
        .into();
    assert!(order.is_sorted(), "{calls}");
}

/// The switch happened, whatever was said: it is finished, not undone.
#[test]
fn a_switch_whose_answer_was_lost_is_finished() {
    let p = Peer::new();
    p.rules(&[("snapshot-create-as", "lost", "")]);
    p.create(0, 20).run().ok();
    p.h.write('B', 1);
    assert_eq!(p.h.link(), "1");
    p.whole("AB", "lost answer");
    assert_eq!(p.h.snapshot(false, 0).as_deref(), Some("A"));
}

pub fn pids(p: &Peer, name: &str) -> Vec<Pid> {
    let root = p.h.one.root().to_str().unwrap().to_owned();
    let is = |pid: &String| {
        let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let args = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&env).contains(&root) && args.ends_with(format!("\0{name}\0").as_bytes())
    };
    bed::names(Path::new("/proc"))
        .into_iter()
        .filter(is)
        .filter_map(|p| Pid::from_raw(p.parse().ok()?))
        .collect()
}

pub fn until(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !is() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// While the machine stands still: the verb dies, its guard dies.
#[test]
fn whoever_dies_while_the_machine_stands_still_the_other_lets_it_go_on() {
    let p = Peer::new();
    let go = p.dir.join("go");
    for (n, victim) in [(0, "op"), (1, "guard")] {
        let _ = std::fs::remove_file(&go);
        p.rules(&[("snapshot-create-as", "until", go.to_str().unwrap())]);
        let call = p.create(n, 20).start();
        until("held", || p.h.state() == "paused" && p.calls().contains("snapshot-create-as"));
        let [pid] = pids(&p, victim)[..] else { panic!("one {victim}") };
        kill_process(pid, Signal::KILL).unwrap();
        std::fs::write(&go, "").unwrap();
        let done = call.wait();
        assert_eq!(done.killed(), victim == "op");
        until("let go", || p.h.state() == "running" && pids(&p, "guard").is_empty());
        p.whole("A", victim);
        if victim == "guard" {
            done.ok();
        }
    }
    p.rules(&[]);
    p.create(5, 20).run().ok();
    p.whole("A", "at the end");
}

/// Stopped on request while the machine stands still: whatever libvirt makes of it, the link is right.
#[test]
fn a_snapshot_that_is_cancelled_is_made_or_not() {
    let p = Peer::new();
    let go = p.dir.join("go");
    let mut saw = "A".to_owned();
    for n in 0..2 {
        let _ = std::fs::remove_file(&go);
        p.rules(&[(["snapshot-create-as", "suspend"][n], "until", go.to_str().unwrap())]);
        let call = p.create(i64::try_from(n).unwrap(), 20).start();
        let word = format!(" {} ", ["snapshot-create-as", "suspend"][n]);
        until("held", || p.calls().contains(&word));
        kill_process(call.pid(), Signal::TERM).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        std::fs::write(&go, "").unwrap();
        let done = call.wait();
        assert_eq!(done.code, Some(130), "{}", done.err());
        until("let go", || p.h.state() == "running" && pids(&p, "guard").is_empty());
        p.whole(&saw, &word);
        let letter = ['B', 'C'][n];
        p.h.write(letter, n + 1);
        saw.push(letter);
        p.whole(&saw, &word);
    }
}

/// A mirror that cannot be: the machine stands still for the copy, and goes on.
#[test]
fn a_disk_that_cannot_be_mirrored_is_copied_while_the_machine_stands_still() {
    let p = Peer::new();
    p.rules(&[("blockcopy", "fail", "not supported")]);
    let save = serde_json::json!({"op": "cpds", "disk": p.h.disk("qcow2"), "snapshot": null,
        "target": p.h.text("100/saved"), "live": p.h.machine()});
    p.h.op(&save).run().ok();
    assert_eq!(p.h.says(&p.h.at("100/saved")), "A");
    assert!(p.calls().contains(" resume "));
    p.whole("A", "copied");
}
