//! A verb costs the same in a datastore of a few images and in one of thousands, counted in system calls.

use crate::bed::{Bed, names};
use crate::doc::{Doc, image_name};
use crate::scenes;
use std::path::Path;
use uuid::Uuid;

/// Of each: images, unacknowledged records, tombstones that are kept.
const CROWD: u64 = 1500;
/// Calls that a crowd may add, in all: its names are listed, a few records are read.
const MORE: usize = 700;

/// As if verbs had run for days before and since.
fn crowd(store: &Path) {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for n in 0..CROWD {
        let at = uuid::Timestamp::from_unix_time(now - CROWD * 30 + n * 60, 0, 0, 0);
        let job = Uuid::new_v7(at);
        std::fs::write(store.join(format!("{n:032x}")), "x").unwrap();
        std::fs::write(store.join(format!(".sdm/done/{job}.json")), "{}\n").unwrap();
        std::fs::write(store.join(format!(".sdm/del/{job}-1.keep")), "x").unwrap();
    }
}

/// Jobs that died before they made anything.
fn dead(store: &Path) {
    for n in 1..=CROWD {
        let job = Uuid::new_v7(uuid::Timestamp::from_unix_time(n, 0, 0, 0));
        let dir = store.join(format!(".sdm/new/{job}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("intent.json"), "{}\n").unwrap();
    }
}

fn calls(scene: &scenes::Scene, crowd: impl FnOnce(&Path)) -> usize {
    let bed = Bed::new();
    let store = bed.store(100);
    bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    let stage = scene.stage(&bed);
    crowd(&store);
    let file = bed.root().join("trace");
    let done = scene.call(&stage).under(&["strace", "-f", "-qq", "-o", file.to_str().unwrap()]).run();
    done.ok();
    std::fs::read(file).unwrap().split(|b| *b == b'\n').count()
}

#[test]
fn no_verb_counts_what_else_there_is() {
    let cheap = ["monitor", "stat raw.gz", "mkfs raw", "cp raw", "rm raw alone", "rm raw with snapshots"];
    let named = ["clone raw", "export raw", "snap_revert raw", "snap_delete raw", "snap_flatten raw"];
    let mut wrong = Vec::new();
    for name in cheap.into_iter().chain(named) {
        let scene = scenes::named(name);
        let (alone, crowded) = (calls(&scene, |_| {}), calls(&scene, crowd));
        println!("{name:24} {alone:>6} {crowded:>6}");
        if crowded > alone + MORE {
            wrong.push(format!("{name}: {alone} calls alone, {crowded} with {CROWD} others"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// It has to know whether one of them is about its object.
#[test]
fn a_dead_job_costs_others_a_few_calls() {
    let scene = scenes::named("cp raw");
    let more = calls(&scene, dead) - calls(&scene, |_| {});
    let each = more / usize::try_from(CROWD).unwrap();
    println!("{more} calls, {each} a job");
    assert!((5..15).contains(&each), "{each} calls for each dead job");
}

#[test]
fn the_right_answer_is_acknowledged_among_many() {
    let bed = Bed::new();
    let store = bed.store(100);
    bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    crowd(&store);
    let source = bed.images().join("a.raw");
    crate::guest::make_raw(&source, 64, 1);
    let doc = Doc::new(&bed, 1).image("REGTIME", 1_795_168_000_u64).image("PATH", source.display());
    bed.ds("cp", 1, &doc.xml()).run().ok();
    let acknowledged = || names(&store.join(".sdm/done")).into_iter().filter(|n| n.contains(".ack")).count();
    assert_eq!(acknowledged(), 0);
    let name = image_name(1_795_168_000, 1);
    bed.ds("export", 1, &Doc::new(&bed, 1).source(&bed, &name).image("SIZE", 1).xml()).run().ok();
    assert_eq!(acknowledged(), 1, "a later request names the image");
}
