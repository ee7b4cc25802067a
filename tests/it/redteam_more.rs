//! The red team's scenarios, parts 3 to 5: getting stuck, permanent garbage, and the small ugly ones.

use crate::bed::{Bed, Done, chmod, names, processes};
use crate::doc::{Doc, image_name};
use crate::fsbed::{Fs, Kind};
use crate::guest;
use crate::kill::ready;
use crate::oracle::{Oracle, Tree};
use crate::pause::{Paused, set, step, steps};
use crate::race::{REGTIME, bed, cp, image, settle};
use crate::redteam::{cp_steps, gc_and_check, one_image, publishing, rm};
use crate::scenes;
use rustix::process::Signal;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The account that owns datastores where oned does not run as root.
const OWNER: u32 = 9869;

fn give(path: &Path) {
    std::os::unix::fs::chown(path, Some(OWNER), Some(OWNER)).unwrap();
    if path.is_dir() {
        for name in names(path) {
            give(&path.join(name));
        }
    }
}

fn everything_is_the_owners(dir: &Path) {
    for name in names(dir) {
        let path = dir.join(name);
        let meta = path.symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (OWNER, OWNER), "{}", path.display());
        if meta.is_dir() {
            everything_is_the_owners(&path);
        }
    }
}

/// The disk is full for the datastore's owner, who has no reserve of the file system's to draw on.
#[test]
fn r3_1_a_full_disk_can_be_deleted_from() {
    let fs = Fs::new(Kind::Ext4, 32);
    let bed = Bed::on(&fs.stores());
    let stage = scenes::named("rm raw with snapshots").stage(&bed);
    let store = bed.store(100);
    give(&store);
    bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    let ballast = fs.path().join("ballast");
    std::fs::write(&ballast, "").unwrap();
    give(&ballast);
    chmod(fs.path(), 0o777);
    let fill = ["-c", "cat /dev/zero >> \"$0\" || true"];
    let mut sh = std::process::Command::new("setpriv");
    sh.args(["--reuid=9869", "--regid=9869", "--clear-groups", "sh"]).args(fill).arg(&ballast);
    assert!(sh.stderr(std::process::Stdio::null()).status().unwrap().success());
    let scene = scenes::named("rm raw with snapshots");
    stage.done(&scene.call(&stage).run()).unwrap();
    bed.onesdm(&["gc"]).run().ok();
    std::fs::remove_file(&ballast).unwrap();
    gc_and_check(&bed);
    assert!(names(&store.join(".sdm/del")).is_empty() && names(&store.join(".sdm/new")).is_empty());
}

#[test]
fn r3_2_a_busy_domain_lock_throws_no_finished_copy_away() {
    let bed = ready(None, true);
    set(&bed, "[lock]\nwait = \"200ms\"");
    let scene = scenes::named("rm raw alone");
    let stage = scene.stage(&bed);
    guest::make_raw(&bed.images().join("src.raw"), 768, 1);
    // A removal that hangs just before its rename holds the domain lock.
    let paused = Paused::before(1, scene.call(&stage)).ok().unwrap();
    let mut copy = bed.ds("cp", 1, &cp(&bed, 1)).start();
    std::thread::sleep(Duration::from_millis(800));
    assert!(copy.is_running(), "the copy gave up after lock.wait");
    paused.wakes().ok();
    copy.wait().ok();
    settle(&bed, &one_image());
}

