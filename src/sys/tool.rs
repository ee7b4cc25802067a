//! The only place that starts processes. The programs are a closed list, found in fixed directories,
//! started without a shell, an environment or inherited descriptors, and they die with us.

#![expect(unsafe_code, reason = "a child is prepared between fork and exec")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit, Signal, pidfd_open};

use super::effect::{Effect, bug, crash, only_looks, scratch, step};
use super::{Cancel, Class};

/// Where programs are looked for, in this order; also the `PATH` they are given.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const SUDO: &str = "/usr/bin/sudo";
const STDOUT_CAP: usize = 1 << 20;
pub(super) const STDERR_TAIL: usize = 1024;
/// Reads from one pipe before deadline and cancel are looked at again.
const READS: usize = 16;
/// How long a killed child may take to go. Longer means it is stuck in a storage call.
const REAP: Duration = Duration::from_secs(10);
/// How long cancel and deadline may go unseen.
const SLICE: Duration = Duration::from_millis(20);
/// Too small for an image of our memory; with 0 the kernel would still hand it to a program that collects them.
pub(super) const NO_CORE: u64 = 1;

macro_rules! tools {
    ($($variant:ident => $names:expr,)*) => {
        /// A program we may start. Nothing that interprets text as commands belongs here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Tool { $($variant,)* }

        impl Tool {
            pub const ALL: &'static [Tool] = &[$(Tool::$variant,)*];

            /// The file names it goes by; the first one found is used.
            pub fn names(self) -> &'static [&'static str] {
                match self { $(Tool::$variant => &$names,)* }
            }
        }
    };
}

tools! {
    QemuImg => ["qemu-img"],
    MkfsExt2 => ["mkfs.ext2"],
    MkfsExt3 => ["mkfs.ext3"],
    MkfsExt4 => ["mkfs.ext4"],
    MkfsXfs => ["mkfs.xfs"],
    MkfsBtrfs => ["mkfs.btrfs"],
    MkSwap => ["mkswap"],
    // All three understand the options of mkisofs. xorrisofs sleeps a tenth of a second when it is done.
    MkIso => ["genisoimage", "xorrisofs", "mkisofs"],
    Ssh => ["ssh"],
    Virsh => ["virsh"],
    MountNfs => ["mount.nfs"], Umount => ["umount"],
    DmSetup => ["dmsetup"], LvmConfig => ["lvmconfig"],
    Lvs => ["lvs"], Vgs => ["vgs"], VgChange => ["vgchange"],
    LvCreate => ["lvcreate"], LvRename => ["lvrename"], LvChange => ["lvchange"],
    LvExtend => ["lvextend"], LvReduce => ["lvreduce"], LvRemove => ["lvremove"],
}

impl std::fmt::Display for Tool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.names()[0])
    }
}

