//! What each verb costs besides moving bytes, as strace sees it: children, flushes, how often an image is
//! opened. Printed, and held to the ceilings below: a change that needs more says so here, with its reason.
//! Times are measured by `cargo bench --bench verbs`; they are no test.

use crate::bed::Bed;
use crate::scenes;
use std::collections::HashSet;

/// The most a scene may cost: children, flushes of our own, opens of any image or snapshot. Why a copy
/// needs six flushes, and what each guards against, is in `docs/speed.md`. A source is opened twice: once
/// as a bare handle, to be judged where it really is, then that very handle for reading.
/// A chain's files are opened again for each judgement of a chain, since a header may be a guest's.
const CEILINGS: &[(&str, usize, usize, usize)] = &[
    ("cp raw", 0, 6, 2),
    ("cp qcow2", 0, 6, 2),
    ("cp qcow2 to raw", 1, 6, 2),
    ("cp raw.gz", 0, 6, 2),
    ("mkfs raw", 0, 6, 0),
    ("mkfs qcow2", 1, 6, 0),
    ("mkfs ext4", 1, 6, 0),
    ("mkfs swap", 1, 6, 0),
    ("mkfs save_as", 0, 0, 0),
    ("clone raw", 0, 6, 1),
    ("clone raw to qcow2", 1, 6, 1),
    ("rm raw with snapshots", 0, 7, 3),
    ("rm raw alone", 0, 2, 1),
    ("rm of nothing", 0, 0, 0),
    ("snap_delete raw", 0, 7, 3),
    ("snap_delete qcow2", 1, 14, 40),
    ("snap_revert raw", 0, 10, 4),
    ("snap_revert qcow2", 1, 10, 21),
    ("snap_flatten raw", 0, 9, 3),
    ("snap_flatten qcow2", 1, 10, 22),
    ("stat raw.gz", 0, 0, 2),
    ("export raw", 0, 0, 2),
    ("monitor", 0, 0, 0),
];

const CALLS: &str = "trace=execve,execveat,fork,vfork,clone,clone3,open,openat,openat2,creat,\
                     fsync,fdatasync,sync,syncfs,sync_file_range,msync";

#[derive(Debug, Default, PartialEq, Eq)]
struct Cost {
    /// Programs started after the first, by path.
    children: Vec<String>,
    flushes: usize,
    /// Images opened by the program itself, each time by path.
    opened: Vec<String>,
}

impl Cost {
    /// From a trace whose descriptors carry their paths (`strace -f -y`).
    fn read(text: &str, is_image: impl Fn(&str) -> bool) -> Cost {
        let (mut cost, mut foreign, mut started) = (Cost::default(), HashSet::new(), false);
        for line in text.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let call = call.trim_start();
            // `clone(…) = 7`, or its second half after a break: who is born to a child is one, too.
            let name = call.trim_start_matches("<... ").split(['(', ' ']).next().unwrap_or_default();
            let answer = call.rsplit_once(" = ").map_or("", |(_, a)| a.trim());
            if matches!(name, "clone" | "clone3" | "fork" | "vfork") {
                if foreign.contains(pid) {
                    foreign.insert(answer.to_owned());
                }
                continue;
            }
            if name.starts_with("exec") && call.contains('(') && !answer.starts_with('-') {
                let path = call.split('"').nth(1).unwrap_or_default();
                if std::mem::replace(&mut started, true) {
                    foreign.insert(pid.to_owned());
                    cost.children.push(path.to_owned());
                }
            }
            if foreign.contains(pid) {
                continue;
            }
            if name.contains("sync") && call.contains('(') && name != "sync_file_range" {
                cost.flushes += 1; // which waits; starting a write-back does not
            }
            if (name.starts_with("open") || name == "creat") && !call.contains("O_DIRECTORY") {
                // The descriptor's path is where the file really is, whatever it was called.
                let path = answer.split_once('<').and_then(|(_, p)| p.strip_suffix('>'));
                cost.opened.extend(path.filter(|p| is_image(p)).map(str::to_owned));
            }
        }
        cost
    }
}

