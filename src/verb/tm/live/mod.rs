//! Disks of machines that run. Libvirt is asked through `virsh`; what it did is judged by the files.
//!
//! Qemu opens a disk by its link, and opens files again by the names it knows, whenever the right to write to
//! one comes or goes: so when the next layer is put under a machine. If `disk.<n>` led to that layer by then,
//! qemu would go on reading it in place of the old one, without a word. So the link moves *after* the machine
//! did; and because it leads to the past until then, the machine stands still meanwhile: the new layer is
//! empty and shows what the old one shows. The order is: layer published under its final name, machine held,
//! machine switched, link moved, machine let go. A crash at any moment leaves a link that shows what the
//! machine last saw; `guard` sees to it that no machine is left standing, or running ahead of its link, and
//! `note` that somebody does when it died with its verb.
//!
//! For the same reason a file that a machine knows by a link which leads elsewhere now is never written to
//! through libvirt, nor put on record: its snapshot is only marked as going, see `delete`.

mod create;
mod delete;
mod drives;
pub mod guard;
mod hold;
pub mod note;
mod save;
mod still;
mod virsh;
pub mod watch;

pub(super) use create::{create, follow};
pub(super) use delete::delete;
pub(super) use save::save;
pub(super) use still::still;

use super::disk::Disk;
use super::op::{self, Machine};
use super::{DiskFormat, Tm};
use crate::engine::Name;
use crate::image::{self, Format, Link};
use crate::lock::Mode;
use crate::sdm::Work;
use crate::sdm::work::Slab;
use crate::sys::effect::{Effect, step};
use crate::sys::{Bytes, Class};
use crate::verb::snaps::{Layer, marker_text};
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};
use drives::{Drive, Node};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};
use virsh::Virsh;

/// A disk of a running machine, leased.
pub(super) struct Live<'a> {
    tm: &'a Tm<'a>,
    machine: &'a Machine,
    disk: Disk,
    on_record: &'a op::Disk,
}

/// A file that the machine has open.
struct Open {
    node: Node,
    file: Link,
    /// The name by which the machine knows it leads elsewhere now.
    stale: bool,
}

impl Open {
    fn at(&self) -> (u64, u64) {
        (self.file.dev, self.file.ino)
    }

    fn names_relatively(&self) -> bool {
        let backing = self.file.probe.backing.as_ref();
        backing.is_some_and(|b| !Path::new(&b.name).is_absolute())
    }
}

fn inode(path: &Path) -> Result<(u64, u64)> {
    let meta = std::fs::metadata(path).with_context(|| format!("looking at {}", path.display()))?;
    Ok((meta.dev(), meta.ino()))
}

