//! sanlock's client library, loaded when first needed: a lease is held by the connection that took it,
//! for as long as anybody has that connection open.
#![expect(unsafe_code, reason = "a C library, loaded at run time")]

mod abi;
mod error;
mod watchdog;

pub use error::{Fault, SanlockError};
pub use watchdog::Watchdog;

use rustix::event::{PollFd, PollFlags};
use std::ffi::{CStr, CString, c_int};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const LIBRARY: &CStr = c"libsanlock_client.so.1";

type Result<T> = std::result::Result<T, SanlockError>;

/// The unit of writes that are whole or not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sector {
    B512,
    B4096,
}

impl Sector {
    pub fn bytes(self) -> u64 {
        match self {
            Sector::B512 => 512,
            Sector::B4096 => 4096,
        }
    }

    fn flags(self) -> u32 {
        abi::ALIGN_1M
            | match self {
                Sector::B512 => abi::SECTOR_512,
                Sector::B4096 => abi::SECTOR_4K,
            }
    }
}

/// Where one lease is.
#[derive(Clone, Copy, Debug)]
pub struct Lease<'a> {
    pub lockspace: &'a str,
    pub name: &'a str,
    pub path: &'a Path,
    pub offset: u64,
}

/// What is known of a host of a lockspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub id: u64,
    /// Counts its joins.
    pub generation: u64,
    /// Its own clock when it last renewed; only differences mean something.
    pub timestamp: u64,
    pub io_timeout: Duration,
    pub state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Unknown,
    Free,
    Live,
    Failing,
    Dead,
}

/// Who has a lease, by its own record.
#[derive(Clone, Debug)]
pub struct Owners {
    /// Grows with every exclusive holder.
    pub version: u64,
    /// Several when it is shared; only `id` and `generation` mean something.
    pub hosts: Vec<Host>,
}

/// The library.
pub struct Client(abi::Functions);

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("libsanlock_client")
    }
}

/// Loads the library, once; a failure is tried again by the next call.
pub fn client() -> Result<&'static Client> {
    static CLIENT: Mutex<Option<&'static Client>> = Mutex::new(None);
    let mut client = CLIENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(c) = *client {
        return Ok(c);
    }
    let why = || {
        // SAFETY: answers a string of the loader that lives until its next call on this thread, or null.
        let text = unsafe { libc::dlerror() };
        if text.is_null() {
            return SanlockError::Library("no reason given".to_owned());
        }
        // SAFETY: as above.
        SanlockError::Library(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    // SAFETY: a terminated name. The library's initialisers do nothing.
    let handle = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(why());
    }
    let find = |name: &str| {
        let name = CString::new(name).map_err(|_| SanlockError::Name(name.to_owned()))?;
        // SAFETY: the library stays loaded for ever, the name is terminated.
        let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if at.is_null() { Err(why()) } else { Ok(at) }
    };
    // SAFETY: `find` looks in this library only.
    let loaded: &Client = Box::leak(Box::new(Client(unsafe { abi::Functions::load(find) }?)));
    *client = Some(loaded);
    Ok(loaded)
}

fn answer(call: &'static str, code: c_int) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(SanlockError::Call { call, fault: Fault::of(code), code }),
    }
}

/// Of calls whose only reason not to find anything is that nobody listens.
fn reached(call: &'static str, code: c_int) -> Result<()> {
    match code {
        -2 | -111 => Err(SanlockError::NoDaemon(io::Error::from_raw_os_error(-code))),
        code => answer(call, code),
    }
}

fn text<const N: usize>(s: &[u8], end: bool) -> Result<[u8; N]> {
    let bad = s.is_empty() || s.contains(&0) || s.len() + usize::from(end) > N;
    if bad {
        return Err(SanlockError::Name(String::from_utf8_lossy(s).into_owned()));
    }
    let mut out = [0; N];
    out[..s.len()].copy_from_slice(s);
    Ok(out)
}

fn disk(path: &Path, offset: u64) -> Result<abi::Disk> {
    Ok(abi::Disk { path: text(path.as_os_str().as_bytes(), true)?, offset, pad1: 0, pad2: 0 })
}

fn resource(l: &Lease<'_>, flags: u32) -> Result<Box<abi::Resource>> {
    Ok(Box::new(abi::Resource {
        lockspace_name: text(l.lockspace.as_bytes(), false)?,
        name: text(l.name.as_bytes(), false)?,
        lver: 0,
        data64: 0,
        data32: 0,
        unused: 0,
        flags,
        num_disks: 1,
        disk: disk(l.path, l.offset)?,
    }))
}

