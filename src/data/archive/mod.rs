//! Unpacking tar and zip archives from strangers. What is created is decided in `tree`, for both
//! formats alike; the readers of the formats only say what their entries claim to be.

mod tar;
mod tree;
mod zip;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DataError, Watch};
use tree::Tree;

/// How much of a file `kind` wants to see.
pub const HEAD: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Archive {
    Tar,
    Zip,
}

/// What an archive may bring; one more is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub entries: u64,
    /// Bytes of all files together, holes included.
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
}

/// The archive format, from the first 512 bytes of the unpacked stream.
pub fn kind(head: &[u8]) -> Option<Archive> {
    // The second is a zip without entries.
    if head.starts_with(b"PK\x03\x04") || head.starts_with(b"PK\x05\x06") {
        return Some(Archive::Zip);
    }
    head.get(257..262).is_some_and(|magic| magic == b"ustar").then_some(Archive::Tar)
}

/// Unpacks `src` into the existing empty directory `into`. Nothing is created outside of it, no link
/// in it leads out, and there are no device nodes, fifos or files with set-id bits: an archive with
/// such entries is refused as a whole, as is one with a name twice. Files and the directories made are
/// flushed when this returns; after an error `into` holds a part and is the caller's to discard.
pub fn unpack(
    kind: Archive,
    src: &File,
    into: &Path,
    limits: Limits,
    watch: &Watch,
) -> Result<Unpacked, DataError> {
    watch.begin("unpacking", None)?;
    let mut tree = Tree::open(into, limits, watch)?;
    match kind {
        Archive::Tar => tar::read(src, &mut tree)?,
        Archive::Zip => zip::read(src, &mut tree)?,
    }
    tree.finish()
}

/// A reader that gives only so much: the libraries keep names and directories of an archive in memory,
/// as large as the archive says they are.
struct Rationed<'a> {
    file: &'a File,
    ration: Ration,
}

/// Bytes that may still be read.
#[derive(Clone, Debug)]
struct Ration(Arc<AtomicU64>);

impl Ration {
    fn set(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

impl Rationed<'_> {
    fn open(mut file: &File, bytes: u64) -> Result<(Rationed<'_>, Ration), DataError> {
        file.rewind().map_err(DataError::io("reading the archive"))?;
        let ration = Ration(Arc::new(AtomicU64::new(bytes)));
        Ok((Rationed { file, ration: ration.clone() }, ration))
    }
}

impl Read for Rationed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buf)?;
        match self.ration.0.load(Ordering::Relaxed).checked_sub(n as u64) {
            Some(left) => self.ration.set(left),
            None => return Err(io::Error::other("names or directory too large")),
        }
        Ok(n)
    }
}

impl Seek for Rationed<'_> {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.file.seek(pos)
    }
}

#[cfg(test)]
mod tests;
