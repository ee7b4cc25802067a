//! The half of a transfer on the host that has the data: a disk, an image or a VM's directory is leased to
//! read and given to the peer, which may have it already. Nothing is changed here, not even by a move: the
//! source goes by an operation of its own (`retire`), after the destination is there. Design 5; red team 1.3.
//!
//! A disk comes as `disk`, a file or a link to the layer in `snap` that it is, and `snap/<n>`; a VM's
//! directory as `vm`, with `.monitor` beside it. Who receives gives them the names they have there.

use super::disk::Disk;
use super::live::Live;
use super::ln::{layers_of, resolved};
use super::op::{self, Told, What};
use super::place::Spot;
use super::tree::{self, Seen, Users};
use super::{At, DiskFormat, Tm, bridge, clone};
use crate::data::extent::Sender;
use crate::engine::{Kind as ObjectKind, Name};
use crate::image::{self, Format};
use crate::lock::Mode;
use crate::sdm::{Work, event, settle};
use crate::sys::Class;
use crate::sys::fs::{Dir, Kind};
use crate::verb::fill::{self, Conversion, disk_size};
use crate::verb::refuse;
use crate::verb::snaps::{Snaps, marker_text};
use crate::verb::stream;
use anyhow::{Context as _, Result};
use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

pub(super) fn run(tm: &Tm<'_>, op: &op::Send) -> Result<Told> {
    match &op.what {
        What::Vm { dir, to, runs } => {
            vm(tm, dir, Path::new(to), if *runs { Users::Readers } else { Users::None })
        }
        What::Image { path, format, snapshots } => image(tm, path, *format, *snapshots),
        What::Disk { disk } => disk_with_snapshots(tm, disk),
        What::Whole { path, limit } => bridge::whole(tm, path, *limit),
        What::Outside { path, limit, message } => bridge::outside(tm, path, *limit, message),
        What::Content { disk, snapshot: None, live: Some(machine) } => running(tm, disk, machine),
        What::Content { disk, snapshot, live } => content(tm, disk, *snapshot, live.is_some()),
    }
}

/// What tells a source, unchanged, from every other.
fn source(at: &At, state: &[&str]) -> String {
    stream::identity(Some(at.domain.header.id), state)
}

/// The same of files that are sent, by this request.
pub(super) fn source_of(tm: &Tm<'_>, at: &At, files: &[&File]) -> Result<String> {
    let mut state = vec![tm.request.clone()];
    for file in files {
        state.push(stream::state(file)?);
    }
    Ok(source(at, &state.iter().map(String::as_str).collect::<Vec<_>>()))
}

/// The same of layers, or of copies that are snapshots.
fn source_with(tm: &Tm<'_>, at: &At, file: Option<&File>, snaps: &Snaps<'_>) -> Result<String> {
    let mut files = Vec::new();
    for (_, name, kind) in snaps.objects()? {
        if kind == ObjectKind::File {
            files.push(fill::open(&snaps.path(&name)?)?);
        }
    }
    source_of(tm, at, &file.into_iter().chain(&files).collect::<Vec<_>>())
}

/// The identity of a VM's directory.
pub(super) fn vm_source(vm: &At, seen: &Seen) -> String {
    source(vm, &[vm.name().as_str(), &seen.manifest()])
}

fn give(tm: &Tm<'_>, source: String, entries: impl FnOnce(&mut Sender<'_>) -> Result<()>) -> Result<Told> {
    let limit = tm.ctx.settings.data.limit.map(|l| l.0);
    let digest = stream::give(tm.ctx, tm.job, (&source, limit), entries)?;
    Ok(Told { source, digest })
}

