//! Whether the data a qcow2's tables point at is there. Readers take what lies beyond the end of a file
//! for zeroes and say nothing, so an image cut short on its way would look complete.

use std::fs::File;

use super::source::{Source, be64};
use super::{Format, ImageError, Probe};

/// Bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;
/// A cluster that reads zero whatever lies there; with subclusters the bit means nothing.
const ZERO: u64 = 1;

/// Reads the tables of a qcow2, a small part of its file, and refuses with class integrity when they name
/// a place beyond its end. Of other formats nothing is read.
pub fn whole(file: &File, probe: &Probe) -> Result<(), ImageError> {
    let (Some(q), None) = (&probe.qcow2, &probe.data_file) else { return Ok(()) };
    let source = Source::file(file)?;
    let len = source.len.unwrap_or(0);
    let (cluster, (l1, entries)) = (1u64 << q.cluster_bits, q.l1_table());
    let mut tables = 0;
    for first in (0..entries).step_by(PART) {
        let part = source.exact(Format::Qcow2, l1 + first * 8, (entries - first).min(PART as u64) * 8)?;
        for l2 in part.chunks_exact(8).map(|e| be64(e, 0) & OFFSET).filter(|at| *at != 0) {
            tables += 1;
            // Each has a place of its own, or a small file would keep us busy for hours.
            if tables > len / cluster {
                return Err(ImageError::damaged(Format::Qcow2, "its L2 tables overlap"));
            }
            let table = source.exact(Format::Qcow2, l2, cluster)?;
            let data = table.chunks_exact(q.l2_entry()).filter_map(|e| place(be64(e, 0), q.cluster_bits));
            if let Some(at) = data.max().filter(|at| *at >= len) {
                return Err(ImageError::Truncated { format: Format::Qcow2, need: at + 1, have: len });
            }
        }
    }
    Ok(())
}

/// Entries of the L1 table read at once.
const PART: usize = 1 << 16;

/// Where the data of an L2 entry begins.
fn place(entry: u64, cluster_bits: u32) -> Option<u64> {
    let at = match entry {
        e if e & COMPRESSED != 0 => e & ((1 << (70 - cluster_bits)) - 1),
        e if e & ZERO != 0 => 0,
        e => e & OFFSET,
    };
    (at != 0).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{MIB, img, zoo};
    use super::super::probe::probe;
    use super::*;
    use crate::sys::Class;
    use std::os::unix::fs::FileExt as _;

    fn judge(path: &std::path::Path) -> Result<(), ImageError> {
        let file = File::open(path).unwrap();
        whole(&file, &probe(&file).unwrap())
    }

    #[test]
    fn complete_images_are_and_cut_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for (_, path) in zoo(dir.path()) {
            judge(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        }
        std::fs::write(
            dir.path().join("data"),
            (0..3 * MIB).map(|n| (n * n % 251) as u8).collect::<Vec<_>>(),
        )
        .unwrap();
        for options in [
            &[][..],
            &["-c"],
            &["-o", "compat=0.10"],
            &["-o", "cluster_size=512"],
            &["-o", "cluster_size=2M"],
            &["-o", "extended_l2=on"],
            &["-o", "preallocation=metadata"],
            &["-o", "preallocation=falloc"],
        ] {
            img(dir.path(), &[&["convert", "-f", "raw", "-O", "qcow2"], options, &["data", "q"]].concat());
            let path = dir.path().join("q");
            judge(&path).unwrap_or_else(|e| panic!("{options:?}: {e}"));
            let file = File::options().write(true).open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            // Within its last cluster a file may end: not all of that need have been written.
            let tail = if options == ["-o", "cluster_size=2M"] { 4 * MIB } else { len / 8 };
            for keep in [len - tail, len / 2] {
                file.set_len(keep).unwrap();
                // What is left may end in the header's own tables; then that is the error.
                let e = probe(&File::open(&path).unwrap()).and_then(|p| {
                    super::super::admit(&p, &super::super::Admit::default())?;
                    judge(&path)
                });
                assert_eq!(e.map_err(|e| e.class()), Err(Class::Integrity), "{options:?} {keep} of {len}");
            }
        }
    }

    #[test]
    fn tables_that_overlap_cost_no_hours() {
        let dir = tempfile::tempdir().unwrap();
        img(dir.path(), &["create", "-q", "-f", "qcow2", "q", "1T"]);
        let path = dir.path().join("q");
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let l1 = probe(&file).unwrap().qcow2.unwrap().l1_table();
        for n in 0..l1.1 {
            file.write_all_at(&(1u64 << 16).to_be_bytes(), l1.0 + n * 8).unwrap();
        }
        let e = judge(&path).unwrap_err();
        assert!(matches!(e.class(), Class::Integrity), "{e}");
    }
}
