//! What becomes of each kind of source: stored as it is, unpacked, converted, or made a directory, as the
//! datastore's attributes say; and archives that would unpack elsewhere.

use crate::bed::{self, Bed, tool};
use crate::doc::Doc;
use crate::guest;
use crate::hostile::{at, image, img, peak, refused, settings};
use crate::server::{Server, packed};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

fn ready() -> (Bed, PathBuf) {
    let bed = Bed::new();
    bed.store(100);
    let raw = bed.images().join("raw");
    guest::make_raw(&raw, 1024, 1);
    (bed, raw)
}

/// Registers `path` and answers what was said after the source.
#[track_caller]
fn takes(bed: &Bed, doc: &Doc) -> String {
    let said = bed.ds("cp", 7, &doc.xml()).run().ok();
    let (source, format) = said.trim().split_once(' ').unwrap();
    assert_eq!(Path::new(source), Path::new(&bed.base_path(100)).join(image(bed).file_name().unwrap()));
    format.to_owned()
}

fn same_bytes(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

fn pack(kind: &str, path: &Path) -> PathBuf {
    let to = path.with_extension(kind);
    let program = match kind {
        "gz" => "gzip",
        "bz2" => "bzip2",
        "zst" => "zstd",
        other => other,
    };
    std::fs::write(&to, packed(program, &["-qc"], path)).unwrap();
    to
}

#[test]
fn compressed_images_are_unpacked_unless_told_otherwise() {
    for kind in ["gz", "bz2", "xz", "zst"] {
        for (attribute, value, ds_type, unpacked) in [
            ("X", "", "0", true),
            ("NO_DECOMPRESS", "no", "0", true),
            ("NO_DECOMPRESS", "yes", "0", false),
            ("X", "", "2", false),
            ("NO_DECOMPRESS", "no", "2", true),
        ] {
            let (bed, raw) = ready();
            let path = pack(kind, &raw);
            let server = Server::of(std::fs::read(&path).unwrap());
            let what = format!("{kind}, {attribute}={value}, type {ds_type}");
            let both = [path.display().to_string(), server.url()];
            for url in both.into_iter().take(if kind == "gz" { 2 } else { 1 }) {
                let doc = at(&bed, url).store("TYPE", ds_type).store_template(attribute, value);
                assert_eq!(takes(&bed, &doc), "raw", "{what}");
                assert!(same_bytes(&image(&bed), if unpacked { &raw } else { &path }), "{what}");
                let stat = bed.ds("stat", 7, &doc.xml()).run();
                if stat.code == Some(0) {
                    assert_eq!(stat.out(), "1\n", "{what}");
                }
                std::fs::remove_file(image(&bed)).unwrap();
            }
        }
    }
}

/// Two streams one after the other are one file; rubbish or a cut at the end is damage.
#[test]
fn streams_are_read_to_their_end() {
    for kind in ["gz", "bz2", "xz", "zst"] {
        let (bed, raw) = ready();
        let one = std::fs::read(pack(kind, &raw)).unwrap();
        let path = bed.images().join("two");
        std::fs::write(&path, [&one[..], &one].concat()).unwrap();
        takes(&bed, &at(&bed, &path));
        let whole = std::fs::read(&raw).unwrap();
        assert!(std::fs::read(image(&bed)).unwrap() == [&whole[..], &whole].concat(), "{kind}");
        for (what, bytes) in [
            ("cut", one[..one.len() / 2].to_vec()),
            ("cut at its end", one[..one.len() - 3].to_vec()),
            ("followed by rubbish", [&one[..], b"rubbish, and more of it"].concat()),
            ("bent", {
                let mut bent = one.clone();
                let mid = bent.len() / 2;
                bent[mid..mid + 16].fill(0x55);
                bent
            }),
        ] {
            let bed = Bed::new();
            bed.store(100);
            let path = bed.images().join("bad");
            std::fs::write(&path, &bytes).unwrap();
            let server = Server::of(bytes);
            for url in [path.display().to_string(), server.url()] {
                if kind == "zst" && what == "bent" {
                    continue; // it has no checksum of its own when it is written to a pipe by some versions
                }
                let line = refused(
                    &bed,
                    &bed.ds("cp", 7, &at(&bed, url).xml()).run(),
                    &[8],
                    &format!("{kind} {what}"),
                );
                assert!(line.contains("damaged"), "{line}");
            }
        }
    }
}

#[test]
fn images_are_converted_as_the_datastore_wants() {
    for from in ["raw", "qcow2", "vmdk", "vdi", "vpc", "vhdx"] {
        for (driver, convert, to) in [
            (None, None, from),
            (Some("raw"), None, "raw"),
            (Some("qcow2"), None, "qcow2"),
            (Some("qcow2"), Some("no"), from),
            (Some("qcow2"), Some("YES"), "qcow2"),
        ] {
            // The rare formats come in as they are and become what the datastore wants: that is enough.
            if convert.is_some() && !["raw", "qcow2"].contains(&from) {
                continue;
            }
            let (bed, raw) = ready();
            let path = bed.images().join("src");
            img(&["convert", "-f", "raw", "-O", from, raw.to_str().unwrap()], &path, "");
            let mut doc = at(&bed, &path);
            for (key, value) in [("DRIVER", driver), ("CONVERT", convert)] {
                if let Some(value) = value {
                    doc = doc.store_template(key, value);
                }
            }
            let what = format!("{from} with {driver:?} and {convert:?}");
            assert_eq!(takes(&bed, &doc), to, "{what}");
            let seen = guest::Reader::default().read(&image(&bed)).unwrap();
            assert_eq!(seen.format, to, "{what}");
            assert_eq!(seen.data, guest::digest(&raw).unwrap(), "{what}");
        }
    }
}

#[test]
fn cd_roms_and_files_are_not_converted() {
    for (ty, ds_type) in [("1", "0"), ("3", "2"), ("5", "2")] {
        let (bed, raw) = ready();
        std::fs::File::options().write(true).open(&raw).unwrap().set_len(1 << 20).unwrap();
        crate::hostile::bend(&raw, 32_769, b"CD001");
        let doc = at(&bed, &raw).image("TYPE", ty).store("TYPE", ds_type).store_template("DRIVER", "qcow2");
        assert_eq!(takes(&bed, &doc.store_template("CONVERT", "yes")), "raw");
        assert!(same_bytes(&image(&bed), &raw), "type {ty} in {ds_type}");
    }
}

#[test]
fn luks_is_raw_to_the_core() {
    let bed = Bed::new();
    bed.store(100);
    let path = bed.images().join("luks");
    let words =
        ["create", "-q", "--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10", "-f", "luks"];
    // It times itself first, and gives up where others take the processor meanwhile.
    let create =
        |_| std::process::Command::new("qemu-img").args(words).arg(&path).arg("2M").status().unwrap();
    assert!((0..50).map(create).any(|status| status.success()), "no LUKS image was made");
    for driver in ["", "raw", "qcow2"] {
        let mut doc = at(&bed, &path);
        if !driver.is_empty() {
            doc = doc.store_template("DRIVER", driver);
        }
        let stat = bed.ds("stat", 7, &doc.xml()).run().ok();
        assert_eq!(stat.trim().parse(), Ok(path.metadata().unwrap().len().div_ceil(1 << 20)));
        assert_eq!(takes(&bed, &doc), "raw", "{driver:?}");
        assert!(same_bytes(&image(&bed), &path), "{driver:?}: an encrypted image is not converted");
        let clone = Doc::new(&bed, 8).image("PATH", image(&bed).display()).store_template("DRIVER", driver);
        let clone = bed.ds("clone", 8, &clone.xml()).run().ok();
        assert!(clone.ends_with(" raw\n") && same_bytes(Path::new(clone.trim_end_matches(" raw\n")), &path));
        std::fs::remove_file(image(&bed)).unwrap();
    }
}

#[test]
fn sparse_is_a_choice() {
    for (form, driver) in [("raw", None), ("raw", Some("qcow2")), ("qcow2", Some("raw")), ("gz", None)] {
        for sparse in ["yes", "no", "NO"] {
            let (bed, raw) = ready();
            // Half zeros, half holes.
            std::fs::File::options().write(true).open(&raw).unwrap().set_len(8 << 20).unwrap();
            crate::hostile::bend(&raw, 2 << 20, &vec![0; 2 << 20]);
            let path = match form {
                "qcow2" => {
                    guest::make_qcow2(&raw, &bed.images().join("q"));
                    bed.images().join("q")
                }
                "gz" => pack("gz", &raw),
                _ => raw.clone(),
            };
            let mut doc = at(&bed, &path).store_template("SPARSE", sparse);
            if let Some(driver) = driver {
                doc = doc.store_template("DRIVER", driver);
            }
            takes(&bed, &doc);
            let meta = image(&bed).metadata().unwrap();
            let (size, there) = (meta.len(), meta.blocks() * 512);
            let what = format!("{form} to {driver:?}, SPARSE={sparse}: {there} of {size}");
            println!("{what}");
            match sparse {
                // All of the disk, whatever its format leaves out of its own tables.
                "no" | "NO" => assert!(there >= 8 << 20 && size >= 8 << 20, "{what}"),
                _ => assert!(there < 3 << 20, "{what}"),
            }
        }
    }
}

/// An archive with `files`, made by the tool people use.
fn archive(bed: &Bed, kind: &str) -> PathBuf {
    let dir = bed.root().join("tree");
    std::fs::create_dir_all(dir.join("sub")).unwrap();
    std::fs::write(dir.join("vmlinuz"), "kernel").unwrap();
    std::fs::write(dir.join("sub/it's a file"), "x".repeat(5000)).unwrap();
    symlink("sub/it's a file", dir.join("link")).unwrap();
    let path = bed.images().join(kind);
    match kind {
        "zip" => {
            let made = std::process::Command::new("zip")
                .args(["-qry"])
                .arg(&path)
                .arg(".")
                .current_dir(&dir)
                .status();
            assert!(made.unwrap().success());
            std::fs::rename(path.with_extension("zip"), &path).unwrap();
        }
        "tar.gz" => drop(tool(
            "tar",
            &["-C".as_ref(), dir.as_os_str(), "-czf".as_ref(), path.as_os_str(), ".".as_ref()],
        )),
        _ => drop(tool(
            "tar",
            &["-C".as_ref(), dir.as_os_str(), "-cf".as_ref(), path.as_os_str(), ".".as_ref()],
        )),
    }
    path
}

#[test]
fn archives_become_directories() {
    for kind in ["tar", "tar.gz", "zip"] {
        let (bed, _) = ready();
        let path = archive(&bed, kind);
        assert_eq!(takes(&bed, &at(&bed, &path)), "dir", "{kind}");
        let dir = image(&bed);
        assert_eq!(bed::names(&dir), ["link", "sub", "vmlinuz"], "{kind}");
        assert_eq!(std::fs::read_to_string(dir.join("vmlinuz")).unwrap(), "kernel");
        assert_eq!(std::fs::read_to_string(dir.join("link")).unwrap().len(), 5000);
        // And go again as a whole.
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        bed.ds("rm", 7, &Doc::new(&bed, 7).source(&bed, &name).xml()).run().ok();
        crate::hostile::at_rest(&bed, kind);
        assert!(!dir.exists());
        // Files of a files datastore are what they are.
        let doc = at(&bed, &path).store("TYPE", "2");
        assert_eq!(takes(&bed, &doc), "raw", "{kind}");
        assert!(same_bytes(&image(&bed), &path), "{kind}");
    }
}

/// One entry of a hostile archive: name, content or link target.
struct Entry(&'static str, What);

#[derive(Clone, Copy)]
enum What {
    File(&'static str),
    Link(&'static str),
    Hard(&'static str),
    Device,
    Fifo,
    SetUid,
}

fn tar_of(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for Entry(name, what) in entries {
        let mut h = tar::Header::new_ustar();
        // By hand: the library would refuse such names.
        h.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        h.set_mode(0o644);
        h.set_uid(0);
        h.set_gid(0);
        let (kind, target, data): (_, &str, &str) = match what {
            What::File(data) => (tar::EntryType::Regular, "", data),
            What::SetUid => (tar::EntryType::Regular, "", "#!"),
            What::Link(to) => (tar::EntryType::Symlink, to, ""),
            What::Hard(to) => (tar::EntryType::Link, to, ""),
            What::Device => (tar::EntryType::Block, "", ""),
            What::Fifo => (tar::EntryType::Fifo, "", ""),
        };
        if matches!(what, What::SetUid) {
            h.set_mode(0o4755);
        }
        h.set_entry_type(kind);
        h.as_mut_bytes()[157..157 + target.len()].copy_from_slice(target.as_bytes());
        h.set_size(data.len() as u64);
        h.set_cksum();
        out.extend(h.as_bytes());
        let mut block = data.as_bytes().to_vec();
        block.resize(data.len().next_multiple_of(512), 0);
        out.extend(block);
    }
    out.extend([0; 1024]);
    out
}

fn zip_of(entries: &[Entry]) -> Option<Vec<u8>> {
    let mut out = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    for Entry(name, what) in entries {
        match what {
            What::File(data) => {
                out.start_file(*name, options).ok()?;
                out.write_all(data.as_bytes()).ok()?;
            }
            What::Link(to) => out.add_symlink(*name, *to, options).ok()?,
            _ => return None,
        }
    }
    Some(out.finish().ok()?.into_inner())
}

#[test]
fn archives_do_not_unpack_elsewhere() {
    use What::{Device, Fifo, File, Hard, Link, SetUid};
    let cases: [(&str, &[Entry]); 14] = [
        ("a name upwards", &[Entry("../slipped", File("x"))]),
        ("a name upwards from below", &[Entry("a/../../slipped", File("x"))]),
        ("an absolute name", &[Entry("/tmp/onesdm-slipped", File("x"))]),
        ("through a link of its own", &[Entry("l", Link("..")), Entry("l/slipped", File("x"))]),
        ("through an absolute link", &[Entry("l", Link("/tmp")), Entry("l/onesdm-slipped", File("x"))]),
        ("a link out", &[Entry("l", Link("../../../etc/shadow"))]),
        ("an absolute link", &[Entry("l", Link("/etc/shadow"))]),
        ("a link by a link", &[Entry("a/b", Link(".")), Entry("l", Link("a/b/../../x"))]),
        ("over its own link", &[Entry("l", Link("x")), Entry("l", File("x"))]),
        ("a hard link out", &[Entry("h", Hard("/etc/shadow"))]),
        ("a hard link upwards", &[Entry("h", Hard("../.sdm/leases"))]),
        ("a device", &[Entry("sda", Device)]),
        ("a pipe", &[Entry("p", Fifo)]),
        ("a set-id program", &[Entry("su", SetUid)]),
    ];
    for (what, entries) in cases {
        let zip = zip_of(entries).map(|bytes| ("zip", bytes));
        for (kind, bytes) in [("tar", tar_of(entries))].into_iter().chain(zip) {
            let bed = Bed::new();
            bed.store(100);
            let path = bed.images().join("archive");
            std::fs::write(&path, bytes).unwrap();
            let what = format!("{kind}: {what}");
            let done = bed.ds("cp", 7, &at(&bed, &path).xml()).run();
            refused(&bed, &done, &[8, 10], &what);
            assert!(!Path::new("/tmp/onesdm-slipped").exists(), "{what}");
        }
    }
}

/// An archive may be larger inside than the largest image, or have more entries than anybody has files.
#[test]
fn archives_have_limits() {
    let bed = Bed::new();
    bed.store(100);
    settings(&bed, "[image]\nmax_size = \"8MiB\"");
    let zeros = bed.root().join("zeros");
    std::fs::File::create(&zeros).unwrap().set_len(64 << 20).unwrap();
    for kind in ["zip", "tar.gz", "tar"] {
        let path = bed.images().join(kind);
        if kind == "zip" {
            let made = std::process::Command::new("zip").args(["-qj"]).arg(&path).arg(&zeros).status();
            assert!(made.unwrap().success());
            std::fs::rename(path.with_extension("zip"), &path).unwrap();
        } else {
            let flags = if kind == "tar" { "-Scf" } else { "-czf" };
            tool(
                "tar",
                &["-C".as_ref(), bed.root().as_os_str(), flags.as_ref(), path.as_os_str(), "zeros".as_ref()],
            );
        }
        let (done, kib) = peak(bed.ds("cp", 7, &at(&bed, &path).xml()).start());
        let line = refused(&bed, &done, &[5, 8, 10], kind);
        println!("{kind}: {line}");
        assert!(kib < 96 << 10 && done.took < Duration::from_secs(20), "{kind}: {kib} KiB, {:?}", done.took);
    }
    // Names that go on for ever are no reason to hold them.
    let mut h = tar::Header::new_gnu();
    h.set_entry_type(tar::EntryType::GNULongName);
    h.as_mut_bytes()[..13].copy_from_slice(b"././@LongLink");
    h.set_size(6 << 20);
    h.set_cksum();
    let mut bytes = h.as_bytes().to_vec();
    bytes.resize(bytes.len() + (6 << 20), b'n');
    std::fs::write(bed.images().join("long"), bytes).unwrap();
    let (done, kib) = peak(bed.ds("cp", 7, &at(&bed, bed.images().join("long")).xml()).start());
    refused(&bed, &done, &[8, 10], "a name of 6 MiB");
    assert!(kib < 48 << 10, "{kib} KiB held");
}
