//! The guard's own side: what it does for a verb, and for one that is no more.

use super::super::op;
use super::guard::{Charge, HOLD, Reply, SLACK, Word};
use super::hold::{Frozen, Hold, Paused, release, tries};
use super::note::{Entry, Found, Note};
use super::virsh::{Look, State, Virsh, is_answer};
use crate::sys::companion::{Ends, Heard};
use crate::sys::{Cancel, Class, Tools};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::time::{Duration, Instant};

/// The companion's side.
struct Watch<'a> {
    virsh: Virsh<'a>,
    charge: &'a Charge,
    follow: &'a FollowIt<'a>,
    note: Option<Note>,
    hold: Hold,
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
    let note = charge.note.as_deref().and_then(|path| Note::join(path).ok());
    let mut watch = Watch::new((tools, &cancel), charge, follow, note)?;
    loop {
        let left = watch.since.map_or(HOLD, |s| HOLD.saturating_sub(s.elapsed()));
        let reply = match ends.hear(left) {
            Heard::Line(line) => match serde_json::from_str(&line) {
                Ok(Word::Hold) => watch.hold(),
                Ok(Word::Free) => watch.free(),
                Ok(Word::End) => {
                    watch.ended();
                    return Ok(());
                }
                Err(_) => return watch.abandoned(),
            },
            Heard::Gone => return watch.abandoned(),
            Heard::Quiet if watch.since.is_some() => {
                watch.late = true;
                // The verb is told when it asks.
                let _ = watch.release();
                continue;
            }
            Heard::Quiet => continue,
        };
        // Nobody there any more is seen by the next look.
        let _ = ends.say(&serde_json::to_string(&reply).context("writing down a reply")?);
    }
}

impl<'a> Watch<'a> {
    fn new(
        (tools, cancel): (&'a Tools, &'a Cancel),
        charge: &'a Charge,
        follow: &'a FollowIt<'a>,
        note: Option<Note>,
    ) -> Result<Watch<'a>> {
        let virsh = Virsh { tools, cancel, machine: &charge.watched.machine };
        virsh.sound()?;
        Ok(Watch { virsh, charge, follow, note, hold: Hold::default(), since: None, late: false })
    }

    /// On record before it is done, where it is about to be.
    fn on_record(&mut self, change: impl FnOnce(&mut Hold)) {
        change(&mut self.hold);
        if let Some(Err(e)) = self.note.as_ref().map(|n| n.write(self.charge, &self.hold)) {
            tracing::debug!(%e, "the guard's record was not written");
        }
    }

    /// What could not be put back to work stays on record.
    fn release(&mut self) -> Result<(), String> {
        self.since = None;
        let mut hold = self.hold.clone();
        let released = release(&self.virsh, &mut hold);
        // It may take long until its agent hears: nobody but the collector waits for that.
        hold.tried = hold.paused.is_none() && hold.frozen != Frozen::No;
        self.on_record(|h| *h = hold);
        released
    }

    /// Nothing is left to look after.
    fn ended(&mut self) {
        if let Some(note) = self.note.take().filter(|_| self.hold.is_free()) {
            note.remove();
        }
    }

    fn hold(&mut self) -> Reply {
        self.late = false;
        match self.try_hold() {
            Ok(()) => {
                self.since = Some(Instant::now());
                self.on_record(|h| h.told = true);
                Reply::Held
            }
            Err(e) => {
                let more = self.release().err().map(|e| format!("; {e}"));
                Reply::Failed(format!("{e:#}{}", more.unwrap_or_default()))
            }
        }
    }

    fn try_hold(&mut self) -> Result<()> {
        let mut seen = self.virsh.look()?;
        match seen.state {
            State::Running => {}
            // By somebody else, who lets it go on, too.
            State::Paused => return Ok(()),
            State::Other => return Err(refuse(Class::Refused, "it does not run")),
        }
        let freeze = self.virsh.machine.freeze;
        if freeze != op::Freeze::Suspend {
            // An agent that is busy or stopped would freeze the guest when it comes to it.
            let asked = self.virsh.ping().and_then(|()| {
                self.on_record(|h| h.frozen = Frozen::Perhaps);
                self.virsh.freeze()
            });
            match &asked {
                Ok(()) => self.on_record(|h| h.frozen = Frozen::Yes),
                Err(e) if is_answer(e) => self.on_record(|h| h.frozen = Frozen::No),
                Err(_) => {}
            }
            if freeze == op::Freeze::Agent {
                asked.context("asking the guest's agent to flush its file systems")?;
            }
            seen = self.virsh.look()?;
        }
        // What a failed request may have done is undone, too.
        self.on_record(|h| h.paused = Some(Paused { worked: seen.worked, sure: false }));
        self.virsh.suspend()?;
        if let Ok(Look { state: State::Paused, worked, .. }) = self.virsh.look() {
            self.on_record(|h| h.paused = Some(Paused { worked, sure: true }));
        }
        Ok(())
    }

    fn free(&mut self) -> Reply {
        match self.release() {
            Ok(()) => {
                self.on_record(|h| h.told = false);
                Reply::Freed { late: std::mem::take(&mut self.late) }
            }
            Err(why) => Reply::Failed(why),
        }
    }

    /// The verb is no more. What it had asked of libvirt may still be going on: libvirt works on one request
    /// at a time for a machine, so one of our own ends after it.
    fn abandoned(&mut self) -> Result<()> {
        if self.charge.mirror.is_some() {
            // One that was just asked for may not have begun.
            Cancel::default().wait(Duration::from_millis(500));
            let _ = self.end_mirror();
        }
        self.let_go()
    }

    fn end_mirror(&self) -> Result<(), String> {
        let end = || match self.virsh.job() {
            Ok(None) => Ok(()),
            _ => self.virsh.end_job().map_err(|e| e.to_string()),
        };
        tries(end).map_or(Ok(()), Err)
    }

    fn let_go(&mut self) -> Result<()> {
        let switch = self.charge.switch && self.hold.told;
        if switch && self.hold.paused.is_some() {
            let _ = self.virsh.suspend();
            // Still: nothing is in a new layer yet, and nothing will be before the link leads there.
            let _ = (self.follow)(&self.charge.watched);
        }
        let freed = self.release();
        if switch {
            (self.follow)(&self.charge.watched)?;
        }
        freed.map_err(|why| refuse(Class::Remote, why))?;
        self.ended();
        Ok(())
    }
}

