//! What is of this host: settings, tools, account, our own places, job records, journal, clock.

use super::{Finding, Verdict, nearest};
use crate::cli::world::{World, overrides as named};
use crate::sys::tool::Run;
use crate::sys::{Tool, Tools, ofd, user};
use crate::verb::{Found, one_line, tend};
use anyhow::Result;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// `--target-is-zero` came with it.
const QEMU_MIN: (u32, u32) = (5, 0);

/// An account, as far as permission bits know it: user and group.
pub type Account = (u32, u32);

pub fn settings(warnings: &[String]) -> Vec<Finding> {
    if warnings.is_empty() {
        return vec![Finding::ok("settings", "onesdm.toml", "all settings are understood")];
    }
    let remedy = "correct or remove it; `onesdm config defaults` lists what there is";
    warnings.iter().map(|w| Finding::warn("settings", "onesdm.toml", w, remedy)).collect()
}

/// The tools, those overrides left out that cannot be used.
pub fn overrides(set: &BTreeMap<String, PathBuf>, found: &mut Vec<Finding>) -> Result<Tools> {
    let mut good = BTreeMap::new();
    for (name, path) in set {
        let one = BTreeMap::from([(name.clone(), path.clone())]);
        match named(&one).and_then(|map| Ok(Tools::new(map.clone()).map(|_| map)?)) {
            Ok(map) => good.extend(map),
            Err(e) => found.push(Finding::bad(
                "tool",
                format!("tools.{name}"),
                format!("{}; every verb fails until this is corrected", one_line(&e)),
                "correct or remove the setting",
            )),
        }
    }
    Ok(Tools::new(good)?)
}

pub fn look(w: &World, owners: &[Account], found: &mut Vec<Finding>) {
    found.extend(tools(w));
    let mut accounts = Vec::new();
    if user::uid() == 0 {
        found.push(Finding::ok("account", "root", "verbs act as the owner of each datastore"));
        accounts = owners.iter().filter(|(uid, _)| *uid != 0).copied().collect();
    } else {
        found.push(Finding::ok("account", format!("user {}", user::uid()), "verbs act as this account"));
    }
    let (set, used) = (&w.config.settings.paths, &w.paths);
    let lost = [
        (
            "state",
            &set.state,
            &used.state,
            true,
            "a datastore that is not mounted is not noticed, and there is no history",
        ),
        ("run", &set.run, &used.run, true, "jobs are not listed and cannot be cancelled"),
        ("log", &set.log, &used.log, false, "events are not logged"),
    ];
    for (what, path, used, is_dir, loss) in lost {
        let place = Place { path, is_dir, loss, private: (path != used).then_some(used.as_path()) };
        found.push(place.look(what, &accounts));
    }
    found.push(records(&w.jobs.run));
    found.extend(held(&tend(&w.jobs, true)));
    found.push(journal(Path::new("/run/systemd/journal/socket").exists()));
    found.push(clock(jiff::Timestamp::now().as_second()));
}

fn tools(w: &World) -> Vec<Finding> {
    let supported = &w.config.settings.fs.supported;
    let mut out = Vec::new();
    for &tool in Tool::ALL {
        let Some((what, package, must)) = need(tool, supported) else { continue };
        out.push(match w.tools.path(tool) {
            Ok(path) if tool == Tool::QemuImg => {
                let run = Run::new(Duration::from_secs(10), &w.jobs.cancel);
                let said = w.tools.run(tool, &[OsStr::new("--version")], run);
                let said =
                    said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).map_err(|e| e.to_string());
                qemu(path, said.as_deref())
            }
            Ok(path) => Finding::ok("tool", tool, path.display()),
            Err(e) => {
                let remedy = format!(
                    "install it (Debian: apt install {package}), or set tools.{}",
                    tool.names()[0].replace(['-', '.'], "_")
                );
                let verdict = if must { Verdict::Bad } else { Verdict::Warn };
                Finding::new("tool", tool, verdict, format!("{e}: no {what}"), remedy)
            }
        });
    }
    out
}

