//! `onesdm top`: the jobs of this host as they run.

use super::World;
use super::job::{active, bar};
use crate::cli::render;
use crate::sdm::job::JobInfo;
use crate::sys::Bytes;
use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, Command};
use std::time::Duration;

pub fn command() -> Command {
    Command::new("top")
        .about("the jobs of this host as they run, each with its bar, rate and time left")
        .arg(Arg::new("once").long("once").help("show them once and end").action(ArgAction::SetTrue))
}

/// On a terminal the screen is drawn anew every second until somebody stops it; elsewhere once.
pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    if as_json {
        render::json(&active(w)?)?;
        return Ok(0);
    }
    let again = render::is_terminal() && !m.get_flag("once");
    loop {
        let text = screen(&active(w)?, &w.paths.run.display().to_string());
        if !again {
            render::print(&text)?;
            return Ok(0);
        }
        render::screen(&text)?;
        if !w.jobs.cancel.wait(Duration::from_secs(1)) {
            return Ok(0);
        }
    }
}

fn screen(jobs: &[JobInfo], place: &str) -> String {
    let rate = jobs.iter().fold(0_u64, |sum, j| sum.saturating_add(j.rate));
    let mut out = format!("{} jobs of {place}, {}/s in all\n", jobs.len(), Bytes(rate));
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
        let text = screen(&[job(Some(50), 1 << 20), job(None, 2 << 20)], "/run/job");
        assert!(text.starts_with("2 jobs of /run/job, 3.0 MiB/s in all\n"), "{text}");
        assert!(text.contains(&format!("[{}{}] 50%", "#".repeat(15), " ".repeat(15))), "{text}");
        assert!(text.contains("5.0 MiB of 10.0 MiB") && text.contains("7 s left"), "{text}");
        assert_eq!(text.matches("-8000-000000000001 x, on h since t").count(), 2, "{text}");
    }
}
