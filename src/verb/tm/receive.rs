//! The half of a transfer where the data goes: it is staged, verified and flushed, and published when the
//! front-end says so. What comes is of another host and was written by guests: names and links are of a
//! closed set, layers name only each other. *Again*: what is there is kept aside; except that a VM's
//! directory whose record names this very source, unchanged, is the result of an earlier attempt. Design 5.

use super::op::{Into, Receive};
use super::place::Spot;
use super::tree::{self, Seen, Users};
use super::{At, DiskFormat, Marker, Tm, clone, marker};
use crate::data::Watch;
use crate::data::extent::Land;
use crate::image::{self, Format, Rebase};
use crate::lock::Mode;
use crate::sdm::record::{Step, request_digest};
use crate::sdm::work::Slab;
use crate::sdm::{Work, settle};
use crate::sys::fs::{self, Dir};
use crate::sys::{Bytes, Class};
use crate::verb::fill::{self, admit};
use crate::verb::hold;
use crate::verb::refuse;
use crate::verb::snaps::GOING;
use crate::verb::stream::{self, Incoming, Parts, odd};
use anyhow::{Context as _, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// The longest text that is a name: a `.current`, a `.monitor`.
const TEXT: u64 = 4096;

pub(super) fn run(tm: &Tm<'_>, op: &Receive) -> Result<()> {
    match &op.into {
        Into::Vm { dir } => vm(tm, dir),
        Into::Disk { path, format, sparse, size_mib, original_mib, marker } => {
            let at = tm.open(Spot::disk(tm.ctx, path)?)?;
            let grow = clone::wanted(*size_mib, *original_mib)?;
            disk(tm, &at, &Wish { format: *format, sparse: *sparse, grow, marker: Some(marker) })
        }
        Into::Image { path, format } => {
            let at = tm.open(Spot::image(tm.ctx, path)?)?;
            disk(tm, &at, &Wish { format: *format, sparse: true, grow: None, marker: None })
        }
    }
}

/// A stream that has begun, and comes from elsewhere.
fn begin<'a>(tm: &'a Tm<'_>, at: &At, watch: &'a Watch) -> Result<Incoming<'a>> {
    let stream = Incoming::begin(tm.ctx, tm.job, watch)?;
    if stream.source.split(' ').next() == Some(at.domain.header.id.to_string().as_str()) {
        let text = format!(
            "{} has the domain id of the source: it is the same storage, or a copy of it (`onesdm domain adopt` \
             says which copy is the real one)",
            at.spot.dir.display()
        );
        return Err(refuse(Class::Refused, text));
    }
    Ok(stream)
}

/// What a disk or image shall be.
struct Wish<'a> {
    format: DiskFormat,
    sparse: bool,
    grow: Option<Bytes>,
    /// `None`: an image.
    marker: Option<&'a Marker>,
}

fn disk(tm: &Tm<'_>, at: &At, wish: &Wish<'_>) -> Result<()> {
    let watch = tm.job.watch();
    let stream = begin(tm, at, &watch)?;
    if tm.recorded(&at.domain)? {
        return stream.decline();
    }
    let source = stream.source.clone();
    let _disk = hold::lease_for(&at.domain, tm.job, &[(at.name(), Mode::Exclusive)], Some(&source))?;
    at.not_in_use()?;
    let (mut work, had) = tm.resume(at, &source)?;
    let (parts, have) = Parts::of(tm.job, &work, had, "disk", "snap")?;
    let mut pieces =
        Pieces { work: &mut work, parts, sparse: wish.sparse, disk: None, snap: None, active: None };
    let taken = stream.take(have, &mut pieces);
    let Pieces { disk, snap, active, .. } = pieces;
    if let Err(e) = taken {
        return Err(stream::kept(tm.job, work, e));
    }
    let mut steps = match (disk, snap, active) {
        (None, Some(dir), Some(active)) if wish.format == DiskFormat::Qcow2 => {
            layered(tm, at, wish, &mut work, &dir, &active)?
        }
        // An image may be one file; a disk of the format has its layout.
        (Some(slab), snap, None) if wish.format != DiskFormat::Qcow2 || wish.marker.is_none() => {
            copied(tm, at, wish, &mut work, &slab, snap.as_ref())?
        }
        _ => {
            let text = format!("what came for {} is not a disk of its format", at.spot.text());
            return Err(refuse(Class::Integrity, text));
        }
    };
    match wish.marker {
        Some(marker) => steps.extend(marker::steps(at, &mut work, marker)?),
        // A replica's cached digest is of content that is no more.
        None => steps.extend(work.step_bury(&at.name().with_suffix(".md5sum")?, false)?),
    }
    tm.commit(at, work, steps)
}

