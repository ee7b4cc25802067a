//! The settings as types. What each means is written in `defaults.toml`.

use super::load::Values;
use super::value::Words;
use super::{ConfigError, Env};
use crate::sys::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    pub paths: Paths,
    pub lock: LockSettings,
    pub sanlock: SanlockSettings,
    pub lvm: LvmSettings,
    pub trash_keep: Duration,
    pub wipe: WipeSettings,
    pub job: JobSettings,
    pub log: LogSettings,
    pub image: ImageSettings,
    pub http: HttpSettings,
    /// Paths of external programs that are set, by name (`qemu_img`).
    pub tools: BTreeMap<String, PathBuf>,
    pub tool_deadline: Duration,
    pub verb_deadline: Option<Duration>,
    pub fs: FsSettings,
    pub cancel: CancelSettings,
    pub data: DataSettings,
    pub ssh: SshSettings,
    pub libvirt: LibvirtSettings,
    /// How often oned is told how far a verb is; never when `None`.
    pub oned_progress: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    pub var: PathBuf,
    pub etc: PathBuf,
    pub datastores: PathBuf,
    pub remotes: PathBuf,
    pub run: PathBuf,
    pub state: PathBuf,
    /// The event log, a file.
    pub log: PathBuf,
    /// The account's home, from the environment.
    pub home: Option<PathBuf>,
}

impl Paths {
    /// The same installation with our own state in a person's home, for accounts that may not write
    /// the shared places.
    #[must_use]
    pub fn private(&self, home: &Path) -> Paths {
        let state = home.join(".local/state/onesdm");
        Paths { run: state.join("run"), log: state.join("onesdm.jsonl"), state, ..self.clone() }
    }

    /// What may never be read as an image unless a datastore says so: see `one::DirPolicy`.
    pub fn restricted(&self) -> Vec<&Path> {
        let own = [self.var.as_path(), self.etc.as_path()];
        own.into_iter().chain(self.home.as_deref()).collect()
    }
}

#[derive(Clone, Debug)]
pub struct LockSettings {
    pub wait: Duration,
    /// `None`: until a silent host must be known to be dead.
    pub wait_dead: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct SanlockSettings {
    /// 0: none.
    pub host_id: u32,
    pub io_timeout: Duration,
    pub without_watchdog: bool,
}

#[derive(Clone, Debug)]
pub struct LvmSettings {
    /// Empty: those of the host's own configuration.
    pub devices: Vec<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct JobSettings {
    pub done_max: u32,
    pub done_days: u32,
}

#[derive(Clone, Debug)]
pub struct LogSettings {
    pub max_size: Bytes,
    pub keep: u32,
}

#[derive(Clone, Debug)]
pub struct ImageSettings {
    pub max_size: Option<Bytes>,
    pub allow: Vec<String>,
}

/// What becomes of the content of a volume that goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wipe {
    #[default]
    No,
    Discard,
    Zero,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct WipeSettings {
    pub how: Wipe,
    /// Per second.
    pub limit: Option<Bytes>,
}

#[derive(Clone, Debug)]
pub struct HttpSettings {
    pub connect_timeout: Duration,
    pub stall_timeout: Duration,
    pub retries: u32,
    pub ca_file: Option<PathBuf>,
    pub insecure: bool,
}

#[derive(Clone, Debug)]
pub struct FsSettings {
    pub supported: Vec<String>,
    /// Arguments of mkfs by file system.
    pub options: BTreeMap<String, Vec<String>>,
}

#[derive(Clone, Debug)]
pub struct CancelSettings {
    pub grace: Duration,
}

#[derive(Clone, Debug)]
pub struct SshSettings {
    pub connect: Duration,
    pub silence: Duration,
    pub orphan_grace: Duration,
    /// Where on hosts the agent is looked for.
    pub agents: Vec<String>,
    /// The socket of the account's key agent, from the environment.
    pub auth_sock: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub struct DataSettings {
    /// Per second.
    pub limit: Option<Bytes>,
    /// Copies at once on one host, and in one domain; 0: any number.
    pub host_copies: u32,
    pub domain_copies: u32,
    /// From host to host without the front-end in between.
    pub direct: bool,
}

#[derive(Clone, Debug)]
pub struct LibvirtSettings {
    pub uri: String,
    /// For one answer.
    pub timeout: Duration,
}

impl Settings {
    pub(super) fn of(v: &Values, env: &Env) -> Result<Settings, ConfigError> {
        let (home, auth_sock) = (env.home.clone(), env.ssh_auth_sock.clone());
        let mut tools = BTreeMap::new();
        for name in v.names("tools.") {
            if let Some(path) = v.get(&format!("tools.{name}"))? {
                tools.insert(name.to_owned(), path);
            }
        }
        let mut options = BTreeMap::new();
        for fs in v.names("fs.options.") {
            options.insert(fs.to_owned(), v.get::<Words>(&format!("fs.options.{fs}"))?.0);
        }
        Ok(Settings {
            paths: Paths {
                var: v.get("paths.var")?,
                etc: v.get("paths.etc")?,
                datastores: v.get("paths.datastores")?,
                remotes: v.get("paths.remotes")?,
                run: v.get("paths.run")?,
                state: v.get("paths.state")?,
                log: v.get("paths.log")?,
                home,
            },
            lock: LockSettings { wait: v.get("lock.wait")?, wait_dead: v.get("lock.wait_dead")? },
            sanlock: SanlockSettings {
                host_id: v.get("sanlock.host_id")?,
                io_timeout: v.get("sanlock.io_timeout")?,
                without_watchdog: v.get("sanlock.without_watchdog")?,
            },
            lvm: LvmSettings {
                devices: v.get::<Words>("lvm.devices")?.0.into_iter().map(PathBuf::from).collect(),
            },
            trash_keep: v.get("trash.keep")?,
            wipe: WipeSettings { how: v.get("trash.wipe")?, limit: v.get("trash.wipe_limit")? },
            job: JobSettings { done_max: v.get("job.done_max")?, done_days: v.get("job.done_days")? },
            log: LogSettings { max_size: v.get("log.max_size")?, keep: v.get("log.keep")? },
            image: ImageSettings { max_size: v.get("image.max_size")?, allow: v.get("image.allow")? },
            http: HttpSettings {
                connect_timeout: v.get("http.connect_timeout")?,
                stall_timeout: v.get("http.stall_timeout")?,
                retries: v.get("http.retries")?,
                ca_file: v.get("http.ca_file")?,
                insecure: v.get("http.insecure")?,
            },
            tools,
            tool_deadline: v.get("tool.deadline")?,
            verb_deadline: v.get("verb.deadline")?,
            fs: FsSettings { supported: v.get("fs.supported")?, options },
            cancel: CancelSettings { grace: v.get("cancel.grace")? },
            data: DataSettings {
                limit: v.get("data.limit")?,
                host_copies: v.get("data.host_copies")?,
                domain_copies: v.get("data.domain_copies")?,
                direct: v.get("data.direct")?,
            },
            libvirt: LibvirtSettings { uri: v.get("libvirt.uri")?, timeout: v.get("libvirt.timeout")? },
            oned_progress: v.get("oned.progress")?,
            ssh: SshSettings {
                connect: v.get("ssh.connect")?,
                silence: v.get("ssh.silence")?,
                orphan_grace: v.get("ssh.orphan_grace")?,
                agents: v.get("ssh.agents")?,
                auth_sock,
            },
        })
    }
}
