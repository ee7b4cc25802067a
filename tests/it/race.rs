//! Several callers at once on one image: oned serialises nothing. Whoever loses is told so in one line;
//! nobody sees half an image, and nothing is left.

use crate::bed::{Bed, Running, names};
use crate::doc::{Doc, image_name};
use crate::guest;
use crate::oracle::{Node, Oracle, Tree};
use crate::server::Server;
use std::time::Duration;

pub const REGTIME: u64 = 1_795_168_000;
const KIB: u64 = 768;

pub fn bed() -> Bed {
    let bed = Bed::new();
    let store = bed.store(100);
    bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    guest::make_raw(&bed.images().join("src.raw"), KIB, 1);
    bed
}

pub fn image() -> Node {
    let tmp = crate::bed::scratch();
    let path = tmp.path().join("x");
    guest::make_raw(&path, KIB, 1);
    Node::Image { format: "raw", size: KIB << 10, data: guest::digest(&path).unwrap() }
}

pub fn cp(bed: &Bed, id: u32) -> String {
    Doc::new(bed, id).image("REGTIME", REGTIME).image("PATH", bed.images().join("src.raw").display()).xml()
}

/// Starts a call held up at each flush, so that others meet it.
fn slow(bed: &Bed, verb: &str, id: u32, dump: &str) -> Running {
    bed.ds(verb, id, dump).slowed("fsync,fdatasync", "delay_enter=100000").start()
}

/// Waits until a job has staged something.
fn until_staged(bed: &Bed, running: &mut Running) {
    let new = bed.store_path(100).join(".sdm/new");
    while names(&new).is_empty() && running.is_running() {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(running.is_running(), "it was over before it could be met");
}

pub fn settle(bed: &Bed, tree: &Tree) {
    bed.onesdm(&["gc"]).run().ok();
    bed.onesdm(&["check"]).run().ok();
    Oracle::new(&bed.store(100)).compare(tree).unwrap();
    let new = names(&bed.store_path(100).join(".sdm/new"));
    assert!(new.is_empty(), "left: {new:?}");
}

#[test]
fn the_same_request_many_times_at_once_makes_one_image() {
    let bed = bed();
    let dump = cp(&bed, 1);
    let running: Vec<_> = (0..8).map(|_| bed.ds("cp", 1, &dump).start()).collect();
    let done: Vec<_> = running.into_iter().map(Running::wait).collect();
    let mut tree = Tree::default();
    tree.create(&image_name(REGTIME, 1), image());
    let answers: Vec<_> = done.iter().filter(|d| d.code == Some(0)).map(|d| d.ok()).collect();
    assert!(!answers.is_empty() && answers.iter().all(|a| *a == answers[0]), "{answers:?}");
    for loser in done.iter().filter(|d| d.code != Some(0)) {
        loser.fails(4);
    }
    settle(&bed, &tree);
}

#[test]
fn different_images_at_once_do_not_disturb_each_other() {
    let bed = bed();
    let running: Vec<_> = (0..8).map(|id| bed.ds("cp", id, &cp(&bed, id)).start()).collect();
    let mut tree = Tree::default();
    for (id, running) in (0..8).zip(running) {
        running.wait().ok();
        tree.create(&image_name(REGTIME, id), image());
    }
    settle(&bed, &tree);
}

/// Removal outranks creation: oned does not kill the copy it gave up on.
#[test]
fn rm_during_cp() {
    let bed = bed();
    let dump = cp(&bed, 1);
    let mut copy = slow(&bed, "cp", 1, &dump);
    until_staged(&bed, &mut copy);
    let rm = Doc::new(&bed, 1).source(&bed, &image_name(REGTIME, 1)).xml();
    bed.ds("rm", 1, &rm).run().ok();
    let done = copy.wait();
    if done.code != Some(0) {
        done.failure(None).unwrap();
    }
    settle(&bed, &Tree::default());
}

/// A copy that would go on for hours ends because it is asked to, not because its work is gone some time later.
#[test]
fn rm_asks_the_copy_to_stop() {
    let bed = bed();
    let server = Server::new(|_, out| {
        out.head("200 OK", &["Content-Length: 1000000"])?;
        while !out.is_over() {
            out.body(b"x")?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
    let dump = Doc::new(&bed, 1).image("REGTIME", REGTIME).image("PATH", server.url()).xml();
    let mut copy = bed.ds("cp", 1, &dump).start();
    until_staged(&bed, &mut copy);
    let rm = Doc::new(&bed, 1).source(&bed, &image_name(REGTIME, 1)).xml();
    let rm = bed.ds("rm", 1, &rm).run();
    rm.ok();
    copy.wait().fails(130);
    // It is given ten seconds before its work is taken away.
    assert!(rm.took < Duration::from_secs(8), "{:?}", rm.took);
    settle(&bed, &Tree::default());
}

#[test]
fn rm_of_the_source_during_clone() {
    let bed = bed();
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let source = bed.store_path(100).join(image_name(REGTIME, 1));
    let dump = Doc::new(&bed, 2)
        .image("REGTIME", REGTIME)
        .image("PATH", source.display())
        .store_template("DRIVER", "raw")
        .xml();
    let mut clone = slow(&bed, "clone", 2, &dump);
    until_staged(&bed, &mut clone);
    let rm = Doc::new(&bed, 1).source(&bed, &image_name(REGTIME, 1)).xml();
    bed.ds("rm", 1, &rm).run().ok();
    let done = clone.wait();
    let mut tree = Tree::default();
    if done.code == Some(0) {
        tree.create(&image_name(REGTIME, 2), image());
    } else {
        done.failure(None).unwrap();
    }
    settle(&bed, &tree);
}

#[test]
fn the_collector_may_run_at_any_time_and_many_times() {
    let bed = bed();
    let mut tree = Tree::default();
    for id in 0..6 {
        let running = bed.ds("cp", id, &cp(&bed, id)).start();
        let collectors: Vec<_> = (0..3).map(|_| bed.onesdm(&["gc"]).start()).collect();
        running.wait().ok();
        tree.create(&image_name(REGTIME, id), image());
        for collector in collectors {
            collector.wait().ok();
        }
    }
    settle(&bed, &tree);
}
