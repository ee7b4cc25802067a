//! Locks of several hosts: is there a daemon, has this host joined, and what happens when it loses them.

use super::{Finding, Verdict};
use crate::lock::{LockError, SanlockLocks, sanlock};
use crate::sys::sanlock::Watchdog;

/// The findings, and whether the locks can be used.
pub fn look(place: &str, locks: &SanlockLocks, without: bool) -> (Vec<Finding>, bool) {
    let mut out = Vec::new();
    let (finding, joined) = membership(place, locks.membership());
    out.push(finding);
    if let Ok(w) = sanlock::watchdog() {
        out.push(watchdog(place, &w, without));
    }
    (out, joined)
}

fn membership(place: &str, m: Result<Option<u64>, LockError>) -> (Finding, bool) {
    match m {
        Ok(Some(id)) => (Finding::ok("membership", place, format!("joined as host {id}")), true),
        Ok(None) => {
            let detail = "this host has not joined: no verb can change anything here";
            (
                Finding::bad("membership", place, detail, "onesdm domain join; enable onesdm-join.service"),
                false,
            )
        }
        Err(e) => {
            let remedy =
                "apt install sanlock libsanlock-client1, start it, and put this account into its group";
            (Finding::bad("membership", place, e, remedy), false)
        }
    }
}

fn watchdog(place: &str, w: &Watchdog, without: bool) -> Finding {
    let remedy = "start wdmd, and sanlock without -w 0";
    match w {
        Watchdog::Used => Finding::ok("watchdog", place, "a host that loses its leases is reset"),
        Watchdog::Unknown => {
            Finding::warn("watchdog", place, "whether sanlock uses one could not be seen", remedy)
        }
        Watchdog::Off(why) => {
            let verdict = if without { Verdict::Warn } else { Verdict::Bad };
            let detail = format!(
                "none ({why}): a host that loses its leases may still write while another host has them"
            );
            Finding::new("watchdog", place, verdict, detail, remedy)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_watchdog_is_bad_unless_it_was_accepted() {
        for (w, without, verdict) in [
            (Watchdog::Used, false, Verdict::Ok),
            (Watchdog::Off("-w 0"), false, Verdict::Bad),
            (Watchdog::Off("-w 0"), true, Verdict::Warn),
            (Watchdog::Unknown, true, Verdict::Warn),
        ] {
            assert_eq!(watchdog("/x", &w, without).verdict, verdict, "{w:?} {without}");
        }
    }

    #[test]
    fn a_host_that_has_not_joined_is_told_how() {
        let (f, joined) = membership("/x", Ok(None));
        assert!(!joined && f.verdict == Verdict::Bad && f.remedy.contains("domain join"));
        assert!(membership("/x", Ok(Some(3))).1);
    }
}
