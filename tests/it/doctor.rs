//! `onesdm doctor`: quiet about a healthy bed, and each thing that is broken on purpose is found.

use crate::bed::{self, Bed};
use crate::doc::Doc;
use crate::fsbed::{Fs, Kind};
use crate::guest;
use crate::hosts::Cloud;
use crate::install::{install, stock};
use serde_json::Value;
use std::fs::{remove_file, write};
use std::path::{Path, PathBuf};

/// A bed with an installed remotes tree and a datastore with an image.
fn healthy(bed: Bed) -> Bed {
    let store = bed.store(100);
    let image = bed.images().join("a.raw");
    guest::make_raw(&image, 64, 1);
    bed.ds("cp", 7, &Doc::new(&bed, 7).image("PATH", image.display()).xml()).run().ok();
    assert!(store.join(".sdm").is_dir());
    let top = stock(&bed);
    install(&bed, &top, &["--replace", "fs"]).run().ok();
    add(&bed, &format!("remotes = \"{}\"\n", top.display()));
    bed
}

/// More settings, at the end of the section `paths`.
fn add(bed: &Bed, text: &str) {
    let file = bed.root().join("onesdm.toml");
    let old = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, old + text).unwrap();
}

fn findings(bed: &Bed, status: i32) -> Vec<Value> {
    let done = bed.onesdm(&["doctor", "--json"]).run();
    assert_eq!(done.code, Some(status), "{}{}", done.out(), done.err());
    let Value::Array(all) = serde_json::from_slice(&done.stdout).unwrap() else { panic!("{}", done.out()) };
    for f in &all {
        let fine = f["verdict"] == "ok";
        assert_eq!(f["remedy"] == "", fine, "a remedy when there is something to mend: {f}");
    }
    all
}

/// Findings that are not fine, as `check verdict object detail`; whether journald runs is not the bed's.
fn trouble(all: &[Value]) -> Vec<String> {
    let text = |f: &Value, k: &str| f[k].as_str().unwrap().to_owned();
    all.iter()
        .filter(|f| f["verdict"] != "ok" && f["check"] != "journal")
        .map(|f| ["check", "verdict", "object", "detail"].map(|k| text(f, k)).join(" "))
        .collect()
}

#[test]
fn a_healthy_bed_is_fine() {
    let bed = healthy(Bed::new());
    let all = findings(&bed, 0);
    assert_eq!(trouble(&all), Vec::<String>::new());
    for check in [
        "settings",
        "tool",
        "account",
        "state",
        "run",
        "log",
        "jobs",
        "clock",
        "program",
        "install",
        "locks",
        "domain",
        "space",
        "area",
        "owner",
        "exclusion",
        "capabilities",
        "garbage",
    ] {
        assert!(all.iter().any(|f| f["check"] == check), "nobody looked at {check}");
    }
    let store = bed.store(100).display().to_string();
    for words in [&["doctor"][..], &["doctor", &store], &["doctor", "100"]] {
        let said = bed.onesdm(words).run().ok();
        assert!(said.contains(&store) && said.contains("0 bad"), "{said}");
    }
    bed.onesdm(&["doctor", "nonsense"]).run().fails(3);
    assert!(bed::names(&bed.store(100).join(".sdm/new")).is_empty(), "the probe left something");
}

