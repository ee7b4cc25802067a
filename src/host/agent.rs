//! The host's side of a connection: reads frames, runs one request at a time, writes frames. Reading and
//! writing have threads of their own, so neither a slow nor a dead connection holds up the job.

use super::link::{Gone, Handler, Link};
use super::wire::{Control, Decoder, Frame, Hello, Outcome, PROTOCOL, Progress, WireError};
use crate::sys::Cancel;
use crate::sys::Class;
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Blocks of data waiting in one direction.
const DATA_QUEUE: usize = 4;
/// Frames waiting to be written before news of progress is dropped.
const NEWS_QUEUE: usize = 16;
/// How long a request to stop may go unseen.
const SLICE: Duration = Duration::from_millis(50);

/// How long the agent waits for whom.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A connection without a frame for so long counts as lost; the front-end pings more often.
    pub silence: Duration,
    /// How long a job that is ready waits for a lost front-end before it undoes itself.
    pub orphan_grace: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { silence: Duration::from_secs(30), orphan_grace: Duration::from_secs(30) }
    }
}

/// Serves one connection until the front-end says goodbye, is lost, or asks to stop. Work in hand is
/// finished first, also for a front-end that is gone. An error means that the other side does not speak
/// the protocol; the work in hand was cancelled then.
pub fn serve(
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    handler: &dyn Handler,
    limits: Limits,
    cancel: &Cancel,
) -> Result<(), WireError> {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            last: 0,
            current: None,
            next: None,
            word: Word::None,
            data: VecDeque::new(),
            heard: Instant::now(),
            lost: None,
            fault: None,
        }),
        change: Condvar::new(),
        out: Outbox::default(),
        cancel: cancel.clone(),
        limits,
    });
    // Before anything can be answered.
    shared.out.post(&Control::Hello(Hello::ours()));
    let thread = |name: &str, run: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.to_owned()).spawn(run).map(drop)
    };
    let (reads, writes) = (shared.clone(), shared.clone());
    let started = thread("reader", Box::new(move || reads.read_from(input)))
        .and_then(|()| thread("writer", Box::new(move || writes.out.write_to(output))));
    if let Err(e) = started {
        return Err(WireError::Text(format!("starting a thread: {e}")));
    }
    while let Some(work) = shared.next_work() {
        let link = Remote { shared: &shared, id: work.id, granted: work.commit };
        let outcome = match handler.handle(&work.job, work.body, &link) {
            Ok(answer) => Outcome::Ok(answer),
            Err((class, text)) => Outcome::Failed { class, text },
        };
        shared.finish(work.id, outcome);
    }
    shared.out.drain(limits.silence);
    let state = shared.lock();
    state.fault.clone().map_or(Ok(()), Err)
}

struct Work {
    id: u64,
    job: String,
    body: Value,
    commit: bool,
}

/// Where the dance of `ready` and `commit` stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Word {
    /// Nothing asked yet.
    #[default]
    None,
    Asked,
    Given(bool),
}

struct State {
    /// Highest request number seen.
    last: u64,
    current: Option<u64>,
    next: Option<Work>,
    word: Word,
    data: VecDeque<Vec<u8>>,
    heard: Instant,
    /// No more frames will come, since then.
    lost: Option<Instant>,
    fault: Option<WireError>,
}

