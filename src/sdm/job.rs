//! Jobs: every verb is one, with a UUID, listed on its host while it runs and in a bounded history
//! afterwards. A job is alive while the lock on its record is held; pids are for people.
//! Result durable, then the job's state, then the event; a failed log write fails nothing.

use super::event::{Event, What};
use super::plan::Plan;
use super::record::Who;
use super::turn::{self, Copies};
use crate::data;
use crate::lock::{self, JobId};
use crate::obs::{self, jsonl::Log};
use crate::sys::{Bytes, Cancel, Class, ofd, signal};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

/// How long jobs wait for each other.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// For a lock that a living job holds.
    pub lock: Duration,
    /// For a cancelled job to end by itself.
    pub grace: Duration,
}

/// The jobs of this host: where they are listed and logged.
#[derive(Clone, Debug)]
pub struct Jobs {
    /// Records of active jobs, one file each.
    pub run: PathBuf,
    pub events: Log,
    pub history: Log,
    pub cancel: Cancel,
    pub waits: Waits,
    pub copies: Copies,
    /// Nothing is done, listed or logged; what would be done is written down here.
    pub plan: Option<Plan>,
}

/// What a job is about.
#[derive(Clone, Debug, Default)]
pub struct Topic {
    pub verb: String,
    /// The datastore, as the caller named it.
    pub domain: String,
    pub object: String,
    pub parent: Option<JobId>,
    /// Reads only: no event and no history unless it fails.
    pub quiet: bool,
}

/// An active job, as listed. `Host.getJobs` of seed 000, with more.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JobInfo {
    pub id: JobId,
    pub status: Status,
    pub description: String,
    pub job_type: String,
    /// Percent, where the total is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<u8>,
    pub verb: String,
    pub domain: String,
    pub object: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    pub phase: String,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Bytes per second since the phase began.
    pub rate: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
    pub host: String,
    pub pid: u32,
    pub since: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Running,
    Done,
    Failed,
    Aborted,
}

/// A finished job, in the history.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Past {
    pub id: JobId,
    pub status: Status,
    pub verb: String,
    pub domain: String,
    pub object: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<JobId>,
    pub host: String,
    pub since: String,
    pub seconds: f64,
    /// Of these, spent waiting for locks, and for other copies to end.
    #[serde(default)]
    pub waited: f64,
    #[serde(default)]
    pub waited_turn: f64,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<PastError>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PastError {
    pub class: Class,
    pub code: u8,
    pub message: String,
}

/// A job of this process. Finished by `succeed` or `fail`; dropped unfinished it just vanishes from
/// the list, as after a crash.
#[derive(Debug)]
pub struct Job {
    pub id: JobId,
    pub topic: Topic,
    pub jobs: Jobs,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    info: Mutex<Running>,
    jobs: Jobs,
    quiet: bool,
    /// Names the job on each of its lines in the journal.
    span: tracing::Span,
}

#[derive(Debug)]
struct Running {
    info: JobInfo,
    method: String,
    began: Instant,
    /// When this phase began, and what all before it moved.
    phase_began: Instant,
    before: u64,
    /// What this process had waited for locks before.
    waited: Duration,
    waited_turn: Duration,
    record: Option<(PathBuf, ofd::Locked)>,
    written: Instant,
    told: Instant,
    /// Whoever else wants to know.
    listener: Option<mpsc::Sender<What>>,
}