fn lockspace(name: &str, host: u64, path: &Path, flags: u32) -> Result<abi::Lockspace> {
    let name = text(name.as_bytes(), false)?;
    Ok(abi::Lockspace { name, host_id: host, flags, host_id_disk: disk(path, 0)? })
}

fn host(h: &abi::Host) -> Host {
    let state = match h.flags & abi::HOST_MASK {
        abi::HOST_FREE => State::Free,
        abi::HOST_LIVE => State::Live,
        abi::HOST_FAIL => State::Failing,
        abi::HOST_DEAD => State::Dead,
        _ => State::Unknown,
    };
    let io_timeout = Duration::from_secs(h.io_timeout.into());
    Host { id: h.host_id, generation: h.generation, timestamp: h.timestamp, io_timeout, state }
}

/// Takes over an array the library allocated.
///
/// # Safety
/// `array` is null or came from the library's `malloc` with `n` initialised elements.
unsafe fn taken<T: Copy>(array: *mut T, n: c_int) -> Vec<T> {
    if array.is_null() {
        return Vec::new();
    }
    // SAFETY: by contract.
    unsafe {
        let out = std::slice::from_raw_parts(array, usize::try_from(n).unwrap_or(0)).to_vec();
        libc::free(array.cast());
        out
    }
}

impl Client {
    /// A connection that can hold leases. The daemon knows this process by it.
    pub fn register(&self) -> Result<Socket> {
        // The library makes it without close-on-exec.
        let no_fork = super::fork::no_fork();
        // SAFETY: takes nothing, answers a new descriptor or an error.
        let fd = unsafe { (self.0.register)() };
        if fd < 0 {
            reached("register", fd)?;
        }
        // SAFETY: it is open and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let set = rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC);
        drop(no_fork);
        set.map_err(|e| SanlockError::Io { what: "preparing the connection to sanlock", source: e.into() })?;
        // A lost lease is no moment to be asked politely.
        // SAFETY: the descriptor is a registered connection.
        answer("restrict", unsafe { (self.0.restrict)(fd.as_raw_fd(), abi::RESTRICT_SIGTERM) })?;
        Ok(Socket { fd, turn: Mutex::new(()) })
    }

    /// Lockspaces this host has joined, each with the host's id in it.
    pub fn joined(&self) -> Result<Vec<(String, u64)>> {
        let (mut array, mut n) = (std::ptr::null_mut(), 0);
        // SAFETY: both places outlive the call.
        reached("list lockspaces", unsafe { (self.0.get_lockspaces)(&raw mut array, &raw mut n, 0) })?;
        // SAFETY: filled by the call.
        let all: Vec<abi::Lockspace> = unsafe { taken(array, n) };
        let name = |l: &abi::Lockspace| {
            let end = l.name.iter().position(|b| *b == 0).unwrap_or(l.name.len());
            String::from_utf8_lossy(&l.name[..end]).into_owned()
        };
        Ok(all.iter().map(|l| (name(l), l.host_id)).collect())
    }

    /// Becomes a member, which takes a while: others must be able to see it.
    pub fn join(&self, name: &str, id: u64, path: &Path, sector: Sector, io_timeout: Duration) -> Result<()> {
        let mut ls = lockspace(name, id, path, sector.flags())?;
        let seconds = u32::try_from(io_timeout.as_secs()).unwrap_or(u32::MAX);
        // SAFETY: the struct outlives the call.
        answer("join", unsafe { (self.0.add_lockspace_timeout)(&raw mut ls, 0, seconds) })
    }

    /// Ends the membership, unless a process of this host holds a lease.
    pub fn leave(&self, name: &str, id: u64, path: &Path) -> Result<()> {
        let mut ls = lockspace(name, id, path, 0)?;
        // SAFETY: the struct outlives the call.
        answer("leave", unsafe { (self.0.rem_lockspace)(&raw mut ls, abi::REM_UNUSED) })
    }