/// Programs that run what they are told, by name without a trailing version (`python3.13`).
const INTERPRETERS: [&str; 20] = [
    "sh", "bash", "rbash", "dash", "ash", "ksh", "mksh", "zsh", "csh", "tcsh", "fish", "busybox", "toybox",
    "env", "perl", "python", "ruby", "awk", "lua", "sudo",
];

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ToolError {
    #[error("{tool} is not installed (looked in {looked_in})")]
    Missing { tool: Tool, looked_in: String },
    #[error("{tool} may not be {}: {why}", path.display())]
    Override { tool: Tool, path: PathBuf, why: &'static str },
    #[error("{tool} ended with status {status}: {}", or_none(stderr))]
    Failed { tool: Tool, status: i32, stderr: String },
    #[error("{tool} was killed by signal {signal}: {}", or_none(stderr))]
    Killed { tool: Tool, signal: i32, stderr: String },
    #[error("{tool} was stopped after {} s", after.as_secs())]
    Deadline { tool: Tool, after: Duration },
    #[error("{tool} was stopped on request")]
    Cancelled { tool: Tool },
    /// The child is killed but not gone: its last storage call may still complete.
    #[error("{tool} (process {pid}) was killed but hangs in a storage call")]
    Stuck { tool: Tool, pid: u32 },
    #[error("{tool}: {what}: {source}")]
    Io { tool: Tool, what: &'static str, source: io::Error },
}

impl ToolError {
    pub fn class(&self) -> Class {
        match self {
            ToolError::Missing { .. } => Class::Unsupported,
            ToolError::Override { .. } => Class::Usage,
            ToolError::Cancelled { .. } => Class::Cancelled,
            ToolError::Deadline { .. } | ToolError::Stuck { .. } => Class::Timeout,
            ToolError::Failed { .. } | ToolError::Killed { .. } | ToolError::Io { .. } => Class::Internal,
        }
    }
}

/// Bounds for one child.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Address space, in bytes.
    pub memory: Option<u64>,
    /// Processor time, in seconds.
    pub cpu: Option<u64>,
}

/// Sees output as it comes.
pub type Watch<'a> = &'a mut dyn FnMut(&[u8]);

/// How to run a tool; start from [`Run::new`].
pub struct Run<'a> {
    pub deadline: Duration,
    pub cancel: &'a Cancel,
    pub limits: Limits,
    pub cwd: Option<&'a Path>,
    /// What the child writes, for the log of effects.
    pub writes: &'a [&'a Path],
    /// Descriptors the child keeps, under their numbers, besides 0, 1 and 2: the lease of its job.
    pub inherit: &'a [BorrowedFd<'a>],
    /// Besides `LC_ALL`, `PATH` and `HOME`; nothing secret.
    pub env: &'a [(&'a str, &'a OsStr)],
    /// Exit statuses that are no failure.
    pub ok: &'a [i32],
    /// Sees everything the child writes to stdout, as it comes.
    pub watch: Option<Watch<'a>>,
    /// A lease that this command needs to its end, however we end: sudo passes no descriptor on, and nobody may kill
    /// what it runs. So somebody stays behind who has the lease and waits. It is not stopped by deadline or cancel.
    pub hold: Option<BorrowedFd<'a>>,
    /// It only looks, so that plans ask it, too.
    pub looks: bool,
    /// By `sudo -n` when we are not root: what may be run so, and how, is the sudoers file's to say.
    pub as_root: bool,
}

impl<'a> Run<'a> {
    pub fn new(deadline: Duration, cancel: &'a Cancel) -> Self {
        let limits = Limits::default();
        let (cwd, watch, hold) = (None, None, None);
        let (writes, inherit, env) = (&[], &[], &[]);
        let (looks, as_root) = (false, false);
        Run { deadline, cancel, limits, cwd, writes, inherit, env, ok: &[0], watch, hold, looks, as_root }
    }
}

/// What a tool said.
#[derive(Debug, Default)]
pub struct Output {
    pub status: i32,
    /// At most 1 MiB; `stdout_cut` when there was more.
    pub stdout: Vec<u8>,
    pub stdout_cut: bool,
    /// The last KiB, folded to one printable line.
    pub stderr_tail: String,
}

/// The programs of this machine, found once.
#[derive(Clone, Debug)]
pub struct Tools(BTreeMap<Tool, PathBuf>);

impl Tools {
    /// Looks for all tools; one that is missing is reported when it is first run. An override must be the
    /// absolute path of an executable regular file that is neither an interpreter nor a script of one.
    pub fn new(overrides: BTreeMap<Tool, PathBuf>) -> Result<Tools, ToolError> {
        let mut found = BTreeMap::new();
        for &tool in Tool::ALL {
            let candidates = tool.names().iter().flat_map(|n| DIRECTORIES.map(|d| Path::new(d).join(n)));
            if let Some(path) = candidates.into_iter().find(|p| is_executable(p)) {
                found.insert(tool, path);
            }
        }
        for (tool, path) in overrides {
            if let Some(why) = objection(&path) {
                return Err(ToolError::Override { tool, path, why });
            }
            found.insert(tool, path);
        }
        Ok(Tools(found))
    }

    /// The file that would be run.
    pub fn path(&self, tool: Tool) -> Result<&Path, ToolError> {
        let missing = || ToolError::Missing { tool, looked_in: DIRECTORIES.join(" ") };
        self.0.get(&tool).map(PathBuf::as_path).ok_or_else(missing)
    }

