//! Snapshots of an image that no VM uses: `snap_delete` (*state*), `snap_revert` and `snap_flatten`
//! (*again*: what they displace is kept for a while). Whether snapshots are copies or a qcow2 chain is
//! decided by the image's format and what is there, never by a driver's name. Contract 2.4; defects B5, D3, D16, D18.

use super::{Ctx, Ds, disk_size, header, made};
use crate::data::{self, Sparse};
use crate::engine::{EngineError, Kind, Name, Place};
use crate::image::{self, Format, Rebase};
use crate::lock::{Mode, SlabLease};
use crate::one::DsRequest;
use crate::sdm::record::Step;
use crate::sdm::work::Slab;
use crate::sdm::{Job, SdmError, Work, remove, settle};
use crate::sys::{Bytes, Class, fs};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The image and the snapshot a request is about, leased for changing.
struct Snap<'a> {
    ds: Ds<'a>,
    image: Name,
    dir: Name,
    id: i64,
    /// The file that holds the snapshot's content; `None` when there is no such snapshot.
    file: Option<Name>,
    layout: Layout,
    _lease: Vec<SlabLease>,
}

#[derive(Debug, PartialEq, Eq)]
enum Layout {
    /// Each snapshot is a whole copy.
    Copies,
    /// Each file builds on the one before; the disk's own writes go to this one.
    Chain { active: Name },
}

pub fn delete(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let s = Snap::open(ctx, req, job)?;
    let Some(file) = &s.file else { return Ok(String::new()) };
    let mut names = vec![s.dir.child(&s.id.to_string())?, s.dir.child(&format!("{}.current", s.id))?];
    if !names.contains(file) {
        names.insert(0, file.clone());
    }
    names.push(s.image.with_suffix(".md5sum")?);
    match &s.layout {
        Layout::Copies => {
            remove::remove(&s.ds.domain, job, &names, &s.request())?;
        }
        Layout::Chain { active } if active == file => {
            let text =
                format!("snapshot {} of {} is the disk's current state; it cannot be deleted", s.id, s.image);
            return Err(refuse(Class::Refused, text));
        }
        Layout::Chain { .. } => s.unchain(file, &names)?,
    }
    Ok(String::new())
}

pub fn revert(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let s = Snap::open(ctx, req, job)?;
    if s.ds.recorded()?.is_some() {
        return Ok(String::new());
    }
    let file = s.there()?;
    let mut work = Work::begin(&s.ds.domain, job, &s.touched()?)?;
    let (slab, to) = match &s.layout {
        Layout::Copies => {
            // The object the name leads to is reverted; a link to it stays a link.
            let Place::Public(to) = s.ds.resolve(&s.image)?.place else { return Err(s.no_image()) };
            (s.copy(&mut work, file)?, to)
        }
        Layout::Chain { active } => (s.overlay(&mut work, file)?, active.clone()),
    };
    work.flush(&slab)?;
    let step = work.step_to(&slab, &to)?;
    s.commit(work, vec![step])
}

pub fn flatten(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let s = Snap::open(ctx, req, job)?;
    if s.ds.recorded()?.is_some() {
        return Ok(String::new());
    }
    if s.ds.look(&s.dir)?.is_none()
        && let Some(made) = settle::made_by(&s.ds.domain, &s.image)?
        && made.request == s.request()
    {
        // This very wish came true, and whoever made it did not hear of it.
        return Ok(String::new());
    }
    let file = s.there()?;
    let mut work = Work::begin(&s.ds.domain, job, &s.touched()?)?;
    let slab = match &s.layout {
        // The snapshot itself becomes the image, under a second name until it does.
        Layout::Copies => match work.adopt(file)? {
            Some(slab) => slab,
            None => s.copy(&mut work, file)?,
        },
        Layout::Chain { .. } => {
            let path = s.ds.path(file)?;
            let found = header(&path)?;
            s.ds.known_chain(&path, &found)?;
            s.ds.convert(&mut work, &path, found.format, Format::Qcow2, disk_size(&found))?
        }
    };
    if slab.file.is_some() {
        work.flush(&slab)?;
    }
    let mut steps = vec![work.step_to(&slab, &s.image)?];
    steps.extend(work.step_bury(&s.dir, true)?);
    s.commit(work, steps)
}

