//! `mv`: a VM's directory goes to another system datastore of this host. *State*. The directory is made at
//! the destination, of second names where both are on one file system, else of copies that are compared;
//! then it is published; then, if the source is still what it was and nobody has it open, the source goes,
//! and is kept aside. A destination that is there is taken for the result only when its record names this
//! very source, unchanged; else it is kept aside, too. A disk's own `mv` has nothing to do: the directory's
//! follows. Design 5; red team 1.3.

use super::op::Mv;
use super::place::Spot;
use super::tree::{self, Seen, Users};
use super::{At, Tm};
use crate::data::{self, Algo, Method, Planned, Sparse};
use crate::lock::{Mode, SlabLease};
use crate::sdm::event::What;
use crate::sdm::record::request_digest;
use crate::sdm::{Work, settle};
use crate::sys::Class;
use crate::sys::effect::{Effect, bug, only_looks, step};
use crate::sys::fs::{self, Dir, Entry, Kind};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

pub(super) fn run(tm: &Tm<'_>, op: &Mv) -> Result<()> {
    if Spot::disk(tm.ctx, &op.from).is_ok() && Spot::disk(tm.ctx, &op.to).is_ok() {
        return Ok(());
    }
    let (from, to) = (Spot::vm(tm.ctx, &op.from)?, Spot::vm(tm.ctx, &op.to)?);
    if from.name != to.name {
        return Err(refuse(Class::Usage, format!("{} and {} are of two VMs", op.from, op.to)));
    }
    if from == to {
        return Ok(());
    }
    let (src, dst) = (tm.open(from)?, tm.open(to)?);
    // Copies of one domain are refused on opening, so equal ids are one place.
    if src.domain.header.id == dst.domain.header.id {
        return Ok(());
    }
    let _leases = leases(tm, &src, &dst)?;
    if src.look(src.name())?.is_none() {
        return match dst.look(dst.name())? {
            Some(_) => Ok(()),
            None => Err(refuse(Class::NotFound, format!("neither {} nor {} exists", op.from, op.to))),
        };
    }
    Move { tm, src: &src, dst: &dst }.run()
}

/// On the disks in both places; whoever moves between the same two takes them in the same order.
fn leases(tm: &Tm<'_>, src: &At, dst: &At) -> Result<Vec<SlabLease>> {
    let names = tree::names(src)?;
    let mut both = [src, dst];
    both.sort_by_key(|at| at.domain.header.id);
    let mut out = Vec::new();
    for at in both {
        out.extend(tree::lease(tm, at, &names, Mode::Exclusive)?);
    }
    Ok(out)
}

struct Move<'a> {
    tm: &'a Tm<'a>,
    src: &'a At,
    dst: &'a At,
}

impl Move<'_> {
    fn run(&self) -> Result<()> {
        let (tm, name) = (self.tm, self.src.name());
        let from = Dir::open(&self.src.path(name)?).context("opening the source")?;
        let before = Seen::below(&from)?;
        before.unused(self.src, Users::None)?;
        let request = request_digest(&[&tm.request, &before.manifest()]);
        let made = settle::made_by(&self.dst.domain, name)?;
        if made.is_none_or(|c| c.request != request) {
            let mut work = Work::begin(&self.dst.domain, tm.job, std::slice::from_ref(name))?;
            let dir = work.dir()?;
            self.fill(&from, &Dir::open(&dir.path)?)?;
            if !bug("skip-flush") {
                work.flush(&dir)?;
            }
            before.unchanged(self.src, Users::None)?;
            let steps = vec![work.step_to(&dir, name)?];
            tm.ready()?;
            work.commit(&request, "", steps)?;
        }
        before
            .unchanged(self.src, Users::None)
            .context("the VM is at its destination and was left at its source")?;
        let mut work = Work::begin(&self.src.domain, tm.job, std::slice::from_ref(name))?;
        let steps = work.step_bury(name, true)?.into_iter().collect();
        tm.commit(self.src, work, steps)
    }

    fn fill(&self, from: &Dir, to: &Dir) -> Result<()> {
        for name in from.names()? {
            let Some(e) = from.entry(&name)? else { continue };
            match &e.kind {
                Kind::Dir => {
                    to.mkdir(&name, e.mode, true)?;
                    self.fill(&from.sub(Path::new(&name))?, &to.sub(Path::new(&name))?)?;
                }
                Kind::Link(text) => to.symlink(
                    &tree::moved(Path::new(text), &self.src.spot.path(), &self.dst.spot.path()),
                    &name,
                )?,
                // The way to a file by its path, which is another one now.
                Kind::File if Path::new(&name).extension().is_some_and(|x| x == "current") => {
                    self.marker(from, to, &e)?;
                }
                Kind::File => self.file(from, to, &e)?,
                // A socket or pipe of a process that is gone.
                Kind::Other => {
                    let text = format!("{} is not a file and was left behind", name.display());
                    self.tm.job.tell(What::Warning { text });
                }
            }
        }
        Ok(())
    }

    fn marker(&self, from: &Dir, to: &Dir, e: &Entry) -> Result<()> {
        let old = std::fs::read_to_string(from.path().join(&e.name))
            .with_context(|| format!("reading {}", e.name.display()))?;
        let mut new = tree::moved(Path::new(old.trim()), &self.src.spot.path(), &self.dst.spot.path());
        new.push("\n");
        let mut file = to.create(&e.name, e.mode, true)?;
        let path = to.path().join(&e.name);
        step(Effect::Write, &[&path], || file.write_all(new.as_encoded_bytes()))?;
        Ok(fs::sync_file(&file, &path)?)
    }

    /// A second name costs nothing and cannot differ; a copy is compared.
    fn file(&self, from: &Dir, to: &Dir, e: &Entry) -> Result<()> {
        use std::io::ErrorKind as K;
        let (name, path): (&OsStr, _) = (&e.name, to.path().join(&e.name));
        if only_looks() {
            let source = from.open_file(Path::new(name), false)?;
            let one = source.metadata()?.dev() == self.dst.spot.dir.metadata()?.dev();
            let what = Planned::file(&source, if one { "link" } else { "copy" })?;
            self.tm.job.watch().progress.plan(what);
            return Ok(());
        }
        match from.link(name, to, name) {
            Ok(()) => return Ok(()),
            Err(e)
                if matches!(
                    e.kind(),
                    K::CrossesDevices | K::PermissionDenied | K::TooManyLinks | K::Unsupported
                ) => {}
            Err(e) => return Err(e).with_context(|| format!("moving {}", name.display())),
        }
        let moving = || format!("copying {}", name.display());
        let source = from.open_file(Path::new(name), false).with_context(moving)?;
        let copy = to.create(name, e.mode, true).with_context(moving)?;
        let watch = self.tm.job.watch();
        let done = data::copy(&source, &copy, Sparse::Keep, &watch).with_context(moving)?;
        self.tm.job.method(done.method.as_str());
        fs::sync_file(&copy, &path).with_context(moving)?;
        if done.method != Method::Reflink
            && data::digest_of(&source, Algo::Sha256, &watch)?
                != data::digest_of(&copy, Algo::Sha256, &watch)?
        {
            let text = format!("the copy of {} is not what was copied; nothing was moved", name.display());
            return Err(refuse(Class::Integrity, text));
        }
        Ok(())
    }
}