/// One round: a creation is stopped or slow, a removal comes.
fn removed_while(creation: &str, pause_at: Option<usize>) -> (Done, Duration) {
    let bed = bed();
    // One that is only slow is given the time to end by itself.
    let grace = if pause_at.is_some() { "300ms" } else { "5s" };
    set(&bed, &format!("[cancel]\ngrace = \"{grace}\"\n[lock]\nwait = \"5s\""));
    let (mut id, mut dump, mut left) = (1, cp(&bed, 1), Tree::default());
    if creation == "clone" {
        bed.ds("cp", 1, &dump).run().ok();
        left = one_image();
        let source = bed.store_path(100).join(image_name(REGTIME, 1));
        let doc = Doc::new(&bed, 2).image("REGTIME", REGTIME).image("PATH", source.display());
        (id, dump) = (2, doc.store_template("DRIVER", "raw").xml());
    }
    let call = bed.ds(creation, id, &dump);
    let began = Instant::now();
    let done = if let Some(n) = pause_at {
        let paused = Paused::before(n, call).ok().unwrap();
        bed.ds("rm", id, &rm(&bed, id)).run().ok();
        assert!(began.elapsed() < Duration::from_secs(4), "it waited for a lease of a job that hangs");
        Oracle::new(&bed.store(100)).compare(&left).unwrap();
        paused.wakes()
    } else {
        let mut running = call.slowed("fsync,fdatasync", "delay_enter=200000").start();
        while names(&bed.store_path(100).join(".sdm/new")).is_empty() && running.is_running() {
            std::thread::sleep(Duration::from_millis(1));
        }
        bed.ds("rm", id, &rm(&bed, id)).run().ok();
        running.wait()
    };
    let took = began.elapsed();
    settle(&bed, &left);
    (done, took)
}

#[test]
fn r3_3_removal_outranks_creation() {
    let copies = step(&cp_steps(), |s| s.starts_with("Create") && s.ends_with("/0"));
    let decides = step(&cp_steps(), |s| s.starts_with("Rename") && s.ends_with("commit.json"));
    for (creation, more) in [("cp", 0), ("clone", 1)] {
        // Asked to stop; hanging before it has staged anything, while it copies, and just before it decides.
        // A clone has marked its source as known before.
        for pause in [None, Some(copies), Some(copies + 1), Some(decides)] {
            let pause = pause.map(|n| n + more);
            let (done, took) = removed_while(creation, pause);
            println!("{creation} {pause:?}: {:?} in {took:.0?}: {}", done.code, done.err().trim());
            if done.code != Some(0) {
                done.failure(Some(130)).or_else(|_| done.failure(None)).unwrap();
            }
            assert!(pause.is_none() || done.code != Some(0), "it published what was removed");
        }
    }
}

/// Nothing outranks a job in its last step, which takes milliseconds or hangs; then it is named.
#[test]
fn r3_12_a_hanging_holder_of_the_domain_lock_is_named() {
    let n = publishing(&cp_steps(), 1);
    let bed = bed();
    set(&bed, "[cancel]\ngrace = \"100ms\"\n[lock]\nwait = \"100ms\"");
    let paused = Paused::before(n, bed.ds("cp", 1, &cp(&bed, 1))).ok().unwrap();
    let pid = format!("pid {}", paused.pid());
    let said = bed.ds("rm", 1, &rm(&bed, 1)).run().fails(4);
    let shown = bed.onesdm(&["lock", "show", bed.store(100).to_str().unwrap()]).run().ok();
    let shown = shown.lines().find(|l| l.contains("domain metadata")).unwrap();
    assert!(said.contains(&pid) && shown.contains(&pid), "{said}{shown}");
    let done = paused.wakes();
    assert!(done.code == Some(0) || done.failure(None).is_ok());
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    settle(&bed, &Tree::default());
}

#[test]
fn r3_3_a_creation_during_a_removal_waits_or_says_so() {
    let bed = bed();
    set(&bed, "[lock]\nwait = \"200ms\"");
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let paused = Paused::before(1, bed.ds("rm", 1, &rm(&bed, 1))).ok().unwrap();
    bed.ds("cp", 1, &cp(&bed, 1)).run().fails(4);
    paused.wakes().ok();
    settle(&bed, &Tree::default());
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    settle(&bed, &one_image());
}

/// Two removals at once: neither is a rival of the other.
#[test]
fn r3_3_removals_do_not_cancel_each_other() {
    let scene = scenes::named("rm raw with snapshots");
    let at = {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        step(&steps(&bed, scene.call(&stage)).0, |s| s.contains("/del/"))
    };
    let bed = ready(None, true);
    let stage = scene.stage(&bed);
    let first = Paused::before(at, scene.call(&stage)).ok().unwrap();
    let mut second = scene.call(&stage).start();
    std::thread::sleep(Duration::from_millis(100));
    assert!(second.is_running(), "it did not wait");
    first.wakes().ok();
    second.wait().ok();
    settle(&bed, &stage.after);
}

