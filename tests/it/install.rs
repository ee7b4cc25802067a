//! `onesdm install` over a tree like the stock one: verbs work through what it makes, a second run changes
//! nothing, a killed one is made good by the next, and the way back ends where it began, to the nanosecond.

use crate::bed::{self, Bed, VERBS, names};
use crate::call::{Call, Done};
use crate::doc::Doc;
use crate::guest;
use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

/// One object: kind and content or target, mode, time of change in nanoseconds.
type Fact = (String, u32, i128);

/// Everything below a directory, itself included, links not followed.
pub fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Fact> {
    fn walk(top: &Path, at: &Path, out: &mut BTreeMap<PathBuf, Fact>) {
        let m = at.symlink_metadata().unwrap();
        let what = if m.is_symlink() {
            format!("link to {}", std::fs::read_link(at).unwrap().display())
        } else if m.is_dir() {
            "directory".to_owned()
        } else {
            format!("file {:?}", String::from_utf8_lossy(&std::fs::read(at).unwrap()))
        };
        let time = i128::from(m.mtime()) * 1_000_000_000 + i128::from(m.mtime_nsec());
        out.insert(at.strip_prefix(top).unwrap().to_owned(), (what, m.mode(), time));
        if m.is_dir() {
            for name in names(at) {
                walk(top, &at.join(name), out);
            }
        }
    }
    let mut out = BTreeMap::new();
    walk(dir, dir, &mut out);
    out
}

/// Names that differ, with both facts.
#[track_caller]
pub fn same(found: &BTreeMap<PathBuf, Fact>, wanted: &BTreeMap<PathBuf, Fact>, what: &str) {
    let all: std::collections::BTreeSet<_> = found.keys().chain(wanted.keys()).collect();
    let differ: Vec<_> = all.into_iter().filter(|p| found.get(*p) != wanted.get(*p)).collect();
    let show: Vec<_> = differ
        .iter()
        .map(|p| format!("{}: {:?}, not {:?}", p.display(), found.get(*p), wanted.get(*p)))
        .collect();
    assert!(differ.is_empty(), "{what}:\n{}", show.join("\n"));
}

/// A tree with the shapes of a stock one: odd modes, relative links to files and to a driver, a program in
/// another language, a driver that borrows from a common place, and old times everywhere.
pub fn stock(bed: &Bed) -> PathBuf {
    let top = bed.root().join("var/stock");
    for dir in ["datastore/common", "datastore/fs", "datastore/dev", "tm/qcow2", "etc/datastore"] {
        std::fs::create_dir_all(top.join(dir)).unwrap();
    }
    let put = |path: &str, text: &str, mode: u32| {
        std::fs::write(top.join(path), text).unwrap();
        bed::chmod(&top.join(path), mode);
    };
    for (i, verb) in VERBS.iter().filter(|v| **v != "stat" && **v != "cp").enumerate() {
        put(
            &format!("datastore/fs/{verb}"),
            &format!("#!/bin/bash\necho stock {verb}\n"),
            [0o755, 0o750, 0o711][i % 3],
        );
    }
    put("datastore/fs/cp", "#!/usr/bin/env ruby\nputs 'stock cp'\n", 0o4755);
    put("datastore/fs/backup", "#!/bin/bash\necho stock backup\n", 0o755);
    put("datastore/fs/fs.conf", "DD_BLOCK_SIZE=64k\n", 0o640);
    put("datastore/common/stat", "#!/bin/bash\necho stock stat\n", 0o755);
    put("datastore/libfs.sh", "# functions\n", 0o644);
    put("datastore/dev/cp", "#!/bin/bash\n", 0o700);
    put("tm/qcow2/ln", "#!/bin/bash\n", 0o755);
    put("VERSION", "7.4\n", 0o644);
    for (target, link) in [
        ("../common/stat", "datastore/fs/stat"),
        ("../dev/cp", "datastore/dev/rm"),
        ("qcow2", "tm/shared"),
        ("nowhere", "datastore/dev/dangling"),
    ] {
        symlink(target, top.join(link)).unwrap();
    }
    bed::chmod(&top.join("datastore/fs"), 0o2755);
    for (i, path) in snapshot(&top).keys().rev().enumerate() {
        let time = format!("2020-01-02T03:04:{:02}.{:09}Z", i % 60, 123_456_789 + i);
        bed::tool("touch", &["-h".as_ref(), "-d".as_ref(), time.as_ref(), top.join(path).as_os_str()]);
    }
    top
}

