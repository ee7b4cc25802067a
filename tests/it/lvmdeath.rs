//! A host of two dies at any step of any verb on their volume group: the verb and the step are the seed's
//! (`ONESDM_TEST_SEED`). The other one takes over, whatever it was. `ONESDM_FULL=1`: as many lives and deaths of the
//! first host as there are verbs, while the second one lives on (with `ONESDM_TEST_SCENE="rm;cpds"` in these verbs).

use crate::lvmhosts::two;
use crate::lvmmeet::{Blow, Here, LIFE, PLACE, img, said, seed};
use crate::lvmverbs::{GROUP, MIB, content, digest, root, volumes};
use crate::power::Random;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Datastore verbs about images 1 (thick), 2 (thin, with a snapshot) and 3, and what is VM 1's on the dying host: a
/// disk with a snapshot.
const IMAGES: [(&str, &str); 9] = [
    ("cp", "<ID>3</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>"),
    ("cp", "<ID>3</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH><PERSISTENT>1</PERSISTENT>"),
    ("mkfs", "<ID>3</ID><SIZE>4</SIZE><PERSISTENT>1</PERSISTENT>"),
    ("clone", "<ID>3</ID><SIZE>6</SIZE><PATH>vg-one-100/img-one-1</PATH>"),
    ("rm", "<SOURCE>vg-one-100/img-one-1</SOURCE>"),
    ("rm", "<SOURCE>vg-one-100/img-one-2</SOURCE>"),
    ("snap_revert", "<SOURCE>vg-one-100/img-one-2</SOURCE><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>"),
    ("snap_flatten", "<SOURCE>vg-one-100/img-one-2</SOURCE><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>"),
    ("snap_delete", "<SOURCE>vg-one-100/img-one-2</SOURCE><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>"),
];
const LINK: (&str, &[&str]) = ("ln", &["fe:vg-one-100/img-one-2", "DIR/disk.1", "1", "100"]);
const DISKS: [(&str, &[&str]); 12] = [
    ("clone", &["fe:vg-one-100/img-one-1", "DIR/disk.3", "1", "100"]),
    ("mkswap", &["1", "DIR/disk.3", "1", "101"]),
    ("mkimage", &["2", "raw", "DIR/disk.3", "1", "101"]),
    ("snap_create", &["DIR/disk.0", "1", "1", "100"]),
    ("snap_revert", &["DIR/disk.0", "0", "1", "100"]),
    ("snap_delete", &["DIR/disk.0", "0", "1", "100"]),
    ("resize", &["DIR/disk.0", "12", "1", "100"]),
    ("cpds", &["DIR/disk.0", "vg-one-100/img-one-3", "-1", "1", "100"]),
    LINK,
    ("mvds", &["DIR/disk.1", "vg-one-100/img-one-2", "1", "100"]),
    ("mv", &["DIR/disk.0", "THERE/disk.0", "1", "101"]),
    ("delete", &["DIR", "1", "101"]),
];

fn lives() -> u64 {
    if crate::kill::full() { (IMAGES.len() + DISKS.len()) as u64 } else { 1 }
}

fn is_kept(volume: &str) -> bool {
    Path::new(volume).extension().is_some_and(|e| e == "keep")
}

