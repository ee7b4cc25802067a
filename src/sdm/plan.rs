//! Plans: a verb run to its end without changing anything, and what it would have done. Its own code decides; what
//! it stages lies in a directory that goes with the plan, leases are looked at and not taken, data is measured and not
//! moved, and what it would publish is written down. `sys::effect` refuses every other change.

use super::domain::Domain;
use super::record::Step;
use crate::data::Planned;
use crate::engine::{Name, Place};
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
    pub notes: Vec<String>,
}

/// A name that would lead to something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub name: String,
    pub how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    New,
    /// What has it now is kept for a while.
    Replaced,
    Removed,
}

/// Where something is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Room {
    pub place: String,
    pub free: Bytes,
    pub total: Bytes,
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
        self.refused.is_none() && self.moves.is_empty() && self.names.is_empty()
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
        d.notes.extend(other.notes);
        if !other.answer.is_empty() {
            d.answer = other.answer;
        }
    }

    pub fn note(&self, text: impl Into<String>) {
        self.draft().notes.push(text.into());
    }

    /// Something would be staged here.
    pub(super) fn begin(&self, domain: &Domain) {
        if domain.header.created.is_empty() {
            let note = format!("{} becomes a storage domain first", domain.place);
            let mut d = self.draft();
            if !d.notes.contains(&note) {
                d.notes.push(note);
            }
        }
        if let Ok(usage) = domain.engine.usage() {
            let room = Room { place: domain.place.clone(), free: usage.free, total: usage.total };
            let mut d = self.draft();
            if !d.space.contains(&room) {
                d.space.push(room);
            }
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

    pub(super) fn commit(&self, domain: &Domain, steps: &[Step]) {
        let change = |name: &Name, how| Change { name: format!("{}/{name}", domain.place), how };
        self.draft().names.extend(steps.iter().map(|step| match step {
            Step::Publish { to, .. } => change(to, How::New),
            Step::Replace { to, .. } => change(to, How::Replaced),
            Step::Bury { name, .. } => change(name, How::Removed),
        }));
    }

    /// What would be made of a stream that is not there.
    pub fn target(&self, domain: &Domain, name: &Name) {
        let there = domain.engine.look(&Place::Public(name.clone())).ok().flatten();
        let how = if there.is_some() { How::Replaced } else { How::New };
        self.begin(domain);
        self.draft().names.push(Change { name: format!("{}/{name}", domain.place), how });
    }
}
