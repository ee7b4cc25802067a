//! What a handler sees of the caller.

use super::wire::Progress;
use crate::sys::Cancel;
use crate::sys::Class;
use serde_json::Value;

/// Does requests. Called by one thread at a time; what it answers is at most 1 MiB of JSON.
pub trait Handler: Sync {
    /// One request to its end. `job` is the id under which a repeated request is the same request. The
    /// answer may get lost on its way: what must be known later is recorded before it is given.
    fn handle(&self, job: &str, body: Value, link: &dyn Link) -> Result<Value, (Class, String)>;
}

/// Nobody takes or gives data any more: the connection is lost, or the job is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller is gone")]
pub struct Gone;

/// The caller of one request, who may be gone: telling it things never fails for that.
pub trait Link: Sync {
    /// Requested by the caller's `cancel`, by SIGTERM, and when the caller breaks the protocol.
    fn cancel(&self) -> &Cancel;

    /// May be dropped when the caller is slow.
    fn progress(&self, progress: Progress);

    /// A line for the caller's log; may be dropped as well.
    fn log(&self, warn: bool, text: &str);

    /// All is filled and flushed: may it be published? Waits for the caller's word. `false` when it says
    /// no, cancels, or has not been heard of for the silence and the grace of `Limits`: then undo. Once it
    /// was `true` it stays so. The first publishing step comes after this call.
    fn ready(&self) -> bool;

    /// Nobody is there any more: what goes on without data from or to the caller ends by itself.
    fn is_gone(&self) -> bool {
        self.cancel().is_requested()
    }

    /// One block of data to the caller, at most 4 MiB; waits while it is slow.
    fn send(&self, data: Vec<u8>) -> Result<(), Gone>;

    /// The next block of data from the caller; `None` at their end.
    fn receive(&self) -> Result<Option<Vec<u8>>, Gone>;
}
