//! `onesdm event`: the event log, and following it.

use super::World;
use crate::cli::render;
use crate::sdm::event::Event;
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let of = m.get_one::<String>("of-job").cloned();
    let wanted = |e: &Event| of.as_ref().is_none_or(|id| e.job.to_string() == *id);
    let show = |e: &Event| -> Result<()> {
        let line = if as_json { serde_json::to_string(e)? } else { line(e) };
        Ok(render::print(&line)?)
    };
    if !m.get_flag("follow") {
        let log = &w.jobs.events;
        for e in log.read::<Event>().with_context(|| format!("reading {}", log.path.display()))? {
            if wanted(&e) {
                show(&e)?;
            }
        }
        return Ok(0);
    }
    follow(w, |e| if wanted(e) { show(e) } else { Ok(()) })
}

/// New events as they come, through rotations of the log, until told to stop.
fn follow(w: &World, mut each: impl FnMut(&Event) -> Result<()>) -> Result<u8> {
    let path = &w.jobs.events.path;
    let open = |at_end: bool| -> std::io::Result<_> {
        use std::io::Seek as _;
        let mut f = std::fs::File::open(path)?;
        if at_end {
            f.seek(std::io::SeekFrom::End(0))?;
        }
        let ino = f.metadata()?.ino();
        Ok((BufReader::new(f), ino))
    };
    let mut file = open(true).ok();
    let mut line = String::new();
    while w.jobs.cancel.wait(Duration::from_millis(200)) {
        if let Some((f, _)) = &mut file {
            while f.read_line(&mut line)? > 0 && line.ends_with('\n') {
                if let Ok(e) = serde_json::from_str(&line) {
                    each(&e)?;
                }
                line.clear();
            }
        }
        let now = std::fs::metadata(path).map(|m| m.ino()).ok();
        if now.is_some() && now != file.as_ref().map(|(_, ino)| *ino) {
            file = open(false).ok();
            line.clear();
        }
    }
    Ok(0)
}

fn line(e: &Event) -> String {
    format!(
        "{} {} {} {} {}",
        e.time,
        e.job,
        e.verb,
        if e.object.is_empty() { "-" } else { &e.object },
        e.what
    )
}
