//! ssh in this process, by libssh2: no child, one connection for everything about a host.

use super::{Connection, Ended, Pipe, Settings};
use crate::host::effective::{Effective, Unknown};
use crate::host::error::{HostError, HostKey};
use crate::host::known::{self, Verdict};
use crate::sys::Cancel;
use base64::Engine as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use ssh2::{BlockDirections, Channel, ErrorCode, MethodType, Session};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const SLICE: Duration = Duration::from_millis(20);
/// LIBSSH2_ERROR_EAGAIN
const AGAIN: ErrorCode = ErrorCode::Session(-37);
/// A server ends the connection after six keys that it does not take; some of them are for the files.
const AGENT_KEYS: usize = 4;
const STDERR_TAIL: usize = 1024;

pub struct Ssh2 {
    host: String,
    to: String,
    session: Session,
    socket: TcpStream,
    limit: Duration,
    cancel: Cancel,
}

/// Connects, verifies the host's key and logs in.
pub fn connect(site: &Effective, settings: &Settings, cancel: &Cancel) -> Result<Ssh2, HostError> {
    let limit = site.connect_timeout.unwrap_or(settings.connect);
    let end = Instant::now() + limit;
    let host = || site.host.clone();
    let (socket, to) = dial(site, limit, end)?;
    let ssh = |what, e: ssh2::Error| HostError::Ssh { host: host(), what, said: e.message().to_owned() };
    let io = |source| HostError::Connect { host: host(), to: to.clone(), source };
    let mut session = Session::new().map_err(|e| ssh("starting", e))?;
    let kinds = known::kinds(&site.known_hosts, &site.key_name);
    let keys = known::prefer(&site.host_key_algorithms, &kinds);
    for (method, prefs) in [
        (MethodType::HostKey, &keys),
        (MethodType::Kex, &site.kex),
        (MethodType::CryptCs, &site.ciphers),
        (MethodType::CryptSc, &site.ciphers),
        (MethodType::MacCs, &site.macs),
        (MethodType::MacSc, &site.macs),
    ] {
        if !prefs.is_empty() {
            session.method_pref(method, prefs).map_err(|e| ssh("the algorithms that the site allows", e))?;
        }
    }
    session.set_tcp_stream(socket.try_clone().map_err(io)?);
    session.set_blocking(false);
    let c = Ssh2 { host: host(), to: to.clone(), session, socket, limit, cancel: cancel.clone() };
    let mut shaking = c.session.clone();
    c.drive(end, "agreeing on algorithms", || shaking.handshake())?;
    c.verify(site)?;
    c.login(site, end)?;
    Ok(c)
}

/// A connection to the first address that takes one.
fn dial(site: &Effective, limit: Duration, end: Instant) -> Result<(TcpStream, String), HostError> {
    let (host, name) = (site.host.clone(), site.hostname.clone());
    let found = (site.hostname.as_str(), site.port).to_socket_addrs();
    let found =
        found.map_err(|source| HostError::Resolve { host: host.clone(), name: name.clone(), source })?;
    let addrs: Vec<SocketAddr> = found.filter(|a| site.allows(a)).collect();
    let mut last = HostError::Resolve { host: host.clone(), name, source: ErrorKind::NotFound.into() };
    for (n, addr) in addrs.iter().enumerate() {
        // An address that does not answer leaves time for the others.
        let left = end.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addrs.len() - n).unwrap_or(1);
        let to = addr.to_string();
        match TcpStream::connect_timeout(addr, share.max(Duration::from_millis(1))) {
            Ok(socket) => {
                let ready = socket.set_nodelay(true).and_then(|()| socket.set_nonblocking(true));
                return match ready {
                    Ok(()) => Ok((socket, to)),
                    Err(source) => Err(HostError::Connect { host, to, source }),
                };
            }
            Err(e) if e.kind() == ErrorKind::TimedOut => {
                last = HostError::NoAnswer { host: host.clone(), to, after: limit };
            }
            Err(source) => last = HostError::Connect { host: host.clone(), to, source },
        }
    }
    Err(last)
}

