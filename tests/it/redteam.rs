//! The file-domain scenarios of the design's red team that need one host, numbered as there: parts 1 and
//! 2, losing data and deleting live work. Part 3 and on are in `redteam_more`.

use crate::bed::{Bed, names};
use crate::doc::{Doc, image_name};
use crate::guest;
use crate::kill::{full, ready, swept};
use crate::oracle::{Oracle, Tree};
use crate::pause::{Paused, lose_leases, set, step, steps};
use crate::race::{REGTIME, bed, cp, image, settle};
use crate::scenes::{self, Stage};
use rustix::process::Signal;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

pub fn gc_and_check(bed: &Bed) {
    let store = bed.store_path(100);
    for word in ["gc", "check"] {
        bed.onesdm(&[word, store.to_str().unwrap()]).run().ok();
    }
}

/// SOURCE of the image that `cp` of id 1 made.
pub fn rm(bed: &Bed, id: u32) -> String {
    Doc::new(bed, id).source(bed, &image_name(REGTIME, id)).xml()
}

pub fn one_image() -> Tree {
    let mut tree = Tree::default();
    tree.create(&image_name(REGTIME, 1), image());
    tree
}

/// The step of a `cp` that makes its image visible.
pub fn publishing(steps: &[String], id: u32) -> usize {
    step(steps, |s| s.starts_with("Rename") && s.ends_with(&image_name(REGTIME, id)))
}

/// The steps of `cp` of id 1, from a bed of its own.
pub fn cp_steps() -> Vec<String> {
    let bed = bed();
    steps(&bed, bed.ds("cp", 1, &cp(&bed, 1))).0
}

#[test]
fn r1_1_a_copied_domain_is_refused_until_it_is_adopted() {
    let bed = bed();
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let (store, away) = (bed.store(100), bed.root().join("away"));
    std::fs::rename(&store, &away).unwrap();
    crate::bed::tool("cp", &["-a".as_ref(), away.as_os_str(), store.as_os_str()]);
    let said = bed.ds("cp", 2, &cp(&bed, 2)).run().fails(10);
    assert!(said.contains("domain adopt"), "{said}");
    bed.ds("rm", 1, &rm(&bed, 1)).run().fails(10);
    let place = store.to_str().unwrap();
    assert_ne!(bed.onesdm(&["gc", place]).run().code, Some(0));
    assert_ne!(bed.onesdm(&["check", place]).run().code, Some(0), "check names it");
    Oracle::new(&store).compare(&one_image()).unwrap();
    bed.onesdm(&["domain", "adopt", "--new-id", place]).run().ok();
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    settle(&bed, &Tree::default());
    assert!(away.join(image_name(REGTIME, 1)).exists(), "the other copy is another datastore");
}

#[test]
fn r1_2_an_unmounted_share_is_no_empty_datastore() {
    let bed = bed();
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let (store, away) = (bed.store(100), bed.root().join("away"));
    std::fs::rename(&store, &away).unwrap();
    bed.ds("cp", 2, &cp(&bed, 2)).run().fails(10);
    bed.store(100);
    for verb in ["cp", "rm"] {
        let dump = if verb == "cp" { cp(&bed, 2) } else { rm(&bed, 1) };
        let said = bed.ds(verb, 2, &dump).run().fails(10);
        assert!(said.contains("mounted"), "{said}");
    }
    assert!(names(&store).is_empty(), "nothing was created: {:?}", names(&store));
    std::fs::remove_dir(&store).unwrap();
    std::fs::rename(&away, &store).unwrap();
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    settle(&bed, &Tree::default());
}

