//! What a datastore's mount means for its locks.

use super::{Finding, Verdict};
use crate::lock::reach::{Locks, locks};
use crate::sys::{self, mounts::Mount};

/// A kernel that claims locks again which a server gave away meanwhile lets two hosts believe that they hold one.
const LOST: &str = "recover_lost_locks";

/// What the kernel makes of locks that an NFS server does not know any more.
pub fn lost_locks() -> Option<String> {
    sys::mounts::parameter("nfs", LOST)
}

/// The findings on a datastore's mount, with what `lost_locks` says.
pub fn judge(place: &str, m: &Mount, lost_locks: Option<&str>) -> Vec<Finding> {
    let shown = format!("{} on {} ({})", m.kind, m.point.display(), m.source);
    let one = "let only one host change this datastore";
    let (verdict, detail, remedy) = match locks(m) {
        Locks::Local => (Verdict::Ok, format!("{shown}: only this host sees it"), String::new()),
        Locks::Shared => (
            Verdict::Ok,
            format!(
                "{shown}: locks reach other hosts; a front-end proves it for each host that it sends work to"
            ),
            String::new(),
        ),
        Locks::Alone(why) => {
            let better = if m.kind.starts_with("nfs") {
                ", or mount it with NFS 4 and without that option"
            } else {
                ""
            };
            (Verdict::Warn, format!("{shown}: {why}"), format!("{one}{better}"))
        }
        Locks::None(why) => (Verdict::Bad, format!("{shown}: {why}"), "mount it with locks".to_owned()),
    };
    let mut out = vec![Finding::new("locks", place, verdict, detail, remedy)];
    if m.kind.starts_with("nfs") && locks(m) == Locks::Shared && lost_locks == Some("Y") {
        out.push(Finding::warn(
            "locks",
            place,
            format!("nfs.{LOST} is on: after a cut this host takes locks again that others got meanwhile, and is not told"),
            format!(
                "echo N >/sys/module/nfs/parameters/{LOST}, and take it off the kernel's command line and out of /etc/modprobe.d"
            ),
        ));
    }
    if m.kind.starts_with("nfs") && m.options.iter().any(|o| o == "nocto") {
        out.push(Finding::warn(
            "mount",
            place,
            format!(
                "{shown} is mounted with nocto: this host goes on believing names and sizes that others have changed meanwhile"
            ),
            "mount it without nocto",
        ));
    }
    if m.options.iter().any(|o| o == "ro") {
        out.push(Finding::bad(
            "mount",
            place,
            format!("{shown} is mounted read-only"),
            "look into the kernel's log for the reason, then remount it",
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::mounts::parse;

    #[test]
    fn what_is_not_in_order_comes_with_a_remedy() {
        for (kind, options) in
            [("ext4", "rw"), ("nfs4", "rw,vers=4.2"), ("nfs", "rw,vers=3"), ("lustre", "rw")]
        {
            for f in judge("/x", &parse(&format!("1 0 0:1 / /x rw - {kind} src {options}"))[0], None) {
                assert_eq!(f.remedy.is_empty(), f.verdict == Verdict::Ok, "{f:?}");
            }
        }
        let ro = &parse("1 0 0:1 / /x ro,relatime - ext4 src rw")[0];
        assert!(judge("/x", ro, None).iter().any(|f| f.check == "mount" && f.verdict == Verdict::Bad));
        let stale = &parse("1 0 0:1 / /x rw - nfs4 src rw,vers=4.2,nocto")[0];
        let found = judge("/x", stale, None);
        assert!(found.iter().any(|f| f.check == "mount" && f.verdict == Verdict::Warn), "{found:?}");
    }

    #[test]
    fn locks_that_come_back_unasked_are_warned_of_where_locks_count() {
        let warned = |kind: &str, options: &str, lost: Option<&str>| {
            let m = &parse(&format!("1 0 0:1 / /x rw - {kind} src {options}"))[0];
            judge("/x", m, lost).iter().any(|f| f.detail.contains(LOST) && f.verdict == Verdict::Warn)
        };
        assert!(warned("nfs4", "rw,vers=4.2", Some("Y")));
        assert!(!warned("nfs4", "rw,vers=4.2", Some("N")));
        assert!(!warned("nfs4", "rw,vers=4.2", None));
        assert!(!warned("nfs", "rw,vers=3", Some("Y")), "there are none that reach other hosts");
        assert!(!warned("xfs", "rw", Some("Y")));
    }
}
