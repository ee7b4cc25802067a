//! One verb's name in a driver's directory, and what lies beside it.

use super::manifest::{Kept, Style};
use crate::sys::fs::{Dir, Entry, Kind};
use crate::sys::{Class, hex, shim};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// No shim is larger.
const SHIM_MAX: u64 = 8192;

/// Replaced files stay in their own directory under a hidden name. There a relative link
/// (`stat -> ../common/stat`) still leads where it did, so `onehost sync`, which follows links, meets no
/// dangling one; and it is the same file system, so that putting aside and giving back are renames, which
/// change neither content nor mode nor time.
pub struct Slot {
    pub dir: Dir,
    /// `role/driver/verb`.
    pub path: String,
    name: OsString,
    kept: OsString,
    tmp: OsString,
}

/// What has a verb's name.
pub enum Now {
    Absent,
    /// Ours, as wanted.
    Ours,
    /// Ours, of another style or leading to another program.
    Stale(PathBuf),
    Foreign(Entry),
}

/// Where a name should lead.
#[derive(Clone, Copy)]
pub struct Put<'a> {
    pub style: Style,
    pub program: &'a Path,
}

impl Slot {
    /// `None` when the driver has no directory. A link in its place is refused: what is changed through it
    /// would change for another driver, too.
    pub fn open(root: &Dir, path: &str) -> Result<Option<Slot>> {
        let (dir, verb) = path.rsplit_once('/').unwrap_or((".", path));
        let dir = match root.sub(Path::new(dir)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(_) if root.path().join(dir).is_symlink() => {
                let text = format!(
                    "{}/{dir} is a link to another directory; make it a directory of its own first",
                    root.path().display()
                );
                return Err(refuse(Class::Refused, text));
            }
            d => d.with_context(|| format!("opening {}/{dir}", root.path().display()))?,
        };
        let named = |suffix: &str| OsString::from(format!(".{verb}.onesdm-{suffix}"));
        let (kept, tmp) = (named("kept"), named("new"));
        Ok(Some(Slot { dir, path: path.to_owned(), name: verb.into(), kept, tmp }))
    }

    pub fn now(&self, put: Put<'_>, programs: &[PathBuf]) -> Result<Now> {
        let Some(e) = self.at(&self.name)? else { return Ok(Now::Absent) };
        let ours = programs.iter().map(PathBuf::as_path).chain([put.program]);
        let found = match &e.kind {
            Kind::Link(to) => ours.clone().find(|p| p.as_os_str() == to).map(|p| (p, Style::Symlink)),
            Kind::File if e.size <= SHIM_MAX => {
                let text = self.content(&self.name)?;
                let is = |p: &&Path| shim::text(p, &self.path).is_some_and(|t| t.as_bytes() == text);
                ours.clone().find(is).map(|p| (p, Style::Shim))
            }
            _ => None,
        };
        Ok(match found {
            None => Now::Foreign(e),
            Some((p, Style::Shim)) if e.mode != 0o755 => Now::Stale(p.to_owned()),
            Some((p, style)) if p == put.program && style == put.style => Now::Ours,
            Some((p, _)) => Now::Stale(p.to_owned()),
        })
    }

    pub fn entry(&self) -> Result<Option<Entry>> {
        self.at(&self.name)
    }

    pub fn text(&self) -> Result<Vec<u8>> {
        self.content(&self.name)
    }

    /// Gives the name to a file that is to be read, not run.
    pub fn put_text(&self, text: &[u8]) -> Result<()> {
        let put = self.dir.put(&self.name, &self.tmp, text, 0o644, true);
        put.with_context(|| format!("writing {}", self.path))
    }

    /// What was put aside here.
    pub fn kept(&self) -> Result<Option<Kept>> {
        self.at(&self.kept)?.map(|e| self.facts(&self.kept, &e)).transpose()
    }

    /// Facts about what has the name now, which is not ours.
    pub fn stock(&self, e: &Entry) -> Result<Kept> {
        self.facts(&self.name, e)
    }

    /// A run was killed here.
    pub fn is_torn(&self) -> Result<bool> {
        Ok(self.at(&self.tmp)?.is_some())
    }

    fn at(&self, name: &OsStr) -> Result<Option<Entry>> {
        self.dir.entry(name).with_context(|| format!("looking at {}", self.path))
    }

    fn content(&self, name: &OsStr) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = self.dir.open_file(Path::new(name), false);
        file.and_then(|f| f.take(64 << 20).read_to_end(&mut bytes))
            .with_context(|| format!("reading {}", self.path))?;
        Ok(bytes)
    }

    fn facts(&self, name: &OsStr, e: &Entry) -> Result<Kept> {
        let (kind, target, sha256) = match &e.kind {
            Kind::File => ("file", None, Some(hex(&Sha256::digest(self.content(name)?)))),
            Kind::Link(to) => ("link", Some(to.to_string_lossy().into_owned()), None),
            _ => {
                let text = format!("{} is neither a file nor a link; move it away first", self.path);
                return Err(refuse(Class::Refused, text));
            }
        };
        Ok(Kept { kind: kind.to_owned(), mode: e.mode, modified: e.modified, target, sha256 })
    }

    /// Puts the stock file aside. It has both names from then on, so that the verb is never missing. What
    /// was kept before (the stock file of before an upgrade) makes way. Can be killed and run again.
    pub fn keep(&self) -> Result<()> {
        let (now, kept) = (self.at(&self.name)?, self.at(&self.kept)?);
        if now.as_ref().map(|e| e.ino) == kept.map(|e| e.ino) {
            return Ok(());
        }
        let put_aside = || {
            self.dir.unlink_if_there(&self.tmp)?;
            match self.dir.link(&self.name, &self.dir, &self.tmp) {
                Ok(()) => self.dir.rename_over(&self.tmp, &self.dir, &self.kept),
                // No second names here, or not for this account: then the verb is missing for a moment.
                Err(_) => self.dir.rename_over(&self.name, &self.dir, &self.kept),
            }
        };
        put_aside().with_context(|| format!("putting {} aside", self.path))
    }

    /// Makes the name lead to the program, in one step.
    pub fn place(&self, put: Put<'_>) -> Result<()> {
        let place = || match put.style {
            Style::Symlink => {
                self.dir.unlink_if_there(&self.tmp)?;
                self.dir.symlink(put.program.as_os_str(), &self.tmp)?;
                self.dir.rename_over(&self.tmp, &self.dir, &self.name)
            }
            Style::Shim => {
                let text = shim::text(put.program, &self.path).ok_or(io::ErrorKind::InvalidFilename)?;
                self.dir.put(&self.name, &self.tmp, text.as_bytes(), 0o755, true)
            }
        };
        place().with_context(|| format!("making {} ours", self.path))
    }

    /// Gives the name back to what was put aside, in one step.
    pub fn give_back(&self) -> Result<()> {
        let back = || {
            self.dir.rename_over(&self.kept, &self.dir, &self.name)?;
            // Two names of one file: the rename did nothing.
            self.dir.unlink_if_there(&self.kept)
        };
        back().with_context(|| format!("giving {} back", self.path))
    }

    pub fn remove(&self) -> Result<()> {
        self.dir.unlink(&self.name).with_context(|| format!("removing {}", self.path))
    }

    /// What was put aside is older than what somebody put under the name since.
    pub fn drop_kept(&self) -> Result<()> {
        self.dir.unlink_if_there(&self.kept).with_context(|| format!("removing the old {}", self.path))
    }

    pub fn mend(&self) -> Result<()> {
        self.dir.unlink_if_there(&self.tmp).with_context(|| format!("tidying {}", self.path))
    }
}
