//! What a qcow2 header says about names, to be put back. qemu-img changes the backing file of an image last of all, by
//! one write over its header; when that comes out short, the names in it are neither the old nor the new ones.

use super::ImageError;
use super::source::{Source, be32};
use crate::sys::effect::{Effect, step};
use crate::sys::fs;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Where the header says where the name of the backing file is, and how long.
const PLACE: usize = 8;

#[derive(Debug)]
pub struct Names {
    place: Vec<u8>,
    /// Extensions and names, behind the fixed part.
    rest: Vec<u8>,
    from: u64,
}

impl Names {
    /// `None` for anything but qcow2.
    pub fn of(file: &File) -> Result<Option<Names>, ImageError> {
        let head = Source::file(file)?.some(0, 64 << 10)?;
        let at = |n: usize| head.get(n..n + 4).map(|b| be32(b, 0));
        let (Some(version @ 2..), Some(bits)) = (at(4), at(20)) else { return Ok(None) };
        if !head.starts_with(b"QFI\xfb") {
            return Ok(None);
        }
        let from = if version == 2 { 72 } else { at(100).unwrap_or(0) as usize };
        let to = head.len().min(1_usize.checked_shl(bits).unwrap_or(usize::MAX));
        let (Some(place), Some(rest)) = (head.get(PLACE..20), head.get(from..to)) else { return Ok(None) };
        Ok(Some(Names { place: place.to_vec(), rest: rest.to_vec(), from: from as u64 }))
    }

    /// The names as they were; all else in the header stays as it is now. The file below is still the one the image
    /// was built on, and nothing that the image got from it meanwhile differs from what is there.
    pub fn put_back(&self, file: &File, path: &Path) -> io::Result<()> {
        step(Effect::Write, &[path], || file.write_all_at(&self.rest, self.from))?;
        step(Effect::Write, &[path], || file.write_all_at(&self.place, PLACE as u64))?;
        fs::sync_file(file, path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::qemu;
    use super::*;
    use crate::image::{Format, Rebase, probe};
    use crate::sys::Bytes;

    const COW: Format = Format::Qcow2;

    #[test]
    fn names_that_were_written_in_part_are_put_back() {
        let dir = tempfile::tempdir().unwrap();
        let at = |n: &str| dir.path().join(n);
        let rebase = |to: &str| {
            let to = at(to).into_os_string();
            qemu().rebase(&at("x"), COW, Some((&to, COW)), Rebase::HeaderOnly).unwrap();
        };
        for n in ["x", "old"] {
            qemu().create(&at(n), COW, Bytes(1 << 20), None, &[]).unwrap();
        }
        rebase("old");
        let file = File::options().read(true).write(true).open(at("x")).unwrap();
        let (before, names) = (probe(&file).unwrap(), Names::of(&file).unwrap().unwrap());
        rebase("a-longer-name-that-is-the-new-one");
        let mut torn = [0; 100];
        file.read_exact_at(&mut torn, 0).unwrap();
        names.put_back(&file, &at("x")).unwrap();
        assert_eq!(probe(&file).unwrap(), before);
        file.write_all_at(&torn, 0).unwrap();
        assert!(probe(&file).ok() != Some(before.clone()), "the new place, the old name");
        names.put_back(&file, &at("x")).unwrap();
        assert_eq!(probe(&file).unwrap(), before);
        let check = qemu().check(&at("x"), COW).unwrap().unwrap();
        assert_eq!(check.corruptions, 0);
        std::fs::write(at("raw"), [0; 4096]).unwrap();
        assert!(Names::of(&File::open(at("raw")).unwrap()).unwrap().is_none());
    }
}
