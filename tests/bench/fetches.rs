//! Fetch, verify and decompress in one pass, against each stage alone and against a pipe by hand.

use crate::Options;
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, Took, median, own_cpu};
use crate::serve::Server;
use crate::store::{Store, lifelike};
use std::process::Command;
use std::time::Duration;

const SIZE: u64 = 192 << 20;
const ROUNDS: u32 = 3;
/// Of the larger of the slowest stage alone and all processor time over the processors.
const AIM: f64 = 1.15;

pub fn bench(place: &Place, options: &Options) -> Vec<Row> {
    let dir = place.dir.join("fetch");
    std::fs::create_dir(&dir).unwrap();
    let store = Store::new(&dir);
    let image = store.images().join("image").display().to_string();
    lifelike(image.as_ref(), options.size(SIZE));
    run::tool("gzip", &["-k", "-6", &image]);
    run::tool("xz", &["-k", "-1", "-T", "2", &image]);
    run::tool("zstd", &["-q", "-3", "-T2", &image]);
    let server = Server::start(&store.images());
    let rows =
        [("image", "cat"), ("image.gz", "gzip -dc"), ("image.xz", "xz -dc"), ("image.zst", "zstd -q -dc")]
            .map(|(name, unpack)| one(place, options, &store, &server, (name, unpack)));
    std::fs::remove_dir_all(&dir).unwrap();
    rows.into()
}

/// A stage by itself, its own processor time and the server's.
#[derive(Default)]
struct Stage {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Stage {
    fn add(&mut self, took: Took, server: Duration) {
        self.wall.push(took.ms());
        self.cpu.push((took.cpu + server).as_secs_f64() * 1e3);
    }
}

fn one(
    place: &Place,
    options: &Options,
    store: &Store,
    server: &Server,
    (name, unpack): (&str, &str),
) -> Row {
    let path = store.images().join(name).display().to_string();
    let to = store.images().join("by-hand").display().to_string();
    let digest = run::tool("sha256sum", &[&path]);
    let digest = digest.split(' ').next().unwrap();
    let url = server.url(name);
    let flush = if place.fs == "tmpfs" { String::new() } else { format!("; sync '{to}'") };
    // The shell is part of what is done by hand; bash for the process substitution.
    let scripts = [
        format!("curl -s -o /dev/null '{url}'"),
        format!("sha256sum '{path}'"),
        format!("{unpack} <'{path}' >'{to}'{flush}"),
        format!("curl -s '{url}' | tee >(sha256sum >/dev/null) | {unpack} >'{to}'{flush}"),
    ];
    let mut ours = Vec::new();
    let mut stages: [Stage; 4] = Default::default();
    for round in 0..=options.runs(ROUNDS) {
        let (from, hash) = ([("PATH", url.as_str())], [("SHA256", digest)]);
        let dump = store.dump_with(100 + round, &from, &[], &hash, "");
        let (took, made) = run::run(&mut store.verb("cp"), &dump);
        let made = String::from_utf8(made).unwrap();
        let made = made.split(' ').next().unwrap();
        if round == 0 {
            run::tool("cmp", &[&store.images().join("image").display().to_string(), made]);
        } else {
            ours.push(took.ms());
        }
        forget(made);
        for (script, stage) in scripts.iter().zip(&mut stages) {
            let before = own_cpu();
            let took = run::run(Command::new("bash").args(["-c", script]), b"").0;
            if round > 0 {
                stage.add(took, own_cpu().saturating_sub(before));
            }
            if std::path::Path::new(&to).exists() {
                forget(&to);
            }
        }
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = f64::from(u32::try_from(cores).unwrap());
    let alone = &stages[..3];
    let slowest = alone.iter().map(|s| median(&s.wall)).fold(0.0, f64::max);
    let shared = alone.iter().map(|s| median(&s.cpu)).sum::<f64>() / cores;
    // Round by round: the machine's speed drifts.
    let ratios: Vec<f64> = (0..ours.len())
        .map(|n| {
            let slowest = alone.iter().map(|s| s.wall[n]).fold(0.0, f64::max);
            let shared = alone.iter().map(|s| s.cpu[n]).sum::<f64>() / cores;
            ours[n] / slowest.max(shared)
        })
        .collect();
    let ratio = median(&ratios);
    let what = format!("cp of {name}, sha256");
    Row::new("fetch", &what, &place.fs)
        .number("ms", median(&ours))
        .number("bound_ms", slowest.max(shared))
        .number("ratio", ratio)
        .number("aim", AIM)
        .number("pipe_ms", median(&stages[3].wall))
        .within(ratio <= AIM)
        .detail("curl", median(&stages[0].wall))
        .detail("sha256sum", median(&stages[1].wall))
        .detail(unpack, median(&stages[2].wall))
        .detail("cpu/cores", shared)
}

fn forget(path: &str) {
    std::fs::remove_file(path).unwrap();
    run::tool("sync", &["-f", std::path::Path::new(path).parent().unwrap().to_str().unwrap()]);
}
