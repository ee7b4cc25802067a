//! The drivers below the remotes directory, against what an install wrote down.

use super::Finding;
use crate::cli::install::{Manifest, Stand, Style, Tree, cost};
use crate::cli::table::{VERBS, Verb};
use crate::sys::{path, user};
use crate::verb::one_line;
use std::path::Path;

pub fn look(remotes: &Path) -> Vec<Finding> {
    let object = remotes.display();
    if !remotes.is_dir() {
        return vec![Finding::warn(
            "install",
            object,
            "does not exist",
            "set paths.remotes, if oned runs here",
        )];
    }
    let audit = Tree::open(remotes).and_then(|t| Ok((t.audit()?, t.manifest)));
    match audit {
        Err(e) => vec![Finding::bad(
            "install",
            object,
            one_line(&e),
            "restore the file from a backup, or put the stock scripts back",
        )],
        Ok((_, None)) => vec![Finding::ok("install", object, "nothing was installed by `onesdm install`")],
        Ok((verbs, Some(m))) => {
            let mut out = program(remotes, &m);
            out.extend(judge(remotes, &m, &verbs));
            out
        }
    }
}

/// The file all names lead to.
fn program(remotes: &Path, m: &Manifest) -> Vec<Finding> {
    let (object, p) = (remotes.display(), m.program());
    let again = "run `onesdm install` again";
    if !p.is_file() || !user::may_execute(p) {
        let detail = format!("all names lead to {}, which is no program", p.display());
        return vec![Finding::bad(
            "program",
            object,
            detail,
            format!("put it back, or {again} with the one to be used"),
        )];
    }
    let mut out = Vec::new();
    if path::own_program().is_ok_and(|own| own != *p) {
        out.push(Finding::warn(
            "program",
            &object,
            format!("all names lead to {}, another program than this", p.display()),
            format!("{again} to change that"),
        ));
    }
    if m.version != env!("CARGO_PKG_VERSION") {
        let detail = format!("installed by version {}; this is {}", m.version, env!("CARGO_PKG_VERSION"));
        out.push(Finding::warn("program", &object, detail, again));
    }
    if out.is_empty() {
        out.push(Finding::ok("program", object, cost(m.style, p, m.verbs.len())));
    }
    out
}

/// One finding per verb that is not as it should be; one for all when all are.
fn judge(remotes: &Path, m: &Manifest, verbs: &[(String, Stand)]) -> Vec<Finding> {
    let again = "`onesdm install` makes it ours again, `onesdm install --uninstall` leaves it";
    let mut out = Vec::new();
    for (path, stand) in verbs {
        let at = remotes.join(path);
        let object = at.display();
        out.extend(match stand {
            Stand::Good => None,
            Stand::Absent => Some(Finding::bad("install", object, "is gone", "run `onesdm install` again")),
            Stand::Foreign => Some(Finding::bad(
                "install",
                object,
                "is not ours any more: an upgrade put another file there",
                again,
            )),
            Stand::Elsewhere(to) => Some(Finding::warn(
                "install",
                object,
                format!("leads to {}, in another way than the rest", to.display()),
                "run `onesdm install` again",
            )),
            Stand::Unkept => Some(Finding::bad(
                "install",
                object,
                "the stock file it replaced is gone: no way back",
                "copy it from the package before --uninstall",
            )),
            Stand::Torn => {
                Some(Finding::warn("install", object, "an install was interrupted here", "run it again"))
            }
        });
    }
    for dir in dirs(m) {
        let (role, _) = dir.split_once('/').unwrap_or_default();
        let offered = VERBS.iter().filter(|v| v.run.is_some() && v.role.to_string() == role);
        for name in offered.flat_map(Verb::names) {
            let path = format!("{dir}/{name}");
            if m.entry(&path).is_none() {
                let object = remotes.join(&path);
                out.push(Finding::warn(
                    "install",
                    object.display(),
                    "this version offers it, and it is not installed",
                    "run `onesdm install` again",
                ));
            }
        }
    }
    if out.is_empty() {
        let how = if m.style == Style::Shim { "files of two lines" } else { "symlinks" };
        out.push(Finding::ok(
            "install",
            remotes.display(),
            format!("{} names of {} are ours, as {how}", verbs.len(), dirs(m).join(", ")),
        ));
    }
    out
}

fn dirs(m: &Manifest) -> Vec<&str> {
    let mut out: Vec<&str> = m.verbs.iter().filter_map(|e| Some(e.path.rsplit_once('/')?.0)).collect();
    out.dedup();
    out
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;
    use crate::cli::table::Role;

    #[test]
    fn each_stand_is_told() {
        let mut m = Manifest::new(Style::Symlink, String::new());
        for v in VERBS.iter().filter(|v| v.run.is_some() && v.role == Role::Datastore) {
            m.verbs.push(crate::cli::install::Entry { path: format!("datastore/fs/{}", v.name), kept: None });
        }
        let judged = |stand: Stand| judge(Path::new("/r"), &m, &[("datastore/fs/cp".to_owned(), stand)]);
        for (stand, verdict) in [
            (Stand::Good, Verdict::Ok),
            (Stand::Absent, Verdict::Bad),
            (Stand::Foreign, Verdict::Bad),
            (Stand::Elsewhere("/x".into()), Verdict::Warn),
            (Stand::Unkept, Verdict::Bad),
            (Stand::Torn, Verdict::Warn),
        ] {
            let found = judged(stand.clone());
            assert_eq!((found.len(), found[0].verdict), (1, verdict), "{stand:?}: {found:?}");
            assert_eq!(found[0].remedy.is_empty(), verdict == Verdict::Ok);
        }
        m.verbs.retain(|e| e.path != "datastore/fs/rm");
        let found = judge(Path::new("/r"), &m, &[]);
        assert!(
            found.iter().any(|f| f.object == "/r/datastore/fs/rm" && f.verdict == Verdict::Warn),
            "{found:?}"
        );
    }
}
