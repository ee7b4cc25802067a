//! The half on the host that has the storage: a request becomes a job here, is performed, and answered. In
//! `onesdm agent` on a host, and in the front-end itself for its own paths: one way for both.

use super::live::note::tend;
use super::op::{Op, perform};
use super::{pass, turn};
use crate::config::{Settings, WipeSettings};
use crate::connection::{Connections, Share};
use crate::host::{Handler, Hosts, Link, Progress};
use crate::lock::JobId;
use crate::sdm::event::What;
use crate::sdm::job::{Topic, Waits};
use crate::sdm::known::{self, Storage};
use crate::sdm::{Domain, Groups, Job, Jobs, SdmError, gc, group};
use crate::sys::{Bytes, Class, Tools, user};
use crate::verb::{
    Ctx, Planning, class_of, connect, copies, gc_policy, in_turn, is_no_space, one_line, refuse, stopped,
};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What a front-end asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// As oned calls it, for lists of jobs.
    pub verb: String,
    pub op: Op,
    pub settings: Sent,
    /// The domain that each datastore is expected to be; `None`: nobody has used it yet.
    pub domains: BTreeMap<i64, Option<uuid::Uuid>>,
    /// Those of them that are the host's own.
    #[serde(default)]
    pub local: BTreeSet<i64>,
    /// What is to be mounted first.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub shares: BTreeMap<i64, Share>,
    /// It is not to be done: the answer's text is a `Draft` of what it would do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub plan: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reply {
    pub text: String,
    /// The domains that were opened.
    pub domains: BTreeMap<i64, uuid::Uuid>,
}

/// The settings of the front-end that count on its hosts, too.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sent {
    datastores: PathBuf,
    lock_wait: Duration,
    cancel_grace: Duration,
    trash_keep: Duration,
    wipe: WipeSettings,
    done_max: u32,
    done_days: u32,
    tool_deadline: Duration,
    image_max_size: Option<Bytes>,
    image_allow: Vec<String>,
    fs_supported: Vec<String>,
    fs_options: BTreeMap<String, Vec<String>>,
    data_limit: Option<Bytes>,
    /// Copies at once: per host, per domain.
    copies: (u32, u32),
    /// Certificates are the host's own matter.
    http: (Duration, Duration, u32, bool),
}

impl Sent {
    pub fn of(s: &Settings) -> Sent {
        Sent {
            datastores: s.paths.datastores.clone(),
            lock_wait: s.lock.wait,
            cancel_grace: s.cancel.grace,
            trash_keep: s.trash_keep,
            wipe: s.wipe,
            done_max: s.job.done_max,
            done_days: s.job.done_days,
            tool_deadline: s.tool_deadline,
            image_max_size: s.image.max_size,
            image_allow: s.image.allow.clone(),
            fs_supported: s.fs.supported.clone(),
            fs_options: s.fs.options.clone(),
            data_limit: s.data.limit,
            copies: (s.data.host_copies, s.data.domain_copies),
            http: (s.http.connect_timeout, s.http.stall_timeout, s.http.retries, s.http.insecure),
        }
    }

    /// These over the host's own. Datastores are where the front-end has them, or where this host's own
    /// settings say, whichever the request is about; nowhere else.
    fn over(self, own: &Settings, about: &str) -> Settings {
        let mut s = own.clone();
        if !Path::new(about).starts_with(&own.paths.datastores) {
            s.paths.datastores = self.datastores;
        }
        s.lock.wait = self.lock_wait;
        s.cancel.grace = self.cancel_grace;
        (s.trash_keep, s.wipe) = (self.trash_keep, self.wipe);
        (s.job.done_max, s.job.done_days) = (self.done_max, self.done_days);
        s.tool_deadline = self.tool_deadline;
        (s.image.max_size, s.image.allow) = (self.image_max_size, self.image_allow);
        (s.fs.supported, s.fs.options) = (self.fs_supported, self.fs_options);
        s.data.limit = self.data_limit;
        (s.data.host_copies, s.data.domain_copies) = self.copies;
        (s.http.connect_timeout, s.http.stall_timeout, s.http.retries, s.http.insecure) = self.http;
        s
    }
}

