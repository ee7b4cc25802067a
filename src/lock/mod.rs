//! Leases: who may change what. Taking one never blocks underneath; waiting is a retry with jitter.
//! Releasing is dropping. A lease excludes, it does not fence: a paused holder may wake after it is
//! gone, which is why every step that removes or replaces compares, acts and verifies.
//!
//! Order for everybody: slab leases first (all or none, by offset), the domain lock last and alone.

pub mod conformance;
mod mem;
mod ofd;
pub mod reach;
pub mod sanlock;

pub use mem::MemLocks;
pub use ofd::OfdLocks;
pub use sanlock::SanlockLocks;

use crate::sys::effect::{bug, history, only_looks};
use crate::sys::sanlock::SanlockError;
use crate::sys::{Cancel, Class};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Debug, Display};
use std::os::fd::BorrowedFd;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The phase of a job that waits for a lease.
pub const WAITS: &str = "waits for a lock";

/// The identity of a request and of the job that serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(pub uuid::Uuid);

impl JobId {
    /// A new id; later ones sort after earlier ones on one host.
    pub fn generate() -> JobId {
        JobId(uuid::Uuid::now_v7())
    }

    /// When it was generated, in nanoseconds since 1970, by the clock of its host. Ids that callers give may tell nothing.
    pub fn born(self) -> Option<u64> {
        let (seconds, nanos) = self.0.get_timestamp()?.to_unix();
        Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos.into()))
    }
}

impl Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0.as_hyphenated(), f)
    }
}

impl FromStr for JobId {
    type Err = uuid::Error;
    fn from_str(s: &str) -> Result<JobId, uuid::Error> {
        uuid::Uuid::try_parse(s).map(JobId)
    }
}

/// What a lease is on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseId {
    /// The metadata of the domain.
    Domain,
    /// The life of one job.
    Owner(JobId),
    /// One image or disk with its chain, by the name of the chain's root.
    Slab(String),
    /// A proof across hosts that the backend excludes (`onesdm doctor`).
    Probe(String),
    /// The right to move data, of so many as the settings allow: from 0.
    Copy(u32),
}

impl LeaseId {
    /// The byte that stands for this lease; 0 is the domain's. Equal on every host and in every version
    /// of format 1: SHA-256 of `kind NUL id`, first eight bytes big-endian, modulo 2^62, plus one.
    pub fn offset(&self) -> u64 {
        let (kind, id) = match self {
            LeaseId::Domain => return 0,
            LeaseId::Owner(job) => ("owner", job.to_string()),
            LeaseId::Slab(name) => ("slab", name.clone()),
            LeaseId::Probe(name) => ("probe", name.clone()),
            LeaseId::Copy(n) => ("copy", n.to_string()),
        };
        let hash = Sha256::new().chain_update(kind).chain_update([0]).chain_update(id).finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        1 + u64::from_be_bytes(first) % (1 << 62)
    }
}

impl Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LeaseId::Domain => write!(f, "domain metadata"),
            LeaseId::Owner(job) => write!(f, "job {job}"),
            LeaseId::Slab(name) => write!(f, "image {name}"),
            LeaseId::Probe(name) => write!(f, "probe {name}"),
            LeaseId::Copy(n) => write!(f, "copy {n}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Shared,
    Exclusive,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    #[error("{0} is locked by another job")]
    Busy(LeaseId),
    #[error("the wait for {0} was cancelled")]
    Cancelled(LeaseId),
    /// The lock file is not the one the lease was taken on: restored, copied or re-made meanwhile.
    #[error("the lock on {0} was lost: the lease file was replaced")]
    Lost(LeaseId),
    /// Its holder's host is silent: only time helps, at most so much of it.
    #[error("{what} is locked by a host that is silent; it is given up {} s after its last sign at the latest", wait.as_secs())]
    Dying { what: LeaseId, wait: Duration },
    #[error("the lock on {what} can no longer be relied on: {why}")]
    Stale { what: LeaseId, why: String },
    #[error("this host has not joined the locks of {place}; `onesdm domain join` does it")]
    NotJoined { place: String },
    #[error("no place left for a lock on {what}: all {slots} are held")]
    Full { what: LeaseId, slots: u64 },
    #[error("{place}: {source}")]
    Sanlock { place: String, source: SanlockError },
    #[error("locking {what}: {source}")]
    Io { what: LeaseId, source: std::io::Error },
}

