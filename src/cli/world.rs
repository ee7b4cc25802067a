//! Puts the rooms together for one process: settings, state directories, tools, signals. The only
//! place that chooses implementations.

use super::invocation::Invocation;
use super::progress::{self, Told};
use super::table::{Meets, Run, Verb};
use super::{admin, render};
use crate::config::{Config, Env, Inputs, Paths};
use crate::connection::Connections;
use crate::host::{self, Handler, Hosts, Program};
use crate::lock::{self, JobId, sanlock};
use crate::obs::journal;
use crate::obs::jsonl::Log;
use crate::one::{
    self, Cloud, DsCall, DsDump, DsRequest, Migrate, OneError, RpcOptions, Template, TmCall, volume,
};
use crate::sdm::job::{Topic, Waits};
use crate::sdm::turn::Copies;
use crate::sdm::work::text;
use crate::sdm::{Domain, Groups, Job, Jobs, SdmError, gc, group, known};
use crate::sys::{Cancel, Class, Tool, Tools, driver, signal, user};
use crate::verb::tm::front::{self, Driver, Front};
use crate::verb::tm::serve::Server;
use crate::verb::{self, Ctx, refuse};
use anyhow::{Context as _, Result};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What every command needs, made once.
pub struct World {
    pub config: Config,
    pub paths: Paths,
    pub jobs: Jobs,
    pub tools: Tools,
}

impl World {
    pub fn new(env: &Env, attributes: BTreeMap<String, String>, set: Vec<(String, String)>) -> Result<World> {
        let config =
            Config::load(&Inputs { env: env.clone(), attributes, set }).context("reading the settings")?;
        let tools = Tools::new(overrides(&config.settings.tools)?).context("looking for tools")?;
        World::of(config, tools)
    }

    pub fn of(config: Config, tools: Tools) -> Result<World> {
        let s = &config.settings;
        let paths = writable(&s.paths);
        let cancel = Cancel::default();
        let last = Box::new(|| render::given_up("it was asked to stop"));
        signal::on_stop(&cancel, s.cancel.grace, Class::Cancelled.status(), last)
            .context("watching for signals")?;
        lock::wait_dead(s.lock.wait_dead);
        sanlock::on_lost(|why| render::log("ERROR", "onesdm", why));
        let log = |path: PathBuf| Log { path, max_size: s.log.max_size.0, keep: s.log.keep };
        let jobs = Jobs {
            run: paths.run.join("job"),
            events: log(paths.log.clone()),
            history: log(paths.state.join("history.jsonl")),
            cancel,
            waits: Waits { lock: s.lock.wait, grace: s.cancel.grace },
            copies: Copies::of(verb::copies(s)),
            plan: None,
        };
        Ok(World { config, paths, jobs, tools })
    }

    pub fn gc_policy(&self) -> gc::Policy {
        verb::gc_policy(&self.config.settings)
    }

    /// How this host opens volume groups.
    pub fn groups(&self) -> Groups {
        Groups::new(&self.config.settings, &self.tools, &self.jobs.cancel)
    }

    /// The domain at a place, a directory or `/dev/<group>`, for changing it.
    pub fn open(&self, place: &Path) -> Result<Domain, SdmError> {
        self.groups().open_at(place)
    }

    /// The same without asking whether it may be changed.
    pub fn inspect(&self, place: &Path) -> Result<Domain, SdmError> {
        self.groups().inspect_at(place)
    }

    /// oned, or what stands in for it.
    pub fn cloud(&self, env: &Env) -> Result<Box<dyn Cloud>, OneError> {
        self.patient_cloud(env, self.config.settings.http.connect_timeout)
    }

    fn patient_cloud(&self, env: &Env, deadline: Duration) -> Result<Box<dyn Cloud>, OneError> {
        let s = &self.config.settings;
        let options = RpcOptions { deadline, ca_file: s.http.ca_file.clone(), insecure: s.http.insecure };
        one::cloud(env, &s.paths.var, &s.paths.datastores, options, None)
    }