    /// The hosts of a joined lockspace, or one of them; just after joining nothing is known yet.
    pub fn hosts(&self, lockspace: &str, id: Option<u64>) -> Result<Vec<Host>> {
        let name = CString::new(lockspace).map_err(|_| SanlockError::Name(lockspace.to_owned()))?;
        let (mut array, mut n) = (std::ptr::null_mut(), 0);
        // SAFETY: the name is terminated; all outlive the call.
        let code =
            unsafe { (self.0.get_hosts)(name.as_ptr(), id.unwrap_or(0), &raw mut array, &raw mut n, 0) };
        match code {
            -2 => answer("list hosts", -28)?, // no such lockspace here
            code => answer("list hosts", code)?,
        }
        // SAFETY: filled by the call.
        Ok(unsafe { taken(array, n) }.iter().map(host).collect())
    }

    /// Writes empty memberships. The caller has shown that nobody is a member.
    pub fn format_lockspace(&self, name: &str, path: &Path, sector: Sector, io: Duration) -> Result<()> {
        let mut ls = lockspace(name, 0, path, sector.flags())?;
        let seconds = u32::try_from(io.as_secs()).unwrap_or(u32::MAX);
        // SAFETY: the struct outlives the call.
        answer("format a lockspace", unsafe { (self.0.write_lockspace)(&raw mut ls, 0, 0, seconds) })
    }

    /// Writes a free lease; one that a host has is left alone and named `Held`.
    pub fn format(&self, lease: &Lease<'_>, sector: Sector) -> Result<()> {
        match self.version(lease) {
            Ok(_) if self.owners(lease, sector)?.hosts.is_empty() => return Ok(()),
            Ok(_) => return answer("format a lease", -243),
            Err(e) if e.fault() == Some(Fault::Unformatted) => {}
            Err(e) => return Err(e),
        }
        let mut r = resource(lease, sector.flags())?;
        // SAFETY: the struct, with its one disk, outlives the call.
        answer("format a lease", unsafe { (self.0.write_resource)(&raw mut *r, 0, 0, 0) })
    }

    /// The number of holders that a lease had.
    pub fn version(&self, lease: &Lease<'_>) -> Result<u64> {
        let mut r = resource(lease, 0)?;
        // SAFETY: the struct, with its one disk, outlives the call.
        answer("read a lease", unsafe { (self.0.read_resource)(&raw mut *r, 0) })?;
        Ok(r.lver)
    }

    /// Who has a lease, by what is on the storage: a host named here may be dead.
    pub fn owners(&self, lease: &Lease<'_>, sector: Sector) -> Result<Owners> {
        let mut r = resource(lease, sector.flags())?;
        let (mut array, mut n) = (std::ptr::null_mut(), 0);
        // SAFETY: all outlive the call.
        let code = unsafe { (self.0.read_resource_owners)(&raw mut *r, 0, &raw mut array, &raw mut n) };
        answer("read a lease", code)?;
        // SAFETY: filled by the call.
        let hosts: Vec<abi::Host> = unsafe { taken(array, n) };
        Ok(Owners { version: r.lver, hosts: hosts.iter().map(host).collect() })
    }
}

/// A registered connection. Calls on it are made one at a time: two at once would end it, and with it all
/// its leases.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    turn: Mutex<()>,
}

impl Socket {
    /// Takes a lease, or says at once why not.
    pub fn acquire(&self, c: &Client, lease: &Lease<'_>, shared: bool) -> Result<()> {
        let mut r = resource(lease, if shared { abi::RES_SHARED } else { 0 })?;
        let mut list = [&raw mut *r];
        let flags = abi::ACQUIRE_OWNER_NOWAIT;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let fd = self.fd.as_raw_fd();
        // SAFETY: a list of one struct that outlives the call; no options; it is our turn.
        let code = unsafe { (c.0.acquire)(fd, -1, flags, 1, list.as_mut_ptr(), std::ptr::null_mut()) };
        answer("take a lease", code)
    }

    /// Gives a lease back; on return others can have it.
    pub fn release(&self, c: &Client, lease: &Lease<'_>) -> Result<()> {
        let mut r = resource(lease, 0)?;
        let mut list = [&raw mut *r];
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: as in `acquire`.
        let code = unsafe { (c.0.release)(self.fd.as_raw_fd(), -1, 0, 1, list.as_mut_ptr()) };
        answer("give a lease back", code)
    }

    /// Waits; whether the daemon has closed the connection, and so taken the leases.
    pub fn is_gone(&self, wait: Duration) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::RDHUP)];
        super::tool::nap(&mut fds, wait);
        fds[0].revents().intersects(PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR)
    }

    /// The daemon's process.
    pub fn daemon(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(&self.fd).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
