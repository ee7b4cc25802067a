//! The end that cannot wait: our right to write is gone, and somebody else may have it.
#![expect(unsafe_code, reason = "an exit that runs nothing has no safe wrapper")]

use super::effect;
use super::tool::nap;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a message, and how long children that were killed, may take.
const PATIENCE: Duration = Duration::from_millis(200);

/// Ends this process and all it started. In this order: no further change of storage begins, children are
/// killed, `say` has a moment to tell, they have one to be gone, and the rest goes without running anything.
pub fn at_once(status: u8, say: impl FnOnce() + Send + 'static) -> ! {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    effect::close();
    // Two threads may notice it; one says so, and ends both.
    while BEGUN.swap(true, Ordering::SeqCst) {
        std::thread::park();
    }
    let killed = children();
    for pid in &killed {
        let _ = kill_process(*pid, Signal::KILL);
    }
    let (told, tell) = std::sync::mpsc::channel::<()>();
    // Whoever reads our messages may have stopped reading.
    let teller = std::thread::Builder::new().spawn(move || {
        say();
        drop(told);
    });
    if teller.is_ok() {
        let _ = tell.recv_timeout(PATIENCE);
    }
    // One that is within a system call is dead only when that has come back: whoever sees us end shall not
    // find it at work. One that hangs there cannot be waited for.
    let until = Instant::now() + PATIENCE;
    for pid in killed {
        while Instant::now() < until && matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(None)) {
            nap(&mut [], Duration::from_millis(1));
        }
    }
    // SAFETY: ends the process; nothing of ours runs afterwards.
    unsafe { libc::_exit(status.into()) }
}

fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let of = |t: std::fs::DirEntry| std::fs::read_to_string(t.path().join("children")).unwrap_or_default();
    let lists: Vec<String> = tasks.map(of).collect();
    let pids = lists.iter().flat_map(|l| l.split_whitespace());
    pids.filter_map(|p| p.parse().ok().and_then(Pid::from_raw)).collect()
}
