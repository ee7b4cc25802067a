//! That a machine is held still, and how it is let go.

use super::virsh::{Look, State, Virsh};
use crate::sys::Cancel;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How exact the time is that processors worked.
const TICKS: Duration = Duration::from_millis(20);
/// How long a processor may work between our asking to suspend it and its standing still.
const ASKED: Duration = Duration::from_millis(250);

/// How far it came with holding the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// The verb goes by it, and has not said that it is through.
    pub told: bool,
    pub paused: Option<Paused>,
    pub frozen: Frozen,
    /// Somebody tried to put it right, and could not.
    pub tried: bool,
}

impl Hold {
    /// Where nobody can tell.
    pub fn unknown() -> Hold {
        Hold {
            paused: Some(Paused { worked: None, sure: false }),
            frozen: Frozen::Perhaps,
            ..Hold::default()
        }
    }

    pub fn is_free(&self) -> bool {
        self.paused.is_none() && self.frozen == Frozen::No
    }
}

/// That a machine was suspended by us, and how to know that pause again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Paused {
    /// The machine's processors had worked for so long.
    pub worked: Option<Duration>,
    /// And stood still then: libvirt had answered.
    pub sure: bool,
}

impl Paused {
    /// Whether a machine that stands still does so since: whoever let it go on and suspended it again let its
    /// processors work. Until libvirt answers they work, too.
    pub(super) fn is_still(&self, seen: &Look) -> bool {
        let slack = if self.sure { TICKS } else { ASKED * seen.processors };
        let more = self.worked.and_then(|before| seen.worked?.checked_sub(before));
        seen.by_request && more.is_some_and(|more| more <= slack)
    }
}

/// Whether the guest holds its writes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Frozen {
    #[default]
    No,
    /// It was asked to, and nobody knows what came of it.
    Perhaps,
    Yes,
}

/// Puts a machine back to work. Every step is tried; what failed is told, and stays in `hold`. So does, untold,
/// that a guest may freeze later: a request that was never answered is still on its way to the agent.
pub(super) fn release(virsh: &Virsh<'_>, hold: &mut Hold) -> Result<(), String> {
    let mut wrong = Vec::new();
    if hold.paused.is_some() {
        let failed = tries(|| {
            let Err(e) = virsh.resume() else { return Ok(()) };
            match virsh.look() {
                // Somebody else resumed or ended it.
                Ok(seen) if seen.state != State::Paused => Ok(()),
                _ => Err(format!("{e:#}")),
            }
        });
        if failed.is_none() {
            hold.paused = None;
        }
        wrong.extend(failed);
    }
    let thaw = || virsh.thaw().map_err(|e| e.to_string());
    match hold.frozen {
        Frozen::No => {}
        Frozen::Yes => match tries(thaw) {
            None => hold.frozen = Frozen::No,
            Some(e) => wrong.push(e),
        },
        Frozen::Perhaps => {
            if thaw().is_ok() {
                hold.frozen = Frozen::No;
            }
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
}

pub(super) fn tries(mut act: impl FnMut() -> Result<(), String>) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_known_by_processors_that_have_not_worked_since() {
        let ms = Duration::from_millis;
        let seen = |worked, by_request| Look { state: State::Paused, by_request, processors: 2, worked };
        let before = Some(ms(1000));
        for (sure, worked, by_request, still) in [
            (true, Some(ms(1000)), true, true),
            (true, Some(ms(1010)), true, true),
            (true, Some(ms(1100)), true, false),
            (false, Some(ms(1400)), true, true),
            (false, Some(ms(1600)), true, false),
            // Started anew.
            (true, Some(ms(10)), true, false),
            // A full disk.
            (true, Some(ms(1000)), false, false),
            (true, None, true, false),
        ] {
            let paused = Paused { worked: before, sure };
            assert_eq!(paused.is_still(&seen(worked, by_request)), still, "{sure} {worked:?} {by_request}");
        }
        assert!(!Paused { worked: None, sure: true }.is_still(&seen(before, true)));
    }
}
