//! A domain in memory: slabs are anonymous files, names are a sorted map. It exists so that every
//! verb and every sequence of crashes can run thousands of times a second; it forgets on exit.

use super::{
    Access, Attachment, Bytes, Capabilities, Engine, EngineError, Finished, Grave, Handover, Identity, Kind,
    Name, Object, Part, Place, Record, Result, Spec, Usage,
};
use crate::lock::{DomainLock, JobId, OwnerLease, SlabLease};
use crate::sys::effect::{Effect, step};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Clone, Debug)]
struct Node {
    id: Identity,
    kind: Kind,
    slab: Option<Arc<File>>,
    /// The pool it lies in.
    pool: Option<Identity>,
    changed: i64,
}

#[derive(Clone, Debug, Default)]
struct State {
    header: Option<Vec<u8>>,
    /// By path, as the file engine lays them out: `x`, `x.snap/1`, `.sdm/new/<job>/0`, `.sdm/del/<grave>`.
    nodes: BTreeMap<String, Node>,
    areas: BTreeMap<JobId, BTreeMap<&'static str, Vec<u8>>>,
    /// Bytes, time, and whether acknowledged.
    done: BTreeMap<JobId, (Vec<u8>, i64, bool)>,
    last: u64,
}

/// Clones share the same storage, as two hosts share a disk.
#[derive(Clone, Debug, Default)]
pub struct MemEngine(Arc<Mutex<State>>);

fn key(at: &Place) -> String {
    match at {
        Place::Public(n) => n.as_str().to_owned(),
        Place::Staged(job, n) => format!(".sdm/new/{job}/{n}"),
        Place::Dead(grave) => format!(".sdm/del/{grave}"),
    }
}

fn record_key(record: Record) -> &'static str {
    match record {
        Record::Intent => "intent",
        Record::Undo => "undo",
        Record::Commit | Record::Done => "commit",
    }
}

fn cannot<T>(what: &'static str) -> Result<T> {
    Err(EngineError::Unsupported { engine: "mem", what })
}

/// A file that has no name.
fn slab(size: Bytes) -> std::io::Result<Arc<File>> {
    let f = File::from(rustix::fs::memfd_create("slab", rustix::fs::MemfdFlags::CLOEXEC)?);
    f.set_len(size.0)?;
    Ok(Arc::new(f))
}

fn copied(from: &File) -> std::io::Result<Arc<File>> {
    let mut bytes = vec![0; usize::try_from(from.metadata()?.len()).unwrap_or(0)];
    from.read_exact_at(&mut bytes, 0)?;
    let to = slab(Bytes(0))?;
    to.write_all_at(&bytes, 0)?;
    Ok(to)
}

fn io_error(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Io { what: what.to_string(), source }
}

impl MemEngine {
    /// The same storage, from here on another; what is written into a slab in place is still seen by both.
    #[cfg(test)]
    #[must_use]
    pub fn apart(&self) -> MemEngine {
        MemEngine(Arc::new(Mutex::new(self.state().clone())))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, effect: Effect, what: &str, op: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        step(effect, &[Path::new(what)], || op(&mut self.state()))
    }

    fn object(at: Place, node: &Node) -> Result<Object> {
        let (size, allocated) = match &node.slab {
            Some(f) => {
                let m = f.metadata().map_err(io_error(&at))?;
                (m.len(), m.blocks().saturating_mul(512))
            }
            None => (0, 0),
        };
        let kind = node.kind.clone();
        let (id, changed) = (node.id, node.changed);
        Ok(Object { place: at, kind, id, size: Bytes(size), allocated: Bytes(allocated), changed })
    }
}

impl State {
    fn find(&self, at: &Place, id: Identity) -> Result<()> {
        match self.nodes.get(&key(at)) {
            None => Err(EngineError::Absent(at.to_string())),
            Some(n) if n.id == id => Ok(()),
            Some(_) => Err(EngineError::Changed(at.to_string())),
        }
    }