/// A child that writes keeps its job's lease held, should it outlive the job; it gets nothing else.
#[test]
fn r3_6_children_inherit_the_jobs_lease_and_nothing_else() {
    let bed = ready(None, true);
    let scene = scenes::named("cp qcow2 to raw");
    let stage = scene.stage(&bed);
    let slow = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=execve", "-e"];
    let slow = [&slow[..], &["inject=execve:delay_exit=400000"]].concat();
    let mut running = scene.call(&stage).under(&slow).start();
    let leases = bed.store_path(100).join(".sdm/leases");
    let mut seen = 0;
    while running.is_running() {
        for p in processes(|word| word.ends_with("/qemu-img")) {
            let dir = Path::new("/proc").join(p.split(' ').next().unwrap_or_default());
            // Of this bed, and past the point where the kernel closes what is not inherited.
            let ours = |dir: &Path| {
                let line = std::fs::read_to_string(dir.join("cmdline")).unwrap_or_default();
                let exe = std::fs::read_link(dir.join("exe")).unwrap_or_default();
                line.contains(bed.store_path(100).to_str().unwrap()) && exe.ends_with("qemu-img")
            };
            if !ours(&dir) {
                continue;
            }
            std::thread::sleep(Duration::from_millis(50));
            let fds = names(&dir.join("fd")).into_iter().filter(|f| !["0", "1", "2"].contains(&f.as_str()));
            let fds: Vec<_> = fds.filter_map(|f| std::fs::read_link(dir.join("fd").join(f)).ok()).collect();
            if ours(&dir) && seen == 0 {
                assert_eq!(fds, [leases.as_path()]);
                seen += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    stage.done(&running.wait()).unwrap();
    assert!(seen > 0, "no child was met right after its start");
}

#[test]
fn r3_11_root_acts_as_the_datastores_owner() {
    let bed = Bed::new();
    let store = bed.store(100);
    give(&store);
    for dir in ["run", "state", "log"] {
        give(&bed.root().join(dir));
    }
    guest::make_raw(&bed.images().join("src.raw"), 768, 1);
    let tight = ["sh", "-c", "umask 077; exec \"$0\" \"$@\""];
    bed.ds("cp", 1, &cp(&bed, 1)).under(&tight).run().ok();
    everything_is_the_owners(&store);
    let mode = |p: &str| store.join(p).metadata().unwrap().mode() & 0o777;
    assert_eq!(
        [mode(".sdm"), mode(".sdm/new"), mode(".sdm/leases"), mode(".sdm/domain.json")],
        [0o770, 0o770, 0o660, 0o660]
    );
    let words = ["setpriv", "--reuid=9869", "--regid=9869", "--clear-groups"];
    bed.ds("cp", 2, &cp(&bed, 2)).run().ok();
    // The owner itself goes on where root was, and root where the owner was.
    bed.ds("rm", 1, &rm(&bed, 1)).under(&words).run().ok();
    bed.onesdm(&["gc", store.to_str().unwrap()]).run().ok();
    bed.onesdm(&["gc", store.to_str().unwrap()]).under(&words).run().ok();
    bed.onesdm(&["check", store.to_str().unwrap()]).under(&words).run().ok();
    everything_is_the_owners(&store);
    let mut tree = Tree::default();
    tree.create(&image_name(REGTIME, 2), image());
    settle(&bed, &tree);
}

#[test]
fn r3_12_lock_show_and_the_refusal_name_the_holder() {
    let bed = bed();
    set(&bed, "[lock]\nwait = \"100ms\"");
    let job = "0193e3a5-0000-7000-8000-000000000001";
    let paused = Paused::before(6, bed.ds("cp", 1, &cp(&bed, 1)).env("ONESDM_JOB_ID", job)).ok().unwrap();
    let shown = bed.onesdm(&["lock", "show", bed.store(100).to_str().unwrap()]).run().ok();
    let said = bed.ds("cp", 1, &cp(&bed, 1)).run().fails(4);
    for text in [&shown, &said] {
        for word in [job, "cp", &format!("pid {}", paused.pid())] {
            assert!(text.contains(word), "{word} is not named: {text}");
        }
    }
    paused.wakes().ok();
    assert!(!bed.onesdm(&["lock", "show"]).run().ok().contains(job));
    settle(&bed, &one_image());
}

#[test]
fn r4_1_an_answer_that_was_lost_is_given_again_and_reconcile_lists_the_image() {
    let n = publishing(&cp_steps(), 1);
    let bed = bed();
    let unknown = || bed.onesdm(&["gc", "--reconcile", bed.store(100).to_str().unwrap()]).run().ok();
    let killed = bed.ds("cp", 1, &cp(&bed, 1)).env("ONESDM_TEST_KILL", format!("{n}:after")).run();
    assert!(killed.killed());
    gc_and_check(&bed);
    let name = image_name(REGTIME, 1);
    assert!(unknown().contains(&name), "published and never acknowledged: {}", unknown());
    let answer = bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    assert!(answer.contains(&name), "{answer}");
    let left = names(&bed.store_path(100).join(".sdm/del"));
    assert!(left.is_empty(), "the repeat found what the first call had made: {left:?}");
    assert!(unknown().contains(&name), "asked twice is not acknowledged");
    // Each verb that names it shows that its name arrived; another image stays unknown.
    bed.ds("cp", 2, &cp(&bed, 2)).run().ok();
    let dump = Doc::new(&bed, 1).source(&bed, &name).image("SIZE", 1).xml();
    bed.ds("export", 1, &dump).run().ok();
    assert!(!unknown().contains(&name) && unknown().contains(&image_name(REGTIME, 2)), "{}", unknown());
    let source = bed.store_path(100).join(image_name(REGTIME, 2));
    let doc = Doc::new(&bed, 3).image("REGTIME", REGTIME).image("PATH", source.display());
    bed.ds("clone", 3, &doc.store_template("DRIVER", "raw").xml()).run().ok();
    assert!(!unknown().contains(&image_name(REGTIME, 2)) && unknown().contains(&image_name(REGTIME, 3)));
    bed.ds("rm", 3, &rm(&bed, 3)).run().ok();
    assert_eq!(unknown().trim(), "no garbage");
    assert_eq!(bed.ds("cp", 1, &cp(&bed, 1)).run().ok(), answer, "an acknowledged record still answers");
    gc_and_check(&bed);
}

/// What a crash at birth may leave: a directory, an empty or half intent, a temporary file.
#[test]
fn r4_3_a_torn_birth_is_collected() {
    let bed = bed();
    let new = bed.store_path(100).join(".sdm/new");
    let torn: [(&str, &[(&str, &str)]); 5] = [
        ("01", &[]),
        ("02", &[("intent.json", "")]),
        ("03", &[("intent.json", "{\"format\":1,\"job\":"), ("0", "half")]),
        ("04", &[("tmp", "{"), ("0", ""), ("1", "x")]),
        ("05", &[("probe-a", "x"), ("probe-b", "x")]),
    ];
    for (n, files) in torn {
        let dir = new.join(format!("0193e3a5-0000-7000-8000-0000000000{n}"));
        std::fs::create_dir(&dir).unwrap();
        for (name, text) in files {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }
    let plan = bed.onesdm(&["gc", "--plan", bed.store(100).to_str().unwrap()]).run().ok();
    assert_eq!(plan.matches("undo").count(), 5, "{plan}");
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    gc_and_check(&bed);
    settle(&bed, &one_image());
}

/// A removal of several names dies between two of them; the next call about the image finishes it,
/// whichever verb that is.
#[test]
fn r4_4_half_a_removal_is_finished_by_whoever_comes() {
    let scene = scenes::named("rm raw with snapshots");
    let buried = {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        step(&steps(&bed, scene.call(&stage)).0, |s| s.contains("/del/"))
    };
    for verb in ["rm", "export", "snap_revert", "gc"] {
        let bed = ready(None, true);
        let stage = scene.stage(&bed);
        assert!(scene.call(&stage).env("ONESDM_TEST_KILL", format!("{buried}:after")).run().killed());
        let dump = Doc::new(&bed, 7).source(&bed, "0123456789abcdef0123456789abcdef").image("SIZE", 1);
        let dump = dump.image("TARGET_SNAPSHOT", "0").xml();
        match verb {
            "gc" => drop(bed.onesdm(&["gc"]).run().ok()),
            "rm" => drop(bed.ds(verb, 7, &dump).run().ok()),
            _ => drop(bed.ds(verb, 7, &dump).run().fails(3)),
        }
        stage.oracle.compare(&stage.after).unwrap_or_else(|e| panic!("{verb}: {e}"));
        settle(&bed, &stage.after);
    }
}

#[test]
fn r4_5_records_do_not_accumulate() {
    let bed = bed();
    set(&bed, "[job]\ndone_max = 3");
    for id in 1..7 {
        bed.ds("cp", id, &cp(&bed, id)).run().ok();
        bed.ds(
            "export",
            id,
            &Doc::new(&bed, id).source(&bed, &image_name(REGTIME, id)).image("SIZE", 1).xml(),
        )
        .run()
        .ok();
    }
    gc_and_check(&bed);
    assert_eq!(names(&bed.store_path(100).join(".sdm/done")).len(), 3);
    let leases = bed.store_path(100).join(".sdm/leases").metadata().unwrap();
    assert_eq!(leases.len(), 0, "leases are bytes of an empty file");
}

#[test]
fn r5_1_a_job_lives_as_long_as_its_lock() {
    let bed = bed();
    let active = |want: usize| {
        let jobs = bed.onesdm(&["job", "list", "--json"]).run().ok();
        assert_eq!(jobs.matches("\"pid\"").count(), want, "{jobs}");
    };
    let paused = Paused::before(6, bed.ds("cp", 1, &cp(&bed, 1))).ok().unwrap();
    active(1);
    // The host's list of jobs is lost: nothing about the storage depends on it.
    std::fs::remove_dir_all(bed.root().join("run/job")).unwrap();
    active(0);
    bed.onesdm(&["gc"]).run().ok();
    paused.wakes().ok();
    let n = publishing(&cp_steps(), 1);
    assert!(bed.ds("cp", 2, &cp(&bed, 2)).env("ONESDM_TEST_KILL", format!("{n}:before")).run().killed());
    active(0);
    settle(&bed, &one_image());
}

/// Deleting may take long: it happens without the domain lock.
#[test]
fn r5_3_the_collector_deletes_outside_the_domain_lock() {
    let n = publishing(&cp_steps(), 1);
    let bed = bed();
    set(&bed, "[lock]\nwait = \"100ms\"");
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let killed = bed.ds("cp", 2, &cp(&bed, 2)).env("ONESDM_TEST_KILL", format!("{n}:before")).run();
    assert!(killed.killed());
    let (steps, _) = {
        let bed = self::bed();
        bed.ds("cp", 2, &cp(&bed, 2)).env("ONESDM_TEST_KILL", format!("{n}:before")).run();
        steps(&bed, bed.onesdm(&["gc", bed.store(100).to_str().unwrap()]))
    };
    let at = step(&steps, |s| s.starts_with("Unlink"));
    let paused = Paused::before(at, bed.onesdm(&["gc", bed.store(100).to_str().unwrap()])).ok().unwrap();
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    bed.ds("cp", 3, &cp(&bed, 3)).run().ok();
    bed.onesdm(&["gc"]).run().ok();
    paused.wakes().ok();
    let mut tree = Tree::default();
    tree.create(&image_name(REGTIME, 3), image());
    settle(&bed, &tree);
}

#[test]
fn r5_4_a_newer_format_is_only_read() {
    use sha2::Digest as _;
    let bed = bed();
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let header = bed.store_path(100).join(".sdm/domain.json");
    let old = std::fs::read_to_string(&header).unwrap();
    let json = old.lines().next().unwrap().replace("\"format\":1", "\"format\":2");
    let sum: String = sha2::Sha256::digest(&json).iter().map(|b| format!("{b:02x}")).collect();
    std::fs::write(&header, format!("{json}\n{sum}\n")).unwrap();
    let said = bed.ds("cp", 2, &cp(&bed, 2)).run().fails(5);
    assert!(said.contains("format 2"), "{said}");
    bed.ds("rm", 1, &rm(&bed, 1)).run().fails(5);
    assert_eq!(bed.onesdm(&["gc", bed.store(100).to_str().unwrap()]).run().code, Some(5));
    bed.ds("monitor", 100, &Doc::new(&bed, 1).xml()).run().ok();
    bed.ds("stat", 1, &cp(&bed, 1)).run().ok();
    Oracle::new(&bed.store(100)).compare(&one_image()).unwrap();
    std::fs::write(&header, old).unwrap();
    bed.ds("rm", 1, &rm(&bed, 1)).run().ok();
    settle(&bed, &Tree::default());
}

/// oned's time limit, where neither the log, the job list nor the history can be written.
#[test]
fn r5_9_sigterm_to_the_group_needs_no_log_and_no_child() {
    let bed = bed();
    for dir in ["run", "state", "log"] {
        std::fs::remove_dir_all(bed.root().join(dir)).unwrap();
        std::fs::write(bed.root().join(dir), "").unwrap();
    }
    // Nor in the account's own place, the last resort.
    std::fs::write(bed.root().join("home/.local"), "").unwrap();
    guest::make_raw(&bed.images().join("src.raw"), 8 << 10, 1);
    for wait in [150, 300, 600] {
        let dump = Doc::new(&bed, 1)
            .image("REGTIME", REGTIME)
            .image("PATH", bed.images().join("src.raw").display())
            .store_template("LIMIT_TRANSFER_BW", "1M")
            .xml();
        let mut running = bed.ds("cp", 1, &dump).start();
        std::thread::sleep(Duration::from_millis(wait));
        assert!(running.is_running());
        running.signal(Signal::TERM);
        let asked = Instant::now();
        let done = running.wait();
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
        done.failure(None).unwrap();
        assert!(names(&bed.store_path(100).join(".sdm/new")).is_empty(), "it cleans up after itself");
        Oracle::new(&bed.store(100)).compare(&Tree::default()).unwrap();
    }
    std::fs::remove_file(bed.root().join("home/.local")).unwrap();
    for dir in ["run", "state", "log"] {
        std::fs::remove_file(bed.root().join(dir)).unwrap();
        std::fs::create_dir(bed.root().join(dir)).unwrap();
    }
    settle(&bed, &Tree::default());
}

/// Stock tools, or people, work on our names and in our area while a job runs.
#[test]
fn r5_10_who_takes_no_lock_is_met_with_care() {
    let n = publishing(&cp_steps(), 1);
    let name = image_name(REGTIME, 1);
    // The name is taken: it stays with whoever has it.
    let bed = bed();
    let path = bed.store_path(100).join(&name);
    let paused = Paused::before(n, bed.ds("cp", 1, &cp(&bed, 1))).ok().unwrap();
    std::fs::write(&path, "theirs").unwrap();
    paused.wakes().failure(None).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
    gc_and_check(&bed);
    std::fs::remove_file(&path).unwrap();
    // The staging area is gone.
    let paused = Paused::before(n, bed.ds("cp", 1, &cp(&bed, 1))).ok().unwrap();
    let new = bed.store_path(100).join(".sdm/new");
    for job in names(&new) {
        std::fs::remove_dir_all(new.join(job)).unwrap();
    }
    let said = paused.wakes().failure(None).unwrap();
    assert!(said.contains("cancelled"), "{said}");
    settle(&bed, &Tree::default());
    // What was to be removed is gone already.
    bed.ds("cp", 1, &cp(&bed, 1)).run().ok();
    let paused = Paused::before(1, bed.ds("rm", 1, &rm(&bed, 1))).ok().unwrap();
    std::fs::remove_file(&path).unwrap();
    paused.wakes().ok();
    settle(&bed, &Tree::default());
}
