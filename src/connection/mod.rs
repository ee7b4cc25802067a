//! Storage connections: shares that a datastore wants mounted (NFS_AUTO of OpenNebula). Whoever needs one asks
//! for it under its id; it is mounted once, whoever asks, and what was mounted is recorded under that id with its
//! owner. What this program did not mount it uses when it is what is wanted, and never unmounts. The system's
//! mount table (fstab) is neither read nor written.

mod share;

pub use share::Share;

use crate::obs;
use crate::sys::fs::{self, Dir};
use crate::sys::mounts::{self, Mount};
use crate::sys::tool::Run;
use crate::sys::{Cancel, Class, Tool, ToolError, Tools, ofd};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For one mount. The sudoers file has the same: root's child is not ours to end. mount.nfs is run itself: mount
/// would start it, and leave it behind when it is ended.
const DEADLINE: Duration = Duration::from_secs(30);
/// For whoever mounts the same just now, and for the end of a child that was told to end.
const WAIT: Duration = Duration::from_secs(45);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    #[error("{what} of the share, {value:?}: {why}")]
    Bad { what: &'static str, value: String, why: &'static str },
    #[error("{}: {found} is mounted there and {wanted} is wanted; nothing was changed. Unmount it, or correct the datastore's attributes", point.display())]
    Other { point: PathBuf, found: String, wanted: String },
    #[error("{}: {share} is to be mounted there, but {why}; nothing was changed", point.display())]
    Unfit { point: PathBuf, share: String, why: &'static str },
    #[error("mounting {share} on {}: {source}{}", point.display(), hint(source))]
    Mount { share: String, point: PathBuf, source: ToolError },
    #[error("mounting {share} on {}: mount.nfs reported success, but it is not there", point.display())]
    Missing { share: String, point: PathBuf },
    #[error("unmounting {}: {source}{}", point.display(), hint(source))]
    Unmount { point: PathBuf, source: ToolError },
    #[error("no connection {0:?} is recorded on this host")]
    Unknown(String),
    #[error("connection {0}: another process has been connecting it for {wait} s", wait = WAIT.as_secs())]
    Busy(String),
    #[error("connection {0}: stopped on request")]
    Cancelled(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

fn hint(e: &ToolError) -> &'static str {
    match e {
        ToolError::Missing { .. } => " (Debian: apt install nfs-common)",
        ToolError::Failed { stderr, .. } if stderr.contains("sudo:") => {
            "; packaging/sudoers has the rule that lets this account do it"
        }
        _ => "",
    }
}

impl ConnectionError {
    pub fn class(&self) -> Class {
        match self {
            ConnectionError::Bad { .. } => Class::Usage,
            ConnectionError::Other { .. } | ConnectionError::Unfit { .. } => Class::Refused,
            ConnectionError::Mount { source: ToolError::Failed { .. }, .. } => Class::Remote,
            // By sudo, whose limit it is then.
            ConnectionError::Mount { source: ToolError::Killed { .. }, .. } => Class::Timeout,
            ConnectionError::Unmount { source: ToolError::Failed { stderr, .. }, .. }
                if stderr.contains("busy") =>
            {
                Class::InUse
            }
            ConnectionError::Mount { source, .. } | ConnectionError::Unmount { source, .. } => source.class(),
            ConnectionError::Missing { .. } => Class::Integrity,
            ConnectionError::Unknown(_) => Class::NotFound,
            ConnectionError::Busy(_) => Class::Busy,
            ConnectionError::Cancelled(_) => Class::Cancelled,
            ConnectionError::Io { source, .. } => Class::of_io(source),
        }
    }
}

pub type Result<T> = std::result::Result<T, ConnectionError>;

/// What this program mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub id: String,
    pub owner: String,
    pub share: Share,
    pub point: PathBuf,
    pub since: String,
    /// The mount: its number, and the boot of this host that gave it.
    mount: u64,
    boot: String,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// As we mounted it.
    Mounted,
    /// Nothing is mounted there any more.
    Gone,
    /// Something else is: somebody else's.
    Other,
}

/// The connections of this host.
pub struct Connections<'a> {
    /// Of this host, for what is recorded.
    pub state: &'a Path,
    pub tools: &'a Tools,
    pub cancel: &'a Cancel,
}