    fn parent_exists(&self, path: &str) -> bool {
        match path.rsplit_once('/') {
            Some((dir, _)) if !dir.starts_with(".sdm") => self.nodes.contains_key(dir),
            _ => true,
        }
    }

    /// Everything at a path and below it.
    fn take(&mut self, path: &str) -> Vec<(String, Node)> {
        let below = format!("{path}/");
        let keys: Vec<String> =
            self.nodes.keys().filter(|k| *k == path || k.starts_with(&below)).cloned().collect();
        keys.into_iter()
            .filter_map(|k| self.nodes.remove(&k).map(|n| (k[path.len()..].to_owned(), n)))
            .collect()
    }

    fn put(&mut self, path: &str, taken: Vec<(String, Node)>) {
        for (rest, mut node) in taken {
            if rest.is_empty() {
                node.changed = now();
            }
            self.nodes.insert(format!("{path}{rest}"), node);
        }
    }

    fn rename(&mut self, from: &Place, id: Identity, to: &Place) -> Result<()> {
        self.find(from, id)?;
        let (a, b) = (key(from), key(to));
        if self.nodes.contains_key(&b) {
            return Err(EngineError::Exists(to.to_string()));
        }
        if !self.parent_exists(&b) {
            return Err(EngineError::Absent(to.to_string()));
        }
        let taken = self.take(&a);
        self.put(&b, taken);
        Ok(())
    }

    fn insert(&mut self, path: String, kind: Kind, slab: Option<Arc<File>>, pool: Option<Identity>) {
        self.last += 1;
        let id = Identity { ino: self.last, born: 0 };
        self.nodes.insert(path, Node { id, kind, slab, pool, changed: now() });
    }

    fn node(&self, at: &Place) -> Result<&Node> {
        self.nodes.get(&key(at)).ok_or_else(|| EngineError::Absent(at.to_string()))
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

impl Engine for MemEngine {
    fn name(&self) -> &'static str {
        "mem"
    }

    fn lock_backend(&self) -> &'static str {
        "mem"
    }

    fn capabilities(&self, _owner: &OwnerLease) -> Result<Capabilities> {
        Ok(Capabilities {
            exchange: true,
            noreplace: true,
            sparse: true,
            punch_hole: true,
            zero_initialised: true,
            ..Capabilities::default()
        })
    }

    fn usage(&self) -> Result<Usage> {
        let mut used = 0;
        for n in self.state().nodes.values() {
            used += n.slab.as_ref().and_then(|f| f.metadata().ok()).map_or(0, |m| m.blocks() * 512);
        }
        let total = 1 << 40;
        Ok(Usage { total: Bytes(total), free: Bytes(total - used), used: Bytes(used) })
    }

    fn header(&self) -> Result<Option<Vec<u8>>> {
        Ok(self.state().header.clone())
    }

    fn prepare(&self) -> Result<u64> {
        self.area_id()
    }

    fn put_header(&self, header: &[u8]) -> Result<()> {
        self.change(Effect::Write, "domain.json", |s| {
            s.header = Some(header.to_vec());
            Ok(())
        })
    }

    fn init(&self, header: &[u8]) -> Result<()> {
        self.change(Effect::Create, "domain.json", |s| {
            s.header.get_or_insert_with(|| header.to_vec());
            Ok(())
        })
    }

    fn area_id(&self) -> Result<u64> {
        Ok(1)
    }

    fn look(&self, at: &Place) -> Result<Option<Object>> {
        self.state().nodes.get(&key(at)).map(|n| Self::object(at.clone(), n)).transpose()
    }

    fn list(&self, inside: Option<&Name>) -> Result<Vec<Object>> {
        let prefix = inside.map_or(String::new(), |n| format!("{n}/"));
        let state = self.state();
        let mut out = Vec::new();
        for (k, node) in &state.nodes {
            if let Some(rest) = k.strip_prefix(&prefix)
                && !rest.contains('/')
                && let Ok(name) = Name::parse(k)
            {
                out.push(Self::object(Place::Public(name), node)?);
            }
        }
        Ok(out)
    }

