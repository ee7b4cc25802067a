//! The suite is tested, too: three bugs that a careless author could have made are put into the program
//! on purpose (`ONESDM_TEST_BUG`), and each must be caught by the check that is there for its kind. What
//! it said is printed.

use crate::bed::names;
use crate::kill::{effects, point, ready};
use crate::power::{During, Random, lose};
use crate::scenes;
use std::time::Duration;

/// Nothing is ever flushed: what was answered is not there after a power loss.
#[test]
fn a_dropped_fsync_is_caught() {
    for name in ["cp raw", "rm raw with snapshots", "snap_revert raw"] {
        let (_, wrong) =
            lose(&scenes::named(name), During::Call(true), 0, &mut Random(1), Some("drop-fsync"));
        println!("caught: {}", wrong.first().unwrap_or_else(|| panic!("{name}: no power loss showed it")));
    }
}

/// The first step is taken before the record that asks for the others: a kill between them leaves half.
#[test]
fn swapped_steps_are_caught() {
    for name in ["rm raw with snapshots", "snap_flatten raw"] {
        let scene = scenes::named(name);
        let points = 1..=effects(&scene, None, true).len();
        let mut said = points.map(|n| point(&scene, None, true, &format!("{n}:after"), Some("swap-steps")));
        let said = said.find_map(Result::err).unwrap_or_else(|| panic!("{name}: no kill showed it"));
        println!("caught: {said}");
    }
}

/// A job that does not hold its owner lease looks dead to the collector.
#[test]
fn a_skipped_owner_lease_is_caught() {
    assert_eq!(collected_while_running(None), Ok(()), "the collector leaves living jobs alone");
    let said = collected_while_running(Some("skip-owner-lease")).expect_err("gc took nothing from the job");
    println!("caught: {said}");
}

/// Holds a `cp` up at each of its flushes and collects meanwhile.
fn collected_while_running(bug: Option<&str>) -> Result<(), String> {
    let scene = scenes::named("cp raw");
    let bed = ready(None, true);
    let stage = scene.stage(&bed);
    let slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"];
    let inject = "inject=fsync,fdatasync:delay_enter=150000";
    let mut call = scene.call(&stage).under(&[&slow[..], &[inject]].concat());
    if let Some(bug) = bug {
        call = call.env("ONESDM_TEST_BUG", bug);
    }
    let mut running = call.start();
    let (mut met, new) = (0, bed.store_path(100).join(".sdm/new"));
    while running.is_running() {
        if !names(&new).is_empty() {
            met += 1;
            bed.onesdm(&["gc"]).run().answer().map_err(|e| format!("gc: {e}"))?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    stage.done(&running.wait())?;
    if met == 0 { Err("the job was never met".into()) } else { Ok(()) }
}
