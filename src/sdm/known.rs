//! What this front-end knows of each datastore: the domain it was when it was first used, and whether
//! it was a mount. A later request that finds another domain, or none, meets unmounted storage.

use super::{Domain, Result, SdmError};
use crate::obs;
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
}

fn file(state: &Path, ds_id: &str) -> PathBuf {
    state.join("datastore").join(format!("{ds_id}.json"))
}

/// Every datastore this front-end knows, by its OpenNebula id.
pub fn all(state: &Path) -> Vec<(String, Known)> {
    let mut out: Vec<(String, Known)> = std::fs::read_dir(state.join("datastore"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let id = e.path().file_stem()?.to_str()?.to_owned();
            Some((id, serde_json::from_slice(&std::fs::read(e.path()).ok()?).ok()?))
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

/// Opens the domain of a datastore for changing it, making it on the very first request. `ds_id` is
/// OpenNebula's number; without one nothing is remembered. Losing the memory loses a protection, not
/// data: the id is asked from the storage again.
pub fn open(state: &Path, ds_id: Option<&str>, path: &Path) -> Result<Domain> {
    let place = path.display().to_string();
    let io = |source| SdmError::Io { what: place.clone(), source };
    let known: Option<Known> = ds_id
        .and_then(|id| std::fs::read(file(state, id)).ok())
        .and_then(|b| serde_json::from_slice(&b).ok())
        .filter(|k: &Known| k.path == path);
    let not_mounted = |why: String| SdmError::NotMounted { place: place.clone(), why };
    let mount = match is_mount(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(not_mounted("the directory does not exist".to_owned()));
        }
        m => m.map_err(io)?,
    };
    match &known {
        Some(k) if k.mount && !mount => {
            return Err(not_mounted(format!("it was a mount when this host last used it ({})", k.since)));
        }
        None if !mount && wants_mount(path) => {
            return Err(not_mounted("the system's mount table has an entry for it".to_owned()));
        }
        _ => {}
    }
    match Domain::open_dir(path) {
        Ok(d) => {
            if let Some(k) = &known
                && k.domain != d.header.id
            {
                let (expected, found) = (k.domain.to_string(), d.header.id.to_string());
                return Err(SdmError::WrongDomain { place, expected, found });
            }
            if let (None, Some(id)) = (&known, ds_id) {
                remember(state, id, path, &d, mount);
            }
            Ok(d)
        }
        Err(SdmError::NotADomain { .. }) => {
            if let Some(k) = &known {
                let expected = k.domain.to_string();
                return Err(SdmError::WrongDomain { place, expected, found: "none".to_owned() });
            }
            let d = Domain::init_dir(path)?;
            if let Some(id) = ds_id {
                remember(state, id, path, &d, mount);
            }
            Ok(d)
        }
        Err(e) => Err(e),
    }
}

/// Best effort: whole or not at all, and no error of the verb.
fn remember(state: &Path, ds_id: &str, path: &Path, domain: &Domain, mount: bool) {
    let k = Known { domain: domain.header.id, path: path.to_owned(), mount, since: obs::now() };
    if let Err(e) = write(state, ds_id, &k) {
        tracing::debug!(%e, "datastore not remembered");
    }
}

#[expect(clippy::disallowed_methods, reason = "a note of this host, not storage")]
fn write(state: &Path, ds_id: &str, k: &Known) -> io::Result<()> {
    let path = file(state, ds_id);
    std::fs::create_dir_all(state.join("datastore"))?;
    let tmp = path.with_extension(format!("tmp{}", std::process::id()));
    std::fs::write(&tmp, serde_json::to_vec(k)?)?;
    std::fs::rename(tmp, path)
}

/// Forgets a datastore, so that the next request takes what it finds.
#[expect(clippy::disallowed_methods, reason = "a note of this host, not storage")]
pub fn forget(state: &Path, ds_id: &str) -> io::Result<()> {
    match std::fs::remove_file(file(state, ds_id)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
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
        let k = Known { domain, path: ds.clone(), mount: true, since: String::new() };
        write(&state, "7", &k).unwrap();
        assert!(matches!(open(&state, Some("7"), &ds), Err(SdmError::NotMounted { .. })));
        assert!(!ds.join(".sdm").exists());
    }
}
