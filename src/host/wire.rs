//! Frames: what front-end and agent say to each other, and nothing about what it means. A frame is
//! its payload's length (4 bytes, big-endian), one byte for its kind, and the payload: `J`, a control
//! message in JSON, at most 1 MiB, or `B`, bytes, at most 4 MiB. Both sides start with `hello`.

use crate::sys::{Class, mounts};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

/// The protocol spoken here. Another number means that the two cannot work together.
pub const PROTOCOL: u32 = 1;
pub const CONTROL_MAX: usize = 1 << 20;
pub const BINARY_MAX: usize = 4 << 20;
const HEAD: usize = 5;
/// So many mounts are told: a message has an end.
const MOUNTS: usize = 1000;
/// Of what is no frame, so much is shown.
const SHOWN: usize = 200;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    #[error("a {kind} frame of {len} bytes, {max} are allowed")]
    TooLong { kind: &'static str, len: usize, max: usize },
    #[error("a frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// A login script that prints, or no agent at all.
    #[error("text in place of the protocol: {0:?} (does a login script of the account print something?)")]
    Text(String),
    #[error("a control frame that is none: {0}")]
    Control(String),
    #[error("{0} out of turn")]
    Turn(&'static str),
    #[error("the stream ends inside a frame")]
    Cut,
}

impl WireError {
    pub fn class(&self) -> Class {
        Class::Remote
    }
}

/// Which machine this is, whatever it is called. A reboot makes another of it: what ran is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Contents of /etc/machine-id; empty where there is none.
    pub machine: String,
    pub boot: String,
}

impl Identity {
    /// This machine's. The ids of a machine are public to its accounts; one that cannot be read is empty.
    pub fn here() -> Identity {
        let read = |path| std::fs::read_to_string(path).map(|s| s.trim().to_owned()).unwrap_or_default();
        Identity { machine: read("/etc/machine-id"), boot: read("/proc/sys/kernel/random/boot_id") }
    }

    /// Whether both are one running machine; `None` when that cannot be told.
    pub fn same(&self, other: &Identity) -> Option<bool> {
        let differ = |a: &str, b: &str| !a.is_empty() && !b.is_empty() && a != b;
        if differ(&self.boot, &other.boot) || differ(&self.machine, &other.machine) {
            return Some(false);
        }
        let known = [&self.boot, &other.boot, &self.machine, &other.machine];
        known.iter().all(|id| !id.is_empty()).then_some(true)
    }
}

/// The first message of each side. Later protocols may add fields, so unknown ones are let pass: the
/// number must stay readable.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub protocol: u32,
    /// Of the program, for people and for choosing among several.
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub identity: Identity,
    /// Mounts that other hosts may have, too: where, and the kernel's number of it.
    #[serde(default)]
    pub mounts: Vec<(String, u64)>,
}

impl Hello {
    pub fn ours() -> Hello {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let mut mounts = mounts::read().unwrap_or_default();
        mounts.retain(mounts::Mount::is_of_network);
        let mounts = mounts.into_iter().map(|m| (m.point.to_string_lossy().into_owned(), m.id));
        let mounts = mounts.take(MOUNTS).collect();
        Hello { protocol: PROTOCOL, version, identity: Identity::here(), mounts }
    }

    /// The mount that a path lies on, if it is one of these.
    pub fn mount_of(&self, path: &Path) -> Option<u64> {
        let under = self.mounts.iter().filter(|(point, _)| path.starts_with(point));
        under.max_by_key(|(point, _)| Path::new(point).components().count()).map(|(_, id)| *id)
    }
}

/// How far a job is. Amounts in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress {
    pub phase: String,
    pub done: u64,
    pub total: Option<u64>,
}