    fn jobs(&self) -> Result<Vec<JobId>> {
        Ok(self.state().areas.keys().copied().collect())
    }

    fn staged(&self, job: JobId) -> Result<Vec<Object>> {
        let prefix = format!(".sdm/new/{job}/");
        let state = self.state();
        let mut out = Vec::new();
        for (k, node) in &state.nodes {
            if let Some(n) = k.strip_prefix(&prefix).and_then(|n| n.parse().ok()) {
                out.push(Self::object(Place::Staged(job, n), node)?);
            }
        }
        Ok(out)
    }

    fn dead(&self) -> Result<Vec<Object>> {
        let state = self.state();
        let mut out = Vec::new();
        for (k, node) in &state.nodes {
            if let Some(grave) = k.strip_prefix(".sdm/del/").and_then(|n| n.parse().ok()) {
                out.push(Self::object(Place::Dead(grave), node)?);
            }
        }
        Ok(out)
    }

    /// A path that other programs of this account can open as long as this process lives.
    fn attach(&self, at: &Place, _access: Access) -> Result<Attachment> {
        let state = self.state();
        let node = state.nodes.get(&key(at)).ok_or_else(|| EngineError::Absent(at.to_string()))?;
        let slab = node
            .slab
            .as_ref()
            .ok_or(EngineError::Unsupported { engine: "mem", what: "attach what is not a slab" })?;
        let path = format!("/proc/{}/fd/{}", std::process::id(), slab.as_raw_fd());
        Ok(Attachment { path: PathBuf::from(path) })
    }

    fn is_pooled(&self, at: &Place) -> Result<bool> {
        Ok(self.state().node(at)?.pool.is_some())
    }

    /// There is one host only.
    fn hand_over(&self, at: &Place, _step: Handover) -> Result<()> {
        if self.is_pooled(at)? {
            return Err(EngineError::Unsupported { engine: "mem", what: "have a pool on two hosts" });
        }
        Ok(())
    }

    fn begin(&self, owner: &OwnerLease) -> Result<()> {
        self.change(Effect::Mkdir, "area", |s| {
            if s.areas.contains_key(&owner.job()) {
                return Err(EngineError::Exists(format!("the staging area of {}", owner.job())));
            }
            s.areas.insert(owner.job(), BTreeMap::new());
            Ok(())
        })
    }

    fn create(&self, owner: &OwnerLease, n: u32, spec: &Spec) -> Result<Object> {
        let at = Place::Staged(owner.job(), n);
        self.change(Effect::Create, &key(&at), |s| {
            if !s.areas.contains_key(&owner.job()) {
                return Err(EngineError::Absent(at.to_string()));
            }
            if s.nodes.contains_key(&key(&at)) {
                return Err(EngineError::Exists(at.to_string()));
            }
            let slab = |size: &Bytes| slab(*size).map(Some).map_err(io_error(&at));
            let (kind, slab, pool) = match spec {
                Spec::File(size) => (Kind::File, slab(size)?, None),
                Spec::Dir => (Kind::Dir, None, None),
                Spec::Link(t) => (Kind::Link(t.clone()), None, None),
                Spec::Pool(size) => (Kind::Pool, slab(size)?, None),
                Spec::Thin { pool, size } => (Kind::File, slab(size)?, Some(s.node(pool)?.id)),
                Spec::Clone(of) => {
                    let node = s.node(&Place::Public(of.clone()))?;
                    let (Some(from), Some(pool)) = (&node.slab, node.pool) else {
                        return cannot("clone what is not in a pool");
                    };
                    (Kind::File, Some(copied(from).map_err(io_error(&at))?), Some(pool))
                }
            };
            s.insert(key(&at), kind, slab, pool);
            Ok(())
        })?;
        self.look(&at)?.ok_or_else(|| EngineError::Absent(at.to_string()))
    }

