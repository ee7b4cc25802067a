//! Every step that changes storage passes through `step`. In the test build (`failpoints`) the n-th
//! step can kill the process before or after it happens, or fail, and the steps are written to a log
//! from which the tests rebuild what a power loss would have left. In other builds it is the bare call.

use rustix::io::Errno;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What kind of change a step makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Create,
    Write,
    Sync,
    SyncDir,
    Rename,
    Exchange,
    Link,
    Symlink,
    Unlink,
    Mkdir,
    Rmdir,
    Mode,
    Truncate,
    Lock,
    Child,
}

/// An error of a step, as it would be had the system answered this; the test build makes it up.
pub trait Failure {
    fn of(e: Errno) -> Self;
}

impl Failure for Errno {
    fn of(e: Errno) -> Errno {
        e
    }
}

impl Failure for std::io::Error {
    fn of(e: Errno) -> std::io::Error {
        e.into()
    }
}

static CLOSED: AtomicBool = AtomicBool::new(false);

/// From now on no step begins; whoever wants one waits for the end of the process.
pub(super) fn close() {
    CLOSED.store(true, Ordering::SeqCst);
}

fn pass() {
    while CLOSED.load(Ordering::Relaxed) {
        std::thread::park();
    }
}

static LOOKS: AtomicBool = AtomicBool::new(false);
static SCRATCH: Mutex<Option<PathBuf>> = Mutex::new(None);

/// From now on, for the rest of the process, nothing changes but what lies below this directory, if any.
pub fn only_look(scratch: Option<PathBuf>) {
    *SCRATCH.lock().unwrap_or_else(PoisonError::into_inner) = scratch;
    LOOKS.store(true, Ordering::SeqCst);
}

/// Whether this process only plans.
pub fn only_looks() -> bool {
    LOOKS.load(Ordering::Relaxed)
}

pub fn scratch() -> Option<PathBuf> {
    SCRATCH.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Programs that name nothing they write to only look, too.
fn may(effect: Effect, what: &[&Path]) -> bool {
    let below = |p: &&Path| scratch().is_some_and(|s| p.starts_with(s));
    !only_looks() || if what.is_empty() { effect == Effect::Child } else { what.iter().all(below) }
}

/// Runs `op`, one change of storage described by `what` (paths, for the log).
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn step<T, E: Failure>(
    effect: Effect,
    what: &[&Path],
    op: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    pass();
    if !may(effect, what) {
        return Err(E::of(Errno::ROFS));
    }
    op()
}

#[cfg(feature = "failpoints")]
pub use armed::{bug, crash, history, step};

/// Whether, and where, the test build writes down who held the lock of a domain, and its changes.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn history(_line: impl FnOnce() -> String) {}

/// Whether the test build was asked to misbehave in this named way.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn bug(_name: &str) -> bool {
    false
}

/// Whether the test build was asked to kill the program that is being started.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn crash() -> bool {
    false
}

#[cfg(feature = "failpoints")]
#[expect(unsafe_code, reason = "a signal is ignored")]
mod armed {
    use super::{Effect, Errno, Failure};
    use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    struct Arms {
        /// Kill before (`false`) or after (`true`) this step.
        kill: Option<(u64, bool)>,
        /// Stop, as a paused machine does, before this step.
        stop: Option<u64>,
        fail: Option<Fail>,
        log: Option<PathBuf>,
        history: Option<PathBuf>,
        /// Where to write down what a power loss would need: see `Snap`.
        snap: Option<Snap>,
        bug: Option<String>,
    }

    /// `ONESDM_TEST_FAIL`: `7:ENOSPC`, step 7 is not done and answers this; `7-:EROFS`, so does every later
    /// one; `7:short=100`, in step 7 no file grows beyond 100 bytes, by the kernel's own limit, neither
    /// by us nor by the program it runs; `7:crash`, that program is killed at work.
    struct Fail {
        at: u64,
        stays: bool,
        how: How,
    }

    #[derive(Clone, Copy)]
    enum How {
        Errno(Errno),
        Short(u64),
        Crash,
    }

    const ERRNOS: [(&str, Errno); 8] = [
        ("ENOSPC", Errno::NOSPC),
        ("EDQUOT", Errno::DQUOT),
        ("EIO", Errno::IO),
        ("ESTALE", Errno::STALE),
        ("EROFS", Errno::ROFS),
        ("EINTR", Errno::INTR),
        ("EACCES", Errno::ACCESS),
        ("ETIMEDOUT", Errno::TIMEDOUT),
    ];

    impl Fail {
        fn parse(text: &str) -> Option<Fail> {
            let (at, how) = text.split_once(':')?;
            let (at, stays) = at.strip_suffix('-').map_or((at, false), |at| (at, true));
            let how = match how.split_once('=') {
                Some(("short", bytes)) => How::Short(bytes.parse().ok()?),
                None if how == "crash" => How::Crash,
                _ => How::Errno(ERRNOS.iter().find(|(name, _)| *name == how)?.1),
            };
            Some(Fail { at: at.parse().ok()?, stays, how })
        }

        fn meets(&self, n: u64) -> bool {
            n == self.at || self.stays && n > self.at
        }
    }

    /// Runs `op` while no file may grow beyond so many bytes.
    fn short<T>(bytes: u64, op: impl FnOnce() -> T) -> T {
        // SAFETY: ignoring a signal installs no handler and touches no memory of ours.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        let before = getrlimit(Resource::Fsize);
        let _ = setrlimit(Resource::Fsize, Rlimit { current: Some(bytes), ..before });
        let out = op();
        let _ = setrlimit(Resource::Fsize, before);
        out
    }

