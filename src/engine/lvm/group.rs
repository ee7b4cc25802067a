//! The LVM commands, each in one fixed shape: the sudoers file allows these and nothing else. They see
//! only the devices named, and neither read nor write what the host's LVM keeps beside the devices.

use super::view::{self, View};
use super::{EngineError, Result};
use crate::lock::DomainLock;
use crate::sys::{Bytes, Cancel, Tool, ToolError, Tools, tool::Run};
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::time::Duration;

/// No group is larger than this many bytes of JSON.
const REPORT_MAX: usize = 64 << 20;
/// A reader may meet a writer of another host in the middle of its commit; it looks again.
const READS: u32 = 7;

/// A change of the group's metadata, or of what this host has of it.
#[derive(Debug)]
pub(super) enum Change {
    Rename {
        from: String,
        to: String,
    },
    Tag {
        volume: String,
        add: Vec<String>,
        del: Vec<String>,
    },
    /// Makes the group a domain, or none. The host's own activation at boot is off meanwhile: a pool that two
    /// hosts have active is destroyed.
    Group {
        tag: String,
        domain: bool,
    },
    /// Leaves a volume as stock drivers make theirs: without our tags, and only ever active when somebody asks.
    Release {
        volume: String,
        del: Vec<String>,
    },
    Create {
        name: String,
        how: How,
        tags: Vec<String>,
        activate: bool,
    },
    Resize {
        volume: String,
        from: Bytes,
        to: Bytes,
        pool: bool,
    },
    /// Grows a volume onto these extents, and no others.
    Append {
        volume: String,
        to: Bytes,
        extents: Vec<String>,
    },
    Remove {
        volume: String,
        thin: bool,
    },
    /// Makes a volume a device of this host, or takes the device away.
    Device {
        volume: String,
        on: bool,
    },
    /// Lets a device of this host go on that stands still, as the metadata have it.
    Wake {
        volume: String,
    },
}

/// Kinds of volumes; sizes are whole extents.
#[derive(Debug)]
pub(super) enum How {
    Linear(Bytes),
    Pool(Bytes),
    Thin { pool: String, size: Bytes },
    Snapshot(String),
}

impl Change {
    /// By how many commits of LVM's it is made. What a pool takes part in is made by several, and
    /// versions of LVM differ in their number.
    pub(super) fn commits(&self) -> RangeInclusive<u64> {
        match self {
            Change::Create { how: How::Linear(_), .. } | Change::Remove { thin: false, .. } => 1..=1,
            Change::Create { .. } | Change::Remove { .. } | Change::Resize { pool: true, .. } => 1..=4,
            Change::Device { .. } | Change::Wake { .. } => 0..=0,
            _ => 1..=1,
        }
    }
}

/// A volume group and how to reach it.
#[derive(Debug)]
pub(super) struct Group {
    pub name: String,
    config: String,
    tools: Tools,
    deadline: Duration,
    cancel: Cancel,
    /// Words before all others; none in production.
    flags: &'static [&'static str],
}

