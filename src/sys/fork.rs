//! Between its fork and its program a child has a copy of every descriptor, locks with it. Whoever starts
//! one, and whoever closes a lock, come here, so that neither happens during the other.
#![expect(
    unsafe_code,
    reason = "a child that std starts without a step of ours may outlive the start unfinished"
)]

use rustix::process::{Resource, Signal, getrlimit, set_parent_process_death_signal};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{PoisonError, RwLock};

/// Held shared while a child has our descriptors and is not yet its program.
static FORK: RwLock<()> = RwLock::new(());

/// Starts a child; when this comes back, it has only the descriptors that were meant for it.
pub(super) fn spawn_child(cmd: &mut Command) -> io::Result<Child> {
    // With a step before exec std forks, and waits for a pipe that the kernel ends after it has closed all
    // else. Without one it may use posix_spawn, which comes back before anything is closed.
    // SAFETY: the step does nothing.
    unsafe { cmd.pre_exec(|| Ok(())) };
    let _forking = FORK.read().unwrap_or_else(PoisonError::into_inner);
    cmd.spawn()
}

/// The same from a thread that lives until the other answer is dropped: a child that is to die with us dies with
/// the thread that started it, and whoever asks for this one may be a short-lived one.
pub(super) fn spawn_lasting(mut cmd: Command) -> io::Result<(Child, Sender<()>)> {
    let ((answer, started), (keep, over)) = (channel(), channel());
    std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
        let _ = answer.send(spawn_child(&mut cmd));
        // Nothing comes; it ends.
        let _ = over.recv();
    })?;
    let gone = |_| io::Error::other("the thread that starts a program is gone");
    Ok((started.recv().map_err(gone)??, keep))
}

/// Between fork and exec: makes the child two. One comes back and becomes the program; the other has of all
/// descriptors only `lease`, waits for the program, and ends as it did. Makes system calls only.
pub(super) fn stay_behind(lease: i32) -> io::Result<()> {
    let last = |fd: i32| libc::c_uint::try_from(fd).unwrap_or(libc::c_uint::MAX);
    // SAFETY: as fork(2), without what libc adds for programs that go on; nothing of ours is touched until exec.
    match unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } {
        0 => return Ok(set_parent_process_death_signal(Some(Signal::KILL))?),
        n if n < 0 => return Err(io::Error::last_os_error()),
        _ => {}
    }
    // SAFETY: system calls on numbers and on one place of our stack; they end in the end of this process.
    unsafe {
        if lease > 0 {
            libc::syscall(libc::SYS_close_range, 0, last(lease - 1), 0);
        }
        libc::syscall(libc::SYS_close_range, last(lease) + 1, libc::c_uint::MAX, 0);
        let mut status = 0;
        while libc::waitpid(-1, &raw mut status, 0) < 0 {
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(libc::EXIT_FAILURE);
            }
        }
        if libc::WIFSIGNALED(status) {
            libc::signal(libc::WTERMSIG(status), libc::SIG_DFL);
            libc::raise(libc::WTERMSIG(status));
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}

/// No descriptor but 0, 1 and 2 reaches the program, unless it is said otherwise afterwards.
pub(super) fn close_on_exec_from_3() {
    // SAFETY: takes three numbers and touches no memory; descriptors stay open until exec.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if rc == 0 {
        return;
    }
    // Kernels before 5.11 do not know the call or the flag.
    let max = getrlimit(Resource::Nofile).current.unwrap_or(1 << 20);
    for fd in 3..i32::try_from(max).unwrap_or(i32::MAX) {
        // SAFETY: sets a flag of a number of ours; an unused number is refused with EBADF.
        unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}

/// As long as the answer lives, no child has descriptors that were not meant for it.
pub(super) fn no_fork() -> impl Drop {
    FORK.write().unwrap_or_else(PoisonError::into_inner)
}

/// For tests that need programs which are none of our tools.
#[cfg(test)]
pub(crate) fn spawn(cmd: &mut Command) -> io::Result<Child> {
    spawn_child(cmd)
}

/// As `spawn`, and waits: what it wrote to standard output and error.
#[cfg(test)]
pub(crate) fn output(cmd: &mut Command) -> io::Result<std::process::Output> {
    use std::process::Stdio;
    spawn(cmd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}
