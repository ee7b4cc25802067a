//! Do the locks of two hosts exclude each other? One holds a byte of a random name and has let go of another;
//! the other must be refused the first and get the second. What was proven is noted with the mounts it was
//! proven for.

use super::{Domain, Result};
use crate::lock::{Held, LeaseId, LockError, Mode};
use crate::sys::fs;
use std::path::{Path, PathBuf};

/// What one host holds, and for the other to try.
#[derive(Debug)]
pub struct Holding {
    pub held: String,
    pub free: String,
    _lease: Box<dyn Held>,
}

/// Holds one byte, and lets go of another that was held.
pub fn hold(domain: &Domain) -> Result<Holding> {
    let [held, free] = [(); 2].map(|()| uuid::Uuid::now_v7().to_string());
    let take = |name: &String| domain.locks.try_acquire(&LeaseId::Probe(name.clone()), Mode::Exclusive);
    drop(take(&free)?);
    Ok(Holding { _lease: take(&held)?, held, free })
}

/// Whether a byte can be had here.
pub fn is_free(domain: &Domain, name: &str) -> Result<bool> {
    match domain.locks.try_acquire(&LeaseId::Probe(name.to_owned()), Mode::Exclusive) {
        Ok(_) => Ok(true),
        Err(LockError::Busy(_)) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn file(state: &Path, ds: &str, machine: &str) -> PathBuf {
    state.join("proof").join(format!("{ds}@{}", machine.replace('/', "_")))
}

/// Whether it was proven for a datastore and another machine, all being as `what` says.
pub fn is_noted(state: &Path, ds: &str, machine: &str, what: &str) -> bool {
    std::fs::read(file(state, ds, machine)).is_ok_and(|noted| noted == what.as_bytes())
}

/// Without the note it is proven again.
pub fn note(state: &Path, ds: &str, machine: &str, what: &str) {
    if let Err(e) = fs::note(&file(state, ds, machine), what.as_bytes()) {
        tracing::debug!(%e, "proof not noted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_lock_file_excludes_and_two_do_not() {
        let t = tempfile::tempdir().unwrap();
        let [a, b] = ["a", "b"].map(|d| {
            std::fs::create_dir(t.path().join(d)).unwrap();
            Domain::init_dir(&t.path().join(d)).unwrap()
        });
        let holding = hold(&a).unwrap();
        let same = Domain::open_dir(&t.path().join("a")).unwrap();
        assert!(!is_free(&same, &holding.held).unwrap() && is_free(&same, &holding.free).unwrap());
        assert!(is_free(&b, &holding.held).unwrap());
        let held = holding.held.clone();
        drop(holding);
        assert!(is_free(&same, &held).unwrap());
    }

    #[test]
    fn a_proof_is_for_the_mounts_it_was_made_with() {
        let t = tempfile::tempdir().unwrap();
        let noted = |what| is_noted(t.path(), "100", "m/1", what);
        assert!(!noted("x"));
        note(t.path(), "100", "m/1", "x");
        assert!(noted("x") && !noted("y"));
    }
}
