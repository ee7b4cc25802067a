//! Leases of several hosts by sanlock, in one file of the domain (or on one device): see `docs/format.md`.
//! Nobody but sanlock writes the leases; ours is the table that says which lease is which.

mod held;
mod member;
mod owner;
mod slot;
mod store;
mod table;

pub use member::{MemberInfo, watchdog};
pub use owner::on_lost;

use super::{Held, Holder, LeaseId, LockBackend, LockError, Mode};
use crate::sys::fs::Dir;
use crate::sys::sanlock::{Client, Fault, Host, Lease, Owners, SanlockError, State, client};
use held::SanlockHeld;
use owner::{Owner, owner};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};
use store::Store;
use table::{Record, Table};

pub const NAME: &str = "sanlock";
/// Distance of leases: what sanlock wants for sectors of 512 bytes, and for 4096 with up to 250 hosts.
const AREA: u64 = 1 << 20;
/// Before it: members, the domain's lease, the table's lease, the table, the members' names.
const SLOTS_AT: u64 = 5 * AREA;
/// Slots that are there from the beginning; others are made when they are wanted.
const FORMATTED: u64 = 8;
/// Looks at the table, before a lease counts as taken by others.
const LOOKS: usize = 4;
/// What sanlock adds to the eight I/O timeouts after which a host is dead.
const WATCHDOG_FIRE: Duration = Duration::from_secs(60);
/// How much longer than a host takes to be dead its leases are waited for.
const AFTER_DEATH: Duration = Duration::from_secs(30);

/// Leases of one domain.
#[derive(Debug)]
pub struct SanlockLocks {
    store: Arc<Store>,
    path: PathBuf,
    lockspace: String,
    table: OnceLock<Table>,
    /// When the clock of a host that is in our way was last seen to move.
    clocks: Mutex<BTreeMap<u64, (u64, Instant)>>,
}

/// Which place of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spot {
    Domain,
    Table,
    Slot(u64),
}

impl Spot {
    fn offset(self) -> u64 {
        match self {
            Spot::Domain => AREA,
            Spot::Table => 2 * AREA,
            Spot::Slot(n) => SLOTS_AT + n * AREA,
        }
    }

    fn name(self) -> String {
        match self {
            Spot::Domain => "domain".to_owned(),
            Spot::Table => "table".to_owned(),
            Spot::Slot(n) => format!("slot-{n}"),
        }
    }
}

impl SanlockLocks {
    /// Leases of the domain with this id, whose `.sdm` directory this is. Looks at nothing yet.
    pub fn new(sdm: Dir, domain: uuid::Uuid) -> SanlockLocks {
        Self::on(Store::File(sdm), domain)
    }

    /// Leases of the domain with this id, which lie on a device.
    pub fn on_device(device: PathBuf, domain: uuid::Uuid) -> SanlockLocks {
        Self::on(Store::Device(device), domain)
    }

    fn on(store: Store, domain: uuid::Uuid) -> SanlockLocks {
        SanlockLocks {
            path: store.path(),
            store: Arc::new(store),
            lockspace: domain.to_string(),
            table: OnceLock::new(),
            clocks: Mutex::default(),
        }
    }

    fn io(&self, e: &std::io::Error) -> LockError {
        let source = std::io::Error::new(e.kind(), format!("{}: {e}", self.path.display()));
        LockError::Io { what: LeaseId::Domain, source }
    }

    fn failed(&self, source: SanlockError) -> LockError {
        owner::failed();
        LockError::Sanlock { place: self.path.display().to_string(), source }
    }