fn copied(
    tm: &Tm<'_>,
    at: &At,
    wish: &Wish<'_>,
    work: &mut Work<'_>,
    slab: &Slab,
    snap: Option<&Slab>,
) -> Result<Vec<Step>> {
    let file = slab.file.as_ref().context("a staged file has no file")?;
    let format = match wish.format {
        DiskFormat::Raw => Format::Raw,
        DiskFormat::Other => image::probe(file)?.format,
        DiskFormat::Qcow2 => {
            let found = image::probe_as(file, Format::Qcow2)?;
            image::admit(&found, &admit(tm.ctx))?;
            found.format
        }
    };
    grow(tm, wish, work, (file, &slab.path), format)?;
    work.flush(slab)?;
    let disk = work.step_to(slab, at.name())?;
    if let Some(dir) = snap {
        work.flush(dir)?;
        // The snapshots first: without the disk they are harmless, a disk without them has lost them.
        return Ok(vec![work.step_to(dir, &at.snap()?)?, disk]);
    }
    let mut steps = vec![disk];
    steps.extend(work.step_bury(&at.snap()?, true)?);
    Ok(steps)
}

fn layered(
    tm: &Tm<'_>,
    at: &At,
    wish: &Wish<'_>,
    work: &mut Work<'_>,
    dir: &Slab,
    active: &str,
) -> Result<Vec<Step>> {
    let (snap, path) = (at.snap()?, dir.path.join(active));
    mend(tm, work, &dir.path, active, &at.spot.dir.join(snap.as_str()))?;
    let file =
        Dir::open(&dir.path)?.open_file(Path::new(active), true).context("opening the active layer")?;
    grow(tm, wish, work, (&file, &path), Format::Qcow2)?;
    fs::sync_file(&file, &path).context("flushing the active layer")?;
    work.flush(dir)?;
    let link = work.link(&format!("{}/{active}", snap.last()))?;
    work.flush(&link)?;
    Ok(vec![work.step_to(dir, &snap)?, work.step_to(&link, at.name())?])
}

/// To the size that is wanted, before anybody sees it.
fn grow(
    tm: &Tm<'_>,
    wish: &Wish<'_>,
    work: &Work<'_>,
    (file, path): (&File, &Path),
    format: Format,
) -> Result<()> {
    let Some(size) = wish.grow else { return Ok(()) };
    if format == Format::Qcow2 && fill::disk_size(&image::probe_as(file, format)?) >= size {
        return Ok(());
    }
    fill::grow(tm.ctx, tm.job, &work.keep_held(), (file, path, format), size, wish.sparse)
}

