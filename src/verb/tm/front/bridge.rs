//! Datastore verbs that do not run here: the hosts of BRIDGE_LIST have the storage, those of
//! SOURCE_BRIDGE_LIST an original, and a source may be a path on any host (`ssh://`). A path on the
//! front-end is read here and goes along. Contract 2.3, 2.4.

use super::super::op::{Datastore, Op, What};
use super::local::of_image;
use super::pair::{reach, reach_giver, transfer};
use super::shared::text;
use super::{At, Front};
use crate::host::HostError;
use crate::one::{self, DsDump, DsRequest, HostName, HostPath, ImagePath, VmDir};
use crate::sys::{Bytes, Class};
use crate::verb::datastore::{fetch_options, offered};
use crate::verb::{one_line, refuse};
use anyhow::{Context as _, Result};
use std::path::Path;

fn path(req: &DsRequest) -> &str {
    req.image.as_ref().and_then(|i| i.path.as_deref()).unwrap_or_default()
}

fn on_host(verb: &str, req: &DsRequest) -> Option<(HostName, String)> {
    match one::image_path(path(req)) {
        Ok(ImagePath::Ssh(host, path)) if ["cp", "stat"].contains(&verb) => Some((host, text(&path))),
        _ => None,
    }
}

/// Whether a verb is about more than this host.
pub fn is_elsewhere(verb: &str, req: &DsRequest) -> bool {
    // The source of an image that is to be is measured where it is.
    (verb != "stat" && !req.datastore.bridge_list.is_empty())
        || (verb == "clone" && !req.source_bridge_list.is_empty())
        || on_host(verb, req).is_some()
}

/// Does it there; the answer is what oned is told.
pub fn datastore(front: &Front<'_>, verb: &str, dump: &DsDump, req: &DsRequest) -> Result<String> {
    offered(req)?;
    front.shares.tell(&req.datastore)?;
    let doc = &req.datastore;
    // What is wrong whatever host is asked.
    let source = req.image.as_ref().and_then(|i| i.source.as_deref());
    if let Some(source) = source.filter(|_| verb == "rm" || verb.starts_with("snap_") || verb == "export") {
        if doc.is_block() {
            one::Volume::parse_of(doc.id, source)?;
        } else {
            one::source_name(&doc.base_path, source)?;
        }
    }
    let dir = doc.dir();
    let root = dir.parent().context("a datastore that is the root")?.to_owned();
    let ds = u32::try_from(doc.id).ok().context("a datastore without a number")?;
    let place = if doc.is_block() { one::volume::group(doc.id) } else { dir };
    let bridge = Bridge { front, verb, dump, req, dir: text(&place), at: VmDir { root, ds, vm: 0 } };
    let to = bridge.usable(&doc.bridge_list, "BRIDGE_LIST")?;
    match (verb, on_host(verb, req), one::image_path(path(req))) {
        ("stat", Some((host, path)), _) => bridge.plain(&[Some(host)], Some(&path)),
        ("cp", Some((host, path)), _) => bridge.outside(&[Some(host)], &path, &to),
        ("cp", None, Ok(ImagePath::Local(path))) => bridge.outside(&[None], &text(&path), &to),
        ("clone", ..) if !req.source_bridge_list.is_empty() => bridge.clone(&to),
        _ => bridge.plain(&to, None),
    }
}

struct Bridge<'a> {
    front: &'a Front<'a>,
    verb: &'a str,
    dump: &'a DsDump,
    req: &'a DsRequest,
    dir: String,
    at: VmDir,
}

/// `None` is the front-end.
type Host = Option<HostName>;