impl Connections<'_> {
    /// Has the share mounted at a directory, which is made when only it is missing. Says whether it was this
    /// call that mounted it.
    pub fn connect(&self, id: &str, owner: &str, share: &Share, point: &Path) -> Result<bool> {
        let point = &real(point)?;
        if is_there(share, point)? {
            return Ok(false);
        }
        let _lock = self.lock(id)?;
        if is_there(share, point)? {
            return Ok(false);
        }
        prepare(share, point)?;
        let words = share.arguments(point);
        let done = self.run(Tool::MountNfs, &words, point);
        // What counts is what is mounted: another account may have been faster.
        match (is_there(share, point)?, done) {
            (true, Ok(())) => {}
            (true, Err(_)) => return Ok(false),
            (false, Err(source)) => {
                return Err(ConnectionError::Mount {
                    share: share.to_string(),
                    point: point.clone(),
                    source,
                });
            }
            (false, Ok(())) => {
                return Err(ConnectionError::Missing { share: share.to_string(), point: point.clone() });
            }
        }
        let mount = at(point)?.map(|m| m.id).unwrap_or_default();
        let (since, boot) = (obs::now(), boot());
        let record = Record {
            id: id.to_owned(),
            owner: owner.to_owned(),
            share: share.clone(),
            point: point.clone(),
            since,
            mount,
            boot,
        };
        // Without it the mount is taken for somebody else's, and stays.
        if let Err(e) =
            serde_json::to_vec(&record).map_err(Into::into).and_then(|b| fs::note(&self.file(id), &b))
        {
            tracing::warn!(%e, id, "mount not recorded");
        }
        Ok(true)
    }

    /// All that are recorded, by id.
    pub fn list(&self) -> Result<Vec<(Record, State)>> {
        let entries = std::fs::read_dir(self.state.join("connection")).into_iter().flatten().flatten();
        let read =
            |path: PathBuf| -> Option<Record> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
        let paths = entries.map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "json"));
        let mut all: Vec<Record> = paths.filter_map(read).collect();
        all.sort_by(|a, b| (a.id.len(), &a.id).cmp(&(b.id.len(), &b.id)));
        all.into_iter().map(|r| r.state().map(|s| (r, s))).collect()
    }

    /// Ends a connection: unmounts what we mounted, unless it is in use; forgets what is no longer ours.
    pub fn drop(&self, id: &str) -> Result<State> {
        let _lock = self.lock(id)?;
        let all = self.list()?;
        let (record, state) = all
            .into_iter()
            .find(|(r, _)| r.id == id)
            .ok_or_else(|| ConnectionError::Unknown(id.to_owned()))?;
        if state == State::Mounted {
            let point = record.point;
            let words = [point.to_string_lossy().into_owned()];
            self.run(Tool::Umount, &words, &point)
                .map_err(|source| ConnectionError::Unmount { point: point.clone(), source })?;
        }
        let path = self.file(id);
        fs::unnote(&path).map_err(io_of(&path))?;
        Ok(state)
    }

    fn run(&self, tool: Tool, words: &[String], writes: &Path) -> std::result::Result<(), ToolError> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        let run = Run { as_root: true, writes: &[writes], ..Run::new(DEADLINE, self.cancel) };
        self.tools.run(tool, &words, run).map(drop)
    }

    fn file(&self, id: &str) -> PathBuf {
        self.state.join("connection").join(format!("{}.json", id.replace('/', "_")))
    }

    /// One at a time, for each id. The file stays: who removes a lock file makes two holders.
    fn lock(&self, id: &str) -> Result<ofd::Locked> {
        let path = self.file(id).with_extension("lock");
        let open = || {
            std::fs::create_dir_all(path.parent().unwrap_or(&path))?;
            std::fs::File::options().read(true).write(true).create(true).truncate(false).open(&path)
        };
        let file = ofd::Locked::new(open().map_err(io_of(&path))?);
        let end = Instant::now() + WAIT;
        while !ofd::try_lock(file.as_fd(), 0, true).map_err(io_of(&path))? {
            if Instant::now() > end {
                return Err(ConnectionError::Busy(id.to_owned()));
            }
            if !self.cancel.wait(PAUSE) {
                return Err(ConnectionError::Cancelled(id.to_owned()));
            }
        }
        Ok(file)
    }
}

impl Record {
    /// Whether what is mounted there now is what we mounted.
    fn state(&self) -> Result<State> {
        Ok(match at(&self.point)? {
            None => State::Gone,
            Some(m) if m.id == self.mount && self.boot == boot() && self.share.is(&m.kind, &m.source) => {
                State::Mounted
            }
            Some(_) => State::Other,
        })
    }
}

fn io_of(path: &Path) -> impl Fn(io::Error) -> ConnectionError + '_ {
    |source| ConnectionError::Io { what: path.display().to_string(), source }
}

/// Of this host: mounts are numbered anew after each.
fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The path as the mount table has it. Its last part is not looked at: what is mounted there may hang.
fn real(point: &Path) -> Result<PathBuf> {
    let (Some(parent), Some(name)) = (point.parent(), point.file_name()) else {
        let source = io::ErrorKind::InvalidInput.into();
        return Err(ConnectionError::Io { what: point.display().to_string(), source });
    };
    Ok(parent.canonicalize().map_err(io_of(parent))?.join(name))
}

/// What is mounted exactly there.
fn at(point: &Path) -> Result<Option<Mount>> {
    let table = mounts::read().map_err(io_of(Path::new("the mount table")))?;
    Ok(table.into_iter().rfind(|m| m.point == point))
}

/// Whether the share is mounted there; anything else is an error.
fn is_there(share: &Share, point: &Path) -> Result<bool> {
    match at(point)? {
        None => Ok(false),
        Some(m) if share.is(&m.kind, &m.source) => Ok(true),
        Some(m) => {
            let found = format!("{} ({})", m.source, m.kind);
            Err(ConnectionError::Other { point: point.to_owned(), found, wanted: share.to_string() })
        }
    }
}

/// A directory that hides nothing when something is mounted on it.
fn prepare(share: &Share, point: &Path) -> Result<()> {
    let unfit = |why| ConnectionError::Unfit { point: point.to_owned(), share: share.to_string(), why };
    let (Some(parent), Some(name)) = (point.parent(), point.file_name()) else {
        return Err(unfit("it is the root"));
    };
    let parent = Dir::open(parent).map_err(io_of(parent))?;
    match parent.mkdir(name, 0o755, false) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        made => return made.map_err(io_of(point)),
    }
    // Without following a link: it would be mounted somewhere else.
    let dir = parent.sub(Path::new(name)).map_err(|e| match e.raw_os_error() {
        Some(_) if point.is_symlink() => unfit("it is a link"),
        _ => io_of(point)(e),
    })?;
    if dir.names().map_err(io_of(point))?.is_empty() {
        return Ok(());
    }
    Err(unfit("it has entries of its own, which nobody would see any more; move them away first"))
}

#[cfg(test)]
mod tests;
