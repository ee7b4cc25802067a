//! What a guard looks after, on record on its host. A verb and its guard that were killed together leave it
//! behind with nobody holding its lock; whoever comes next starts a guard that does what they cannot do any
//! more. It counts as long as the machines of this host run, so it is not flushed.

use super::guard::{COMMAND, Charge};
use super::hold::Hold;
use crate::lock::JobId;
use crate::sdm::Jobs;
use crate::sys::companion::{Companion, Heard};
use crate::sys::{ofd, user};
use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const SIZE: usize = 1 << 16;
/// How long others wait for what they found to be put right. It goes on without them.
const PATIENCE: Duration = Duration::from_secs(30);
/// A record that is held.
#[derive(Debug)]
pub(super) struct Note {
    path: PathBuf,
    file: ofd::Locked,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub charge: Charge,
    pub hold: Hold,
}

/// What was made of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Found {
    /// Whether nothing is left to be done.
    pub done: bool,
    pub text: String,
}

fn place(jobs: &Jobs) -> PathBuf {
    jobs.run.with_file_name("held")
}

impl Note {
    /// It appears complete and held: it is made aside and renamed.
    #[expect(clippy::disallowed_methods, reason = "what this host is busy with is not storage")]
    pub fn make(jobs: &Jobs, id: JobId, charge: &Charge) -> io::Result<Note> {
        let dir = place(jobs);
        std::fs::create_dir_all(&dir)?;
        let (path, tmp) = (dir.join(format!("{id}.json")), dir.join(format!(".{id}")));
        let file =
            File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&tmp)?;
        let note = Note { path, file: ofd::Locked::new(file) };
        ofd::try_lock(note.file.as_fd(), 0, false)?;
        note.write(charge, &Hold::default())?;
        std::fs::rename(&tmp, &note.path)?;
        Ok(note)
    }

    /// One that a living verb holds, too.
    pub fn join(path: &Path) -> io::Result<Note> {
        Note::open(path)?.held(false)
    }

    /// One of the dead; `None`: its owner lives, or somebody was here first. From here on this process has no
    /// more rights than who wrote it.
    pub fn take(path: &Path) -> io::Result<Option<Note>> {
        let note = match Note::open(path)?.held(true) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            note => note?,
        };
        user::become_owner(Path::new(&format!("/proc/self/fd/{}", note.file.as_raw_fd())))?;
        if note.file.metadata()?.uid() != user::uid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(Some(note))
    }

    fn open(path: &Path) -> io::Result<Note> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        Ok(Note { path: path.to_owned(), file: ofd::Locked::new(file) })
    }

    /// By a verb and its guard together, or by one process that knows both to be dead.
    fn held(self, alone: bool) -> io::Result<Note> {
        if !ofd::try_lock(self.file.as_fd(), 0, alone)? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let (is, there) = (self.file.metadata()?, std::fs::symlink_metadata(&self.path)?);
        let same = (is.dev(), is.ino()) == (there.dev(), there.ino());
        if same { Ok(self) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    pub fn read(&self) -> Result<Entry> {
        let mut bytes = vec![0; SIZE];
        let n = self.file.read_at(&mut bytes, 0)?;
        let line = bytes[..n].split(|b| *b == b'\n').next().unwrap_or_default();
        serde_json::from_slice(line).with_context(|| format!("reading {}", self.path.display()))
    }

    pub fn write(&self, charge: &Charge, hold: &Hold) -> io::Result<()> {
        let entry = Entry { charge: charge.clone(), hold: hold.clone() };
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all_at(&line, 0)?;
        self.file.set_len(line.len() as u64)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Nothing is left to be done.
    #[expect(clippy::disallowed_methods, reason = "what this host is busy with is not storage")]
    pub fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Puts right what the dead left on this host; with `again` also what could not be put right before. Costs
/// nothing where they left nothing.
pub fn tend(jobs: &Jobs, again: bool) -> Vec<Found> {
    let Ok(dir) = std::fs::read_dir(place(jobs)) else { return Vec::new() };
    let paths = dir.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json"));
    let is_left = |p: &PathBuf| {
        let Ok(note) = Note::open(p) else { return false };
        let is_due = again || !note.read().is_ok_and(|entry| entry.hold.tried);
        is_due && matches!(ofd::is_held(note.file.as_fd(), 0), Ok(false))
    };
    paths.filter(is_left).filter_map(|p| put_right(&p)).collect()
}

/// In a process of its own: it takes the rights of whoever is dead, and nobody who stops us stops it.
fn put_right(path: &Path) -> Option<Found> {
    let not =
        |why: String| Some(Found { done: false, text: format!("what {} is about: {why}", path.display()) });
    let args = [OsStr::new(COMMAND), OsStr::new("--left"), path.as_os_str()];
    let mut guard = match Companion::start(&args) {
        Err(e) => return not(format!("starting a guard for it: {e}")),
        Ok(guard) => guard,
    };
    match guard.ends.hear(PATIENCE) {
        Heard::Line(line) => {
            guard.end(PATIENCE);
            serde_json::from_str(&line).ok()
        }
        // Somebody else was faster.
        Heard::Gone => None,
        Heard::Quiet => not("a guard is still at it".to_owned()),
    }
}
