//! What the entries of a tar archive say they are.

use std::fs::File;
use std::io;

use super::tree::{Tree, refuse};
use super::{DataError, Rationed};

/// Bytes the library may read to get at the next entry: long names and extended headers.
const RATION: u64 = 256 << 10;

/// The library's messages repeat names of any length and content; they are left out.
fn damaged(_: io::Error) -> DataError {
    DataError::BadArchive("not a readable tar".to_owned())
}

pub(super) fn read(src: &File, tree: &mut Tree<'_>) -> Result<(), DataError> {
    let (reader, ration) = Rationed::open(src, RATION)?;
    let mut archive = tar::Archive::new(reader);
    // Seeking past contents, so that the ration counts headers only.
    let mut entries = archive.entries_with_seek().map_err(damaged)?;
    loop {
        ration.set(RATION);
        let Some(entry) = entries.next() else { return Ok(()) };
        let mut entry = entry.map_err(damaged)?;
        let name = entry.path_bytes().into_owned();
        let mode = entry.header().mode().map_err(damaged)?;
        let kind = entry.header().entry_type();
        let link = entry.link_name_bytes().map(std::borrow::Cow::into_owned);
        if let Some(extensions) = entry.pax_extensions().map_err(damaged)? {
            for extension in extensions {
                // The content of such an entry begins with a map the library does not read.
                if extension.map_err(damaged)?.key_bytes().starts_with(b"GNU.sparse.") {
                    return Err(refuse(&name, "sparse files of this kind are not supported"));
                }
            }
        }
        ration.set(u64::MAX);
        if kind.is_file() || kind.is_contiguous() || kind.is_gnu_sparse() {
            let size = entry.size();
            let got = tree.file(&name, mode, &mut entry)?;
            if got != size {
                return Err(DataError::BadArchive(format!(
                    "it ends within a file, {} bytes missing",
                    size.abs_diff(got)
                )));
            }
        } else if kind.is_dir() {
            tree.dir(&name)?;
        } else if kind.is_symlink() {
            tree.symlink(&name, &link.unwrap_or_default())?;
        } else if kind.is_hard_link() {
            tree.hard_link(&name, &link.unwrap_or_default())?;
        } else if !kind.is_pax_global_extensions() {
            return Err(refuse(&name, "neither a file nor a directory nor a link"));
        }
    }
}
