//! Two hosts on one volume group: verbs from both at once, and one of them killed.

use crate::lvmmeet::{Blow, Here, PLACE, changes, hosts, img, passed, said, seed, seqno};
use crate::lvmverbs::{GROUP, Host, MIB, content, digest, read, root, volumes};
use std::process::{Child, Output};
use std::time::{Duration, Instant};

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn verbs_inside() {
    let here = Here::joined();
    let (h, meet, id, other) = (&here.h, &here.meet, here.id, 3 - here.id);
    std::fs::create_dir(h.at("var/datastores/102")).unwrap();
    let before = seqno();
    meet.at(3);
    let _ = std::fs::remove_file(h.at("history"));
    let rounds = if crate::kill::full() { 8 } else { 1 };
    let (mut kept, mut step) = (Vec::new(), 3);
    let mut met = || {
        step += 1;
        meet.at(step);
    };
    let vms = id.to_string();
    for round in 0..rounds {
        // Thick: 1 by cp, 3 a copy of the other host's 1. Thin: 2.
        let image = |host: u64, n: u64| round * 100 + host * 10 + n;
        let [one, two, three] = [1, 2, 3].map(|n| image(id, n));
        here.source("one.raw", &seed(one));
        h.ok("cp", &format!("<ID>{one}</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>"));
        h.ok("mkfs", &format!("<ID>{two}</ID><SIZE>5</SIZE><PERSISTENT>1</PERSISTENT>"));
        met();
        let theirs = image(other, 1);
        h.ok("clone", &format!("<ID>{three}</ID><SIZE>6</SIZE><PATH>vg-one-100/img-one-{theirs}</PATH>"));
        let vm = here.vm(theirs, two);
        here.tm(&vm, "clone", &[&format!("fe:vg-one-100/img-one-{theirs}"), "DIR/disk.0", &vms, "100"]);
        let disk = |n: u64| h.at(&format!("var/datastores/101/{id}/disk.{n}"));
        let len = 4 * MIB;
        assert_eq!(read(&disk(0), len), (digest(&seed(theirs)), true), "the other host's image, whole");
        here.tm(&vm, "resize", &["DIR/disk.0", "10", &vms, "100"]);
        here.tm(&vm, "ln", &[&format!("fe:vg-one-100/img-one-{two}"), "DIR/disk.1", &vms, "100"]);
        std::fs::write(disk(1), seed(two)).unwrap();
        met();
        // What the other host's machine has is neither removed nor opened here.
        let (status, text) = h.call("rm", &img(image(other, 2)));
        assert!(status == 9 && text.contains(&format!("VM on host {other}")), "{status} {text}");
        met();
        // As from host to host: by its own name this machine is another one, as far as a move can tell.
        let there = h.at(&format!("var/datastores/102/{id}"));
        let there = (format!("h{id}:{}", there.display()), there.join("disk.0"));
        here.tm(&vm, "mv", &["DIR/disk.0", &format!("{}/disk.0", there.0), &vms, "101"]);
        here.tm(&vm, "mv", &["DIR", &there.0, &vms, "101"]);
        assert!(!disk(0).exists() && read(&there.1, len).0 == digest(&seed(theirs)), "its disks came along");
        let (dir, disk) = (there.0.clone(), |n: u64| format!("{}/disk.{n}", there.0));
        here.tm(&vm, "mvds", &[&disk(1), &format!("vg-one-100/img-one-{two}"), &vms, "100"]);
        here.tm(&vm, "delete", &[&disk(0), &vms, "100"]);
        here.tm(&vm, "delete", &[&dir, &vms, "102"]);
        h.ok("rm", &img(theirs));
        met();
        kept.extend([(three, theirs), (two, two)]);
        kept.extend([1, 2].map(|n| (image(other, n + 1), if n == 1 { image(other, 2) } else { one })));
    }
    let ended = std::fs::read_to_string(h.at("history")).unwrap();
    meet.at(1000);
    for l in ended.lines() {
        println!("history: {l}");
    }
    println!("number: {before} {}", seqno());
    // Each in its turn: a pool is one host's.
    if id == 2 {
        meet.wait(1001);
    }
    for (image, as_image) in &kept {
        let found = content(&format!("img-one-{image}"), 4 * MIB).0;
        assert_eq!(found, digest(&seed(*as_image)), "image {image}");
    }
    let mut want: Vec<String> = kept.iter().map(|(i, _)| format!("img-one-{i}")).collect();
    want.extend(kept.iter().filter(|(i, _)| i % 10 == 2).map(|(i, _)| format!("img-one-{i}-pool")));
    want.extend(["sdm-leases".to_owned(), "sdm-meta".to_owned()]);
    want.sort();
    assert_eq!(volumes(), want);
    root(&["vgck", GROUP]);
    meet.say(1001);
}

pub fn two(test: &'static str, blow: Option<Blow>) -> [Output; 2] {
    hosts(test, ["h1", "h2"], blow)
}

#[test]
fn two_hosts_at_work_on_one_group_lose_nothing() {
    let changes = changes(&passed(two("lvmhosts::verbs_inside", None)));
    assert!(changes > 40, "{changes}");
}

/// The steps that a verb takes, each with what it changes.
pub fn steps(h: &Host, verb: &str, image: &str) -> Vec<String> {
    let log = h.at("steps");
    let env = [("ONESDM_TEST_LOG", log.to_str().unwrap())];
    let out = h.start(verb, &h.message(image), &env).wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = std::fs::read_to_string(&log).unwrap();
    text.lines().map(|l| l.split_once('\t').unwrap().1.to_owned()).collect()
}

