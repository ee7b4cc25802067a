//! Whoever holds a running machine still must not vanish. So it is not the verb that does: a companion
//! process suspends the machine and asks its guest to flush, and lets it go when the verb says so, when the
//! verb's process ends in whatever way, or when it took too long. Killed itself, it is the verb that lets go.

use super::super::op;
use super::hold::{Hold, release};
use super::note::Note;
use super::virsh::Virsh;
use crate::lock::JobId;
use crate::sdm::Jobs;
use crate::sys::Class;
use crate::sys::companion::{Companion, Heard};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The longest a machine is held still, for any reason.
pub(super) const HOLD: Duration = Duration::from_secs(300);
/// How long the companion may take to notice something, besides what it runs.
pub(super) const SLACK: Duration = Duration::from_secs(10);
/// The name of the companion's command.
pub const COMMAND: &str = "guard";

/// What the companion is to look after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    pub watched: op::Follow,
    /// Settings that both must agree in, as on a command line.
    pub set: Vec<(String, String)>,
    /// Where the disk is being mirrored to: a job that nobody would end.
    pub(super) mirror: Option<PathBuf>,
    /// Whether the machine is held still so that its next layer can be put under it.
    pub(super) switch: bool,
    /// The record of this.
    pub(super) note: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Word {
    Hold,
    Free,
    End,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reply {
    Held,
    Freed {
        /// It had been let go before, because it took too long.
        late: bool,
    },
    Failed(String),
}

/// The verb's side.
pub(super) struct Guard<'a> {
    virsh: &'a Virsh<'a>,
    companion: Option<Companion>,
    /// Held as long as we live.
    note: Option<Note>,
    held: bool,
}

/// What the guard is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For<'p> {
    Switch,
    /// Into this file.
    Mirror(&'p Path),
    Copy,
}

impl<'a> Guard<'a> {
    pub fn start(
        virsh: &'a Virsh<'a>,
        (jobs, id): (&Jobs, JobId),
        watched: op::Follow,
        set: Vec<(String, String)>,
        what: For<'_>,
    ) -> Result<Guard<'a>> {
        let mut companion =
            Companion::start(&[OsStr::new(COMMAND)]).context("starting the guard of the machine")?;
        let mirror = if let For::Mirror(path) = what { Some(path.to_owned()) } else { None };
        let mut charge = Charge { watched, set, mirror, switch: what == For::Switch, note: None };
        let note = Note::make(jobs, id, &charge);
        let note = note.inspect_err(|e| tracing::debug!(%e, "the guard has no record")).ok();
        charge.note = note.as_ref().map(|n| n.path().to_owned());
        let charge = serde_json::to_string(&charge).context("writing down the charge")?;
        companion.ends.say(&charge).context("talking to the guard of the machine")?;
        Ok(Guard { virsh, companion: Some(companion), note, held: false })
    }

    fn ask(&mut self, word: &Word, patience: Duration) -> Result<Option<Reply>> {
        let Some(companion) = &mut self.companion else { return Ok(None) };
        let word = serde_json::to_string(word).context("writing down a word")?;
        // One that is gone is found out by what it does not say.
        let _ = companion.ends.say(&word);
        match companion.ends.hear(patience) {
            Heard::Line(line) => {
                Ok(Some(serde_json::from_str(&line).context("hearing the guard of the machine")?))
            }
            Heard::Gone | Heard::Quiet => {
                self.companion = None;
                Ok(None)
            }
        }
    }

    /// From here on the machine stands still.
    pub fn hold(&mut self) -> Result<()> {
        self.held = true;
        match self.ask(&Word::Hold, 6 * self.virsh.timeout() + SLACK)? {
            Some(Reply::Held) => Ok(()),
            reply => {
                let why = match reply {
                    Some(Reply::Failed(why)) => {
                        self.held = false;
                        why
                    }
                    _ => "the process that was to hold it is gone".to_owned(),
                };
                let text = format!("machine {} could not be held still: {why}", self.virsh.machine.domain);
                Err(refuse(Class::Remote, text))
            }
        }
    }

    /// The machine goes on. `false`: it had gone on before.
    pub fn free(&mut self) -> Result<bool> {
        if !std::mem::take(&mut self.held) {
            return Ok(true);
        }
        match self.ask(&Word::Free, 6 * self.virsh.timeout() + SLACK)? {
            Some(Reply::Freed { late }) => Ok(!late),
            Some(Reply::Failed(why)) => {
                let name = &self.virsh.machine.domain;
                let text = format!("machine {name} was not resumed: {why}; resume it (virsh resume {name})");
                Err(refuse(Class::Remote, text))
            }
            Some(Reply::Held) | None => {
                // It was held for how long? Nobody knows any more.
                let note = self.note.as_ref().and_then(|note| Some((note, note.read().ok()?)));
                let mut hold = note.as_ref().map_or_else(Hold::unknown, |(_, entry)| entry.hold.clone());
                let released = release(self.virsh, &mut hold);
                if let Some((note, entry)) = note {
                    // What else it was to look after is for whoever comes next.
                    let _ = note.write(&entry.charge, &hold);
                }
                released.map_err(|why| refuse(Class::Remote, why))?;
                Ok(false)
            }
        }
    }

    /// Leaves the rest to the companion: what it does for a verb that died.
    pub fn leave(mut self) {
        if self.companion.take().is_some() {
            self.held = false;
            self.note = None;
        }
    }

    /// Nothing is left to look after.
    pub fn end(mut self) {
        if let Some(mut companion) = self.companion.take() {
            let _ = serde_json::to_string(&Word::End).map(|word| companion.ends.say(&word));
            companion.end(SLACK);
        }
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        // Its own process would see our end only when we are gone.
        let _ = self.free();
        if let Some(companion) = self.companion.take() {
            companion.end(6 * self.virsh.timeout() + SLACK);
        }
    }
}
