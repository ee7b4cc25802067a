//! Two hosts on one volume group, each a micro-VM with a kernel, a sanlock daemon and an account of its own; they
//! share a disk, and another one by which they wait for each other.

use crate::lvmverbs::{GROUP, Host, MIB, content, digest, disk, read, root, volumes};
use crate::{bed, history, vm};
use onesdm::sys::direct::{BLOCK, Direct};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PLACE: &str = "/dev/vg-one-100";
/// With the daemons' clocks ten times as fast a host joins in two seconds and is dead after fourteen.
const SETTINGS: &str = "[sanlock]\nio_timeout = \"10s\"\nwithout_watchdog = true\n[lock]\nwait = \"90s\"\n";

/// Past all steps.
const FAILED: u64 = u64::MAX;

/// How far each of the two machines is.
struct Meeting {
    disk: Direct,
    id: u64,
}

impl Meeting {
    fn of(&self, id: u64) -> u64 {
        let block = self.disk.read(id * BLOCK as u64, BLOCK).unwrap();
        u64::from_le_bytes(block[..8].try_into().unwrap())
    }

    fn say(&self, step: u64) {
        let mut block = step.to_le_bytes().to_vec();
        block.resize(BLOCK, 0);
        self.disk.write(self.id * BLOCK as u64, &block).unwrap();
    }

    fn wait(&self, step: u64) {
        let began = Instant::now();
        while self.of(3 - self.id) < step {
            assert!(began.elapsed() < Duration::from_secs(600), "the other machine does not get to {step}");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(self.of(3 - self.id) != FAILED, "the other machine failed");
    }

    fn at(&self, step: u64) {
        self.say(step);
        self.wait(step);
        println!("-- {step} at {:?}", rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec);
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.say(FAILED);
        }
    }
}

fn seqno() -> u64 {
    root(&["lvs", "--noheadings", "-o", "vg_seqno", &format!("{GROUP}/sdm-meta")]).trim().parse().unwrap()
}

/// This machine of the two, a member of the domain on the group.
struct Here {
    h: Host,
    meet: Meeting,
    id: u64,
}

impl Here {
    fn joined() -> Here {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let id: u64 = name.trim().strip_prefix('h').unwrap().parse().unwrap();
        let meet = Meeting { disk: Direct::open_device(Path::new("/dev/vdb")).unwrap(), id };
        let h = Host::new();
        let toml = h.at("etc/onesdm.toml");
        std::fs::write(&toml, std::fs::read_to_string(&toml).unwrap() + SETTINGS).unwrap();
        let here = Here { h, meet, id };
        here.join();
        here
    }

    fn join(&self) {
        let h = &self.h;
        if self.id == 1 {
            root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
            let init = ["domain", "init", "--lock", "sanlock", PLACE];
            let dog = [&["--set", "sanlock.without_watchdog=false"][..], &init].concat();
            let (status, text) = h.own(&dog);
            assert!(status == 10 && text.contains("without a watchdog"), "{status} {text}");
            for _ in 0..2 {
                let (status, text) = h.own(&init);
                assert!(status == 0 && text.contains("WARN: domain: "), "{status} {text}");
            }
            assert_eq!(volumes(), ["sdm-leases", "sdm-meta"]);
        }
        self.meet.at(1);
        let (status, text) = h.call("mkfs", "<ID>1</ID><SIZE>4</SIZE>");
        assert!(status == 10 && text.contains("onesdm domain join"), "{status} {text}");
        let (status, text) = h.own(&["domain", "join", "--host-id", &self.id.to_string(), PLACE]);
        assert_eq!(status, 0, "{text}");
        let (status, text) = h.own(&["domain", "show", PLACE]);
        assert!(status == 0 && text.contains(&format!("member    {} ", self.id)), "{text}");
        // Its patience with storage is not made for emulated machines that share a processor.
        let mut looks = (0..9).map(|_| h.own(&["doctor", PLACE]).1);
        let text = looks.find(|text| !text.contains("no answer within")).unwrap();
        assert!(text.contains("ok    membership") && text.contains("warn  watchdog"), "{text}");
        self.meet.at(2);
    }

    /// A VM's document: a copy of one image, and another image itself.
    fn vm(&self, copy: u64, own: u64) -> (u64, String) {
        let disk = |id: u64, clone: &str, image: u64| {
            format!(
                "<DISK><DISK_ID>{id}</DISK_ID><CLONE>{clone}</CLONE><TM_MAD>lvm</TM_MAD><DATASTORE_ID>100</DATASTORE_ID>\
                 <SIZE>8</SIZE><ORIGINAL_SIZE>6</ORIGINAL_SIZE><FORMAT>raw</FORMAT>\
                 <SOURCE>vg-one-100/img-one-{image}</SOURCE></DISK>"
            )
        };
        let disks = disk(0, "YES", copy) + &disk(1, "NO", own);
        let vm = self.id;
        (
            vm,
            format!(
                "<VM><ID>{vm}</ID><STATE>8</STATE><LCM_STATE>0</LCM_STATE><TEMPLATE>{disks}</TEMPLATE></VM>"
            ),
        )
    }

