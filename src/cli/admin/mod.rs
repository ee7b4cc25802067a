//! People's commands: `onesdm <noun> <verb>`, each with `--json`.

mod activate;
pub mod connection;
mod domain;
mod ds;
mod event;
mod garbage;
mod job;
mod member;
pub mod metrics;
pub mod top;

pub use domain::{capabilities, path_of, stock_verb};
pub use garbage::all_known;
pub use member::join;

use super::invocation::Invocation;
use super::world::World;
use super::{args, render};
use crate::config::{Config, Env};
use crate::image;
use crate::sdm::record::FORMAT;
use crate::sys::Class;
use crate::verb::{self, refuse};
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

pub fn run(env: &Env, argv: Vec<OsString>) -> Result<u8> {
    let m = match args::tree().try_get_matches_from(argv) {
        Ok(m) => m,
        Err(e) if e.use_stderr() => {
            let text = e.to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            return Err(refuse(Class::Usage, format!("{first} (see `onesdm --help`)")));
        }
        Err(help) => {
            render::print(&help.to_string())?;
            return Ok(0);
        }
    };
    let json = m.get_flag("json");
    let set = settings(&m)?;
    let job = m.get_one::<String>("job-id").cloned();
    if m.get_flag("version") {
        return version(json);
    }
    if let Some(name) = m.get_one::<PathBuf>("as") {
        let call = Invocation::named(name).ok_or_else(|| {
            refuse(
                Class::Usage,
                format!("--as {}: give ROLE/DRIVER/VERB, such as datastore/fs/cp", name.display()),
            )
        })?;
        let args = m.get_many::<OsString>("args").into_iter().flatten().cloned().collect();
        let call = Invocation { args, job, set, plan: m.get_flag("plan"), ..call };
        return if call.plan { super::plan::verb(env, &call, json) } else { super::run_verb(env, &call) };
    }
    // What needs no world, and so no settings that could be wrong.
    match m.subcommand() {
        None => {
            render::print(&args::tree().render_help().to_string())?;
            return Ok(Class::Usage.status());
        }
        Some(("generate", m)) => return super::generate::run(m),
        Some(("agent", m)) => return super::agent::run(env, m),
        Some((verb::GUARD, m)) => return super::guard::run(env, m),
        #[cfg(feature = "failpoints")]
        Some(("op", _)) => return super::guard::perform_one(env, set, job.as_deref()),
        Some(("image", m)) => return probe(m, json),
        Some(("config", m)) if m.subcommand_name() == Some("defaults") => {
            render::print(Config::documentation())?;
            return Ok(0);
        }
        // It also tells what is wrong with the settings.
        Some(("doctor", m)) => return super::doctor::run(env, set, m, json),
        Some(_) => {}
    }
    let mut world = World::new(env, BTreeMap::new(), set)?;
    for w in world.config.warnings() {
        render::log("WARN", "onesdm", w);
    }
    match m.subcommand() {
        Some(("job", m)) => job::run(&world, m, json),
        Some(("top", m)) => top::run(env, &world, m, json),
        Some(("metrics", m)) => metrics::run(&world, m, json),
        Some(("event", m)) => event::run(&world, m, json),
        Some(("activate", m)) => activate::run(&world, m, json),
        Some(("gc", m)) => garbage::collect(&world, m, json),
        Some(("check", m)) => garbage::check(&world, m, json),
        Some(("lock", m)) => domain::locks(&world, m, json),
        Some(("connection", m)) => connection::run(&world, m, json),
        Some(("domain", m)) => domain::run(&world, m, json),
        Some(("config", m)) => config(&world, m, json),
        Some(("host", m)) => super::agent::probe(&world, m, json),
        Some(("ds", m)) => ds::run(env, &mut world, m, job.as_deref(), json),
        Some(("monitord", m)) => super::monitord::run(&world, m),
        Some(("install", m)) => super::install::run(&world, m, json),
        _ => Err(refuse(Class::Usage, "no such command (see `onesdm --help`)")),
    }
}

fn settings(m: &ArgMatches) -> Result<Vec<(String, String)>> {
    let given = m.get_many::<String>("set").into_iter().flatten();
    given
        .map(|s| match s.split_once('=') {
            Some((k, v)) => Ok((k.to_owned(), v.to_owned())),
            None => Err(refuse(Class::Usage, format!("--set {s}: give KEY=VALUE"))),
        })
        .collect()
}

fn version(as_json: bool) -> Result<u8> {
    let v = env!("CARGO_PKG_VERSION");
    if as_json {
        render::json(&json!({ "version": v, "formats": { "read": [FORMAT], "write": [FORMAT] } }))?;
    } else {
        render::print(&format!("onesdm {v}\nreads and writes domain format {FORMAT}"))?;
    }
    Ok(0)
}

fn probe(m: &ArgMatches, as_json: bool) -> Result<u8> {
    let Some((_, m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    let path = m.get_one::<PathBuf>("file").cloned().unwrap_or_default();
    let file = std::fs::File::open(&path).with_context(|| format!("opening {}", path.display()))?;
    let p = image::probe(&file).with_context(|| format!("reading the header of {}", path.display()))?;
    let name = |n: &std::ffi::OsStr| n.to_string_lossy().into_owned();
    let verdict = image::admit(&p, &image::Admit::default()).map_err(|e| e.to_string());
    let doc = json!({
        "format": p.format.to_string(),
        "virtual_size": p.virtual_size,
        "length": p.length,
        "backing": p.backing.as_ref().map(|b| name(&b.name)),
        "data_file": p.data_file.as_deref().map(name),
        "extents": p.extents.iter().map(|e| name(e)).collect::<Vec<_>>(),
        "encrypted": p.encrypted,
        "refused": verdict.as_ref().err(),
    });
    if as_json {
        render::json(&doc)?;
        return Ok(0);
    }
    let mut text = format!("format        {}\n", p.format);
    if let Some(s) = p.virtual_size {
        text += &format!("disk          {s} ({} bytes)\n", s.0);
    }
    if let Some(s) = p.length {
        text += &format!("file          {s} ({} bytes)\n", s.0);
    }
    if let Some(b) = &p.backing {
        text += &format!("backing file  {}\n", name(&b.name));
    }
    if let Some(d) = &p.data_file {
        text += &format!("data file     {}\n", name(d));
    }
    for e in &p.extents {
        text += &format!("extent        {}\n", name(e));
    }
    if p.encrypted {
        text += "encrypted     yes\n";
    }
    text += &match verdict {
        Ok(()) => "a datastore would take it\n".to_owned(),
        Err(e) => format!("a datastore would refuse it: {e}\n"),
    };
    render::print(&text)?;
    Ok(0)
}

fn config(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let origin = m.subcommand().is_some_and(|(_, m)| m.get_flag("origin"));
    let all = w.config.origins();
    if as_json {
        let docs: Vec<_> = all
            .iter()
            .map(|o| json!({ "key": o.key, "value": o.value, "origin": o.source.to_string() }))
            .collect();
        render::json(&docs)?;
    } else {
        let rows: Vec<Vec<String>> = all
            .into_iter()
            .map(|o| {
                let mut row = vec![o.key, o.value];
                row.extend(origin.then(|| o.source.to_string()));
                row
            })
            .collect();
        let heads: &[&str] = if origin { &["KEY", "VALUE", "ORIGIN"] } else { &["KEY", "VALUE"] };
        render::print(&render::table(heads, &rows))?;
    }
    Ok(0)
}
