//! A test bed: a front-end's directories in a temporary place, a remotes tree of symlinks to the built
//! program, calls made the way oned makes them, and the leak gates, which run when the bed goes.

use crate::oned::{self, Heard};
use base64::Engine as _;
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Verbs of the datastore role that do work, then those that answer "not supported yet".
pub const VERBS: [&str; 10] =
    ["cp", "mkfs", "rm", "stat", "clone", "monitor", "export", "snap_delete", "snap_revert", "snap_flatten"];
pub const LATER: [&str; 5] = ["restore", "backup", "backup_cancel", "ls", "increment_flatten"];

pub struct Bed {
    root: PathBuf,
    /// Where datastores lie: below `root`, or on a file system mounted for the test.
    stores: PathBuf,
    _tmp: tempfile::TempDir,
}

/// The program under test: the one cargo built, or one named by hand.
pub fn program() -> PathBuf {
    std::env::var_os("ONESDM_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_onesdm").into(), Into::into)
}

/// A temporary directory in memory where there is one: a suite of thousands of calls should wait for
/// no disk.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("onesdm-test-").tempdir_in(base).unwrap()
}

impl Bed {
    pub fn new() -> Bed {
        let tmp = scratch();
        let stores = tmp.path().join("var/datastores");
        Bed::at(tmp, stores)
    }

    /// A bed whose datastores lie in `stores`, on another file system.
    pub fn on(stores: &Path) -> Bed {
        Bed::at(scratch(), stores.to_owned())
    }

    fn at(tmp: tempfile::TempDir, stores: PathBuf) -> Bed {
        let root = tmp.path().canonicalize().unwrap();
        // Others may enter: a verb acts as the owner of the datastore.
        chmod(&root, 0o755);
        for dir in ["var", "etc", "run", "state", "log", "images", "home", "tmp"] {
            std::fs::create_dir(root.join(dir)).unwrap();
        }
        std::fs::create_dir_all(&stores).unwrap();
        let paths: String = ["var", "etc", "run", "state", "log"]
            .map(|k| format!("{k} = {:?}\n", root.join(k).to_str().unwrap()))
            .concat();
        std::fs::write(root.join("onesdm.toml"), format!("[paths]\n{paths}")).unwrap();
        let bed = Bed { stores: stores.canonicalize().unwrap(), root, _tmp: tmp };
        for driver in ["fs", "sdm"] {
            std::fs::create_dir_all(bed.remotes().join("datastore").join(driver)).unwrap();
            for verb in VERBS.iter().chain(&LATER) {
                bed.link(driver, verb, &program());
            }
        }
        bed
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn remotes(&self) -> PathBuf {
        self.root.join("var/remotes")
    }
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
    /// `BASE_PATH` of a datastore as oned writes it, double slash included.
    pub fn base_path(&self, id: u32) -> String {
        format!(
            "{}//{}/{id}",
            self.stores.parent().unwrap().display(),
            self.stores.file_name().unwrap().display()
        )
    }
    pub fn store_path(&self, id: u32) -> PathBuf {
        self.stores.join(id.to_string())
    }
    /// The datastore's directory, made as oned's administrator makes it.
    pub fn store(&self, id: u32) -> PathBuf {
        let dir = self.store_path(id);
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            chmod(&dir, 0o750);
        }
        dir
    }

