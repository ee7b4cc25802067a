//! Two hosts at once: one gives, the other takes. Straight from one to the other where the site allows, which
//! the giving host finds out; else through here. What is decided is decided here in both cases.

use super::super::flow::{self, Side, hear};
use super::super::op::{Meet, Met, Op, Pass, Passed, Send, Told, What};
use super::super::turn;
use super::{Asked, At, Front, PAUSE, proof};
use crate::host::{Channel, Commit, Event, HostError, Request, Route};
use crate::lock::JobId;
use crate::one::HostName;
use crate::sdm::event;
use crate::sdm::plan::Plan;
use crate::sys::{Bytes, Cancel, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

const NO_ANSWER: &str = "an answer that is none";
/// How often it is tried when it was committed and the answer got lost.
const TRIES: u32 = 3;

/// A host that was reached.
pub(super) struct Line<'a> {
    pub(super) at: At<'a>,
    pub(super) host: &'a str,
    pub(super) is_here: bool,
    data: Bytes,
    pub(super) channel: Box<dyn Channel + 'a>,
}

/// `data`: what is likely to go, as far as that is known.
pub(super) fn reach<'a>(front: &'a Front<'_>, at: At<'a>, data: Bytes) -> Result<Line<'a>> {
    Ok(line(at, data, front.hosts.open_by(name(&at), data)?))
}

/// Both at once: one gives to the other. There our keys count, if they are needed to go on from there.
pub(super) fn reach_both<'a>(
    front: &'a Front<'_>,
    (from, to): (At<'a>, At<'a>),
    data: Bytes,
) -> Result<(Line<'a>, Line<'a>)> {
    let hosts = front.hosts;
    let taker = hosts.choose(name(&to), data)?;
    let is_here = matches!(taker.route, Route::Local { .. });
    let (gives, takes) = std::thread::scope(|s| {
        let takes = s.spawn(|| hosts.open_chosen(taker));
        let gives = reach_giver(front, from, data, is_here);
        (gives, takes.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    });
    // Where both cannot be had the one that takes is named: nothing goes without it.
    let takes = line(to, data, takes?);
    Ok((gives?, takes))
}

/// The host that gives to another, which is another machine unless `to_here`.
pub(super) fn reach_giver<'a>(
    front: &'a Front<'_>,
    at: At<'a>,
    data: Bytes,
    to_here: bool,
) -> Result<Line<'a>> {
    let with_keys = front.settings.data.direct && !to_here;
    let opened = if with_keys {
        front.hosts.forwarding().open_by(name(&at), data)
    } else {
        front.hosts.open_by(name(&at), data)
    };
    Ok(line(at, data, opened?))
}

fn name<'a>(at: &At<'a>) -> &'a str {
    at.host.map_or("", HostName::as_str)
}

fn line<'a>(at: At<'a>, data: Bytes, (route, channel): (Route, Box<dyn Channel + 'a>)) -> Line<'a> {
    Line { at, host: name(&at), is_here: matches!(route, Route::Local { .. }), data, channel }
}

impl Line<'_> {
    pub fn host(&self) -> Option<HostName> {
        self.at.host.cloned()
    }

    /// Whether both are one machine; `None` when that cannot be told.
    pub fn is_machine(&self, other: &Line<'_>) -> Option<bool> {
        self.channel.peer().identity.same(&other.channel.peer().identity)
    }

    /// For a request that changes nothing. What runs in this process is its one job.
    fn side_job(&self, front: &Front<'_>) -> JobId {
        if self.is_here { front.job.id } else { JobId::generate() }
    }

    pub fn prepare(&self, front: &Front<'_>, op: &Op) -> Result<Asked> {
        front.prepare(&*self.channel, self.host, &self.at, op, self.is_here)
    }

    fn call<'s>(
        &mut self,
        (job, asked): (&'s str, &Asked),
        word: &'s mut (dyn FnMut() -> bool + std::marker::Send + 's),
        on_event: &mut (dyn FnMut(Event) + std::marker::Send),
        cancel: &Cancel,
    ) -> Result<Value, HostError> {
        let request = Request { job, body: asked.body.clone(), commit: Commit::When(word), source: None };
        self.channel.call(request, on_event, cancel)
    }

    fn side(&mut self, job: JobId, asked: &Asked) -> Side<'_> {
        Side { channel: &mut *self.channel, job: job.to_string(), body: asked.body.clone() }
    }
}

