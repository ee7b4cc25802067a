//! The receiver: blocks become entries, which the caller makes. What comes is another host's word: anything
//! out of order, twice, beyond its file or of another digest than it says ends it, and so does an end that
//! comes too early. After an error what was made is a part and the caller's to discard.

use super::{
    CHUNK, Chunks, DataError, FORMAT, FileDigest, Have, Head, How, Map, Whole, bad, digest_of, parse,
};
use crate::data::Watch;
use crate::data::sparse::Writeback;
use crate::sys::copy as calls;
use crate::sys::effect::{Effect, step};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Makes what comes. Paths are relative, of plain names, and below directories that came before; a
/// relative link's text leads nowhere upwards; everything else is the caller's to judge.
pub trait Land {
    type Error: From<DataError>;
    fn dir(&mut self, path: &str, mode: u32) -> Result<(), Self::Error>;
    fn link(&mut self, path: &str, to: &str) -> Result<(), Self::Error>;
    /// A file that reads zero, or one of which the sender was told what is in it.
    fn file(&mut self, path: &str, mode: u32, size: u64) -> Result<File, Self::Error>;
    /// All of it is there.
    fn complete(&mut self, path: &str, file: &File) -> Result<(), Self::Error>;
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub entries: usize,
    /// Bytes of one file.
    pub size: u64,
}

/// What a block came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// The sender said what its source is and waits for an answer: `Receiver::answer`.
    Begun {
        source: String,
    },
    More,
    /// Everything is there and is what was sent.
    Ended {
        digest: String,
    },
}

pub struct Receiver<'a> {
    limits: Limits,
    watch: &'a Watch,
    /// What the sender was told.
    have: Have,
    begun: bool,
    ended: bool,
    /// Every path so far; whether it is a directory.
    paths: HashMap<String, bool>,
    whole: Whole,
    current: Option<Current>,
}

/// The file that is being received.
struct Current {
    path: String,
    file: File,
    size: u64,
    /// Chunks before this one are done.
    next: u64,
    digest: FileDigest,
    /// What it has from an earlier attempt, and is not confirmed.
    old: Option<Chunks>,
    writeback: Writeback,
}