    /// Makes `remotes/datastore/<driver>/<verb>` a link to `target`, replacing what was there.
    pub fn link(&self, driver: &str, verb: &str, target: &Path) {
        let link = self.remotes().join("datastore").join(driver).join(verb);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, link).unwrap();
    }

    /// `remotes/datastore/<driver>/<verb>`, to be given its arguments.
    pub fn verb(&self, driver: &str, verb: &str) -> Call<'_> {
        let program = self.remotes().join("datastore").join(driver).join(verb);
        Call::new(self, verb, program)
    }

    /// The call oned makes for image or datastore `id`: the dump in base64 on stdin.
    pub fn ds(&self, verb: &str, id: u32, dump: &str) -> Call<'_> {
        self.verb("fs", verb).arg(id.to_string()).stdin(base64(dump))
    }

    /// `onesdm ARGS…`, as a person types it.
    pub fn onesdm(&self, args: &[&str]) -> Call<'_> {
        let noun = args.first().copied().unwrap_or("onesdm");
        let mut call = Call::new(self, noun, program());
        call.args = args.iter().map(Into::into).collect();
        call
    }

    /// The leak gates. They run by themselves when the bed is dropped.
    fn leaks(&self) -> Vec<String> {
        let mut found = Vec::new();
        for dir in ["tmp", "home"] {
            let left = names(&self.root.join(dir));
            if !left.is_empty() {
                found.push(format!("left in {dir}: {left:?}"));
            }
        }
        let ours = |text: &str| [&self.root, &self.stores].iter().any(|d| text.contains(d.to_str().unwrap()));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            if ours(point) && Path::new(point) != self.stores {
                found.push(format!("mounted: {line}"));
            }
        }
        for dev in names(Path::new("/sys/block")) {
            let file = std::fs::read_to_string(format!("/sys/block/{dev}/loop/backing_file"));
            if file.is_ok_and(|f| f.contains(self.root.to_str().unwrap())) {
                found.push(format!("loop device {dev}"));
            }
        }
        found.extend(processes(|line| ours(line)).into_iter().map(|p| format!("process: {p}")));
        found
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut left = self.leaks();
        for _ in 0..20 {
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50)); // the kernel may still be reaping
            left = self.leaks();
        }
        panic!("the bed is not clean: {left:#?}");
    }
}

/// Processes other than this one whose working directory, arguments or open files satisfy `hit`.
fn processes(hit: impl Fn(&str) -> bool) -> Vec<String> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|n| n.parse::<u32>().is_ok() && *n != me) {
        let dir = Path::new("/proc").join(&pid);
        let args = std::fs::read(dir.join("cmdline")).unwrap_or_default();
        let args = String::from_utf8_lossy(&args).replace('\0', " ");
        let fds = names(&dir.join("fd")).into_iter().map(|f| dir.join("fd").join(f));
        let links = fds.chain([dir.join("cwd"), dir.join("exe")]).filter_map(|l| std::fs::read_link(l).ok());
        if let Some(why) = links.map(|l| l.display().to_string()).chain([args.clone()]).find(|l| hit(l)) {
            found.push(format!("{pid} {args}({why})"));
        }
    }
    found
}

/// Names in a directory, sorted; none when it cannot be read.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn base64(text: impl AsRef<[u8]>) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.encode(text).into_bytes()
}

/// Runs a tool of the bed itself and insists that it works.
pub fn tool(program: &str, args: &[&OsStr]) -> String {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("the suite needs {program}: {e} (packaging/setup installs it)"));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {}: {err}", out.status);
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A call being put together.
pub struct Call<'a> {
    bed: &'a Bed,
    verb: String,
    program: PathBuf,
    under: Vec<OsString>,
    args: Vec<OsString>,
    stdin: Vec<u8>,
    env: Vec<(OsString, OsString)>,
    deadline: Duration,
}

impl<'a> Call<'a> {
    fn new(bed: &'a Bed, verb: &str, program: PathBuf) -> Call<'a> {
        let (under, args, stdin, env) = (vec![], vec![], vec![], vec![]);
        Call { bed, verb: verb.into(), program, under, args, stdin, env, deadline: Duration::from_secs(60) }
    }
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.into(), value.as_ref().to_owned()));
        self
    }
    /// Runs the program under another: `strace …`.
    pub fn under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(Into::into).collect();
        self
    }

    /// Starts it as oned does: in `$VAR`, in its own process group, stdin a pipe, the environment cleared.
    pub fn start(self) -> Running {
        let mut words = self.under.clone();
        words.push(self.program.clone().into());
        words.extend(self.args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).process_group(0).current_dir(self.bed.root.join("var")).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.bed.root.join("home"));
        command
            .env("ONESDM_CONFIG", self.bed.root.join("onesdm.toml"))
            .env("TMPDIR", self.bed.root.join("tmp"));
        command.envs(self.env);
        let began = Instant::now();
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {words:?}: {e}"));
        let (mut pipe, bytes) = (child.stdin.take().unwrap(), self.stdin);
        // A driver need not read its stdin: a broken pipe is its right.
        let stdin = std::thread::spawn(move || drop(pipe.write_all(&bytes)));
        let stdout = drain(child.stdout.take().unwrap());
        let stderr = drain(child.stderr.take().unwrap());
        Running { child, began, verb: self.verb, stdin, stdout, stderr, deadline: self.deadline }
    }

    pub fn run(self) -> Done {
        self.start().wait()
    }
}