/// What a tool is for, its package, and whether images cannot be had without it. `None`: no verb that is
/// offered needs it here.
fn need(tool: Tool, supported: &[String]) -> Option<(String, &'static str, bool)> {
    let fs = match tool.names()[0] {
        "qemu-img" => {
            return Some(("qcow2 images, conversions and snapshots".to_owned(), "qemu-utils", true));
        }
        "genisoimage" => return Some(("context ISOs of VMs".to_owned(), "genisoimage (or xorriso)", false)),
        "mkswap" => return Some(("swap images".to_owned(), "util-linux", false)),
        // Where machines run it is there; a front-end needs none.
        "virsh" => return None,
        name => name.strip_prefix("mkfs.")?,
    };
    let package = match fs {
        "xfs" => "xfsprogs",
        "btrfs" => "btrfs-progs",
        "vfat" => "dosfstools",
        _ => "e2fsprogs",
    };
    let what = format!("images with {fs}, which fs.supported offers");
    supported.iter().any(|s| s == fs).then_some((what, package, false))
}

fn qemu(path: &Path, said: Result<&str, &String>) -> Finding {
    let object = Tool::QemuImg;
    let remedy = "install a working qemu-img of version 5.0 or later";
    match said.map(|s| (s, version(s))) {
        Err(e) => Finding::bad("tool", object, e, remedy),
        Ok((s, None)) => Finding::warn(
            "tool",
            object,
            format!("{} does not tell its version: {s:.60?}", path.display()),
            remedy,
        ),
        Ok((_, Some(v))) => {
            let text = format!("{}, version {}.{}", path.display(), v.0, v.1);
            if v < QEMU_MIN {
                Finding::bad("tool", object, text, remedy)
            } else {
                Finding::ok("tool", object, text)
            }
        }
    }
}

fn version(said: &str) -> Option<(u32, u32)> {
    let word = said.split_whitespace().skip_while(|w| *w != "version").nth(1)?;
    let mut parts = word.split('.').map(|p| p.chars().take_while(char::is_ascii_digit).collect::<String>());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// A place of our own: a directory, or a file.
struct Place<'a> {
    path: &'a Path,
    is_dir: bool,
    loss: &'static str,
    /// What this account uses in its stead.
    private: Option<&'a Path>,
}

impl Place<'_> {
    fn look(&self, what: &'static str, accounts: &[Account]) -> Finding {
        let object = self.path.display();
        let at = nearest(self.path);
        let meta = match at.metadata() {
            Err(e) => {
                return Finding::warn(
                    what,
                    object,
                    format!("{}: {e}: {}", at.display(), self.loss),
                    "mend the path",
                );
            }
            Ok(m) => m,
        };
        let there = at == self.path;
        let want_dir = self.is_dir || !there;
        if meta.is_dir() != want_dir {
            let not = if meta.is_dir() { "a directory" } else { "not a directory" };
            let remedy = format!("move it away, or set paths.{what}");
            return Finding::bad(what, object, format!("{} is {not}: {}", at.display(), self.loss), remedy);
        }
        let bits = format!(
            "{} has owner {}:{}, mode {:04o}",
            at.display(),
            meta.uid(),
            meta.gid(),
            meta.mode() & 0o7777
        );
        let remedy = |(uid, gid)| format!("chown {uid}:{gid} {}", at.display());
        if let Some(private) = self.private {
            let detail =
                format!("this account may not write it ({bits}) and keeps its own in {}", private.display());
            return Finding::warn(what, object, detail, "run as root or as the account that runs oned");
        }
        let may = if meta.is_dir() { user::may_write(at) } else { user::may_write_file(at) };
        if !may {
            return Finding::bad(
                what,
                object,
                format!("not writable by user {}: {bits}: {}", user::uid(), self.loss),
                "give the account that runs oned write access",
            );
        }
        match accounts.iter().find(|a| !writable(meta.mode(), (meta.uid(), meta.gid()), **a)) {
            Some(a) => Finding::bad(
                what,
                object,
                format!("the owner of a datastore, user {}, may not write it: {bits}: {}", a.0, self.loss),
                remedy(*a),
            ),
            None => Finding::ok(what, object, bits),
        }
    }
}

/// Whether permission bits let an account write; lists of further rights are not seen.
pub fn writable(mode: u32, owner: Account, who: Account) -> bool {
    let shift = if who.0 == owner.0 {
        6
    } else if who.1 == owner.1 {
        3
    } else {
        0
    };
    who.0 == 0 || mode >> shift & 0o2 != 0
}

/// Records of jobs that died; the list leaves them out, and clears those that were finished.
fn records(run: &Path) -> Finding {
    let mut stale = 0;
    for e in std::fs::read_dir(run).into_iter().flatten().flatten() {
        let held = std::fs::File::open(e.path()).and_then(|f| ofd::is_held(f.as_fd(), 0));
        stale += u32::from(matches!(held, Ok(false)));
    }
    let object = run.display();
    match stale {
        0 => Finding::ok("jobs", object, "no record of a dead job"),
        n => Finding::warn(
            "jobs",
            object,
            format!("{n} records of jobs that died"),
            format!("`onesdm job list` clears them; remove files that stay in {}", run.display()),
        ),
    }
}

