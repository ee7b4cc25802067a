//! The manager's own area of a directory domain: making it, its header, its records, its reserve.

use super::{AREA, EngineError, FileEngine, Result, io_error};
use crate::engine::{Finished, Record, SeeJob};
use crate::lock::JobId;
use crate::sys::fs::{self, Dir};
use std::ffi::OsStr;
use std::io::{self, Read as _};
use std::path::Path;

const HEADER: &str = "domain.json";
const HOST: &str = "host";
const RESERVE: &str = "reserve";
/// Space given up when a removal meets a full disk.
const RESERVE_SIZE: u64 = 1 << 20;
/// No record of ours is larger; a larger one is not ours.
const RECORD_MAX: u64 = 1 << 20;

fn file_name(record: Record) -> &'static str {
    match record {
        Record::Intent => "intent.json",
        Record::Undo => "undo.json",
        Record::Commit | Record::Done => "commit.json",
    }
}

/// The job of a done record's name, and whether it is acknowledged.
fn finished(name: &str) -> Option<(JobId, bool)> {
    let (job, end) = name.split_once('.')?;
    let acknowledged = match end {
        "json" => false,
        "ack" => true,
        _ => return None,
    };
    Some((job.parse().ok()?, acknowledged))
}

fn exists_is_fine(r: io::Result<()>) -> io::Result<()> {
    match r {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        r => r,
    }
}

/// A file of a directory that was opened for this: see `Dir::sub`.
fn read_file(dir: &Dir, name: &str) -> Result<Option<Vec<u8>>> {
    let what = dir.path().join(name);
    let f = match dir.open_file(Path::new(name), false) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        f => f.map_err(io_error(what.display()))?,
    };
    // Room for most records: a buffer that grows costs a read for each step.
    let mut bytes = Vec::with_capacity(4 << 10);
    f.take(RECORD_MAX + 1).read_to_end(&mut bytes).map_err(io_error(what.display()))?;
    if bytes.len() as u64 > RECORD_MAX {
        let source = io::Error::new(io::ErrorKind::InvalidData, "larger than a record can be");
        return Err(EngineError::Io { what: what.display().to_string(), source });
    }
    Ok(Some(bytes))
}

impl FileEngine {
    pub(super) fn read_header(&self) -> Result<Option<Vec<u8>>> {
        match self.area()? {
            Some(area) => read_file(&area, HEADER),
            None => Ok(None),
        }
    }

    /// Makes the area, whoever else does so at the same time. Without a header it is no domain yet.
    pub(super) fn make_area(&self) -> Result<()> {
        let what = self.root.path().join(AREA);
        let err = || io_error(what.display());
        exists_is_fine(self.root.mkdir(OsStr::new(AREA), 0o770, true)).map_err(err())?;
        let area = self.sub(AREA)?;
        for d in ["new", "del", "done"] {
            exists_is_fine(area.mkdir(OsStr::new(d), 0o770, true)).map_err(err())?;
        }
        exists_is_fine(area.create(OsStr::new("leases"), 0o660, true).map(drop)).map_err(err())?;
        self.make_reserve()
    }

    /// The first header, by a link that only one of several makers can win.
    pub(super) fn first_header(&self, header: &[u8]) -> Result<()> {
        self.once(HEADER, header)?;
        self.root.sync().map_err(io_error(self.root.path().display()))
    }

    /// Where locks do not reach other hosts: the one host that works here. Of several that claim it one
    /// becomes it, and all get its name.
    pub fn only_host(&self, claim: Option<&str>) -> Result<Option<String>> {
        let read = |area: &Dir| -> Result<Option<String>> {
            let bytes = read_file(area, HOST)?;
            Ok(bytes.map(|b| String::from_utf8_lossy(&b).trim_end().to_owned()))
        };
        match (read(&self.sub(AREA)?)?, claim) {
            (None, Some(me)) => {
                self.once(HOST, format!("{me}\n").as_bytes())?;
                read(&self.sub(AREA)?)
            }
            (host, _) => Ok(host),
        }
    }

    /// A file of the area that is made once and for all: whoever comes first.
    fn once(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let what = self.root.path().join(AREA);
        let err = || io_error(what.display());
        let area = self.sub(AREA)?;
        let job = JobId::generate().to_string();
        let new = self.sub(format!("{AREA}/new"))?;
        new.mkdir(OsStr::new(&job), 0o770, true).map_err(err())?;
        let staging = self.sub(format!("{AREA}/new/{job}"))?;
        let (name, tmp) = (OsStr::new(name), OsStr::new("tmp"));
        staging.put_new(name, tmp, bytes, true).map_err(err())?;
        // Whoever sees it may rely on all the rest.
        area.sync().map_err(err())?;
        let won = exists_is_fine(staging.link(name, &area, name)).map_err(err());
        new.remove_tree(OsStr::new(&job)).map_err(err())?;
        won?;
        area.sync().map_err(err())
    }