impl LockError {
    pub fn class(&self) -> Class {
        match self {
            LockError::Busy(_) | LockError::Dying { .. } | LockError::Full { .. } => Class::Busy,
            LockError::Cancelled(_) => Class::Cancelled,
            LockError::Lost(_) | LockError::Stale { .. } => Class::Integrity,
            LockError::NotJoined { .. } => Class::Refused,
            LockError::Sanlock { source, .. } => source.class(),
            LockError::Io { source, .. } => Class::of_io(source),
        }
    }
}

/// A backend: takes leases, or says at once that somebody else holds them.
pub trait LockBackend: Debug + Send + Sync {
    fn name(&self) -> &'static str;
    /// `Busy` when anybody, this process included, holds it in a way that excludes `mode`.
    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError>;
    /// Whether anybody holds it, without taking it. For people and for the checker, not for decisions.
    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError>;
    /// Who holds it, where the backend itself knows. For people.
    fn holder(&self, _id: &LeaseId) -> Option<Holder> {
        None
    }
    /// All that is held, by anybody; `None` where the backend does not know.
    fn holders(&self) -> Result<Option<Vec<Holder>>, LockError> {
        Ok(None)
    }
}

/// Who holds a lease, as far as the backend knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    pub what: String,
    pub host_id: u64,
    pub host: String,
    pub pid: Option<u32>,
    pub job: Option<JobId>,
    pub since: Option<String>,
    /// As in `Token`.
    pub version: u64,
}

impl Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {} (id {})", self.host, self.host_id)?;
        if let Some(pid) = self.pid {
            write!(f, ", pid {pid}")?;
        }
        if let Some(job) = self.job {
            write!(f, ", job {job}")?;
        }
        self.since.as_ref().map_or(Ok(()), |s| write!(f, ", since {s}"))
    }
}

/// Tells one holding of a lease from all earlier and later ones: goes into what its holder writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    pub host_id: u64,
    /// Counts how often the host joined.
    pub generation: u64,
    pub lease: String,
    /// Grows with every holder of this lease.
    pub version: u64,
}

static SPOKEN_FOR: Mutex<Option<JobId>> = Mutex::new(None);

/// Says for which job this process takes leases, so that others can be told. The first one stays.
pub fn speak_for(job: JobId) {
    SPOKEN_FOR.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(job);
}

fn spoken_for() -> Option<JobId> {
    *SPOKEN_FOR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One backend for a domain and for its engine, which takes the domain lock for calls without one.
impl<T: LockBackend + ?Sized> LockBackend for std::sync::Arc<T> {
    fn name(&self) -> &'static str {
        (**self).name()
    }

    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
        (**self).try_acquire(id, mode)
    }

    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError> {
        (**self).is_held(id)
    }

    fn holder(&self, id: &LeaseId) -> Option<Holder> {
        (**self).holder(id)
    }

    fn holders(&self) -> Result<Option<Vec<Holder>>, LockError> {
        (**self).holders()
    }
}

/// What a backend keeps alive while the lease lasts; dropping it releases.
pub trait Held: Debug + Send + Sync {
    /// `Lost` when what was locked is no longer what everybody locks.
    fn still_held(&self) -> Result<(), LockError>;
    /// A descriptor that holds it too, when a child inherits it.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// `None` where the backend counts nothing.
    fn token(&self) -> Result<Option<Token>, LockError> {
        Ok(None)
    }
}

