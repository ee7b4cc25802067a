//! Empty images: raw, qcow2, swap, or with a file system. `mkfs` of datastores and `mkimage`, `mkswap`
//! of transfer managers.

use super::fill::{self, Conversion};
use super::{Ctx, refuse};
use crate::image::Format;
use crate::sdm::work::Slab;
use crate::sdm::{Job, Work};
use crate::sys::tool::{Limits, Run};
use crate::sys::{Bytes, Class, Tool};
use anyhow::Result;
use std::ffi::OsStr;
use std::path::Path;

/// What to make.
pub(super) struct Blank {
    format: Format,
    mkfs: Option<(Tool, Vec<String>)>,
}

impl Blank {
    /// From OpenNebula's words. Whatever cannot be made is refused here, before anything is touched.
    pub fn plan(ctx: &Ctx<'_>, format: &str, fs: Option<&str>) -> Result<Blank> {
        let mkfs = fs.map(|fs| filesystem(ctx, fs)).transpose()?;
        Ok(match format {
            "raw" => Blank { format: Format::Raw, mkfs },
            "qcow2" => Blank { format: Format::Qcow2, mkfs },
            "swap" => Blank {
                format: Format::Raw,
                mkfs: Some((Tool::MkSwap, vec!["-q".into(), "-L".into(), "swap".into()])),
            },
            other => {
                let text = format!("image format {other:?} cannot be made; raw, qcow2, swap and save_as can");
                return Err(refuse(Class::Unsupported, text));
            }
        })
    }

    pub fn make(
        &self,
        ctx: &Ctx<'_>,
        job: &Job,
        work: &mut Work<'_>,
        size: Bytes,
        sparse: bool,
    ) -> Result<Slab> {
        if self.format == Format::Qcow2 && self.mkfs.is_none() {
            let slab = work.file(Bytes(0))?;
            ctx.qemu(job, &work.keep_held()).create(&slab.path, Format::Qcow2, size, None, &[])?;
            fill::made(&slab.path, Format::Qcow2, size)?;
            return Ok(slab);
        }
        let slab = work.file(size)?;
        self.fill(ctx, job, work, &slab)?;
        if self.format == Format::Qcow2 {
            let how = Conversion { from: Format::Raw, to: Format::Qcow2, size, sparse };
            return fill::converted(ctx, job, work, &slab.path, how);
        }
        Ok(slab)
    }

    /// Puts what is wanted into a slab that reads zero.
    pub fn fill(&self, ctx: &Ctx<'_>, job: &Job, work: &Work<'_>, slab: &Slab) -> Result<()> {
        let Some((tool, args)) = &self.mkfs else { return Ok(()) };
        job.phase("making the file system");
        run_mkfs(ctx, job, work, *tool, args, &slab.path)
    }
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

fn run_mkfs(
    ctx: &Ctx<'_>,
    job: &Job,
    work: &Work<'_>,
    tool: Tool,
    args: &[String],
    path: &Path,
) -> Result<()> {
    let mut argv: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
    argv.push(path.as_os_str());
    let limits = Limits { memory: Some(4 << 30), cpu: None };
    let keep = work.keep_held();
    let run =
        Run { limits, writes: &[path], inherit: &keep, ..Run::new(ctx.settings.tool_deadline, job.cancel()) };
    ctx.tools.run(tool, &argv, run)?;
    Ok(())
}