    pub(super) fn write_header(&self, header: &[u8]) -> Result<()> {
        let area = self.sub(AREA)?;
        let what = area.path().join(HEADER);
        area.put_new(OsStr::new(HEADER), OsStr::new("tmp"), header, true)
            .map_err(io_error(what.display()))?;
        area.sync().map_err(io_error(what.display()))
    }

    /// Makes the reserve when it is missing and there is room; its absence is no error.
    pub(super) fn make_reserve(&self) -> Result<()> {
        let area = self.sub(AREA)?;
        if let Ok(f) = area.create(OsStr::new(RESERVE), 0o660, true) {
            let all = rustix::fs::fallocate(&f, rustix::fs::FallocateFlags::empty(), 0, RESERVE_SIZE);
            if all.is_err() {
                area.unlink(OsStr::new(RESERVE)).map_err(io_error(RESERVE))?;
            }
        }
        Ok(())
    }

    /// What NFS clients kept of open files and did not come back for; one that is open here stays.
    pub(super) fn remove_kept_open(&self) -> Result<()> {
        for d in ["new", "del", "done"] {
            let dir = self.sub(format!("{AREA}/{d}"))?;
            for n in Self::names(&dir)?.iter().filter(|n| fs::is_open_elsewhere(n)) {
                dir.remove_tree(n).map_err(io_error(dir.path().join(n).display()))?;
            }
        }
        Ok(())
    }

    pub(super) fn drop_reserve(&self) -> Result<()> {
        self.sub(AREA)?.remove_tree(OsStr::new(RESERVE)).map_err(io_error(RESERVE))
    }

    pub(super) fn write_record(&self, job: JobId, record: Record, bytes: &[u8]) -> Result<()> {
        let dir = self.sub(format!("{AREA}/new/{job}"))?;
        let durable = record != Record::Intent;
        let what = dir.path().join(file_name(record));
        dir.put_new(OsStr::new(file_name(record)), OsStr::new("tmp"), bytes, durable)
            .map_err(io_error(what.display()))?;
        if durable {
            // With the directory every staged entry becomes durable, too; and the directory's own name,
            // or a power loss could keep the first step and lose the record that asks for the others.
            dir.sync().map_err(io_error(what.display()))?;
            self.sub(format!("{AREA}/new"))?.sync().map_err(io_error(what.display()))?;
        }
        Ok(())
    }

