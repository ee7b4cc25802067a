//! A volume on two hosts, for as long as a machine goes from one to the other. Who has it lends it, by a tag; the other
//! one then may have its device, too, and nobody may do anything else with it until one of the two gives it up.
//! Only a thick volume: what is where in a pool is known to one kernel at a time.

use super::{Access, Change, EngineError, Handover, LvmEngine, Object, Place, Result, Volume, map};

impl LvmEngine {
    pub(super) fn hand(&self, at: &Place, step: Handover) -> Result<()> {
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        let v = view.at(at).ok_or_else(|| EngineError::Absent(at.to_string()))?;
        if v.pool.is_some() || v.is_pool {
            return Err(EngineError::Unsupported { engine: "lvm", what: "have a pool on two hosts" });
        }
        let us = self.peers.us()?;
        let (lent, active) = (map::lent_tag(&us), map::active_tag(&us, Access::Write));
        let (mut add, mut del) = (Vec::new(), Vec::new());
        match step {
            Handover::Lend if !v.tags.contains(&active) => {
                let what = format!("a device of {} on this host", self.group.path(&v.name));
                return Err(EngineError::Absent(what));
            }
            Handover::Lend => add.push(lent),
            Handover::Borrow => {
                map::all_lend(v, &us, &*self.peers)?;
                add.push(active.clone());
                del = map::ended(v, &us, &*self.peers);
            }
            Handover::Keep => {
                self.nobody_else(&view, v, Access::Write)?;
                del = map::ended(v, &us, &*self.peers);
            }
        }
        add.retain(|t| !v.tags.contains(t));
        del.retain(|t| *t != active);
        let volume = v.name.clone();
        if !add.is_empty() || !del.is_empty() {
            self.commit(&lock, &view, &[Change::Tag { volume: volume.clone(), add, del }])?;
        }
        if step == Handover::Borrow {
            self.mapper.open(&self.group, &volume)?;
        }
        Ok(())
    }

    /// Those that this host needs still, or those that another living one has by now: it lent them, or borrowed them in
    /// an earlier life, and no machine has outlived that.
    pub(super) fn ours(&self, away: bool) -> Result<Vec<Object>> {
        let us = self.peers.us()?;
        let active = map::active_tag(&us, Access::Write);
        let gone = |v: &Volume| {
            map::user(v, &us, &*self.peers).is_some() && (map::lends(v, &us) || !v.tags.contains(&active))
        };
        self.public(|v| !v.is_pool && map::has(v, &us, Access::Write) && gone(v) == away)
    }

    pub(super) fn public(&self, which: impl Fn(&Volume) -> bool) -> Result<Vec<Object>> {
        let view = self.group.view()?;
        let objects = view.volumes.iter().filter(|v| which(v)).filter_map(|v| view.object(v));
        Ok(objects.filter(|o| matches!(o.place, Place::Public(_))).collect())
    }
}
