//! Copies against the tools one would use by hand, in alternation. Ours is the whole verb, from the
//! message to a durable, published image; theirs is the tool, and where storage can lose it, a flush.

use crate::Options;
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, least, median};
use crate::store::{Store, raw};
use std::path::Path;
use std::process::Command;

const SIZE: u64 = 512 << 20;
/// Speed of the best tool that ours must reach.
const AIM: f64 = 0.95;
const ROUNDS: u32 = 5;

/// One way to make `to` from `from`.
struct Way {
    name: &'static str,
    argv: fn(&str, &str) -> Vec<String>,
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|w| (*w).to_owned()).collect()
}

const COPIES: [Way; 4] = [
    Way { name: "cp --sparse=always", argv: |a, b| words(&["cp", "--sparse=always", a, b]) },
    Way { name: "cp --reflink=auto", argv: |a, b| words(&["cp", "--reflink=auto", a, b]) },
    Way {
        name: "dd conv=sparse",
        argv: |a, b| words(&["dd", "bs=4M", "conv=sparse", &format!("if={a}"), &format!("of={b}")]),
    },
    Way {
        name: "qemu-img convert",
        argv: |a, b| words(&["qemu-img", "convert", "-f", "raw", "-O", "raw", a, b]),
    },
];
const TO_RAW: [Way; 1] = [Way {
    name: "qemu-img convert",
    argv: |a, b| words(&["qemu-img", "convert", "-f", "qcow2", "-O", "raw", a, b]),
}];
const FULL: [Way; 2] = [
    Way { name: "cp --sparse=never", argv: |a, b| words(&["cp", "--sparse=never", "--reflink=never", a, b]) },
    Way { name: "dd", argv: |a, b| words(&["dd", "bs=4M", &format!("if={a}"), &format!("of={b}")]) },
];

pub fn bench(place: &Place, options: &Options) -> Vec<Row> {
    let dir = place.dir.join("copies");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    let path = |name: &str| store.images().join(name);
    let size = options.size(SIZE);
    raw(&path("full.raw"), size, 4 << 20, 1);
    raw(&path("sparse.raw"), size, 1 << 20, 2);
    let text = |p: &Path| p.display().to_string();
    let qcow2 =
        ["convert", "-f", "raw", "-O", "qcow2", &text(&path("sparse.raw")), &text(&path("some.qcow2"))];
    run::tool("qemu-img", &qcow2);
    // An image of the datastore for clone, as a second name of the source.
    for (id, name) in [(1, "full.raw"), (2, "some.qcow2")] {
        std::fs::hard_link(path(name), store.datastore().join(format!("{id:032x}"))).unwrap();
    }
    let own = |id: u32| text(&store.datastore().join(format!("{id:032x}")));

    let mut rows = Vec::new();
    let mut compare = |name: &str, verb: &str, from: &str, template: &[(&str, &str)], ways: &[Way]| {
        let call = |id| store.dump(id, &[("PATH", from)], template);
        rows.push(against(&store, place, options, (name, verb), from, &call, ways));
    };
    compare("cp, no holes", "cp", &text(&path("full.raw")), &[], &COPIES);
    compare("cp, three quarters holes", "cp", &text(&path("sparse.raw")), &[], &COPIES);
    compare("clone, no holes", "clone", &own(1), &[], &COPIES);
    if !place.reflink {
        compare("cp, SPARSE=NO", "cp", &text(&path("sparse.raw")), &[("SPARSE", "NO")], &FULL);
    }
    compare("cp, qcow2 to raw", "cp", &text(&path("some.qcow2")), &[("DRIVER", "raw")], &TO_RAW);
    compare("clone, qcow2 to raw", "clone", &own(2), &[("DRIVER", "raw")], &TO_RAW);
    std::fs::remove_dir_all(&dir).unwrap();
    rows
}

