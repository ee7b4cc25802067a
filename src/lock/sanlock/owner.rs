//! The one owner of this process' connection to the sanlock daemon, and the watch over it. All leases of the
//! process hang on that connection: when it is lost, so is the right to write.

use crate::sys::effect::bug;
use crate::sys::sanlock::{Client, Fault, Lease, SanlockError, Sector, Socket, client};
use crate::sys::{Cancel, Class, stop};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often the connection is looked at.
const GLANCE: Duration = Duration::from_millis(250);
/// How often the daemon is asked whether it could still renew.
const ASK: Duration = Duration::from_secs(1);
/// What sanlock uses when nobody said otherwise.
pub(super) const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// In units of the I/O timeout: a renewal comes every 2. From 4 on nothing more is committed, at 6 we
/// end; the daemon kills its holders at 8, others take over at 14 or later.
const COMMIT: u32 = 4;
const END: u32 = 6;

#[derive(Debug)]
pub(super) struct Owner {
    pub client: &'static Client,
    pub socket: Socket,
    held: Mutex<BTreeMap<(String, String), Count>>,
    beats: Mutex<BTreeMap<String, Beat>>,
}

#[derive(Debug)]
enum Count {
    Exclusive,
    Shared(u32),
}

/// The last renewal that we saw, of a lockspace in which we hold something.
#[derive(Debug)]
struct Beat {
    /// This host's id and generation, once they are known.
    us: Option<(u64, u64)>,
    timestamp: Option<u64>,
    seen: Instant,
    io_timeout: Duration,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

static TELL: OnceLock<fn(&str)> = OnceLock::new();

/// Who tells people when the process has to end at once.
pub fn on_lost(tell: fn(&str)) {
    let _ = TELL.set(tell);
}

fn lost(why: &str) -> ! {
    let text = format!(
        "the storage's lease was lost: {why}; stopped at once. What was being made is not visible; see to \
         sanlock on this host, run `onesdm domain join`, and repeat the request"
    );
    stop::at_once(Class::Integrity.status(), move || {
        if let Some(tell) = TELL.get() {
            tell(&text);
        }
    })
}

static OWNER: Mutex<Option<Arc<Owner>>> = Mutex::new(None);

/// Looks at the connection when a call failed: it may have failed because everything is lost.
pub(super) fn failed() {
    let owner = lock(&OWNER).clone();
    if owner.is_some_and(|o| o.holds() && o.socket.is_gone(Duration::ZERO)) {
        lost("the sanlock daemon ended");
    }
}

/// Connects when nobody has, or when the daemon was restarted while we held nothing.
pub(super) fn owner() -> Result<Arc<Owner>, SanlockError> {
    let mut slot = lock(&OWNER);
    if let Some(o) = &*slot {
        if !o.socket.is_gone(Duration::ZERO) {
            return Ok(Arc::clone(o));
        }
        if o.holds() {
            lost("the sanlock daemon ended");
        }
    }
    let client = client()?;
    let (held, beats) = (Mutex::default(), Mutex::default());
    let new = Arc::new(Owner { client, socket: client.register()?, held, beats });
    watch(&new).map_err(|source| SanlockError::Io { what: "watching over leases", source })?;
    *slot = Some(Arc::clone(&new));
    Ok(new)
}

fn watch(owner: &Arc<Owner>) -> std::io::Result<()> {
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    let o = Arc::clone(owner);
    // Two of them: a daemon that is stopped answers nobody.
    thread("leases").spawn(move || {
        while !o.socket.is_gone(GLANCE) {
            if let Some(ls) = o.silent(END) {
                lost(&format!("no renewal was seen in lockspace {ls} for too long"));
            }
        }
        if o.holds() {
            lost("the sanlock daemon ended");
        }
    })?;
    let o = Arc::clone(owner);
    thread("renewals").spawn(move || {
        let never = Cancel::default();
        while never.wait(ASK) && !o.socket.is_gone(Duration::ZERO) {
            let names: Vec<String> = lock(&o.beats).keys().cloned().collect();
            for ls in &names {
                o.ask(ls);
            }
        }
    })?;
    Ok(())
}

impl Owner {
    /// Takes a lease that this process, too, may have in a way that excludes it.
    pub fn take(&self, lease: &Lease<'_>, shared: bool) -> Result<(), SanlockError> {
        let key = (lease.lockspace.to_owned(), lease.name.to_owned());
        let mut held = lock(&self.held);
        match (held.get_mut(&key), shared) {
            (Some(Count::Shared(n)), true) => {
                *n += 1;
                return Ok(());
            }
            (Some(_), _) => {
                let (fault, code) = (Fault::HeldHere, -17);
                return Err(SanlockError::Call { call: "take a lease", fault, code });
            }
            (None, _) => {}
        }
        self.socket.acquire(self.client, lease, shared)?;
        held.insert(key, if shared { Count::Shared(1) } else { Count::Exclusive });
        lock(&self.beats).entry(lease.lockspace.to_owned()).or_insert_with(|| Beat {
            us: None,
            timestamp: None,
            seen: Instant::now(),
            io_timeout: IO_TIMEOUT,
        });
        Ok(())
    }

