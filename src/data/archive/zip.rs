//! What the entries of a zip archive say they are.

use std::fs::File;
use std::io::Read as _;

use super::tree::{Tree, refuse};
use super::{DataError, Rationed};

/// Bytes of directory per entry that may come, and for the search for it.
const PER_ENTRY: u64 = 1 << 10;
const RATION: u64 = 1 << 20;
/// The longest target of a link.
const TARGET: u64 = 4096;

pub(super) fn read(src: &File, tree: &mut Tree<'_>) -> Result<(), DataError> {
    let damaged = |_| DataError::BadArchive("not a readable zip".to_owned());
    let directory = tree.limits().entries.saturating_mul(PER_ENTRY).saturating_add(RATION);
    let (reader, ration) = Rationed::open(src, directory)?;
    let mut archive = zip::ZipArchive::new(reader).map_err(damaged)?;
    ration.set(u64::MAX);
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(damaged)?;
        let name = entry.name_raw().to_vec();
        let mode = entry.unix_mode().unwrap_or(0o644);
        // The file type of the Unix mode; archives made elsewhere have none.
        match mode & 0o170_000 {
            0o120_000 => {
                let mut target = Vec::new();
                (&mut entry)
                    .take(TARGET)
                    .read_to_end(&mut target)
                    .map_err(|_| refuse(&name, "its target cannot be read"))?;
                tree.symlink(&name, &target)?;
            }
            0 | 0o100_000 | 0o040_000 if entry.is_dir() => tree.dir(&name)?,
            0 | 0o100_000 => {
                tree.file(&name, mode, &mut entry)?;
            }
            _ => return Err(refuse(&name, "neither a file nor a directory nor a link")),
        }
    }
    Ok(())
}
