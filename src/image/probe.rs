//! Which format a file has and what its header says. A guess is for what comes from outside: the first
//! bytes of a disk were written by its guest, so where a format is on record, that one counts.

use std::ffi::OsString;
use std::fs::File;

use crate::sys::Bytes;

use super::qcow::Qcow2;
use super::source::Source;
use super::{ImageError, other, qcow, vmdk};

/// No header is believed beyond this, whatever the configuration allows.
const HARD_LIMIT: Bytes = Bytes(1 << 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    Raw,
    /// Raw, and a CD-ROM.
    Iso9660,
    /// Raw as far as we are concerned: we have no key.
    Luks,
    Qcow,
    Qcow2,
    Vmdk,
    Vdi,
    Vhd,
    Vhdx,
    Qed,
    Parallels,
    Dmg,
}

impl Format {
    /// The word OpenNebula's core and `qemu-img -f` use.
    pub fn opennebula(self) -> &'static str {
        match self {
            Format::Raw | Format::Iso9660 | Format::Luks => "raw",
            Format::Qcow => "qcow",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vdi => "vdi",
            Format::Vhd => "vpc",
            Format::Vhdx => "vhdx",
            Format::Qed => "qed",
            Format::Parallels => "parallels",
            Format::Dmg => "dmg",
        }
    }

    /// From such a word; old headers name the protocol under a raw file instead of the format.
    pub fn from_word(word: &str) -> Option<Format> {
        use Format as F;
        let known =
            [F::Raw, F::Qcow, F::Qcow2, F::Vmdk, F::Vdi, F::Vhd, F::Vhdx, F::Qed, F::Parallels, F::Dmg];
        match word {
            "file" | "host_device" => Some(Format::Raw),
            "luks" => Some(Format::Luks),
            _ => known.into_iter().find(|f| f.opennebula() == word),
        }
    }

    /// Whether the guest's bytes lie in the file as they are.
    pub fn is_raw(self) -> bool {
        self.opennebula() == "raw"
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Format::Iso9660 => "iso9660",
            Format::Luks => "luks",
            f => f.opennebula(),
        })
    }
}

/// A file the image builds upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backing {
    /// As recorded: absolute, or relative to the directory of the image.
    pub name: OsString,
    /// As recorded; without it, readers guess.
    pub format: Option<Format>,
}

/// What the header says. Bounded, parsed, but not yet judged: that is `admit`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub format: Format,
    /// Size of the disk a guest sees. For the raw formats the length of the file; `None` only for a raw
    /// head of unknown length, or where the format puts it at the end of the file.
    pub virtual_size: Option<Bytes>,
    /// Bytes of the file or device, when known.
    pub length: Option<Bytes>,
    pub backing: Option<Backing>,
    /// The external data file; empty when the header demands one without naming it.
    pub data_file: Option<OsString>,
    /// Other files that hold the content, as named.
    pub extents: Vec<OsString>,
    pub encrypted: bool,
    /// More facts of a qcow2 header.
    pub qcow2: Option<Qcow2>,
}

impl Probe {
    pub(super) fn new(format: Format, size: Option<u64>, length: Option<u64>) -> Self {
        Probe {
            format,
            virtual_size: size.map(Bytes),
            length: length.map(Bytes),
            backing: None,
            data_file: None,
            extents: Vec::new(),
            encrypted: format == Format::Luks,
            qcow2: None,
        }
    }
}

/// Guesses the format of an open image and reads its header, some MiB at most.
pub fn probe(file: &File) -> Result<Probe, ImageError> {
    let source = Source::file(file)?;
    parse(&source, detect(&source)?)
}

/// Reads the header of an image known to be of `format`; without a guess, so a raw file is raw.
pub fn probe_as(file: &File, format: Format) -> Result<Probe, ImageError> {
    let source = Source::file(file)?;
    if !format.is_raw() {
        let found = detect(&source)?;
        if found != format {
            return Err(ImageError::damaged(format, format!("its header says {found}")));
        }
    }
    parse(&source, format)
}

/// The same for the first bytes of an image, `len` bytes long in all if that is known. `Short` says how
/// many bytes are needed; 64 KiB are enough for most, for vhdx some MiB. A head cannot show what some
/// formats keep at the end, so the complete file is probed again before it is admitted.
pub fn probe_bytes(head: &[u8], len: Option<u64>) -> Result<Probe, ImageError> {
    let source = Source::head(head, len);
    parse(&source, detect(&source)?)
}

