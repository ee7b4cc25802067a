//! `onesdm gc` and `onesdm check`.

use super::World;
use super::domain::named;
use crate::cli::render;
use crate::engine::{Kind, Name, Place};
use crate::image;
use crate::lock::JobId;
use crate::sdm::check::{Problem, check as invariants};
use crate::sdm::gc::{self, Action, Finding};
use crate::sdm::job::Topic;
use crate::sdm::record::Commit;
use crate::sdm::{Domain, group, known, settle};
use crate::sys::{Class, user};
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use serde_json::{Value, json};

pub fn collect(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let policy = gc::Policy { short: m.get_flag("short"), ..w.gc_policy() };
    let mut docs = Vec::new();
    let mut text = String::new();
    let mut failed = None;
    if !m.get_flag("plan") && !m.get_flag("reconcile") {
        w.tend("gc", true);
    }
    for domain in &named(w, m, "domain")? {
        if let Err(e) = domain.usable() {
            failed = failed.or(Some(e.class()));
            text += &format!("not done: {e}\n");
            docs.push(json!({ "domain": domain.place, "error": e.to_string() }));
            continue;
        }
        if m.get_flag("reconcile") {
            let found = settle::unacknowledged(domain)?;
            let doc = |(n, c): &(Name, Commit)| json!({ "name": n, "job": c.job, "by": c.who });
            docs.push(json!({ "domain": domain.place, "unacknowledged": found.iter().map(doc).collect::<Vec<_>>() }));
            for (name, made) in &found {
                let (who, job) = (&made.who, made.job);
                text += &format!(
                    "{}/{name}: {} by job {job} on host {}, {}; no later request named it\n",
                    domain.place, who.verb, who.host, who.since
                );
            }
        } else if m.get_flag("plan") {
            let plan = gc::plan(domain, &policy)?;
            text += &shown(&domain.place, &plan);
            docs.push(json!({ "domain": domain.place, "plan": plan }));
        } else {
            if group::group_of(domain.place.as_ref()).is_none() {
                user::become_owner(domain.place.as_ref()).context("becoming the owner of the domain")?;
            }
            let topic =
                Topic { verb: "gc".into(), domain: domain.place.clone(), quiet: true, ..Topic::default() };
            let job = w.jobs.start(JobId::generate(), topic);
            match gc::collect(domain, &job, &policy) {
                Ok(report) => {
                    job.succeed();
                    failed = failed.or((!report.errors.is_empty()).then_some(Class::Internal));
                    text += &shown(&domain.place, &report.done);
                    text += &report.errors.iter().map(|e| format!("not done: {e}\n")).collect::<String>();
                    docs.push(json!({ "domain": domain.place, "report": report }));
                }
                Err(e) => {
                    job.fail(e.class(), &e.to_string());
                    return Err(e).with_context(|| format!("collecting {}", domain.place));
                }
            }
        }
    }
    if as_json {
        render::json(&docs)?;
    } else {
        render::print(if text.is_empty() { "no garbage" } else { &text })?;
    }
    Ok(failed.map_or(0, Class::status))
}

fn shown(place: &str, findings: &[Finding]) -> String {
    let line = |f: &Finding| {
        let action = match f.action {
            Action::Undo => "undo",
            Action::Finish => "finish",
            Action::Delete => "delete",
            Action::Release => "release",
            Action::Forget => "forget",
            Action::Stay => "stays",
        };
        format!("{place}: {action} {} ({}): {}\n", f.what, f.bytes, f.why)
    };
    findings.iter().map(line).collect()
}

/// Every broken rule: of the domains, and of the images in them.
pub fn check(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let deep = m.get_flag("deep");
    let mut docs: Vec<Value> = Vec::new();
    let mut text = String::new();
    let mut bad = 0;
    for domain in named(w, m, "domain")? {
        let mut problems = invariants(&domain).with_context(|| format!("checking {}", domain.place))?;
        problems.retain(|p| p.rule != "dangling" || !is_idle(w, &domain, p));
        images(w, &domain, deep, &mut problems)?;
        bad += problems.len();
        for p in &problems {
            text += &format!("{}: {} {}: {}\n", domain.place, p.rule, p.object, p.detail);
        }
        docs.push(json!({ "domain": domain.place, "problems": problems }));
    }
    if as_json {
        render::json(&docs)?;
    } else {
        render::print(if text.is_empty() { "no broken rule" } else { &text })?;
    }
    Ok(if bad > 0 { Class::Integrity.status() } else { 0 })
}

/// Whether it is about a link to a volume that is there and no device here: this host was started anew, or another has it.
fn is_idle(w: &World, domain: &Domain, p: &Problem) -> bool {
    let look = |d: &Domain, n: &str| d.engine.look(&Place::Public(Name::parse(n).ok()?)).ok()?;
    let Some(Kind::Link(to)) = look(domain, &p.object).map(|o| o.kind) else { return false };
    let Some((group, volume)) = to.rsplit_once('/').filter(|(g, _)| group::group_of(g.as_ref()).is_some())
    else {
        return false;
    };
    w.inspect(group.as_ref()).is_ok_and(|d| look(&d, volume).is_some())
}

/// What is visible is complete; companions have their image.
fn images(w: &World, domain: &Domain, deep: bool, problems: &mut Vec<Problem>) -> Result<()> {
    let day = std::time::Duration::from_secs(24 * 3600);
    let qemu = image::Qemu { tools: &w.tools, cancel: &w.jobs.cancel, deadline: day, inherit: &[] };
    // Any bytes are a volume's content; whoever makes it a device here has it, and no other host.
    if domain.header.engine == "lvm" {
        return Ok(());
    }
    let all = domain.engine.list(None)?;
    let is_there = |n: &str| all.iter().any(|o| matches!(&o.place, Place::Public(p) if p.as_str() == n));
    for o in &all {
        let Place::Public(name) = &o.place else { continue };
        let companion_of = [".snap", ".md5sum"].iter().find_map(|s| name.as_str().strip_suffix(s));
        if let Some(image) = companion_of {
            if !is_there(image) {
                let detail = format!("its image {image} does not exist");
                problems.push(Problem { rule: "orphan", object: name.to_string(), detail });
            }
            continue;
        }
        if !matches!(o.kind, Kind::File | Kind::Link(_)) {
            continue;
        }
        let path = domain.engine.attach(&o.place, crate::engine::Access::Read)?.path;
        if path.is_file() {
            for f in image::check(&path, None, deep.then_some(&qemu))? {
                if f.severity == image::Severity::Broken {
                    problems.push(Problem { rule: "incomplete", object: name.to_string(), detail: f.what });
                }
            }
        }
    }
    Ok(())
}

/// Everything this host knows, for commands without an argument.
pub fn all_known(w: &World) -> Vec<(String, known::Known)> {
    known::all(&w.paths.state)
}
