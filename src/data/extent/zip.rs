//! Whether compressing pays: on a slow way it saves time, on a fast one it costs it. Told by measuring: in
//! every cycle some chunks go as they are, and how long the way holds us up is compared with what compressing
//! took and saved.

use std::time::Duration;

/// Sent as they are, so that what waits between us and the way does not hide how slow it is.
const WARM: u32 = 4;
/// Sent as they are and measured.
const PLAIN: u32 = WARM + 4;
/// Compressed and measured.
const TRIED: u32 = PLAIN + 2;
/// Chunks of a cycle.
const CYCLE: u32 = 128;
/// Data that does not get smaller than this part is not worth the receiver's work.
const WORTH: (usize, usize) = (7, 8);

#[derive(Debug, Default)]
pub(super) struct Zip {
    at: u32,
    /// Of this cycle's measured chunks: bytes and time on the way.
    way: (u64, Duration),
    /// Bytes before and after compressing, and the time it took.
    packed: (u64, u64, Duration),
}

impl Zip {
    /// Whether the next chunk is to be compressed.
    pub fn wanted(&self) -> bool {
        match self.at {
            ..PLAIN => false,
            PLAIN..TRIED => true,
            _ => self.pays(),
        }
    }

    /// Time per byte on the way, saved, is more than time per byte of compressing.
    fn pays(&self) -> bool {
        let (bytes, waited) = self.way;
        let (before, after, took) = self.packed;
        let saved = u128::from(before.saturating_sub(after));
        bytes > 0 && waited.as_nanos() * saved > took.as_nanos() * u128::from(bytes)
    }

    pub fn is_worth(before: usize, after: usize) -> bool {
        after <= before / WORTH.1 * WORTH.0
    }

    /// What a chunk cost: compressing, if that was tried, and the way.
    pub fn sent(&mut self, len: usize, zipped: Option<(usize, Duration)>, on_the_way: Duration) {
        if let Some((after, took)) = zipped {
            let (a, b, t) = self.packed;
            self.packed = (a + len as u64, b + after as u64, t + took);
        } else if (WARM..PLAIN).contains(&self.at) {
            self.way = (self.way.0 + len as u64, self.way.1 + on_the_way);
        }
        self.at += 1;
        if self.at == CYCLE {
            *self = Zip::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of 1000 chunks are compressed, on a way of so many ns per chunk.
    fn compressed(way: u64, zip: u64, after: usize) -> usize {
        let (mut z, mut n) = (Zip::default(), 0);
        for _ in 0..1000 {
            let wanted = z.wanted();
            let zipped = wanted.then_some((after, Duration::from_nanos(zip)));
            // While compressed data flows, the way seems free.
            z.sent(1000, zipped, Duration::from_nanos(if wanted { 0 } else { way }));
            n += usize::from(wanted);
        }
        n
    }

    #[test]
    fn it_is_compressed_where_that_saves_time() {
        assert!(compressed(10_000, 2_000, 500) > 900, "a slow way");
        assert!(compressed(1_000, 2_000, 100) < 20, "a fast way");
        assert!(compressed(10_000, 2_000, 990) < 20, "data that does not get smaller");
        assert!(compressed(0, 2_000, 1) < 20, "no way at all");
        assert!(Zip::is_worth(800, 700) && !Zip::is_worth(800, 701));
    }
}
