//! Hosts as sanlock sees them (tests/bed/sanlock), and processes on them that take leases.

use crate::bed::{self, Bed, Call};
use crate::fsbed::{Fs, Kind};
use onesdm::lock::{self, Held, LeaseId, LockError, Mode};
use onesdm::sdm::Domain;
use onesdm::sys::{Cancel, Tool, Tools, tool::Run};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// What the tests' lockspaces have: with a clock ten times as fast a host is dead after ten seconds.
const SETTINGS: &str = "[sanlock]\nio_timeout = \"5s\"\nwithout_watchdog = true\n";

pub struct Hosts {
    dir: PathBuf,
    script: Child,
    _tmp: tempfile::TempDir,
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/sanlock"))
}

/// A bed on a real file system, and hosts. To be bound in this order: the hosts go first.
pub fn up(names: &[&str]) -> (Fs, Bed, Hosts) {
    let fs = Fs::new(Kind::Xfs, 512);
    let bed = Bed::on(&fs.stores());
    let toml = bed.root().join("onesdm.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(toml, text + SETTINGS).unwrap();
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("hosts");
    let mut script = script();
    script.args(["up", "-f"]).arg(&dir).args(names).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(script.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n", "sanlock and libfaketime are needed (packaging/need test)");
    (fs, bed, Hosts { dir, script, _tmp: tmp })
}

/// As `up`, with datastore 100 a domain that all hosts have joined.
pub fn joined(names: &[&str]) -> (Fs, Bed, Hosts, PathBuf) {
    let (fs, bed, hosts) = up(names);
    let store = bed.store(100);
    let dir = store.to_str().unwrap();
    hosts.onesdm(&bed, names[0], &["domain", "init", "--lock", "sanlock", dir]).run().answer().unwrap();
    std::thread::scope(|scope| {
        for (i, name) in names.iter().enumerate() {
            let id = (i + 1).to_string();
            let (bed, hosts) = (&bed, &hosts);
            scope.spawn(move || {
                let done = hosts.onesdm(bed, name, &["domain", "join", "--host-id", &id, dir]).run();
                assert_eq!(done.code, Some(0), "{}", done.err());
            });
        }
    });
    (fs, bed, hosts, store)
}

impl Hosts {
    fn run_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// `onesdm ARGS` on a host, by this machine's clock.
    pub fn onesdm<'a>(&self, bed: &'a Bed, host: &str, args: &[&str]) -> Call<'a> {
        bed.onesdm(args).env("SANLOCK_RUN_DIR", self.run_dir(host))
    }

    /// A verb as oned calls it, on a host.
    pub fn ds<'a>(&self, bed: &'a Bed, host: &str, verb: &str, id: u32, dump: &str) -> Call<'a> {
        bed.ds(verb, id, dump).env("SANLOCK_RUN_DIR", self.run_dir(host))
    }

    /// The same call by the host's clock.
    pub fn by_its_clock<'a>(&self, host: &str, call: Call<'a>) -> Call<'a> {
        let env = script().arg("run").arg(&self.dir).arg(host).arg("env").output().unwrap().stdout;
        let env = String::from_utf8(env).unwrap();
        let clock = env.lines().filter_map(|l| l.split_once('='));
        let clock = clock.filter(|(k, _)| *k == "LD_PRELOAD" || k.starts_with("FAKETIME"));
        clock.fold(call, |c, (k, v)| c.env(k, v))
    }

    /// A command of the bed: `kill`, `start`, `stop`, `cont`.
    pub fn tell(&self, verb: &str, host: &str) {
        assert!(script().arg(verb).arg(&self.dir).arg(host).status().unwrap().success(), "{verb} {host}");
    }

    /// A process on a host, by the host's clock, that does what `on_a_host` knows.
    pub fn process(&self, host: &str, what: &str, store: &Path) -> Process {
        let mut command = script();
        command.arg("run").arg(&self.dir).arg(host).arg(std::env::current_exe().unwrap());
        Self::start(command, what, store)
    }

    /// The same by this machine's clock: its own patience is ten times the daemon's.
    pub fn patient_process(&self, host: &str, what: &str, store: &Path) -> Process {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env("SANLOCK_RUN_DIR", self.run_dir(host));
        Self::start(command, what, store)
    }

    fn start(mut command: Command, what: &str, store: &Path) -> Process {
        command.args(["--exact", "--ignored", "--nocapture", "sanhosts::on_a_host"]);
        command.env("ONESDM_TEST_HOST", what).env("ONESDM_TEST_STORE", store);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Process { child, lines }
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// A process of the suite on a host.
pub struct Process {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    /// The next thing it says; empty when it ended.
    pub fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).unwrap() == 0 {
                return String::new();
            }
            // The test runner begins a line of its own without ending it.
            if let Some((_, said)) = line.split_once("> ") {
                return said.trim().to_owned();
            }
        }
    }

    /// Lets it go on.
    pub fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its exit status, negative for a signal, and how long that took.
    pub fn ends(&mut self) -> (i32, Duration) {
        let began = Instant::now();
        loop {
            // Not `wait`, which would end its standard input.
            if let Some(status) = self.child.try_wait().unwrap() {
                let code = status.code().unwrap_or_else(|| -status.signal().unwrap());
                return (code, began.elapsed());
            }
            assert!(began.elapsed() < Duration::from_secs(60), "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(text: &str) {
    println!("> {text}");
}

fn wait_for_word() {
    let _ = std::io::stdin().read_line(&mut String::new());
}

fn lease(name: &str) -> LeaseId {
    match name {
        "domain" => LeaseId::Domain,
        name => LeaseId::Slab(name.to_owned()),
    }
}

/// What a process of `Hosts::process` does: the words of `ONESDM_TEST_HOST`.
#[test]
#[ignore = "the other half of the tests of sanlock"]
fn on_a_host() {
    let words = std::env::var("ONESDM_TEST_HOST").unwrap();
    let words: Vec<&str> = words.split(' ').collect();
    let store = PathBuf::from(std::env::var_os("ONESDM_TEST_STORE").unwrap());
    let open = || Domain::open_dir(&store).unwrap();
    let mode = |s: &str| if s == "shared" { Mode::Shared } else { Mode::Exclusive };
    match words[..] {
        ["conformance"] => {
            lock::conformance::run(&|| open().locks);
            say("conforms");
        }
        // Takes a lease, waits for a word, gives it back.
        ["hold", name, how] => {
            let d = open();
            let held = d.locks.try_acquire(&lease(name), mode(how)).unwrap();
            say(&format!("held {}", held.token().unwrap().unwrap().version));
            wait_for_word();
            say(&held.still_held().map_or_else(|e| e.to_string(), |()| "still held".to_owned()));
            drop(held);
            say("given back");
        }
        ["try", name, how] => {
            let r = open().locks.try_acquire(&lease(name), mode(how));
            say(match &r {
                Ok(_) => "held",
                Err(LockError::Busy(_)) => "busy",
                Err(LockError::Dying { .. }) => "dying",
                Err(e) => panic!("{e}"),
            });
        }
        // A change of the group that takes its time, made under the domain's lock.
        ["slow"] => {
            let d = open();
            let cancel = Cancel::default();
            let lock = lock::domain_lock(&*d.locks, Duration::ZERO, &cancel).unwrap();
            say("held");
            let tools = Tools::new([(Tool::LvRename, "/usr/bin/sleep".into())].into()).unwrap();
            let run = Run { hold: lock.fd(), ..Run::new(Duration::from_secs(60), &cancel) };
            tools.run(Tool::LvRename, &["3.21".as_ref()], run).unwrap();
            say("done");
        }
        // Whether that life of a host is known to be over.
        ["over", id, generation] => {
            let locks = open().sanlock().unwrap().unwrap();
            let over = locks.is_over(id.parse().unwrap(), generation.parse().unwrap()).unwrap();
            say(if over { "over" } else { "not over" });
        }
        // Waits as a verb does.
        ["wait", name] => {
            let (d, wait) = (open(), Duration::from_secs(120));
            let got = lock::slab_leases(&*d.locks, &[(name, Mode::Exclusive)], wait, &Cancel::default());
            say(&got.map_or_else(|e| e.to_string(), |_| "held".to_owned()));
        }
        // Many leases at once, more than there are places at first.
        ["many", n] => {
            let d = open();
            let take = |i| d.locks.try_acquire(&lease(&format!("image-{i}")), Mode::Exclusive).unwrap();
            let held: Vec<Box<dyn Held>> = (0..n.parse::<u32>().unwrap()).map(take).collect();
            let all = d.locks.holders().unwrap().unwrap();
            assert_eq!(all.len(), held.len(), "{all:?}");
            say("held");
            wait_for_word();
        }
        // A data path: a child that has the lease's descriptor and would run for ever.
        ["child"] => {
            let d = open();
            let owner = lock::owner_lease(&*d.locks, lock::JobId::generate()).unwrap();
            d.engine.begin(&owner).unwrap();
            say("held");
            let tools = Tools::new([(Tool::QemuImg, "/usr/bin/sleep".into())].into()).unwrap();
            let cancel = Cancel::default();
            let inherit: Vec<_> = owner.fd().into_iter().collect();
            let run = Run { inherit: &inherit, ..Run::new(Duration::from_secs(6000), &cancel) };
            let _ = tools.run(Tool::QemuImg, &["654.321".as_ref()], run);
            unreachable!("the child ended before its parent");
        }
        _ => panic!("{words:?}"),
    }
}

/// Processes that run the endless child of `on_a_host`.
pub fn children() -> Vec<String> {
    bed::processes(|line| line.contains("/usr/bin/sleep 654.321"))
}