    fn table(&self) -> Result<&Table, LockError> {
        if let Some(t) = self.table.get() {
            return Ok(t);
        }
        let file = self.store.open().map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => {
                let text = "it is missing; `onesdm domain init --lock sanlock` makes it";
                self.io(&std::io::Error::new(e.kind(), text))
            }
            _ => self.io(&e),
        })?;
        let table = Table::open(file).map_err(|e| self.io(&e))?;
        Ok(self.table.get_or_init(|| table))
    }

    fn host_id(&self, c: &Client) -> Result<Option<u64>, LockError> {
        let all = c.joined().map_err(|e| self.failed(e))?;
        Ok(all.into_iter().find(|(name, _)| *name == self.lockspace).map(|(_, id)| id))
    }

    fn with<T>(&self, spot: Spot, f: impl FnOnce(&Lease<'_>) -> T) -> T {
        let (name, offset) = (spot.name(), spot.offset());
        f(&Lease { lockspace: &self.lockspace, name: &name, path: &self.path, offset })
    }

    /// Takes a place of the file, for `id`.
    fn take(&self, id: &LeaseId, spot: Spot, mode: Mode) -> Result<SanlockHeld, LockError> {
        let sector = self.table()?.sector;
        let owner = owner().map_err(|e| self.failed(e))?;
        let on = self.store.identity().map_err(|e| self.io(&e))?;
        let Some(on) = on else { return Err(LockError::Lost(id.clone())) };
        match self.with(spot, |l| owner.take(l, mode == Mode::Shared)) {
            Ok(()) => {}
            Err(e) if e.fault() == Some(Fault::Held) => return Err(self.silence(id, &owner, spot)),
            Err(e) => return Err(self.refused(id, e)),
        }
        let (path, lockspace) = (self.path.clone(), self.lockspace.clone());
        let (store, name, id) = (Arc::clone(&self.store), spot.name(), id.clone());
        let held = SanlockHeld { owner, store, path, lockspace, name, spot, sector, on, id };
        held.same_place()?;
        Ok(held)
    }

    fn refused(&self, id: &LeaseId, e: SanlockError) -> LockError {
        match e.fault() {
            Some(Fault::HeldHere | Fault::InFlight | Fault::Held) => LockError::Busy(id.clone()),
            Some(Fault::Dying) => LockError::Dying { what: id.clone(), wait: dead_after(owner::IO_TIMEOUT) },
            Some(Fault::NotJoined) => LockError::NotJoined { place: self.path.display().to_string() },
            _ => self.failed(e),
        }
    }

    /// A host that just died looks alive for a while: it is one whose clock does not move.
    fn silence(&self, id: &LeaseId, owner: &Owner, spot: Spot) -> LockError {
        let busy = LockError::Busy(id.clone());
        let Ok(sector) = self.table().map(|t| t.sector) else { return busy };
        let Ok(owners) = self.with(spot, |l| owner.client.owners(l, sector)) else { return busy };
        let Ok(hosts) = owner.client.hosts(&self.lockspace, None) else { return busy };
        let mut clocks = self.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dying = None;
        for o in owners.hosts {
            let Some(h) = hosts.iter().find(|h| h.id == o.id) else { continue };
            let (clock, since) = clocks.entry(h.id).or_insert((h.timestamp, Instant::now()));
            if *clock != h.timestamp {
                (*clock, *since) = (h.timestamp, Instant::now());
            }
            // A living host's moves every two.
            if since.elapsed() < h.io_timeout * 5 / 2 {
                return busy;
            }
            dying = Some(h.io_timeout);
        }
        dying.map_or(busy, |io| LockError::Dying { what: id.clone(), wait: dead_after(io) })
    }

    /// Who has a place of the file and is not known to be dead.
    fn living(&self, c: &Client, spot: Spot) -> Result<Owners, LockError> {
        let sector = self.table()?.sector;
        let mut owners = self.with(spot, |l| c.owners(l, sector)).map_err(|e| self.failed(e))?;
        if owners.hosts.is_empty() {
            return Ok(owners);
        }
        let hosts = match c.hosts(&self.lockspace, None) {
            // Nothing is known just after joining: then nobody is known to be dead.
            Err(e) if e.fault() == Some(Fault::InFlight) => return Ok(owners),
            h => h.map_err(|e| self.refused(&LeaseId::Domain, e))?,
        };
        owners.hosts.retain(|o| {
            let host = hosts.iter().find(|h| h.id == o.id && h.generation == o.generation);
            host.is_some_and(|h| !matches!(h.state, State::Free | State::Dead))
        });
        Ok(owners)
    }

    fn spot_of(&self, id: &LeaseId) -> Result<Option<Spot>, LockError> {
        if *id == LeaseId::Domain {
            return Ok(Some(Spot::Domain));
        }
        Ok(self.table()?.find(id.offset()).map_err(|e| self.io(&e))?.map(Spot::Slot))
    }

    fn described(&self, what: &str, owners: &Owners, record: Option<&Record>) -> Vec<Holder> {
        let of = |h: &Host| {
            let signed = record
                .filter(|r| r.version == owners.version && r.host_id == h.id && r.generation == h.generation);
            let member = self.table().ok().and_then(|t| t.member(h.id));
            Holder {
                what: what.to_owned(),
                host_id: h.id,
                host: signed.map(|r| r.host.clone()).or(member.map(|m| m.host)).unwrap_or_default(),
                pid: signed.map(|r| r.pid),
                job: signed.and_then(|r| r.job),
                since: signed.map(|r| r.since.clone()),
                version: owners.version,
            }
        };
        owners.hosts.iter().map(of).collect()
    }
}

/// How long to wait for the leases of a host that does not renew.
fn dead_after(io_timeout: Duration) -> Duration {
    io_timeout * 8 + WATCHDOG_FIRE + AFTER_DEATH
}

impl LockBackend for SanlockLocks {
    fn name(&self) -> &'static str {
        NAME
    }

    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
        if *id == LeaseId::Domain {
            return Ok(Box::new(self.take(id, Spot::Domain, mode)?));
        }
        for _ in 0..LOOKS {
            let Some(slot) = self.table()?.find(id.offset()).map_err(|e| self.io(&e))? else {
                return Ok(Box::new(self.assign(id, mode)?));
            };
            if let Some(held) = self.take_slot(id, slot, mode)? {
                return Ok(Box::new(held));
            }
            // The slot went to another name between the look and the lock.
        }
        Err(LockError::Busy(id.clone()))
    }

    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError> {
        let Some(spot) = self.spot_of(id)? else { return Ok(false) };
        let o = owner().map_err(|e| self.failed(e))?;
        Ok(self.with(spot, |l| o.has(l)) || !self.living(o.client, spot)?.hosts.is_empty())
    }

    fn holders(&self) -> Result<Option<Vec<Holder>>, LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let mut out = self.described(&LeaseId::Domain.to_string(), &self.living(c, Spot::Domain)?, None);
        for (n, r) in self.table()?.all().map_err(|e| self.io(&e))?.iter().enumerate() {
            if r.lease.is_some() {
                let owners = self.living(c, Spot::Slot(n as u64))?;
                out.extend(self.described(&r.what, &owners, Some(r)));
            }
        }
        Ok(Some(out))
    }

    fn holder(&self, id: &LeaseId) -> Option<Holder> {
        let spot = self.spot_of(id).ok()??;
        let owners = self.living(client().ok()?, spot).ok()?;
        let record = match spot {
            Spot::Slot(n) => self.table().ok()?.get(n).ok(),
            _ => None,
        };
        self.described(&id.to_string(), &owners, record.as_ref()).into_iter().next()
    }
}
