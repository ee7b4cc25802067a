//! Finding the agent on a host. First the package's program, when it is of our version; else our own,
//! put once into a private directory of the account, under its digest, below no tree that anybody
//! synchronises.

use super::error::HostError;
use super::sftp::{Sftp, SftpError};
use super::transport::{Client, Connection, NoHello, Settings};
use crate::sys::Cancel;
use crate::sys::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Relative to the account's home, where ssh starts a command.
const PRIVATE: [&str; 3] = [".local", ".local/lib", ".local/lib/onesdm"];

/// The program that hosts without one of our version get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub path: PathBuf,
}

impl Program {
    /// The running program's file, also when another has taken its name meanwhile.
    pub fn own() -> Program {
        Program { path: "/proc/self/exe".into() }
    }

    /// Changes whenever the file does.
    fn stamp(&self) -> Option<String> {
        let m = std::fs::metadata(&self.path).ok()?;
        Some(format!("{}:{}:{}:{}.{}", m.dev(), m.ino(), m.size(), m.mtime(), m.mtime_nsec()))
    }
}

/// What worked last time. Advice only.
#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Hint {
    command: String,
    /// Of the program whose private copy it is.
    stamp: Option<String>,
}

/// An agent on the other side of `c` that has said hello. Costs one channel where the hint is right or
/// the package's program is in the first place.
pub(super) fn reach(
    c: &dyn Connection,
    host: &str,
    settings: &Settings,
    cancel: &Cancel,
) -> Result<Client, HostError> {
    let ours = env!("CARGO_PKG_VERSION");
    let stamp = settings.program.as_ref().and_then(Program::stamp);
    let hint = Hints::of(settings, host);
    let hinted = hint.read().filter(|h| h.stamp.is_none() || h.stamp == stamp);
    let try_one = |path: &str| greet(c, host, path, settings, cancel);
    if let Some(h) = &hinted
        && is_plain(&h.command)
        && let Tried::Is(client) = try_one(&h.command)?
        && client.version() == ours
    {
        return Ok(*client);
    }
    let mut other: Option<Client> = None;
    let mut wrong: Option<HostError> = None;
    for path in settings.agents.iter().filter(|p| is_plain(p)) {
        match try_one(path)? {
            Tried::Is(client) if client.version() == ours => {
                hint.write(&Hint { command: path.clone(), stamp: None });
                return Ok(*client);
            }
            Tried::Is(client) => other = other.or(Some(*client)),
            Tried::Not(e) => wrong = wrong.or(e),
        }
    }
    // One of another version that speaks our protocol is better than none.
    match (own(c, host, settings, cancel), other, wrong) {
        (Ok((client, command)), ..) => {
            hint.write(&Hint { command, stamp });
            Ok(client)
        }
        (Err(e), Some(client), _) => {
            tracing::warn!(host, version = client.version(), error = %e, "agent of another version");
            Ok(client)
        }
        // What is wrong with the one that is there says more than that there is no other.
        (Err(HostError::NoAgent { .. }), None, Some(e)) | (Err(e), ..) => Err(e),
    }
}

/// The private copy of our program, put there if need be.
fn own(
    c: &dyn Connection,
    host: &str,
    settings: &Settings,
    cancel: &Cancel,
) -> Result<(Client, String), HostError> {
    let no = |why| HostError::NoAgent { host: host.to_owned(), why };
    let Some(program) = &settings.program else {
        return Err(no(format!("looked for {}", settings.agents.join(" "))));
    };
    let path = place(c, host, program, settings, cancel)?;
    match greet(c, host, &path, settings, cancel)? {
        Tried::Is(client) => Ok((*client, path)),
        Tried::Not(e) => Err(e.unwrap_or_else(|| {
            no(format!("{path} does not run there (another architecture, or a noexec home?)"))
        })),
    }
}

enum Tried {
    Is(Box<Client>),
    /// Nothing that could be used, and why if it is more than absence.
    Not(Option<HostError>),
}

/// Starts `path agent`.
fn greet(
    c: &dyn Connection,
    host: &str,
    path: &str,
    settings: &Settings,
    cancel: &Cancel,
) -> Result<Tried, HostError> {
    let pipe = c.exec(&format!("{path} agent"))?;
    match Client::greet(host, pipe, settings, cancel) {
        Ok(client) => Ok(Tried::Is(Box::new(client))),
        Err(NoHello::Other(e @ HostError::Protocol { .. })) => Ok(Tried::Not(Some(e))),
        Err(NoHello::Other(e)) => Err(e),
        // What a shell says of a program that is not there, or is none.
        Err(NoHello::Ended(e)) if matches!(e.status, Some(126 | 127)) => Ok(Tried::Not(None)),
        // What ssh says of its own troubles.
        Err(NoHello::Ended(e)) if e.status == Some(255) => Err(trouble(host, e.said)),
        Err(NoHello::Ended(e)) => {
            let why = format!("{path} ended with status {:?}: {}", e.status, e.said);
            Ok(Tried::Not(Some(HostError::NoAgent { host: host.to_owned(), why })))
        }
    }
}

/// The system's ssh tells its failures in words.
fn trouble(host: &str, said: String) -> HostError {
    let host = host.to_owned();
    let has = |w: &str| said.contains(w);
    if has("Permission denied") {
        return HostError::Login { host, user: "the account".to_owned(), tried: said };
    }
    let what = if has("Host key verification failed") || has("HOST IDENTIFICATION HAS CHANGED") {
        "its host key is refused"
    } else {
        "no connection"
    };
    HostError::Ssh { host, what, said }
}

