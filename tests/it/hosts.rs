//! The bed of hosts (tests/bed/hosts) as the suite uses it, and what it promises.

use crate::bed;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// A front-end and hosts. They go when this value goes, or the test process does.
pub struct Cloud {
    dir: PathBuf,
    bed: Child,
    /// Runs the bed's commands: a thread that is on a host cannot.
    commands: mpsc::Sender<(Vec<String>, mpsc::Sender<Output>)>,
    _tmp: tempfile::TempDir,
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/hosts")
}

impl Cloud {
    pub fn up(options: &[&str], hosts: &[&str]) -> Cloud {
        let tmp = bed::scratch();
        let dir = tmp.path().join("cloud");
        // The program is one and the same file on all of them.
        let shared = bed::program().parent().unwrap().to_owned();
        let mut command = Command::new(script());
        command.args(["up", "-f", "-s"]).arg(shared).args(options).args(hosts).env("ONESDM_BED", &dir);
        let mut bed = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(bed.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "the bed of hosts needs root and the packages of packaging/need test");
        let (commands, asked) = mpsc::channel::<(Vec<String>, mpsc::Sender<Output>)>();
        let own = dir.clone();
        std::thread::spawn(move || {
            for (args, answer) in asked {
                // Several at once: some wait for what others do.
                let mut command = Command::new(script());
                command.args(args).env("ONESDM_BED", &own);
                std::thread::spawn(move || answer.send(command.output().unwrap()));
            }
        });
        Cloud { dir, bed, commands, _tmp: tmp }
    }

    /// A cloud whose hosts have the program where packages put it by hand.
    pub fn with_agents(hosts: &[&str]) -> Cloud {
        let cloud = Cloud::up(&[], hosts);
        for host in hosts {
            cloud.place_agent(host, "");
        }
        cloud
    }

    /// `/usr/local/bin/onesdm` on a host: the program, with further arguments for `onesdm agent`.
    pub fn place_agent(&self, host: &str, args: &str) {
        let text = format!("#!/bin/sh\nexec {} \"$@\" {args}\n", bed::program().display());
        self.place_script(host, &text);
    }

    pub fn place_script(&self, host: &str, text: &str) {
        self.write(host, "/usr/local/bin/onesdm", text);
        self.on(host, &["chmod", "755", "/usr/local/bin/onesdm"]);
    }

    /// A command of the bed.
    pub fn hosts(&self, args: &[&str]) -> Output {
        let (answer, answers) = mpsc::channel();
        self.commands.send((args.iter().map(|a| (*a).to_owned()).collect(), answer)).unwrap();
        answers.recv().unwrap()
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.hosts(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim_end().to_owned()
    }

    /// Runs a command as root on a host, which must work.
    #[track_caller]
    pub fn on(&self, host: &str, command: &[&str]) -> String {
        self.ok(&[&["exec", host], command].concat())
    }

    /// The host's init, as this machine sees it.
    fn pid(&self, host: &str) -> Pid {
        let text = std::fs::read_to_string(self.dir.join(format!("{host}.pid"))).unwrap();
        Pid::from_raw(text.trim().parse().unwrap()).unwrap()
    }

    /// A command on a host, to be run by whoever is on none: no shell in between.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.pid(host).as_raw_nonzero().to_string();
        command.args(["-t", &pid, "-m", "-u", "-i", "-n", "-p", "--wd=/", "--"]);
        // Of `packaging/coverage`: an environment that is to be empty has that in it, too.
        let (head, words) = words.split_at(if words.starts_with(&["env", "-i"]) { 2 } else { 0 });
        let file = std::env::var("LLVM_PROFILE_FILE").ok().filter(|_| !head.is_empty());
        command.args(head).args(file.map(|f| format!("LLVM_PROFILE_FILE={f}"))).args(words);
        command.stdin(Stdio::null());
        command
    }

    pub fn write(&self, host: &str, path: &str, text: &str) {
        self.inside(host, || {
            std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        });
    }

    /// A file's content; empty when there is none.
    pub fn read(&self, host: &str, path: &str) -> String {
        self.inside(host, || std::fs::read_to_string(path).unwrap_or_default())
    }

    /// Sessions that a host's ssh server has granted.
    pub fn logins(&self, host: &str) -> usize {
        let log = self.dir.join("data").join(host).join("sshd.log");
        self.read(host, log.to_str().unwrap()).matches("Accepted publickey").count()
    }

