//! Slots: finding the one of a lease, giving it one.

use super::held::SanlockHeld;
use super::table::{Record, shown};
use super::{SanlockLocks, Spot};
use crate::lock::{LeaseId, LockError, Mode, spoken_for};
use crate::obs;
use crate::sys::sanlock::client;
use crate::sys::{Cancel, fs};
use std::time::{Duration, Instant};

/// Slots tried, before another one is made.
const TRIES: usize = 4;
/// How long the lock on the table is waited for: it is held for milliseconds.
const TABLE_WAIT: Duration = Duration::from_secs(5);

impl SanlockLocks {
    /// Takes a slot; whoever has it exclusively is named in its record.
    pub(super) fn take_slot(
        &self,
        id: &LeaseId,
        slot: u64,
        mode: Mode,
    ) -> Result<Option<SanlockHeld>, LockError> {
        let held = self.take(id, Spot::Slot(slot), mode)?;
        let table = self.table()?;
        if table.get(slot).map_err(|e| self.io(&e))?.lease != Some(id.offset()) {
            return Ok(None);
        }
        if mode == Mode::Exclusive {
            self.sign(&held, slot)?;
        }
        Ok(Some(held))
    }

    fn sign(&self, held: &SanlockHeld, slot: u64) -> Result<(), LockError> {
        let token = held.read_token()?;
        let record = Record {
            lease: Some(held.id.offset()),
            what: shown(&held.id.to_string()),
            host: shown(&obs::host()),
            host_id: token.host_id,
            generation: token.generation,
            version: token.version,
            pid: std::process::id(),
            job: match held.id {
                LeaseId::Owner(job) => Some(job),
                _ => spoken_for(),
            },
            since: obs::now(),
        };
        self.table()?.put(slot, &record).map_err(|e| self.io(&e))
    }

    /// Gives the lease a slot: one that nobody holds, or a new one.
    pub(super) fn assign(&self, id: &LeaseId, mode: Mode) -> Result<SanlockHeld, LockError> {
        let _table = self.lock_table(id)?;
        let table = self.table()?;
        let records = table.all().map_err(|e| self.io(&e))?;
        let slots = records.len() as u64;
        let named = records.iter().position(|r| r.lease == Some(id.offset()));
        if let Some(n) = named.and_then(|n| u64::try_from(n).ok()) {
            let held = self.take_slot(id, n, mode)?;
            return held.ok_or_else(|| LockError::Busy(id.clone()));
        }
        let mut random = [0; 8];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let first = u64::from_ne_bytes(random) % slots.max(1);
        let mut order: Vec<u64> = (0..slots).map(|n| (first + n) % slots).collect();
        // Slots without a name first: the others may be wanted again under theirs.
        order.sort_by_key(|n| {
            usize::try_from(*n).ok().and_then(|n| records.get(n)).is_some_and(|r| r.lease.is_some())
        });
        let (some, rest) = order.split_at(TRIES.min(order.len()));
        if let Some(held) = self.first_free(id, some, mode)? {
            return Ok(held);
        }
        let grown = if slots < table.capacity() { self.grow(slots) } else { Ok(false) };
        if matches!(grown, Ok(true))
            && let Some(held) = self.first_free(id, &[slots], mode)?
        {
            return Ok(held);
        }
        if let Some(held) = self.first_free(id, rest, mode)? {
            return Ok(held);
        }
        grown?;
        Err(LockError::Full { what: id.clone(), slots })
    }

    fn first_free(&self, id: &LeaseId, slots: &[u64], mode: Mode) -> Result<Option<SanlockHeld>, LockError> {
        for n in slots {
            let held = match self.take(id, Spot::Slot(*n), Mode::Exclusive) {
                Err(LockError::Busy(_) | LockError::Dying { .. }) => continue,
                h => h?,
            };
            self.sign(&held, *n)?;
            if mode == Mode::Exclusive {
                return Ok(Some(held));
            }
            drop(held);
            return self.take_slot(id, *n, mode);
        }
        Ok(None)
    }

    /// Makes one more slot, under the lock on the table. A full disk is no error of the lease.
    fn grow(&self, slot: u64) -> Result<bool, LockError> {
        let c = client().map_err(|e| self.failed(e))?;
        let table = self.table()?;
        let end = Spot::Slot(slot + 1).offset();
        if !self.store.reach(table.disk(), end).map_err(|e| self.io(&e))? {
            return Ok(false);
        }
        self.with(Spot::Slot(slot), |l| c.format(l, table.sector)).map_err(|e| self.failed(e))?;
        fs::sync_file(table.disk().file(), &self.path).map_err(|e| self.io(&e))?;
        table.put(slot, &Record::default()).map_err(|e| self.io(&e))?;
        Ok(true)
    }

    fn lock_table(&self, id: &LeaseId) -> Result<SanlockHeld, LockError> {
        let end = Instant::now() + TABLE_WAIT;
        let never = Cancel::default();
        loop {
            match self.take(id, Spot::Table, Mode::Exclusive) {
                Err(LockError::Busy(_)) if Instant::now() < end => {}
                r => return r,
            }
            let mut random = [0; 1];
            let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
            never.wait(Duration::from_millis(2 + u64::from(random[0]) / 8));
        }
    }
}