/// A control message. `id` numbers the requests of one connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Control {
    Hello(Hello),
    /// Front-end: do this. With `commit` it is granted from the start, and no `ready` is sent.
    Request {
        id: u64,
        job: String,
        body: Value,
        commit: bool,
    },
    /// Agent: all is filled and flushed; nothing is published yet.
    Ready {
        id: u64,
    },
    /// Front-end: publish. Only ever an answer to `ready`.
    Commit {
        id: u64,
    },
    /// Front-end: undo. Only ever an answer to `ready`.
    Abandon {
        id: u64,
    },
    /// Front-end: stop as soon as you can.
    Cancel {
        id: u64,
    },
    Progress {
        id: u64,
        progress: Progress,
    },
    /// Agent: a line for the front-end's log.
    Log {
        id: u64,
        warn: bool,
        text: String,
    },
    /// Agent: the last word about a request.
    Reply {
        id: u64,
        outcome: Outcome,
    },
    /// Either side, at any time; the agent answers with the same.
    Ping,
    /// Front-end: no more requests.
    Bye,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Outcome {
    Ok(Value),
    Failed { class: Class, text: String },
}

impl Control {
    pub fn name(&self) -> &'static str {
        match self {
            Control::Hello(_) => "hello",
            Control::Request { .. } => "request",
            Control::Ready { .. } => "ready",
            Control::Commit { .. } => "commit",
            Control::Abandon { .. } => "abandon",
            Control::Cancel { .. } => "cancel",
            Control::Progress { .. } => "progress",
            Control::Log { .. } => "log",
            Control::Reply { .. } => "reply",
            Control::Ping => "ping",
            Control::Bye => "bye",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Frame {
    Control(Control),
    Binary(Vec<u8>),
}

impl Frame {
    pub fn name(&self) -> &'static str {
        match self {
            Frame::Control(c) => c.name(),
            Frame::Binary(_) => "binary",
        }
    }

    /// As it goes over the wire. An error when it is larger than the other side would take.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        match self {
            Frame::Control(c) => {
                let json = serde_json::to_vec(c).map_err(|e| WireError::Control(e.to_string()))?;
                framed(b'J', "control", CONTROL_MAX, &json)
            }
            Frame::Binary(b) => framed(b'B', "binary", BINARY_MAX, b),
        }
    }

    /// What goes before a block as it is, for who sends it without copying it once more.
    pub fn head_of(block: &[u8]) -> Result<[u8; HEAD], WireError> {
        head(b'B', "binary", BINARY_MAX, block)
    }
}

fn framed(kind: u8, name: &'static str, max: usize, payload: &[u8]) -> Result<Vec<u8>, WireError> {
    Ok([&head(kind, name, max, payload)?, payload].concat())
}

fn head(kind: u8, name: &'static str, max: usize, payload: &[u8]) -> Result<[u8; HEAD], WireError> {
    let len = payload.len();
    let too_long = || WireError::TooLong { kind: name, len, max };
    let size = u32::try_from(len).ok().filter(|_| len <= max).ok_or_else(too_long)?;
    let [a, b, c, d] = size.to_be_bytes();
    Ok([a, b, c, d, kind])
}

/// Cuts a stream into frames. After an error it stays broken.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
    /// Of `held`, already given out.
    used: usize,
    greeted: bool,
    broken: Option<WireError>,
}

