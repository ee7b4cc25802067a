//! A volume group as a domain: slab = logical volume, tag = its public name. Every change of the
//! group's metadata is one LVM commit, made under the domain lock by whoever holds it: calls that are
//! given no lock take it. `docs/format.md`, section 9.

mod append;
mod group;
#[cfg(test)]
mod hosts_tests;
mod lend;
#[cfg(test)]
mod lend_tests;
mod map;
mod meta;
#[cfg(test)]
mod plan_tests;
mod retire;
#[cfg(test)]
mod retire_tests;
#[cfg(test)]
mod sudoers_tests;
#[cfg(test)]
pub(crate) mod tests;
mod thin;
mod verbs;
mod view;
mod wipe;

pub use map::{Alone, Host, Peers};

use super::{
    Access, Attachment, Bytes, Capabilities, Engine, EngineError, Finished, Grave, Handover, Identity, Kind,
    Name, Object, Place, PoolUse, Record, Result, Spec, Usage,
};
use crate::config::WipeSettings;
use crate::lock::{self, DomainLock, LockBackend, LockError};
use crate::sys::effect::only_looks;
use crate::sys::{Cancel, Tools};
use group::{Change, Group, How};
use map::{DeviceMapper, Mapper};
use meta::Meta;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
pub use view::LEASES;
use view::{META, View, Volume};

/// Where the records' volume is born, and that of the leases.
const FIRST: &str = "sdm-init";
const FIRST_LEASES: &str = "sdm-init-leases";
/// The lockspace, some tables, and 251 places for leases: a job holds two or three.
const LEASES_SIZE: Bytes = Bytes(256 << 20);
/// Less room than this for the group's own metadata is none.
const METADATA_MIN: u64 = 32 << 10;

/// A volume group and who works on it.
#[derive(Debug)]
pub struct Options {
    pub group: String,
    /// Devices that LVM may look at, as paths below `/dev`. Empty: those of the host's own configuration.
    pub devices: Vec<PathBuf>,
    pub peers: Box<dyn Peers>,
    pub tools: Tools,
    /// The domain's: calls without a lock of their caller take it here.
    pub locks: Arc<dyn LockBackend>,
    /// How long they wait for it.
    pub wait: Duration,
    /// The longest one command may take.
    pub deadline: Duration,
    pub cancel: Cancel,
}

#[derive(Debug)]
pub struct LvmEngine {
    group: Group,
    peers: Box<dyn Peers>,
    locks: Arc<dyn LockBackend>,
    wait: Duration,
    cancel: Cancel,
    mapper: Box<dyn Mapper>,
    wipe: WipeSettings,
    meta: Mutex<Option<Arc<Meta>>>,
}

impl LvmEngine {
    /// Names a group; it is looked at by the first call.
    pub fn open(options: Options) -> Result<LvmEngine> {
        Self::with(options, Box::new(DeviceMapper))
    }

    fn with(o: Options, mapper: Box<dyn Mapper>) -> Result<LvmEngine> {
        let group = Group::new(&o.group, &o.devices, o.tools, o.deadline, o.cancel.clone(), mapper.flags())?;
        let (peers, locks, wait, cancel) = (o.peers, o.locks, o.wait, o.cancel);
        let wipe = WipeSettings::default();
        Ok(LvmEngine { group, peers, locks, wait, cancel, mapper, wipe, meta: Mutex::default() })
    }

    /// The same, with what becomes of the content of volumes that go.
    #[must_use]
    pub fn wiping(self, wipe: WipeSettings) -> LvmEngine {
        LvmEngine { wipe, ..self }
    }

    /// The same group under other locks.
    #[must_use]
    pub fn locked_by(self, locks: Arc<dyn LockBackend>, peers: Box<dyn Peers>) -> LvmEngine {
        LvmEngine { peers, locks, ..self }
    }

    pub fn group(&self) -> &str {
        &self.group.name
    }

    /// Marks the group as this domain, for people and for other programs.
    pub fn mark(&self, domain: uuid::Uuid) -> Result<()> {
        let tag = retire::domain_tag(domain);
        if self.group.view()?.tags.contains(&tag) {
            return Ok(());
        }
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        self.commit(&lock, &view, &[Change::Group { tag, domain: true }]).map(drop)
    }

    /// The device of the volume for leases. All hosts have it, as they have the records'.
    pub fn leases(&self) -> Result<PathBuf> {
        if let Some(path) = self.mapper.device(&self.group, LEASES) {
            return Ok(path);
        }
        if self.group.view()?.named(LEASES).is_none() {
            return Err(EngineError::Absent(self.group.path(LEASES)));
        }
        self.device(LEASES)
    }

    pub fn has_leases(&self) -> Result<bool> {
        Ok(self.group.view()?.named(LEASES).is_some())
    }

