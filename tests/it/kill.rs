//! `kill -9` before and after every effect of every verb. The invariant: whatever the moment, each path in
//! the datastore is as before the call or as after it, the collector runs, the checker finds nothing, and
//! the same call made again does what it was asked. `ONESDM_FULL=1` sweeps every point on every file
//! system; without it the slow ones take every n-th point.

use crate::bed::{Bed, names};
use crate::fsbed::{Fs, Kind};
use crate::scenes::{self, Scene, Stage};
use crate::tm_scenes;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// Points killed, per kind of effect.
type Points = BTreeMap<String, usize>;

/// Whether the whole was asked for.
pub fn full() -> bool {
    std::env::var_os("ONESDM_FULL").is_some_and(|v| v == "1")
}

/// A bed whose datastore is a domain already, unless the scene is about first contact.
pub fn ready(stores: Option<&Path>, domain: bool) -> Bed {
    if let Some(dir) = stores {
        let _ = std::fs::remove_dir_all(dir);
    }
    let bed = stores.map_or_else(Bed::new, Bed::on);
    let store = bed.store(100);
    if domain {
        bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    }
    bed
}

/// The effects of a call, in order, by the program's own count.
pub fn effects(scene: &Scene, stores: Option<&Path>, domain: bool) -> Vec<String> {
    let bed = ready(stores, domain);
    let stage = scene.stage(&bed);
    let log = bed.root().join("effects");
    let done = scene.call(&stage).env("ONESDM_TEST_LOG", &log).run();
    stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));
    let log = std::fs::read_to_string(log).unwrap_or_default();
    log.lines().filter_map(|l| l.split('\t').nth(1).map(str::to_owned)).collect()
}

/// Kills at one point and puts everything to the test.
pub fn point(
    scene: &Scene,
    stores: Option<&Path>,
    domain: bool,
    at: &str,
    bug: Option<&str>,
) -> Result<bool, String> {
    let bed = ready(stores, domain);
    let stage = scene.stage(&bed);
    let mut call = scene.call(&stage).env("ONESDM_TEST_KILL", at);
    if let Some(bug) = bug {
        call = call.env("ONESDM_TEST_BUG", bug);
    }
    let killed = call.run();
    if !killed.killed() {
        return stage.done(&killed).map(|()| false); // this run took fewer steps
    }
    aftermath(scene, &bed, &stage, domain).map(|()| true)
}

/// Whatever a call came to: old or new, collected without a rest, and done by the same call made again.
pub fn aftermath(scene: &Scene, bed: &Bed, stage: &Stage<'_>, domain: bool) -> Result<(), String> {
    stage.oracle.between(&stage.before, &stage.after).map_err(|e| format!("right after it: {e}"))?;
    let gc = || bed.onesdm(&["gc"]).run().answer().map_err(|e| format!("gc: {e}"));
    let check = || bed.onesdm(&["check"]).run().answer().map_err(|e| format!("check: {e}"));
    gc()?;
    check()?;
    stage.settled().map_err(|e| format!("after gc: {e}"))?;
    if domain {
        swept(bed)?; // a domain that was being made may not be known yet
    }
    let again = scene.call(stage).run();
    let is_done = stage.oracle.compare(&stage.after).is_ok();
    // What is done already may be refused, as long as the line says so.
    let refused = is_done && again.failure(Some(3)).is_ok();
    if !refused {
        stage.done(&again).map_err(|e| format!("again: {e}"))?;
    }
    gc()?;
    check()?;
    stage.oracle.compare(&stage.after).map_err(|e| format!("at the end: {e}"))?;
    swept(bed)
}

/// After a collection nothing of ours is left but what is kept on purpose.
pub fn swept(bed: &Bed) -> Result<(), String> {
    let keep = |name: &String| Path::new(name).extension().is_some_and(|e| e == "keep");
    let mut left = Vec::new();
    for store in [100, 101, 102].map(|n| bed.store_path(n)).iter().filter(|s| s.exists()) {
        let sdm = store.join(".sdm");
        left.extend(names(&sdm.join("new")));
        left.extend(names(&sdm.join("del")).into_iter().filter(|n| !keep(n)));
    }
    if left.is_empty() { Ok(()) } else { Err(format!("left by gc: {left:?}")) }
}