impl<'a> Snap<'a> {
    fn open(ctx: &'a Ctx<'a>, req: &'a DsRequest, job: &'a Job) -> Result<Snap<'a>> {
        let id = req.target_snapshot.filter(|id| *id >= 0);
        let id =
            id.ok_or_else(|| refuse(Class::Usage, "TARGET_SNAPSHOT is missing in the driver message"))?;
        let ds = Ds::open(ctx, req, job)?;
        let (_, image) = ds.source()?;
        let dir = image.with_suffix(".snap")?;
        let lease = ds.lease(&[(&image, Mode::Exclusive)])?;
        settle::acknowledge(&ds.domain, &image, job);
        let mut s = Snap { ds, image, dir, id, file: None, layout: Layout::Copies, _lease: lease };
        s.file = s.find(id)?;
        s.layout = s.layout()?;
        s.ds.not_in_use(&s.ds.chain_names(&s.image)?)?;
        Ok(s)
    }

    /// Where a snapshot's content is: in the file of its number, or where `.current` says since a live
    /// delete of its parent. That is a file of this image, or nobody knows whose it is.
    fn find(&self, id: i64) -> Result<Option<Name>> {
        let marker = self.dir.child(&format!("{id}.current"))?;
        let mut name = self.dir.child(&id.to_string())?;
        if self.ds.look(&marker)?.is_some_and(|o| o.kind == Kind::File && o.size.0 < 4096) {
            let path = self.ds.path(&marker)?;
            let text =
                std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            name = self.ds.inside(&marker, text.trim())?;
        }
        if self.ds.look(&name)?.is_none() {
            return Ok(None);
        }
        let Place::Public(real) = self.ds.resolve(&name)?.place else { return Err(self.no_image()) };
        let in_dir = real.as_str().rsplit_once('/').is_some_and(|(dir, _)| dir == self.dir.as_str());
        if real != self.image && !in_dir {
            let text = format!("snapshot {id} of {} leads to {real}; nothing was changed", self.image);
            return Err(refuse(Class::Refused, text));
        }
        Ok(Some(name))
    }

    fn there(&self) -> Result<&Name> {
        self.file.as_ref().ok_or_else(|| {
            let text = format!("image {} has no snapshot {}; nothing was changed", self.image, self.id);
            refuse(Class::NotFound, text)
        })
    }

    fn no_image(&self) -> anyhow::Error {
        refuse(Class::NotFound, format!("image {} does not exist", self.image))
    }

    /// The numbered files of the snapshot directory, in order.
    fn numbered(&self) -> Result<Vec<(i64, Name, Kind)>> {
        let mut out = Vec::new();
        for o in self.ds.domain.engine.list(Some(&self.dir))? {
            if let Place::Public(name) = o.place
                && let Ok(n) = name.last().parse()
            {
                out.push((n, name, o.kind));
            }
        }
        out.sort_by_key(|(n, ..)| *n);
        Ok(out)
    }

    fn layout(&self) -> Result<Layout> {
        if self.ds.raw_on_record() {
            return Ok(Layout::Copies);
        }
        let files = self.numbered()?;
        let mut chained = false;
        for (_, name, kind) in &files {
            chained |= match kind {
                Kind::Link(_) => true,
                Kind::File => header(&self.ds.path(name)?).is_ok_and(|p| p.backing.is_some()),
                _ => false,
            };
        }
        Ok(match files.last() {
            Some((_, active, _)) if chained => Layout::Chain { active: active.clone() },
            _ => Layout::Copies,
        })
    }

    /// What the commit touches, for rivals and the collector.
    fn touched(&self) -> Result<Vec<Name>> {
        Ok(vec![self.image.clone(), self.dir.clone(), self.image.with_suffix(".md5sum")?])
    }

    fn request(&self) -> String {
        self.ds.request(&[self.image.as_str(), &self.id.to_string()])
    }

    /// The replica's cached digest is of content that is no more.
    fn commit(&self, mut work: Work<'_>, mut steps: Vec<Step>) -> Result<String> {
        steps.extend(work.step_bury(&self.image.with_suffix(".md5sum")?, false)?);
        work.commit(&self.request(), "", steps)?;
        Ok(String::new())
    }

    fn copy(&self, work: &mut Work<'_>, from: &Name) -> Result<Slab> {
        let slab = work.file(Bytes(0))?;
        let source = open(&self.ds.path(from)?)?;
        let file = slab.file.as_ref().context("a staged file has no file")?;
        let copied = data::copy(&source, file, Sparse::Keep, &self.ds.job.watch())
            .with_context(|| format!("copying snapshot {} of {}", self.id, self.image))?;
        self.ds.job.method(copied.method.as_str());
        Ok(slab)
    }

    /// An empty layer over a snapshot.
    fn overlay(&self, work: &mut Work<'_>, over: &Name) -> Result<Slab> {
        let path = self.ds.path(over)?;
        let found = header(&path)?;
        self.ds.known_chain(&path, &found)?;
        let slab = work.file(Bytes(0))?;
        let backing = self.recorded_as(over);
        let backing = Some((backing.as_os_str(), found.format));
        let keep = work.keep_held();
        self.ds.ctx.qemu(self.ds.job, &keep).create(
            &slab.path,
            Format::Qcow2,
            disk_size(&found),
            backing,
            &[],
        )?;
        made(&slab, Format::Qcow2, disk_size(&found))?;
        Ok(slab)
    }

    /// How a layer names another: absolute, as the layouts of persistent images have it.
    fn recorded_as(&self, name: &Name) -> PathBuf {
        self.ds.req.datastore.dir().join(name.as_str())
    }

    /// A staging area for a removal, from the reserve where the disk is full.
    fn begin_removal(&self) -> Result<Work<'_>> {
        let (domain, job, touched) = (&self.ds.domain, self.ds.job, self.touched()?);
        match Work::begin(domain, job, &touched) {
            Err(SdmError::Engine(EngineError::NoSpace(_))) => {
                domain.engine.give_reserve(&settle::lock_domain(domain, job, job.jobs.waits.lock)?)?;
                Ok(Work::begin(domain, job, &touched)?)
            }
            work => Ok(work?),
        }
    }

    /// Takes a file out of a chain: each file that builds on it gets what it had from it, in place and
    /// in a way that can be interrupted and run again, then its names go.
    fn unchain(&self, file: &Name, names: &[Name]) -> Result<()> {
        let chain = image::chain(&self.ds.path(file)?)?;
        let gone = chain.first().map(|l| (l.dev, l.ino));
        let under = chain.get(1);
        let mut layers = Vec::new();
        for (_, name, kind) in self.numbered()? {
            let path = self.ds.path(&name)?;
            if kind == Kind::File
                && &name != file
                && image::chain(&path)?.get(1).map(|l| (l.dev, l.ino)) == gone
            {
                layers.push(path);
            }
        }
        // The image itself stays, even when its first snapshot is a link to it.
        let names: Vec<Name> = names.iter().filter(|n| **n != self.image).cloned().collect();
        if layers.is_empty() {
            // Needs no room, so it works on a full disk.
            remove::remove(&self.ds.domain, self.ds.job, &names, &self.request())?;
            return Ok(());
        }
        let mut work = self.begin_removal()?;
        self.ds.job.phase("merging");
        for path in layers {
            self.ds.known_chain(&path, &header(&path)?)?;
            let opened = File::options().read(true).write(true).open(&path);
            let opened = opened.with_context(|| format!("opening {}", path.display()))?;
            let backing = under.map(|l| (l.path.as_os_str(), l.probe.format));
            self.ds.ctx.qemu(self.ds.job, &work.keep_held()).rebase(
                &path,
                Format::Qcow2,
                backing,
                Rebase::Safe,
            )?;
            fs::sync_file(&opened, &path).with_context(|| format!("flushing {}", path.display()))?;
        }
        let mut steps = Vec::new();
        for name in &names {
            steps.extend(work.step_bury(name, false)?);
        }
        work.commit(&self.request(), "", steps)?;
        Ok(())
    }
}