macro_rules! lease {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[must_use = "a lease that is dropped is released"]
        pub struct $name { held: Box<dyn Held>, id: LeaseId }
        impl $name {
            /// To be asked again before each step that commits.
            pub fn still_held(&self) -> Result<(), LockError> { self.held.still_held() }
            pub fn id(&self) -> &LeaseId { &self.id }
            pub fn token(&self) -> Result<Option<Token>, LockError> { self.held.token() }
        }
    };
}

lease! {
    /// The right to mark, publish, replace and bury in one domain. Held for milliseconds.
    DomainLock
}
lease! {
    /// The right to read (shared) or write (exclusive) the data of one image and its chain.
    SlabLease
}
lease! {
    /// Shows that a job lives. Everything below `new/<job>` belongs to its holder.
    OwnerLease
}

impl OwnerLease {
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.held.fd()
    }

    pub fn job(&self) -> JobId {
        match self.id {
            LeaseId::Owner(job) => job,
            // Constructed below only, always on an owner id.
            _ => JobId(uuid::Uuid::nil()),
        }
    }
}

/// Takes the domain lock, trying until `wait` is over.
pub fn domain_lock(
    locks: &dyn LockBackend,
    wait: Duration,
    cancel: &Cancel,
) -> Result<DomainLock, LockError> {
    let held = retry(locks, &LeaseId::Domain, Mode::Exclusive, Wait::until(wait), cancel)?;
    history(|| format!("take {}", moment(&*held)));
    Ok(DomainLock { held, id: LeaseId::Domain })
}

/// Which holding of a lease this is, and what time it is.
fn moment(held: &dyn Held) -> String {
    let token = held.token().ok().flatten();
    let (host, version) = token.map_or((0, 0), |t| (t.host_id, t.version));
    format!("{host} {version} {}", jiff::Timestamp::now().as_microsecond())
}

impl DomainLock {
    /// A descriptor that holds it, too.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.held.fd()
    }

    /// For tests: a numbered change that was made under this holding.
    pub fn changed(&self, before: u64, after: u64) {
        history(|| format!("change {} {before} {after}", moment(&*self.held)));
    }
}

impl Drop for DomainLock {
    fn drop(&mut self) {
        history(|| format!("give {}", moment(&*self.held)));
    }
}

/// Takes a job's owner lease, or says at once that the job lives. On a host that is silent it does: nobody knows better yet.
pub fn owner_lease(locks: &dyn LockBackend, job: JobId) -> Result<OwnerLease, LockError> {
    let id = LeaseId::Owner(job);
    match acquire(locks, &wrong(job).unwrap_or(id.clone()), Mode::Exclusive) {
        Err(LockError::Dying { what, .. }) => Err(LockError::Busy(what)),
        held => Ok(OwnerLease { held: held?, id }),
    }
}

/// The same for one's own job. What a silent host still has of all leases, such as sanlock's table, is waited for.
pub fn own_lease(locks: &dyn LockBackend, job: JobId, cancel: &Cancel) -> Result<OwnerLease, LockError> {
    let (id, at_once) = (LeaseId::Owner(job), Wait { end: Instant::now(), dead: true });
    let held = retry(locks, &wrong(job).unwrap_or(id.clone()), Mode::Exclusive, at_once, cancel)?;
    Ok(OwnerLease { held, id })
}

fn wrong(job: JobId) -> Option<LeaseId> {
    bug("skip-owner-lease").then(|| LeaseId::Probe(job.to_string()))
}

/// Takes leases on several slabs, all or none. A slab wanted in two modes is taken exclusively.
pub fn slab_leases(
    locks: &dyn LockBackend,
    wanted: &[(&str, Mode)],
    wait: Duration,
    cancel: &Cancel,
) -> Result<Vec<SlabLease>, LockError> {
    let mut sorted: Vec<(u64, Mode, LeaseId)> = wanted
        .iter()
        .map(|(name, mode)| {
            let id = LeaseId::Slab((*name).to_owned());
            (id.offset(), *mode, id)
        })
        .collect();
    // By byte, the exclusive wish of one byte first: two ids that share a byte are one lease.
    sorted.sort_by_key(|(off, mode, _)| (*off, std::cmp::Reverse(*mode)));
    sorted.dedup_by_key(|(off, ..)| *off);
    let wait = Wait::until(wait);
    let mut out = Vec::with_capacity(sorted.len());
    for (_, mode, id) in sorted {
        out.push(SlabLease { held: retry(locks, &id, mode, wait, cancel)?, id });
    }
    Ok(out)
}

