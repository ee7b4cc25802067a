//! A request to stop, and waits that end when it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Set by SIGTERM, SIGINT or `onesdm job cancel`; looked at between blocks by everything that moves data.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Sets the request; it is never taken back.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Waits, at most `d`; `false` when it was cut short by a request to stop.
    pub fn wait(&self, d: Duration) -> bool {
        let end = Instant::now() + d;
        while !self.is_requested() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            #[expect(clippy::disallowed_methods, reason = "this is the wait everybody else uses")]
            std::thread::sleep(left.min(Duration::from_millis(20)));
        }
        false
    }
}
