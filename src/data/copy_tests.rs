use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::data::Progress;
use crate::sys::Cancel;

fn with(size: u64, extents: &[(u64, Vec<u8>)]) -> File {
    let f = tempfile::tempfile().unwrap();
    f.set_len(size).unwrap();
    for (at, data) in extents {
        f.write_all_at(data, *at).unwrap();
    }
    f
}

fn content(f: &File) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(f.metadata().unwrap().len()).unwrap()];
    f.read_exact_at(&mut out, 0).unwrap();
    out
}

fn memory() -> File {
    File::from(rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC).unwrap())
}

#[derive(Default)]
struct Sum {
    total: AtomicU64,
    done: AtomicU64,
}

impl Progress for Sum {
    fn total(&self, n: u64) {
        self.total.store(n, Ordering::SeqCst);
    }
    fn add(&self, n: u64) {
        self.done.fetch_add(n, Ordering::SeqCst);
    }
    fn phase(&self, _: &'static str) {}
}

#[test]
fn holes_stay_holes_and_the_last_one_too() {
    let size = 64 << 20;
    let src =
        with(size, &[(4 << 20, vec![1; 100_000]), (32 << 20, vec![0; 1 << 20]), (40 << 20, vec![2; 10])]);
    // 4 KiB granules, and a mebibyte of written zeros that only Detect takes away.
    for (sparse, least, most) in [
        (Sparse::Keep, 1 << 20, 2 << 20),
        (Sparse::Detect, 100_000, 200_000),
        (Sparse::Full, size, size + (1 << 20)),
    ] {
        for dst in [tempfile::tempfile().unwrap(), memory()] {
            let sum = Arc::new(Sum::default());
            let copied =
                copy(&src, &dst, sparse, &Watch { progress: sum.clone(), ..Watch::default() }).unwrap();
            assert_eq!(copied.size, size);
            assert!(content(&dst) == content(&src), "{sparse:?}");
            let space = dst.metadata().unwrap().blocks() * 512;
            assert!(
                (least..=most).contains(&space) || copied.method == Method::Reflink,
                "{sparse:?}: {space}"
            );
            assert_eq!((sum.total.load(Ordering::SeqCst), sum.done.load(Ordering::SeqCst)), (size, size));
            if copied.method == Method::Sparse {
                // Another file system: the kernel does not copy there.
                assert!(copied.data < 2 << 20);
            }
        }
    }
}

#[test]
fn empty_and_odd_sizes() {
    for size in [0, 1, 4095, 4097, BUF as u64 + 1] {
        let src = with(size, &[(0, vec![3; usize::try_from(size.min(5000)).unwrap()])]);
        for sparse in [Sparse::Keep, Sparse::Detect, Sparse::Full] {
            let dst = memory();
            assert_eq!(copy(&src, &dst, sparse, &Watch::default()).unwrap().size, size);
            assert_eq!(content(&dst), content(&src), "{sparse:?} {size}");
        }
    }
}

#[test]
fn a_target_with_content_is_refused_and_a_pipe_is_no_source() {
    let src = with(10, &[]);
    let got = copy(&src, &with(1, &[]), Sparse::Keep, &Watch::default());
    assert!(matches!(got, Err(DataError::TargetNotEmpty { size: 1 })));
    let null = File::open("/dev/zero").unwrap();
    assert!(matches!(copy(&null, &memory(), Sparse::Keep, &Watch::default()), Err(DataError::Io { .. })));
}

/// Does something to the source while it is copied.
struct Meddle(File, u64, Cancel);

impl Progress for Meddle {
    fn total(&self, _: u64) {}
    fn add(&self, _: u64) {
        self.0.set_len(self.1).unwrap();
        self.2.request();
    }
    fn phase(&self, _: &'static str) {}
}

#[test]
fn a_source_that_changes_its_size_is_an_error_and_a_stop_is_one() {
    let size = 3 * BUF as u64;
    for (to, cancels) in [(size - 1, false), (size / 2, false), (size + 1, false), (size, true)] {
        let src = with(size, &[(0, vec![1; 3 * BUF])]);
        let cancel = Cancel::default();
        let other = if cancels { cancel.clone() } else { Cancel::default() };
        let progress = Arc::new(Meddle(src.try_clone().unwrap(), to, other));
        let got = copy(&src, &memory(), Sparse::Detect, &Watch { cancel, progress });
        if cancels {
            assert!(matches!(got, Err(DataError::Cancelled { phase: "copying" })), "{got:?}");
        } else {
            assert!(matches!(got, Err(DataError::SourceChanged { .. })), "{to}: {got:?}");
        }
    }
}

#[test]
fn punching_gives_space_back_and_is_done_once() {
    let f =
        with(5 << 20, &[(0, vec![0; 4 << 20]), (1 << 20, vec![1; 5000]), ((5 << 20) - 100, vec![0; 100])]);
    let before = content(&f);
    let space = f.metadata().unwrap().blocks();
    // All but the two blocks that the 5000 bytes touch and whole blocks only.
    assert!(punch(&f, &Watch::default()).unwrap() >= (4 << 20) - 8192);
    assert!(f.metadata().unwrap().blocks() < space - 4000);
    assert_eq!(content(&f), before);
    assert_eq!(punch(&f, &Watch::default()).unwrap(), 0);

    let odd = with(4196, &[(0, vec![0; 4196])]);
    punch(&odd, &Watch::default()).unwrap();
    assert_eq!(odd.metadata().unwrap().len(), 4196);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn content_is_equal_for_any_extents(
        size in 0u64..3_000_000,
        extents in proptest::collection::vec((0u64..3_000_000, 1usize..200_000, 0u8..3), 0..8),
        sparse in prop_oneof![Just(Sparse::Keep), Just(Sparse::Detect), Just(Sparse::Full)],
        into_memory: bool,
    ) {
        let src = with(0, &extents.into_iter().map(|(at, n, b)| (at, vec![b; n])).collect::<Vec<_>>());
        src.set_len(size).unwrap();
        let dst = if into_memory { memory() } else { tempfile::tempfile().unwrap() };
        copy(&src, &dst, sparse, &Watch::default()).unwrap();
        prop_assert!(content(&dst) == content(&src));
        punch(&dst, &Watch::default()).unwrap();
        prop_assert!(content(&dst) == content(&src));
    }
}