/// Layers that came from a place with other names: each names the one it builds on by its bare number, as
/// the `local` driver has it, and none names anything else. A `.current` names its file where that will be.
fn mend(tm: &Tm<'_>, work: &Work<'_>, path: &Path, active: &str, at: &Path) -> Result<()> {
    let dir = Dir::open(path)?;
    let names: Vec<String> = dir.names()?.into_iter().filter_map(|n| n.into_string().ok()).collect();
    let wrong = |n: &str, why: &str| refuse(Class::Refused, format!("layer {n} of what came {why}"));
    let numbers = || names.iter().filter(|n| !n.ends_with(".current"));
    let mut found = BTreeMap::new();
    for n in numbers() {
        found.insert(n.as_str(), image::probe_as(&dir.open_file(Path::new(n), false)?, Format::Qcow2));
    }
    let below = |n: &str| -> Option<&image::Backing> { found.get(n)?.as_ref().ok()?.backing.as_ref() };
    let names_it =
        |n: &str, b: &str| below(n).and_then(|l| Path::new(&l.name).file_name()) == Some(OsStr::new(b));
    let is_end = |n: &&str| *n == active || !found.keys().any(|over| over != n && names_it(over, n));
    // From the ends down, each says what is below it: in a raw one a guest may have written any header.
    let mut todo: Vec<&str> = found.keys().copied().filter(is_end).collect();
    let mut under: BTreeMap<&str, (&str, Format)> = BTreeMap::new();
    let (mut raw, mut judged) = (BTreeSet::new(), BTreeSet::new());
    while let Some(n) = todo.pop() {
        if !judged.insert(n) {
            continue;
        }
        let probe = match &found[n] {
            Ok(probe) => image::Probe { backing: None, ..probe.clone() },
            Err(e) => return Err(wrong(n, &format!("is none: {e}"))),
        };
        image::admit(&probe, &admit(tm.ctx)).with_context(|| format!("looking at layer {n}"))?;
        let Some(backing) = below(n) else { continue };
        let to = found.keys().find(|b| **b != n && names_it(n, b));
        let to = to.ok_or_else(|| wrong(n, "builds on a file that did not come with it"))?;
        let format = backing.format.unwrap_or(Format::Qcow2);
        under.insert(n, (to, format));
        if format.is_raw() {
            raw.insert(*to);
        } else {
            todo.push(to);
        }
    }
    if let Some(n) = found.keys().find(|n| raw.contains(**n) == judged.contains(**n)) {
        return Err(wrong(n, "is of no one chain"));
    }
    if !judged.contains(active) {
        return Err(wrong(active, "is not there, and the disk is to be it"));
    }
    for n in numbers() {
        let (mut at, mut steps) = (n.as_str(), 0);
        while let Some((below, _)) = under.get(at) {
            (at, steps) = (below, steps + 1);
            if steps > names.len() {
                return Err(wrong(n, "builds on itself"));
            }
        }
    }
    for (n, (below, format)) in &under {
        let file = dir.open_file(Path::new(n), true)?;
        let backing = Some((OsStr::new(below), *format));
        let keep = work.keep_held();
        tm.ctx.qemu(tm.job, &keep).rebase(&path.join(n), Format::Qcow2, backing, Rebase::HeaderOnly)?;
        fs::sync_file(&file, &path.join(n))?;
    }
    for marker in names.iter().filter(|n| n.ends_with(".current")) {
        let to = text_of(&dir.open_file(Path::new(marker), false)?)?;
        let file = to.strip_suffix(GOING).unwrap_or(&to);
        if !names.iter().any(|n| n == file && !n.ends_with(".current")) {
            return Err(wrong(marker, "names a file that did not come with it"));
        }
        let text = at.join(to).into_os_string();
        dir.put(marker.as_ref(), "tmp".as_ref(), text.as_encoded_bytes(), 0o644, true)?;
    }
    Ok(())
}

fn text_of(file: &File) -> Result<String> {
    let mut text = String::new();
    file.take(TEXT).read_to_string(&mut text).context("reading a name")?;
    Ok(text.trim().to_owned())
}

/// The parts of a disk.
struct Pieces<'a, 'w> {
    work: &'a mut Work<'w>,
    parts: Parts,
    sparse: bool,
    disk: Option<Slab>,
    snap: Option<Slab>,
    active: Option<String>,
}

/// The number of a snapshot, or its `.current`.
fn layer(path: &str) -> Option<&str> {
    let name = path.strip_prefix("snap/")?;
    let n = name.strip_suffix(".current").unwrap_or(name);
    (!n.is_empty() && n.len() < 19 && n.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}

impl Land for Pieces<'_, '_> {
    type Error = anyhow::Error;

    fn dir(&mut self, path: &str, _: u32) -> Result<()> {
        if path != "snap" {
            return Err(odd(path));
        }
        self.snap = Some(self.work.dir()?);
        Ok(())
    }

    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        let layer = layer(to).filter(|n| path == "disk" && !n.ends_with(".current"));
        self.active = Some(layer.ok_or_else(|| odd(path))?.to_owned());
        Ok(())
    }

    fn file(&mut self, path: &str, _: u32, size: u64) -> Result<File> {
        if path == "disk" {
            let slab = self.parts.slab(self.work, path, size, self.sparse)?;
            let file = slab.file.as_ref().context("a staged file has no file")?.try_clone()?;
            self.disk = Some(slab);
            return Ok(file);
        }
        let (Some(dir), Some(name)) = (&self.snap, layer(path)) else { return Err(odd(path)) };
        let (dir, name) = (Dir::open(&dir.path)?, OsStr::new(name));
        match self.parts.file(path, &dir, name)? {
            Some(file) => Ok(file),
            None => Ok(dir.create(name, 0o666, false)?),
        }
    }

    fn complete(&mut self, path: &str, file: &File) -> Result<()> {
        // The disk's own is flushed when it has its size.
        if path == "disk" { Ok(()) } else { Ok(fs::sync_file(file, Path::new(path))?) }
    }
}