/// Sweeps one scene: every `stride`-th point, each before and after. Failures are collected, so one run
/// shows them all.
fn sweep(
    scene: &Scene,
    stores: Option<&Path>,
    domain: bool,
    stride: usize,
    wrong: &mut Vec<String>,
) -> Points {
    let mut points = Points::new();
    for (n, effect) in effects(scene, stores, domain).iter().enumerate().step_by(stride) {
        for side in ["before", "after"] {
            let at = format!("{}:{side}", n + 1);
            match point(scene, stores, domain, &at, None) {
                Ok(true) => *points.entry(effect.clone()).or_default() += 1,
                Ok(false) => *points.entry("not reached".into()).or_default() += 1,
                Err(e) => wrong.push(format!("{} killed {side} step {} ({effect}): {e}", scene.name, n + 1)),
            }
        }
    }
    points
}

fn sweep_all(place: &str, stores: Option<&Path>, (stride, transfers): (usize, usize)) {
    let began = Instant::now();
    let (mut wrong, mut sum, mut missed) = (Vec::new(), 0, 0);
    let all = scenes::all().into_iter().map(|s| (s, stride));
    for (scene, stride) in all.chain(tm_scenes::all().into_iter().map(|s| (s, transfers))) {
        let stride = if full() { 1 } else { stride };
        let points = sweep(&scene, stores, true, stride, &mut wrong);
        println!(
            "{place:6} {:30} {}",
            scene.name,
            points.iter().map(|(k, n)| format!("{k} {n}  ")).collect::<String>()
        );
        sum += points.values().sum::<usize>();
        missed += points.get("not reached").copied().unwrap_or_default();
    }
    let first = scenes::all().swap_remove(0);
    let points = sweep(&first, stores, false, stride, &mut wrong);
    println!("{place:6} {:24} {points:?}", "cp raw, first contact");
    println!("{place:6} {sum} points in {:.0?}, {missed} not reached", began.elapsed());
    assert!(wrong.is_empty(), "{} of the points failed:\n{}", wrong.len(), wrong.join("\n"));
    assert!(sum > 0 && missed * 10 <= sum, "{missed} of {sum} points were not reached");
}

#[test]
fn killed_at_every_effect_on_tmpfs() {
    sweep_all("tmpfs", None, (2, 4));
}

#[test]
fn killed_at_every_effect_on_ext4() {
    let fs = Fs::new(Kind::Ext4, 128);
    sweep_all("ext4", Some(&fs.stores()), (1, 8));
}

#[test]
fn killed_at_every_effect_on_xfs() {
    let fs = Fs::new(Kind::Xfs, 320);
    sweep_all("xfs", Some(&fs.stores()), (4, 16));
}

#[test]
fn killed_at_every_effect_on_btrfs() {
    let fs = Fs::new(Kind::Btrfs, 320);
    sweep_all("btrfs", Some(&fs.stores()), (4, 16));
}

/// oned's time limit is SIGTERM to the group, at any instant: one line and nothing left, or a full success.
#[test]
fn terminated_at_any_instant() {
    for scene in scenes::all() {
        let took = {
            let bed = ready(None, true);
            let stage = scene.stage(&bed);
            scene.call(&stage).run().took
        };
        for n in 0..6 {
            let bed = ready(None, true);
            let stage = scene.stage(&bed);
            let running = scene.call(&stage).start();
            std::thread::sleep(took * n / 6);
            running.signal(Signal::TERM);
            let done = running.wait();
            let what = format!("{} terminated after {n}/6: {}", scene.name, done.err());
            if done.code == Some(0) {
                stage.done(&done).unwrap_or_else(|e| panic!("{what}: {e}"));
            } else if done.signal.is_none() {
                done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
            } // else it came before the program could listen
            stage.oracle.between(&stage.before, &stage.after).unwrap_or_else(|e| panic!("{what}: {e}"));
            bed.onesdm(&["gc"]).run().ok();
            bed.onesdm(&["check"]).run().ok();
            stage.settled().unwrap_or_else(|e| panic!("{what}: {e}"));
            swept(&bed).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}
