//! A storage domain: an engine, its locks, and the header that says which domain it is.

use super::record::{self, FORMAT, Header};
use super::{Result, SdmError, group};
use crate::engine::file::FileEngine;
use crate::engine::lvm::{self, LvmEngine};
use crate::engine::mem::MemEngine;
use crate::engine::{Engine, EngineError};
use crate::lock::reach::{self, Locks};
use crate::lock::{LeaseId, LockBackend, LockError, MemLocks, OfdLocks, SanlockLocks, sanlock};
use crate::obs;
use crate::sys::effect::only_looks;
use crate::sys::fs::Dir;
use std::io::ErrorKind;
use std::path::Path;

/// Incompatible features this program knows. A domain has the one of its lock backend, if that has one:
/// a program without it would lock past everybody.
const FEATURES: [&str; 1] = [sanlock::NAME];

/// Engines, as the header names them.
const FILE: &str = "file";
const LVM: &str = "lvm";

const COPIED: &str = "a copy with locks of several hosts cannot get an id of its own; remove `.sdm/domain.json` \
     and `.sdm/sanlock` of the copy, and make it a domain anew";

/// A domain, open.
#[derive(Debug)]
pub struct Domain {
    /// As people name it: the directory, or `/dev/<group>`.
    pub place: String,
    pub header: Header,
    pub engine: Box<dyn Engine>,
    pub locks: Box<dyn LockBackend>,
}

impl Domain {
    /// Opens the domain in a directory, or says that it is none. A domain that was copied or restored,
    /// or whose format or features are unknown, is refused: see `Domain::inspect` for looking at one.
    pub fn open_dir(path: &Path) -> Result<Domain> {
        let d = Self::inspect(path)?;
        d.usable()?;
        d.one_host(!only_looks())?;
        Ok(d)
    }

