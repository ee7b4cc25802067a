//! What a verb costs before the first byte of an image: each verb on an image of 1 MiB.

use crate::Options;
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, Calls, least, median};
use crate::serve::Server;
use crate::stock::Stock;
use crate::store::{Store, VERBS, raw};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const RUNS: u32 = 25;
/// Milliseconds a verb may take on tmpfs.
const AIM: f64 = 10.0;
const AIM_MONITOR: f64 = 5.0;

pub struct Case {
    pub name: &'static str,
    pub verb: &'static str,
    /// Makes what the call needs; the message for call `id`.
    pub prepare: fn(&Store, u32) -> Vec<u8>,
    /// What the one child of the verb does, by hand: it is part of the cost and not ours to change.
    child: &'static [&'static str],
}

pub fn cases() -> Vec<Case> {
    fn source(s: &Store, name: &str) -> String {
        s.images().join(name).display().to_string()
    }
    fn snap(s: &Store, id: u32, snapshots: u32) -> Vec<u8> {
        let path = s.existing(id, snapshots).display().to_string();
        s.dump(id, &[("SOURCE", &path), ("TARGET_SNAPSHOT", "0"), ("FORMAT", "raw")], &[])
    }
    fn case(name: &'static str, verb: &'static str, prepare: fn(&Store, u32) -> Vec<u8>) -> Case {
        Case { name, verb, prepare, child: &[] }
    }
    const TO_RAW: &[&str] = &["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "small.qcow2", "by-hand"];
    const MAKE: &[&str] = &["qemu-img", "create", "-q", "-f", "qcow2", "by-hand", "1M"];
    vec![
        case("monitor", "monitor", |s, id| s.dump(id, &[], &[])),
        case("stat raw", "stat", |s, id| s.dump(id, &[("PATH", &source(s, "small.raw"))], &[])),
        case("stat qcow2", "stat", |s, id| s.dump(id, &[("PATH", &source(s, "small.qcow2"))], &[])),
        case("stat raw.gz", "stat", |s, id| s.dump(id, &[("PATH", &source(s, "small.raw.gz"))], &[])),
        case("cp raw", "cp", |s, id| s.dump(id, &[("PATH", &source(s, "small.raw"))], &[])),
        case("cp raw.gz", "cp", |s, id| s.dump(id, &[("PATH", &source(s, "small.raw.gz"))], &[])),
        Case {
            child: TO_RAW,
            ..case("cp qcow2 to raw", "cp", |s, id| {
                s.dump(id, &[("PATH", &source(s, "small.qcow2"))], &[("DRIVER", "raw")])
            })
        },
        case("mkfs raw", "mkfs", |s, id| s.dump(id, &[("FORMAT", "raw"), ("SIZE", "1")], &[])),
        Case {
            child: MAKE,
            ..case("mkfs qcow2", "mkfs", |s, id| s.dump(id, &[("FORMAT", "qcow2"), ("SIZE", "1")], &[]))
        },
        case("clone", "clone", |s, id| {
            let from = s.existing(1, 0).display().to_string();
            s.dump(id, &[("PATH", &from)], &[])
        }),
        case("export", "export", |s, id| {
            let path = s.existing(1, 0).display().to_string();
            s.dump(id, &[("SOURCE", &path), ("SIZE", "1")], &[])
        }),
        case("snap_delete", "snap_delete", |s, id| snap(s, id, 2)),
        case("snap_revert", "snap_revert", |s, id| snap(s, id, 1)),
        case("snap_flatten", "snap_flatten", |s, id| snap(s, id, 1)),
        case("rm", "rm", |s, id| snap(s, id, 0)),
        case("rm with snapshots", "rm", |s, id| snap(s, id, 2)),
    ]
}

/// Makes the source images all cases share.
pub fn sources(store: &Store) {
    let path = |name: &str| store.images().join(name).display().to_string();
    raw(Path::new(&path("small.raw")), 1 << 20, 1 << 20, 1);
    run::tool("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &path("small.raw"), &path("small.qcow2")]);
    run::tool("gzip", &["-k", &path("small.raw")]);
}

pub fn bench(place: &Place, options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases() {
        rows.push(one(place, &case, options));
    }
    assert_eq!(VERBS.iter().filter(|v| !cases().iter().any(|c| c.verb == **v)).count(), 0);
    rows
}

fn one(place: &Place, case: &Case, options: &Options) -> Row {
    let dir = place.dir.join("fixed");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    sources(&store);
    let stock = options.stock.as_deref().map(Stock::of);
    let stock = || stock.as_ref()?.instead(&store.verb(case.verb), &store.remotes());

    let (mut ours, mut theirs, mut child, mut cpu) = (Vec::new(), Vec::new(), Vec::new(), Duration::ZERO);
    let mut id = 1000;
    for n in 0..options.runs(RUNS) + 2 {
        id += 1;
        let dump = (case.prepare)(&store, id);
        let took = run::run(&mut store.verb(case.verb), &dump).0;
        let stock_took = stock().map(|mut call| {
            id += 1;
            let dump = (case.prepare)(&store, id);
            run::run(&mut call, &dump).0
        });
        let by_hand = case.child.split_first().map(|(program, args)| {
            run::run(Command::new(program).args(args).current_dir(store.images()), b"").0.ms()
        });
        // The first runs make the domain and warm the caches.
        if n >= 2 {
            ours.push(took.ms());
            cpu += took.cpu;
            child.extend(by_hand);
            theirs.extend(stock_took.map(run::Took::ms));
        }
    }
    let calls = |call: &Command, id| -> Option<Calls> {
        let dump = (case.prepare)(&store, id);
        run::traced(call, &dump, &dir)
    };
    let stock_calls = stock().and_then(|call| calls(&call, id + 1));
    let own = calls(&store.verb(case.verb), id + 2);
    std::fs::remove_dir_all(&dir).unwrap();

    let aim = (place.fs == "tmpfs").then_some(if case.verb == "monitor" { AIM_MONITOR } else { AIM });
    let mut row = Row::new("fixed cost", case.name, &place.fs).number("ms", median(&ours));
    row = row.number("ms_least", least(&ours));
    // Over all runs, for the clock of processor time is coarse.
    row = row.number("cpu_ms", cpu.as_secs_f64() * 1e3 / ours.len() as f64);
    if let Some(c) = own {
        row = row.count("children", c.children).count("fsyncs", c.syncs);
        row = row.count("child_fsyncs", c.child_syncs).count("calls", c.own);
        row = row.within(c.children <= 1);
    }
    if !child.is_empty() {
        row = row.number("child_ms", median(&child));
    }
    if let Some(aim) = aim {
        row = row.number("aim_ms", aim).within(median(&ours) <= aim);
    }
    if !theirs.is_empty() {
        row = row.number("stock_ms", median(&theirs)).number("ratio", median(&ours) / median(&theirs));
    }
    match stock_calls {
        Some(c) => row.count("stock_children", c.children).count("stock_fsyncs", c.syncs + c.child_syncs),
        None => row,
    }
}

/// `stat` of what lies on a server: time, and how much of it was asked for.
pub fn remote(place: &Place, options: &Options) -> Vec<Row> {
    let dir = place.dir.join("remote");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    let large = store.images().join("large.raw");
    raw(&large, 64 << 20, 4 << 20, 3);
    run::tool("zstd", &["-q", "-1", &large.display().to_string()]);
    run::tool("xz", &["-0", "-k", "-T", "2", &large.display().to_string()]);
    let mut rows = Vec::new();
    for name in ["large.raw", "large.raw.zst", "large.raw.xz"] {
        let server = Server::start(&store.images());
        let dump = store.dump(7, &[("PATH", &server.url(name))], &[]);
        let mut took = Vec::new();
        let runs = options.runs(RUNS);
        for n in 0..=runs {
            let ms = run::run(&mut store.verb("stat"), &dump).0.ms();
            if n > 0 {
                took.push(ms);
            }
        }
        let per_call = server.sent() / u64::from(runs + 1);
        let row = Row::new("stat of a url", name, &place.fs).number("ms", median(&took));
        let size = std::fs::metadata(store.images().join(name)).unwrap().len();
        let share =
            f64::from(u32::try_from(per_call >> 10).unwrap()) / f64::from(u32::try_from(size >> 10).unwrap());
        rows.push(
            row.number("kib_read", f64::from(u32::try_from(per_call >> 10).unwrap())).number("share", share),
        );
    }
    std::fs::remove_dir_all(&dir).unwrap();
    rows
}

/// A message of 10 MB, as of a datastore of thousands of images.
pub fn large_dump(place: &Place, options: &Options) -> Row {
    let dir = place.dir.join("dump");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    let many: String = (0..760_000).map(|n| format!("<ID>{n:05}</ID>")).collect();
    let dump = store.dump_with(7, &[], &[], &[], &format!("<IMAGES>{many}</IMAGES>"));
    let took: Vec<f64> =
        (0..options.runs(10)).map(|_| run::run(&mut store.verb("monitor"), &dump).0.ms()).collect();
    let peaks: Vec<f64> = (0..3).map(|_| run::memory(&mut store.verb("monitor"), &dump)).collect();
    let mib = peaks.iter().copied().fold(0.0, f64::max);
    std::fs::remove_dir_all(&dir).unwrap();
    let ms = median(&took);
    Row::new("fixed cost", "monitor, message of 10 MB", &place.fs)
        .number("ms", ms)
        .number("ms_least", least(&took))
        .number("mib", mib)
        .number("aim_ms", 100.0)
        .within(ms <= 100.0 && mib <= 64.0)
}
