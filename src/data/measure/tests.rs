use std::io::Write as _;

use super::*;
use crate::data::compress::tests::{ALL, pack};
use crate::data::testserver::{Script, Server};
use crate::sys::Cancel;

fn file(data: &[u8]) -> Source {
    let mut f = tempfile::tempfile().unwrap();
    f.write_all(data).unwrap();
    Source::File(f)
}

fn data(len: usize) -> Vec<u8> {
    (0..len).map(|n| ((n * 31 + n / 1000) % 251).to_le_bytes()[0]).collect()
}

fn quick() -> FetchOptions {
    let mut opts = FetchOptions::default();
    opts.http.retry_delay = std::time::Duration::from_millis(1);
    opts
}

fn size(source: &Source) -> Result<Option<u64>, DataError> {
    let head = head(source, 512, &quick(), &Watch::default())?;
    unpacked_size(source, &head, &quick(), &Watch::default())
}

#[test]
fn heads_are_unpacked_and_short_only_at_the_end() {
    let data = data(500_000);
    for kind in [Compression::None, ALL[0], ALL[1], ALL[2], ALL[3]] {
        let packed = pack(kind, &data);
        let len = Some(packed.len() as u64);
        // Range is not needed, and what is not wanted is not waited for.
        for script in [Script::Serve { etag: "" }, Script::IgnoreRange] {
            let server = Server::start(packed.clone(), &[script]);
            for source in [file(&packed), Source::Http(server.url.clone())] {
                for want in [0, 1, 512, 70_000, 1 << 20] {
                    let head = head(&source, want, &quick(), &Watch::default()).unwrap();
                    assert_eq!((head.compression, head.transferred_len), (kind, len));
                    assert!(head.bytes == data[..want.min(data.len())], "{kind} {want}");
                }
                let raw = FetchOptions { decompress: false, ..quick() };
                assert_eq!(head(&source, 100, &raw, &Watch::default()).unwrap().bytes, packed[..100]);
            }
            assert_eq!(server.requests(), 6);
        }
    }
    assert_eq!(head(&file(b""), 512, &quick(), &Watch::default()).unwrap().bytes, b"");
    let stalls = Server::start(data.clone(), &[Script::Stall { after: 200_000 }]);
    assert_eq!(
        head(&Source::Http(stalls.url.clone()), 512, &quick(), &Watch::default()).unwrap().bytes,
        data[..512]
    );
}

#[test]
fn sizes_are_exact_for_files() {
    for len in [0, 1, 255, 256, 70_000, 500_000] {
        let data = data(len);
        for kind in ALL {
            let one = pack(kind, &data);
            assert_eq!(size(&file(&one)).unwrap(), Some(len as u64), "{kind}");
            let two = [one.as_slice(), &one].concat();
            assert_eq!(size(&file(&two)).unwrap(), Some(2 * len as u64), "{kind}: two streams");
            // Ten bytes tell a format; fewer are just bytes.
            if one.len() >= 15 {
                assert!(size(&file(&one[..one.len() - 5])).is_err(), "{kind}: cut");
            }
        }
    }
    assert_eq!(size(&file(&data(1234))).unwrap(), Some(1234));
}

#[test]
fn formats_without_a_size_are_counted() {
    let data = data(300_000);
    // Written as a stream, a zstd frame does not know its size.
    let streamed = zstd::stream::encode_all(data.as_slice(), 1).unwrap();
    let sized = pack(Compression::Zstd, &data);
    assert_eq!(index::zstd_frame(&streamed, 1), None);
    assert_eq!(index::zstd_frame(&sized, sized.len() as u64), Some(300_000));
    let skip = [&0x184d_2a53u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"abc"].concat();
    for parts in
        [vec![&streamed], vec![&sized, &streamed], vec![&skip, &sized, &skip], vec![&skip, &streamed]]
    {
        let frames = parts.iter().filter(|p| **p != &skip).count() as u64;
        let all = parts.into_iter().flatten().copied().collect::<Vec<u8>>();
        assert_eq!(size(&file(&all)).unwrap(), Some(300_000 * frames));
    }
    let mut checked = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    checked.include_checksum(true).unwrap();
    checked.set_pledged_src_size(Some(data.len() as u64)).unwrap();
    checked.include_contentsize(true).unwrap();
    checked.write_all(&data).unwrap();
    let checked = checked.finish().unwrap();
    let read = |r: &Range<u64>| {
        Ok(checked
            .get(usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap())
            .map(<[u8]>::to_vec))
    };
    assert_eq!(index::zstd(checked.len() as u64, &read, &Watch::default()).unwrap(), Some(300_000));

    let xz = pack(Compression::Xz, &data);
    let padded = [xz.as_slice(), &[0; 8], &xz, &[0; 4]].concat();
    let read = |r: &Range<u64>| {
        Ok(padded.get(usize::try_from(r.start).unwrap()..usize::try_from(r.end).unwrap()).map(<[u8]>::to_vec))
    };
    assert_eq!(index::xz(padded.len() as u64, 2, &read).unwrap(), Some(600_000));
    assert_eq!(index::xz(padded.len() as u64, 1, &read).unwrap(), None, "too many streams");
}

#[test]
fn servers_are_asked_for_little() {
    let data = data(400_000);
    for (kind, script, want, requests) in [
        (Compression::None, Script::Serve { etag: "" }, Some(400_000), 1),
        (Compression::Xz, Script::Serve { etag: "" }, Some(400_000), 3),
        (Compression::Xz, Script::IgnoreRange, None, 2),
        (Compression::Xz, Script::WrongRange { etag: "" }, None, 2),
        (Compression::Zstd, Script::Serve { etag: "" }, Some(400_000), 1),
        (Compression::Gzip, Script::Serve { etag: "" }, None, 1),
        (Compression::Bzip2, Script::Serve { etag: "" }, None, 1),
        (Compression::None, Script::Chunked, None, 1),
    ] {
        let server = Server::start(pack(kind, &data), &[script]);
        assert_eq!(size(&Source::Http(server.url.clone())).unwrap(), want, "{kind}");
        assert_eq!(server.requests(), requests, "{kind}");
    }
    // Random data: a second frame makes the file longer than the first frame says.
    let mut n = 1u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (n >> 56) as u8
    })
    .take(100_000)
    .collect();
    let two = pack(Compression::Zstd, &noise).repeat(2);
    let server = Server::start(two.clone(), &[Script::Serve { etag: "" }]);
    assert_eq!(size(&Source::Http(server.url.clone())).unwrap(), None);
    assert_eq!(size(&file(&two)).unwrap(), Some(200_000));
}

#[test]
fn errors_keep_their_cause() {
    let gone = Server::start(Vec::new(), &[Script::Status(404, String::new())]);
    let got = size(&Source::Http(gone.url.clone()));
    assert!(matches!(got, Err(DataError::Status { status: 404, .. })), "{got:?}");
    let packed = pack(Compression::Xz, &data(500_000));
    let cut = Server::start(packed.clone(), &[Script::Promise(packed.len() + 1)]);
    let got = head(&Source::Http(cut.url.clone()), 1 << 20, &quick(), &Watch::default());
    assert!(matches!(got, Err(DataError::Cut { .. })), "{got:?}");
    let cancel = Cancel::default();
    cancel.request();
    let got = head(&file(&packed), 1, &quick(), &Watch::silent(cancel));
    assert!(matches!(got, Err(DataError::Cancelled { .. })), "{got:?}");
}
