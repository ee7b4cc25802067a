//! Formats we only take in to convert: VDI, VHD, VHDX; and two we recognise to refuse.

use std::ffi::OsString;
use std::fmt::Write as _;

use super::ImageError;
use super::probe::{Backing, Format, Probe};
use super::source::{Source, be16, be32, be64, le32, le64};

/// Sizes are in sectors in half of these formats.
fn sectors(format: Format, n: u64) -> Result<u64, ImageError> {
    n.checked_mul(512).ok_or_else(|| ImageError::damaged(format, format!("a size of {n} sectors")))
}

/// A parent known by its id only.
fn by_id(id: &[u8]) -> Backing {
    let hex = id.iter().fold(String::from("uuid:"), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    });
    Backing { name: hex.into(), format: None }
}

pub(super) fn vdi(source: &Source<'_>) -> Result<Probe, ImageError> {
    let h = source.exact(Format::Vdi, 0, 512)?;
    let mut probe = Probe::new(Format::Vdi, Some(le64(&h, 0x170)), source.len);
    // The ids of the image this one is a difference to, in two places.
    let parent = [&h[0x1a8..0x1b8], &h[0x1b8..0x1c8]].into_iter().find(|id| id.iter().any(|&b| b != 0));
    probe.backing = parent.map(by_id);
    Ok(probe)
}

pub(super) fn vhd(source: &Source<'_>) -> Result<Probe, ImageError> {
    const CHS_MAX: u64 = 65_535 * 16 * 255;
    /// Programs that mean the size field; others mean the geometry.
    const EXACT: [&[u8; 4]; 5] = [b"win ", b"qem2", b"d2v ", b"tap\0", b"vs  "];
    let h = source.exact(Format::Vhd, 0, 512)?;
    let chs = u64::from(be16(&h, 56)) * u64::from(h[58]) * u64::from(h[59]);
    let by_field = chs == CHS_MAX || EXACT.iter().any(|app| h[28..].starts_with(*app));
    let size = if by_field { be64(&h, 48) / 512 * 512 } else { sectors(Format::Vhd, chs)? };
    let mut probe = Probe::new(Format::Vhd, Some(size), source.len);
    if be32(&h, 60) == 4 {
        let at = be64(&h, 16);
        let dynamic = source.exact(Format::Vhd, at, 1024)?;
        let units = dynamic[64..576].chunks_exact(2).map(|c| be16(c, 0)).take_while(|&u| u != 0);
        let name: String = char::decode_utf16(units).map(|c| c.unwrap_or('\u{fffd}')).collect();
        let backing = Backing { name: OsString::from(name), format: None };
        probe.backing = Some(if backing.name.is_empty() { by_id(&dynamic[40..56]) } else { backing });
    }
    Ok(probe)
}

pub(super) fn vhdx(source: &Source<'_>) -> Result<Probe, ImageError> {
    // Ids as they lie on disk: the first three groups little-endian.
    const METADATA: [u8; 16] =
        [0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e];
    const PARAMETERS: [u8; 16] =
        [0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b];
    const SIZE: [u8; 16] =
        [0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8];
    const TABLE: u64 = 64 << 10;
    /// Entries a table of 64 KiB can hold.
    const ENTRIES: usize = 2047;
    let damaged = |what: &str| ImageError::damaged(Format::Vhdx, what);
    let item = |table: &[u8], first: usize, count: usize, id: [u8; 16]| {
        let mut entries = table.get(first..).unwrap_or_default().chunks_exact(32).take(count.min(ENTRIES));
        entries.find(|e| e[..16] == id).map(<[u8]>::to_vec)
    };
    let regions = source.exact(Format::Vhdx, 192 << 10, TABLE)?;
    if !regions.starts_with(b"regi") {
        return Err(damaged("its region table is not where it should be"));
    }
    let region = item(&regions, 16, le32(&regions, 8) as usize, METADATA);
    let base = le64(&region.ok_or_else(|| damaged("it has no metadata region"))?, 16);
    let metadata = source.exact(Format::Vhdx, base, TABLE)?;
    if !metadata.starts_with(b"metadata") {
        return Err(damaged("its metadata table is not where it should be"));
    }
    let count = usize::from(u16::from_le_bytes([metadata[10], metadata[11]]));
    let read = |id, n| {
        let entry = item(&metadata, 32, count, id).ok_or_else(|| damaged("its metadata is incomplete"))?;
        let at =
            base.checked_add(u64::from(le32(&entry, 16))).ok_or_else(|| damaged("an offset overflows"))?;
        source.exact(Format::Vhdx, at, n)
    };
    let mut probe = Probe::new(Format::Vhdx, Some(le64(&read(SIZE, 8)?, 0)), source.len);
    if le32(&read(PARAMETERS, 8)?, 4) & 2 != 0 {
        probe.backing = Some(Backing { name: "parent of a differencing disk".into(), format: None });
    }
    Ok(probe)
}