/// Does what is asked of this host.
pub struct Server<'a> {
    pub settings: &'a Settings,
    pub tools: &'a Tools,
    pub jobs: &'a Jobs,
    /// Where a host remembers what is its own, for its collector.
    pub state: &'a Path,
    /// In the front-end: the verb's job, which is running already.
    pub own: Option<&'a Job>,
    /// On a host: the way to other hosts.
    pub hosts: Option<&'a Hosts<'a>>,
}

impl Handler for Server<'_> {
    /// `null` is a knock on the door.
    fn handle(&self, job: &str, body: Value, link: &dyn Link) -> Result<Value, (Class, String)> {
        if body.is_null() {
            return Ok(Value::Null);
        }
        let done = self.serve(job, body, link).and_then(|reply| Ok(serde_json::to_value(reply)?));
        done.map_err(|e| (class_of(&e), one_line(&e)))
    }
}

impl Server<'_> {
    fn serve(&self, job: &str, body: Value, link: &dyn Link) -> Result<Reply> {
        let request: Request = serde_json::from_value(body).map_err(|e| {
            let text = format!("the request is of another version ({e}); install the same on all hosts");
            refuse(Class::Unsupported, text)
        })?;
        let id: JobId =
            job.parse().map_err(|_| refuse(Class::Usage, format!("job id {job:?} is no UUID")))?;
        let settings = request.settings.clone().over(self.settings, request.op.object());
        for found in if request.plan { Vec::new() } else { tend(self.jobs, false) } {
            link.log(true, &found.text);
        }
        let ask = Ask { server: self, request: &request, settings: &settings, link };
        if let Some(job) = self.own {
            return ask.work(id, job);
        }
        let waits = Waits { lock: settings.lock.wait, grace: settings.cancel.grace };
        let copies = self.jobs.copies.with(copies(&settings));
        let planning = request
            .plan
            .then(|| Planning::begin(self.jobs.run.parent().unwrap_or(self.state)))
            .transpose()?;
        let plan = planning.as_ref().map(|p| p.plan.clone());
        let jobs = Jobs { cancel: link.cancel().clone(), waits, copies, plan, ..self.jobs.clone() };
        let topic = Topic { verb: request.verb.clone(), quiet: request.op.only_reads(), ..Topic::default() };
        let job = jobs.start(id, topic);
        job.object(request.op.object());
        let news = job.listen();
        let done = std::thread::scope(|s| {
            s.spawn(move || relay(news, link));
            let done = match &request.op {
                Op::Pass(o) => pass::run(ask, id, &job, o),
                _ => ask.work(id, &job),
            };
            job.hush();
            done
        });
        let done = done.map_err(|e| stopped(&jobs.cancel, e));
        match &done {
            Ok(_) => job.succeed(),
            Err(e) => job.fail(class_of(e), &one_line(e)),
        }
        if let Some(planning) = &planning {
            let text = serde_json::to_string(&planning.draft(done.map(|reply| reply.text)))?;
            return Ok(Reply { text, ..Reply::default() });
        }
        done
    }
}

