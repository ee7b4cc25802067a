//! Datastore verbs on a file domain (contract section 2). Each locks the image it is about (its slab
//! lease: exclusive to change, shared to read), settles what dead jobs left on it, and then works.

pub mod clone;
pub mod cp;
pub mod export;
pub mod mkfs;
pub mod monitor;
pub mod rm;
pub mod snap;
pub mod stat;
#[cfg(test)]
mod tests;

use super::{Ctx, refuse};
use crate::data::{self, FetchOptions, HttpOptions, Sparse};
use crate::engine::{Access, Kind, Name, Object, Place};
use crate::image::{self, Admit, Convert, Format, Probe, Target};
use crate::lock::{self, Mode, SlabLease};
use crate::one::{self, DsRequest, ImageName};
use crate::sdm::work::Slab;
use crate::sdm::{Domain, Job, Work, record, settle};
use crate::sys::{Bytes, Class};
use anyhow::{Context as _, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// One datastore request at work.
pub(super) struct Ds<'a> {
    pub ctx: &'a Ctx<'a>,
    pub req: &'a DsRequest,
    pub job: &'a Job,
    pub domain: Domain,
}

impl<'a> Ds<'a> {
    /// Opens the datastore's domain, for verbs that change it.
    pub fn open(ctx: &'a Ctx<'a>, req: &'a DsRequest, job: &'a Job) -> Result<Ds<'a>> {
        offered(req)?;
        let ds = &req.datastore;
        let domain = (ctx.open)(ds).with_context(|| format!("opening datastore {}", ds.id))?;
        Ok(Ds { ctx, req, job, domain })
    }

    /// The answer this very request was given before, if the caller named the request.
    pub fn recorded(&self) -> Result<Option<String>> {
        if !self.ctx.repeatable {
            return Ok(None);
        }
        Ok(settle::recorded(&self.domain, self.job)?.map(|c| c.answer))
    }

    /// The name a new image gets, and its place in the domain.
    pub fn new_name(&self) -> Result<(ImageName, Name)> {
        let image = self.req.image()?;
        let id = image.id.ok_or_else(|| refuse(Class::Usage, "IMAGE/ID is missing in the driver message"))?;
        let name = one::image_name(id, image.regtime, SystemTime::now());
        self.job.object(name.as_str());
        let place = Name::parse(name.as_str())?;
        Ok((name, place))
    }

    /// The image that SOURCE names.
    pub fn source(&self) -> Result<(ImageName, Name)> {
        let source = self.req.image()?.source.as_deref();
        let source =
            source.ok_or_else(|| refuse(Class::Usage, "IMAGE/SOURCE is missing in the driver message"))?;
        let name = one::source_name(&self.req.datastore.base_path, source)?;
        self.job.object(name.as_str());
        let place = Name::parse(name.as_str())?;
        Ok((name, place))
    }

    /// Leases on images of this datastore, and what dead jobs left on them settled.
    pub fn lease(&self, wanted: &[(&Name, Mode)]) -> Result<Vec<SlabLease>> {
        let names: Vec<(&str, Mode)> = wanted.iter().map(|(n, m)| (n.as_str(), *m)).collect();
        let leases =
            lock::slab_leases(&*self.domain.locks, &names, self.job.jobs.waits.lock, self.job.cancel());
        let leases = leases.map_err(|e| match wanted.first() {
            Some((name, _)) => settle::holder_of(&self.domain, name, e),
            None => e.into(),
        })?;
        let mut touched = Vec::new();
        for (name, _) in wanted {
            touched.extend([(*name).clone(), name.with_suffix(".snap")?]);
        }
        settle::settle_names(&self.domain, &touched, self.job)?;
        Ok(leases)
    }

    pub fn look(&self, name: &Name) -> Result<Option<Object>> {
        Ok(self.domain.engine.look(&Place::Public(name.clone()))?)
    }

    /// Where tools find a public object.
    pub fn path(&self, name: &Name) -> Result<PathBuf> {
        Ok(self.domain.engine.attach(&Place::Public(name.clone()), Access::Read)?.path)
    }

    /// The object a name leads to inside this domain: itself, or for a link what it points to.
    pub fn resolve(&self, name: &Name) -> Result<Object> {
        let mut name = name.clone();
        for _ in 0..8 {
            let o = self.look(&name)?.ok_or_else(|| {
                refuse(
                    Class::NotFound,
                    format!("{name} does not exist in datastore {}", self.req.datastore.id),
                )
            })?;
            let Kind::Link(to) = &o.kind else { return Ok(o) };
            name = self.inside(&name, to)?;
        }
        Err(refuse(Class::Integrity, format!("the links at {name} lead in a circle")))
    }

    /// A link's target as a name of this domain: relative to the link, or absolute below the datastore.
    fn inside(&self, at: &Name, to: &str) -> Result<Name> {
        let base = self.req.datastore.dir();
        let real = base.canonicalize().unwrap_or_else(|_| base.clone());
        let plain: PathBuf = Path::new(to).components().collect();
        let rel = [&base, &real].iter().find_map(|b| plain.strip_prefix(b).ok().map(Path::to_path_buf));
        let rel = match rel {
            Some(rel) => rel,
            None if plain.is_relative() => {
                Path::new(at.as_str()).parent().unwrap_or(Path::new("")).join(plain)
            }
            None => {
                let text = format!("{at} points to {to}, outside its datastore; nothing was changed");
                return Err(refuse(Class::Refused, text));
            }
        };
        Ok(Name::parse(&rel.to_string_lossy())?)
    }

    /// Refuses when a running qemu has one of these objects open.
    pub fn not_in_use(&self, names: &[Name]) -> Result<()> {
        for name in names {
            if self.look(name)?.is_none_or(|o| o.kind != Kind::File) {
                continue;
            }
            let path = self.path(name)?;
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            if crate::sys::qemu_holds(&file).with_context(|| format!("looking for users of {name}"))? {
                let text = format!("{name} is open in a running VM; power it off or detach the image first");
                return Err(refuse(Class::InUse, text));
            }
        }
        Ok(())
    }

    /// The rules for images that come in.
    pub fn admit(&self) -> Admit {
        let s = &self.ctx.settings.image;
        Admit { max_size: s.max_size.unwrap_or(Admit::default().max_size), allow: s.allow.clone() }
    }

    /// Digest of what makes this request this request.
    pub fn request(&self, parts: &[&str]) -> String {
        let mut all = vec![self.job.topic.verb.as_str(), self.req.datastore.base_path.as_str()];
        all.extend(parts);
        record::request_digest(&all)
    }

    /// Converts a staged or public image into a new staged slab.
    pub fn convert(
        &self,
        work: &mut Work<'_>,
        src: &Path,
        from: Format,
        to: Format,
        size: Bytes,
    ) -> Result<Slab> {
        self.job.phase("converting");
        let slab = work.file(Bytes(0))?;
        let watch = self.job.watch();
        watch.progress.total(size.0);
        let mut last = 0;
        let mut report = |done: Bytes| {
            watch.progress.add(done.0.saturating_sub(last));
            last = done.0;
        };
        let progress = Some(image::Progress { total: size, report: &mut report });
        let sparse = self.req.datastore.sparse;
        let how = Convert { target: Target::Create, sparse, options: &[], progress };
        let keep = work.keep_held();
        self.ctx.qemu(self.job, &keep).convert((src, from), (&slab.path, to), how)?;
        made(&slab, to, size)?;
        self.job.method("convert");
        Ok(slab)
    }
}

