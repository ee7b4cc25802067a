//! As much of SFTP (version 3) as it takes to put one file on a host safely, over any pipe to the
//! server's own sftp.

use super::transport::{Duplex, Pipe};
use crate::sys::Cancel;
use std::time::{Duration, Instant};

const INIT: u8 = 1;
const VERSION: u8 = 2;
const OPEN: u8 = 3;
const CLOSE: u8 = 4;
const READ: u8 = 5;
const WRITE: u8 = 6;
const LSTAT: u8 = 7;
const FSETSTAT: u8 = 10;
const REMOVE: u8 = 13;
const MKDIR: u8 = 14;
const EXTENDED: u8 = 200;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const ATTRS: u8 = 105;

const OK: u32 = 0;
const EOF: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
/// Longer answers are not sent to what we ask.
const PACKET_MAX: usize = 1 << 18;
const BLOCK: u32 = 32 << 10;
/// Requests in the air.
const AHEAD: usize = 32;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SftpError {
    #[error("{what}: {said} (sftp status {code})")]
    Status { what: &'static str, code: u32, said: String },
    #[error("sftp ended: {0}")]
    Ended(String),
    #[error("sftp answer that is none")]
    Malformed,
    #[error("sftp silent for {} s", .0.as_secs_f32())]
    Silent(Duration),
    #[error("stopped on request")]
    Cancelled,
}

/// What `lstat` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attrs {
    pub size: u64,
    /// Type and permission bits.
    pub mode: u32,
}

