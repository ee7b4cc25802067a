//! Wakes who waits for a host when there is something for it in this process.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

/// A descriptor that can be read from `ring` until `hush`.
#[derive(Clone, Debug)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    pub fn new() -> io::Result<Bell> {
        Ok(Bell(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)))
    }

    pub fn ring(&self) {
        // It fails when it rang 2^64 times, and can be read then.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }

    pub fn hush(&self) {
        // It fails when nobody rang.
        let _ = rustix::io::read(&*self.0, &mut [0; 8]);
    }

    /// Waits until it rings, at most `d`, which is less than a second.
    pub(super) fn wait(&self, d: Duration) {
        let most = Timespec { tv_sec: 0, tv_nsec: i64::from(d.subsec_nanos()) };
        // An interrupted wait is a short one.
        let _ = poll(&mut [PollFd::new(self, PollFlags::IN)], Some(&most));
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
