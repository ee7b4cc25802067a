//! Between its fork and its program a child has a copy of every descriptor, locks with it. Whoever starts
//! one, and whoever closes a lock, come here, so that neither happens during the other.

use std::sync::{PoisonError, RwLock};

/// Held shared while a child has our descriptors and is not yet its program.
static FORK: RwLock<()> = RwLock::new(());

/// To be held while a child is started, until it is its program.
pub(super) fn forking() -> impl Drop {
    FORK.read().unwrap_or_else(PoisonError::into_inner)
}

/// As long as the answer lives, no child has descriptors that were not meant for it.
pub(super) fn no_fork() -> impl Drop {
    FORK.write().unwrap_or_else(PoisonError::into_inner)
}

/// For tests that need programs which are none of our tools.
#[cfg(test)]
pub(crate) fn spawn(cmd: &mut std::process::Command) -> std::io::Result<std::process::Child> {
    let _forking = forking();
    cmd.spawn()
}

/// As `spawn`, and waits: what it wrote to standard output and error.
#[cfg(test)]
pub(crate) fn output(cmd: &mut std::process::Command) -> std::io::Result<std::process::Output> {
    use std::process::Stdio;
    spawn(cmd.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?.wait_with_output()
}