impl Watch<'_> {
    /// For a verb and its guard that died together, some time ago. Says what there was to be done.
    fn found(&mut self) -> Result<Option<&'static str>> {
        // What fails is tried again by the collector, and not by every verb.
        self.on_record(|h| h.tried = true);
        let seen = self.virsh.look()?;
        if seen.state == State::Other {
            self.hold = Hold::default();
            self.ended();
            return Ok(None);
        }
        let mut text = None;
        if let Some(file) = &self.charge.mirror
            && self.virsh.mirrors_into(file)?
        {
            self.end_mirror().map_err(|why| refuse(Class::Remote, why))?;
            text = Some("the mirror of its disk went on for nobody, and was ended");
        }
        let is_still = |p: &Paused| seen.state == State::Paused && p.is_still(&seen);
        match self.hold.paused.take_if(|p| !is_still(p)) {
            Some(_) if seen.state == State::Paused => {
                text = Some("it stands still, but not since then: who suspended it has to resume it");
            }
            _ if self.hold.paused.is_some() => text = Some("it stood still since then, and goes on now"),
            _ => {}
        }
        if self.hold.frozen != Frozen::No {
            if seen.state == State::Paused && self.hold.paused.is_none() {
                // Its agent cannot hear.
                let text = "its guest's file systems are frozen, and somebody else suspended it; they are thawed by the \
                            next call after it was resumed";
                return Err(refuse(Class::Busy, text));
            }
            text = text.or(Some("its guest's file systems were frozen since then, and were thawed"));
        }
        self.let_go()?;
        if self.hold.frozen != Frozen::No {
            let text =
                "its guest was asked to freeze its file systems, and its agent does not answer to thaw them";
            return Err(refuse(Class::Remote, text));
        }
        Ok(text)
    }
}

/// Does what a verb and its guard would have done that died together. `None`: they live, or it is done.
pub fn recover(path: &Path, tools: &Tools, follow: &FollowIt<'_>) -> Result<Option<Found>> {
    let Some(note) = Note::take(path).with_context(|| format!("taking {}", path.display()))? else {
        return Ok(None);
    };
    let Entry { charge, hold } = match note.read() {
        Ok(entry) => entry,
        Err(e) => {
            note.remove();
            return Err(e.context("removing a guard's record that nobody understands"));
        }
    };
    let cancel = Cancel::default();
    let mut watch = Watch::new((tools, &cancel), &charge, follow, Some(note))?;
    watch.hold = hold;
    let name = &charge.watched.machine.domain;
    let about = || format!("machine {name}, whose verb and guard were killed together");
    let found = watch.found().with_context(about)?;
    Ok(found.map(|text| Found { done: true, text: format!("{}: {text}", about()) }))
}