    pub(super) fn remove_intent(&self, job: JobId) -> Result<()> {
        let dir = match self.sub(format!("{AREA}/new/{job}")) {
            Err(EngineError::Absent(_)) => return Ok(()),
            d => d?,
        };
        match dir.unlink(OsStr::new(file_name(Record::Intent))) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            r => r.map_err(io_error(format_args!("the intent of {job}"))),
        }
    }

    pub(super) fn read_record(&self, job: JobId, record: Record) -> Result<Option<Vec<u8>>> {
        let read = |dir: String, name: &str| match self.sub(dir) {
            Err(EngineError::Absent(_)) => Ok(None),
            dir => read_file(&dir?, name),
        };
        match record {
            // In this order: a record is marked by a rename, never the other way.
            Record::Done => match read(format!("{AREA}/done"), &format!("{job}.json"))? {
                None => read(format!("{AREA}/done"), &format!("{job}.ack")),
                found => Ok(found),
            },
            r => read(format!("{AREA}/new/{job}"), file_name(r)),
        }
    }

    /// One directory is opened for each job, and not its parents again.
    pub(super) fn see_jobs(&self, see: &mut SeeJob<'_>) -> Result<()> {
        let new = self.sub(format!("{AREA}/new"))?;
        for name in Self::names(&new)? {
            let Some(job) = name.to_str().and_then(|n| n.parse().ok()) else { continue };
            // It went, or is no directory: nobody's records.
            let Ok(dir) = new.sub(Path::new(&name)) else { continue };
            let read = |record| read_file(&dir, file_name(record));
            see(job, read(Record::Commit), &mut || read(Record::Intent));
        }
        Ok(())
    }

    pub(super) fn commit_to_done(&self, job: JobId) -> Result<()> {
        let (from, to) = (self.sub(format!("{AREA}/new/{job}"))?, self.sub(format!("{AREA}/done"))?);
        from.rename_over(OsStr::new(file_name(Record::Commit)), &to, OsStr::new(&format!("{job}.json")))
            .map_err(io_error(format_args!("the done record of {job}")))
    }

    pub(super) fn mark_done(&self, job: JobId) -> Result<()> {
        let dir = self.sub(format!("{AREA}/done"))?;
        let (from, to) = (format!("{job}.json"), format!("{job}.ack"));
        match dir.rename_over(OsStr::new(&from), &dir, OsStr::new(&to)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            r => r.map_err(io_error(format_args!("the done record of {job}"))),
        }
    }

    /// The same from the names alone: on a network file system each further question is a way to the server and back.
    pub(super) fn list_finished(&self) -> Result<Vec<(JobId, bool)>> {
        let names = Self::names(&self.sub(format!("{AREA}/done"))?)?;
        Ok(names.iter().filter_map(|n| finished(n.to_str()?)).collect())
    }

    pub(super) fn list_done(&self) -> Result<Vec<Finished>> {
        let dir = self.sub(format!("{AREA}/done"))?;
        let mut out = Vec::new();
        for n in Self::names(&dir)? {
            let name = n.to_str().and_then(finished);
            if let (Some((job, acknowledged)), Some(e)) =
                (name, dir.entry(&n).map_err(io_error("a done record"))?)
            {
                out.push(Finished { job, changed: e.changed, acknowledged });
            }
        }
        out.sort_unstable_by_key(|f| f.job);
        Ok(out)
    }

    pub(super) fn remove_done(&self, job: JobId) -> Result<()> {
        let dir = self.sub(format!("{AREA}/done"))?;
        for end in ["json", "ack"] {
            dir.remove_tree(OsStr::new(&format!("{job}.{end}"))).map_err(io_error("a done record"))?;
        }
        Ok(())
    }

    /// Everything in the area that the format does not know, and leases that are not one empty file.
    pub(super) fn area_strays(&self) -> Result<Vec<String>> {
        use crate::sys::fs::Kind as K;
        type Rule = (&'static str, fn(&str) -> bool, fn(&K) -> bool);
        let area = self.sub(AREA)?;
        let mut out = Vec::new();
        let known = [HEADER, HOST, "tmp", RESERVE, "leases", "new", "del", "done", "image", "sanlock"];
        for n in Self::names(&area)? {
            if !known.iter().any(|k| n == *k) && !fs::is_open_elsewhere(&n) {
                out.push(format!("{AREA}/{} is not part of the format", n.display()));
            }
        }
        match area.entry(OsStr::new("leases")).map_err(io_error("leases"))? {
            Some(e) if e.kind == K::File && e.size == 0 && e.nlink == 1 => {}
            _ => out.push(format!("{AREA}/leases is not one empty file")),
        }
        let sorts: [Rule; 3] = [
            ("new", |n| n.parse::<JobId>().is_ok(), |k| *k == K::Dir),
            ("del", |n| n.parse::<crate::engine::Grave>().is_ok(), |_| true),
            ("done", |n| finished(n).is_some(), |k| *k == K::File),
        ];
        for (d, is_name, is_kind) in sorts {
            let dir = self.sub(format!("{AREA}/{d}"))?;
            for n in Self::names(&dir)? {
                if fs::is_open_elsewhere(&n) {
                    continue;
                }
                let e = dir.entry(&n).map_err(io_error(d))?;
                if !n.to_str().is_some_and(is_name) || !e.is_none_or(|e| is_kind(&e.kind)) {
                    out.push(format!("{AREA}/{d}/{} is not part of the format", n.display()));
                }
            }
        }
        Ok(out)
    }

    /// Content first, then the records, the directory last: what is left still tells whose it is.
    pub(super) fn remove_staging(&self, job: JobId) -> Result<()> {
        let new = self.sub(format!("{AREA}/new"))?;
        let name = job.to_string();
        let what = new.path().join(&name);
        let dir = match new.sub(Path::new(&name)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            d => d.map_err(io_error(what.display()))?,
        };
        let mut names = Self::names(&dir)?;
        names.sort_by_key(|n| n.to_str().is_none_or(|n| n.parse::<u32>().is_err()));
        for n in names {
            dir.remove_tree(&n).map_err(io_error(what.display()))?;
        }
        new.remove_tree(OsStr::new(&name)).map_err(io_error(what.display()))
    }

    /// Replacing without EXCHANGE (NFS): the old file gets its tombstone as a second name, then the
    /// new one takes the name. A directory cannot be replaced that way.
    pub(super) fn replace_slowly(
        &self,
        from: &super::Spot,
        to: &super::Spot,
        at: &super::Place,
        grave: &super::Grave,
    ) -> Result<()> {
        let del = self.sub(format!("{AREA}/del"))?;
        to.dir.link(&to.name, &del, OsStr::new(&grave.to_string())).map_err(io_error(at))?;
        del.sync().map_err(io_error(at))?;
        from.dir.rename_over(&from.name, &to.dir, &to.name).map_err(io_error(at))?;
        to.dir.sync().map_err(io_error(at))
    }
}