/// Tells the front-end how it goes, until there is no more to be told.
fn relay(news: Receiver<What>, link: &dyn Link) {
    for what in news {
        match what {
            What::Progress { phase, bytes, total } => link.progress(Progress { phase, done: bytes, total }),
            What::Warning { text } => link.log(true, &text),
            _ => {}
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Ask<'a> {
    pub server: &'a Server<'a>,
    pub request: &'a Request,
    pub settings: &'a Settings,
    pub link: &'a dyn Link,
}

impl Ask<'_> {
    pub fn work(&self, id: JobId, job: &Job) -> Result<Reply> {
        let seen: Mutex<BTreeMap<i64, (PathBuf, uuid::Uuid)>> = Mutex::default();
        let open = |dir: &Path, ds: i64| {
            let domain = self.open(dir, ds)?;
            let place = (dir.to_owned(), domain.header.id);
            seen.lock().unwrap_or_else(PoisonError::into_inner).insert(ds, place);
            Ok(domain)
        };
        let ready = || {
            if self.link.ready() {
                return Ok(());
            }
            Err(refuse(Class::Cancelled, "the front-end did not say that it counts; it was undone"))
        };
        let (tools, jobs) = (self.server.tools, &job.jobs);
        // Before we become the owner of what is mounted.
        let connections = Connections { state: self.server.state, tools, cancel: job.cancel() };
        for (ds, share) in self.request.shares.iter().filter(|_| job.jobs.plan.is_none()) {
            connect(&connections, *ds, share, &self.settings.paths.datastores.join(ds.to_string()))?;
        }
        // Asked again under the same id, it is the same request, wherever the id came from.
        let ctx = Ctx {
            settings: self.settings,
            tools,
            jobs,
            job: id,
            repeatable: true,
            open: &open,
            ready: &ready,
            peer: Some(self.link),
        };
        if let Op::Turn(turn) = &self.request.op {
            return turn::take(job, &ctx, turn, &|dir, ds| self.open(dir, ds))
                .map(|had| Reply { text: had.to_string(), ..Reply::default() });
        }
        let opened = || seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let run = || {
            let mut done = perform(&self.request.op, &ctx, job);
            // What is only kept makes room before anybody is told that there is none.
            if done.as_ref().is_err_and(is_no_space)
                && job.jobs.plan.is_none()
                && !self.request.op.streams()
                && self.make_room(&opened(), job)
            {
                done = perform(&self.request.op, &ctx, job);
            }
            done
        };
        let domains = || opened().iter().map(|(ds, (dir, _))| self.open(dir, *ds)).collect();
        let done = in_turn(job, domains, run);
        // Of a transfer it was taken before.
        job.jobs.copies.end_turn();
        let text = done?.text;
        Ok(Reply { text, domains: opened().into_iter().map(|(ds, (_, id))| (ds, id)).collect() })
    }

    fn open(&self, dir: &Path, ds: i64) -> Result<Domain, SdmError> {
        if let Some(group) = group::group_of(dir) {
            let domain = self.groups().open(group)?;
            return known::expected(self.server.state, &ds.to_string(), dir, domain);
        }
        let owned = if dir.exists() { dir } else { dir.parent().unwrap_or(dir) };
        user::become_owner(owned)
            .map_err(|source| SdmError::Io { what: owned.display().to_string(), source })?;
        // What the request does not name is used as it is, and not made.
        let Some(expected) = self.request.domains.get(&ds) else { return Domain::open_dir(dir) };
        let is_local = self.request.local.contains(&ds);
        let is_own = is_local && self.server.own.is_none();
        if let Some(known) =
            known::get(self.server.state, &ds.to_string(), dir).filter(|k| is_own && k.path.exists())
        {
            known::still_mounted(&known)?;
        }
        let storage = if is_local { Storage::Local } else { Storage::Shared };
        let domain = known::open_as(dir, *expected, storage)?;
        if is_local && expected.is_some_and(|e| e != domain.header.id) {
            let text = format!("{} was empty and is a new storage domain now", dir.display());
            self.link.log(true, &text);
        }
        if is_own && *expected != Some(domain.header.id) {
            known::note(self.server.state, &ds.to_string(), dir, domain.header.id, false);
        }
        Ok(domain)
    }

    fn groups(&self) -> Groups {
        Groups::new(self.settings, self.server.tools, self.link.cancel())
    }

    /// Deletes all tombstones where the request worked, kept ones too; whether that freed anything.
    fn make_room(&self, opened: &BTreeMap<i64, (PathBuf, uuid::Uuid)>, job: &Job) -> bool {
        let policy = gc::Policy { short: true, ..gc_policy(self.settings) };
        let free = |at: &Path| self.groups().open_at(at).and_then(|d| gc::collect(&d, job, &policy));
        let freed = opened.values().map(|(dir, _)| free(dir));
        // All of them, also after the first that freed something.
        freed.filter(|r| r.as_ref().is_ok_and(|r| r.done.iter().any(|f| f.bytes.0 > 0))).count() > 0
    }
}
