//! Whether an image is complete: what must be true of every image that is published.

use std::path::{Path, PathBuf};

use crate::sys::Class;

use super::admit::sound;
use super::chain::{chain, chain_as, held};
use super::{Format, ImageError, Link, Qemu};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Space is wasted or a repair is due; the data is there.
    Note,
    /// The image is not complete.
    Broken,
}

/// One thing that is wrong, and with which file.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Finding {
    pub severity: Severity,
    pub path: PathBuf,
    pub what: String,
}

/// Looks at an image and its chain, changing nothing; an empty answer means complete. With `deep`,
/// `qemu-img check` reads all tables of every file too, which takes minutes for large images and is refused
/// while a qemu runs on one of them. `format` is the one on record, if there is one. An error means that
/// it could not be looked at, which says nothing about the image.
pub fn check(
    path: &Path,
    format: Option<Format>,
    deep: Option<&Qemu<'_>>,
) -> Result<Vec<Finding>, ImageError> {
    let links = match format {
        Some(format) => chain_as(path, format),
        None => chain(path),
    };
    let links = match links {
        Ok(links) => links,
        Err(e) if says_broken(path, &e) => return Ok(vec![broken(path, &e)]),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for pair in links.windows(2) {
        // A reader pads with zeroes, but who shrinks a root under its overlays loses what they show.
        if let [over, under] = pair
            && under.probe.virtual_size > over.probe.virtual_size
        {
            let what = "its backing file is larger than itself".into();
            found.push(Finding { severity: Severity::Note, path: over.path.clone(), what });
        }
    }
    for link in &links {
        if let Err(e) = sound(&link.probe) {
            found.push(broken(&link.path, &e));
        } else if link.probe.qcow2.as_ref().is_some_and(|q| q.dirty) {
            let what = "it was not closed properly".into();
            found.push(Finding { severity: Severity::Note, path: link.path.clone(), what });
        }
    }
    if let Some(qemu) = deep
        && found.iter().all(|f| f.severity < Severity::Broken)
    {
        if let Some(link) = held(&links)? {
            return Err(ImageError::InUse { path: link.path.clone() });
        }
        for link in &links {
            look_deep(link, qemu, &mut found)?;
        }
    }
    Ok(found)
}

fn look_deep(link: &Link, qemu: &Qemu<'_>, found: &mut Vec<Finding>) -> Result<(), ImageError> {
    let Some(counts) = qemu.check(&link.path, link.probe.format).map_err(|e| e.at(&link.path))? else {
        return Ok(());
    };
    let mut add = |n: u64, severity, what: &str| {
        if n > 0 {
            found.push(Finding { severity, path: link.path.clone(), what: format!("{n} {what}") });
        }
    };
    add(counts.corruptions, Severity::Broken, "corrupt entries in its tables");
    add(counts.check_errors, Severity::Broken, "places that could not be checked");
    add(counts.leaks, Severity::Note, "clusters that nothing uses");
    Ok(())
}

/// Errors that are an answer: the header or the chain is not what it must be.
fn says_broken(top: &Path, e: &ImageError) -> bool {
    match (e, e.cause()) {
        (ImageError::At { path, .. }, ImageError::Io { .. }) => e.class() == Class::NotFound && path != top,
        (_, ImageError::Io { .. } | ImageError::Tool(_)) => false,
        _ => matches!(e.class(), Class::Integrity | Class::Refused | Class::Unsupported),
    }
}

fn broken(path: &Path, e: &ImageError) -> Finding {
    Finding { severity: Severity::Broken, path: path.to_owned(), what: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Header, MIB, img, overlay, qemu};
    use super::*;
    use std::os::unix::fs::FileExt as _;

    fn worst(found: &[Finding]) -> Option<Severity> {
        found.iter().map(|f| f.severity).max()
    }

    #[test]
    fn complete_images_have_no_findings() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        img(dir.path(), &["create", "-q", "-f", "raw", "base", "4M"]);
        overlay(&at("mid"), Some(("base", Format::Raw)));
        overlay(&at("top"), Some(("mid", Format::Qcow2)));
        img(dir.path(), &["convert", "-f", "raw", "-O", "vpc", "base", "vhd"]);
        for name in ["base", "top", "vhd"] {
            let found = check(&at(name), None, Some(&qemu())).unwrap();
            assert!(found.is_empty(), "{name}: {found:?}");
        }
        assert_eq!(check(&at("gone"), None, None).unwrap_err().class(), Class::NotFound);
    }

    #[test]
    fn what_is_missing_or_wrong_is_found_without_a_deep_look() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        overlay(&at("orphan"), Some(("gone", Format::Qcow2)));
        overlay(&at("self"), Some(("self", Format::Qcow2)));
        img(dir.path(), &["create", "-q", "-f", "raw", "raw", "9M"]);
        overlay(&at("small"), Some(("raw", Format::Raw)));
        let whole = std::fs::read(at("small")).unwrap();
        std::fs::write(at("cut"), &whole[..whole.len() / 2]).unwrap();
        std::fs::write(at("corrupt"), Header { incompatible: 2, ..Header::default() }.bytes()).unwrap();
        std::fs::write(at("dirty"), Header { incompatible: 1, ..Header::default() }.bytes()).unwrap();
        for (name, expected) in [
            ("orphan", Severity::Broken),
            ("self", Severity::Broken),
            ("cut", Severity::Broken),
            ("corrupt", Severity::Broken),
            ("small", Severity::Note),
            ("dirty", Severity::Note),
        ] {
            assert_eq!(worst(&check(&at(name), None, None).unwrap()), Some(expected), "{name}");
        }
        let found = check(&at("raw"), Some(Format::Qcow2), None).unwrap();
        assert_eq!(worst(&found), Some(Severity::Broken), "not what is on record");
    }

    #[test]
    fn a_deep_look_reads_the_tables() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("q");
        std::fs::write(dir.path().join("data"), vec![7; usize::try_from(MIB).unwrap()]).unwrap();
        img(dir.path(), &["convert", "-f", "raw", "-O", "qcow2", "data", "q"]);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        assert!(check(&path, None, Some(&qemu())).unwrap().is_empty());
        // The refcount block says that nothing is used; the second cluster of a fresh image names it.
        file.write_all_at(&[0; 64], 2 << 16).unwrap();
        assert!(check(&path, None, None).unwrap().is_empty());
        assert_eq!(worst(&check(&path, None, Some(&qemu())).unwrap()), Some(Severity::Broken));
    }
}
