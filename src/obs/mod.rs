//! What happened: a log of JSON lines that people and programs follow, the journal, and numbers for monitoring. Written after
//! the fact; a failed write never fails the work it tells of.

pub mod journal;
pub mod jsonl;
pub mod metrics;

/// The name of this host, as the kernel has it.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Now, as text for people and records: RFC 3339, UTC, milliseconds.
pub fn now() -> String {
    let t = jiff::Timestamp::now();
    t.round(jiff::Unit::Millisecond).unwrap_or(t).to_string()
}
