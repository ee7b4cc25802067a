//! `onesdm job`: what runs here, what ran, following one, stopping one.

use super::World;
use crate::cli::render;
use crate::lock::JobId;
use crate::sdm::job::{JobInfo, Past, Status};
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use serde_json::{Map, Value, json, to_value};
use std::time::Duration;

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    match m.subcommand() {
        Some(("list", m)) => list(w, m.get_flag("all"), as_json),
        Some(("show", m)) => show(w, id(m)?, as_json),
        Some(("watch", m)) => watch(w, id(m)?, as_json),
        Some(("cancel", m)) => cancel(w, id(m)?, as_json),
        _ => Ok(Class::Usage.status()),
    }
}

fn id(m: &ArgMatches) -> Result<JobId> {
    let text = m.get_one::<String>("job").map_or("", String::as_str);
    text.parse().map_err(|_| refuse(Class::Usage, format!("{text:?} is not a job's UUID")))
}

pub fn active(w: &World) -> Result<Vec<JobInfo>> {
    w.jobs.active().with_context(|| format!("listing jobs in {}", w.jobs.run.display()))
}

fn past(w: &World) -> Result<Vec<Past>> {
    w.jobs.past().with_context(|| format!("reading {}", w.jobs.history.path.display()))
}

/// `Host.getJobs` of seed 000: job id to what is known of the job.
fn list(w: &World, all: bool, as_json: bool) -> Result<u8> {
    let active = active(w)?;
    let past = if all { past(w)? } else { Vec::new() };
    if as_json {
        let mut doc = Map::new();
        for p in &past {
            doc.insert(p.id.to_string(), to_value(p)?);
        }
        for j in &active {
            doc.insert(j.id.to_string(), to_value(j)?);
        }
        render::json(&doc)?;
        return Ok(0);
    }
    let mut rows: Vec<Vec<String>> = past
        .iter()
        .map(|p| {
            let cause = p.error.as_ref().map_or(p.method.clone(), |e| e.message.clone());
            let took = format!("{:.3} s", p.seconds);
            vec![p.id.to_string(), word(p.status), p.verb.clone(), p.object.clone(), took, cause]
        })
        .collect();
    rows.extend(active.iter().map(|j| {
        let progress = j.progress.map_or(String::new(), |p| format!("{p}%, "));
        let state = if j.is_waiting() { j.phase.clone() } else { format!("{progress}{j}, {}", j.phase) };
        vec![j.id.to_string(), word(j.status), j.verb.clone(), j.object.clone(), String::new(), state]
    }));
    render::print(&render::table(&["JOB", "STATUS", "VERB", "OBJECT", "TOOK", "DETAIL"], &rows))?;
    Ok(0)
}

fn word(s: Status) -> String {
    format!("{s:?}").to_lowercase()
}

fn find(w: &World, id: JobId) -> Result<Option<Value>> {
    if let Some(j) = active(w)?.into_iter().find(|j| j.id == id) {
        return Ok(Some(to_value(j)?));
    }
    let past = past(w)?.into_iter().rev().find(|p| p.id == id);
    Ok(past.map(to_value).transpose()?)
}

fn show(w: &World, id: JobId, as_json: bool) -> Result<u8> {
    let doc = find(w, id)?.ok_or_else(|| {
        let text = format!(
            "job {id} is neither active on this host nor in its history; poll the object it was about"
        );
        refuse(Class::NotFound, text)
    })?;
    if as_json {
        render::json(&doc)?;
    } else if let Value::Object(fields) = doc {
        let rows: Vec<Vec<String>> = fields
            .into_iter()
            .map(|(k, v)| vec![k, if let Value::String(s) = v { s } else { v.to_string() }])
            .collect();
        render::print(&render::table(&["FIELD", "VALUE"], &rows))?;
    }
    Ok(0)
}

/// Follows a job: a bar on a terminal, a line per change elsewhere. Ends with the job, and with its status.
fn watch(w: &World, id: JobId, as_json: bool) -> Result<u8> {
    let mut last = String::new();
    while let Some(j) = active(w)?.into_iter().find(|j| j.id == id) {
        if as_json {
            render::print(&serde_json::to_string(&j)?)?;
        } else {
            let line = bar(&j);
            if line != last {
                render::progress(&line)?;
                last = line;
            }
        }
        if !w.jobs.cancel.wait(Duration::from_millis(500)) {
            return Ok(Class::Cancelled.status());
        }
    }
    show(w, id, as_json)?;
    let code = find(w, id)?.and_then(|v| v.pointer("/error/code").and_then(Value::as_u64));
    Ok(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(0))
}

pub fn bar(j: &JobInfo) -> String {
    if j.is_waiting() {
        return format!("{} {}", j.verb, j.phase);
    }
    let Some(percent) = j.progress else { return format!("{} {}: {j}", j.verb, j.phase) };
    let full = usize::from(percent) * 30 / 100;
    let eta = j.eta_seconds.map_or(String::new(), |s| format!(", {s} s left"));
    format!("{} {} [{}{}] {percent}% {j}{eta}", j.verb, j.phase, "#".repeat(full), " ".repeat(30 - full))
}

fn cancel(w: &World, id: JobId, as_json: bool) -> Result<u8> {
    if !w.jobs.cancel(id).context("asking the job to stop")? {
        let text = format!("job {id} does not run on this host; `onesdm job list` shows those that do");
        return Err(refuse(Class::NotFound, text));
    }
    if as_json {
        render::json(&json!({ "cancelled": id }))?;
    } else {
        render::print(&format!("job {id} was asked to stop"))?;
    }
    Ok(0)
}