impl Attrs {
    pub fn is_dir(self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    pub fn is_file(self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

pub struct Sftp<'a> {
    line: Duplex,
    next: u32,
    silence: Duration,
    cancel: &'a Cancel,
}

type Handle = Vec<u8>;

impl<'a> Sftp<'a> {
    pub fn start(pipe: Box<dyn Pipe>, silence: Duration, cancel: &'a Cancel) -> Result<Sftp<'a>, SftpError> {
        let mut s = Sftp { line: Duplex::new(pipe), next: 0, silence, cancel };
        s.line.post(packet(INIT, &[&3u32.to_be_bytes()]));
        match s.packet()? {
            (VERSION, _) => Ok(s),
            _ => Err(SftpError::Malformed),
        }
    }

    /// `None` when there is nothing of that name.
    pub fn lstat(&mut self, path: &str) -> Result<Option<Attrs>, SftpError> {
        match self.ask(LSTAT, &[&string(path.as_bytes())])? {
            (ATTRS, body) => attrs(&body).map(Some).ok_or(SftpError::Malformed),
            other => match status(&other) {
                Some((NO_SUCH_FILE, _)) => Ok(None),
                _ => Err(failed("looking at a file", &other)),
            },
        }
    }

    pub fn mkdir(&mut self, path: &str, mode: u32) -> Result<(), SftpError> {
        self.done("making a directory", MKDIR, &[&string(path.as_bytes()), &permissions(mode)])
    }

    pub fn remove(&mut self, path: &str) -> Result<(), SftpError> {
        self.done("removing a file", REMOVE, &[&string(path.as_bytes())])
    }

    /// In the place of what is there, at once.
    pub fn rename_over(&mut self, from: &str, to: &str) -> Result<(), SftpError> {
        let name = string(b"posix-rename@openssh.com");
        let (from, to) = (string(from.as_bytes()), string(to.as_bytes()));
        self.done("renaming a file", EXTENDED, &[&name, &from, &to])
    }

    /// A new file with this content, on disk where the server can say so.
    pub fn create(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<(), SftpError> {
        const WRITE_CREATE_EXCL: u32 = 0x02 | 0x08 | 0x20;
        let what = "writing a file";
        let flags = WRITE_CREATE_EXCL.to_be_bytes();
        let h = self.open(what, &[&string(path.as_bytes()), &flags, &permissions(mode & 0o600)])?;
        let (mut blocks, mut at, mut flying) = (content.chunks(BLOCK as usize), 0u64, 0usize);
        loop {
            while flying < AHEAD
                && let Some(block) = blocks.next()
            {
                self.send(WRITE, &[&string(&h), &at.to_be_bytes(), &string(block)]);
                at += block.len() as u64;
                flying += 1;
            }
            if flying == 0 {
                break;
            }
            let answer = self.packet()?;
            flying -= 1;
            ok(what, &answer)?;
        }
        self.done(what, FSETSTAT, &[&string(&h), &permissions(mode)])?;
        // Not every server can; then the digest decides after a crash, as ever.
        let _ = self.ask(EXTENDED, &[&string(b"fsync@openssh.com"), &string(&h)])?;
        self.done(what, CLOSE, &[&string(&h)])
    }

    /// The whole content, block by block.
    pub fn read(&mut self, path: &str, size: u64, mut take: impl FnMut(&[u8])) -> Result<(), SftpError> {
        let what = "reading a file";
        let none = 0u32.to_be_bytes();
        let h = self.open(what, &[&string(path.as_bytes()), &1u32.to_be_bytes(), &none])?;
        let (mut asked, mut flying, mut came) = (0u64, 0usize, 0u64);
        // Answers come in the order of the questions from every server we know; each is checked to be whole.
        while asked < size || flying > 0 {
            while flying < AHEAD && asked < size {
                let len = u64::from(BLOCK).min(size - asked);
                let len32 = u32::try_from(len).unwrap_or(BLOCK).to_be_bytes();
                self.send(READ, &[&string(&h), &asked.to_be_bytes(), &len32]);
                asked += len;
                flying += 1;
            }
            let answer = self.packet()?;
            flying -= 1;
            let (DATA, body) = &answer else { return Err(failed(what, &answer)) };
            let data = body.get(8..).ok_or(SftpError::Malformed)?;
            let whole = u64::from(BLOCK).min(size - came);
            if data.len() as u64 != whole {
                return Err(SftpError::Malformed);
            }
            came += whole;
            take(data);
        }
        self.done(what, CLOSE, &[&string(&h)])
    }

    fn open(&mut self, what: &'static str, parts: &[&[u8]]) -> Result<Handle, SftpError> {
        match self.ask(OPEN, parts)? {
            (HANDLE, body) => body.get(8..).map(<[u8]>::to_vec).ok_or(SftpError::Malformed),
            other => Err(failed(what, &other)),
        }
    }

    fn done(&mut self, what: &'static str, kind: u8, parts: &[&[u8]]) -> Result<(), SftpError> {
        let answer = self.ask(kind, parts)?;
        ok(what, &answer)
    }

    fn send(&mut self, kind: u8, parts: &[&[u8]]) {
        self.next = self.next.wrapping_add(1);
        let id = self.next.to_be_bytes();
        let all: Vec<&[u8]> = std::iter::once(&id[..]).chain(parts.iter().copied()).collect();
        self.line.post(packet(kind, &all));
    }

    fn ask(&mut self, kind: u8, parts: &[&[u8]]) -> Result<(u8, Vec<u8>), SftpError> {
        self.send(kind, parts);
        loop {
            let answer = self.packet()?;
            // After a failure there may still be answers to what was asked ahead.
            if answer.1.get(..4).is_none_or(|id| number(id) == self.next) {
                return Ok(answer);
            }
        }
    }

    /// The next packet: its kind and what follows (the request's number first).
    fn packet(&mut self) -> Result<(u8, Vec<u8>), SftpError> {
        let mut heard = Instant::now();
        loop {
            let inbox = &mut self.line.inbox;
            if let Some((head, rest)) = inbox.split_at_checked(5) {
                let len = number(&head[..4]) as usize;
                if len == 0 || len > PACKET_MAX {
                    return Err(SftpError::Malformed);
                }
                if let Some(body) = rest.get(..len - 1) {
                    let out = (head[4], body.to_vec());
                    inbox.drain(..4 + len);
                    return Ok(out);
                }
            }
            if self.line.ended {
                return Err(SftpError::Ended(self.line.end(Duration::from_millis(200)).said));
            }
            if self.cancel.is_requested() {
                return Err(SftpError::Cancelled);
            }
            if self.line.turn(Duration::from_millis(20), None) {
                heard = Instant::now();
            } else if heard.elapsed() > self.silence {
                return Err(SftpError::Silent(self.silence));
            }
        }
    }
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |n, b| (n << 8) | u32::from(*b))
}

fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let len = 1 + parts.iter().map(|p| p.len()).sum::<usize>();
    // Ours are blocks and paths: far below 4 GiB.
    let mut out = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    out.push(kind);
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// Attributes with nothing but permissions.
fn permissions(mode: u32) -> Vec<u8> {
    [4u32.to_be_bytes(), mode.to_be_bytes()].concat()
}

fn attrs(body: &[u8]) -> Option<Attrs> {
    let flags = number(body.get(4..8)?);
    let mut rest = body.get(8..)?;
    let mut take = |n: usize| {
        let (a, b) = rest.split_at_checked(n)?;
        rest = b;
        Some(a)
    };
    let size = if flags & 1 != 0 { take(8)?.iter().fold(0u64, |n, b| (n << 8) | u64::from(*b)) } else { 0 };
    if flags & 2 != 0 {
        take(8)?;
    }
    let mode = if flags & 4 != 0 { number(take(4)?) } else { return None };
    Some(Attrs { size, mode })
}

fn status(answer: &(u8, Vec<u8>)) -> Option<(u32, String)> {
    let (STATUS, body) = answer else { return None };
    let code = number(body.get(4..8)?);
    let len = body.get(8..12).map_or(0, |b| number(b) as usize);
    let text = body.get(12..).unwrap_or_default();
    Some((code, String::from_utf8_lossy(&text[..text.len().min(len)]).into_owned()))
}

fn ok(what: &'static str, answer: &(u8, Vec<u8>)) -> Result<(), SftpError> {
    match status(answer) {
        Some((OK, _)) => Ok(()),
        _ => Err(failed(what, answer)),
    }
}

fn failed(what: &'static str, answer: &(u8, Vec<u8>)) -> SftpError {
    match status(answer) {
        Some((EOF, _)) => SftpError::Status { what, code: EOF, said: "it ends too early".to_owned() },
        Some((code, said)) => SftpError::Status { what, code, said },
        None => SftpError::Malformed,
    }
}
