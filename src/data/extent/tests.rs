use super::*;
use crate::data::Watch;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMITS: Limits = Limits { entries: 20, size: 1 << 40 };

/// Makes what comes in a directory, and notes the rest.
struct Ground {
    dir: tempfile::TempDir,
    links: BTreeMap<String, String>,
    complete: usize,
}

impl Ground {
    fn new() -> Ground {
        Ground { dir: tempfile::tempdir().unwrap(), links: BTreeMap::new(), complete: 0 }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }
}

impl Land for Ground {
    type Error = DataError;

    fn dir(&mut self, path: &str, _: u32) -> Result<(), DataError> {
        std::fs::create_dir(self.at(path)).map_err(DataError::io("making a directory"))
    }

    fn link(&mut self, path: &str, to: &str) -> Result<(), DataError> {
        self.links.insert(path.into(), to.into());
        Ok(())
    }

    fn file(&mut self, path: &str, _: u32, _: u64) -> Result<File, DataError> {
        let open = File::options().read(true).write(true).create(true).truncate(false).open(self.at(path));
        open.map_err(DataError::io("making a file"))
    }

    fn complete(&mut self, _: &str, _: &File) -> Result<(), DataError> {
        self.complete += 1;
        Ok(())
    }
}

/// A file of this size with these bytes at these places.
fn file(size: u64, data: &[(u64, Vec<u8>)]) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    for (at, bytes) in data {
        let n = bytes.len().min(usize::try_from(size.saturating_sub(*at)).unwrap());
        file.write_all_at(&bytes[..n], *at).unwrap();
    }
    file
}

fn content(file: &File) -> Vec<u8> {
    let mut out = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
    file.read_exact_at(&mut out, 0).unwrap();
    out
}

