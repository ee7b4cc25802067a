//! Cutting a process loose from who started it, so that it can outlive the connection it serves.
#![expect(unsafe_code, reason = "closing descriptors nobody here owns has no safe wrapper")]

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::stdio::{stderr, stdin, stdout};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static DETACHED: AtomicBool = AtomicBool::new(false);

/// Whether `detach` was called: a hangup no longer stops this process.
pub fn is_detached() -> bool {
    DETACHED.load(Ordering::SeqCst)
}

/// To be called first, before anything is opened: closes all descriptors but 0, 1 and 2, leaves the
/// session and the working directory of the parent, and ignores hangups. What goes to standard error
/// is dropped rather than waited for when nobody reads it.
pub fn detach() -> io::Result<()> {
    // SAFETY: takes three numbers and touches no memory; by contract nothing here owns a descriptor yet.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, 0) };
    if rc != 0 {
        // Kernels before 5.9.
        let max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
        for fd in 3..i32::try_from(max).unwrap_or(i32::MAX) {
            // SAFETY: as above.
            unsafe { libc::close(fd) };
        }
    }
    // Refused to the leader of a group, who has a session of its own already when sshd started it.
    let _ = rustix::process::setsid();
    DETACHED.store(true, Ordering::SeqCst);
    // A handler, not SIG_IGN: children start with the default.
    signal_hook::flag::register(signal_hook::consts::SIGHUP, std::sync::Arc::new(AtomicBool::new(false)))?;
    std::env::set_current_dir("/")?;
    let (err, others) = (fstat(stderr())?, [fstat(stdin())?, fstat(stdout())?]);
    let piped = matches!(FileType::from_raw_mode(err.st_mode), FileType::Fifo | FileType::Socket);
    if piped && others.iter().all(|o| (o.st_dev, o.st_ino) != (err.st_dev, err.st_ino)) {
        fcntl_setfl(stderr(), fcntl_getfl(stderr())? | OFlags::NONBLOCK)?;
    }
    Ok(())
}
