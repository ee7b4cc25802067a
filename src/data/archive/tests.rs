use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use ::tar::{Builder, EntryType, Header};
use ::zip::write::SimpleFileOptions;

use super::*;
use crate::sys::{Cancel, Class};

const LIMITS: Limits = Limits { entries: 100, bytes: 1 << 20 };

/// One entry as a hostile author would write it: no library between it and the bytes.
struct Entry<'a>(EntryType, &'a str, &'a str, u32, &'a [u8]);

fn tar(entries: &[Entry<'_>]) -> File {
    let mut builder = Builder::new(Vec::new());
    for Entry(kind, name, link, mode, data) in entries {
        let mut header = Header::new_ustar();
        header.set_entry_type(*kind);
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(*mode);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, *data).unwrap();
    }
    file(&builder.into_inner().unwrap())
}

fn file(data: &[u8]) -> File {
    let mut f = tempfile::tempfile().unwrap();
    f.write_all(data).unwrap();
    f
}

/// The directory to unpack into has a neighbour that must not change.
fn try_unpack(kind: Archive, src: &File, limits: Limits) -> (tempfile::TempDir, Result<Unpacked, DataError>) {
    let outer = tempfile::tempdir().unwrap();
    std::fs::write(outer.path().join("precious"), "kept").unwrap();
    let into = outer.path().join("in");
    std::fs::create_dir(&into).unwrap();
    let got = unpack(kind, src, &into, limits, &Watch::default());
    let mut names: Vec<_> = outer.path().read_dir().unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["in", "precious"]);
    assert_eq!(std::fs::read(outer.path().join("precious")).unwrap(), b"kept");
    (outer, got)
}

const F: EntryType = EntryType::Regular;
const D: EntryType = EntryType::Directory;
const S: EntryType = EntryType::Symlink;
const H: EntryType = EntryType::Link;

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let zeros = vec![0; 600_000];
    let src = tar(&[
        Entry(D, "./", "", 0o755, b""),
        Entry(F, "./a", "", 0o640, b"text"),
        Entry(F, "deep/er/b", "", 0o444, &zeros),
        Entry(D, "deep/", "", 0o2555, b""),
        Entry(D, "empty", "", 0o700, b""),
        Entry(S, "deep/er/up", "../../a", 0o777, b""),
        Entry(S, "here", "deep/./er", 0o777, b""),
        Entry(H, "deep/same", "a", 0o644, b""),
    ]);
    let (outer, got) = try_unpack(Archive::Tar, &src, LIMITS);
    assert_eq!(got.unwrap().bytes, 600_004);
    let at = |p: &str| outer.path().join("in").join(p);
    assert_eq!(std::fs::read(at("deep/er/up")).unwrap(), b"text");
    assert_eq!(std::fs::read(at("here/b")).unwrap(), zeros);
    assert_eq!(at("deep/er/b").metadata().unwrap().blocks(), 0, "zeros are a hole");
    assert_eq!(at("a").metadata().unwrap().ino(), at("deep/same").metadata().unwrap().ino());
    let mode = |p: &str| at(p).metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("a"), mode("deep/er/b"), mode("deep") & 0o6000), (0o640, 0o644, 0));
    assert!(at("empty").is_dir());
}