/// The blocks of a stream, for a receiver that has this; on a way that takes `pause` per block.
fn stream(have: &Have, pause: Duration, entries: impl FnOnce(&mut Sender<'_>)) -> (Vec<Vec<u8>>, Sent) {
    let (mut blocks, watch) = (Vec::new(), Watch::default());
    let mut sink = |b| {
        blocks.push(b);
        std::thread::sleep(pause);
        Ok(())
    };
    let mut sender = Sender::begin("this one", None, &watch, &mut sink).unwrap();
    let mut answer = have.blocks(true).unwrap().into_iter();
    assert!(sender.wanted(|| Ok(answer.next().unwrap())).unwrap());
    entries(&mut sender);
    let sent = sender.end().unwrap();
    assert!(blocks.iter().all(|b| b.len() <= 4 << 20));
    (blocks, sent)
}

fn one(file: &File) -> (Vec<Vec<u8>>, Sent) {
    stream(&Have::default(), Duration::ZERO, |s| drop(s.file("f", 0o644, file).unwrap()))
}

fn land(blocks: &[Vec<u8>], have: Have, ground: &mut Ground) -> Result<String, DataError> {
    let watch = Watch::default();
    let mut receiver = Receiver::new(LIMITS, &watch);
    receiver.answer(have, true).unwrap();
    let mut last = Received::More;
    for block in blocks {
        last = receiver.take(block, ground)?;
    }
    match last {
        Received::Ended { digest } => Ok(digest),
        _ => Err(bad("no end")),
    }
}

/// The text of a refusal; nothing was complete.
fn refused(blocks: &[Vec<u8>]) -> String {
    let mut ground = Ground::new();
    let e = land(blocks, Have::default(), &mut ground).unwrap_err();
    e.to_string()
}

fn head(b: &[u8]) -> Head {
    parse(b).unwrap().0
}

fn made(head: &Head, payload: &[u8]) -> Vec<u8> {
    block(head, payload).unwrap()
}

#[test]
fn a_tree_arrives_as_it_was_sent_and_holes_stay_holes() {
    let disk = file(64 << 20, &[(5 << 20, vec![7; 8192]), ((64 << 20) - 100, vec![8; 100])]);
    let zeros = file(3 << 20, &[(0, vec![0; 3 << 20])]);
    let (blocks, sent) = stream(&Have::default(), Duration::ZERO, |s| {
        s.dir("disk.0.snap", 0o755).unwrap();
        s.link("disk.0.snap/disk.0.snap", ".").unwrap();
        s.file("disk.0.snap/0", 0o600, &disk).unwrap();
        s.link("disk.0", "disk.0.snap/0").unwrap();
        s.file("empty", 0o644, &file(0, &[])).unwrap();
        s.file("zeros", 0o644, &zeros).unwrap();
        s.bytes("1.current", 0o644, b"/x/0\n").unwrap();
    });
    assert_eq!((sent.size, sent.data), ((67 << 20) + 5, 8192 + 4096 + 5));
    assert!(sent.wire < 20_000, "{sent:?}");
    let mut ground = Ground::new();
    assert_eq!(land(&blocks, Have::default(), &mut ground).unwrap(), sent.digest);
    assert_eq!(ground.complete, 4);
    let got = File::open(ground.at("disk.0.snap/0")).unwrap();
    assert!(content(&got) == content(&disk));
    assert!(got.metadata().unwrap().blocks() <= disk.metadata().unwrap().blocks() + 8);
    let got = File::open(ground.at("zeros")).unwrap().metadata().unwrap();
    assert_eq!((got.len(), got.blocks()), (3 << 20, 0), "zeros that were written are holes, too");
    assert_eq!(std::fs::read(ground.at("1.current")).unwrap(), b"/x/0\n");
    assert_eq!(ground.links["disk.0"], "disk.0.snap/0");
}

#[test]
fn a_slow_way_gets_compressed_data_and_both_agree() {
    let text: Vec<u8> = (0..20 << 20).map(|i: usize| b"ab12"[i % 1021 % 4]).collect();
    let disk = file(text.len() as u64, &[(0, text.clone())]);
    let (blocks, sent) =
        stream(&Have::default(), Duration::from_millis(40), |s| drop(s.file("f", 0o644, &disk).unwrap()));
    let zipped = blocks.iter().filter(|b| matches!(head(b), Head::Chunk { how: How::Zstd, .. })).count();
    assert!(zipped >= 10 && sent.wire < 10 << 20, "{zipped} {sent:?}");
    let mut ground = Ground::new();
    let got = land(&blocks, Have::default(), &mut ground).unwrap();
    assert!(content(&File::open(ground.at("f")).unwrap()) == text);
    assert_eq!(got, one(&disk).1.digest, "the digest is of the content");
}

#[test]
fn what_arrived_before_a_cut_is_not_sent_again() {
    let mib = |n: u8| vec![n; 1 << 20];
    let disk = file(8 << 20, &[(0, mib(1)), (2 << 20, mib(2)), (5 << 20, mib(3)), (7 << 20, vec![4; 5000])]);
    let (blocks, _) = one(&disk);
    let mut ground = Ground::new();
    assert!(land(&blocks[..4], Have::default(), &mut ground).is_err());
    let staged = File::options().read(true).write(true).open(ground.at("f")).unwrap();
    // What the medium lost of it, and what does not belong there.
    staged.write_all_at(&[9], (2 << 20) + 77).unwrap();
    staged.write_all_at(&[9], 3 << 20).unwrap();
    let told = |ground: &Ground| {
        let mut have = Have::default();
        have.add("f", digests(&File::open(ground.at("f")).unwrap(), &Watch::default()).unwrap());
        have
    };
    let (again, _) = stream(&told(&ground), Duration::ZERO, |s| drop(s.file("f", 0o644, &disk).unwrap()));
    let kept: Vec<u64> = again
        .iter()
        .filter_map(|b| match head(b) {
            Head::Chunk { n, how: How::Kept, .. } => Some(n),
            _ => None,
        })
        .collect();
    assert_eq!(kept, [0]);
    assert!(land(&again, Have::default(), &mut Ground::new()).is_err(), "nothing is there");
    land(&again, told(&ground), &mut ground).unwrap();
    assert!(content(&staged) == content(&disk));
    assert_eq!(staged.metadata().unwrap().blocks(), disk.metadata().unwrap().blocks());
    let (all, sent) = stream(&told(&ground), Duration::ZERO, |s| drop(s.file("f", 0o644, &disk).unwrap()));
    assert!(sent.wire < 3000, "{sent:?}");
    land(&all, told(&ground), &mut ground).unwrap();
    assert!(content(&staged) == content(&disk));
}

#[test]
fn a_receiver_may_want_nothing() {
    let (watch, mut n) = (Watch::default(), 0);
    let mut sink = |_| {
        n += 1;
        Ok(())
    };
    let mut sender = Sender::begin("x", None, &watch, &mut sink).unwrap();
    let mut answer = Have::default().blocks(false).unwrap().into_iter();
    assert!(!sender.wanted(|| Ok(answer.next().unwrap())).unwrap());
    assert_eq!(n, 1);
}

#[test]
fn the_limit_holds() {
    let (watch, begin) = (Watch::default(), std::time::Instant::now());
    let mut sink = |_| Ok(());
    let mut sender = Sender::begin("x", Some(10 << 20), &watch, &mut sink).unwrap();
    sender.file("f", 0o644, &file(2 << 20, &[(0, vec![1; 2 << 20])])).unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(190));
    watch.cancel.request();
    assert!(matches!(sender.dir("d", 0o755), Err(DataError::Cancelled { .. })));
}