fn against(
    store: &Store,
    place: &Place,
    options: &Options,
    (name, verb): (&str, &str),
    from: &str,
    call: &dyn Fn(u32) -> Vec<u8>,
    ways: &[Way],
) -> Row {
    let to = store.images().join("by-hand");
    let (mut ours, mut theirs) = (Vec::new(), vec![Vec::new(); ways.len()]);
    let (mut cpu, mut their_cpu) = (Vec::new(), vec![Vec::new(); ways.len()]);
    for round in 0..=options.runs(ROUNDS) {
        // Each goes first in turn: who follows a removal meets another memory than the rest.
        for turn in 0..=ways.len() {
            let who = (turn + round as usize) % (ways.len() + 1);
            let Some(way) = ways.get(who) else {
                let (took, made) = run::run(&mut store.verb(verb), &call(100 + round));
                let made = String::from_utf8(made).unwrap();
                let made = made.split(' ').next().unwrap();
                if round == 0 {
                    same(from, made);
                } else {
                    ours.push(took.ms());
                    cpu.push(took.cpu.as_secs_f64() * 1e3);
                }
                forget(Path::new(made));
                continue;
            };
            let argv = (way.argv)(from, to.to_str().unwrap());
            let took = run::run(Command::new(&argv[0]).args(&argv[1..]), b"").0;
            let mut wall = took.ms();
            if place.fs != "tmpfs" {
                wall += run::run(Command::new("sync").arg(&to), b"").0.ms();
            }
            forget(&to);
            if round > 0 {
                theirs[who].push(wall);
                their_cpu[who].push(took.cpu.as_secs_f64() * 1e3);
            }
        }
    }
    let best = (0..ways.len()).min_by(|a, b| median(&theirs[*a]).total_cmp(&median(&theirs[*b]))).unwrap();
    // Round by round: the machine's speed drifts.
    let speeds: Vec<f64> = theirs[best].iter().zip(&ours).map(|(t, o)| t / o).collect();
    let speed = median(&speeds);
    let mut row = Row::new("copy", name, &place.fs).number("ms", median(&ours));
    row = row.number("best_ms", median(&theirs[best])).text("best", ways[best].name);
    let fastest = theirs.iter().map(|t| least(t)).fold(f64::INFINITY, f64::min);
    row = row.number("speed", speed).number("speed_least", fastest / least(&ours));
    // Where extents are shared nobody copies; what counts there is that size does not matter.
    if !(place.reflink && ways.len() == COPIES.len()) {
        row = row.number("aim", AIM).within(speed >= AIM);
    }
    row = row.number("cpu_ms", median(&cpu)).number("best_cpu_ms", median(&their_cpu[best]));
    for (way, times) in ways.iter().zip(&theirs) {
        row = row.detail(way.name, median(times));
    }
    row
}

/// Removes a file and lets the storage come to rest, so that nobody pays for what another wrote.
fn forget(path: &Path) {
    let dir = path.parent().unwrap().to_owned();
    std::fs::remove_file(path).unwrap();
    run::tool("sync", &["-f", dir.to_str().unwrap()]);
}

/// The two hold the same data.
fn same(a: &str, b: &str) {
    run::tool("qemu-img", &["compare", "-q", a, b]);
}

/// Shared extents: the same time whatever the size.
pub fn reflink(place: &Place, options: &Options) -> Vec<Row> {
    let dir = place.dir.join("reflink");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    let large = options.size(2 << 30);
    let sizes = [("1 MiB", 1 << 20), ("2 GiB", large)];
    for (n, (_, size)) in (1..).zip(sizes) {
        let path = store.images().join(n.to_string());
        raw(&path, size, 4 << 20, n);
        std::fs::hard_link(&path, store.datastore().join(format!("{n:032x}"))).unwrap();
    }
    let mut rows = Vec::new();
    for verb in ["cp", "clone"] {
        let mut times = [Vec::new(), Vec::new()];
        let mut id = 100;
        for round in 0..=options.runs(15) {
            for (n, times) in (1..).zip(&mut times) {
                id += 1;
                let from = match verb {
                    "cp" => store.images().join(n.to_string()),
                    _ => store.datastore().join(format!("{n:032x}")),
                };
                let dump = store.dump(id, &[("PATH", from.to_str().unwrap())], &[]);
                let (took, made) = run::run(&mut store.verb(verb), &dump);
                if round > 0 {
                    times.push(took.ms());
                }
                forget(Path::new(String::from_utf8(made).unwrap().split(' ').next().unwrap()));
            }
        }
        let [small, large] = times.map(|t| median(&t));
        // A reflink moves no data: what differs is the list of extents.
        let within = large <= small * 1.5 + 2.0;
        let row = Row::new("reflink", verb, &place.fs).number("ms_1mib", small).number("ms_2gib", large);
        rows.push(row.number("ratio", large / small).within(within));
    }
    std::fs::remove_dir_all(&dir).unwrap();
    rows
}
