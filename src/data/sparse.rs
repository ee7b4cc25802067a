//! Writing a stream of bytes with holes where it is zero.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::{DataError, Watch};
use crate::sys::copy::{self, Medium};
use crate::sys::effect::{Effect, bug, step};

/// The unit in which zeros become holes.
pub(super) const BLOCK: usize = 4096;
static ZEROS: [u8; BLOCK] = [0; BLOCK];

/// What becomes of holes and zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sparse {
    /// Holes stay holes. From where holes cannot be seen (a stream, a block device) as `Detect`.
    #[default]
    Keep,
    /// Zero blocks become holes too. A reflink is left as it is: it takes no space.
    Detect,
    /// No holes: space for the whole size is taken first.
    Full,
}

/// At most 4 KiB, as one comparison the C library does with vectors.
pub(super) fn is_zero(block: &[u8]) -> bool {
    block == &ZEROS[..block.len()]
}

/// Has the medium at work while there is still data to come: the flush at the end then waits for little,
/// and a large image does not fill the host's memory with pages that all must go out at once.
#[derive(Default)]
pub(super) struct Writeback {
    begun: u64,
}

impl Writeback {
    const STEP: u64 = 32 << 20;

    /// Everything before `pos` is written.
    pub(super) fn written(&mut self, dst: &File, pos: u64) {
        if pos >= self.begun + Self::STEP {
            copy::begin_writeback(dst, &(self.begun..pos));
            self.begun = pos;
        }
    }
}

/// Zeroes per call: the time until a request to stop is seen.
const PIECE: u64 = 64 << 20;

/// Makes all of a block device read zero, by itself where it can. A new file does already.
pub fn zero(dst: &File, watch: &Watch) -> Result<(), DataError> {
    let (medium, size) = copy::measure(dst).map_err(DataError::io("looking at the target"))?;
    if medium == Medium::File {
        return Ok(());
    }
    watch.may_move()?;
    watch.begin("zeroing", Some(size))?;
    step(Effect::Write, &[], || {
        let mut at = 0;
        while at < size {
            watch.check("zeroing")?;
            let end = size.min(at + PIECE);
            copy::zero(dst, &(at..end)).map_err(DataError::io("zeroing"))?;
            watch.progress.add(end - at);
            at = end;
        }
        Ok(())
    })
}

/// Writes front to back into a file that is empty and reads zero; zeros are skipped or written.
pub(super) struct Writer<'a> {
    dst: &'a File,
    medium: Medium,
    skip_zeros: bool,
    limit: u64,
    pos: u64,
    /// The size set so far.
    ahead: u64,
    data: u64,
    writeback: Writeback,
}

/// XFS allocates beyond the end of a file that grows by writing, and what it took stays in the holes
/// that follow. So the end is moved ahead of the data.
const AHEAD: u64 = 1 << 30;

impl<'a> Writer<'a> {
    /// `limit` is the largest size the result may have.
    pub(super) fn new(dst: &'a File, sparse: Sparse, limit: u64) -> Result<Writer<'a>, DataError> {
        let (medium, size) = copy::measure(dst).map_err(DataError::io("looking at the target"))?;
        if medium == Medium::File && size != 0 {
            return Err(DataError::TargetNotEmpty { size });
        }
        let (skip_zeros, writeback) = (sparse != Sparse::Full, Writeback::default());
        Ok(Writer { dst, medium, skip_zeros, limit, pos: 0, ahead: 0, data: 0, writeback })
    }

    pub(super) fn push(&mut self, buf: &[u8]) -> Result<(), DataError> {
        if self.limit - self.pos < buf.len() as u64 {
            return Err(DataError::TooLarge { limit: self.limit });
        }
        if self.skip_zeros && self.medium == Medium::File && self.pos + buf.len() as u64 > self.ahead {
            self.ahead = self.limit.min(self.pos.saturating_add(AHEAD));
            // Near the largest size of a file system it fails; then it is not done.
            let _ = self.dst.set_len(self.ahead);
        }
        let at = self.pos;
        self.pos += buf.len() as u64;
        let buf = if bug("lose-data") { &buf[..buf.len() / 2] } else { buf };
        let put = |data: &[u8], at| match self.dst.write_all_at(data, at) {
            Err(_) if bug("ignore-write-error") => Ok(()),
            done => done.map_err(DataError::io("writing")),
        };
        self.data += if self.skip_zeros {
            write_data(buf, at, put)?
        } else {
            put(buf, at).map(|()| buf.len() as u64)?
        };
        self.writeback.written(self.dst, self.pos);
        Ok(())
    }

    /// Sets the size, so that a hole at the end is there; the size and the bytes written.
    pub(super) fn finish(self) -> Result<(u64, u64), DataError> {
        if self.medium == Medium::File {
            match self.dst.set_len(self.pos) {
                Err(_) if bug("ignore-write-error") => {}
                done => done.map_err(DataError::io("setting the size"))?,
            }
        }
        Ok((self.pos, self.data))
    }
}

/// Hands every run of blocks of `buf` that are not zero to `put`; the number of bytes in them. Blocks
/// are those of the file, so `at` may be anywhere in one.
pub(super) fn write_data<E>(
    buf: &[u8],
    at: u64,
    mut put: impl FnMut(&[u8], u64) -> Result<(), E>,
) -> Result<u64, E> {
    let mut data = 0;
    let mut emit = |start: usize, end: usize| {
        data += (end - start) as u64;
        put(&buf[start..end], at + start as u64)
    };
    let mut run: Option<usize> = None;
    let mut i = 0;
    while i < buf.len() {
        let left_in_block = BLOCK - usize::try_from((at + i as u64) % BLOCK as u64).unwrap_or(0);
        let next = buf.len().min(i + left_in_block);
        match (is_zero(&buf[i..next]), run) {
            (false, None) => run = Some(i),
            (true, Some(start)) => {
                emit(start, i)?;
                run = None;
            }
            _ => {}
        }
        i = next;
    }
    if let Some(start) = run {
        emit(start, buf.len())?;
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_data_are_found_at_any_alignment() {
        let mut buf = vec![0u8; 5 * BLOCK];
        buf[BLOCK] = 1;
        buf[2 * BLOCK - 1] = 1;
        buf[4 * BLOCK] = 1;
        for (at, want) in [
            (0u64, vec![(BLOCK as u64, BLOCK), (4 * BLOCK as u64, BLOCK)]),
            // Shifted by half a block, the same bytes touch other blocks of the file.
            (2048, vec![(BLOCK as u64, 2 * BLOCK), (4 * BLOCK as u64, BLOCK)]),
        ] {
            let mut got = Vec::new();
            write_data::<()>(&buf, at, |d, a| {
                got.push((a, d.len()));
                Ok(())
            })
            .unwrap();
            assert_eq!(got, want, "at {at}");
        }
    }
}
