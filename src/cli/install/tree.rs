//! A remotes tree: what an install would change in it, the change, the way back, and how it stands now.
//! Everything is decided from what lies there, so a run that was killed is made good by the next.

use super::helper;
use super::manifest::{Entry, Folder, Manifest, Style};
use super::slot::{Now, Put, Slot};
use crate::obs;
use crate::sys::fs::{Dir, Kind};
use crate::sys::{Class, user};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use serde::Serialize;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Nothing,
    Make,
    /// Put the stock file aside, then make.
    Replace,
    /// Ours already, to be led elsewhere.
    Relink,
    Restore,
    Remove,
    /// Somebody put a file there since: it stays, what was kept before goes.
    LeaveNewer,
    /// Ours, but what was kept is gone.
    Lost,
}

#[derive(Clone, Debug, Serialize)]
pub struct Step {
    pub path: String,
    pub action: Action,
}

/// What an install will do, and the manifest it will write first.
pub struct Plan {
    pub steps: Vec<Step>,
    /// The same for shell libraries.
    pub helpers: Vec<Step>,
    pub manifest: Manifest,
}

pub struct Tree {
    root: Dir,
    pub manifest: Option<Manifest>,
}

impl Tree {
    pub fn open(remotes: &Path) -> Result<Tree> {
        let root = Dir::open(remotes).with_context(|| format!("opening {}", remotes.display()))?;
        let manifest = Manifest::read(&root)?;
        Ok(Tree { root, manifest })
    }

    /// Opens a tree to change it: as its owner, and alone.
    pub fn open_alone(remotes: &Path) -> Result<Tree> {
        user::become_owner(remotes)
            .with_context(|| format!("becoming the owner of {}", remotes.display()))?;
        let root = Dir::open(remotes).with_context(|| format!("opening {}", remotes.display()))?;
        // A file system that cannot lock a directory is no reason to refuse.
        if matches!(root.try_lock(), Ok(false)) {
            let text = format!("another install works on {}", remotes.display());
            return Err(refuse(Class::Busy, text));
        }
        let manifest = Manifest::read(&root)?;
        Ok(Tree { root, manifest })
    }

    pub fn has(&self, dir: &str) -> Result<bool> {
        let e = self.root.entry(OsStr::new(dir)).with_context(|| format!("looking at {dir}"))?;
        Ok(e.is_some())
    }

    fn slot(&self, path: &str) -> Result<Option<Slot>> {
        Slot::open(&self.root, path)
    }

    /// What has to be done so that all of `paths` lead to the program.
    pub fn plan(&self, paths: &BTreeSet<String>, put: Put<'_>) -> Result<Plan> {
        let mut new = self.manifest.clone().unwrap_or_else(|| Manifest::new(put.style, obs::now()));
        let programs = new.programs.clone();
        let mut steps = Vec::new();
        for path in paths {
            let (action, kept) = match self.slot(path)? {
                None => (Action::Make, None),
                Some(slot) => {
                    let now = slot.now(put, &programs)?;
                    // What lies there says more than a manifest whose run may have been killed.
                    let kept = match &now {
                        Now::Foreign(e) => Some(slot.stock(e)?),
                        _ => slot.kept()?.or_else(|| new.entry(path).and_then(|e| e.kept.clone())),
                    };
                    let action = match now {
                        Now::Absent => Action::Make,
                        Now::Ours => Action::Nothing,
                        Now::Stale(_) => Action::Relink,
                        Now::Foreign(_) => Action::Replace,
                    };
                    (action, kept)
                }
            };
            new.verbs.retain(|e| e.path != *path);
            new.verbs.push(Entry { path: path.clone(), kept });
            steps.push(Step { path: path.clone(), action });
        }
        new.verbs.sort_by(|a, b| a.path.cmp(&b.path));
        new.programs.retain(|p| p != put.program);
        new.programs.push(put.program.to_owned());
        (new.style, new.version) = (put.style, env!("CARGO_PKG_VERSION").to_owned());
        let (helpers, written) = helper::plan(&self.root, &new.helpers)?;
        new.helpers = written;
        self.folders(&mut new)?;
        Ok(Plan { steps, helpers, manifest: new })
    }

    /// Adds the directories that will change, as they are before.
    fn folders(&self, m: &mut Manifest) -> Result<()> {
        let mut wanted = BTreeSet::from([".".to_owned()]);
        let paths = m.verbs.iter().map(|e| &e.path).chain(m.helpers.iter().map(|h| &h.path));
        for path in paths {
            let mut at = path.as_str();
            while let Some((dir, _)) = at.rsplit_once('/') {
                wanted.insert(dir.to_owned());
                at = dir;
            }
        }
        for path in wanted {
            if m.dirs.iter().any(|d| d.path == path) {
                continue;
            }
            let (dir, name) = self.parent(&path)?;
            let e = dir.map(|d| d.entry(&name)).transpose().with_context(|| format!("looking at {path}"))?;
            let modified = e.flatten().map(|e| e.modified);
            m.dirs.push(Folder { made: modified.is_none(), modified: modified.unwrap_or_default(), path });
        }
        // Parents first: they are made in this order, and taken away in the other.
        m.dirs.sort_by_key(|d| (d.path != ".", d.path.clone()));
        Ok(())
    }