    #[track_caller]
    fn tm(&self, vm: &(u64, String), verb: &str, args: &[&str]) -> String {
        let (status, text) = self.h.tm_of((vm.0, &vm.1), verb, args);
        assert_eq!(status, 0, "{verb} {args:?}: {text}");
        println!("{verb} {args:?} {text}");
        text
    }

    fn source(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.h.at("images").join(file), bytes).unwrap();
    }
}

fn seed(image: u64) -> Vec<u8> {
    disk(u8::try_from(image * 7 % 251).unwrap())
}

fn img(id: u64) -> String {
    format!("<SOURCE>vg-one-100/img-one-{id}</SOURCE>")
}

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn verbs_inside() {
    let here = Here::joined();
    let (h, meet, id, other) = (&here.h, &here.meet, here.id, 3 - here.id);
    std::fs::create_dir(h.at("var/datastores/102")).unwrap();
    let before = seqno();
    meet.at(3);
    let _ = std::fs::remove_file(h.at("history"));
    let rounds = if std::env::var("ONESDM_FULL").is_ok_and(|v| v == "1") { 12 } else { 1 };
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

/// Two machines at work on two new disks, the group's and the one by which they meet.
fn two(test: &'static str, killed: Option<u64>) -> [std::process::Output; 2] {
    let tmp = bed::scratch();
    let lun = vm::disk(tmp.path(), "lun", 2 << 30);
    let mail = vm::disk(tmp.path(), "mail", 64 << 10);
    let programs: Vec<PathBuf> =
        vec![bed::program(), "/usr/bin/qemu-img".into(), "/usr/sbin/mkfs.ext4".into()];
    let pid = tmp.path().join("pid");
    std::thread::scope(|scope| {
        let hosts = ["h1", "h2"].map(|name| {
            let mut c = vm::host(test, name, &[&lun, &mail], &programs);
            if name == "h1" {
                c.env("ONESDM_VM_PID", &pid);
            }
            scope.spawn(move || c.output().unwrap())
        });
        if let Some(step) = killed {
            let at = || {
                let bytes = std::fs::read(&mail).unwrap();
                u64::from_le_bytes(bytes[BLOCK..BLOCK + 8].try_into().unwrap())
            };
            while at() < step && !hosts.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                std::thread::sleep(Duration::from_millis(50));
            }
            if at() >= step {
                let pid = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
                let pid = rustix::process::Pid::from_raw(pid).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
        hosts.map(|h| h.join().unwrap())
    })
}

fn said(out: &std::process::Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn two_hosts_at_work_on_one_group_lose_nothing() {
    let outs = two("lvmhosts::verbs_inside", None);
    let texts = outs.map(|out| (out.status.success() && said(&out).contains("1 passed"), said(&out)));
    for (ok, said) in &texts {
        println!("{said}\n=======");
        assert!(ok, "see above");
    }
    let all = texts.map(|t| t.1);
    let lines = |key: &str| -> Vec<&str> {
        all.iter().flat_map(|t| t.lines()).filter_map(|l| l.strip_prefix(key)).collect()
    };
    let numbers: Vec<u64> = lines("number: ")[0].split(' ').map(|n| n.parse().unwrap()).collect();
    let (holdings, changes) = history::check(&lines("history: ").join("\n"), numbers[0], numbers[1]).unwrap();
    println!("{holdings} holdings, {changes} changes, {} commits of the group", numbers[1] - numbers[0]);
    assert!(changes > 40, "{changes}");
}

/// The steps of a verb that write to the records, by their numbers.
fn writes(h: &Host, verb: &str, image: &str) -> Vec<u64> {
    let log = h.at("steps");
    let env = [("ONESDM_TEST_LOG", log.to_str().unwrap())];
    let out = h.start(verb, &h.message(image), &env).wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = std::fs::read_to_string(&log).unwrap();
    let ours = text.lines().filter(|l| l.ends_with("/sdm-meta"));
    ours.map(|l| l.split('\t').next().unwrap().parse().unwrap()).collect()
}

/// Starts a verb that stands still before this step.
#[expect(clippy::zombie_processes, reason = "its machine ends with it")]
fn stopped(h: &Host, verb: &str, image: &str, step: u64) {
    let mut child = h.start(verb, &h.message(image), &[("ONESDM_TEST_STOP", &step.to_string())]);
    let began = Instant::now();
    loop {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        if stat.rsplit_once(") ").unwrap().1.starts_with('T') {
            return;
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
    let steps = writes(h, "cp", &cp(3));
    assert_eq!(steps.len(), 7, "{steps:?}");
    h.ok("rm", &img(3));
    // Records are written with the lock: the step before is the last without it.
    stopped(h, "cp", &cp(4), steps[3] - 1);
    stopped(h, "cp", &cp(5), steps[5]);
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
    let [first, second] = two("lvmhosts::take_over_inside", Some(7)).map(|o| (o.status.code(), said(&o)));
    println!(
        "{}
=======
{}",
        first.1, second.1
    );
    assert!(first.0 == Some(125) && second.0 == Some(0) && second.1.contains("1 passed"), "see above");
}
