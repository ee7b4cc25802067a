//! Scenes of transfer verbs on the machine that is front-end and host in one: what lies in an image and a
//! system datastore, made by calls before, and the call. What must lie there afterwards is what the same
//! call leaves undisturbed; that this is right, content and all, is what other tests are for.

use crate::bed::{Bed, Call};
use crate::doc::Doc;
use crate::guest;
use crate::oracle::{Node, Oracle, Tree};
use crate::scenes::{Scene, Stage};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const KIB: u64 = 768;

/// A call as oned makes it, for VM 7.
pub fn call<'a>(bed: &'a Bed, driver: &str, verb: &str, args: &[String]) -> Call<'a> {
    let call = bed.tm(driver, verb).env("ONESDM_XML_DIR", bed.root().join("xml"));
    args.iter().fold(call, Call::arg)
}

/// The words of a call of this name, with the VM's id and a datastore's behind.
type Words = fn(&Bed) -> Vec<String>;

fn image(bed: &Bed) -> String {
    format!("localhost:{}/img", bed.base_path(100))
}
fn disk_of(bed: &Bed, ds: u32) -> String {
    format!("localhost:{}/7/disk.0", bed.base_path(ds))
}
fn disk(bed: &Bed) -> String {
    disk_of(bed, 101)
}
fn words(words: &[&str], ds: u32) -> Vec<String> {
    words.iter().map(|w| (*w).to_owned()).chain(["7".to_owned(), ds.to_string()]).collect()
}

const CLONE: (&str, Words) = ("clone", |b| words(&[&image(b), &disk(b)], 100));
const LINK: (&str, Words) = ("ln", |b| words(&[&image(b), &disk(b)], 100));
const SNAP_0: (&str, Words) = ("snap_create", |b| words(&[&disk(b), "0"], 100));
const SNAP_1: (&str, Words) = ("snap_create", |b| words(&[&disk(b), "1"], 100));
const REVERT: (&str, Words) = ("snap_revert", |b| words(&[&disk(b), "0"], 100));
const FORGET: (&str, Words) = ("snap_delete", |b| words(&[&disk(b), "0"], 100));
const SAVE: (&str, Words) =
    ("cpds", |b| words(&[&disk(b), &format!("{}/saved", b.base_path(100)), "-1"], 100));
const STORE: (&str, Words) = ("mvds", |b| words(&[&disk(b), &format!("{}/img", b.base_path(100))], 100));
const GROW: (&str, Words) = ("resize", |b| words(&[&disk(b), "2"], 100));
const DELETE: (&str, Words) = ("delete", |b| words(&[&disk(b)], 101));
const MOVE: (&str, Words) = ("mv", |b| {
    let vm = |ds: u32| format!("localhost:{}/7", b.base_path(ds));
    words(&[&vm(101), &vm(102)], 102)
});
const IMAGE: (&str, Words) = ("mkimage", |b| words(&["1", "raw", &disk(b)], 101));
const SWAP: (&str, Words) = ("mkswap", |b| words(&["1", &disk(b)], 101));

