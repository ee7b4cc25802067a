//! Leases within one process, for the in-memory engine.

use super::{Held, LeaseId, LockBackend, LockError, Mode};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
struct Holding {
    /// Which one of all there ever were.
    serial: u64,
    host: u64,
    mode: Mode,
}

#[derive(Debug, Default)]
struct Table {
    /// By byte, as the other backends.
    held: HashMap<u64, Vec<Holding>>,
    last: u64,
}

/// Clones are one host.
#[derive(Clone, Debug, Default)]
pub struct MemLocks {
    table: Arc<Mutex<Table>>,
    host: u64,
}

#[derive(Debug)]
struct MemHeld {
    table: Arc<Mutex<Table>>,
    id: LeaseId,
    serial: u64,
}

fn open(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl MemLocks {
    /// Another host on the same storage.
    #[must_use]
    pub fn another_host(&self) -> MemLocks {
        let mut table = open(&self.table);
        table.last += 1;
        MemLocks { table: Arc::clone(&self.table), host: table.last }
    }

    /// All that this host holds can be had by others, as when it was silent for too long.
    pub fn lose(&self) {
        open(&self.table).held.values_mut().for_each(|all| all.retain(|h| h.host != self.host));
    }
}

impl LockBackend for MemLocks {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
        let mut table = open(&self.table);
        table.last += 1;
        let serial = table.last;
        let all = table.held.entry(id.offset()).or_default();
        if !all.iter().all(|h| (h.mode, mode) == (Mode::Shared, Mode::Shared)) {
            return Err(LockError::Busy(id.clone()));
        }
        all.push(Holding { serial, host: self.host, mode });
        Ok(Box::new(MemHeld { table: Arc::clone(&self.table), id: id.clone(), serial }))
    }

    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError> {
        Ok(open(&self.table).held.get(&id.offset()).is_some_and(|all| !all.is_empty()))
    }
}

impl Held for MemHeld {
    fn still_held(&self) -> Result<(), LockError> {
        let table = open(&self.table);
        let all = table.held.get(&self.id.offset()).into_iter().flatten();
        let held = all.into_iter().any(|h| h.serial == self.serial);
        if held { Ok(()) } else { Err(LockError::Lost(self.id.clone())) }
    }
}

impl Drop for MemHeld {
    fn drop(&mut self) {
        if let Some(all) = open(&self.table).held.get_mut(&self.id.offset()) {
            all.retain(|h| h.serial != self.serial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        super::super::conformance::run(&|| Box::new(MemLocks::default()));
    }

    #[test]
    fn a_host_that_lost_its_leases_notices_and_others_do_not() {
        let (a, id) = (MemLocks::default(), |n: &str| LeaseId::Slab(n.to_owned()));
        let b = a.another_host();
        let [of_a, of_b] =
            [(&a, "a"), (&b, "b")].map(|(l, n)| l.try_acquire(&id(n), Mode::Exclusive).unwrap());
        a.lose();
        assert!(matches!(of_a.still_held(), Err(LockError::Lost(_))));
        of_b.still_held().unwrap();
        let again = b.try_acquire(&id("a"), Mode::Exclusive).unwrap();
        drop(of_a);
        again.still_held().unwrap();
    }
}
