//! A full file system during each verb: one line, nothing left, what was there unharmed, and removal works.

use crate::bed::Bed;
use crate::fsbed::{Fs, Kind};
use crate::scenes;
use std::io::Write as _;

/// Fills the file system to the last byte, through a file beside the datastores.
fn fill(fs: &Fs) {
    let mut file = std::fs::File::create(fs.path().join("ballast")).unwrap();
    let mut block = vec![1u8; 64 << 10];
    while !block.is_empty() {
        while file.write(&block).is_ok_and(|n| n > 0) {}
        block.truncate(block.len() / 2);
    }
}

fn play(kind: Kind, mib: u64) {
    for scene in scenes::all() {
        let fs = Fs::new(kind, mib);
        let bed = Bed::on(&fs.stores());
        let stage = scene.stage(&bed);
        bed.onesdm(&["domain", "init", bed.store(100).to_str().unwrap()]).run().ok();
        fill(&fs);
        let done = scene.call(&stage).run();
        let what = format!("{kind:?}: {}", scene.name);
        // Taking a layer out of a chain gives what it held to the next one: that needs room.
        let frees = ["rm", "snap_delete"].contains(&scene.verb) && scene.name != "snap_delete qcow2";
        if done.code == Some(0) || frees || ["stat", "monitor", "export"].contains(&scene.verb) {
            stage.done(&done).unwrap_or_else(|e| panic!("{what}: {e}"));
        } else {
            let line = done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(line.contains("space"), "{what}: the line does not say why: {line}");
            stage.oracle.compare(&stage.before).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        bed.onesdm(&["gc"]).run().ok();
        std::fs::remove_file(fs.path().join("ballast")).unwrap();
        let again = scene.call(&stage).run();
        stage.done(&again).unwrap_or_else(|e| panic!("{what}, with space again: {e}"));
        bed.onesdm(&["check"]).run().ok();
        drop(bed);
    }
}

#[test]
fn a_full_disk_during_each_verb_on_tmpfs() {
    play(Kind::Tmpfs, 32);
}

#[test]
fn a_full_disk_during_each_verb_on_ext4() {
    play(Kind::Ext4, 32);
}
