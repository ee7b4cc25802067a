//! What this front-end knows of each datastore: the domain it was when it was first used, and whether
//! it was a mount. A later request that finds another domain, or none, meets unmounted storage.

use super::{Domain, Result, SdmError};
use crate::connection::Share;
use crate::obs;
use crate::sys::effect::only_looks;
use crate::sys::fs::{self, Dir};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Known {
    pub domain: uuid::Uuid,
    pub path: PathBuf,
    pub mount: bool,
    pub since: String,
    /// A host told it; this front-end has not opened it itself and need not see it.
    #[serde(default)]
    pub elsewhere: bool,
    /// What is to be mounted there, as it was said last: not every request says so again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
}

fn file(state: &Path, ds_id: &str) -> PathBuf {
    state.join("datastore").join(format!("{ds_id}.json"))
}

/// Every datastore this front-end has opened or sees, by its OpenNebula id.
pub fn all(state: &Path) -> Vec<(String, Known)> {
    let mut out: Vec<(String, Known)> = std::fs::read_dir(state.join("datastore"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let id = e.path().file_stem()?.to_str()?.to_owned();
            let known: Known = serde_json::from_slice(&std::fs::read(e.path()).ok()?).ok()?;
            let is_here = if id.contains('@') {
                // A host's own: another has the same path. That host may be this machine.
                Domain::open_dir(&known.path).is_ok_and(|d| d.header.id == known.domain)
            } else {
                !known.elsewhere || known.path.join(".sdm").is_dir()
            };
            is_here.then_some((id, known))
        })
        .collect();
    out.sort_by_key(|(id, _)| (id.len(), id.clone()));
    out
}

fn is_mount(path: &Path) -> io::Result<bool> {
    Ok(std::fs::metadata(path)?.dev() != std::fs::metadata(path.join(".."))?.dev())
}

/// Whether the system's mount table wants something mounted here.
fn wants_mount(path: &Path) -> bool {
    let table = std::fs::read_to_string("/etc/fstab").unwrap_or_default();
    table
        .lines()
        .filter(|l| !l.trim_start().starts_with('#'))
        .any(|l| l.split_whitespace().nth(1).is_some_and(|p| Path::new(p) == path))
}

/// What is known of a datastore, if it was known at this place. `key` is OpenNebula's number, with
/// `@` and a host behind it where the storage is that host's own.
pub fn get(state: &Path, key: &str, path: &Path) -> Option<Known> {
    let bytes = std::fs::read(file(state, key)).ok()?;
    serde_json::from_slice(&bytes).ok().filter(|k: &Known| k.path == path)
}

/// Refuses a place of this host that was a mount and is none now.
pub fn still_mounted(known: &Known) -> Result<()> {
    let place = || known.path.display().to_string();
    if known.mount && !is_mount(&known.path).map_err(|source| SdmError::Io { what: place(), source })? {
        let why = format!("it was a mount when this host last used it ({})", known.since);
        return Err(SdmError::NotMounted { place: place(), why });
    }
    Ok(())
}

/// Opens the domain of a datastore for changing it, making it on the very first request. `ds_id` is
/// OpenNebula's number; without one nothing is remembered. Losing the memory loses a protection, not
/// data: the id is asked from the storage again.
pub fn open(state: &Path, ds_id: Option<&str>, path: &Path) -> Result<Domain> {
    let known = ds_id.and_then(|id| get(state, id, path));
    if !path.exists() {
        let (place, why) = (path.display().to_string(), "the directory does not exist".to_owned());
        return Err(SdmError::NotMounted { place, why });
    }
    known.as_ref().map_or(Ok(()), still_mounted)?;
    let domain = open_as(path, known.as_ref().map(|k| k.domain), Storage::Shared)?;
    if let Some(id) = ds_id.filter(|_| known.is_none_or(|k| k.elsewhere)) {
        note(state, id, path, domain.header.id, false);
    }
    Ok(domain)
}

/// The domain of a datastore that is a volume group, if it is the one that was known.
pub fn expected(state: &Path, ds_id: &str, path: &Path, domain: Domain) -> Result<Domain> {
    match get(state, ds_id, path) {
        Some(k) if k.domain != domain.header.id => {
            let (expected, found) = (k.domain.to_string(), domain.header.id.to_string());
            Err(SdmError::WrongDomain { place: domain.place, expected, found })
        }
        Some(_) => Ok(domain),
        None => {
            note(state, ds_id, path, domain.header.id, false);
            Ok(domain)
        }
    }
}

