//! Taking away what a volume that goes would leave to whoever gets its space next.

use super::rate::Limiter;
use super::sparse::is_zero;
use super::{DataError, Watch};
use crate::sys::copy::{self, Medium};
use crate::sys::effect::{Effect, step};
use std::fs::File;
use std::io;

/// At most so much per call: the time until a request to stop is seen.
const PIECE: u64 = 64 << 20;
/// Pieces are whole multiples of this.
const UNIT: u64 = 64 << 10;
/// What is read at once where zeroes stay.
const READ: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiping {
    /// The storage is told that nobody needs it. One that does not take that is not asked for more.
    Discard,
    Zero,
    /// Only what does not read zero: elsewhere there may be nothing yet.
    ZeroWritten,
}

/// Wipes a whole block device, at most so many bytes per second. Durable when it returns; whoever was interrupted begins anew.
pub fn wipe(dst: &File, how: Wiping, limit: Option<u64>, watch: &Watch) -> Result<(), DataError> {
    let (medium, size) = copy::measure(dst).map_err(DataError::io("looking at the volume"))?;
    if medium == Medium::File {
        return Err(DataError::io("wiping")(io::ErrorKind::InvalidInput.into()));
    }
    watch.begin("wiping", Some(size))?;
    let mut limiter = limit.map(Limiter::new);
    let block = limiter.as_ref().map_or(PIECE, |l| (l.block() as u64 / UNIT * UNIT).clamp(UNIT, PIECE));
    let block = if how == Wiping::ZeroWritten { block.min(READ as u64) } else { block };
    let mut buf = vec![0; if how == Wiping::ZeroWritten { READ } else { 0 }];
    step(Effect::Write, &[], || {
        let mut at = 0;
        while at < size {
            watch.check("wiping")?;
            let range = at..size.min(at + block);
            let len = range.end - range.start;
            let done = match how {
                Wiping::Discard => copy::discard(dst, &range),
                Wiping::Zero => copy::zero(dst, &range),
                Wiping::ZeroWritten => {
                    let n = copy::read_full(dst, &mut buf[..usize::try_from(len).unwrap_or(0)], at);
                    let n = n.map_err(DataError::io("reading the volume"))?;
                    if buf[..n].chunks(4096).all(is_zero) { Ok(()) } else { copy::zero(dst, &range) }
                }
            };
            match done {
                Err(e) if how == Wiping::Discard && copy::is_not_offered(&e) => return Ok(()),
                done => done.map_err(DataError::io("wiping"))?,
            }
            watch.progress.add(len);
            at = range.end;
            let moved = usize::try_from(len).unwrap_or(usize::MAX);
            if limiter.as_mut().is_some_and(|l| !l.moved(moved, &watch.cancel)) {
                return Err(DataError::Cancelled { phase: "wiping" });
            }
        }
        dst.sync_all().map_err(DataError::io("flushing the volume"))
    })
}