fn vm(tm: &Tm<'_>, dir: &str, to: &Path, users: Users) -> Result<Told> {
    let at = tm.open(Spot::vm(tm.ctx, dir)?)?;
    let _leases = tree::lease(tm, &at, &tree::names(&at)?, Mode::Shared)?;
    if at.look(at.name())?.is_none() {
        let missing = || refuse(Class::NotFound, format!("{dir} does not exist"));
        // It may have gone there already, which the destination knows: it wants nothing then.
        let gone = settle::buried_by(&at.domain, at.name())?.filter(|c| !c.answer.is_empty());
        return give(tm, gone.ok_or_else(missing)?.answer, |_| Err(missing()));
    }
    let from = Dir::open(&at.path(at.name())?).context("opening the source")?;
    let seen = Seen::below(&from)?;
    seen.unused(&at, users)?;
    give(tm, vm_source(&at, &seen), |sender| {
        tm.job.watch().progress.total(seen.size());
        let mode = std::fs::metadata(from.path()).context("looking at the source")?.permissions().mode();
        sender.dir("vm", mode)?;
        Tree { tm, from: at.spot.path(), to: to.to_owned() }.send(sender, &from, "vm")?;
        if let Ok(mut text) = std::fs::read(at.spot.dir.join(".monitor")) {
            text.truncate(256);
            sender.bytes(".monitor", 0o644, &text)?;
        }
        // Before the receiver has the end, without which it publishes nothing.
        seen.unchanged(&at, users)
    })
}

struct Tree<'a> {
    tm: &'a Tm<'a>,
    from: PathBuf,
    to: PathBuf,
}

impl Tree<'_> {
    fn send(&self, sender: &mut Sender<'_>, dir: &Dir, at: &str) -> Result<()> {
        for name in dir.names()? {
            let Some(e) = dir.entry(&name)? else { continue };
            let text = |t: &std::ffi::OsStr| {
                let t = t.to_str().map(str::to_owned);
                t.ok_or_else(|| refuse(Class::Unsupported, format!("{} is not text", name.display())))
            };
            let path = format!("{at}/{}", text(&name)?);
            let sending = || format!("sending {path}");
            match &e.kind {
                Kind::Dir => {
                    sender.dir(&path, e.mode)?;
                    self.send(sender, &dir.sub(Path::new(&name))?, &path)?;
                }
                Kind::Link(to) => sender.link(&path, &text(&self.moved(Path::new(to)))?)?,
                // The way to a file by its path, which is another one there.
                Kind::File if path.ends_with(".current") && e.size < 4096 => {
                    let old = std::fs::read_to_string(dir.path().join(&name)).with_context(sending)?;
                    let new = format!("{}\n", text(&self.moved(Path::new(old.trim())))?);
                    sender.bytes(&path, e.mode, new.as_bytes())?;
                }
                Kind::File => {
                    let file = dir.open_file(Path::new(&name), false).with_context(sending)?;
                    sender.file(&path, e.mode, &file).with_context(sending)?;
                }
                // A socket or pipe of a process that is gone.
                Kind::Other => {
                    let text = format!("{} is not a file and was left behind", name.display());
                    self.tm.job.tell(event::What::Warning { text });
                }
            }
        }
        Ok(())
    }

    fn moved(&self, path: &Path) -> std::ffi::OsString {
        tree::moved(path, &self.from, &self.to)
    }
}

fn image(tm: &Tm<'_>, path: &str, format: DiskFormat, snapshots: bool) -> Result<Told> {
    let image = tm.open(Spot::image(tm.ctx, path)?)?;
    let _image = tm.lease(&image, Mode::Shared)?;
    let snaps = layers_of(tm, &image)?;
    if format != DiskFormat::Qcow2 {
        let file = clone::open(&image, &resolved(&image)?)?;
        let source = source_with(tm, &image, Some(&file), &snaps)?;
        return give(tm, source, |sender| copies(sender, &snaps, &file, snapshots));
    }
    if let Some(active) = snaps.active(&snaps.layers()?)? {
        let source = source_with(tm, &image, None, &snaps)?;
        return give(tm, source, |sender| layers(sender, &snaps, &active));
    }
    let file = clone::open(&image, image.name())?;
    if image::probe_as(&file, Format::Qcow2)?.backing.is_some() {
        let text = format!("{path} builds on another file; make it a whole image first");
        return Err(refuse(Class::Unsupported, text));
    }
    give(tm, source_of(tm, &image, &[&file])?, |sender| {
        sender.dir("snap", 0o755)?;
        sender.file("snap/0", 0o644, &file)?;
        Ok(sender.link("disk", "snap/0")?)
    })
}

