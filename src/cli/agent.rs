//! `onesdm agent`, the host's side of a connection, and `onesdm host probe`, what a front-end finds
//! when it reaches for a host.

use super::doctor::hosts;
use super::render;
use super::world::World;
use crate::config::Env;
use crate::host::{Commit, Handler, Limits, Link, Request};
use crate::sys::detach::detach;
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use crate::verb::tm::Server;
use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command, value_parser};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub fn command() -> Command {
    let seconds = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).help(help).value_name("SECONDS").value_parser(value_parser!(u64))
    };
    Command::new("agent")
        .about("the host's side of a front-end's connection; started over ssh, not by people")
        .arg(seconds("silence", "a front-end not heard of for so long is lost"))
        .arg(seconds("orphan-grace", "how long a job that is ready waits for a lost front-end"))
}

pub fn probe_command() -> Command {
    let host = Arg::new("host").required(true).value_name("HOST").help("as OpenNebula names it");
    Command::new("host")
        .about("hosts, as this front-end reaches them")
        .subcommand_required(true)
        .subcommand(Command::new("probe").about("by which way, how fast, and what answers there").arg(host))
}

/// The request for what runs on a host; the answer is a list of its active jobs.
pub const JOBS: &str = "jobs";

/// What can be asked of this host. In the test build a list is a script.
pub struct Asked<'a> {
    server: Server<'a>,
    /// Of a host, which is asked how it is.
    world: Option<&'a World>,
}

impl<'a> Asked<'a> {
    pub fn new(server: Server<'a>, world: Option<&'a World>) -> Asked<'a> {
        Asked { server, world }
    }
}

impl Handler for Asked<'_> {
    fn handle(&self, job: &str, body: Value, link: &dyn Link) -> Result<Value, (Class, String)> {
        #[cfg(feature = "failpoints")]
        if body.is_array() {
            return crate::host::scripted::Scripted.handle(job, body, link);
        }
        if body == JOBS {
            let said = |e: String| (Class::Internal, format!("listing jobs: {e}"));
            let active = self.server.jobs.active().map_err(|e| said(e.to_string()))?;
            return serde_json::to_value(active).map_err(|e| said(e.to_string()));
        }
        if let Some(answer) = hosts::asked(self.world, &body) {
            return answer;
        }
        self.server.handle(job, body, link)
    }
}

/// A host that goes on to others goes to others.
struct Nobody;

impl Handler for Nobody {
    fn handle(&self, _: &str, _: Value, _: &dyn Link) -> Result<Value, (Class, String)> {
        Err((Class::Internal, "a host asks nothing of itself".to_owned()))
    }
}

/// Serves the connection on standard input and output.
pub fn run(env: &Env, m: &ArgMatches) -> Result<u8> {
    detach().context("leaving the session")?;
    crate::obs::journal::start();
    let world = World::new(env, BTreeMap::new(), Vec::new())?;
    let given = |name: &str| m.get_one::<u64>(name).map(|s| Duration::from_secs(*s));
    let usual = &world.config.settings.ssh;
    let limits = Limits {
        silence: given("silence").unwrap_or(usual.silence),
        orphan_grace: given("orphan-grace").unwrap_or(usual.orphan_grace),
    };
    let others = world.hosts(&Nobody);
    let handler = Asked::new(Server { hosts: Some(&others), ..world.server(None) }, Some(&world));
    let served =
        crate::host::serve(std::io::stdin(), std::io::stdout(), &handler, limits, &world.jobs.cancel);
    served.map_err(|e| refuse(e.class(), e.to_string()))?;
    Ok(0)
}

/// Opens a connection and asks for nothing.
pub fn probe(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let Some((_, m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    let host = m.get_one::<String>("host").map_or("", String::as_str);
    let handler = w.server(None);
    let (hosts, cancel) = (w.hosts(&handler), &w.jobs.cancel);
    let ms = |t: Instant| u64::try_from(t.elapsed().as_millis()).unwrap_or(u64::MAX);
    let begin = Instant::now();
    let (route, mut channel) = hosts.open_by(host, Bytes(0))?;
    let opened = ms(begin);
    let request = Request { job: "probe", body: Value::Null, commit: Commit::Now, source: None };
    channel.call(request, &mut |_| {}, cancel)?;
    let answered = ms(begin);
    let peer = channel.peer();
    if as_json {
        render::json(&json!({
            "host": host, "route": route.to_string(), "version": peer.version, "identity": peer.identity,
            "ms": { "open": opened, "answer": answered },
        }))?;
        return Ok(0);
    }
    let id = &peer.identity;
    render::print(&format!(
        "way      {route}\nversion  {}\nmachine  {}\nboot     {}\nanswered in {answered} ms, the connection being up \
         after {opened} ms",
        peer.version, id.machine, id.boot
    ))?;
    Ok(0)
}
