//! How far a verb is, in the template of its image or VM, where the web interface shows it. Off unless
//! `oned.progress` says how often. What oned thinks of it is no matter of the verb.

use crate::one::{Cloud, Template};
use crate::sdm::Job;
use crate::sdm::job::JobInfo;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

const NAME: &str = "ONESDM_PROGRESS";
/// A call to oned may keep a verb that has ended for so long.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// oned writes each of them to its database.
const LEAST: Duration = Duration::from_secs(1);

/// Who is told, and where.
pub struct Told {
    pub cloud: Box<dyn Cloud>,
    pub of: Template,
    pub every: Duration,
}

/// Runs a verb and tells how far it is meanwhile. A short one tells nothing; after one that told, nothing is left.
pub fn telling<T>(told: Option<&Told>, job: &Job, run: impl FnOnce() -> T) -> T {
    let Some(told) = told else { return run() };
    let (over, end) = channel::<()>();
    std::thread::scope(|s| {
        s.spawn(move || {
            let every = told.every.max(LEAST);
            let mut last = String::new();
            while matches!(end.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
                let text = line(&job.info());
                if text != last {
                    if !tell(told, &text) {
                        return;
                    }
                    last = text;
                }
            }
            if !last.is_empty() {
                tell(told, "");
            }
        });
        let done = run();
        drop(over);
        done
    })
}

/// An oned that does not take it is not told again.
fn tell(told: &Told, text: &str) -> bool {
    let done = told.cloud.set(told.of, NAME, text);
    if let Err(e) = &done {
        tracing::debug!(error = %e, "oned was not told how far it is");
    }
    done.is_ok()
}

fn line(j: &JobInfo) -> String {
    let percent = j.progress.map_or_else(String::new, |p| format!("{p}%, "));
    let left = j.eta_seconds.map_or_else(String::new, |s| format!(", {s} s left"));
    format!("{} {}: {percent}{j}{left}", j.verb, j.phase)
}