/// Sends from one host to the other; what was told of the source, and what the receiver answered.
pub(super) fn transfer<'a>(
    front: &'a Front<'_>,
    (from, what): (&mut Line<'a>, What),
    (to, receive): (&mut Line<'a>, Op),
) -> Result<(Told, String)> {
    front.job.object(receive.object());
    if let Some(plan) = &front.job.jobs.plan {
        return planned(front, plan, (from, what), (to, receive));
    }
    let lost = match direct(front, (from, &what), (to, &receive))? {
        Way::Done(told, text) => return Ok((told, text)),
        Way::Not => false,
        Way::Lost => true,
    };
    let (send, begin) = (Op::Send(Send { what }), Instant::now());
    let mut tries = 0;
    loop {
        tries += 1;
        proof::ensure(front, from, &send)?;
        proof::ensure(front, to, &receive)?;
        let (asked_from, asked_to) = (from.prepare(front, &send)?, to.prepare(front, &receive)?);
        let (give, take) = (from.side_job(front), front.job.id);
        let one = from.is_machine(to) == Some(true);
        let (mut give, mut take) = (from.side(give, &asked_from), to.side(take, &asked_to));
        if front.job.jobs.copies.limits.any() {
            turn::both(front.job, one, &mut give, &mut take)?;
        }
        let done = flow::both(front.job, front.settings.ssh.silence, give, take, &mut || true)?;
        let is_unknown = done.received.as_ref().is_err_and(HostError::may_have_run);
        if is_unknown && tries < TRIES && front.job.cancel().wait(PAUSE) {
            // The host knows it by its job id.
            *to = reach(front, to.at, to.data)?;
            *from = reach(front, from.at, from.data)?;
            continue;
        }
        // The host may not know yet that the other one is gone.
        let is_busy = matches!(&done.received, Err(HostError::Failed { class: Class::Busy, .. }));
        let more = begin.elapsed() < front.settings.ssh.silence * 3;
        if lost && is_busy && more && front.job.cancel().wait(PAUSE) {
            continue;
        }
        let received = front.answered(&asked_to, done.received);
        let sent = front.answered(&asked_from, done.sent);
        let (told, text) = if done.sender_first {
            let told = sent?;
            (told, received?)
        } else {
            let text = received?;
            (sent?, text)
        };
        return Ok((serde_json::from_str(&told).context(NO_ANSWER)?, text));
    }
}

/// What each side would do, without the other.
fn planned<'a>(
    front: &'a Front<'_>,
    plan: &Plan,
    (from, what): (&mut Line<'a>, What),
    (to, receive): (&mut Line<'a>, Op),
) -> Result<(Told, String)> {
    let may = front.settings.data.direct && !from.is_here && !to.is_here;
    plan.note(match (from.is_here, to.is_here) {
        (true, true) => "data stays on this machine".to_owned(),
        (true, false) => format!("data goes from this machine to host {}", to.host),
        (false, true) => format!("data comes from host {} to this machine", from.host),
        _ if may => format!(
            "data goes straight from host {} to host {}, if the first gets to the second; else through this machine",
            from.host, to.host
        ),
        _ => format!("data goes from host {} to host {}, through this machine", from.host, to.host),
    });
    let ask = |line: &mut Line<'a>, op: &Op| -> Result<String> {
        let (job, asked) = (line.side_job(front).to_string(), line.prepare(front, op)?);
        let answer = line.call((&job, &asked), &mut || true, &mut |_| {}, front.job.cancel());
        front.answered(&asked, answer)
    };
    ask(from, &Op::Send(Send { what }))?;
    let answer = ask(to, &receive)?;
    Ok((Told { source: String::new(), digest: None }, answer))
}

/// What came of the straight way.
enum Way {
    Done(Told, String),
    /// It is none.
    Not,
    /// It broke. What became of it the receiver knows by the job's id, and what arrived by its source.
    Lost,
}

/// The same straight from host to host.
fn direct<'a>(
    front: &'a Front<'_>,
    (from, what): (&mut Line<'a>, &What),
    (to, receive): (&mut Line<'a>, &Op),
) -> Result<Way> {
    if !front.settings.data.direct || from.is_here || to.is_here {
        return Ok(Way::Not);
    }
    proof::ensure(front, from, &Op::Send(Send { what: what.clone() }))?;
    proof::ensure(front, to, receive)?;
    let asked_to = to.prepare(front, receive)?;
    let pass = Op::Pass(Pass {
        what: what.clone(),
        host: to.host.to_owned(),
        identity: to.channel.peer().identity.clone(),
        job: front.job.id,
        request: asked_to.body.clone(),
        data: to.data,
        connect: front.settings.ssh.connect,
        silence: front.settings.ssh.silence,
    });
    let asked = from.prepare(front, &pass)?;
    let mut news = |event| match event {
        Event::Progress(p) => front.job.follow(&p.phase, p.done, p.total),
        Event::Log { text, .. } => front.job.tell(event::What::Warning { text }),
        Event::Data(_) => {}
    };
    let job = from.side_job(front).to_string();
    let passed = from.call((&job, &asked), &mut || true, &mut news, front.job.cancel());
    let (way, why) = match passed {
        // Its program is older.
        Err(HostError::Failed { class: Class::Unsupported, text, .. }) => (Way::Not, text),
        Err(e) if e.may_have_run() && front.job.cancel().wait(PAUSE) => {
            *from = reach(front, from.at, from.data)?;
            (Way::Lost, e.to_string())
        }
        passed => match serde_json::from_str(&front.answered(&asked, passed)?).context(NO_ANSWER)? {
            Passed::Done { told, received } => {
                return Ok(Way::Done(told, front.answered(&asked_to, Ok(received))?));
            }
            Passed::Not { why } => (Way::Not, why),
            Passed::Lost { why } => (Way::Lost, why),
        },
    };
    (front.warn)(&format!(
        "data goes through the front-end, not straight from {} to {}: {why}",
        from.host, to.host
    ));
    // It may have waited for long.
    *to = reach(front, to.at, to.data)?;
    Ok(way)
}

/// Whether a datastore's directory is one storage on both hosts. Not knowing it is an error. Red team 1.1.
pub(super) fn is_shared(front: &Front<'_>, a: &mut Line<'_>, b: &mut Line<'_>, dir: &str) -> Result<bool> {
    if let Some(plan) = &front.job.jobs.plan {
        plan.note(format!(
            "nothing moves if {dir} is one storage on both hosts: the verb finds out by signs there"
        ));
        return Ok(false);
    }
    let (one, two) = (a.side_job(front), b.side_job(front));
    let (id_a, id_b) = (one.to_string(), two.to_string());
    let op = |other, first| Op::Meet(Meet { dir: dir.to_owned(), other, first });
    let (asked_a, asked_b) = (a.prepare(front, &op(two, true))?, b.prepare(front, &op(one, false))?);
    let (cancel, job) = (front.job.cancel(), front.job);
    let ((begin, begun), (sign, signs), (over, ended)) = (channel::<()>(), channel::<()>(), channel::<()>());
    let tell = |to: &Sender<()>| to.send(()).is_ok();
    let warn = |e| {
        if let Event::Log { text, .. } = e {
            job.tell(event::What::Warning { text });
        }
    };
    let (met_a, met_b) = std::thread::scope(|s| {
        let (id_b, asked_b) = (id_b.as_str(), &asked_b);
        let second = s.spawn(move || {
            hear(&begun, cancel)?;
            let mut word = move || tell(&sign) && hear(&ended, cancel).is_some();
            Some(b.call((id_b, asked_b), &mut word, &mut { warn }, cancel))
        });
        let mut word = move || tell(&begin) && hear(&signs, cancel).is_some();
        let first = a.call((&id_a, &asked_a), &mut word, &mut { warn }, cancel);
        drop(word);
        tell(&over);
        drop(over);
        (first, second.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    });
    let met = |asked: &Asked, met| -> Result<Met> {
        serde_json::from_str(&front.answered(asked, met)?).context(NO_ANSWER)
    };
    // Without the second the first says only that it was not told to go on.
    let second = met_b.map(|m| met(&asked_b, m)).transpose()?;
    let first = met(&asked_a, met_a)?;
    let second = second.context("the second host was not asked")?;
    match (first.found, second.found, first.domain == second.domain) {
        (true, true, true) => Ok(true),
        (false, false, false) => Ok(false),
        (false, false, true) => {
            let text = format!(
                "{dir} has one domain id on both hosts, but is not one storage: one is a copy (`onesdm domain adopt` \
                 says which is the real one)"
            );
            Err(refuse(Class::Refused, text))
        }
        _ => {
            let text =
                format!("whether {dir} is one storage on both hosts is not clear; nothing was changed");
            Err(refuse(Class::Remote, text))
        }
    }
}
