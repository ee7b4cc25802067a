//! A request to stop, and waits that end when it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// Set by SIGTERM, SIGINT, `onesdm job cancel` or a deadline; looked at between blocks by everything that
/// moves data.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicU8>);

const REQUESTED: u8 = 1;
const EXPIRED: u8 = 2;

impl Cancel {
    /// Sets the request; it is never taken back.
    pub fn request(&self) {
        self.set(REQUESTED);
    }

    /// As `request`, because time is over.
    pub fn expire(&self) {
        self.set(EXPIRED);
    }

    /// The first reason stays.
    fn set(&self, why: u8) {
        let _ = self.0.compare_exchange(0, why, Ordering::SeqCst, Ordering::SeqCst);
    }

    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst) != 0
    }

    /// Whether time was over before anybody asked.
    pub fn is_expired(&self) -> bool {
        self.0.load(Ordering::SeqCst) == EXPIRED
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