    /// Runs `tool` to its end, from the calling thread (with which the child would die). Stopped by
    /// deadline, cancel or error it is killed and reaped, and what it wrote is the caller's to remove.
    pub fn run(&self, tool: Tool, args: &[&OsStr], mut opts: Run<'_>) -> Result<Output, ToolError> {
        let path = self.path(tool)?;
        if opts.hold.is_none() && opts.cancel.is_requested() {
            return Err(ToolError::Cancelled { tool });
        }
        if opts.deadline.is_zero() {
            return Err(ToolError::Deadline { tool, after: opts.deadline });
        }
        let (begin, writes) = (Instant::now(), opts.writes);
        // A plan has its files in its own directory, but for copies, which are their sources. What would be written to
        // a file is left out; whoever changes something else comes here by mistake.
        let is_copy = |p: &&Path| scratch().is_none_or(|s| !p.starts_with(s));
        let asks = opts.looks || matches!(tool, Tool::QemuImg | Tool::Ssh) && !writes.iter().any(is_copy);
        if only_looks() && !asks {
            if writes.is_empty() {
                let source = Errno::ROFS.into();
                return Err(ToolError::Io { tool, what: "starting it for a plan", source });
            }
            return Ok(Output::default());
        }
        tracing::debug!(%tool, ?args, "tool starts");
        let sudo = [&[OsStr::new("-n"), path.as_os_str()], args].concat();
        let as_root = opts.as_root && !rustix::process::geteuid().is_root();
        let (path, args) = if as_root { (Path::new(SUDO), &sudo[..]) } else { (path, args) };
        let io = |source| Err(ToolError::Io { tool, what: "starting it", source });
        let run = || Ok(supervise(tool, path, args, &mut opts));
        let out = step(Effect::Child, writes, run).unwrap_or_else(io);
        let ms = begin.elapsed().as_millis();
        match &out {
            Ok(o) => tracing::debug!(%tool, status = o.status, ms, "tool ended"),
            Err(e) => tracing::debug!(%tool, error = %e, ms, "tool ended"),
        }
        out
    }
}

pub(super) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Why `path` cannot stand for a tool.
fn objection(path: &Path) -> Option<&'static str> {
    if !path.is_absolute() {
        return Some("the path is not absolute");
    }
    if !is_executable(path) {
        return Some("no executable regular file");
    }
    let real = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if is_interpreter(path) || is_interpreter(&real) {
        return Some("it runs other commands");
    }
    let mut start = [0u8; 2];
    let read = std::fs::File::open(&real).and_then(|mut f| io::Read::read_exact(&mut f, &mut start));
    if read.is_err() { Some("it cannot be read") } else { (start == *b"#!").then_some("it is a script") }
}

fn is_interpreter(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    INTERPRETERS.contains(&name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-')))
}

/// A child that cannot outlive this value unnoticed.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) child: Child,
    /// Killed, and still there.
    given_up: bool,
    /// Keeps the thread that started it, where that is not the caller's.
    _starter: Option<Sender<()>>,
}

impl Running {
    pub(super) fn start(path: &Path, args: &[&OsStr], opts: &Run<'_>, stdin: Stdio) -> io::Result<Running> {
        let mut cmd = command(path, args, opts, stdin);
        Ok(Running { child: super::fork::spawn_child(&mut cmd)?, given_up: false, _starter: None })
    }

    /// The same for one that may be handed on to another thread.
    pub(super) fn lasting(path: &Path, args: &[&OsStr], opts: &Run<'_>) -> io::Result<Running> {
        let cmd = command(path, args, opts, Stdio::piped());
        let (child, starter) = super::fork::spawn_lasting(cmd)?;
        Ok(Running { child, given_up: false, _starter: Some(starter) })
    }

