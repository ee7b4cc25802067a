//! Bytes to and from a program on a host, on one thread and without ever blocking in one direction.

use crate::host::error::HostError;
use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// How a program on a host ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// `None`: nobody knows, or a signal.
    pub status: Option<i32>,
    /// The end of what it wrote to standard error, as one line.
    pub said: String,
}

/// Standard input and output of a program on a host. Reading and writing answer `WouldBlock` rather than
/// wait.
pub trait Pipe: Send {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Waits until it makes sense to read again (or to write, when `writes`) or `bell` can be read, at most `d`.
    fn wait(&mut self, writes: bool, bell: Option<BorrowedFd<'_>>, d: Duration);
    /// Ends it, giving it `patience`.
    fn end(&mut self, patience: Duration) -> Ended;
}

/// A connection to a host, over which programs are started.
pub trait Connection {
    /// `command` is ours: a path and words without a character that means anything to a shell.
    fn exec(&self, command: &str) -> Result<Box<dyn Pipe>, HostError>;
    /// The server's sftp.
    fn sftp(&self) -> Result<Box<dyn Pipe>, HostError>;
}

/// A pipe with what is on its way out and what came in.
pub struct Duplex {
    pipe: Box<dyn Pipe>,
    outgoing: VecDeque<Vec<u8>>,
    /// Of the first of them.
    written: usize,
    pending: usize,
    /// What came and was not taken yet.
    pub inbox: Vec<u8>,
    /// Nothing more will come.
    pub ended: bool,
    buf: Vec<u8>,
}

impl Duplex {
    pub fn new(pipe: Box<dyn Pipe>) -> Duplex {
        let buf = vec![0; 1 << 16];
        Duplex {
            pipe,
            outgoing: VecDeque::new(),
            written: 0,
            pending: 0,
            inbox: Vec::new(),
            ended: false,
            buf,
        }
    }

    pub fn post(&mut self, bytes: Vec<u8>) {
        self.pending += bytes.len();
        self.outgoing.push_back(bytes);
    }

    /// Bytes that wait to be written.
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// Writes what can be written and reads what is there; when that is nothing, waits, at most `d` and until
    /// `bell` can be read. Whether anything came in.
    pub fn turn(&mut self, d: Duration, bell: Option<BorrowedFd<'_>>) -> bool {
        if self.step() || self.ended {
            return true;
        }
        if d.is_zero() {
            return false;
        }
        self.pipe.wait(self.pending() > 0, bell, d);
        self.step()
    }

    fn step(&mut self) -> bool {
        let mut came = false;
        // Failing to write is no end yet: what the other side said before is still to be read.
        while let Some(first) = self.outgoing.front() {
            if self.written == first.len() {
                self.outgoing.pop_front();
                self.written = 0;
                continue;
            }
            match self.pipe.write(&first[self.written..]) {
                Ok(n) if n > 0 => {
                    self.written += n;
                    self.pending -= n;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        // A bounded amount, so that who sends without end is looked at.
        for _ in 0..16 {
            match self.pipe.read(&mut self.buf) {
                Ok(0) => self.ended = true,
                Ok(n) => {
                    self.inbox.extend_from_slice(&self.buf[..n]);
                    came = true;
                    continue;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => self.ended = true,
            }
            break;
        }
        came
    }

    pub fn end(&mut self, patience: Duration) -> Ended {
        self.pipe.end(patience)
    }
}
