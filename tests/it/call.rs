//! One call of the program, made the way oned makes it, and what came of it.

use crate::bed::{self, Bed, VERBS};
use crate::oned::{self, Heard};
use rustix::process::{Pid, Signal};
use std::ffi::{OsStr, OsString};
use std::io::{Read as _, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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
    pub fn new(bed: &'a Bed, verb: &str, program: PathBuf) -> Call<'a> {
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

    /// Runs it and its children held up at these system calls, so that others meet it: `delay_enter=MICROSECONDS`.
    pub fn slowed(self, calls: &str, how: &str) -> Self {
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:{how}"));
        let mut words = self.under.clone();
        let more = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        words.extend(more.map(Into::into));
        Call { under: words, ..self }
    }

    /// Starts it as oned does: in `$VAR`, in its own process group, stdin a pipe, the environment cleared.
    pub fn start(self) -> Running {
        let mut words = self.under.clone();
        words.push(self.program.clone().into());
        words.extend(self.args);
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).process_group(0).current_dir(self.bed.root().join("var")).env_clear();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.bed.root().join("home"));
        command
            .env("ONESDM_CONFIG", self.bed.root().join("onesdm.toml"))
            .env("TMPDIR", self.bed.root().join("tmp"));
        command.envs(self.env);
        // Of `packaging/coverage`.
        command.envs(std::env::var_os("LLVM_PROFILE_FILE").map(|file| ("LLVM_PROFILE_FILE", file)));
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
                let left = bed::processes(|_| true);
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
                panic!("{} left processes in its group: {left:#?}", self.verb);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.stdin.join().unwrap();
        let (stdout, stderr) = (self.stdout.join().unwrap(), self.stderr.join().unwrap());
        let heard = oned::hear(status.code(), &stdout, &stderr);
        let (code, signal, dumped) = (status.code(), status.signal(), status.core_dumped());
        Done { verb: self.verb, code, signal, dumped, stdout, stderr, heard, took }
    }
}

/// What a call came to.
#[derive(Debug)]
pub struct Done {
    pub verb: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    /// Whether the signal left an image of its memory.
    pub dumped: bool,
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
