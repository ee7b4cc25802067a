//! Bounded reads of a file or of a head that was fetched, and numbers in the bytes read.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Seek as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _};

use super::{Format, ImageError};

/// Nothing in a header makes us read more than this at once.
const MAX: usize = 2 << 20;

enum Data<'a> {
    File(&'a File),
    Head(&'a [u8]),
}

/// The bytes of an image, and how many there are if that is known.
pub(super) struct Source<'a> {
    data: Data<'a>,
    pub len: Option<u64>,
}

impl<'a> Source<'a> {
    pub(super) fn file(file: &'a File) -> Result<Self, ImageError> {
        let len = length(file)?;
        Ok(Source { data: Data::File(file), len: Some(len) })
    }

    pub(super) fn head(head: &'a [u8], len: Option<u64>) -> Self {
        Source { data: Data::Head(head), len }
    }

    /// What is there of `n` bytes at `off`, at most 2 MiB.
    pub(super) fn some(&self, off: u64, n: u64) -> Result<Vec<u8>, ImageError> {
        let n = usize::try_from(n).unwrap_or(MAX).min(MAX);
        match self.data {
            Data::Head(head) => {
                let from = usize::try_from(off).unwrap_or(usize::MAX).min(head.len());
                Ok(head[from..from.saturating_add(n).min(head.len())].to_vec())
            }
            Data::File(file) => {
                let len = self.len.unwrap_or(0).saturating_sub(off);
                let mut buf = vec![0; n.min(usize::try_from(len).unwrap_or(MAX))];
                let mut done = 0;
                while done < buf.len() {
                    match file.read_at(&mut buf[done..], off + done as u64) {
                        Ok(0) => break,
                        Ok(got) => done += got,
                        Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                        Err(source) => {
                            return Err(ImageError::Io { what: "reading the image header", source });
                        }
                    }
                }
                buf.truncate(done);
                Ok(buf)
            }
        }
    }

    /// Exactly `n` bytes at `off`.
    pub(super) fn exact(&self, format: Format, off: u64, n: u64) -> Result<Vec<u8>, ImageError> {
        let Some(need) = off.checked_add(n).filter(|_| n <= MAX as u64) else {
            return Err(ImageError::damaged(format, format!("a part of the header at {off} has {n} bytes")));
        };
        let got = self.some(off, n)?;
        if got.len() as u64 == n { Ok(got) } else { Err(self.missing(format, need)) }
    }

    /// Why `need` bytes are not there.
    pub(super) fn missing(&self, format: Format, need: u64) -> ImageError {
        match (&self.data, self.len) {
            (_, Some(have)) if have < need => ImageError::Truncated { format, need, have },
            (Data::Head(head), _) => ImageError::Short { format, need, have: head.len() as u64 },
            (Data::File(_), len) => ImageError::Truncated { format, need, have: len.unwrap_or(0) },
        }
    }

    /// A file name of `n` bytes at `off`.
    pub(super) fn name(&self, format: Format, off: u64, n: u64) -> Result<OsString, ImageError> {
        let name = self.exact(format, off, n)?;
        // Readers in C end the name there, we would not: no two readers may see two names.
        if name.is_empty() || name.contains(&0) {
            return Err(ImageError::damaged(format, "a file name is empty or contains a zero byte"));
        }
        Ok(OsString::from_vec(name))
    }
}

/// Bytes of a regular file or block device.
pub(super) fn length(file: &File) -> Result<u64, ImageError> {
    let io = |source| ImageError::Io { what: "asking for the length", source };
    let meta = file.metadata().map_err(io)?;
    if meta.is_file() {
        Ok(meta.len())
    } else if meta.file_type().is_block_device() {
        let mut file = file;
        file.seek(io::SeekFrom::End(0)).map_err(io)
    } else {
        Err(ImageError::NotAnImage)
    }
}

/// `N` bytes at `at`; zeroes where there are none, so no header can make us panic.
fn bytes<const N: usize>(b: &[u8], at: usize) -> [u8; N] {
    b.get(at..).and_then(|b| b.first_chunk()).copied().unwrap_or([0; N])
}

pub(super) fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(bytes(b, at))
}

pub(super) fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes(b, at))
}

pub(super) fn be64(b: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes(b, at))
}

pub(super) fn le32(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes(b, at))
}

pub(super) fn le64(b: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes(b, at))
}