/// Whether other hosts see a datastore's storage, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    Shared,
    /// A host that was installed anew has an empty one.
    Local,
}

/// Opens the domain of a datastore whose memory is elsewhere: with the front-end that asks. Without an
/// expected domain it is the first request of all, and makes it.
pub fn open_as(path: &Path, expected: Option<uuid::Uuid>, storage: Storage) -> Result<Domain> {
    let place = path.display().to_string();
    let io = |source| SdmError::Io { what: place.clone(), source };
    let not_mounted = |why: &str| SdmError::NotMounted { place: place.clone(), why: why.to_owned() };
    let may_make = expected.is_none() || storage == Storage::Local;
    let mount = match is_mount(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if !may_make || wants_mount(path) || only_looks() {
                return Err(not_mounted("the directory does not exist"));
            }
            make(path).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => not_mounted("the directory does not exist"),
                _ => io(e),
            })?;
            false
        }
        m => m.map_err(io)?,
    };
    if expected.is_none() && !mount && wants_mount(path) {
        return Err(not_mounted("the system's mount table has an entry for it"));
    }
    let wrong = |expected: uuid::Uuid, found: String| {
        let expected = expected.to_string();
        Err(SdmError::WrongDomain { place: place.clone(), expected, found })
    };
    match Domain::open_dir(path) {
        Ok(d) => match expected {
            Some(id) if id != d.header.id => wrong(id, d.header.id.to_string()),
            _ => Ok(d),
        },
        Err(SdmError::NotADomain { .. }) => match expected {
            Some(id) if storage == Storage::Shared || !is_empty(path).map_err(io)? => {
                wrong(id, "none".to_owned())
            }
            _ if only_looks() => Domain::to_be(path),
            _ => Domain::init_dir(path),
        },
        Err(e) => Err(e),
    }
}

fn is_empty(path: &Path) -> io::Result<bool> {
    Ok(std::fs::read_dir(path)?.next().is_none())
}

/// The directory of a datastore that nobody used yet, as stock drivers make it; its parent must be there.
fn make(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    match Dir::open(parent)?.mkdir(name, 0o777, false) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        r => r,
    }
}

/// Remembers. Best effort: whole or not at all, and no error of the verb.
pub fn note(state: &Path, key: &str, path: &Path, domain: uuid::Uuid, elsewhere: bool) {
    let mount = !elsewhere && is_mount(path).unwrap_or(false);
    let share = get(state, key, path).and_then(|k| k.share);
    let k = Known { domain, path: path.to_owned(), mount, since: obs::now(), elsewhere, share };
    remember(state, key, &k);
}

/// Remembers what is to be mounted where a datastore is that is known.
pub fn note_share(state: &Path, key: &str, path: &Path, share: Option<&Share>) {
    if let Some(k) = get(state, key, path).filter(|k| k.share.as_ref() != share) {
        remember(state, key, &Known { share: share.cloned(), ..k });
    }
}

fn remember(state: &Path, key: &str, k: &Known) {
    if only_looks() {
        return;
    }
    if let Err(e) = write(state, key, k) {
        tracing::debug!(%e, "datastore not remembered");
    }
}

fn write(state: &Path, ds_id: &str, k: &Known) -> io::Result<()> {
    fs::note(&file(state, ds_id), &serde_json::to_vec(k)?)
}

