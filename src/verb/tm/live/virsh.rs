//! `virsh` for one machine, by argument vector. What it says is libvirt's, and may be anything.

use super::super::Tm;
use super::super::op::{Freeze, Machine};
use super::drives::{Drive, drives};
use crate::sdm::plan::Plan;
use crate::sys::effect::only_looks;
use crate::sys::tool::Run;
use crate::sys::{Cancel, Class, Tool, ToolError, Tools};
use crate::verb::{MOVING, refuse};
use anyhow::{Context as _, Result};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

pub(super) struct Virsh<'a> {
    pub tools: &'a Tools,
    pub cancel: &'a Cancel,
    pub machine: &'a Machine,
}

/// Whether a machine's processors run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Running,
    Paused,
    /// Off, or something else that has no disks to work with.
    Other,
}

/// A machine at one moment.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Look {
    pub state: State,
    /// Somebody asked for that state; it is no failure, and none of libvirt's own doings.
    pub by_request: bool,
    pub processors: u32,
    /// How long they worked, since the machine was started.
    pub worked: Option<Duration>,
}

impl Look {
    /// From `NAME=value` lines, with libvirt's numbers for states and reasons.
    fn of(said: &str) -> Option<Look> {
        let value = |name: &str| {
            said.lines().find_map(|l| l.trim().strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        };
        let state = match value("state.state")? {
            0..=2 => State::Running,
            3 => State::Paused,
            _ => State::Other,
        };
        let processors = u32::try_from(value("vcpu.current").unwrap_or(1)).ok()?;
        let times = (0..value("vcpu.maximum").unwrap_or(0)).filter_map(|n| value(&format!("vcpu.{n}.time")));
        let worked = times.reduce(u64::saturating_add).map(Duration::from_nanos);
        Some(Look { state, by_request: value("state.reason") == Some(1), processors, worked })
    }
}

/// Refuses what `virsh` could take for an option, or for more than one word.
fn word(what: &str, text: &str) -> Result<()> {
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && text.len() < 256 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Ok(());
    }
    Err(refuse(Class::Usage, format!("{text:?} is no {what}; nothing was changed")))
}

