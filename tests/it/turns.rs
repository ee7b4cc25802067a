//! Limits of copies at once: real verbs, slowed down by `data.limit`, watched in the list of jobs.

use crate::bed::{Bed, names};
use crate::call::{Call, Running};
use crate::doc::Doc;
use crate::guest;
use rustix::process::Signal;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const WAITS: &str = "waits for a copy of another job to end";

/// A bed with these limits, where a copy of `kib` takes about `kib` / 512 seconds.
fn limited(host: u32, domain: u32, kib: u64) -> Bed {
    let bed = Bed::new();
    bed.store(100);
    guest::make_raw(&bed.images().join("a.raw"), kib, 1);
    let toml = bed.root().join("onesdm.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let data = format!("[data]\nlimit = \"512KiB\"\nhost_copies = {host}\ndomain_copies = {domain}\n");
    std::fs::write(toml, text + &data).unwrap();
    bed
}

fn cp(bed: &Bed, id: u32) -> Call<'_> {
    let path = bed.images().join("a.raw");
    bed.ds("cp", id, &Doc::new(bed, id).image("ID", id).image("PATH", path.display()).xml())
}

/// Phases of the jobs that are listed in a run directory.
fn phases(run: &Path) -> Vec<String> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(run.join("job")).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let job: Value = serde_json::from_str(&text).unwrap_or_default();
        out.extend(job["phase"].as_str().map(str::to_owned));
    }
    out
}

fn wait_for(what: &str, is: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn has(bed: &Bed, phase: &str) -> bool {
    phases(&bed.root().join("run")).iter().any(|p| p == phase)
}

/// All of them end well; the most that moved data at one time, and the most that waited.
fn watched(runs: &[&Path], mut calls: Vec<Running>) -> (usize, usize) {
    let (mut moved, mut waited) = (0, 0);
    while calls.iter_mut().any(Running::is_running) {
        let all: Vec<String> = runs.iter().flat_map(|run| phases(run)).collect();
        moved = moved.max(all.iter().filter(|p| *p == "fetching").count());
        waited = waited.max(all.iter().filter(|p| *p == WAITS).count());
        std::thread::sleep(Duration::from_millis(3));
    }
    for c in calls {
        c.wait().ok();
    }
    (moved, waited)
}

#[test]
fn no_more_copies_run_at_once_than_a_host_may() {
    let bed = limited(2, 0, 256);
    let calls = (1..=6).map(|id| cp(&bed, id).start()).collect();
    let (moved, waited) = watched(&[&bed.root().join("run")], calls);
    assert_eq!(moved, 2);
    assert!((3..=4).contains(&waited), "{waited} waited at once");
    assert_eq!(names(&bed.store_path(100)).len(), 7, "six images and our area");
}

#[test]
fn without_a_limit_nobody_waits_and_nothing_is_made() {
    let bed = limited(0, 0, 256);
    let calls = (1..=4).map(|id| cp(&bed, id).start()).collect();
    let (moved, waited) = watched(&[&bed.root().join("run")], calls);
    assert!(moved > 2 && waited == 0, "{moved} at once, {waited} waited");
    assert!(!bed.root().join("run/copies").exists());
}

/// Two hosts are two run directories with one datastore.
#[test]
fn a_domains_limit_counts_over_hosts_and_a_hosts_does_not() {
    let most = |host, domain| {
        let bed = limited(host, domain, 192);
        let runs = ["one", "two"].map(|n| bed.root().join("run").join(n));
        let start = |id: u32| cp(&bed, id).env("ONESDM_RUN_DIR", &runs[(id % 2) as usize]).start();
        let calls = (1..=4).map(start).collect();
        watched(&[&runs[0], &runs[1]], calls).0
    };
    assert_eq!(most(0, 1), 1, "of the domain");
    assert_eq!(most(1, 0), 2, "one on each host");
}

#[test]
fn a_killed_copy_is_none_and_what_has_nothing_to_copy_does_not_wait() {
    let bed = limited(1, 1, 64);
    cp(&bed, 1).run().ok();
    guest::make_raw(&bed.images().join("long.raw"), 64 << 10, 1);
    let path = bed.images().join("long.raw");
    let long = Doc::new(&bed, 2).image("ID", 2).image("PATH", path.display()).xml();
    let long = bed.ds("cp", 2, &long).start();
    wait_for("the long copy runs", || has(&bed, "fetching"));
    // It is there; a file that is empty to begin with; what is only looked at, and removed.
    cp(&bed, 1).run().ok();
    let blank = Doc::new(&bed, 3).image("ID", 3).image("SIZE", 1).image("FORMAT", "raw").xml();
    bed.ds("mkfs", 3, &blank).run().ok();
    bed.ds("monitor", 100, &Doc::new(&bed, 0).xml()).run().ok();
    let waiter = cp(&bed, 4).start();
    wait_for("another one waits", || has(&bed, WAITS));
    assert_eq!(names(&bed.store_path(100).join(".sdm/new")).len(), 1, "who waits has nothing staged");
    long.signal(Signal::KILL);
    assert!(long.wait().killed());
    waiter.wait().ok();
}

/// By a person, by its deadline, and by the removal of what it was to make.
#[test]
fn who_waits_can_be_stopped_and_leaves_nothing() {
    let bed = limited(1, 0, 64);
    guest::make_raw(&bed.images().join("long.raw"), 64 << 10, 1);
    let path = bed.images().join("long.raw");
    let long = Doc::new(&bed, 1).image("ID", 1).image("PATH", path.display()).xml();
    let long = bed.ds("cp", 1, &long).start();
    wait_for("the long copy runs", || has(&bed, "fetching"));
    let id = "0198b3f0-0000-7000-8000-00000000000a";
    let waiter = cp(&bed, 2).env("ONESDM_JOB_ID", id).start();
    wait_for("another one waits", || has(&bed, WAITS));
    let list = bed.onesdm(&["job", "list"]).run();
    assert!(list.out().contains(WAITS), "{}", list.out());
    let top = bed.onesdm(&["top", "--once"]).run().out();
    assert!(top.contains(WAITS) && top.contains("1 of them waiting"), "{top}");
    bed.onesdm(&["job", "cancel", id]).run();
    waiter.wait().failure(Some(130)).unwrap();
    let late = bed.onesdm(&["--set", "verb.deadline=1s", "ds", "cp", "--datastore", &bed.base_path(100)]);
    let late = ["--id", "3", "--safe-dir", "/", "--path"].iter().fold(late, Call::arg);
    late.arg(bed.images().join("a.raw")).run().failure(Some(7)).unwrap();
    let waiter = cp(&bed, 4).start();
    wait_for("another one waits", || has(&bed, WAITS));
    let source = format!("{}/{}", bed.base_path(100), crate::doc::image_name(1_795_168_000, 4));
    bed.ds("rm", 4, &Doc::new(&bed, 4).image("ID", 4).image("SOURCE", source).xml()).run().ok();
    waiter.wait().failure(Some(130)).unwrap();
    assert_eq!(names(&bed.store_path(100).join(".sdm/new")).len(), 1, "of the long one");
    long.signal(Signal::TERM);
    long.wait().failure(Some(130)).unwrap();
    let left = names(&bed.store_path(100).join(".sdm/new"));
    assert!(left.is_empty(), "{left:?}");
}
