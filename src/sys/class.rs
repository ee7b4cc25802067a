//! Words shared by all rooms: the class of a failure and a number of bytes.

use serde::{Deserialize, Serialize};

/// Why something failed, as coarse as an exit status. Every room's error enum maps to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// The request is malformed.
    Usage,
    /// The object does not exist.
    NotFound,
    /// Somebody else holds the lock; trying later helps.
    Busy,
    /// Not offered, or not yet.
    Unsupported,
    /// Another host or server failed or refused.
    Remote,
    /// A deadline passed.
    Timeout,
    /// What is there is not what it should be: digest, record, header, chain.
    Integrity,
    /// A process has the object open.
    InUse,
    /// Policy forbids it: restricted directory, hostile image.
    Refused,
    /// Somebody asked us to stop.
    Cancelled,
    /// The storage or the operating system failed, or we did.
    Internal,
}

impl Class {
    /// Exit status of the process.
    pub fn status(self) -> u8 {
        match self {
            Class::Usage => 2,
            Class::NotFound => 3,
            Class::Busy => 4,
            Class::Unsupported => 5,
            Class::Remote => 6,
            Class::Timeout => 7,
            Class::Integrity => 8,
            Class::InUse => 9,
            Class::Refused => 10,
            Class::Cancelled => 130,
            Class::Internal => 70,
        }
    }

    /// The word for it in events, in metrics and in the manual.
    pub fn word(self) -> &'static str {
        match self {
            Class::Usage => "usage",
            Class::NotFound => "not-found",
            Class::Busy => "busy",
            Class::Unsupported => "unsupported",
            Class::Remote => "remote",
            Class::Timeout => "timeout",
            Class::Integrity => "integrity",
            Class::InUse => "in-use",
            Class::Refused => "refused",
            Class::Cancelled => "cancelled",
            Class::Internal => "internal",
        }
    }

    /// The class of an operating system error, where its number says more than "internal".
    pub fn of_io(e: &std::io::Error) -> Class {
        use std::io::ErrorKind as K;
        match e.kind() {
            K::NotFound => Class::NotFound,
            K::PermissionDenied => Class::Refused,
            K::TimedOut => Class::Timeout,
            K::Unsupported => Class::Unsupported,
            _ => Class::Internal,
        }
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut s, b| {
        // Writing to a string does not fail.
        let _ = write!(s, "{b:02x}");
        s
    })
}

/// A size or an amount, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const MIB: u64 = 1 << 20;

    /// From mebibytes; `None` when that many bytes do not fit.
    pub fn mib(n: u64) -> Option<Bytes> {
        n.checked_mul(Self::MIB).map(Bytes)
    }

    /// In mebibytes, rounded up, as OpenNebula counts image sizes.
    pub fn as_mib_up(self) -> u64 {
        self.0.div_ceil(Self::MIB)
    }
}

impl std::fmt::Display for Bytes {
    /// For people: `1.5 GiB`, `512 B`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let exp = (self.0.ilog2() / 10) as usize;
        // Tenths, rounded down, in integers: exact enough for people at any size.
        let tenths = (u128::from(self.0) * 10) >> (10 * exp);
        write!(f, "{}.{} {}", tenths / 10, tenths % 10, UNITS[exp - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_for_people() {
        for (n, s) in
            [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (u64::MAX, "15.9 EiB")]
        {
            assert_eq!(Bytes(n).to_string(), s);
        }
    }

    #[test]
    fn a_class_is_one_word_everywhere() {
        for c in [Class::NotFound, Class::InUse, Class::Internal] {
            assert_eq!(serde_json::to_value(c).unwrap(), c.word());
        }
    }

    #[test]
    fn mebibytes_round_up_and_do_not_overflow() {
        assert_eq!(Bytes(1).as_mib_up(), 1);
        assert_eq!(Bytes(Bytes::MIB).as_mib_up(), 1);
        assert_eq!(Bytes::mib(u64::MAX), None);
    }
}
