//! `onesdm metrics`: numbers for Prometheus, on stdout or in a file for node_exporter's textfile collector.

use super::World;
use super::garbage::all_known;
use super::job::active;
use crate::cli::doctor::within;
use crate::cli::render;
use crate::engine::{PoolUse, Usage};
use crate::obs::metrics::{Page, publish};
use crate::sdm::gc::{self, Action};
use crate::sdm::totals::{Totals, float};
use crate::sdm::trend::Trend;
use crate::sdm::{Groups, known::Known};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A look at a domain that takes longer hangs: the page says so and goes on.
const PATIENCE: Duration = Duration::from_secs(10);

pub fn command() -> Command {
    Command::new("metrics")
        .about("numbers of this host's jobs and domains, in Prometheus' text format")
        .long_about(
            "Numbers of this host's jobs and domains, in Prometheus' text format. With --output they go to a \
             file, which is replaced whole, and what was counted is remembered: counters then only grow, \
             although the history they come from is bounded.",
        )
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FILE")
                .help("a file for node_exporter's textfile collector; its name ends in .prom")
                .value_parser(value_parser!(PathBuf)),
        )
}

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let saved = w.paths.state.join("totals.json");
    let mut totals = Totals::load(&saved);
    totals.add_new(&w.jobs.history).with_context(|| format!("reading {}", w.jobs.history.path.display()))?;
    let mut page = Page::default();
    page.family("onesdm_build_info", "gauge", "Always 1; the label is the version.");
    page.sample("onesdm_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    totals.show(&mut page);
    running(w, &mut page)?;
    let mut trend = Trend::load(&w.paths.state);
    domains(w, &mut page, &mut trend);
    match m.get_one::<PathBuf>("output") {
        Some(file) => {
            publish(file, page.text()).with_context(|| format!("writing {}", file.display()))?;
            totals.save(&saved).with_context(|| format!("writing {}", saved.display()))?;
            trend.save(&w.paths.state).context("writing what was seen of domains")?;
            if as_json {
                render::json(&json!({ "written": file }))?;
            }
        }
        None if as_json => render::json(&json!({ "prometheus": page.text() }))?,
        None => render::print(page.text())?,
    }
    Ok(0)
}

fn running(w: &World, page: &mut Page) -> Result<()> {
    let (mut all, mut waiting) = (BTreeMap::<String, u32>::new(), BTreeMap::<String, u32>::new());
    for j in active(w)? {
        *waiting.entry(j.verb.clone()).or_default() += u32::from(j.is_waiting());
        *all.entry(j.verb).or_default() += 1;
    }
    let mut show = |name, help, by_verb: BTreeMap<String, u32>| {
        page.family(name, "gauge", help);
        for (verb, n) in by_verb {
            page.sample(name, &[("verb", &verb)], n);
        }
    };
    show("onesdm_jobs_running", "Jobs that run on this host now, those that wait among them.", all);
    show(
        "onesdm_jobs_waiting",
        "Those of them that wait for a lock, or for a copy of another job to end.",
        waiting,
    );
    Ok(())
}

/// What can be known of a domain without changing it.
struct Look {
    usage: Usage,
    /// Bytes by what the collector would do: now, or when their time has come.
    garbage: u64,
    kept: u64,
    objects: u32,
    pools: Vec<PoolUse>,
}

fn look(groups: &Groups, k: &Known, policy: &gc::Policy) -> Option<Look> {
    let d = groups.inspect_at(&k.path).ok()?;
    d.usable().ok()?;
    // An account that may not ask for them has a page without them.
    let pools = d.engine.pools().unwrap_or_default();
    let mut out = Look { usage: d.engine.usage().ok()?, garbage: 0, kept: 0, objects: 0, pools };
    for f in gc::plan(&d, policy).ok()? {
        match f.action {
            Action::Undo | Action::Finish | Action::Delete | Action::Release => {
                out.objects += 1;
                out.garbage += f.bytes.0;
            }
            Action::Stay => out.kept += f.bytes.0,
            Action::Forget => {}
        }
    }
    Some(out)
}

type Value = fn(&Look) -> f64;

