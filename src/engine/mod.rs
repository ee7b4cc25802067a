//! What a kind of storage must offer the manager: slabs (blocks of writable storage), tags (durable
//! names of slabs, the only commit point there is) and a place for records that is ours. Everything
//! else is a capability, declared once and used when present.
//!
//! An engine knows three places. *Public* names are what OpenNebula sees. *Staged* slabs belong to
//! one living job. *Dead* ones are tombstones. Only the last two are ever deleted from.
//!
//! Arguments and answers are plain data, names come from the caller, an attachment is a path: an
//! engine may be another process. Source: seed 003; `docs/format.md` for the crash argument.

pub mod conformance;
#[cfg(any(test, feature = "failpoints"))]
pub mod faulty;
pub mod file;
pub mod lvm;
pub mod mem;

use crate::lock::{DomainLock, JobId, LockError, OwnerLease, SlabLease};
use crate::sys::effect::Failure;
use crate::sys::{Bytes, Class, ToolError};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Debug, Display};
use std::path::PathBuf;
use std::str::FromStr;

/// A public name: relative, at most eight components, never ours (`.sdm`), never upwards.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    pub fn parse(s: &str) -> Result<Name> {
        let bad = |why| Err(EngineError::BadName { name: s.to_owned(), why });
        let parts: Vec<&str> = s.split('/').collect();
        if parts.len() > 8 || s.len() > 1024 {
            return bad("too long");
        }
        for p in &parts {
            match *p {
                "" => return bad("an empty component"),
                "." | ".." => return bad("a component that is not a name"),
                ".sdm" => return bad("the manager's own directory"),
                p if p.len() > 255 => return bad("a component is too long"),
                p if p.contains(['\0', '\n']) => return bad("a control character"),
                _ => {}
            }
        }
        Ok(Name(s.to_owned()))
    }

    /// A name next to this one: `x` and `.snap` give `x.snap`.
    pub fn with_suffix(&self, suffix: &str) -> Result<Name> {
        Name::parse(&format!("{}{suffix}", self.0))
    }

    /// A name inside this one.
    pub fn child(&self, part: &str) -> Result<Name> {
        Name::parse(&format!("{}/{part}", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name this one lies in, if it is not directly in the domain.
    pub fn parent(&self) -> Option<Name> {
        self.0.rsplit_once('/').map(|(dir, _)| Name(dir.to_owned()))
    }

    /// Whether this is `other` or lies below it.
    pub fn is_within(&self, other: &Name) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The last component.
    pub fn last(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl TryFrom<String> for Name {
    type Error = EngineError;
    fn try_from(s: String) -> Result<Name> {
        Name::parse(&s)
    }
}

impl From<Name> for String {
    fn from(n: Name) -> String {
        n.0
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A tombstone: the `n`-th object that `job` buried. Kept ones stay for `trash.keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Grave {
    pub job: JobId,
    pub n: u32,
    pub keep: bool,
}

impl Display for Grave {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}{}", self.job, self.n, if self.keep { ".keep" } else { "" })
    }
}

impl FromStr for Grave {
    type Err = ();
    fn from_str(s: &str) -> std::result::Result<Grave, ()> {
        let (s, keep) = s.strip_suffix(".keep").map_or((s, false), |s| (s, true));
        let (job, n) = s.rsplit_once('-').ok_or(())?;
        Ok(Grave { job: job.parse().map_err(|_| ())?, n: n.parse().map_err(|_| ())?, keep })
    }
}

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Public(Name),
    Staged(JobId, u32),
    Dead(Grave),
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Public(name) => write!(f, "{name}"),
            Place::Staged(job, n) => write!(f, "staged {n} of job {job}"),
            Place::Dead(grave) => write!(f, "tombstone {grave}"),
        }
    }
}

/// Tells an object from any other that had or will have its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub ino: u64,
    pub born: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link(String),
    /// Space that slabs share.
    Pool,
    /// Nothing an image can be.
    Other,
}

/// An object and facts about it. A link is described, not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub place: Place,
    pub kind: Kind,
    pub id: Identity,
    pub size: Bytes,
    pub allocated: Bytes,
    /// Seconds since 1970 of the last change of the object or of its name.
    pub changed: i64,
}

/// What to make.
#[derive(Clone, Debug)]
pub enum Spec {
    /// A slab of its own; it reads zero where the capabilities say so.
    File(Bytes),
    Dir,
    /// A tag that points to another name, as text.
    Link(String),
    /// Space that several slabs share as they are written.
    Pool(Bytes),
    /// A slab in a pool, which may be staged itself. It reads zero.
    Thin {
        pool: Place,
        size: Bytes,
    },
    /// A slab that reads as another one in a pool does now, and shares its space.
    Clone(Name),
}

/// The manager's records. The first three live and die with a job's staging area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Intent,
    /// What an object was that the job changes in place.
    Undo,
    Commit,
    Done,
}

/// Bytes, and where they belong.
pub type Part = (u64, Vec<u8>);

/// A done record, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub job: JobId,
    /// Seconds since 1970 of its last change.
    pub changed: i64,
    /// A later request named what the job made: its answer had reached somebody.
    pub acknowledged: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To look at it now.
    Read,
    /// For machines that only read it, on this host and maybe on others.
    Share,
    Write,
}

/// What a host does with an object while a machine that has it open goes to another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handover {
    /// The one that has it lets others have it, too.
    Lend,
    /// Another one has it beside the one that lends it.
    Borrow,
    /// Who lent it has it alone again; nobody may have borrowed it.
    Keep,
}

/// How to reach an object's bytes from this host.
#[derive(Clone, Debug)]
pub struct Attachment {
    pub path: PathBuf,
}

/// What this storage can do beyond the must-have calls; found by doing, never by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_excessive_bools, reason = "a list of independent facts")]
pub struct Capabilities {
    /// Two names swap in one step.
    pub exchange: bool,
    /// A rename refuses an existing target in one step.
    pub noreplace: bool,
    /// A clone that shares extents (native clone).
    pub reflink: bool,
    pub sparse: bool,
    pub punch_hole: bool,
    /// Unbuffered writes.
    pub direct: bool,
    /// Directories with a path to write below.
    pub directories: bool,
    /// New slabs read zero.
    pub zero_initialised: bool,
}

/// Space of the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub total: Bytes,
    pub free: Bytes,
    pub used: Bytes,
}

/// How full a pool is, as the host that has it open can tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolUse {
    pub name: String,
    /// Used, and all, of what its slabs share.
    pub data: (Bytes, Bytes),
    /// The same of the tables that say which slab has what.
    pub tables: (Bytes, Bytes),
    /// Why it does not work as it should.
    pub trouble: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    #[error("name {name:?} is not allowed: {why}")]
    BadName { name: String, why: &'static str },
    #[error("{0} does not exist")]
    Absent(String),
    #[error("{0} exists already")]
    Exists(String),
    #[error("{0} is not the object it was when this job looked; nothing was changed")]
    Changed(String),
    #[error("{0} is on another file system than its domain")]
    Crosses(String),
    #[error("no space left for {0}")]
    NoSpace(String),
    /// Only a plan comes to this: who works makes it a device.
    #[error(
        "{0} is not active on this host, and a plan activates nothing: from here on it cannot be told what would be done"
    )]
    Inactive(String),
    /// A process, or another host, has it open.
    #[error("{what} is in use by {by}; nothing was changed")]
    InUse { what: String, by: String },
    /// Somebody without the domain lock writes to what only its holder may write to.
    #[error(
        "{what} was changed by a program that does not hold its lock; stop that program, then run `onesdm doctor`"
    )]
    Foreign { what: String },
    #[error("{what} is damaged: {why}")]
    Damaged { what: String, why: String },
    #[error(transparent)]
    Tool(#[from] ToolError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{engine} storage cannot {what}")]
    Unsupported { engine: &'static str, what: &'static str },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
}

impl Failure for EngineError {
    fn of(e: rustix::io::Errno) -> EngineError {
        EngineError::Io { what: "storage".to_owned(), source: e.into() }
    }
}

impl EngineError {
    pub fn class(&self) -> Class {
        match self {
            EngineError::BadName { .. } => Class::Usage,
            EngineError::Absent(_) => Class::NotFound,
            EngineError::Exists(_) | EngineError::Changed(_) | EngineError::Inactive(_) => Class::Busy,
            EngineError::Crosses(_) | EngineError::Unsupported { .. } => Class::Unsupported,
            EngineError::NoSpace(_) => Class::Internal,
            EngineError::InUse { .. } => Class::InUse,
            EngineError::Foreign { .. } | EngineError::Damaged { .. } => Class::Integrity,
            EngineError::Tool(e) => e.class(),
            EngineError::Lock(e) => e.class(),
            EngineError::Io { source, .. } => Class::of_io(source),
        }
    }
}

pub type Result<T> = std::result::Result<T, EngineError>;

/// One kind of storage, opened on one domain.
///
/// Every mutating call takes the lease that allows it. Calls under the domain lock compare the object
/// with the identity given, act, and verify what came of it; on a mismatch they put things back and
/// answer `Changed`. Each is one atomic step, durable only after `sync`.
/// What a record holds, if it is there.
pub type Recorded = Result<Option<Vec<u8>>>;
/// Is told a job, its commit, and how its intent is had.
pub type SeeJob<'a> = dyn FnMut(JobId, Recorded, &mut dyn FnMut() -> Recorded) + 'a;

pub trait Engine: Debug + Send + Sync {
    fn name(&self) -> &'static str;
    /// The lock backend that suits this storage when nothing else is configured.
    fn lock_backend(&self) -> &'static str;
    /// Probed by doing, in a staging area of `owner`; not needed for any other call to work.
    fn capabilities(&self, owner: &OwnerLease) -> Result<Capabilities>;
    fn usage(&self) -> Result<Usage>;
    /// The pools that this host has open.
    fn pools(&self) -> Result<Vec<PoolUse>> {
        Ok(Vec::new())
    }
    /// Whether new slabs outside pools read zero. Where they do not, their job sees to it.
    fn reads_zero(&self) -> bool {
        true
    }
    /// The pieces in which storage gives space, where it is not by the byte.
    fn extent(&self) -> Result<Option<Bytes>> {
        Ok(None)
    }
    /// What making this takes of the free space, as far as that can be told before.
    fn takes(&self, _spec: &Spec) -> Result<Option<Bytes>> {
        Ok(None)
    }
    /// The size of a slab that is asked for with this size: storage gives space in pieces.
    fn rounded(&self, size: Bytes) -> Result<Bytes> {
        Ok(size)
    }

    /// The domain's header, `None` when this storage is no domain yet.
    fn header(&self) -> Result<Option<Vec<u8>>>;
    /// Makes the manager's area, if need be, and answers its number (see `area_id`).
    fn prepare(&self) -> Result<u64>;
    /// Makes a domain with this header, after `prepare`. Of several racing makers one wins; all may
    /// read it afterwards.
    fn init(&self, header: &[u8]) -> Result<()>;
    /// Replaces the header, whole and durable. The caller has the domain lock.
    fn put_header(&self, header: &[u8]) -> Result<()>;
    /// A number that changes when the manager's area is copied or restored elsewhere.
    fn area_id(&self) -> Result<u64>;

    /// Facts about one object; absent is not an error.
    fn look(&self, at: &Place) -> Result<Option<Object>>;
    /// Objects directly inside a public name (`None`: the domain itself), ours left out, sorted by name.
    fn list(&self, inside: Option<&Name>) -> Result<Vec<Object>>;
    /// Jobs that have a staging area.
    fn jobs(&self) -> Result<Vec<JobId>>;
    /// Slabs in a job's staging area, in order of their number.
    fn staged(&self, job: JobId) -> Result<Vec<Object>>;
    fn dead(&self) -> Result<Vec<Object>>;
    /// The tombstones of one job.
    fn buried(&self, by: JobId) -> Result<Vec<Object>> {
        let mut dead = self.dead()?;
        dead.retain(|o| matches!(o.place, Place::Dead(grave) if grave.job == by));
        Ok(dead)
    }
    fn attach(&self, at: &Place, access: Access) -> Result<Attachment>;
    /// This host needs an object's bytes no longer; who needed them to read only may not be the only one here.
    /// What was never attached is no error.
    fn detach(&self, _at: &Place, _access: Access) -> Result<()> {
        Ok(())
    }

    /// The first of these objects that another host has for its machines, and which host that is.
    fn used_elsewhere<'a>(&self, _any: &'a [Name]) -> Result<Option<(&'a Name, String)>> {
        Ok(None)
    }

    /// Public slabs that this host attached for machines and needs still, also after it was started anew; and how.
    fn attached(&self) -> Result<Vec<(Object, Access)>> {
        Ok(Vec::new())
    }

    /// One step of a public slab's way to another host. Each may be repeated. Who borrowed it and who lent it give
    /// it up by `detach`. `Unsupported` where only one host at a time can have it.
    fn hand_over(&self, _at: &Place, _step: Handover) -> Result<()> {
        Err(EngineError::Unsupported { engine: self.name(), what: "lend a slab to another host" })
    }

    /// Public slabs that this host once had and another one has since a machine went there, so that this one need not
    /// have them any more.
    fn moved(&self) -> Result<Vec<Object>> {
        Ok(Vec::new())
    }

    /// Whether a slab lies in a pool.
    fn is_pooled(&self, _at: &Place) -> Result<bool> {
        Ok(false)
    }

    /// Opens the owner's staging area.
    fn begin(&self, owner: &OwnerLease) -> Result<()>;
    /// Makes slab `n` in the owner's staging area.
    fn create(&self, owner: &OwnerLease, n: u32, spec: &Spec) -> Result<Object>;
    /// Gives a public slab a second name in the owner's staging area, at no cost. `Unsupported` where
    /// that cannot be done: then the caller copies.
    fn adopt(&self, owner: &OwnerLease, n: u32, name: &Name) -> Result<Object>;
    /// Hands slab `n` of a dead job, whose lease this is, to the owner, as its slab `to`. `Unsupported` where
    /// that cannot be done: then it is made anew.
    fn take_over(
        &self,
        _lock: &DomainLock,
        _dead: (&OwnerLease, u32, Identity),
        _owner: &OwnerLease,
        _to: u32,
    ) -> Result<()> {
        Err(EngineError::Unsupported { engine: self.name(), what: "hand over staged slabs" })
    }
    /// Makes a staged object and all below it durable, as the process sees it now.
    fn flush(&self, owner: &OwnerLease, n: u32) -> Result<()>;
    /// Grows or shrinks a slab, in place; new bytes read zero where new slabs do.
    fn resize(&self, lease: &SlabLease, at: &Place, to: Bytes) -> Result<()>;
    /// Grows a public slab by the owner's slab `n`, which is part of it then; for engines whose new bytes do not read
    /// zero. Cut off, the public slab is what it was, and the other one may be gone.
    fn append(&self, _lease: &SlabLease, _owner: &OwnerLease, _n: u32, _to: &Place) -> Result<()> {
        Err(EngineError::Unsupported { engine: self.name(), what: "grow a slab by another" })
    }
    /// Removes the owner's staging area: content, then records, then the area.
    fn end(&self, owner: &OwnerLease) -> Result<()>;

    /// Gives a published object, which the owner was changing in place, these bytes at these places, and makes them durable.
    fn mend(&self, _owner: &OwnerLease, _at: &Place, _id: Identity, _parts: &[Part]) -> Result<()> {
        Err(EngineError::Unsupported { engine: self.name(), what: "put bytes back" })
    }

    /// Writes a record of the owner. All but an intent is durable on return, and with it every staged entry.
    fn put_record(&self, owner: &OwnerLease, record: Record, bytes: &[u8]) -> Result<()>;
    /// Takes away a living job's intent, without which it decides nothing. Absent is not an error.
    fn fence(&self, lock: &DomainLock, job: JobId) -> Result<()>;
    /// At most 1 MiB of it; absent is not an error.
    fn record(&self, job: JobId, record: Record) -> Recorded;
    /// Shows commit and intent of each job, for thousands of them: what has a commit needs no intent read.
    fn each_job(&self, see: &mut SeeJob<'_>) -> Result<()> {
        for job in self.jobs()? {
            see(job, self.record(job, Record::Commit), &mut || self.record(job, Record::Intent));
        }
        Ok(())
    }
    /// Turns the owner's commit record into a done record.
    fn close(&self, lock: &DomainLock, owner: &OwnerLease) -> Result<()>;
    fn done(&self) -> Result<Vec<Finished>>;
    /// The jobs of done records that may have made this object, the likeliest first; with `acknowledged`, all of
    /// them, else those that are not, as far as it pays to look.
    fn makers(&self, _object: Identity, acknowledged: bool) -> Result<Vec<JobId>> {
        let wanted = |d: &&Finished| acknowledged || !d.acknowledged;
        Ok(self.done()?.iter().rev().filter(wanted).map(|d| d.job).collect())
    }
    /// Marks a done record: somebody came to know what the job made. Absent is not an error.
    fn acknowledge(&self, lock: &DomainLock, job: JobId) -> Result<()>;
    fn forget(&self, lock: &DomainLock, job: JobId) -> Result<()>;

    /// Gives a staged slab a public name that nobody has. Its parent must exist.
    fn publish(&self, lock: &DomainLock, job: JobId, n: u32, id: Identity, to: &Name) -> Result<()>;
    /// Puts a staged slab in the place of `old`, which goes to `grave`. Readers see one or the other.
    fn replace(
        &self,
        lock: &DomainLock,
        staged: (JobId, u32, Identity),
        to: &Name,
        old: Identity,
        grave: &Grave,
    ) -> Result<()>;
    /// Makes an object invisible by one bare rename. Works on a full disk.
    fn bury(&self, lock: &DomainLock, at: &Place, id: Identity, grave: &Grave) -> Result<()>;
    /// Bytes that deleting an object would free, all below it included, as far as they are its own.
    fn weight(&self, at: &Place) -> Result<Bytes>;
    /// Gives up what the engine keeps for removals that meet a full disk; `tidy` restores it.
    fn give_reserve(&self, lock: &DomainLock) -> Result<()>;
    /// Restores what the engine keeps for itself, such as space for removals on a full disk.
    fn tidy(&self, lock: &DomainLock) -> Result<()>;
    /// What lies in the manager's area and should not, one line each.
    fn strays(&self) -> Result<Vec<String>>;
    /// Makes the names of these places durable, in this order.
    fn sync(&self, places: &[Place]) -> Result<()>;

    /// Deletes a tombstone's content. `owner` is the lease of the job that buried it. Interruptible.
    fn purge(&self, owner: &OwnerLease, grave: &Grave) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_domain_are_refused() {
        for bad in
            ["", "/", "/etc", "a//b", "..", "a/../b", ".", ".sdm", ".sdm/new", "a/", "a/.sdm", "a\nb", "a\0"]
        {
            assert!(Name::parse(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "a.snap/1", "5/disk.0", "…", "-rf", ".x", "a b"] {
            assert!(Name::parse(good).is_ok(), "{good:?}");
        }
        assert!(serde_json::from_str::<Name>("\"../x\"").is_err(), "records are checked, too");
    }

    #[test]
    fn a_name_is_within_its_directories_and_no_namesake() {
        let n = |s| Name::parse(s).unwrap();
        for (inner, outer, is) in [
            ("5/disk.0", "5", true),
            ("5", "5", true),
            ("5/disk.0.snap/1", "5/disk.0.snap", true),
            ("5/disk.0.snap", "5/disk.0", false),
            ("55", "5", false),
            ("5", "5/disk.0", false),
        ] {
            assert_eq!(n(inner).is_within(&n(outer)), is, "{inner} {outer}");
        }
        assert_eq!(n("5/disk.0").parent(), Some(n("5")));
        assert_eq!(n("5").parent(), None);
    }

    #[test]
    fn graves_survive_their_text() {
        for keep in [false, true] {
            let g = Grave { job: JobId::generate(), n: 3, keep };
            assert_eq!(g.to_string().parse(), Ok(g));
        }
        assert!("x-1".parse::<Grave>().is_err());
    }
}
