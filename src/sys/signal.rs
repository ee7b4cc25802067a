//! Signals: being asked to stop, and asking others.
#![expect(unsafe_code, reason = "the signal mask of a thread has no safe wrapper")]

use super::Cancel;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::time::Duration;

/// What is said when a process is given up: by then nobody else can.
pub type LastWord = Box<dyn FnOnce() + Send>;

/// From now on SIGTERM and SIGINT, and SIGHUP before `detach`, set `cancel`; a job that has not ended `grace` later ends with
/// `status` after its last word, as it would by a crash. A broken pipe is an error of the write, not a signal (the Rust
/// runtime sees to that). The calling thread, and those it starts later, are not the ones that hear of it: the kernel
/// would hand the signal to a thread that hangs in a storage call, and none of the others would know.
pub fn on_stop(cancel: &Cancel, grace: Duration, status: u8, last: LastWord) -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let stops: &[_] =
        if super::detach::is_detached() { &[SIGTERM, SIGINT] } else { &[SIGTERM, SIGINT, SIGHUP] };
    let mut signals = signal_hook::iterator::Signals::new(stops)?;
    let cancel = cancel.clone();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        // Whoever started us may have kept them from us.
        let _ = unblock_all();
        if signals.forever().next().is_some() {
            cancel.request();
            #[expect(clippy::disallowed_methods, reason = "this wait is the grace a cancelled job gets")]
            std::thread::sleep(grace);
            last();
            std::process::exit(status.into());
        }
    })?;
    block(stops)
}

/// Keeps signals from this thread and those it starts.
pub(super) fn block(signals: &[i32]) -> io::Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

/// For a child that is about to be another program, and for who waits for signals: nothing is kept from them.
pub(super) fn unblock_all() -> io::Result<()> {
    mask(libc::SIG_SETMASK, &[])
}

fn mask(how: i32, signals: &[i32]) -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by the first call, and changed and read only by those after it.
    let failed = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in signals {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), std::ptr::null_mut())
    };
    if failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(failed)) }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::tool::{Run, Tool, Tools};
    use std::collections::BTreeMap;

    #[test]
    fn a_child_has_the_signals_we_keep_from_ourselves() {
        block(&[libc::SIGTERM, libc::SIGINT]).unwrap();
        let tools = Tools::new(BTreeMap::from([(Tool::MkSwap, "/usr/bin/cat".into())])).unwrap();
        let cancel = Cancel::default();
        let opts = Run::new(Duration::from_secs(60), &cancel);
        let out = tools.run(Tool::MkSwap, &["/proc/self/status".as_ref()], opts).unwrap();
        let status = String::from_utf8(out.stdout).unwrap();
        let blocked = status.lines().find(|l| l.starts_with("SigBlk:")).unwrap();
        assert!(blocked.ends_with("\t0000000000000000"), "{blocked}");
    }
}