    /// Makes the volume for leases, in a group that nobody uses yet: it appears, by one rename, when all is in it that `fill` puts there.
    pub fn make_leases(&self, fill: &dyn Fn(&Path) -> std::result::Result<(), LockError>) -> Result<()> {
        let lock = self.lock()?;
        let mut view = self.settled(&lock)?;
        if view.named(FIRST_LEASES).is_none() {
            let size = Self::whole(&view, LEASES_SIZE);
            Self::room(&view, size, "the leases of a domain")?;
            view = self.commit(&lock, &view, &[self.birth(FIRST_LEASES, size)])?;
        }
        fill(&self.mapper.open(&self.group, FIRST_LEASES)?)?;
        self.mapper.close(&self.group, FIRST_LEASES)?;
        let (from, to) = (FIRST_LEASES.to_owned(), LEASES.to_owned());
        self.commit(&lock, &view, &[Change::Rename { from, to }]).map(drop)
    }

    fn birth(&self, name: &str, size: Bytes) -> Change {
        let activate = self.mapper.creates();
        Change::Create { name: name.to_owned(), how: How::Linear(size), tags: vec![], activate }
    }

    /// Takes away this host's devices of the group, except for the manager's own. One that is in use stays, and
    /// is an error: it may be of a membership that others know to be over.
    pub fn let_go(&self) -> Result<()> {
        let view = self.group.view()?;
        let here = || self.mapper.devices(&view.group);
        let ours =
            |uuid: &String| [META, LEASES].iter().any(|n| view.named(n).is_some_and(|v| v.uuid == *uuid));
        let open = here()?;
        let mut volumes: Vec<&Volume> = view.volumes.iter().filter(|v| open.contains(&v.uuid)).collect();
        // What lies in a pool goes first.
        volumes.sort_by_key(|v| v.is_pool);
        for v in volumes.into_iter().filter(|v| !ours(&v.uuid)) {
            self.mapper.close(&self.group, &v.name)?;
        }
        match here()?.iter().find(|uuid| !ours(uuid)) {
            None => Ok(()),
            Some(uuid) => {
                let by = "this host, from before; stop what uses it, or start the host anew".to_owned();
                Err(EngineError::InUse {
                    what: format!("a volume of group {} ({uuid})", self.group.name),
                    by,
                })
            }
        }
    }

    /// The device of a volume, made if need be. A plan has those that are there.
    fn device(&self, volume: &str) -> Result<PathBuf> {
        if only_looks() {
            let none = || EngineError::Inactive(self.group.path(volume));
            return self.mapper.device(&self.group, volume).ok_or_else(none);
        }
        self.mapper.open(&self.group, volume)
    }

    fn lock(&self) -> Result<DomainLock> {
        Ok(lock::domain_lock(&*self.locks, self.wait, &self.cancel)?)
    }

    /// The records, which the group of a domain has.
    fn meta(&self) -> Result<Arc<Meta>> {
        let mut meta = self.meta.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(m) = &*meta {
            return Ok(Arc::clone(m));
        }
        if self.group.view()?.named(META).is_none() {
            return Err(EngineError::Absent(self.group.path(META)));
        }
        let m = Arc::new(Meta::open(&self.device(META)?)?);
        *meta = Some(Arc::clone(&m));
        Ok(m)
    }

    /// The records, for changing them: entries of several jobs share a block.
    fn records(&self, lock: &DomainLock) -> Result<Arc<Meta>> {
        lock.still_held()?;
        self.meta()
    }

    /// The group as it is when everything decided is done. Holding the lock allows to do it.
    fn tidied(&self, lock: &DomainLock) -> Result<View> {
        lock.still_held()?;
        let mut view = self.group.view()?;
        self.wake(lock, &view)?;
        while let Some((new, name, grave)) = view.unfinished() {
            let mut changes = Vec::new();
            if let Some(old) = view.named(name.as_str()) {
                changes.extend(self.burial(old, &grave)?);
            }
            changes.push(Change::Rename { from: new.name.clone(), to: name.as_str().to_owned() });
            view = self.commit(lock, &view, &changes)?;
        }
        Ok(view)
    }

    /// LVM writes past the kernel's caches, but leaves its metadata in the disk's. A flush of the records' volume is
    /// one of the disk that this lies on, and that disk's copy of the metadata is as good as any other's.
    fn flushed(&self) -> Result<()> {
        match self.meta() {
            // There are none yet, or no more: nobody was answered, nor is anything decided by what follows.
            Err(EngineError::Absent(_)) => Ok(()),
            m => m?.flush(),
        }
    }

