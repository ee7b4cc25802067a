//! A verb and its guard killed together while a machine stands still: whatever is called next on that host
//! lets it go on, and nobody lets a machine go on that somebody else suspended.

use crate::bed;
use crate::call::Done;
use crate::doc::Doc;
use crate::hypervisor::Hypervisor;
use crate::kill::full;
use crate::live_hostile::{Peer, pids, until};
use crate::live_kill::Guest;
use rustix::process::{Signal, kill_process};
use std::time::Duration;

/// `kill -9` of a verb and its guard, as one that is out of memory does.
fn kill_both(p: &Peer) {
    for pid in [pids(p, "op"), pids(p, "guard")].concat() {
        kill_process(pid, Signal::KILL).unwrap();
    }
    until("gone", || pids(p, "op").is_empty() && pids(p, "guard").is_empty());
}

/// A snapshot whose verb and guard die while libvirt is asked for `word`.
fn dead_at(p: &Peer, word: &str, n: i64, freeze: &str) {
    let go = p.dir.join("go");
    let answers = ("Froze 1 filesystem(s)", "Thawed 1 filesystem(s)");
    p.rules(&[
        (word, "until", go.to_str().unwrap()),
        ("qemu-agent-command", "say", "{}"),
        ("domfsfreeze", "say", answers.0),
        ("domfsthaw", "say", answers.1),
    ]);
    let mut op = p.h.snap("snap_create_live", n);
    op["machine"]["freeze"] = freeze.into();
    let call = p.h.op(&op).start();
    until(word, || p.calls().contains(&format!(" {word} ")));
    kill_both(p);
    assert!(call.wait().killed());
    p.rules(&[("domfsthaw", "say", answers.1)]);
}

fn notes(p: &Peer) -> Vec<String> {
    bed::names(&p.h.one.root().join("run/held"))
}

#[test]
fn whatever_is_called_next_lets_the_machine_go_on() {
    let p = Peer::new();
    let store = p.h.one.base_path(101);
    let monitor = format!(
        "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>101</ID><TYPE>1</TYPE><TM_MAD>shared</TM_MAD><BASE_PATH>{store}\
         </BASE_PATH><TEMPLATE/></DATASTORE></DS_DRIVER_ACTION_DATA>"
    );
    let nexts: [(&str, &dyn Fn() -> Done); 4] = [
        ("gc", &|| p.h.one.onesdm(&["gc"]).run()),
        ("doctor", &|| p.h.one.onesdm(&["doctor"]).run()),
        ("a datastore's verb", &|| p.h.one.ds("monitor", 100, &Doc::new(&p.h.one, 0).xml()).run()),
        ("a transfer verb", &|| {
            p.h.one.tm("shared", "monitor").arg("101").stdin(bed::base64(monitor.clone())).run()
        }),
    ];
    let mut saw = "A".to_owned();
    for (n, (who, next)) in nexts.iter().enumerate() {
        // Before the machine was switched, and after, its link not moved.
        let word = ["snapshot-create-as", "resume"][n % 2];
        dead_at(&p, word, i64::try_from(n).unwrap(), ["suspend", "try"][n % 2]);
        assert_eq!(p.h.state(), "paused", "{who}: nobody is there to let it go on");
        let said = next();
        assert!(said.answer().is_ok(), "{who}: {}", said.err());
        let said = said.out() + &said.err();
        if *who != "a transfer verb" {
            assert!(said.contains("one-7") && said.contains("goes on"), "{who}: {said}");
        }
        if word == "resume" {
            assert!(p.calls().contains(" domfsthaw "), "{who}: {}", p.calls());
        }
        p.whole(&saw, who);
        let letter = ['B', 'C', 'D', 'E'][n];
        p.h.write(letter, n + 1);
        saw.push(letter);
        p.whole(&saw, who);
        assert_eq!(notes(&p), [""; 0], "{who}");
    }
    p.rules(&[]);
    p.create(9, 20).run().ok();
    assert_eq!(p.h.snapshot(false, 9), Some(saw));
}

