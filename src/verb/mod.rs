//! One file per OpenNebula verb: a request becomes calls of the rooms below and one answer. Here, and
//! in `cli`, errors are `anyhow`: gerund context outside, typed facts inside, the class found again.

mod blank;
pub mod datastore;
mod fill;
mod group;
mod hold;
mod plan;
mod snaps;
mod stage;
mod stream;
pub mod tm;

pub use plan::Planning;
pub use tm::live::guard::COMMAND as GUARD;
pub use tm::live::note::{Found, tend};
pub use tm::live::watch::{charge, recover, serve as guard};
pub use tm::op::Follow as Watched;

use crate::config::Settings;
use crate::connection::{ConnectionError, Connections, Share};
use crate::data::DataError;
use crate::engine::EngineError;
use crate::host::{HostError, Link};
use crate::image::{ImageError, Qemu};
use crate::lock::{JobId, LockError};
use crate::one::{DatastoreDoc, NfsAuto, OneError};
use crate::sdm::{Domain, Job, Jobs, SdmError, gc, turn};
use crate::sys::{Cancel, Class, ToolError, Tools};
use anyhow::Context as _;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::Duration;

/// What every verb gets, besides its request.
pub struct Ctx<'a> {
    pub settings: &'a Settings,
    pub tools: &'a Tools,
    pub jobs: &'a Jobs,
    /// The id of this request, and whether the caller gave it (then the answer may be on record).
    pub job: JobId,
    pub repeatable: bool,
    /// Opens a datastore's domain for changing it.
    pub open: &'a Open<'a>,
    /// Asked once by transfer-manager verbs, when everything is filled and flushed and before the step
    /// that makes it visible: whoever started the work on this host may still have it undone.
    pub ready: &'a Ready<'a>,
    /// Whoever gives or takes the data of a transfer to or from another host.
    pub peer: Option<&'a dyn Link>,
}

/// Opens the domain of a datastore: its directory, and OpenNebula's number of it.
pub type Open<'a> = dyn Fn(&Path, i64) -> Result<Domain, SdmError> + 'a;

/// An error means that the work is to be taken back.
pub type Ready<'a> = dyn Fn() -> anyhow::Result<()> + 'a;

/// What moves image data ends with its verb, not by a clock of its own.
const MOVING: Duration = Duration::from_secs(30 * 24 * 3600);

impl Ctx<'_> {
    /// `qemu-img` for a job. `keep` are the descriptors of its leases: a child that outlives the job for
    /// a moment keeps them held.
    pub fn qemu<'b>(&'b self, job: &'b Job, keep: &'b [BorrowedFd<'b>]) -> Qemu<'b> {
        Qemu { tools: self.tools, cancel: job.cancel(), deadline: MOVING, inherit: keep }
    }
}

/// The share that a datastore's attributes ask for.
pub fn share(ds: &DatastoreDoc) -> anyhow::Result<Option<Share>> {
    let of = |n: &NfsAuto| Share::parse(&n.host, &n.path, n.options.as_deref().unwrap_or_default());
    ds.nfs_auto.as_ref().map(of).transpose().with_context(|| format!("datastore {}: NFS_AUTO", ds.id))
}

/// Has it mounted where the datastore is.
pub fn connect(c: &Connections<'_>, ds: i64, share: &Share, dir: &Path) -> anyhow::Result<()> {
    if c.connect(&format!("datastore-{ds}"), "oned", share, dir)? {
        tracing::info!(ds, %share, "mounted");
    }
    Ok(())
}

/// What the settings say of garbage.
pub fn gc_policy(s: &Settings) -> gc::Policy {
    gc::Policy {
        trash_keep: s.trash_keep,
        done_max: usize::try_from(s.job.done_max).unwrap_or(usize::MAX),
        done_age: Duration::from_secs(u64::from(s.job.done_days) * 24 * 3600),
        short: false,
    }
}

/// How many copies the settings allow at once.
pub fn copies(s: &Settings) -> turn::Limits {
    turn::Limits { host: s.data.host_copies, domain: s.data.domain_copies }
}

/// Runs a verb to its end. Where it has to move data and has no turn, it has taken back what it did: it waits
/// without anything in its hands, and begins again. `domains`: those that it worked in.
pub fn in_turn<T: Default>(
    job: &Job,
    domains: impl FnOnce() -> Result<Vec<Domain>, SdmError>,
    mut run: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let done = run();
    if let (Err(e), Some(plan)) = (&done, &job.jobs.plan)
        && let Some(why) = plan::end(e)
    {
        plan.end(why);
        return Ok(T::default());
    }
    if !done.as_ref().is_err_and(wants_turn) {
        return done;
    }
    turn::take(job, &domains()?, turn::now(), MOVING)?;
    let done = run();
    job.jobs.copies.end_turn();
    done
}

fn wants_turn(e: &anyhow::Error) -> bool {
    e.chain().any(|c| {
        matches!(c.downcast_ref(), Some(DataError::NoTurn))
            || matches!(c.downcast_ref(), Some(SdmError::Data(DataError::NoTurn)))
    })
}

