//! Looking at a source without fetching it: its first bytes, and its size when unpacked. What is found
//! is what the source claims; limits are for `fetch`, but nothing is counted out beyond them.

mod index;

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;

use super::compress::{SNIFF, fill};
use super::http::Client;
use super::pipe::BLOCK;
use super::{Compression, DataError, FetchOptions, Source, Watch};
use crate::sys::copy as calls;

/// The beginning of a source.
#[derive(Clone, Debug)]
pub struct Head {
    /// The first bytes, unpacked when that was asked for; fewer than wanted only when there are no more.
    pub bytes: Vec<u8>,
    /// `None` also when unpacking was not asked for.
    pub compression: Compression,
    /// Bytes of the source as it lies there: the file's length or the server's Content-Length.
    pub transferred_len: Option<u64>,
    /// The first bytes as they lie there.
    raw: Vec<u8>,
}

/// Reads the first `want` bytes and little more; from a server by one request that is dropped then, which
/// works with servers that know no ranges. Of `opts`, only `decompress` and `http` matter. A request to
/// stop is seen between reads, at the latest after the stall timeout.
pub fn head(source: &Source, want: usize, opts: &FetchOptions, watch: &Watch) -> Result<Head, DataError> {
    watch.check("measuring")?;
    let client = Client::new(&opts.http, watch.cancel.clone())?;
    let mut stream = source.open(&client)?;
    let transferred_len = stream.len();
    let mut raw = vec![0; SNIFF];
    let n = fill(&mut stream, &mut raw).map_err(|e| cause(e, Compression::None))?;
    raw.truncate(n);
    let compression = if opts.decompress { Compression::sniff(&raw) } else { Compression::None };
    let whole = io::Cursor::new(raw.clone()).chain(stream);
    let mut bytes = Vec::new();
    decoder(compression, whole)?
        .take(want as u64)
        .read_to_end(&mut bytes)
        .map_err(|e| cause(e, compression))?;
    Ok(Head { bytes, compression, transferred_len, raw })
}

/// The exact size of the unpacked content: from an index or header where the format has one, else, for
/// files, by unpacking all of it into nothing. `None` for a server when only a download would tell.
/// A remote zstd file is taken for one frame unless its length says it is not.
pub fn unpacked_size(
    source: &Source,
    head: &Head,
    opts: &FetchOptions,
    watch: &Watch,
) -> Result<Option<u64>, DataError> {
    watch.check("measuring")?;
    let Some(len) = head.transferred_len else { return Ok(None) };
    match (source, head.compression) {
        (_, Compression::None) => Ok(Some(len)),
        (Source::File(file), Compression::Xz | Compression::Zstd) => {
            let read = |range: &Range<u64>| read_file(file, range);
            let known = if head.compression == Compression::Xz {
                index::xz(len, usize::MAX, &read)?
            } else {
                index::zstd(len, &read, watch)?
            };
            // No index, or one that does not add up: the stream itself tells, or what is wrong with it.
            known.map_or_else(|| count(source, head.compression, opts, watch), |n| Ok(Some(n)))
        }
        (Source::File(_), kind) => count(source, kind, opts, watch),
        (Source::Http(url), Compression::Xz) => {
            let client = Client::new(&opts.http, watch.cancel.clone())?;
            index::xz(len, REMOTE_STREAMS, &|range: &Range<u64>| client.range(url, range, len))
        }
        (Source::Http(_), Compression::Zstd) => Ok(index::zstd_frame(&head.raw, len)),
        (Source::Http(_), Compression::Gzip | Compression::Bzip2) => Ok(None),
    }
}

/// Each costs two requests.
const REMOTE_STREAMS: usize = 4;

fn read_file(file: &File, range: &Range<u64>) -> Result<Option<Vec<u8>>, DataError> {
    let mut buf = vec![0; usize::try_from(range.end - range.start).unwrap_or(0)];
    let n = calls::read_full(file, &mut buf, range.start).map_err(DataError::io("reading"))?;
    Ok((n == buf.len()).then_some(buf))
}

/// Unpacks into nothing; progress counts unpacked bytes.
fn count(
    source: &Source,
    kind: Compression,
    opts: &FetchOptions,
    watch: &Watch,
) -> Result<Option<u64>, DataError> {
    watch.begin("measuring", None)?;
    let client = Client::new(&opts.http, watch.cancel.clone())?;
    let mut unpacked = decoder(kind, source.open(&client)?)?;
    let mut buf = vec![0; BLOCK];
    let mut size = 0;
    loop {
        watch.check("measuring")?;
        match fill(&mut *unpacked, &mut buf).map_err(|e| cause(e, kind))? {
            0 => return Ok(Some(size)),
            n => {
                size += n as u64;
                if size > opts.max_size {
                    return Err(DataError::TooLarge { limit: opts.max_size });
                }
                watch.progress.add(n as u64);
            }
        }
    }
}

fn decoder<'a>(kind: Compression, stream: impl Read + 'a) -> Result<Box<dyn Read + 'a>, DataError> {
    kind.decoder(BufReader::with_capacity(64 << 10, stream)).map_err(|e| cause(e, kind))
}

/// The error that went through a decoder, or the decoder's own.
fn cause(e: io::Error, compression: Compression) -> DataError {
    match e.downcast::<DataError>() {
        Ok(inner) => inner,
        Err(e) => DataError::Corrupt { compression, why: e.to_string() },
    }
}

#[cfg(test)]
mod tests;
