//! The file of leases, and the hosts that joined it.

use super::owner::{self, owner};
use super::table::{Member, Table, shown};
use super::{AREA, FILE, FORMATTED, SanlockLocks, Spot};
use crate::lock::{JobId, LeaseId, LockError};
use crate::obs;
use crate::sys::direct::Direct;
use crate::sys::fs::{self, Dir};
use crate::sys::sanlock::{Client, Host, Lease, Sector, State, Watchdog, client};
use std::ffi::OsStr;
use std::path::Path;
use std::time::Duration;

/// A host that joined a domain.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MemberInfo {
    pub host_id: u64,
    pub host: String,
    pub state: &'static str,
    pub since: String,
}

impl SanlockLocks {
    /// Whether the file of leases is there.
    pub fn is_made(&self) -> Result<bool, LockError> {
        Ok(self.dir.entry(OsStr::new(FILE)).map_err(|e| self.io(&e))?.is_some())
    }

    /// Makes the file of leases. Of several makers one wins; all may use it. Where there is one it is left
    /// alone, and where this host still has the lockspace of a file that is gone, nothing is made.
    pub fn make(&self) -> Result<(), LockError> {
        if self.is_made()? {
            return Ok(());
        }
        let c = client().map_err(|e| self.failed(e))?;
        if self.host_id(c)?.is_some() {
            let why = "its file of leases was removed, and this host still has leases in it: \
                       leave the domain on all hosts first";
            return Err(LockError::Stale { what: LeaseId::Domain, why: why.to_owned() });
        }
        let io = |e: std::io::Error| self.io(&e);
        let job = JobId::generate().to_string();
        let new = self.dir.sub(Path::new("new")).map_err(io)?;
        new.mkdir(OsStr::new(&job), 0o770, true).map_err(io)?;
        let made = new.sub(Path::new(&job)).map_err(io).and_then(|staging| self.fill(c, &staging));
        new.remove_tree(OsStr::new(&job)).map_err(io)?;
        made?;
        self.dir.sync().map_err(io)
    }

    fn fill(&self, c: &Client, staging: &Dir) -> Result<(), LockError> {
        let io = |e: std::io::Error| self.io(&e);
        let name = OsStr::new(FILE);
        let path = staging.path().join(FILE);
        let path = std::path::absolute(&path).unwrap_or(path);
        let file = staging.create(name, 0o660, true).map_err(io)?;
        fs::set_len(&file, &path, Spot::Slot(FORMATTED).offset()).map_err(io)?;
        let direct = Direct::open(staging, name).map_err(|e| {
            let text = format!("sanlock needs storage that is read and written past its caches: {e}");
            self.io(&std::io::Error::new(std::io::ErrorKind::Unsupported, text))
        })?;
        // Storage with larger sectors refuses the smaller write.
        let sector = match direct.write(AREA / 2, &[0; 512]) {
            Ok(()) => Sector::B512,
            Err(_) => Sector::B4096,
        };
        c.format_lockspace(&self.lockspace, &path, sector, owner::IO_TIMEOUT).map_err(|e| self.failed(e))?;
        let slots = (0..FORMATTED).map(Spot::Slot);
        for spot in [Spot::Domain, Spot::Table].into_iter().chain(slots) {
            let (name, offset) = (spot.name(), spot.offset());
            let lease = Lease { lockspace: &self.lockspace, name: &name, path: &path, offset };
            c.format(&lease, sector).map_err(|e| self.failed(e))?;
        }
        Table::make(direct, sector).map_err(io)?;
        fs::sync_file(&file, &path).map_err(io)?;
        match staging.link(name, &self.dir, name) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(io(e)),
            _ => Ok(()),
        }
    }

    /// This host's number in the domain, `None` when it has not joined.
    pub fn membership(&self) -> Result<Option<u64>, LockError> {
        self.host_id(client().map_err(|e| self.failed(e))?)
    }

    /// Makes this host a member; takes two to three I/O timeouts. Joined with this id already is fine.
    pub fn join(&self, id: u64, io_timeout: Duration) -> Result<(), LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let sector = self.table()?.sector;
        if self.host_id(c)? != Some(id) {
            c.join(&self.lockspace, id, &self.path, sector, io_timeout).map_err(|e| self.failed(e))?;
        }
        let member = Member { host: shown(&obs::host()), since: obs::now() };
        self.table()?.set_member(id, &member).map_err(|e| self.io(&e))
    }

    /// Ends the membership; refused while a process of this host holds a lease. `false`: there was none.
    pub fn leave(&self) -> Result<bool, LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let Some(id) = self.host_id(c)? else { return Ok(false) };
        c.leave(&self.lockspace, id, &self.path).map_err(|e| self.failed(e))?;
        Ok(true)
    }

    /// Whether the daemon of this host resets it when leases are lost.
    pub fn watchdog(&self) -> Result<Watchdog, LockError> {
        let o = owner().map_err(|e| self.failed(e))?;
        Ok(o.socket.daemon().map_or(Watchdog::Unknown, Watchdog::of))
    }

    /// All hosts that are or were members.
    pub fn members(&self) -> Result<Vec<MemberInfo>, LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let hosts = c.hosts(&self.lockspace, None).map_err(|e| self.refused(&LeaseId::Domain, e))?;
        let of = |h: &Host| {
            let m = self.table().ok().and_then(|t| t.member(h.id));
            let state = match h.state {
                State::Free => "left",
                State::Live => "live",
                State::Failing => "failing",
                State::Dead => "dead",
                State::Unknown => "unknown",
            };
            let (host, since) = m.map(|m| (m.host, m.since)).unwrap_or_default();
            MemberInfo { host_id: h.id, host, state, since }
        };
        Ok(hosts.iter().map(of).collect())
    }
}
