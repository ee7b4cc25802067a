//! Before a host works on a datastore that this front-end sees, too: do locks of one exclude the other? Asked once
//! for each host, and again when either has mounted the datastore anew (design: locks across hosts).

use super::super::op::{Locks, Op, Tried};
use super::pair::Line;
use super::shared::text;
use super::{Front, number};
use crate::host::{Commit, Identity, Request};
use crate::lock::JobId;
use crate::sdm::{Domain, known, proof};
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;

/// Refuses a host whose locks are not ours in one of the operation's datastores.
pub(super) fn ensure(front: &Front<'_>, line: &mut Line<'_>, op: &Op) -> Result<()> {
    if line.is_here || op.only_reads() || front.job.jobs.plan.is_some() {
        return Ok(());
    }
    let at = line.at;
    let numbers: BTreeSet<i64> = op.paths().iter().filter_map(|p| number(&at.dir.root, p)).collect();
    // What is the host's own nobody else locks.
    for ds in numbers.into_iter().filter(|ds| !(at.local && front.is_own(at, *ds))) {
        one(front, line, ds)?;
    }
    Ok(())
}

fn one(front: &Front<'_>, line: &mut Line<'_>, ds: i64) -> Result<()> {
    let (key, path) = (ds.to_string(), front.settings.paths.datastores.join(ds.to_string()));
    let dir = line.at.dir.root.join(&key);
    let Some(known) = known::get(front.state, &key, &path) else { return Ok(()) };
    let peer = line.channel.peer();
    let machine =
        if peer.identity.machine.is_empty() { line.host } else { &peer.identity.machine }.to_owned();
    // Where this front-end does not see it there is nothing to try with.
    let Ok(here) = path.metadata() else { return Ok(()) };
    let theirs = format!("{}:{:?}", peer.identity.boot, peer.mount_of(&dir));
    let what = format!("{} {}:{} {theirs}", known.domain, Identity::here().boot, here.dev());
    if proof::is_noted(front.state, &key, &machine, &what) {
        return Ok(());
    }
    let domain = match Domain::inspect(&path) {
        // sanlock's locks are proven by joining.
        Ok(d) if d.header.id == known.domain && d.locks.name() == "ofd" && d.usable().is_ok() => d,
        _ => return Ok(()),
    };
    let holding = match proof::hold(&domain) {
        // Nor where this account may not take locks.
        Err(e) if e.class() == Class::Refused => return Ok(()),
        holding => holding?,
    };
    let (held, free) = (holding.held.clone(), holding.free.clone());
    let op = Op::Locks(Locks { dir: text(&dir), held, free });
    let asked = line.prepare(front, &op)?;
    // It changes nothing and is a request of its own.
    let id = JobId::generate().to_string();
    let request = Request { job: &id, body: asked.body.clone(), commit: Commit::Now, source: None };
    let answer = line.channel.call(request, &mut |_| {}, front.job.cancel());
    let tried: Tried =
        serde_json::from_str(&front.answered(&asked, answer)?).context("an answer that is none")?;
    drop(holding);
    let why = match tried {
        Tried { alone: true, .. } | Tried { held: false, free: true, .. } => {
            proof::note(front.state, &key, &machine, &what);
            return Ok(());
        }
        Tried { held: true, .. } => "each gets a lock that the other holds",
        Tried { free: false, .. } => "a lock that was let go stays held",
    };
    let text = format!(
        "host {}: its locks in {} and those of this front-end do not work together: {why}; nothing was changed. Mount it with \
         NFS 4 on both, from one server and with its locks, or use locks by sanlock",
        line.host,
        dir.display()
    );
    Err(refuse(Class::Refused, text))
}

#[cfg(test)]
mod tests {
    use crate::host::Hello;
    use std::path::Path;

    #[test]
    fn the_mount_of_a_path_is_the_deepest_that_the_host_told() {
        let text = r#"{"protocol":1,"mounts":[["/d",5],["/d/100",7],["/d/1",9]]}"#;
        let hello: Hello = serde_json::from_str(text).unwrap();
        for (path, mount) in [("/d/100", Some(7)), ("/d/101", Some(5)), ("/e/100", None)] {
            assert_eq!(hello.mount_of(Path::new(path)), mount, "{path}");
        }
        let old: Hello = serde_json::from_str(r#"{"protocol":1}"#).unwrap();
        assert_eq!(old.mount_of(Path::new("/d")), None);
    }
}
