//! A directory for one verb's secrets: nobody else may read it, and it goes with its verb. What a killed one
//! leaves is taken away by the next.

use crate::sys::fs::{Dir, ignore_absent};
use anyhow::{Context as _, Result};
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

pub(super) struct Stage {
    home: Dir,
    name: OsString,
    /// Locked as long as it is ours.
    dir: Dir,
}

impl Stage {
    /// A new directory below `home`, which is made when missing.
    pub fn new(home: &Path) -> Result<Stage> {
        Stage::make(home).with_context(|| format!("making a private directory below {}", home.display()))
    }

    fn make(home: &Path) -> io::Result<Stage> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(home)?;
        let home = Dir::open(home)?;
        for name in home.names()? {
            // Of a verb that died: nobody holds it. Who is faster than we takes it away.
            let dead = home.sub(Path::new(&name)).and_then(|d| Ok((d.try_lock()?, d)));
            if let Ok((true, _held)) = dead {
                ignore_absent(home.remove_tree(&name))?;
            }
        }
        loop {
            let name = OsString::from(uuid::Uuid::now_v7().to_string());
            home.mkdir(&name, 0o700, false)?;
            let locked = home.sub(Path::new(&name)).and_then(|d| Ok((d.try_lock()?, d)));
            // Between its birth and its lock another may have taken it for dead.
            match locked {
                Ok((true, dir)) if home.entry(&name)?.is_some() => return Ok(Stage { home, name, dir }),
                Ok(_) => {}
                Err(e) => ignore_absent(Err(e))?,
            }
        }
    }

    pub fn dir(&self) -> &Dir {
        &self.dir
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(e) = self.home.remove_tree(&self.name) {
            tracing::warn!(dir = %self.dir.path().display(), error = %e, "a private directory stays");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn it_is_private_and_goes_and_so_do_those_of_the_dead_only() {
        let t = tempfile::tempdir().unwrap();
        let home = t.path().join("a/b");
        let one = Stage::new(&home).unwrap();
        assert_eq!(one.dir().path().metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::create_dir_all(home.join("dead/deep")).unwrap();
        std::fs::write(home.join("dead/deep/secret"), "x").unwrap();
        let two = Stage::new(&home).unwrap();
        std::fs::write(two.dir().path().join("secret"), "x").unwrap();
        let count = || std::fs::read_dir(&home).unwrap().count();
        assert_eq!(count(), 2, "those that live stay");
        drop(two);
        assert_eq!(count(), 1);
        drop(one);
        assert_eq!(count(), 0);
    }

    #[test]
    fn many_at_once_do_not_take_each_other_away() {
        let t = tempfile::tempdir().unwrap();
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    for _ in 0..50 {
                        let stage = Stage::new(t.path()).unwrap();
                        assert!(stage.dir().path().exists());
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(t.path()).unwrap().count(), 0);
    }
}
