//! What goes wrong between hosts.

use super::wire::{PROTOCOL, WireError};
use crate::sys::Class;
use crate::sys::ToolError;
use std::path::PathBuf;
use std::time::Duration;

/// How far a request had come when its connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The host did not get it.
    Connect,
    /// It may run, but was never told to publish, so it undoes itself.
    Asked,
    /// It may have published.
    Committed,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Connect => "before the request was sent",
            Stage::Asked => "before it was committed; the host undoes it",
            Stage::Committed => "after it was committed; ask again under the same job id",
        })
    }
}

/// A key that a host showed, and the record that speaks about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKey {
    /// Under which it is recorded.
    pub name: String,
    pub kind: String,
    pub fingerprint: String,
    pub file: PathBuf,
    /// 0 when there is no record.
    pub line: usize,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    #[error("host name {0:?} has characters that host names do not have")]
    Name(String),
    #[error("host {host}: its ssh settings: {source}")]
    Config { host: String, source: ToolError },
    #[error("host {host}: ssh setting {what}")]
    Setting { host: String, what: String },
    #[error("host {host}: name or address {name} is not known: {source}")]
    Resolve { host: String, name: String, source: std::io::Error },
    #[error("host {host}: no connection to {to}: {source}")]
    Connect { host: String, to: String, source: std::io::Error },
    #[error("host {host}: no answer from {to} in {} s", after.as_secs_f32())]
    NoAnswer { host: String, to: String, after: Duration },
    #[error(
        "host {host}: its {} key {} is not in {}; add it (ssh-keyscan {}, compared with the host's own) or set \
         StrictHostKeyChecking accept-new", key.kind, key.fingerprint, key.file.display(), key.name
    )]
    UnknownKey { host: String, key: Box<HostKey> },
    #[error(
        "host {host}: its {} key has changed to {}, {} line {} has another; somebody may be in between. If the host \
         was reinstalled: ssh-keygen -R {}", key.kind, key.fingerprint, key.file.display(), key.line, key.name
    )]
    ChangedKey { host: String, key: Box<HostKey> },
    #[error("host {host}: its key {} is revoked in {} line {}", key.fingerprint, key.file.display(), key.line)]
    RevokedKey { host: String, key: Box<HostKey> },
    #[error("host {host}: no login as {user}: {tried}")]
    Login { host: String, user: String, tried: String },
    #[error("host {host}: ssh: {what}: {said}")]
    Ssh { host: String, what: &'static str, said: String },
    #[error("host {host}: onesdm is not there and could not be put there: {why}")]
    NoAgent { host: String, why: String },
    #[error("host {host}: {} has the digest {found} in place of {expected}", path.display())]
    Digest { host: String, path: PathBuf, expected: String, found: String },
    #[error(
        "host {host}: onesdm {version} there speaks protocol {theirs}, we speak {PROTOCOL}; install the same version"
    )]
    Protocol { host: String, version: String, theirs: u32 },
    #[error("host {host}: {source}, {stage}")]
    Wire { host: String, source: WireError, stage: Stage },
    #[error("host {host}: connection lost {stage}{}", so_said(said))]
    Lost { host: String, stage: Stage, said: String },
    #[error("host {host}: nothing heard for {} s, given up {stage}", after.as_secs_f32())]
    Silent { host: String, after: Duration, stage: Stage },
    #[error("host {host}: stopped on request")]
    Cancelled { host: String, stage: Stage },
    /// The job's own last word.
    #[error("host {host}: {text}")]
    Failed { host: String, class: Class, text: String },
}

fn so_said(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

impl HostError {
    pub fn class(&self) -> Class {
        match self {
            HostError::Name(_) | HostError::Setting { .. } => Class::Usage,
            HostError::Config { source, .. } => source.class(),
            HostError::NoAnswer { .. } | HostError::Silent { .. } => Class::Timeout,
            HostError::UnknownKey { .. }
            | HostError::ChangedKey { .. }
            | HostError::RevokedKey { .. }
            | HostError::Login { .. } => Class::Refused,
            HostError::Protocol { .. } => Class::Unsupported,
            HostError::Digest { .. } => Class::Integrity,
            HostError::Cancelled { .. } => Class::Cancelled,
            HostError::Failed { class, .. } => *class,
            HostError::Resolve { .. }
            | HostError::Connect { .. }
            | HostError::Ssh { .. }
            | HostError::NoAgent { .. }
            | HostError::Wire { .. }
            | HostError::Lost { .. } => Class::Remote,
        }
    }

    /// Whether the request may have taken effect although nobody said so. Then only asking again under the
    /// same job id, or looking at the storage, tells. Otherwise it has not and will not.
    pub fn may_have_run(&self) -> bool {
        match self {
            HostError::Wire { stage, .. }
            | HostError::Lost { stage, .. }
            | HostError::Silent { stage, .. }
            | HostError::Cancelled { stage, .. } => *stage == Stage::Committed,
            _ => false,
        }
    }

    /// Whether the host was not reached, or lost: nothing that it said.
    pub fn is_connection(&self) -> bool {
        matches!(
            self,
            HostError::Resolve { .. }
                | HostError::Connect { .. }
                | HostError::NoAnswer { .. }
                | HostError::Ssh { .. }
                | HostError::Lost { .. }
                | HostError::Silent { .. }
        )
    }

    /// Whether the host was not reached, so that it knows nothing of the request.
    pub fn is_unreached(&self) -> bool {
        match self {
            HostError::Lost { stage, .. }
            | HostError::Silent { stage, .. }
            | HostError::Wire { stage, .. } => *stage == Stage::Connect,
            HostError::Login { .. } | HostError::NoAgent { .. } => true,
            e => e.is_connection(),
        }
    }

    /// Whether another way to the same host may do better: nothing was asked of it yet, and it is not
    /// its key that we object to.
    pub(super) fn is_of_the_way(&self) -> bool {
        matches!(self, HostError::Login { .. } | HostError::Ssh { .. })
    }
}