/// A failure that a verb itself finds.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Refusal {
    pub class: Class,
    pub text: String,
}

/// Builds a refusal: what, on what object, why, and the next step.
pub fn refuse(class: Class, text: impl Into<String>) -> anyhow::Error {
    Refusal { class, text: text.into() }.into()
}

/// Around a failure that came of having to stop.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    #[error("stopped on request; nothing was left behind")]
    Asked,
    #[error("stopped after verb.deadline; nothing was left behind (a larger deadline may help)")]
    Late,
}

/// A failure with what it was about in front, unless its line says so anyway.
pub fn about(e: anyhow::Error, job: &Job) -> anyhow::Error {
    let object = job.named();
    if object.is_empty() || one_line(&e).contains(&object) {
        return e;
    }
    e.context(format!("{} of {object}", job.topic.verb))
}

/// Says so of a failure that came of having to stop: a child that got the same signal reports its own death.
pub fn stopped(cancel: &Cancel, e: anyhow::Error) -> anyhow::Error {
    match cancel {
        c if c.is_expired() => e.context(Stopped::Late),
        c if c.is_requested() => e.context(Stopped::Asked),
        _ => e,
    }
}

/// Whether a failure came of a full disk, wherever it was met.
pub fn is_no_space(e: &anyhow::Error) -> bool {
    e.chain().any(|c| {
        let io = c.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        matches!(io, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
            || matches!(c.downcast_ref(), Some(EngineError::NoSpace(_)))
            || matches!(c.downcast_ref(), Some(SdmError::Engine(EngineError::NoSpace(_))))
            || matches!(c.downcast_ref(), Some(ToolError::Failed { stderr, .. }) if stderr.contains("No space left"))
            || matches!(c.downcast_ref(), Some(ImageError::Tool(ToolError::Failed { stderr, .. })) if stderr.contains("No space left"))
    })
}

/// The class of a failure: that of the innermost error that has one.
pub fn class_of(e: &anyhow::Error) -> Class {
    match e.downcast_ref() {
        Some(Stopped::Asked) => return Class::Cancelled,
        Some(Stopped::Late) => return Class::Timeout,
        None => {}
    }
    e.chain()
        .find_map(|c| {
            None.or_else(|| c.downcast_ref::<Refusal>().map(|e| e.class))
                .or_else(|| c.downcast_ref::<SdmError>().map(SdmError::class))
                .or_else(|| c.downcast_ref::<LockError>().map(LockError::class))
                .or_else(|| c.downcast_ref::<EngineError>().map(EngineError::class))
                .or_else(|| c.downcast_ref::<ImageError>().map(ImageError::class))
                .or_else(|| c.downcast_ref::<DataError>().map(DataError::class))
                .or_else(|| c.downcast_ref::<ConnectionError>().map(ConnectionError::class))
                .or_else(|| c.downcast_ref::<OneError>().map(OneError::class))
                .or_else(|| c.downcast_ref::<HostError>().map(HostError::class))
                .or_else(|| c.downcast_ref::<ToolError>().map(ToolError::class))
                .or_else(|| {
                    c.downcast_ref::<crate::config::ConfigError>().map(crate::config::ConfigError::class)
                })
                .or_else(|| c.downcast_ref::<std::io::Error>().map(Class::of_io))
        })
        .unwrap_or(Class::Internal)
}

/// Bytes of a failure's line; what is named may be as long as its sender likes.
const LINE: usize = 900;

/// The whole chain in one line, a cause that only repeats what was said left out. Of a long one the
/// beginning and the end.
pub fn one_line(e: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if out.is_empty() {
            out = cause;
        } else if !out.ends_with(&cause) {
            out = format!("{out}: {cause}");
        }
    }
    if out.len() <= LINE {
        return out;
    }
    let end: Vec<char> = within(LINE / 2, out.chars().rev()).collect();
    let end: String = end.into_iter().rev().collect();
    format!("{} [...] {end}", within(LINE / 2, out.chars()).collect::<String>())
}

/// As many characters as fit in `bytes`.
fn within(mut bytes: usize, chars: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    chars.take_while(move |c| {
        let left = bytes.checked_sub(c.len_utf8());
        bytes = left.unwrap_or(0);
        left.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_found_below_the_context() {
        let e = Err::<(), _>(SdmError::from(LockError::Busy(crate::lock::LeaseId::Domain)));
        let e = e.context("copying image 7").unwrap_err();
        assert_eq!(class_of(&e), Class::Busy);
        assert_eq!(one_line(&e), "copying image 7: domain metadata is locked by another job");
    }

    #[test]
    fn a_long_line_keeps_its_ends() {
        let e = refuse(Class::Usage, format!("what {} why", "ä".repeat(10_000)));
        let line = one_line(&e.context("doing"));
        assert!(line.len() < 950 && line.starts_with("doing: what ä") && line.ends_with("ä why"), "{line}");
    }
}
