//! Plans: a verb run to its end without changing anything, and what it would have done. Its own code decides; what
//! it stages lies in a directory that goes with the plan, leases are looked at and not taken, data is measured and not
//! moved, and what it would publish is written down. `sys::effect` refuses every other change.

use super::Result;
use super::domain::Domain;
use super::record::Step;
use crate::data::Planned;
use crate::engine::{EngineError, Kind, Name, Place, PoolUse, Spec};
use crate::sys::{Bytes, Class, effect, mounts};
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a verb would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Draft {
    pub host: String,
    /// What it would answer.
    pub answer: String,
    /// Why it would fail, and its class, with the line that oned would be told.
    pub refused: Option<(Class, String)>,
    pub moves: Vec<Planned>,
    pub names: Vec<Change>,
    pub space: Vec<Room>,
    pub pools: Vec<Pool>,
    pub notes: Vec<String>,
    /// What comes next cannot be told: it may do more.
    pub partial: bool,
}

/// A name that would lead to something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub name: String,
    pub how: How,
    /// What has it now, for a while.
    pub kept: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    New,
    Replaced,
    Removed,
    /// The same, larger.
    Grown,
    /// A volume becomes a device of the host, or is none any more.
    Attached,
    Detached,
}

/// Where something is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub place: String,
    pub free: Bytes,
    pub total: Bytes,
    /// Where that can be told before.
    pub takes: Option<Bytes>,
    /// Where space is given in pieces.
    pub extent: Option<Bytes>,
}

/// Space that thin volumes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub size: Bytes,
    /// It has to be as large as all that is in it.
    pub then: Bytes,
    /// How full it is, which knows only the host that has it open.
    pub used: Option<PoolUse>,
}

#[derive(Clone, Debug, Default)]
pub struct Plan {
    draft: Arc<Mutex<Draft>>,
    /// Device of the storage on which something is made, and whether it has reflinks.
    target: Arc<Mutex<Option<(u64, bool)>>>,
}

impl Draft {
    /// It is there already.
    pub fn is_nothing(&self) -> bool {
        self.refused.is_none() && self.moves.is_empty() && self.names.is_empty() && !self.partial
    }
}

impl Plan {
    fn draft(&self) -> MutexGuard<'_, Draft> {
        self.draft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn take(&self) -> Draft {
        std::mem::take(&mut *self.draft())
    }

    /// Another host's part.
    pub fn add(&self, other: Draft) {
        let mut d = self.draft();
        if d.refused.is_none() {
            d.refused = other.refused;
        }
        d.moves.extend(other.moves);
        d.names.extend(other.names);
        d.space.extend(other.space);
        d.pools.extend(other.pools);
        d.notes.extend(other.notes);
        d.partial |= other.partial;
        if !other.answer.is_empty() {
            d.answer = other.answer;
        }
    }

    pub fn note(&self, text: impl Into<String>) {
        let (text, mut d) = (text.into(), self.draft());
        if !d.notes.contains(&text) {
            d.notes.push(text);
        }
    }

    /// Here it ends, though the verb would go on.
    pub fn end(&self, why: impl Into<String>) {
        self.note(why);
        self.draft().partial = true;
    }

    /// Something would be staged here.
    pub(super) fn begin(&self, domain: &Domain) {
        if domain.header.created.is_empty() {
            self.note(format!("{} becomes a storage domain first", domain.place));
        }
        let seen = self.draft().space.iter().any(|r| r.place == domain.place);
        if let Some(usage) = (!seen).then(|| domain.engine.usage().ok()).flatten() {
            let extent = domain.engine.extent().unwrap_or_default();
            let (place, takes) = (domain.place.clone(), extent.map(|_| Bytes(0)));
            self.draft().space.push(Room { place, free: usage.free, total: usage.total, takes, extent });
        }
        let place = Path::new(&domain.place);
        let device = place.metadata().map_or(0, |m| m.dev());
        // Asked for by trying is what a plan does not do.
        let table = mounts::read().unwrap_or_default();
        let kind = place.canonicalize().ok().and_then(|p| mounts::of(&p, &table).map(|m| m.kind.clone()));
        let target = Some((device, kind.is_some_and(|k| ["btrfs", "xfs"].contains(&k.as_str()))));
        *self.target.lock().unwrap_or_else(PoisonError::into_inner) = target;
    }

