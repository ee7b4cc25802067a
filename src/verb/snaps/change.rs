//! Changing layers: new ones, one in the place of two, one taken out, all of them copied.

use super::{Layer, Snaps, children, marker_text};
use crate::data::{self, Planned, Sparse};
use crate::engine::{EngineError, Name};
use crate::image::{Backing, Format, Rebase, names};
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sdm::{SdmError, Work, remove, settle};
use crate::sys::effect::only_looks;
use crate::sys::{Bytes, fs};
use crate::verb::fill::{self, disk_size};
use anyhow::{Context as _, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::Path;

impl Snaps<'_> {
    /// How a layer names another.
    pub fn recorded_as(&self, name: &Name) -> OsString {
        self.called.join(name.last()).into_os_string()
    }

    /// What the link of the disk, or of the image, says when this is its layer.
    pub fn linked_as(&self, name: &Name) -> OsString {
        if self.called.as_os_str().is_empty() {
            return Path::new(self.dir.last()).join(name.last()).into_os_string();
        }
        self.recorded_as(name)
    }

    /// An empty layer over one of these, staged.
    pub fn overlay(&self, work: &mut Work<'_>, layers: &[Layer], over: &Name) -> Result<Slab> {
        let under = layers.iter().find(|l| l.name == *over);
        let under = under.with_context(|| format!("{over} is no layer"))?;
        self.layer(work, over, under.header.format, disk_size(&under.header))
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
        self.job.may_move()?;
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
        self.relieve(&work, &children(&layers, file), file)?;
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
        for m in self.markers()? {
            let text = marker_text(at, &m.file, m.going);
            let (name, tmp) = (format!("{}.current", m.n), "tmp");
            dir.put(name.as_ref(), tmp.as_ref(), text.as_bytes(), 0o644, true)?;
        }
        Ok(())
    }

    /// The layer at the bottom of the active one's chain.
    fn root<'l>(&self, layers: &'l [Layer]) -> Result<Option<&'l Layer>> {
        let active = self.active(layers)?;
        let mut at = layers.iter().find(|l| Some(&l.name) == active.as_ref());
        // Without loops, or the layers would have been refused.
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

    /// Gives layers that build on `file` what they have from it, in place and in a way that can be interrupted
    /// and run again. Afterwards they do not build on it.
    pub fn relieve(&self, work: &Work<'_>, of: &[&Layer], file: &Name) -> Result<()> {
        let under = self.backing_of(file)?;
        if !of.is_empty() {
            self.job.may_move()?;
        }
        self.job.phase("merging");
        for child in of {
            let path = self.path(&child.name)?;
            if only_looks() {
                self.job.watch().progress.plan(Planned::file(&fill::open(&self.path(file)?)?, "merge")?);
                continue;
            }
            let opened = File::options().read(true).write(true).open(&path);
            let opened = opened.with_context(|| format!("opening {}", path.display()))?;
            let backing = under.as_ref().map(|b| (b.name.as_os_str(), b.format.unwrap_or(Format::Qcow2)));
            // Its last write is over the header, and may come out in part.
            work.changes(&child.name, &names(&opened)?)?;
            self.ctx.qemu(self.job, &work.keep_held()).rebase(&path, Format::Qcow2, backing, Rebase::Safe)?;
            fs::sync_file(&opened, &path).with_context(|| format!("flushing {}", path.display()))?;
            work.changes(&child.name, &[])?;
        }
        Ok(())
    }
}
