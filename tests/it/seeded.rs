//! The suite is tested, too: twelve bugs that a careless author could have made, in seven rooms, are put into the
//! program on purpose (`ONESDM_TEST_BUG`), and each must be caught by the check that is there for its kind.
//! What it said is printed.

use crate::bed::{Call, names, tool};
use crate::doc::Doc;
use crate::kill::{effects, point, ready};
use crate::pause::{Paused, step, steps};
use crate::power::{During, Random, lose};
use crate::{fail, guest, scenes};
use std::path::Path;
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

/// A VM's directory is published before it is flushed.
#[test]
fn a_skipped_flush_is_caught() {
    let scene = scenes::named("tm mv");
    let (_, wrong) = lose(&scene, During::Call(true), 1, &mut Random(1), Some("skip-flush"));
    println!("caught: {}", wrong.first().expect("no power loss showed it"));
}

/// Whoever ends a dead job takes a file with both names for one that was renamed.
#[test]
fn a_second_name_that_stays_is_caught() {
    let scene = scenes::named("snap_revert qcow2");
    let (_, wrong) = lose(&scene, During::Call(true), 0, &mut Random(1), Some("leave-second"));
    println!("caught: {}", wrong.first().expect("no power loss showed it"));
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

/// Whoever ends a dead job does not look what it had decided, and takes back what it can.
#[test]
fn a_forgotten_commit_is_caught() {
    let scene = scenes::named("rm raw with snapshots");
    let wrong = (1..=effects(&scene, None, true).len()).find_map(|n| {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        scene.call(&stage).env("ONESDM_TEST_KILL", format!("{n}:after")).run();
        bed.onesdm(&["gc"]).env("ONESDM_TEST_BUG", "forget-commit").run();
        stage.settled().err()
    });
    println!("caught: {}", wrong.expect("no kill showed it"));
}

/// A write that failed is taken for one that did not.
#[test]
fn a_swallowed_error_is_caught() {
    let scene = scenes::named("cp raw.gz");
    let writes = effects(&scene, None, true).into_iter().enumerate().filter(|(_, e)| e == "Write");
    let at = writes.map(|(n, _)| format!("{}:short=65536", n + 1));
    let mut said =
        at.map(|at| fail::point(&scene, true, &at, &["File too large"], Some("ignore-write-error")));
    println!("caught: {}", said.find_map(Result::err).expect("no failure showed it"));
}

/// A part of the data is not written.
#[test]
fn lost_data_is_caught() {
    let (bed, scene) = (ready(None, true), scenes::named("cp raw.gz"));
    let stage = scene.stage(&bed);
    let done = scene.call(&stage).env("ONESDM_TEST_BUG", "lose-data").run();
    println!("caught: {}", stage.done(&done).expect_err("nobody missed it"));
}

/// What comes from outside is stored although its sum or its header says no.
#[test]
fn believing_the_source_is_caught() {
    let bed = ready(None, true);
    let (raw, image) = (bed.images().join("src.raw"), bed.images().join("over.qcow2"));
    guest::make_raw(&raw, 64, 1);
    let words = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"].map(AsRef::as_ref);
    tool("qemu-img", &[&words[..], &[image.as_os_str()]].concat());
    let from = |path: &Path| Doc::new(&bed, 7).image("PATH", path.display());
    let wrong = from(&raw).image_template("MD5", "0".repeat(32));
    for (bug, doc, status) in [("accept-digest", wrong, 8), ("believe-header", from(&image), 10)] {
        let dump = doc.xml();
        bed.ds("cp", 7, &dump).run().fails(status);
        let done = bed.ds("cp", 7, &dump).env("ONESDM_TEST_BUG", bug).run();
        println!("caught: {}", done.failure(Some(status)).expect_err("it was refused all the same"));
    }
}

/// Two verbs work on one image at once.
#[test]
fn a_skipped_slab_lease_is_caught() {
    assert_eq!(deleted_meanwhile(None), Ok(()), "an image at work is busy");
    println!("caught: {}", deleted_meanwhile(Some("skip-slab-lease")).expect_err("nobody noticed"));
}

/// Deletes a snapshot of an image while another is being made the image.
fn deleted_meanwhile(bug: Option<&str>) -> Result<(), String> {
    let (bed, scene) = (ready(None, true), scenes::named("snap_flatten qcow2"));
    let toml = bed.root().join("onesdm.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(toml, text + "[lock]\nwait = \"0s\"\n").unwrap();
    let stage = scene.stage(&bed);
    let with = |call: Call<'_>| bug.into_iter().fold(call, |c, bug| c.env("ONESDM_TEST_BUG", bug)).start();
    let mut running = with(scene.call(&stage).slowed("fsync,fdatasync", "delay_enter=150000"));
    while names(&bed.store_path(100).join(".sdm/new")).is_empty() {
        assert!(running.is_running(), "it was too fast");
        std::thread::sleep(Duration::from_millis(1));
    }
    let done = with(bed.ds("snap_delete", 7, &stage.dump)).wait();
    let busy = done.failure(Some(4)).map(drop);
    running.wait();
    busy
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
    // Each flush takes a while.
    let mut call = scene.call(&stage).slowed("fsync,fdatasync", "delay_enter=150000");
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

/// What a verb displaced in error, and did not live to put back, is deleted with what it left.
#[test]
fn a_dropped_foreign_image_is_caught() {
    assert_eq!(displaced(None), Ok(()), "it gets its name again");
    println!("caught: {}", displaced(Some("drop-foreign")).expect_err("nobody missed it"));
}

/// Somebody without our locks replaces an image between the last look of a verb and its step, after which the
/// verb dies.
fn displaced(bug: Option<&str>) -> Result<(), String> {
    let scene = scenes::named("snap_revert raw");
    let at = {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        step(&steps(&bed, scene.call(&stage)).0, |s| s.starts_with("Exchange"))
    };
    let bed = ready(None, true);
    let stage = scene.stage(&bed);
    let late = scene.call(&stage).env("ONESDM_TEST_KILL", format!("{at}:after"));
    let late = Paused::before(at, late).map_err(|_| "it did not pause")?;
    let (name, new) = ("0123456789abcdef0123456789abcdef", bed.store_path(100).join("new"));
    guest::make_raw(&new, 768, 9);
    std::fs::rename(&new, new.with_file_name(name)).unwrap();
    let mut tree = stage.before.clone();
    tree.create(name, stage.oracle.image(&new.with_file_name(name))?);
    assert!(late.wakes().killed());
    let gc = bed.onesdm(&["gc"]);
    bug.into_iter().fold(gc, |c, bug| c.env("ONESDM_TEST_BUG", bug)).run().ok();
    bed.onesdm(&["check"]).run().ok();
    stage.oracle.compare(&tree)
}
