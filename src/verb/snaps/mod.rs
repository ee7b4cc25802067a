//! The snapshots of one image or disk: which file holds which one's content, what builds on what, and which
//! layer is the active one. Everything is told from the files themselves, not from what a name suggests.

mod change;

use super::fill::{self, Own};
use super::{Ctx, refuse};
use crate::engine::{Access, Kind, Name, Object, Place};
use crate::image::{self, Format, ImageError, Link, Probe};
use crate::sdm::{Domain, Job};
use crate::sys::Class;
use anyhow::{Context as _, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Snapshots, leased by the caller.
pub(super) struct Snaps<'a> {
    pub ctx: &'a Ctx<'a>,
    pub job: &'a Job,
    pub domain: &'a Domain,
    /// `<base>.snap`.
    pub dir: Name,
    /// What a layer calls this directory when it names another layer.
    pub called: PathBuf,
    /// The images and disks whose files may be read.
    pub own: Vec<Own>,
}

/// A numbered file as it was found; what its header says has not been judged.
pub(super) struct Found {
    n: i64,
    name: Name,
    is_link: bool,
    path: PathBuf,
    at: (u64, u64),
    header: Result<Probe, ImageError>,
}

impl Found {
    /// Whether only layers look like this: a link to the image, or something that builds on another file.
    pub fn is_chained(&self) -> bool {
        self.is_link || self.header.as_ref().is_ok_and(|p| p.backing.is_some())
    }
}

/// At the end of a `.current` whose snapshot is deleted, while its file is still below a running machine: the
/// name leads nowhere.
pub(super) const GOING: &str = ".deleted";

/// The text of a `.current` in the directory `at`.
pub(super) fn marker_text(at: &Path, file: &Name, going: bool) -> String {
    let path = at.join(file.last());
    format!("{}{}", path.display(), if going { GOING } else { "" })
}

/// What a `.current` says.
#[derive(Debug)]
pub(super) struct Marker {
    pub n: i64,
    /// The file with the snapshot's content.
    pub file: Name,
    /// There is no such snapshot any more; the file is to go when it can.
    pub going: bool,
}

/// A layer, with the file it builds on.
#[derive(Debug)]
pub(super) struct Layer {
    pub n: i64,
    pub name: Name,
    /// A link to the image below all layers.
    pub is_link: bool,
    pub header: Probe,
    /// Device and inode of the file itself.
    pub at: (u64, u64),
    on: Option<(u64, u64)>,
}

fn inode(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

fn is_upwards(path: &Path) -> bool {
    path.components().any(|c| c == std::path::Component::ParentDir)
}

/// The layers directly on top of a file.
pub(super) fn children<'l>(layers: &'l [Layer], of: &Name) -> Vec<&'l Layer> {
    let at = layers.iter().find(|l| l.name == *of).map(|l| l.at);
    layers.iter().filter(|l| at.is_some() && l.on == at).collect()
}

