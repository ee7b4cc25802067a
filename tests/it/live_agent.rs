//! A real guest: Linux with qemu's guest agent and a file system on its disk, which it writes to without ever
//! flushing. What its agent says, and what is in the snapshot, tells whether it was frozen.

use crate::bed;
use crate::live_hostile::{Peer, until};
use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A machine 7 that writes numbers to files `a` and `b`, its agent answering.
fn guest() -> Peer {
    let p = Peer::up();
    let raw = p.h.one.root().join("raw");
    std::fs::File::create(&raw).unwrap().set_len(32 << 20).unwrap();
    bed::tool("mkfs.ext4", &["-q".as_ref(), raw.as_os_str()]);
    let words = ["convert", "-O", "qcow2"].map(OsStr::new);
    bed::tool("qemu-img", &[&words[..], &[raw.as_os_str(), p.h.text("100/img").as_ref()]].concat());
    p.h.disk_of("qcow2", false);
    p.h.ok(&["guest", "one-7", &format!("{}=qcow2", p.h.text("101/7/disk.0"))]);
    p.writes(5);
    p
}

impl Peer {
    fn said(&self) -> u32 {
        self.h.ok(&["said", "one-7"]).parse().unwrap_or(0)
    }

    /// Until it has written so many more.
    fn writes(&self, more: u32) {
        let now = self.said();
        until("the guest writes", || self.said() > now + more);
    }

    fn agent(&self, command: &str) -> String {
        self.h.ok(&["virsh", "qemu-agent-command", "one-7", command])
    }

    fn status(&self) -> String {
        self.agent(r#"{"execute":"guest-fsfreeze-status"}"#)
    }

    fn snapshot(&self, n: i64, freeze: &str, timeout: u64) -> crate::call::Call<'_> {
        let mut op = self.h.snap("snap_create_live", n);
        op["machine"]["freeze"] = freeze.into();
        op["machine"]["timeout"] = timeout.into();
        self.h.op(&op)
    }

    /// Snapshot `n` as its medium has it, whether its file system wants its journal replayed, and how many
    /// numbers are in `a` and `b`, all of them there.
    fn medium(&self, n: i64) -> (bool, u32, u32) {
        let raw: PathBuf = self.h.one.root().join("snapshot");
        let layer = self.h.layers(false).join(n.to_string());
        let words = ["convert", "-U", "-O", "raw"].map(OsStr::new);
        bed::tool("qemu-img", &[&words[..], &[layer.as_os_str(), raw.as_os_str()]].concat());
        let debugfs = |command: &str| {
            bed::tool("debugfs", &["-c".as_ref(), "-R".as_ref(), command.as_ref(), raw.as_os_str()])
        };
        let numbers = |file: &str| {
            let text = debugfs(&format!("cat /{file}"));
            let count = u32::try_from(text.lines().count()).unwrap();
            let want: String = (1..=count).map(|n| format!("{n}\n")).collect();
            assert_eq!(text, want, "{file}");
            count
        };
        (debugfs("stats").contains("needs_recovery"), numbers("a"), numbers("b"))
    }
}

#[test]
fn a_guest_is_frozen_by_its_agent_and_thawed() {
    let p = guest();
    let go = p.dir.join("go");
    p.rules(&[("suspend", "until", go.to_str().unwrap())]);
    let call = p.snapshot(0, "agent", 30).start();
    until("about to be suspended", || p.calls().contains(" suspend "));
    assert!(p.status().contains("frozen"), "{}", p.status());
    let told = p.said();
    std::thread::sleep(Duration::from_millis(300));
    assert!(p.said() <= told + 1, "it writes on");
    let told = p.said();
    std::fs::write(&go, "").unwrap();
    call.wait().ok();
    assert!(p.status().contains("thawed"), "{}", p.status());
    assert_eq!(p.h.state(), "running");
    p.writes(5);
    let (is_dirty, a, b) = p.medium(0);
    assert!(!is_dirty, "its journal is empty");
    assert!(b >= told && b <= a && a <= b + 1, "{a} and {b} of {told}");
    // Where nobody asks the guest, the same look finds what a power loss would leave.
    p.rules(&[]);
    p.snapshot(1, "suspend", 30).run().ok();
    let told = p.said();
    let (is_dirty, _, b) = p.medium(1);
    assert!(is_dirty && b < told, "{is_dirty}, {b} of {told}");
    assert!(!p.calls().contains("domfsfreeze"), "{}", p.calls());
}

#[test]
fn an_agent_that_does_not_answer_is_not_waited_for() {
    let p = guest();
    let stop = r#"{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","sleep 1; kill -STOP $(cat /run/agent.pid)"]}}"#;
    p.agent(stop);
    std::thread::sleep(Duration::from_secs(2));
    for (n, timeout) in [(0, 30), (1, 2)] {
        p.rules(&[]);
        let began = Instant::now();
        p.snapshot(n, "try", timeout).run().ok();
        assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        assert!(!p.calls().contains("domfsfreeze"), "it would come to that when it wakes up: {}", p.calls());
        let said = p.snapshot(2, "agent", timeout).run().fails(6);
        assert!(said.contains("agent"), "{said}");
        assert_eq!(p.h.state(), "running");
        p.writes(5);
    }
}

/// Libvirt has the request, and the agent has not: the guest may freeze long after its snapshot was made.
#[test]
fn a_guest_that_may_freeze_later_is_thawed_by_the_collector() {
    let p = guest();
    let answers =
        [("qemu-agent-command", "say", "{}"), ("domfsfreeze", "hang", ""), ("domfsthaw", "fail", "busy")];
    p.rules(&answers);
    p.snapshot(0, "try", 2).run().ok();
    let notes = || bed::names(&p.h.one.root().join("run/held"));
    assert_eq!(notes().len(), 1, "somebody has to come back");
    let said = p.h.one.onesdm(&["gc"]).run().err();
    assert!(said.contains("does not answer"), "{said}");
    p.rules(&[]);
    p.agent(r#"{"execute":"guest-fsfreeze-freeze"}"#);
    p.h.one.onesdm(&["gc"]).run().ok();
    assert!(p.status().contains("thawed"), "{}", p.status());
    assert_eq!(notes(), [""; 0]);
    p.writes(5);
}