#[test]
fn a_stream_that_ends_early_or_lacks_a_block_is_refused() {
    let disk = file(5 << 20, &[(0, vec![1; 9000]), (2 << 20, vec![2; 9000]), (4 << 20, vec![3; 1 << 20])]);
    let (blocks, _) = one(&disk);
    for n in 0..blocks.len() {
        refused(&blocks[..n]);
        let mut less = blocks.clone();
        less.remove(n);
        refused(&less);
        let mut twice = blocks.clone();
        twice.insert(n, blocks[n].clone());
        refused(&twice);
        if n > 0 {
            let mut swapped = blocks.clone();
            swapped.swap(n - 1, n);
            refused(&swapped);
        }
    }
    let mut more = blocks.clone();
    more.push(blocks[1].clone());
    assert!(refused(&more).contains("out of turn"));
}

#[test]
fn every_flipped_bit_is_found() {
    let (blocks, sent) = one(&file(3 << 20, &[(0, vec![1; 100]), (2 << 20, vec![2; 9000])]));
    for (b, whole) in blocks.iter().enumerate() {
        for at in (0..whole.len()).step_by(if whole.len() > 2000 { 37 } else { 1 }) {
            let mut bent = blocks.clone();
            bent[b][at] ^= 1;
            let mut ground = Ground::new();
            // Of what the source is called nothing is checked here, nor is white space in JSON.
            if let Ok(digest) = land(&bent, Have::default(), &mut ground) {
                assert!(b == 0 && digest == sent.digest, "block {b} byte {at}");
            }
        }
    }
}

