//! The snapshots of one image or disk: which file holds which one's content, new layers, and taking a
//! layer out of a chain. Everything is told from the files themselves, not from what a name suggests.

use super::fill::{self, Own, disk_size};
use super::{Ctx, refuse};
use crate::data::{self, Sparse};
use crate::engine::{Access, EngineError, Kind, Name, Object, Place};
use crate::image::{self, Backing, Format, Link, Rebase};
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sdm::{Domain, Job, SdmError, Work, remove, settle};
use crate::sys::{Bytes, Class, fs};
use anyhow::{Context as _, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
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

/// A numbered file, with the file it builds on.
#[derive(Debug)]
pub(super) struct Layer {
    pub n: i64,
    pub name: Name,
    /// A link to the image below all layers.
    pub is_link: bool,
    /// Device and inode of the file itself.
    at: (u64, u64),
    on: Option<(u64, u64)>,
}

fn inode(link: &Link) -> (u64, u64) {
    (link.dev, link.ino)
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

    /// Every `.current`: the snapshot, and the file that has its content.
    fn markers(&self) -> Result<Vec<(i64, Name)>> {
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
                out.push((n, self.beside(&name, Path::new(text.trim()))?));
            }
        }
        Ok(out)
    }

    /// The file of this directory that a `.current` names. It records an absolute path, which was right
    /// where the directory was when it was written.
    fn beside(&self, marker: &Name, to: &Path) -> Result<Name> {
        let dir = to.parent().and_then(Path::file_name);
        match to.file_name().and_then(|n| n.to_str()) {
            Some(file) if dir.is_none_or(|d| d == self.dir.last()) => Ok(self.dir.child(file)?),
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
        if let Some((_, file)) = markers.iter().find(|(m, _)| *m == n) {
            name.clone_from(file);
        } else if markers.iter().any(|(_, file)| *file == name) {
            return Ok(None);
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

    /// All layers with what each builds on. A file that cannot be read is an error: what is on top
    /// cannot be told without it.
    pub fn layers(&self) -> Result<Vec<Layer>> {
        let mut out = Vec::new();
        for (n, name, kind) in self.objects()? {
            self.not_foreign(&name, &kind)?;
            let is_link = matches!(kind, Kind::Link(_));
            let chain = self.chain(&name, is_link)?;
            let at = chain.first().map(inode).context("a chain has no first file")?;
            out.push(Layer { n, name, is_link, at, on: chain.get(1).map(inode) });
        }
        Ok(out)
    }

    /// The layer that a guest writes to: one that no other builds on and that is no snapshot's content,
    /// the youngest of several (reverting leaves other ends behind).
    pub fn active(&self, layers: &[Layer]) -> Result<Option<Name>> {
        let frozen: Vec<Name> = self.markers()?.into_iter().map(|(_, file)| file).collect();
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

    /// How a layer names another.
    pub fn recorded_as(&self, name: &Name) -> OsString {
        self.called.join(name.last()).into_os_string()
    }

    /// An empty layer over a file, staged.
    pub fn overlay(&self, work: &mut Work<'_>, over: &Name) -> Result<Slab> {
        let (under, _) = self.top(over)?;
        self.layer(work, over, under.probe.format, disk_size(&under.probe))
    }

    /// The same over a file that will have this format and size.
    pub fn layer(&self, work: &mut Work<'_>, over: &Name, format: Format, size: Bytes) -> Result<Slab> {
        let slab = work.file(Bytes(0))?;
        let name = self.recorded_as(over);
        let backing = Some((name.as_os_str(), format));
        self.ctx.qemu(self.job, &work.keep_held()).create(&slab.path, Format::Qcow2, size, backing, &[])?;
        fill::made(&slab.path, Format::Qcow2, size)?;
        Ok(slab)
    }

    /// A copy of `top` that takes the place of `stale`, the layer under it: the content of `top`, built on
    /// what `stale` builds on. Answers the size of the disk, too.
    pub fn merged(&self, work: &mut Work<'_>, top: &Name, stale: &Name) -> Result<(Slab, Bytes)> {
        let (first, rest) = self.top(top)?;
        let under = rest.first().context("a layer without a layer below")?;
        let below = self.backing_of(stale)?;
        let slab = fill::copy(self.job, work, &fill::open(&first.real)?, Sparse::Keep)?;
        let keep = work.keep_held();
        let qemu = self.ctx.qemu(self.job, &keep);
        let rebase = |backing: Option<(&OsStr, Format)>, how| {
            qemu.rebase(&slab.path, Format::Qcow2, backing, how).map_err(anyhow::Error::from)
        };
        // Relative names mean something else where the copy is staged.
        rebase(Some((under.real.as_os_str(), under.probe.format)), Rebase::HeaderOnly)?;
        let real = rest.get(1).map(|l| (l.real.as_os_str(), l.probe.format));
        rebase(real, Rebase::Safe)?;
        if let Some(b) = &below {
            rebase(Some((&b.name, b.format.unwrap_or(Format::Qcow2))), Rebase::HeaderOnly)?;
        }
        Ok((slab, disk_size(&first.probe)))
    }

    /// Takes snapshot `n` away, whose content is in `file`. What builds on it gets what it has from it first.
    /// `base` is the image or disk; `also` are companions that go with it. When the snapshot was the image
    /// itself, the layer that is now the root of the disk's chain becomes the image: its name must not go on
    /// showing what was deleted.
    pub fn drop_snapshot(
        &self,
        base: &Name,
        n: i64,
        file: &Name,
        also: &[Name],
        request: &str,
    ) -> Result<()> {
        let mut names = vec![file.clone(), self.marker(n)?];
        names.extend(also.iter().cloned());
        let layers = self.layers()?;
        let was_image = layers.iter().any(|l| l.name == *file && l.is_link);
        if !was_image && children(&layers, file).is_empty() {
            // Needs no room, so it works on a full disk.
            remove::remove(self.domain, self.job, &names, request)?;
            return Ok(());
        }
        let mut work = self.begin_removal(&[base.clone(), self.dir.clone()])?;
        self.unchain(&work, &layers, file)?;
        let mut steps = if was_image { self.hand_over(&mut work, base)? } else { Vec::new() };
        for name in &names {
            steps.extend(work.step_bury(name, false)?);
        }
        Ok(work.commit(request, "", steps)?)
    }

    /// A staging area for a removal, from the reserve where the disk is full.
    fn begin_removal(&self, touched: &[Name]) -> Result<Work<'_>> {
        match Work::begin(self.domain, self.job, touched) {
            Err(SdmError::Engine(EngineError::NoSpace(_))) => {
                let wait = self.job.jobs.waits.lock;
                self.domain.engine.give_reserve(&settle::lock_domain(self.domain, self.job, wait)?)?;
                Ok(Work::begin(self.domain, self.job, touched)?)
            }
            work => Ok(work?),
        }
    }

    /// The root of the active chain becomes the image, and its own name a link to it.
    fn hand_over(&self, work: &mut Work<'_>, base: &Name) -> Result<Vec<Step>> {
        let layers = self.layers()?;
        let Some(heir) = self.root(&layers)?.filter(|l| !l.is_link) else { return Ok(Vec::new()) };
        let slab = match work.adopt(&heir.name)? {
            Some(slab) => slab,
            None => fill::copy(self.job, work, &fill::open(&self.path(&heir.name)?)?, Sparse::Keep)?,
        };
        if slab.file.is_some() {
            work.flush(&slab)?;
        }
        let link = work.link(&self.called.with_extension("").to_string_lossy())?;
        work.flush(&link)?;
        Ok(vec![work.step_to(&slab, base)?, work.step_to(&link, &heir.name)?])
    }

    /// Copies a file, links followed, into a staged directory; durable on return.
    pub fn copy_into(&self, name: &Name, dir: &Path, as_: &str) -> Result<()> {
        let kind = self.look(name)?.map(|o| o.kind).context("it is gone")?;
        self.not_foreign(name, &kind)?;
        let source = fill::open(&self.path(name)?)?;
        let copy = fs::Dir::open(dir)?.create(as_.as_ref(), 0o666, false)?;
        let copied = data::copy(&source, &copy, Sparse::Keep, &self.job.watch())
            .with_context(|| format!("copying {name}"))?;
        self.job.method(copied.method.as_str());
        Ok(fs::sync_file(&copy, &dir.join(as_))?)
    }

    /// Copies all layers and `.current` files into a staged directory that layers will call `called` and
    /// that will be at `at`.
    pub fn copy_layers(&self, work: &Work<'_>, dir: &Path, called: &Path, at: &Path) -> Result<()> {
        let layers = self.layers()?;
        for layer in &layers {
            let (n, path) = (layer.n.to_string(), dir.join(layer.n.to_string()));
            self.copy_into(&layer.name, dir, &n)?;
            let Some(under) = layers.iter().find(|o| Some(o.at) == layer.on) else { continue };
            let (_, rest) = self.top(&layer.name)?;
            let format = rest.first().map_or(Format::Qcow2, |l| l.probe.format);
            let file = File::options().read(true).write(true).open(&path);
            let file = file.with_context(|| format!("opening {}", path.display()))?;
            let backing = called.join(under.n.to_string());
            let backing = Some((backing.as_os_str(), format));
            let keep = work.keep_held();
            self.ctx.qemu(self.job, &keep).rebase(&path, Format::Qcow2, backing, Rebase::HeaderOnly)?;
            fs::sync_file(&file, &path)?;
        }
        let dir = fs::Dir::open(dir)?;
        for (n, file) in self.markers()? {
            let text = at.join(file.last()).into_os_string();
            let (name, tmp) = (format!("{n}.current"), "tmp");
            dir.put(name.as_ref(), tmp.as_ref(), text.as_encoded_bytes(), 0o644, true)?;
        }
        Ok(())
    }

    /// The layer at the bottom of the active one's chain.
    fn root<'l>(&self, layers: &'l [Layer]) -> Result<Option<&'l Layer>> {
        let active = self.active(layers)?;
        let mut at = layers.iter().find(|l| Some(&l.name) == active.as_ref());
        // Chains have no loops: reading them would have failed.
        while let Some(below) = at.and_then(|l| layers.iter().find(|o| Some(o.at) == l.on)) {
            at = Some(below);
        }
        Ok(at)
    }

    /// What a file builds on, in a form that another file of the directory can record.
    fn backing_of(&self, name: &Name) -> Result<Option<Backing>> {
        let (first, rest) = self.top(name)?;
        let Some(under) = rest.first() else { return Ok(None) };
        let mut backing = first.probe.backing.context("a chain goes on without a backing file")?;
        backing.format = Some(under.probe.format);
        if first.real.parent() != self.path(name)?.parent().and_then(|d| d.canonicalize().ok()).as_deref() {
            // Reached by a link: a relative name would mean another file from here.
            backing.name = under.real.clone().into_os_string();
        }
        Ok(Some(backing))
    }

    /// Gives every layer that builds on `file` what it has from it, in place and in a way that can be
    /// interrupted and run again. Afterwards nothing builds on it.
    fn unchain(&self, work: &Work<'_>, layers: &[Layer], file: &Name) -> Result<()> {
        let under = self.backing_of(file)?;
        self.job.phase("merging");
        for child in children(layers, file) {
            let path = self.path(&child.name)?;
            let opened = File::options().read(true).write(true).open(&path);
            let opened = opened.with_context(|| format!("opening {}", path.display()))?;
            let backing = under.as_ref().map(|b| (b.name.as_os_str(), b.format.unwrap_or(Format::Qcow2)));
            self.ctx.qemu(self.job, &work.keep_held()).rebase(&path, Format::Qcow2, backing, Rebase::Safe)?;
            fs::sync_file(&opened, &path).with_context(|| format!("flushing {}", path.display()))?;
        }
        Ok(())
    }
}
