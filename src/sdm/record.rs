//! Records on storage: one line of JSON and its SHA-256. A record that does not match is damaged,
//! never guessed at. Unknown fields are an error: they are somebody else's record.

use super::{Result, SdmError};
use crate::engine::{Grave, Identity, Name, Part};
use crate::lock::{JobId, Token};
use crate::sys::hex;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The format these records and the layout around them belong to.
pub const FORMAT: u32 = 1;

/// Who does something: for messages, never for decisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Who {
    pub host: String,
    pub pid: u32,
    pub verb: String,
    /// RFC 3339.
    pub since: String,
}

/// What a job is making, and for whom. While only this exists, everything is undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    pub format: u32,
    pub job: JobId,
    pub who: Who,
    /// Public names the job will publish, replace or remove.
    pub targets: Vec<Name>,
    /// What tells the source of what is being made, unchanged, from every other: a later job that makes the
    /// same of the same takes over what is staged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The owner lease under which this was written, where the locks count their holders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
}

/// What an object was before a job changed it in place. It is put back when the job ends before it decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Undo {
    pub format: u32,
    pub job: JobId,
    /// Whose lease the object is under.
    pub slab: Name,
    pub name: Name,
    pub id: Identity,
    /// Where, and what was there, in base64; nothing as soon as the object is whole again.
    pub parts: Vec<(u64, String)>,
}

impl Undo {
    pub fn bytes(&self) -> Result<Vec<Part>> {
        let bad =
            |e: base64::DecodeError| SdmError::BadRecord { what: "undo".to_owned(), why: e.to_string() };
        self.parts.iter().map(|(at, text)| Ok((*at, STANDARD.decode(text).map_err(bad)?))).collect()
    }
}

/// One step of a commit. Each has a source entry; a step whose source entry is gone cannot happen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "lowercase", deny_unknown_fields)]
pub enum Step {
    /// Staged slab `from` gets the free name `to`.
    Publish { from: u32, id: Identity, to: Name },
    /// Staged slab `from` takes the place of `old`, which goes to `grave`.
    Replace { from: u32, id: Identity, to: Name, old: Identity, grave: Grave },
    /// The object goes to `grave`.
    Bury { name: Name, id: Identity, grave: Grave },
}

impl Step {
    pub fn target(&self) -> &Name {
        match self {
            Step::Publish { to, .. } | Step::Replace { to, .. } => to,
            Step::Bury { name, .. } => name,
        }
    }
}

/// The decision and the answer. Durable before the first step; after the last the done record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Commit {
    pub format: u32,
    pub job: JobId,
    pub who: Who,
    /// Digest of what was asked, so that a repeat is told from another wish.
    pub request: String,
    /// What the caller was or will be told on success.
    pub answer: String,
    pub steps: Vec<Step>,
    /// As in `Intent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
}

impl Commit {
    /// Whether this job gave this object this name.
    pub fn made(&self, name: &Name, object: Identity) -> bool {
        self.steps.iter().any(|s| match s {
            Step::Publish { id, to, .. } | Step::Replace { id, to, .. } => to == name && *id == object,
            Step::Bury { .. } => false,
        })
    }

    /// The slab that it was to publish from this place.
    pub fn staged(&self, n: u32) -> Option<Identity> {
        self.steps.iter().find_map(|s| match s {
            Step::Publish { from, id, .. } | Step::Replace { from, id, .. } => (*from == n).then_some(*id),
            Step::Bury { .. } => None,
        })
    }
}

/// The domain's own record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    pub format: u32,
    pub id: uuid::Uuid,
    /// Features that older programs may ignore.
    pub compat: Vec<String>,
    /// Features that a program must know to touch the domain.
    pub incompat: Vec<String>,
    pub engine: String,
    pub lock: String,
    /// The only host whose locks these are, where others do not see them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What the engine says its area is; another value means copied or restored.
    pub area: u64,
    pub created: String,
}

/// JSON, a newline, its SHA-256 in hex, a newline.
pub fn encode<T: Serialize>(what: &str, record: &T) -> Result<Vec<u8>> {
    let mut out = serde_json::to_vec(record)
        .map_err(|e| SdmError::BadRecord { what: what.to_owned(), why: e.to_string() })?;
    let sum = hex(&Sha256::digest(&out));
    out.extend_from_slice(format!("\n{sum}\n").as_bytes());
    Ok(out)
}

pub fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    let bad = |why: String| SdmError::BadRecord { what: what.to_owned(), why };
    let mut lines = bytes.split(|b| *b == b'\n');
    let (Some(json), Some(sum), Some(b""), None) = (lines.next(), lines.next(), lines.next(), lines.next())
    else {
        return Err(bad("it is not two lines".to_owned()));
    };
    if hex(&Sha256::digest(json)).as_bytes() != sum {
        return Err(bad("its checksum does not match".to_owned()));
    }
    serde_json::from_slice(json).map_err(|e| bad(e.to_string()))
}

/// Digest of a request's parts: equal parts, equal digest; no part runs into the next.
pub fn request_digest(parts: &[&str]) -> String {
    let mut h = Sha256::new();
    for p in parts {
        h.update((p.len() as u64).to_be_bytes());
        h.update(p);
    }
    hex(&h.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit() -> Commit {
        let job = JobId(uuid::Uuid::nil());
        let id = Identity { ino: 7, born: 9 };
        let to = Name::parse("a.snap/1").unwrap();
        let grave = Grave { job, n: 0, keep: true };
        let who = Who { host: "h".into(), pid: 1, verb: "cp".into(), since: "t".into() };
        let steps = vec![
            Step::Publish { from: 0, id, to: to.clone() },
            Step::Replace { from: 1, id, to: to.clone(), old: id, grave },
            Step::Bury { name: to, id, grave },
        ];
        let token = Some(Token { host_id: 1, generation: 2, lease: "slot-3".into(), version: 4 });
        Commit { format: FORMAT, job, who, request: "r".into(), answer: "a\nb".into(), steps, token }
    }

    #[test]
    fn a_record_survives_its_bytes_and_any_changed_byte_is_noticed() {
        let c = commit();
        let bytes = encode("c", &c).unwrap();
        assert_eq!(decode::<Commit>("c", &bytes).unwrap(), c);
        for i in 0..bytes.len() {
            let mut b = bytes.clone();
            b[i] ^= 1;
            assert!(decode::<Commit>("c", &b).is_err(), "byte {i}");
            assert!(decode::<Commit>("c", &bytes[..i]).is_err(), "cut at {i}");
        }
    }

    /// Red team 1.20: a doctored record acts on nothing outside its domain.
    #[test]
    fn a_record_that_names_a_path_outside_is_damaged() {
        let json = String::from_utf8(serde_json::to_vec(&commit()).unwrap()).unwrap();
        for evil in ["/etc/passwd", "../x", ".sdm/domain.json", "a/../../x"] {
            let json = json.replacen("a.snap/1", evil, 1);
            let mut bytes = json.clone().into_bytes();
            bytes.extend(format!("\n{}\n", hex(&Sha256::digest(&json))).bytes());
            assert!(decode::<Commit>("c", &bytes).is_err(), "{evil}");
        }
    }

    #[test]
    fn requests_differ_when_their_parts_do() {
        assert_ne!(request_digest(&["ab", "c"]), request_digest(&["a", "bc"]));
        assert_eq!(request_digest(&["a"]), request_digest(&["a"]));
    }
}
