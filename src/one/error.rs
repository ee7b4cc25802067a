//! What can be wrong with a request, one variant per fact. Text from outside is shown quoted and
//! escaped (`{:?}`), so it stays on one line and cannot pose as a log line.

use crate::sys::{Bytes, Class};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OneError {
    #[error("{doc} is larger than {limit}")]
    TooLarge { doc: &'static str, limit: Bytes },
    #[error("{doc} is empty (expected base64 or XML)")]
    Empty { doc: &'static str },
    #[error("{doc} is neither XML nor base64 (byte {at})")]
    Base64 { doc: &'static str, at: usize },
    #[error("{doc} is not UTF-8 (byte {at})")]
    Encoding { doc: &'static str, at: usize },
    #[error("{doc} is not well-formed XML (byte {at}): {what}")]
    Xml { doc: &'static str, at: u64, what: String },
    #[error("{doc} declares a document type or the entity {entity:?}: neither is accepted")]
    Entity { doc: &'static str, entity: String },
    #[error("{doc} is nested deeper than {limit} elements")]
    Depth { doc: &'static str, limit: usize },
    #[error("{doc} is {found:?}, expected {want}")]
    Root { doc: &'static str, found: String, want: &'static str },
    #[error("{doc} has no {path}")]
    Missing { doc: &'static str, path: String },
    #[error("{doc} has two different values for {path}")]
    Ambiguous { doc: &'static str, path: String },
    #[error("{path} in {doc} holds elements where a value belongs")]
    NoValue { doc: &'static str, path: String },
    #[error("{path} in {doc} is {value:?}, expected {want}")]
    Value { doc: &'static str, path: String, value: String, want: &'static str },
    #[error("{doc} is of id {found}, expected {want}")]
    OtherObject { doc: &'static str, found: i64, want: i64 },
    #[error("reading the driver message from stdin: {source}")]
    Stdin { source: std::io::Error },
    #[error("argument {position} is {value:?}, expected {want}")]
    Argument { position: usize, value: String, want: &'static str },
    #[error("argument {position} is missing, expected {want}")]
    NoArgument { position: usize, want: &'static str },
    #[error("transfer verb {verb:?} is not supported yet")]
    Verb { verb: String },
    #[error("{path:?} is the directory of VM {found}, but the call is about VM {want}")]
    OtherVm { path: PathBuf, found: u32, want: u32 },
    #[error("image source {source_text:?} is not a file directly in datastore directory {base:?}: {why}")]
    Source { source_text: String, base: String, why: &'static str },
    #[error(
        "image source {source_text:?} is no image on a volume group (vg-one-<datastore>/img-one-<image>)"
    )]
    NoVolume { source_text: String },
    #[error("image source {source_text:?} is not in the volume group of datastore {ds}, vg-one-{ds}")]
    OtherGroup { source_text: String, ds: i64 },
    #[error("image path {path:?} {why}")]
    Path { path: String, why: &'static str },
    #[error(
        "sources of type {scheme:?} are not supported yet (give a local path or an http, https or ssh URL)"
    )]
    Scheme { scheme: String },
    #[error("not allowed to read {path:?}{through}: restricted by {rule:?}; check {remedy}", through = Through(path, real))]
    Restricted { path: PathBuf, real: PathBuf, rule: PathBuf, remedy: String },
    #[error("{path:?} is a {kind}, expected a regular file or directory")]
    Kind { path: PathBuf, kind: &'static str },
    #[error("opening {path:?}: {source}")]
    Open { path: PathBuf, source: std::io::Error },
    #[error("{path:?} tells no way to monitord: {why}")]
    Monitord { path: PathBuf, why: &'static str },
    #[error("sending to monitord at {to}: {source}")]
    Datagram { to: std::net::SocketAddr, source: std::io::Error },
    #[error("the address of oned {endpoint:?} {why} (ONE_XMLRPC or ~/.one/one_endpoint)")]
    Endpoint { endpoint: String, why: &'static str },
    #[error("reading the credentials for oned from {path:?}: {source}; ONE_AUTH names the file")]
    Session { path: PathBuf, source: std::io::Error },
    #[error("{path:?} holds no credentials for oned: {why}")]
    BadSession { path: PathBuf, why: &'static str },
    #[error("certificate authorities {path:?}: {why}")]
    Authorities { path: PathBuf, why: String },
    #[error("asking oned at {endpoint} ({method}): {why}")]
    OnedUnreachable { endpoint: String, method: &'static str, why: String },
    #[error("oned at {endpoint} did not answer {method} within {} s", limit.as_secs())]
    OnedSilent { endpoint: String, method: &'static str, limit: Duration },
    #[error("oned at {endpoint} answered {method} with what is no answer: {why}")]
    OnedAnswer { endpoint: String, method: &'static str, why: String },
    #[error("oned at {endpoint} refused {method}: {message} (code {code:#06x})")]
    OnedRefused { endpoint: String, method: &'static str, message: String, code: i64 },
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
            | Self::Empty { .. }
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
            | Self::NoArgument { .. }
            | Self::OtherObject { .. }
            | Self::OtherVm { .. }
            | Self::Endpoint { .. }
            | Self::BadSession { .. }
            | Self::Authorities { .. }
            | Self::Monitord { .. }
            | Self::NoVolume { .. }
            | Self::Path { .. } => Class::Usage,
            Self::Scheme { .. } | Self::Verb { .. } => Class::Unsupported,
            Self::OnedUnreachable { .. } | Self::Datagram { .. } | Self::OnedAnswer { .. } => Class::Remote,
            Self::OnedSilent { .. } => Class::Timeout,
            Self::OnedRefused { code, .. } => match code {
                // Authentication and authorization.
                0x100 | 0x200 => Class::Refused,
                0x400 => Class::NotFound,
                _ => Class::Remote,
            },
            Self::Source { .. } | Self::OtherGroup { .. } | Self::Restricted { .. } | Self::Kind { .. } => {
                Class::Refused
            }
            // What the user wrote cannot be a file, whatever is on storage.
            Self::Open { source, .. } if is_bad_path(source) => Class::Usage,
            Self::Stdin { source } | Self::Open { source, .. } | Self::Session { source, .. } => {
                Class::of_io(source)
            }
        }
    }
}

fn is_bad_path(e: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    // A circle of links has no stable kind yet.
    matches!(e.kind(), K::NotADirectory | K::InvalidFilename | K::InvalidInput)
        || e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}