/// Those of them that write to the records, by their numbers.
pub fn writes(steps: &[String]) -> Vec<u64> {
    let ours = (1..).zip(steps).filter(|(_, s)| s.starts_with("Write") && s.ends_with("/sdm-meta"));
    ours.map(|(n, _)| n).collect()
}

/// Starts a verb that stands still before this step.
pub fn stopped(h: &Host, verb: &str, image: &str, step: u64, env: &[(&str, &str)]) -> Child {
    let step = step.to_string();
    let mut child = h.start(verb, &h.message(image), &[&[("ONESDM_TEST_STOP", &*step)], env].concat());
    let began = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        if stat.rsplit_once(") ").unwrap().1.starts_with('T') {
            return child;
        }
        assert!(child.try_wait().unwrap().is_none(), "{verb} {image} ended before step {step}");
        assert!(began.elapsed() < Duration::from_secs(120), "{verb} {image} does not get to step {step}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The first machine's last: a VM's disk on it, a job that has decided nothing, and one that was about to say that
/// it is done, with the lock of the domain.
fn dying(here: &Here) {
    let h = &here.h;
    here.source("one.raw", &seed(1));
    let cp = |n: u64| format!("<ID>{n}</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
    h.ok("cp", &cp(1));
    h.ok("mkfs", "<ID>2</ID><SIZE>5</SIZE><PERSISTENT>1</PERSISTENT>");
    let vm = here.vm(1, 2);
    here.tm(&vm, "ln", &["fe:vg-one-100/img-one-2", "DIR/disk.1", "1", "100"]);
    // Its birth, intent (2), commit (2), done, end.
    let steps = writes(&steps(h, "cp", &cp(3)));
    assert_eq!(steps.len(), 7, "{steps:?}");
    h.ok("rm", &img(3));
    // Records are written with the lock: the step before is the last without it.
    let _both = [(4, steps[3] - 1), (5, steps[5])].map(|(n, step)| stopped(h, "cp", &cp(n), step, &[]));
    here.meet.say(7);
    std::thread::sleep(Duration::from_secs(600));
}

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn take_over_inside() {
    let here = Here::joined();
    let (h, meet) = (&here.h, &here.meet);
    if here.id == 1 {
        return dying(&here);
    }
    meet.wait(7);
    let killed = Instant::now();
    // The dead host has the lock, and looks alive for a while.
    h.ok("mkfs", "<ID>11</ID><SIZE>5</SIZE>");
    let took = killed.elapsed();
    println!("taken over after {took:?}");
    assert!(took > Duration::from_secs(10), "{took:?}");
    // What it had decided is finished, the rest is no more, and nothing that was there is touched.
    let (status, text) = h.own(&["gc", PLACE]);
    assert_eq!(status, 0, "{text}");
    println!("{text}");
    let all =
        ["img-one-1", "img-one-11", "img-one-2", "img-one-2-pool", "img-one-5", "sdm-leases", "sdm-meta"];
    assert_eq!(volumes(), all);
    for image in [1, 5] {
        assert_eq!(content(&format!("img-one-{image}"), 4 * MIB).0, digest(&seed(1)), "image {image}");
    }
    let (status, text) = h.own(&["gc", "--plan", PLACE]);
    assert!(status == 0 && !text.contains("sdm-"), "{text}");
    let (status, text) = h.own(&["check", PLACE]);
    assert!(status == 0 && text.contains("no broken rule"), "{text}");
    // Its VM comes here, as a site's hook for failed hosts has it (PROLOG_MIGRATE_UNKNOWN).
    let vm = (1, here.vm(1, 2).1.replace("<ID>2<", "<ID>1<").replace("STATE>0<", "STATE>60<"));
    let args = ["h1:/var/lib/one/datastores/101/1/disk.1", "DIR/disk.1", "1", "101"];
    let disk = h.at("var/datastores/101/1/disk.1");
    here.tm(&vm, "mv", &args);
    // Who leaves takes its devices away and keeps what it had.
    let member = |verb: &str, more: &[&str]| {
        let (status, text) = h.own(&[&["domain", verb], more, &[PLACE]].concat());
        assert!(status == 0 && !text.contains("stays inactive"), "{text}");
        disk.exists()
    };
    assert!(!member("leave", &[]) && member("join", &["--host-id", "2"]));
    std::fs::write(&disk, seed(9)).unwrap();
    here.tm(&vm, "mvds", &["DIR/disk.1", "vg-one-100/img-one-2", "1", "100"]);
    assert_eq!(content("img-one-2", 4 * MIB).0, digest(&seed(9)));
    h.ok("rm", &img(2));
    here.source("one.raw", &seed(4));
    h.ok("cp", "<ID>4</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
    assert_eq!(content("img-one-4", 4 * MIB).0, digest(&seed(4)));
    assert_eq!(volumes(), ["img-one-1", "img-one-11", "img-one-4", "img-one-5", "sdm-leases", "sdm-meta"]);
    root(&["vgck", GROUP]);
}

/// A power loss of one host, with its jobs in the middle and the lock of the domain in its hands.
#[test]
fn when_a_host_is_gone_the_other_one_ends_its_work() {
    let [first, second] =
        two("lvmhosts::take_over_inside", Some(Blow::Kill(7, 1))).map(|o| (o.status.code(), said(&o)));
    println!(
        "{}
=======
{}",
        first.1, second.1
    );
    assert!(first.0 == Some(125) && second.0 == Some(0) && second.1.contains("1 passed"), "see above");
}
