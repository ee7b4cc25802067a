//! A directory as a domain: slab = regular file, tag = directory entry. Format 1, `docs/format.md`.

mod area;
mod probe;

use super::{
    Access, Attachment, Bytes, Capabilities, Engine, EngineError, Finished, Grave, Identity, Kind, Name,
    Object, Part, Place, Record, Result, SeeJob, Spec, Usage,
};
use crate::lock::{DomainLock, JobId, OwnerLease, SlabLease};
use crate::sys::effect::{Effect, bug, only_looks, scratch, step};
use crate::sys::fs::{self, Dir, Entry};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// A directory, opened once; every later look goes through its descriptor.
#[derive(Debug)]
pub struct FileEngine {
    root: Dir,
}

/// The name of the manager's area in a datastore.
pub const AREA: &str = ".sdm";

/// Records that are read at most to find whose answer a request acknowledges: there may be as many as there are
/// images, and most images that are named have none.
const LIKELY: usize = 32;

/// Where a place is: its parent directory (opened) and its name there.
struct Spot {
    dir: Dir,
    name: OsString,
}

fn io_error(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> EngineError {
    move |source| match Errno::from_io_error(&source) {
        Some(Errno::NOSPC) => EngineError::NoSpace(what.to_string()),
        Some(Errno::DQUOT) => EngineError::NoSpace(format!("{what}: its disk quota is used up")),
        Some(Errno::XDEV) => EngineError::Crosses(what.to_string()),
        Some(Errno::EXIST | Errno::NOTEMPTY) => EngineError::Exists(what.to_string()),
        Some(Errno::NOENT | Errno::NOTDIR) => EngineError::Absent(what.to_string()),
        _ => EngineError::Io { what: what.to_string(), source },
    }
}

fn identity(e: &Entry) -> Identity {
    Identity { ino: e.ino, born: e.born }
}

fn object(place: Place, e: Entry) -> Object {
    let id = identity(&e);
    let kind = match e.kind {
        fs::Kind::File => Kind::File,
        fs::Kind::Dir => Kind::Dir,
        fs::Kind::Link(t) => Kind::Link(t.to_string_lossy().into_owned()),
        fs::Kind::Other => Kind::Other,
    };
    Object { place, kind, id, size: Bytes(e.size), allocated: Bytes(e.allocated), changed: e.changed }
}

impl FileEngine {
    /// Opens a datastore directory, domain or not. Links in `path` are followed.
    pub fn open(path: &Path) -> Result<FileEngine> {
        Ok(FileEngine { root: Dir::open(path).map_err(io_error(path.display()))? })
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The manager's area, for the lock backend. `None` when this is no domain.
    pub fn area(&self) -> Result<Option<Dir>> {
        match self.root.sub(Path::new(AREA)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            r => r.map(Some).map_err(io_error(self.root.path().join(AREA).display())),
        }
    }

    fn sub(&self, rel: impl AsRef<Path>) -> Result<Dir> {
        let rel = rel.as_ref();
        let found = match self.root.sub(rel) {
            // A plan for what is to be a domain: there is nothing in its area.
            Err(e) if e.kind() == io::ErrorKind::NotFound && only_looks() && rel.starts_with(AREA) => {
                let empty = scratch().unwrap_or_default().join("area");
                std::fs::create_dir_all(&empty).and_then(|()| Dir::open(&empty))
            }
            found => found,
        };
        found.map_err(io_error(self.root.path().join(rel).display()))
    }

    fn spot(&self, at: &Place) -> Result<Spot> {
        let (dir, name) = match at {
            Place::Public(n) => match n.as_str().rsplit_once('/') {
                Some((dir, name)) => (dir.to_owned(), name.to_owned()),
                None => (".".to_owned(), n.as_str().to_owned()),
            },
            Place::Staged(job, n) => (format!("{AREA}/new/{job}"), n.to_string()),
            Place::Dead(grave) => (format!("{AREA}/del"), grave.to_string()),
        };
        Ok(Spot { dir: self.sub(dir)?, name: name.into() })
    }

    fn full(&self, at: &Place) -> PathBuf {
        self.root.path().join(match at {
            Place::Public(n) => n.as_str().to_owned(),
            Place::Staged(job, n) => format!("{AREA}/new/{job}/{n}"),
            Place::Dead(grave) => format!("{AREA}/del/{grave}"),
        })
    }

    /// The entry at a spot, which must be the object meant.
    fn expect(spot: &Spot, at: &Place, id: Identity) -> Result<Entry> {
        let e = spot.dir.entry(&spot.name).map_err(io_error(at))?;
        match e {
            None => Err(EngineError::Absent(at.to_string())),
            Some(e) if identity(&e) == id => Ok(e),
            Some(_) => Err(EngineError::Changed(at.to_string())),
        }
    }

    /// Compare, rename to a free name, verify; puts back what was not meant.
    fn rename(&self, from: &Place, id: Identity, to: &Place) -> Result<()> {
        let (a, b) = (self.spot(from)?, self.spot(to)?);
        Self::expect(&a, from, id)?;
        let rename = if matches!(to, Place::Dead(_)) { Dir::rename_own } else { Dir::rename_new };
        let go = || rename(&a.dir, &a.name, &b.dir, &b.name);
        let gone = match go() {
            // A power loss may have left both names to what was renamed: btrfs writes down one directory at a time.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && Self::is_second(&b, to, id) => {
                b.dir.unlink(&b.name).and_then(|()| go())
            }
            r => r,
        };
        gone.map_err(io_error(to))?;
        match Self::expect(&b, to, id) {
            Err(EngineError::Changed(_)) => {
                b.dir.rename_new(&b.name, &a.dir, &a.name).map_err(io_error(from))?;
                Err(EngineError::Changed(from.to_string()))
            }
            r => r.map(drop),
        }
    }

    /// Whether a name of our own area is one more of this object's.
    fn is_second(b: &Spot, to: &Place, id: Identity) -> bool {
        !matches!(to, Place::Public(_)) && Self::expect(b, to, id).is_ok() && !bug("leave-second")
    }

    fn objects(
        dir: &Dir,
        names: Vec<OsString>,
        place: impl Fn(&str) -> Option<Place>,
    ) -> Result<Vec<Object>> {
        let mut out = Vec::new();
        for n in names {
            // A name that is not text is not one of ours; `check` reports it.
            let Some(at) = n.to_str().and_then(&place) else { continue };
            if let Some(e) = dir.entry(&n).map_err(io_error(&at))? {
                out.push(object(at, e));
            }
        }
        out.sort_by(|a, b| a.place.cmp(&b.place));
        Ok(out)
    }

    /// Looks at those only that are asked for: there may be thousands.
    fn graves(&self, wanted: impl Fn(&Grave) -> bool) -> Result<Vec<Object>> {
        let dir = self.sub(format!("{AREA}/del"))?;
        let names = Self::names(&dir)?;
        Self::objects(&dir, names, |n| n.parse().ok().filter(&wanted).map(Place::Dead))
    }

    fn names(dir: &Dir) -> Result<Vec<OsString>> {
        dir.names().map_err(io_error(dir.path().display()))
    }
}

impl Engine for FileEngine {
    fn name(&self) -> &'static str {
        "file"
    }

    fn lock_backend(&self) -> &'static str {
        "ofd"
    }

    fn capabilities(&self, owner: &OwnerLease) -> Result<Capabilities> {
        let dir = self.sub(format!("{AREA}/new/{}", owner.job()))?;
        probe::capabilities(&dir).map_err(io_error("probing the file system"))
    }

    fn usage(&self) -> Result<Usage> {
        let (total, free, used) = self.root.space().map_err(io_error(self.root.path().display()))?;
        Ok(Usage { total: Bytes(total), free: Bytes(free), used: Bytes(used) })
    }

    fn header(&self) -> Result<Option<Vec<u8>>> {
        self.read_header()
    }

    fn prepare(&self) -> Result<u64> {
        self.make_area()?;
        self.area_id()
    }

    fn init(&self, header: &[u8]) -> Result<()> {
        self.first_header(header)
    }

    fn put_header(&self, header: &[u8]) -> Result<()> {
        self.write_header(header)
    }

    fn area_id(&self) -> Result<u64> {
        let e = self.root.entry(OsStr::new(AREA)).map_err(io_error(AREA))?;
        e.map(|e| e.ino).ok_or_else(|| EngineError::Absent(AREA.to_owned()))
    }

    fn look(&self, at: &Place) -> Result<Option<Object>> {
        let spot = match self.spot(at) {
            Err(EngineError::Absent(_)) => return Ok(None),
            s => s?,
        };
        Ok(spot.dir.entry(&spot.name).map_err(io_error(at))?.map(|e| object(at.clone(), e)))
    }

    fn list(&self, inside: Option<&Name>) -> Result<Vec<Object>> {
        let dir = match self.sub(inside.map_or(".", Name::as_str)) {
            Err(EngineError::Absent(_)) => return Ok(Vec::new()),
            d => d?,
        };
        let names = Self::names(&dir)?;
        Self::objects(&dir, names, |n| match inside {
            None => Name::parse(n).ok().map(Place::Public),
            Some(parent) => parent.child(n).ok().map(Place::Public),
        })
    }

    fn jobs(&self) -> Result<Vec<JobId>> {
        let names = Self::names(&self.sub(format!("{AREA}/new"))?)?;
        let mut jobs: Vec<JobId> = names.iter().filter_map(|n| n.to_str()?.parse().ok()).collect();
        jobs.sort_unstable();
        Ok(jobs)
    }

    fn staged(&self, job: JobId) -> Result<Vec<Object>> {
        let dir = match self.sub(format!("{AREA}/new/{job}")) {
            Err(EngineError::Absent(_)) => return Ok(Vec::new()),
            d => d?,
        };
        let names = Self::names(&dir)?;
        Self::objects(&dir, names, |n| n.parse().ok().map(|n| Place::Staged(job, n)))
    }

    fn dead(&self) -> Result<Vec<Object>> {
        self.graves(|_| true)
    }

    fn buried(&self, by: JobId) -> Result<Vec<Object>> {
        self.graves(|grave| grave.job == by)
    }

    fn attach(&self, at: &Place, _access: Access) -> Result<Attachment> {
        Ok(Attachment { path: self.full(at) })
    }

    fn begin(&self, owner: &OwnerLease) -> Result<()> {
        let name = owner.job().to_string();
        let dir = self.sub(format!("{AREA}/new"))?;
        dir.mkdir(OsStr::new(&name), 0o770, true)
            .map_err(io_error(format_args!("the staging area of {name}")))
    }

    fn create(&self, owner: &OwnerLease, n: u32, spec: &Spec) -> Result<Object> {
        let at = Place::Staged(owner.job(), n);
        let spot = self.spot(&at)?;
        match spec {
            // As any program of the account would make it: the umask decides the mode.
            Spec::File(size) => spot
                .dir
                .create(&spot.name, 0o666, false)
                .and_then(|f| if size.0 == 0 { Ok(()) } else { fs::set_len(&f, &self.full(&at), size.0) }),
            Spec::Dir => spot.dir.mkdir(&spot.name, 0o777, false),
            Spec::Link(target) => spot.dir.symlink(OsStr::new(target), &spot.name),
            Spec::Pool(_) | Spec::Thin { .. } | Spec::Clone(_) => {
                return Err(EngineError::Unsupported { engine: "file", what: "make pools" });
            }
        }
        .map_err(io_error(&at))?;
        self.look(&at)?.ok_or_else(|| EngineError::Absent(at.to_string()))
    }

    fn adopt(&self, owner: &OwnerLease, n: u32, name: &Name) -> Result<Object> {
        let (from, at) = (Place::Public(name.clone()), Place::Staged(owner.job(), n));
        let (a, b) = (self.spot(&from)?, self.spot(&at)?);
        match a.dir.link(&a.name, &b.dir, &b.name) {
            Err(e)
                if matches!(
                    Errno::from_io_error(&e),
                    Some(Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP)
                ) =>
            {
                Err(EngineError::Unsupported { engine: "file", what: "give this file a second name" })
            }
            Err(e) => Err(io_error(&from)(e)),
            Ok(()) => self.look(&at)?.ok_or_else(|| EngineError::Absent(at.to_string())),
        }
    }

    fn take_over(
        &self,
        _lock: &DomainLock,
        (dead, n, id): (&OwnerLease, u32, Identity),
        owner: &OwnerLease,
        to: u32,
    ) -> Result<()> {
        self.rename(&Place::Staged(dead.job(), n), id, &Place::Staged(owner.job(), to))
    }

    fn flush(&self, owner: &OwnerLease, n: u32) -> Result<()> {
        let at = Place::Staged(owner.job(), n);
        let spot = self.spot(&at)?;
        spot.dir.sync_tree(&spot.name).map_err(io_error(&at))
    }

    fn resize(&self, _lease: &SlabLease, at: &Place, to: Bytes) -> Result<()> {
        let spot = self.spot(at)?;
        let f = spot.dir.open_file(Path::new(&spot.name), true).map_err(io_error(at))?;
        fs::set_len(&f, &self.full(at), to.0).map_err(io_error(at))?;
        fs::sync_file(&f, &self.full(at)).map_err(io_error(at))
    }

    fn end(&self, owner: &OwnerLease) -> Result<()> {
        self.remove_staging(owner.job())
    }

    fn mend(&self, _owner: &OwnerLease, at: &Place, id: Identity, parts: &[Part]) -> Result<()> {
        let (spot, path) = (self.spot(at)?, self.full(at));
        Self::expect(&spot, at, id)?;
        let f = spot.dir.open_file(Path::new(&spot.name), true).map_err(io_error(at))?;
        if f.metadata().map_err(io_error(at))?.ino() != id.ino {
            return Err(EngineError::Changed(at.to_string()));
        }
        for (from, bytes) in parts {
            step(Effect::Write, &[&path], || f.write_all_at(bytes, *from)).map_err(io_error(at))?;
        }
        fs::sync_file(&f, &path).map_err(io_error(at))
    }

    fn put_record(&self, owner: &OwnerLease, record: Record, bytes: &[u8]) -> Result<()> {
        self.write_record(owner.job(), record, bytes)
    }

    fn record(&self, job: JobId, record: Record) -> Result<Option<Vec<u8>>> {
        self.read_record(job, record)
    }

    fn each_job(&self, see: &mut SeeJob<'_>) -> Result<()> {
        self.see_jobs(see)
    }

    fn close(&self, _lock: &DomainLock, owner: &OwnerLease) -> Result<()> {
        self.commit_to_done(owner.job())
    }

    fn done(&self) -> Result<Vec<Finished>> {
        self.list_done()
    }

    fn makers(&self, object: Identity, acknowledged: bool) -> Result<Vec<JobId>> {
        let mut jobs = self.list_finished()?;
        jobs.retain(|(_, a)| acknowledged || !a);
        // A job makes its files soon after it began. Which clock says so may differ, and nothing rests on it.
        jobs.sort_by_key(|(job, _)| job.born().map_or(u64::MAX, |t| t.abs_diff(object.born)));
        if !acknowledged {
            jobs.truncate(LIKELY);
        }
        Ok(jobs.into_iter().map(|(job, _)| job).collect())
    }

    fn fence(&self, _lock: &DomainLock, job: JobId) -> Result<()> {
        self.remove_intent(job)
    }

    fn acknowledge(&self, _lock: &DomainLock, job: JobId) -> Result<()> {
        self.mark_done(job)
    }

    fn forget(&self, _lock: &DomainLock, job: JobId) -> Result<()> {
        self.remove_done(job)
    }

    fn publish(&self, _lock: &DomainLock, job: JobId, n: u32, id: Identity, to: &Name) -> Result<()> {
        self.rename(&Place::Staged(job, n), id, &Place::Public(to.clone()))
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
        let (a, b) = (self.spot(&from)?, self.spot(&at)?);
        Self::expect(&a, &from, id)?;
        Self::expect(&b, &at, old)?;
        match a.dir.exchange(&a.name, &b.dir, &b.name) {
            Ok(()) => {}
            Err(e)
                if matches!(
                    Errno::from_io_error(&e),
                    Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
                ) =>
            {
                return self.replace_slowly(&a, &b, &at, grave);
            }
            Err(e) => return Err(io_error(&at)(e)),
        }
        if let Err(EngineError::Changed(_) | EngineError::Absent(_)) = Self::expect(&a, &from, old) {
            // Unless whoever settles it has put it back already.
            Self::expect(&b, &at, id)?;
            a.dir.exchange(&a.name, &b.dir, &b.name).map_err(io_error(&at))?;
            return Err(EngineError::Changed(at.to_string()));
        }
        // The new object's name before the old one's last: a power loss must not keep only the burial.
        self.sync(&[at, from.clone()])?;
        self.bury(lock, &from, old, grave)
    }

    fn bury(&self, _lock: &DomainLock, at: &Place, id: Identity, grave: &Grave) -> Result<()> {
        let to = Place::Dead(*grave);
        match self.rename(at, id, &to) {
            Err(EngineError::NoSpace(_)) => {
                self.drop_reserve()?;
                self.rename(at, id, &to)
            }
            r => r,
        }
    }

    fn weight(&self, at: &Place) -> Result<Bytes> {
        let spot = match self.spot(at) {
            Err(EngineError::Absent(_)) => return Ok(Bytes(0)),
            s => s?,
        };
        spot.dir.weight(&spot.name).map(Bytes).map_err(io_error(at))
    }

    fn give_reserve(&self, _lock: &DomainLock) -> Result<()> {
        self.drop_reserve()
    }

    fn tidy(&self, _lock: &DomainLock) -> Result<()> {
        self.remove_kept_open()?;
        self.make_reserve()
    }

    fn strays(&self) -> Result<Vec<String>> {
        self.area_strays()
    }

    fn sync(&self, places: &[Place]) -> Result<()> {
        let mut done: Vec<PathBuf> = Vec::new();
        for at in places {
            let spot = match self.spot(at) {
                Err(EngineError::Absent(_)) => continue,
                s => s?,
            };
            if !done.iter().any(|p| p == spot.dir.path()) {
                spot.dir.sync().map_err(io_error(at))?;
                done.push(spot.dir.path().to_owned());
            }
        }
        Ok(())
    }

    fn purge(&self, _owner: &OwnerLease, grave: &Grave) -> Result<()> {
        let at = Place::Dead(*grave);
        let spot = self.spot(&at)?;
        spot.dir.remove_tree(&spot.name).map_err(io_error(&at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock;
    use crate::sys::Cancel;

    #[test]
    fn conforms() {
        let t = tempfile::tempdir().unwrap();
        let n = std::cell::Cell::new(0);
        super::super::conformance::run(&|| {
            n.set(n.get() + 1);
            let dir = t.path().join(n.get().to_string());
            std::fs::create_dir(&dir).unwrap();
            Box::new(FileEngine::open(&dir).unwrap())
        });
    }

    #[test]
    fn one_of_many_becomes_the_only_host() {
        let t = tempfile::tempdir().unwrap();
        let engine = || FileEngine::open(t.path()).unwrap();
        engine().prepare().unwrap();
        assert_eq!(engine().only_host(None).unwrap(), None);
        let claim = |n: usize| engine().only_host(Some(&format!("host{n}"))).unwrap();
        let hosts: Vec<_> = std::thread::scope(|s| {
            let all: Vec<_> = (0..8)
                .map(|n| {
                    let claim = &claim;
                    s.spawn(move || claim(n))
                })
                .collect();
            all.into_iter().map(|h| h.join().unwrap()).collect()
        });
        assert!(hosts[0].is_some() && hosts.iter().all(|h| *h == hosts[0]), "{hosts:?}");
        assert_eq!(engine().only_host(None).unwrap(), hosts[0]);
        assert!(engine().strays().unwrap().is_empty() && engine().jobs().unwrap().is_empty());
    }

    /// After a power loss btrfs may show a file that was renamed under its old name, too.
    #[test]
    fn what_has_both_names_loses_the_old_one() {
        let t = tempfile::tempdir().unwrap();
        let engine = FileEngine::open(t.path()).unwrap();
        engine.prepare().unwrap();
        let locks = lock::MemLocks::default();
        let held = lock::domain_lock(&locks, std::time::Duration::ZERO, &Cancel::default()).unwrap();
        let (at, grave) =
            (Place::Public(Name::parse("x").unwrap()), Grave { job: JobId::generate(), n: 0, keep: true });
        std::fs::write(engine.full(&at), "x").unwrap();
        std::fs::hard_link(engine.full(&at), engine.full(&Place::Dead(grave))).unwrap();
        let id = engine.look(&at).unwrap().unwrap().id;
        engine.bury(&held, &at, id, &grave).unwrap();
        assert!(engine.look(&at).unwrap().is_none());
        assert_eq!(engine.look(&Place::Dead(grave)).unwrap().unwrap().id, id);
        // Another object's tombstone is left alone.
        std::fs::write(engine.full(&at), "y").unwrap();
        let other = engine.look(&at).unwrap().unwrap().id;
        assert!(matches!(engine.bury(&held, &at, other, &grave), Err(EngineError::Exists(_))));
    }

    /// What an NFS client keeps of a file that was removed while it was open.
    #[test]
    fn what_a_client_kept_open_is_no_stray_and_goes_later() {
        let t = tempfile::tempdir().unwrap();
        let engine = FileEngine::open(t.path()).unwrap();
        engine.prepare().unwrap();
        let kept = t.path().join(".sdm/del/.nfs000000000000008300000001");
        std::fs::write(&kept, "x").unwrap();
        assert!(engine.strays().unwrap().is_empty());
        engine.remove_kept_open().unwrap();
        assert!(!kept.exists());
    }
}
