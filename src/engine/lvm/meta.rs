//! The records of a block domain, on a small volume of its group that every host may read.
//!
//! ```text
//! 0        the header, two copies of 4 KiB
//! 64 KiB   the table: 1024 entries of 512 bytes, then a second copy of all of them
//! 2 MiB    for each entry four buffers of 16 KiB
//! ```
//!
//! An entry says what one job has: a staging area, and in which buffers its records are. A record is
//! written to a buffer that the entry does not name, then the entry is written, to the older of its
//! copies. A copy carries a number and a digest, so a torn write leaves the other one in force.
//! All writers hold the domain lock: entries share blocks.

use super::{EngineError, Result};
use crate::engine::{Finished, Record};
use crate::lock::JobId;
use crate::sys::direct::{BLOCK, Direct};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

const TABLE: u64 = 64 << 10;
const ENTRIES: u32 = 1024;
const ENTRY: usize = 512;
const COPY: u64 = ENTRIES as u64 * ENTRY as u64;
const DATA: u64 = 2 << 20;
const BUFFERS: u8 = 4;
const BUFFER: usize = 16 << 10;
pub(super) const SIZE: u64 = DATA + ENTRIES as u64 * BUFFERS as u64 * BUFFER as u64;
const MAGIC: &[u8; 8] = b"sdmcopy1";
/// Magic, number, length, digest.
const HEAD: usize = 8 + 8 + 4 + 32;

/// Where a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Buffer(u8, u32);

/// What the table knows of one job. Short names: an entry is small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    job: Option<JobId>,
    /// It has a staging area.
    #[serde(default, skip_serializing_if = "is_false")]
    area: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    intent: Option<Buffer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    commit: Option<Buffer>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    done: Option<Buffer>,
    #[serde(default, skip_serializing_if = "is_false")]
    ack: bool,
    #[serde(default)]
    changed: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_false(b: &bool) -> bool {
    !b
}

/// Puts a payload into the form of a copy.
fn seal(number: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(number.to_be_bytes());
    out.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(digest(number, payload));
    out.extend(payload);
    out
}

fn digest(number: u64, payload: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(number.to_be_bytes()).chain_update(payload).finalize().into()
}

/// The number and payload of a copy that is whole.
fn open(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (number, rest) = rest.split_first_chunk::<8>()?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<32>()?;
    let number = u64::from_be_bytes(*number);
    let payload = rest.get(..usize::try_from(u32::from_be_bytes(*len)).ok()?)?;
    (digest(number, payload) == *sum).then_some((number, payload))
}

/// The newer of two copies, its number, and whether it is the second.
fn newer<'a>(a: &'a [u8], b: &'a [u8]) -> Option<(u64, &'a [u8], bool)> {
    match (open(a), open(b)) {
        (Some((n, _)), Some((m, payload))) if m > n => Some((m, payload, true)),
        (Some((n, payload)), _) => Some((n, payload, false)),
        (None, Some((m, payload))) => Some((m, payload, true)),
        (None, None) => None,
    }
}

#[derive(Debug)]
pub(super) struct Meta {
    disk: Direct,
    /// Where a job's entry was seen last; the entry itself says whether it still is.
    seen: Mutex<HashMap<JobId, u32>>,
}

fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> EngineError {
    move |source| EngineError::Io { what: format!("{what} on {}", super::view::META), source }
}

impl Meta {
    pub(super) fn open(device: &Path) -> Result<Meta> {
        let disk = Direct::open_device(device).map_err(io_error("opening the records"))?;
        Ok(Meta { disk, seen: Mutex::default() })
    }

    fn read(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        self.disk.read(at, len).map_err(io_error("reading the records"))
    }

    fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let mut blocks = bytes.to_vec();
        blocks.resize(bytes.len().next_multiple_of(BLOCK), 0);
        self.disk.write(at, &blocks).map_err(io_error("writing a record"))
    }

    /// Flushes the disk below, with whatever else was written to it.
    pub(super) fn flush(&self) -> Result<()> {
        self.disk.flush().map_err(io_error("flushing the disk of the records"))
    }

    /// Both copies gone: what an empty volume reads as, or nothing of ours.
    pub(super) fn clear(&self) -> Result<()> {
        self.write(0, &vec![0; usize::try_from(DATA).unwrap_or(0)])
    }

    pub(super) fn header(&self) -> Result<Option<Vec<u8>>> {
        let both = self.read(0, 2 * BLOCK)?;
        Ok(newer(&both[..BLOCK], &both[BLOCK..]).map(|(_, payload, _)| payload.to_vec()))
    }

    pub(super) fn put_header(&self, header: &[u8]) -> Result<()> {
        if header.len() + HEAD > BLOCK {
            return Err(EngineError::NoSpace("a header of this size".to_owned()));
        }
        let both = self.read(0, 2 * BLOCK)?;
        let (number, second) = newer(&both[..BLOCK], &both[BLOCK..]).map_or((0, true), |(n, _, s)| (n, s));
        self.write(if second { 0 } else { BLOCK as u64 }, &seal(number + 1, header))
    }

    /// Entries in use, by their place in the table.
    fn entries(&self) -> Result<Vec<(u32, Entry)>> {
        let table = self.read(TABLE, 2 * usize::try_from(COPY).unwrap_or(0))?;
        let (a, b) = table.split_at(table.len() / 2);
        let mut out = Vec::new();
        for (n, (a, b)) in (0..).zip(a.chunks(ENTRY).zip(b.chunks(ENTRY))) {
            if let Some((_, payload, _)) = newer(a, b) {
                let entry: Entry = serde_json::from_slice(payload).map_err(|e| EngineError::Damaged {
                    what: format!("entry {n} of the records"),
                    why: e.to_string(),
                })?;
                if let Some(job) = entry.job {
                    self.seen().insert(job, n);
                    out.push((n, entry));
                }
            }
        }
        Ok(out)
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<JobId, u32>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blocks that hold the two copies of an entry, and where in them.
    fn blocks(&self, n: u32) -> Result<([u64; 2], [Vec<u8>; 2], usize)> {
        let at = u64::from(n) * ENTRY as u64;
        let block = at - at % BLOCK as u64;
        let offsets = [TABLE + block, TABLE + COPY + block];
        let within = usize::try_from(at - block).unwrap_or(0);
        Ok((offsets, [self.read(offsets[0], BLOCK)?, self.read(offsets[1], BLOCK)?], within))
    }

    fn entry(&self, job: JobId) -> Result<Option<(u32, Entry)>> {
        let hint = self.seen().get(&job).copied();
        if let Some(n) = hint {
            let (_, [a, b], at) = self.blocks(n)?;
            let found = newer(&a[at..at + ENTRY], &b[at..at + ENTRY]);
            let found = found.and_then(|(_, p, _)| serde_json::from_slice::<Entry>(p).ok());
            if let Some(e) = found.filter(|e| e.job == Some(job)) {
                return Ok(Some((n, e)));
            }
        }
        Ok(self.entries()?.into_iter().find(|(_, e)| e.job == Some(job)))
    }

    fn put(&self, n: u32, entry: &Entry) -> Result<()> {
        let payload = serde_json::to_vec(entry).map_err(|e| EngineError::Damaged {
            what: "an entry of the records".to_owned(),
            why: e.to_string(),
        })?;
        let (offsets, mut blocks, at) = self.blocks(n)?;
        let now = newer(&blocks[0][at..at + ENTRY], &blocks[1][at..at + ENTRY]);
        let (number, second) = now.map_or((0, true), |(n, _, s)| (n, s));
        let older = usize::from(!second);
        let sealed = seal(number + 1, &payload);
        blocks[older][at..at + ENTRY].fill(0);
        blocks[older][at..at + sealed.len()].copy_from_slice(&sealed);
        self.write(offsets[older], &blocks[older])
    }

    /// Writes an entry, or frees it when nothing is left of the job.
    fn save(&self, n: u32, entry: &Entry) -> Result<()> {
        let rest = entry.area || entry.done.is_some();
        self.put(n, if rest { entry } else { &FREE })
    }

    pub(super) fn begin(&self, job: JobId) -> Result<()> {
        if let Some((n, entry)) = self.entry(job)? {
            if entry.area {
                return Err(EngineError::Exists(format!("the staging area of {job}")));
            }
            return self.put(n, &Entry { area: true, ..entry });
        }
        let used = self.entries()?;
        let free = (0..ENTRIES).find(|n| !used.iter().any(|(m, _)| m == n));
        // Done records are kept as long as there is room, the ones that reached somebody least.
        let oldest = used.iter().filter(|(_, e)| !e.area).min_by_key(|(_, e)| (!e.ack, e.changed));
        let n = free.or(oldest.map(|(n, _)| *n));
        let n = n.ok_or_else(|| EngineError::NoSpace("the records of another job".to_owned()))?;
        self.put(n, &Entry { job: Some(job), area: true, ..Entry::default() })?;
        self.seen().insert(job, n);
        Ok(())
    }

    /// Forgets the staging area; a done record stays.
    pub(super) fn end(&self, job: JobId) -> Result<()> {
        let Some((n, entry)) = self.entry(job)? else { return Ok(()) };
        self.save(n, &Entry { area: false, intent: None, commit: None, ..entry })
    }

    pub(super) fn put_record(&self, job: JobId, record: Record, bytes: &[u8]) -> Result<()> {
        if bytes.len() > BUFFER {
            return Err(EngineError::NoSpace(format!("a record of {} bytes", bytes.len())));
        }
        let gone = || EngineError::Absent(format!("the staging area of {job}"));
        let (n, mut entry) = self.entry(job)?.filter(|(_, e)| e.area).ok_or_else(gone)?;
        let used = [entry.intent, entry.commit, entry.done];
        let free = (0..BUFFERS).find(|b| !used.iter().flatten().any(|u| u.0 == *b)).unwrap_or(BUFFERS - 1);
        self.write(buffer(n, free), bytes)?;
        let at = Some(Buffer(free, u32::try_from(bytes.len()).unwrap_or(0)));
        match record {
            Record::Intent => entry.intent = at,
            Record::Undo => {
                return Err(EngineError::Unsupported { engine: "lvm", what: "change volumes in place" });
            }
            Record::Commit | Record::Done => entry.commit = at,
        }
        self.put(n, &entry)
    }

    pub(super) fn record(&self, job: JobId, record: Record) -> Result<Option<Vec<u8>>> {
        let Some((n, entry)) = self.entry(job)? else { return Ok(None) };
        let at = match record {
            Record::Intent => entry.intent,
            Record::Undo => None,
            Record::Commit => entry.commit,
            Record::Done => entry.done,
        };
        let Some(Buffer(b, len)) = at else { return Ok(None) };
        let len = usize::try_from(len).unwrap_or(0).min(BUFFER);
        let mut bytes = self.read(buffer(n, b), len.next_multiple_of(BLOCK))?;
        bytes.truncate(len);
        Ok(Some(bytes))
    }

    pub(super) fn fence(&self, job: JobId) -> Result<()> {
        match self.entry(job)? {
            Some((n, entry)) if entry.intent.is_some() => self.put(n, &Entry { intent: None, ..entry }),
            _ => Ok(()),
        }
    }

    pub(super) fn close(&self, job: JobId, now: i64) -> Result<()> {
        let none = || EngineError::Absent(format!("the commit of {job}"));
        let (n, entry) = self.entry(job)?.filter(|(_, e)| e.commit.is_some()).ok_or_else(none)?;
        self.put(n, &Entry { done: entry.commit, commit: None, ack: false, changed: now, ..entry })
    }

    pub(super) fn acknowledge(&self, job: JobId) -> Result<()> {
        match self.entry(job)? {
            Some((n, entry)) if entry.done.is_some() && !entry.ack => {
                self.put(n, &Entry { ack: true, ..entry })
            }
            _ => Ok(()),
        }
    }

    pub(super) fn forget(&self, job: JobId) -> Result<()> {
        match self.entry(job)? {
            Some((n, entry)) if entry.done.is_some() => self.save(n, &Entry { done: None, ..entry }),
            _ => Ok(()),
        }
    }

    /// Jobs with a staging area.
    pub(super) fn jobs(&self) -> Result<Vec<JobId>> {
        Ok(self.entries()?.into_iter().filter(|(_, e)| e.area).filter_map(|(_, e)| e.job).collect())
    }

    pub(super) fn done(&self) -> Result<Vec<Finished>> {
        let done = |(_, e): (u32, Entry)| {
            let job = e.done.and(e.job)?;
            Some(Finished { job, changed: e.changed, acknowledged: e.ack })
        };
        let mut out: Vec<Finished> = self.entries()?.into_iter().filter_map(done).collect();
        out.sort_unstable_by_key(|f| f.job);
        Ok(out)
    }
}

