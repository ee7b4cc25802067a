//! Real processes fighting for one image: the same wish many times, wishes that exclude each other,
//! collectors in between, and at last random verbs with `kill -9` at random moments. Whatever wins, what
//! is visible is whole, who loses says why in one line, and a collection leaves nothing.

use crate::bed::{Bed, Call, Done, Running, names};
use crate::doc::{Doc, image_name};
use crate::guest;
use crate::kill::{full, ready};
use crate::oracle::{Node, Oracle, Tree};
use crate::power::Random;
use crate::race::{REGTIME, bed, cp, image, settle};
use crate::redteam::{one_image, rm};
use crate::scenes;
use rustix::process::Signal;
use std::time::{Duration, Instant};

fn all(calls: Vec<Call<'_>>) -> Vec<Done> {
    let running: Vec<Running> = calls.into_iter().map(Call::start).collect();
    running.into_iter().map(Running::wait).collect()
}

/// Answers of those that won; each other one was refused in one line.
fn winners(done: &[Done]) -> Vec<String> {
    for d in done.iter().filter(|d| d.code != Some(0)) {
        d.failure(None).unwrap();
    }
    done.iter().filter(|d| d.code == Some(0)).map(Done::ok).collect()
}

fn clone(bed: &Bed, id: u32, of: u32) -> String {
    let source = bed.store_path(100).join(image_name(REGTIME, of));
    let doc = Doc::new(bed, id).image("REGTIME", REGTIME).image("PATH", source.display());
    doc.store_template("DRIVER", "raw").xml()
}

/// Three collectors as long as `work` lasts.
fn amid_collectors<T>(bed: &Bed, work: impl FnOnce() -> T) -> T {
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    bed.onesdm(&["gc", bed.store_path(100).to_str().unwrap()]).run().ok();
                }
            });
        }
        let out = work();
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        out
    })
}

#[test]
fn one_request_many_times_at_once_is_one_image_and_one_answer() {
    let bed = bed();
    let dump = cp(&bed, 1);
    let done = amid_collectors(&bed, || all((0..8).map(|_| bed.ds("cp", 1, &dump)).collect()));
    let answers: Vec<String> = done.iter().map(Done::ok).collect();
    assert!(answers.iter().all(|a| *a == answers[0]), "{answers:?}");
    assert!(names(&bed.store_path(100).join(".sdm/del")).is_empty(), "one of them displaced another's");
    settle(&bed, &one_image());
    let dump = clone(&bed, 2, 1);
    let done = amid_collectors(&bed, || all((0..8).map(|_| bed.ds("clone", 2, &dump)).collect()));
    assert!(done.iter().all(|d| d.ok() == done[0].ok()));
    let mut tree = one_image();
    tree.create(&image_name(REGTIME, 2), image());
    settle(&bed, &tree);
}

#[test]
fn a_clone_and_the_removal_of_its_source() {
    for _ in 0..if full() { 20 } else { 4 } {
        let bed = bed();
        bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
        let mut calls: Vec<_> = (2..5).map(|id| bed.ds("clone", id, &clone(&bed, id, 1))).collect();
        calls.insert(1, bed.ds("rm", 1, &rm(&bed, 1)));
        let done = amid_collectors(&bed, || all(calls));
        done[1].ok();
        winners(&done);
        let mut tree = Tree::default();
        for (id, d) in [(2, &done[0]), (3, &done[2]), (4, &done[3])] {
            if d.code == Some(0) {
                tree.create(&image_name(REGTIME, id), image());
            }
        }
        settle(&bed, &tree);
    }
}

/// Whoever comes second finds what the first one left, or that there is nothing left to do.
#[test]
fn a_flatten_against_a_delete_and_a_revert() {
    for format in ["raw", "qcow2"] {
        for round in 0..if full() { 12 } else { 3 } {
            let bed = ready(None, true);
            let scene = scenes::named(&format!("snap_flatten {format}"));
            let stage = scene.stage(&bed);
            let rival = if round % 2 == 0 { "snap_delete" } else { "snap_revert" };
            let delete = bed.ds(rival, 7, &stage.dump);
            let done = amid_collectors(&bed, || all(vec![scene.call(&stage), delete]));
            winners(&done);
            let oracle = Oracle::new(&bed.store(100));
            if done[0].code == Some(0) {
                oracle.compare(&stage.after).unwrap_or_else(|e| panic!("{format} {rival}: {e}"));
            } else {
                assert_eq!(done[0].code, Some(3), "the snapshot was deleted first: {}", done[0].err());
                done[1].ok();
            }
            let tree = oracle.look().unwrap();
            settle(&bed, &tree);
        }
    }
}