fn disk_with_snapshots(tm: &Tm<'_>, op: &op::Disk) -> Result<Told> {
    let disk = Disk::open(tm, op, Mode::Shared)?;
    if let Some(image) = &disk.image {
        let text = format!("{} is {} itself and no copy of it", op.path, image.spot.text());
        return Err(refuse(Class::Integrity, text));
    }
    disk.home().not_in_use()?;
    let snaps = disk.snaps(tm)?;
    if disk.layered() {
        let source = source_with(tm, &disk.at, None, &snaps)?;
        return give(tm, source, |sender| layers(sender, &snaps, &disk.file));
    }
    let file = fill::open(&disk.path()?)?;
    let source = source_with(tm, &disk.at, Some(&file), &snaps)?;
    give(tm, source, |sender| copies(sender, &snaps, &file, true))
}

/// One file that needs no other.
fn content(tm: &Tm<'_>, op: &op::Disk, snapshot: Option<i64>, runs: bool) -> Result<Told> {
    let disk = Disk::open(tm, op, Mode::Shared)?;
    let snaps = disk.snaps(tm)?;
    let file = match snapshot {
        None => disk.file.clone(),
        Some(n) => snaps.there(n)?,
    };
    // Below what a machine writes to nothing changes.
    if !runs {
        disk.home().not_in_use()?;
    }
    let path = disk.home().path(&file)?;
    let mut work;
    let opened = if disk.format == DiskFormat::Qcow2 {
        let found = image::probe_as(&fill::open(&path)?, Format::Qcow2)?;
        snaps.readable(&file, Format::Qcow2)?;
        if found.backing.is_some() {
            work = Work::begin(&disk.at.domain, tm.job, std::slice::from_ref(disk.at.name()))?;
            let how =
                Conversion { from: Format::Qcow2, to: Format::Qcow2, size: disk_size(&found), sparse: true };
            let slab = fill::converted(tm.ctx, tm.job, &mut work, &path, how)?;
            slab.file.context("a staged file has no file")?
        } else {
            fill::open(&path)?
        }
    } else {
        fill::open(&path)?
    };
    give(tm, source_of(tm, &disk.at, &[&opened])?, |sender| {
        Ok(sender.file("disk", 0o644, &opened).map(drop)?)
    })
}

/// What a running machine's disk is at one moment: staged beside it, so that the machine need not stand still
/// for as long as the way takes. What was staged goes with `work`.
fn running(tm: &Tm<'_>, op: &op::Disk, machine: &op::Machine) -> Result<Told> {
    let live = Live::settled(tm, op, machine)?;
    let at = tm.open(Spot::disk(tm.ctx, &op.path)?)?;
    let mut work = tm.begin(&at)?;
    let slab = live.copied(&mut work)?;
    drop(live);
    let file = slab.file.as_ref().context("a staged file has no file")?;
    give(tm, source_of(tm, &at, &[file])?, |sender| Ok(sender.file("disk", 0o644, file).map(drop)?))
}

/// A file, and its snapshots, which are whole copies.
fn copies(sender: &mut Sender<'_>, snaps: &Snaps<'_>, file: &File, snapshots: bool) -> Result<()> {
    sender.file("disk", 0o644, file)?;
    let files = if snapshots { snaps.objects()? } else { Vec::new() };
    if files.is_empty() {
        return Ok(());
    }
    sender.dir("snap", 0o755)?;
    for (n, name, kind) in files {
        if kind != ObjectKind::File {
            return Err(refuse(Class::Unsupported, format!("{name} is not a file")));
        }
        sender.file(&format!("snap/{n}"), 0o644, &fill::open(&snaps.path(&name)?)?)?;
    }
    Ok(())
}

/// All layers, as they are; what they call each other is mended where they arrive.
fn layers(sender: &mut Sender<'_>, snaps: &Snaps<'_>, active: &Name) -> Result<()> {
    sender.dir("snap", 0o755)?;
    for layer in snaps.layers()? {
        let path = format!("snap/{}", layer.n);
        sender.file(&path, 0o644, &fill::open(&snaps.path(&layer.name)?)?).with_context(|| path.clone())?;
    }
    for m in snaps.markers()? {
        let text = marker_text(Path::new(""), &m.file, m.going);
        sender.bytes(&format!("snap/{}.current", m.n), 0o644, text.as_bytes())?;
    }
    Ok(sender.link("disk", &format!("snap/{}", active.last()))?)
}
