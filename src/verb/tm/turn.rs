//! Turns of the two sides of a transfer: see `sdm::turn`. What is moved between two hosts cannot begin anew in the
//! middle, so both take a turn before it begins.

use super::flow::Side;
use super::{Op, place};
use crate::host::{Commit, Event, HostError, Request};
use crate::sdm::{Domain, Job, SdmError, turn};
use crate::verb::Ctx;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::Path;
use std::time::Duration;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// What is to be done then.
    pub of: Box<Op>,
    pub ask: TurnAsk,
}

/// The text of what is answered: whether it is had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TurnAsk {
    /// For so many milliseconds at most, as who came at that time.
    Wait {
        came: u64,
        most: u64,
    },
    /// The other side of the transfer has it, on the same host.
    Lend,
    End,
}

/// How long one host is waited for before the other one hears of us again.
const SPELL: Duration = Duration::from_secs(2);

/// Has both sides take a turn to move data, where there is a limit. One is waited for while the other has none:
/// of two transfers in opposite directions neither waits for what the other keeps. `one`: both are one machine,
/// where it is one copy.
pub(super) fn both(job: &Job, one: bool, from: &mut Side<'_>, to: &mut Side<'_>) -> Result<(), HostError> {
    let came = turn::now();
    let wait = |most: Duration| TurnAsk::Wait { came, most: u64::try_from(most.as_millis()).unwrap_or(0) };
    let mut ask = |side, ask| if side { to.turn(job, ask) } else { from.turn(job, ask) };
    let mut first = false;
    loop {
        if ask(first, wait(SPELL))? {
            if ask(!first, if one { TurnAsk::Lend } else { wait(Duration::ZERO) })? {
                return Ok(());
            }
            ask(first, TurnAsk::End)?;
            first = !first;
        } else {
            // It would think us lost.
            ask(!first, TurnAsk::End)?;
        }
    }
}

impl Side<'_> {
    fn turn(&mut self, job: &Job, ask: TurnAsk) -> Result<bool, HostError> {
        let mut body = self.body.clone();
        body["op"] = json!({ "op": "turn", "of": self.body["op"], "ask": ask });
        let request = Request { job: &self.job, body, commit: Commit::Now, source: None };
        let mut news = |e| {
            if let Event::Progress(p) = e {
                job.follow(&p.phase, p.done, p.total);
            }
        };
        let reply = self.channel.call(request, &mut news, job.cancel())?;
        Ok(reply["text"] == "true")
    }
}

/// The host's side: whether this process has a turn, for the operation that comes next.
pub(super) fn take(
    job: &Job,
    ctx: &Ctx<'_>,
    op: &Turn,
    open: &dyn Fn(&Path, i64) -> Result<Domain, SdmError>,
) -> Result<bool> {
    let copies = &job.jobs.copies;
    let (came, most) = match op.ask {
        TurnAsk::Wait { came, most } => (came, most),
        TurnAsk::Lend => {
            copies.lend_turn();
            return Ok(true);
        }
        TurnAsk::End => {
            copies.end_turn();
            return Ok(false);
        }
    };
    let mut domains = Vec::new();
    for (ds, dir) in place::stores(ctx, &op.of.paths())? {
        domains.push(open(&dir, ds)?);
    }
    Ok(turn::take(job, &domains, came, Duration::from_millis(most))?)
}
