//! From one open file to another the fastest way that is right, and holes into an existing file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use super::sparse::{BLOCK, Writeback, write_data};
use super::{DataError, Planned, Sparse, Watch};
use crate::sys::copy::{self as calls, Medium};
use crate::sys::effect::{Effect, only_looks, step};

/// Bytes per call of `copy_file_range`: the time until a request to stop is seen.
const RANGE: u64 = 32 << 20;
/// Bytes per read: stays in the cache of one core between read, look and write.
const BUF: usize = 512 << 10;
/// Such buffers between reading and writing.
const QUEUE: usize = 4;

/// What moved the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Extents are shared, nothing was moved.
    Reflink,
    /// The kernel or the server copied data extents.
    CopyRange,
    /// Data was read and written, zeros and holes left out.
    Sparse,
    /// It was not done, only planned.
    Planned,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Reflink => "reflink",
            Method::CopyRange => "copy-range",
            Method::Sparse => "sparse",
            Method::Planned => "planned",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    pub method: Method,
    /// Bytes of the source, holes included.
    pub size: u64,
    /// Bytes moved; 0 for a reflink.
    pub data: u64,
}

/// Copies all of `src`, a file or block device, into `dst`, an empty file or a block device that reads
/// zero and is large enough. Neither file position matters; `src`'s is moved. Progress counts bytes of
/// the source, holes included. Nothing is flushed; after an error `dst` holds a part.
pub fn copy(src: &File, dst: &File, sparse: Sparse, watch: &Watch) -> Result<Copied, DataError> {
    if only_looks() {
        return planned(src, watch);
    }
    step(Effect::Write, &[], || run(src, dst, sparse, watch, false))
}

/// The same into what has its size, device or file; it reads zero and is large enough.
pub fn pour(src: &File, dst: &File, watch: &Watch) -> Result<Copied, DataError> {
    if only_looks() {
        return planned(src, watch);
    }
    step(Effect::Write, &[], || run(src, dst, Sparse::Keep, watch, true))
}

fn planned(src: &File, watch: &Watch) -> Result<Copied, DataError> {
    let what = Planned::file(src, "copy")?;
    let copied = Copied { method: Method::Planned, size: what.size.unwrap_or(0), data: 0 };
    watch.progress.plan(what);
    Ok(copied)
}

fn run(src: &File, dst: &File, sparse: Sparse, watch: &Watch, has_size: bool) -> Result<Copied, DataError> {
    let (from, size) = calls::measure(src).map_err(DataError::io("looking at the source"))?;
    let (to, have) = calls::measure(dst).map_err(DataError::io("looking at the target"))?;
    let has_size = has_size || to == Medium::Block;
    match to {
        _ if has_size && have < size => return Err(DataError::TargetTooSmall { have, need: size }),
        Medium::File if !has_size && have != 0 => return Err(DataError::TargetNotEmpty { size: have }),
        _ => {}
    }
    watch.begin("copying", Some(size))?;
    let files = from == Medium::File && !has_size;
    // A failed reflink says nothing about copying; what is wrong with the medium shows then.
    let copied = if files && size > 0 && sparse != Sparse::Full && calls::reflink(src, dst).is_ok() {
        watch.progress.add(size);
        Copied { method: Method::Reflink, size, data: 0 }
    } else {
        if size > 0 {
            watch.may_move()?;
        }
        let reserved = sparse != Sparse::Full
            || has_size
            || size == 0
            || calls::reserve(dst, size).map_err(DataError::io("reserving space"))?;
        if !has_size {
            // First: XFS allocates more than is written when writing moves the end, holes included.
            dst.set_len(size).map_err(DataError::io("setting the size"))?;
        }
        calls::will_read_once(src);
        // Media that cannot tell where data is: all of it is read, and zeros found by looking.
        let tells = next_data(src, 0, size)?.is_some();
        let whole = !tells || !reserved;
        let mut mover =
            Mover { src, dst, size, whole, watch, pos: 0, data: 0, writeback: Writeback::default() };
        if files && sparse != Sparse::Detect && !whole {
            mover.in_kernel()?;
        }
        let method = if mover.pos == size { Method::CopyRange } else { Method::Sparse };
        if mover.pos < size {
            mover.by_hand(sparse == Sparse::Detect || (!tells && sparse != Sparse::Full))?;
        }
        Copied { method, size, data: mover.data }
    };
    let (_, after) = calls::measure(src).map_err(DataError::io("looking at the source"))?;
    let (_, got) = calls::measure(dst).map_err(DataError::io("looking at the target"))?;
    if after != size || (!has_size && got != size) {
        return Err(DataError::SourceChanged { before: size, after });
    }
    Ok(copied)
}

