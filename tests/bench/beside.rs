//! Ours and an operator's own scripts side by side: the same call on the same bed with the same input, in turn.
//! Verbs by themselves, by size of the image, by what else is in the datastore, and many at once.

use crate::Options;
use crate::crowd;
use crate::fixed;
use crate::hosts::{self, Bed};
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, Cost, median};
use crate::stock::Stock;
use crate::store::{Store, raw};
use std::process::Command;

pub const SECTION: &str = "beside stock";
const RUNS: u32 = 5;
/// The servers of the bed log a connection a moment after it began.
const SETTLED: std::time::Duration = std::time::Duration::from_millis(50);

type Part = fn(&Cost) -> f64;

/// What one side took in all rounds.
#[derive(Default)]
struct Side {
    costs: Vec<Cost>,
    programs: Option<u32>,
    sessions: Option<u32>,
    failed: Option<String>,
}

impl Side {
    fn add(&mut self, cost: Result<(Cost, String), String>) {
        match cost {
            Ok((cost, _)) => self.costs.push(cost),
            Err(said) => self.failed = Some(said),
        }
    }

    fn of(&self, part: Part) -> f64 {
        median(&self.costs.iter().map(part).collect::<Vec<_>>())
    }
}

/// The one kind of row that there is. Where stock has no such thing there is none.
fn row(name: &str, place: &Place, ours: &Side, stock: Option<&Side>) -> Row {
    let mut row = Row::new(SECTION, name, &place.fs);
    let sides = [stock, Some(ours)];
    if let Some(said) = ours.failed.as_ref().or(stock.and_then(|s| s.failed.as_ref())) {
        return row.text("note", said);
    }
    let parts: [([&str; 2], Part); 4] = [
        (["stock ms", "ms"], |c| c.ms),
        (["stock cpu ms", "cpu ms"], |c| c.cpu_ms),
        (["stock MiB", "MiB"], |c| c.mib),
        (["stock KiB moved", "KiB moved"], |c| c.kib),
    ];
    for (keys, part) in parts {
        for (key, side) in keys.into_iter().zip(sides) {
            if let Some(side) = side {
                row = row.number(key, side.of(part));
            }
        }
        if let (Some(stock), "ms") = (stock, keys[1]) {
            row = row.number("times", stock.of(part) / ours.of(part));
        }
    }
    for (key, side) in ["stock programs", "programs"].into_iter().zip(sides) {
        if let Some(n) = side.and_then(|s| s.programs) {
            row = row.count(key, n);
        }
    }
    for (key, side) in ["stock sessions", "sessions"].into_iter().zip(sides) {
        if let Some(n) = side.and_then(|s| s.sessions) {
            row = row.count(key, n);
        }
    }
    // For whoever stops it before the end.
    eprintln!("{}", row.json());
    row
}

pub fn bench(place: &Place, options: &Options) -> Vec<Row> {
    let Some(stock) = options.stock.as_deref().map(Stock::of) else {
        eprintln!("{SECTION}: needs --stock DIR");
        return Vec::new();
    };
    let mut rows: Vec<Row> = fixed::cases().iter().map(|c| verb(place, c, &stock, options)).collect();
    rows.extend(sizes(place, &stock, options));
    rows.extend(crowd::bench(place, &stock, options));
    rows
}

