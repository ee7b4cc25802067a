//! Between its fork and its program a child has a copy of every descriptor, locks with it. Whoever starts
//! one, and whoever closes a lock, come here, so that neither happens during the other.
#![expect(
    unsafe_code,
    reason = "a child that std starts without a step of ours may outlive the start unfinished"
)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError, RwLock};

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

/// The same from a thread that lives as long as this process does: a child that is to die with us dies with the
/// thread that started it.
pub(super) fn spawn_lasting(cmd: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static STARTER: Mutex<Option<Sender<Order>>> = Mutex::new(None);
    let gone = || io::Error::other("the thread that starts programs is gone");
    let (answer, started) = channel();
    {
        let mut starter = STARTER.lock().unwrap_or_else(PoisonError::into_inner);
        let orders = if let Some(orders) = &*starter {
            orders
        } else {
            let (orders, taken) = channel::<Order>();
            std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
                for (mut cmd, answer) in taken {
                    // Who asked waits for it.
                    let _ = answer.send(spawn_child(&mut cmd));
                }
            })?;
            starter.insert(orders)
        };
        orders.send((cmd, answer)).map_err(|_| gone())?;
    }
    started.recv().map_err(|_| gone())?
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
