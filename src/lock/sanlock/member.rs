//! The file of leases, and the hosts that joined it.

use super::owner::{self, owner};
use super::store::{self, FILE, Store};
use super::table::{Member, Table, shown};
use super::{AREA, FORMATTED, SanlockLocks, Spot};
use crate::lock::{JobId, LeaseId, LockError};
use crate::obs;
use crate::sys::Cancel;
use crate::sys::direct::Direct;
use crate::sys::fs::{self, Dir};
use crate::sys::sanlock::{Client, Fault, Host, Lease, Sector, State, Watchdog, client};
use std::ffi::OsStr;
use std::path::Path;
use std::time::{Duration, Instant};

/// The longest that a host which has just joined takes to see itself: some renewals.
const FIRST_LOOK: Duration = Duration::from_secs(60);

/// A host that joined a domain.
#[derive(Clone, Debug, serde::Serialize)]
pub struct MemberInfo {
    pub host_id: u64,
    pub host: String,
    pub state: &'static str,
    pub since: String,
}

/// Whether the daemon of this host resets it when leases are lost.
pub fn watchdog() -> Result<Watchdog, LockError> {
    let o = owner().map_err(|source| LockError::Sanlock { place: "this host".to_owned(), source })?;
    Ok(o.socket.daemon().map_or(Watchdog::Unknown, Watchdog::of))
}

impl SanlockLocks {
    /// Whether the file of leases is there.
    pub fn is_made(&self) -> Result<bool, LockError> {
        self.store.is_there().map_err(|e| self.io(&e))
    }

    /// Makes the file of leases. Of several makers one wins; all may use it. Where there is one it is left
    /// alone, and where this host still has the lockspace of a file that is gone, nothing is made. Leases on a
    /// device are made by `format_device`.
    pub fn make(&self) -> Result<(), LockError> {
        let Store::File(dir) = &*self.store else { return Ok(()) };
        if self.is_made()? {
            return Ok(());
        }
        let c = self.nobodys()?;
        let io = |e: std::io::Error| self.io(&e);
        let job = JobId::generate().to_string();
        let new = dir.sub(Path::new("new")).map_err(io)?;
        new.mkdir(OsStr::new(&job), 0o770, true).map_err(io)?;
        let made = new.sub(Path::new(&job)).map_err(io).and_then(|staging| self.fill_file(c, dir, &staging));
        new.remove_tree(OsStr::new(&job)).map_err(io)?;
        made?;
        dir.sync().map_err(io)
    }

    /// Refuses where this host still is a member by leases that are gone.
    fn nobodys(&self) -> Result<&'static Client, LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        if self.host_id(c)?.is_none() {
            return Ok(c);
        }
        let why = "they were removed, and this host still has leases there: \
                   leave the domain on all hosts first";
        Err(LockError::Stale { what: LeaseId::Domain, why: why.to_owned() })
    }

    /// Makes a device that nobody knows yet one with leases: whatever it held is gone.
    pub fn format_device(&self) -> Result<(), LockError> {
        let c = self.nobodys()?;
        let device = self.store.open().map_err(|e| self.io(&e))?;
        store::clear(&device).map_err(|e| self.io(&e))?;
        self.fill(c, device, &self.path)
    }

    fn fill_file(&self, c: &Client, dir: &Dir, staging: &Dir) -> Result<(), LockError> {
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
        self.fill(c, direct, &path)?;
        match staging.link(name, dir, name) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(io(e)),
            _ => Ok(()),
        }
    }

    fn fill(&self, c: &Client, direct: Direct, path: &Path) -> Result<(), LockError> {
        let io = |e: std::io::Error| self.io(&e);
        // Storage with larger sectors refuses the smaller write.
        let sector = match direct.write(AREA / 2, &[0; 512]) {
            Ok(()) => Sector::B512,
            Err(_) => Sector::B4096,
        };
        c.format_lockspace(&self.lockspace, path, sector, owner::IO_TIMEOUT).map_err(|e| self.failed(e))?;
        let slots = (0..FORMATTED).map(Spot::Slot);
        for spot in [Spot::Domain, Spot::Table].into_iter().chain(slots) {
            let (name, offset) = (spot.name(), spot.offset());
            let lease = Lease { lockspace: &self.lockspace, name: &name, path, offset };
            c.format(&lease, sector).map_err(|e| self.failed(e))?;
        }
        let table = Table::make(direct, sector).map_err(io)?;
        fs::sync_file(table.disk().file(), path).map_err(io)
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

    /// As whom this host takes leases now: its number, and which of its memberships this is.
    pub fn us(&self) -> Result<(u64, u64), LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let none = || LockError::NotJoined { place: self.path.display().to_string() };
        let id = self.host_id(c)?.ok_or_else(none)?;
        let (end, never) = (Instant::now() + FIRST_LOOK, Cancel::default());
        loop {
            let us = match c.hosts(&self.lockspace, Some(id)) {
                // Known from the first renewal on.
                Err(e) if e.fault() == Some(Fault::InFlight) => None,
                h => h.map_err(|e| self.refused(&LeaseId::Domain, e))?.first().map(|h| (h.id, h.generation)),
            };
            match us.filter(|(_, generation)| *generation > 0) {
                Some(us) => return Ok(us),
                None if Instant::now() < end => drop(never.wait(Duration::from_millis(100))),
                None => return Err(none()),
            }
        }
    }

    /// Whether a membership of a host is known to be over: it was given up as dead, and with a watchdog it was
    /// reset, or the host has joined anew since. One that only left may have devices still.
    pub fn is_over(&self, host_id: u64, generation: u64) -> Result<bool, LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let hosts = match c.hosts(&self.lockspace, None) {
            Err(e) if e.fault() == Some(Fault::InFlight) => return Ok(false),
            h => h.map_err(|e| self.refused(&LeaseId::Domain, e))?,
        };
        let it = hosts.iter().find(|h| h.id == host_id);
        Ok(it.is_some_and(|h| {
            h.generation > generation || (h.generation == generation && h.state == State::Dead)
        }))
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