/// How long this process has waited for locks so far.
pub fn waited() -> Duration {
    Duration::from_micros(WAITED.load(Ordering::Relaxed))
}

static WAIT_DEAD: Mutex<Option<Duration>> = Mutex::new(None);

/// How long this process waits for locks of a host that is silent. `None`: until it must be known to be dead.
pub fn wait_dead(limit: Option<Duration>) {
    *WAIT_DEAD.lock().unwrap_or_else(PoisonError::into_inner) = limit;
}

static WAITED: AtomicU64 = AtomicU64::new(0);

/// Takes it; who only plans looks whether it could.
fn acquire(locks: &dyn LockBackend, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
    if !only_looks() {
        return locks.try_acquire(id, mode);
    }
    // Who reads does not mind others who do; sanlock would write it down.
    let reads = || mode == Mode::Shared && locks.name() != sanlock::NAME;
    if locks.is_held(id)? && !(reads() && locks.try_acquire(id, mode).is_ok()) {
        return Err(LockError::Busy(id.clone()));
    }
    Ok(Box::new(Looked))
}

/// A lease that was only looked at.
#[derive(Debug)]
struct Looked;

impl Held for Looked {
    fn still_held(&self) -> Result<(), LockError> {
        Ok(())
    }
}

/// How long to try for a lease that a living host has, and whether to wait for a silent one to be given up, too.
#[derive(Clone, Copy)]
struct Wait {
    end: Instant,
    dead: bool,
}

impl Wait {
    /// Whoever waits at all waits for a dead host to be known as one.
    fn until(wait: Duration) -> Wait {
        Wait { end: Instant::now() + wait, dead: !wait.is_zero() }
    }
}