    pub fn give_back(&self, lease: &Lease<'_>) {
        let key = (lease.lockspace.to_owned(), lease.name.to_owned());
        let mut held = lock(&self.held);
        if let Some(Count::Shared(n @ 2..)) = held.get_mut(&key) {
            *n -= 1;
            return;
        }
        if let Err(e) = self.socket.release(self.client, lease) {
            if self.socket.is_gone(Duration::ZERO) {
                // What comes after a lease is given back would come too late.
                lost("the sanlock daemon ended");
            }
            tracing::warn!(%e, lease = lease.name, "a lease was not given back; it ends with the process");
        }
        held.remove(&key);
        if !held.keys().any(|(ls, _)| ls == lease.lockspace) {
            lock(&self.beats).remove(lease.lockspace);
        }
    }

    /// Whether this process has it.
    pub fn has(&self, lease: &Lease<'_>) -> bool {
        lock(&self.held).contains_key(&(lease.lockspace.to_owned(), lease.name.to_owned()))
    }

    /// As whom this host holds a lease that this process has exclusively: its id and generation. They stay
    /// while anything is held.
    pub fn us(&self, lease: &Lease<'_>, sector: Sector) -> Result<Option<(u64, u64)>, SanlockError> {
        if let Some(us) = lock(&self.beats).get(lease.lockspace).and_then(|b| b.us) {
            return Ok(Some(us));
        }
        let us = self.client.owners(lease, sector)?.hosts.first().map(|h| (h.id, h.generation));
        if let Some(b) = lock(&self.beats).get_mut(lease.lockspace) {
            b.us = us;
        }
        Ok(us)
    }

    fn holds(&self) -> bool {
        !lock(&self.held).is_empty()
    }

    /// Whether the daemon is there and renewals are recent enough to commit something.
    pub fn is_fresh(&self) -> bool {
        !self.socket.is_gone(Duration::ZERO) && self.silent(COMMIT).is_none()
    }

    fn silent(&self, limit: u32) -> Option<String> {
        let late = |b: &Beat| b.seen.elapsed() > b.io_timeout * limit && !bug("stale-leases");
        lock(&self.beats).iter().find(|(_, b)| late(b)).map(|(ls, _)| ls.clone())
    }

    fn ask(&self, ls: &str) {
        let id = self.client.joined().ok().and_then(|all| all.into_iter().find(|(name, _)| name == ls));
        let Some((_, id)) = id else { return };
        let Ok(hosts) = self.client.hosts(ls, Some(id)) else { return };
        if let (Some(h), Some(b)) = (hosts.first(), lock(&self.beats).get_mut(ls))
            && b.timestamp != Some(h.timestamp)
        {
            (b.timestamp, b.seen, b.io_timeout) = (Some(h.timestamp), Instant::now(), h.io_timeout);
        }
    }
}
