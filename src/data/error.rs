//! Why bytes could not be moved.

use std::io;

use super::{Algo, Compression};
use crate::sys::effect::Failure;
use crate::sys::{Bytes, Class};

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// Somebody asked to stop. Class `Internal`: no class means "as you wished", and the caller that
    /// set the request knows before it looks at the class.
    #[error("cancelled while {phase}")]
    Cancelled { phase: &'static str },
    #[error("{doing}: {source}")]
    Io { doing: &'static str, source: io::Error },
    #[error("the source changed its size while it was copied, from {before} to {after} bytes")]
    SourceChanged { before: u64, after: u64 },
    #[error("the target is not empty: it has {size} bytes")]
    TargetNotEmpty { size: u64 },
    #[error("the target holds {have} bytes, {need} are needed")]
    TargetTooSmall { have: u64, need: u64 },
    #[error("more than the allowed {} ({limit} bytes)", Bytes(*.limit))]
    TooLarge { limit: u64 },
    #[error("{algo} is {got}, expected {expected}")]
    DigestMismatch { algo: Algo, expected: String, got: String },
    #[error("not a {algo}: expected {want} hexadecimal digits, got {got:?}")]
    BadDigest { algo: Algo, want: usize, got: String },
    #[error("not a transfer rate: {0:?} (a number of bytes per second with an optional k, M, G or T)")]
    BadRate(String),
    #[error("damaged {compression} stream: {why}")]
    Corrupt { compression: Compression, why: String },
    #[error("{url}: {why}")]
    BadUrl { url: String, why: &'static str },
    #[error("{url}: redirect to {to} refused: {why}")]
    BadRedirect { url: String, to: String, why: &'static str },
    #[error("{file}: not a list of PEM certificates", file = .0.display())]
    BadCertificates(std::path::PathBuf),
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    #[error("{url}: the server answered {status}")]
    Status { url: String, status: u16 },
    #[error("{url}: no data for {seconds} s")]
    Stalled { url: String, seconds: u64 },
    /// A connection ended early and could not be taken up again.
    #[error("{url}: cut after {at} of {} bytes: {why}", .len.map_or("an unknown number of".to_owned(), |n| n.to_string()))]
    Cut { url: String, at: u64, len: Option<u64>, why: String },
    #[error("the directory to unpack into is not empty")]
    DirectoryNotEmpty,
    #[error("archive entry {entry:?}: {why}")]
    HostileArchive { entry: String, why: &'static str },
    #[error("damaged archive: {0}")]
    BadArchive(String),
    #[error("more than {0} archive entries")]
    TooManyEntries(u64),
    #[error("damaged transfer between hosts: {0}")]
    BadStream(String),
    #[error("the other side of the transfer is gone while {doing}")]
    Gone { doing: &'static str },
    /// As many copies run as may: whoever runs the verb waits for one of them to end, and runs it again.
    #[error("too many copies run at once (data.host_copies, data.domain_copies)")]
    NoTurn,
    /// A plan ends here: what comes next depends on content that is not there yet.
    #[error("what comes next depends on content that is not there yet")]
    Planned,
    /// A thread of the pipeline died of a bug.
    #[error("a worker thread died")]
    Died,
}

impl Failure for DataError {
    fn of(e: rustix::io::Errno) -> DataError {
        DataError::Io { doing: "writing", source: e.into() }
    }
}

impl DataError {
    pub fn class(&self) -> Class {
        match self {
            DataError::Io { source, .. } => Class::of_io(source),
            DataError::SourceChanged { .. }
            | DataError::DigestMismatch { .. }
            | DataError::Corrupt { .. }
            | DataError::BadArchive(_)
            | DataError::BadStream(_) => Class::Integrity,
            DataError::BadDigest { .. }
            | DataError::BadRate(_)
            | DataError::BadUrl { .. }
            | DataError::BadCertificates(_) => Class::Usage,
            DataError::Status { status: 404 | 410, .. } => Class::NotFound,
            DataError::Status { .. }
            | DataError::Unreachable { .. }
            | DataError::Cut { .. }
            | DataError::Gone { .. } => Class::Remote,
            DataError::Stalled { .. } => Class::Timeout,
            DataError::TooLarge { .. }
            | DataError::BadRedirect { .. }
            | DataError::HostileArchive { .. }
            | DataError::TooManyEntries(_) => Class::Refused,
            DataError::Cancelled { .. } => Class::Cancelled,
            DataError::NoTurn | DataError::Planned => Class::Busy,
            DataError::TargetNotEmpty { .. }
            | DataError::DirectoryNotEmpty
            | DataError::TargetTooSmall { .. }
            | DataError::Died => Class::Internal,
        }
    }

    /// For `map_err`: an operating system error and what was being done.
    pub(super) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> DataError {
        move |source| DataError::Io { doing, source }
    }
}
