//! The storage domain manager: domains, jobs, events, the publish protocol, garbage. It works through
//! the `Engine` and `LockBackend` traits only and knows no path, no process, no XML.
//!
//! The rules are seed 000's, sharpened in `docs/format.md`: create garbage first, publish it by one
//! atomic step, and let a collector that proves its case remove what never got that far.

pub mod check;
pub mod domain;
pub mod event;
pub mod gc;
pub mod group;
pub mod job;
pub mod known;
#[cfg(test)]
mod lvm_tests;
pub mod plan;
pub mod proof;
pub mod record;
pub mod remove;
pub mod settle;
#[cfg(test)]
mod tests;
pub mod totals;
pub mod trend;
pub mod turn;
pub mod work;

pub use domain::Domain;
pub use group::Groups;
pub use job::{Job, Jobs};
pub use work::Work;

use crate::data::DataError;
use crate::engine::EngineError;
use crate::lock::{JobId, LockError};
use crate::sys::Class;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SdmError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Data(#[from] DataError),
    /// A lock is busy and we know by whom.
    #[error("{what} is locked by {holder}")]
    Held { what: String, holder: String },
    #[error("{place} is no storage domain; is its storage mounted? (`onesdm domain init` makes one)")]
    NotADomain { place: String },
    #[error("{place} is domain {found}, but {expected} is expected there; is the right storage mounted?")]
    WrongDomain { place: String, expected: String, found: String },
    #[error("{place} is not mounted: {why}")]
    NotMounted { place: String, why: String },
    #[error(
        "domain {id} at {place} was copied or restored; `onesdm domain adopt` says which copy is the real one"
    )]
    Copied { place: String, id: String },
    #[error("domain {place} has format {found}; this program reads and writes up to {known}")]
    TooNew { place: String, found: u32, known: u32 },
    #[error("domain {place} needs features this program lacks: {features}")]
    Features { place: String, features: String },
    #[error(
        "domain {place} has locks of kind {has}, not {wanted}; when nobody works on it, `onesdm domain remove` and init change that"
    )]
    OtherLock { place: String, has: String, wanted: String },
    #[error(
        "only host {host} may work on {place}: {why}; mount it with NFS 4 everywhere, or use locks by sanlock; \
         when that host does not work on it any more, remove .sdm/host there"
    )]
    OtherHost { place: String, host: String, why: &'static str },
    /// Its locks are those of one host.
    #[error(
        "only host {host} may work on {place}: its locks are that host's own; when it does not work on it any more, `onesdm domain adopt` here"
    )]
    OnlyHost { place: String, host: String },
    #[error("record {what} is damaged: {why}")]
    BadRecord { what: String, why: String },
    #[error("{0} was being given back; finish that with `onesdm domain remove {0}` first")]
    Retiring(String),
    #[error("job {0} is running already")]
    Running(JobId),
    #[error("job {0} was cancelled: its object was removed while it was being made")]
    Fenced(JobId),
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl SdmError {
    pub fn class(&self) -> Class {
        match self {
            SdmError::Engine(e) => e.class(),
            SdmError::Lock(e) => e.class(),
            SdmError::Data(e) => e.class(),
            SdmError::Held { .. } | SdmError::Running(_) => Class::Busy,
            SdmError::NotADomain { .. } => Class::NotFound,
            SdmError::WrongDomain { .. }
            | SdmError::NotMounted { .. }
            | SdmError::Copied { .. }
            | SdmError::OtherHost { .. }
            | SdmError::OnlyHost { .. }
            | SdmError::OtherLock { .. }
            | SdmError::Retiring(_) => Class::Refused,
            SdmError::TooNew { .. } | SdmError::Features { .. } => Class::Unsupported,
            SdmError::BadRecord { .. } => Class::Integrity,
            SdmError::Fenced(_) => Class::Cancelled,
            SdmError::Io { source, .. } => Class::of_io(source),
        }
    }
}

pub type Result<T> = std::result::Result<T, SdmError>;
