//! Whoever holds a running machine still must not vanish. So it is not the verb that does: a companion
//! process suspends the machine and asks its guest to flush, and lets it go when the verb says so, when the
//! verb's process ends in whatever way, or when it took too long. Killed itself, it is the verb that lets go.

use super::super::op;
use super::virsh::{State, Virsh, is_answer};
use crate::sys::companion::{Companion, Ends, Heard};
use crate::sys::{Cancel, Class, Tools};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::time::{Duration, Instant};

/// The longest a machine is held still, for any reason.
const HOLD: Duration = Duration::from_secs(300);
/// How long the companion may take to notice something, besides what it runs.
const SLACK: Duration = Duration::from_secs(10);
/// The name of the companion's command.
pub const COMMAND: &str = "guard";

/// What the companion is to look after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Charge {
    pub watched: op::Follow,
    /// Settings that both must agree in, as on a command line.
    pub set: Vec<(String, String)>,
    /// Whether the disk is being mirrored: a job that nobody would end.
    mirror: bool,
    /// Whether the machine is held still so that its next layer can be put under it.
    switch: bool,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Hold,
    Free,
    End,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
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
    held: bool,
}

/// What the guard is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Switch,
    Mirror,
    Copy,
}

impl<'a> Guard<'a> {
    pub fn start(
        virsh: &'a Virsh<'a>,
        watched: op::Follow,
        set: Vec<(String, String)>,
        what: For,
    ) -> Result<Guard<'a>> {
        let mut companion =
            Companion::start(&[OsStr::new(COMMAND)]).context("starting the guard of the machine")?;
        let charge = Charge { watched, set, mirror: what == For::Mirror, switch: what == For::Switch };
        let charge = serde_json::to_string(&charge).context("writing down the charge")?;
        companion.ends.say(&charge).context("talking to the guard of the machine")?;
        Ok(Guard { virsh, companion: Some(companion), held: false })
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
                release(self.virsh, true, Frozen::Perhaps).map_err(|why| refuse(Class::Remote, why))?;
                Ok(false)
            }
        }
    }

    /// Leaves the rest to the companion: what it does for a verb that died.
    pub fn leave(mut self) {
        if self.companion.take().is_some() {
            self.held = false;
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

/// Whether the guest holds its writes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Frozen {
    #[default]
    No,
    /// It was asked to, and nobody knows what came of it.
    Perhaps,
    Yes,
}

/// Puts a machine back to work. Every step is tried; what failed is told.
fn release(virsh: &Virsh<'_>, paused: bool, frozen: Frozen) -> Result<(), String> {
    let mut wrong = Vec::new();
    if paused {
        wrong.extend(tries(|| {
            let Err(e) = virsh.resume() else { return Ok(()) };
            match virsh.state() {
                // Somebody else resumed or ended it.
                Ok(State::Running | State::Other) => Ok(()),
                _ => Err(format!("{e:#}")),
            }
        }));
    }
    if frozen != Frozen::No {
        wrong.extend(tries(|| match virsh.thaw() {
            Err(e) if frozen == Frozen::Perhaps && is_answer(&e) => Ok(()),
            done => done.map_err(|e| e.to_string()),
        }));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

fn tries(mut act: impl FnMut() -> Result<(), String>) -> Option<String> {
    let mut last = None;
    for _ in 0..3 {
        match act() {
            Ok(()) => return None,
            Err(e) => last = Some(e),
        }
        Cancel::default().wait(Duration::from_millis(300));
    }
    last
}

/// The companion's side.
struct Watch<'a> {
    virsh: Virsh<'a>,
    charge: &'a Charge,
    follow: &'a FollowIt<'a>,
    paused: bool,
    frozen: Frozen,
    since: Option<Instant>,
    late: bool,
}

/// What to look after; `None` where nobody says.
pub fn charge(ends: &mut Ends) -> Result<Option<Charge>> {
    let Heard::Line(line) = ends.hear(SLACK) else { return Ok(None) };
    serde_json::from_str(&line).map(Some).context("reading the charge")
}

/// Makes the disk's link lead to what the machine writes to.
pub type FollowIt<'a> = dyn Fn(&op::Follow) -> Result<()> + 'a;

/// Serves one verb to its end.
pub fn serve(charge: &Charge, tools: &Tools, ends: &mut Ends, follow: &FollowIt<'_>) -> Result<()> {
    // Nobody stops it: what it does is short.
    let cancel = Cancel::default();
    let virsh = Virsh { tools, cancel: &cancel, machine: &charge.watched.machine };
    virsh.sound()?;
    let mut watch =
        Watch { virsh, charge, follow, paused: false, frozen: Frozen::No, since: None, late: false };
    loop {
        let left = watch.since.map_or(HOLD, |s| HOLD.saturating_sub(s.elapsed()));
        let reply = match ends.hear(left) {
            Heard::Line(line) => match serde_json::from_str(&line) {
                Ok(Word::Hold) => watch.hold(),
                Ok(Word::Free) => watch.free(),
                Ok(Word::End) => return Ok(()),
                Err(_) => return watch.abandoned(),
            },
            Heard::Gone => return watch.abandoned(),
            Heard::Quiet if watch.since.is_some() => {
                watch.late = true;
                let (paused, frozen) = watch.forget();
                // The verb is told when it asks.
                let _ = release(&watch.virsh, paused, frozen);
                continue;
            }
            Heard::Quiet => continue,
        };
        // Nobody there any more is seen by the next look.
        let _ = ends.say(&serde_json::to_string(&reply).context("writing down a reply")?);
    }
}

impl Watch<'_> {
    fn forget(&mut self) -> (bool, Frozen) {
        self.since = None;
        (std::mem::take(&mut self.paused), std::mem::take(&mut self.frozen))
    }

    fn hold(&mut self) -> Reply {
        self.late = false;
        match self.try_hold() {
            Ok(()) => {
                self.since = Some(Instant::now());
                Reply::Held
            }
            Err(e) => {
                let (paused, frozen) = self.forget();
                let more = release(&self.virsh, paused, frozen).err().map(|e| format!("; {e}"));
                Reply::Failed(format!("{e:#}{}", more.unwrap_or_default()))
            }
        }
    }

    fn try_hold(&mut self) -> Result<()> {
        let before = self.virsh.state()?;
        if before == State::Other {
            return Err(refuse(Class::Refused, "it does not run"));
        }
        let freeze = self.virsh.machine.freeze;
        if before == State::Running && freeze != op::Freeze::Suspend {
            let asked = self.virsh.freeze();
            // Without an answer it may come to pass later.
            self.frozen = match &asked {
                Ok(()) => Frozen::Yes,
                Err(e) if is_answer(e) => Frozen::No,
                Err(_) => Frozen::Perhaps,
            };
            if freeze == op::Freeze::Agent {
                asked.context("asking the guest's agent to flush its file systems")?;
            }
        }
        if before == State::Running {
            // What a failed request may have done is undone, too.
            self.paused = true;
            self.virsh.suspend()?;
        }
        Ok(())
    }

    fn free(&mut self) -> Reply {
        let (paused, frozen) = self.forget();
        match release(&self.virsh, paused, frozen) {
            Ok(()) => Reply::Freed { late: std::mem::take(&mut self.late) },
            Err(why) => Reply::Failed(why),
        }
    }

    /// The verb is no more. What it had asked of libvirt may still be going on: libvirt works on one request
    /// at a time for a machine, so one of our own ends after it.
    fn abandoned(&mut self) -> Result<()> {
        let (paused, frozen) = self.forget();
        if self.charge.mirror {
            // One that was just asked for may not have begun.
            Cancel::default().wait(Duration::from_millis(500));
            let _ = tries(|| match self.virsh.job() {
                Ok(None) => Ok(()),
                _ => self.virsh.end_job().map_err(|e| e.to_string()),
            });
        }
        let held = paused || frozen != Frozen::No;
        if held && self.charge.switch {
            let _ = self.virsh.suspend();
            // Still: nothing is in a new layer yet, and nothing will be before the link leads there.
            let _ = (self.follow)(&self.charge.watched);
        }
        let freed = release(&self.virsh, paused, frozen);
        if held && self.charge.switch {
            (self.follow)(&self.charge.watched)?;
        }
        freed.map_err(|why| refuse(Class::Remote, why))
    }
}