pub fn install<'a>(bed: &'a Bed, top: &Path, words: &[&str]) -> Call<'a> {
    bed.onesdm(&["install", "--remotes", top.to_str().unwrap()]).args(words)
}

impl Call<'_> {
    fn args(self, words: &[&str]) -> Self {
        words.iter().fold(self, Call::arg)
    }
}

fn cp(bed: &Bed, verb: PathBuf) -> Done {
    let path = bed.images().join("a.raw");
    if !path.exists() {
        guest::make_raw(&path, 64, 1);
    }
    let dump = Doc::new(bed, 7).image("PATH", path.display()).xml();
    Call::new(bed, "cp", verb).arg("7").stdin(bed::base64(dump)).run()
}

#[test]
fn verbs_work_through_links_and_shims_and_all_comes_back() {
    for style in ["symlink", "shim"] {
        let bed = Bed::new();
        bed.store(100);
        let top = stock(&bed);
        let before = snapshot(&top);
        let said = install(&bed, &top, &["--replace", "fs", "--style", style]).run().ok();
        assert!(
            said.contains("onehost sync")
                && said.contains("--uninstall")
                && said.contains("datastore/fs/backup"),
            "{said}"
        );
        for driver in ["fs", "sdm"] {
            let answer = cp(&bed, top.join("datastore").join(driver).join("cp")).ok();
            assert!(answer.ends_with(" raw\n"), "{style} {driver}: {answer:?}");
        }
        let line = cp(&bed, top.join("datastore/dev/cp"));
        assert_eq!(line.code, Some(0), "another driver is as it was");
        let kept = std::fs::read_to_string(top.join("datastore/fs/.stat.onesdm-kept")).unwrap();
        assert!(
            kept.contains("stock stat"),
            "a relative link still leads where it did: onehost sync follows it"
        );
        let backup = std::fs::read_to_string(top.join("datastore/fs/backup")).unwrap();
        assert!(backup.contains("stock backup"), "what we do not offer stays");
        let held = snapshot(&top);
        install(&bed, &top, &[]).run().ok();
        install(&bed, &top, &["--replace", "fs", "--style", style]).run().ok();
        same(&snapshot(&top), &held, "a second run changes nothing");
        let said = install(&bed, &top, &["--uninstall"]).run().ok();
        assert!(said.contains("given back"), "{said}");
        same(&snapshot(&top), &before, style);
        assert!(install(&bed, &top, &["--uninstall"]).run().ok().contains("nothing is installed"));
        same(&snapshot(&top), &before, "nothing to undo");
    }
}

#[test]
fn a_plan_changes_nothing_and_json_is_json() {
    let bed = Bed::new();
    let top = stock(&bed);
    let before = snapshot(&top);
    for words in [
        &["--replace", "fs", "--plan"][..],
        &["--dry-run"],
        &["--uninstall", "--plan"],
        &["--show-oned-conf"],
    ] {
        install(&bed, &top, words).run().ok();
        let json = install(&bed, &top, &[words, &["--json"]].concat()).run().ok();
        serde_json::from_str::<serde_json::Value>(&json).unwrap_or_else(|e| panic!("{words:?}: {e}: {json}"));
    }
    same(&snapshot(&top), &before, "plans");
    let plan = install(&bed, &top, &["--replace", "fs", "--plan", "--json"]).run().ok();
    let plan: serde_json::Value = serde_json::from_str(&plan).unwrap();
    let action = |path: &str| {
        let all = plan["verbs"].as_array().unwrap();
        all.iter().find(|v| v["path"] == path).map(|v| v["action"].as_str().unwrap().to_owned())
    };
    assert_eq!(action("datastore/fs/cp").as_deref(), Some("replace"));
    assert_eq!(action("datastore/sdm/cp").as_deref(), Some("make"));
    assert_eq!(action("datastore/fs/backup"), None);
}