fn domains(w: &World, page: &mut Page, trend: &mut Trend) {
    let mut seen = Vec::new();
    for (id, k) in all_known(w) {
        let (policy, groups) = (w.gc_policy(), w.groups());
        let (known, path) = (k.clone(), k.path.display().to_string());
        let found = within(PATIENCE, move || look(&groups, &known, &policy)).flatten();
        seen.push((id, k.domain.to_string(), path, found));
    }
    let families: [(&str, &str, Value); 6] = [
        ("onesdm_domain_size_bytes", "Size of the storage a domain lies on.", |l| float(l.usage.total.0)),
        ("onesdm_domain_used_bytes", "Of these, used by anybody.", |l| float(l.usage.used.0)),
        ("onesdm_domain_free_bytes", "Of these, free for us.", |l| float(l.usage.free.0)),
        ("onesdm_domain_garbage_bytes", "What `onesdm gc` would delete now.", |l| float(l.garbage)),
        ("onesdm_domain_garbage_objects", "How many objects that is.", |l| f64::from(l.objects)),
        ("onesdm_domain_kept_bytes", "Kept for a while, or staged by jobs that live.", |l| float(l.kept)),
    ];
    page.family("onesdm_domain_up", "gauge", "1 when the domain can be used, 0 when not or when it hangs.");
    for (id, domain, path, found) in &seen {
        let labels = [("datastore", id.as_str()), ("domain", domain), ("path", path)];
        page.sample("onesdm_domain_up", &labels, u8::from(found.is_some()));
    }
    for (name, help, value) in families {
        page.family(name, "gauge", help);
        for (id, domain, path, found) in &seen {
            if let Some(l) = found {
                let labels = [("datastore", id.as_str()), ("domain", domain), ("path", path)];
                page.sample(name, &labels, value(l));
            }
        }
    }
    let found = seen.iter().filter_map(|(id, domain, path, l)| Some((id, domain, path, l.as_ref()?)));
    let now = jiff::Timestamp::now().as_second();
    page.family(
        "onesdm_domain_full_seconds",
        "gauge",
        "How long until a domain is full if it goes on as in the last day; none when that is not in sight.",
    );
    for (id, domain, path, l) in found.clone() {
        let u = &l.usage;
        trend.note(path, u.used, u.total, now);
        if let Some(left) = trend.full_in(path, u.used, u.total, now) {
            let labels = [("datastore", id.as_str()), ("domain", domain), ("path", path)];
            page.sample("onesdm_domain_full_seconds", &labels, left.as_secs_f64());
        }
    }
    let pools_of: Vec<(&str, &str, &[PoolUse])> =
        found.map(|(id, _, path, l)| (id.as_str(), path.as_str(), &*l.pools)).collect();
    pools(page, trend, &pools_of, now);
}

/// Pools that this host has active, in two parts: `data`, and the `tables` that say which volume has what.
fn pools(page: &mut Page, trend: &mut Trend, found: &[(&str, &str, &[PoolUse])], now: i64) {
    let mut parts = Vec::new();
    page.family("onesdm_pool_up", "gauge", "1 when a pool works as it should, 0 when it takes no writes.");
    for (id, path, pools) in found {
        for p in *pools {
            let pool = [("datastore", *id), ("path", *path), ("pool", &*p.name)];
            page.sample("onesdm_pool_up", &pool, u8::from(p.trouble.is_none()));
            for (of, (used, size)) in [("data", p.data), ("tables", p.tables)] {
                let key = format!("{path}/{} {of}", p.name);
                trend.note(&key, used, size, now);
                let [a, b, c] = pool;
                parts.push(([a, b, c, ("of", of)], used, size, trend.full_in(&key, used, size, now)));
            }
        }
    }
    page.family("onesdm_pool_size_bytes", "gauge", "Size of a part of a pool.");
    for (labels, _, size, _) in &parts {
        page.sample("onesdm_pool_size_bytes", labels, float(size.0));
    }
    page.family("onesdm_pool_used_bytes", "gauge", "Of these, used.");
    for (labels, used, ..) in &parts {
        page.sample("onesdm_pool_used_bytes", labels, float(used.0));
    }
    let name = "onesdm_pool_full_seconds";
    page.family(name, "gauge", "How long until a part of a pool is full if it goes on as in the last day.");
    for (labels, _, _, left) in &parts {
        if let Some(left) = left {
            page.sample(name, labels, left.as_secs_f64());
        }
    }
}
