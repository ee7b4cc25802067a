//! Several hosts on one volume group, each a micro-VM with a kernel, a sanlock daemon and an account of its own;
//! they share a disk, and another one by which they wait for each other.

use crate::lvmverbs::{GROUP, Host, disk, root, volumes};
use crate::{bed, history, vm};
use onesdm::sys::direct::{BLOCK, Direct};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, kill_process};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

pub const PLACE: &str = "/dev/vg-one-100";
/// With the daemons' clocks ten times as fast a host joins in two seconds and is dead after fourteen.
const SETTINGS: &str = "[sanlock]\nio_timeout = \"10s\"\nwithout_watchdog = true\n[lock]\nwait = \"90s\"\n";

/// Past all steps.
const FAILED: u64 = u64::MAX;
/// Steps of the first machine's second life are this higher, and so on.
pub const LIFE: u64 = 10_000;

/// How far each of the machines is.
pub struct Meeting {
    disk: Direct,
    id: u64,
    /// How many there are.
    hosts: u64,
}

impl Meeting {
    /// Of the first machine when it dies again and again: which of its lives this is, as the second one counts them.
    pub fn life(&self) -> u64 {
        self.of(2) / LIFE
    }

    pub fn of(&self, id: u64) -> u64 {
        let block = self.disk.read(id * BLOCK as u64, BLOCK).unwrap();
        u64::from_le_bytes(block[..8].try_into().unwrap())
    }

    pub fn say(&self, step: u64) {
        let mut block = step.to_le_bytes().to_vec();
        block.resize(BLOCK, 0);
        self.disk.write(self.id * BLOCK as u64, &block).unwrap();
    }

    /// Until all others are there.
    pub fn wait(&self, step: u64) {
        let began = Instant::now();
        for other in (1..=self.hosts).filter(|h| *h != self.id) {
            while self.of(other) < step {
                assert!(began.elapsed() < Duration::from_secs(600), "host {other} does not get to {step}");
                std::thread::sleep(Duration::from_millis(50));
            }
            assert!(self.of(other) != FAILED, "host {other} failed");
        }
    }