impl Jobs {
    /// Lists a job as running and says so. An account that may not list jobs runs them unlisted.
    pub fn start(&self, id: JobId, topic: Topic) -> Job {
        lock::speak_for(id);
        let info = JobInfo {
            id,
            status: Status::Running,
            description: format!("{} {}", topic.verb, topic.object),
            job_type: "storage".to_owned(),
            progress: None,
            verb: topic.verb.clone(),
            domain: topic.domain.clone(),
            object: topic.object.clone(),
            parent: topic.parent,
            phase: "starting".to_owned(),
            bytes: 0,
            total: None,
            rate: 0,
            eta_seconds: None,
            host: obs::host(),
            pid: std::process::id(),
            since: obs::now(),
        };
        let record =
            self.list_as_running(&info).inspect_err(|e| tracing::debug!(%e, "job is not listed")).ok();
        let now = Instant::now();
        let running = Running {
            info,
            method: String::new(),
            began: now,
            phase_began: now,
            before: 0,
            waited: lock::waited(),
            waited_turn: Duration::ZERO,
            record,
            written: now,
            told: now,
            listener: None,
        };
        let quiet = topic.quiet;
        let span = tracing::info_span!("job", JOB_ID = %id, VERB = topic.verb, DOMAIN = topic.domain);
        // Not a guard: the job may end on another thread than it began on.
        span.with_subscriber(|(id, journal)| journal.enter(id));
        let shared = Arc::new(Shared { info: Mutex::new(running), jobs: self.clone(), quiet, span });
        let job = Job { id, topic, jobs: self.clone(), shared };
        if !quiet {
            job.tell(What::Started);
        }
        job
    }

    /// The record appears complete and locked: it is made aside and renamed.
    #[expect(clippy::disallowed_methods, reason = "the list of jobs is not storage")]
    fn list_as_running(&self, info: &JobInfo) -> io::Result<(PathBuf, ofd::Locked)> {
        if self.plan.is_some() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if !self.run.exists() {
            std::fs::create_dir_all(&self.run)?;
        }
        let tmp = self.run.join(format!(".{}", info.id));
        let path = self.run.join(format!("{}.json", info.id));
        // The same id runs already: it stays the one that is listed.
        if File::open(&path).is_ok_and(|f| ofd::is_held(f.as_fd(), 0).unwrap_or(false)) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        let f = File::options().read(true).write(true).create(true).truncate(true).mode(0o640).open(&tmp)?;
        let f = ofd::Locked::new(f);
        if !ofd::try_lock(f.as_fd(), 0, true)? {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        write_record(&f, info)?;
        std::fs::rename(&tmp, &path)?;
        Ok((path, f))
    }

    /// Jobs that run on this host, oldest first. Records of dead ones are cleared away.
    pub fn active(&self) -> io::Result<Vec<JobInfo>> {
        let mut out = Vec::new();
        let dir = match std::fs::read_dir(&self.run) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
            d => d?,
        };
        for entry in dir {
            let path = entry?.path();
            let Ok(f) = File::open(&path) else { continue };
            if path.extension().is_none_or(|e| e != "json") {
                // Of a job that died while it was being listed; a young one may not be locked yet.
                let age = f.metadata()?.modified()?.elapsed().unwrap_or_default();
                if age > Duration::from_secs(60) && !ofd::is_held(f.as_fd(), 0)? {
                    #[expect(clippy::disallowed_methods, reason = "the list of jobs is not storage")]
                    let _ = std::fs::remove_file(&path);
                }
            } else if !ofd::is_held(f.as_fd(), 0)? {
                #[expect(clippy::disallowed_methods, reason = "the list of jobs is not storage")]
                let _ = std::fs::remove_file(&path);
            } else if let Some(info) = read_record(&f) {
                out.push(info);
            }
        }
        out.sort_by(|a, b| a.since.cmp(&b.since).then(a.id.cmp(&b.id)));
        Ok(out)
    }

    /// Asks a job of this host to stop. `false` when it does not run here.
    pub fn cancel(&self, id: JobId) -> io::Result<bool> {
        let Ok(f) = File::open(self.run.join(format!("{id}.json"))) else { return Ok(false) };
        let alive = || ofd::is_held(f.as_fd(), 0);
        let Some(info) = read_record(&f) else { return Ok(false) };
        // The lock says that the job lives; asked again with the process pinned, its pid is still its own.
        signal::terminate(info.pid, || alive().unwrap_or(false))
    }

    pub fn past(&self) -> io::Result<Vec<Past>> {
        self.history.read()
    }

