//! Functions for drivers written in bash, put where a tree has none. One that is there is never touched,
//! whoever's it is, unless an install wrote it and nobody has changed it since.

use super::slot::Slot;
use super::tree::{Action, Step};
use crate::sys::fs::{Dir, Kind};
use crate::sys::hex;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const ALL: [(&str, &str); 3] = [
    ("scripts_common.sh", include_str!("../../../remotes/scripts_common.sh")),
    ("tm/tm_common.sh", include_str!("../../../remotes/tm/tm_common.sh")),
    ("datastore/libfs.sh", include_str!("../../../remotes/datastore/libfs.sh")),
];

/// A library that an install wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Helper {
    pub path: String,
    /// Of every text that was written there, the last one in force.
    pub sha256: Vec<String>,
}

/// Whether an install may write there.
pub fn is_one(path: &str) -> bool {
    ALL.iter().any(|(p, _)| *p == path)
}

fn digest(text: &[u8]) -> String {
    hex(&Sha256::digest(text))
}

/// Whether what has the name is a text that we wrote; `None` when nothing has it.
fn is_ours(slot: &Slot, known: &Helper) -> Result<Option<bool>> {
    let Some(e) = slot.entry()? else { return Ok(None) };
    // Ours are small.
    let plain = e.kind == Kind::File && e.size < 1 << 20;
    Ok(Some(plain && known.sha256.contains(&digest(&slot.text()?))))
}

/// What has to be done, and what the manifest will say. The others build on the first: beside somebody
/// else's they are not ours to offer.
pub fn plan(root: &Dir, known: &[Helper]) -> Result<(Vec<Step>, Vec<Helper>)> {
    let (mut steps, mut helpers) = (Vec::new(), Vec::new());
    let mut foreign = false;
    for (path, text) in ALL {
        let Some(slot) = Slot::open(root, path)? else { continue };
        let new = digest(text.as_bytes());
        let known = known.iter().find(|h| h.path == path).cloned();
        let mut helper = known.unwrap_or(Helper { path: path.to_owned(), sha256: Vec::new() });
        let action = match is_ours(&slot, &helper)? {
            None if foreign => continue,
            Some(true) if foreign => Action::Remove,
            None => Action::Make,
            Some(true) if slot.text()? == text.as_bytes() => Action::Nothing,
            Some(true) => Action::Relink,
            Some(false) => {
                foreign |= path == ALL[0].0;
                continue;
            }
        };
        helper.sha256.retain(|d| *d != new);
        helper.sha256.push(new);
        helpers.push(helper);
        steps.push(Step { path: path.to_owned(), action });
    }
    Ok((steps, helpers))
}

/// Does it. What was there a moment ago may have been replaced since: looked at again.
pub fn apply(root: &Dir, steps: &[Step], known: &[Helper]) -> Result<()> {
    for step in steps.iter().filter(|s| s.action != Action::Nothing) {
        let text = ALL.iter().find(|(p, _)| *p == step.path).map(|(_, text)| text);
        let helper = known.iter().find(|h| h.path == step.path);
        if let (Some(slot), Some(text), Some(helper)) = (Slot::open(root, &step.path)?, text, helper)
            && is_ours(&slot, helper)? != Some(false)
        {
            match step.action {
                Action::Remove => slot.remove()?,
                _ => slot.put_text(text.as_bytes())?,
            }
            slot.dir.sync().with_context(|| format!("flushing {}", step.path))?;
        }
    }
    Ok(())
}

/// What an uninstall does with those that an install wrote.
pub fn undo_plan(root: &Dir, known: &[Helper]) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    for helper in known {
        let Some(slot) = Slot::open(root, &helper.path)? else { continue };
        let action = match is_ours(&slot, helper)? {
            None => Action::Nothing,
            Some(true) => Action::Remove,
            Some(false) => Action::LeaveNewer,
        };
        steps.push(Step { path: helper.path.clone(), action });
    }
    Ok(steps)
}

pub fn undo(root: &Dir, steps: &[Step]) -> Result<()> {
    for step in steps {
        let Some(slot) = Slot::open(root, &step.path)? else { continue };
        if step.action == Action::Remove {
            slot.remove()?;
        }
        slot.mend()?;
        slot.dir.sync().with_context(|| format!("flushing {}", step.path))?;
    }
    Ok(())
}