    /// Data would be moved. On one device it may cost nothing.
    pub(super) fn moves(&self, mut what: Planned) {
        if effect::scratch().is_some_and(|s| Path::new(&what.from).starts_with(s)) {
            // What comes of another copy.
            return;
        }
        let target = *self.target.lock().unwrap_or_else(PoisonError::into_inner);
        if what.how == "copy" && target.is_some_and(|(device, can)| can && Some(device) == what.device) {
            "reflink".clone_into(&mut what.how);
        }
        self.draft().moves.push(what);
    }

    /// Something would be made. Where space is given in pieces it is known whether there is enough; what waits for
    /// the collector counts as free.
    pub(super) fn makes(&self, domain: &Domain, spec: &Spec) -> Result<()> {
        domain.engine.takes(spec)?.map_or(Ok(()), |bytes| self.takes(domain, bytes))
    }

    fn takes(&self, domain: &Domain, bytes: Bytes) -> Result<()> {
        self.begin(domain);
        let (takes, free) = {
            let mut d = self.draft();
            let Some(room) = d.space.iter_mut().find(|r| r.place == domain.place) else { return Ok(()) };
            let takes = Bytes(room.takes.unwrap_or_default().0.saturating_add(bytes.0));
            room.takes = Some(takes);
            (takes, room.free)
        };
        if takes <= free {
            return Ok(());
        }
        let dead = domain.engine.dead()?.iter().map(|o| o.allocated.0).sum::<u64>();
        if takes.0 > free.0.saturating_add(dead) {
            return Err(EngineError::NoSpace(format!("{takes} in {}", domain.place)).into());
        }
        self.note(format!("what is kept in {}, {}, goes first to make room", domain.place, Bytes(dead)));
        Ok(())
    }

    /// A slab would get this size.
    pub fn grows(&self, domain: &Domain, name: &Name, to: Bytes) -> Result<()> {
        let now = domain.engine.look(&Place::Public(name.clone()))?;
        let (then, is_pool) =
            (domain.engine.rounded(to)?, now.as_ref().is_some_and(|o| o.kind == Kind::Pool));
        let size = now.map(|o| o.size).unwrap_or_default();
        if is_pool {
            self.pool(domain, name, then);
            return self.takes(domain, Bytes(then.0.saturating_sub(size.0)));
        }
        self.change(domain, name, How::Grown);
        self.note(format!("{}/{name} grows from {size} to {then}", domain.place));
        Ok(())
    }

    /// A pool in which something would be made, and how large it has to be then.
    pub fn pool(&self, domain: &Domain, name: &Name, then: Bytes) {
        let size = domain.engine.look(&Place::Public(name.clone())).ok().flatten().map(|o| o.size);
        let used = domain.engine.pools().unwrap_or_default().into_iter().find(|p| p.name == name.as_str());
        let (size, then) = (size.unwrap_or_default(), domain.engine.rounded(then).unwrap_or(then));
        let (name, mut d) = (format!("{}/{name}", domain.place), self.draft());
        match d.pools.iter_mut().find(|p| p.name == name) {
            Some(pool) => pool.then = pool.then.max(then),
            None => d.pools.push(Pool { name, size, then, used }),
        }
    }

    pub fn change(&self, domain: &Domain, name: &Name, how: How) {
        let change = Change { name: format!("{}/{name}", domain.place), how, kept: false };
        self.draft().names.push(change);
    }

    pub(super) fn commit(&self, domain: &Domain, steps: &[Step]) {
        let change = |name: &Name, how, kept| Change { name: format!("{}/{name}", domain.place), how, kept };
        self.draft().names.extend(steps.iter().map(|step| match step {
            Step::Publish { to, .. } => change(to, How::New, false),
            Step::Replace { to, grave, .. } => change(to, How::Replaced, grave.keep),
            Step::Bury { name, grave, .. } => change(name, How::Removed, grave.keep),
        }));
    }

    /// What would be made of a stream that is not there.
    pub fn target(&self, domain: &Domain, name: &Name) {
        let there = domain.engine.look(&Place::Public(name.clone())).ok().flatten();
        let how = if there.is_some() { How::Replaced } else { How::New };
        let kept = how == How::Replaced;
        self.begin(domain);
        self.draft().names.push(Change { name: format!("{}/{name}", domain.place), how, kept });
    }
}