    /// Where it is told how far a verb is, if it is to be told.
    fn told(&self, env: &Env, of: Option<Template>) -> Result<Option<Told>> {
        let every = self.config.settings.oned_progress.filter(|_| self.jobs.plan.is_none());
        let Some((every, of)) = every.zip(of) else { return Ok(None) };
        Ok(Some(Told { cloud: self.patient_cloud(env, progress::PATIENCE)?, of, every }))
    }

    /// How hosts are reached.
    pub fn hosts<'a>(&'a self, handler: &'a dyn Handler) -> Hosts<'a> {
        let s = &self.config.settings;
        let settings = host::Settings {
            connect: s.ssh.connect,
            silence: s.ssh.silence,
            cancel_grace: s.cancel.grace,
            auth_sock: s.ssh.auth_sock.clone(),
            agents: s.ssh.agents.clone(),
            program: Some(Program::own()),
            hints: Some(self.paths.state.join("agents")),
        };
        let (tools, cancel) = (&self.tools, &self.jobs.cancel);
        Hosts { tools, settings, handler, cancel, forward_agent: false }
    }

    /// What does the transfer operations that are asked of this machine. `own` is the job that asks.
    pub fn server<'a>(&'a self, own: Option<&'a Job>) -> Server<'a> {
        let (settings, state) = (&self.config.settings, &self.paths.state);
        Server { settings, tools: &self.tools, jobs: &self.jobs, state, own, hosts: None }
    }

