//! What can be wrong with the settings: always with the place to correct.

use super::Source;
use crate::sys::Class;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    #[error("reading {path:?}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path:?} is larger than {limit} bytes")]
    TooLarge { path: PathBuf, limit: u64 },
    #[error("{path:?} line {line}: {message}")]
    Syntax { path: PathBuf, line: usize, message: String },
    #[error("{key} = {value:?} ({origin}): expected {want}")]
    Value { key: String, value: String, origin: Source, want: &'static str },
    #[error("unknown setting {key:?} ({origin})")]
    Unknown { key: String, origin: Source },
}

impl ConfigError {
    pub fn class(&self) -> Class {
        match self {
            Self::Read { source, .. } => Class::of_io(source),
            Self::TooLarge { .. } | Self::Syntax { .. } | Self::Value { .. } | Self::Unknown { .. } => {
                Class::Usage
            }
        }
    }
}
