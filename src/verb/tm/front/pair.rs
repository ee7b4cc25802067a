//! Two hosts at once: one gives, the other takes, and the data goes through here. Each has its connection
//! and a thread; between them is a queue that holds the faster one up, though never so long that its host
//! would think us lost. The receiver publishes when the sender said that its source is what was sent.

use super::super::op::{Meet, Met, Op, Send, Told, What};
use super::{Asked, At, Front, PAUSE, proof};
use crate::host::{Bell, Channel, Commit, Event, HostError, Next, Request, Route, Source};
use crate::lock::JobId;
use crate::one::HostName;
use crate::sdm::{Job, event};
use crate::sys::{Bytes, Cancel, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Blocks that wait between the two.
const DEPTH: usize = 8;
const SLICE: Duration = Duration::from_millis(50);
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
    let host = at.host.map_or("", HostName::as_str);
    let (route, channel) = front.hosts.open_by(host, data)?;
    Ok(Line { at, host, is_here: matches!(route, Route::Local { .. }), data, channel })
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
        source: Option<&'s mut dyn Source>,
        on_event: &mut (dyn FnMut(Event) + std::marker::Send),
        cancel: &Cancel,
    ) -> Result<Value, HostError> {
        let request = Request { job, body: asked.body.clone(), commit: Commit::When(word), source };
        self.channel.call(request, on_event, cancel)
    }
}

/// Sends from one host to the other; what was told of the source, and what the receiver answered.
pub(super) fn transfer<'a>(
    front: &'a Front<'_>,
    (from, what): (&mut Line<'a>, What),
    (to, receive): (&mut Line<'a>, Op),
) -> Result<(Told, String)> {
    let send = Op::Send(Send { what });
    front.job.object(receive.object());
    let mut tries = 0;
    loop {
        tries += 1;
        proof::ensure(front, from, &send)?;
        proof::ensure(front, to, &receive)?;
        let (asked_from, asked_to) = (from.prepare(front, &send)?, to.prepare(front, &receive)?);
        let ids = (from.side_job(front).to_string(), front.job.id.to_string());
        // A connection that is held up has to give a sign of life now and then.
        let hold = front.settings.ssh.silence / 8;
        let done = both((front.job, hold), (from, &ids.0, &asked_from), (to, &ids.1, &asked_to))?;
        let is_unknown = done.received.as_ref().is_err_and(HostError::may_have_run);
        if is_unknown && tries < TRIES && front.job.cancel().wait(PAUSE) {
            // The host knows it by its job id.
            *to = reach(front, to.at, to.data)?;
            *from = reach(front, from.at, from.data)?;
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
        return Ok((serde_json::from_str(&told).context("an answer that is none")?, text));
    }
}

struct Done {
    sent: Result<Value, HostError>,
    received: Result<Value, HostError>,
    /// What went wrong first is the reason why the other failed, too.
    sender_first: bool,
}

fn both(
    (job, hold): (&Job, Duration),
    (from, send_id, send): (&mut Line<'_>, &str, &Asked),
    (to, receive_id, receive): (&mut Line<'_>, &str, &Asked),
) -> Result<Done> {
    let (data, answers, stop) = (Queue::new()?, Queue::new()?, Cancel::default());
    let (tell, told) = channel();
    Ok(std::thread::scope(|s| {
        let sender = s.spawn(|| {
            let mut on_event = |e| match e {
                Event::Data(block) => data.push(block, hold),
                // The receiver's progress is that of both.
                Event::Progress(_) => {}
                Event::Log { text, .. } => job.tell(event::What::Warning { text }),
            };
            let mut source = &answers;
            let mut word = || true;
            let done = from.call((send_id, send), &mut word, Some(&mut source), &mut on_event, &stop);
            let _ = tell.send(done.is_ok());
            let ended = Instant::now();
            data.close();
            (done, ended)
        });
        let mut on_event = |e| match e {
            Event::Data(block) => answers.push(block, hold),
            Event::Progress(p) => job.follow(&p.phase, p.done, p.total),
            Event::Log { text, .. } => job.tell(event::What::Warning { text }),
        };
        let mut word = move || hear(&told, job.cancel()) == Some(true);
        let mut source = &data;
        let ids = (receive_id, receive);
        let received = to.call(ids, &mut word, Some(&mut source), &mut on_event, job.cancel());
        drop(word);
        let ended = Instant::now();
        if received.is_err() {
            stop.request();
        }
        answers.close();
        data.close();
        let (sent, at) = sender.join().unwrap_or_else(|e| std::panic::resume_unwind(e));
        Done { sent, received, sender_first: at < ended }
    }))
}

/// What the other thread has to say; `None` when it is gone, or we are to stop.
fn hear<T>(from: &Receiver<T>, cancel: &Cancel) -> Option<T> {
    loop {
        match from.recv_timeout(SLICE) {
            Ok(said) => return Some(said),
            Err(RecvTimeoutError::Timeout) if !cancel.is_requested() => {}
            Err(_) => return None,
        }
    }
}

/// Blocks on their way through.
struct Queue {
    inner: Mutex<(VecDeque<Vec<u8>>, bool)>,
    /// There is room.
    change: Condvar,
    /// There is a block, or the end.
    bell: Bell,
}

impl Queue {
    fn new() -> Result<Queue> {
        let bell = Bell::new().context("making a way between two threads")?;
        Ok(Queue { inner: Mutex::default(), change: Condvar::new(), bell })
    }

    fn lock(&self) -> MutexGuard<'_, (VecDeque<Vec<u8>>, bool)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long for room, then takes it all the same.
    fn push(&self, block: Vec<u8>, hold: Duration) {
        let end = Instant::now() + hold;
        let mut inner = self.lock();
        while inner.0.len() >= DEPTH && !inner.1 && Instant::now() < end {
            inner = self.change.wait_timeout(inner, SLICE).unwrap_or_else(PoisonError::into_inner).0;
        }
        if !inner.1 {
            inner.0.push_back(block);
            self.bell.ring();
        }
    }

    fn close(&self) {
        self.lock().1 = true;
        self.bell.ring();
        self.change.notify_all();
    }
}

impl Source for &Queue {
    fn next(&mut self) -> Next {
        let mut inner = self.lock();
        match inner.0.pop_front() {
            Some(block) => {
                self.change.notify_all();
                Next::Block(block)
            }
            None if inner.1 => Next::End,
            None => {
                self.bell.hush();
                Next::Later
            }
        }
    }

    fn bell(&self) -> Option<Bell> {
        Some(self.bell.clone())
    }
}

/// Whether a datastore's directory is one storage on both hosts. Not knowing it is an error. Red team 1.1.
pub(super) fn is_shared(front: &Front<'_>, a: &mut Line<'_>, b: &mut Line<'_>, dir: &str) -> Result<bool> {
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
            Some(b.call((id_b, asked_b), &mut word, None, &mut { warn }, cancel))
        });
        let mut word = move || tell(&begin) && hear(&signs, cancel).is_some();
        let first = a.call((&id_a, &asked_a), &mut word, None, &mut { warn }, cancel);
        drop(word);
        tell(&over);
        drop(over);
        (first, second.join().unwrap_or_else(|e| std::panic::resume_unwind(e)))
    });
    let met = |asked: &Asked, met| -> Result<Met> {
        serde_json::from_str(&front.answered(asked, met)?).context("an answer that is none")
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
