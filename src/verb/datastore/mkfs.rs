//! `mkfs`: an empty image: raw, qcow2, swap, or with a file system. *Named*. The format `save_as` only
//! gives a name, for the contents that a later verb brings. Contract 2.4.

use super::{Ctx, Ds, made};
use crate::image::Format;
use crate::lock::Mode;
use crate::one::DsRequest;
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work, settle};
use crate::sys::tool::{Limits, Run};
use crate::sys::{Bytes, Class, Tool};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::path::Path;

pub fn run(ctx: &Ctx<'_>, req: &DsRequest, job: &Job) -> Result<String> {
    let image = req.image()?;
    let format = image.format.clone().unwrap_or_else(|| "raw".to_owned());
    let fs = image.fs.clone().filter(|f| !f.is_empty());
    let plan = plan(ctx, &format, fs.as_deref())?;
    let ds = Ds::open(ctx, req, job)?;
    if let Some(answer) = ds.recorded()? {
        return Ok(answer);
    }
    let (name, place) = ds.new_name()?;
    let answer = name.source(&req.datastore.base_path);
    let Some(plan) = plan else { return Ok(answer) };
    let size = image.size.filter(|s| s.0 > 0).ok_or_else(|| {
        refuse(Class::Usage, format!("image {name}: SIZE is missing or zero in the driver message"))
    })?;
    if size > ds.admit().max_size {
        let text = format!("image {name}: {size} is more than `image.max_size` ({})", ds.admit().max_size);
        return Err(refuse(Class::Refused, text));
    }
    let _lease = ds.lease(&[(&place, Mode::Exclusive)])?;
    let request = ds.request(&[&format, fs.as_deref().unwrap_or_default(), &size.0.to_string()]);
    if let Some(made) = settle::made_by(&ds.domain, &place)?
        && made.request == request
    {
        return Ok(made.answer);
    }
    let mut work = Work::begin(&ds.domain, job, std::slice::from_ref(&place))?;
    let slab = make(&ds, &mut work, &plan, size)
        .with_context(|| format!("making a {format} image of {size} in datastore {}", req.datastore.id))?;
    work.flush(&slab)?;
    let step = work.step_to(&slab, &place)?;
    work.commit(&request, &answer, vec![step])?;
    Ok(answer)
}

/// What to make; `None` for a name alone.
struct Plan {
    format: Format,
    mkfs: Option<(Tool, Vec<String>)>,
}

fn plan(ctx: &Ctx<'_>, format: &str, fs: Option<&str>) -> Result<Option<Plan>> {
    let mkfs = fs.map(|fs| filesystem(ctx, fs)).transpose()?;
    Ok(Some(match format {
        "save_as" => return Ok(None),
        "raw" => Plan { format: Format::Raw, mkfs },
        "qcow2" => Plan { format: Format::Qcow2, mkfs },
        "swap" => Plan {
            format: Format::Raw,
            mkfs: Some((Tool::MkSwap, vec!["-q".into(), "-L".into(), "swap".into()])),
        },
        other => {
            let text = format!("image format {other:?} cannot be made; raw, qcow2, swap and save_as can");
            return Err(refuse(Class::Unsupported, text));
        }
    }))
}

fn filesystem(ctx: &Ctx<'_>, fs: &str) -> Result<(Tool, Vec<String>)> {
    let supported = &ctx.settings.fs.supported;
    let tool = match fs {
        "ext2" => Some((Tool::MkfsExt2, "-F")),
        "ext3" => Some((Tool::MkfsExt3, "-F")),
        "ext4" => Some((Tool::MkfsExt4, "-F")),
        "xfs" => Some((Tool::MkfsXfs, "-f")),
        "btrfs" => Some((Tool::MkfsBtrfs, "-f")),
        _ => None,
    };
    let Some((tool, force)) = tool.filter(|_| supported.iter().any(|s| s == fs)) else {
        let text = format!("file system {fs:?} is not among SUPPORTED_FS ({})", supported.join(","));
        return Err(refuse(Class::Unsupported, text));
    };
    let mut args = vec!["-q".to_owned(), force.to_owned()];
    args.extend(ctx.settings.fs.options.get(fs).cloned().unwrap_or_default());
    Ok((tool, args))
}

fn make(ds: &Ds<'_>, work: &mut Work<'_>, plan: &Plan, size: Bytes) -> Result<Slab> {
    if plan.format == Format::Qcow2 && plan.mkfs.is_none() {
        let slab = work.file(Bytes(0))?;
        ds.ctx.qemu(ds.job, &work.keep_held()).create(&slab.path, Format::Qcow2, size, None, &[])?;
        made(&slab, Format::Qcow2, size)?;
        return Ok(slab);
    }
    let slab = work.file(size)?;
    if let Some((tool, args)) = &plan.mkfs {
        ds.job.phase("making the file system");
        run_mkfs(ds, work, *tool, args, &slab.path)?;
    }
    if plan.format == Format::Qcow2 {
        return ds.convert(work, &slab.path, Format::Raw, Format::Qcow2, size);
    }
    Ok(slab)
}

fn run_mkfs(ds: &Ds<'_>, work: &Work<'_>, tool: Tool, args: &[String], path: &Path) -> Result<()> {
    let mut argv: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    argv.push(path.as_os_str());
    let limits = Limits { memory: Some(4 << 30), cpu: None };
    let keep = work.keep_held();
    let run = Run {
        limits,
        writes: &[path],
        inherit: &keep,
        ..Run::new(ds.ctx.settings.tool_deadline, ds.job.cancel())
    };
    ds.ctx.tools.run(tool, &argv, run)?;
    Ok(())
}