/// `runs` rounds of one call by each side, stock first in every other one, and a look at the programs it starts.
/// `call` makes what it needs and gives the verb and its message.
pub fn turns(
    (name, place): (&str, &Place),
    store: &Store,
    stock: &Stock,
    runs: u32,
    mut call: impl FnMut() -> (&'static str, Vec<u8>),
) -> Row {
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    // The first round makes the domain and warms the caches; the last is counted, not timed. Of what takes
    // minutes there is one round.
    let rounds = if runs == 1 { 1..2 } else { 0..runs + 2 };
    for n in rounds {
        for of_stock in [n % 2 == 0, n % 2 == 1] {
            let (verb, dump) = call();
            let own = store.verb(verb);
            let mut command = if of_stock { stock.instead(&own, &store.remotes()).unwrap() } else { own };
            let side = if of_stock { &mut theirs } else { &mut ours };
            if n == runs + 1 {
                side.programs = run::traced(&command, &dump, &store.root).map(|c| c.children + 1);
            } else if n == 0 {
                side.failed = run::cost(&mut command, &dump).err();
            } else {
                side.add(run::cost(&mut command, &dump));
            }
            let failed = side.failed.is_some();
            if failed {
                return row(name, place, &ours, Some(&theirs));
            }
        }
    }
    row(name, place, &ours, Some(&theirs))
}

fn verb(place: &Place, case: &fixed::Case, stock: &Stock, options: &Options) -> Row {
    let dir = place.dir.join("beside");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    fixed::sources(&store);
    let mut id = 1000;
    let row = turns((case.name, place), &store, stock, options.runs(RUNS), || {
        id += 1;
        (case.verb, (case.prepare)(&store, id))
    });
    std::fs::remove_dir_all(&dir).unwrap();
    row
}

/// `cp` and `clone` of images of 1 MiB to 16 GiB; large ones have holes.
fn sizes(place: &Place, stock: &Stock, options: &Options) -> Vec<Row> {
    let all: [(u64, u64, u32); 4] =
        [(1, 4 << 20, 5), (64, 4 << 20, 5), (1024, 1 << 20, 2), (options.size(16 << 10), 64 << 10, 1)];
    let mut rows = Vec::new();
    for (n, (mib, data, runs)) in (1..).zip(all) {
        let dir = place.dir.join("beside");
        std::fs::create_dir(&dir).unwrap();
        let store = Store::new(&dir);
        let image = store.datastore().join(format!("{n:032x}"));
        raw(&image, mib << 20, data, n);
        let source = store.images().join("image.raw");
        std::fs::hard_link(&image, &source).unwrap();
        let size = if mib < 1024 { format!("{mib} MiB") } else { format!("{} GiB", mib >> 10) };
        let size = format!("{size}, {} % data", (data * 100) >> 22);
        for (verb, from) in [("cp", &source), ("clone", &image)] {
            let mut id = 1000;
            let mut before: Option<u32> = None;
            rows.push(turns(
                (&format!("{verb} of {size}"), place),
                &store,
                stock,
                options.runs(runs).min(runs),
                || {
                    // One copy at a time has room.
                    for old in
                        before.replace(id).iter().filter_map(|_| std::fs::read_dir(store.datastore()).ok())
                    {
                        for file in old.flatten().filter(|f| f.path() != image && f.path().is_file()) {
                            std::fs::remove_file(file.path()).unwrap();
                        }
                    }
                    run::tool("sync", &["-f", place.dir.to_str().unwrap()]);
                    id += 1;
                    (verb, store.dump(id, &[("PATH", from.to_str().unwrap())], &[]))
                },
            ));
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
    rows
}

/// A call that is ours alone, by the words after the program's name.
pub fn alone(name: &str, place: &Place, mut call: impl FnMut() -> Command, runs: u32) -> Row {
    let mut ours = Side::default();
    for _ in 0..runs {
        ours.add(run::cost(&mut call(), b""));
    }
    row(name, place, &ours, None)
}

/// Many calls of one verb at once, until the last has ended; `call` as for `turns`.
pub fn at_once(
    (name, place): (&str, &Place),
    store: &Store,
    stock: &Stock,
    (count, runs): (u32, u32),
    mut call: impl FnMut() -> (&'static str, Vec<u8>),
) -> Row {
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    for n in 0..=runs {
        for of_stock in [n % 2 == 0, n % 2 == 1] {
            let calls: Vec<_> = (0..count).map(|_| call()).collect();
            let began = std::time::Instant::now();
            let used = run::moved();
            let each: Vec<_> = std::thread::scope(|scope| {
                let run = |(verb, dump): (&str, Vec<u8>)| {
                    let own = store.verb(verb);
                    let command = if of_stock { stock.instead(&own, &store.remotes()).unwrap() } else { own };
                    scope.spawn(move || run::cost(&mut { command }, &dump))
                };
                let running: Vec<_> = calls.into_iter().map(run).collect();
                running.into_iter().map(|t| t.join().unwrap()).collect()
            });
            let ms = began.elapsed().as_secs_f64() * 1e3;
            let side = if of_stock { &mut theirs } else { &mut ours };
            let (mut cpu_ms, mut mib): (f64, f64) = (0.0, 0.0);
            for cost in each {
                match cost {
                    Ok((c, _)) => (cpu_ms, mib) = (cpu_ms + c.cpu_ms, mib.max(c.mib)),
                    Err(said) => side.failed = Some(said),
                }
            }
            if n > 0 {
                side.costs.push(Cost { ms, cpu_ms, mib, kib: (run::moved() - used) as f64 / 1024.0 });
            }
        }
    }
    row(name, place, &ours, Some(&theirs))
}

/// Transfer verbs on the bed of hosts. What moves there is what goes over the front-end's network.
pub fn hosts(place: &Place, options: &Options) -> Vec<Row> {
    let Some(stock) = options.stock.as_deref().map(Stock::of) else { return Vec::new() };
    let bed = Bed::ready(place, Some(&stock));
    hosts::cases().iter().map(|case| transfer(&bed, case, &stock, place, options)).collect()
}

fn transfer(bed: &Bed, case: &hosts::Case, stock: &Stock, place: &Place, options: &Options) -> Row {
    let (mut ours, mut theirs) = (Side::default(), Side::default());
    let mut id = 20_000;
    let runs = options.runs(3);
    for n in 0..runs + 2 {
        for of_stock in [n % 2 == 0, n % 2 == 1] {
            id += 1;
            case.prepare(bed, id);
            let remotes = if of_stock { stock.remotes.to_str().unwrap() } else { hosts::OURS };
            let words = case.words(remotes, case.verb, id);
            let counted = n == runs + 1;
            let trace = bed.dir.join("trace").display().to_string();
            let strace = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", &trace];
            let words = hosts::strs(&words);
            let words = if counted { [&strace[..], &words[..]].concat() } else { words };
            let mut call = bed.command("fe", &words);
            if of_stock {
                call.envs(stock.env());
            }
            let (sessions, network) = (bed.sessions(), bed.network());
            let took = run::cost(&mut call, b"");
            let kib = (bed.network() - network) as f64 / 1024.0;
            let side = if of_stock { &mut theirs } else { &mut ours };
            if counted {
                std::thread::sleep(SETTLED);
                let text = std::fs::read_to_string(&trace).unwrap();
                let started = text.lines().filter(|l| l.contains("execve(") && l.ends_with(" = 0")).count();
                side.programs = u32::try_from(started).ok();
                side.sessions = u32::try_from(bed.sessions() - sessions).ok();
            } else if n > 0 || took.is_err() {
                side.add(took.map(|(cost, said)| (Cost { kib, ..cost }, said)));
            }
            case.clear(bed, id);
        }
    }
    row(&format!("{} {}", case.driver, case.what), place, &ours, Some(&theirs))
}
