//! What a qcow2 header says about names, to be put back. qemu-img changes the backing file of an image last of all, by
//! one write over its header; when that comes out short, the names in it are neither the old nor the new ones.

use super::ImageError;
use super::source::{Source, be32};
use std::fs::File;

/// Where the header says where the name of the backing file is, and how long.
const PLACE: usize = 8;

/// The parts of a header that say it, each with its place; none of anything but qcow2. All else in the header may change
/// before they are put back. The file below is still the one the image was built on then, and nothing that the
/// image got from it meanwhile differs from what is there.
pub fn names(file: &File) -> Result<Vec<(u64, Vec<u8>)>, ImageError> {
    let head = Source::file(file)?.some(0, 64 << 10)?;
    let at = |n: usize| head.get(n..n + 4).map(|b| be32(b, 0));
    let (Some(version @ 2..), Some(bits)) = (at(4), at(20)) else { return Ok(Vec::new()) };
    // Extensions and names are behind the fixed part.
    let from = if version == 2 { 72 } else { at(100).unwrap_or(0) as usize };
    let to = head.len().min(1_usize.checked_shl(bits).unwrap_or(usize::MAX));
    match (head.get(PLACE..20), head.get(from..to)) {
        (Some(place), Some(rest)) if head.starts_with(b"QFI\xfb") => {
            Ok(vec![(from as u64, rest.to_vec()), (PLACE as u64, place.to_vec())])
        }
        _ => Ok(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::qemu;
    use super::*;
    use crate::image::{Format, Rebase, probe};
    use crate::sys::Bytes;
    use std::os::unix::fs::FileExt as _;

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
        let (before, old) = (probe(&file).unwrap(), names(&file).unwrap());
        let put_back = || old.iter().try_for_each(|(from, bytes)| file.write_all_at(bytes, *from)).unwrap();
        rebase("a-longer-name-that-is-the-new-one");
        let mut torn = [0; 100];
        file.read_exact_at(&mut torn, 0).unwrap();
        put_back();
        assert_eq!(probe(&file).unwrap(), before);
        file.write_all_at(&torn, 0).unwrap();
        assert!(probe(&file).ok() != Some(before.clone()), "the new place, the old name");
        put_back();
        assert_eq!(probe(&file).unwrap(), before);
        let check = qemu().check(&at("x"), COW).unwrap().unwrap();
        assert_eq!(check.corruptions, 0);
        std::fs::write(at("raw"), [0; 4096]).unwrap();
        assert!(names(&File::open(at("raw")).unwrap()).unwrap().is_empty());
    }
}