/// Everything anybody may find under a name while all this goes on.
fn is_whole(tree: &Tree, bed: &Bed) {
    for (path, node) in &tree.0 {
        match node {
            Node::Image { .. } => assert_eq!(*node, image(), "{} is not whole", path.display()),
            other => panic!("{}: {other:?} in {}", path.display(), bed.root().display()),
        }
    }
}

/// One of four: calls random verbs on three images and kills some of them, all from one seed.
fn fighter(bed: &Bed, mut dice: Random, end: Instant) -> (usize, usize) {
    let (mut calls, mut killed) = (0, 0);
    while Instant::now() < end {
        let id = 1 + u32::try_from(dice.below(3)).unwrap();
        let other = 1 + u32::try_from(dice.below(3)).unwrap();
        let store = bed.store_path(100);
        let call = match dice.below(10) {
            0..4 => bed.ds("cp", id, &cp(bed, id)),
            4..6 => bed.ds("rm", id, &rm(bed, id)),
            6..8 => bed.ds("clone", id, &clone(bed, id, other)),
            8 => bed.ds(
                "export",
                id,
                &Doc::new(bed, id).source(bed, &image_name(REGTIME, id)).image("SIZE", 1).xml(),
            ),
            _ => bed.onesdm(&["gc", store.to_str().unwrap()]),
        };
        let mut running = call.start();
        calls += 1;
        if dice.below(3) == 0 {
            std::thread::sleep(Duration::from_micros(u64::try_from(dice.below(12_000)).unwrap()));
            killed += usize::from(running.is_running());
            running.signal(Signal::KILL);
            running.wait();
        } else {
            let done = running.wait();
            if done.code != Some(0) {
                // Refused, not there, or cancelled by a removal: nothing else may happen to a caller.
                done.failure(None).unwrap();
                assert!(matches!(done.code, Some(3 | 4 | 130)), "{}", done.err());
            }
        }
    }
    (calls, killed)
}

#[test]
fn random_verbs_and_kills_by_four() {
    let mut seed = Random::seeded();
    let (bed, time) = (bed(), Duration::from_secs(if full() { 60 } else { 6 }));
    crate::pause::set(&bed, "[lock]\nwait = \"10s\"\n[cancel]\ngrace = \"2s\"");
    guest::make_raw(&bed.images().join("src.raw"), 768, 1);
    let end = Instant::now() + time;
    let sums: Vec<_> = std::thread::scope(|s| {
        let fighters: Vec<_> = (0..4)
            .map(|_| {
                let dice = Random(seed.0 ^ (1 << seed.below(40)));
                s.spawn(|| fighter(&bed, dice, end))
            })
            .collect();
        // What is visible is whole at any moment, not only at the end.
        while Instant::now() < end {
            if let Ok(tree) = Oracle::new(&bed.store_path(100)).look() {
                is_whole(&tree, &bed);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        fighters.into_iter().map(|f| f.join().unwrap()).collect()
    });
    let (calls, killed) = sums.iter().fold((0, 0), |(a, b), (c, d)| (a + c, b + d));
    println!("{calls} calls, {killed} of them killed, in {time:.0?}");
    bed.onesdm(&["gc"]).run().ok();
    bed.onesdm(&["check"]).run().ok();
    let tree = Oracle::new(&bed.store_path(100)).look().unwrap();
    is_whole(&tree, &bed);
    settle(&bed, &tree);
    let twice = bed.onesdm(&["gc"]).run().ok();
    assert_eq!(twice.trim(), "no garbage", "the second collection found more than the first");
    for done in all((1..4).map(|id| bed.ds("rm", id, &rm(&bed, id))).collect()) {
        done.ok();
    }
    settle(&bed, &Tree::default());
    assert_eq!(
        bed.onesdm(&["job", "list", "--json"]).run().ok().trim(),
        "{}",
        "the killed ones are not listed"
    );
    let left = names(&bed.root().join("run/job"));
    assert!(!left.iter().any(|n| n.ends_with("json")), "records of dead jobs: {left:?}");
    assert!(calls > 20 && killed > 2);
}
