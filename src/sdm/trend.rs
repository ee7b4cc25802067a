//! How long until something is full, told from what was seen of it in the last day. Advice: nothing depends on
//! it, several writers may lose each other's points, and it begins anew when it is lost.

use crate::obs::metrics::publish;
use crate::sys::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One point this often, in seconds, and so many: a day.
const EVERY: i64 = 1800;
const KEEP: usize = 48;
/// From a shorter time nothing is concluded, and not for a longer one.
const LEAST: i64 = 300;
const FAR: f64 = 365.0 * 86_400.0;
/// Within this a person should do something.
pub const SOON: Duration = Duration::from_secs(86_400);

/// What was used, by what it is of, in parts of the whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Trend(BTreeMap<String, Vec<(i64, f64)>>);

impl Trend {
    fn file(state: &Path) -> PathBuf {
        state.join("trend.json")
    }

    /// As saved below this host's state directory; empty when there is none that can be read.
    pub fn load(state: &Path) -> Trend {
        std::fs::read(Self::file(state))
            .ok()
            .and_then(|b| serde_json::from_slice(&b).ok())
            .unwrap_or_default()
    }

    pub fn save(&self, state: &Path) -> io::Result<()> {
        publish(&Self::file(state), &serde_json::to_string(self)?)
    }

    /// Remembers that so much is used now; whether it was time for that.
    pub fn note(&mut self, what: &str, used: Bytes, all: Bytes, now: i64) -> bool {
        // What has not been seen for a day is gone; a clock that was set back begins anew.
        let since = now - EVERY * i64::try_from(KEEP).unwrap_or(0);
        self.0.retain(|_, points| {
            points.retain(|(t, _)| (since..=now).contains(t));
            !points.is_empty()
        });
        let points = self.0.entry(what.to_owned()).or_default();
        if points.last().is_some_and(|(t, _)| now - t < EVERY) {
            return false;
        }
        points.push((now, share(used, all)));
        true
    }

    /// How long until it is full if it goes on as in the last day. `None`: not in a year, or it is not known.
    pub fn full_in(&self, what: &str, used: Bytes, all: Bytes, now: i64) -> Option<Duration> {
        let (then, before) = *self.0.get(what)?.first()?;
        let past = now.saturating_sub(then);
        if past < LEAST {
            return None;
        }
        let used = share(used, all);
        let seconds = (1.0 - used) * float(past) / (used - before);
        (used > before && seconds < FAR).then(|| Duration::from_secs_f64(seconds.max(0.0)))
    }
}

fn share(used: Bytes, all: Bytes) -> f64 {
    if all.0 == 0 { 0.0 } else { super::totals::float(used.0) / super::totals::float(all.0) }
}

#[expect(clippy::cast_precision_loss, reason = "seconds of a day")]
fn float(n: i64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn used(n: u64) -> (Bytes, Bytes) {
        (Bytes(n), Bytes(100))
    }

    #[test]
    fn what_grows_is_full_when_it_went_on_so() {
        let mut t = Trend::default();
        let say = |t: &mut Trend, n: u64, now: i64| {
            let (n, all) = used(n);
            t.note("a", n, all, now);
            t.full_in("a", n, all, now).map(|d| d.as_secs())
        };
        assert_eq!(say(&mut t, 10, HOUR), None, "one look tells nothing");
        assert_eq!(say(&mut t, 30, HOUR + 10), None, "nor does a moment");
        assert_eq!(say(&mut t, 20, 2 * HOUR), Some(8 * 3600));
        assert_eq!(say(&mut t, 10, 3 * HOUR), None, "it does not grow");
        assert_eq!(say(&mut t, 100, 4 * HOUR), Some(0));
        // What was a day ago counts no more.
        assert_eq!(say(&mut t, 100, 30 * HOUR), None);
        assert_eq!(say(&mut t, 50, 2 * HOUR), None, "a clock that was set back");
        assert_eq!(t.full_in("b", Bytes(1), Bytes(0), HOUR), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut t = Trend::load(dir.path());
        for minute in 0..5000_u32 {
            let name = if minute < 100 { "gone" } else { "a" };
            t.note(name, Bytes(minute.into()), Bytes(5000), i64::from(minute) * 60);
        }
        assert_eq!(t.0.keys().collect::<Vec<_>>(), ["a"]);
        assert!((KEEP - 1..=KEEP + 1).contains(&t.0["a"].len()), "{}", t.0["a"].len());
        t.save(dir.path()).unwrap();
        assert_eq!(Trend::load(dir.path()).0, t.0);
        std::fs::write(dir.path().join("trend.json"), "torn").unwrap();
        assert!(Trend::load(dir.path()).0.is_empty());
    }
}
