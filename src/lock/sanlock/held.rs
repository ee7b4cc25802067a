//! A lease that is held.

use super::Spot;
use super::owner::{self, Owner};
use super::store::Store;
use crate::lock::{Held, LeaseId, LockError, Token};
use crate::sys::sanlock::{Lease, Sector};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug)]
pub(super) struct SanlockHeld {
    pub owner: Arc<Owner>,
    pub store: Arc<Store>,
    pub path: PathBuf,
    pub lockspace: String,
    pub name: String,
    pub spot: Spot,
    pub sector: Sector,
    /// The file or device that the lease is on.
    pub on: u64,
    pub id: LeaseId,
}

impl SanlockHeld {
    fn with<T>(&self, f: impl FnOnce(&Lease<'_>) -> T) -> T {
        let (lockspace, name, path) = (&self.lockspace, &self.name, &self.path);
        f(&Lease { lockspace, name, path, offset: self.spot.offset() })
    }

    pub fn same_place(&self) -> Result<(), LockError> {
        let now = self.store.identity();
        let now = now.map_err(|source| LockError::Io { what: self.id.clone(), source })?;
        if now == Some(self.on) { Ok(()) } else { Err(LockError::Lost(self.id.clone())) }
    }

    pub fn read_token(&self) -> Result<Token, LockError> {
        let failed = |source| {
            owner::failed();
            LockError::Sanlock { place: self.path.display().to_string(), source }
        };
        let us = self.with(|l| self.owner.us(l, self.sector)).map_err(failed)?;
        let (host_id, generation) = us.ok_or_else(|| LockError::Lost(self.id.clone()))?;
        let version = self.with(|l| self.owner.client.version(l)).map_err(failed)?;
        let lease = self.name.clone();
        Ok(Token { host_id, generation, lease, version })
    }
}

impl Held for SanlockHeld {
    fn still_held(&self) -> Result<(), LockError> {
        if !self.owner.is_fresh() {
            owner::failed();
            let why = "the sanlock daemon is gone, or has not renewed for too long".to_owned();
            return Err(LockError::Stale { what: self.id.clone(), why });
        }
        self.same_place()
    }

    /// The connection: the leases are held as long as anybody has it open.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.owner.socket.as_fd())
    }

    fn token(&self) -> Result<Option<Token>, LockError> {
        self.read_token().map(Some)
    }
}

impl Drop for SanlockHeld {
    fn drop(&mut self) {
        self.with(|l| self.owner.give_back(l));
    }
}