    /// Runs code of the test on a host: in its network, mounts and name, on a thread of its own.
    #[expect(unsafe_code, reason = "entering namespaces")]
    pub fn inside<T: Send>(&self, host: &str, f: impl FnOnce() -> T + Send) -> T {
        let fd = pidfd_open(self.pid(host), PidfdFlags::empty()).unwrap();
        std::thread::scope(|s| {
            let run = s.spawn(|| {
                // SAFETY: this thread's own working directory and root; no descriptor is touched.
                unsafe { unshare_unsafe(UnshareFlags::FS) }.unwrap();
                let all = ThreadNameSpaceType::NETWORK
                    | ThreadNameSpaceType::MOUNT
                    | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME;
                move_into_thread_name_spaces(std::os::fd::AsFd::as_fd(&fd), all).unwrap();
                f()
            });
            run.join().unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        let _ = self.bed.kill();
        let _ = self.bed.wait();
    }
}

/// Waits for what must come.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut is: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const SOON: Duration = Duration::from_secs(20);

#[test]
fn hosts_are_machines_of_their_own() {
    let begin = Instant::now();
    let cloud = Cloud::up(&[], &["h1", "h2"]);
    println!("front-end and two hosts up in {} ms", begin.elapsed().as_millis());
    let all = ["fe", "h1", "h2"];
    for file in ["/etc/machine-id", "/proc/sys/kernel/random/boot_id", "/etc/hostname"] {
        let mut seen: Vec<_> = all.iter().map(|h| cloud.read(h, file)).collect();
        seen.sort();
        seen.dedup();
        assert!(seen.len() == 3 && !seen.contains(&String::new()), "{file}: {seen:?}");
    }
    for host in all {
        cloud.write(host, &format!("/var/lib/one/datastores/{host}"), "");
        assert_eq!(cloud.on(host, &["ls", "/var/lib/one/datastores"]), host);
        assert_eq!(cloud.on(host, &["ls", "/tmp", "/root"]).matches("onesdm-test").count(), 0);
    }
    assert_eq!(cloud.on("fe", &["ssh", "h1", "hostname"]), "h1");
    assert_eq!(cloud.on("h1", &["ssh", "h2", "hostname"]), "h2");
    assert!(!Path::new("/var/lib/one/datastores/h1").exists(), "this machine is left alone");
}

#[test]
fn hosts_crash_boot_and_lose_their_network() {
    let cloud = Cloud::up(&[], &["h1"]);
    let boot = cloud.read("h1", "/proc/sys/kernel/random/boot_id");
    cloud.write("h1", "/var/lib/one/kept", "x");
    let reach = || {
        let args = ["exec", "fe", "ssh", "-o", "ConnectTimeout=1", "h1", "cat", "/var/lib/one/kept"];
        cloud.hosts(&args).stdout == b"x"
    };
    assert!(reach());
    cloud.ok(&["crash", "h1"]);
    assert!(!reach() && !cloud.hosts(&["exec", "h1", "true"]).status.success());
    cloud.ok(&["boot", "h1"]);
    assert!(reach());
    assert_ne!(cloud.read("h1", "/proc/sys/kernel/random/boot_id"), boot);
    cloud.ok(&["cut", "h1"]);
    assert!(!reach());
    assert_eq!(cloud.read("h1", "/var/lib/one/kept"), "x", "the host lives");
    cloud.ok(&["heal", "h1"]);
    assert!(reach());
}

#[test]
fn a_shared_directory_and_an_account_of_ones_own() {
    let cloud = Cloud::up(&["-u", "oneadmin", "-s", "/var/lib/one/datastores/0"], &["h1"]);
    let asks = ["setpriv", "--reuid=oneadmin", "--regid=oneadmin", "--clear-groups", "ssh", "h1"];
    assert_eq!(cloud.on("fe", &[&asks[..], &["id", "-un"]].concat()), "oneadmin");
    cloud.on("fe", &[&asks[..], &["touch", "/var/lib/one/datastores/0/x"]].concat());
    assert_eq!(cloud.on("fe", &["ls", "/var/lib/one/datastores/0"]), "x");
    let other = Cloud::up(&[], &["h1"]);
    assert_eq!(other.on("h1", &["ls", "-A", "/var/lib/one/datastores"]), "", "two beds do not meet");
}

#[test]
fn a_bed_leaves_nothing_however_it_ends() {
    let alive = |pid: i32| rustix::process::test_kill_process(Pid::from_raw(pid).unwrap()).is_ok();
    // Dropped, its keeper killed, its init killed, its input ended.
    for end in 0..4 {
        let mut cloud = Cloud::up(&[], &["h1"]);
        let pids: Vec<i32> = ["fe", "h1"].map(|h| cloud.ok(&["pid", h]).parse().unwrap()).into();
        let init: i32 = std::fs::read_to_string(cloud.dir.join("bed.pid")).unwrap().trim().parse().unwrap();
        let dir = cloud.dir.clone();
        match end {
            0 => {}
            1 => cloud.bed.kill().unwrap(),
            2 => kill_process(Pid::from_raw(init).unwrap(), Signal::KILL).unwrap(),
            _ => drop(cloud.bed.stdin.take()),
        }
        if end > 0 {
            eventually("all processes gone", SOON, || {
                pids.iter().all(|p| !alive(*p)) && !alive(init) || {
                    let _ = cloud.bed.try_wait();
                    false
                }
            });
            assert_eq!(bed::names(&dir.join("data")), Vec::<String>::new(), "what it wrote was in memory");
        }
        drop(cloud);
        eventually("all processes gone", SOON, || pids.iter().all(|p| !alive(*p)) && !alive(init));
        assert!(!dir.exists());
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
        assert!(!mounts.contains(dir.to_str().unwrap()));
    }
}
