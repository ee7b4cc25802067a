//! `stat`: the size an image will need, in MiB rounded up. Reads no more of the source than that takes
//! and changes nothing; needs no domain. Contract 2.4 and 6.3 (`fs_size`).

use super::Ctx;
use crate::data::{FetchOptions, Source, measure};
use crate::image::{ImageError, probe, probe_bytes};
use crate::one::{self, BlockDevices, DirPolicy, DsRequest, ImagePath};
use crate::sdm::Job;
use crate::sys::fs::Dir;
use crate::sys::{Bytes, Class};
use crate::verb::fill::disk_size;
use crate::verb::{refuse, stream};
use anyhow::{Context as _, Result};
use std::os::fd::AsRawFd as _;
use std::path::Path;

/// Enough to tell most formats.
const HEAD: usize = 64 << 10;

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let path = req.image()?.path.clone().unwrap_or_default();
    let from = one::image_path(&path)?;
    job.object(&from.shown());
    let opts = super::fetch_options(ctx.settings, req)?;
    let size = match &from {
        ImagePath::Http(url) => of_source(&Source::Http(url.clone()), &opts, job),
        ImagePath::Ssh(..) => Err(stream::elsewhere(&from)),
        ImagePath::Local(path) => local(ctx, req, path, &opts, job),
    };
    let size = size.with_context(|| format!("finding the size of {}", from.shown()))?;
    Ok(size.as_mib_up().to_string())
}

fn local(ctx: &Ctx<'_>, req: &DsRequest, path: &Path, opts: &FetchOptions, job: &Job) -> Result<Bytes> {
    let restricted = ctx.settings.paths.restricted();
    let policy = DirPolicy::new(&restricted, &req.datastore, BlockDevices::Allow);
    let file = one::open_checked(path, &policy)?;
    if file.metadata().context("looking at it")?.is_dir() {
        // By descriptor: its name may lead elsewhere by now.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        let dir = Dir::open(Path::new(&same));
        return Ok(Bytes(dir.and_then(|d| d.content()).context("adding up the directory")?));
    }
    of_source(&Source::File(file), opts, job)
}

fn of_source(source: &Source, opts: &FetchOptions, job: &Job) -> Result<Bytes> {
    let mut want = HEAD;
    loop {
        let head = measure::head(source, want, opts, &job.watch())?;
        let packed = head.compression != crate::data::Compression::None && opts.decompress;
        let len = if packed { None } else { head.transferred_len };
        let found = match (source, packed) {
            // The file is here: look at all of it that the header asks for.
            (Source::File(f), false) => probe(f),
            _ => probe_bytes(&head.bytes, len),
        };
        match found {
            Ok(p) if p.format.is_raw() || p.virtual_size.is_none() => {
                if let (Some(len), false) = (head.transferred_len, packed) {
                    return Ok(Bytes(len));
                }
                let size = measure::unpacked_size(source, &head, opts, &job.watch())?;
                return size.map(Bytes).ok_or_else(|| {
                    refuse(
                        Class::Unsupported,
                        "the server's compressed image does not tell its size; register it uncompressed, or as qcow2",
                    )
                });
            }
            Ok(p) => return Ok(disk_size(&p)),
            // The format keeps more in front than we asked for.
            Err(ImageError::Short { need, .. }) if need > want as u64 && need <= 8 << 20 => {
                want = usize::try_from(need).unwrap_or(8 << 20);
            }
            Err(e) => return Err(e.into()),
        }
    }
}
