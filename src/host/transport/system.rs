//! The system's ssh as a child: for what only it can do. Each program on the host is a child of its own.

use super::{Connection, Ended, Pipe, Settings};
use crate::host::effective::{Effective, Unknown};
use crate::host::error::HostError;
use crate::sys::Cancel;
use crate::sys::Child;
use crate::sys::tool::Run;
use crate::sys::{Tool, Tools};
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

pub struct System<'a> {
    host: String,
    tools: &'a Tools,
    options: Vec<String>,
    auth_sock: Option<PathBuf>,
}

/// Nothing connects yet: each program does when it is started.
pub fn connect<'a>(site: &Effective, tools: &'a Tools, settings: &Settings, forward: bool) -> System<'a> {
    let mut options: Vec<String> = FIXED.map(str::to_owned).into();
    let mut set = |o: String| options.push(o);
    if site.connect_timeout.is_none() {
        set(format!("ConnectTimeout={}", settings.connect.as_secs().max(1)));
    }
    if has_aes() && !site.ciphers.is_empty() {
        set(format!("Ciphers={}", quickest_first(&site.ciphers)));
    }
    if site.unknown == Unknown::Record {
        // `no` would let changed keys pass, too.
        set("StrictHostKeyChecking=accept-new".to_owned());
    }
    if forward {
        // A shared connection forwards what its master was told to.
        for o in ["ForwardAgent=yes", "ControlMaster=no", "ControlPath=none"] {
            set(o.to_owned());
        }
    } else {
        set("ForwardAgent=no".to_owned());
    }
    System { host: site.host.clone(), tools, options, auth_sock: site.auth_sock.clone() }
}

/// Those that the site allows; the one that a processor with instructions for AES is quickest at comes first.
fn quickest_first(allowed: &str) -> String {
    let (mut first, rest): (Vec<_>, Vec<_>) = allowed.split(',').partition(|c| c.contains("-gcm@"));
    first.extend(rest);
    first.join(",")
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// No question, no terminal, nothing but the one channel.
const FIXED: [&str; 8] = [
    "BatchMode=yes",
    "RequestTTY=no",
    "RemoteCommand=none",
    "ClearAllForwardings=yes",
    "PermitLocalCommand=no",
    "EscapeChar=none",
    "ForwardX11=no",
    "LogLevel=ERROR",
];

impl System<'_> {
    fn start(&self, words: &[&str], what: &str) -> Result<Box<dyn Pipe>, HostError> {
        let mut args: Vec<&OsStr> = Vec::new();
        for o in &self.options {
            args.extend([OsStr::new("-o"), OsStr::new(o)]);
        }
        args.extend(words.iter().map(OsStr::new));
        args.extend([OsStr::new("--"), OsStr::new(&self.host), OsStr::new(what)]);
        let env: Vec<(&str, &OsStr)> =
            self.auth_sock.iter().map(|p| ("SSH_AUTH_SOCK", p.as_os_str())).collect();
        let cancel = Cancel::default();
        let opts = Run { env: &env, ..Run::new(Duration::MAX, &cancel) };
        match self.tools.start(Tool::Ssh, &args, &opts) {
            Ok(child) => Ok(Box::new(Stream(child))),
            Err(source) => Err(HostError::Config { host: self.host.clone(), source }),
        }
    }
}

impl Connection for System<'_> {
    fn exec(&self, command: &str) -> Result<Box<dyn Pipe>, HostError> {
        self.start(&[], command)
    }

    fn sftp(&self) -> Result<Box<dyn Pipe>, HostError> {
        self.start(&["-s"], "sftp")
    }
}

struct Stream(Child);

impl Pipe for Stream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn wait(&mut self, writes: bool, bell: Option<BorrowedFd<'_>>, d: Duration) {
        self.0.wait(writes, bell, d);
    }

    fn end(&mut self, patience: Duration) -> Ended {
        let (status, said) = self.0.end(patience);
        Ended { status, said }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cipher_is_preferred_only_among_those_that_the_site_allows() {
        let usual = "chacha20-poly1305@openssh.com,aes128-ctr,aes256-gcm@openssh.com,aes128-gcm@openssh.com";
        let quick = "aes256-gcm@openssh.com,aes128-gcm@openssh.com,chacha20-poly1305@openssh.com,aes128-ctr";
        assert_eq!(quickest_first(usual), quick);
        assert_eq!(quickest_first("aes128-ctr,3des-cbc"), "aes128-ctr,3des-cbc");
    }
}