impl<'a> Receiver<'a> {
    pub fn new(limits: Limits, watch: &'a Watch) -> Receiver<'a> {
        Receiver {
            limits,
            watch,
            have: Have::default(),
            begun: false,
            ended: false,
            paths: HashMap::new(),
            whole: Whole::default(),
            current: None,
        }
    }

    /// What is here of the source that was begun, and whether the rest is wanted, as blocks for the sender.
    pub fn answer(&mut self, have: Have, wanted: bool) -> Result<Vec<Vec<u8>>, DataError> {
        self.have = have;
        self.have.blocks(wanted)
    }

    pub fn take<L: Land>(&mut self, block: &[u8], land: &mut L) -> Result<Received, L::Error> {
        self.watch.check("receiving")?;
        let (head, payload) = parse(block)?;
        if self.ended || matches!(head, Head::Begin { .. }) == self.begun {
            return Err(bad("a block out of turn").into());
        }
        match head {
            Head::Begin { format, source } => {
                if format != FORMAT {
                    return Err(bad(format!("format {format}, we know {FORMAT}")).into());
                }
                self.begun = true;
                return Ok(Received::Begun { source });
            }
            Head::Chunk { n, map, digest, how } => {
                let Some(file) = &mut self.current else { return Err(bad("data out of turn").into()) };
                let done = file.chunk(n, (&map, &digest, how), payload)?;
                self.watch.progress.add(done);
            }
            Head::FileEnd { digest } => {
                let Some(mut file) = self.current.take() else {
                    return Err(bad("the end of a file out of turn").into());
                };
                self.watch.progress.add(file.end(&digest)?);
                self.whole.file(&digest_of(&digest)?);
                land.complete(&file.path, &file.file)?;
            }
            _ if self.current.is_some() => return Err(bad("a file is cut off").into()),
            Head::End { digest } => {
                if digest != self.whole.end() {
                    return Err(bad("its digest is not that of what came").into());
                }
                self.ended = true;
                return Ok(Received::Ended { digest });
            }
            head => self.entry(&head, land)?,
        }
        Ok(Received::More)
    }

    fn entry<L: Land>(&mut self, head: &Head, land: &mut L) -> Result<(), L::Error> {
        self.whole.entry(head)?;
        match head {
            Head::Dir { path, mode } => {
                self.name(path, true)?;
                land.dir(path, mode & 0o777)
            }
            Head::Link { path, to } => {
                self.name(path, false)?;
                if to.is_empty() || to.contains('\0') || to.split('/').any(|part| part == "..") {
                    return Err(bad(format!("link {path:?} leads upwards or nowhere")).into());
                }
                land.link(path, to)
            }
            Head::File { path, mode, size } => {
                self.name(path, false)?;
                if *size > self.limits.size {
                    return Err(DataError::TooLarge { limit: self.limits.size }.into());
                }
                let file = land.file(path, mode & 0o777, *size)?;
                step(Effect::Truncate, &[], || file.set_len(*size))
                    .map_err(DataError::io("setting the size"))?;
                self.current = Some(Current {
                    file,
                    size: *size,
                    next: 0,
                    digest: FileDigest::new(*size),
                    old: self.have.file(path).cloned(),
                    writeback: Writeback::default(),
                    path: path.clone(),
                });
                Ok(())
            }
            _ => Err(bad("a block out of turn").into()),
        }
    }

    /// A new name in a directory that is there.
    fn name(&mut self, path: &str, is_dir: bool) -> Result<(), DataError> {
        let shown = || path.chars().take(200).collect::<String>();
        let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255;
        if path.len() > 1024 || path.contains(['\0', '\n']) || !path.split('/').all(plain) {
            return Err(bad(format!("the name {:?}", shown())));
        }
        let parent = path.rsplit_once('/').map(|(dir, _)| dir);
        if parent.is_some_and(|p| self.paths.get(p) != Some(&true)) {
            return Err(bad(format!("{:?} is in no directory that came", shown())));
        }
        if self.paths.len() >= self.limits.entries {
            return Err(DataError::TooManyEntries(self.limits.entries as u64));
        }
        match self.paths.insert(path.to_owned(), is_dir) {
            None => Ok(()),
            Some(_) => Err(bad(format!("{:?} comes twice", shown()))),
        }
    }
}

impl Current {
    /// A chunk; the bytes of the file that are done with it.
    fn chunk(
        &mut self,
        n: u64,
        (map, digest, how): (&str, &str, How),
        payload: &[u8],
    ) -> Result<u64, DataError> {
        let at = n.checked_mul(CHUNK as u64).filter(|at| *at < self.size);
        let at = at.ok_or_else(|| bad("data beyond the end of a file"))?;
        if n < self.next {
            return Err(bad("data out of order"));
        }
        let len = usize::try_from(self.size - at).unwrap_or(CHUNK).min(CHUNK);
        let (map, digest) = (Map::parse(map, len)?, digest_of(digest)?);
        let runs = map.runs(len);
        let want = runs.iter().map(ExactSizeIterator::len).sum();
        let unpacked;
        let grains = match how {
            How::Kept => {
                if !payload.is_empty() || self.old.as_mut().and_then(|o| o.remove(&n)) != Some(digest) {
                    return Err(bad("it counts on data that is not here"));
                }
                None
            }
            How::Plain => Some(payload),
            How::Zstd => {
                unpacked = zstd::bulk::decompress(payload, want).map_err(|e| bad(e.to_string()))?;
                Some(unpacked.as_slice())
            }
        };
        if let Some(grains) = grains {
            if grains.len() != want || map.digest(grains) != digest {
                return Err(bad("data is not what its digest says"));
            }
            if self.old.as_mut().is_some_and(|o| o.remove(&n).is_some()) {
                self.clear(n)?;
            }
            let mut rest = grains;
            step(Effect::Write, &[], || {
                for run in runs {
                    let (data, more) = rest.split_at(run.len());
                    self.file.write_all_at(data, at + run.start as u64)?;
                    rest = more;
                }
                Ok(())
            })
            .map_err(DataError::io("writing"))?;
        }
        self.digest.chunk(n, &digest);
        let done = at + len as u64 - (self.next * CHUNK as u64).min(at);
        self.next = n + 1;
        self.writeback.written(&self.file, at + len as u64);
        Ok(done)
    }

    /// Takes a chunk's old content away.
    fn clear(&self, n: u64) -> Result<(), DataError> {
        let at = n * CHUNK as u64;
        let end = self.size.min(at + CHUNK as u64);
        if at >= end {
            return Ok(());
        }
        step(Effect::Write, &[], || match calls::punch(&self.file, &(at..end)) {
            Err(e) if calls::is_not_offered(&e) => {
                self.file.write_all_at(&vec![0; usize::try_from(end - at).unwrap_or(CHUNK)], at)
            }
            r => r,
        })
        .map_err(DataError::io("writing"))
    }

    /// The bytes after its last chunk.
    fn end(&mut self, digest: &str) -> Result<u64, DataError> {
        if digest_of(digest)? != self.digest.0.finalize() {
            return Err(bad("a file is not what its digest says"));
        }
        for n in self.old.take().unwrap_or_default().into_keys() {
            self.clear(n)?;
        }
        Ok(self.size - self.size.min(self.next * CHUNK as u64))
    }
}

/// The digests of what a file holds, read now: what a receiver may say it has of it.
pub fn digests(file: &File, watch: &Watch) -> Result<Chunks, DataError> {
    let (_, size) = calls::measure(file).map_err(DataError::io("looking at the file"))?;
    let (mut out, mut content, mut pos) = (Chunks::new(), vec![0; CHUNK], 0);
    while pos < size {
        watch.check("reading")?;
        let extent = calls::next_data(file, pos, size).map_err(DataError::io("looking for data"))?;
        let Some(extent) = extent else { break };
        let n = extent.start / CHUNK as u64;
        let got = calls::read_full(file, &mut content, n * CHUNK as u64).map_err(DataError::io("reading"))?;
        let map = Map::of(&content[..got]);
        let grains = map.runs(got).into_iter().map(|r| &content[r]).collect::<Vec<_>>().concat();
        if !grains.is_empty() {
            out.insert(n, map.digest(&grains));
        }
        pos = (n + 1) * CHUNK as u64;
    }
    Ok(out)
}
