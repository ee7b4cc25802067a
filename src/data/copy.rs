//! From one open file to another the fastest way that is right, and holes into an existing file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use super::sparse::{BLOCK, write_data};
use super::{DataError, Sparse, Watch};
use crate::sys::copy::{self as calls, Medium};
use crate::sys::effect::{Effect, step};

/// Bytes per call of `copy_file_range`: the time until a request to stop is seen.
const RANGE: u64 = 64 << 20;
/// Bytes per read: stays in the cache of one core between read, look and write.
const BUF: usize = 512 << 10;

/// What moved the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Extents are shared, nothing was moved.
    Reflink,
    /// The kernel or the server copied data extents.
    CopyRange,
    /// Data was read and written, zeros and holes left out.
    Sparse,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Reflink => "reflink",
            Method::CopyRange => "copy-range",
            Method::Sparse => "sparse",
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
    step(Effect::Write, &[], || run(src, dst, sparse, watch))
}

fn run(src: &File, dst: &File, sparse: Sparse, watch: &Watch) -> Result<Copied, DataError> {
    let (from, size) = calls::measure(src).map_err(DataError::io("looking at the source"))?;
    let (to, have) = calls::measure(dst).map_err(DataError::io("looking at the target"))?;
    match to {
        Medium::File if have != 0 => return Err(DataError::TargetNotEmpty { size: have }),
        Medium::Block if have < size => return Err(DataError::TargetTooSmall { have, need: size }),
        _ => {}
    }
    watch.begin("copying", Some(size))?;
    let files = from == Medium::File && to == Medium::File;
    // A failed reflink says nothing about copying; what is wrong with the medium shows then.
    let copied = if files && size > 0 && sparse != Sparse::Full && calls::reflink(src, dst).is_ok() {
        watch.progress.add(size);
        Copied { method: Method::Reflink, size, data: 0 }
    } else {
        let reserved = sparse != Sparse::Full
            || to == Medium::Block
            || size == 0
            || calls::reserve(dst, size).map_err(DataError::io("reserving space"))?;
        if to == Medium::File {
            // First: XFS allocates more than is written when writing moves the end, holes included.
            dst.set_len(size).map_err(DataError::io("setting the size"))?;
        }
        calls::will_read_once(src);
        let mut mover = Mover {
            src,
            dst,
            size,
            watch,
            in_kernel: files && sparse != Sparse::Detect,
            skip_zeros: sparse == Sparse::Detect,
            fill_holes: !reserved,
            data: 0,
            buf: Vec::new(),
        };
        mover.extents(sparse)?;
        let method = if mover.in_kernel { Method::CopyRange } else { Method::Sparse };
        Copied { method, size, data: mover.data }
    };
    let (_, after) = calls::measure(src).map_err(DataError::io("looking at the source"))?;
    let (_, got) = calls::measure(dst).map_err(DataError::io("looking at the target"))?;
    if after != size || (to == Medium::File && got != size) {
        return Err(DataError::SourceChanged { before: size, after });
    }
    Ok(copied)
}

struct Mover<'a> {
    src: &'a File,
    dst: &'a File,
    size: u64,
    watch: &'a Watch,
    in_kernel: bool,
    skip_zeros: bool,
    fill_holes: bool,
    data: u64,
    buf: Vec<u8>,
}

impl Mover<'_> {
    fn extents(&mut self, sparse: Sparse) -> Result<(), DataError> {
        let mut pos = 0;
        while pos < self.size {
            let extent = match calls::next_data(self.src, pos, self.size) {
                Ok(found) => found.unwrap_or(self.size..self.size),
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                    self.in_kernel = false;
                    self.skip_zeros = sparse != Sparse::Full;
                    pos..self.size
                }
                Err(source) => return Err(DataError::Io { doing: "looking for data", source }),
            };
            self.hole(pos..extent.start)?;
            pos = extent.end;
            self.extent(extent)?;
        }
        Ok(())
    }

    fn hole(&mut self, mut hole: Range<u64>) -> Result<(), DataError> {
        if !self.fill_holes {
            self.watch.progress.add(hole.end - hole.start);
            return Ok(());
        }
        self.buf.clear();
        self.buf.resize(BUF, 0);
        while !hole.is_empty() {
            self.watch.check("copying")?;
            let n = block(&hole, BUF);
            self.dst.write_all_at(&self.buf[..n], hole.start).map_err(DataError::io("writing"))?;
            self.moved(&mut hole, n);
        }
        Ok(())
    }

    fn extent(&mut self, mut extent: Range<u64>) -> Result<(), DataError> {
        while !extent.is_empty() {
            self.watch.check("copying")?;
            let n = if self.in_kernel { self.copy_range(&extent)? } else { None };
            let n = match n {
                Some(n) => n,
                None => self.read_write(&extent)?,
            };
            self.moved(&mut extent, n);
        }
        Ok(())
    }

    fn moved(&self, range: &mut Range<u64>, n: usize) {
        range.start += n as u64;
        self.watch.progress.add(n as u64);
    }

    /// `None`: not this way, neither now nor later.
    fn copy_range(&mut self, extent: &Range<u64>) -> Result<Option<usize>, DataError> {
        let want = usize::try_from(RANGE.min(extent.end - extent.start)).unwrap_or(BUF);
        match calls::copy_range(self.src, self.dst, extent.start, want) {
            Ok(n) if n > 0 => {
                self.data += n as u64;
                Ok(Some(n))
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(Some(0)),
            Err(e) if !calls::is_not_offered(&e) => Err(DataError::Io { doing: "copying", source: e }),
            // Nothing copied although there is data: some file systems do that; reading will tell.
            Ok(_) | Err(_) => {
                self.in_kernel = false;
                Ok(None)
            }
        }
    }

    fn read_write(&mut self, extent: &Range<u64>) -> Result<usize, DataError> {
        self.buf.resize(BUF, 0);
        let want = block(extent, BUF);
        let n = calls::read_full(self.src, &mut self.buf[..want], extent.start)
            .map_err(DataError::io("reading"))?;
        if n < want {
            return Err(DataError::SourceChanged { before: self.size, after: extent.start + n as u64 });
        }
        let buf = &self.buf[..n];
        let put = |data: &[u8], at| self.dst.write_all_at(data, at).map_err(DataError::io("writing"));
        self.data += if self.skip_zeros {
            write_data(buf, extent.start, put)?
        } else {
            put(buf, extent.start).map(|()| n as u64)?
        };
        Ok(n)
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
