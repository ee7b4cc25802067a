//! What verbs cost, beside the same done by hand in the same run. `cargo bench --bench verbs`, as root
//! for XFS. `-- --json` prints JSON, `--quick` takes fewer and smaller samples, `--stock DIR` also times an
//! operator's own scripts in DIR/datastore/fs and DIR/tm, and words choose sections: fixed stat copy reflink fetch vms
//! hosts, and beside and transfer, which are about those scripts only and draw a picture with `--svg FILE`. They write each
//! row to stderr as it is made; `--rows FILE` takes such rows of an earlier run. `--rounds N` takes N rounds at most.
//! Nothing is judged here: a shared machine is noisy. What must not grow is guarded by the suite (`cost`).
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::many_single_char_names,
    reason = "the bench stands outside the house: it starts programs and says what it saw"
)]

mod beside;
mod copies;
mod crowd;
mod fetches;
mod fixed;
mod hosts;
#[path = "../it/oned_server.rs"]
#[expect(dead_code, reason = "how it misbehaves is the suite's matter")]
mod oned_server;
mod picture;
mod place;
mod report;
mod run;
mod serve;
mod stock;
mod store;
mod vms;

use std::path::PathBuf;

#[derive(Default)]
pub struct Options {
    json: bool,
    quick: bool,
    /// `remotes` of another installation: `datastore/fs/<verb>`, `tm/<driver>/<verb>`.
    stock: Option<PathBuf>,
    /// Where the picture of the section `beside` goes.
    svg: Option<PathBuf>,
    /// Rows that an earlier run wrote down, a JSON document a line.
    rows: Option<PathBuf>,
    rounds: Option<u32>,
    sections: Vec<String>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
        let mut options = Options::default();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {} // cargo says it
                "--json" => options.json = true,
                "--quick" => options.quick = true,
                "--stock" => options.stock = Some(args.next().ok_or("--stock needs a directory")?.into()),
                "--rows" => options.rows = Some(args.next().ok_or("--rows needs a file")?.into()),
                "--rounds" => {
                    options.rounds =
                        Some(args.next().and_then(|n| n.parse().ok()).ok_or("--rounds needs a number")?);
                }
                "--svg" => options.svg = Some(args.next().ok_or("--svg needs a file")?.into()),
                "fixed" | "stat" | "copy" | "reflink" | "fetch" | "vms" | "hosts" | "beside" | "transfer" => {
                    options.sections.push(arg);
                }
                other => {
                    return Err(format!("unknown argument {other:?}; see the head of tests/bench/main.rs"));
                }
            }
        }
        Ok(options)
    }
    fn wants(&self, section: &str) -> bool {
        (self.sections.is_empty() && self.rows.is_none()) || self.sections.iter().any(|s| s == section)
    }
    fn runs(&self, full: u32) -> u32 {
        match self.rounds {
            Some(most) => full.min(most),
            None if self.quick => (full / 4).max(2),
            None => full,
        }
    }
    fn size(&self, full: u64) -> u64 {
        if self.quick { full / 8 } else { full }
    }
}

fn main() -> Result<(), String> {
    let words: Vec<_> = std::env::args_os().collect();
    if words.get(1).is_some_and(|w| w == run::LAUNCH) && words.len() > 2 {
        return run::launch(&words[2..]);
    }
    let options = Options::parse(std::env::args().skip(1))?;
    let (places, mut missing) = place::all();
    place::clear_on_signal(&places);
    let mut rows = match &options.rows {
        Some(file) => {
            let text = std::fs::read_to_string(file).map_err(|e| format!("{}: {e}", file.display()))?;
            text.lines().filter_map(report::Row::read).collect()
        }
        None => Vec::new(),
    };
    for place in &places {
        if options.wants("fixed") {
            rows.extend(fixed::bench(place, &options));
        }
        if options.wants("copy") {
            rows.extend(copies::bench(place, &options));
        }
        if options.wants("reflink") && place.reflink {
            rows.extend(copies::reflink(place, &options));
        }
        if options.wants("fetch") && !place.reflink {
            rows.extend(fetches::bench(place, &options));
        }
        if options.wants("vms") {
            rows.push(vms::bench(place, &options));
        }
    }
    if let Some(first) = places.first() {
        if options.wants("fixed") {
            rows.push(fixed::large_dump(first, &options));
        }
        if options.wants("stat") {
            rows.extend(fixed::remote(first, &options));
        }
        if options.wants("hosts") {
            if rustix::process::geteuid().is_root() {
                rows.extend(hosts::bench(first, &options));
            } else {
                missing.push("hosts: namespaces need root".to_owned());
            }
        }
    }
    if options.wants("beside") {
        // Where something can be lost, so that flushes cost what they cost.
        if let Some(disk) = places.iter().find(|p| p.fs != "tmpfs") {
            rows.extend(beside::bench(disk, &options));
        }
    }
    if options.wants("transfer")
        && let Some(memory) = places.first()
    {
        rows.extend(beside::hosts(memory, &options));
    }
    if let Some(file) = &options.svg {
        std::fs::write(file, picture::svg(&rows)).map_err(|e| format!("{}: {e}", file.display()))?;
    }
    let mut header = machine();
    header.extend(places.iter().map(|p| (p.fs.clone(), p.what.clone())));
    header.extend(missing.into_iter().map(|line| ("not measured".to_owned(), line)));
    if options.json {
        println!("{:#}", report::json(&header, &rows));
    } else {
        report::print(&header, &rows);
    }
    Ok(())
}

/// What the numbers depend on.
fn machine() -> Vec<(String, String)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let cpu = read("/proc/cpuinfo");
    let cpu = cpu.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let libraries = run::tool("ldd", &[store::PROGRAM]);
    let mut libraries: Vec<&str> =
        libraries.lines().filter_map(|l| l.split_whitespace().next()?.rsplit('/').next()).collect();
    libraries.sort_unstable();
    let size = std::fs::metadata(store::PROGRAM).map_or(0, |m| m.len());
    [
        ("date", run::tool("date", &["+%F"]).trim().to_owned()),
        ("processors", format!("{cores}, {}", cpu.trim_start_matches([' ', '\t', ':']))),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("load when done", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
        ("program", format!("{} KiB; {}", size >> 10, libraries.join(" "))),
    ]
    .map(|(k, v)| (k.to_owned(), v))
    .into()
}