/// All names of a transfer driver, those with a suffix, too.
#[test]
fn a_transfer_driver_is_taken_over_and_given_back() {
    let bed = Bed::new();
    let top = stock(&bed);
    // A package has a directory for each of the two names.
    std::fs::remove_file(top.join("tm/shared")).unwrap();
    std::fs::write(top.join("tm/qcow2/restore"), "#!/bin/sh\n").unwrap();
    let before = snapshot(&top);
    let said = install(&bed, &top, &["--replace", "qcow2"]).run().ok();
    assert_eq!(said.matches("tm/qcow2/restore").count(), 1, "not ours, of either role: {said}");
    let generated = bed.onesdm(&["generate", "remotes"]).run().ok();
    let own = generated.lines().filter(|l| l.starts_with("tm/")).collect::<Vec<_>>();
    assert!(own.len() > 20 && own.contains(&"tm/sdm_shared/clone.ssh"), "{generated}");
    for link in own {
        for link in [link.to_owned(), link.replace("sdm_shared", "qcow2")] {
            assert!(said.contains(&link) && top.join(&link).is_symlink(), "{link}: {said}");
        }
    }
    assert!(!top.join("tm/qcow2/prebackup").exists(), "what is not offered is not made");
    let disk = format!("localhost:{}/7/disk.0", bed.base_path(101));
    let made = Call::new(&bed, "mkswap", top.join("tm/qcow2/mkswap")).arg("8").arg(&disk).run();
    assert_eq!(made.ok(), "");
    assert_eq!(std::fs::metadata(bed.store_path(101).join("7/disk.0")).unwrap().len(), 8 << 20);
    install(&bed, &top, &["--uninstall", "--leave"]).run().ok();
    same(&snapshot(&top), &before, "given back");
}

#[test]
fn oned_conf_lines_come_from_the_oned_conf_that_is_there() {
    let bed = Bed::new();
    let conf = "DATASTORE_MAD = [\n  EXECUTABLE = \"one_datastore\",\n  ARGUMENTS = \"-t 9 -d fs,ceph -s shared\"\n]\n";
    std::fs::write(bed.root().join("etc/oned.conf"), conf).unwrap();
    let said = bed.onesdm(&["install", "--show-oned-conf"]).run().ok();
    assert!(
        said.contains("-t 9 -d fs,ceph,sdm -s shared,sdm_shared") && said.contains("DS_MAD_CONF"),
        "{said}"
    );
    assert!(said.contains("TM_MAD_CONF") && said.contains("LN_TARGET"), "{said}");
    let rc = bed.root().join("etc/vmm_exec");
    std::fs::create_dir(&rc).unwrap();
    std::fs::write(rc.join("vmm_execrc"), "LIVE_DISK_SNAPSHOTS=\"kvm-shared\"\n").unwrap();
    let said = bed.onesdm(&["install", "--show-oned-conf"]).run().ok();
    assert!(said.contains("LIVE_DISK_SNAPSHOTS=\"kvm-shared kvm-sdm_shared"), "{said}");
}

