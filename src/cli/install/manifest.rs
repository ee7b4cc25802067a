//! What an install did and found, so that it can be undone and looked after: one file at the top of the
//! remotes tree, durable before the first change.

use super::helper::{self, Helper};
use crate::sys::Class;
use crate::sys::fs::Dir;
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

pub const FILE: &str = ".onesdm.json";
const TMP: &str = ".onesdm.tmp";
const FORMAT: u32 = 1;
const MAX: u64 = 1 << 20;

/// How a verb's name leads to the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Style {
    Symlink,
    Shim,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    /// Of the program that wrote this.
    pub version: String,
    pub since: String,
    pub style: Style,
    /// Every program the names have ever led to, the current one last: all of them are ours.
    pub programs: Vec<PathBuf>,
    pub dirs: Vec<Folder>,
    pub verbs: Vec<Entry>,
    /// Shell libraries that were not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub helpers: Vec<Helper>,
}

/// A directory whose entries we change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// Below the tree; `.` is its top.
    pub path: String,
    /// It was not there before.
    pub made: bool,
    /// Nanoseconds since 1970, before the first change.
    pub modified: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// `role/driver/verb`.
    pub path: String,
    /// What had the name before; `None` when nothing had.
    pub kept: Option<Kept>,
}

/// A stock file or link, as it was when it was put aside. The object itself is kept, not a copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    pub kind: String,
    pub mode: u32,
    pub modified: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

impl Manifest {
    pub fn new(style: Style, since: String) -> Manifest {
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Manifest {
            format: FORMAT,
            version,
            since,
            style,
            programs: vec![],
            dirs: vec![],
            verbs: vec![],
            helpers: vec![],
        }
    }

    /// `None` when nothing is installed there. A manifest that cannot be understood is an error: without
    /// it nobody knows what was there before.
    pub fn read(root: &Dir) -> Result<Option<Manifest>> {
        let path = root.path().join(FILE);
        let file = match root.open_file(Path::new(FILE), false) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            f => f.with_context(|| format!("opening {}", path.display()))?,
        };
        let mut text = String::new();
        file.take(MAX).read_to_string(&mut text).with_context(|| format!("reading {}", path.display()))?;
        let bad = |why: String| refuse(Class::Integrity, format!("{}: {why}", path.display()));
        let m: Manifest = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
        match m {
            m if m.format > FORMAT => Err(bad(format!("format {}; this program knows {FORMAT}", m.format))),
            m if m.verbs.iter().any(|v| !is_verb(&v.path))
                || m.dirs.iter().any(|d| !is_below(&d.path))
                || m.helpers.iter().any(|h| !helper::is_one(&h.path)) =>
            {
                Err(bad("it names a path that no install makes".to_owned()))
            }
            m => Ok(Some(m)),
        }
    }

    /// Durable on return.
    pub fn write(&self, root: &Dir) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        // Synchronised to hosts like the rest of the tree, so readable like the rest.
        root.put(OsStr::new(FILE), OsStr::new(TMP), &text, 0o644, true)?;
        root.sync()
    }

    pub fn remove(root: &Dir) -> io::Result<()> {
        root.unlink_if_there(OsStr::new(TMP))?;
        root.unlink_if_there(OsStr::new(FILE))?;
        root.sync()
    }

    pub fn entry(&self, path: &str) -> Option<&Entry> {
        self.verbs.iter().find(|e| e.path == path)
    }

    /// The program in force; it exists in every manifest that was written.
    pub fn program(&self) -> &Path {
        self.programs.last().map_or(Path::new(""), PathBuf::as_path)
    }
}

/// Components that are plain names: a doctored manifest must not lead out of the tree.
fn is_below(path: &str) -> bool {
    path == "." || path.split('/').all(|c| !matches!(c, "" | "." | ".."))
}

fn is_verb(path: &str) -> bool {
    is_below(path) && path.split('/').count() == 3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Manifest {
        let mut m = Manifest::new(Style::Shim, "now".into());
        m.programs.push("/usr/bin/onesdm".into());
        m.dirs.push(Folder { path: ".".into(), made: false, modified: -5 });
        m.verbs.push(Entry { path: "datastore/fs/cp".into(), kept: None });
        m
    }

    #[test]
    fn it_survives_the_disk() {
        let t = tempfile::tempdir().unwrap();
        let root = Dir::open(t.path()).unwrap();
        assert_eq!(Manifest::read(&root).unwrap(), None);
        sample().write(&root).unwrap();
        assert_eq!(Manifest::read(&root).unwrap(), Some(sample()));
        Manifest::remove(&root).unwrap();
        Manifest::remove(&root).unwrap();
        assert!(root.names().unwrap().is_empty());
    }

    #[test]
    fn a_doctored_one_leads_nowhere() {
        let t = tempfile::tempdir().unwrap();
        let root = Dir::open(t.path()).unwrap();
        for path in ["../../etc/cron.d/x", "a/b", "a//b", "a/../b", "/a/b", "a/b/c/d", "a/./b", ""] {
            let mut m = sample();
            m.verbs[0].path = path.into();
            m.write(&root).unwrap();
            assert!(Manifest::read(&root).is_err(), "{path}");
        }
        for text in ["", "{}", "[]", "\u{0}"] {
            std::fs::write(t.path().join(FILE), text).unwrap();
            assert!(Manifest::read(&root).is_err(), "{text}");
        }
        let mut m = sample();
        m.helpers.push(Helper { path: "datastore/fs/cp".into(), sha256: vec![] });
        m.write(&root).unwrap();
        assert!(Manifest::read(&root).is_err(), "a library where none is");
        let newer = Manifest { format: 2, ..sample() };
        newer.write(&root).unwrap();
        assert!(Manifest::read(&root).unwrap_err().to_string().contains("format 2"));
    }
}
