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
    use rustix::process::{Signal, getpid, kill_process};
    use std::io::Write as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    struct Arms {
        /// Kill before (`false`) or after (`true`) this step.
        kill: Option<(u64, bool)>,
        /// Stop, as a paused machine does, before this step.
        stop: Option<u64>,
        log: Option<PathBuf>,
        /// Where to write down what a power loss would need: see `Snap`.
        snap: Option<Snap>,
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
            let stop = std::env::var("ONESDM_TEST_STOP").ok().and_then(|v| v.parse().ok());
            let log = std::env::var_os("ONESDM_TEST_LOG").map(Into::into);
            let snap = std::env::var_os("ONESDM_TEST_SNAP").map(|d| Snap(d.into()));
            Arms { kill, stop, log, snap, bug: std::env::var("ONESDM_TEST_BUG").ok() }
        })
    }

    pub fn bug(name: &str) -> bool {
        arms().bug.as_deref() == Some(name)
    }

    fn die() -> ! {
        // SIGKILL: nothing runs afterwards, as when the machine stops.
        let _ = kill_process(getpid(), Signal::KILL);
        std::process::abort()
    }

    pub fn step<T>(effect: Effect, what: &[&Path], op: impl FnOnce() -> T) -> T {
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
        let out = op();
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