/// The next extent of data from `pos` on, empty at the end; `None` where the medium cannot tell.
fn next_data(src: &File, pos: u64, size: u64) -> Result<Option<Range<u64>>, DataError> {
    match calls::next_data(src, pos, size) {
        Ok(found) => Ok(Some(found.unwrap_or(size..size))),
        Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(source) => Err(DataError::Io { doing: "looking for data", source }),
    }
}

/// Copies front to back.
struct Mover<'a> {
    src: &'a File,
    dst: &'a File,
    size: u64,
    /// Holes are copied as zeros, too.
    whole: bool,
    watch: &'a Watch,
    /// Up to here all is done, holes included.
    pos: u64,
    data: u64,
    writeback: Writeback,
}

impl Mover<'_> {
    fn done_to(&mut self, pos: u64) {
        self.watch.progress.add(pos - self.pos);
        self.pos = pos;
        self.writeback.written(self.dst, pos);
    }

    /// As far as the kernel copies; where it does not offer that, `pos` stays behind.
    fn in_kernel(&mut self) -> Result<(), DataError> {
        while let Some(extent) = next_data(self.src, self.pos, self.size)? {
            self.done_to(extent.start);
            while self.pos < extent.end {
                self.watch.check("copying")?;
                let want = usize::try_from(RANGE.min(extent.end - self.pos)).unwrap_or(BUF);
                match calls::copy_range(self.src, self.dst, self.pos, want) {
                    Ok(n) if n > 0 => {
                        self.data += n as u64;
                        self.done_to(self.pos + n as u64);
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if !calls::is_not_offered(&e) => {
                        return Err(DataError::Io { doing: "copying", source: e });
                    }
                    // Nothing copied although there is data: some file systems do that; reading will tell.
                    Ok(_) | Err(_) => return Ok(()),
                }
            }
            if self.pos == self.size {
                break;
            }
        }
        Ok(())
    }

    /// The rest, read and written; large ones by two threads, so that reading waits for no writing.
    fn by_hand(&mut self, skip_zeros: bool) -> Result<(), DataError> {
        let mut blocks =
            Blocks { src: self.src, size: self.size, whole: self.whole, extent: self.pos..self.pos };
        if self.size - self.pos <= 2 * BUF as u64 {
            let mut buf = vec![0; BUF];
            while let Some((at, n)) = blocks.next(&mut buf)? {
                self.put(at, &buf[..n], skip_zeros)?;
            }
        } else {
            thread::scope(|scope| {
                let (full, filled) = sync_channel(QUEUE);
                let (empty, emptied) = channel();
                (0..QUEUE).for_each(|_| drop(empty.send(vec![0; BUF])));
                let reader = scope.spawn(move || {
                    // A writer that has gone knows why.
                    while let Ok(mut buf) = emptied.recv() {
                        let Some((at, n)) = blocks.next(&mut buf)? else { break };
                        if full.send((buf, at, n)).is_err() {
                            break;
                        }
                    }
                    Ok(())
                });
                for (buf, at, n) in filled {
                    self.put(at, &buf[..n], skip_zeros)?;
                    let _ = empty.send(buf);
                }
                reader.join().unwrap_or(Err(DataError::Died))
            })?;
        }
        self.done_to(self.size);
        Ok(())
    }

    fn put(&mut self, at: u64, buf: &[u8], skip_zeros: bool) -> Result<(), DataError> {
        self.watch.check("copying")?;
        let put = |data: &[u8], at| self.dst.write_all_at(data, at).map_err(DataError::io("writing"));
        self.data +=
            if skip_zeros { write_data(buf, at, put)? } else { put(buf, at).map(|()| buf.len() as u64)? };
        self.done_to(at + buf.len() as u64);
        Ok(())
    }
}

