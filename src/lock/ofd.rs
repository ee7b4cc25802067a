//! Leases as bytes of one empty file, `.sdm/leases`, held by open-file-description locks. Every
//! lease has a description of its own, is never converted and only ever released by closing it.

use super::{Held, LeaseId, LockBackend, LockError, Mode};
use crate::sys::fs::Dir;
use crate::sys::ofd;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

const FILE: &str = "leases";

/// Leases of the domain whose `.sdm` directory this is.
#[derive(Debug)]
pub struct OfdLocks(Arc<Dir>);

#[derive(Debug)]
struct OfdHeld {
    file: ofd::Locked,
    dir: Arc<Dir>,
    id: LeaseId,
    /// A server keeps the lock, and may lose it.
    remote: bool,
}

/// Why a server does not know a lock any more.
const FORGOTTEN: &str = "the NFS server gave it up: it was started again and did not get it claimed in time, or did not hear of this host for too long";

impl OfdLocks {
    pub fn new(sdm: Dir) -> OfdLocks {
        OfdLocks(Arc::new(sdm))
    }

    fn open(&self, id: &LeaseId, write: bool) -> Result<File, LockError> {
        self.0.open_file(Path::new(FILE), write).map_err(|source| LockError::Io { what: id.clone(), source })
    }
}

impl LockBackend for OfdLocks {
    fn name(&self) -> &'static str {
        "ofd"
    }

    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
        let exclusive = mode == Mode::Exclusive;
        let file = ofd::Locked::new(self.open(id, exclusive)?);
        let got = ofd::try_lock(file.as_fd(), id.offset(), exclusive)
            .map_err(|source| LockError::Io { what: id.clone(), source })?;
        if !got {
            return Err(LockError::Busy(id.clone()));
        }
        let remote = ofd::past_caches(&file).map_err(|source| LockError::Io { what: id.clone(), source })?;
        let held = OfdHeld { file, dir: Arc::clone(&self.0), id: id.clone(), remote };
        held.still_held()?;
        Ok(Box::new(held))
    }

    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError> {
        let file = self.open(id, false)?;
        ofd::is_held(file.as_fd(), id.offset()).map_err(|source| LockError::Io { what: id.clone(), source })
    }
}

impl Held for OfdHeld {
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    /// The server must still know the lock, and the file we locked be the file others would lock.
    fn still_held(&self) -> Result<(), LockError> {
        let io = |source: io::Error| LockError::Io { what: self.id.clone(), source };
        if self.remote && !ofd::is_known_to_server(&self.file).map_err(io)? {
            return Err(LockError::Stale { what: self.id.clone(), why: FORGOTTEN.to_owned() });
        }
        let mine = self.file.metadata().map_err(io)?;
        let now = self.dir.entry(OsStr::new(FILE)).map_err(io)?;
        match now {
            Some(e) if e.ino == mine.ino() && mine.nlink() == 1 => Ok(()),
            _ => Err(LockError::Lost(self.id.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn locks(t: &Path) -> OfdLocks {
        OfdLocks::new(Dir::open(t).unwrap())
    }

    #[test]
    fn conforms() {
        let t = tempfile::tempdir().unwrap();
        super::super::conformance::run(&|| {
            std::fs::write(t.path().join(FILE), "").unwrap();
            Box::new(locks(t.path()))
        });
    }

    /// Red team 1.13: `.sdm` restored or copied over while a lease is held.
    #[test]
    fn a_replaced_lease_file_is_noticed_by_its_holder() {
        let t = tempfile::tempdir().unwrap();
        let file = t.path().join(FILE);
        std::fs::write(&file, "").unwrap();
        let held = locks(t.path()).try_acquire(&LeaseId::Domain, Mode::Exclusive).unwrap();
        held.still_held().unwrap();
        std::fs::remove_file(&file).unwrap();
        assert!(matches!(held.still_held(), Err(LockError::Lost(_))));
        std::fs::write(&file, "").unwrap();
        assert!(matches!(held.still_held(), Err(LockError::Lost(_))));
        let other = locks(t.path()).try_acquire(&LeaseId::Domain, Mode::Exclusive);
        assert!(other.is_ok(), "nothing can stop the second holder; the first one must notice");
    }

    #[test]
    fn a_lease_file_that_was_moved_away_is_not_the_one_that_others_lock() {
        let t = tempfile::tempdir().unwrap();
        let [file, aside] = ["leases", "aside"].map(|n| t.path().join(n));
        std::fs::write(&file, "").unwrap();
        let held = locks(t.path()).try_acquire(&LeaseId::Domain, Mode::Exclusive).unwrap();
        std::fs::rename(&file, aside).unwrap();
        std::fs::write(&file, "").unwrap();
        assert!(matches!(held.still_held(), Err(LockError::Lost(_))));
    }

    #[test]
    fn a_shared_lease_needs_no_write_permission() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join(FILE), "").unwrap();
        let f = File::open(t.path().join(FILE)).unwrap();
        assert!(ofd::try_lock(f.as_fd(), 7, false).unwrap());
        assert!(ofd::try_lock(f.as_fd(), 8, true).is_err());
    }
}
