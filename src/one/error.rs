//! What can be wrong with a request, one variant per fact. Text from outside is shown quoted and
//! escaped (`{:?}`), so it stays on one line and cannot pose as a log line.

use crate::sys::{Bytes, Class};
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OneError {
    #[error("the driver message is larger than {limit}")]
    TooLarge { limit: Bytes },
    #[error("the driver message is empty (expected base64 or XML on stdin, or base64 as first argument)")]
    Empty,
    #[error("the driver message is neither XML nor base64 (byte {at})")]
    Base64 { at: usize },
    #[error("the driver message is not UTF-8 (byte {at})")]
    Encoding { at: usize },
    #[error("the driver message is not well-formed XML (byte {at}): {what}")]
    Xml { at: u64, what: String },
    #[error("the driver message declares a document type or the entity {entity:?}: neither is accepted")]
    Entity { entity: String },
    #[error("the driver message is nested deeper than {limit} elements")]
    Depth { limit: usize },
    #[error("the driver message is {found:?}, expected DS_DRIVER_ACTION_DATA")]
    Root { found: String },
    #[error("the driver message has no {path}")]
    Missing { path: &'static str },
    #[error("the driver message has two different values for {path}")]
    Ambiguous { path: String },
    #[error("{path} in the driver message holds elements where a value belongs")]
    NoValue { path: String },
    #[error("{path} in the driver message is {value:?}, expected {want}")]
    Value { path: String, value: String, want: &'static str },
    #[error("reading the driver message from stdin: {source}")]
    Stdin { source: std::io::Error },
    #[error("argument {position} is {value:?}, expected {want}")]
    Argument { position: usize, value: String, want: &'static str },
    #[error("image source {source_text:?} is not a file directly in datastore directory {base:?}: {why}")]
    Source { source_text: String, base: String, why: &'static str },
    #[error("image path {path:?} {why}")]
    Path { path: String, why: &'static str },
    #[error("sources of type {scheme:?} are not supported yet (give a local path or an http or https URL)")]
    Scheme { scheme: String },
    #[error("not allowed to read {path:?}{through}: restricted by {rule:?}; check {remedy}", through = Through(path, real))]
    Restricted { path: PathBuf, real: PathBuf, rule: PathBuf, remedy: String },
    #[error("{path:?} is a {kind}, expected a regular file or directory")]
    Kind { path: PathBuf, kind: &'static str },
    #[error("opening {path:?}: {source}")]
    Open { path: PathBuf, source: std::io::Error },
}

/// Says where a path leads when it does not say so itself.
struct Through<'a>(&'a PathBuf, &'a PathBuf);

impl std::fmt::Display for Through<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == self.1 {
            return Ok(());
        }
        // Quoted and escaped as all text from outside.
        f.write_str(" (which is ")?;
        std::fmt::Debug::fmt(self.1, f)?;
        f.write_str(")")
    }
}

impl OneError {
    pub fn class(&self) -> Class {
        match self {
            Self::TooLarge { .. }
            | Self::Empty
            | Self::Base64 { .. }
            | Self::Encoding { .. }
            | Self::Xml { .. }
            | Self::Entity { .. }
            | Self::Depth { .. }
            | Self::Root { .. }
            | Self::Missing { .. }
            | Self::Ambiguous { .. }
            | Self::NoValue { .. }
            | Self::Value { .. }
            | Self::Argument { .. }
            | Self::Path { .. } => Class::Usage,
            Self::Scheme { .. } => Class::Unsupported,
            Self::Source { .. } | Self::Restricted { .. } | Self::Kind { .. } => Class::Refused,
            // What the user wrote cannot be a file, whatever is on storage.
            Self::Open { source, .. } if is_bad_path(source) => Class::Usage,
            Self::Stdin { source } | Self::Open { source, .. } => Class::of_io(source),
        }
    }
}

fn is_bad_path(e: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    // A circle of links has no stable kind yet.
    matches!(e.kind(), K::NotADirectory | K::InvalidFilename | K::InvalidInput)
        || e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}
