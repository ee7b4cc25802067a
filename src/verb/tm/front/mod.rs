//! The half of a transfer verb at the front-end: oned's words and documents become one operation, and the
//! host that does it is asked once. Nothing is changed here but through that host's handler, which for the
//! front-end's own paths is in this process.

mod bridge;
mod context;
mod local;
mod lvm;
mod migrate;
mod monitor;
mod pair;
mod proof;
mod shared;

pub use bridge::{datastore, is_elsewhere};

use super::Op;
use super::serve::{Reply, Request, Sent};
use crate::config::Settings;
use crate::connection::Share;
use crate::host::{Channel, Commit, Event, HostError, Hosts, Request as Call, Source};
use crate::one::{Cloud, DatastoreDoc, HostName, Migrate, TmCall, VmDir};
use crate::sdm::event::What;
use crate::sdm::plan::Draft;
use crate::sdm::{Job, known};
use crate::sys::{Bytes, Class};
use crate::verb::{refuse, share};
use anyhow::{Context as _, Result};
use pair::{Line, reach};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a family of drivers has in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `sdm_shared`, `shared`, `qcow2`: every host sees the datastores.
    Shared,
    /// `sdm_local`, `local`, `ssh`: a system datastore is its host's own, images are with the front-end.
    Local,
    /// `sdm_lvm`, `lvm`: disks are volumes of the images' groups, a system datastore has only links to them.
    Lvm,
}

impl Driver {
    /// That of a driver's name.
    pub fn of(name: &str) -> Driver {
        match name {
            "sdm_local" | "local" | "ssh" => Driver::Local,
            "sdm_lvm" | "lvm" => Driver::Lvm,
            _ => Driver::Shared,
        }
    }
}

/// One call of a transfer verb at the front-end.
pub struct Front<'a> {
    pub settings: &'a Settings,
    /// Where the front-end remembers the datastores.
    pub state: &'a Path,
    pub cloud: &'a dyn Cloud,
    pub hosts: &'a Hosts<'a>,
    pub job: &'a Job,
    pub driver: Driver,
    /// The driver's name, as oned calls it.
    pub name: &'a str,
    /// A line for oned's log.
    pub warn: &'a dyn Fn(&str),
    pub shares: Shares,
    /// Hands a migration on to another driver, by its name.
    pub other: &'a dyn Fn(&str, &Migrate) -> Result<()>,
}

/// What is to be mounted for datastores, as far as documents of this call say so: a share, or that there is none.
#[derive(Debug, Default)]
pub struct Shares(Mutex<BTreeMap<i64, Option<Share>>>);

impl Shares {
    fn tell(&self, ds: &DatastoreDoc) -> Result<()> {
        let share = share(ds)?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(ds.id, share);
        Ok(())
    }

    /// As it was said; else as it is remembered.
    fn of(&self, ds: i64, remembered: Option<&Share>) -> Option<Share> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.get(&ds).map_or(remembered, Option::as_ref).cloned()
    }
}

/// Does the verb; the answer is what oned is told.
pub fn run(front: &Front<'_>, verb: &str, variant: Option<&str>, call: TmCall) -> Result<String> {
    match call {
        TmCall::Monitor(c) => monitor::run(front, &c.dump),
        TmCall::MonitorDs(dir) => monitor::of_host(&dir),
        TmCall::Context(c) => context::run(front, &c).map(|()| String::new()),
        call if front.driver == Driver::Lvm => lvm::run(front, verb, call),
        call if front.driver == Driver::Local => local::run(front, verb, call),
        TmCall::Premigrate(m) => migrate::pre(front, &m).map(|()| String::new()),
        TmCall::Postmigrate(m) => migrate::post(front, &m).map(|()| String::new()),
        TmCall::Failmigrate(m) => migrate::fail(front, &m).map(|()| String::new()),
        call => shared::run(front, verb, variant == Some("ssh"), call),
    }
}

/// Where an operation runs, and which datastores are that host's own.
#[derive(Clone, Copy)]
struct At<'a> {
    host: Option<&'a HostName>,
    dir: &'a VmDir,
    /// The system datastore is the host's own.
    local: bool,
}

/// How often a host is asked again when its answer got lost.
const AGAIN: u32 = 3;
const PAUSE: Duration = Duration::from_millis(500);