/// Our program on the host, its digest verified there; answers its path, relative to the home. Any number
/// of front-ends and verbs may do this at once: each writes a file of its own and the last rename wins,
/// with the same content.
fn place(
    c: &dyn Connection,
    host: &str,
    program: &Program,
    settings: &Settings,
    cancel: &Cancel,
) -> Result<String, HostError> {
    let no = |why: String| HostError::NoAgent { host: host.to_owned(), why };
    let content =
        std::fs::read(&program.path).map_err(|e| no(format!("reading {}: {e}", program.path.display())))?;
    let digest = hex(&Sha256::digest(&content));
    let dir = format!("{}/{digest}", PRIVATE[2]);
    let path = format!("{dir}/onesdm");
    let mut sftp = Sftp::start(c.sftp()?, settings.silence, cancel).map_err(|e| no(e.to_string()))?;
    let done = put(&mut sftp, &dir, &path, &content, &digest);
    match done {
        Ok(None) => Ok(path),
        Ok(Some(found)) => {
            Err(HostError::Digest { host: host.to_owned(), path: path.into(), expected: digest, found })
        }
        Err(e) => Err(no(e.to_string())),
    }
}

/// `Some` digest when what arrived is not what was sent.
fn put(
    sftp: &mut Sftp<'_>,
    dir: &str,
    path: &str,
    content: &[u8],
    digest: &str,
) -> Result<Option<String>, SftpError> {
    for (d, ours) in PRIVATE.iter().map(|d| (*d, *d == PRIVATE[2])).chain([(dir, true)]) {
        let made = if sftp.lstat(d)?.is_none() { sftp.mkdir(d, 0o700) } else { Ok(()) };
        // Somebody else may have made it at the same time; what counts is what it is now.
        let is = sftp.lstat(d)?;
        let fits = is.is_some_and(|a| a.is_dir() && (!ours || a.mode & 0o022 == 0));
        if !fits {
            made?;
            let said = format!("{d} is no directory that only its owner may write to");
            return Err(SftpError::Status { what: "placing onesdm", code: 0, said });
        }
    }
    // What is there is run only if it is what it should be, to the byte.
    if let Some(a) = sftp.lstat(path)?
        && a.is_file()
        && a.size == content.len() as u64
        && a.mode & 0o777 == 0o700
        && digest_of(sftp, path, a.size)? == digest
    {
        return Ok(None);
    }
    let fresh = format!("{dir}/.new-{}", uuid::Uuid::now_v7().simple());
    let written = sftp.create(&fresh, 0o700, content);
    let verified = written.and_then(|()| digest_of(sftp, &fresh, content.len() as u64));
    let placed = match verified {
        Ok(found) if found == digest => sftp.rename_over(&fresh, path).map(|()| None),
        Ok(found) => Ok(Some(found)),
        Err(e) => Err(e),
    };
    if !matches!(placed, Ok(None)) {
        // The first failure is the one to tell.
        let _ = sftp.remove(&fresh);
    }
    placed
}

fn digest_of(sftp: &mut Sftp<'_>, path: &str, size: u64) -> Result<String, SftpError> {
    let mut sum = Sha256::new();
    sftp.read(path, size, |block| sum.update(block))?;
    Ok(hex(&sum.finalize()))
}

/// No character that means anything to a shell.
fn is_plain(path: &str) -> bool {
    !path.starts_with('-') && path.bytes().all(|b| b.is_ascii_alphanumeric() || b"/._+-".contains(&b))
}

/// The file in which a host's hint is kept.
struct Hints(Option<PathBuf>);

impl Hints {
    fn of(settings: &Settings, host: &str) -> Hints {
        Hints(settings.hints.as_ref().map(|d| d.join(format!("{}.json", host.replace(['/', ':'], "_")))))
    }

    fn read(&self) -> Option<Hint> {
        serde_json::from_slice(&std::fs::read(self.0.as_ref()?).ok()?).ok()
    }

    /// Left undone when it fails: it saves a look, no more.
    fn write(&self, hint: &Hint) {
        if let Some(path) = &self.0
            && self.read().as_ref() != Some(hint)
        {
            let _ = write_whole(path, hint);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a hint is not storage: no effect of a job")]
fn write_whole(path: &Path, hint: &Hint) -> std::io::Result<()> {
    use std::io::Write as _;
    let dir = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(dir)?;
    let fresh = dir.join(format!(".new-{}", uuid::Uuid::now_v7().simple()));
    let mut f = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    f.write_all(&serde_json::to_vec(hint)?)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_mean_nothing_to_a_shell() {
        for ok in ["/usr/bin/onesdm", ".local/lib/onesdm/ab12/onesdm", "/opt/c++/x"] {
            assert!(is_plain(ok), "{ok}");
        }
        for bad in ["-x", "/a b", "/a;b", "$HOME/x", "/a\nb", "~x/y", "/a'b", "/ü"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn hints_are_kept_per_host_and_damage_is_no_hint() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { hints: Some(dir.path().join("agents")), ..Settings::default() };
        let hint = Hints::of(&settings, "../h1:2");
        assert!(hint.read().is_none());
        hint.write(&Hint { command: "/x".into(), stamp: Some("s".into()) });
        assert!(hint.read().is_some_and(|h| h.command == "/x" && h.stamp.as_deref() == Some("s")));
        assert!(hint.0.as_ref().is_some_and(|p| p.parent() == Some(&dir.path().join("agents"))));
        std::fs::write(hint.0.as_ref().unwrap(), "{").unwrap();
        assert!(hint.read().is_none());
        assert!(Hints::of(&settings, "h2").read().is_none());
    }

    #[test]
    fn what_ssh_says_becomes_what_it_is() {
        let e = trouble("h", "x@h: Permission denied (publickey).".into());
        assert!(matches!(e, HostError::Login { .. }));
        let e = trouble("h", "Host key verification failed.".into());
        assert!(e.to_string().contains("its host key is refused"), "{e}");
    }
}
