//! Between its fork and its program a child has a copy of every descriptor, locks with it. Whoever starts
//! one, and whoever closes a lock, come here, so that neither happens during the other.
#![expect(
    unsafe_code,
    reason = "a child that std starts without a step of ours may outlive the start unfinished"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
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
