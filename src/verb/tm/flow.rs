//! Two handlers at once: one gives, the other takes, and the data goes through here, whether this is a
//! front-end between two hosts, or the host that gives. Each has its connection and a thread; between them
//! is a queue that holds the faster one up, though never so long that its host would think us lost. The
//! receiver publishes when the sender said that its source is what was sent.

use crate::host::{Bell, Channel, Commit, Event, HostError, Next, Request, Source};
use crate::sdm::{Job, event};
use crate::sys::Cancel;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Blocks that wait between the two.
const DEPTH: usize = 8;
const SLICE: Duration = Duration::from_millis(50);

/// A handler, and what it is asked.
pub(super) struct Side<'a> {
    pub channel: &'a mut (dyn Channel + 'a),
    pub job: String,
    pub body: Value,
}

impl Side<'_> {
    fn call(
        self,
        word: &mut (dyn FnMut() -> bool + Send),
        source: &mut dyn Source,
        on_event: &mut (dyn FnMut(Event) + Send),
        cancel: &Cancel,
    ) -> Result<Value, HostError> {
        let request =
            Request { job: &self.job, body: self.body, commit: Commit::When(word), source: Some(source) };
        self.channel.call(request, on_event, cancel)
    }
}

pub(super) struct Done {
    pub sent: Result<Value, HostError>,
    pub received: Result<Value, HostError>,
    /// What went wrong first is the reason why the other failed, too.
    pub sender_first: bool,
}

/// `silence`: for how long a connection may give no sign of life. `word`: whether it counts, asked when the
/// receiver is ready and the sender content.
pub(super) fn both(
    job: &Job,
    silence: Duration,
    from: Side<'_>,
    to: Side<'_>,
    word: &mut (dyn FnMut() -> bool + Send),
) -> Result<Done> {
    let hold = silence / 8;
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
            let done = from.call(&mut || true, &mut source, &mut on_event, &stop);
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
        let mut counts = move || hear(&told, job.cancel()) == Some(true) && word();
        let mut source = &data;
        let received = to.call(&mut counts, &mut source, &mut on_event, job.cancel());
        drop(counts);
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
pub(super) fn hear<T>(from: &Receiver<T>, cancel: &Cancel) -> Option<T> {
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
