//! Limits of transfer rates.

use std::time::{Duration, Instant};

use super::DataError;
use crate::sys::Cancel;

/// Parses a limit as curl writes it: bytes per second, with `k`, `M`, `G`, `T` or `P` for powers of 1024,
/// fractions allowed (`1.5M`).
pub fn parse_rate(text: &str) -> Result<u64, DataError> {
    let bad = || DataError::BadRate(text.to_owned());
    let trimmed = text.trim();
    let (number, shift) = match trimmed.char_indices().last() {
        Some((i, unit)) if unit.is_ascii_alphabetic() => {
            let shift = match unit.to_ascii_lowercase() {
                'b' => 0,
                'k' => 10,
                'm' => 20,
                'g' => 30,
                't' => 40,
                'p' => 50,
                _ => return Err(bad()),
            };
            (&trimmed[..i], shift)
        }
        _ => (trimmed, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |s: &str| !s.is_empty() && s.len() <= 18 && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return Err(bad());
    }
    let unit = 1u128 << shift;
    let parse = |s: &str| s.parse::<u128>().map_err(|_| bad());
    let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let rate = parse(whole)? * unit + parse(fraction)? * unit / scale;
    u64::try_from(rate).ok().filter(|n| *n > 0).ok_or_else(bad)
}

/// Keeps the average rate below a limit by waiting after each block.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: u64,
    start: Instant,
    moved: u64,
}

impl Limiter {
    /// `rate` in bytes per second, not 0.
    pub(super) fn new(rate: u64) -> Limiter {
        Limiter { rate: rate.max(1), start: Instant::now(), moved: 0 }
    }

    /// A block of about a tenth of a second, so that waits are short.
    pub(super) fn block(&self) -> usize {
        usize::try_from(self.rate / 10).unwrap_or(usize::MAX).max(512)
    }

    /// Waits until `n` more bytes are due; `false` when a request to stop came.
    pub(super) fn moved(&mut self, n: usize, stop: &Cancel) -> bool {
        self.moved += n as u64;
        let nanos = u128::from(self.moved) * 1_000_000_000 / u128::from(self.rate);
        let due = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let ahead = due.saturating_sub(self.start.elapsed());
        // A slow source must not earn the right to a burst later.
        if ahead.is_zero() {
            *self = Limiter::new(self.rate);
        }
        stop.wait(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_as_curl_reads_them() {
        for (text, rate) in [
            ("1", 1),
            ("500k", 500 << 10),
            ("500K", 500 << 10),
            ("1M", 1 << 20),
            ("1.5M", 3 << 19),
            (" 2G ", 2 << 30),
            ("10B", 10),
            ("16000P", 16000 << 50),
        ] {
            assert_eq!(parse_rate(text).unwrap(), rate, "{text}");
        }
        for text in
            ["", "0", "-1", "M", "1MB", "1 M x", "1e3", "1.M", ".5M", "0.0001", "99999P", "1,5M", "½", "1µ"]
        {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_limiter_waits_and_stops() {
        let stop = Cancel::default();
        let mut limit = Limiter::new(10_000);
        let start = Instant::now();
        assert!(limit.moved(1000, &stop));
        assert!(start.elapsed() >= Duration::from_millis(95));
        stop.request();
        assert!(!limit.moved(1_000_000, &stop));
    }
}