impl<'a> Virsh<'a> {
    pub fn new(tm: &Tm<'a>, machine: &'a Machine, cancel: &'a Cancel) -> Virsh<'a> {
        Virsh { tools: tm.ctx.tools, cancel, machine }
    }

    /// Whether the machine can be named at all.
    pub fn sound(&self) -> Result<()> {
        word("name of a machine", &self.machine.domain)?;
        word("target of a disk", &self.machine.target)?;
        let uri = &self.machine.uri;
        if uri.is_empty() || uri.chars().any(char::is_control) {
            return Err(refuse(Class::Usage, format!("{uri:?} is no libvirt URI (LIBVIRT_URI of kvmrc)")));
        }
        Ok(())
    }

    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.machine.timeout.clamp(1, 3600))
    }

    fn call(
        &self,
        command: &str,
        args: &[&OsStr],
        (deadline, looks): (Duration, bool),
    ) -> Result<String, ToolError> {
        let mut uri = OsString::from("--connect=");
        uri.push(&self.machine.uri);
        let domain: &OsStr = self.machine.domain.as_ref();
        let mut all = vec![uri.as_os_str(), "--quiet".as_ref()];
        // Then libvirt itself refuses what would change something.
        all.extend(only_looks().then_some(OsStr::new("--readonly")));
        all.extend([command.as_ref(), "--domain".as_ref(), domain]);
        all.extend(args);
        let out = self.tools.run(Tool::Virsh, &all, Run { looks, ..Run::new(deadline, self.cancel) })?;
        if out.stdout_cut {
            let source = std::io::Error::other("more than 1 MiB");
            return Err(ToolError::Io { tool: Tool::Virsh, what: "reading its output", source });
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    fn ask(&self, command: &str, args: &[&str], deadline: Duration) -> Result<String, ToolError> {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.call(command, &args, (deadline, false))
    }

    /// What only looks.
    fn see(&self, command: &str, args: &[&str]) -> Result<String, ToolError> {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        self.call(command, &args, (self.timeout(), true))
    }

    fn about(&self, what: &str) -> String {
        format!("{what} machine {}", self.machine.domain)
    }

    /// A machine that libvirt does not know is off.
    pub fn look(&self) -> Result<Look> {
        let said = match self.see("domstats", &["--state", "--vcpu"]) {
            Err(e) if is_unknown(&e) => "state.state=5".to_owned(),
            said => said.with_context(|| self.about("asking for the state of"))?,
        };
        Look::of(&said).with_context(|| self.about("finding no state in what libvirt says of"))
    }

    /// The machine's disks; `None` when it does not run here.
    pub fn drives(&self) -> Result<Option<Vec<Drive>>> {
        match self.see("dumpxml", &[]) {
            Err(e) if is_unknown(&e) => Ok(None),
            said => drives(&said.with_context(|| self.about("asking for the disks of"))?),
        }
    }

    /// The same of one that runs; the disk that it is about comes first.
    pub fn disks(&self) -> Result<Vec<Drive>> {
        let Machine { domain: name, target, .. } = self.machine;
        let Some(mut all) = self.drives()? else {
            let text = format!("machine {name} does not run on this host; nothing was changed");
            return Err(refuse(Class::Refused, text));
        };
        let Some(at) = all.iter().position(|d| d.target == *target && !d.files.is_empty()) else {
            let text =
                format!("machine {name} has no file or device as its disk {target}; nothing was changed");
            return Err(refuse(Class::Integrity, text));
        };
        all.swap(0, at);
        Ok(all)
    }

    /// For a plan: what is done to the machine, as it is now, for `what`.
    pub fn planned(&self, plan: &Plan, what: &str) -> Result<()> {
        let freezes = match self.machine.freeze {
            Freeze::Try => "the guest is asked to freeze its file systems, where its agent answers, and ",
            Freeze::Agent => "the guest has to freeze its file systems, and ",
            Freeze::Suspend => "",
        };
        let name = &self.machine.domain;
        plan.note(match self.look()?.state {
            State::Running => format!("machine {name} runs: {freezes}it is suspended {what}"),
            State::Paused => format!("machine {name} stands still, and goes on doing so {what}"),
            State::Other => format!("machine {name} neither runs nor stands still, and is left so {what}"),
        });
        Ok(())
    }

    pub fn suspend(&self) -> Result<()> {
        self.ask("suspend", &[], self.timeout()).map(drop).with_context(|| self.about("suspending"))
    }

    pub fn resume(&self) -> Result<()> {
        self.ask("resume", &[], self.timeout()).map(drop).with_context(|| self.about("resuming"))
    }

    /// Whether the guest's agent answers.
    pub fn ping(&self) -> Result<(), ToolError> {
        let ping = ["--timeout", "5", "{\"execute\":\"guest-ping\"}"];
        self.ask("qemu-agent-command", &ping, self.timeout().min(Duration::from_secs(10))).map(drop)
    }

    pub fn freeze(&self) -> Result<(), ToolError> {
        self.ask("domfsfreeze", &[], self.timeout()).map(drop)
    }

    pub fn thaw(&self) -> Result<(), ToolError> {
        self.ask("domfsthaw", &[], self.timeout()).map(drop)
    }

    /// The disk goes on in `layer`, which is there and empty; `others` are the machine's other disks.
    pub fn switch(&self, name: &str, layer: &Path, others: &[&str]) -> Result<(), ToolError> {
        // A comma in a value is written twice.
        let mut spec =
            OsString::from(format!("{},snapshot=external,driver=qcow2,file=", self.machine.target));
        spec.push(layer.to_string_lossy().replace(',', ",,"));
        let others: Vec<OsString> = others.iter().map(|t| format!("{t},snapshot=no").into()).collect();
        let mut args: Vec<&OsStr> =
            ["--name", name, "--disk-only", "--atomic", "--no-metadata", "--reuse-external"]
                .map(OsStr::new)
                .into();
        for spec in others.iter().chain([&spec]) {
            args.extend([OsStr::new("--diskspec"), spec]);
        }
        self.call("snapshot-create-as", &args, (self.timeout(), false)).map(drop)
    }

    /// What lies between the disk and `base` goes up into the disk; without a base, all.
    pub fn pull(&self, base: Option<&str>, relative: bool) -> Result<(), ToolError> {
        let mut args = vec!["--path", &self.machine.target, "--wait"];
        args.extend(base.into_iter().flat_map(|b| ["--base", b]));
        args.extend(relative.then_some("--keep-relative"));
        self.ask("blockpull", &args, MOVING).map(drop)
    }

    /// The layer `top` goes down into the one below it, `base`.
    pub fn commit(&self, top: &str, base: &str, relative: bool) -> Result<(), ToolError> {
        let mut args = vec!["--path", &self.machine.target, "--wait", "--top", top, "--base", base];
        args.extend(relative.then_some("--keep-relative"));
        self.ask("blockcommit", &args, MOVING).map(drop)
    }

    /// Everything is copied into `dest`, and from then on what the machine writes goes there, too.
    pub fn mirror(&self, dest: &Path, format: &str) -> Result<(), ToolError> {
        let start = ["--path", &self.machine.target, "--dest"].map(OsStr::new);
        let rest = ["--format", format, "--reuse-external", "--transient-job", "--wait"].map(OsStr::new);
        let args: Vec<&OsStr> = start.into_iter().chain([dest.as_os_str()]).chain(rest).collect();
        self.call("blockcopy", &args, (MOVING, false)).map(drop)
    }

    /// Whether the disk is being mirrored into this file.
    pub fn mirrors_into(&self, file: &Path) -> Result<bool> {
        let mut all = self.drives()?.into_iter().flatten();
        Ok(all.any(|d| d.target == self.machine.target && d.mirror.as_deref() == Some(file)))
    }

    /// Ends the disk's block job. A mirror that has caught up is complete then, and of this moment.
    pub fn end_job(&self) -> Result<(), ToolError> {
        self.ask("blockjob", &["--path", &self.machine.target, "--abort"], self.timeout()).map(drop)
    }

    /// The kind of block job that works on the disk, if one does.
    pub fn job(&self) -> Result<Option<String>> {
        let said = self.see("blockjob", &["--path", &self.machine.target, "--info", "--raw"]);
        let said = said.with_context(|| self.about("asking for block jobs of"))?;
        let kind = said.lines().find_map(|l| l.trim().strip_prefix("type="));
        Ok(kind.map(|k| k.trim().to_owned()))
    }
}

/// Whether libvirt knows of no such machine: it is off.
fn is_unknown(e: &ToolError) -> bool {
    matches!(e, ToolError::Failed { stderr, .. } if stderr.contains("failed to get domain"))
}

/// Whether the request reached its end: libvirt answered that it failed.
pub(super) fn is_answer(e: &ToolError) -> bool {
    matches!(e, ToolError::Failed { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_times_are_read() {
        let said = "Domain: 'one-7'\n  state.state=3\n  state.reason=1\n  vcpu.current=2\n  vcpu.maximum=4\n  \
                    vcpu.0.state=1\n  vcpu.0.time=1500000000\n  vcpu.1.state=1\n  vcpu.1.time=500000000\n";
        let worked = Some(Duration::from_secs(2));
        assert_eq!(
            Look::of(said).unwrap(),
            Look { state: State::Paused, by_request: true, processors: 2, worked }
        );
        let other = said.replace("reason=1", "reason=5");
        assert!(!Look::of(&other).unwrap().by_request, "a full disk is nobody's wish");
        assert_eq!(Look::of("state.state=5").unwrap().worked, None);
        assert_eq!(Look::of("on fire"), None);
    }

    #[test]
    fn what_could_be_an_option_is_no_name() {
        for bad in ["", "-x", "--all", "a b", "a\nb", "a/b", "a;b", "\u{e4}"] {
            assert!(word("name", bad).is_err(), "{bad:?}");
        }
        for good in ["one-7", "vda", "7f6b2c1e-0000-4000-8000-000000000001"] {
            word("name", good).unwrap();
        }
    }
}