/// Machines that verbs held still who died together with their guards. Looking puts them right.
fn held(found: &[Found]) -> Vec<Finding> {
    let what = "machines held still";
    if found.is_empty() {
        return vec![Finding::ok("held", what, "none is left by a verb that died")];
    }
    let judge = |f: &Found| {
        if f.done {
            return Finding::warn("held", what, &f.text, "see the kernel's log for what kills verbs here");
        }
        Finding::bad("held", what, &f.text, "see to libvirt, then run this again")
    };
    found.iter().map(judge).collect()
}

fn journal(there: bool) -> Finding {
    if there {
        return Finding::ok("journal", "journald", "listens");
    }
    Finding::warn(
        "journal",
        "journald",
        "no socket: the detail of failures goes nowhere",
        "start systemd-journald, or do without",
    )
}

/// `now` in seconds since 1970.
fn clock(now: i64) -> Finding {
    // When this was written.
    const PAST: i64 = 1_767_225_600;
    if now < PAST {
        return Finding::bad(
            "clock",
            "this host",
            "the clock is years behind: what is kept for a time is kept for ever",
            "set the clock; run chrony",
        );
    }
    Finding::ok("clock", "this host", "plausible")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        for (said, v) in [
            ("qemu-img version 7.2.17 (Debian 1:7.2+dfsg-7)\nCopyright", Some((7, 2))),
            ("qemu-img version 10.0.0-rc1", Some((10, 0))),
            ("qemu-img version 5", None),
            ("version", None),
            ("", None),
            ("qemu-img version 99999999999.1", None),
        ] {
            assert_eq!(version(said), v, "{said}");
        }
        let path = Path::new("/usr/bin/qemu-img");
        for (said, verdict) in [
            (Ok("qemu-img version 4.2.1"), Verdict::Bad),
            (Ok("qemu-img version 5.0.0"), Verdict::Ok),
            (Ok("who?"), Verdict::Warn),
            (Err(&"killed".to_owned()), Verdict::Bad),
        ] {
            assert_eq!(qemu(path, said).verdict, verdict);
        }
    }

    #[test]
    fn permission_bits_decide_by_the_first_class_that_fits() {
        for (mode, owner, who, may) in [
            (0o755, (5, 5), (5, 9), true),
            (0o755, (5, 5), (6, 5), false),
            (0o775, (5, 5), (6, 5), true),
            (0o057, (5, 5), (5, 5), false),
            (0o707, (5, 5), (6, 5), false),
            (0o702, (5, 5), (6, 6), true),
            (0o000, (5, 5), (0, 0), true),
        ] {
            assert_eq!(writable(mode, owner, who), may, "{mode:o} {owner:?} {who:?}");
        }
    }

    #[test]
    fn a_tool_is_missed_only_when_something_needs_it() {
        let ext4 = ["ext4".to_owned()];
        assert!(need(Tool::MkfsExt4, &ext4).is_some());
        assert!(need(Tool::MkfsXfs, &ext4).is_none());
        assert!(need(Tool::QemuImg, &[]).unwrap().2);
    }

    #[test]
    fn the_clock_and_the_journal_are_judged() {
        assert_eq!(clock(0).verdict, Verdict::Bad);
        assert_eq!(clock(1_800_000_000).verdict, Verdict::Ok);
        assert_eq!(journal(false).verdict, Verdict::Warn);
    }

    #[test]
    fn places_are_judged_by_what_is_there() {
        let t = tempfile::tempdir().unwrap();
        let file = t.path().join("file");
        std::fs::write(&file, "").unwrap();
        let look = |path: &Path, is_dir, accounts: &[Account]| {
            Place { path, is_dir, loss: "lost", private: None }.look("log", accounts).verdict
        };
        assert_eq!(look(&t.path().join("a/b/c"), true, &[]), Verdict::Ok, "it will be made");
        assert_eq!(look(&file, false, &[]), Verdict::Ok);
        assert_eq!(look(&file, true, &[]), Verdict::Bad);
        assert_eq!(look(t.path(), false, &[]), Verdict::Bad);
        assert_eq!(look(&file.join("x"), false, &[]), Verdict::Bad, "below a file");
        assert_eq!(
            look(&file, false, &[(4_000_000, 4_000_000)]),
            Verdict::Bad,
            "another account's datastore"
        );
    }
}