/// Pauses a scene's call before each step, takes its leases away, lets `meanwhile` happen, and wakes it.
fn overtaken(scene: &str, stride: usize, meanwhile: &dyn Fn(&Bed, &Stage<'_>) -> Option<Tree>) {
    let (began, scene) = (Instant::now(), scenes::named(scene));
    let (stride, mut points) = (if full() { 1 } else { stride }, 0);
    for n in (1..).step_by(stride) {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        let paused = match Paused::before(n, scene.call(&stage)) {
            Ok(paused) => paused,
            Err(done) => {
                stage.done(&done).unwrap();
                break;
            }
        };
        points += 1;
        lose_leases(&bed.store_path(100));
        gc_and_check(&bed);
        stage.oracle.either(&stage.before, &stage.after).unwrap_or_else(|e| panic!("step {n}: {e}"));
        let other = meanwhile(&bed, &stage);
        let woken = paused.wakes();
        let what = format!("{} paused before step {n}, then: {}", scene.name, woken.err());
        if woken.code != Some(0) {
            woken.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        gc_and_check(&bed);
        if let Some(tree) = &other {
            stage.oracle.compare(tree).unwrap_or_else(|e| panic!("{what}: {e}"));
        } else if woken.code == Some(0) {
            stage.done(&woken).unwrap_or_else(|e| panic!("{what}: {e}"));
        } else {
            stage.oracle.either(&stage.before, &stage.after).unwrap_or_else(|e| panic!("{what}: {e}"));
            stage.done(&scene.call(&stage).run()).unwrap_or_else(|e| panic!("{what}, again: {e}"));
            gc_and_check(&bed);
        }
        swept(&bed).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    println!("{}: paused {points} times in {:.0?}", scene.name, began.elapsed());
    assert!(points > 2);
}

#[test]
fn r1_4_a_paused_publisher_publishes_nothing_after_it_was_undone() {
    for (scene, stride) in [("cp raw", 2), ("clone raw", 5), ("snap_flatten raw", 3), ("snap_revert raw", 3)]
    {
        overtaken(scene, stride, &|_, _| None);
    }
}

/// The same call was made again meanwhile and has answered: what it made is not displaced.
#[test]
fn r1_4_a_paused_publisher_does_not_displace_its_successor() {
    overtaken("cp raw", 3, &|bed, stage| {
        let again = scenes::named("cp raw").call(stage).run();
        stage.done(&again).unwrap();
        let _ = bed;
        Some(stage.after.clone())
    });
}

/// The name it was to remove belongs to a new image when it wakes.
#[test]
fn r1_4_a_paused_remover_leaves_the_new_image_of_the_name_alone() {
    for (scene, stride) in [("rm raw alone", 1), ("rm raw with snapshots", 2)] {
        overtaken(scene, stride, &|bed, stage| {
            scenes::named(scene).call(stage).run().ok();
            let (name, mut tree) = ("0123456789abcdef0123456789abcdef", stage.after.clone());
            let path = bed.store_path(100).join(name);
            guest::make_raw(&path, 768, 9);
            tree.create(name, stage.oracle.image(&path).unwrap());
            Some(tree)
        });
    }
}

#[test]
fn r1_9_an_image_in_use_is_not_replaced() {
    for name in [
        "rm raw with snapshots",
        "snap_revert raw",
        "snap_flatten raw",
        "snap_flatten qcow2",
        "snap_revert qcow2",
    ] {
        let bed = ready(None, true);
        let scene = scenes::named(name);
        let stage = scene.stage(&bed);
        let image = bed.store_path(100).join("0123456789abcdef0123456789abcdef");
        let format = if name.ends_with("qcow2") { "qcow2" } else { "raw" };
        let mut user = Command::new("qemu-io")
            .args(["-f", format, "-c", "sleep 60000"])
            .arg(&image)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the suite needs qemu-io (packaging/setup installs it)");
        let end = Instant::now() + Duration::from_secs(10);
        let held = || {
            std::fs::read_to_string("/proc/locks").unwrap_or_default().contains(&format!(":{} ", ino(&image)))
        };
        while !held() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        let said = scene.call(&stage).run().fails(9);
        assert!(said.contains("running VM"), "{name}: {said}");
        stage.oracle.compare(&stage.before).unwrap();
        user.kill().unwrap();
        user.wait().unwrap();
        stage.done(&scene.call(&stage).run()).unwrap();
    }
}

/// A merge in place, killed at moments that no step of ours marks: the layers read as before, and the
/// same call ends it.
#[test]
fn r1_10_a_layer_taken_out_in_place_may_be_killed_at_any_moment() {
    let scene = scenes::named("snap_delete qcow2");
    let (mut half, rounds) = (0, if full() { 40 } else { 8 });
    for n in 0..rounds {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        let top = bed.store_path(100).join("0123456789abcdef0123456789abcdef.snap/2");
        let read = || guest::Reader::default().read(&top).unwrap();
        let was = (read(), std::fs::read(&top).unwrap());
        let running = scene.call(&stage).slowed("pwrite64,pwritev,fdatasync", "delay_enter=20000").start();
        std::thread::sleep(Duration::from_millis(20 + 400 * n / rounds));
        running.signal(Signal::KILL);
        running.wait();
        half += usize::from(
            std::fs::read(&top).unwrap() != was.1 && names(top.parent().unwrap()).contains(&"1".into()),
        );
        assert_eq!(read().data, was.0.data, "the guest would read something else");
        gc_and_check(&bed);
        stage.oracle.either(&stage.before, &stage.after).unwrap();
        stage.done(&scene.call(&stage).run()).unwrap();
        settle(&bed, &stage.after);
    }
    println!("{half} of {rounds} were killed while merging");
}

fn ino(path: &Path) -> u64 {
    path.metadata().unwrap().ino()
}

/// `.sdm/leases` is put back by a restore while a job holds leases on the old one.
#[test]
fn r1_13_a_replaced_lease_file_ends_the_job_that_held_the_old_one() {
    let bed = bed();
    let n = step(&cp_steps(), |s| s.starts_with("Sync\t"));
    let paused = Paused::before(n, bed.ds("cp", 1, &cp(&bed, 1))).ok().unwrap();
    lose_leases(&bed.store_path(100));
    let said = paused.wakes().fails(8);
    assert!(said.contains("lease file was replaced"), "{said}");
    settle(&bed, &Tree::default());
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    settle(&bed, &one_image());
}

#[test]
fn r1_15_the_same_job_id_gets_the_same_answer_and_a_new_one_is_a_new_wish() {
    let bed = ready(None, true);
    let scene = scenes::named("snap_revert raw");
    let stage = scene.stage(&bed);
    let job = "0193e3a5-0000-7000-8000-000000000001";
    let call = || scene.call(&stage).env("ONESDM_JOB_ID", job);
    call().run().ok();
    // The guest runs and writes; the reply was lost, and the request comes again.
    let image = bed.store_path(100).join("0123456789abcdef0123456789abcdef");
    guest::make_raw(&image, 768, 42);
    let written = std::fs::read(&image).unwrap();
    call().run().ok();
    assert_eq!(std::fs::read(&image).unwrap(), written, "a replay reverted again");
    scene.call(&stage).run().ok();
    assert_ne!(std::fs::read(&image).unwrap(), written, "a new request reverts");
    gc_and_check(&bed);
    let kept = names(&bed.store_path(100).join(".sdm/del"));
    assert_eq!(kept.len(), 2, "what a revert displaced is kept: {kept:?}");
    let of_cp =
        |id: u32| bed.ds("cp", id, &cp_of(&bed, id)).env("ONESDM_JOB_ID", job.replace("01", "02")).run();
    assert_eq!(of_cp(5).ok(), of_cp(5).ok());
}

fn cp_of(bed: &Bed, id: u32) -> String {
    let path = bed.images().join("again.raw");
    guest::make_raw(&path, 64, 1);
    Doc::new(bed, id).image("REGTIME", REGTIME).image("PATH", path.display()).xml()
}

#[test]
fn r1_18_walkers_follow_no_link() {
    let bed = bed();
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let (store, name) = (bed.store(100), image_name(REGTIME, 1));
    let outside = bed.root().join("outside");
    std::fs::create_dir_all(outside.join("deep")).unwrap();
    std::fs::write(outside.join("deep/precious"), "precious").unwrap();
    let snap = store.join(format!("{name}.snap"));
    std::fs::create_dir(&snap).unwrap();
    symlink(&outside, snap.join("7")).unwrap();
    symlink(".", snap.join(format!("{name}.snap"))).unwrap();
    symlink("..", snap.join("up")).unwrap();
    symlink(outside.join("deep/precious"), store.join(format!("{name}.md5sum"))).unwrap();
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    settle(&bed, &Tree::default());
    assert_eq!(std::fs::read(outside.join("deep/precious")).unwrap(), b"precious");
    assert!(names(&store.join(".sdm/del")).is_empty());
}

/// A job dies half way; stock tools replace what it was about; the collector comes weeks later.
#[test]
fn r1_19_finishing_forward_too_late_harms_nobody() {
    type Last = fn(&str) -> bool;
    let rounds: [(&str, Last); 4] = [
        ("rm raw with snapshots", |s| s.starts_with("Rename") && s.ends_with("commit.json")),
        ("rm raw with snapshots", |s| s.starts_with("Rename") && s.contains("/del/")),
        ("snap_flatten raw", |s| s.starts_with("Exchange")),
        ("snap_revert raw", |s| s.starts_with("Exchange")),
    ];
    for (name, last) in rounds {
        let scene = scenes::named(name);
        let n = {
            let bed = ready(None, true);
            let stage = scene.stage(&bed);
            step(&steps(&bed, scene.call(&stage)).0, last)
        };
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        assert!(scene.call(&stage).env("ONESDM_TEST_KILL", format!("{n}:after")).run().killed());
        let image = bed.store_path(100).join("0123456789abcdef0123456789abcdef");
        let snap = image.with_extension("snap");
        let _ = std::fs::remove_file(&image);
        let _ = std::fs::remove_dir_all(&snap);
        let _ = std::fs::remove_file(image.with_extension("md5sum"));
        guest::make_raw(&image, 768, 77);
        std::fs::create_dir(&snap).unwrap();
        guest::make_raw(&snap.join("0"), 768, 78);
        let tree = stage.oracle.look().unwrap();
        gc_and_check(&bed);
        stage.oracle.compare(&tree).unwrap_or_else(|e| panic!("{name} killed after step {n}: {e}"));
        swept(&bed).unwrap();
    }
}

/// A record as somebody with write access might put it there.
fn doctored(store: &Path, job: &str, steps: &str) {
    use sha2::Digest as _;
    let dir = store.join(".sdm/new").join(job);
    std::fs::create_dir_all(&dir).unwrap();
    let who = r#"{"host":"h","pid":1,"verb":"cp","since":"2020-01-01T00:00:00Z"}"#;
    let json =
        format!(r#"{{"format":1,"job":"{job}","who":{who},"request":"r","answer":"","steps":[{steps}]}}"#);
    let sum: String = sha2::Sha256::digest(&json).iter().map(|b| format!("{b:02x}")).collect();
    std::fs::write(dir.join("commit.json"), format!("{json}\n{sum}\n")).unwrap();
}

fn identity(path: &Path) -> String {
    let meta = path.symlink_metadata().unwrap();
    let born = meta.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!(r#"{{"ino":{},"born":{born}}}"#, meta.ino())
}

#[test]
fn r1_20_a_doctored_record_acts_on_nothing_outside() {
    let bed = bed();
    let (store, outside) = (bed.store(100), bed.root().join("outside"));
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("precious"), "precious").unwrap();
    symlink(&outside, store.join("link")).unwrap();
    let id = identity(&outside.join("precious"));
    let job = |n: u32| format!("0193e3a5-0000-7000-8000-{n:012}");
    let grave = |n: u32| format!(r#"{{"job":"{}","n":0,"keep":false}}"#, job(n));
    // The first one is well formed and is obeyed: the others fail for what they name, not for their form.
    let own = store.join("own");
    std::fs::write(&own, "x").unwrap();
    let bury = |n: u32, name: &str, id: &str| {
        doctored(
            &store,
            &job(n),
            &format!(r#"{{"step":"bury","name":"{name}","id":{id},"grave":{}}}"#, grave(n)),
        );
    };
    bury(1, "own", &identity(&own));
    for (n, name) in
        (2..).zip(["link/precious", "../../../outside/precious", "/etc/passwd", ".sdm/leases", "link"])
    {
        bury(n, name, &id);
    }
    for (n, to) in (10..).zip(["link/evil", "../evil", "/tmp/evil-onesdm", ".sdm/new/evil", "x/../../evil"]) {
        let staged = store.join(".sdm/new").join(job(n)).join("0");
        std::fs::create_dir_all(staged.parent().unwrap()).unwrap();
        std::fs::write(&staged, "evil").unwrap();
        let step = format!(r#"{{"step":"publish","from":0,"id":{},"to":"{to}"}}"#, identity(&staged));
        doctored(&store, &job(n), &step);
    }
    std::fs::create_dir_all(store.join(".sdm/new").join(job(30))).unwrap();
    std::fs::write(store.join(".sdm/new").join(job(30)).join("commit.json"), vec![b'x'; 2 << 20]).unwrap();
    for _ in 0..2 {
        let gc = bed.onesdm(&["gc", store.to_str().unwrap()]).run();
        assert!(gc.code.is_some(), "{}", gc.err());
    }
    let said = bed.onesdm(&["check", store.to_str().unwrap()]).run();
    assert_eq!(said.code, Some(8), "{}", said.out());
    assert!(!own.exists(), "the well-formed one was obeyed");
    assert_eq!(names(&outside), ["precious"]);
    assert!(!store.join("../evil").exists() && !Path::new("/tmp/evil-onesdm").exists());
    assert!(store.join(".sdm/leases").exists() && store.join("link").symlink_metadata().is_ok());
    // The datastore stays usable.
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    // A link in place of one of our own directories is not followed either.
    for (dir, to) in [("new", "elsewhere"), ("del", "elsewhere")] {
        std::fs::create_dir_all(bed.root().join(to)).unwrap();
        std::fs::write(bed.root().join(to).join(job(1)), "x").unwrap();
        let ours = store.join(".sdm").join(dir);
        std::fs::remove_dir_all(&ours).unwrap();
        symlink(bed.root().join(to), &ours).unwrap();
        assert_ne!(bed.onesdm(&["gc", store.to_str().unwrap()]).run().code, Some(0));
        bed.ds("cp", 2, &cp(&bed, 2)).run();
        assert_eq!(names(&bed.root().join(to)), [job(1)]);
        std::fs::remove_file(&ours).unwrap();
        std::fs::create_dir(&ours).unwrap();
    }
}

/// Whatever instant of a job's birth or life the collector meets, the job goes on unharmed.
#[test]
fn r2_1_a_job_being_born_is_left_alone() {
    let n = cp_steps().len();
    for n in (1..=n).filter(|n| full() || *n < 6 || n % 4 == 0) {
        let bed = bed();
        let paused = Paused::before(n, bed.ds("cp", 1, &cp(&bed, 1))).ok().unwrap();
        let gc = bed.onesdm(&["gc", "--set", "lock.wait=50ms", bed.store(100).to_str().unwrap()]).run();
        // It may find the domain lock taken; then it says so and has changed nothing.
        assert!(matches!(gc.code, Some(0 | 4)), "{}", gc.err());
        paused.wakes().ok();
        settle(&bed, &one_image());
    }
}

#[test]
fn r2_2_a_job_id_in_use_is_not_used_twice() {
    let bed = bed();
    set(&bed, "[lock]\nwait = \"100ms\"");
    let n = step(&cp_steps(), |s| s.starts_with("Sync\t"));
    let job = "0193e3a5-0000-7000-8000-000000000001";
    let call = |id| bed.ds("cp", id, &cp(&bed, id)).env("ONESDM_JOB_ID", job);
    let paused = Paused::before(n, call(1)).ok().unwrap();
    let said = call(2).run().fails(4);
    assert!(said.contains("running already"), "{said}");
    call(1).run().fails(4);
    let answer = paused.wakes().ok();
    assert_eq!(call(1).run().ok(), answer);
    settle(&bed, &one_image());
}

/// The collector and a removal meet a reader: the copy is whole or the reader says why not.
#[test]
fn r2_3_a_reader_keeps_what_it_reads() {
    let bed = bed();
    set(&bed, "[lock]\nwait = \"100ms\"");
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let source = bed.store_path(100).join(image_name(REGTIME, 1));
    let clone = Doc::new(&bed, 2).image("REGTIME", REGTIME).image("PATH", source.display());
    let clone = clone.store_template("DRIVER", "raw").xml();
    let paused = Paused::before(5, bed.ds("clone", 2, &clone)).ok().unwrap();
    let said = bed.ds("rm", 1, &rm(&bed, 1)).run().fails(4);
    assert!(said.contains("locked"), "{said}");
    bed.onesdm(&["gc"]).run().ok();
    paused.wakes().ok();
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    let mut tree = Tree::default();
    tree.create(&image_name(REGTIME, 2), image());
    settle(&bed, &tree);
}