/// Forgets a datastore, so that the next request takes what it finds.
pub fn forget(state: &Path, ds_id: &str) -> io::Result<()> {
    fs::unnote(&file(state, ds_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Red team 1.2: a share that is not mounted must not become another, empty domain.
    #[test]
    fn an_unmounted_datastore_is_noticed() {
        let t = tempfile::tempdir().unwrap();
        let (state, ds) = (t.path().join("state"), t.path().join("ds"));
        std::fs::create_dir(&ds).unwrap();
        let first = open(&state, Some("100"), &ds).unwrap().header.id;
        assert_eq!(open(&state, Some("100"), &ds).unwrap().header.id, first);
        std::fs::rename(&ds, t.path().join("away")).unwrap();
        assert!(matches!(open(&state, Some("100"), &ds), Err(SdmError::NotMounted { .. })));
        std::fs::create_dir(&ds).unwrap();
        std::fs::write(ds.join("foreign"), "").unwrap();
        assert!(matches!(open(&state, Some("100"), &ds), Err(SdmError::WrongDomain { .. })));
        assert!(!ds.join(".sdm").exists(), "nothing was created");
        Domain::init_dir(&ds).unwrap();
        assert!(matches!(open(&state, Some("100"), &ds), Err(SdmError::WrongDomain { .. })));
        forget(&state, "100").unwrap();
        open(&state, Some("100"), &ds).unwrap();
    }

    #[test]
    fn a_mount_that_is_gone_is_noticed_even_when_the_directory_is_empty() {
        let t = tempfile::tempdir().unwrap();
        let (state, ds) = (t.path().join("state"), t.path().join("ds"));
        std::fs::create_dir(&ds).unwrap();
        let domain = uuid::Uuid::now_v7();
        let k = Known {
            domain,
            path: ds.clone(),
            mount: true,
            since: String::new(),
            elsewhere: false,
            share: None,
        };
        write(&state, "7", &k).unwrap();
        assert!(matches!(open(&state, Some("7"), &ds), Err(SdmError::NotMounted { .. })));
        assert!(!ds.join(".sdm").exists());
    }

    /// A volume group says itself which domain it is.
    #[test]
    fn another_volume_group_in_its_place_is_noticed() {
        let t = tempfile::tempdir().unwrap();
        let (state, group) = (t.path().join("state"), Path::new("/dev/vg-one-100"));
        let opened = |name: &str| {
            let ds = t.path().join(name);
            std::fs::create_dir_all(&ds).unwrap();
            expected(&state, "100", group, Domain::open_dir(&ds).or_else(|_| Domain::init_dir(&ds)).unwrap())
        };
        let first = opened("first").unwrap().header.id;
        assert_eq!(opened("first").unwrap().header.id, first);
        assert!(matches!(opened("second"), Err(SdmError::WrongDomain { .. })));
        forget(&state, "100").unwrap();
        assert_ne!(opened("second").unwrap().header.id, first);
    }

    /// A host does what the front-end expects: the storage that it knows, and no other in its place.
    #[test]
    fn a_host_opens_what_is_expected_and_makes_only_what_nobody_knew() {
        let t = tempfile::tempdir().unwrap();
        let ds = t.path().join("101");
        let shared = |expected| open_as(&ds, expected, Storage::Shared);
        let first = shared(None).unwrap().header.id;
        assert_eq!(shared(Some(first)).unwrap().header.id, first);
        let other = Some(uuid::Uuid::now_v7());
        assert!(matches!(shared(other), Err(SdmError::WrongDomain { .. })));
        assert!(matches!(open_as(&ds, other, Storage::Local), Err(SdmError::WrongDomain { .. })));
        // Not mounted: empty, or not there at all.
        std::fs::rename(&ds, t.path().join("away")).unwrap();
        assert!(matches!(shared(Some(first)), Err(SdmError::NotMounted { .. })));
        std::fs::create_dir(&ds).unwrap();
        assert!(matches!(shared(Some(first)), Err(SdmError::WrongDomain { .. })));
        assert!(std::fs::read_dir(&ds).unwrap().next().is_none(), "nothing was created");
        // A host's own storage, installed anew; but not over what somebody put there.
        std::fs::write(ds.join("foreign"), "").unwrap();
        assert!(matches!(open_as(&ds, Some(first), Storage::Local), Err(SdmError::WrongDomain { .. })));
        std::fs::remove_file(ds.join("foreign")).unwrap();
        let anew = open_as(&ds, Some(first), Storage::Local).unwrap().header.id;
        assert_ne!(anew, first);
        let nowhere = t.path().join("none/101");
        assert!(matches!(open_as(&nowhere, None, Storage::Local), Err(SdmError::NotMounted { .. })));
    }

    #[test]
    fn what_a_host_told_is_expected_and_listed_when_it_is_seen() {
        let t = tempfile::tempdir().unwrap();
        let (state, ds) = (t.path().join("state"), t.path().join("101"));
        let id = uuid::Uuid::now_v7();
        note(&state, "101", &ds, id, true);
        note(&state, "102@h1", &ds, id, true);
        assert_eq!(get(&state, "101", &ds).map(|k| k.domain), Some(id));
        assert!(get(&state, "101", t.path()).is_none() && all(&state).is_empty());
        std::fs::create_dir(&ds).unwrap();
        assert!(matches!(open(&state, Some("101"), &ds), Err(SdmError::WrongDomain { .. })));
        Domain::init_dir(&ds).unwrap();
        assert_eq!(all(&state).len(), 1);
    }
}