impl Front<'_> {
    /// Asks the host to do it, and tells what it answered. One connection, one request; a second one only
    /// when the first was committed and its answer is lost: then the host knows it by its job id.
    fn ask(&self, at: &At<'_>, op: &Op) -> Result<String> {
        self.ask_by(at, op, None, None)
    }

    /// The same over a connection that is there already. It may have been given up meanwhile: then another.
    fn ask_over(&self, line: Line<'_>, op: &Op) -> Result<String> {
        let at = line.at;
        self.ask_by(&at, op, None, Some(line))
    }

    /// The same with a file that goes along.
    fn ask_by(
        &self,
        at: &At<'_>,
        op: &Op,
        data: Option<&File>,
        mut line: Option<Line<'_>>,
    ) -> Result<String> {
        self.job.object(op.object());
        let end = Instant::now() + self.settings.lock.wait + self.settings.ssh.silence;
        let mut lost: Option<HostError> = None;
        for attempt in 0.. {
            let cancel = self.job.cancel();
            if attempt > 0 && !cancel.wait(PAUSE) {
                break;
            }
            let was_open = line.is_some();
            let reached = line.take().map_or_else(|| reach(self, *at, Bytes(0)), Ok);
            let done = reached.and_then(|mut line| self.ask_once(&mut line, op, data));
            let e = match done {
                Ok(text) => return Ok(text),
                Err(e) => e,
            };
            let failed = e.downcast_ref::<HostError>();
            let is_unknown = failed.is_some_and(HostError::may_have_run);
            // The first of the two may still be at it there.
            let is_busy = crate::verb::class_of(&e) == Class::Busy;
            let more = !cancel.is_requested() && Instant::now() < end;
            match e.downcast::<HostError>() {
                Ok(first) if is_unknown && attempt < AGAIN && more => drop(lost.get_or_insert(first)),
                Ok(other) if lost.is_some() && (other.is_connection() || is_busy) && more => {}
                Ok(idle) if was_open && idle.is_connection() && more => {}
                Ok(e) => return Err(lost.unwrap_or(e).into()),
                Err(e) => return Err(e),
            }
        }
        Err(lost.map_or_else(|| refuse(Class::Cancelled, "stopped on request"), Into::into))
    }

    /// A removal outranks what this front-end is making there, which its host may not have heard of yet.
    /// What does not end in a little time is met on the host, where it can publish nothing any more.
    fn outrank(&self, path: &str) {
        let (end, mut asked) = (Instant::now() + self.settings.cancel.grace, BTreeSet::new());
        let jobs = &self.job.jobs;
        loop {
            let mut active = jobs.active().unwrap_or_default();
            let goes = |object: &str| Path::new(object).starts_with(path);
            active.retain(|j| j.id != self.job.id && j.verb != "delete" && goes(&j.object));
            for rival in &active {
                if asked.insert(rival.id) {
                    tracing::info!(rival = %rival.id, verb = rival.verb, "removal outranks creation");
                    let _ = jobs.cancel(rival.id);
                }
            }
            let is_over = active.is_empty() || Instant::now() > end;
            if is_over || !self.job.cancel().wait(Duration::from_millis(10)) {
                return;
            }
        }
    }

    fn ask_once(&self, line: &mut Line<'_>, op: &Op, data: Option<&File>) -> Result<String> {
        proof::ensure(self, line, op)?;
        let asked = line.prepare(self, op)?;
        let id = self.job.id.to_string();
        let mut word = || true;
        let mut blocks = data.map(context::blocks);
        let call = Call {
            job: &id,
            body: asked.body.clone(),
            commit: Commit::When(&mut word),
            source: blocks.as_mut().map(|give| give as &mut dyn Source),
        };
        let mut news = |event| match event {
            Event::Progress(p) => self.job.follow(&p.phase, p.done, p.total),
            Event::Log { text, .. } => self.job.tell(What::Warning { text }),
            Event::Data(_) => {}
        };
        let answer = line.channel.call(call, &mut news, self.job.cancel());
        self.answered(&asked, answer)
    }

    /// A request for whoever was reached.
    fn prepare(
        &self,
        channel: &dyn Channel,
        host: &str,
        at: &At<'_>,
        op: &Op,
        is_here: bool,
    ) -> Result<Asked> {
        let stores = self.stores(channel, host, at, op, is_here)?;
        let request = Request {
            verb: self.job.topic.verb.clone(),
            op: op.clone(),
            settings: Sent::of(self.settings),
            shares: stores.iter().filter_map(|s| Some((s.ds, s.share.clone()?))).collect(),
            domains: stores.iter().map(|s| (s.ds, s.known.as_ref().map(|k| k.domain))).collect(),
            local: stores.iter().filter(|s| s.local).map(|s| s.ds).collect(),
            plan: self.job.jobs.plan.is_some() && !is_here,
        };
        let body = serde_json::to_value(&request).context("writing down the request")?;
        Ok(Asked { host: host.to_owned(), is_here, stores, body })
    }

    /// The text of an answer; what it says of the datastores is remembered.
    fn answered(&self, asked: &Asked, answer: Result<Value, HostError>) -> Result<String> {
        let Asked { host, is_here, stores, .. } = asked;
        let is_here = *is_here;
        let answer = match answer {
            // What went wrong here needs no host's name.
            Err(HostError::Failed { class, text, .. }) if is_here => return Err(refuse(class, text)),
            answer => answer?,
        };
        let reply: Reply = serde_json::from_value(answer)
            .map_err(|e| refuse(Class::Remote, format!("host {host}: an answer that is none: {e}")))?;
        if let Some(plan) = self.job.jobs.plan.as_ref().filter(|_| !is_here) {
            let draft: Draft = serde_json::from_str(&reply.text).context("a plan that is none")?;
            let (refused, answer) = (draft.refused.clone(), draft.answer.clone());
            plan.add(draft);
            return refused.map_or(Ok(answer), |(class, text)| Err(refuse(class, text)));
        }
        for store in stores {
            let is_news = store.known.as_ref().is_none_or(|k| k.elsewhere && is_here);
            let is = reply.domains.get(&store.ds);
            let made_anew = store.known.as_ref().is_some_and(|k| is.is_some_and(|is| *is != k.domain));
            if let Some(id) = is.filter(|_| is_news || made_anew) {
                known::note(self.state, &store.key, &store.path, *id, !is_here);
            }
            known::note_share(self.state, &store.key, &store.path, store.share.as_ref());
        }
        Ok(reply.text)
    }

    /// Where system datastores are local: whether this one is the host's own, too.
    fn is_own(&self, at: At<'_>, ds: i64) -> bool {
        // Where images are not local, no operation on a local disk is about one.
        self.driver == Driver::Local || ds == i64::from(at.dir.ds)
    }

    /// The datastores that an operation works in, with what is known of each.
    fn stores(
        &self,
        channel: &dyn Channel,
        host: &str,
        at: &At<'_>,
        op: &Op,
        is_here: bool,
    ) -> Result<Vec<Store>> {
        let numbers: BTreeSet<i64> = op.paths().iter().filter_map(|p| number(&at.dir.root, p)).collect();
        let mut out = Vec::new();
        for ds in numbers {
            let local = at.local && self.is_own(*at, ds);
            let machine = &channel.peer().identity.machine;
            let machine = if machine.is_empty() { host } else { machine };
            let key = if local { format!("{ds}@{}", machine.replace('/', "_")) } else { ds.to_string() };
            let path = self.settings.paths.datastores.join(ds.to_string());
            let known = known::get(self.state, &key, &path);
            let remembered = known.as_ref().and_then(|k| k.share.as_ref());
            // What documents say is not of a host's own storage.
            let share = if local { remembered.cloned() } else { self.shares.of(ds, remembered) };
            if is_here
                && share.is_none()
                && let Some(known) = known.as_ref().filter(|k| k.path.exists())
            {
                known::still_mounted(known)?;
            }
            out.push(Store { ds, local, key, path, known, share });
        }
        Ok(out)
    }
}

/// A request to a host, and what is known of the datastores that it is about.
struct Asked {
    host: String,
    is_here: bool,
    stores: Vec<Store>,
    body: Value,
}

/// A datastore, as the front-end knows it.
struct Store {
    ds: i64,
    local: bool,
    /// Under which it is remembered.
    key: String,
    path: PathBuf,
    known: Option<known::Known>,
    /// To be mounted there first.
    share: Option<Share>,
}

/// The number of the datastore that a path leads into.
fn number(root: &Path, path: &str) -> Option<i64> {
    let first = Path::new(path).strip_prefix(root).ok()?.components().next()?;
    first.as_os_str().to_str()?.parse().ok()
}