impl Ssh2 {
    /// Repeats what would block until it is done, the time is over or somebody asks to stop.
    fn drive<T>(
        &self,
        end: Instant,
        what: &'static str,
        mut op: impl FnMut() -> Result<T, ssh2::Error>,
    ) -> Result<T, HostError> {
        loop {
            match op() {
                Err(e) if e.code() == AGAIN => {}
                Err(e) => return Err(self.failed(what, &e)),
                Ok(t) => return Ok(t),
            }
            if self.cancel.is_requested() {
                let stage = crate::host::error::Stage::Connect;
                return Err(HostError::Cancelled { host: self.host.clone(), stage });
            }
            if Instant::now() >= end {
                let (host, to, after) = (self.host.clone(), self.to.clone(), self.limit);
                return Err(HostError::NoAnswer { host, to, after });
            }
            wait(&self.session, &self.socket, (false, None), SLICE);
        }
    }

    fn failed(&self, what: &'static str, e: &ssh2::Error) -> HostError {
        let (host, said) = (self.host.clone(), e.message().to_owned());
        match e.code() {
            // The connection itself: banner, send, disconnect, socket timeout, receive.
            ErrorCode::Session(-2 | -3 | -7 | -13 | -30 | -43) => {
                let source = io::Error::other(format!("{what}: {said}"));
                HostError::Connect { host, to: self.to.clone(), source }
            }
            _ => HostError::Ssh { host, what, said },
        }
    }

    /// The host's key against the site's records.
    fn verify(&self, site: &Effective) -> Result<(), HostError> {
        let host = self.host.clone();
        let none = || HostError::Ssh { host: host.clone(), what: "its key", said: "none shown".to_owned() };
        let (key, _) = self.session.host_key().ok_or_else(none)?;
        let kind = known::kind_of(key).ok_or_else(none)?.to_owned();
        let (name, fingerprint) = (site.key_name.clone(), known::fingerprint(key));
        let shown = |file: PathBuf, line| {
            let (name, kind, fingerprint) = (name.clone(), kind.clone(), fingerprint.clone());
            Box::new(HostKey { name, kind, fingerprint, file, line })
        };
        match known::check(&site.known_hosts, &name, &kind, key) {
            Verdict::Known => Ok(()),
            Verdict::Revoked(file, line) => Err(HostError::RevokedKey { host, key: shown(file, line) }),
            Verdict::Changed(file, line) => Err(HostError::ChangedKey { host, key: shown(file, line) }),
            Verdict::Unknown if site.unknown == Unknown::Refuse => {
                Err(HostError::UnknownKey { host, key: shown(site.known_hosts_user.clone(), 0) })
            }
            Verdict::Unknown => {
                let file = &site.known_hosts_user;
                match known::record(file, &name, &kind, key, site.hash_known_hosts) {
                    Ok(()) => tracing::info!(host, %fingerprint, "new host key recorded"),
                    // As ssh does: what cannot be recorded is new again next time.
                    Err(e) => {
                        tracing::warn!(host, file = %file.display(), error = %e, "host key not recorded");
                    }
                }
                Ok(())
            }
        }
    }

    /// The account's key agent first, then its key files.
    fn login(&self, site: &Effective, end: Instant) -> Result<(), HostError> {
        let mut tried = Vec::new();
        if let Some(sock) = &site.auth_sock {
            match self.login_by_agent(site, sock, end)? {
                None => return Ok(()),
                Some(why) => tried.push(why),
            }
        }
        for file in site.identity_files.iter().filter(|f| f.exists()) {
            let op = || self.session.userauth_pubkey_file(&site.user, None, file, None);
            match self.drive(end, "showing a key", op) {
                Ok(()) => return Ok(()),
                Err(HostError::Ssh { said, .. }) => tried.push(format!("{}: {said}", file.display())),
                Err(e) => return Err(e),
            }
        }
        if tried.is_empty() {
            tried.push("no key agent and no key file".to_owned());
        }
        Err(HostError::Login { host: self.host.clone(), user: site.user.clone(), tried: tried.join("; ") })
    }

