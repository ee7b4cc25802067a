//! `monitor` of a system datastore that the front-end sees, its VMs told to monitord; and `monitor_ds`, which a
//! host's probe calls for one that is the host's own. Contract 5.2, 5.3.

use super::{At, Driver, Front};
use crate::one::{DsDump, Monitord, VmDir};
use crate::verb::tm::monitor;
use crate::verb::tm::op::{self, Op};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two datagrams: nothing tells the sender that monitord cannot keep up.
const PAUSE: Duration = Duration::from_millis(1);

/// The answer is the space. What the VMs take goes to monitord, and a failure of that is only told: the space
/// is worth more.
pub(super) fn run(front: &Front<'_>, dump: &[u8]) -> Result<String> {
    if front.driver == Driver::Local {
        // Its hosts report.
        return Ok(String::new());
    }
    let dump = DsDump::parse(dump)?;
    let root = dump.get("DATASTORE_LOCATION").map(PathBuf::from);
    let root = root.unwrap_or_else(|| front.settings.paths.datastores.clone());
    let request = dump.request(&root)?;
    front.shares.tell(&request.datastore)?;
    let ds = u32::try_from(request.datastore.id).ok().context("a datastore without a number")?;
    // It is a place in the datastore that counts, whatever VM.
    let dir = VmDir { root, ds, vm: 0 };
    let at = At { host: None, dir: &dir, local: false };
    let to = if request.monitor_vm_disks { monitord(front) } else { None };
    let path = dir.datastore().to_string_lossy().into_owned();
    let found = front.ask(&at, &Op::Monitor(op::Monitor { dir: path, vms: to.is_some() }))?;
    let (space, vms) = found.split_once('\n').unwrap_or((&found, ""));
    if let Some(to) = to {
        tell(front, &to, vms);
    }
    Ok(space.to_owned())
}

/// What a host's own datastore holds, by its directory.
pub(super) fn of_host(dir: &Path) -> Result<String> {
    monitor::local(dir)
}

fn monitord(front: &Front<'_>) -> Option<Monitord> {
    Monitord::configured(&front.settings.paths.etc).unwrap_or_else(|e| {
        (front.warn)(&format!("what VMs take is not reported: {e}"));
        None
    })
}

fn tell(front: &Front<'_>, to: &Monitord, vms: &str) {
    for (i, lines) in batches(vms, to.payload()).into_iter().enumerate() {
        if i > 0 && !front.job.cancel().wait(PAUSE) {
            return;
        }
        if let Err(e) = to.send("MONITOR_VM", true, -1, lines.as_bytes()) {
            (front.warn)(&format!("what VMs take is not reported: {e}"));
        }
    }
}

/// As many whole lines together as fit; a line that is too long alone.
fn batches(text: &str, size: usize) -> Vec<&str> {
    let (mut out, mut begin, mut end) = (Vec::new(), 0, 0);
    for line in text.split_inclusive('\n') {
        if end > begin && end + line.len() - begin > size {
            out.push(&text[begin..end]);
            begin = end;
        }
        end += line.len();
    }
    if end > begin {
        out.push(&text[begin..end]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_whole_lines_and_lose_none() {
        let lines: String = (0..200).map(|n| format!("{}\n", "x".repeat(n * 7 % 50))).collect();
        for (text, size) in [("", 9), ("a", 9), ("a\nb\nc\n", 4), ("long line\nb\n", 4), (&*lines, 60)] {
            let parts = batches(text, size);
            assert_eq!(parts.concat(), text);
            for p in &parts {
                assert!(p.len() <= size || p.lines().count() == 1, "{p:?}");
                assert!(p.ends_with('\n') || text.ends_with(p), "{p:?}");
            }
        }
        assert_eq!(batches("a\nb\nc\n", 4), ["a\nb\n", "c\n"]);
    }
}
