//! Which lease is which slot. Leases have no end of names and sanlock's places are few, so a slot is given
//! to a name when it is wanted and taken back when nobody holds it.
//!
//! One record per slot, one sector, written whole, past all caches. A record's `lease` changes only in the
//! hands of somebody who holds that slot exclusively *and* the lock on the table: so no two slots have one
//! name, and a name does not leave a slot that anybody holds.

use super::{AREA, FORMATTED};
use crate::lock::JobId;
use crate::sys::sanlock::Sector;
use crate::sys::{direct::Direct, hex};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::io;

/// Where the table, and the names of hosts, begin.
const TABLE_AT: u64 = 3 * AREA;
const HOSTS_AT: u64 = 4 * AREA;
/// Long names are cut: they are for people.
const SHOWN: usize = 64;

/// Record 0 of the table.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    sanlock: u32,
    sector: u64,
}

/// What a slot is, and who took it last exclusively: true for as long as `version` is the slot's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The number of the lease, as everywhere in format 1; `None` in a slot that never was one.
    pub lease: Option<u64>,
    pub what: String,
    pub host: String,
    pub host_id: u64,
    pub generation: u64,
    pub version: u64,
    pub pid: u32,
    pub job: Option<JobId>,
    pub since: String,
}

/// A member, by the name it gave when it joined.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub host: String,
    pub since: String,
}

#[derive(Debug)]
pub(super) struct Table {
    file: Direct,
    pub sector: Sector,
}

/// Text for people, not too long for a record.
pub(super) fn shown(s: &str) -> String {
    s.chars().filter(|c| !c.is_control()).take(SHOWN).filter(char::is_ascii).collect()
}

fn encode<T: Serialize>(record: &T, sector: Sector) -> io::Result<Vec<u8>> {
    let mut out = serde_json::to_vec(record)?;
    let sum = hex(&Sha256::digest(&out));
    out.extend_from_slice(format!("\n{}\n", &sum[..32]).as_bytes());
    let size = usize::try_from(sector.bytes()).unwrap_or(usize::MAX);
    if out.len() > size {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a record larger than a sector"));
    }
    out.resize(size, 0);
    Ok(out)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut lines = bytes.split(|b| *b == b'\n');
    let (json, sum) = (lines.next()?, lines.next()?);
    if hex(&Sha256::digest(json)).as_bytes().get(..32)? != sum {
        return None;
    }
    serde_json::from_slice(json).ok()
}

impl Table {
    /// Fills the places of a new file.
    pub fn make(file: Direct, sector: Sector) -> io::Result<Table> {
        let head = Head { sanlock: 1, sector: sector.bytes() };
        file.write(TABLE_AT, &encode(&head, sector)?)?;
        let table = Table { file, sector };
        for n in 0..FORMATTED {
            table.put(n, &Record::default())?;
        }
        Ok(table)
    }