    fn adopt(&self, owner: &OwnerLease, n: u32, name: &Name) -> Result<Object> {
        let at = Place::Staged(owner.job(), n);
        self.change(Effect::Link, &key(&at), |s| {
            let node = s.nodes.get(name.as_str()).cloned();
            let node = node.ok_or_else(|| EngineError::Absent(name.to_string()))?;
            s.nodes.insert(key(&at), node);
            Ok(())
        })?;
        self.look(&at)?.ok_or_else(|| EngineError::Absent(at.to_string()))
    }

    fn take_over(
        &self,
        _lock: &DomainLock,
        (dead, n, id): (&OwnerLease, u32, Identity),
        owner: &OwnerLease,
        to: u32,
    ) -> Result<()> {
        let at = Place::Staged(owner.job(), to);
        self.change(Effect::Rename, &key(&at), |s| {
            if !s.areas.contains_key(&owner.job()) {
                return Err(EngineError::Absent(at.to_string()));
            }
            s.rename(&Place::Staged(dead.job(), n), id, &at)
        })
    }

    fn flush(&self, owner: &OwnerLease, n: u32) -> Result<()> {
        self.change(Effect::Sync, &key(&Place::Staged(owner.job(), n)), |_| Ok(()))
    }

    fn append(&self, _lease: &SlabLease, owner: &OwnerLease, n: u32, to: &Place) -> Result<()> {
        let at = Place::Staged(owner.job(), n);
        let taken = self.change(Effect::Unlink, &key(&at), |s| {
            let taken = s.take(&key(&at)).pop().and_then(|(_, node)| node.slab);
            taken.ok_or_else(|| EngineError::Absent(at.to_string()))
        })?;
        let more = taken.metadata().map_err(io_error(&at))?.len();
        self.change(Effect::Truncate, &key(to), |s| {
            let slab = s.node(to)?.slab.clone().ok_or_else(|| EngineError::Absent(to.to_string()))?;
            let now = slab.metadata().map_err(io_error(to))?.len();
            slab.set_len(now + more).map_err(io_error(to))
        })
    }

    fn resize(&self, _lease: &SlabLease, at: &Place, to: Bytes) -> Result<()> {
        self.change(Effect::Truncate, &key(at), |s| {
            let slab = s.node(at)?.slab.clone();
            let slab = slab.ok_or_else(|| EngineError::Absent(at.to_string()))?;
            slab.set_len(to.0).map_err(io_error(at))
        })
    }

    fn end(&self, owner: &OwnerLease) -> Result<()> {
        let prefix = format!(".sdm/new/{}/", owner.job());
        self.change(Effect::Unlink, &prefix, |s| {
            s.nodes.retain(|k, _| !k.starts_with(&prefix));
            Ok(())
        })?;
        self.change(Effect::Rmdir, &prefix, |s| {
            s.areas.remove(&owner.job());
            Ok(())
        })
    }

    fn mend(&self, _owner: &OwnerLease, at: &Place, id: Identity, parts: &[Part]) -> Result<()> {
        self.change(Effect::Write, &key(at), |s| {
            s.find(at, id)?;
            let slab = s.node(at)?.slab.clone();
            let slab = slab.ok_or_else(|| EngineError::Absent(at.to_string()))?;
            parts.iter().try_for_each(|(from, bytes)| slab.write_all_at(bytes, *from)).map_err(io_error(at))
        })
    }

    fn put_record(&self, owner: &OwnerLease, record: Record, bytes: &[u8]) -> Result<()> {
        self.change(Effect::Write, record_key(record), |s| {
            let area = s.areas.get_mut(&owner.job());
            let area =
                area.ok_or_else(|| EngineError::Absent(format!("the staging area of {}", owner.job())))?;
            area.insert(record_key(record), bytes.to_vec());
            Ok(())
        })
    }

    fn record(&self, job: JobId, record: Record) -> Result<Option<Vec<u8>>> {
        let s = self.state();
        Ok(match record {
            Record::Done => s.done.get(&job).map(|d| d.0.clone()),
            r => s.areas.get(&job).and_then(|a| a.get(record_key(r)).cloned()),
        })
    }