    /// Writes an event; where that fails the journal is told and nobody else.
    pub fn log(&self, event: &Event) {
        if let Some(plan) = &self.plan {
            if let What::Warning { text } = &event.what {
                plan.note(text);
            }
            return;
        }
        if let Err(e) = obs::jsonl::prepare(&self.events.path).and_then(|()| self.events.append(event)) {
            tracing::debug!(%e, "event not logged");
        }
        let what = &event.what;
        let object = if event.object.is_empty() { "-" } else { &event.object };
        let id = what.message_id();
        match what {
            What::Failed { class, .. } => {
                tracing::error!(
                    MESSAGE_ID = id,
                    OBJECT = object,
                    CLASS = class.word(),
                    "{} {object}: {what}",
                    event.verb
                );
            }
            What::Warning { .. } => {
                tracing::warn!(MESSAGE_ID = id, OBJECT = object, "{} {object}: {what}", event.verb);
            }
            _ => tracing::info!(MESSAGE_ID = id, OBJECT = object, "{} {object}: {what}", event.verb),
        }
    }
}

fn write_record(f: &File, info: &JobInfo) -> io::Result<()> {
    let mut line = serde_json::to_vec(info)?;
    line.push(b'\n');
    f.write_all_at(&line, 0)?;
    f.set_len(line.len() as u64)
}

/// The record may be rewritten while it is read: then it is read again.
fn read_record(mut f: &File) -> Option<JobInfo> {
    use std::io::Seek as _;
    (0..5).find_map(|_| {
        let mut s = String::new();
        f.rewind().ok()?;
        f.take(1 << 16).read_to_string(&mut s).ok()?;
        serde_json::from_str(s.lines().next()?).ok()
    })
}

impl Job {
    pub fn cancel(&self) -> &Cancel {
        &self.jobs.cancel
    }

    /// As it is listed now.
    pub fn info(&self) -> JobInfo {
        self.shared.lock().info.clone()
    }

    /// For those that move bytes.
    pub fn watch(&self) -> data::Watch {
        data::Watch { cancel: self.jobs.cancel.clone(), progress: Arc::clone(&self.shared) as _ }
    }

    /// To be asked before data is moved in bulk by others than those that have a `watch`.
    pub fn may_move(&self) -> std::result::Result<(), data::DataError> {
        self.watch().may_move()
    }

    pub fn who(&self) -> Who {
        let r = self.shared.lock();
        Who {
            host: r.info.host.clone(),
            pid: r.info.pid,
            verb: r.info.verb.clone(),
            since: r.info.since.clone(),
        }
    }

    /// Names the object, once it is known.
    pub fn object(&self, object: &str) {
        let mut r = self.shared.lock();
        object.clone_into(&mut r.info.object);
        r.info.description = format!("{} {object}", r.info.verb);
        r.save();
    }

    /// What it is about, as far as that is known yet.
    pub fn named(&self) -> String {
        self.shared.lock().info.object.clone()
    }

    pub fn phase(&self, phase: &'static str) {
        data::Progress::phase(&*self.shared, phase);
    }

    /// How the bytes were moved.
    pub fn method(&self, method: &str) {
        method.clone_into(&mut self.shared.lock().method);
    }

    pub fn tell(&self, what: What) {
        self.shared.tell(what);
    }

    /// All that is told from now on, until `hush` or the job's end.
    pub fn listen(&self) -> mpsc::Receiver<What> {
        let (tell, told) = mpsc::channel();
        self.shared.lock().listener = Some(tell);
        told
    }

    pub fn hush(&self) {
        self.shared.lock().listener = None;
    }

    /// How far the part of this job is that runs on another host.
    pub fn follow(&self, phase: &str, bytes: u64, total: Option<u64>) {
        let mut r = self.shared.lock();
        if r.info.phase != phase || bytes < r.info.bytes {
            r.enter(phase);
        }
        (r.info.bytes, r.info.total) = (bytes, total);
        r.measure();
        drop(r);
        self.tell(What::Progress { phase: phase.to_owned(), bytes, total });
    }

    pub fn succeed(self) {
        let (seconds, bytes, method) = self.shared.totals();
        if !self.topic.quiet {
            self.remember(Status::Done, None);
            self.tell(What::Succeeded { seconds, bytes, method });
        }
    }

    pub fn fail(self, class: Class, cause: &str) {
        let (seconds, ..) = self.shared.totals();
        let status = if class == Class::Cancelled { Status::Aborted } else { Status::Failed };
        let error = PastError { class, code: class.status(), message: cause.to_owned() };
        self.remember(status, Some(error));
        self.tell(What::Failed { seconds, class, cause: cause.to_owned() });
    }

