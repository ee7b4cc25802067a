//! What a host remembers of directories that another host changes meanwhile (red team 1.5): nobody decides by it. Runs
//! in the machine of `nfs`, too.

use crate::bed::{Bed, names};
use crate::doc::Doc;
use crate::nfs_inside::{beds, clean, image};
use crate::pause::{self, Paused};
use crate::scenes;
use onesdm::engine::file::FileEngine;
use onesdm::engine::{Engine as _, Grave, Identity, Kind, Name, Place, Record};
use onesdm::lock::JobId;

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn nobody_acts_on_what_it_remembers() {
    let [a, b] = beds("stale");
    let name = image(&a, 1);
    let look = |bed: &Bed, name: &str| {
        let engine = FileEngine::open(&bed.store_path(100)).unwrap();
        engine.look(&Place::Public(Name::try_from(name.to_owned()).unwrap())).unwrap().map(|o| o.id)
    };
    let pair = |name: &str| (look(&a, name), look(&b, name));
    let (seen, same) = pair(&name);
    assert!(seen.is_some() && seen == same);
    // Removed and made anew by b: a sees each at once.
    b.ds("rm", 1, &Doc::new(&b, 1).source(&b, &name).xml()).run().answer().unwrap();
    assert_eq!(pair(&name), (None, None));
    assert_eq!(image(&b, 1), name);
    let (now, same) = pair(&name);
    assert!(now.is_some() && now == same && now != seen);
    a.ds("rm", 1, &Doc::new(&a, 1).source(&a, &name).xml()).run().answer().unwrap();
    assert_eq!(pair(&name), (None, None));
    clean(&a);
    clean(&b);
}

fn name(text: &str) -> Name {
    Name::try_from(text.to_owned()).unwrap()
}

