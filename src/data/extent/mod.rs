//! Extent streams: files between hosts, with holes left out and every byte accounted for. A stream is a
//! sequence of blocks, each a whole message: two bytes of length (big-endian), a head of JSON, and bytes.
//!
//! The sender begins with what the source is; the receiver answers what it has already, if anything, and
//! whether it wants the rest; then entries follow, of a closed set: directories, links, files. A file's
//! content goes in chunks of 1 MiB, each the 4 KiB grains that are not zero and a map that says which they
//! are, so that nothing in a chunk can overlap or be out of order. A chunk's digest is BLAKE3 of map and
//! grains, a file's is that of its size and of the numbers and digests of its chunks, the stream's that of
//! its entries. Equal digests are equal content, however it was compressed and wherever the holes were.

mod receive;
mod send;
#[cfg(test)]
mod tests;
mod zip;

use super::DataError;
use super::sparse::{BLOCK as GRAIN, is_zero};
use blake3::{Hash, Hasher};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;

pub use receive::{Land, Limits, Received, Receiver, digests};
pub use send::{Sender, Sent};

/// Both sides speak this one.
const FORMAT: u32 = 1;
/// Bytes of a file that are digested, compressed and resumed as one.
const CHUNK: usize = 1 << 20;
const GRAINS: usize = CHUNK / GRAIN;
/// The longest head: a path and the text of a link.
const HEAD_MAX: usize = 32 << 10;
/// Chunks that a receiver may say it has: 4 TiB.
const HAVE_MAX: usize = 4 << 20;
/// Of these, in one block.
const HAVE_BLOCK: usize = 1 << 16;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Head {
    /// Sender, first: what tells this source, unchanged, from every other.
    Begin {
        format: u32,
        source: String,
    },
    /// Receiver: digests of a file's chunks from this one on follow, 32 bytes each, zeros where it has none.
    Have {
        path: String,
        first: u64,
    },
    /// Receiver, last: the entries, or nothing more.
    Want {
        entries: bool,
    },
    Dir {
        path: String,
        mode: u32,
    },
    Link {
        path: String,
        to: String,
    },
    File {
        path: String,
        mode: u32,
        size: u64,
    },
    /// The grains that `map` (hexadecimal) names follow.
    Chunk {
        n: u64,
        map: String,
        digest: String,
        how: How,
    },
    FileEnd {
        digest: String,
    },
    End {
        digest: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum How {
    Plain,
    Zstd,
    /// The receiver has it: nothing follows.
    Kept,
}

fn bad(why: impl Into<String>) -> DataError {
    DataError::BadStream(why.into())
}

fn block(head: &Head, payload: &[u8]) -> Result<Vec<u8>, DataError> {
    let head = serde_json::to_vec(head).map_err(|e| bad(e.to_string()))?;
    let len = u16::try_from(head.len()).ok().filter(|_| head.len() <= HEAD_MAX);
    let len = len.ok_or_else(|| bad("a name or link is too long"))?;
    let mut out = Vec::with_capacity(2 + head.len() + payload.len());
    out.extend_from_slice(&len.to_be_bytes());
    out.extend_from_slice(&head);
    out.extend_from_slice(payload);
    Ok(out)
}

/// A block's head and what follows it.
fn parse(block: &[u8]) -> Result<(Head, &[u8]), DataError> {
    let (len, rest) = block.split_first_chunk().ok_or_else(|| bad("a block without a head"))?;
    let len = usize::from(u16::from_be_bytes(*len));
    let (head, payload) = rest.split_at_checked(len).ok_or_else(|| bad("a head is cut off"))?;
    let head: Head = serde_json::from_slice(head).map_err(|e| bad(format!("a head that is none: {e}")))?;
    if !payload.is_empty() && !matches!(head, Head::Chunk { .. } | Head::Have { .. }) {
        return Err(bad("bytes where none belong"));
    }
    Ok((head, payload))
}

fn digest_of(text: &str) -> Result<Hash, DataError> {
    // Only as we write it, so that no digest has two spellings.
    Hash::from_hex(text)
        .ok()
        .filter(|h| h.to_hex().as_str() == text)
        .ok_or_else(|| bad("a digest that is none"))
}

/// Which grains of a chunk are not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Map([u8; GRAINS / 8]);

impl Map {
    /// Of a chunk's whole content.
    fn of(content: &[u8]) -> Map {
        let mut map = Map([0; GRAINS / 8]);
        for (i, grain) in content.chunks(GRAIN).enumerate() {
            if !is_zero(grain) {
                map.0[i / 8] |= 1 << (i % 8);
            }
        }
        map
    }

    /// Of a chunk of `len` bytes, as it came.
    fn parse(text: &str, len: usize) -> Result<Map, DataError> {
        let mut map = Map([0; GRAINS / 8]);
        let wrong = || bad("a map of a chunk that is none");
        if text.len() != map.0.len() * 2 || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(wrong());
        }
        for (i, byte) in map.0.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).map_err(|_| wrong())?;
        }
        let last = (0..GRAINS).rev().find(|i| map.has(*i)).ok_or_else(|| bad("a chunk without data"))?;
        if last * GRAIN >= len {
            return Err(bad("data beyond the end of a file"));
        }
        Ok(map)
    }

    fn has(&self, grain: usize) -> bool {
        self.0[grain / 8] & 1 << (grain % 8) != 0
    }

    /// The bytes of a chunk of `len` bytes that are there, as ranges in it.
    fn runs(&self, len: usize) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for i in (0..GRAINS).filter(|i| self.has(*i)) {
            let (start, end) = (i * GRAIN, len.min((i + 1) * GRAIN));
            match runs.last_mut() {
                Some(run) if run.end == start => run.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }

    fn hex(&self) -> String {
        crate::sys::hex(&self.0)
    }

    /// The digest of a chunk with this map and these grains.
    fn digest(&self, grains: &[u8]) -> Hash {
        Hasher::new().update(&self.0).update(grains).finalize()
    }
}

