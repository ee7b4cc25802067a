//! Who is a member of a volume group's domain, and who is none any more: a verb that wakes when its host's leases are
//! another's, and a group that is given back.

use crate::lvmhosts::{steps, stopped, two, writes};
use crate::lvmmeet::{Here, PLACE, passed, seed, seqno};
use crate::lvmverbs::{GROUP, MIB, content, digest, root, volumes};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;
use std::time::{Duration, Instant};

/// The daemon's: by the machine's own clock a verb would be ten times as patient.
const CLOCK: [(&str, &str); 3] = [
    ("LD_PRELOAD", "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"),
    ("FAKETIME", "+0 x10"),
    ("FAKETIME_DONT_RESET", "1"),
];
/// Steps of the meeting, image, and what is wrong with the program.
const ROUNDS: [(u64, u64, &str); 2] = [(10, 4, ""), (20, 5, "stale-leases")];

/// Of this machine; it has a helper that is root's.
fn daemon(signal: Signal) {
    let named = |pid: &i32| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "sanlock"
    };
    let pids = crate::bed::names(Path::new("/proc")).into_iter().filter_map(|n| n.parse().ok());
    let sent = pids.filter(named).filter(|p| kill_process(Pid::from_raw(*p).unwrap(), signal).is_ok());
    assert!(sent.count() > 0, "no daemon");
}

/// A verb is about to publish, with the lock of the domain, when it and the daemon stand still. It wakes first, as it
/// may where a whole machine does.
fn sleeper(here: &Here) {
    let (h, meet) = (&here.h, &here.meet);
    here.source("one.raw", &seed(1));
    let cp = |image: u64| format!("<ID>{image}</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
    let steps = steps(h, "cp", &cp(3));
    // The first look at the group after the record of what was decided. Who changes it looks before.
    let decided = usize::try_from(writes(&steps)[4]).unwrap();
    let look = 1 + decided + steps[decided..].iter().position(|s| s.starts_with("Child")).unwrap();
    for (at, image, bug) in ROUNDS {
        let env = [&CLOCK[..], &[("ONESDM_TEST_BUG", bug)]].concat();
        let mut verb = stopped(h, "cp", &cp(image), look as u64, &env);
        daemon(Signal::STOP);
        meet.at(at);
        meet.wait(at + 1);
        let began = Instant::now();
        kill_process(Pid::from_child(&verb), Signal::CONT).unwrap();
        let name = format!("img-one-{image}");
        let status = loop {
            let ended = verb.try_wait().unwrap();
            if ended.is_some() || volumes().contains(&name) {
                break ended;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "it neither ends nor publishes");
        };
        println!("{bug:?}: {status:?} after {:?}", began.elapsed());
        assert_eq!(status.and_then(|s| s.code()), bug.is_empty().then_some(8), "{bug:?}");
        meet.say(at + 2);
        meet.wait(at + 3);
        daemon(Signal::CONT);
        verb.wait().unwrap();
        // Nothing works here until the host joins again.
        let mkfs = format!("<ID>{}</ID><SIZE>2</SIZE>", 30 + at);
        while h.call("mkfs", &mkfs).0 != 0 {
            assert!(began.elapsed() < Duration::from_secs(120), "it is no member again");
            println!("{:?}", h.own(&["domain", "join", "--host-id", "1", PLACE]));
            std::thread::sleep(Duration::from_millis(500));
        }
        meet.at(at + 4);
    }
}

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn wakes_inside() {
    let here = Here::joined();
    if here.id == 1 {
        return sleeper(&here);
    }
    let (h, meet) = (&here.h, &here.meet);
    for (at, image, bug) in ROUNDS {
        meet.at(at);
        let began = Instant::now();
        h.ok("mkfs", &format!("<ID>{}</ID><SIZE>2</SIZE>", 10 + at));
        println!("has the lock after {:?}", began.elapsed());
        let number = seqno();
        meet.say(at + 1);
        meet.wait(at + 2);
        let late = seqno() - number;
        println!("{bug:?}: {late} commits of who had no lease any more");
        assert_eq!(late > 0, !bug.is_empty(), "{bug:?}");
        assert_eq!(volumes().contains(&format!("img-one-{image}")), !bug.is_empty(), "{bug:?}");
        meet.say(at + 3);
        meet.at(at + 4);
        let (status, text) = h.own(&["gc", PLACE]);
        assert_eq!(status, 0, "{text}");
        let (status, text) = h.own(&["check", PLACE]);
        assert!(status == 0 && text.contains("no broken rule"), "{text}");
    }
    assert!(volumes().iter().all(|v| !v.starts_with("sdm-new-")), "{:?}", volumes());
    root(&["vgck", GROUP]);
}

#[test]
fn a_verb_that_wakes_without_its_leases_commits_nothing() {
    passed(two("lvmmember::wakes_inside", None));
}

/// Refused while another host is a member; then nothing of ours is left.
#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn given_back_inside() {
    let here = Here::joined();
    let (h, meet) = (&here.h, &here.meet);
    let device = |name: &str| Path::new(PLACE).join(name).exists();
    let remove = || h.own(&["domain", "remove", PLACE]);
    let (all, left) = (["img-one-1", "sdm-leases", "sdm-meta"], ["img-one-1"]);
    if here.id == 2 {
        meet.wait(3);
        // Who is a member may not end it either, while others are.
        let (status, text) = remove();
        assert!(status == 10 && text.contains("host 1 (") && volumes() == all, "{status} {text}");
        let (status, text) = h.own(&["domain", "leave", PLACE]);
        assert!(status == 0 && !device("sdm-meta") && !device("sdm-leases"), "{status} {text}");
        meet.say(4);
        meet.wait(5);
        assert_eq!(volumes(), left);
        let (status, text) = h.own(&["domain", "join", "--host-id", "2", PLACE]);
        assert!(status == 3 && text.contains("onesdm domain init"), "{status} {text}");
        root(&["vgck", GROUP]);
        return meet.say(6);
    }
    here.source("one.raw", &seed(1));
    h.ok("cp", "<ID>1</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
    let (status, text) = remove();
    assert!(status == 10 && text.contains("host 2 (") && text.contains("onesdm domain leave"), "{text}");
    assert_eq!(volumes(), all);
    meet.say(3);
    meet.wait(4);
    // This host learns of it when it renews.
    let began = Instant::now();
    let text = loop {
        match remove() {
            (0, text) => break text,
            (status, text) => assert!(status == 10 && text.contains("host 2 ("), "{status} {text}"),
        }
        assert!(began.elapsed() < Duration::from_secs(60), "the host that left is still a member");
        std::thread::sleep(Duration::from_millis(500));
    };
    println!("{text} after {:?}", began.elapsed());
    assert!(text.contains("no domain any more"), "{text}");
    let rows = root(&["lvs", "--noheadings", "-o", "lv_name,lv_tags,vg_tags", GROUP]);
    assert_eq!(rows.split_whitespace().collect::<Vec<_>>(), left);
    assert!(!device("sdm-meta") && !device("sdm-leases"));
    assert_eq!(content("img-one-1", 4 * MIB), (digest(&seed(1)), true));
    let (status, text) = h.call("mkfs", "<ID>6</ID><SIZE>4</SIZE>");
    assert!(status == 3 && text.contains("onesdm domain init"), "{status} {text}");
    meet.say(5);
    meet.wait(6);
}

#[test]
fn a_group_is_given_back_when_no_other_host_is_a_member() {
    passed(two("lvmmember::given_back_inside", None));
}
