//! What can be wrong with an image.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;

use crate::sys::{Bytes, Class, ToolError};

use super::Format;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Only for heads: more of the file is needed, and it may be there.
    #[error("{format} header: {have} bytes were given, {need} are needed")]
    Short { format: Format, need: u64, have: u64 },
    #[error("{format} image is truncated: it has {have} bytes, its header needs {need}")]
    Truncated { format: Format, need: u64, have: u64 },
    #[error("{format} image is damaged: {what}")]
    Damaged { format: Format, what: String },
    #[error("image claims {size}, the limit is {limit} (raise image.max_size if it is true)")]
    TooLarge { size: Bytes, limit: Bytes },
    #[error("{format} image needs features we do not know (bits {bits:#x})")]
    UnknownFeatures { format: Format, bits: u64 },
    /// `allow` is the entry of `image.allow` that admits exactly this case.
    #[error("{what} is not accepted (to permit it: image.allow = [{allow:?}])")]
    Refused { what: String, allow: String },
    #[error("the chain comes back to {}", path.display())]
    Loop { path: PathBuf },
    #[error("the chain is longer than {limit} files")]
    TooDeep { limit: usize },
    #[error("backing file {name} is not a local file")]
    Foreign { name: String },
    #[error("neither a regular file nor a block device")]
    NotAnImage,
    #[error("{} is open in a running qemu", path.display())]
    InUse { path: PathBuf },
    #[error("{name:?} cannot be recorded as a backing file: {why}")]
    Name { name: String, why: &'static str },
    #[error("image option {0:?} is not offered")]
    Option(String),
    #[error("qemu-img answered something else: {0}")]
    Answer(String),
    #[error("{}: {source}", path.display())]
    At { path: PathBuf, source: Box<ImageError> },
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error(transparent)]
    Tool(#[from] ToolError),
}

impl ImageError {
    pub fn class(&self) -> Class {
        use ImageError as E;
        match self {
            E::Truncated { .. } | E::Damaged { .. } | E::Loop { .. } | E::TooDeep { .. } => Class::Integrity,
            E::TooLarge { .. } | E::Refused { .. } => Class::Refused,
            E::UnknownFeatures { .. } | E::Foreign { .. } | E::Option(_) => Class::Unsupported,
            E::NotAnImage | E::Name { .. } => Class::Usage,
            E::InUse { .. } => Class::InUse,
            E::Short { .. } | E::Answer(_) => Class::Internal,
            E::At { source, .. } => source.class(),
            E::Io { source, .. } => Class::of_io(source),
            E::Tool(e) => e.class(),
        }
    }

    /// The cause, below the paths it was wrapped in.
    pub fn cause(&self) -> &ImageError {
        match self {
            ImageError::At { source, .. } => source.cause(),
            e => e,
        }
    }

    pub(super) fn damaged(format: Format, what: impl Into<String>) -> Self {
        ImageError::Damaged { format, what: what.into() }
    }

    pub(super) fn at(self, path: &std::path::Path) -> Self {
        ImageError::At { path: path.to_owned(), source: Box::new(self) }
    }
}

/// A name out of a header, for a one-line message.
pub(super) fn shown(name: &OsStr) -> String {
    const MAX: usize = 200;
    let text = name.to_string_lossy();
    let cut: String = text.chars().take(MAX).flat_map(char::escape_debug).collect();
    if text.chars().count() > MAX { format!("{cut}…") } else { cut }
}