#[test]
fn what_would_break_others_is_refused() {
    let bed = Bed::new();
    let top = stock(&bed);
    let before = snapshot(&top);
    install(&bed, &top, &["--replace", "ceph"]).run().fails(2);
    let line = install(&bed, &top, &["--replace", "shared"]).run().fails(10);
    assert!(line.contains("tm/shared is a link to another directory"), "{line}");
    install(&bed, &top, &["--replace", "../fs"]).run().fails(2);
    install(&bed, &top.join("tm"), &[]).run().fails(3);
    install(&bed, &top.join("none"), &[]).run().fails(3);
    symlink("../fs/mkfs", top.join("datastore/dev/mkfs")).unwrap();
    let line = install(&bed, &top, &["--replace", "fs"]).run().fails(10);
    assert!(line.contains("datastore/dev/mkfs"), "{line}");
    std::fs::remove_file(top.join("datastore/dev/mkfs")).unwrap();
    symlink("fs", top.join("datastore/mine")).unwrap();
    let line = install(&bed, &top, &["--replace", "fs"]).run().fails(10);
    assert!(line.contains("datastore/mine"), "{line}");
    std::fs::remove_file(top.join("datastore/mine")).unwrap();
    // A driver that is a link to another: changing it would change both.
    std::fs::rename(top.join("datastore/fs"), top.join("datastore/real")).unwrap();
    symlink("real", top.join("datastore/fs")).unwrap();
    let line = install(&bed, &top, &["--replace", "fs"]).run().fails(10);
    assert!(line.contains("is a link to another directory"), "{line}");
    std::fs::remove_file(top.join("datastore/fs")).unwrap();
    std::fs::rename(top.join("datastore/real"), top.join("datastore/fs")).unwrap();
    let mut after = snapshot(&top);
    for dir in ["datastore", "datastore/dev"] {
        after.insert(dir.into(), before[Path::new(dir)].clone()); // this test's own doing
    }
    same(&after, &before, "refusals change nothing");
}

/// A package upgrade writes its scripts over our links. The next install takes them as the stock ones.
#[test]
fn an_upgrade_is_taken_over_again_and_given_back_as_it_came() {
    let bed = Bed::new();
    let top = stock(&bed);
    install(&bed, &top, &["--replace", "fs"]).run().ok();
    let upgrade = |verb: &str| {
        let file = top.join("datastore/fs").join(verb);
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "#!/bin/bash\necho newer\n").unwrap();
        bed::chmod(&file, 0o755);
    };
    upgrade("cp");
    upgrade("rm");
    install(&bed, &top, &[]).run().ok();
    assert!(top.join("datastore/fs/cp").is_symlink());
    upgrade("mkfs");
    let said = install(&bed, &top, &["--uninstall"]).run().ok();
    assert!(said.contains("somebody put another file there since"), "{said}");
    for verb in ["cp", "rm", "mkfs"] {
        assert!(
            std::fs::read_to_string(top.join("datastore/fs").join(verb)).unwrap().contains("newer"),
            "{verb}"
        );
    }
    assert!(std::fs::read_to_string(top.join("datastore/fs/monitor")).unwrap().contains("stock monitor"));
    assert!(
        !names(&top.join("datastore/fs")).iter().any(|n| n.contains("onesdm")),
        "nothing of ours is left"
    );
}

#[test]
fn the_style_can_change_and_the_stock_files_survive_it() {
    let bed = Bed::new();
    bed.store(100);
    let top = stock(&bed);
    let before = snapshot(&top);
    for style in ["symlink", "shim", "symlink", "shim"] {
        install(&bed, &top, &["--replace", "fs", "--style", style]).run().ok();
        assert_eq!(top.join("datastore/fs/cp").is_symlink(), style == "symlink");
        cp(&bed, top.join("datastore/fs/cp")).ok();
    }
    install(&bed, &top, &["--uninstall"]).run().ok();
    same(&snapshot(&top), &before, "after four styles");
}

/// What was put aside is lost: that verb stays ours and works, the rest goes back, and the status says so.
#[test]
fn a_lost_stock_file_is_told_and_not_made_worse() {
    let bed = Bed::new();
    let top = stock(&bed);
    install(&bed, &top, &["--replace", "fs"]).run().ok();
    std::fs::remove_file(top.join("datastore/fs/.cp.onesdm-kept")).unwrap();
    let done = install(&bed, &top, &["--uninstall"]).run();
    assert_eq!(done.code, Some(8), "{}", done.err());
    assert!(top.join("datastore/fs/cp").is_symlink() && !top.join("datastore/fs/rm").is_symlink());
    std::fs::remove_file(top.join("datastore/fs/cp")).unwrap();
    std::fs::write(top.join("datastore/fs/cp"), "from the package").unwrap();
    install(&bed, &top, &["--uninstall"]).run().ok();
    assert!(!top.join(".onesdm.json").exists());
}

