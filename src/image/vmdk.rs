//! VMDK: sparse files with an embedded descriptor, and text descriptors that name other files.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use crate::sys::Bytes;

use super::ImageError;
use super::probe::{Backing, Format, Probe};
use super::source::{Source, le32, le64};

const SECTOR: u64 = 512;
const TEXT_MAX: u64 = 1 << 20;
/// Readers look for the parent in this much text, whatever the header says.
const TEXT_MIN: u64 = 20 * SECTOR;
/// "The real header is at the end": streamed files.
const AT_END: u64 = u64::MAX;
const HINT: &[u8] = b"parentFileNameHint";

/// Whether this is a text descriptor: comments and blank lines, then `version=`.
pub(super) fn is_descriptor(head: &[u8]) -> bool {
    if head.starts_with(b"# Disk DescriptorFile") {
        return true;
    }
    let mut lines = head.split(|&b| b == b'\n').map(<[u8]>::trim_ascii);
    lines
        .find(|l| !l.is_empty() && !l.starts_with(b"#"))
        .is_some_and(|l| l.strip_prefix(b"version=").is_some_and(|n| n.len() == 1 && n[0].is_ascii_digit()))
}

pub(super) fn parse(source: &Source<'_>) -> Result<Probe, ImageError> {
    let magic = source.some(0, 4)?;
    match magic.as_slice() {
        b"KDMV" => sparse(source),
        b"COWD" => {
            let h = source.exact(Format::Vmdk, 0, 16)?;
            let mut probe = Probe::new(Format::Vmdk, Some(u64::from(le32(&h, 12)) * SECTOR), source.len);
            probe.backing = Text::parse(&source.some(SECTOR, TEXT_MIN)?).parent;
            Ok(probe)
        }
        _ => {
            let text = Text::parse(&source.some(0, TEXT_MAX)?);
            let mut probe = Probe::new(Format::Vmdk, Some(sectors(text.sectors)?), source.len);
            probe.backing = text.parent;
            probe.extents = text.files.into_iter().map(|f| f.name).collect();
            Ok(probe)
        }
    }
}

fn sectors(n: u64) -> Result<u64, ImageError> {
    n.checked_mul(SECTOR).ok_or_else(|| ImageError::damaged(Format::Vmdk, format!("a size of {n} sectors")))
}

fn sparse(source: &Source<'_>) -> Result<Probe, ImageError> {
    let first = source.exact(Format::Vmdk, 0, 79)?;
    let mut headers = vec![first];
    if le64(&headers[0], 56) == AT_END
        && let Some(at) = source.len.and_then(|len| len.checked_sub(2 * SECTOR))
    {
        // Of a head the end is not at hand; the complete file is probed again.
        let footer = source.some(at, 79)?;
        if footer.starts_with(b"KDMV") {
            headers.push(footer);
        }
    }
    let capacity = headers.last().map_or(0, |h| le64(h, 12));
    let mut probe = Probe::new(Format::Vmdk, Some(sectors(capacity)?), source.len);
    for h in &headers {
        let at = sectors(le64(h, 28))?;
        let n = sectors(le64(h, 36))?.clamp(TEXT_MIN, TEXT_MAX);
        // Without a place of its own, readers look into the second sector.
        let area = source.some(if at == 0 { SECTOR } else { at }, n)?;
        let text = Text::parse(area.split(|&b| b == 0).next().unwrap_or_default());
        // Readers search the whole area, so text after a zero byte counts as well.
        probe.backing = probe.backing.or(text.parent).or_else(|| parent(&area));
        // It names itself, under the name it had when it was made. With no capacity of its own it is a
        // descriptor after all, and every name is followed.
        let own = le64(h, 12) != 0
            && matches!(text.files.as_slice(), [f] if f.sparse && !f.name.as_encoded_bytes().contains(&b'/'));
        if !own {
            probe.extents.extend(text.files.into_iter().map(|f| f.name));
        }
        if le64(h, 12) == 0 {
            probe.virtual_size = Some(Bytes(sectors(text.sectors)?));
        }
    }
    Ok(probe)
}

struct File {
    name: OsString,
    sparse: bool,
}

struct Text {
    parent: Option<Backing>,
    files: Vec<File>,
    sectors: u64,
}

impl Text {
    /// Reads a descriptor as the most obliging reader would: what may name a file does.
    fn parse(text: &[u8]) -> Text {
        let mut found = Text { parent: parent(text), files: Vec::new(), sectors: 0 };
        for line in text.split(|&b| b == b'\n') {
            let mut words = line.split(|&b| b <= b' ').filter(|w| !w.is_empty());
            if !matches!(words.next(), Some(b"RW" | b"RDONLY" | b"NOACCESS")) {
                continue;
            }
            let size = words.next().and_then(|w| std::str::from_utf8(w).ok()?.parse::<u64>().ok());
            let kind = words.next().unwrap_or_default();
            found.sectors = found.sectors.saturating_add(size.unwrap_or(0));
            if kind != b"ZERO" || line.contains(&b'"') {
                let name = quoted(line).unwrap_or(line);
                let sparse = kind.ends_with(b"SPARSE");
                found.files.push(File { name: OsString::from_vec(name.to_vec()), sparse });
            }
        }
        found
    }
}

/// The parent, wherever in the text it is mentioned.
fn parent(text: &[u8]) -> Option<Backing> {
    let at = text.windows(HINT.len()).position(|w| w == HINT)?;
    let rest = text[at + HINT.len()..].split(|&b| b == b'\n').next().unwrap_or_default();
    let name = quoted(rest).unwrap_or(rest);
    Some(Backing { name: OsString::from_vec(name.to_vec()), format: None })
}

/// What stands between the first two quotes, or after the only one.
fn quoted(line: &[u8]) -> Option<&[u8]> {
    line.split(|&b| b == b'"').nth(1)
}
