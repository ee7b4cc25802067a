//! Volume groups as domains. One is named as its devices are, `/dev/<group>`; what it takes to open it on
//! this host are settings.

use super::{Domain, Result, SdmError};
use crate::config::{Settings, WipeSettings};
use crate::engine::lvm::{Alone, Host, LEASES, LvmEngine, Options, Peers};
use crate::engine::{self, Access, Engine, EngineError, Place};
use crate::lock::{DomainLock, LockBackend, OfdLocks, SanlockLocks, sanlock};
use crate::sys::fs::Dir;
use crate::sys::{Cancel, Tools, effect, user};
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The group that a place names; `None`: a directory.
pub fn group_of(place: &Path) -> Option<&str> {
    let name = place.strip_prefix("/dev").ok()?.to_str()?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// How this host opens volume groups.
#[derive(Clone, Debug)]
pub struct Groups {
    tools: Tools,
    devices: Vec<PathBuf>,
    /// Below it are the leases of groups that only this host uses. They need not outlive a boot.
    run: PathBuf,
    /// Whose owner we are.
    datastores: PathBuf,
    wait: Duration,
    deadline: Duration,
    cancel: Cancel,
    wipe: WipeSettings,
}

impl Groups {
    pub fn new(s: &Settings, tools: &Tools, cancel: &Cancel) -> Groups {
        Groups {
            tools: tools.clone(),
            devices: s.lvm.devices.clone(),
            // Never a private place instead: accounts with different leases would not exclude each other.
            run: s.paths.run.clone(),
            datastores: s.paths.datastores.clone(),
            wait: s.lock.wait,
            deadline: s.tool_deadline,
            cancel: cancel.clone(),
            wipe: s.wipe,
        }
    }

    /// The domain at a place, a directory or a group, for changing it.
    pub fn open_at(&self, place: &Path) -> Result<Domain> {
        group_of(place).map_or_else(|| Domain::open_dir(place), |g| self.open(g))
    }

    /// The same without asking whether it may be changed.
    pub fn inspect_at(&self, place: &Path) -> Result<Domain> {
        group_of(place).map_or_else(|| Domain::inspect(place), |g| self.inspect(g))
    }

    /// The domain in a group, for changing it.
    pub fn open(&self, group: &str) -> Result<Domain> {
        self.own().map_err(|source| SdmError::Io { what: place(group), source })?;
        let d = self.inspect(group)?;
        d.usable()?;
        Ok(d)
    }

    fn inspect(&self, group: &str) -> Result<Domain> {
        let (engine, locks) = self.parts(group)?;
        Domain::inspect_group(engine, locks)
    }

    /// Makes a group a domain with locks of this kind. Nobody else may be at it: there are no locks yet.
    pub fn init(&self, group: &str, lock: &str) -> Result<Domain> {
        let (engine, _) = self.alone(group)?;
        if engine.retiring()?.is_some() {
            return Err(SdmError::Retiring(place(group)));
        }
        let header = Domain::prepare_group(&engine, lock)?;
        if header.lock != lock {
            let (has, wanted) = (header.lock, lock.to_owned());
            return Err(SdmError::OtherLock { place: place(group), has, wanted });
        }
        let shared = lock == sanlock::NAME;
        if shared && engine.has_leases()? {
            // Others are at it: what is done from now on is done under them.
            return self.open(group);
        }
        engine.mark(header.id)?;
        if shared {
            // Last: they are what makes the domain one that others can use.
            engine.make_leases(&|at| SanlockLocks::on_device(at.to_owned(), header.id).format_device())?;
        }
        self.open(group)
    }

    /// Makes a group a domain no more, by one commit under its lock. `clear` has to follow.
    pub fn retire(&self, group: &str, lock: &DomainLock) -> Result<()> {
        Ok(self.alone(group)?.0.retire(lock)?)
    }

    /// Whether that was decided and not yet finished; with the leases of the domain that it was, if they are still there.
    pub fn retiring(&self, group: &str) -> Result<Option<Option<SanlockLocks>>> {
        let (engine, _) = self.alone(group)?;
        let Some(id) = engine.retiring()? else { return Ok(None) };
        Ok(Some(match engine.leases() {
            Err(EngineError::Absent(_)) => None,
            device => Some(SanlockLocks::on_device(device?, id)),
        }))
    }

    /// Takes away what is left of the domain, its images not. Nobody else may be at it, as with `init`.
    pub fn clear(&self, group: &str) -> Result<()> {
        Ok(self.alone(group)?.0.clear()?)
    }

    /// Now that this host is a member no more: no device of the manager's own volumes stays, either.
    pub fn forget(&self, group: &str) -> Result<()> {
        Ok(self.alone(group)?.0.forget()?)
    }

    /// From how many percent on another program of this host makes the group's pools larger, past our locks.
    pub fn grown_at(&self, group: &str) -> Result<Option<u64>> {
        Ok(self.alone(group)?.0.grown_at()?)
    }

    /// Before this host becomes a member, and before it is none any more: no device of the group stays, or others
    /// could write there, too. Its tags stay.
    pub fn let_go(&self, group: &str) -> Result<()> {
        Ok(self.alone(group)?.0.let_go()?)
    }

    /// Now that this host is a member again: the devices of the volumes that it had. Whatever cannot be had does
    /// not stop the others.
    pub fn regain(&self, group: &str) -> Result<Vec<SdmError>> {
        let (engine, _) = self.parts(group)?;
        let all = regain(&engine, (group, &self.datastores))?.into_iter();
        Ok(all.filter_map(|(_, device)| Some(device.err()?.into())).collect())
    }

    fn own(&self) -> std::io::Result<()> {
        user::become_owner(&self.datastores)
    }

    /// As the header says how it is locked.
    fn parts(&self, group: &str) -> Result<(LvmEngine, Box<dyn LockBackend>)> {
        let (engine, locks) = self.alone(group)?;
        let header = super::domain::read_header(&engine, &place(group))?;
        let Some(header) = header.filter(|h| h.lock == sanlock::NAME) else { return Ok((engine, locks)) };
        let device = match engine.leases() {
            // Whoever takes a lease is told what is missing.
            Err(EngineError::Absent(_)) => Path::new(&place(group)).join(LEASES),
            device => device?,
        };
        let locks = Arc::new(SanlockLocks::on_device(device, header.id));
        let engine = engine
            .locked_by(Arc::clone(&locks) as Arc<dyn LockBackend>, Box::new(Members(Arc::clone(&locks))));
        Ok((engine, Box::new(locks)))
    }

    /// The group under locks that only this host sees.
    fn alone(&self, group: &str) -> Result<(LvmEngine, Box<dyn LockBackend>)> {
        let io = |source| SdmError::Io { what: self.run.display().to_string(), source };
        let locks = Arc::new(OfdLocks::new(self.leases(group).map_err(io)?));
        let engine = LvmEngine::open(Options {
            group: group.to_owned(),
            devices: self.devices.clone(),
            // With locks of one host there is no other.
            peers: Box::new(Alone(Host { id: 1, generation: 1 })),
            tools: self.tools.clone(),
            locks: Arc::clone(&locks) as Arc<dyn LockBackend>,
            wait: self.wait,
            deadline: self.deadline,
            cancel: self.cancel.clone(),
        })?;
        let engine = engine.wiping(self.wipe);
        Ok((engine, Box::new(locks)))
    }

    /// The directory of a group's leases on this host, with its file.
    fn leases(&self, group: &str) -> std::io::Result<Dir> {
        let mut path = self.run.join("group").join(group);
        if let Some(own) = effect::scratch().filter(|_| !path.join("leases").exists()) {
            // For a plan: nobody has leases there.
            path = own.join("group").join(group);
        }
        if !path.join("leases").exists() {
            self.own()?;
            DirBuilder::new().recursive(true).mode(0o750).create(&path)?;
            // What is there stays: a lease is of the file it was taken on.
            File::options().create(true).append(true).open(path.join("leases"))?;
        }
        Dir::open(&path)
    }
}

/// Whether a disk below this directory of datastores, `except` one, leads to a device.
pub fn is_linked(datastores: &Path, device: &Path, except: &Path) -> Result<bool> {
    let below = |dir: &Path| -> Result<Vec<PathBuf>> {
        match std::fs::read_dir(dir) {
            Ok(all) => Ok(all.filter_map(|e| Some(e.ok()?.path())).collect()),
            // A file, or gone meanwhile.
            Err(e) if matches!(e.kind(), ErrorKind::NotADirectory | ErrorKind::NotFound) => Ok(Vec::new()),
            Err(source) => Err(SdmError::Io { what: dir.display().to_string(), source }),
        }
    };
    for store in below(datastores)? {
        for vm in below(&store)? {
            let leads =
                |disk: &PathBuf| disk != except && std::fs::read_link(disk).is_ok_and(|to| to == device);
            if below(&vm)?.iter().any(leads) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The devices of what this host has by its tags, made if need be. What went to another host with its machine it gives
/// up, unless that is open here: then the machine is still on its way. So it does with what machines only read and no
/// disk here leads to.
pub fn regain(
    engine: &dyn Engine,
    (group, datastores): (&str, &Path),
) -> Result<Vec<(Place, engine::Result<PathBuf>)>> {
    let mut out = Vec::new();
    for o in engine.moved()? {
        match engine.detach(&o.place, Access::Write) {
            Ok(()) | Err(EngineError::InUse { .. }) => {}
            Err(e) => out.push((o.place, Err(e))),
        }
    }
    for (o, access) in engine.attached()? {
        let at = Path::new(&place(group)).join(o.place.to_string());
        if access == Access::Share && !is_linked(datastores, &at, Path::new(""))? {
            if let Err(e) = engine.detach(&o.place, access) {
                out.push((o.place, Err(e)));
            }
            continue;
        }
        let device = engine.attach(&o.place, access).map(|a| a.path);
        out.push((o.place, device));
    }
    Ok(out)
}

/// The hosts of a group, as its locks know them.
#[derive(Debug)]
struct Members(Arc<SanlockLocks>);

impl Peers for Members {
    fn us(&self) -> engine::Result<Host> {
        let (id, generation) = self.0.us()?;
        Ok(Host { id, generation })
    }

    fn is_dead(&self, host: &Host) -> bool {
        self.0.is_over(host.id, host.generation).unwrap_or(false)
    }
}

/// What names a group as a place.
pub fn place(group: &str) -> String {
    format!("/dev/{group}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_named_as_its_devices_are() {
        for (place, is) in [
            ("/dev/vg-one-100", Some("vg-one-100")),
            ("/dev", None),
            ("/dev/vg-one-100/img-one-1", None),
            ("/var/lib/one/datastores/100", None),
            ("vg-one-100", None),
        ] {
            assert_eq!(group_of(Path::new(place)), is, "{place}");
        }
    }
}