fn retry(
    locks: &dyn LockBackend,
    id: &LeaseId,
    mode: Mode,
    wait: Wait,
    cancel: &Cancel,
) -> Result<Box<dyn Held>, LockError> {
    let (mut pause, begin) = (2, Instant::now());
    let Wait { mut end, dead: waits } = wait;
    let dead = *WAIT_DEAD.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        match acquire(locks, id, mode) {
            Err(e) if only_looks() => return Err(e),
            Err(LockError::Dying { wait, .. })
                if waits && Instant::now() < end.max(begin + dead.unwrap_or(wait)) =>
            {
                end = end.max(begin + dead.unwrap_or(wait));
            }
            Err(LockError::Busy(_)) if Instant::now() < end => {}
            r => return r,
        }
        // Jitter, so that waiters of many hosts do not knock at the same instants.
        let mut random = [0; 1];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let left = end.saturating_duration_since(Instant::now());
        let ms = pause + u64::from(random[0]) * pause / 256;
        let began = Instant::now();
        let go_on = cancel.wait(left.min(Duration::from_millis(ms)));
        WAITED.fetch_add(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if !go_on {
            return Err(LockError::Cancelled(id.clone()));
        }
        pause = (pause * 2).min(250);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_part_of_the_format() {
        assert_eq!(LeaseId::Domain.offset(), 0);
        assert_eq!(
            LeaseId::Slab("ad4b151c1c9cfb44ee81508564f3d99e".into()).offset(),
            154_604_803_540_711_694
        );
        assert_ne!(LeaseId::Slab("x".into()).offset(), LeaseId::Probe("x".into()).offset());
    }

    #[test]
    fn several_slabs_are_taken_all_or_none() {
        let locks = MemLocks::default();
        let c = Cancel::default();
        let one = slab_leases(&locks, &[("b", Mode::Exclusive)], Duration::ZERO, &c).unwrap();
        let both = [("a", Mode::Exclusive), ("b", Mode::Shared)];
        assert!(matches!(slab_leases(&locks, &both, Duration::ZERO, &c), Err(LockError::Busy(_))));
        drop(one);
        assert_eq!(slab_leases(&locks, &both, Duration::ZERO, &c).unwrap().len(), 2);
        let same = [("a", Mode::Shared), ("a", Mode::Exclusive)];
        let taken = slab_leases(&locks, &same, Duration::ZERO, &c).unwrap();
        assert_eq!(taken.len(), 1);
        let reader = slab_leases(&locks, &[("a", Mode::Shared)], Duration::ZERO, &c);
        assert!(matches!(reader, Err(LockError::Busy(_))), "who wants it both ways has it for himself");
    }

    /// Two that want the same leases named in another order would wait for each other.
    #[test]
    fn several_slabs_are_taken_in_one_order() {
        let (locks, c) = (MemLocks::default(), Cancel::default());
        let in_order = |names: [&str; 3]| {
            let wanted = names.map(|n| (n, Mode::Exclusive));
            let taken = slab_leases(&locks, &wanted, Duration::ZERO, &c).unwrap();
            taken.iter().map(|l| l.id().offset()).collect::<Vec<_>>()
        };
        let one = in_order(["a", "b", "c"]);
        assert!(one.is_sorted() && one.len() == 3, "{one:?}");
        assert_eq!(in_order(["c", "a", "b"]), one);
    }

    /// Its holder's host is silent, and stays so.
    #[derive(Debug)]
    struct Silent;

    impl LockBackend for Silent {
        fn name(&self) -> &'static str {
            "silent"
        }

        fn try_acquire(&self, id: &LeaseId, _mode: Mode) -> Result<Box<dyn Held>, LockError> {
            Err(LockError::Dying { what: id.clone(), wait: Duration::from_millis(300) })
        }

        fn is_held(&self, _id: &LeaseId) -> Result<bool, LockError> {
            Ok(true)
        }
    }

    #[test]
    fn a_silent_host_is_waited_for_longer_than_a_living_one_but_not_at_all_by_who_does_not_wait() {
        let took = |wait: u64, dead: Option<u64>| {
            wait_dead(dead.map(Duration::from_millis));
            let began = Instant::now();
            let r = domain_lock(&Silent, Duration::from_millis(wait), &Cancel::default());
            assert!(matches!(r, Err(LockError::Dying { .. })), "{r:?}");
            wait_dead(None);
            began.elapsed().as_millis()
        };
        assert!(took(0, None) < 100);
        assert!(took(10, None) >= 300);
        let limited = took(10, Some(100));
        assert!((100..300).contains(&limited), "{limited}");
        // A job's own lease is waited for, too; another's job on such a host is not known to be dead.
        let (began, job) = (Instant::now(), JobId::generate());
        let own = own_lease(&Silent, job, &Cancel::default());
        assert!(matches!(own, Err(LockError::Dying { .. })) && began.elapsed().as_millis() >= 300, "{own:?}");
        let began = Instant::now();
        let other = owner_lease(&Silent, job);
        assert!(matches!(other, Err(LockError::Busy(_))) && began.elapsed().as_millis() < 100, "{other:?}");
    }

    #[test]
    fn a_wait_ends_when_it_is_cancelled_or_over() {
        let locks = MemLocks::default();
        let c = Cancel::default();
        let _held = domain_lock(&locks, Duration::ZERO, &c).unwrap();
        let (t, before) = (Instant::now(), waited());
        assert!(matches!(domain_lock(&locks, Duration::from_millis(60), &c), Err(LockError::Busy(_))));
        assert!(t.elapsed() >= Duration::from_millis(60));
        assert!(waited() >= before + Duration::from_millis(50), "{before:?}, then {:?}", waited());
        c.request();
        assert!(matches!(domain_lock(&locks, Duration::from_secs(60), &c), Err(LockError::Cancelled(_))));
    }
}
