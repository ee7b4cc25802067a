//! What the jobs of this host add up to: numbers that only grow, kept beside the history, which is bounded.

use super::job::Past;
use crate::obs::jsonl::{Log, Mark};
use crate::obs::metrics::{Page, publish};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// Upper bounds of a histogram of seconds; one more bucket has no bound.
const BUCKETS: [f64; 8] = [0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0];

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    mark: Mark,
    verbs: BTreeMap<String, OfVerb>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct OfVerb {
    /// Jobs by outcome: `ok`, or the class of the failure.
    outcomes: BTreeMap<String, u64>,
    /// Jobs by how long they took, each in the first bucket it fits.
    took: [u64; BUCKETS.len() + 1],
    seconds: f64,
    waited: f64,
    #[serde(default)]
    waited_turn: f64,
    bytes: u64,
}

impl Totals {
    /// As saved; anew when there is none that can be read, as after a counter's restart.
    pub fn load(path: &Path) -> Totals {
        std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok()).unwrap_or_default()
    }

    pub fn save(&self, path: &Path) -> io::Result<()> {
        publish(path, &serde_json::to_string(self)?)
    }

    /// Adds what ended since the last time.
    pub fn add_new(&mut self, history: &Log) -> io::Result<()> {
        for past in history.since::<Past>(&mut self.mark)? {
            self.add(&past);
        }
        Ok(())
    }

    fn add(&mut self, p: &Past) {
        let v = self.verbs.entry(p.verb.clone()).or_default();
        let outcome = p.error.as_ref().map_or("ok", |e| e.class.word());
        *v.outcomes.entry(outcome.to_owned()).or_default() += 1;
        v.took[BUCKETS.iter().position(|b| p.seconds <= *b).unwrap_or(BUCKETS.len())] += 1;
        v.seconds += p.seconds;
        v.waited += p.waited;
        v.waited_turn += p.waited_turn;
        v.bytes = v.bytes.saturating_add(p.bytes);
    }

    pub fn show(&self, page: &mut Page) {
        let each = |page: &mut Page, name, help, value: &dyn Fn(&OfVerb) -> f64| {
            page.family(name, "counter", help);
            for (verb, v) in &self.verbs {
                page.sample(name, &[("verb", verb)], value(v));
            }
        };
        page.family("onesdm_jobs_total", "counter", "Jobs that ended on this host, by verb and outcome: ok, or the class of the failure. Verbs that only read are counted when they fail.");
        for (verb, v) in &self.verbs {
            for (outcome, n) in &v.outcomes {
                page.sample("onesdm_jobs_total", &[("verb", verb), ("class", outcome)], float(*n));
            }
        }
        let name = "onesdm_job_duration_seconds";
        page.family(name, "histogram", "How long jobs took from start to end.");
        for (verb, v) in &self.verbs {
            let mut sum = 0;
            for (i, n) in v.took.iter().enumerate() {
                sum += n;
                let bound = BUCKETS.get(i).map_or("+Inf".to_owned(), ToString::to_string);
                page.sample(&format!("{name}_bucket"), &[("verb", verb), ("le", &bound)], float(sum));
            }
            page.sample(&format!("{name}_sum"), &[("verb", verb)], v.seconds);
            page.sample(&format!("{name}_count"), &[("verb", verb)], float(sum));
        }
        each(page, "onesdm_job_bytes_total", "Bytes of image data that jobs went through.", &|v| {
            float(v.bytes)
        });
        let help = "Seconds that jobs waited for locks others held.";
        each(page, "onesdm_job_lock_wait_seconds_total", help, &|v| v.waited);
        let help =
            "Seconds that jobs waited for copies of others to end (data.host_copies, data.domain_copies).";
        each(page, "onesdm_job_turn_wait_seconds_total", help, &|v| v.waited_turn);
    }
}

/// Prometheus has floating point only.
#[expect(clippy::cast_precision_loss, reason = "exact to 2^53, close beyond")]
pub fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::super::job::{PastError, Status};
    use super::*;
    use crate::lock::JobId;
    use crate::sys::Class;

    fn past(verb: &str, seconds: f64, class: Option<Class>) -> Past {
        let error = class.map(|class| PastError { class, code: class.status(), message: "m".into() });
        let status = if error.is_some() { Status::Failed } else { Status::Done };
        let (domain, object, host) = (String::new(), String::new(), String::new());
        let (since, method, parent) = (String::new(), String::new(), None);
        let id = JobId::generate();
        let (verb, bytes) = (verb.to_owned(), 1 << 20);
        Past {
            id,
            status,
            verb,
            domain,
            object,
            parent,
            host,
            since,
            seconds,
            waited: 0.5,
            waited_turn: 0.25,
            bytes,
            method,
            error,
        }
    }

    #[test]
    fn numbers_only_grow_although_the_history_is_bounded() {
        let t = tempfile::tempdir().unwrap();
        let history = Log { path: t.path().join("h"), max_size: 2000, keep: 1 };
        let file = t.path().join("totals.json");
        for round in 1..=20_u32 {
            history.append(&past("cp", 0.05, None)).unwrap();
            history.append(&past("rm", 700.0, Some(Class::InUse))).unwrap();
            let mut totals = Totals::load(&file);
            totals.add_new(&history).unwrap();
            totals.save(&file).unwrap();
            let mut page = Page::default();
            totals.show(&mut page);
            let has =
                |line: String| assert!(page.text().lines().any(|l| l == line), "{line}: {}", page.text());
            has(format!("onesdm_jobs_total{{verb=\"cp\",class=\"ok\"}} {round}"));
            has(format!("onesdm_jobs_total{{verb=\"rm\",class=\"in-use\"}} {round}"));
            has("onesdm_job_duration_seconds_bucket{verb=\"rm\",le=\"600\"} 0".to_owned());
            has(format!("onesdm_job_duration_seconds_bucket{{verb=\"rm\",le=\"3600\"}} {round}"));
            has(format!("onesdm_job_duration_seconds_bucket{{verb=\"cp\",le=\"+Inf\"}} {round}"));
            has(format!("onesdm_job_bytes_total{{verb=\"cp\"}} {}", round << 20));
            has(format!("onesdm_job_lock_wait_seconds_total{{verb=\"cp\"}} {}", f64::from(round) / 2.0));
            has(format!("onesdm_job_turn_wait_seconds_total{{verb=\"cp\"}} {}", f64::from(round) / 4.0));
        }
        assert!(history.read::<Past>().unwrap().len() < 30, "the history is bounded");
        std::fs::write(&file, "torn").unwrap();
        assert!(Totals::load(&file).verbs.is_empty());
    }
}