/// What is broken, how, the check and verdict that must be told, and words of the object and the detail.
type Harm = (&'static str, fn(&Bed), &'static str, [&'static str; 2]);

fn file(bed: &Bed, path: &str) -> PathBuf {
    bed.root().join("var/stock").join(path)
}

const INSTALL: [Harm; 5] = [
    ("a stock script put back", |b| put_back(b), "install bad", ["fs/cp", "is not ours any more"]),
    (
        "a verb removed",
        |b| remove_file(file(b, "datastore/sdm/rm")).unwrap(),
        "install bad",
        ["sdm/rm", "is gone"],
    ),
    (
        "no way back",
        |b| remove_file(file(b, "datastore/fs/.rm.onesdm-kept")).unwrap(),
        "install bad",
        ["fs/rm", "no way back"],
    ),
    (
        "another program",
        |b| edit(&file(b, ".onesdm.json"), program(), "/none/onesdm"),
        "program bad",
        ["", "no program"],
    ),
    (
        "a doctored manifest",
        |b| write(file(b, ".onesdm.json"), "{}").unwrap(),
        "install bad",
        ["stock", "missing field"],
    ),
];

const HOST: [Harm; 5] = [
    (
        "a missing tool",
        |b| add(b, "[tools]\nqemu_img = \"/none/qemu-img\"\n"),
        "tool bad",
        ["tools.qemu_img", "no executable"],
    ),
    (
        "a tool that is none",
        |b| add(b, "[tools]\nmkswap = \"/bin/sh\"\n"),
        "tool bad",
        ["tools.mkswap", "it runs other commands"],
    ),
    ("an unknown setting", |b| add(b, "[nonsense]\nx = 1\n"), "settings warn", ["", "nonsense.x"]),
    ("a wrong setting", |b| add(b, "[lock]\nwait = \"soon\"\n"), "settings bad", ["", "lock.wait"]),
    (
        "a log below a file",
        |b| edit(&b.root().join("onesdm.toml"), "log/onesdm.jsonl", "onesdm.toml/log.jsonl"),
        "log bad",
        ["onesdm.toml", "not a directory"],
    ),
];

const STORE: [Harm; 7] = [
    ("a copied domain", |b| copied(b), "domain bad", ["100", "was copied or restored"]),
    ("storage that is not there", |b| away(b), "mount bad", ["100", "does not exist"]),
    (
        "storage that is empty",
        |b| {
            away(b);
            b.store(100);
        },
        "domain bad",
        ["100", "is expected"],
    ),
    (
        "a foreign file",
        |b| write(b.store_path(100).join(".sdm/new/x"), "").unwrap(),
        "area bad",
        ["100", "new/x"],
    ),
    (
        "leases with content",
        |b| write(b.store_path(100).join(".sdm/leases"), "x").unwrap(),
        "area bad",
        ["100", "leases"],
    ),
    ("a datastore open to all", |b| bed::chmod(&b.store_path(100), 0o777), "owner bad", ["100", "everybody"]),
    ("garbage", |b| killed(b), "garbage warn", ["100", "wait for the collector"]),
];

fn put_back(bed: &Bed) {
    remove_file(file(bed, "datastore/fs/cp")).unwrap();
    write(file(bed, "datastore/fs/cp"), "#!/bin/bash\n").unwrap();
}

fn program() -> &'static str {
    bed::program().to_str().unwrap().to_owned().leak()
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert!(text.contains(from), "{from} is not in {text}");
    write(file, text.replace(from, to)).unwrap();
}

fn away(bed: &Bed) {
    std::fs::rename(bed.store_path(100), bed.root().join("var/away")).unwrap();
}

fn copied(bed: &Bed) {
    away(bed);
    let (from, to) = (bed.root().join("var/away"), bed.store_path(100));
    bed::tool("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
}

/// A job that dies with its work begun.
fn killed(bed: &Bed) {
    let dump = Doc::new(bed, 8).image("PATH", bed.images().join("a.raw").display()).xml();
    assert!(bed.ds("cp", 8, &dump).env("ONESDM_TEST_KILL", "5:after").run().killed());
}

#[test]
fn each_thing_that_is_broken_is_found() {
    for (what, harm, head, [object, detail]) in INSTALL.into_iter().chain(HOST).chain(STORE) {
        let bed = healthy(Bed::new());
        harm(&bed);
        let status = if head.ends_with("bad") { 8 } else { 0 };
        let found = trouble(&findings(&bed, status));
        let hit = |f: &&String| f.starts_with(head) && f.contains(object) && f.contains(detail);
        assert!(found.iter().any(|f| hit(&f)), "{what}: {found:#?}");
    }
}

/// Root leaves a log behind that the account of a datastore cannot write.
#[test]
fn what_the_owner_of_a_datastore_may_not_write_is_found() {
    let bed = healthy(Bed::new());
    let nobody = "65534:65534";
    bed::tool("chown", &["-R".as_ref(), nobody.as_ref(), bed.store_path(100).as_os_str()]);
    bed::chmod(&bed.root().join("log/onesdm.jsonl"), 0o600);
    let found = trouble(&findings(&bed, 8));
    assert!(found.iter().any(|f| f.starts_with("log bad") && f.contains("user 65534")), "{found:#?}");
    bed::tool("chown", &["0:0".as_ref(), bed.store_path(100).join(".sdm/leases").as_os_str()]);
    let found = trouble(&findings(&bed, 8));
    assert!(found.iter().any(|f| f.starts_with("owner bad") && f.contains("leases")), "{found:#?}");
}

#[test]
fn little_space_is_found() {
    let fs = Fs::new(Kind::Tmpfs, 8);
    let bed = healthy(Bed::on(&fs.stores()));
    let found = trouble(&findings(&bed, 0));
    assert!(found.iter().any(|f| f.starts_with("space warn")), "{found:#?}");
}

/// A job that was killed leaves its record; the list clears it, and then there is nothing to tell.
#[test]
fn records_of_dead_jobs_are_found() {
    let bed = healthy(Bed::new());
    killed(&bed);
    assert!(trouble(&findings(&bed, 0)).iter().any(|f| f.starts_with("jobs warn")));
    bed.onesdm(&["job", "list"]).run().ok();
    bed.onesdm(&["gc"]).run().ok();
    assert_eq!(trouble(&findings(&bed, 0)), Vec::<String>::new());
}

/// The front-end asks each host to look at itself; one that cannot be reached is a row, too.
#[test]
fn hosts_are_rows_of_one_matrix() {
    let cloud = Cloud::with_agents(&["h1"]);
    let program = crate::bed::program().display().to_string();
    let call = |more: &[&str]| {
        let words = ["env", "-i", "HOME=/root", "PATH=/usr/bin:/bin", &program, "doctor", "--host", "h1"];
        cloud.command("fe", &[&words[..], more].concat()).output().unwrap()
    };
    let out = call(&["--host", "nowhere", "--json"]);
    let rows: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    let rows = rows.as_array().unwrap();
    assert!(rows.len() == 3 && rows[1]["host"] == "h1" && out.status.code() == Some(8), "{rows:?}");
    let has = |row: usize, check: &str| {
        rows[row]["findings"].as_array().unwrap().iter().any(|f| f["check"] == check)
    };
    assert!(has(0, "tool") && has(1, "tool") && has(2, "reach") && !has(1, "reach"), "{rows:?}");
    let text = String::from_utf8(call(&[]).stdout).unwrap();
    assert!(text.starts_with("HOST") && text.lines().nth(2).is_some_and(|l| l.starts_with("h1")), "{text}");
}