impl Ds<'_> {
    /// The image, its snapshots and whatever file its name leads to.
    pub(super) fn chain_names(&self, image: &Name) -> Result<Vec<Name>> {
        let mut out = vec![image.clone()];
        if let Some(o) = self.look(image)?
            && matches!(o.kind, Kind::Link(_))
            && let Place::Public(real) = self.resolve(image)?.place
        {
            out.push(real);
        }
        for o in self.domain.engine.list(Some(&image.with_suffix(".snap")?))? {
            if let Place::Public(name) = o.place {
                out.push(name);
            }
        }
        Ok(out)
    }

    /// Whether the request says that the image is raw. Then its first bytes are its guest's, whatever
    /// header they look like.
    pub(super) fn raw_on_record(&self) -> bool {
        self.req.image.as_ref().and_then(|i| i.format.as_deref()) == Some("raw")
    }

    /// Refuses an image that reads files other than its own, which are itself and those of its `.snap`:
    /// a guest may have written the header, and what it names may be another tenant's disk.
    pub(super) fn known_chain(&self, path: &Path, found: &image::Probe) -> Result<()> {
        if found.backing.is_none() && found.data_file.is_none() && found.extents.is_empty() {
            return Ok(());
        }
        let own = Own::of(path);
        let allowed = |p: &OsStr| {
            let words = self.ctx.settings.image.allow.iter();
            words.filter_map(|w| w.strip_prefix("backing:")).any(|w| OsStr::new(w) == p)
        };
        for link in image::chain(path)? {
            if !own.has(&link.real) && !allowed(link.real.as_os_str()) {
                let (path, real) = (path.display(), link.real.display());
                let text = format!(
                    "{path} builds on {real}, which is no part of it; if that is meant, add \"backing:{real}\" to `image.allow`"
                );
                return Err(refuse(Class::Refused, text));
            }
            image::admit(&image::Probe { backing: None, ..link.probe }, &self.admit())?;
        }
        Ok(())
    }

    pub(super) fn sparse_as_source(&self) -> Sparse {
        if self.req.datastore.sparse { Sparse::Keep } else { Sparse::Full }
    }
}

/// The files of one image: itself and those directly in its `.snap`.
struct Own {
    image: PathBuf,
    snap: PathBuf,
}

impl Own {
    /// Of the image that `path` is or is a snapshot of.
    fn of(path: &Path) -> Own {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let dir = path.parent().filter(|d| d.extension().is_some_and(|e| e == "snap"));
        let image = dir.map_or_else(|| path.clone(), |d| d.with_extension(""));
        let mut snap = image.clone().into_os_string();
        snap.push(".snap");
        Own { image, snap: snap.into() }
    }

    fn has(&self, real: &Path) -> bool {
        real == self.image || real.parent() == Some(&self.snap)
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("opening {}", path.display()))
}