impl Snaps<'_> {
    pub fn look(&self, name: &Name) -> Result<Option<Object>> {
        Ok(self.domain.engine.look(&Place::Public(name.clone()))?)
    }

    pub fn path(&self, name: &Name) -> Result<PathBuf> {
        Ok(self.domain.engine.attach(&Place::Public(name.clone()), Access::Read)?.path)
    }

    pub fn numbered(&self, n: i64) -> Result<Name> {
        Ok(self.dir.child(&n.to_string())?)
    }

    /// Says since a live delete that a snapshot's content is in another file.
    pub fn marker(&self, n: i64) -> Result<Name> {
        Ok(self.dir.child(&format!("{n}.current"))?)
    }

    /// The numbered objects, in order of their numbers.
    pub fn objects(&self) -> Result<Vec<(i64, Name, Kind)>> {
        let mut out = Vec::new();
        for o in self.domain.engine.list(Some(&self.dir))? {
            if let Place::Public(name) = o.place
                && let Ok(n) = name.last().parse()
            {
                out.push((n, name, o.kind));
            }
        }
        out.sort_by_key(|(n, ..)| *n);
        Ok(out)
    }

    /// Every `.current`.
    pub fn markers(&self) -> Result<Vec<Marker>> {
        let mut out = Vec::new();
        for o in self.domain.engine.list(Some(&self.dir))? {
            if let Place::Public(name) = o.place
                && let Some(Ok(n)) = name.last().strip_suffix(".current").map(str::parse)
                && o.kind == Kind::File
                && o.size.0 < 4096
            {
                let path = self.path(&name)?;
                let text = std::fs::read_to_string(&path);
                let text = text.with_context(|| format!("reading {}", path.display()))?;
                let (text, going) = match text.trim().strip_suffix(GOING) {
                    Some(text) => (text, true),
                    None => (text.trim(), false),
                };
                out.push(Marker { n, file: self.beside(&name, Path::new(text))?, going });
            }
        }
        Ok(out)
    }

    /// Snapshots that were deleted while a machine ran, and the files that are still there for them.
    pub fn going(&self) -> Result<Vec<(i64, Name)>> {
        Ok(self.markers()?.into_iter().filter(|m| m.going).map(|m| (m.n, m.file)).collect())
    }

    /// The file of this directory that a `.current` names. It records an absolute path, which was right
    /// where the directory was when it was written.
    fn beside(&self, marker: &Name, to: &Path) -> Result<Name> {
        let dir = to.parent().and_then(Path::file_name);
        match to.file_name().and_then(|n| n.to_str()) {
            Some(file) if dir.is_none_or(|d| d == self.dir.last()) && !is_upwards(to) => {
                Ok(self.dir.child(file)?)
            }
            _ => {
                let text = format!("{marker} points to {}, outside {}", to.display(), self.dir);
                Err(refuse(Class::Refused, text))
            }
        }
    }

    /// The file with a snapshot's content; `None` when there is no such snapshot. The file of a number
    /// that another snapshot's `.current` names is that one's.
    pub fn file_of(&self, n: i64) -> Result<Option<Name>> {
        let (mut name, markers) = (self.numbered(n)?, self.markers()?);
        match markers.iter().find(|m| m.n == n) {
            Some(m) if m.going => return Ok(None),
            Some(m) => name.clone_from(&m.file),
            None if markers.iter().any(|m| m.file == name) => return Ok(None),
            None => {}
        }
        let Some(o) = self.look(&name)? else { return Ok(None) };
        self.not_foreign(&name, &o.kind)?;
        Ok(Some(name))
    }

    /// Refuses a link to what is neither the image nor beside it: nobody knows whose that is.
    fn not_foreign(&self, name: &Name, kind: &Kind) -> Result<()> {
        if !matches!(kind, Kind::Link(_)) {
            return Ok(());
        }
        let path = self.path(name)?;
        match path.canonicalize() {
            Ok(real) if self.own.iter().any(|o| o.has(&real)) => Ok(()),
            real => {
                let to = real.unwrap_or(path).display().to_string();
                Err(refuse(Class::Refused, format!("{name} leads to {to}; nothing was changed")))
            }
        }
    }

    /// The same, and an error when there is none.
    pub fn there(&self, n: i64) -> Result<Name> {
        self.file_of(n)?.ok_or_else(|| {
            let text = format!("{} has no snapshot {n}; nothing was changed", self.dir);
            refuse(Class::NotFound, text)
        })
    }

    /// The chain of a layer, as far as it may be read.
    fn chain(&self, name: &Name, is_link: bool) -> Result<Vec<Link>> {
        let path = self.path(name)?;
        let found = if is_link {
            image::probe(&fill::open(&path)?)?
        } else {
            image::probe_as(&fill::open(&path)?, Format::Qcow2)?
        };
        fill::known_chain(self.ctx, &self.own, &path, &found)
            .with_context(|| format!("looking at {name}"))?;
        Ok(image::chain_as(&path, found.format)?)
    }

    /// Refuses a file that reads others than those of `own`.
    pub fn readable(&self, name: &Name, format: Format) -> Result<()> {
        let path = self.path(name)?;
        let found = image::probe_as(&fill::open(&path)?, format)?;
        fill::known_chain(self.ctx, &self.own, &path, &found)
    }

    fn top(&self, name: &Name) -> Result<(Link, Vec<Link>)> {
        let kind = self.look(name)?.map(|o| o.kind).context("a layer is gone")?;
        self.not_foreign(name, &kind)?;
        let is_link = matches!(kind, Kind::Link(_));
        let mut chain = self.chain(name, is_link)?.into_iter();
        let first = chain.next().context("a chain has no first file")?;
        Ok((first, chain.collect()))
    }

    /// Every numbered file, opened once.
    pub fn scan(&self) -> Result<Vec<Found>> {
        let mut out = Vec::new();
        for (n, name, kind) in self.objects()? {
            self.not_foreign(&name, &kind)?;
            let is_link = matches!(kind, Kind::Link(_));
            let path = self.path(&name)?;
            let file = fill::open(&path)?;
            let at = inode(&file.metadata().with_context(|| format!("looking at {name}"))?);
            out.push(Found { n, name, is_link, path, at, header: image::probe(&file) });
        }
        Ok(out)
    }

    /// All layers with what each builds on. A file that cannot be read is an error: what is on top
    /// cannot be told without it. So is one that builds on somebody else's.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        self.judge(self.scan()?)
    }

    pub fn judge(&self, found: Vec<Found>) -> Result<Vec<Layer>> {
        let mut out: Vec<Layer> = Vec::new();
        let files: Vec<(u64, u64)> = found.iter().map(|f| f.at).collect();
        for f in found {
            let header = f.header.with_context(|| format!("looking at {}", f.name))?;
            if !f.is_link && header.format != Format::Qcow2 {
                let text = format!("{} is no layer: its header says {}", f.name, header.format);
                return Err(refuse(Class::Integrity, text));
            }
            let on = match &header.backing {
                None => None,
                Some(backing) => {
                    let below = image::below(&f.path, backing)?;
                    let meta = std::fs::metadata(&below);
                    Some(inode(&meta.with_context(|| format!("looking at {}", below.display()))?))
                }
            };
            if on.is_some_and(|on| files.contains(&on)) {
                image::admit(&Probe { backing: None, ..header.clone() }, &fill::admit(self.ctx))?;
            } else {
                fill::known_chain(self.ctx, &self.own, &f.path, &header)?;
            }
            out.push(Layer { n: f.n, name: f.name, is_link: f.is_link, header, at: f.at, on });
        }
        for layer in &out {
            let mut at = Some(layer);
            for _ in 0..out.len() {
                at = at.and_then(|l| out.iter().find(|o| Some(o.at) == l.on));
            }
            if at.is_some() {
                let text = format!("the chain below {} comes back to itself", layer.name);
                return Err(refuse(Class::Integrity, text));
            }
        }
        Ok(out)
    }

    /// The layer that a guest writes to: one that no other builds on and that is no snapshot's content,
    /// the youngest of several (reverting leaves other ends behind).
    pub fn active(&self, layers: &[Layer]) -> Result<Option<Name>> {
        let frozen: Vec<Name> = self.markers()?.into_iter().map(|m| m.file).collect();
        let ends =
            layers.iter().filter(|l| !layers.iter().any(|o| o.on == Some(l.at)) && !frozen.contains(&l.name));
        match ends.max_by_key(|l| l.n) {
            None if !layers.is_empty() => {
                let text =
                    format!("no layer in {} is the one that is written to; nothing was changed", self.dir);
                Err(refuse(Class::Integrity, text))
            }
            end => Ok(end.map(|l| l.name.clone())),
        }
    }
}