    /// Lets devices go on that a command left standing still when it was killed. Whoever has the lock knows that
    /// no command is at work on them.
    fn wake(&self, lock: &DomainLock, view: &View) -> Result<()> {
        let asleep = self.mapper.asleep(&view.group)?;
        for v in view.volumes.iter().filter(|v| asleep.contains(&v.uuid)) {
            lock.still_held()?;
            let wake = || self.group.change(lock, &Change::Wake { volume: v.name.clone() });
            // The first one fails, and drops it, where a table is loaded that was never to be.
            wake().or_else(|_| wake())?;
        }
        Ok(())
    }

    /// Changes of the group's metadata, one after the other, and what the group is then.
    fn commit(&self, lock: &DomainLock, before: &View, changes: &[Change]) -> Result<View> {
        let (mut least, mut most) = (before.seqno, before.seqno);
        for change in changes {
            lock.still_held()?;
            if let Err(e) = self.group.change(lock, change) {
                let _ = self.wake(lock, before);
                return Err(e);
            }
            self.flushed()?;
            least += change.commits().start();
            most += change.commits().end();
        }
        // Lost while a command ran: another host may have written what that command wrote over.
        lock.still_held()?;
        let after = self.group.view()?;
        // A writer that read the same state as we did has undone our commit, or we its.
        if (least..=most).contains(&after.seqno) && after.group == before.group {
            lock.changed(before.seqno, after.seqno);
            Ok(after)
        } else {
            Err(EngineError::Foreign { what: format!("volume group {}", self.group.name) })
        }
    }

    /// Gives a volume the name of a tombstone. When it was buried counts only for kept ones.
    fn burial(&self, v: &Volume, grave: &Grave) -> Result<Vec<Change>> {
        let to = view::volume_name(&Place::Dead(*grave))?;
        let mut changes = Vec::new();
        let mut add: Vec<String> = wipe::tag(self.wipe, &v.tags).into_iter().collect();
        if grave.keep {
            add.push(view::buried_tag(jiff::Timestamp::now().as_second()));
        }
        if !add.is_empty() {
            let del = if grave.keep { v.buried_tags() } else { Vec::new() };
            changes.push(Change::Tag { volume: v.name.clone(), add, del });
        }
        changes.push(Change::Rename { from: v.name.clone(), to });
        Ok(changes)
    }

    /// Compares, renames to a free name, verifies; puts back what was not meant.
    fn rename(&self, lock: &DomainLock, from: &Place, id: Identity, to: &Place) -> Result<()> {
        let target = view::volume_name(to)?;
        let view = self.settled(lock)?;
        let v = view.expect(from, id)?;
        if view.at(to).is_some() {
            return Err(EngineError::Exists(to.to_string()));
        }
        let changes = match to {
            Place::Dead(grave) => self.burial(v, grave)?,
            _ => vec![Change::Rename { from: v.name.clone(), to: target.clone() }],
        };
        let (after, done) = match self.commit(lock, &view, &changes) {
            Ok(after) => (after, Ok(())),
            Err(e) => (self.group.view()?, Err(e)),
        };
        match after.expect(to, id) {
            Err(EngineError::Changed(_)) => {
                self.group.change(lock, &Change::Rename { from: target, to: v.name.clone() })?;
                self.flushed()?;
                Err(EngineError::Changed(from.to_string()))
            }
            r => done.and(r.map(drop)),
        }
    }

    fn nobody_else(&self, view: &View, v: &Volume, access: Access) -> Result<()> {
        map::nobody_else(view, v, &self.peers.us()?, &*self.peers, access)
    }

    /// The least size in whole extents that holds `size`.
    fn whole(view: &View, size: Bytes) -> Bytes {
        Bytes(size.0.max(1).next_multiple_of(view.extent.max(1)))
    }

    /// Room for `size` bytes of volumes and for the metadata that describes them.
    fn room(view: &View, size: Bytes, what: impl std::fmt::Display) -> Result<()> {
        if size > view.free {
            return Err(EngineError::NoSpace(what.to_string()));
        }
        if view.metadata_free.0 < METADATA_MIN {
            return Err(EngineError::NoSpace(format!("{what} in the metadata area of the volume group")));
        }
        Ok(())
    }

    /// Removes a volume, with its device on this host; one that a process has open is refused.
    fn remove(&self, lock: &DomainLock, view: &View, v: &Volume) -> Result<View> {
        self.nobody_else(view, v, Access::Write)?;
        if v.is_pool && view.volumes.iter().any(|w| w.pool.as_deref() == Some(&v.name)) {
            let by = "volumes in it".to_owned();
            return Err(EngineError::InUse { what: format!("pool {}", v.name), by });
        }
        let thin = v.pool.is_some() || v.is_pool;
        self.commit(lock, view, &[Change::Remove { volume: v.name.clone(), thin }])
    }
}
