//! The sender: entries become blocks, in the order in which the caller names them.

use super::zip::Zip;
use super::{CHUNK, DataError, FORMAT, FileDigest, Have, Head, How, Map, Whole, block};
use crate::data::rate::Limiter;
use crate::data::{Planned, Watch};
use crate::sys::copy as calls;
use crate::sys::effect::only_looks;
use std::fs::File;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

/// Takes a block, and waits while the way is full.
type Sink<'a> = dyn FnMut(Vec<u8>) -> Result<(), DataError> + 'a;

/// What went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Of the stream: what the receiver must come to, too.
    pub digest: String,
    /// Bytes of all files, holes included; of them data; and bytes that went over the way.
    pub size: u64,
    pub data: u64,
    pub wire: u64,
}

pub struct Sender<'a> {
    sink: &'a mut Sink<'a>,
    watch: &'a Watch,
    limiter: Option<Limiter>,
    have: Have,
    zip: Zip,
    whole: Whole,
    sent: Sent,
    content: Vec<u8>,
}

impl<'a> Sender<'a> {
    /// `limit` in bytes per second. The caller hands the answer of the receiver to `wanted` next.
    pub fn begin(
        source: &str,
        limit: Option<u64>,
        watch: &'a Watch,
        sink: &'a mut Sink<'a>,
    ) -> Result<Sender<'a>, DataError> {
        sink(block(&Head::Begin { format: FORMAT, source: source.to_owned() }, &[])?)?;
        let sent = Sent { digest: String::new(), size: 0, data: 0, wire: 0 };
        Ok(Sender {
            sink,
            watch,
            limiter: limit.map(Limiter::new),
            have: Have::default(),
            zip: Zip::default(),
            whole: Whole::default(),
            sent,
            content: vec![0; CHUNK],
        })
    }

    /// The receiver's answer, to its end: what it has is left out. `false`: it wants nothing.
    pub fn wanted(
        &mut self,
        mut answer: impl FnMut() -> Result<Vec<u8>, DataError>,
    ) -> Result<bool, DataError> {
        loop {
            if let Some(entries) = self.have.take(&answer()?)? {
                return Ok(entries);
            }
        }
    }

    pub fn dir(&mut self, path: &str, mode: u32) -> Result<(), DataError> {
        self.entry(&Head::Dir { path: path.to_owned(), mode })
    }

    pub fn link(&mut self, path: &str, to: &str) -> Result<(), DataError> {
        self.entry(&Head::Link { path: path.to_owned(), to: to.to_owned() })
    }

    /// The whole content of a file or block device; its position is moved. Answers its digest.
    pub fn file(&mut self, path: &str, mode: u32, file: &File) -> Result<String, DataError> {
        if only_looks() {
            self.watch.progress.plan(Planned::file(file, "send")?);
            return Ok(String::new());
        }
        let (_, size) = calls::measure(file).map_err(DataError::io("looking at the source"))?;
        calls::will_read_once(file);
        self.entry(&Head::File { path: path.to_owned(), mode, size })?;
        let mut content = std::mem::take(&mut self.content);
        let (mut digest, mut pos) = (FileDigest::new(size), 0);
        // To find the end of an extent a file system may look at every page of it: once is enough.
        let mut extent = 0..0;
        while pos < size {
            self.watch.check("sending")?;
            if pos >= extent.end {
                extent = match calls::next_data(file, pos, size) {
                    Ok(found) => found.unwrap_or(size..size),
                    // A medium that cannot tell: all of it is read.
                    Err(e) if e.kind() == ErrorKind::Unsupported => pos..size,
                    Err(source) => return Err(DataError::Io { doing: "looking for data", source }),
                };
            }
            let start = extent.start.max(pos);
            let n = start / CHUNK as u64;
            let next = if start < size { size.min((n + 1) * CHUNK as u64) } else { size };
            if start < size {
                let at = n * CHUNK as u64;
                let content = &mut content[..usize::try_from(next - at).unwrap_or(CHUNK)];
                let got = calls::read_full(file, content, at).map_err(DataError::io("reading"))?;
                if got < content.len() {
                    return Err(DataError::SourceChanged { before: size, after: at + got as u64 });
                }
                self.chunk(path, n, content, &mut digest)?;
            }
            self.watch.progress.add(next - pos);
            pos = next;
        }
        self.content = content;
        let (_, after) = calls::measure(file).map_err(DataError::io("looking at the source"))?;
        if after != size {
            return Err(DataError::SourceChanged { before: size, after });
        }
        self.file_end(size, &digest)
    }

    /// A file with this content, which need not lie anywhere.
    pub fn bytes(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<String, DataError> {
        let size = content.len() as u64;
        self.entry(&Head::File { path: path.to_owned(), mode, size })?;
        let mut digest = FileDigest::new(size);
        for (n, part) in (0..).zip(content.chunks(CHUNK)) {
            self.chunk(path, n, part, &mut digest)?;
        }
        self.file_end(size, &digest)
    }

    /// All is named. The receiver has everything when it took this.
    pub fn end(mut self) -> Result<Sent, DataError> {
        self.sent.digest = self.whole.end();
        let digest = self.sent.digest.clone();
        self.put(&Head::End { digest }, &[])?;
        Ok(self.sent)
    }

    fn file_end(&mut self, size: u64, digest: &FileDigest) -> Result<String, DataError> {
        let digest = digest.0.finalize();
        self.whole.file(&digest);
        self.sent.size += size;
        let digest = digest.to_hex().to_string();
        self.put(&Head::FileEnd { digest: digest.clone() }, &[])?;
        Ok(digest)
    }

    fn entry(&mut self, head: &Head) -> Result<(), DataError> {
        self.watch.check("sending")?;
        self.whole.entry(head)?;
        self.put(head, &[]).map(drop)
    }

    fn chunk(&mut self, path: &str, n: u64, content: &[u8], file: &mut FileDigest) -> Result<(), DataError> {
        let map = Map::of(content);
        let runs = map.runs(content.len());
        let packed;
        let grains = match runs.as_slice() {
            [] => return Ok(()),
            [all] if all.len() == content.len() => content,
            runs => {
                packed = runs.iter().map(|r| &content[r.clone()]).collect::<Vec<_>>().concat();
                &packed
            }
        };
        let digest = map.digest(grains);
        file.chunk(n, &digest);
        self.sent.data += grains.len() as u64;
        let head = |how| Head::Chunk { n, map: map.hex(), digest: digest.to_hex().to_string(), how };
        if self.have.has(path, n, &digest) {
            return self.put(&head(How::Kept), &[]).map(drop);
        }
        if !self.zip.wanted() {
            let waited = self.put(&head(How::Plain), grains)?;
            self.zip.sent(grains.len(), None, waited);
            return Ok(());
        }
        let begin = Instant::now();
        let zipped = zstd::bulk::compress(grains, 1).map_err(DataError::io("compressing"))?;
        let took = begin.elapsed();
        let waited = if Zip::is_worth(grains.len(), zipped.len()) {
            self.put(&head(How::Zstd), &zipped)?
        } else {
            self.put(&head(How::Plain), grains)?
        };
        self.zip.sent(grains.len(), Some((zipped.len(), took)), waited);
        Ok(())
    }

    /// The time it took the block to go.
    fn put(&mut self, head: &Head, payload: &[u8]) -> Result<Duration, DataError> {
        let block = block(head, payload)?;
        let (len, begin) = (block.len(), Instant::now());
        (self.sink)(block)?;
        self.sent.wire += len as u64;
        if self.limiter.as_mut().is_some_and(|l| !l.moved(len, &self.watch.cancel)) {
            return Err(DataError::Cancelled { phase: "sending" });
        }
        Ok(begin.elapsed())
    }
}