const FREE: Entry =
    Entry { job: None, area: false, intent: None, commit: None, done: None, ack: false, changed: 0 };

fn buffer(n: u32, b: u8) -> u64 {
    DATA + (u64::from(n) * u64::from(BUFFERS) + u64::from(b)) * BUFFER as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> (tempfile::NamedTempFile, Meta) {
        // Beside the test program: a file system in memory may not do without its cache.
        let exe = std::env::current_exe().unwrap();
        let f = tempfile::NamedTempFile::new_in(exe.parent().unwrap()).unwrap();
        f.as_file().set_len(SIZE).unwrap();
        let m = Meta::open(f.path()).unwrap();
        (f, m)
    }

    /// Every write torn after every sector leaves the record before or the record after.
    #[test]
    fn a_torn_write_leaves_the_old_or_the_new() {
        use std::os::unix::fs::FileExt as _;
        let (f, m) = volume();
        let (job, other) = (JobId::generate(), JobId::generate());
        for j in [job, other] {
            m.begin(j).unwrap();
            m.put_record(j, Record::Commit, j.to_string().as_bytes()).unwrap();
        }
        for round in 0..6u8 {
            let before: Vec<u8> = std::fs::read(f.path()).unwrap()[..usize::try_from(DATA).unwrap()].to_vec();
            let old = m.record(job, Record::Commit).unwrap();
            m.put_record(job, Record::Commit, &[round; 900]).unwrap();
            let after = std::fs::read(f.path()).unwrap()[..before.len()].to_vec();
            let changed: Vec<usize> = (0..before.len() / 512)
                .filter(|s| before[s * 512..][..512] != after[s * 512..][..512])
                .collect();
            assert_eq!(changed.len(), 1, "an entry is one sector");
            for half in [100, 300] {
                let at = changed[0] * 512;
                let torn = [&after[at..at + half], &before[at + half..at + 512]].concat();
                f.as_file().write_all_at(&torn, at as u64).unwrap();
                f.as_file().sync_all().unwrap();
                let now = m.record(job, Record::Commit).unwrap();
                assert!(now == old || now == Some(vec![round; 900]), "round {round}");
                assert_eq!(m.record(other, Record::Commit).unwrap(), Some(other.to_string().into_bytes()));
            }
            f.as_file().write_all_at(&after, 0).unwrap();
        }
    }

    #[test]
    fn a_full_table_gives_up_the_oldest_answer_that_arrived_and_no_living_job() {
        let (_f, m) = volume();
        let jobs: Vec<JobId> = (0..ENTRIES).map(|_| JobId::generate()).collect();
        // Written as a table at once: a begin for each would take long.
        for (i, job) in jobs.iter().enumerate() {
            let done = (i > 2).then_some(Buffer(0, 1));
            let changed = i64::try_from(i).unwrap();
            let e = Entry { job: Some(*job), area: i <= 2, done, ack: i == 9, changed, ..FREE };
            m.put(u32::try_from(i).unwrap(), &e).unwrap();
        }
        let new = JobId::generate();
        m.begin(new).unwrap();
        let done: Vec<JobId> = m.done().unwrap().iter().map(|f| f.job).collect();
        assert!(!done.contains(&jobs[9]) && done.len() == jobs.len() - 4);
        m.begin(JobId::generate()).unwrap();
        assert!(m.record(jobs[3], Record::Done).unwrap().is_none(), "then the oldest");
        assert_eq!(m.jobs().unwrap().len(), 5);
    }

    #[test]
    fn a_record_too_large_is_no_room() {
        let (_f, m) = volume();
        let job = JobId::generate();
        m.begin(job).unwrap();
        let r = m.put_record(job, Record::Commit, &vec![b'x'; BUFFER + 1]);
        assert!(matches!(r, Err(EngineError::NoSpace(_))));
        m.put_record(job, Record::Commit, &vec![b'x'; BUFFER]).unwrap();
        assert_eq!(m.record(job, Record::Commit).unwrap().map(|b| b.len()), Some(BUFFER));
    }
}