    pub fn connections(&self) -> Connections<'_> {
        Connections { state: &self.paths.state, tools: &self.tools, cancel: &self.jobs.cancel }
    }

    /// Runs a datastore verb as a job.
    pub fn run(
        &self,
        env: &Env,
        def: &Verb,
        (id, repeatable): (JobId, bool),
        req: &DsRequest,
    ) -> Result<String> {
        let Some(Run::Datastore(run)) = def.run else {
            return Err(refuse(Class::Unsupported, "not supported yet"));
        };
        let plans = self.jobs.plan.is_some();
        if !plans {
            self.tend(def.name, false);
        }
        let s = &self.config.settings;
        let doc = &req.datastore;
        let share = verb::share(doc)?;
        let opened: RefCell<BTreeMap<i64, PathBuf>> = RefCell::default();
        let open = |dir: &Path, ds: i64| {
            opened.borrow_mut().insert(ds, dir.to_owned());
            if let Some(group) = group::group_of(dir) {
                let d = self.groups().open(group)?;
                if !plans {
                    self.join(&d);
                }
                return known::expected(&self.paths.state, &ds.to_string(), dir, d);
            }
            let what = || dir.display().to_string();
            user::become_owner(dir).map_err(|source| SdmError::Io { what: what(), source })?;
            let (state, key) = (&self.paths.state, ds.to_string());
            let d = known::open(state, Some(&key), dir)?;
            known::note_share(state, &key, dir, share.as_ref());
            if !plans {
                self.join(&d);
            }
            Ok(d)
        };
        let (tools, jobs, ready) = (&self.tools, &self.jobs, &|| Ok(()));
        let peer = None;
        let ctx = Ctx { settings: s, tools, jobs, job: id, repeatable, open: &open, ready, peer };
        let topic = Topic {
            verb: def.name.to_owned(),
            domain: req.datastore.base_path.clone(),
            quiet: def.meets == Meets::Reads,
            ..Topic::default()
        };
        let told = self.told(env, image_of(req))?;
        self.job(id, topic, told.as_ref(), |job| {
            if let Some(share) = share.as_ref().filter(|_| def.name != "stat" && !plans) {
                verb::connect(&self.connections(), doc.id, share, &doc.dir())?;
            }
            let domains = || opened.take().iter().map(|(ds, dir)| open(dir, *ds)).collect();
            verb::in_turn(job, domains, || {
                let mut outcome = run(&ctx, req, job);
                // What is only kept makes room before anybody is told that there is none.
                if !plans && outcome.as_ref().is_err_and(verb::is_no_space) && self.make_room(&open, req, job)
                {
                    outcome = run(&ctx, req, job);
                }
                outcome
            })
        })
    }

    /// Puts right what verbs left standing on this host that died with their guards.
    pub fn tend(&self, verb: &str, again: bool) {
        for found in verb::tend(&self.jobs, again) {
            render::log("WARN", verb, &found.text);
        }
    }

    /// Runs something as a job, with the deadline of verbs.
    fn job(
        &self,
        id: JobId,
        topic: Topic,
        told: Option<&Told>,
        run: impl FnOnce(&Job) -> Result<String>,
    ) -> Result<String> {
        let s = &self.config.settings;
        let what = format!("{} in {}: verb.deadline has passed", topic.verb, topic.domain);
        let job = self.jobs.start(id, topic);
        if let Some(limit) = s.verb_deadline {
            let last = Box::new(move || render::given_up(&what));
            signal::deadline(limit, &self.jobs.cancel, s.cancel.grace, Class::Timeout.status(), last);
        }
        match progress::telling(told, &job, || run(&job)) {
            Ok(answer) => {
                job.succeed();
                Ok(answer)
            }
            Err(e) => {
                let e = verb::stopped(&self.jobs.cancel, verb::about(e, &job));
                job.fail(verb::class_of(&e), &verb::one_line(&e));
                Err(e)
            }
        }
    }

    /// Runs the front-end's half of a verb as a job.
    fn front(
        &self,
        env: &Env,
        (call, id, topic): (&Invocation, JobId, Topic),
        of: Option<Template>,
        other: &dyn Fn(&str, &Migrate) -> Result<()>,
        run: impl FnOnce(&Front<'_>) -> Result<String>,
    ) -> Result<String> {
        let s = &self.config.settings;
        let cloud = self.cloud(env)?;
        let warn = |text: &str| render::log("WARN", &call.verb, text);
        let told = self.told(env, of)?;
        self.job(id, topic, told.as_ref(), |job| {
            let server = self.server(Some(job));
            let hosts = self.hosts(&server);
            run(&Front {
                settings: s,
                state: &self.paths.state,
                cloud: &*cloud,
                hosts: &hosts,
                job,
                driver: Driver::of(&call.driver),
                name: &call.driver,
                warn: &warn,
                shares: front::Shares::default(),
                other,
            })
        })
    }

    /// A member where the settings say which: a datastore may be newer than this host's last boot. What
    /// comes of it shows when the first lock is taken.
    fn join(&self, d: &Domain) {
        let id = self.config.settings.sanlock.host_id;
        let Ok(Some(locks)) = d.sanlock() else { return };
        if id != 0
            && matches!(locks.membership(), Ok(None))
            && let Err(e) = admin::join(self, &locks, &d.place, id)
        {
            render::log("WARN", "domain", &verb::one_line(&e));
        }
    }

    /// Deletes all tombstones of the request's domain, kept ones too; whether that freed anything.
    fn make_room(&self, open: &verb::Open<'_>, req: &DsRequest, job: &Job) -> bool {
        let policy = gc::Policy { short: true, ..self.gc_policy() };
        let ds = &req.datastore;
        let place = if ds.is_block() { volume::group(ds.id) } else { ds.dir() };
        let freed = open(&place, ds.id).and_then(|d| gc::collect(&d, job, &policy));
        freed.is_ok_and(|r| r.done.iter().any(|f| f.bytes.0 > 0))
    }
}

fn image_of(req: &DsRequest) -> Option<Template> {
    req.image.as_ref().and_then(|i| i.id).map(Template::Image)
}

/// A verb as oned calls it: the message on stdin or as an argument, of either generation.
pub fn datastore_verb(env: &Env, def: &Verb, call: &Invocation) -> Result<String> {
    journal::start();
    datastore_call(env, def, call, &mut |_| Ok(()))
}

/// The same; `before` may change the world for it.
pub fn datastore_call(
    env: &Env,
    def: &Verb,
    call: &Invocation,
    before: &mut dyn FnMut(&mut World) -> Result<()>,
) -> Result<String> {
    let message = DsCall::from(&call.args, std::io::stdin().lock())?;
    let dump = DsDump::parse(&message.dump)?;
    let mut world = World::new(env, dump.attributes(), call.set.clone())?;
    before(&mut world)?;
    for w in world.config.warnings() {
        render::log("WARN", def.name, w);
    }
    let req = dump.request(&world.config.settings.paths.datastores)?;
    let (id, repeatable) = job_id(env, call.job.as_deref())?;
    if !front::is_elsewhere(def.name, &req) {
        return world.run(env, def, (id, repeatable), &req);
    }
    let none = |_: &str, _: &Migrate| Err(refuse(Class::Internal, "a datastore verb hands nothing on"));
    let topic = Topic {
        verb: def.name.to_owned(),
        domain: req.datastore.base_path.clone(),
        quiet: def.meets == Meets::Reads,
        ..Topic::default()
    };
    world.front(env, (call, id, topic), image_of(&req), &none, |front| {
        front::datastore(front, def.name, &dump, &req)
    })
}

