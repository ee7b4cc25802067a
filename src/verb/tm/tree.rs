//! A VM's directory as one thing: what is in it, whether it is still what it was, and leases on all of it.

use super::{At, Tm, delete};
use crate::engine::Name;
use crate::lock::{Mode, SlabLease};
use crate::sys::Class;
use crate::sys::fs::{Dir, Kind};
use crate::verb::{hold, refuse};
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The VM's name and those of its disks: what is leased to change any of it.
pub(super) fn names(vm: &At) -> Result<Vec<Name>> {
    let mut names = vec![vm.name().clone()];
    if vm.look(vm.name())?.is_some() {
        names.extend(delete::disks(vm)?);
    }
    Ok(names)
}

pub(super) fn lease(tm: &Tm<'_>, at: &At, names: &[Name], mode: Mode) -> Result<Vec<SlabLease>> {
    let wanted: Vec<(&Name, Mode)> = names.iter().map(|n| (n, mode)).collect();
    hold::lease(&at.domain, tm.job, &wanted)
}

/// A path that leads into a directory that moves, as it will be.
pub(super) fn moved(path: &Path, from: &Path, to: &Path) -> OsString {
    match path.strip_prefix(from) {
        Ok(rel) => to.join(rel).into_os_string(),
        Err(_) => path.as_os_str().to_owned(),
    }
}

/// One entry of a tree, as far as a change would show.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    path: PathBuf,
    kind: Kind,
    ino: u64,
    size: u64,
    modified: i64,
}

/// Of whom a directory that is sent must be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Users {
    /// Nobody may have a file of it open.
    None,
    /// Its machine runs and has files of it open, but writes to none.
    Readers,
}

/// All entries below a directory, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Seen(Vec<Entry>);

impl Seen {
    pub fn of(vm: &At) -> Result<Seen> {
        Seen::below(&Dir::open(&vm.path(vm.name())?).context("opening the source")?)
    }

    pub fn below(dir: &Dir) -> Result<Seen> {
        let mut out = Vec::new();
        let mut todo = vec![PathBuf::new()];
        while let Some(rel) = todo.pop() {
            let here = if rel.as_os_str().is_empty() { dir.sub(Path::new("."))? } else { dir.sub(&rel)? };
            for name in here.names()? {
                let Some(e) = here.entry(&name)? else { continue };
                let path = rel.join(&name);
                if e.kind == Kind::Dir {
                    todo.push(path.clone());
                }
                // A directory's own size and time say nothing that its entries do not.
                let (size, modified) = if e.kind == Kind::Dir { (0, 0) } else { (e.size, e.modified) };
                out.push(Entry { path, kind: e.kind, ino: e.ino, size, modified });
            }
        }
        out.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Seen(out))
    }

    /// A text that another state of the tree does not have.
    pub fn manifest(&self) -> String {
        let lines: Vec<String> = self.0.iter().map(|e| format!("{e:?}")).collect();
        lines.join("\n")
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.0.iter().map(|e| e.size).sum()
    }

    /// Refuses when the VM's directory is another by now, or has users that it may not have.
    pub fn unchanged(&self, vm: &At, users: Users) -> Result<()> {
        if Seen::of(vm)? != *self {
            let text = format!("{} changed while it was being moved", vm.spot.text());
            return Err(refuse(Class::Integrity, text));
        }
        self.unused(vm, users)
    }

    pub fn unused(&self, vm: &At, users: Users) -> Result<()> {
        let mut files = Vec::new();
        for e in self.0.iter().filter(|e| e.kind == Kind::File) {
            if let Some(rel) = e.path.to_str() {
                files.push(vm.name().child(rel)?);
            }
        }
        match users {
            Users::None => hold::not_in_use(&vm.domain, &files),
            Users::Readers => hold::not_written(&vm.domain, &files),
        }
    }
}