/// Lays out an image, makes the calls before, and plays the last one somewhere else to see what it leaves.
fn set(stage: &mut Stage<'_>, driver: &'static str, what: (&str, bool), calls: &[(&str, Words)]) {
    static LEAVES: Mutex<BTreeMap<String, (PathBuf, Tree)>> = Mutex::new(BTreeMap::new());
    let (last, before) = calls.split_last().unwrap();
    prepare(stage.bed, driver, what, before);
    let root = stage.bed.store_path(100).parent().unwrap().to_owned();
    stage.oracle = Oracle::new(&root);
    stage.before = stage.oracle.look().unwrap();
    stage.tm = Some((driver, (last.1)(stage.bed)));
    let key = format!("{driver} {what:?} {:?}", calls.iter().map(|c| c.0).collect::<Vec<_>>());
    let mut all = LEAVES.lock().unwrap_or_else(PoisonError::into_inner);
    let (there, tree) = all.entry(key).or_insert_with(|| {
        let twin = Bed::new();
        prepare(&twin, driver, what, before);
        call(&twin, driver, last.0, &(last.1)(&twin)).run().ok();
        let there = twin.store_path(100).parent().unwrap().to_owned();
        (there.clone(), Oracle::new(&there).look().unwrap())
    });
    stage.after = tree.clone();
    // A directory is there before anything is in it, and may stay.
    for (dir, _) in tree.0.iter().filter(|(_, node)| **node == Node::Dir) {
        stage.before.0.entry(dir.clone()).or_insert(Node::EmptyDir);
    }
    for (path, node) in &mut stage.after.0 {
        match node {
            Node::Link(to) if to.starts_with(&*there) => {
                *to = root.join(to.strip_prefix(&*there).unwrap());
            }
            // It has a name of its own each time.
            Node::Image { format, size, .. }
                if calls.last().unwrap().0 == "mkswap" && path.ends_with("disk.0") =>
            {
                *node = Node::Fresh { format, size: *size, signature: "swap" };
            }
            _ => {}
        }
    }
    assert_ne!(stage.before, stage.after, "{:?} changes nothing", last.0);
}

/// A datastore with an image, one without anything, and what some calls make of them.
fn prepare(bed: &Bed, driver: &str, (format, persistent): (&str, bool), calls: &[(&str, Words)]) {
    let (save, clone) = if persistent { ("YES", "NO") } else { ("NO", "YES") };
    let document = format!(
        "<VM><ID>7</ID><LCM_STATE>3</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>{format}</FORMAT>\
         <SIZE>1</SIZE><ORIGINAL_SIZE>1</ORIGINAL_SIZE><SOURCE>{}/img</SOURCE><TM_MAD>{driver}</TM_MAD>\
         <SAVE>{save}</SAVE><CLONE>{clone}</CLONE></DISK></TEMPLATE></VM>",
        bed.base_path(100)
    );
    std::fs::create_dir_all(bed.root().join("xml")).unwrap();
    std::fs::write(bed.root().join("xml/vm-7.xml"), document).unwrap();
    for ds in [100, 101, 102] {
        bed.store(ds);
        let text = format!("<DATASTORE><ID>{ds}</ID><TEMPLATE></TEMPLATE></DATASTORE>");
        std::fs::write(bed.root().join(format!("xml/datastore-{ds}.xml")), text).unwrap();
    }
    let (raw, path) = (bed.images().join("src.raw"), bed.store_path(100).join("img"));
    guest::make_raw(&raw, KIB, 1);
    match format {
        "qcow2" => guest::make_qcow2(&raw, &path),
        _ => drop(std::fs::copy(&raw, &path).unwrap()),
    }
    // The front-end learns of a datastore by the first call that worked there.
    let blank = Doc::new(bed, 1).image("SIZE", 1).image("FORMAT", "raw").xml();
    bed.ds("mkfs", 1, &blank).run().ok();
    for ds in [101, 102] {
        let disk = disk_of(bed, ds);
        call(bed, driver, "mkimage", &words(&["1", "raw", &disk], ds)).run().ok();
        call(bed, driver, "delete", &words(&[disk.strip_suffix("/disk.0").unwrap()], ds)).run().ok();
    }
    for (n, (verb, args)) in calls.iter().enumerate() {
        call(bed, driver, verb, &args(bed)).run().ok();
        // The guest writes something else after each.
        let disk = bed.store_path(101).join("7/disk.0");
        if disk.exists() {
            writes(&disk, format, u8::try_from(n).unwrap() + 0x31);
        }
    }
}

fn writes(disk: &Path, format: &str, letter: u8) {
    let write = format!("write -q -P {letter} 64k 64k");
    let words = ["-f".as_ref(), format.as_ref(), "-c".as_ref(), write.as_ref(), disk.as_os_str()];
    crate::bed::tool("qemu-io", &words);
}

