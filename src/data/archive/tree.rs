//! The only place that creates what an archive brings. Names are walked one component at a time from
//! the open directory, never through a link, so nothing is created elsewhere whatever came before.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Limits, Unpacked};
use crate::data::compress::fill;
use crate::data::sparse::Writer;
use crate::data::{DataError, Sparse, Watch, pipe};
use crate::sys::effect::{Effect, step};

const DIR: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// The longest name of an entry, as of any path.
const PATH_MAX: usize = 4096;

pub(super) struct Tree<'a> {
    base: &'a Path,
    root: OwnedFd,
    limits: Limits,
    watch: &'a Watch,
    so_far: Unpacked,
    dirs: Vec<PathBuf>,
    buf: Vec<u8>,
}

/// The error for an entry; its name made fit for one line.
pub(super) fn refuse(name: &[u8], why: &'static str) -> DataError {
    let name = String::from_utf8_lossy(name);
    DataError::HostileArchive { entry: name.chars().take(200).collect(), why }
}

/// The components of a name; none for the directory itself (`./`).
fn components(name: &[u8]) -> Result<Vec<OsString>, DataError> {
    let why = match name {
        [] => "it has no name",
        [b'/', ..] => "absolute name",
        n if n.contains(&0) || n.len() > PATH_MAX => "impossible name",
        n if n.split(|b| *b == b'/').any(|part| part == b"..") => "its name leads out of the directory",
        n => {
            let parts = n.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b"."));
            return Ok(parts.map(|part| OsStr::from_bytes(part).to_owned()).collect());
        }
    };
    Err(refuse(name, why))
}

/// What creating an entry came to.
fn created<T>(name: &[u8], made: Result<T, Errno>) -> Result<T, DataError> {
    made.map_err(|e| match e {
        Errno::EXIST => refuse(name, "it is there twice"),
        e => io("unpacking")(e),
    })
}

fn io(doing: &'static str) -> impl FnOnce(Errno) -> DataError {
    move |e| DataError::Io { doing, source: e.into() }
}

impl<'a> Tree<'a> {
    pub(super) fn open(base: &'a Path, limits: Limits, watch: &'a Watch) -> Result<Tree<'a>, DataError> {
        let root = rustix::fs::openat(CWD, base, DIR, Mode::empty()).map_err(io("opening the directory"))?;
        let mut dir = rustix::fs::Dir::read_from(&root).map_err(io("reading the directory"))?;
        let other = |e: rustix::io::Result<rustix::fs::DirEntry>| {
            e.map_or(true, |e| !matches!(e.file_name().to_bytes(), b"." | b".."))
        };
        if dir.any(other) {
            return Err(DataError::DirectoryNotEmpty);
        }
        Ok(Tree { base, root, limits, watch, so_far: Unpacked::default(), dirs: Vec::new(), buf: Vec::new() })
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    /// Counts an entry and finds its directory, made when missing, and its last name. `None`: the root.
    fn place(&mut self, name: &[u8]) -> Result<Option<(OwnedFd, OsString, PathBuf)>, DataError> {
        self.watch.check("unpacking")?;
        self.so_far.entries += 1;
        if self.so_far.entries > self.limits.entries {
            return Err(DataError::TooManyEntries(self.limits.entries));
        }
        let mut parts = components(name)?;
        let Some(last) = parts.pop() else { return Ok(None) };
        let mut dir = self.root.try_clone().map_err(DataError::io("opening a directory"))?;
        let mut path = self.base.to_owned();
        for part in parts {
            path.push(&part);
            dir = self.enter(&dir, &part, &path, name)?;
        }
        path.push(&last);
        Ok(Some((dir, last, path)))
    }

    fn enter(&mut self, dir: &OwnedFd, part: &OsStr, path: &Path, name: &[u8]) -> Result<OwnedFd, DataError> {
        let made =
            step(Effect::Mkdir, &[path], || rustix::fs::mkdirat(dir, part, Mode::from_raw_mode(0o755)));
        match made {
            Ok(()) => {
                // Directories that only the names of entries imply count too.
                self.so_far.entries += 1;
                self.dirs.push(path.to_owned());
            }
            Err(Errno::EXIST) => {}
            Err(e) => return Err(io("making a directory")(e)),
        }
        if self.so_far.entries > self.limits.entries {
            return Err(DataError::TooManyEntries(self.limits.entries));
        }
        match rustix::fs::openat(dir, part, DIR, Mode::empty()) {
            Ok(fd) => Ok(fd),
            Err(Errno::LOOP | Errno::NOTDIR) => Err(refuse(name, "its name leads through a link or a file")),
            Err(e) => Err(io("opening a directory")(e)),
        }
    }