    /// Takes the job off the list and into the history.
    fn remember(&self, status: Status, error: Option<PastError>) {
        let (seconds, bytes, method) = self.shared.totals();
        let past = {
            let mut r = self.shared.lock();
            r.unlist();
            let i = &r.info;
            let (verb, domain, object) = (i.verb.clone(), i.domain.clone(), i.object.clone());
            let (host, since, parent) = (i.host.clone(), i.since.clone(), i.parent);
            let waited = lock::waited().saturating_sub(r.waited).as_secs_f64();
            let waiting = if i.phase == turn::WAITS { r.phase_began.elapsed() } else { Duration::ZERO };
            let waited_turn = (r.waited_turn + waiting).as_secs_f64();
            Past {
                id: self.id,
                status,
                verb,
                domain,
                object,
                parent,
                host,
                since,
                seconds,
                waited,
                waited_turn,
                bytes,
                method,
                error,
            }
        };
        if self.jobs.plan.is_some() {
            return;
        }
        let log = &self.jobs.history;
        if let Err(e) = obs::jsonl::prepare(&log.path).and_then(|()| log.append(&past)) {
            tracing::debug!(%e, "history not written");
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.shared.lock().unlist();
        self.shared.span.with_subscriber(|(id, journal)| journal.exit(id));
    }
}

impl Running {
    /// A new phase: counting starts anew.
    fn enter(&mut self, phase: &str) {
        if self.info.phase == turn::WAITS {
            self.waited_turn += self.phase_began.elapsed();
        }
        self.before = self.before.saturating_add(self.info.bytes);
        self.phase_began = Instant::now();
        phase.clone_into(&mut self.info.phase);
        (self.info.bytes, self.info.total, self.info.rate) = (0, None, 0);
        (self.info.progress, self.info.eta_seconds) = (None, None);
    }