pub fn all() -> Vec<Scene> {
    fn scene(name: &'static str, verb: &'static str, set: fn(&mut Stage<'_>)) -> Scene {
        Scene { name, verb, set }
    }
    const RAW: (&str, bool) = ("raw", false);
    const QCOW2: (&str, bool) = ("qcow2", false);
    vec![
        scene("tm clone raw", "clone", |s| set(s, "shared", RAW, &[CLONE])),
        scene("tm clone qcow2", "clone", |s| set(s, "qcow2", QCOW2, &[CLONE])),
        scene("tm clone raw, local", "clone", |s| set(s, "ssh", RAW, &[CLONE])),
        scene("tm clone qcow2, local", "clone", |s| set(s, "ssh", QCOW2, &[CLONE])),
        scene("tm ln raw", "ln", |s| set(s, "shared", ("raw", true), &[LINK])),
        scene("tm ln qcow2", "ln", |s| {
            set(s, "qcow2", ("qcow2", true), &[LINK]);
            s.rest = true;
        }),
        scene("tm ln qcow2, local", "ln", |s| set(s, "ssh", ("qcow2", true), &[LINK])),
        scene("tm mkimage", "mkimage", |s| set(s, "shared", RAW, &[IMAGE])),
        scene("tm mkswap", "mkswap", |s| set(s, "shared", RAW, &[SWAP])),
        scene("tm snap_create raw", "snap_create", |s| set(s, "shared", RAW, &[CLONE, SNAP_0])),
        scene("tm snap_create qcow2", "snap_create", |s| set(s, "qcow2", QCOW2, &[CLONE, SNAP_0])),
        scene("tm snap_create qcow2, persistent", "snap_create", |s| {
            set(s, "qcow2", ("qcow2", true), &[LINK, SNAP_0]);
            s.rest = true;
        }),
        scene("tm snap_revert raw", "snap_revert", |s| set(s, "shared", RAW, &[CLONE, SNAP_0, REVERT])),
        scene("tm snap_revert qcow2", "snap_revert", |s| set(s, "qcow2", QCOW2, &[CLONE, SNAP_0, REVERT])),
        scene("tm snap_delete raw", "snap_delete", |s| set(s, "shared", RAW, &[CLONE, SNAP_0, FORGET])),
        scene("tm snap_delete qcow2", "snap_delete", |s| {
            set(s, "qcow2", QCOW2, &[CLONE, SNAP_0, SNAP_1, FORGET]);
        }),
        scene("tm cpds raw", "cpds", |s| set(s, "shared", RAW, &[CLONE, SAVE])),
        scene("tm cpds qcow2", "cpds", |s| set(s, "qcow2", QCOW2, &[CLONE, SNAP_0, SAVE])),
        scene("tm mvds qcow2, local", "mvds", |s| set(s, "ssh", ("qcow2", true), &[LINK, STORE])),
        scene("tm resize raw", "resize", |s| set(s, "shared", RAW, &[CLONE, GROW])),
        scene("tm resize qcow2", "resize", |s| set(s, "qcow2", QCOW2, &[CLONE, GROW])),
        scene("tm delete raw", "delete", |s| set(s, "shared", RAW, &[CLONE, SNAP_0, DELETE])),
        scene("tm delete qcow2", "delete", |s| set(s, "qcow2", QCOW2, &[CLONE, SNAP_0, DELETE])),
        scene("tm mv", "mv", |s| {
            set(s, "qcow2", QCOW2, &[CLONE, SNAP_0, MOVE]);
            s.rest = true;
        }),
    ]
}

#[test]
fn every_scene_plays() {
    for scene in all() {
        let bed = crate::kill::ready(None, true);
        let stage = scene.stage(&bed);
        let done = scene.call(&stage).run();
        stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));
    }
}