    /// Kills and reaps; `false` when the kernel does not let it go.
    pub(super) fn stop(&mut self) -> bool {
        let end = Instant::now() + REAP;
        // It fails only when the child has been reaped already.
        let _ = self.child.kill();
        while Instant::now() < end {
            match self.child.try_wait() {
                Ok(Some(_)) | Err(_) => return true,
                Ok(None) => nap(&mut [], Duration::from_millis(2)),
            }
        }
        self.given_up = true;
        false
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.given_up && matches!(self.child.try_wait(), Ok(None)) {
            self.stop();
        }
    }
}

/// Waits for data, or for the time to pass; an interrupted wait is a short one.
pub(super) fn nap(fds: &mut [PollFd<'_>], d: Duration) {
    let t = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(d.subsec_nanos()) };
    let _ = poll(fds, Some(&t));
}

fn supervise(tool: Tool, path: &Path, args: &[&OsStr], opts: &mut Run<'_>) -> Result<Output, ToolError> {
    let io = |what| move |source| ToolError::Io { tool, what, source };
    let begin = Instant::now();
    let mut running = Running::start(path, args, opts, Stdio::null()).map_err(io("starting it"))?;
    let exit = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw);
    let exit = exit.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut stdout = running.child.stdout.take().map(OwnedFd::from);
    let mut stderr = running.child.stderr.take().map(OwnedFd::from);
    for fd in [&stdout, &stderr].into_iter().flatten() {
        rustix::io::ioctl_fionbio(fd, true).map_err(|e| io("preparing its output")(e.into()))?;
    }
    let (mut kept, mut cut, mut tail) = (Vec::new(), false, Vec::new());
    let mut buf = vec![0; 1 << 16];
    let mut pause = Duration::from_millis(1);
    if crash() {
        nap(&mut [], Duration::from_millis(3));
        let _ = running.child.kill();
    }
    let status = loop {
        let exited = running.child.try_wait().map_err(io("waiting for it"))?;
        let got = drain(&mut stdout, &mut buf, |data| {
            let room = (STDOUT_CAP - kept.len()).min(data.len());
            kept.extend_from_slice(&data[..room]);
            cut |= room < data.len();
            if let Some(watch) = &mut opts.watch {
                watch(data);
            }
        });
        let said = drain(&mut stderr, &mut buf, |data| {
            tail.extend_from_slice(data);
            tail.drain(..tail.len().saturating_sub(STDERR_TAIL));
        });
        let quiet = !(got.map_err(io("reading its output"))? | said.map_err(io("reading its errors"))?);
        if let Some(status) = exited {
            break status;
        }
        let stop = if opts.hold.is_some() {
            None
        } else if opts.cancel.is_requested() {
            Some(ToolError::Cancelled { tool })
        } else if begin.elapsed() >= opts.deadline {
            Some(ToolError::Deadline { tool, after: opts.deadline })
        } else {
            None
        };
        if let Some(why) = stop {
            let pid = running.child.id();
            return Err(if running.stop() { why } else { ToolError::Stuck { tool, pid } });
        }
        if quiet {
            let mut fds: Vec<_> = [&stdout, &stderr, &exit]
                .into_iter()
                .flatten()
                .map(|fd| PollFd::new(fd, PollFlags::IN))
                .collect();
            // Output wakes us, and the exit does where the kernel tells of it; else it is found by
            // asking once the pipes are shut, soon, then less often.
            let shut = fds.is_empty();
            nap(&mut fds, if shut { pause } else { SLICE });
            if shut {
                pause = (pause * 2).min(SLICE);
            }
        }
    };
    outcome(
        tool,
        status,
        opts,
        Output { status: 0, stdout: kept, stdout_cut: cut, stderr_tail: clean(&tail) },
    )
}