fn vm(tm: &Tm<'_>, dir: &str) -> Result<()> {
    let at = tm.open(Spot::vm(tm.ctx, dir)?)?;
    let watch = tm.job.watch();
    let stream = begin(tm, &at, &watch)?;
    let source = stream.source.clone();
    let names = tree::names(&at)?;
    let wanted: Vec<_> = names.iter().map(|n| (n, Mode::Exclusive)).collect();
    let _leases = hold::lease_for(&at.domain, tm.job, &wanted, Some(&source))?;
    if at.look(at.name())?.is_some() {
        Seen::of(&at)?.unused(&at, Users::None)?;
    }
    // An earlier life of this job is ended by now.
    settle::recorded(&at.domain, tm.job)?;
    let request = request_digest(&[&tm.request, &source]);
    if settle::made_by(&at.domain, at.name())?.is_some_and(|c| c.request == request) {
        return stream.decline();
    }
    let (mut work, had) = Work::resume(&at.domain, tm.job, std::slice::from_ref(at.name()), &source)?;
    let (parts, have) = Parts::of(tm.job, &work, had, ".monitor", "vm")?;
    let mut house = House { tm, at: &at, work: &mut work, parts, root: None, monitor: None };
    let taken = stream.take(have, &mut house);
    let House { root, monitor, .. } = house;
    if let Err(e) = taken {
        return Err(stream::kept(tm.job, work, e));
    }
    let root = root.ok_or_else(|| odd("nothing"))?;
    work.flush(&root)?;
    let mut steps = vec![work.step_to(&root, at.name())?];
    if let Some(slab) = monitor {
        let text = text_of(&fill::open(&slab.path)?)?;
        steps.extend(marker::steps(&at, &mut work, &Marker::Write(text))?);
    }
    tm.ready()?;
    Ok(work.commit(&request, "", steps)?)
}

/// The directory of a VM.
struct House<'a, 'w> {
    tm: &'a Tm<'a>,
    at: &'a At,
    work: &'a mut Work<'w>,
    parts: Parts,
    root: Option<Slab>,
    monitor: Option<Slab>,
}

impl House<'_, '_> {
    /// The directory of a path, and the name in it.
    fn place<'p>(&self, path: &'p str) -> Result<(Dir, &'p OsStr)> {
        let rel = path.strip_prefix("vm/").map(Path::new);
        let (Some(root), Some(rel)) = (&self.root, rel) else { return Err(odd(path)) };
        let name = rel.file_name().ok_or_else(|| odd(path))?;
        let root = Dir::open(&root.path)?;
        match rel.parent().filter(|p| !p.as_os_str().is_empty()) {
            Some(dir) => Ok((root.sub(dir)?, name)),
            None => Ok((root, name)),
        }
    }
}

impl Land for House<'_, '_> {
    type Error = anyhow::Error;

    fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        if path == "vm" {
            self.root = Some(self.work.dir()?);
            return Ok(());
        }
        let (dir, name) = self.place(path)?;
        Ok(dir.mkdir(name, mode | 0o700, true)?)
    }

    /// Within the directory, to an image or a layer of one, or to a device.
    fn link(&mut self, path: &str, to: &str) -> Result<()> {
        let (dir, name) = self.place(path)?;
        let own = Path::new(to).starts_with(self.at.spot.path());
        let known = !to.starts_with('/')
            || own
            || to.starts_with("/dev/")
            || Spot::image_or_layer(self.tm.ctx, to).is_ok();
        if !known {
            let text = format!("{path} is a link to {to}, which is no disk's; nothing was changed");
            return Err(refuse(Class::Refused, text));
        }
        Ok(dir.symlink(OsStr::new(to), name)?)
    }

    fn file(&mut self, path: &str, mode: u32, size: u64) -> Result<File> {
        if path == ".monitor" && size < TEXT {
            let slab = self.work.file(Bytes(0))?;
            let file = slab.file.as_ref().context("a staged file has no file")?.try_clone()?;
            self.monitor = Some(slab);
            return Ok(file);
        }
        let (dir, name) = self.place(path)?;
        match self.parts.file(path, &dir, name)? {
            Some(file) => Ok(file),
            None => Ok(dir.create(name, mode, true)?),
        }
    }

    fn complete(&mut self, path: &str, file: &File) -> Result<()> {
        Ok(fs::sync_file(file, Path::new(path))?)
    }
}