/// Works, and stands still in the middle of it until the machine ends.
fn dying(here: &Here) {
    let (h, life, mut random) = (&here.h, here.meet.life(), Random::seeded());
    for _ in 0..life {
        random.below(1);
    }
    here.source("one.raw", &seed(1));
    // What its other lives have left.
    let mut vm = here.vm(1, 2);
    let first = vm.1.split_inclusive("</DISK>").next().unwrap().rsplit_once("<DISK>").unwrap().1;
    let third = format!("<DISK>{}</TEMPLATE>", first.replace("<DISK_ID>0<", "<DISK_ID>3<"));
    vm.1 = vm.1.replace("</TEMPLATE>", &third);
    let all = volumes();
    let is = |name: &str| all.iter().any(|v| v == name);
    if !is("img-one-1") {
        h.ok("cp", "<ID>1</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
    }
    if !is("img-one-2") {
        h.ok("cp", "<ID>2</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH><PERSISTENT>1</PERSISTENT>");
    }
    here.tm(&vm, "clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "1", "100"]);
    here.tm(&vm, "snap_create", &["DIR/disk.0", "0", "1", "100"]);
    if !is("img-one-2_one_s0") {
        here.tm(&vm, LINK.0, LINK.1);
        here.tm(&vm, "snap_create", &["DIR/disk.1", "0", "1", "100"]);
        here.tm(&vm, "mvds", &["DIR/disk.1", "vg-one-100/img-one-2", "1", "100"]);
    }
    let only = std::env::var("ONESDM_TEST_SCENE").unwrap_or_default();
    let verbs = IMAGES.iter().map(|v| v.0).chain(DISKS.iter().map(|v| v.0)).enumerate();
    let verbs = verbs.filter(|(_, verb)| only.is_empty() || only.split(';').any(|o| o == *verb));
    let verbs: Vec<usize> = verbs.map(|(n, _)| n).collect();
    let any = random.below(verbs.len());
    let n = verbs[if lives() > 1 { usize::try_from(life).unwrap() % verbs.len() } else { any }];
    let step = (1 + random.below(40)).to_string();
    let stop = [("ONESDM_TEST_STOP", step.as_str())];
    let mut child = if let Some((verb, image)) = IMAGES.get(n) {
        println!("dies in {verb} {image} at step {step}");
        h.start(verb, &h.message(image), &stop)
    } else {
        let (verb, args) = DISKS[n - IMAGES.len()];
        if verb == "mvds" {
            here.tm(&vm, LINK.0, LINK.1);
        }
        println!("dies in {verb} {args:?} at step {step}");
        let dir = format!("localhost:{}", h.at("var/datastores/101/1").display());
        // By its own name this machine is another one.
        std::fs::create_dir(h.at("var/datastores/102")).unwrap();
        let there = format!("h1:{}", h.at("var/datastores/102/1").display());
        let mut c = h.command(&h.at("var/remotes/tm/lvm").join(verb));
        c.args(args.iter().map(|a| a.replace("THERE", &there).replace("DIR", &dir)))
            .envs(stop)
            .env("ONESDM_VM_XML", &vm.1);
        c.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let began = Instant::now();
    let stat = format!("/proc/{}/stat", child.id());
    let stands = || std::fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T');
    while !stands() && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(300), "neither ends nor stops");
        std::thread::sleep(Duration::from_millis(20));
    }
    match child.try_wait().unwrap() {
        None => println!("it stands still"),
        Some(ended) => {
            println!("it ended: {}", String::from_utf8_lossy(&child.wait_with_output().unwrap().stderr));
            assert!(ended.success(), "it was refused");
        }
    }
    here.meet.say(life * LIFE + 7);
    std::thread::sleep(Duration::from_secs(600));
}

/// What says that somebody has a lease, or a device.
const WAITS: [i32; 2] = [4, 9];

/// Takes over what the other host had, and looks at all there is.
fn takes_over(here: &Here, life: u64) {
    let h = &here.h;
    here.meet.wait(life * LIFE + 7);
    let killed = Instant::now();
    h.ok("mkfs", "<ID>11</ID><SIZE>5</SIZE>");
    println!("has the lock after {:?}", killed.elapsed());
    // Its jobs are known to be over when it is, its devices with it.
    let ours = |v: &String| v.starts_with("sdm-new-") || v.starts_with("sdm-del-") && !is_kept(v);
    loop {
        let (status, text) = h.own(&["gc", PLACE]);
        assert_eq!(status, 0, "{text}");
        println!("{text}");
        let left: Vec<String> = volumes().into_iter().filter(ours).collect();
        if left.is_empty() {
            break;
        }
        assert!(killed.elapsed() < Duration::from_secs(400), "left by gc: {left:?}");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("nothing of its jobs is left after {:?}", killed.elapsed());
    let (status, text) = h.own(&["check", PLACE]);
    assert!(status == 0 && text.contains("no broken rule"), "{text}");
    let all = volumes();
    println!("{all:?}");
    for image in 1..=3 {
        let name = format!("img-one-{image}");
        if all.contains(&name) {
            let (is, blank) = (content(&name, 4 * MIB).0, digest(&vec![0; 4 * MIB]));
            assert!(is == digest(&seed(1)) || image == 3 && is == blank, "image {image}");
        }
    }
    // Everything can be done with what is there, and nothing stays.
    let last = life + 1 == lives();
    let vm = (1, here.vm(1, 2).1.replace("<ID>2<", "<ID>1<"));
    // Its leases and disks are another's until that is known to be dead, which may be later than that it has no job left.
    loop {
        let (status, text) = h.tm_of((vm.0, &vm.1), "delete", &["DIR", "1", "101"]);
        println!("delete after {:?}: {status} {text}", killed.elapsed());
        if status == 0 {
            break;
        }
        assert!(
            WAITS.contains(&status) && killed.elapsed() < Duration::from_secs(400),
            "its VM is never free"
        );
        std::thread::sleep(Duration::from_secs(1));
    }
    for image in if last { &[1, 2, 3, 11][..] } else { &[3, 11] } {
        h.ok("rm", &img(*image));
    }
    let (status, text) = h.own(&["gc", PLACE]);
    assert_eq!(status, 0, "{text}");
    let images = |v: &String| v == "img-one-1" || v.starts_with("img-one-2");
    let kept = volumes().into_iter().filter(|v| !is_kept(v) && (last || !images(v)));
    assert_eq!(kept.collect::<Vec<_>>(), ["sdm-leases", "sdm-meta"]);
    root(&["vgck", GROUP]);
    println!("-- death {} at {:?}", life + 1, killed.elapsed());
}

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn death_inside() {
    let here = Here::joined();
    if here.id == 1 {
        return dying(&here);
    }
    for life in 0..lives() {
        takes_over(&here, life);
        here.meet.say((life + 1) * LIFE);
    }
}

#[test]
fn a_host_that_dies_at_any_step_of_any_verb_is_taken_over() {
    let outs = two("lvmdeath::death_inside", Some(Blow::Kill(7, lives())));
    let [first, second] = outs.map(|o| (o.status.code(), said(&o)));
    println!("{}\n=======\n{}", first.1, second.1);
    assert!(first.0 == Some(125) && second.0 == Some(0) && second.1.contains("1 passed"), "see above");
}