#[test]
fn no_verb_costs_more_than_it_did() {
    let mut wrong = Vec::new();
    println!("{:24} {:>8} {:>7} {:>6}", "", "children", "flushes", "opens");
    for scene in scenes::all() {
        let bed = Bed::new();
        let store = bed.store(100);
        bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
        let stage = scene.stage(&bed);
        let file = bed.root().join("trace");
        let words = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", file.to_str().unwrap(), "-e", CALLS];
        let done = scene.call(&stage).under(&words).run();
        stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));

        let text =
            String::from_utf8_lossy(&std::fs::read(&file).expect("the suite needs strace")).into_owned();
        let (images, area) = (bed.images(), store.join(".sdm"));
        let is_image = |path: &str| {
            let path = std::path::Path::new(path);
            path.starts_with(&images) || (path.starts_with(&store) && !path.starts_with(&area))
        };
        let cost = Cost::read(&text, is_image);
        let found = (cost.children.len(), cost.flushes, cost.opened.len());
        println!("{:24} {:>8} {:>7} {:>6}", scene.name, found.0, found.1, found.2);
        let shells = ["sh", "bash", "dash", "busybox", "env", "sudo"];
        if cost.children.iter().any(|c| c.rsplit('/').next().is_some_and(|name| shells.contains(&name))) {
            wrong.push(format!("{} starts a shell: {:?}", scene.name, cost.children));
        }
        match CEILINGS.iter().find(|(name, ..)| *name == scene.name) {
            None => wrong.push(format!("{} has no ceiling", scene.name)),
            Some(&(_, children, flushes, opens)) => {
                if found.0 > children || found.1 > flushes || found.2 > opens {
                    wrong.push(format!(
                        "{}: {found:?} of {children}, {flushes}, {opens}: {:?} {:?}",
                        scene.name, cost.children, cost.opened
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn ceilings_are_of_scenes() {
    for (name, ..) in CEILINGS {
        assert!(scenes::all().iter().any(|s| s.name == *name), "{name} is no scene any more");
    }
}

#[test]
fn traces_are_counted() {
    let text = "1 execve(\"/x/cp\", [\"cp\"], 0x7f /* 3 vars */) = 0\n\
                1 openat2(AT_FDCWD</>, \"/i/a\", {flags=O_PATH}, 24) = 5</i/a>\n\
                1 open(\"/proc/self/fd/5\", O_RDONLY) = 6</i/a>\n\
                1 openat(AT_FDCWD</>, \"/etc/b\", O_RDONLY) = 7</etc/b>\n\
                1 openat(AT_FDCWD</>, \"/i/c\", O_RDONLY) = -1 ENOENT (No such file or directory)\n\
                1 fsync(6</i/a>) = 0\n\
                1 sync_file_range(6</i/a>, 0, 1, SYNC_FILE_RANGE_WRITE) = 0\n\
                1 clone3({flags=0} => {parent_tid=[0]}, 88) = 2\n\
                2 execve(\"/none/qemu-img\", [], 0x7f) = -1 ENOENT (No such file or directory)\n\
                2 execve(\"/usr/bin/qemu-img\", [], 0x7f /* 3 vars */ <unfinished ...>\n\
                1 fdatasync(6</i/a> <unfinished ...>\n\
                2 <... execve resumed>) = 0\n\
                1 <... fdatasync resumed>) = 0\n\
                2 clone3({flags=0} <unfinished ...>\n\
                2 <... clone3 resumed> => {parent_tid=[0]}, 88) = 3\n\
                3 fdatasync(4</i/a>) = 0\n\
                2 openat(AT_FDCWD</>, \"/i/a\", O_RDONLY) = 3</i/a>\n";
    let cost = Cost::read(text, |p| p.starts_with("/i/"));
    assert_eq!(cost.children, ["/usr/bin/qemu-img"]);
    assert_eq!((cost.flushes, cost.opened.len()), (2, 2));
}
