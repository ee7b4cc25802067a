//! A group that is a domain no more. One rename decides: the records become a tombstone, and from then on nobody
//! finds a domain. What is left then is only ours, and goes; the group's own tag goes last and tells until then
//! that somebody has to go on.

use super::group::Change;
use super::view::{self, LEASES, META, View};
use super::{EngineError, Grave, LvmEngine, Place, PoisonError, Result};
use crate::lock::{DomainLock, JobId};

const DOMAIN: &str = "sdm.domain.";

/// What is said of the group itself.
pub(super) fn domain_tag(id: uuid::Uuid) -> String {
    format!("{DOMAIN}{id}")
}

fn grave(n: u32) -> Result<String> {
    view::volume_name(&Place::Dead(Grave { job: JobId::generate(), n, keep: false }))
}

impl LvmEngine {
    /// The domain that this group was before somebody began to end that.
    pub fn retiring(&self) -> Result<Option<uuid::Uuid>> {
        let view = self.group.view()?;
        let id = view.tags.iter().find_map(|t| t.strip_prefix(DOMAIN)?.parse().ok());
        Ok(id.filter(|_| view.named(META).is_none()))
    }

    /// Decides it. The caller saw that no job is at work and that nothing but public volumes is there.
    pub fn retire(&self, lock: &DomainLock) -> Result<()> {
        let view = self.settled(lock)?;
        let (from, to) = (META.to_owned(), grave(0)?);
        self.commit(lock, &view, &[Change::Rename { from, to }]).map(drop)
    }

    /// Takes away what is left. Nobody else may be at it: there are no locks of several hosts any more.
    pub fn clear(&self) -> Result<()> {
        let lock = self.lock()?;
        // A device that this process has open cannot go.
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let mut view = self.group.view()?;
        if view.named(LEASES).is_some() {
            let (from, to) = (LEASES.to_owned(), grave(1)?);
            view = self.commit(&lock, &view, &[Change::Rename { from, to }])?;
        }
        for v in view.volumes.clone() {
            let ours = matches!(view.object(&v).map(|o| o.place), Some(Place::Dead(_)));
            let del: Vec<String> = v.tags.iter().filter(|t| t.starts_with("sdm.")).cloned().collect();
            if ours {
                view = self.remove(&lock, &view, &v)?;
            } else if !del.is_empty() {
                view = self.commit(&lock, &view, &[Change::Release { volume: v.name, del }])?;
            }
        }
        for tag in view.tags.clone().into_iter().filter(|t| t.starts_with(DOMAIN)) {
            view = self.commit(&lock, &view, &[Change::Group { tag, domain: false }])?;
        }
        Ok(())
    }

    /// The group of a domain, tidied: the manager's records are there, or a process that looked before it was
    /// retired would go on as if nothing had happened.
    pub(super) fn settled(&self, lock: &DomainLock) -> Result<View> {
        let view = self.tidied(lock)?;
        if view.named(META).is_none() {
            return Err(EngineError::Absent(self.group.path(META)));
        }
        Ok(view)
    }

    /// This host's devices of the manager's own volumes, when it is no member any more: the volumes may go.
    pub fn forget(&self) -> Result<()> {
        *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let view = self.group.view()?;
        for name in [META, LEASES].into_iter().filter(|n| view.named(n).is_some()) {
            self.mapper.close(&self.group, name)?;
        }
        Ok(())
    }
}