    fn close(&self, _lock: &DomainLock, owner: &OwnerLease) -> Result<()> {
        self.change(Effect::Rename, "done", |s| {
            let bytes = s.areas.get_mut(&owner.job()).and_then(|a| a.remove("commit"));
            let bytes = bytes.ok_or_else(|| EngineError::Absent(format!("the commit of {}", owner.job())))?;
            s.done.insert(owner.job(), (bytes, now(), false));
            Ok(())
        })
    }

    fn done(&self) -> Result<Vec<Finished>> {
        let done = |(job, (_, changed, acknowledged)): (&JobId, &(Vec<u8>, i64, bool))| Finished {
            job: *job,
            changed: *changed,
            acknowledged: *acknowledged,
        };
        Ok(self.state().done.iter().map(done).collect())
    }

    fn fence(&self, _lock: &DomainLock, job: JobId) -> Result<()> {
        self.change(Effect::Unlink, "intent", |s| {
            s.areas.get_mut(&job).and_then(|a| a.remove("intent"));
            Ok(())
        })
    }

    fn acknowledge(&self, _lock: &DomainLock, job: JobId) -> Result<()> {
        self.change(Effect::Rename, "done", |s| {
            if let Some(d) = s.done.get_mut(&job) {
                d.2 = true;
            }
            Ok(())
        })
    }

    fn forget(&self, _lock: &DomainLock, job: JobId) -> Result<()> {
        self.change(Effect::Unlink, "done", |s| {
            s.done.remove(&job);
            Ok(())
        })
    }

    fn publish(&self, _lock: &DomainLock, job: JobId, n: u32, id: Identity, to: &Name) -> Result<()> {
        self.change(Effect::Rename, to.as_str(), |s| {
            s.rename(&Place::Staged(job, n), id, &Place::Public(to.clone()))
        })
    }

    fn replace(
        &self,
        lock: &DomainLock,
        (job, n, id): (JobId, u32, Identity),
        to: &Name,
        old: Identity,
        grave: &Grave,
    ) -> Result<()> {
        let (from, at) = (Place::Staged(job, n), Place::Public(to.clone()));
        self.change(Effect::Exchange, to.as_str(), |s| {
            s.find(&from, id)?;
            s.find(&at, old)?;
            let (new, old) = (s.take(&key(&from)), s.take(&key(&at)));
            s.put(&key(&at), new);
            s.put(&key(&from), old);
            Ok(())
        })?;
        self.bury(lock, &from, old, grave)
    }

    fn bury(&self, _lock: &DomainLock, at: &Place, id: Identity, grave: &Grave) -> Result<()> {
        self.change(Effect::Rename, &key(at), |s| s.rename(at, id, &Place::Dead(*grave)))
    }

    fn weight(&self, at: &Place) -> Result<Bytes> {
        let (k, below) = (key(at), format!("{}/", key(at)));
        let state = self.state();
        let mut sum = 0;
        for (_, node) in state.nodes.iter().filter(|(n, _)| **n == k || n.starts_with(&below)) {
            sum += Self::object(at.clone(), node)?.allocated.0;
        }
        Ok(Bytes(sum))
    }

    fn give_reserve(&self, _lock: &DomainLock) -> Result<()> {
        Ok(())
    }

    fn tidy(&self, _lock: &DomainLock) -> Result<()> {
        Ok(())
    }

    fn strays(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn sync(&self, _places: &[Place]) -> Result<()> {
        self.change(Effect::SyncDir, "", |_| Ok(()))
    }

    fn purge(&self, _owner: &OwnerLease, grave: &Grave) -> Result<()> {
        let k = key(&Place::Dead(*grave));
        self.change(Effect::Unlink, &k, |s| {
            let id = s.nodes.get(&k).map(|n| n.id);
            if id.is_some() && s.nodes.values().any(|n| n.pool == id) {
                return Err(EngineError::InUse { what: k.clone(), by: "slabs in it".to_owned() });
            }
            drop(s.take(&k));
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn conforms() {
        super::super::conformance::run(&|| Box::new(super::MemEngine::default()));
    }
}
