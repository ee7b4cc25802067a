//! Headers of qcow (version 1) and qcow2 (versions 2 and 3).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use super::probe::{Backing, Format, Probe};
use super::source::{Source, be32, be64};
use super::{ImageError, error::shown};

const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const EXTENDED_L2: u64 = 1 << 4;
/// Compression type is bit 3.
const KNOWN: u64 = 0x1f;

const EXT_END: u32 = 0;
const EXT_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXT_DATA_FILE: u32 = 0x4441_5441;

/// Names in a header are at most this long.
const NAME: u64 = 1023;
/// Bytes of the largest L1 table readers accept.
const L1_MAX: u64 = 32 << 20;
/// Readers accept no more internal snapshots.
const SNAPSHOTS_MAX: u32 = 65_536;

/// Facts of a qcow2 header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2 {
    pub version: u32,
    pub cluster_bits: u32,
    pub refcount_order: u32,
    /// Internal snapshots.
    pub snapshots: u32,
    /// Was not closed properly; repaired when opened for writing.
    pub dirty: bool,
    /// Marked as corrupt by a reader.
    pub corrupt: bool,
    /// Incompatible feature bits we do not know.
    pub unknown: u64,
    /// Offset and bytes of the tables the header points at, with their names.
    tables: [(&'static str, u64, u64); 2],
    /// Bytes of disk one entry of the L1 table covers, and the entries there are.
    l1: (u64, u64),
}

impl Qcow2 {
    /// Where the L1 table lies, and its entries.
    pub(super) fn l1_table(&self) -> (u64, u64) {
        (self.tables[0].1, self.l1.1)
    }

    /// Bytes of an entry of an L2 table.
    pub(super) fn l2_entry(&self) -> usize {
        // A cluster of entries covers this many bytes of disk.
        usize::try_from((1u64 << (2 * self.cluster_bits)) / self.l1.0.max(1)).unwrap_or(8)
    }

    /// What in the header contradicts the size of the disk or the length of the file.
    pub fn damage(&self, size: u64, length: Option<u64>) -> Option<String> {
        let cluster = 1u64 << self.cluster_bits;
        let (covers, entries) = self.l1;
        if covers.checked_mul(entries).is_some_and(|n| n < size) {
            return Some(format!("its L1 table of {entries} entries is too small for the disk"));
        }
        for (name, offset, bytes) in self.tables {
            if bytes > 0 && (offset == 0 || offset % cluster != 0) {
                return Some(format!("its {name} table starts at {offset}, not at a cluster"));
            }
            let end = offset.checked_add(bytes);
            if length.is_some_and(|len| end.is_none_or(|end| end > len)) {
                return Some(format!("its {name} table ends beyond the file"));
            }
        }
        None
    }
}

pub(super) fn v1(source: &Source<'_>) -> Result<Probe, ImageError> {
    let h = source.exact(Format::Qcow, 0, 48)?;
    let mut probe = Probe::new(Format::Qcow, Some(be64(&h, 24)), source.len);
    probe.backing = backing(source, Format::Qcow, be64(&h, 8), be32(&h, 16))?;
    probe.encrypted = be32(&h, 36) != 0;
    Ok(probe)
}

fn backing(source: &Source<'_>, of: Format, offset: u64, n: u32) -> Result<Option<Backing>, ImageError> {
    if offset == 0 {
        return Ok(None);
    }
    if u64::from(n) > NAME {
        return Err(ImageError::damaged(of, format!("the name of its backing file has {n} bytes")));
    }
    // Writers that remove a backing file may leave the offset and only clear the length.
    if n == 0 {
        return Ok(None);
    }
    Ok(Some(Backing { name: source.name(of, offset, u64::from(n))?, format: None }))
}

pub(super) fn v2(source: &Source<'_>) -> Result<Probe, ImageError> {
    let damaged = |what: String| Err(ImageError::damaged(Format::Qcow2, what));
    let mut h = source.exact(Format::Qcow2, 0, 72)?;
    let (version, cluster_bits) = (be32(&h, 4), be32(&h, 20));
    if !(2..=3).contains(&version) {
        return damaged(format!("version {version} is unknown"));
    }
    if !(9..=21).contains(&cluster_bits) {
        return damaged(format!("clusters of 2^{cluster_bits} bytes"));
    }
    let cluster = 1u64 << cluster_bits;
    let (mut incompatible, mut refcount_order, mut header) = (0, 4, 72);
    if version == 3 {
        h = source.exact(Format::Qcow2, 0, 104)?;
        (incompatible, refcount_order, header) = (be64(&h, 72), be32(&h, 96), u64::from(be32(&h, 100)));
    }
    if refcount_order > 6 {
        return damaged(format!("refcounts of 2^{refcount_order} bits"));
    }
    if version == 3 && !(104..=cluster).contains(&header) {
        return damaged(format!("a header of {header} bytes"));
    }
    let (size, crypt, l1_entries) = (be64(&h, 24), be32(&h, 32), u64::from(be32(&h, 36)));
    let (refcount_clusters, snapshots) = (u64::from(be32(&h, 56)), be32(&h, 60));
    if crypt > 2 {
        return damaged(format!("encryption method {crypt} is unknown"));
    }
    if l1_entries * 8 > L1_MAX
        || refcount_clusters * cluster > L1_MAX.max(cluster)
        || snapshots > SNAPSHOTS_MAX
    {
        return damaged("a table is larger than any reader accepts".into());
    }
    let offset = be64(&h, 8);
    if offset > cluster {
        return damaged(format!("the name of its backing file lies at {offset}"));
    }
    let mut probe = Probe::new(Format::Qcow2, Some(size), source.len);
    probe.backing = backing(source, Format::Qcow2, offset, be32(&h, 16))?;
    probe.encrypted = crypt != 0;
    let end = if offset == 0 { cluster } else { offset };
    let found = extensions(source, header, end)?;
    if let Some(backing) = &mut probe.backing {
        backing.format = match found.backing_format {
            None => None,
            Some(word) => Some(word.to_str().and_then(Format::from_word).ok_or_else(|| {
                ImageError::damaged(
                    Format::Qcow2,
                    format!("its backing file has the unknown format {}", shown(&word)),
                )
            })?),
        };
    }
    // The bit rules, but a name without the bit is looked at too: readers differ.
    probe.data_file = found.data_file.or((incompatible & DATA_FILE != 0).then(OsString::new));
    let entry = if incompatible & EXTENDED_L2 == 0 { 8 } else { 16 };
    probe.qcow2 = Some(Qcow2 {
        version,
        cluster_bits,
        refcount_order,
        snapshots,
        dirty: incompatible & DIRTY != 0,
        corrupt: incompatible & CORRUPT != 0,
        unknown: incompatible & !KNOWN,
        tables: [
            ("L1", be64(&h, 40), l1_entries * 8),
            ("refcount", be64(&h, 48), refcount_clusters * cluster),
        ],
        l1: (cluster * (cluster / entry), l1_entries),
    });
    Ok(probe)
}

#[derive(Default)]
struct Extensions {
    backing_format: Option<OsString>,
    data_file: Option<OsString>,
}

/// Walks the header extensions between two offsets of the first cluster.
fn extensions(source: &Source<'_>, begin: u64, end: u64) -> Result<Extensions, ImageError> {
    let damaged = |what: &str| ImageError::damaged(Format::Qcow2, what);
    let mut found = Extensions::default();
    if begin > end {
        return Err(damaged("the name of its backing file lies inside the header"));
    }
    let area = source.some(begin, end - begin)?;
    let mut at = 0usize;
    // Each step moves on by 8 bytes or more through at most 2 MiB.
    while (at as u64) + 8 <= end - begin {
        let Some(head) = area.get(at..at + 8) else {
            return Err(source.missing(Format::Qcow2, begin + at as u64 + 8));
        };
        let (kind, n) = (be32(head, 0), be32(head, 4) as usize);
        if kind == EXT_END {
            break;
        }
        let stop = at + 8 + n;
        if stop as u64 > end - begin {
            return Err(damaged("a header extension is longer than its place"));
        }
        let Some(data) = area.get(at + 8..stop) else {
            return Err(source.missing(Format::Qcow2, begin + stop as u64));
        };
        let name = match kind {
            EXT_BACKING_FORMAT => &mut found.backing_format,
            EXT_DATA_FILE => &mut found.data_file,
            _ => {
                at = stop.next_multiple_of(8);
                continue;
            }
        };
        if data.is_empty() || data.contains(&0) || data.len() as u64 > NAME {
            return Err(damaged("a name in a header extension is empty, too long or has a zero byte"));
        }
        // Two of a kind would be one name for us and another for other readers.
        if name.replace(OsString::from_vec(data.to_vec())).is_some() {
            return Err(damaged("a header extension is there twice"));
        }
        at = stop.next_multiple_of(8);
    }
    Ok(found)
}