impl<'a> Live<'a> {
    fn open(tm: &'a Tm<'a>, on_record: &'a op::Disk, machine: &'a Machine, mode: Mode) -> Result<Live<'a>> {
        let disk = Disk::open(tm, on_record, mode)?;
        Virsh::new(tm, machine, tm.job.cancel()).sound()?;
        Ok(Live { tm, machine, disk, on_record })
    }

    fn guard<'v>(&self, virsh: &'v Virsh<'v>, what: guard::For<'_>) -> Result<guard::Guard<'v>> {
        guard(self.tm, virsh, self.on_record, what)
    }

    /// The file that the machine writes to.
    fn top(drives: &[Drive]) -> &Path {
        drives.first().and_then(|d| d.files.first()).map_or(Path::new(""), |n| &n.path)
    }

    /// What the machine has open for the disk, the file it writes to first.
    fn opened(&self, virsh: &Virsh<'_>, layers: &[Layer]) -> Result<Vec<Open>> {
        let drives = virsh.disks()?;
        let odd = |why: String| {
            let text = format!("machine {}: {why}; nothing was changed", self.machine.domain);
            refuse(Class::Integrity, text)
        };
        let top = Live::top(&drives);
        let known = drives.first().map(|d| d.files.clone()).unwrap_or_default();
        let is_raw = self.disk.format != DiskFormat::Qcow2;
        let at = inode(top)?;
        let own = if is_raw { at == inode(&self.disk.path()?)? } else { layers.iter().any(|l| l.at == at) };
        if !own {
            let (path, disk) = (top.display(), &self.on_record.path);
            return Err(odd(format!("it writes to {path}, which is not what {disk} is")));
        }
        let files = image::chain_as(top, if is_raw { Format::Raw } else { Format::Qcow2 })?;
        if files.len() != known.len() {
            let (it, there) = (known.len(), files.len());
            return Err(odd(format!("{} has {there} files below it, and it knows of {it}", top.display())));
        }
        let link = self.disk.at.spot.path();
        let mut out = Vec::new();
        for (node, file) in known.into_iter().zip(files) {
            let stale = inode(&node.path).ok() != Some((file.dev, file.ino));
            if stale && !same_name(&node.path, &link) {
                return Err(odd(format!("it has {} where {} is", node.path.display(), file.real.display())));
            }
            out.push(Open { node, file, stale });
        }
        Ok(out)
    }

    /// What block jobs call a file of the machine.
    fn handle(&self, open: &Open) -> Result<String> {
        let index = open.node.index.context("libvirt gives a file of the machine no number")?;
        Ok(format!("{}[{index}]", self.machine.target))
    }

    /// The machine's disks, once no block job of a verb that died works on this one, and its link leads to what
    /// the machine writes to. A job that does not end is somebody else's.
    fn ready(&mut self, virsh: &Virsh<'_>) -> Result<Vec<Drive>> {
        let mut drives = virsh.disks()?;
        let end = Instant::now() + self.tm.job.jobs.waits.lock;
        while let Some(kind) = virsh.job()? {
            let over = Instant::now() >= end || self.tm.job.jobs.plan.is_some();
            if over || !self.tm.job.cancel().wait(Duration::from_millis(200)) {
                let (name, target) = (&self.machine.domain, &self.machine.target);
                let text = format!(
                    "a job of libvirt ({kind}) works on {target} of machine {name}; wait for it, or end it with \
                     virsh blockjob {name} {target} --abort"
                );
                return Err(refuse(Class::Busy, text));
            }
            drives = virsh.disks()?;
        }
        if self.disk.format == DiskFormat::Qcow2
            && let Some(layer) = create::catch_up(self, Live::top(&drives))?
        {
            self.disk.file = layer;
        }
        Ok(drives)
    }
}

fn guard<'v>(
    tm: &Tm<'_>,
    virsh: &'v Virsh<'v>,
    disk: &op::Disk,
    what: guard::For<'_>,
) -> Result<guard::Guard<'v>> {
    let watched = op::Follow { disk: disk.clone(), machine: virsh.machine.clone() };
    guard::Guard::start(virsh, (tm.ctx.jobs, tm.job.id), watched, settings(tm), what)
}

/// The settings that the guard must have, too.
fn settings(tm: &Tm<'_>) -> Vec<(String, String)> {
    let s = tm.ctx.settings;
    let p = &s.paths;
    let paths = [
        ("paths.var", &p.var),
        ("paths.etc", &p.etc),
        ("paths.datastores", &p.datastores),
        ("paths.remotes", &p.remotes),
        ("paths.run", &p.run),
        ("paths.state", &p.state),
        ("paths.log", &p.log),
    ];
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut out: Vec<_> = paths.into_iter().map(|(k, v)| (k.to_owned(), text(v))).collect();
    out.extend(s.tools.iter().map(|(name, path)| (format!("tools.{name}"), text(path))));
    // It comes when its verb is dead, and a machine stands still.
    out.push(("lock.wait".to_owned(), "3s".to_owned()));
    out
}

/// The layer that a file is.
fn layer_of(layers: &[Layer], at: (u64, u64)) -> Option<&Layer> {
    layers.iter().find(|l| l.at == at)
}

fn same_name(a: &Path, b: &Path) -> bool {
    let parent = |p: &Path| p.parent().and_then(|d| d.canonicalize().ok());
    a.file_name() == b.file_name() && parent(a).is_some() && parent(a) == parent(b)
}

/// Whether a running machine has a file open, as far as its locks say.
fn held(path: &Path) -> Result<bool> {
    let file = fill::open(path)?;
    crate::sys::qemu_holds(&file).with_context(|| format!("looking for users of {}", path.display()))
}

/// A `.current`, staged.
fn staged_marker(work: &mut Work<'_>, at: &Path, file: &Name, going: bool) -> Result<Slab> {
    let slab = work.file(Bytes(0))?;
    let text = marker_text(at, file, going);
    let mut out = slab.file.as_ref().context("a staged file has no file")?;
    step(Effect::Write, &[&slab.path], || out.write_all(text.as_bytes())).context("writing a mark")?;
    work.flush(&slab)?;
    Ok(slab)
}