    /// `None` when it worked.
    fn login_by_agent(
        &self,
        site: &Effective,
        sock: &Path,
        end: Instant,
    ) -> Result<Option<String>, HostError> {
        let agent_says = |e: ssh2::Error| format!("key agent {}: {}", sock.display(), e.message());
        let open = || -> Result<_, ssh2::Error> {
            let mut agent = self.session.agent()?;
            agent.set_identity_path(sock)?;
            agent.connect()?;
            agent.list_identities()?;
            let keys = agent.identities()?;
            Ok((agent, keys))
        };
        let (agent, keys) = match open() {
            Ok(a) => a,
            Err(e) => return Ok(Some(agent_says(e))),
        };
        // Those the site names come first, and alone when it says so.
        let named: Vec<Vec<u8>> = site.identity_files.iter().filter_map(|f| public_half(f)).collect();
        let (mut first, other): (Vec<_>, Vec<_>) =
            keys.into_iter().partition(|k| named.iter().any(|n| n == k.blob()));
        if !site.identities_only {
            first.extend(other);
        }
        for key in first.iter().take(AGENT_KEYS) {
            match self.drive(end, "showing a key", || agent.userauth(&site.user, key)) {
                Ok(()) => return Ok(None),
                Err(HostError::Ssh { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(Some(format!("key agent {}: none of its keys", sock.display())))
    }

    fn start(
        &self,
        what: &'static str,
        mut go: impl FnMut(&mut Channel) -> Result<(), ssh2::Error>,
    ) -> Result<Box<dyn Pipe>, HostError> {
        let end = Instant::now() + self.limit;
        let mut channel = self.drive(end, "opening a channel", || self.session.channel_session())?;
        self.drive(end, what, || go(&mut channel))?;
        let socket = self.socket.try_clone();
        let socket = socket.map_err(|source| HostError::Connect {
            host: self.host.clone(),
            to: self.to.clone(),
            source,
        })?;
        Ok(Box::new(Stream { channel, session: self.session.clone(), socket, tail: Vec::new(), dead: false }))
    }
}

impl Connection for Ssh2 {
    fn exec(&self, command: &str) -> Result<Box<dyn Pipe>, HostError> {
        self.start("starting a program", |c| c.exec(command))
    }

    fn sftp(&self) -> Result<Box<dyn Pipe>, HostError> {
        self.start("starting sftp", |c| c.subsystem("sftp"))
    }
}

/// The key in `FILE.pub`, as agents name it.
fn public_half(file: &Path) -> Option<Vec<u8>> {
    let mut name = file.as_os_str().to_owned();
    name.push(".pub");
    let text = std::fs::read_to_string(name).ok()?;
    base64::engine::general_purpose::STANDARD.decode(text.split_whitespace().nth(1)?).ok()
}

fn wait(session: &Session, socket: &TcpStream, (writes, bell): (bool, Option<BorrowedFd<'_>>), d: Duration) {
    let out = writes
        && matches!(session.block_directions(), BlockDirections::Outbound | BlockDirections::Both)
        || matches!(session.block_directions(), BlockDirections::Outbound);
    let flags = if out { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
    let nanos = i64::from(d.min(Duration::from_millis(999)).subsec_nanos());
    let bell = bell.map(|b| PollFd::from_borrowed_fd(b, PollFlags::IN));
    let mut fds: Vec<_> = [PollFd::new(socket, flags)].into_iter().chain(bell).collect();
    // An interrupted wait is a short one.
    let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: nanos }));
}

/// A program over one channel.
struct Stream {
    channel: Channel,
    session: Session,
    socket: TcpStream,
    tail: Vec<u8>,
    /// The connection itself is gone.
    dead: bool,
}

impl Stream {
    /// Keeps the end of what the program says; what nobody takes would fill the channel's window.
    fn listen(&mut self) {
        let (mut buf, mut err) = ([0; 4096], self.channel.stderr());
        while let Ok(n) = err.read(&mut buf)
            && n > 0
        {
            self.tail.extend_from_slice(&buf[..n]);
            self.tail.drain(..self.tail.len().saturating_sub(STDERR_TAIL));
        }
    }
}

impl Pipe for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.listen();
        match self.channel.read(buf) {
            Ok(0) if !self.channel.eof() => Err(ErrorKind::WouldBlock.into()),
            Err(e) if e.kind() != ErrorKind::WouldBlock => {
                self.dead = true;
                Err(e)
            }
            other => other,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.channel.write(bytes)
    }

    fn wait(&mut self, writes: bool, bell: Option<BorrowedFd<'_>>, d: Duration) {
        wait(&self.session, &self.socket, (writes, bell), d);
    }

    fn end(&mut self, patience: Duration) -> Ended {
        let until = Instant::now() + patience;
        let mut step = 0;
        while !self.dead && step < 2 && Instant::now() < until {
            self.listen();
            // The exit status comes before the server's close.
            let done = if step == 0 { self.channel.close() } else { self.channel.wait_close() };
            match done {
                Ok(()) => step += 1,
                Err(e) if e.code() == AGAIN => wait(&self.session, &self.socket, (false, None), SLICE),
                Err(_) => break,
            }
        }
        self.listen();
        let status = if step == 2 { self.channel.exit_status().ok() } else { None };
        Ended { status, said: one_line(&self.tail) }
    }
}

fn one_line(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ")
}
