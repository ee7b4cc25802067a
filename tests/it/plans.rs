//! `--plan`: what a verb would do, and nothing of it done.

use crate::bed::{Bed, base64, names};
use crate::call::Call;
use crate::doc::Doc;
use crate::guest;
use crate::scenes::{self, Stage};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Whether the table of verbs says that it can be planned.
pub fn can_be_planned(role: &str, verb: &str) -> bool {
    let table = include_str!("../../docs/verbs.md");
    let mut of_verb = table.split("\n## ").filter(|s| s.starts_with(&format!("{role}/{verb}\n")));
    of_verb.any(|s| s.contains("**Plan**"))
}

/// Everything below a directory: what it is, when it was changed, and what is in it.
pub fn tree(dir: &Path, out: &mut BTreeMap<PathBuf, String>) {
    for name in names(dir) {
        let path = dir.join(name);
        let m = path.symlink_metadata().unwrap();
        let content =
            if m.is_file() { format!("{:?}", guest::digest(&path).unwrap()) } else { String::new() };
        let link = std::fs::read_link(&path).unwrap_or_default();
        let said =
            format!("{} {} {}.{} {content} {}", m.ino(), m.mode(), m.mtime(), m.mtime_nsec(), link.display());
        out.insert(path.clone(), said);
        if m.is_dir() {
            tree(&path, out);
        }
    }
}

pub fn all_of(bed: &Bed) -> BTreeMap<PathBuf, String> {
    let mut out = BTreeMap::new();
    tree(bed.root(), &mut out);
    // What a plan stages lies there for a moment.
    out.remove(&bed.root().join("run"));
    out
}

fn plan_of<'a>(stage: &Stage<'a>, verb: &str, how: &[&str]) -> Call<'a> {
    let (name, args) = match &stage.tm {
        Some((driver, args)) => (format!("tm/{driver}/{verb}"), args.clone()),
        None => (format!("datastore/fs/{verb}"), vec!["7".to_owned()]),
    };
    let call = stage.bed.onesdm(&[how, &["--as", &name, "--"]].concat());
    let call = args.iter().fold(call, Call::arg).stdin(base64(&stage.dump));
    call.env("ONESDM_XML_DIR", stage.bed.root().join("xml"))
}

fn planned(call: Call<'_>) -> Value {
    let done = call.run();
    serde_json::from_slice(&done.stdout).unwrap_or_else(|e| panic!("{e}: {} {}", done.out(), done.err()))
}

