//! A disk that exists: what its name leads to, and leases on that. Persistent disks are links into the
//! image's datastore; the lease is the image's then, too, whatever name it was reached by (red team 1.12).

use super::op;
use super::place::Spot;
use super::{At, DiskFormat, Tm};
use crate::engine::{Kind, Name};
use crate::lock::{Mode, SlabLease};
use crate::sys::Class;
use crate::verb::fill::Own;
use crate::verb::refuse;
use crate::verb::snaps::Snaps;
use anyhow::Result;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub(super) struct Disk {
    /// The disk's own name, in its VM's directory.
    pub at: At,
    /// The image that it is, when it is persistent.
    pub image: Option<At>,
    /// The file that it is, in the domain of `home`.
    pub file: Name,
    pub format: DiskFormat,
    /// Files below its layers.
    under: Option<Own>,
    leases: Vec<SlabLease>,
}

/// Where a disk's name leads.
#[derive(Debug, PartialEq, Eq)]
enum Lead {
    /// To a file in the VM's directory.
    Own(Name),
    /// To an image or a layer of it.
    Image(Spot, Name),
}

impl Disk {
    /// Finds the disk and leases it. Links are looked at before the lease and again with it.
    pub fn open(tm: &Tm<'_>, op: &op::Disk, mode: Mode) -> Result<Disk> {
        let spot = Spot::disk(tm.ctx, &op.path)?;
        let under = op.image.as_deref().map(|i| Spot::image(tm.ctx, i)).transpose()?;
        for _ in 0..3 {
            let at = tm.open(spot.clone())?;
            let lead = lead(tm, &at)?;
            let mut leases = Vec::new();
            let (image, file) = match &lead {
                Lead::Own(file) => {
                    // Its layers end in the image, which must not go meanwhile.
                    if let Some(under) = under.as_ref().filter(|_| op.format == DiskFormat::Qcow2) {
                        leases.extend(tm.lease(&tm.open(under.clone())?, Mode::Shared)?);
                    }
                    (None, file.clone())
                }
                Lead::Image(image, file) => {
                    if under.as_ref().is_some_and(|u| !same(u, image)) {
                        let (is, meant) = (image.text(), op.image.as_deref().unwrap_or_default());
                        let text = format!("{} leads to {is} and not to its image {meant}", op.path);
                        return Err(refuse(Class::Integrity, text));
                    }
                    let image = tm.open(image.clone())?;
                    leases.extend(tm.lease(&image, mode)?);
                    (Some(image), file.clone())
                }
            };
            leases.extend(tm.lease(&at, mode)?);
            if self::lead(tm, &at)? != lead {
                continue;
            }
            let under = under.as_ref().map(|u| Own::named(&u.path()));
            let disk = Disk { at, image, file, format: op.format, under, leases };
            disk.sound()?;
            return Ok(disk);
        }
        Err(refuse(Class::Busy, format!("{} is being changed by others; try again", op.path)))
    }

    /// A disk in the VM's directory, leased to read. Its image is leased by the caller.
    pub fn private(tm: &Tm<'_>, op: &op::Disk) -> Result<Disk> {
        let at = tm.open(Spot::disk(tm.ctx, &op.path)?)?;
        let leases = tm.lease(&at, Mode::Shared)?;
        match lead(tm, &at)? {
            Lead::Own(file) => {
                let disk = Disk { at, image: None, file, format: op.format, under: None, leases };
                disk.sound()?;
                Ok(disk)
            }
            Lead::Image(image, _) => {
                let text = format!("{} is {} itself and no copy of it", op.path, image.text());
                Err(refuse(Class::Integrity, text))
            }
        }
    }

    fn sound(&self) -> Result<()> {
        let Some(o) = self.home().look(&self.file)? else {
            let text = format!("{} leads to {}, which does not exist", self.at.spot.text(), self.file);
            return Err(refuse(Class::NotFound, text));
        };
        let is_layer_link = matches!(o.kind, Kind::Link(_)) && self.layered();
        if o.kind != Kind::File && !is_layer_link {
            let text = format!("{} is neither a file nor a link to one", self.file);
            return Err(refuse(Class::Unsupported, text));
        }
        if self.layered() && self.format != DiskFormat::Qcow2 {
            let text = format!(
                "{} is a layer of a chain, but its format is not qcow2 on record; nothing was changed",
                self.at.spot.text()
            );
            return Err(refuse(Class::Integrity, text));
        }
        Ok(())
    }

    /// Where the disk's bytes and its snapshots are.
    pub fn home(&self) -> &At {
        self.image.as_ref().unwrap_or(&self.at)
    }

    /// Whether the disk is a layer in the directory of its snapshots.
    pub fn layered(&self) -> bool {
        self.file != *self.home().name()
    }

    pub fn path(&self) -> Result<PathBuf> {
        self.home().path(&self.file)
    }

    pub fn snaps<'s>(&'s self, tm: &'s Tm<'_>) -> Result<Snaps<'s>> {
        let home = self.home();
        let dir = home.snap()?;
        let called = match &self.image {
            Some(image) => image.spot.dir.join(dir.as_str()),
            // By its path from the disk's directory, with the link to itself; else by the bare number.
            None if home.look(&dir.child(dir.last())?)?.is_some() => PathBuf::from(dir.last()),
            None => PathBuf::new(),
        };
        let mut own = vec![Own::named(&home.spot.path())];
        own.extend(self.under.clone());
        Ok(Snaps { ctx: tm.ctx, job: tm.job, domain: &home.domain, dir, called, own })
    }

    /// The lease on what the bytes are in.
    pub fn lease(&self) -> Result<&SlabLease> {
        let lease = if self.image.is_some() { self.leases.first() } else { self.leases.last() };
        lease.ok_or_else(|| refuse(Class::Internal, "a disk without a lease"))
    }
}

fn same(a: &Spot, b: &Spot) -> bool {
    a.name == b.name && (a.dir == b.dir || a.dir.canonicalize().ok() == b.dir.canonicalize().ok())
}

fn lead(tm: &Tm<'_>, at: &At) -> Result<Lead> {
    let Some(o) = at.look(at.name())? else {
        return Err(refuse(Class::NotFound, format!("{} does not exist", at.spot.text())));
    };
    let Kind::Link(to) = o.kind else { return Ok(Lead::Own(at.name().clone())) };
    let (snap, own) = (at.snap()?, at.spot.dir.join(at.snap()?.as_str()));
    let path = Path::new(&to);
    let layer = path.strip_prefix(snap.last()).or_else(|_| path.strip_prefix(&own));
    if let Some(layer) = layer.ok().and_then(Path::to_str) {
        return Ok(Lead::Own(snap.child(layer)?));
    }
    if !path.is_absolute() {
        let text = format!("{} leads to {to}, which is no layer of it", at.spot.text());
        return Err(refuse(Class::Integrity, text));
    }
    let (image, file) = Spot::image_or_layer(tm.ctx, &to)?;
    Ok(Lead::Image(image, file))
}
