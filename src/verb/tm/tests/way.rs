//! A way between two hosts, of which each has one of the system datastores.

use super::bed::Bed;
use super::*;
use crate::data::extent::Have;
use crate::host::{Gone, Link, Progress};
use crate::lock::JobId;
use crate::sys::Cancel;
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// One end of a way between hosts, which breaks after so many blocks.
struct End {
    to: Mutex<Option<SyncSender<Vec<u8>>>>,
    from: Mutex<Receiver<Vec<u8>>>,
    left: AtomicI64,
    went: AtomicU64,
    cancel: Cancel,
}

impl End {
    fn pair(left: i64) -> (End, End) {
        let ((a, b), (c, d)) = (sync_channel(2), sync_channel(2));
        let end = |to, from| {
            let (to, from) = (Mutex::new(Some(to)), Mutex::new(from));
            End { to, from, left: AtomicI64::new(left), went: AtomicU64::new(0), cancel: Cancel::default() }
        };
        (end(a, d), end(c, b))
    }

    fn shut(&self) {
        self.to.lock().unwrap().take();
    }
}

impl Link for End {
    fn cancel(&self) -> &Cancel {
        &self.cancel
    }
    fn progress(&self, _: Progress) {}
    fn log(&self, _: bool, _: &str) {}
    fn ready(&self) -> bool {
        true
    }
    fn send(&self, data: Vec<u8>) -> Result<(), Gone> {
        if self.left.fetch_sub(1, SeqCst) <= 0 {
            self.shut();
        }
        self.went.fetch_add(data.len() as u64, SeqCst);
        let to = self.to.lock().unwrap().clone();
        to.and_then(|to| to.send(data).ok()).ok_or(Gone)
    }
    fn receive(&self) -> Result<Option<Vec<u8>>, Gone> {
        self.from.lock().unwrap().recv().map(Some).map_err(|_| Gone)
    }
}

/// A sender that said all it had to say before.
pub struct Tape {
    blocks: Mutex<VecDeque<Vec<u8>>>,
    answer: Mutex<VecDeque<Vec<u8>>>,
    cancel: Cancel,
}

impl Link for Tape {
    fn cancel(&self) -> &Cancel {
        &self.cancel
    }
    fn progress(&self, _: Progress) {}
    fn log(&self, _: bool, _: &str) {}
    fn ready(&self) -> bool {
        true
    }
    fn send(&self, data: Vec<u8>) -> Result<(), Gone> {
        self.blocks.lock().unwrap().push_back(data);
        Ok(())
    }
    fn receive(&self) -> Result<Option<Vec<u8>>, Gone> {
        Ok(self.answer.lock().unwrap().pop_front())
    }
}

impl Tape {
    pub fn of(blocks: VecDeque<Vec<u8>>) -> Tape {
        Tape { blocks: Mutex::default(), answer: Mutex::new(blocks), cancel: Cancel::default() }
    }

    /// What is sent now, and what was told of it.
    pub fn record(bed: &Bed, what: op::What) -> (Tape, op::Told) {
        let tape = Tape::of(Have::default().blocks(true).unwrap().into());
        let op = Op::Send(op::Send { what });
        let done = bed.cut_with(JobId::generate(), &op, (i64::MAX, false), &|| Ok(()), Some(&tape)).unwrap();
        (Tape::of(tape.blocks.into_inner().unwrap()), serde_json::from_str(&done.text).unwrap())
    }
}

/// What each side said.
pub struct Done {
    pub sent: Result<op::Told>,
    pub received: Result<Answer>,
    /// Bytes that were sent.
    pub went: u64,
}

impl Done {
    pub fn ok(self) -> op::Told {
        self.received.unwrap();
        self.sent.unwrap()
    }
}

/// Blocks until the way breaks.
pub const NEVER: i64 = i64::MAX;

/// Both halves, as a front-end runs them: the receiver publishes when the sender is content.
pub fn transfer(bed: &Bed, what: op::What, into: op::Into, blocks: i64) -> Done {
    let (here, there) = End::pair(blocks);
    let told = Mutex::new(None);
    std::thread::scope(|s| {
        let receiver = s.spawn(|| {
            let ready = || {
                let end = std::time::Instant::now() + Duration::from_secs(60);
                loop {
                    match &*told.lock().unwrap() {
                        Some(true) => return Ok(()),
                        Some(false) => return Err(crate::verb::refuse(Class::Remote, "the sender failed")),
                        None => assert!(std::time::Instant::now() < end),
                    }
                    std::thread::yield_now();
                }
            };
            let op = Op::Receive(op::Receive { into });
            let done = bed.cut_with(JobId::generate(), &op, (i64::MAX, false), &ready, Some(&there));
            there.shut();
            done
        });
        let op = Op::Send(op::Send { what });
        let sent = bed.cut_with(JobId::generate(), &op, (i64::MAX, false), &|| Ok(()), Some(&here));
        here.shut();
        *told.lock().unwrap() = Some(sent.is_ok());
        let sent = sent.map(|a| serde_json::from_str(&a.text).unwrap());
        Done { sent, received: receiver.join().unwrap(), went: here.went.load(SeqCst) }
    })
}
