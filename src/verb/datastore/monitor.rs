//! `monitor`: used, total and free MiB of the file system below a datastore, as `df` counts them.
//! Takes no lock, needs no domain, starts no process. Contract 5.1, defect E1.

use super::{Ctx, block};
use crate::engine::Usage;
use crate::one::DsRequest;
use crate::sdm::Job;
use crate::sys::fs::Dir;
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let ds = &req.datastore;
    if ds.is_block() {
        return block::monitor(ctx, req, job);
    }
    job.object(&ds.id.to_string());
    let path = ds.dir();
    let dir = match Dir::open(&path) {
        // Stock drivers make it; we only do where its parent shows that nothing is unmounted.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            make(&path).with_context(|| format!("making the directory of datastore {}", ds.id))?
        }
        d => d.with_context(|| format!("opening {} of datastore {}", path.display(), ds.id))?,
    };
    let (total, free, used) =
        dir.space().with_context(|| format!("asking for the space below {}", path.display()))?;
    Ok(answer(Usage { total: Bytes(total), free: Bytes(free), used: Bytes(used) }))
}

pub(super) fn answer(u: Usage) -> String {
    let (used, total, free) = (u.used.as_mib_up(), u.total.as_mib_up(), u.free.as_mib_up());
    format!("USED_MB={used}\nTOTAL_MB={total}\nFREE_MB={free}")
}

fn make(path: &std::path::Path) -> Result<Dir> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(refuse(Class::Usage, "it has no parent"));
    };
    let parent = Dir::open(parent)?;
    match parent.mkdir(name, 0o777, false) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e.into()),
        _ => {}
    }
    Ok(parent.sub(std::path::Path::new(name))?)
}
