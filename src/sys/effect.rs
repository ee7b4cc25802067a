//! Every step that changes storage passes through `step`. In the test build (`failpoints`) the n-th
//! step can kill the process before or after it happens, and the steps are written to a log from
//! which the tests rebuild what a power loss would have left. In other builds it is the bare call.

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

/// Runs `op`, one change of storage described by `what` (paths, for the log).
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn step<T>(_effect: Effect, _what: &[&std::path::Path], op: impl FnOnce() -> T) -> T {
    op()
}

#[cfg(feature = "failpoints")]
pub use armed::{bug, step};

/// Whether the test build was asked to misbehave in this named way.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub fn bug(_name: &str) -> bool {
    false
}

#[cfg(feature = "failpoints")]
mod armed {
    use super::Effect;
    use std::io::Write as _;
    use std::path::Path;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Arms {
        /// Kill before (`false`) or after (`true`) this step.
        kill: Option<(u64, bool)>,
        log: Option<std::path::PathBuf>,
        bug: Option<String>,
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
            let log = std::env::var_os("ONESDM_TEST_LOG").map(Into::into);
            Arms { kill, log, bug: std::env::var("ONESDM_TEST_BUG").ok() }
        })
    }

    pub fn bug(name: &str) -> bool {
        arms().bug.as_deref() == Some(name)
    }

    fn die() -> ! {
        // SIGKILL: nothing runs afterwards, as when the machine stops.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        std::process::abort()
    }

    pub fn step<T>(effect: Effect, what: &[&Path], op: impl FnOnce() -> T) -> T {
        let arms = arms();
        let n = COUNT.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(log) = &arms.log {
            let paths = what.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>().join("\t");
            let line = format!("{n}\t{effect:?}\t{paths}\n");
            if let Ok(mut f) = std::fs::OpenOptions::new().append(true).create(true).open(log) {
                let _ = f.write_all(line.as_bytes());
            }
        }
        if arms.kill == Some((n, false)) {
            die()
        }
        let out = op();
        if arms.kill == Some((n, true)) {
            die()
        }
        out
    }
}
