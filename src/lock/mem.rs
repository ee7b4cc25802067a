//! Leases within one process, for the in-memory engine.

use super::{Held, LeaseId, LockBackend, LockError, Mode};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// By byte, as the other backends: -1 is exclusive, n > 0 that many sharers.
type Table = Arc<Mutex<HashMap<u64, i64>>>;

#[derive(Clone, Debug, Default)]
pub struct MemLocks(Table);

#[derive(Debug)]
struct MemHeld {
    table: Table,
    offset: u64,
    mode: Mode,
}

impl LockBackend for MemLocks {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
        let offset = id.offset();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let n = table.entry(offset).or_default();
        match (mode, *n) {
            (Mode::Exclusive, 0) => *n = -1,
            (Mode::Shared, 0..) => *n += 1,
            _ => return Err(LockError::Busy(id.clone())),
        }
        Ok(Box::new(MemHeld { table: Arc::clone(&self.0), offset, mode }))
    }

    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError> {
        let table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(table.get(&id.offset()).is_some_and(|n| *n != 0))
    }
}

impl Held for MemHeld {
    fn still_held(&self) -> Result<(), LockError> {
        Ok(())
    }
}

impl Drop for MemHeld {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = table.get_mut(&self.offset) {
            *n = if self.mode == Mode::Exclusive { 0 } else { *n - 1 };
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        super::super::conformance::run(&|| Box::new(super::MemLocks::default()));
    }
}