/// Looks at what a tool was to make: one that ends with status 0 has not always done its work.
pub(super) fn made(slab: &Slab, format: Format, size: Bytes) -> Result<()> {
    let found = header(&slab.path)?;
    if found.format.opennebula() == format.opennebula() && disk_size(&found) >= size {
        return Ok(());
    }
    let text =
        format!("qemu-img made {} of {} instead of {format} of {size}", found.format, disk_size(&found));
    Err(refuse(Class::Integrity, text))
}

/// What an image is, as its header says.
pub(super) fn header(path: &Path) -> Result<Probe> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    image::probe(&file).with_context(|| format!("looking at {}", path.display()))
}

/// What another release brings is refused in one line, before anything is touched.
pub(super) fn offered(req: &DsRequest) -> Result<()> {
    let ds = &req.datastore;
    let not_yet = |what: &str| {
        let text = format!("datastore {}: {what} is not supported yet; nothing was changed", ds.id);
        Err(refuse(Class::Unsupported, text))
    };
    match () {
        () if ds.is_block() => not_yet("a datastore on logical volumes"),
        () if !ds.bridge_list.is_empty() => not_yet("BRIDGE_LIST"),
        () if !req.source_bridge_list.is_empty() => not_yet("SOURCE_BRIDGE_LIST"),
        () if ds.nfs_auto.is_some() => not_yet("NFS_AUTO_ENABLE"),
        () => Ok(()),
    }
}

pub(super) fn fetch_options(ctx: &Ctx<'_>, req: &DsRequest) -> Result<FetchOptions> {
    let s = ctx.settings;
    let limit = match &req.datastore.limit_transfer_bw {
        Some(text) => Some(data::parse_rate(text).context("reading LIMIT_TRANSFER_BW")?),
        None => s.data.limit.map(|b| b.0),
    };
    let mut digests = Vec::new();
    if let Some(image) = &req.image {
        for (kind, hex) in image.digests()? {
            let algo = match kind {
                one::DigestKind::Md5 => data::Algo::Md5,
                one::DigestKind::Sha1 => data::Algo::Sha1,
                one::DigestKind::Sha256 => data::Algo::Sha256,
                one::DigestKind::Sha512 => data::Algo::Sha512,
            };
            digests.push(data::Expected::parse(algo, &hex)?);
        }
    }
    Ok(FetchOptions {
        digests,
        decompress: req.datastore.decompresses(),
        limit,
        max_size: s.image.max_size.unwrap_or(Admit::default().max_size).0,
        sparse: if req.datastore.sparse { Sparse::Detect } else { Sparse::Full },
        http: HttpOptions {
            connect_timeout: s.http.connect_timeout,
            stall_timeout: s.http.stall_timeout,
            retries: s.http.retries,
            ca_file: s.http.ca_file.clone(),
            insecure: s.http.insecure,
            ..HttpOptions::default()
        },
    })
}

/// The size of the disk in an image, or of the image where the format does not say.
pub(super) fn disk_size(probe: &Probe) -> Bytes {
    probe.virtual_size.or(probe.length).unwrap_or_default()
}
