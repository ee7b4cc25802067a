//! How a caller follows and stops a transfer.

use std::fmt;
use std::sync::Arc;

use super::DataError;
use crate::sys::{Cancel, copy};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

/// Told how a transfer goes, from any thread, once per block. Must not block.
pub trait Progress: Send + Sync {
    /// The number of bytes that all `add`s of this phase will sum up to, when it is known.
    fn total(&self, bytes: u64);
    fn add(&self, bytes: u64);
    /// A new phase begins; counting starts anew.
    fn phase(&self, name: &'static str);
    /// Whether data may be moved now: asked before the first byte of each copy.
    fn may_move(&self) -> bool {
        true
    }
    /// Who only plans writes it down, and it is not done.
    fn plan(&self, _what: Planned) {}
}

/// Data that would be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planned {
    pub from: String,
    /// Bytes, holes included; and without them, where that can be told.
    #[serde(default)]
    pub size: Option<u64>,
    #[serde(default)]
    pub data: Option<u64>,
    /// `copy`, `reflink`, `fetch`, `send`, `link`, `convert raw to qcow2`.
    pub how: String,
    /// The device it is on.
    #[serde(skip)]
    pub device: Option<u64>,
}

impl Planned {
    /// A file or block device.
    pub fn file(file: &File, how: &str) -> Result<Planned, DataError> {
        let (_, size) = copy::measure(file).map_err(DataError::io("looking at the source"))?;
        let (mut pos, mut data) = (0, Some(0));
        while let (Some(sum), true) = (data, pos < size) {
            match copy::next_data(file, pos, size) {
                Ok(Some(extent)) => (pos, data) = (extent.end, Some(sum + extent.end - extent.start)),
                Ok(None) => break,
                Err(_) => data = None,
            }
        }
        let device = file.metadata().ok().map(|m| m.dev());
        Ok(Planned { from: path_of(file), size: Some(size), data, how: how.to_owned(), device })
    }
}

/// The name of an open file, as the system knows it.
pub fn path_of(file: &File) -> String {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
    link.map_or_else(|_| "a file".to_owned(), |p| p.to_string_lossy().into_owned())
}

/// Nobody looks.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn total(&self, _: u64) {}
    fn add(&self, _: u64) {}
    fn phase(&self, _: &'static str) {}
}

/// The request to stop and the progress of one transfer; both are used once per block.
#[derive(Clone)]
pub struct Watch {
    pub cancel: Cancel,
    pub progress: Arc<dyn Progress>,
}

impl Watch {
    /// Stoppable, but nobody looks at the progress.
    pub fn silent(cancel: Cancel) -> Watch {
        Watch { cancel, progress: Arc::new(NoProgress) }
    }

    pub(super) fn check(&self, phase: &'static str) -> Result<(), DataError> {
        if self.cancel.is_requested() { Err(DataError::Cancelled { phase }) } else { Ok(()) }
    }

    /// To be asked before data is moved in bulk.
    pub fn may_move(&self) -> Result<(), DataError> {
        if self.progress.may_move() { Ok(()) } else { Err(DataError::NoTurn) }
    }

    pub(super) fn begin(&self, phase: &'static str, total: Option<u64>) -> Result<(), DataError> {
        self.check(phase)?;
        self.progress.phase(phase);
        if let Some(n) = total {
            self.progress.total(n);
        }
        Ok(())
    }
}

impl Default for Watch {
    fn default() -> Watch {
        Watch::silent(Cancel::default())
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("cancel", &self.cancel).finish_non_exhaustive()
    }
}