#[test]
fn hostile_entries_are_refused() {
    let a = || Entry(F, "a", "", 0o644, b"x");
    let cases = vec![
        ("absolute", vec![Entry(F, "/tmp/x", "", 0o644, b"x")]),
        ("dotdot", vec![Entry(F, "../precious", "", 0o644, b"x")]),
        ("dotdot inside", vec![Entry(F, "a/../../precious", "", 0o644, b"x")]),
        ("dotdot directory", vec![Entry(D, "..", "", 0o755, b"")]),
        ("no name", vec![Entry(F, "", "", 0o644, b"x")]),
        ("only a dot", vec![Entry(F, "./", "", 0o644, b"x")]),
        ("setuid", vec![Entry(F, "a", "", 0o4755, b"x")]),
        ("setgid", vec![Entry(F, "a", "", 0o2755, b"x")]),
        ("fifo", vec![Entry(EntryType::Fifo, "a", "", 0o644, b"")]),
        ("device", vec![Entry(EntryType::Block, "a", "", 0o644, b"")]),
        ("character device", vec![Entry(EntryType::Char, "a", "", 0o644, b"")]),
        ("unknown", vec![Entry(EntryType::new(b'Q'), "a", "", 0o644, b"")]),
        ("link to absolute", vec![Entry(S, "a", "/etc", 0o777, b"")]),
        ("link out", vec![Entry(S, "a", "../precious", 0o777, b"")]),
        ("link to above", vec![Entry(S, "d/a", "../..", 0o777, b"")]),
        ("link to nothing", vec![Entry(S, "a", "", 0o777, b"")]),
        // `d/e/up` is the top, so `d/e/up/..` is above it although the names say otherwise.
        (
            "link by link",
            vec![Entry(S, "d/e/up", "../..", 0o777, b""), Entry(S, "x", "d/e/up/..", 0o777, b"")],
        ),
        (
            "through a link",
            vec![
                Entry(D, "d", "", 0o755, b""),
                Entry(S, "l", "d", 0o777, b""),
                Entry(F, "l/x", "", 0o644, b"x"),
            ],
        ),
        ("through a file", vec![a(), Entry(F, "a/x", "", 0o644, b"x")]),
        ("over a link", vec![Entry(S, "l", "a", 0o777, b""), Entry(F, "l", "", 0o644, b"x")]),
        ("twice", vec![a(), a()]),
        ("hard link out", vec![Entry(H, "x", "../precious", 0o644, b"")]),
        ("hard link to absolute", vec![Entry(H, "x", "/etc/passwd", 0o644, b"")]),
        ("hard link to nothing", vec![Entry(H, "x", "y", 0o644, b"")]),
        ("hard link to a link", vec![Entry(S, "l", "a", 0o777, b""), Entry(H, "x", "l", 0o644, b"")]),
        ("hard link to itself", vec![Entry(H, "./", "./", 0o644, b"")]),
        (
            "sparse of the new kind",
            vec![Entry(EntryType::XHeader, "h", "", 0o644, b"22 GNU.sparse.major=1\n"), a()],
        ),
    ];
    for (name, entries) in cases {
        let (_outer, got) = try_unpack(Archive::Tar, &tar(&entries), LIMITS);
        let e = got.expect_err(name);
        assert!(matches!(e, DataError::HostileArchive { .. }), "{name}: {e:?}");
        assert_eq!(e.class(), Class::Refused);
        assert!(!e.to_string().contains('\n'));
    }
}

#[test]
fn bombs_and_damage_are_refused() {
    let many: Vec<_> = (0..101).map(|n| format!("f{n}")).collect();
    let many: Vec<_> = many.iter().map(|n| Entry(F, n, "", 0o644, b"")).collect();
    let got = try_unpack(Archive::Tar, &tar(&many), LIMITS).1;
    assert!(matches!(got, Err(DataError::TooManyEntries(100))), "{got:?}");

    let deep = "d/".repeat(45) + "f";
    let deep: Vec<_> = ["a/", "b/", "c/"].iter().map(|p| p.to_string() + &deep).collect();
    let deep: Vec<_> = deep.iter().map(|n| Entry(F, n, "", 0o644, b"")).collect();
    let got = try_unpack(Archive::Tar, &tar(&deep), LIMITS).1;
    assert!(matches!(got, Err(DataError::TooManyEntries(100))), "directories count: {got:?}");

    let big = vec![0; 600 << 10];
    let got = try_unpack(
        Archive::Tar,
        &tar(&[Entry(F, "a", "", 0o644, &big), Entry(F, "b", "", 0o644, &big)]),
        LIMITS,
    )
    .1;
    assert!(matches!(got, Err(DataError::TooLarge { limit: 1_048_576 })), "{got:?}");

    // A long name that would fill the memory.
    let name = vec![b'n'; 1 << 20];
    let got = try_unpack(
        Archive::Tar,
        &tar(&[Entry(EntryType::GNULongName, "x", "", 0, &name), Entry(F, "a", "", 0o644, b"")]),
        LIMITS,
    )
    .1;
    assert!(matches!(got, Err(DataError::BadArchive(_))), "{got:?}");

    let src = tar(&[Entry(F, "a", "", 0o644, &big)]);
    src.set_len(1000).unwrap();
    let got = try_unpack(Archive::Tar, &src, LIMITS).1;
    assert!(matches!(got, Err(DataError::BadArchive(_))), "truncated: {got:?}");
}