pub(super) fn qed(source: &Source<'_>) -> Result<Probe, ImageError> {
    let h = source.exact(Format::Qed, 0, 64)?;
    let mut probe = Probe::new(Format::Qed, Some(le64(&h, 48)), source.len);
    if le64(&h, 16) & 1 != 0 {
        let name = source.name(Format::Qed, u64::from(le32(&h, 56)), u64::from(le32(&h, 60)))?;
        probe.backing = Some(Backing { name, format: None });
    }
    Ok(probe)
}

pub(super) fn parallels(source: &Source<'_>) -> Result<Probe, ImageError> {
    let h = source.exact(Format::Parallels, 0, 64)?;
    // The older variant has 32 bits there, and rubbish above.
    let n = if h.starts_with(b"WithouFreSpacExt") { le64(&h, 36) } else { u64::from(le32(&h, 36)) };
    Ok(Probe::new(Format::Parallels, Some(sectors(Format::Parallels, n)?), source.len))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::img;
    use super::super::probe::probe_bytes;
    use super::super::{Admit, admit};
    use super::*;

    /// An empty image as `qemu-img` makes it, with some bytes changed.
    fn made(format: &str, options: &[&str], bend: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        img(dir.path(), &[&["create", "-q", "-f", format], options, &["x", "4M"]].concat());
        let mut bytes = std::fs::read(dir.path().join("x")).unwrap();
        bend(&mut bytes);
        bytes
    }

    fn set(bytes: &mut [u8], at: usize, new: &[u8]) {
        bytes[at..at + new.len()].copy_from_slice(new);
    }

    /// Where the metadata of a VHDX has an item's entry, by the first bytes of its id, and where the item is.
    fn item(vhdx: &[u8], id: [u8; 4]) -> (usize, usize) {
        let base = vhdx.windows(8).position(|w| w == b"metadata").unwrap();
        let entry = base + vhdx[base..].windows(4).position(|w| w == id).unwrap();
        (entry, base + le32(vhdx, entry + 16) as usize)
    }

    const PARAMETERS: [u8; 4] = [0x37, 0x67, 0xa1, 0xca];

    #[test]
    fn a_parent_is_seen_in_every_format_that_has_some() {
        let utf16 = |name: &str| name.encode_utf16().flat_map(u16::to_be_bytes).collect::<Vec<u8>>();
        let differencing = |vhd: &mut Vec<u8>, name: &str| {
            set(vhd, 60, &4u32.to_be_bytes());
            let dynamic = usize::try_from(be64(vhd, 16)).unwrap();
            set(vhd, dynamic + 40, &[0xab; 16]);
            set(vhd, dynamic + 64, &utf16(name));
        };
        let cowd = |text: &[u8]| [&b"COWD\x01\0\0\0\x03\0\0\0\0\x20\0\0"[..], &[0; 496], text].concat();
        for (bytes, format, name) in [
            (made("vdi", &[], |v| set(v, 0x1b8, &[1; 16])), Format::Vdi, format!("uuid:{}", "01".repeat(16))),
            (made("vpc", &[], |v| differencing(v, "..\\etc")), Format::Vhd, "..\\etc".to_owned()),
            (made("vpc", &[], |v| differencing(v, "")), Format::Vhd, format!("uuid:{}", "ab".repeat(16))),
            (
                made("vhdx", &[], |v| {
                    let at = item(v, PARAMETERS).1;
                    v[at + 4] |= 2;
                }),
                Format::Vhdx,
                "parent of a differencing disk".to_owned(),
            ),
            (
                made("qed", &["-u", "-F", "raw", "-b", "/etc/passwd"], |_| ()),
                Format::Qed,
                "/etc/passwd".into(),
            ),
            (cowd(b"parentFileNameHint=\"/etc/group\"\n"), Format::Vmdk, "/etc/group".to_owned()),
        ] {
            let got = probe_bytes(&bytes, Some(bytes.len() as u64)).unwrap();
            assert_eq!(got.format, format);
            assert_eq!(
                got.backing.as_ref().map(|b| b.name.to_str().unwrap()),
                Some(name.as_str()),
                "{format}"
            );
            assert!(admit(&got, &Admit::default()).is_err(), "{format} with a parent");
        }
        let size = probe_bytes(&cowd(b""), None).unwrap().virtual_size;
        assert_eq!(size, Some(crate::sys::Bytes(0x2000 * 512)));
    }

    #[test]
    fn a_vhd_of_another_maker_has_the_size_of_its_geometry() {
        let dynamic = made("vpc", &[], |v| set(v, 28, b"vpc "));
        let chs = u64::from(be16(&dynamic, 56)) * u64::from(dynamic[58]) * u64::from(dynamic[59]);
        let got = probe_bytes(&dynamic, Some(dynamic.len() as u64)).unwrap();
        assert_eq!(got.virtual_size.map(|s| s.0), Some(chs * 512));
    }

    #[test]
    fn a_vhdx_whose_tables_lead_nowhere_is_damaged() {
        let region = 192 << 10;
        let bent = |bend: &dyn Fn(&mut Vec<u8>)| {
            let bytes = made("vhdx", &[], bend);
            match probe_bytes(&bytes, Some(bytes.len() as u64)) {
                Err(e @ ImageError::Damaged { .. }) => e.to_string(),
                other => panic!("{other:?}"),
            }
        };
        for (what, bend) in [
            ("region table", &(|v: &mut Vec<u8>| set(v, region, b"REGI")) as &dyn Fn(&mut Vec<u8>)),
            ("no metadata region", &|v| set(v, region + 8, &[0; 4])),
            ("metadata table", &|v| {
                let base = v.windows(8).position(|w| w == b"metadata").unwrap();
                set(v, base, b"METADATA");
            }),
            ("metadata is incomplete", &|v| {
                let entry = item(v, PARAMETERS).0;
                set(v, entry, &[0; 16]);
            }),
        ] {
            let said = bent(bend);
            assert!(said.contains(what), "{said}");
        }
        // Its metadata is said to lie at the end of all numbers.
        let said = bent(&|v| {
            let entry = region + v[region..].windows(4).position(|w| w == [0x06, 0xa2, 0x7c, 0x8b]).unwrap();
            set(v, entry + 16, &(u64::MAX - 100).to_le_bytes());
        });
        assert!(said.contains("a part of the header"), "{said}");
    }

    #[test]
    fn the_older_parallels_has_a_short_size() {
        let head =
            |magic: &[u8]| [magic, &[0; 20], &8u32.to_le_bytes(), &7u32.to_le_bytes(), &[0; 64]].concat();
        let size = |magic: &[u8]| probe_bytes(&head(magic), None).unwrap().virtual_size.map(|s| s.0);
        assert_eq!(size(b"WithoutFreeSpace"), Some(8 * 512));
        assert_eq!(size(b"WithouFreSpacExt"), Some(((7 << 32) | 8) * 512));
    }
}