#[test]
fn a_machine_that_somebody_else_suspended_stays_so() {
    let p = Peer::new();
    let gc = || p.h.one.onesdm(&["gc"]).run();
    // Before: it was not ours to hold.
    p.h.ok(&["virsh", "suspend", "one-7"]);
    dead_at(&p, "snapshot-create-as", 0, "suspend");
    gc().ok();
    assert_eq!((p.h.state().as_str(), notes(&p)), ("paused", vec![]));
    p.h.ok(&["virsh", "resume", "one-7"]);
    // After: somebody let it go on, and suspended it later.
    dead_at(&p, "snapshot-create-as", 1, "try");
    p.h.ok(&["virsh", "resume", "one-7"]);
    p.h.ok(&["virsh", "qemu-monitor-command", "one-7", "--hmp", "system_reset"]);
    std::thread::sleep(Duration::from_secs(1));
    p.h.ok(&["virsh", "suspend", "one-7"]);
    // Its guest's file systems are frozen still, and cannot be thawed while it stands.
    let said = gc().err();
    assert!(said.contains("frozen"), "{said}");
    assert_eq!((p.h.state().as_str(), notes(&p).len()), ("paused", 1));
    assert!(!p.calls().contains(" domfsthaw "), "{}", p.calls());
    p.h.ok(&["virsh", "resume", "one-7"]);
    gc().ok();
    assert!(p.calls().contains(" domfsthaw "), "{}", p.calls());
    assert_eq!(notes(&p), [""; 0]);
    p.whole("A", "at the end");
}

/// Wherever they are with it: also before libvirt has answered, and while it mirrors.
#[test]
fn killed_together_at_random_moments() {
    let p = Peer::new();
    let mut guest = Guest::new(&p.h);
    guest.write();
    let save = serde_json::json!({"op": "cpds", "disk": p.h.disk("qcow2"), "snapshot": null,
        "target": p.h.text("100/saved"), "live": p.h.machine()});
    let mut random = crate::power::Random::seeded();
    let mut stood = 0;
    for n in 0..if full() { 60 } else { 12 } {
        guest.write();
        p.rules(&[]);
        let op = if n % 3 == 0 { save.clone() } else { p.h.snap("snap_create_live", n) };
        let call = p.h.op(&op).start();
        let mut late =
            |ms| std::thread::sleep(Duration::from_millis(u64::try_from(random.below(ms)).unwrap()));
        if n % 4 == 0 {
            late(600);
        } else {
            // From when it is about to be suspended to when it is about to go on.
            until("at work", || p.calls().contains(" suspend "));
            late(150);
        }
        kill_both(&p);
        let _ = call.wait();
        let at = format!("{n}: {op}");
        // What libvirt was asked for, it may be doing still.
        std::thread::sleep(Duration::from_millis(100));
        stood += u32::from(p.h.state() == "paused");
        p.h.one.onesdm(&["gc"]).run().ok();
        assert_eq!((p.h.state().as_str(), notes(&p)), ("running", vec![]), "{at}");
        guest.unharmed(&at);
        assert_eq!(p.h.ok(&["virsh", "blockjob", "one-7", "vda", "--info", "--raw"]), "", "{at}");
        let now = guest.saw();
        p.h.op(&op).run().ok();
        guest.write();
        let made = if n % 3 == 0 { Some(p.h.says(&p.h.at("100/saved"))) } else { p.h.snapshot(false, n) };
        assert_eq!(made, Some(now), "{at}");
    }
    assert!(stood > 0, "they were never killed while it stood still");
}

/// What anybody may put there is no reason to do anything.
#[test]
fn a_record_that_nobody_understands_is_removed() {
    let h = Hypervisor::up();
    let dir = h.one.root().join("run/held");
    std::fs::create_dir_all(&dir).unwrap();
    for (name, text) in [("a", ""), ("b", "{}"), ("c", "{\"charge\":1}\n")] {
        std::fs::write(dir.join(format!("{name}.json")), text).unwrap();
    }
    std::os::unix::fs::symlink("/etc/passwd", dir.join("d.json")).unwrap();
    let said = h.one.onesdm(&["gc"]).run().err();
    assert_eq!(said.lines().count(), 3, "{said}");
    assert_eq!(bed::names(&dir), ["d.json"]);
}
