//! Unbuffered reads and writes, for what several hosts look at: a page cache would show each its own past.

use super::effect::{Effect, bug, only_looks, step};
use super::fs::Dir;
use rustix::fs::{OFlags, SeekFrom};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Fits every storage we know.
pub const BLOCK: usize = 4096;

#[derive(Debug)]
pub struct Direct {
    file: File,
    path: PathBuf,
}

/// A buffer of `len` bytes that the kernel takes, and where in it they begin.
fn buffer(len: usize) -> (Vec<u8>, usize) {
    let buf = vec![0; len + BLOCK];
    let at = buf.as_ptr().align_offset(BLOCK);
    (buf, at)
}

impl Direct {
    /// Opens a file for reading and writing past all caches; a write is durable when it returns.
    pub fn open(dir: &Dir, name: &OsStr) -> io::Result<Direct> {
        Ok(Direct { file: dir.open_direct(Path::new(name))?, path: dir.path().join(name) })
    }

    /// The same of a device, by its path. A plan only reads it.
    pub fn open_device(path: &Path) -> io::Result<Direct> {
        let sync = if bug("drop-fsync") { OFlags::empty() } else { OFlags::DSYNC };
        let flags = (OFlags::DIRECT | sync | OFlags::CLOEXEC).bits().cast_signed();
        let file = File::options().read(true).write(!only_looks()).custom_flags(flags).open(path)?;
        Ok(Direct { file, path: path.to_owned() })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Makes durable what others wrote to the same disk; of our own all is.
    pub fn flush(&self) -> io::Result<()> {
        if bug("drop-disk-flush") || bug("drop-fsync") {
            return Ok(());
        }
        step(Effect::Sync, &[&self.path], || self.file.sync_all())
    }

    /// Of a file or of a device.
    pub fn size(&self) -> io::Result<u64> {
        Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?)
    }

    /// Offset and length are multiples of the storage's sector.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let (mut buf, at) = buffer(len);
        self.file.read_exact_at(&mut buf[at..at + len], offset)?;
        buf.truncate(at + len);
        Ok(buf.split_off(at))
    }

    /// As for `read`.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (mut buf, at) = buffer(bytes.len());
        buf[at..at + bytes.len()].copy_from_slice(bytes);
        step(Effect::Write, &[&self.path], || self.file.write_all_at(&buf[at..at + bytes.len()], offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join("f"), vec![0; 3 * BLOCK]).unwrap();
        let f = Direct::open(&Dir::open(t.path()).unwrap(), OsStr::new("f")).unwrap();
        f.write(BLOCK as u64, &[7; BLOCK]).unwrap();
        assert_eq!(f.read(BLOCK as u64, BLOCK).unwrap(), [7; BLOCK]);
        assert_eq!(f.read(0, BLOCK).unwrap(), [0; BLOCK]);
        assert!(f.read(2 * BLOCK as u64, 2 * BLOCK).is_err(), "past the end");
        assert_eq!(f.size().unwrap(), 3 * BLOCK as u64);
    }
}
