//! What the leases lie on: a file of the domain, or a device that all hosts have.

use super::{AREA, SLOTS_AT};
use crate::sys::direct::{BLOCK, Direct};
use crate::sys::fs::{self, Dir};
use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// Of the domain's `.sdm`.
pub(super) const FILE: &str = "sanlock";

#[derive(Debug)]
pub(super) enum Store {
    File(Dir),
    Device(PathBuf),
}

impl Store {
    /// As the daemon is told: it has another working directory.
    pub fn path(&self) -> PathBuf {
        match self {
            Store::File(dir) => {
                let path = dir.path().join(FILE);
                std::path::absolute(&path).unwrap_or(path)
            }
            Store::Device(path) => path.clone(),
        }
    }

    pub fn open(&self) -> io::Result<Direct> {
        match self {
            Store::File(dir) => Direct::open(dir, OsStr::new(FILE)),
            Store::Device(path) => Direct::open_device(path),
        }
    }

    pub fn is_there(&self) -> io::Result<bool> {
        match self {
            Store::File(dir) => Ok(dir.entry(OsStr::new(FILE))?.is_some()),
            Store::Device(path) => path.try_exists(),
        }
    }

    /// Which object the name leads to, if nothing else has that object, too.
    pub fn identity(&self) -> io::Result<Option<u64>> {
        match self {
            Store::File(dir) => Ok(dir.entry(OsStr::new(FILE))?.filter(|e| e.nlink == 1).map(|e| e.ino)),
            Store::Device(path) => match std::fs::metadata(path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                m => Ok(Some(m?.rdev())),
            },
        }
    }

    /// Makes room up to `end`; `false`: there is none.
    pub fn reach(&self, open: &Direct, end: u64) -> io::Result<bool> {
        // Longer only: another maker may have died after this and before its record.
        if open.size()? >= end {
            return Ok(true);
        }
        match self {
            Store::File(_) => fs::set_len(open.file(), &self.path(), end).map(|()| true),
            Store::Device(_) => Ok(false),
        }
    }
}

/// What a device held before means nothing: no lease of whoever had it, no table, no names.
pub(super) fn clear(device: &Direct) -> io::Result<()> {
    let zeroes = vec![0; usize::try_from(AREA).unwrap_or_default()];
    for at in (0..SLOTS_AT).step_by(zeroes.len()) {
        device.write(at, &zeroes)?;
    }
    let end = device.size()?;
    let mut slot = SLOTS_AT;
    while slot + AREA <= end {
        device.write(slot, &zeroes[..BLOCK])?;
        slot += AREA;
    }
    Ok(())
}