fn detect(source: &Source<'_>) -> Result<Format, ImageError> {
    let head = source.some(0, 4096)?;
    let magic: &[(&[u8], Format)] = &[
        (b"QFI\xfb\0\0\0\x01", Format::Qcow),
        (b"QFI\xfb", Format::Qcow2),
        (b"KDMV", Format::Vmdk),
        (b"COWD", Format::Vmdk),
        (b"conectix", Format::Vhd),
        (b"vhdxfile", Format::Vhdx),
        (b"LUKS\xba\xbe", Format::Luks),
        (b"QED\0", Format::Qed),
        (b"WithoutFreeSpace", Format::Parallels),
        (b"WithouFreSpacExt", Format::Parallels),
    ];
    if let Some((_, format)) = magic.iter().find(|(m, _)| head.starts_with(m)) {
        return Ok(*format);
    }
    if head.get(64..68) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Ok(Format::Vdi);
    }
    if vmdk::is_descriptor(&head) {
        return Ok(Format::Vmdk);
    }
    if source.some(32 * 1024 + 1, 5)? == b"CD001" {
        return Ok(Format::Iso9660);
    }
    let trailer = source.len.and_then(|len| len.checked_sub(512));
    if let Some(off) = trailer
        && source.some(off, 8)? == b"koly\0\0\0\x04"
    {
        return Ok(Format::Dmg);
    }
    Ok(Format::Raw)
}