struct Shared {
    state: Mutex<State>,
    change: Condvar,
    out: Outbox,
    cancel: Cancel,
    limits: Limits,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.change.wait_timeout(state, SLICE).unwrap_or_else(PoisonError::into_inner).0
    }

    fn read_from(&self, mut input: impl Read) {
        let (mut decoder, mut buf) = (Decoder::default(), vec![0; 1 << 16]);
        let fault = loop {
            match input.read(&mut buf) {
                // A front-end that dies in the middle of a frame is lost, no more.
                Ok(0) => break decoder.end().err().filter(|e| *e != WireError::Cut),
                Ok(n) => decoder.push(&buf[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break None,
            }
            let taken = loop {
                match decoder.frame() {
                    Ok(Some(frame)) => match self.take(frame) {
                        Ok(true) => {}
                        Ok(false) => break Ok(false),
                        Err(e) => break Err(e),
                    },
                    Ok(None) => break Ok(true),
                    Err(e) => break Err(e),
                }
            };
            match taken {
                Ok(true) => {}
                Ok(false) => break None,
                Err(e) => break Some(e),
            }
        };
        let mut state = self.lock();
        if fault.is_some() {
            // Whatever it wants, it shall not be published on its word.
            self.cancel.request();
        }
        state.fault = fault;
        state.lost = Some(Instant::now());
        self.change.notify_all();
    }

    /// One frame; `false` after the last one.
    fn take(&self, frame: Frame) -> Result<bool, WireError> {
        let mut state = self.lock();
        state.heard = Instant::now();
        let turn = WireError::Turn(frame.name());
        match frame {
            // The front-end sees our number too and says what is wrong to those who can mend it.
            Frame::Control(Control::Hello(h)) => return Ok(h.protocol == PROTOCOL),
            Frame::Control(Control::Ping) => {
                self.out.post(&Control::Ping);
            }
            Frame::Control(Control::Bye) => return Ok(false),
            Frame::Control(Control::Request { id, job, body, commit }) => {
                if state.current.is_some() || id <= state.last {
                    return Err(turn);
                }
                state.last = id;
                state.current = Some(id);
                state.word = Word::None;
                state.data.clear();
                state.next = Some(Work { id, job, body, commit });
            }
            Frame::Control(ref c @ (Control::Commit { id } | Control::Abandon { id })) => {
                let yes = matches!(c, Control::Commit { .. });
                match state.word {
                    _ if id < state.last => {}
                    Word::Asked if id == state.last => state.word = Word::Given(yes),
                    // It crossed our own decision to undo.
                    Word::Given(false) if id == state.last => {}
                    _ => return Err(turn),
                }
            }
            Frame::Control(Control::Cancel { id }) if id <= state.last => {
                if state.current == Some(id) {
                    self.cancel.request();
                }
            }
            Frame::Control(_) => return Err(turn),
            // Without a request it crossed the reply to one that needed no more.
            Frame::Binary(data) => {
                while state.data.len() >= DATA_QUEUE && state.current.is_some() {
                    state = self.wait(state);
                }
                if state.current.is_some() {
                    state.data.push_back(data);
                }
            }
        }
        self.change.notify_all();
        Ok(true)
    }

    /// The next request; `None` when there will be none, or nobody was heard for long.
    fn next_work(&self) -> Option<Work> {
        let mut state = self.lock();
        loop {
            if let Some(work) = state.next.take() {
                return Some(work);
            }
            let idle = state.heard.elapsed() > self.limits.silence + self.limits.orphan_grace;
            if state.lost.is_some() || self.cancel.is_requested() || idle {
                return None;
            }
            state = self.wait(state);
        }
    }

    fn finish(&self, id: u64, outcome: Outcome) {
        let mut state = self.lock();
        state.current = None;
        if state.word != Word::Given(true) {
            state.word = Word::Given(false);
        }
        state.data.clear();
        self.change.notify_all();
        let outcome = match &state.fault {
            Some(e) => Outcome::Failed { class: e.class(), text: e.to_string() },
            None => outcome,
        };
        if !self.out.post(&Control::Reply { id, outcome }) {
            let text = "the answer is too large for the protocol".to_owned();
            self.out.post(&Control::Reply { id, outcome: Outcome::Failed { class: Class::Internal, text } });
        }
    }
}

/// Frames on their way out.
#[derive(Default)]
struct Outbox {
    queue: Mutex<Queue>,
    change: Condvar,
}

#[derive(Default)]
struct Queue {
    frames: VecDeque<Vec<u8>>,
    writing: bool,
    /// Nobody takes them any more.
    shut: bool,
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` when it is too large.
    fn post(&self, c: &Control) -> bool {
        match Frame::Control(c.clone()).encode() {
            Ok(bytes) => {
                self.push(bytes);
                true
            }
            Err(_) => false,
        }
    }

    fn push(&self, bytes: Vec<u8>) {
        let mut q = self.lock();
        if !q.shut {
            q.frames.push_back(bytes);
            self.change.notify_all();
        }
    }

    fn len(&self) -> usize {
        self.lock().frames.len()
    }

    fn write_to(&self, mut output: impl Write) {
        loop {
            let mut q = self.lock();
            let bytes = loop {
                if let Some(b) = q.frames.pop_front() {
                    break b;
                }
                q = self.change.wait(q).unwrap_or_else(PoisonError::into_inner);
            };
            q.writing = true;
            drop(q);
            let written = output.write_all(&bytes).and_then(|()| output.flush());
            let mut q = self.lock();
            q.writing = false;
            if written.is_err() {
                q.shut = true;
                q.frames.clear();
            }
            self.change.notify_all();
            if q.shut {
                return;
            }
        }
    }

    /// Waits until all is written, as long as somebody might read it.
    fn drain(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let mut q = self.lock();
        while !q.shut && (q.writing || !q.frames.is_empty()) && Instant::now() < until {
            q = self.change.wait_timeout(q, SLICE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One request's front-end.
struct Remote<'a> {
    shared: &'a Shared,
    id: u64,
    granted: bool,
}

impl Remote<'_> {
    fn news(&self, c: &Control) {
        if self.shared.out.len() < NEWS_QUEUE {
            self.shared.out.post(c);
        }
    }
}

impl Link for Remote<'_> {
    fn cancel(&self) -> &Cancel {
        &self.shared.cancel
    }

    fn progress(&self, progress: Progress) {
        self.news(&Control::Progress { id: self.id, progress });
    }

    fn log(&self, warn: bool, text: &str) {
        self.news(&Control::Log { id: self.id, warn, text: text.to_owned() });
    }

    fn ready(&self) -> bool {
        if self.granted {
            return !self.shared.cancel.is_requested();
        }
        let Limits { silence, orphan_grace } = self.shared.limits;
        let mut state = self.shared.lock();
        if state.word == Word::None {
            state.word = Word::Asked;
            self.shared.out.post(&Control::Ready { id: self.id });
        }
        loop {
            if let Word::Given(yes) = state.word {
                return yes;
            }
            // A connection that comes back in time still counts: nothing was undone.
            let since = state.lost.unwrap_or(state.heard + silence);
            if self.shared.cancel.is_requested() || Instant::now() >= since + orphan_grace {
                state.word = Word::Given(false);
                return false;
            }
            state = self.shared.wait(state);
        }
    }

    fn is_gone(&self) -> bool {
        let state = self.shared.lock();
        let is_lost = state.lost.is_some() || state.heard.elapsed() > self.shared.limits.silence;
        is_lost || self.shared.cancel.is_requested()
    }

    fn send(&self, data: Vec<u8>) -> Result<(), Gone> {
        let bytes = Frame::Binary(data).encode().map_err(|_| Gone)?;
        let out = &self.shared.out;
        loop {
            let gone = self.is_gone();
            let q = out.lock();
            if gone || q.shut {
                return Err(Gone);
            }
            if q.frames.len() < DATA_QUEUE {
                drop(q);
                out.push(bytes);
                return Ok(());
            }
            drop(out.change.wait_timeout(q, SLICE));
        }
    }

    fn receive(&self) -> Result<Option<Vec<u8>>, Gone> {
        let mut state = self.shared.lock();
        loop {
            if let Some(data) = state.data.pop_front() {
                self.shared.change.notify_all();
                return Ok(Some(data).filter(|d| !d.is_empty()));
            }
            if state.lost.is_some()
                || state.heard.elapsed() > self.shared.limits.silence
                || self.shared.cancel.is_requested()
            {
                return Err(Gone);
            }
            state = self.shared.wait(state);
        }
    }
}
