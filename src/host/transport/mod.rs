//! Ways to a host, and the choice among them: this process for this machine; libssh2 in process, which
//! costs no child; the system's ssh where the site's settings need what libssh2 lacks, and where much may
//! go, since its ciphers are quicker. All speak the same protocol to the same agent.

mod bell;
mod client;
mod duplex;
mod local;
mod ssh2;
mod system;

use super::effective::{Effective, Need};
use super::error::HostError;
use super::install::{self, Program};
use super::link::Handler;
use super::wire::{Hello, Progress};
use crate::sys::user;
use crate::sys::{Bytes, Cancel, Tools};
use serde_json::Value;
use std::net::{IpAddr, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

pub use bell::Bell;
pub(super) use client::{Client, NoHello};
pub(super) use duplex::{Connection, Duplex, Ended, Pipe};
pub use local::Local;

/// When a request may publish.
pub enum Commit<'a> {
    /// From the start: it is done whether or not we live to see it.
    Now,
    /// When it is ready and this says so; asked once, and not after a cancel.
    When(&'a mut (dyn FnMut() -> bool + Send)),
}

/// Gives the blocks that go with a request.
pub trait Source: Send {
    /// Does not wait: what comes meanwhile is to be seen.
    fn next(&mut self) -> Next;

    /// Rings when there is more after `Next::Later`. `None`: it is asked again after a while.
    fn bell(&self) -> Option<Bell> {
        None
    }
}

impl<F: FnMut() -> Next + Send> Source for F {
    fn next(&mut self) -> Next {
        self()
    }
}

/// What a source has.
#[derive(Debug)]
pub enum Next {
    /// At most 4 MiB and not empty.
    Block(Vec<u8>),
    /// Nothing yet.
    Later,
    End,
}

/// Work for a host.
pub struct Request<'a> {
    /// The same id is the same request.
    pub job: &'a str,
    pub body: Value,
    pub commit: Commit<'a>,
    pub source: Option<&'a mut dyn Source>,
}

/// What comes while a request runs.
#[derive(Debug)]
pub enum Event {
    Progress(Progress),
    Log { warn: bool, text: String },
    Data(Vec<u8>),
}

/// A handler on some host, reached.
pub trait Channel: Send {
    /// Who is there.
    fn peer(&self) -> &Hello;

    /// One request to its end; the answer is the handler's. May be called again after an answer, also one
    /// that says it failed; after a connection error it fails at once. What survives a crash of ours: until
    /// `commit` nothing, afterwards all (see `HostError::may_have_run`).
    fn call(
        &mut self,
        request: Request<'_>,
        on_event: &mut (dyn FnMut(Event) + Send),
        cancel: &Cancel,
    ) -> Result<Value, HostError>;
}

/// A way to hosts.
pub trait Transport {
    /// Finds the agent there and says hello.
    fn open(&self, host: &str) -> Result<Box<dyn Channel + '_>, HostError>;
}

/// Deadlines and places.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For connection and login, where the site's ssh settings give none.
    pub connect: Duration,
    /// A connection without a sign of life for so long is given up.
    pub silence: Duration,
    /// How long a cancelled request may take to end before it is left alone.
    pub cancel_grace: Duration,
    /// Socket of the account's key agent: SSH_AUTH_SOCK.
    pub auth_sock: Option<PathBuf>,
    /// Where on hosts the agent is looked for, absolute paths.
    pub agents: Vec<String>,
    /// What is put on a host that has no agent of our version. `None`: then it is an error.
    pub program: Option<Program>,
    /// A directory in which we keep where each host's agent is. `None`: it is looked for anew.
    pub hints: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Settings {
        let agents = ["/usr/bin/onesdm", "/usr/local/bin/onesdm", "/usr/libexec/onesdm"];
        Settings {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(10),
            auth_sock: None,
            agents: agents.map(str::to_owned).into(),
            program: None,
            hints: None,
        }
    }
}

/// From here on the system's ssh, whose ciphers are OpenSSL's, saves more than another process costs: libssh2
/// has a ChaCha20 of its own in C, and calls OpenSSL for 16 bytes at a time.
const MUCH: Bytes = Bytes(64 << 20);

/// How a host is reached, and why so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    Local { why: &'static str },
    Ssh2,
    System { why: String },
}

impl std::fmt::Display for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Route::Local { why } => write!(f, "in this process ({why})"),
            Route::Ssh2 => f.write_str("ssh in this process"),
            Route::System { why } => write!(f, "the system's ssh ({why})"),
        }
    }
}

/// The way to a host, with the site's settings for it.
#[derive(Debug)]
pub struct Chosen {
    pub route: Route,
    site: Option<Effective>,
}