    /// The place of an entry that is not a directory.
    fn leaf(&mut self, name: &[u8]) -> Result<(OwnedFd, OsString, PathBuf), DataError> {
        self.place(name)?.ok_or_else(|| refuse(name, "it has no name"))
    }

    pub(super) fn dir(&mut self, name: &[u8]) -> Result<(), DataError> {
        if let Some((dir, last, path)) = self.place(name)? {
            self.so_far.entries -= 1;
            self.enter(&dir, &last, &path, name)?;
        }
        Ok(())
    }

    /// Writes one file, zeros as holes; the bytes of its content.
    pub(super) fn file(&mut self, name: &[u8], mode: u32, content: &mut dyn Read) -> Result<u64, DataError> {
        if mode & 0o6000 != 0 {
            return Err(refuse(name, "it has set-id bits"));
        }
        let (dir, last, path) = self.leaf(name)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let made = step(Effect::Create, &[&path], || {
            rustix::fs::openat(&dir, &last, flags, Mode::RUSR | Mode::WUSR)
        });
        let file = File::from(created(name, made)?);
        let left = self.limits.bytes - self.so_far.bytes;
        let size = step(Effect::Write, &[&path], || self.write(&file, left, content))?;
        self.so_far.bytes += size;
        let mode = Mode::from_raw_mode(mode & 0o777 | 0o600);
        step(Effect::Mode, &[&path], || rustix::fs::fchmod(&file, mode)).map_err(io("unpacking"))?;
        step(Effect::Sync, &[&path], || file.sync_all()).map_err(DataError::io("flushing"))?;
        Ok(size)
    }

    fn write(&mut self, file: &File, left: u64, content: &mut dyn Read) -> Result<u64, DataError> {
        let mut writer = Writer::new(file, Sparse::Detect, left)?;
        self.buf.resize(pipe::BLOCK, 0);
        loop {
            self.watch.check("unpacking")?;
            let n = fill(content, &mut self.buf)
                .map_err(|_| DataError::BadArchive("the content of a file cannot be read".to_owned()))?;
            if n == 0 {
                return Ok(writer.finish()?.0);
            }
            writer.push(&self.buf[..n]).map_err(|e| match e {
                DataError::TooLarge { .. } => DataError::TooLarge { limit: self.limits.bytes },
                e => e,
            })?;
            self.watch.progress.add(n as u64);
        }
    }

    /// `..` is allowed at the beginning of a target only: there it is counted against directories that
    /// are none but real ones; behind another name it would start where a link may have led.
    pub(super) fn symlink(&mut self, name: &[u8], target: &[u8]) -> Result<(), DataError> {
        let depth = components(name)?.len();
        let parts: Vec<&[u8]> = target.split(|b| *b == b'/').filter(|p| !matches!(*p, b"" | b".")).collect();
        let ups = parts.iter().take_while(|p| **p == b"..").count();
        let wanders = parts[ups..].contains(&&b".."[..]);
        if target.is_empty()
            || target.len() >= PATH_MAX
            || target.starts_with(b"/")
            || ups >= depth
            || wanders
        {
            return Err(refuse(name, "its target leads out of the directory"));
        }
        let (dir, last, path) = self.leaf(name)?;
        let made =
            step(Effect::Symlink, &[&path], || rustix::fs::symlinkat(OsStr::from_bytes(target), &dir, &last));
        created(name, made)
    }

    /// To a file that came before.
    pub(super) fn hard_link(&mut self, name: &[u8], target: &[u8]) -> Result<(), DataError> {
        let mut parts = components(target)?;
        let missing = || refuse(name, "a link to no file of the archive");
        let to = parts.pop().ok_or_else(missing)?;
        let mut from = self.root.try_clone().map_err(DataError::io("opening a directory"))?;
        for part in parts {
            from = rustix::fs::openat(&from, &part, DIR, Mode::empty()).map_err(|_| missing())?;
        }
        let stat = rustix::fs::statat(&from, &to, AtFlags::SYMLINK_NOFOLLOW).map_err(|_| missing())?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(missing());
        }
        let (dir, last, path) = self.leaf(name)?;
        let made =
            step(Effect::Link, &[&path], || rustix::fs::linkat(&from, &to, &dir, &last, AtFlags::empty()));
        created(name, made)
    }

    /// Flushes the directories, what is below before what is above.
    pub(super) fn finish(self) -> Result<Unpacked, DataError> {
        for path in self.dirs.iter().rev().map(PathBuf::as_path).chain([self.base]) {
            self.watch.check("unpacking")?;
            let dir = rustix::fs::openat(CWD, path, DIR, Mode::empty()).map_err(io("opening a directory"))?;
            step(Effect::SyncDir, &[path], || rustix::fs::fsync(&dir)).map_err(io("flushing"))?;
        }
        Ok(self.so_far)
    }
}