fn parse(source: &Source<'_>, format: Format) -> Result<Probe, ImageError> {
    let probe = match format {
        Format::Raw | Format::Iso9660 | Format::Luks => Probe::new(format, source.len, source.len),
        Format::Qcow => qcow::v1(source)?,
        Format::Qcow2 => qcow::v2(source)?,
        Format::Vmdk => vmdk::parse(source)?,
        Format::Vdi => other::vdi(source)?,
        Format::Vhd => other::vhd(source)?,
        Format::Vhdx => other::vhdx(source)?,
        Format::Qed => other::qed(source)?,
        Format::Parallels => other::parallels(source)?,
        Format::Dmg => Probe::new(format, None, source.len),
    };
    match probe.virtual_size {
        Some(size) if size > HARD_LIMIT => Err(ImageError::TooLarge { size, limit: HARD_LIMIT }),
        _ => Ok(probe),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Header, MIB, img, zoo};
    use super::super::{Admit, admit};
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::FileExt as _;
    use std::path::Path;

    fn open(path: &Path) -> File {
        File::open(path).unwrap()
    }

    #[test]
    fn every_format_is_read_as_qemu_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        for (format, path) in zoo(dir.path()) {
            let got = probe(&open(&path)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(got.format, format, "{}", path.display());
            assert_eq!((&got.backing, &got.data_file, got.extents.len()), (&None, &None, 0), "{format}");
            assert_eq!(got.encrypted, format == Format::Luks);
            assert!(probe_as(&open(&path), format).is_ok());
            assert!(probe_as(&open(&path), Format::Raw).unwrap().virtual_size == got.length);
            assert!(format == Format::Qcow2 || probe_as(&open(&path), Format::Qcow2).is_err());
            if matches!(format, Format::Iso9660 | Format::Dmg) {
                continue;
            }
            let info: serde_json::Value =
                serde_json::from_slice(&img(dir.path(), &["info", "--output=json", path.to_str().unwrap()]))
                    .unwrap();
            if format == Format::Luks {
                assert_eq!(got.virtual_size, got.length);
                assert_eq!(info["format"], "luks");
            } else {
                assert_eq!(info["format"], format.opennebula());
                assert_eq!(
                    Some(info["virtual-size"].as_u64().unwrap()),
                    got.virtual_size.map(|s| s.0),
                    "{format}"
                );
            }
            assert!(
                admit(&got, &Admit::default()).is_ok() != matches!(format, Format::Qed | Format::Parallels)
            );
        }
    }

    #[test]
    fn split_vmdks_name_their_extents() {
        let dir = tempfile::tempdir().unwrap();
        for subformat in ["monolithicFlat", "twoGbMaxExtentFlat", "twoGbMaxExtentSparse"] {
            let option = format!("subformat={subformat}");
            img(dir.path(), &["create", "-q", "-f", "vmdk", "-o", &option, "x.vmdk", "3M"]);
            let got = probe(&open(&dir.path().join("x.vmdk"))).unwrap();
            assert_eq!((got.format, got.virtual_size), (Format::Vmdk, Some(Bytes(3 * MIB))), "{subformat}");
            assert_eq!(got.extents.len(), 1, "{subformat}");
        }
    }

    #[test]
    fn hostile_vmdks_show_what_they_would_open() {
        for (text, extents, backing) in [
            ("# Disk DescriptorFile\nRW 2048 FLAT \"/etc/shadow\" 0\n", vec!["/etc/shadow"], None),
            ("#\n\n  version=1\r\n\t RW\t1\x0bFLAT\r\"/etc/passwd\" 0", vec!["/etc/passwd"], None),
            ("version=1\nRDONLY 1 VMFS \"a\" 0\nNOACCESS 2 ZERO\n", vec!["a"], None),
            ("version=3\n#x parentFileNameHint=\"/etc/group\"\n", vec![], Some("/etc/group")),
            ("# Disk DescriptorFile\nRW 99999999999999999999 FLAT \"n", vec!["n"], None),
        ] {
            let got = probe_bytes(text.as_bytes(), None).unwrap();
            assert_eq!(got.format, Format::Vmdk, "{text}");
            assert_eq!(got.extents, extents, "{text}");
            assert_eq!(got.backing.and_then(|b| b.name.into_string().ok()).as_deref(), backing, "{text}");
        }
        assert!(probe_bytes(b"version=1 of my notes\n", None).unwrap().format == Format::Raw);
        // A sparse header without capacity is a descriptor in disguise.
        let mut sparse = vec![0; 4096];
        sparse[..4].copy_from_slice(b"KDMV");
        sparse[28] = 2;
        sparse[1024..1056].copy_from_slice(b"RW 2048 SPARSE \"disk.vmdk\"\nRW 1\n");
        assert_eq!(probe_bytes(&sparse, None).unwrap().extents.len(), 2);
        sparse[12] = 4;
        assert_eq!(probe_bytes(&sparse, None).unwrap().extents.len(), 2, "a second extent is foreign");
        sparse[1051..].fill(0);
        let got = probe_bytes(&sparse, None).unwrap();
        assert_eq!((got.extents.len(), got.virtual_size), (0, Some(Bytes(2048))), "it names itself");
        sparse[2048..2074].copy_from_slice(b"parentFileNameHint=\"/etc/a\"".first_chunk::<26>().unwrap());
        assert!(probe_bytes(&sparse, None).unwrap().backing.is_some(), "text after a zero byte is read too");
    }

    #[test]
    fn qcow2_headers_are_taken_apart() {
        let h = Header {
            backing: b"/etc/shadow".to_vec(),
            incompatible: 0b10_0111,
            extensions: vec![
                (0x6803_f857, vec![1; 49]),
                (0xe279_2aca, b"raw".to_vec()),
                (0x4441_5441, b"d".to_vec()),
            ],
            ..Header::default()
        };
        let got = probe_bytes(&h.bytes(), None).unwrap();
        assert_eq!(got.backing, Some(Backing { name: "/etc/shadow".into(), format: Some(Format::Raw) }));
        assert_eq!((got.data_file, got.virtual_size), (Some("d".into()), Some(Bytes(MIB))));
        let q = got.qcow2.unwrap();
        assert_eq!(
            (q.dirty, q.corrupt, q.unknown, q.cluster_bits, q.version),
            (true, true, 0b10_0000, 16, 3)
        );
        let nameless = Header { incompatible: 4, ..Header::default() };
        assert_eq!(probe_bytes(&nameless.bytes(), None).unwrap().data_file, Some("".into()));
    }

    #[test]
    fn nonsense_in_a_qcow2_header_is_an_error() {
        let good = Header { backing: b"b".to_vec(), ..Header::default() };
        assert!(probe_bytes(&good.bytes(), None).is_ok());
        let bent: &[(&str, usize, &[u8])] = &[
            ("version 4", 7, &[4]),
            ("backing name far away", 8, &(1u64 << 62).to_be_bytes()),
            ("backing name inside the header", 8, &50u64.to_be_bytes()),
            ("endless backing name", 16, &u32::MAX.to_be_bytes()),
            ("tiny clusters", 20, &8u32.to_be_bytes()),
            ("huge clusters", 20, &63u32.to_be_bytes()),
            ("2^62 bytes", 24, &(1u64 << 62).to_be_bytes()),
            ("all bits of the size", 24, &u64::MAX.to_be_bytes()),
            ("unknown encryption", 32, &9u32.to_be_bytes()),
            ("L1 of 2^32 entries", 36, &u32::MAX.to_be_bytes()),
            ("refcount table of 2^32 clusters", 56, &u32::MAX.to_be_bytes()),
            ("a million snapshots", 60, &1_000_000u32.to_be_bytes()),
            ("wide refcounts", 96, &7u32.to_be_bytes()),
            ("short header", 100, &72u32.to_be_bytes()),
            ("endless header", 100, &u32::MAX.to_be_bytes()),
            ("an extension beyond its place", 104, &[1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff]),
            ("zero byte in the name", 112, &[0]),
        ];
        for (what, at, bytes) in bent {
            let mut h = good.bytes();
            h[*at..at + bytes.len()].copy_from_slice(bytes);
            let len = Some(h.len() as u64);
            let Err(e) = probe_bytes(&h, len) else { panic!("{what} was accepted") };
            assert!(matches!(e, ImageError::Damaged { .. } | ImageError::TooLarge { .. }), "{what}: {e}");
        }
        let twice = vec![(0xe279_2aca, b"raw".to_vec()), (0xe279_2aca, b"qcow2".to_vec())];
        let twice = Header { extensions: twice, ..good.clone() };
        assert!(probe_bytes(&twice.bytes(), None).is_err());
        let unknown = Header { extensions: vec![(0xe279_2aca, b"rw".to_vec())], ..good };
        assert!(probe_bytes(&unknown.bytes(), None).is_err());
    }

    #[test]
    fn a_cluster_full_of_empty_extensions_ends() {
        let mut h = Header::default().bytes();
        for at in (104..1 << 16).step_by(8) {
            h[at..at + 8].copy_from_slice(&[0, 0, 0, 1, 0, 0, 0, 0]);
        }
        assert!(probe_bytes(&h, None).is_ok());
    }

    #[test]
    fn truncated_images_are_errors_or_raw_at_every_length() {
        let dir = tempfile::tempdir().unwrap();
        for (format, path) in zoo(dir.path()) {
            let whole = std::fs::read(&path).unwrap();
            let cut = tempfile::tempfile().unwrap();
            cut.write_all_at(&whole[..512], 0).unwrap();
            for n in (0..512).rev() {
                cut.set_len(n as u64).unwrap();
                let file = probe(&cut);
                let known = probe_bytes(&whole[..n], Some(n as u64));
                assert_eq!(file.is_ok(), known.is_ok(), "{format} {n}");
                let head = probe_bytes(&whole[..n], None);
                let more = probe_bytes(&whole[..n], Some(whole.len() as u64));
                if format == Format::Qcow2 && n >= 4 {
                    assert!(file.and_then(|p| admit(&p, &Admit::default())).is_err(), "{n}");
                    for head in [head, more] {
                        assert!(!matches!(head, Err(ImageError::Truncated { .. })), "{n} of a head");
                    }
                } else if let Ok(p) = file
                    && n < 4
                {
                    assert_eq!((p.format, p.virtual_size), (Format::Raw, Some(Bytes(n as u64))));
                }
            }
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        for path in ["/", "/dev/null"] {
            assert!(matches!(probe(&open(Path::new(path))), Err(ImageError::NotAnImage)), "{path}");
        }
    }

    #[test]
    fn words_come_back() {
        for word in ["raw", "qcow", "qcow2", "vmdk", "vdi", "vpc", "vhdx", "qed", "parallels", "dmg"] {
            assert_eq!(Format::from_word(word).map(Format::opennebula), Some(word));
        }
        assert_eq!(Format::from_word("luks").map(Format::opennebula), Some("raw"));
        assert_eq!(Format::from_word("nbd"), None);
    }

    #[test]
    fn bent_headers_never_panic() {
        let dir = tempfile::tempdir().unwrap();
        let mut heads: Vec<Vec<u8>> =
            zoo(dir.path()).into_iter().map(|(_, p)| std::fs::read(p).unwrap()).collect();
        for head in &mut heads {
            head.truncate(if head.starts_with(b"vhdx") { 3 << 20 } else { 1 << 16 });
        }
        let byte = (0..1024usize, prop_oneof![any::<u8>(), Just(0), Just(0xff), Just(0x7f)]);
        let strategy = (0..heads.len(), proptest::collection::vec(byte, 1..12), any::<u64>(), 0..4096usize);
        let bent = |(which, bytes, len, cut): (usize, Vec<(usize, u8)>, u64, usize)| {
            let mut head = heads[which].clone();
            for (at, b) in bytes {
                // vhdx keeps its tables further in.
                for base in [0, 192 << 10, 2 << 20] {
                    if let Some(x) = head.get_mut(base + at) {
                        *x = b;
                    }
                }
            }
            for len in [None, Some(len), Some(head.len() as u64)] {
                for head in [&head[..], &head[..cut.min(head.len())]] {
                    if let Ok(p) = probe_bytes(head, len) {
                        let _ = admit(&p, &Admit::default());
                    }
                }
            }
            Ok(())
        };
        let config = ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() };
        proptest::test_runner::TestRunner::new(config).run(&strategy, bent).unwrap();
    }
}
