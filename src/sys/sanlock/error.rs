//! What sanlock's numbers mean to us.

use crate::sys::Class;
use std::io;

/// The meaning of a negative answer. Several numbers have one meaning: what to do about them is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("this host has not joined the lockspace, or is losing it")]
    NotJoined,
    #[error("a process of this host holds it")]
    HeldHere,
    #[error("other hosts share it, or a call about it is under way on this host")]
    InFlight,
    /// Also for a while after the holder died: a host counts as alive until a renewal is missed.
    #[error("another host holds it")]
    Held,
    #[error("the host that holds it is silent and not yet given up")]
    Dying,
    #[error("somebody else held it in between")]
    Fenced,
    #[error("a lease was left by a process of this host")]
    Orphan,
    #[error("there is no lease")]
    Unformatted,
    #[error("there is another lease than the one meant")]
    Mismatch,
    #[error("the lease is damaged")]
    Damaged,
    #[error("the storage failed or is too slow")]
    Storage,
    #[error("this host's id was lost to another host")]
    HostLost,
    #[error("another host uses this host id")]
    HostIdBusy,
    #[error("the lockspace has no room for this host id")]
    BadHostId,
    #[error("sector size or alignment do not fit the storage")]
    Sizes,
    #[error("the arguments are wrong, or contradict what is joined already")]
    Invalid,
    #[error("it is under way")]
    UnderWay,
    #[error("there is no such thing")]
    Absent,
    #[error("it is not ours")]
    NotHeld,
    #[error("the watchdog daemon did not answer")]
    Watchdog,
    #[error("the daemon is gone")]
    Gone,
    #[error(
        "not permitted: is this account in the group of the daemon's socket, and may the daemon's account write the storage?"
    )]
    Denied,
    /// Of calls that we do not make.
    #[error("a request or an index was refused")]
    Request,
    #[error("an answer that is not documented")]
    Unknown,
}

impl Fault {
    pub fn of(code: i32) -> Fault {
        match code {
            -28 => Fault::NotJoined,
            -17 => Fault::HeldHere,
            -11 | -16 => Fault::InFlight,
            -246..=-243 => Fault::Held,
            -247 => Fault::Dying,
            -212 | -213 | -240 | -250 => Fault::Fenced,
            -117 => Fault::Orphan,
            -223 | -224 => Fault::Unformatted,
            -228..=-225 => Fault::Mismatch,
            -214 | -222 | -229 => Fault::Damaged,
            -5 | -201 | -202 | -210 | -211 | -220 | -221 => Fault::Storage,
            -241 | -242 | -251 | -260 | -261 => Fault::HostLost,
            -262 => Fault::HostIdBusy,
            -231 => Fault::BadHostId,
            -230 => Fault::Sizes,
            -22 | -19 | -34 => Fault::Invalid,
            -115 => Fault::UnderWay,
            -2 => Fault::Absent,
            -1 | 1 => Fault::NotHeld,
            -203 => Fault::Watchdog,
            -32 | -104 | -107 | -111 => Fault::Gone,
            -13 => Fault::Denied,
            -278..=-270 => Fault::Request,
            _ => Fault::Unknown,
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SanlockError {
    #[error(
        "sanlock's client library cannot be loaded ({0}); install it (Debian: apt install sanlock libsanlock-client1)"
    )]
    Library(String),
    #[error("no sanlock daemon answers ({0}); install and start sanlock on this host")]
    NoDaemon(io::Error),
    #[error("sanlock refused to {call}: {fault} (answer {code})")]
    Call { call: &'static str, fault: Fault, code: i32 },
    #[error("{0:?} is too long for sanlock, or has a character it does not take")]
    Name(String),
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
}

impl SanlockError {
    pub fn fault(&self) -> Option<Fault> {
        match self {
            SanlockError::Call { fault, .. } => Some(*fault),
            _ => None,
        }
    }

    pub fn class(&self) -> Class {
        match self {
            SanlockError::Library(_) | SanlockError::Name(_) => Class::Unsupported,
            SanlockError::NoDaemon(_) => Class::Internal,
            SanlockError::Io { source, .. } => Class::of_io(source),
            SanlockError::Call { fault, .. } => match fault {
                Fault::HeldHere | Fault::InFlight | Fault::Held | Fault::Dying | Fault::UnderWay => {
                    Class::Busy
                }
                Fault::Fenced
                | Fault::Unformatted
                | Fault::Mismatch
                | Fault::Damaged
                | Fault::Orphan
                | Fault::HostLost => Class::Integrity,
                Fault::Denied | Fault::HostIdBusy | Fault::NotJoined | Fault::Watchdog => Class::Refused,
                Fault::BadHostId | Fault::Invalid => Class::Usage,
                Fault::Sizes => Class::Unsupported,
                Fault::Absent => Class::NotFound,
                Fault::Storage | Fault::NotHeld | Fault::Gone | Fault::Request | Fault::Unknown => {
                    Class::Internal
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Needs libsanlock-dev: see packaging/need.
    #[test]
    fn every_number_of_the_header_has_a_meaning() {
        let header = std::fs::read_to_string("/usr/include/sanlock_rv.h").unwrap();
        let mut seen = 0;
        for line in header.lines().filter_map(|l| l.strip_prefix("#define SANLK_")) {
            let mut words = line.split_whitespace();
            let (name, code) = (words.next().unwrap(), words.next().map(str::parse::<i32>));
            let Some(Ok(code)) = code else { continue };
            if code < 0 {
                assert_ne!(Fault::of(code), Fault::Unknown, "{name} {code}");
                seen += 1;
            }
        }
        assert!(seen > 40, "{seen}");
    }

    #[test]
    fn numbers_that_decide_are_told_apart() {
        for (code, fault) in [
            (-243, Fault::Held),
            (-245, Fault::Held),
            (-246, Fault::Held),
            (-247, Fault::Dying),
            (-226, Fault::Mismatch),
            (-223, Fault::Unformatted),
            (-28, Fault::NotJoined),
            (-32, Fault::Gone),
            (-999, Fault::Unknown),
        ] {
            assert_eq!(Fault::of(code), fault, "{code}");
        }
    }
}