/// Whatever the engine looks for, on the way to it and at its end: made, replaced and removed by the other host.
/// The engine is one that is open all the time, as that of a verb that waits for a lock.
#[test]
#[ignore = "runs in the machine of `nfs`"]
fn r1_5_an_open_engine_finds_what_another_host_did() {
    let [a, b] = beds("open");
    let store = a.store(100);
    a.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    let engine = FileEngine::open(&b.store_path(100)).unwrap();
    let job = JobId::generate();
    let grave = Grave { job, n: 0, keep: false };
    let places = [
        ("x".to_owned(), Place::Public(name("x"))),
        ("x.snap/0".to_owned(), Place::Public(name("x.snap/0"))),
        ("7/disk.0.snap/1".to_owned(), Place::Public(name("7/disk.0.snap/1"))),
        (format!(".sdm/new/{job}/0"), Place::Staged(job, 0)),
        (format!(".sdm/del/{grave}"), Place::Dead(grave)),
    ];
    let records = [
        (format!(".sdm/new/{job}/intent.json"), Record::Intent),
        (format!(".sdm/new/{job}/commit.json"), Record::Commit),
        (format!(".sdm/done/{job}.json"), Record::Done),
    ];
    let look = || -> Vec<Option<Identity>> {
        places.iter().map(|(_, at)| engine.look(at).unwrap().map(|o| o.id)).collect()
    };
    let read =
        || -> Vec<Option<Vec<u8>>> { records.iter().map(|(_, r)| engine.record(job, *r).unwrap()).collect() };
    let put = |path: &str, text: &str| {
        let path = store.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let mut wrong = Vec::new();
    let mut expect = |what: &str, texts: Option<&str>, before: &[Option<Identity>]| {
        let (seen, said) = (look(), read());
        for ((path, _), (id, old)) in places.iter().zip(seen.iter().zip(before)) {
            if id.is_some() != texts.is_some() || (id.is_some() && id == old) {
                wrong.push(format!("{what}: {path}"));
            }
        }
        for ((path, _), bytes) in records.iter().zip(said) {
            if bytes.as_deref() != texts.map(str::as_bytes) {
                wrong.push(format!("{what}: {path}"));
            }
        }
        seen
    };
    let all: Vec<&String> = places.iter().map(|(p, _)| p).chain(records.iter().map(|(p, _)| p)).collect();
    let none = vec![None; places.len()];
    expect("before", None, &none);
    for path in &all {
        put(path, "one");
    }
    let first = expect("made", Some("one"), &none);
    // Kept open and alive elsewhere: nothing goes stale by itself.
    std::fs::create_dir(store.join("aside")).unwrap();
    for top in ["x", "x.snap", "7"] {
        std::fs::rename(store.join(top), store.join("aside").join(top)).unwrap();
    }
    for (n, top) in [format!(".sdm/new/{job}"), format!(".sdm/del/{grave}"), format!(".sdm/done/{job}.json")]
        .iter()
        .enumerate()
    {
        std::fs::rename(store.join(top), store.join("aside").join(n.to_string())).unwrap();
    }
    for path in &all {
        put(path, "two");
    }
    expect("replaced", Some("two"), &first);
    for top in [
        "x",
        "x.snap",
        "7",
        &format!(".sdm/new/{job}"),
        &format!(".sdm/del/{grave}"),
        &format!(".sdm/done/{job}.json"),
    ] {
        let top = store.join(top);
        if top.is_dir() { std::fs::remove_dir_all(top).unwrap() } else { std::fs::remove_file(top).unwrap() }
    }
    expect("removed", None, &none);
    // The link that a snapshot or a move replaces says which layer a disk writes to.
    let leads = |to: &str| {
        std::os::unix::fs::symlink(to, store.join("link")).unwrap();
        std::fs::rename(store.join("link"), store.join("8/disk.0")).unwrap();
        let found = engine.look(&Place::Public(name("8/disk.0"))).unwrap().map(|o| o.kind);
        assert!(matches!(&found, Some(Kind::Link(now)) if now == to), "{found:?} in place of {to}");
    };
    std::fs::create_dir(store.join("8")).unwrap();
    ["disk.0.snap/0", "disk.0.snap/1", "disk.0.snap/0"].into_iter().for_each(leads);
    assert!(wrong.is_empty(), "believed what it remembered: {wrong:#?}");
}

/// The collector of one host saw a job of another that had not decided; that job decides, takes its first step and dies.
#[test]
#[ignore = "runs in the machine of `nfs`"]
fn r1_5_a_decision_that_was_looked_for_in_vain_is_found() {
    let scene = scenes::named("rm raw with snapshots");
    let [other, _] = beds("steps");
    let stage = scene.stage(&other);
    other.onesdm(&["domain", "init", other.store_path(100).to_str().unwrap()]).run().ok();
    let (steps, done) = pause::steps(&other, scene.call(&stage));
    stage.done(&done).unwrap();
    let decides = pause::step(&steps, |s| s.starts_with("Rename") && s.ends_with("commit.json"));
    let first = &steps[pause::step(&steps, |s| s.starts_with("Rename") && s.contains("/.sdm/del/")) - 1];
    // Tried twice, where the file system cannot promise that nothing is replaced.
    let taken = 1 + steps.iter().rposition(|s| s == first).unwrap();
    assert!(taken > decides && steps[taken..].iter().any(|s| s.contains("/.sdm/del/")), "{steps:#?}");
    let [a, b] = beds("decided");
    let stage = scene.stage(&a);
    let at = b.store_path(100);
    a.onesdm(&["domain", "init", a.store_path(100).to_str().unwrap()]).run().ok();
    let call = scene.call(&stage).env("ONESDM_TEST_KILL", format!("{taken}:after"));
    let paused = Paused::before(decides, call).unwrap();
    let before = names(&at).len();
    let plan = b.onesdm(&["gc", "--plan", at.to_str().unwrap()]).run().ok();
    assert!(plan.contains("its owner lives"), "{plan}");
    assert!(paused.wakes().killed());
    assert!((2..before).contains(&names(&at).len()), "half of it is done");
    let said = b.onesdm(&["gc", at.to_str().unwrap()]).run().ok();
    assert_eq!(names(&at), [".sdm"], "{said}");
    clean(&a);
    clean(&b);
}

/// Red team 2.3: on NFS a file that is deleted is gone for whoever reads it on another host. Neither a removal there nor
/// its collector deletes what is being read.
#[test]
#[ignore = "runs in the machine of `nfs`"]
fn r2_3_what_another_host_reads_is_not_deleted() {
    let [a, b] = beds("read");
    let first = image(&a, 1);
    let source = a.store_path(100).join(&first);
    let clone = Doc::new(&a, 2).image("PATH", source.display()).store_template("DRIVER", "raw");
    let (steps, done) = pause::steps(&a, a.ds("clone", 2, &clone.xml()));
    let second = done.ok().split(' ').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let copies = pause::step(&steps, |s| s.starts_with("Create") && s.ends_with("/0"));
    b.ds("rm", 2, &Doc::new(&b, 2).source(&b, &second).xml()).run().ok();
    pause::set(&b, "[lock]\nwait = \"100ms\"");
    // Its source is open, and nothing of it is read yet.
    let paused = Paused::before(copies + 1, a.ds("clone", 2, &clone.xml())).unwrap();
    let said = b.ds("rm", 1, &Doc::new(&b, 1).source(&b, &first).xml()).run().fails(4);
    assert!(said.contains("locked"), "{said}");
    b.onesdm(&["gc", b.store_path(100).to_str().unwrap()]).run().ok();
    let want = std::fs::read(b.store_path(100).join(&first)).unwrap();
    paused.wakes().ok();
    b.ds("rm", 1, &Doc::new(&b, 1).source(&b, &first).xml()).run().ok();
    assert!(std::fs::read(b.store_path(100).join(&second)).unwrap() == want);
    clean(&a);
    clean(&b);
}