    pub fn at(&self, step: u64) {
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

pub fn seqno() -> u64 {
    root(&["lvs", "--noheadings", "-o", "vg_seqno", &format!("{GROUP}/sdm-meta")]).trim().parse().unwrap()
}

/// Whether this machine is reset when it loses its leases.
pub fn watched() -> bool {
    Path::new("/tmp/watched").exists()
}

/// This machine, a member of the domain on the group.
pub struct Here {
    pub h: Host,
    pub meet: Meeting,
    pub id: u64,
}

impl Here {
    pub fn joined() -> Here {
        Here::joined_at(Host::new())
    }

    pub fn joined_at(h: Host) -> Here {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let id: u64 = name.trim().strip_prefix('h').unwrap().parse().unwrap();
        let disk = Direct::open_device(Path::new("/dev/vdb")).unwrap();
        let hosts = disk.size().unwrap() / BLOCK as u64 - 1;
        let meet = Meeting { disk, id, hosts };
        let toml = h.at("etc/onesdm.toml");
        std::fs::write(&toml, std::fs::read_to_string(&toml).unwrap() + SETTINGS).unwrap();
        let here = Here { h, meet, id };
        here.join();
        here
    }

    fn join(&self) {
        let h = &self.h;
        if self.id == 1 && self.meet.life() == 0 {
            root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
            let init = ["domain", "init", "--lock", "sanlock", PLACE];
            let watched = watched();
            let dog = [&["--set", "sanlock.without_watchdog=false"][..], &init].concat();
            let (status, text) = h.own(&dog);
            assert!(watched || status == 10 && text.contains("without a watchdog"), "{status} {text}");
            for _ in 0..2 {
                let (status, text) = h.own(&init);
                assert!(status == 0 && (watched || text.contains("WARN: domain: ")), "{status} {text}");
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
        assert!(
            text.contains("ok    membership") && (watched() || text.contains("warn  watchdog")),
            "{text}"
        );
        self.meet.at(2);
    }

    /// A VM's document: a copy of one image, and another image itself.
    pub fn vm(&self, copy: u64, own: u64) -> (u64, String) {
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
    pub fn tm(&self, vm: &(u64, String), verb: &str, args: &[&str]) -> String {
        let (status, text) = self.h.tm_of((vm.0, &vm.1), verb, args);
        assert_eq!(status, 0, "{verb} {args:?}: {text}");
        println!("{verb} {args:?} {text}");
        text
    }

    pub fn source(&self, file: &str, bytes: &[u8]) {
        std::fs::write(self.h.at("images").join(file), bytes).unwrap();
    }
}

pub fn seed(image: u64) -> Vec<u8> {
    disk(u8::try_from(image * 7 % 251).unwrap())
}

pub fn img(id: u64) -> String {
    format!("<SOURCE>vg-one-100/img-one-{id}</SOURCE>")
}

/// What happens to the first machine, when it says that it is so far.
#[derive(Clone, Copy)]
pub enum Blow {
    /// A power loss, so many times: it is started again when the second one is so many lives further.
    Kill(u64, u64),
    /// It stands still until the second one is so far.
    Pause(u64, u64),
    /// The same, and its watchdog runs.
    Reset(u64, u64),
}

/// Machines at work on two new disks, the group's and the one by which they meet.
pub fn hosts<const N: usize>(
    test: &'static str,
    names: [&'static str; N],
    blow: Option<Blow>,
) -> [Output; N] {
    machines(test, names, blow, false)
}

/// The same of two that have a network, each with an ssh server.
pub fn network(test: &'static str, blow: Option<Blow>) -> [Output; 2] {
    machines(test, ["h1", "h2"], blow, true)
}

fn machines<const N: usize>(
    test: &'static str,
    names: [&'static str; N],
    blow: Option<Blow>,
    networked: bool,
) -> [Output; N] {
    let tmp = bed::scratch();
    let keys = networked.then(|| vm::Keys::new(tmp.path()));
    // Whoever is started has both ends.
    let (kind, flags) = (SocketType::DGRAM, SocketFlags::empty());
    let wire = socketpair(AddressFamily::UNIX, kind, flags, None).unwrap();
    let lun = vm::disk(tmp.path(), "lun", 2 << 30);
    let mail = vm::disk(tmp.path(), "mail", (BLOCK * (N + 1)) as u64);
    let tools = ["/usr/bin/qemu-img", "/usr/sbin/mkfs.ext4", "/usr/sbin/mkswap"].map(PathBuf::from);
    let programs = [&[bed::program()][..], &tools].concat();
    let (pid, watched) = (tmp.path().join("pid"), matches!(blow, Some(Blow::Reset(..))));
    std::thread::scope(|scope| {
        let start = |name| {
            let disks: [&Path; 2] = [&lun, &mail];
            let end = if name == names[0] { &wire.0 } else { &wire.1 };
            let mut c = match &keys {
                Some(keys) => vm::networked(test, name, (&disks, &programs), (end.as_raw_fd(), keys)),
                None => vm::host(test, name, &disks, &programs, watched),
            };
            if name == names[0] {
                c.env("ONESDM_VM_PID", &pid);
            }
            scope.spawn(move || c.output().unwrap())
        };
        let mut hosts = names.map(start);
        let reached = |hosts: &[ScopedJoinHandle<'_, Output>], host: usize, step: u64| {
            let at = || {
                let bytes = std::fs::read(&mail).unwrap();
                u64::from_le_bytes(bytes[host * BLOCK..host * BLOCK + 8].try_into().unwrap())
            };
            while at() < step && !hosts[host - 1].is_finished() {
                std::thread::sleep(Duration::from_millis(50));
            }
            (step..FAILED).contains(&at())
        };
        match blow {
            Some(Blow::Kill(step, lives)) => {
                for life in 0..lives {
                    if !reached(&hosts, 1, life * LIFE + step) {
                        break;
                    }
                    strike(&pid, Signal::KILL);
                    if life + 1 < lives && reached(&hosts, 2, (life + 1) * LIFE) {
                        let before = std::mem::replace(&mut hosts[0], start(names[0]));
                        println!("{}", said(&before.join().unwrap()));
                    }
                }
            }
            Some(Blow::Pause(step, until) | Blow::Reset(step, until)) if reached(&hosts, 1, step) => {
                strike(&pid, Signal::STOP);
                reached(&hosts, 2, until);
                strike(&pid, Signal::CONT);
            }
            _ => {}
        }
        hosts.map(|h| h.join().unwrap())
    })
}

/// The machine is a process, or the only child of one.
fn strike(pid: &Path, signal: Signal) {
    let pid: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let pid = children.split_whitespace().next().map_or(pid, |child| child.parse().unwrap());
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

pub fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// What they said, when all went well.
pub fn passed<const N: usize>(outs: [Output; N]) -> [String; N] {
    let well = outs.iter().all(|out| out.status.success() && said(out).contains("1 passed"));
    let texts = outs.map(|out| said(&out));
    println!("{}", texts.join("\n=======\n"));
    assert!(well, "see above");
    texts
}

/// Puts together what they wrote down of the lock; how many changes there were under it.
pub fn changes(texts: &[String]) -> usize {
    let lines = |key: &str| -> Vec<&str> {
        texts.iter().flat_map(|t| t.lines()).filter_map(|l| l.strip_prefix(key)).collect()
    };
    let numbers: Vec<u64> = lines("number: ")[0].split(' ').map(|n| n.parse().unwrap()).collect();
    let (holdings, changes) = history::check(&lines("history: ").join("\n"), numbers[0], numbers[1]).unwrap();
    println!("{holdings} holdings, {changes} changes, {} commits of the group", numbers[1] - numbers[0]);
    changes
}