    /// The directory a path's last component lies in, if there is one.
    fn parent(&self, path: &str) -> Result<(Option<Dir>, OsString)> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        match self.root.sub(Path::new(parent)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok((None, name.into())),
            d => Ok((Some(d.with_context(|| format!("opening {parent}"))?), name.into())),
        }
    }

    /// Does what the plan says. Killed anywhere it is made good by planning and applying again.
    pub fn apply(&self, plan: &Plan) -> Result<()> {
        let idle = plan.steps.iter().chain(&plan.helpers).all(|s| s.action == Action::Nothing);
        if idle && self.manifest.as_ref() == Some(&plan.manifest) {
            return Ok(());
        }
        let m = &plan.manifest;
        m.write(&self.root).context("writing what will be done")?;
        for d in m.dirs.iter().filter(|d| d.made) {
            let (Some(parent), name) = self.parent(&d.path)? else { continue };
            let what = || format!("making {}", d.path);
            if parent.entry(&name).with_context(what)?.is_none() {
                let like = parent.entry(OsStr::new(".")).with_context(what)?;
                parent.mkdir(&name, like.map_or(0o755, |e| e.mode & 0o777), true).with_context(what)?;
                parent.sync().with_context(what)?;
            }
        }
        let slots = self.slots(plan.steps.iter())?;
        for (_, slot) in slots.iter().filter(|(a, _)| *a == Action::Replace) {
            slot.keep()?;
        }
        // No name is taken before what it was is durable under the other one.
        Self::sync(&slots)?;
        let put = Put { style: m.style, program: m.program() };
        for (action, slot) in &slots {
            match action {
                Action::Nothing => slot.mend()?,
                _ => slot.place(put)?,
            }
        }
        Self::sync(&slots)?;
        helper::apply(&self.root, &plan.helpers, &m.helpers)
    }

    fn slots<'a>(&self, steps: impl Iterator<Item = &'a Step>) -> Result<Vec<(Action, Slot)>> {
        let mut out = Vec::new();
        for s in steps {
            if let Some(slot) = self.slot(&s.path)? {
                out.push((s.action, slot));
            }
        }
        Ok(out)
    }

    fn sync(slots: &[(Action, Slot)]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for (_, slot) in slots.iter().filter(|(a, _)| *a != Action::Nothing) {
            if seen.insert(slot.dir.path()) {
                slot.dir.sync().with_context(|| format!("flushing {}", slot.dir.path().display()))?;
            }
        }
        Ok(())
    }

    /// What has to be done so that the tree is as it was. Empty when nothing is installed.
    pub fn undo_plan(&self) -> Result<Vec<Step>> {
        let Some(m) = &self.manifest else { return Ok(Vec::new()) };
        let put = Put { style: m.style, program: m.program() };
        let mut steps = Vec::new();
        for e in &m.verbs {
            let action = match self.slot(&e.path)? {
                None => Action::Nothing,
                Some(slot) => {
                    let same = |now: &Now, kept| matches!(now, Now::Foreign(f) if slot.stock(f).ok() == kept);
                    match (slot.now(put, &m.programs)?, slot.kept()?) {
                        // Put aside and not replaced yet: both names are one file.
                        (now @ Now::Foreign(_), Some(k)) if same(&now, Some(k.clone())) => Action::Restore,
                        (Now::Foreign(_), Some(_)) => Action::LeaveNewer,
                        (Now::Foreign(_) | Now::Absent, None) => Action::Nothing,
                        (_, Some(_)) => Action::Restore,
                        (_, None) if e.kept.is_some() => Action::Lost,
                        (_, None) => Action::Remove,
                    }
                }
            };
            steps.push(Step { path: e.path.clone(), action });
        }
        Ok(steps)
    }

    /// The same for shell libraries.
    pub fn undo_helpers(&self) -> Result<Vec<Step>> {
        helper::undo_plan(&self.root, self.manifest.as_ref().map_or(&[], |m| m.helpers.as_slice()))
    }

    /// Puts everything back. Verbs whose stock file is lost stay ours, and in the manifest.
    pub fn undo(&self, steps: &[Step], helpers: &[Step]) -> Result<()> {
        let Some(m) = &self.manifest else {
            return Manifest::remove(&self.root).context("tidying");
        };
        let slots = self.slots(steps.iter())?;
        for (action, slot) in &slots {
            match action {
                Action::Restore => slot.give_back()?,
                Action::Remove => slot.remove()?,
                Action::LeaveNewer => slot.drop_kept()?,
                _ => {}
            }
            slot.mend()?;
        }
        Self::sync(&slots)?;
        helper::undo(&self.root, helpers)?;
        let lost: Vec<Entry> = slots
            .iter()
            .filter(|(a, _)| *a == Action::Lost)
            .filter_map(|(_, s)| m.entry(&s.path).cloned())
            .collect();
        if !lost.is_empty() {
            let rest = Manifest { verbs: lost, helpers: Vec::new(), ..m.clone() };
            return rest.write(&self.root).context("writing what is left");
        }
        for d in m.dirs.iter().rev().filter(|d| d.path != ".") {
            let (Some(parent), name) = self.parent(&d.path)? else { continue };
            let what = || format!("putting {} back", d.path);
            if !d.made {
                parent.set_modified(&name, d.modified).with_context(what)?;
            } else if parent.entry(&name).with_context(what)?.is_some() {
                match parent.rmdir(&name) {
                    // Somebody put something there: then it is theirs.
                    Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                    r => r.with_context(what)?,
                }
                parent.sync().with_context(what)?;
            }
        }
        Manifest::remove(&self.root).context("forgetting the install")?;
        let top = m.dirs.iter().find(|d| d.path == ".");
        top.map_or(Ok(()), |d| self.root.set_modified(OsStr::new("."), d.modified)).context("tidying")
    }

    /// Other names that lead to files which `steps` replace: called by those names the program would not
    /// know what it is meant to be.
    pub fn borrowers(&self, steps: &[Step]) -> Result<Vec<String>> {
        let top = self.root.path();
        let ours: BTreeSet<&str> = steps.iter().map(|s| s.path.as_str()).collect();
        let real = |p: &Path| {
            let dir = p.parent().and_then(|d| d.canonicalize().ok())?;
            Some(dir.join(p.file_name()?))
        };
        let replaced = steps.iter().filter(|s| s.action == Action::Replace);
        let replaced: BTreeSet<PathBuf> = replaced.filter_map(|s| real(&top.join(&s.path))).collect();
        let mut out = Vec::new();
        let roles: BTreeSet<&str> = steps.iter().filter_map(|s| s.path.split('/').next()).collect();
        for role in roles {
            let dir = self.root.sub(Path::new(role)).with_context(|| format!("opening {role}"))?;
            for driver in dir.names()? {
                let path = top.join(role).join(&driver);
                let shown = format!("{role}/{}", driver.display());
                match dir.entry(&driver)?.map(|e| e.kind) {
                    Some(Kind::Link(_)) => {
                        let to = path.canonicalize().unwrap_or_default();
                        if replaced.iter().any(|r| r.parent() == Some(to.as_path())) {
                            out.push(shown);
                        }
                    }
                    Some(Kind::Dir) => {
                        let sub = dir.sub(Path::new(&driver))?;
                        for n in sub.names()? {
                            let shown = format!("{shown}/{}", n.display());
                            if let Some(Kind::Link(to)) = sub.entry(&n)?.map(|e| e.kind)
                                && !ours.contains(shown.as_str())
                                && !n.as_encoded_bytes().starts_with(b".")
                                && real(&path.join(to)).is_some_and(|to| replaced.contains(&to))
                            {
                                out.push(shown);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        out.sort();
        Ok(out)
    }

    /// How each installed verb stands, for those who look after the tree.
    pub fn audit(&self) -> Result<Vec<(String, Stand)>> {
        let Some(m) = &self.manifest else { return Ok(Vec::new()) };
        let put = Put { style: m.style, program: m.program() };
        let mut out = Vec::new();
        for e in &m.verbs {
            let stand = match self.slot(&e.path)? {
                None => Stand::Absent,
                Some(slot) => match slot.now(put, &m.programs)? {
                    _ if slot.is_torn()? => Stand::Torn,
                    Now::Absent => Stand::Absent,
                    Now::Foreign(_) => Stand::Foreign,
                    Now::Stale(to) => Stand::Elsewhere(to),
                    Now::Ours if e.kept.is_some() && slot.kept()?.is_none() => Stand::Unkept,
                    Now::Ours => Stand::Good,
                },
            };
            out.push((e.path.clone(), stand));
        }
        Ok(out)
    }
}

/// How an installed name stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stand {
    Good,
    Absent,
    /// Not ours any more: an upgrade or a person put a file there.
    Foreign,
    /// Ours, of another style or leading to this program.
    Elsewhere(PathBuf),
    /// What it replaced is gone.
    Unkept,
    /// A run was killed.
    Torn,
}

/// The style in force, unless another is wanted.
pub fn style(manifest: Option<&Manifest>, wanted: Option<Style>) -> Style {
    wanted.or(manifest.map(|m| m.style)).unwrap_or(Style::Symlink)
}
