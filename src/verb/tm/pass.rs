//! The giving half of a transfer that goes straight to another host: this one opens the connection, asks the
//! other what the front-end wants asked there, and sends. Whether it counts is the front-end's word, as ever.

use super::flow::{self, Side};
use super::op::{Op, Pass, Passed, Send};
use super::serve::{Ask, Reply, Request};
use super::turn;
use crate::host::{Channel, Gone, Handler, HostError, Hosts, Identity, Link, Local, Progress, Settings};
use crate::lock::JobId;
use crate::sdm::Job;
use crate::sys::{Cancel, Class};
use crate::verb::{class_of, one_line, refuse};
use anyhow::{Context as _, Result};
use serde_json::Value;

pub(super) fn run(ask: Ask<'_>, id: JobId, job: &Job, op: &Pass) -> Result<Reply> {
    let answer = |passed: &Passed| serde_json::to_string(passed).context("writing down the answer");
    let mut to = match reach(ask.server.hosts, op) {
        Ok(channel) => channel,
        Err(why) => return Ok(Reply { text: answer(&Passed::Not { why })?, ..Reply::default() }),
    };
    let send = Op::Send(Send { what: op.what.clone() });
    let body = serde_json::to_value(Request { op: send, ..ask.request.clone() });
    let (giver, one) = (Giver { ask, id, job }, to.peer().identity.same(&Identity::here()) == Some(true));
    let body = body.context("writing down the request")?;
    let mut give = Side { channel: &mut Local::new(&giver), job: id.to_string(), body };
    let mut take = Side { channel: &mut *to, job: op.job.to_string(), body: op.request.clone() };
    if job.jobs.copies.limits.any() {
        turn::both(job, one, &mut give, &mut take)?;
    }
    let done = flow::both(job, op.silence, give, take, &mut || ask.link.ready())?;
    let sent = done.sent.map_err(|e| match e {
        HostError::Failed { class, text, .. } => refuse(class, text),
        e => e.into(),
    });
    let (sent, received) = match (sent, done.received) {
        (Ok(sent), Ok(received)) => (sent, received),
        (Err(e), _) if done.sender_first => return Err(e),
        (_, Err(e)) if e.is_connection() || e.may_have_run() => {
            let lost = answer(&Passed::Lost { why: e.to_string() })?;
            return Ok(Reply { text: lost, ..Reply::default() });
        }
        (_, Err(e)) => return Err(e.into()),
        (Err(e), _) => return Err(e),
    };
    let sent: Reply = serde_json::from_value(sent).context("an answer that is none")?;
    let told = serde_json::from_str(&sent.text).context("an answer that is none")?;
    Ok(Reply { text: answer(&Passed::Done { told, received })?, ..sent })
}

/// The host that is meant, and no other of its name; else why not.
fn reach<'a>(hosts: Option<&Hosts<'a>>, op: &Pass) -> Result<Box<dyn Channel + 'a>, String> {
    let hosts = hosts.ok_or("this one passes nothing on")?;
    let settings = Settings { connect: op.connect, silence: op.silence, ..hosts.settings.clone() };
    let (_, channel) = Hosts { settings, ..*hosts }.open_by(&op.host, op.data).map_err(|e| e.to_string())?;
    if channel.peer().identity.same(&op.identity) != Some(true) {
        return Err(format!("here {} is another machine than there", op.host));
    }
    Ok(channel)
}

/// The operation that gives, in this process.
struct Giver<'a> {
    ask: Ask<'a>,
    id: JobId,
    job: &'a Job,
}

impl Handler for Giver<'_> {
    fn handle(&self, _: &str, body: Value, link: &dyn Link) -> Result<Value, (Class, String)> {
        let link = Watched { to: link, front: self.ask.link };
        let request = serde_json::from_value(body).map_err(|e| (Class::Internal, e.to_string()))?;
        let ask = Ask { request: &request, link: &link, ..self.ask };
        let done = ask.work(self.id, self.job).and_then(|reply| Ok(serde_json::to_value(reply)?));
        done.map_err(|e| (class_of(&e), one_line(&e)))
    }
}

/// The way to the other host, which ends with the front-end's: nobody would say that it counts.
struct Watched<'a> {
    to: &'a dyn Link,
    front: &'a dyn Link,
}

impl Link for Watched<'_> {
    fn cancel(&self) -> &Cancel {
        self.to.cancel()
    }

    fn progress(&self, progress: Progress) {
        self.to.progress(progress);
    }

    fn log(&self, warn: bool, text: &str) {
        self.to.log(warn, text);
    }

    fn ready(&self) -> bool {
        self.to.ready()
    }

    fn send(&self, data: Vec<u8>) -> Result<(), Gone> {
        if self.front.is_gone() { Err(Gone) } else { self.to.send(data) }
    }

    fn receive(&self) -> Result<Option<Vec<u8>>, Gone> {
        self.to.receive()
    }
}