impl Group {
    pub(super) fn new(
        name: &str,
        devices: &[PathBuf],
        tools: Tools,
        deadline: Duration,
        cancel: Cancel,
        flags: &'static [&'static str],
    ) -> Result<Group> {
        let bad = |name: &str, why| Err(EngineError::BadName { name: name.to_owned(), why });
        let fits = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
        if name.is_empty() || name.starts_with('-') || name.len() > 60 || !name.chars().all(fits) {
            return bad(name, "not one that a volume group can have");
        }
        let mut filter = String::new();
        for d in devices {
            let text = d.to_string_lossy();
            let fits = |c: char| c.is_ascii_alphanumeric() || "/_.:+-".contains(c);
            if !text.starts_with("/dev/") || text.contains("..") || !text.chars().all(fits) {
                return bad(&text, "not the path of a device");
            }
            // The dot of a path is the one character that a pattern reads otherwise; it matches itself.
            let _ = write!(filter, "\"a|^{text}$|\",");
        }
        if !devices.is_empty() {
            filter = format!("filter=[{filter}\"r|.*|\"] use_devicesfile=0 ");
        }
        let config = format!(
            "devices{{{filter}hints=\"none\" obtain_device_list_from_udev=0}} \
             activation{{monitoring=0}} backup{{backup=0 archive=0}} report{{time_format=\"%s\"}}"
        );
        Ok(Group { name: name.to_owned(), config, tools, deadline, cancel, flags })
    }

    pub(super) fn path(&self, volume: &str) -> String {
        format!("{}/{volume}", self.name)
    }

    /// All that a command is given, its shape being `args`.
    pub(super) fn all_words<'a>(&'a self, args: &'a [impl AsRef<str>]) -> Vec<&'a str> {
        let first = self.flags.iter().copied().chain(["--config", &self.config]);
        first.chain(args.iter().map(AsRef::as_ref)).collect()
    }

    fn call(&self, tool: Tool, args: &[impl AsRef<str>], hold: Option<BorrowedFd<'_>>) -> Result<Vec<u8>> {
        self.run(tool, &self.all_words(args), hold, (false, true))
    }

    /// A look at what is this host's, not the group's.
    pub(super) fn ask(&self, tool: Tool, args: &[&str], as_root: bool) -> Result<Vec<u8>> {
        let flags = if tool == Tool::LvmConfig { self.flags } else { &[] };
        self.run(tool, &[flags, args].concat(), None, (true, as_root))
    }

    fn run(
        &self,
        tool: Tool,
        words: &[&str],
        hold: Option<BorrowedFd<'_>>,
        (looks, as_root): (bool, bool),
    ) -> Result<Vec<u8>> {
        let words: Vec<&OsStr> = words.iter().map(OsStr::new).collect();
        let mut out = Vec::new();
        let mut watch = |data: &[u8]| out.extend_from_slice(&data[..data.len().min(REPORT_MAX - out.len())]);
        let env: [(&str, &OsStr); 1] = [("LVM_SUPPRESS_FD_WARNINGS", OsStr::new("1"))];
        let watch = Some(&mut watch as &mut dyn FnMut(&[u8]));
        let run = Run { looks, as_root, hold, watch, env: &env, ..Run::new(self.deadline, &self.cancel) };
        match self.tools.run(tool, &words, run) {
            Ok(_) => Ok(out),
            Err(e) => Err(self.meaning(e)),
        }
    }

    /// The few failures of LVM that callers tell apart; it has no other sign for them than its words.
    fn meaning(&self, e: ToolError) -> EngineError {
        let said = match &e {
            ToolError::Failed { stderr, .. } => stderr.as_str(),
            _ => "",
        };
        let has = |words: &[&str]| words.iter().any(|w| said.contains(w));
        if has(&["insufficient free space", "Insufficient free space", "insufficient suitable"]) {
            EngineError::NoSpace(format!("volume group {}", self.name))
        } else if has(&["free space in thin pool"]) {
            EngineError::NoSpace(format!("a pool of volume group {}", self.name))
        } else if has(&["already exists in volume group"]) {
            EngineError::Exists(format!("a volume of group {}", self.name))
        } else if has(&["Failed to find logical volume", "not found in volume group"]) {
            EngineError::Absent(format!("a volume of group {}", self.name))
        } else if has(&["not found"]) && has(&["Volume group"]) {
            EngineError::Absent(format!("volume group {}", self.name))
        } else if has(&["in use", "is used by another device"]) {
            EngineError::InUse { what: format!("a volume of group {}", self.name), by: "a process".into() }
        } else {
            EngineError::Tool(e)
        }
    }

    /// What the group is now. Takes no lock of LVM's, writes nothing, repairs nothing.
    pub(super) fn view(&self) -> Result<View> {
        let mut pause = Duration::from_millis(10);
        for _ in 1..READS {
            match self.look() {
                Err(EngineError::Tool(ToolError::Failed { .. })) => {}
                r => return r,
            }
            self.cancel.wait(pause);
            pause *= 2;
        }
        self.look()
    }

    pub(super) fn query<'a>(&'a self, fields: &'a str) -> Vec<&'a str> {
        let report = ["--readonly", "--reportformat", "json", "--units", "b", "--nosuffix", "--options"];
        [&report[..], &[fields, &self.name]].concat()
    }

    fn look(&self) -> Result<View> {
        let damaged = |why| EngineError::Damaged { what: format!("the report on {}", self.name), why };
        for (tool, fields) in [(Tool::Lvs, view::FIELDS), (Tool::Vgs, view::GROUP_FIELDS)] {
            let json = self.run(tool, &self.all_words(&self.query(fields)), None, (true, true))?;
            if let Some(view) = View::parse(&json).map_err(damaged)? {
                return Ok(view);
            }
        }
        Err(EngineError::Absent(format!("volume group {}", self.name)))
    }

    /// Where a thick volume lies: `<device>:<first>-<last>` for each of its parts.
    pub(super) fn extents(&self, volume: &str) -> Result<Vec<String>> {
        let json = self.run(Tool::Lvs, &self.all_words(&self.query(view::EXTENTS)), None, (true, true))?;
        view::extents(&json, volume)
            .map_err(|why| EngineError::Damaged { what: format!("the report on {}", self.name), why })
    }

    /// A change of metadata, which nobody else may make before this one is made, even if we die meanwhile.
    pub(super) fn change(&self, lock: &DomainLock, change: &Change) -> Result<()> {
        let (tool, words) = self.words(change);
        self.call(tool, &words, lock.fd()).map(drop)
    }

    /// A change of this host's devices.
    pub(super) fn device(&self, volume: &str, on: bool) -> Result<()> {
        let (tool, words) = self.words(&Change::Device { volume: volume.to_owned(), on });
        self.call(tool, &words, None).map(drop)
    }

    /// The command that makes a change.
    pub(super) fn words(&self, change: &Change) -> (Tool, Vec<String>) {
        let group = self.name.as_str();
        let mut words: Vec<String> = vec!["--quiet".to_owned()];
        let mut say = |more: &[&str]| words.extend(more.iter().map(|w| (*w).to_owned()));
        let tool = match change {
            Change::Rename { from, to } => {
                say(&[group, from, to]);
                Tool::LvRename
            }
            Change::Tag { volume, add, del } => {
                for t in del {
                    say(&["--deltag", t]);
                }
                for t in add {
                    say(&["--addtag", t]);
                }
                say(&[&self.path(volume)]);
                Tool::LvChange
            }
            Change::Group { tag, domain } => {
                let (auto, change) = if *domain { ("n", "--addtag") } else { ("y", "--deltag") };
                say(&["--setautoactivation", auto, change, tag, group]);
                Tool::VgChange
            }
            Change::Release { volume, del } => {
                say(&["--setactivationskip", "y"]);
                for t in del {
                    say(&["--deltag", t]);
                }
                say(&[&self.path(volume)]);
                Tool::LvChange
            }
            Change::Create { name, how, tags, activate } => {
                say(&["--yes", "--activate", if *activate { "y" } else { "n" }]);
                for t in tags {
                    say(&["--addtag", t]);
                }
                say(&["--name", name]);
                let bytes = |s: &Bytes| format!("{}b", s.0);
                match how {
                    How::Linear(s) => {
                        say(&["--type", "linear", "--wipesignatures", "n", "--size", &bytes(s), group]);
                    }
                    How::Pool(s) => say(&["--type", "thin-pool", "--zero", "y", "--size", &bytes(s), group]),
                    How::Thin { pool, size } => {
                        say(&["--type", "thin", "--virtualsize", &bytes(size), "--thinpool", pool, group]);
                    }
                    How::Snapshot(of) => say(&["--snapshot", "--setactivationskip", "n", &self.path(of)]),
                }
                Tool::LvCreate
            }
            Change::Resize { volume, from, to, .. } => {
                say(if to > from { &[] } else { &["--force"] });
                say(&["--size", &format!("{}b", to.0), &self.path(volume)]);
                if to > from { Tool::LvExtend } else { Tool::LvReduce }
            }
            Change::Append { volume, to, extents } => {
                say(&["--size", &format!("{}b", to.0), &self.path(volume)]);
                for e in extents {
                    say(&[e]);
                }
                Tool::LvExtend
            }
            Change::Remove { volume, .. } => {
                say(&["--yes", &self.path(volume)]);
                Tool::LvRemove
            }
            Change::Wake { volume } => {
                say(&["--refresh", &self.path(volume)]);
                Tool::LvChange
            }
            Change::Device { volume, on } => {
                say(&["--ignoreactivationskip", "--activate", if *on { "y" } else { "n" }]);
                say(&[&self.path(volume)]);
                Tool::LvChange
            }
        };
        (tool, words)
    }
}