/// A transfer verb as oned calls it.
pub fn tm_verb(env: &Env, def: &Verb, call: &Invocation) -> Result<String> {
    journal::start();
    tm_call(env, def, call, &mut |_| Ok(()))
}

/// The same; `before` may change the world for it.
pub fn tm_call(
    env: &Env,
    def: &Verb,
    call: &Invocation,
    before: &mut dyn FnMut(&mut World) -> Result<()>,
) -> Result<String> {
    let tm = TmCall::from(&call.verb, &call.args, std::io::stdin().lock())?;
    let mut world = World::new(env, BTreeMap::new(), call.set.clone())?;
    before(&mut world)?;
    world.config.warnings().iter().for_each(|w| render::log("WARN", def.name, w));
    let (id, _) = job_id(env, call.job.as_deref())?;
    let s = &world.config.settings;
    let vm = tm.object().map(|o| Template::Vm(o.vm));
    let topic = Topic {
        verb: def.name.to_owned(),
        domain: tm.object().and_then(|o| o.ds).map(|ds| ds.to_string()).unwrap_or_default(),
        quiet: def.meets == Meets::Reads,
        ..Topic::default()
    };
    let other = |tm: &str, m: &Migrate| {
        let path = s.paths.remotes.join("tm").join(tm).join(&call.verb);
        let ds = m.object.ds.unwrap_or(m.dir.dir.ds);
        let words =
            [m.from.as_str(), m.to.as_str(), &text(&m.dir.path()), &m.object.vm.to_string(), &ds.to_string()];
        let args: Vec<&OsStr> = words.into_iter().chain([call.driver.as_str()]).map(OsStr::new).collect();
        let input = m.template.as_deref().unwrap_or_default();
        driver::call(&path, &args, input, &world.jobs.cancel).map_err(|e| refuse(e.class(), e.to_string()))
    };
    world.front(env, (call, id, topic), vm, &other, |front| {
        front::run(front, &call.verb, call.variant.as_deref(), tm)
    })
}

/// The job's id: the command line's, the environment's, or a new one.
pub fn job_id(env: &Env, given: Option<&str>) -> Result<(JobId, bool)> {
    let given = given.map(str::to_owned).or_else(|| env.job_id.clone());
    match given {
        None => Ok((JobId::generate(), false)),
        Some(text) => match text.parse() {
            Ok(id) => Ok((id, true)),
            Err(_) => Err(refuse(Class::Usage, format!("job id {text:?} is not a UUID"))),
        },
    }
}

/// Our state where the account may write it: the shared places, or its own home.
fn writable(paths: &Paths) -> Paths {
    let fits = |p: &Path| {
        let first = p.ancestors().find(|a| a.exists());
        first.is_some_and(user::may_write)
    };
    let home = paths.home.clone();
    match home {
        Some(home) if !(fits(&paths.run) && fits(&paths.state)) => paths.private(&home),
        _ => paths.clone(),
    }
}

/// Tools by the names the settings have for them.
pub fn overrides(named: &BTreeMap<String, PathBuf>) -> Result<BTreeMap<Tool, PathBuf>> {
    let mut out = BTreeMap::new();
    for (name, path) in named {
        let is = |t: &&Tool| t.names().iter().any(|n| n.replace(['-', '.'], "_") == *name);
        match Tool::ALL.iter().find(is) {
            Some(tool) => drop(out.insert(*tool, path.clone())),
            None => return Err(refuse(Class::Usage, format!("setting tools.{name}: no such tool"))),
        }
    }
    Ok(out)
}