#[test]
fn hostile_streams_are_refused() {
    let begin = made(&Head::Begin { format: 1, source: String::new() }, &[]);
    let f = |path: &str, size| made(&Head::File { path: path.into(), mode: 0o644, size }, &[]);
    let l = |path: &str, to: &str| made(&Head::Link { path: path.into(), to: to.into() }, &[]);
    let chunk = |n, map: Map, data: &[u8], how| {
        let digest = map.digest(data).to_hex().to_string();
        made(&Head::Chunk { n, map: map.hex(), digest, how }, data)
    };
    let first = Map::of(&[1; 4096]);
    let zipped = |data: &[u8], len: usize| {
        let digest = first.digest(&data[..len]).to_hex().to_string();
        let zip = zstd::bulk::compress(data, 1).unwrap();
        made(&Head::Chunk { n: 0, map: first.hex(), digest, how: How::Zstd }, &zip)
    };
    let bomb = vec![0; 64 << 20];
    let (good, short) = (vec![1; 4096], chunk(0, first, &[1; 100], How::Plain));
    let raw = |text: &[u8]| [&u16::try_from(text.len()).unwrap().to_be_bytes()[..], text].concat();
    for (blocks, says) in [
        (vec![], "no end"),
        (vec![vec![]], "without a head"),
        (vec![vec![0]], "without a head"),
        (vec![vec![0xff; 10]], "cut off"),
        (vec![raw(b"{}")], "a head that is none"),
        (vec![raw(b"{\"begin\":{\"format\":1,\"source\":\"\",\"x\":1}}")], "unknown field"),
        (vec![made(&Head::Begin { format: 2, source: String::new() }, &[])], "format 2"),
        (vec![begin.clone(), begin.clone()], "out of turn"),
        (vec![begin.clone(), f("a", 1), f("b", 1)], "cut off"),
        (vec![begin.clone(), [f("a", 1), vec![1]].concat()], "bytes where none belong"),
        (vec![begin.clone(), chunk(0, first, &good, How::Plain)], "out of turn"),
        (vec![begin.clone(), f("a", 1 << 41)], "more than the allowed"),
        (vec![begin.clone(), f("../a", 1)], "the name"),
        (vec![begin.clone(), f("/a", 1)], "the name"),
        (vec![begin.clone(), f("a/./b", 1)], "the name"),
        (vec![begin.clone(), f("", 1)], "the name"),
        (vec![begin.clone(), f("a\nb", 1)], "the name"),
        (vec![begin.clone(), f(&"a/".repeat(600), 1)], "the name"),
        (vec![begin.clone(), f("d/a", 1)], "in no directory"),
        (vec![begin.clone(), l("d", "."), f("d/a", 1)], "in no directory"),
        (vec![begin.clone(), l("a", "b"), l("a", "c")], "comes twice"),
        (vec![begin.clone(), l("a", "../../etc/passwd")], "upwards"),
        (vec![begin.clone(), l("a", "/x/../y")], "upwards"),
        (vec![begin.clone(), f("a", 4096), chunk(1, first, &good, How::Plain)], "beyond the end"),
        (vec![begin.clone(), f("a", 4096), chunk(u64::MAX, first, &good, How::Plain)], "beyond the end"),
        (vec![begin.clone(), f("a", 4096), chunk(0, Map([255; 32]), &good, How::Plain)], "beyond the end"),
        (vec![begin.clone(), f("a", 4096), chunk(0, Map([0; 32]), &[], How::Plain)], "without data"),
        (vec![begin.clone(), f("a", 4096), short], "not what its digest says"),
        (vec![begin.clone(), f("a", 4096), zipped(&bomb, 4096)], "damaged transfer"),
        (vec![begin.clone(), f("a", 4096), zipped(&good, 100)], "not what its digest says"),
        (vec![begin.clone(), f("a", 4096), chunk(0, first, &[], How::Kept)], "not here"),
    ] {
        let text = refused(&blocks);
        assert!(text.contains(says), "{text} / {says}");
    }
    let many: Vec<_> = [begin].into_iter().chain((0..21).map(|i| l(&format!("l{i}"), "."))).collect();
    assert!(refused(&many).contains("more than 20"));
    // The answers of a receiver.
    for answer in [f("a", 1), made(&Head::Have { path: "a".into(), first: 0 }, &[1; 33]), vec![1]] {
        assert!(Have::default().take(&answer).is_err());
    }
    let beyond = made(&Head::Have { path: "a".into(), first: u64::MAX }, &[1; 64]);
    assert!(Have::default().take(&beyond).is_err());
}

#[test]
fn the_blocks_of_real_disks_are_few() {
    let watch = Watch::default();
    let big = file(1 << 40, &[(1 << 39, vec![1; 4096])]);
    let (blocks, _) = one(&big);
    assert_eq!(blocks.len(), 5, "a terabyte of nothing takes no time");
    assert_eq!(digests(&big, &watch).unwrap().len(), 1);
    assert!(!Path::new("f").exists());
}

fn pieces() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let bytes = (prop_oneof![Just(0u8), any::<u8>()], 1usize..300_000).prop_map(|(b, n)| vec![b; n]);
    proptest::collection::vec((0u64..5_000_000, bytes), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, rng_seed: proptest::test_runner::RngSeed::Fixed(7), ..ProptestConfig::default() })]

    #[test]
    fn any_file_arrives_whole_also_over_any_other(
        size in 0u64..5_000_000, data in pieces(), old_size in 0u64..5_000_000, old in pieces(),
    ) {
        let disk = file(size, &data);
        let (blocks, sent) = one(&disk);
        let mut ground = Ground::new();
        prop_assert_eq!(land(&blocks, Have::default(), &mut ground).unwrap(), sent.digest.clone());
        let got = File::open(ground.at("f")).unwrap();
        prop_assert!(content(&got) == content(&disk));
        prop_assert!(got.metadata().unwrap().blocks() <= disk.metadata().unwrap().blocks());

        let (ground, mut have) = (&mut Ground::new(), Have::default());
        std::fs::write(ground.at("f"), content(&file(old_size, &old))).unwrap();
        have.add("f", digests(&File::open(ground.at("f")).unwrap(), &Watch::default()).unwrap());
        let (blocks, again) = stream(&have, Duration::ZERO, |s| drop(s.file("f", 0o644, &disk).unwrap()));
        prop_assert_eq!(&again.digest, &sent.digest);
        land(&blocks, have, ground).unwrap();
        prop_assert!(content(&File::open(ground.at("f")).unwrap()) == content(&disk));
    }
}