    /// Why its locks are not known to reach other hosts, where that is so.
    pub fn is_alone(&self) -> Result<Option<&'static str>> {
        if self.header.lock == sanlock::NAME || self.header.engine != FILE {
            return Ok(None);
        }
        let reach = Dir::open(Path::new(&self.place)).and_then(|d| reach::of_dir(&d));
        match reach.map_err(|source| SdmError::Io { what: self.place.clone(), source })? {
            Locks::Local | Locks::Shared => Ok(None),
            Locks::Alone(why) | Locks::None(why) => Ok(Some(why)),
        }
    }

    /// Where locks do not reach other hosts, the first host that opens a domain to change it is the only one.
    fn one_host(&self, claim: bool) -> Result<()> {
        if self.header.engine == LVM
            && let Some(host) = self.header.host.as_ref().filter(|h| **h != this_host())
        {
            return Err(SdmError::OnlyHost { place: self.place.clone(), host: host.clone() });
        }
        let Some(why) = self.is_alone()? else { return Ok(()) };
        let path = Path::new(&self.place);
        let me = this_host();
        let host = match FileEngine::open(path)?.only_host(claim.then_some(&me)) {
            // Who cannot write changes nothing.
            Err(EngineError::Io { source, .. })
                if matches!(source.kind(), ErrorKind::ReadOnlyFilesystem | ErrorKind::PermissionDenied) =>
            {
                None
            }
            host => host?,
        };
        match host {
            Some(host) if host != me => Err(SdmError::OtherHost { place: self.place.clone(), host, why }),
            _ => Ok(()),
        }
    }

    /// Opens without asking whether it may be changed.
    pub fn inspect(path: &Path) -> Result<Domain> {
        let place = path.display().to_string();
        let engine = FileEngine::open(path)?;
        let header =
            read_header(&engine, &place)?.ok_or_else(|| SdmError::NotADomain { place: place.clone() })?;
        let area = engine.area()?.ok_or_else(|| SdmError::NotADomain { place: place.clone() })?;
        let locks: Box<dyn LockBackend> = match header.lock.as_str() {
            sanlock::NAME => Box::new(SanlockLocks::new(area, header.id)),
            _ => Box::new(OfdLocks::new(area)),
        };
        Ok(Domain { place, header, engine: Box::new(engine), locks })
    }

    /// Whether this program may change the domain.
    pub fn usable(&self) -> Result<()> {
        let place = || self.place.clone();
        if self.header.format > FORMAT {
            return Err(SdmError::TooNew { place: place(), found: self.header.format, known: FORMAT });
        }
        let locks = self.header.lock.as_str();
        let mut unknown: Vec<&str> = self.header.incompat.iter().map(String::as_str).collect();
        unknown.retain(|f| !FEATURES.contains(f));
        if !unknown.is_empty() {
            return Err(SdmError::Features { place: place(), features: unknown.join(", ") });
        }
        let named = self.header.incompat.iter().any(|f| f == sanlock::NAME);
        if named != (locks == sanlock::NAME) {
            let why =
                format!("locks {locks:?} and features {:?} contradict each other", self.header.incompat);
            return Err(SdmError::BadRecord { what: format!("{}/.sdm/domain.json", self.place), why });
        }
        if self.header.area != self.engine.area_id()? {
            return Err(SdmError::Copied { place: place(), id: self.header.id.to_string() });
        }
        self.one_host(false)
    }

    /// Makes a directory a domain. Of several makers at once one wins and all get the same domain.
    pub fn init_dir(path: &Path) -> Result<Domain> {
        let engine = FileEngine::open(path)?;
        if engine.header()?.is_none() {
            init(&engine, engine.lock_backend())?;
        }
        Self::open_dir(path)
    }

    /// For plans: a directory that would be made a domain first. Nobody has locks there yet.
    pub fn to_be(path: &Path) -> Result<Domain> {
        let engine = FileEngine::open(path)?;
        let header = Header {
            format: FORMAT,
            id: uuid::Uuid::now_v7(),
            compat: Vec::new(),
            incompat: Vec::new(),
            engine: engine.name().to_owned(),
            lock: engine.lock_backend().to_owned(),
            host: None,
            area: 0,
            created: String::new(),
        };
        let place = path.display().to_string();
        Ok(Domain { place, header, engine: Box::new(engine), locks: Box::new(MemLocks::default()) })
    }

    /// As `init_dir`, with this lock backend. A domain that has another keeps it and is refused.
    pub fn init_dir_with(path: &Path, lock: &str) -> Result<Domain> {
        let engine = FileEngine::open(path)?;
        if engine.header()?.is_none() {
            init(&engine, lock)?;
        }
        let d = Self::open_dir(path)?;
        if d.header.lock != lock {
            return Err(SdmError::OtherLock { place: d.place, has: d.header.lock, wanted: lock.to_owned() });
        }
        // The header first: it decides the name that is in every lease. A crash in between leaves a domain
        // that says what is missing.
        if let Some(locks) = d.sanlock()? {
            locks.make()?;
        }
        Ok(d)
    }

    /// The domain's membership of hosts, where its locks need one.
    pub fn sanlock(&self) -> Result<Option<SanlockLocks>> {
        if self.header.lock != sanlock::NAME {
            return Ok(None);
        }
        let path = Path::new(&self.place);
        if self.header.engine == LVM {
            return Ok(Some(SanlockLocks::on_device(path.join(lvm::LEASES), self.header.id)));
        }
        let area = FileEngine::open(path)?.area()?;
        let area = area.ok_or_else(|| SdmError::NotADomain { place: self.place.clone() })?;
        Ok(Some(SanlockLocks::new(area, self.header.id)))
    }

    /// Gives a copied or restored domain its place again: a new area number, and a new id when both
    /// copies live on. Nobody may be working on it; the leases show that.
    pub fn adopt(&self, new_id: bool) -> Result<Header> {
        let mut header = self.header.clone();
        header.area = self.engine.area_id()?;
        if new_id && header.lock == sanlock::NAME {
            // The old id is in every lease.
            return Err(LockError::Stale { what: LeaseId::Domain, why: COPIED.to_owned() }.into());
        }
        if new_id {
            header.id = uuid::Uuid::now_v7();
        }
        header.host = header.host.map(|_| this_host());
        self.engine.put_header(&record::encode("domain.json", &header)?)?;
        Ok(header)
    }

    /// A domain in memory. Clones of the engine and the locks are other hosts on the same storage.
    pub fn in_memory(engine: &MemEngine, locks: &MemLocks) -> Result<Domain> {
        let (engine, place) = (Box::new(engine.clone()), "memory".to_owned());
        if engine.header()?.is_none() {
            init(&*engine, locks.name())?;
        }
        let header =
            read_header(&*engine, &place)?.ok_or_else(|| SdmError::NotADomain { place: place.clone() })?;
        Ok(Domain { place, header, engine, locks: Box::new(locks.clone()) })
    }

    /// The domain in a volume group, made if there is none. The engine has the same locks.
    pub fn in_group(engine: LvmEngine, locks: Box<dyn LockBackend>) -> Result<Domain> {
        engine.mark(Self::prepare_group(&engine, locks.name())?.id)?;
        let d = Self::inspect_group(engine, locks)?;
        d.usable()?;
        Ok(d)
    }

    /// Gives a volume group that has none its header, for locks of this kind. One that has another keeps it.
    pub fn prepare_group(engine: &LvmEngine, lock: &str) -> Result<Header> {
        if engine.header()?.is_none() {
            init(engine, lock)?;
        }
        let place = group::place(engine.group());
        read_header(engine, &place)?.ok_or(SdmError::NotADomain { place })
    }

    /// The domain in a volume group, without asking whether it may be changed.
    pub fn inspect_group(engine: LvmEngine, locks: Box<dyn LockBackend>) -> Result<Domain> {
        let place = group::place(engine.group());
        let header =
            read_header(&engine, &place)?.ok_or_else(|| SdmError::NotADomain { place: place.clone() })?;
        Ok(Domain { place, header, engine: Box::new(engine), locks })
    }
}