#[test]
fn uninstall_refuses_while_garbage_is_left() {
    let bed = Bed::new();
    bed.store(100);
    let top = stock(&bed);
    let before = snapshot(&top);
    install(&bed, &top, &["--replace", "fs"]).run().ok();
    cp(&bed, top.join("datastore/fs/cp")).ok();
    let path = bed.images().join("a.raw");
    let dump = Doc::new(&bed, 8).image("PATH", path.display()).xml();
    let verb = top.join("datastore/fs/cp");
    let call =
        Call::new(&bed, "cp", verb).arg("8").stdin(bed::base64(dump)).env("ONESDM_TEST_KILL", "5:after");
    assert!(call.run().killed());
    let line = install(&bed, &top, &["--uninstall"]).run().fails(10);
    assert!(line.contains("1 unfinished jobs") && line.contains("onesdm gc"), "{line}");
    assert!(top.join("datastore/fs/cp").is_symlink());
    bed.onesdm(&["gc"]).run().ok();
    install(&bed, &top, &["--uninstall"]).run().ok();
    same(&snapshot(&top), &before, "after gc");
    install(&bed, &top, &["--replace", "fs"]).run().ok();
    std::fs::rename(bed.store_path(100), bed.root().join("var/away")).unwrap();
    install(&bed, &top, &["--uninstall"]).run().fails(10);
    install(&bed, &top, &["--uninstall", "--leave"]).run().ok();
    same(&snapshot(&top), &before, "left on purpose");
}

/// Kills at every effect; after each kill every stock verb still has a file, and both the same command and
/// the opposite one end as if nothing had happened.
#[test]
fn killed_anywhere_the_next_run_makes_it_good() {
    let bed = Bed::new();
    let top = stock(&bed);
    for style in ["symlink", "shim"] {
        sweep(&bed, &top, style);
    }
}

fn sweep(bed: &Bed, top: &Path, style: &str) {
    // The manifest's own time differs, and the top's is lost when its manifest goes.
    let facts = || {
        let mut s = snapshot(top);
        s.remove(Path::new(".onesdm.json"));
        s.remove(Path::new(""));
        s
    };
    let timeless = || facts().into_iter().map(|(k, (a, b, _))| (k, (a, b, 0))).collect::<BTreeMap<_, _>>();
    let before = facts();
    let on = ["--replace", "fs", "--style", style];
    let count = |words: &[&str]| {
        let log = bed.root().join("effects");
        let _ = std::fs::remove_file(&log);
        install(bed, top, words).env("ONESDM_TEST_LOG", &log).run().ok();
        std::fs::read_to_string(log).unwrap().lines().count()
    };
    let steps = count(&on);
    let after = timeless();
    let back = count(&["--uninstall"]);
    same(&facts(), &before, "uninterrupted");
    let whole = |at: &str| {
        for verb in VERBS {
            assert!(top.join("datastore/fs").join(verb).exists(), "{verb} is missing after a kill at {at}");
        }
    };
    let mut killed = 0;
    for n in 1..=steps.max(back) {
        for side in ["before", "after"] {
            let at = format!("{n}:{side}");
            let kill = |words: &[&str]| {
                let done = install(bed, top, words).env("ONESDM_TEST_KILL", &at).run();
                whole(&at);
                usize::from(done.killed())
            };
            if n <= steps {
                killed += kill(&on);
                install(bed, top, &["--uninstall"]).run().ok();
                same(&facts(), &before, &format!("install killed {at}, uninstalled"));
                killed += kill(&on);
                install(bed, top, &on).run().ok();
                same(&timeless(), &after, &format!("install killed {at}, installed"));
            } else {
                install(bed, top, &on).run().ok();
            }
            killed += kill(&["--uninstall"]);
            install(bed, top, &["--uninstall"]).run().ok();
            same(&facts(), &before, &format!("uninstall killed {at}"));
        }
    }
    println!("{style}: {steps} effects to install, {back} to uninstall, killed {killed} times");
    assert!(killed >= 2 * (2 * steps + back) - 4, "{killed}");
}
