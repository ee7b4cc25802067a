//! Sizes that compressed files carry with them. Everything is checked against the length of the file
//! and, where there is one, the checksum; `None` means that the file does not say.

use std::ops::Range;

use crate::data::{DataError, Watch};

/// Reads exactly this range of the file; `None` when it cannot be had.
type ReadAt<'a> = &'a dyn Fn(&Range<u64>) -> Result<Option<Vec<u8>>, DataError>;

/// Size of the header and of the footer of an xz stream.
const XZ_HEADER: u64 = 12;
/// An index of this many bytes describes petabytes.
const XZ_INDEX: u64 = 64 << 20;

/// The unpacked size of an xz file of `len` bytes and at most `streams` streams, from its indexes, which
/// are found from the end of the file backwards.
pub(super) fn xz(len: u64, mut streams: usize, read: ReadAt<'_>) -> Result<Option<u64>, DataError> {
    let mut end = len;
    let mut total = 0u64;
    while end > 0 {
        let Some(footer_at) = end.checked_sub(XZ_HEADER) else { return Ok(None) };
        let Some(footer) = read(&(footer_at..end))? else { return Ok(None) };
        // Padding between streams.
        if footer.ends_with(&[0; 4]) {
            end -= 4;
            continue;
        }
        let Some(left) = streams.checked_sub(1) else { return Ok(None) };
        streams = left;
        let Some(size) = xz_index_size(&footer) else { return Ok(None) };
        let Some(index_at) = footer_at.checked_sub(size) else { return Ok(None) };
        let Some(index) = read(&(index_at..footer_at))? else { return Ok(None) };
        let sums = xz_index(&index);
        let start = sums.and_then(|(packed, _)| index_at.checked_sub(packed)?.checked_sub(XZ_HEADER));
        let sum = sums.and_then(|(_, unpacked)| total.checked_add(unpacked));
        let (Some(start), Some(sum)) = (start, sum) else { return Ok(None) };
        (end, total) = (start, sum);
    }
    Ok(Some(total))
}

fn xz_index_size(footer: &[u8]) -> Option<u64> {
    if !footer.ends_with(b"YZ") || crc32(footer.get(4..10)?) != le(footer.get(..4)?) {
        return None;
    }
    Some((le(&footer[4..8]) + 1) * 4).filter(|size| *size <= XZ_INDEX)
}

/// Sums of the packed (padded) and unpacked sizes of all blocks.
fn xz_index(index: &[u8]) -> Option<(u64, u64)> {
    let (body, sum) = index.split_at_checked(index.len().checked_sub(4)?)?;
    let (0, mut rest) = (*body.first()?, &body[1..]) else { return None };
    if crc32(body) != le(sum) {
        return None;
    }
    let (mut packed, mut unpacked) = (0u64, 0u64);
    for _ in 0..varint(&mut rest)? {
        packed = packed.checked_add(varint(&mut rest)?.checked_next_multiple_of(4)?)?;
        unpacked = unpacked.checked_add(varint(&mut rest)?)?;
    }
    (rest.len() < 4 && rest.iter().all(|b| *b == 0)).then_some((packed, unpacked))
}

/// Seven bits per byte, lowest first.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..63).step_by(7) {
        let (byte, tail) = rest.split_first()?;
        *rest = tail;
        n |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(n);
        }
    }
    None
}

fn crc32(data: &[u8]) -> u64 {
    let mut crc = flate2::Crc::new();
    crc.update(data);
    u64::from(crc.sum())
}

/// Up to eight bytes, lowest first.
fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
}

const ZSTD_FRAME: u64 = 0xfd2f_b528;
const ZSTD_SKIPPABLE: u64 = 0x184d_2a50;
/// The longest header of a frame.
const ZSTD_HEADER: u64 = 18;

/// The unpacked size of a zstd file of `len` bytes when every frame names its own. Walks from block to
/// block, a few bytes each, so that all frames are seen.
pub(super) fn zstd(len: u64, read: ReadAt<'_>, watch: &Watch) -> Result<Option<u64>, DataError> {
    let (mut at, mut total) = (0u64, 0u64);
    while at < len {
        let Some(head) = read(&(at..len.min(at + ZSTD_HEADER)))? else { return Ok(None) };
        if skippable(&head) {
            at = at.saturating_add(8 + le(&head[4..8]));
            continue;
        }
        let Some(frame) = Frame::parse(&head) else { return Ok(None) };
        at += frame.header;
        loop {
            watch.check("measuring")?;
            if at + 3 > len {
                return Ok(None);
            }
            let Some(block) = read(&(at..at + 3))? else { return Ok(None) };
            let block = le(&block);
            // Bit 0: last; bits 1 and 2: plain, one byte repeated, compressed, reserved.
            at += 3 + match block >> 1 & 3 {
                1 => 1,
                3 => return Ok(None),
                _ => block >> 3,
            };
            if block & 1 == 1 {
                break;
            }
        }
        at += frame.trailer;
        let Some(sum) = total.checked_add(frame.content) else { return Ok(None) };
        total = sum;
    }
    Ok((at == len).then_some(total))
}

/// What the first frame of a file of `len` bytes names, unless it is shorter than the file.
pub(super) fn zstd_frame(head: &[u8], len: u64) -> Option<u64> {
    let content = Frame::parse(head)?.content;
    // Data that does not compress grows by 3 bytes per 128 KiB and a header.
    (len <= content.saturating_add(content >> 8).saturating_add(512)).then_some(content)
}

fn skippable(head: &[u8]) -> bool {
    head.len() >= 8 && le(&head[..4]) & !0xf == ZSTD_SKIPPABLE
}

struct Frame {
    header: u64,
    trailer: u64,
    content: u64,
}

impl Frame {
    /// `None` also for a frame without its size.
    fn parse(head: &[u8]) -> Option<Frame> {
        if le(head.get(..4)?) != ZSTD_FRAME {
            return None;
        }
        let descriptor = *head.get(4)?;
        let single = descriptor >> 5 & 1 == 1;
        let dictionary = [0, 1, 2, 4][usize::from(descriptor & 3)];
        let field: usize = match descriptor >> 6 {
            0 if single => 1,
            0 => return None,
            n => 1 << n,
        };
        let at = 5 + usize::from(!single) + dictionary;
        let content = le(head.get(at..at + field)?) + if field == 2 { 256 } else { 0 };
        Some(Frame {
            header: (at + field) as u64,
            trailer: if descriptor >> 2 & 1 == 1 { 4 } else { 0 },
            content,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_make_it_panic(mut data in proptest::collection::vec(any::<u8>(), 0..200), shape in 0u8..4) {
            let tail = data.len().saturating_sub(2);
            match shape {
                1 if data.len() > 12 => data[tail..].copy_from_slice(b"YZ"),
                2 if data.len() > 4 => data[..4].copy_from_slice(&0xfd2f_b528u32.to_le_bytes()),
                3 if data.len() > 4 => data[..4].copy_from_slice(&0x184d_2a53u32.to_le_bytes()),
                _ => {}
            }
            let at = |n: u64| usize::try_from(n).unwrap();
            let read = |r: &Range<u64>| Ok(data.get(at(r.start)..at(r.end)).map(<[u8]>::to_vec));
            let len = data.len() as u64;
            let _ = xz(len, usize::MAX, &read).unwrap();
            let _ = zstd(len, &read, &Watch::default()).unwrap();
            let _ = zstd_frame(&data, len);
            let _ = xz_index(&data);
        }
    }
}
