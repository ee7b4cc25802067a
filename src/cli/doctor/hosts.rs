//! The doctor on several hosts: each looks at itself and at the datastores that the front-end names, and the answers
//! are one matrix, hosts by domains, with what is not in order below.

use super::{Finding, Verdict, look, word};
use crate::cli::admin::top;
use crate::cli::agent::Asked;
use crate::cli::render;
use crate::cli::world::World;
use crate::config::Env;
use crate::obs;
use crate::sys::Class;
use crate::verb::{one_line, refuse};
use anyhow::Result;
use clap::ArgMatches;
use serde::{Deserialize, Serialize};
use serde_json::{Value, to_value};
use std::path::{Path, PathBuf};

/// What a host is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Doctor {
    /// Datastores to look at, those that are not there left out.
    pub doctor: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Row {
    host: String,
    findings: Vec<Finding>,
}

pub fn names(env: &Env, w: &World, m: &ArgMatches) -> Result<Vec<String>> {
    if m.get_flag("all") {
        return top::pool(env, w);
    }
    Ok(m.get_many::<String>("host").into_iter().flatten().cloned().collect())
}

/// The host's side.
fn answer(w: &World, mut asked: Doctor) -> Result<Value> {
    let mut found = Vec::new();
    asked.doctor.extend(super::domains(w, &[])?);
    asked.doctor.retain(|path| path.symlink_metadata().is_ok());
    asked.doctor.sort();
    asked.doctor.dedup();
    look(w, asked.doctor, &mut found)?;
    Ok(to_value(found)?)
}

pub fn run(w: &World, names: &[String], paths: &[PathBuf], own: Vec<Finding>, as_json: bool) -> Result<u8> {
    let body = to_value(Doctor { doctor: paths.to_vec() })?;
    let handler = Asked::new(w.server(None), None);
    let hosts = w.hosts(&handler);
    let mut rows = vec![Row { host: obs::host(), findings: own }];
    std::thread::scope(|s| {
        let ask = |name: &String| {
            let said = top::ask_once(&hosts, name, body.clone());
            said.and_then(|v| serde_json::from_value(v).map_err(|e| format!("an answer that is none: {e}")))
        };
        let asked: Vec<_> = names.iter().map(|name| s.spawn(move || ask(name))).collect();
        for (name, one) in names.iter().zip(asked) {
            let findings =
                one.join().unwrap_or_else(|e| std::panic::resume_unwind(e)).unwrap_or_else(|why| {
                    let remedy = format!("`onesdm host probe {name}` says where it ends");
                    vec![Finding::bad("reach", name, why, remedy)]
                });
            rows.push(Row { host: name.clone(), findings });
        }
    });
    if as_json {
        render::json(&rows)?;
    } else {
        render::print(&matrix(&rows, paths))?;
    }
    let bad = rows.iter().flat_map(|r| &r.findings).any(|f| f.verdict == Verdict::Bad);
    Ok(if bad { Class::Integrity.status() } else { 0 })
}

/// The worst of what was found; a dash for what was not looked at.
fn cell<'a>(found: impl Iterator<Item = &'a Finding>) -> String {
    found.map(|f| f.verdict).max().map_or("-", word).to_owned()
}

fn matrix(rows: &[Row], paths: &[PathBuf]) -> String {
    let of = |f: &Finding, path: &PathBuf| Path::new(&f.object).starts_with(path);
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    let heads: Vec<&str> = ["HOST", "ITSELF"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|r| {
            let own = cell(r.findings.iter().filter(|f| !paths.iter().any(|p| of(f, p))));
            let each = paths.iter().map(|p| cell(r.findings.iter().filter(|f| of(f, p))));
            [r.host.clone(), own].into_iter().chain(each).collect()
        })
        .collect();
    let mut out = render::table(&heads, &cells);
    for r in rows {
        for f in r.findings.iter().filter(|f| f.verdict != Verdict::Ok) {
            out +=
                &format!("\n{:4}  {}  {:12}  {}: {}", word(f.verdict), r.host, f.check, f.object, f.detail);
            out += &format!("\n{:6}remedy: {}", "", f.remedy);
        }
    }
    out
}

/// A request, if it is one for the doctor.
pub fn asked(w: Option<&World>, body: &Value) -> Option<Result<Value, (Class, String)>> {
    let doctor: Doctor = serde_json::from_value(body.clone()).ok()?;
    let world = w.ok_or_else(|| refuse(Class::Internal, "a host asks nothing of itself"));
    Some(world.and_then(|w| answer(w, doctor)).map_err(|e| (Class::Internal, one_line(&e))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cell_is_the_worst_of_its_host_and_domain() {
        let of = |host: &str, findings| Row { host: host.to_owned(), findings };
        let rows = [
            of(
                "fe",
                vec![Finding::ok("tool", "x", "fine"), Finding::warn("locks", "/d/100", "old", "mend it")],
            ),
            of(
                "h1",
                vec![
                    Finding::bad("state", "/var", "gone", "make it"),
                    Finding::ok("mount", "/d/101/.sdm", "y"),
                ],
            ),
        ];
        let text = matrix(&rows, &["/d/100".into(), "/d/101".into()]);
        let cells: Vec<Vec<&str>> = text.lines().take(3).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(cells[0], ["HOST", "ITSELF", "/d/100", "/d/101"]);
        assert_eq!(cells[1], ["fe", "ok", "warn", "-"]);
        assert_eq!(cells[2], ["h1", "BAD", "-", "ok"]);
        assert!(text.contains("remedy: mend it") && text.ends_with("remedy: make it"), "{text}");
    }
}