impl Bridge<'_> {
    /// The hosts of a list that can be asked, in the order in which they are: the image's number says who
    /// is first, or chance. No list is the front-end.
    fn usable(&self, list: &[String], name: &str) -> Result<Vec<Host>> {
        if list.is_empty() {
            return Ok(vec![None]);
        }
        let wrong = |host: &String, why| {
            refuse(Class::Usage, format!("datastore {}: {name} has {host:?}, expected {why}", self.at.ds))
        };
        let hosts: Result<Vec<_>> =
            list.iter().map(|h| HostName::parse(h).map_err(|why| wrong(h, why))).collect();
        // Without oned's word all of them are tried.
        let known = self.front.cloud.hosts();
        let off = |host: &HostName| {
            let mut all = known.iter().flat_map(|k| k.iter());
            all.any(|h| h.name.eq_ignore_ascii_case(host.as_str()) && !h.is_usable())
        };
        let mut hosts: Vec<Host> = hosts?.into_iter().filter(|h| !off(h)).map(Some).collect();
        if hosts.is_empty() {
            let text = format!(
                "datastore {}: all hosts of {name} are off, in error or disabled; nothing was changed",
                self.at.ds
            );
            return Err(refuse(Class::Remote, text));
        }
        let id = self.req.image.as_ref().and_then(|i| i.id).and_then(|id| usize::try_from(id).ok());
        let chance = || self.front.job.id.to_string().bytes().map(usize::from).sum();
        let first = id.unwrap_or_else(chance) % hosts.len();
        hosts.rotate_left(first);
        Ok(hosts)
    }

    /// The first that is reached does it; one that was asked is the last.
    fn first<'h, T>(&self, hosts: &'h [Host], mut ask: impl FnMut(&'h Host) -> Result<T>) -> Result<T> {
        let mut dead = Vec::new();
        for host in hosts {
            match ask(host) {
                Err(e) if e.downcast_ref().is_some_and(HostError::is_unreached) => {
                    let line = one_line(&e);
                    if hosts.len() > 1 {
                        (self.front.warn)(&line);
                    }
                    dead.push(line);
                }
                done => return done,
            }
        }
        let text = format!("{}; no host is left to ask, nothing was changed", dead.join("; "));
        Err(refuse(Class::Remote, text))
    }

    fn at<'h>(&'h self, host: &'h Host) -> At<'h> {
        At { host: host.as_ref(), dir: &self.at, local: false }
    }

    /// `local`: the source, on the host that is asked.
    fn op(&self, stream: bool, local: Option<&str>) -> Op {
        let (verb, dir, mut message) = (self.verb.to_owned(), self.dir.clone(), self.dump.values());
        if let Some(path) = local {
            message.insert("IMAGE/PATH".to_owned(), path.to_owned());
        }
        Op::Datastore(Datastore { verb, dir, message, stream })
    }

    fn plain(&self, hosts: &[Host], local: Option<&str>) -> Result<String> {
        let op = self.op(false, local);
        self.first(hosts, |host| self.front.ask(&self.at(host), &op))
    }

    fn outside(&self, from: &[Host], path: &str, to: &[Host]) -> Result<String> {
        let (path, limit) = (path.to_owned(), self.limit()?);
        let what = What::Outside { path: path.clone(), limit, message: self.dump.values() };
        self.between((from, &self.at), what, to, &path)
    }

    fn clone(&self, to: &[Host]) -> Result<String> {
        let original = path(self.req).to_owned();
        let from = self.usable(&self.req.source_bridge_list, "SOURCE_BRIDGE_LIST")?;
        let both: Vec<Host> = to.iter().filter(|h| from.contains(h)).cloned().collect();
        if !both.is_empty() {
            return self.plain(&both, None);
        }
        let image = HostPath { host: None, path: Path::new(&original).components().collect() };
        let what = What::Whole { path: text(&image.path), limit: self.limit()? };
        self.between((&from, &of_image(&image)?), what, to, &original)
    }

    /// Bytes per second.
    fn limit(&self) -> Result<Option<u64>> {
        Ok(fetch_options(self.front.settings, self.req)?.limit)
    }

    fn between(&self, (from, dir): (&[Host], &VmDir), what: What, to: &[Host], path: &str) -> Result<String> {
        let data = self.req.image.as_ref().and_then(|i| i.size).unwrap_or(Bytes(0));
        let mut to = self.first(to, |h| reach(self.front, self.at(h), data))?;
        let giver = |h| At { host: Option::as_ref(h), dir, local: false };
        let mut from = self.first(from, |h| reach_giver(self.front, giver(h), data, to.is_here))?;
        if from.is_machine(&to) == Some(true) {
            // It has both.
            let host = to.host();
            drop((from, to));
            return self.plain(&[host], Some(path));
        }
        transfer(self.front, (&mut from, what), (&mut to, self.op(true, None))).map(|(_, text)| text)
    }
}
