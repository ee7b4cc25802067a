//! What else is in a datastore, and who else is at work: thousands of images, thousands of dead jobs, many calls at once.

use crate::Options;
use crate::beside::{alone, at_once, turns};
use crate::place::Place;
use crate::report::Row;
use crate::run;
use crate::stock::Stock;
use crate::store::{PROGRAM, Store, raw};
use sha2::{Digest as _, Sha256};
use std::path::{Path, PathBuf};
use std::process::Command;
use uuid::{Timestamp, Uuid};

/// As many done records as a domain keeps (`done.max`).
const RECORDS: u32 = 1000;

pub fn bench(place: &Place, stock: &Stock, options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    let counts: &[u32] = if options.quick { &[1, 1000] } else { &[1, 10_000, 100_000] };
    for &images in counts {
        let (dir, store) = fresh(place);
        fill(&store, images);
        for verb in ["monitor", "stat", "cp", "clone", "export", "rm"] {
            let mut id = 200_000;
            let name = format!("{verb} among {images}");
            rows.push(turns((&name, place), &store, stock, options.runs(5), || {
                id += 1;
                (verb, message(&store, verb, id))
            }));
        }
        if images == 10_000 || options.quick {
            rows.extend(people(place, &store, images));
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    for count in [1, 10, 50] {
        let (dir, store) = fresh(place);
        let mut id = 200_000;
        let name = format!("{count} cp at once");
        rows.push(at_once((&name, place), &store, stock, (count, 2), || {
            id += 1;
            ("cp", message(&store, "cp", id))
        }));
        std::fs::remove_dir_all(&dir).unwrap();
    }
    rows.extend(garbage(place, stock, options));
    rows
}

fn fresh(place: &Place) -> (PathBuf, Store) {
    let dir = place.dir.join("crowd");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    raw(&store.images().join("small.raw"), 1 << 20, 1 << 20, 1);
    (dir, store)
}

fn message(store: &Store, verb: &str, id: u32) -> Vec<u8> {
    let image = |n: u32| store.datastore().join(format!("{n:032x}")).display().to_string();
    match verb {
        "stat" | "cp" => store.dump(id, &[("PATH", store.images().join("small.raw").to_str().unwrap())], &[]),
        "clone" => store.dump(id, &[("PATH", &image(1))], &[]),
        "export" => store.dump(id, &[("SOURCE", &image(1)), ("SIZE", "1"), ("FORMAT", "raw")], &[]),
        "rm" => store.dump(id, &[("SOURCE", store.existing(id, 0).to_str().unwrap())], &[]),
        _ => store.dump(id, &[], &[]),
    }
}

/// Images, and the records that the last of them left; made by hand, for a verb each would take an hour.
fn fill(store: &Store, images: u32) {
    let (area, source) = (store.datastore().join(".sdm"), store.images().join("small.raw"));
    let dump = store.dump(1, &[("PATH", source.to_str().unwrap())], &[]);
    let made = String::from_utf8(run::run(&mut store.verb("cp"), &dump).1).unwrap();
    let made = Path::new(made.split(' ').next().unwrap()).file_name().unwrap().to_str().unwrap().to_owned();
    let (job, text) = record(&area.join("done"));
    store.existing(1, 0);
    for n in 2..=images {
        let name = format!("{n:032x}");
        std::fs::write(store.datastore().join(&name), "x").unwrap();
        if n < RECORDS {
            let new = uuid(n);
            let copy = sealed(&text.replace(&job, &new).replace(&made, &name));
            std::fs::write(area.join("done").join(format!("{new}.json")), copy).unwrap();
        }
    }
}

/// Job and first line of the one record below a directory.
fn record(dir: &Path) -> (String, String) {
    let path = std::fs::read_dir(dir).unwrap().next().unwrap().unwrap().path();
    let job = path.file_stem().unwrap().to_str().unwrap().to_owned();
    (job, std::fs::read_to_string(path).unwrap().lines().next().unwrap().to_owned())
}

/// A record as it is written: a line, and its digest.
fn sealed(text: &str) -> String {
    let digest: String = Sha256::digest(text).iter().map(|b| format!("{b:02x}")).collect();
    format!("{text}\n{digest}\n")
}

/// The id of a job of some days ago, a minute after the one before.
fn uuid(n: u32) -> String {
    let ago = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() - 864_000;
    Uuid::new_v7(Timestamp::from_unix_time(ago + 60 * u64::from(n), 0, 0, 0)).to_string()
}

/// What people and timers ask of a datastore.
fn people(place: &Place, store: &Store, images: u32) -> Vec<Row> {
    let ds = store.datastore().display().to_string();
    let all: [&[&str]; 6] = [
        &["gc", "--plan", &ds],
        &["gc", "--reconcile", &ds],
        &["check", &ds],
        &["lock", "show", &ds],
        &["job", "list", "--all"],
        &["metrics"],
    ];
    let row = |words: &&[&str]| {
        let shown: Vec<_> = words.iter().filter(|w| !w.contains('/')).copied().collect();
        alone(&format!("{} among {images}", shown.join(" ")), place, || own(store, words), 3)
    };
    all.iter().map(row).collect()
}

fn own(store: &Store, words: &[&str]) -> Command {
    let mut c = Command::new(PROGRAM);
    c.args(words).env_clear().env("ONESDM_CONFIG", store.root.join("onesdm.toml"));
    c
}

/// Ten thousand dead jobs with a file each: what a verb pays that meets them, and their collection.
fn garbage(place: &Place, stock: &Stock, options: &Options) -> Vec<Row> {
    let count: u32 = if options.quick { 1000 } else { 10_000 };
    let (dir, store) = fresh(place);
    let ds = store.datastore().display().to_string();
    run::run(&mut own(&store, &["domain", "init", &ds]), b"");
    let new = store.datastore().join(".sdm/new");
    for n in 0..count {
        let job = uuid(n);
        let who = r#"{"host":"h","pid":1,"verb":"cp","since":"2026-11-20T00:00:00Z"}"#;
        let intent = format!(r#"{{"format":1,"job":"{job}","who":{who},"targets":["{n:032x}"]}}"#);
        std::fs::create_dir(new.join(&job)).unwrap();
        std::fs::write(new.join(&job).join("intent.json"), sealed(&intent)).unwrap();
        std::fs::write(new.join(&job).join("0"), [0u8; 4096]).unwrap();
    }
    let mut id = 200_000;
    let cp = || {
        id += 1;
        ("cp", message(&store, "cp", id))
    };
    let mut rows = vec![
        turns((&format!("cp beside {count} dead jobs"), place), &store, stock, options.runs(3), cp),
        alone(&format!("gc --plan of {count} dead jobs"), place, || own(&store, &["gc", "--plan", &ds]), 3),
        alone(&format!("gc of {count} dead jobs"), place, || own(&store, &["gc", &ds]), 1),
    ];
    assert_eq!(std::fs::read_dir(&new).unwrap().count(), 0);
    rows.push(alone("gc of nothing", place, || own(&store, &["gc", &ds]), 3));
    std::fs::remove_dir_all(&dir).unwrap();
    rows
}
