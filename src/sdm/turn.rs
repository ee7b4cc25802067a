//! Turns: how many copies may run at once, on this host and in one domain over all hosts.
//!
//! A verb decides, under its leases, whether it has to move data at all. Where it has to and has no turn, it ends
//! there, takes back what it staged, lets its leases go, waits here, and is run again from its beginning, with
//! the turn. So nothing waits for a turn with a lease in its hands: others get what they need meanwhile, and
//! who has a turn waits for leases only of those who have one, too, or need none. A turn of several parts (the
//! host's, one of each domain) is taken whole or not at all, so nothing waits for one part with another in its hands,
//! and there is no circle. What has nothing to move never gets here.
//!
//! A part is a lock that ends with its process: a byte of one file of this host, a lease of the domain's own
//! backend. Who waits on this host stands in line by the time it came, one line for the host and one for each
//! domain; between hosts chance decides.

use super::{Domain, Job, Result, SdmError};
use crate::lock::{Held, LeaseId, LockError, Mode};
use crate::sys::effect::only_looks;
use crate::sys::ofd::{self, Locked};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The phase of a job that waits for its turn.
pub const WAITS: &str = "waits for a copy of another job to end";

/// One look at this host's file costs nothing; one at a domain is an access to its storage for each copy.
const LOOK: Duration = Duration::from_millis(200);
const LOOK_FAR: Duration = Duration::from_secs(1);

/// How many copies at once; 0: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub host: u32,
    pub domain: u32,
}

impl Limits {
    pub fn any(self) -> bool {
        self.host > 0 || self.domain > 0
    }
}

/// The right to move data, until it is dropped.
#[derive(Debug, Default)]
pub struct Turn {
    _host: Option<Locked>,
    _domains: Vec<Box<dyn Held>>,
}

/// The copies of this process, which works for one job at a time.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    pub limits: Limits,
    turn: Arc<Mutex<Option<Turn>>>,
}

impl Copies {
    pub fn of(limits: Limits) -> Copies {
        Copies { limits, turn: Arc::default() }
    }

    /// The same with other limits.
    #[must_use]
    pub fn with(&self, limits: Limits) -> Copies {
        Copies { limits, ..self.clone() }
    }

    fn turn(&self) -> MutexGuard<'_, Option<Turn>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn may_move(&self) -> bool {
        !self.limits.any() || only_looks() || self.turn().is_some()
    }

    /// Another process of this host has a turn for what both do together.
    pub fn lend_turn(&self) {
        self.turn().get_or_insert_default();
    }

    /// Lets others move data.
    pub fn end_turn(&self) {
        self.turn().take();
    }
}

/// Bytes of the host's file: copies from 0, then the lines, in each a byte per millisecond since 1970.
const LINE: u32 = 42;

fn line_of(domain: Option<uuid::Uuid>) -> u64 {
    // Two domains in one line are only slower.
    let n = domain.map_or(0, |id| 1 + (id.as_u64_pair().1 & 0x3_ffff));
    (n + 1) << LINE
}

/// A place in a line of this host.
#[derive(Debug)]
struct Place {
    line: u64,
    came: u64,
    file: Locked,
    stands: bool,
}

impl Place {
    /// Whether somebody stands before us.
    fn is_behind(&self) -> io::Result<bool> {
        ofd::is_any_held(self.file.as_fd(), self.line..self.line + self.came)
    }

    /// Two who came in one millisecond may stand behind each other in any order.
    fn stand(&mut self) -> io::Result<()> {
        while !self.stands {
            self.stands = ofd::try_lock(self.file.as_fd(), self.line + self.came, true)?;
            self.came += u64::from(!self.stands);
        }
        Ok(())
    }
}

/// What is waited for.
struct Wish<'a> {
    path: PathBuf,
    limits: Limits,
    domains: &'a [Domain],
    came: u64,
    /// Places in lines: the host's, those of the domains.
    host: Option<Place>,
    lines: Vec<Place>,
}

/// What is in the way.
enum Way {
    Clear(Turn),
    Host,
    Domain,
}

/// When somebody came, for its place in the lines.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or(0)
}

