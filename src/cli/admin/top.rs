//! `onesdm top`: jobs as they run, of this host or of others.

use super::World;
use super::job::{active, bar};
use crate::cli::agent::{Asked, JOBS};
use crate::cli::render;
use crate::config::Env;
use crate::host::{Channel, Commit, HostError, Hosts, Request, Transport as _};
use crate::sdm::job::JobInfo;
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::Value;
use std::time::Duration;

pub fn command() -> Command {
    let flag = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).action(ArgAction::SetTrue)
    };
    Command::new("top")
        .about("jobs as they run, each with its bar, rate and time left: this host's, or those of others")
        .arg(Arg::new("host").value_name("HOST").num_args(0..).help("as OpenNebula names it"))
        .arg(
            flag("all", "of this host and all that oned has, those that are off left out")
                .conflicts_with("host"),
        )
        .arg(flag("once", "show them once and end"))
}

/// On a terminal the screen is drawn anew every second until somebody stops it; elsewhere once, and the status
/// says whether all hosts answered.
pub fn run(env: &Env, w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let mut names: Vec<String> = m.get_many::<String>("host").into_iter().flatten().cloned().collect();
    let with_us = names.is_empty();
    if m.get_flag("all") {
        names = pool(env, w)?;
    }
    let place = if names.is_empty() { w.paths.run.display().to_string() } else { count(&names, with_us) };
    let handler = Asked::new(w.server(None), None);
    let hosts = w.hosts(&handler);
    let mut others: Vec<Other<'_>> = names.into_iter().map(|name| Other { name, channel: None }).collect();
    let again = render::is_terminal() && !as_json && !m.get_flag("once");
    loop {
        let mut jobs = if with_us { active(w)? } else { Vec::new() };
        let silent = ask(&mut others, &hosts, &mut jobs);
        jobs.sort_by_key(|j| j.id);
        jobs.dedup_by_key(|j| j.id);
        if again {
            render::screen(&screen(&jobs, &silent, &place))?;
            if !w.jobs.cancel.wait(Duration::from_secs(1)) {
                return Ok(0);
            }
            continue;
        }
        if as_json {
            render::json(&jobs)?;
        } else {
            render::print(&screen(&jobs, &[], &place))?;
        }
        return match silent.as_slice() {
            [] => Ok(0),
            [one] => Err(refuse(Class::Remote, one.clone())),
            [one, more @ ..] => Err(refuse(Class::Remote, format!("{one}; and {} more hosts", more.len()))),
        };
    }
}

fn count(names: &[String], with_us: bool) -> String {
    format!("{} hosts", names.len() + usize::from(with_us))
}

/// The hosts that oned has; this machine may be one of them.
pub fn pool(env: &Env, w: &World) -> Result<Vec<String>> {
    let cloud = w.cloud(env)?;
    let hosts = cloud.hosts().context("asking oned for its hosts; name them, or see ONE_XMLRPC")?;
    Ok(hosts.iter().filter(|h| h.is_usable()).map(|h| h.name.clone()).collect())
}

/// Another host; the connection stays.
struct Other<'a> {
    name: String,
    channel: Option<Box<dyn Channel + 'a>>,
}

impl<'a> Other<'a> {
    fn ask(&mut self, hosts: &'a Hosts<'a>, body: Value) -> Result<Value, String> {
        let channel = match self.channel.take() {
            Some(channel) => Ok(channel),
            None => hosts.open(&self.name),
        };
        let request = Request { job: "top", body, commit: Commit::Now, source: None };
        let (channel, answer) = channel
            .and_then(|mut c| c.call(request, &mut |_| {}, hosts.cancel).map(|answer| (c, answer)))
            .map_err(|e: HostError| e.to_string())?;
        self.channel = Some(channel);
        Ok(answer)
    }

    fn jobs(&mut self, hosts: &'a Hosts<'a>) -> Result<Vec<JobInfo>, String> {
        let answer = self.ask(hosts, Value::from(JOBS))?;
        serde_json::from_value(answer).map_err(|e| format!("host {}: an answer that is none: {e}", self.name))
    }
}

/// One question to one host.
pub fn ask_once(hosts: &Hosts<'_>, name: &str, body: Value) -> Result<Value, String> {
    Other { name: name.to_owned(), channel: None }.ask(hosts, body)
}

/// All at once. What comes back is why some did not answer.
fn ask<'a>(others: &mut [Other<'a>], hosts: &'a Hosts<'a>, jobs: &mut Vec<JobInfo>) -> Vec<String> {
    let mut silent = Vec::new();
    std::thread::scope(|s| {
        let asked: Vec<_> = others.iter_mut().map(|o| s.spawn(|| o.jobs(hosts))).collect();
        for one in asked {
            match one.join().unwrap_or_else(|e| std::panic::resume_unwind(e)) {
                Ok(more) => jobs.extend(more),
                Err(why) => silent.push(why),
            }
        }
    });
    silent
}

fn screen(jobs: &[JobInfo], silent: &[String], place: &str) -> String {
    let rate = jobs.iter().fold(0_u64, |sum, j| sum.saturating_add(j.rate));
    let waiting = match jobs.iter().filter(|j| j.is_waiting()).count() {
        0 => String::new(),
        n => format!(", {n} of them waiting"),
    };
    let mut out = format!("{} jobs of {place}{waiting}, {}/s in all\n", jobs.len(), Bytes(rate));
    for why in silent {
        out += &format!("{why}\n");
    }
    for j in jobs {
        let what = if j.object.is_empty() { &j.domain } else { &j.object };
        out += &format!("\n{} {what}, on {} since {}\n    {}\n", j.id, j.host, j.since, bar(j));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_job_has_its_bar_and_the_first_line_their_sum() {
        let job = |progress: Option<u8>, rate: u64| -> JobInfo {
            serde_json::from_value(serde_json::json!({
                "id": "0198b3f0-0000-7000-8000-000000000001", "status": "running", "description": "", "job_type": "storage",
                "progress": progress, "verb": "cp", "domain": "/d", "object": "x", "phase": "copy", "bytes": 5_u64 << 20,
                "total": 10_u64 << 20, "rate": rate, "eta_seconds": 7, "host": "h", "pid": 1, "since": "t"
            }))
            .unwrap()
        };
        let text =
            screen(&[job(Some(50), 1 << 20), job(None, 2 << 20)], &["host h9: gone".to_owned()], "/run/job");
        assert!(text.starts_with("2 jobs of /run/job, 3.0 MiB/s in all\nhost h9: gone\n"), "{text}");
        assert!(text.contains(&format!("[{}{}] 50%", "#".repeat(15), " ".repeat(15))), "{text}");
        assert!(text.contains("5.0 MiB of 10.0 MiB") && text.contains("7 s left"), "{text}");
        assert_eq!(text.matches("-8000-000000000001 x, on h since t").count(), 2, "{text}");
    }
}