/// The data of a file, front to back.
struct Blocks<'a> {
    src: &'a File,
    size: u64,
    whole: bool,
    /// What is left of the extent at hand.
    extent: Range<u64>,
}

impl Blocks<'_> {
    /// Fills `buf` with the next data; where it lies and how much it is.
    fn next(&mut self, buf: &mut [u8]) -> Result<Option<(u64, usize)>, DataError> {
        if self.extent.is_empty() {
            let all = self.extent.end..self.size;
            self.extent =
                if self.whole { all } else { next_data(self.src, all.start, all.end)?.unwrap_or(all) };
        }
        if self.extent.is_empty() {
            return Ok(None);
        }
        let (at, want) = (self.extent.start, block(&self.extent, buf.len()));
        let n = calls::read_full(self.src, &mut buf[..want], at).map_err(DataError::io("reading"))?;
        if n < want {
            return Err(DataError::SourceChanged { before: self.size, after: at + n as u64 });
        }
        self.extent.start += n as u64;
        Ok(Some((at, n)))
    }
}

/// As much of `range` as fits into `cap` bytes.
fn block(range: &Range<u64>, cap: usize) -> usize {
    usize::try_from(range.end - range.start).unwrap_or(cap).min(cap)
}

/// Turns blocks of zeros (4 KiB) of a file into holes; the bytes given back, 0 where the file system
/// has no holes. Content and size stay the same at every moment, so it may be killed and run again;
/// nobody else may write to the file meanwhile.
pub fn punch(file: &File, watch: &Watch) -> Result<u64, DataError> {
    step(Effect::Write, &[], || {
        let (_, size) = calls::measure(file).map_err(DataError::io("looking at the file"))?;
        watch.begin("punching holes", Some(size))?;
        let mut buf = vec![0; BUF];
        let (mut pos, mut given_back) = (0, 0);
        loop {
            let extent = match calls::next_data(file, pos, size) {
                Ok(Some(extent)) => extent,
                Ok(None) => break,
                Err(e) if e.kind() == io::ErrorKind::Unsupported => return Ok(0),
                Err(source) => return Err(DataError::Io { doing: "looking for data", source }),
            };
            watch.progress.add(extent.start - pos);
            pos = extent.start;
            while pos < extent.end {
                watch.check("punching holes")?;
                let n = block(&(pos..extent.end), BUF);
                let n = calls::read_full(file, &mut buf[..n], pos).map_err(DataError::io("reading"))?;
                if n == 0 {
                    return Err(DataError::SourceChanged { before: size, after: pos });
                }
                for zeros in zero_runs(&buf[..n], pos) {
                    match calls::punch(file, &zeros) {
                        Ok(()) => given_back += zeros.end - zeros.start,
                        Err(e) if calls::is_not_offered(&e) => return Ok(given_back),
                        Err(source) => return Err(DataError::Io { doing: "punching a hole", source }),
                    }
                }
                pos += n as u64;
                watch.progress.add(n as u64);
            }
        }
        watch.progress.add(size - pos);
        Ok(given_back)
    })
}

/// The runs of whole zero blocks in `buf`, as offsets in the file.
fn zero_runs(buf: &[u8], at: u64) -> Vec<Range<u64>> {
    let whole = buf.len() as u64 / BLOCK as u64 * BLOCK as u64;
    let mut runs = Vec::new();
    let mut end = at;
    let _ = write_data::<std::convert::Infallible>(
        &buf[..usize::try_from(whole).unwrap_or(0)],
        at,
        |data, start| {
            if start > end {
                runs.push(end..start);
            }
            end = start + data.len() as u64;
            Ok(())
        },
    );
    if at + whole > end {
        runs.push(end..at + whole);
    }
    runs
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
