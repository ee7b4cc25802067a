//! Compression is told from the first bytes, never from a name or what a server claims.

use std::fmt;
use std::io::{self, BufRead, Read};

/// How much of a stream `sniff` wants to see.
pub(super) const SNIFF: usize = 32;
/// Memory an xz stream may ask for: `xz -9` needs 65 MiB, a hostile header may ask for 4 GiB.
const XZ_MEMORY: u64 = 1 << 30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
    Bzip2,
    Xz,
    Zstd,
}

impl Compression {
    /// From the first 10 bytes (fewer when there are no more).
    pub fn sniff(head: &[u8]) -> Compression {
        // bzip2's name alone is only four letters; a block or the end of the stream follows it.
        let bzip2 = |h: &[u8]| {
            h.starts_with(b"BZh")
                && matches!(h.get(3), Some(b'1'..=b'9'))
                && (h[4..].starts_with(b"\x31\x41\x59\x26\x53\x59")
                    || h[4..].starts_with(b"\x17\x72\x45\x38\x50\x90"))
        };
        match head {
            [0x1f, 0x8b, 8, ..] => Compression::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            // A frame, or a skippable frame before it, as parallel compressors write.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            h if bzip2(h) => Compression::Bzip2,
            _ => Compression::None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Gzip => "gzip",
            Compression::Bzip2 => "bzip2",
            Compression::Xz => "xz",
            Compression::Zstd => "zstd",
        }
    }

    /// What `input` unpacks to: all members, streams or frames to the end of the input. Truncation and
    /// bytes that belong to none of them are errors.
    pub(super) fn decoder<'a>(self, input: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Compression::None => Box::new(input),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
            Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
            Compression::Xz => {
                let stream =
                    liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, liblzma::stream::CONCATENATED)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
            }
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(input)?),
        })
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Reads until `buf` is full or the stream ends.
pub(super) fn fill(reader: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match reader.read(&mut buf[n..]) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write as _;

    pub(in crate::data) const ALL: [Compression; 4] =
        [Compression::Gzip, Compression::Bzip2, Compression::Xz, Compression::Zstd];

    pub(in crate::data) fn pack(kind: Compression, data: &[u8]) -> Vec<u8> {
        match kind {
            Compression::None => data.to_vec(),
            Compression::Gzip => {
                let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Compression::Bzip2 => {
                let mut e = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Compression::Xz => {
                let mut e = liblzma::write::XzEncoder::new(Vec::new(), 1);
                e.write_all(data).unwrap();
                e.finish().unwrap()
            }
            Compression::Zstd => zstd::bulk::compress(data, 1).unwrap(),
        }
    }

    fn unpack(kind: Compression, packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        // A small buffer, so that members do not begin where reads do.
        kind.decoder(io::BufReader::with_capacity(7, packed))?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn every_stream_to_its_end_and_nothing_else() {
        let data: Vec<u8> = (0..70_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        for kind in ALL {
            let one = pack(kind, &data);
            assert_eq!(Compression::sniff(&one[..SNIFF]), kind);
            assert_eq!(unpack(kind, &one).unwrap(), data);

            let two = [one.as_slice(), &pack(kind, b"and more"), &pack(kind, b"")].concat();
            assert_eq!(
                unpack(kind, &two).unwrap(),
                [data.as_slice(), b"and more"].concat(),
                "{kind}: members"
            );

            for cut in [1, 3, 4, 7, one.len() / 2, one.len() - SNIFF] {
                assert!(unpack(kind, &one[..one.len() - cut]).is_err(), "{kind}: cut by {cut}");
            }
            for garbage in
                [&b"B"[..], b"\x1f", b"junk", b"junk that is longer than any header of any of them"]
            {
                let dirty = [one.as_slice(), garbage].concat();
                assert!(unpack(kind, &dirty).is_err(), "{kind}: followed by {garbage:?}");
            }
            let mut flipped = one.clone();
            flipped[one.len() / 2] ^= 0x10;
            // zstd's own default has no checksum: such a flip may go through, which is what digests are for.
            let flipped = unpack(kind, &flipped);
            assert!(kind == Compression::Zstd || flipped.is_err(), "{kind}: flipped bit");
        }
    }

    #[test]
    fn an_empty_stream_is_known_too() {
        for kind in ALL {
            let none = pack(kind, b"");
            assert_eq!(Compression::sniff(&none[..none.len().min(SNIFF)]), kind);
            assert_eq!(unpack(kind, &none).unwrap(), b"");
        }
    }

    #[test]
    fn other_things_are_not_compressed() {
        for head in [
            &b""[..],
            b"BZh9 is a name",
            b"BZh",
            b"QFI\xfb\0\0\0\x03",
            b"\x1f\x8b",
            b"\x1f\x8b\x07\0",
            b"7zXZ\0",
        ] {
            assert_eq!(Compression::sniff(head), Compression::None, "{head:?}");
        }
    }
}