    /// Rate, percent and the time that is left, from what this phase did so far.
    fn measure(&mut self) {
        let millis = u64::try_from(self.phase_began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let info = &mut self.info;
        info.rate = u64::try_from(u128::from(info.bytes) * 1000 / u128::from(millis)).unwrap_or(u64::MAX);
        if let Some(total) = info.total.filter(|t| *t > 0) {
            let done = info.bytes.min(total);
            info.progress = u8::try_from(u128::from(done) * 100 / u128::from(total)).ok();
            info.eta_seconds = (info.rate > 0).then(|| (total - done) / info.rate);
        }
        self.save();
    }

    fn save(&mut self) {
        if let Some((_, f)) = &self.record {
            let _ = write_record(f, &self.info);
        }
        self.written = Instant::now();
    }

    #[expect(clippy::disallowed_methods, reason = "the list of jobs is not storage")]
    fn unlist(&mut self) {
        if let Some((path, _)) = self.record.take() {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Running> {
        self.info.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn totals(&self) -> (f64, u64, String) {
        let r = self.lock();
        let millis = u32::try_from(r.began.elapsed().as_millis()).unwrap_or(u32::MAX);
        (f64::from(millis) / 1000.0, r.before.saturating_add(r.info.bytes), r.method.clone())
    }

    fn tell(&self, what: What) {
        let event = {
            let r = self.lock();
            if let Some(listener) = &r.listener {
                let _ = listener.send(what.clone());
            }
            let (verb, domain, object) = (r.info.verb.clone(), r.info.domain.clone(), r.info.object.clone());
            Event { time: obs::now(), host: r.info.host.clone(), job: r.info.id, verb, domain, object, what }
        };
        if !(self.quiet && matches!(event.what, What::Progress { .. })) {
            self.span.in_scope(|| self.jobs.log(&event));
        }
    }
}

impl data::Progress for Shared {
    fn total(&self, bytes: u64) {
        let mut r = self.lock();
        r.info.total = Some(bytes);
        r.save();
    }

    fn phase(&self, name: &'static str) {
        let mut r = self.lock();
        r.enter(name);
        r.save();
    }

    fn may_move(&self) -> bool {
        self.jobs.copies.may_move()
    }

    fn plan(&self, what: data::Planned) {
        if let Some(plan) = &self.jobs.plan {
            plan.moves(what);
        }
    }

    /// Called per block: the record is rewritten twice a second, an event sent every two seconds.
    fn add(&self, bytes: u64) {
        let mut r = self.lock();
        r.info.bytes += bytes;
        if r.written.elapsed() < Duration::from_millis(500) {
            return;
        }
        r.measure();
        if !self.quiet && r.told.elapsed() >= Duration::from_secs(2) {
            r.told = Instant::now();
            let what =
                What::Progress { phase: r.info.phase.clone(), bytes: r.info.bytes, total: r.info.total };
            drop(r);
            self.tell(what);
        }
    }
}

impl JobInfo {
    /// It does nothing before another job has ended or let go of something.
    pub fn is_waiting(&self) -> bool {
        [turn::WAITS, lock::WAITS].contains(&self.phase.as_str())
    }
}

/// For people: `12.0 MiB of 1.0 GiB, 50.0 MiB/s`.
impl std::fmt::Display for JobInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", Bytes(self.bytes))?;
        if let Some(t) = self.total {
            write!(f, " of {}", Bytes(t))?;
        }
        write!(f, ", {}/s", Bytes(self.rate))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Jobs that are listed and logged below a directory.
    pub(crate) fn jobs(dir: &std::path::Path) -> Jobs {
        let log = |n: &str| Log { path: dir.join(n), max_size: 1 << 20, keep: 1 };
        Jobs {
            run: dir.join("run"),
            events: log("events"),
            history: log("history"),
            cancel: Cancel::default(),
            waits: Waits { lock: Duration::from_millis(300), grace: Duration::from_millis(300) },
            copies: Copies::default(),
            plan: None,
        }
    }

    fn topic(verb: &str, quiet: bool) -> Topic {
        Topic { verb: verb.into(), object: "x".into(), quiet, ..Topic::default() }
    }

    #[test]
    fn a_job_is_listed_while_it_runs_and_remembered_when_it_ends() {
        let t = tempfile::tempdir().unwrap();
        let jobs = jobs(t.path());
        let job = jobs.start(JobId::generate(), topic("cp", false));
        let id = job.id;
        job.watch().progress.total(200);
        job.watch().progress.add(50);
        let active = jobs.active().unwrap();
        assert_eq!(active.iter().map(|j| j.id).collect::<Vec<_>>(), [id]);
        assert_eq!(active[0].total, Some(200));
        job.succeed();
        assert!(jobs.active().unwrap().is_empty());
        assert_eq!(jobs.past().unwrap()[0].bytes, 50);
        let events: Vec<Event> = jobs.events.read().unwrap();
        assert_eq!(events.len(), 2);
        assert!(events[1].what.ends_the_job());
    }

    #[test]
    fn reading_jobs_leave_no_trace_unless_they_fail() {
        let t = tempfile::tempdir().unwrap();
        let jobs = jobs(t.path());
        jobs.start(JobId::generate(), topic("stat", true)).succeed();
        assert!(jobs.past().unwrap().is_empty() && jobs.events.read::<Event>().unwrap().is_empty());
        jobs.start(JobId::generate(), topic("stat", true)).fail(Class::NotFound, "no such file");
        assert_eq!(jobs.past().unwrap()[0].error.as_ref().unwrap().code, 3);
        assert_eq!(jobs.events.read::<Event>().unwrap().len(), 1);
    }

    #[test]
    fn a_dead_jobs_record_is_cleared_away() {
        let t = tempfile::tempdir().unwrap();
        let jobs = jobs(t.path());
        let job = jobs.start(JobId::generate(), topic("cp", false));
        let copy = jobs.run.join(format!("{}.json", JobId::generate()));
        std::fs::copy(jobs.run.join(format!("{}.json", job.id)), &copy).unwrap();
        assert_eq!(jobs.active().unwrap().len(), 1);
        assert!(!copy.exists());
    }

    #[test]
    fn jobs_run_unlisted_where_they_may_not_be_listed() {
        let t = tempfile::tempdir().unwrap();
        std::fs::write(t.path().join("run"), "").unwrap();
        let jobs = jobs(t.path());
        jobs.start(JobId::generate(), topic("cp", false)).succeed();
        assert_eq!(jobs.past().unwrap().len(), 1);
    }
}
