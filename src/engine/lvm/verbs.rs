//! The engine's calls on a volume group.

use super::{
    Access, Attachment, Bytes, Capabilities, Change, Engine, EngineError, FIRST, Finished, Grave, Handover,
    How, Identity, LvmEngine, META, Name, Object, Place, PoolUse, Record, Result, Spec, Usage, Volume, map,
    meta, thin, view, wipe,
};
use crate::lock::{DomainLock, JobId, OwnerLease, SlabLease};
use crate::sys::effect::only_looks;
use crate::sys::fs;
use std::fs::File;

fn cannot<T>(what: &'static str) -> Result<T> {
    Err(EngineError::Unsupported { engine: "lvm", what })
}

impl Engine for LvmEngine {
    fn name(&self) -> &'static str {
        "lvm"
    }

    fn lock_backend(&self) -> &'static str {
        "sanlock"
    }

    fn capabilities(&self, _owner: &OwnerLease) -> Result<Capabilities> {
        Ok(Capabilities { noreplace: true, direct: true, ..Capabilities::default() })
    }

    fn usage(&self) -> Result<Usage> {
        let v = self.group.view()?;
        Ok(Usage { total: v.size, free: v.free, used: Bytes(v.size.0.saturating_sub(v.free.0)) })
    }

    fn pools(&self) -> Result<Vec<PoolUse>> {
        self.mapper.pools(&self.group)
    }

    fn reads_zero(&self) -> bool {
        false
    }

    fn extent(&self) -> Result<Option<Bytes>> {
        Ok(Some(Bytes(self.group.view()?.extent)))
    }

    fn takes(&self, spec: &Spec) -> Result<Option<Bytes>> {
        let view = self.group.view()?;
        Ok(Some(match spec {
            Spec::File(size) => Self::whole(&view, *size),
            Spec::Pool(size) => thin::of_pool(&view, *size),
            _ => Bytes(0),
        }))
    }

    fn rounded(&self, size: Bytes) -> Result<Bytes> {
        Ok(Self::whole(&self.group.view()?, size))
    }

    fn header(&self) -> Result<Option<Vec<u8>>> {
        match self.meta() {
            Err(EngineError::Absent(_)) => Ok(None),
            m => m?.header(),
        }
    }

    /// The volume of the records appears empty, by one rename.
    fn prepare(&self) -> Result<u64> {
        let lock = self.lock()?;
        let mut view = self.tidied(&lock)?;
        if view.named(META).is_none() {
            if view.named(FIRST).is_none() {
                let size = Self::whole(&view, Bytes(meta::SIZE));
                Self::room(&view, size, "the records of a domain")?;
                view = self.commit(&lock, &view, &[self.birth(FIRST, size)])?;
            }
            meta::Meta::open(&self.mapper.open(&self.group, FIRST)?)?.clear()?;
            self.mapper.close(&self.group, FIRST)?;
            let (from, to) = (FIRST.to_owned(), META.to_owned());
            view = self.commit(&lock, &view, &[Change::Rename { from, to }])?;
        }
        Ok(view.area())
    }

    fn init(&self, header: &[u8]) -> Result<()> {
        let lock = self.lock()?;
        let meta = self.records(&lock)?;
        if meta.header()?.is_none() { meta.put_header(header) } else { Ok(()) }
    }

    fn put_header(&self, header: &[u8]) -> Result<()> {
        self.meta()?.put_header(header)
    }

    fn area_id(&self) -> Result<u64> {
        Ok(self.group.view()?.area())
    }

    fn look(&self, at: &Place) -> Result<Option<Object>> {
        match view::volume_name(at) {
            // A name that no volume can have is nobody's.
            Err(EngineError::Absent(_) | EngineError::BadName { .. }) => return Ok(None),
            r => r.map(drop)?,
        }
        let view = self.group.view()?;
        Ok(view.at(at).and_then(|v| view.object(v)))
    }

    fn list(&self, inside: Option<&Name>) -> Result<Vec<Object>> {
        if inside.is_some() {
            return Ok(Vec::new());
        }
        Ok(self.group.view()?.objects(|p| matches!(p, Place::Public(_))))
    }

    fn jobs(&self) -> Result<Vec<JobId>> {
        let mut jobs = self.meta()?.jobs()?;
        jobs.extend(self.group.view()?.jobs());
        jobs.sort_unstable();
        jobs.dedup();
        Ok(jobs)
    }

    fn staged(&self, job: JobId) -> Result<Vec<Object>> {
        Ok(self.group.view()?.objects(|p| matches!(p, Place::Staged(j, _) if *j == job)))
    }

    fn dead(&self) -> Result<Vec<Object>> {
        Ok(self.group.view()?.objects(|p| matches!(p, Place::Dead(_))))
    }

    fn attach(&self, at: &Place, access: Access) -> Result<Attachment> {
        let absent = || EngineError::Absent(at.to_string());
        let us = self.peers.us()?;
        let (tag, ours) = (map::active_tag(&us, access), |v: &Volume| map::has_now(v, &us, access));
        let view = self.group.view()?;
        let v = view.at(at).ok_or_else(absent)?;
        if let Some(path) = self.mapper.device(&self.group, &v.name).filter(|_| ours(v)) {
            return Ok(Attachment { path });
        }
        if only_looks() {
            return Ok(Attachment { path: self.device(&v.name)? });
        }
        // A device is made under the lock, or it could be made between its tag's end and a look at it.
        let lock = self.lock()?;
        let mut view = self.settled(&lock)?;
        let v = view.at(at).ok_or_else(absent)?.clone();
        self.nobody_else(&view, &v, access)?;
        if !ours(&v) {
            let (add, del) = (vec![tag.clone()], map::ended(&v, &us, &*self.peers));
            view = self.commit(&lock, &view, &[Change::Tag { volume: v.name.clone(), add, del }])?;
        }
        let v = view.at(at).ok_or_else(absent)?;
        Ok(Attachment { path: self.mapper.open(&self.group, &v.name)? })
    }

    fn detach(&self, at: &Place, access: Access) -> Result<()> {
        if only_looks() {
            return Ok(());
        }
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        let Some(v) = view.at(at) else { return Ok(()) };
        let us = self.peers.us()?;
        let for_machine = [Access::Share, Access::Write].iter().any(|a| map::has(v, &us, *a));
        if access == Access::Read && for_machine {
            return Ok(());
        }
        match self.mapper.close(&self.group, &v.name) {
            // Somebody else here reads it, too, and will let go of it.
            Err(EngineError::InUse { .. }) if access != Access::Write => return Ok(()),
            r => r?,
        }
        let (add, del) = (Vec::new(), map::ended(v, &us, &*self.peers));
        if del.is_empty() {
            return Ok(());
        }
        self.commit(&lock, &view, &[Change::Tag { volume: v.name.clone(), add, del }]).map(drop)
    }

    fn used_elsewhere<'a>(&self, any: &'a [Name]) -> Result<Option<(&'a Name, String)>> {
        let (view, us) = (self.group.view()?, self.peers.us()?);
        let user = |n: &'a Name| {
            let v = view.at(&Place::Public(n.clone()))?;
            map::user(v, &us, &*self.peers).map(|h| (n, format!("host {}", h.id)))
        };
        Ok(any.iter().find_map(user))
    }

    fn attached(&self) -> Result<Vec<(Object, Access)>> {
        let us = self.peers.us()?;
        let of = |o: Vec<Object>, access| o.into_iter().map(move |o| (o, access));
        let shared = self.public(|v| map::has(v, &us, Access::Share) && !map::has(v, &us, Access::Write))?;
        Ok(of(self.ours(false)?, Access::Write).chain(of(shared, Access::Share)).collect())
    }

    fn moved(&self) -> Result<Vec<Object>> {
        self.ours(true)
    }

    fn hand_over(&self, at: &Place, step: Handover) -> Result<()> {
        self.hand(at, step)
    }

    fn is_pooled(&self, at: &Place) -> Result<bool> {
        let view = self.group.view()?;
        Ok(view.at(at).ok_or_else(|| EngineError::Absent(at.to_string()))?.pool.is_some())
    }

    fn begin(&self, owner: &OwnerLease) -> Result<()> {
        let job = owner.job();
        let lock = self.lock()?;
        if self.settled(&lock)?.jobs().any(|j| j == job) {
            return Err(EngineError::Exists(format!("the staging area of {job}")));
        }
        self.records(&lock)?.begin(job)
    }

    fn create(&self, owner: &OwnerLease, n: u32, spec: &Spec) -> Result<Object> {
        let at = Place::Staged(owner.job(), n);
        let name = view::volume_name(&at)?;
        let activate = self.mapper.creates();
        if !activate && matches!(spec, Spec::Pool(_) | Spec::Thin { .. } | Spec::Clone(_)) {
            return cannot("make pools without the kernel's device mapper");
        }
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        if !self.meta()?.jobs()?.contains(&owner.job()) {
            return Err(EngineError::Absent(at.to_string()));
        }
        if view.at(&at).is_some() {
            return Err(EngineError::Exists(at.to_string()));
        }
        // A pool is where thin volumes are made: on the host that has it active.
        let volume = |place: &Place| {
            let v = view.at(place).ok_or_else(|| EngineError::Absent(place.to_string()))?;
            self.nobody_else(&view, v, Access::Write).map(|()| v)
        };
        let (how, needs) = match spec {
            Spec::File(s) => (How::Linear(Self::whole(&view, *s)), Self::whole(&view, *s)),
            Spec::Pool(s) => (How::Pool(Self::whole(&view, *s)), Self::whole(&view, *s)),
            Spec::Thin { pool, size } => {
                (How::Thin { pool: volume(pool)?.name.clone(), size: Self::whole(&view, *size) }, Bytes(0))
            }
            Spec::Clone(of) => {
                let v = volume(&Place::Public(of.clone()))?;
                if v.pool.is_none() {
                    return cannot("clone a volume outside a pool");
                }
                (How::Snapshot(v.name.clone()), Bytes(0))
            }
            Spec::Dir | Spec::Link(_) => return cannot("have directories and links"),
        };
        Self::room(&view, needs, &at)?;
        let us = self.peers.us()?;
        let mut tags = vec![map::host_tag(&us), map::active_tag(&us, Access::Write)];
        tags.extend(wipe::tag(self.wipe, &[]));
        let after = self.commit(&lock, &view, &[Change::Create { name, how, tags, activate }])?;
        after.at(&at).and_then(|v| after.object(v)).ok_or_else(|| EngineError::Absent(at.to_string()))
    }

    fn adopt(&self, _owner: &OwnerLease, _n: u32, _name: &Name) -> Result<Object> {
        cannot("give a volume a second name")
    }

    fn flush(&self, owner: &OwnerLease, n: u32) -> Result<()> {
        let at = Place::Staged(owner.job(), n);
        let path = self.attach(&at, Access::Write)?.path;
        let io = |source| EngineError::Io { what: format!("flushing {at}"), source };
        let file = File::options().write(true).open(&path).map_err(io)?;
        fs::sync_file(&file, &path).map_err(io)
    }

    fn resize(&self, _lease: &SlabLease, at: &Place, to: Bytes) -> Result<()> {
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        let v = view.at(at).ok_or_else(|| EngineError::Absent(at.to_string()))?;
        self.nobody_else(&view, v, Access::Write)?;
        let to = Self::whole(&view, to);
        if to == v.size {
            return Ok(());
        }
        if v.pool.is_none() {
            Self::room(&view, Bytes(to.0.saturating_sub(v.size.0)), at)?;
        }
        let change = Change::Resize { volume: v.name.clone(), from: v.size, to, pool: v.is_pool };
        let after = self.commit(&lock, &view, &[change])?;
        match after.at(at) {
            Some(v) if v.size == to => Ok(()),
            _ => Err(EngineError::Changed(at.to_string())),
        }
    }

    fn append(&self, _lease: &SlabLease, owner: &OwnerLease, n: u32, to: &Place) -> Result<()> {
        self.append_staged(owner, n, to)
    }

    fn end(&self, owner: &OwnerLease) -> Result<()> {
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        let ours = |p: &Place| matches!(p, Place::Staged(j, _) if *j == owner.job());
        // The last made goes first: it may lie in a pool made before it.
        let staged: Vec<Place> = view.objects(ours).into_iter().rev().map(|o| o.place).collect();
        let (lock, mut view) = self.wiped(lock, view, &staged)?;
        for at in &staged {
            if let Some(v) = view.at(at).cloned() {
                view = self.remove(&lock, &view, &v)?;
            }
        }
        self.records(&lock)?.end(owner.job())
    }

    fn put_record(&self, owner: &OwnerLease, record: Record, bytes: &[u8]) -> Result<()> {
        let lock = self.lock()?;
        self.records(&lock)?.put_record(owner.job(), record, bytes)
    }

    fn fence(&self, lock: &DomainLock, job: JobId) -> Result<()> {
        self.records(lock)?.fence(job)
    }

    fn record(&self, job: JobId, record: Record) -> Result<Option<Vec<u8>>> {
        self.meta()?.record(job, record)
    }

    fn close(&self, lock: &DomainLock, owner: &OwnerLease) -> Result<()> {
        self.records(lock)?.close(owner.job(), jiff::Timestamp::now().as_second())
    }

    fn done(&self) -> Result<Vec<Finished>> {
        self.meta()?.done()
    }

    fn acknowledge(&self, lock: &DomainLock, job: JobId) -> Result<()> {
        self.records(lock)?.acknowledge(job)
    }

    fn forget(&self, lock: &DomainLock, job: JobId) -> Result<()> {
        self.records(lock)?.forget(job)
    }

    fn publish(&self, lock: &DomainLock, job: JobId, n: u32, id: Identity, to: &Name) -> Result<()> {
        self.rename(lock, &Place::Staged(job, n), id, &Place::Public(to.clone()))
    }

    /// Decided by one tag; the rest is tidying, which any holder of the lock would do.
    fn replace(
        &self,
        lock: &DomainLock,
        (job, n, id): (JobId, u32, Identity),
        to: &Name,
        old: Identity,
        grave: &Grave,
    ) -> Result<()> {
        let at = Place::Public(to.clone());
        view::volume_name(&at)?;
        let view = self.settled(lock)?;
        let staged = view.expect(&Place::Staged(job, n), id)?;
        // What it may be called after is decided by the tag alone.
        let mut changes = self.burial(view.expect(&at, old)?, grave)?;
        let (volume, add, del) = (staged.name.clone(), vec![view::to_tag(to, grave)], Vec::new());
        changes.insert(0, Change::Tag { volume, add, del });
        changes.push(Change::Rename { from: staged.name.clone(), to: to.as_str().to_owned() });
        let after = self.commit(lock, &view, &changes)?;
        after.expect(&at, id).and(after.expect(&Place::Dead(*grave), old)).map(drop)
    }

    fn bury(&self, lock: &DomainLock, at: &Place, id: Identity, grave: &Grave) -> Result<()> {
        self.rename(lock, at, id, &Place::Dead(*grave))
    }

    fn weight(&self, at: &Place) -> Result<Bytes> {
        Ok(self.look(at)?.map_or(Bytes(0), |o| o.allocated))
    }

    /// A rename needs no space of the group: there is nothing to give.
    fn give_reserve(&self, _lock: &DomainLock) -> Result<()> {
        Ok(())
    }

    fn tidy(&self, lock: &DomainLock) -> Result<()> {
        self.settled(lock).map(drop)
    }

    fn strays(&self) -> Result<Vec<String>> {
        Ok(self.group.view()?.strays())
    }

    /// A commit of LVM's is flushed when it is made.
    fn sync(&self, _places: &[Place]) -> Result<()> {
        Ok(())
    }

    fn purge(&self, _owner: &OwnerLease, grave: &Grave) -> Result<()> {
        let at = Place::Dead(*grave);
        let lock = self.lock()?;
        let view = self.settled(&lock)?;
        let (lock, view) = self.wiped(lock, view, std::slice::from_ref(&at))?;
        match view.at(&at) {
            Some(v) => self.remove(&lock, &view, v).map(drop),
            None => Ok(()),
        }
    }
}