fn outcome(tool: Tool, status: ExitStatus, opts: &Run<'_>, out: Output) -> Result<Output, ToolError> {
    match status.code() {
        Some(status) if opts.ok.contains(&status) => Ok(Output { status, ..out }),
        Some(status) => Err(ToolError::Failed { tool, status, stderr: out.stderr_tail }),
        // A signal to our group reaches the child before we have looked at it ourselves.
        None if opts.cancel.is_requested() => Err(ToolError::Cancelled { tool }),
        None => {
            Err(ToolError::Killed { tool, signal: status.signal().unwrap_or(0), stderr: out.stderr_tail })
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that may")]
fn command(path: &Path, args: &[&OsStr], opts: &Run<'_>, stdin: Stdio) -> Command {
    let mut cmd = Command::new(path);
    cmd.args(args).env_clear().env("LC_ALL", "C").env("PATH", PATH).env("HOME", "/");
    cmd.envs(opts.env.iter().copied());
    cmd.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    cmd.current_dir(opts.cwd.unwrap_or(Path::new("/")));
    let kept = |n: &i32| *n > 2 && !bug("orphan");
    let keep: Vec<i32> = opts.inherit.iter().map(AsRawFd::as_raw_fd).filter(kept).collect();
    let signal = (!bug("orphan") && !bug("outlive")).then_some(Signal::KILL);
    let us = rustix::process::getpid();
    let Limits { memory, cpu } = opts.limits;
    let hold = opts.hold.map(|fd| fd.as_raw_fd());
    let prepare = move || {
        use rustix::process::{getppid, set_parent_process_death_signal};
        if let Some(lease) = hold {
            return super::fork::stay_behind(lease).and_then(|()| bare(&keep, memory, cpu));
        }
        set_parent_process_death_signal(signal)?;
        if getppid() != Some(us) {
            // We died before the line above: nobody would send the signal.
            return Err(rustix::io::Errno::CHILD.into());
        }
        bare(&keep, memory, cpu)
    };
    // SAFETY: between fork and exec `prepare` makes system calls only: no allocation, no lock, no panic.
    unsafe { cmd.pre_exec(prepare) };
    cmd
}

/// What a program finds is what it was meant to have.
fn bare(keep: &[i32], memory: Option<u64>, cpu: Option<u64>) -> io::Result<()> {
    super::signal::unblock_all()?;
    limit(Resource::Core, Some(NO_CORE))?;
    limit(Resource::As, memory)?;
    limit(Resource::Cpu, cpu)?;
    super::fork::close_on_exec_from_3();
    for &fd in keep {
        // SAFETY: the caller of `run` lends this descriptor for the time of the call.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}

pub(super) fn limit(what: Resource, to: Option<u64>) -> rustix::io::Result<()> {
    let Some(to) = to else { return Ok(()) };
    let to = rustix::process::getrlimit(what).maximum.map_or(to, |max| max.min(to));
    rustix::process::setrlimit(what, Rlimit { current: Some(to), maximum: Some(to) })
}

/// Takes what is there, not all that may come; whether there was anything. A closed pipe becomes `None`.
fn drain(pipe: &mut Option<OwnedFd>, buf: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<bool> {
    use rustix::io::Errno;
    let mut any = false;
    for _ in 0..READS {
        let Some(fd) = pipe else { break };
        match rustix::io::read(&*fd, &mut *buf) {
            Ok(0) => *pipe = None,
            Ok(n) => {
                take(&buf[..n]);
                any = true;
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(any)
}

fn or_none(stderr: &str) -> &str {
    if stderr.is_empty() { "no message" } else { stderr }
}

/// One printable line.
pub(super) fn clean(raw: &[u8]) -> String {
    let text: String =
        String::from_utf8_lossy(raw).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<_> = text.split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    fn tools(path: &str) -> Tools {
        Tools::new(BTreeMap::from([(Tool::MkSwap, path.into())])).unwrap()
    }

    fn run(path: &str, args: &[&str], opts: Run<'_>) -> Result<Output, ToolError> {
        let args: Vec<_> = args.iter().map(OsStr::new).collect();
        tools(path).run(Tool::MkSwap, &args, opts)
    }

    fn text(out: &Output) -> String {
        String::from_utf8(out.stdout.clone()).unwrap()
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn no_tool_interprets_commands() {
        for tool in Tool::ALL {
            for name in tool.names() {
                assert!(!is_interpreter(Path::new(name)), "{name}");
                assert!(!name.contains('/'), "{name}");
            }
        }
        for name in ["sh", "bash", "python3.13", "perl5", "env", "busybox"] {
            assert!(is_interpreter(&Path::new("/x").join(name)), "{name}");
        }
    }

    #[test]
    fn hostile_overrides_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("mkswap");
        std::os::unix::fs::symlink("/bin/sh", &link).unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "#!/bin/cat\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "not executable").unwrap();
        for path in
            ["bin/true".into(), "/bin/sh".into(), "/usr/bin/env".into(), "/tmp".into(), link, script, plain]
        {
            let got = Tools::new(BTreeMap::from([(Tool::MkSwap, path.clone())]));
            let Err(e) = got else { panic!("{} was accepted", path.display()) };
            assert_eq!(e.class(), Class::Usage);
        }
    }

    #[test]
    fn a_missing_tool_says_where_it_was_looked_for() {
        let e = Tools(BTreeMap::new()).path(Tool::QemuImg).unwrap_err();
        assert_eq!(e.class(), Class::Unsupported);
        assert_eq!(e.to_string(), "qemu-img is not installed (looked in /usr/sbin /usr/bin /sbin /bin)");
    }

    #[test]
    fn arguments_are_literal_and_the_environment_is_ours() {
        let cancel = Cancel::default();
        let out =
            run("/usr/bin/printf", &["%s|", "$HOME", "a b", "`id`", "*"], Run::new(LONG, &cancel)).unwrap();
        assert_eq!(text(&out), "$HOME|a b|`id`|*|");
        let out = run("/usr/bin/printenv", &[], Run::new(LONG, &cancel)).unwrap();
        let mut env: Vec<_> = text(&out).lines().map(str::to_owned).collect();
        env.sort();
        assert_eq!(env, ["HOME=/", "LC_ALL=C", &format!("PATH={PATH}")]);
        let out = run("/usr/bin/cat", &[], Run::new(LONG, &cancel)).unwrap();
        assert_eq!(out.stdout, b"", "stdin is empty");
        let opts = Run { cwd: Some(Path::new("/proc")), ..Run::new(LONG, &cancel) };
        assert_eq!(text(&run("/usr/bin/pwd", &[], opts).unwrap()), "/proc\n");
    }

    #[test]
    fn failures_are_one_line_with_status() {
        let cancel = Cancel::default();
        let e = run("/usr/bin/ls", &["/no\nsuch\x1b[1m"], Run::new(LONG, &cancel)).unwrap_err();
        assert!(matches!(e, ToolError::Failed { status: 2, .. }), "{e}");
        assert!(!e.to_string().contains(char::is_control), "{e:?}");
        assert!(e.to_string().contains("No such file"), "{e}");
        let opts = Run { ok: &[0, 2], ..Run::new(LONG, &cancel) };
        assert_eq!(run("/usr/bin/ls", &["/no/such"], opts).unwrap().status, 2);
        assert_eq!(clean(b"a\r\n\tb\0c\xff\n"), "a b c\u{fffd}");
    }

    #[test]
    fn a_flood_is_drained_capped_and_ended_by_the_deadline() {
        let cancel = Cancel::default();
        let mut seen = 0;
        let mut watch = |d: &[u8]| seen += d.len();
        let opts = Run { watch: Some(&mut watch), ..Run::new(Duration::from_millis(300), &cancel) };
        let e = run("/usr/bin/yes", &[], opts).unwrap_err();
        assert!(matches!(e, ToolError::Deadline { .. }), "{e}");
        assert!(seen > STDOUT_CAP, "{seen}");
        let args = ["-c", "3000000", "/dev/zero"];
        let out = run("/usr/bin/head", &args, Run::new(LONG, &cancel)).unwrap();
        assert!(out.stdout_cut && out.stdout.len() == STDOUT_CAP);
    }

    #[test]
    fn a_flood_of_errors_leaves_its_tail() {
        let cancel = Cancel::default();
        let names: Vec<_> = (0..3000).map(|n| format!("/no/such/{n}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        match run("/usr/bin/ls", &names, Run::new(LONG, &cancel)).unwrap_err() {
            ToolError::Failed { stderr, .. } => {
                assert!(stderr.len() <= STDERR_TAIL && stderr.contains("/no/such/2999"), "{stderr}");
            }
            e => panic!("{e}"),
        }
    }

    #[test]
    fn deadline_and_cancel_kill_and_reap() {
        let cancel = Cancel::default();
        let begin = Instant::now();
        let e = run("/usr/bin/sleep", &["50"], Run::new(Duration::from_millis(100), &cancel)).unwrap_err();
        assert!(matches!(e, ToolError::Deadline { .. }), "{e}");
        let other = cancel.clone();
        let thread = std::thread::spawn(move || {
            other.wait(Duration::from_millis(100));
            other.request();
        });
        let e = run("/usr/bin/sleep", &["50"], Run::new(LONG, &cancel)).unwrap_err();
        assert!(matches!(e, ToolError::Cancelled { .. }), "{e}");
        assert!(begin.elapsed() < Duration::from_secs(20));
        thread.join().unwrap();
    }

    #[test]
    fn limits_hold() {
        let cancel = Cancel::default();
        let limits = Limits { memory: Some(64 << 20), cpu: Some(1) };
        let out = run("/usr/bin/cat", &["/proc/self/limits"], Run { limits, ..Run::new(LONG, &cancel) });
        let out = text(&out.unwrap());
        let line = |name| out.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
        assert!(line("Max address space").contains("67108864"), "{out}");
        assert!(line("Max core file size").contains(" 1 "), "{out}");
        let e = run("/usr/bin/yes", &[], Run { limits, ..Run::new(LONG, &cancel) }).unwrap_err();
        assert!(matches!(e, ToolError::Killed { .. }), "{e}");
    }

    #[test]
    fn a_child_has_only_the_descriptors_its_call_lists() {
        let cancel = Cancel::default();
        let file = tempfile::tempfile().unwrap();
        let lease = rustix::io::fcntl_dupfd_cloexec(&file, 700).unwrap();
        let careless = rustix::io::fcntl_dupfd_cloexec(&file, 800).unwrap();
        rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
        let list = |inherit: &[BorrowedFd<'_>]| {
            let out =
                run("/usr/bin/ls", &["/proc/self/fd"], Run { inherit, ..Run::new(LONG, &cancel) }).unwrap();
            let mut fds: Vec<u32> = text(&out).lines().map(|l| l.parse().unwrap()).collect();
            fds.sort_unstable();
            fds
        };
        // 3 is the directory being listed.
        assert_eq!(list(&[]), [0, 1, 2, 3]);
        let kept = u32::try_from(lease.as_raw_fd()).unwrap();
        assert_eq!(list(&[lease.as_fd()]), [0, 1, 2, 3, kept]);
        let flags = rustix::io::fcntl_getfd(&lease).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "ours keeps the flag");
    }

    /// Run by the next test in a process of its own.
    #[test]
    #[ignore = "half of children_die_with_us"]
    fn sleeps_in_a_child() {
        let _ = run("/usr/bin/sleep", &["600"], Run::new(LONG, &Cancel::default()));
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the test needs a process to kill")]
    fn children_die_with_us() {
        let mut us = Command::new(std::env::current_exe().unwrap());
        us.args(["--exact", "--ignored", "sys::tool::tests::sleeps_in_a_child"]).stdout(Stdio::null());
        let mut us = crate::sys::fork::spawn(&mut us).unwrap();
        let end = Instant::now() + LONG;
        let sleeper = |pid: u32| -> Option<u32> {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            let kids = tasks
                .flatten()
                .map(|t| std::fs::read_to_string(t.path().join("children")).unwrap_or_default());
            kids.filter_map(|k| k.trim().parse().ok()).find(|c| is_sleep(*c))
        };
        let child = loop {
            if let Some(c) = sleeper(us.id()) {
                break c;
            }
            assert!(Instant::now() < end, "no child came up");
        };
        us.kill().unwrap();
        us.wait().unwrap();
        while is_sleep(child) {
            assert!(Instant::now() < end, "the child outlived its parent");
        }
    }

    fn is_sleep(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains("(sleep)") && !stat.contains(") Z ")
    }
}
