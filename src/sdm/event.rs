//! Events: what a follower of this host's jobs learns. Ids and facts only, never a secret.

use crate::lock::JobId;
use crate::sys::{Bytes, Class};
use serde::{Deserialize, Serialize};
use std::fmt;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    /// RFC 3339.
    pub time: String,
    pub host: String,
    pub job: JobId,
    pub verb: String,
    /// The datastore, as the caller named it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    #[serde(flatten)]
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum What {
    Started,
    /// At most every two seconds.
    Progress {
        phase: String,
        bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    Succeeded {
        seconds: f64,
        bytes: u64,
        /// How the bytes were moved, where any were.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        method: String,
    },
    Failed {
        seconds: f64,
        class: Class,
        cause: String,
    },
    /// The collector removed, finished or left something.
    Garbage {
        what: String,
        action: String,
        bytes: u64,
    },
    /// Something an operator should know that failed nothing.
    Warning {
        text: String,
    },
}

impl What {
    /// The journal's `MESSAGE_ID` of this kind of event: never changed, so that people can search, count and
    /// alarm by it. `packaging/systemd/onesdm.catalog` explains each.
    pub fn message_id(&self) -> &'static str {
        match self {
            What::Started => "5d1f2a0c6b1e4e0f9d3a7c52e8b4f101",
            What::Progress { .. } => "5d1f2a0c6b1e4e0f9d3a7c52e8b4f102",
            What::Succeeded { .. } => "5d1f2a0c6b1e4e0f9d3a7c52e8b4f103",
            What::Failed { .. } => "5d1f2a0c6b1e4e0f9d3a7c52e8b4f104",
            What::Garbage { .. } => "5d1f2a0c6b1e4e0f9d3a7c52e8b4f105",
            What::Warning { .. } => "5d1f2a0c6b1e4e0f9d3a7c52e8b4f106",
        }
    }

    pub fn ends_the_job(&self) -> bool {
        matches!(self, What::Succeeded { .. } | What::Failed { .. })
    }
}

/// For people: what happened, without the job and the time.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::Started => f.write_str("started"),
            What::Progress { phase, bytes, total } => {
                write!(f, "{phase}: {}", Bytes(*bytes))?;
                total.map_or(Ok(()), |t| write!(f, " of {}", Bytes(t)))
            }
            What::Succeeded { seconds, bytes, method } => {
                write!(f, "succeeded in {seconds:.3} s, {}", Bytes(*bytes))?;
                if method.is_empty() { Ok(()) } else { write!(f, " by {method}") }
            }
            What::Failed { class, cause, .. } => write!(f, "failed ({}): {cause}", class.word()),
            What::Garbage { what, action, bytes } => write!(f, "garbage: {action} {what}, {}", Bytes(*bytes)),
            What::Warning { text } => write!(f, "warning: {text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_flat_line() {
        let e = Event {
            time: "t".into(),
            host: "h".into(),
            job: JobId(uuid::Uuid::nil()),
            verb: "cp".into(),
            domain: String::new(),
            object: "x".into(),
            what: What::Failed { seconds: 1.5, class: Class::InUse, cause: "c".into() },
        };
        let s = serde_json::to_string(&e).unwrap();
        assert!(s.contains(r#""event":"failed""#) && s.contains(r#""class":"in-use""#), "{s}");
        assert_eq!(serde_json::from_str::<Event>(&s).unwrap().what, e.what);
    }
}