impl Decoder {
    /// Bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.used > 0 && self.used * 2 >= self.held.len() {
            self.held.drain(..self.used);
            self.used = 0;
        }
        self.held.extend_from_slice(bytes);
    }

    /// The next whole frame. The first one is a `hello`, and no later one is.
    pub fn frame(&mut self) -> Result<Option<Frame>, WireError> {
        if let Some(e) = &self.broken {
            return Err(e.clone());
        }
        let next = self.cut();
        if let Err(e) = &next {
            self.broken = Some(e.clone());
            self.held = Vec::new();
            self.used = 0;
        }
        next
    }

    /// The stream has ended: is that between two frames?
    pub fn end(&self) -> Result<(), WireError> {
        match &self.broken {
            Some(e) => Err(e.clone()),
            None if self.used == self.held.len() => Ok(()),
            // A shell's complaint is shorter than its first four bytes, taken as a length, say.
            None if !self.greeted => Err(WireError::Text(self.shown())),
            None => Err(WireError::Cut),
        }
    }

    fn shown(&self) -> String {
        let text = &self.held[self.used..];
        String::from_utf8_lossy(&text[..text.len().min(SHOWN)]).into_owned()
    }

    fn cut(&mut self) -> Result<Option<Frame>, WireError> {
        let rest = &self.held[self.used..];
        let Some((head, body)) = rest.split_at_checked(HEAD) else { return Ok(None) };
        let len = head[..4].iter().fold(0usize, |n, b| (n << 8) | usize::from(*b));
        let (kind, max) = match head[4] {
            b'J' => ("control", CONTROL_MAX),
            b'B' => ("binary", BINARY_MAX),
            _ if !self.greeted => return Err(WireError::Text(self.shown())),
            k => return Err(WireError::Kind(k)),
        };
        if len > max {
            return Err(if self.greeted {
                WireError::TooLong { kind, len, max }
            } else {
                WireError::Text(self.shown())
            });
        }
        let Some(payload) = body.get(..len) else { return Ok(None) };
        let frame = if kind == "binary" {
            Frame::Binary(payload.to_vec())
        } else {
            let c = serde_json::from_slice(payload).map_err(|e| WireError::Control(e.to_string()))?;
            Frame::Control(c)
        };
        let greets = matches!(frame, Frame::Control(Control::Hello(_)));
        if greets == self.greeted {
            return Err(WireError::Turn(frame.name()));
        }
        self.greeted = true;
        self.used += HEAD + len;
        Ok(Some(frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn hello() -> Frame {
        Frame::Control(Control::Hello(Hello::ours()))
    }

    fn every_frame() -> Vec<Frame> {
        let id = 7;
        let progress = Progress { phase: "copy".into(), done: 1, total: None };
        let mut all: Vec<Frame> = [
            Control::Request { id, job: "j".into(), body: json!({"a": [1, "ö", null]}), commit: true },
            Control::Ready { id },
            Control::Commit { id },
            Control::Abandon { id },
            Control::Cancel { id },
            Control::Progress { id, progress },
            Control::Log { id, warn: true, text: "x\ny".into() },
            Control::Reply { id, outcome: Outcome::Ok(json!(18_446_744_073_709_551_615_u64)) },
            Control::Reply { id, outcome: Outcome::Failed { class: Class::InUse, text: "t".into() } },
            Control::Ping,
            Control::Bye,
        ]
        .map(Frame::Control)
        .into();
        all.insert(0, hello());
        all.extend([Frame::Binary(vec![]), Frame::Binary(vec![1; 70_000])]);
        all
    }

    fn all_of(d: &mut Decoder) -> Result<Vec<Frame>, WireError> {
        let mut out = Vec::new();
        while let Some(f) = d.frame()? {
            out.push(f);
        }
        Ok(out)
    }

    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut() {
        let all = every_frame();
        let bytes: Vec<u8> = all.iter().flat_map(|f| f.encode().unwrap()).collect();
        for piece in [1, 2, 3, 7, 4096, bytes.len()] {
            let (mut d, mut got) = (Decoder::default(), Vec::new());
            for part in bytes.chunks(piece) {
                d.push(part);
                got.extend(all_of(&mut d).unwrap());
            }
            assert_eq!(got, all, "pieces of {piece}");
            d.end().unwrap();
        }
    }

    #[test]
    fn a_stream_that_ends_at_any_byte_is_whole_or_one_error() {
        let mut bytes = hello().encode().unwrap();
        let first = bytes.len();
        bytes.extend(Frame::Control(Control::Ping).encode().unwrap());
        for end in 0..=bytes.len() {
            let mut d = Decoder::default();
            d.push(&bytes[..end]);
            all_of(&mut d).unwrap();
            match d.end() {
                Ok(()) => assert!([0, first, bytes.len()].contains(&end), "{end}"),
                Err(WireError::Text(_)) => assert!(end < first),
                Err(e) => assert_eq!(e, WireError::Cut),
            }
        }
    }

    #[test]
    fn hostile_frames_are_one_error_for_good() {
        let greet = hello().encode().unwrap();
        let raw = |kind: u8, len: u32, payload: &[u8]| [&len.to_be_bytes()[..], &[kind], payload].concat();
        let deep =
            format!("{{\"request\":{{\"id\":1,\"job\":\"\",\"commit\":true,\"body\":{}", "[".repeat(5000));
        let cases: Vec<(Vec<u8>, &str)> = vec![
            (b"Welcome to h1!\n".to_vec(), "Welcome to h1!"),
            (b"bash: line 1: /usr/bin/onesdm: No such file\n".to_vec(), "No such file"),
            (Frame::Control(Control::Ping).encode().unwrap(), "ping out of turn"),
            (Frame::Binary(vec![1]).encode().unwrap(), "binary out of turn"),
            ([&greet[..], &greet].concat(), "hello out of turn"),
            ([&greet[..], &raw(b'J', 1 << 20 | 1, b"")].concat(), "1048577 bytes, 1048576 are allowed"),
            ([&greet[..], &raw(b'B', u32::MAX, b"")].concat(), "4294967295 bytes"),
            ([&greet[..], &raw(b'X', 0, b"")].concat(), "unknown kind 0x58"),
            ([&greet[..], &raw(b'J', 2, b"{}")].concat(), "a control frame that is none"),
            ([&greet[..], &raw(b'J', 5, b"\"bye\xff")].concat(), "a control frame that is none"),
            ([&greet[..], &raw(b'J', 0, b"")].concat(), "a control frame that is none"),
            ([&greet[..], &framed(b'J', "", 1 << 20, deep.as_bytes()).unwrap()].concat(), "that is none"),
            ([&greet[..], &framed(b'J', "", 99, br#"{"commit":{"id":1,"x":2}}"#).unwrap()].concat(), "`x`"),
            (
                [&greet[..], &framed(b'J', "", 99, br#"{"commit":{"id":-1}}"#).unwrap()].concat(),
                "that is none",
            ),
            (
                [&greet[..], &framed(b'J', "", 99, br#"{"commit":{"id":1},"ping":null}"#).unwrap()].concat(),
                "is none",
            ),
        ];
        for (bytes, says) in cases {
            let mut d = Decoder::default();
            d.push(&bytes);
            let e = all_of(&mut d).unwrap_err();
            assert!(e.to_string().contains(says), "{e} / {says}");
            d.push(&greet);
            assert_eq!(d.frame().unwrap_err(), e, "it stays broken");
        }
        assert!(Frame::Binary(vec![0; BINARY_MAX + 1]).encode().is_err());
        assert!(Frame::Binary(vec![0; BINARY_MAX]).encode().is_ok());
    }

    #[test]
    fn a_hello_from_the_future_still_says_its_number() {
        let text = br#"{"hello":{"protocol":9,"version":"7.0","needs":["x"],"identity":{"machine":"m","boot":"b","z":1}}}"#;
        let mut d = Decoder::default();
        d.push(&framed(b'J', "", CONTROL_MAX, text).unwrap());
        let Ok(Some(Frame::Control(Control::Hello(h)))) = d.frame() else { panic!() };
        assert_eq!((h.protocol, h.version.as_str(), h.identity.machine.as_str()), (9, "7.0", "m"));
    }

    #[test]
    fn machines_are_told_apart_or_nothing_is_said() {
        let id = |m: &str, b: &str| Identity { machine: m.into(), boot: b.into() };
        for (a, b, same) in [
            (id("m", "b"), id("m", "b"), Some(true)),
            (id("m", "b"), id("m", "c"), Some(false)),
            (id("m", "b"), id("n", "b"), Some(false)),
            (id("", "b"), id("m", "b"), None),
            (id("", "b"), id("", "c"), Some(false)),
            (id("", ""), id("", ""), None),
        ] {
            assert_eq!(a.same(&b), same, "{a:?} {b:?}");
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes: Vec<u8>, greeted: bool, pieces in 1usize..50) {
            let mut d = Decoder::default();
            if greeted {
                d.push(&hello().encode().unwrap());
            }
            for part in bytes.chunks(pieces) {
                d.push(part);
                let _ = all_of(&mut d);
            }
            let _ = d.end();
        }

        #[test]
        fn one_damaged_byte_is_a_frame_or_an_error(at: prop::sample::Index, to: u8) {
            let mut bytes: Vec<u8> = every_frame().iter().flat_map(|f| f.encode().unwrap()).collect();
            let at = at.index(bytes.len());
            bytes[at] = to;
            let mut d = Decoder::default();
            d.push(&bytes);
            let _ = all_of(&mut d);
        }
    }
}
