//! Datastore verbs (contract section 2): here on a file domain, in `block` on a volume group. Each locks the image it is about (its slab
//! lease: exclusive to change, shared to read), settles what dead jobs left on it, and then works.

mod block;
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

use super::fill::{self, Conversion, Own};
use super::stream::{self, Incoming};
use super::{Ctx, hold, refuse};
use crate::config::Settings;
use crate::data::{self, FetchOptions, Sparse};
use crate::engine::{Access, Kind, Name, Object, Place};
use crate::image::{Format, Probe};
use crate::lock::{Mode, SlabLease};
use crate::one::{self, DsRequest, ImageName};
use crate::sdm::work::Slab;
use crate::sdm::{Domain, Job, Work, record, settle};
use crate::sys::{Bytes, Class};
use anyhow::{Context as _, Result};
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
        let domain = (ctx.open)(&ds.dir(), ds.id).with_context(|| format!("opening datastore {}", ds.id))?;
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
        hold::lease(&self.domain, self.job, wanted)
    }

    /// The lease to make an image; where it comes in a stream, with what an earlier attempt had of it spared.
    pub fn lease_for(&self, place: &Name, stream: Option<&Incoming<'_>>) -> Result<Vec<SlabLease>> {
        let source = stream.map(|s| s.source.as_str());
        hold::lease_for(&self.domain, self.job, &[(place, Mode::Exclusive)], source)
    }

    /// What the peer gives becomes a slab of a new job, whose result will be `place`.
    pub fn receive(
        &self,
        place: &Name,
        stream: Incoming<'_>,
        opts: &FetchOptions,
    ) -> Result<(Work<'_>, Slab)> {
        let targets = std::slice::from_ref(place);
        let (mut work, had) = Work::resume(&self.domain, self.job, targets, &stream.source)?;
        match stream::file(self.job, &mut work, stream, had, opts) {
            Ok(slab) => Ok((work, slab)),
            Err(e) => Err(stream::kept(self.job, work, e)),
        }
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

    /// Whether a running qemu has the image, its snapshots or what its name leads to open.
    pub fn not_in_use(&self, image: &Name) -> Result<()> {
        let mut names = hold::with_snapshots(&self.domain, image)?;
        if let Some(o) = self.look(image)?
            && matches!(o.kind, Kind::Link(_))
            && let Place::Public(real) = self.resolve(image)?.place
        {
            names.push(real);
        }
        hold::not_in_use(&self.domain, &names)
    }

    /// Whether the request says that the image is raw. Then its first bytes are its guest's, whatever
    /// header they look like.
    pub fn raw_on_record(&self) -> bool {
        self.req.image.as_ref().and_then(|i| i.format.as_deref()) == Some("raw")
    }

    /// Refuses an image that reads files other than its own.
    pub fn known_chain(&self, path: &Path, found: &Probe) -> Result<()> {
        fill::known_chain(self.ctx, &[Own::of(path)], path, found)
    }

    pub fn sparse_as_source(&self) -> Sparse {
        if self.req.datastore.sparse { Sparse::Keep } else { Sparse::Full }
    }

    /// Digest of what makes this request this request.
    pub fn request(&self, parts: &[&str]) -> String {
        request(self.job, self.req, parts)
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
        let how = Conversion { from, to, size, sparse: self.req.datastore.sparse };
        fill::converted(self.ctx, self.job, work, src, how)
    }
}

fn request(job: &Job, req: &DsRequest, parts: &[&str]) -> String {
    let mut all = vec![job.topic.verb.as_str(), req.datastore.base_path.as_str()];
    all.extend(parts);
    record::request_digest(&all)
}

/// What does a verb.
pub type Run = fn(&Ctx<'_>, &DsRequest, &Job) -> Result<String>;

/// The verbs that a host of BRIDGE_LIST is asked for.
pub(super) fn by_name(verb: &str) -> Option<Run> {
    Some(match verb {
        "clone" => clone::run,
        "cp" => cp::run,
        "export" => export::run,
        "mkfs" => mkfs::run,
        "monitor" => monitor::run,
        "rm" => rm::run,
        "snap_delete" => snap::delete,
        "snap_flatten" => snap::flatten,
        "snap_revert" => snap::revert,
        "stat" => stat::run,
        _ => return None,
    })
}

/// What another release brings is refused in one line, before anything is touched.
pub(super) fn offered(req: &DsRequest) -> Result<()> {
    let ds = &req.datastore;
    let not_yet = |what: &str| {
        let text = format!("datastore {}: {what} is not supported yet; nothing was changed", ds.id);
        Err(refuse(Class::Unsupported, text))
    };
    // The images of other drivers' block datastores are files, or somebody else's matter.
    if ds.is_block() && ds.ds_mad.as_deref() == Some("fs") { not_yet("DISK_TYPE=BLOCK") } else { Ok(()) }
}

pub(super) fn fetch_options(s: &Settings, req: &DsRequest) -> Result<FetchOptions> {
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
        max_size: fill::max_size(s).0,
        sparse: if req.datastore.sparse { Sparse::Detect } else { Sparse::Full },
        http: fill::http(s),
    })
}