fn drain(mut pipe: impl std::io::Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.by_ref().take(64 << 20).read_to_end(&mut bytes);
        bytes
    })
}

/// A call under way.
pub struct Running {
    child: Child,
    began: Instant,
    verb: String,
    stdin: JoinHandle<()>,
    stdout: JoinHandle<Vec<u8>>,
    stderr: JoinHandle<Vec<u8>>,
    deadline: Duration,
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
    /// To the whole process group, as oned's time limit does.
    pub fn signal(&self, signal: Signal) {
        let _ = rustix::process::kill_process_group(self.pid(), signal);
    }
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn wait(mut self) -> Done {
        let group = self.pid();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if self.began.elapsed() > self.deadline {
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                panic!("{} did not end within {:?}", self.verb, self.deadline);
            }
            std::thread::sleep(Duration::from_micros(500));
        };
        let took = self.began.elapsed();
        // Nothing of it may outlive it by more than the time the kernel needs.
        let patience = Instant::now() + Duration::from_secs(3);
        while rustix::process::test_kill_process_group(group).is_ok() {
            if Instant::now() > patience {
                let left = processes(|_| true);
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                panic!("{} left processes in its group: {left:#?}", self.verb);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stdin.join().unwrap();
        let (stdout, stderr) = (self.stdout.join().unwrap(), self.stderr.join().unwrap());
        let heard = oned::hear(status.code(), &stdout, &stderr);
        Done { verb: self.verb, code: status.code(), signal: status.signal(), stdout, stderr, heard, took }
    }
}

/// What a call came to.
#[derive(Debug)]
pub struct Done {
    pub verb: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub heard: Heard,
    pub took: Duration,
}

impl Done {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
    pub fn killed(&self) -> bool {
        self.signal == Some(Signal::KILL.as_raw())
    }

    /// The answer of a call that must succeed.
    pub fn answer(&self) -> Result<String, String> {
        if self.code != Some(0) {
            return Err(format!(
                "{}: status {:?}, signal {:?}: {}",
                self.verb,
                self.code,
                self.signal,
                self.err()
            ));
        }
        oned::quiet_success(&self.verb, &self.stderr).map_err(|e| format!("{}: {e}", self.verb))?;
        let out =
            String::from_utf8(self.stdout.clone()).map_err(|_| format!("{}: answer not UTF-8", self.verb))?;
        let one_line = out.is_empty() || (out.ends_with('\n') && out.lines().count() == 1);
        if VERBS.contains(&self.verb.as_str())
            && !["monitor", "export"].contains(&self.verb.as_str())
            && !one_line
        {
            return Err(format!("{}: the answer is not one line: {out:?}", self.verb));
        }
        Ok(out)
    }

    /// The one line of a call that must fail, with this status if one is given.
    pub fn failure(&self, status: Option<i32>) -> Result<String, String> {
        let said =
            || format!("{}: status {:?}, signal {:?}: {}", self.verb, self.code, self.signal, self.err());
        if self.code.is_none_or(|c| c == 0 || status.is_some_and(|s| s != c)) {
            return Err(format!("wanted a failure with status {status:?}: {}", said()));
        }
        if !self.stdout.is_empty() {
            return Err(format!("a failure with an answer on stdout: {:?}", self.out()));
        }
        let line = oned::failure_line(&self.verb, &self.stderr).map_err(|e| format!("{}: {e}", self.verb))?;
        match self.heard.shown() {
            Some(shown) if shown == line => Ok(line),
            other => Err(format!("the user would see {other:?} instead of {line:?}")),
        }
    }

    #[track_caller]
    pub fn ok(&self) -> String {
        self.answer().unwrap_or_else(|e| panic!("{e}"))
    }
    #[track_caller]
    pub fn fails(&self, status: i32) -> String {
        self.failure(Some(status)).unwrap_or_else(|e| panic!("{e}"))
    }
}
