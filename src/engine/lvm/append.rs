//! A thick volume grows by extents that read zero already: those of a staged volume, which goes for it. Grown in place it
//! would show what others left there, until somebody had zeroed it.

use super::group::Change;
use super::{Access, Bytes, EngineError, LvmEngine, Place, Result};
use crate::lock::OwnerLease;

impl LvmEngine {
    /// The lock is held over both commits, so nobody gets the extents between them.
    pub(super) fn append_staged(&self, owner: &OwnerLease, n: u32, to: &Place) -> Result<()> {
        let from = Place::Staged(owner.job(), n);
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        let there = |at: &Place| view.at(at).ok_or_else(|| EngineError::Absent(at.to_string()));
        let (part, whole) = (there(&from)?, there(to)?);
        for v in [part, whole] {
            self.nobody_else(&view, v, Access::Write)?;
            if v.pool.is_some() || v.is_pool {
                return Err(EngineError::Unsupported { engine: "lvm", what: "append to a volume in a pool" });
            }
        }
        let extents = self.group.extents(&part.name)?;
        let size = Bytes(whole.size.0.saturating_add(part.size.0));
        let changes = [
            Change::Remove { volume: part.name.clone(), thin: false },
            Change::Append { volume: whole.name.clone(), to: size, extents },
        ];
        let after = self.commit(&lock, &view, &changes)?;
        match after.at(to) {
            Some(v) if v.size == size => Ok(()),
            _ => Err(EngineError::Changed(to.to_string())),
        }
    }
}