/// All hosts, each by the way that suits it.
pub struct Hosts<'a> {
    pub tools: &'a Tools,
    pub settings: Settings,
    /// Does what is asked of this machine.
    pub handler: &'a dyn Handler,
    /// Ends waits for connections.
    pub cancel: &'a Cancel,
    /// The work on the host goes on to other hosts with our keys.
    pub forward_agent: bool,
}

impl Transport for Hosts<'_> {
    fn open(&self, host: &str) -> Result<Box<dyn Channel + '_>, HostError> {
        self.open_by(host, Bytes(0)).map(|(_, channel)| channel)
    }
}

impl<'a> Hosts<'a> {
    /// The same, where the account's key agent counts on the hosts, too; without one there is no difference.
    #[must_use]
    pub fn forwarding(&self) -> Hosts<'a> {
        let forward_agent = self.settings.auth_sock.is_some();
        Hosts { settings: self.settings.clone(), forward_agent, ..*self }
    }

    /// As `open` for so much data, and says by which way.
    pub fn open_by(&self, host: &str, data: Bytes) -> Result<(Route, Box<dyn Channel + 'a>), HostError> {
        self.open_chosen(self.choose(host, data)?)
    }

    /// By the way that was chosen, or by the next one where that one is none for us.
    pub fn open_chosen(&self, chosen: Chosen) -> Result<(Route, Box<dyn Channel + 'a>), HostError> {
        let Chosen { mut route, site } = chosen;
        let Some(site) = site else { return Ok((route, Box::new(Local::new(self.handler)))) };
        tracing::debug!(host = site.host, %route, "route chosen");
        if route == Route::Ssh2 {
            match ssh2::connect(&site, &self.settings, self.cancel) {
                Ok(c) => {
                    let client = install::reach(&c, &site.host, &self.settings, self.cancel)?;
                    return Ok((route, Box::new(client)));
                }
                // Keys on a card, a method libssh2 does not know: the system's ssh may.
                Err(e) if e.is_of_the_way() => route = Route::System { why: e.to_string() },
                Err(e) => return Err(e),
            }
        }
        let c = system::connect(&site, self.tools, &self.settings, self.forward_agent);
        let client = install::reach(&c, &site.host, &self.settings, self.cancel)?;
        Ok((route, Box::new(client)))
    }

    /// Nothing connects yet.
    pub fn choose(&self, host: &str, data: Bytes) -> Result<Chosen, HostError> {
        if let Some(why) = is_us_by_name(host) {
            return Ok(Chosen { route: Route::Local { why }, site: None });
        }
        let site = Effective::of(host, self.tools, self.settings.auth_sock.as_deref(), self.cancel)?;
        let direct = site.proxy.is_none() && site.port == 22;
        if direct && leads_here(&site.hostname) == Some(true) {
            let route = Route::Local { why: "the address is this machine's" };
            return Ok(Chosen { route, site: None });
        }
        let route = match site.need(self.forward_agent) {
            Need::Nothing if data >= MUCH => Route::System { why: format!("{data} may go") },
            Need::Nothing => Route::Ssh2,
            Need::System(why) => Route::System { why },
        };
        Ok(Chosen { route, site: Some(site) })
    }
}

fn is_us_by_name(host: &str) -> Option<&'static str> {
    if host.is_empty() || host == "localhost" {
        return Some("no host is named");
    }
    let here = rustix::system::uname();
    let own = here.nodename().to_str().ok()?;
    // A copied machine has the name of another; the address decides when there is one.
    let same = host.eq_ignore_ascii_case(own) && leads_here(host).unwrap_or(true);
    same.then_some("its name is this machine's")
}

/// Whether a name leads to this machine: what the kernel would send to it comes from it. `None` when the
/// name leads nowhere.
fn leads_here(name: &str) -> Option<bool> {
    let mut addrs = (name, 22).to_socket_addrs().ok()?;
    Some(addrs.any(|a| {
        let any: IpAddr = if a.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let Ok(s) = UdpSocket::bind((any, 0)) else { return false };
        s.connect(a).is_ok() && s.local_addr().is_ok_and(|own| own.ip() == a.ip())
    }))
}

/// The path of a setting with `~` for the home.
pub(super) fn expand_home(path: &str) -> Option<PathBuf> {
    match path.strip_prefix("~/") {
        Some(rest) => user::account().map(|(_, home)| home.join(rest)),
        None => Some(path.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known_by_name_and_address() {
        let own = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        for us in ["", "localhost", &own, &own.to_uppercase()] {
            assert!(is_us_by_name(us).is_some(), "{us}");
        }
        for other in ["h1", "127.0.0.1", "localhost.example.org", "10.0.0.1"] {
            assert!(is_us_by_name(other).is_none(), "{other}");
        }
        assert_eq!(leads_here("127.0.0.1"), Some(true));
        assert_eq!((leads_here("192.0.2.1"), leads_here("no such name")), (Some(false), None));
    }
}
