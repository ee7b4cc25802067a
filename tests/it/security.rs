//! Names that mean something to a tool or a shell, at every external command; and what a crash leaves behind.
//! `docs/threat-model.md` says which test stands for which promise; these are those with no better place.

use crate::bed::{Bed, VERBS, scratch};
use crate::doc::Doc;
use crate::scenes;
use crate::server::Server;
use rustix::process::Signal;
use std::time::Duration;

/// Options, a list of options, another protocol, a shell's words, a format.
const HOSTILE: [&str; 5] = ["-rf", "x,backing_file=y", "nbd:h:1", "$(id)`id`'q'\"d\";&|>*#", "%s%n\\"];

/// A datastore's directory is a part of every path that a tool is given.
#[test]
fn hostile_directories_are_only_directories() {
    for (n, name) in HOSTILE.iter().enumerate() {
        let tmp = scratch();
        crate::bed::chmod(tmp.path(), 0o755);
        let stores = tmp.path().join(name);
        let all = scenes::all().into_iter().enumerate();
        // Every scene in one of them, and those with a tool in all.
        for (_, scene) in all.filter(|(i, s)| i % HOSTILE.len() == n || s.name.contains("qcow2")) {
            let _ = std::fs::remove_dir_all(&stores);
            let bed = Bed::on(&stores);
            let stage = scene.stage(&bed);
            let done = scene.call(&stage).run();
            stage.done(&done).unwrap_or_else(|e| panic!("{} in {name:?}: {e}", scene.name));
        }
    }
}

/// An answer is a line of words: a directory that would make several of it is refused.
#[test]
fn a_directory_that_an_answer_cannot_name_is_refused() {
    let bed = Bed::new();
    for (n, path) in ["/x y/100", "/x\nERROR: /100", "/x\u{1b}[1m/100", "/x\u{a0}/100"].iter().enumerate() {
        for verb in VERBS {
            let dump = Doc::new(&bed, u32::try_from(n).unwrap()).store("BASE_PATH", path).xml();
            let line = bed.ds(verb, 7, &dump).run().fails(2);
            assert!(line.contains("BASE_PATH"), "{verb}: {line}");
        }
    }
}

/// A process that holds a password in its memory is killed the way that dumps memory.
#[test]
fn a_crash_dumps_no_secret() {
    let bed = Bed::new();
    bed.store(100);
    let server = Server::stalled();
    let dump = Doc::new(&bed, 7).image("PATH", server.secret_url()).xml();
    let mut running = bed.ds("cp", 7, &dump).start();
    while server.sent() == 0 {
        assert!(running.is_running());
        std::thread::sleep(Duration::from_millis(5));
    }
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.pid().as_raw_nonzero())).unwrap();
    running.signal(Signal::ABORT);
    let done = running.wait();
    // One byte: with none the kernel would still hand the dump to a program that asked for it.
    let core: Vec<&str> =
        limits.lines().find(|l| l.starts_with("Max core file size")).unwrap().split_whitespace().collect();
    assert_eq!(core[4..6], ["1", "1"], "{limits}");
    assert_eq!(done.signal, Some(Signal::ABORT.as_raw()));
    assert!(!done.dumped, "memory was dumped");
}