    static CRASH: AtomicBool = AtomicBool::new(false);

    pub fn crash() -> bool {
        CRASH.swap(false, Ordering::SeqCst)
    }

    static COUNT: AtomicU64 = AtomicU64::new(0);

    #[expect(clippy::disallowed_methods, reason = "the test build's own switches, not settings")]
    fn arms() -> &'static Arms {
        static ARMS: OnceLock<Arms> = OnceLock::new();
        ARMS.get_or_init(|| {
            let kill = std::env::var("ONESDM_TEST_KILL").ok().and_then(|v| {
                let (n, after) = v.split_once(':')?;
                Some((n.parse().ok()?, after == "after"))
            });
            let stop = std::env::var("ONESDM_TEST_STOP").ok().and_then(|v| v.parse().ok());
            let fail = std::env::var("ONESDM_TEST_FAIL").ok().and_then(|v| Fail::parse(&v));
            let log = std::env::var_os("ONESDM_TEST_LOG").map(Into::into);
            let history = std::env::var_os("ONESDM_TEST_HISTORY").map(Into::into);
            let snap = std::env::var_os("ONESDM_TEST_SNAP").map(|d| Snap(d.into()));
            Arms { kill, stop, fail, log, history, snap, bug: std::env::var("ONESDM_TEST_BUG").ok() }
        })
    }

    pub fn bug(name: &str) -> bool {
        arms().bug.as_deref() == Some(name)
    }

    /// `ONESDM_TEST_HISTORY` names the file.
    pub fn history(line: impl FnOnce() -> String) {
        if let Some(file) = &arms().history {
            append(file, &(line() + "\n"));
        }
    }

    fn die() -> ! {
        // SIGKILL: nothing runs afterwards, as when the machine stops.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort()
    }

    pub fn step<T, E: Failure>(
        effect: Effect,
        what: &[&Path],
        op: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        super::pass();
        if !super::may(effect, what) {
            return Err(E::of(Errno::ROFS));
        }
        let arms = arms();
        let n = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(log) = &arms.log {
            let paths = what.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>().join("\t");
            append(log, &format!("{n}\t{effect:?}\t{paths}\n"));
        }
        if arms.stop == Some(n) {
            let _ = kill_process(getpid(), Signal::STOP);
        }
        if arms.kill == Some((n, false)) {
            die()
        }
        let before = arms.snap.as_ref().map(|s| s.before(effect, what));
        let out = match &arms.fail {
            Some(fail) if fail.meets(n) => match fail.how {
                How::Errno(e) => Err(E::of(e)),
                How::Short(bytes) => short(bytes, op),
                How::Crash => {
                    CRASH.store(true, Ordering::SeqCst);
                    op()
                }
            },
            _ => op(),
        };
        if let (Some(snap), Some(before)) = (&arms.snap, before) {
            snap.after(n, effect, what, &before);
        }
        if arms.kill == Some((n, true)) {
            die()
        }
        out
    }

    fn append(log: &Path, line: &str) {
        if let Ok(mut f) = std::fs::OpenOptions::new().append(true).create(true).open(log) {
            let _ = f.write_all(line.as_bytes());
        }
    }

    /// The record of a run for the simulation of power losses. In its directory: `log`, one line per
    /// step, `n TAB effect TAB inode` and for each entry that changed `TAB parent/before/after/name`
    /// in inode numbers; `sync.<n>`, what a file held when step n flushed it; `keep/<inode>`, all that
    /// lost its last name, so that a state of the past can be laid out with the very inodes it had.
    struct Snap(PathBuf);

    /// The entry at a path: its directory and itself, by inode number, 0 for none.
    type Spot = (u64, u64);

    fn spot(path: &Path) -> Spot {
        let parent = path.parent().and_then(|p| p.metadata().ok());
        (parent.map_or(0, |m| m.ino()), path.symlink_metadata().map_or(0, |m| m.ino()))
    }

    #[expect(clippy::disallowed_methods, reason = "beside the storage, not on it")]
    impl Snap {
        fn before(&self, effect: Effect, what: &[&Path]) -> Vec<Spot> {
            let spots: Vec<Spot> = what.iter().map(|p| spot(p)).collect();
            if let (Effect::Unlink | Effect::Rmdir | Effect::Rename, Some(path), Some(&(_, ino))) =
                (effect, what.last(), spots.last())
                && ino != 0
            {
                let keep = self.0.join(format!("keep/{ino}"));
                if effect != Effect::Rmdir {
                    let _ = std::fs::hard_link(path, keep);
                } else if std::fs::read_dir(path).is_ok_and(|mut d| d.next().is_none()) {
                    // A directory has no second name: it goes aside and an empty one dies for it.
                    let _ = std::fs::rename(path, keep).and_then(|()| std::fs::create_dir(path));
                }
            }
            spots
        }

        fn after(&self, n: u64, effect: Effect, what: &[&Path], before: &[Spot]) {
            let ino = what.last().and_then(|p| p.metadata().ok()).map_or(0, |m| m.ino());
            let mut line = format!("{n}\t{effect:?}\t{ino}");
            for (path, (parent, old)) in what.iter().zip(before) {
                let (_, new) = spot(path);
                if new != *old {
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    line += &format!("\t{parent}/{old}/{new}/{name}");
                }
            }
            if effect == Effect::Sync
                && let Some(path) = what.last()
            {
                let _ = std::fs::copy(path, self.0.join(format!("sync.{n}")));
            }
            append(&self.0.join("log"), &(line + "\n"));
        }
    }
}