fn zip(entries: &[(&str, Option<u32>, &[u8])]) -> Vec<u8> {
    let mut writer = ::zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, mode, data) in entries {
        let options = SimpleFileOptions::default().compression_method(::zip::CompressionMethod::Deflated);
        match mode {
            Some(mode) if mode & 0o170_000 == 0o120_000 => {
                writer.add_symlink(*name, std::str::from_utf8(data).unwrap(), options).unwrap();
            }
            _ => {
                writer.start_file(*name, options.unix_permissions(mode.unwrap_or(0o644))).unwrap();
                writer.write_all(data).unwrap();
            }
        }
    }
    writer.finish().unwrap().into_inner()
}

#[test]
fn zips_are_unpacked_by_the_same_rules() {
    let good = zip(&[("d/a", Some(0o600), b"text"), ("l", Some(0o120_777), b"d/a")]);
    assert_eq!(kind(&good), Some(Archive::Zip));
    let (outer, got) = try_unpack(Archive::Zip, &file(&good), LIMITS);
    assert_eq!(got.unwrap(), Unpacked { entries: 3, bytes: 4 });
    assert_eq!(std::fs::read(outer.path().join("in/l")).unwrap(), b"text");

    for (name, link) in [("../precious", false), ("/x", false), ("x", true)] {
        let hostile =
            if link { zip(&[(name, Some(0o120_777), b"../precious")]) } else { zip(&[(name, None, b"x")]) };
        let got = try_unpack(Archive::Zip, &file(&hostile), LIMITS).1;
        assert!(matches!(got, Err(DataError::HostileArchive { .. })), "{name}: {got:?}");
    }
    let bomb = zip(&[("a", None, &vec![0; 2 << 20])]);
    assert!(matches!(try_unpack(Archive::Zip, &file(&bomb), LIMITS).1, Err(DataError::TooLarge { .. })));
    let mut flipped = zip(&[("a", None, b"some text that is stored")]);
    flipped[35] ^= 0x55;
    assert!(try_unpack(Archive::Zip, &file(&flipped), LIMITS).1.is_err());
    assert!(matches!(try_unpack(Archive::Zip, &file(&good[..60]), LIMITS).1, Err(DataError::BadArchive(_))));
    let empty = zip(&[]);
    assert_eq!(kind(&empty), Some(Archive::Zip));
    assert_eq!(try_unpack(Archive::Zip, &file(&empty), LIMITS).1.unwrap(), Unpacked::default());
}

#[test]
fn kinds_are_told_by_content() {
    let mut head = vec![0; HEAD];
    src_head(&tar(&[Entry(F, "a", "", 0o644, b"x")]), &mut head);
    assert_eq!(kind(&head), Some(Archive::Tar));
    assert_eq!(kind(&head[..260]), None);
    assert_eq!(kind(b"QFI\xfb"), None);
    assert_eq!(kind(&[0; HEAD]), None);
}

fn src_head(src: &File, head: &mut [u8]) {
    std::os::unix::fs::FileExt::read_exact_at(src, head, 0).unwrap();
}

#[test]
fn it_wants_an_empty_directory_and_stops_when_asked() {
    let src = tar(&[Entry(F, "a", "", 0o644, b"x")]);
    let dir = tempfile::tempdir().unwrap();
    let cancel = Cancel::default();
    cancel.request();
    let got = unpack(Archive::Tar, &src, dir.path(), LIMITS, &Watch::silent(cancel));
    assert!(matches!(got, Err(DataError::Cancelled { .. })));
    std::fs::write(dir.path().join("x"), "").unwrap();
    let got = unpack(Archive::Tar, &src, dir.path(), LIMITS, &Watch::default());
    assert!(matches!(got, Err(DataError::DirectoryNotEmpty)));
}