/// This machine, as long as it is neither renamed nor installed anew.
fn this_host() -> String {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    format!("{} {}", obs::host(), id.trim()).trim_end().to_owned()
}

fn init(engine: &dyn Engine, lock: &str) -> Result<()> {
    // The area has to exist before its number can be part of the header.
    let area = engine.prepare()?;
    let header = Header {
        format: FORMAT,
        id: uuid::Uuid::now_v7(),
        compat: Vec::new(),
        incompat: FEATURES.iter().filter(|f| **f == lock).map(|f| (*f).to_owned()).collect(),
        engine: engine.name().to_owned(),
        lock: lock.to_owned(),
        // Leases on the storage itself are seen by all hosts that see it; others of a group by one.
        host: (engine.name() == LVM && lock != sanlock::NAME).then(this_host),
        area,
        created: obs::now(),
    };
    engine.init(&record::encode("domain.json", &header)?).map_err(SdmError::from)
}

pub(super) fn read_header(engine: &dyn Engine, place: &str) -> Result<Option<Header>> {
    match engine.header() {
        Ok(None) | Err(EngineError::Absent(_)) => Ok(None),
        Err(e) => Err(e.into()),
        Ok(Some(bytes)) => record::decode(&format!("{place}/.sdm/domain.json"), &bytes).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fork;

    #[test]
    fn a_directory_becomes_one_domain_whoever_comes_first() {
        let t = tempfile::tempdir().unwrap();
        assert!(matches!(Domain::open_dir(t.path()), Err(SdmError::NotADomain { .. })));
        let ids: Vec<_> = std::thread::scope(|s| {
            let makers: Vec<_> =
                (0..8).map(|_| s.spawn(|| Domain::init_dir(t.path()).unwrap().header.id)).collect();
            makers.into_iter().map(|m| m.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|i| *i == ids[0]));
        assert!(std::fs::read_dir(t.path().join(".sdm/new")).unwrap().next().is_none());
    }

    #[test]
    fn a_copied_domain_is_refused_until_it_is_adopted() {
        let t = tempfile::tempdir().unwrap();
        let (a, b) = (t.path().join("a"), t.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        let first = Domain::init_dir(&a).unwrap();
        fork::output(std::process::Command::new("cp").arg("-a").args([&a, &b])).unwrap();
        assert!(matches!(Domain::open_dir(&b), Err(SdmError::Copied { .. })));
        let adopted = Domain::inspect(&b).unwrap().adopt(true).unwrap();
        assert_ne!(adopted.id, first.header.id);
        assert_eq!(Domain::open_dir(&b).unwrap().header, adopted);
        assert_eq!(Domain::open_dir(&a).unwrap().header, first.header, "the original is untouched");
    }

    #[test]
    fn a_newer_format_and_unknown_features_are_refused() {
        let t = tempfile::tempdir().unwrap();
        let d = Domain::init_dir(t.path()).unwrap();
        let mut h = d.header.clone();
        h.incompat = vec!["extents".into()];
        d.engine.put_header(&record::encode("h", &h).unwrap()).unwrap();
        assert!(matches!(Domain::open_dir(t.path()), Err(SdmError::Features { .. })));
        h.format = 2;
        d.engine.put_header(&record::encode("h", &h).unwrap()).unwrap();
        assert!(matches!(Domain::open_dir(t.path()), Err(SdmError::TooNew { .. })));
    }
}
