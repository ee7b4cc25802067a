//! Storage that never answers: a FUSE file system whose daemon reads no request. Every verb comes back within
//! its deadline all the same, with one line and the status of a timeout, and leaves no process. (A silent web
//! server, an ssh peer that accepts and says nothing, and a helper that floods stderr are in `http`, `agent` and
//! `sys::tool`.)

use crate::bed::{Bed, VERBS, tool};
use crate::doc::Doc;
use crate::pause;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file system that hangs whoever touches it, until it goes.
struct Silent {
    at: PathBuf,
    _device: File,
}

impl Silent {
    fn mount(at: &Path) -> Silent {
        use std::os::fd::AsRawFd as _;
        let device = File::options().read(true).write(true).open("/dev/fuse").expect("the suite needs FUSE");
        // For `mount`, which hands it to the kernel.
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let words = ["-i", "-t", "fuse", "-o", &options, "silent"].map(OsStr::new);
        tool("mount", &[&words[..], &[at.as_os_str()]].concat());
        rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::CLOEXEC).unwrap();
        Silent { at: at.to_owned(), _device: device }
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        // Lazily: anything else would ask the file system first.
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

fn comes_back(bed: &Bed, verb: &str, dump: &str) {
    let done = bed.ds(verb, 7, dump).run();
    let line = done.failure(Some(7)).unwrap_or_else(|e| panic!("{verb}: {e}"));
    assert!(line.contains("deadline"), "{verb}: {line}");
    assert!(done.took < Duration::from_secs(6), "{verb} took {:?}", done.took);
}

#[test]
fn a_datastore_that_hangs_costs_a_deadline() {
    let bed = Bed::new();
    pause::set(&bed, "[verb]\ndeadline = \"1s\"\n[cancel]\ngrace = \"500ms\"");
    let store = bed.store(100);
    let image = "0".repeat(32);
    let _silent = Silent::mount(&store);
    for verb in VERBS {
        let doc = Doc::new(&bed, 7).source(&bed, &image).image("PATH", store.join("x").display());
        let doc = doc.image("TARGET_SNAPSHOT", "0").image("FORMAT", "raw").image("SIZE", 1);
        comes_back(&bed, verb, &doc.store_template("SAFE_DIRS", store.display()).xml());
    }
}

#[test]
fn a_verb_that_hangs_can_be_stopped() {
    let bed = Bed::new();
    pause::set(&bed, "[cancel]\ngrace = \"500ms\"");
    let _silent = Silent::mount(&bed.store(100));
    let mut running = bed.ds("rm", 7, &Doc::new(&bed, 7).source(&bed, "x").xml()).start();
    std::thread::sleep(Duration::from_millis(500));
    assert!(running.is_running());
    running.signal(rustix::process::Signal::TERM);
    let line = running.wait().fails(130);
    assert!(line.contains("asked to stop"), "{line}");
}

#[test]
fn a_source_that_hangs_costs_a_deadline() {
    let bed = Bed::new();
    pause::set(&bed, "[verb]\ndeadline = \"1s\"\n[cancel]\ngrace = \"500ms\"");
    let store = bed.store(100);
    bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    let dir = bed.images().join("share");
    std::fs::create_dir(&dir).unwrap();
    let _silent = Silent::mount(&dir);
    for verb in ["cp", "stat"] {
        comes_back(&bed, verb, &Doc::new(&bed, 7).image("PATH", dir.join("x").display()).xml());
    }
    // What was begun can be collected: the datastore itself is well.
    bed.onesdm(&["gc"]).run().ok();
    crate::kill::swept(&bed).unwrap();
}
