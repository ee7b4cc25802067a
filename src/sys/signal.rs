//! Signals: being asked to stop, and asking others.

use super::Cancel;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::time::Duration;

/// What is said when a process is given up: by then nobody else can.
pub type LastWord = Box<dyn FnOnce() + Send>;

/// From now on SIGTERM and SIGINT, and SIGHUP before `detach`, set `cancel`; a job that has not ended `grace` later ends with
/// `status` after its last word, as it would by a crash. A broken pipe is an error of the write, not a signal (the Rust
/// runtime sees to that).
pub fn on_stop(cancel: &Cancel, grace: Duration, status: u8, last: LastWord) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let stops: &[_] =
        if super::detach::is_detached() { &[SIGTERM, SIGINT] } else { &[SIGTERM, SIGINT, SIGHUP] };
    let mut signals = signal_hook::iterator::Signals::new(stops)?;
    let cancel = cancel.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if signals.forever().next().is_some() {
            cancel.request();
            #[expect(clippy::disallowed_methods, reason = "this wait is the grace a cancelled job gets")]
            std::thread::sleep(grace);
            last();
            std::process::exit(status.into());
        }
    })?;
    Ok(())
}

/// Sends SIGTERM to a process that `is_it` still confirms once it can no longer be replaced by
/// another of the same pid. `false` when it is gone.
pub fn terminate(pid: u32, is_it: impl Fn() -> bool) -> io::Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(false) };
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(false) };
    if !is_it() {
        return Ok(false);
    }
    match pidfd_send_signal(&fd, Signal::TERM) {
        Err(rustix::io::Errno::SRCH) => Ok(false),
        r => Ok(r.map(|()| true)?),
    }
}

/// As `on_stop`, but after `limit` and without anybody asking: a storage call may hang for ever.
pub fn deadline(limit: Duration, cancel: &Cancel, grace: Duration, status: u8, last: LastWord) {
    let cancel = cancel.clone();
    let _ = std::thread::Builder::new().name("deadline".to_owned()).spawn(move || {
        #[expect(clippy::disallowed_methods, reason = "the deadline itself")]
        std::thread::sleep(limit);
        cancel.expire();
        #[expect(clippy::disallowed_methods, reason = "the grace a job gets")]
        std::thread::sleep(grace);
        last();
        std::process::exit(status.into());
    });
}