/// The digest of a file, chunk by chunk.
struct FileDigest(Hasher);

impl FileDigest {
    fn new(size: u64) -> FileDigest {
        let mut hasher = Hasher::new();
        hasher.update(&size.to_be_bytes());
        FileDigest(hasher)
    }

    fn chunk(&mut self, n: u64, digest: &Hash) {
        self.0.update(&n.to_be_bytes()).update(digest.as_bytes());
    }
}

/// The digest of a stream: every entry's head, and every file's digest.
#[derive(Default)]
struct Whole(Hasher);

impl Whole {
    fn entry(&mut self, head: &Head) -> Result<(), DataError> {
        let text = serde_json::to_vec(head).map_err(|e| bad(e.to_string()))?;
        self.0.update(&(text.len() as u64).to_be_bytes()).update(&text);
        Ok(())
    }

    fn file(&mut self, digest: &Hash) {
        self.0.update(digest.as_bytes());
    }

    fn end(&self) -> String {
        self.0.finalize().to_hex().to_string()
    }
}

/// The digests of a file's chunks, those that are all zero left out.
pub type Chunks = HashMap<u64, Hash>;

/// What a receiver has already, by path.
#[derive(Debug, Default)]
pub struct Have(HashMap<String, Chunks>);

impl Have {
    /// A staged file of an earlier attempt. Only what was read back here counts as had. `false`: it is more
    /// than a sender would be told of.
    pub fn add(&mut self, path: &str, chunks: Chunks) -> bool {
        let had: usize = self.0.iter().filter(|(p, _)| *p != path).map(|(_, c)| c.len()).sum();
        let fits = had + chunks.len() < HAVE_MAX - HAVE_BLOCK;
        if fits {
            self.0.insert(path.to_owned(), chunks);
        }
        fits
    }

    /// As blocks for the sender; with `entries` false it is told that nothing more is needed.
    pub fn blocks(&self, entries: bool) -> Result<Vec<Vec<u8>>, DataError> {
        let mut out = Vec::new();
        for (path, chunks) in &self.0 {
            let mut numbers: Vec<u64> = chunks.keys().copied().collect();
            numbers.sort_unstable();
            let mut at = 0;
            while let Some(&first) = numbers.get(at) {
                let mut payload = Vec::new();
                for n in first..first + HAVE_BLOCK as u64 {
                    if numbers.get(at).is_none() {
                        break;
                    }
                    payload.extend(chunks.get(&n).map_or([0; 32], |h| *h.as_bytes()));
                    at += usize::from(numbers[at] == n);
                }
                out.push(block(&Head::Have { path: path.clone(), first }, &payload)?);
            }
        }
        out.push(block(&Head::Want { entries }, &[])?);
        Ok(out)
    }

    /// The sender's side: a block of the answer. At its last one, whether entries are wanted.
    pub fn take(&mut self, block: &[u8]) -> Result<Option<bool>, DataError> {
        let (path, first, digests) = match parse(block)? {
            (Head::Want { entries }, _) => return Ok(Some(entries)),
            (Head::Have { path, first }, digests) if digests.len().is_multiple_of(32) => {
                (path, first, digests)
            }
            _ => return Err(bad("an answer out of turn")),
        };
        let had: usize = self.0.values().map(HashMap::len).sum();
        if had + digests.len() / 32 > HAVE_MAX || first > u64::MAX / CHUNK as u64 {
            return Err(bad("an answer that is too long"));
        }
        let chunks = self.0.entry(path).or_default();
        for (n, digest) in (first..).zip(digests.as_chunks::<32>().0) {
            if *digest != [0; 32] {
                chunks.insert(n, Hash::from_bytes(*digest));
            }
        }
        Ok(None)
    }

    fn has(&self, path: &str, n: u64, digest: &Hash) -> bool {
        self.0.get(path).and_then(|c| c.get(&n)) == Some(digest)
    }

    fn file(&self, path: &str) -> Option<&Chunks> {
        self.0.get(path)
    }
}