/// In every scene in which a verb may move data: the plan changes nothing at all, names what the verb then
/// makes and takes away, and answers what it answers; what is there already is no work.
#[test]
fn a_plan_changes_nothing_and_says_what_the_verb_then_does() {
    let (mut moved, mut wrong) = (0, Vec::new());
    for scene in scenes::all() {
        let bed = Bed::new();
        let stage = scene.stage(&bed);
        let role = if stage.tm.is_some() { "tm" } else { "datastore" };
        if !can_be_planned(role, scene.verb) {
            continue;
        }
        let before = all_of(&bed);
        let plan = planned(plan_of(&stage, scene.verb, &["--plan", "--json"]));
        let mut check = |is: bool, what: &str| {
            if !is {
                wrong.push(format!("{}: {what}: {plan}", scene.name));
            }
        };
        let after = all_of(&bed);
        let differs: Vec<_> = before.iter().filter(|(path, was)| after.get(*path) != Some(was)).collect();
        check(differs.is_empty() && after.len() == before.len(), &format!("changed {differs:?}"));
        check(plan["refused"].is_null(), "refused");
        let done = scene.call(&stage).run();
        stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}", scene.name));
        let ended = plan["notes"].to_string().contains("content that is not there yet");
        check(ended || plan["answer"].as_str().unwrap_or_default().trim() == done.out().trim(), "answer");
        let names = plan["names"].as_array().cloned().unwrap_or_default();
        check(!names.is_empty() || scene.verb == "resize" || scene.name.contains("save_as"), "no names");
        for change in &names {
            let there = Path::new(change["name"].as_str().unwrap()).symlink_metadata().is_ok();
            check(there == (change["how"] != "removed"), &format!("{change} is there: {there}"));
        }
        moved += plan["moves"].as_array().map_or(0, Vec::len);
        if ["cp", "clone", "mkfs"].contains(&scene.verb) && stage.tm.is_none() {
            let again = planned(plan_of(&stage, scene.verb, &["--plan", "--json"]));
            let same = again["answer"].as_str().unwrap_or_default().trim() == done.out().trim();
            check(again["nothing"] == true && same, &format!("again {again}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(moved >= 8, "{moved}");
}

#[test]
fn what_would_be_refused_is_told_with_class_and_line_and_so_is_who_is_in_the_way() {
    let bed = Bed::new();
    bed.store(100);
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 64, 1);
    let cp = |id: u32, path: &Path| Doc::new(&bed, id).image("PATH", path.display()).xml();
    bed.ds("cp", 1, &cp(1, &path)).run().ok();
    let plan = |id: u32, path: &Path, how: &[&str]| {
        let call = bed.onesdm(&[how, &["--as", "datastore/fs/cp", "--", "7"]].concat());
        call.stdin(base64(cp(id, path))).run()
    };
    let gone = bed.images().join("gone");
    let (real, said) = (bed.ds("cp", 2, &cp(2, &gone)).run(), plan(2, &gone, &["--plan", "--json"]));
    let doc: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!((said.code, &doc["refused"]["class"]), (Some(3), &"not-found".into()), "{doc}");
    let line = doc["refused"]["line"].as_str().unwrap();
    assert!(real.failure(Some(3)).unwrap().contains(line), "{line}");
    // A job is at it; what it has staged stays.
    let slow =
        bed.ds("cp", 3, &cp(3, &path)).slowed("copy_file_range,pwrite64", "delay_enter=3000000").start();
    let list = || bed.onesdm(&["job", "list"]).run().out();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !list().contains("copying") && !list().contains("fetching") {
        assert!(std::time::Instant::now() < until, "{}", list());
    }
    let said = plan(3, &path, &["--plan"]);
    assert!(said.code == Some(4) && said.out().contains("refused    busy: "), "{}", said.out());
    assert!(
        said.out().contains("(cp on host ") && said.out().ends_with("nothing was changed\n"),
        "{}",
        said.out()
    );
    slow.signal(Signal::TERM);
    let _ = slow.wait();
    bed.onesdm(&["--plan", "--as", "datastore/fs/rm", "--", "7"]).run().failure(Some(2)).unwrap();
    let dir = bed.base_path(100);
    let words = ["ds", "cp", "--plan", "--datastore", &dir, "--id", "9", "--path", path.to_str().unwrap()];
    let said = bed.onesdm(&words).run().out();
    assert!(said.contains("copy ") && said.contains("64.0 KiB") && said.contains("new  "), "{said}");
    assert!(said.contains("space ") && said.contains("answer "), "{said}");
}

/// Only the words of a person's command line make a plan.
#[test]
fn what_oned_calls_is_never_a_plan() {
    let bed = Bed::new();
    bed.store(100);
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 64, 1);
    let doc = Doc::new(&bed, 1).image("PATH", path.display()).image("PLAN", "YES");
    let doc = doc.image_template("ONESDM_PLAN", "true").store_template("ONESDM_PLAN", "true");
    let doc = doc.store("PLAN", "true").store_template("PLAN", "true").image_template("PLAN", "--plan");
    let call = bed.ds("cp", 1, &doc.xml()).env("ONESDM_PLAN", "true").env("PLAN", "1");
    let answer = call.run();
    assert_eq!(answer.code, Some(0), "{}", answer.err());
    assert!(names(&bed.store_path(100)).iter().any(|n| answer.out().contains(n)), "{}", answer.out());
    // As an argument it is one that no verb knows, or nothing.
    let xml = Doc::new(&bed, 2).image("ID", 2).image("PATH", path.display()).xml();
    let odd = bed.verb("fs", "cp").arg("--plan").arg("2").stdin(base64(xml)).run();
    assert!(odd.code != Some(0) || names(&bed.store_path(100)).len() == 3, "{} {}", odd.out(), odd.err());
}