    pub fn open(file: Direct) -> io::Result<Table> {
        let first = file.read(TABLE_AT, crate::sys::direct::BLOCK)?;
        // The first line ends before the first sector does, whichever it is.
        let sector = match decode::<Head>(&first) {
            Some(Head { sanlock: 1, sector: 512 }) => Sector::B512,
            Some(Head { sanlock: 1, sector: 4096 }) => Sector::B4096,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "its table of leases is damaged")),
        };
        Ok(Table { file, sector })
    }

    pub fn disk(&self) -> &Direct {
        &self.file
    }

    /// How many slots there can be.
    pub fn capacity(&self) -> u64 {
        AREA / self.sector.bytes() - 1
    }

    fn size(&self) -> usize {
        usize::try_from(self.sector.bytes()).unwrap_or(crate::sys::direct::BLOCK)
    }

    /// All slots that are formatted. One whose record is damaged has no name.
    pub fn all(&self) -> io::Result<Vec<Record>> {
        const CHUNK: u64 = 64 << 10;
        let mut out = Vec::new();
        for at in (0..AREA).step_by(1 << 16) {
            let chunk = self.file.read(TABLE_AT + at, usize::try_from(CHUNK).unwrap_or_default())?;
            for (i, sector) in chunk.chunks_exact(self.size()).enumerate() {
                if at == 0 && i == 0 {
                    continue;
                }
                if sector.iter().all(|b| *b == 0) {
                    return Ok(out);
                }
                out.push(decode(sector).unwrap_or_default());
            }
        }
        Ok(out)
    }

    pub fn find(&self, lease: u64) -> io::Result<Option<u64>> {
        let n = self.all()?.iter().position(|r| r.lease == Some(lease));
        Ok(n.and_then(|n| u64::try_from(n).ok()))
    }

    pub fn get(&self, slot: u64) -> io::Result<Record> {
        let bytes = self.file.read(TABLE_AT + (slot + 1) * self.sector.bytes(), self.size())?;
        Ok(decode(&bytes).unwrap_or_default())
    }

    pub fn put(&self, slot: u64, record: &Record) -> io::Result<()> {
        self.file.write(TABLE_AT + (slot + 1) * self.sector.bytes(), &encode(record, self.sector)?)
    }

    /// The name of a member, as it told.
    pub fn member(&self, host_id: u64) -> Option<Member> {
        let at = host_id.checked_mul(self.sector.bytes()).filter(|at| *at < AREA)?;
        decode(&self.file.read(HOSTS_AT + at, self.size()).ok()?)
    }

    /// To be called by the member itself: nobody else writes its sector.
    pub fn set_member(&self, host_id: u64, member: &Member) -> io::Result<()> {
        let at = host_id.checked_mul(self.sector.bytes()).filter(|at| *at < AREA);
        let at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no room for this host id"))?;
        self.file.write(HOSTS_AT + at, &encode(member, self.sector)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::Dir;
    use std::ffi::OsStr;

    fn table(dir: &std::path::Path, sector: Sector) -> Table {
        std::fs::File::create(dir.join("t")).unwrap().set_len(5 * AREA).unwrap();
        Table::make(Direct::open(&Dir::open(dir).unwrap(), OsStr::new("t")).unwrap(), sector).unwrap()
    }

    fn longest() -> Record {
        Record {
            lease: Some(u64::MAX),
            what: shown(&"\"\\".repeat(SHOWN)),
            host: shown(&"h".repeat(900)),
            host_id: 2000,
            generation: u64::MAX,
            version: u64::MAX,
            pid: u32::MAX,
            job: Some(JobId::generate()),
            since: "2026-01-01T00:00:00.000Z".into(),
        }
    }

    #[test]
    fn records_survive_their_sectors() {
        for sector in [Sector::B512, Sector::B4096] {
            let t = tempfile::tempdir().unwrap();
            let made = table(t.path(), sector);
            assert_eq!(made.all().unwrap().len() as u64, FORMATTED);
            let last = made.capacity() - 1;
            for n in [3, last] {
                made.put(n, &longest()).unwrap();
            }
            let dir = Dir::open(t.path()).unwrap();
            let again = Table::open(Direct::open(&dir, OsStr::new("t")).unwrap()).unwrap();
            assert_eq!(again.sector, sector);
            assert!(again.get(3).unwrap().lease.is_some() && again.get(last).unwrap().lease.is_some());
            assert_eq!(again.find(u64::MAX).unwrap(), Some(3));
            again.set_member(7, &Member { host: "h".into(), since: String::new() }).unwrap();
            assert_eq!(again.member(7).unwrap().host, "h");
            assert!(again.member(8).is_none());
            assert!(again.set_member(4000, &Member { host: "h".into(), since: String::new() }).is_err());
        }
    }

    /// A torn sector names nothing, and the slots behind it are still seen.
    #[test]
    fn a_damaged_record_has_no_name() {
        let t = tempfile::tempdir().unwrap();
        let table = table(t.path(), Sector::B512);
        table.put(2, &longest()).unwrap();
        let mut bytes = encode(&longest(), Sector::B512).unwrap();
        bytes[20] ^= 1;
        table.file.write(TABLE_AT + 2 * 512, &bytes).unwrap();
        assert_eq!(table.get(1).unwrap(), Record::default());
        assert_eq!(table.find(u64::MAX).unwrap(), Some(2));
    }
}
