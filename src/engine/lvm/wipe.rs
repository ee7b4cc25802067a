//! What a volume leaves readable is taken away under its tombstone's name, before it is removed: whoever is killed
//! meanwhile leaves the tombstone, and the next one begins anew. A volume made or buried when that was asked for
//! says so by a tag, since its collector may have other settings.

use super::view::{View, Volume};
use super::{Access, Engine as _, EngineError, LvmEngine, Place, Result};
use crate::config::{Wipe, WipeSettings};
use crate::data::{self, Watch, Wiping};
use crate::lock::DomainLock;
use crate::sys::fs;

const DISCARD: &str = "sdm.wipe.discard";
const ZERO: &str = "sdm.wipe.zero";

/// What is put on a volume for its collector, unless it says as much already.
pub(super) fn tag(asked: WipeSettings, has: &[String]) -> Option<String> {
    let tag = match asked.how {
        Wipe::No => return None,
        Wipe::Discard => DISCARD,
        Wipe::Zero => ZERO,
    };
    (!has.iter().any(|t| t == tag || t == ZERO)).then(|| tag.to_owned())
}

/// What is to be done to a volume before it is removed.
fn wanted(asked: WipeSettings, v: &Volume) -> Option<Wiping> {
    let tagged = |t: &String| match t.as_str() {
        ZERO => Wipe::Zero,
        DISCARD => Wipe::Discard,
        _ => Wipe::No,
    };
    match v.tags.iter().map(tagged).max().unwrap_or_default().max(asked.how) {
        Wipe::No => None,
        // A pool is reached through the volumes in it, which go before.
        _ if v.is_pool => None,
        Wipe::Discard => Some(Wiping::Discard),
        Wipe::Zero if v.pool.is_none() => Some(Wiping::Zero),
        // What was never written takes no space, and should not take any now.
        Wipe::Zero => Some(Wiping::ZeroWritten),
    }
}

impl LvmEngine {
    /// Wipes those of these volumes that are to be wiped, which takes its time: without the lock, and with the lease
    /// of the job that owns them.
    pub(super) fn wiped(&self, lock: DomainLock, view: View, places: &[Place]) -> Result<(DomainLock, View)> {
        let asked = |p: &&Place| view.at(p).is_some_and(|v| wanted(self.wipe, v).is_some());
        let asked: Vec<&Place> = places.iter().filter(asked).collect();
        if asked.is_empty() {
            return Ok((lock, view));
        }
        drop(lock);
        for at in asked {
            self.wipe(at)?;
        }
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        Ok((lock, view))
    }

    fn wipe(&self, at: &Place) -> Result<()> {
        let path = self.attach(at, Access::Write)?.path;
        let io = |source| EngineError::Io { what: format!("wiping {at}"), source };
        // Claimed: nothing is mounted from it.
        let file = fs::claim_device(&path).map_err(io)?;
        let view = self.group.view()?;
        let Some(v) = view.at(at) else { return Ok(()) };
        if !self.mapper.is(&view.group, &v.uuid, &file) {
            return Err(EngineError::Changed(path.display().to_string()));
        }
        let Some(how) = wanted(self.wipe, v) else { return Ok(()) };
        let limit = self.wipe.limit.map(|l| l.0);
        data::wipe(&file, how, limit, &Watch::silent(self.cancel.clone()))
            .map_err(|e| io(std::io::Error::other(e)))
    }
}