/// Waits for a turn in these domains, at most `patience`; it is this process' then. Whether it has one.
pub fn take(job: &Job, domains: &[Domain], came: u64, patience: Duration) -> Result<bool> {
    let (limits, end) = (job.jobs.copies.limits, Instant::now() + patience);
    if job.jobs.copies.may_move() {
        return Ok(true);
    }
    let path = job.jobs.run.with_file_name("copies");
    let came = came % (1 << LINE);
    let mut wish = Wish { path, limits, domains, came, host: None, lines: Vec::new() };
    let failed = |path: &PathBuf, source| SdmError::Io { what: path.display().to_string(), source };
    wish.line_up().map_err(|e| failed(&wish.path, e))?;
    let before = job.info().phase;
    loop {
        let pause = match wish.look()? {
            Way::Clear(turn) => {
                job.follow(&before, 0, None);
                *job.jobs.copies.turn() = Some(turn);
                return Ok(true);
            }
            _ if Instant::now() >= end => return Ok(false),
            Way::Host => LOOK,
            Way::Domain => LOOK_FAR,
        };
        if job.info().phase != WAITS {
            job.follow(WAITS, 0, None);
        }
        // Hosts must not look all at the same moment.
        let mut random = [0; 1];
        let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
        let pause = pause + pause * u32::from(random[0]) / 512;
        if !job.cancel().wait(pause.min(end.saturating_duration_since(Instant::now()))) {
            return Err(LockError::Cancelled(LeaseId::Copy(0)).into());
        }
    }
}

impl Wish<'_> {
    fn open(&self) -> io::Result<Locked> {
        if let Some(dir) = self.path.parent().filter(|d| !d.exists()) {
            std::fs::create_dir_all(dir)?;
        }
        let mut open = File::options();
        open.read(true).write(true).create(true).truncate(false).mode(0o660);
        open.open(&self.path).map(Locked::new)
    }

    fn place(&self, line: u64) -> io::Result<Place> {
        Ok(Place { line, came: self.came, file: self.open()?, stands: false })
    }

    fn line_up(&mut self) -> io::Result<()> {
        if self.limits.host > 0 {
            self.host = Some(self.place(line_of(None))?);
        }
        if self.limits.domain > 0 {
            let lines = self.domains.iter().map(|d| self.place(line_of(Some(d.header.id))));
            self.lines = lines.collect::<io::Result<_>>()?;
        }
        Ok(())
    }

    fn look(&mut self) -> Result<Way> {
        let path = self.path.display().to_string();
        let io = |source| SdmError::Io { what: path.clone(), source };
        for line in &mut self.lines {
            if line.is_behind().map_err(io)? {
                line.stand().map_err(io)?;
                self.leave_host().map_err(io)?;
                return Ok(Way::Domain);
            }
        }
        let Some(host) = self.try_host().map_err(io)? else { return Ok(Way::Host) };
        let mut domains = Vec::new();
        if self.limits.domain > 0 {
            for d in self.domains {
                let Some(held) = try_domain(d, self.limits.domain)? else {
                    for line in &mut self.lines {
                        line.stand().map_err(io)?;
                    }
                    // Others of this host may have what we cannot use yet.
                    self.leave_host().map_err(io)?;
                    return Ok(Way::Domain);
                };
                domains.push(held);
            }
        }
        Ok(Way::Clear(Turn { _host: host, _domains: domains }))
    }

    /// A byte of this host, or a place in its line. `Some(None)`: none is needed.
    #[expect(clippy::option_option, reason = "two questions: whether one may go on, and with what")]
    fn try_host(&mut self) -> io::Result<Option<Option<Locked>>> {
        let Some(place) = &mut self.host else { return Ok(Some(None)) };
        if place.is_behind()? {
            place.stand()?;
            return Ok(None);
        }
        let file = self.open()?;
        for n in 0..self.limits.host.min(1 << 20) {
            if ofd::try_lock(file.as_fd(), n.into(), true)? {
                return Ok(Some(Some(file)));
            }
        }
        if let Some(place) = &mut self.host {
            place.stand()?;
        }
        Ok(None)
    }

    fn leave_host(&mut self) -> io::Result<()> {
        if self.host.as_ref().is_some_and(|p| p.stands) {
            self.host = Some(self.place(line_of(None))?);
        }
        Ok(())
    }
}

/// A lease of the domain. One of a host that went silent is held until that is known to be dead.
fn try_domain(d: &Domain, limit: u32) -> Result<Option<Box<dyn Held>>> {
    for n in 0..limit {
        match d.locks.try_acquire(&LeaseId::Copy(n), Mode::Exclusive) {
            Ok(held) => return Ok(Some(held)),
            Err(LockError::Busy(_) | LockError::Dying { .. } | LockError::Full { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(None)
}
