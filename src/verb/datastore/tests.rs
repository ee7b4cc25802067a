//! Every datastore verb on the in-memory engine, whole and cut off at every change of storage. The
//! same verbs on directories, through the built program, are the integration suite's.

mod block;
mod many;
mod sequences;

use super::*;
use crate::config::Config;
use crate::engine::faulty::Faulty;
use crate::engine::mem::MemEngine;
use crate::lock::{self, JobId, MemLocks};
use crate::one::DsDump;
use crate::sdm::check::{check, garbage};
use crate::sdm::job::{Topic, Waits};
use crate::sdm::turn::Copies;
use crate::sdm::{Jobs, SdmError, gc};
use crate::sys::{Cancel, Tools};
use std::collections::BTreeMap;
use std::time::Duration;

type Verb = fn(&Ctx<'_>, &DsRequest, &Job) -> Result<String>;

/// A datastore in memory, and a host that works on it.
struct Bed {
    dir: tempfile::TempDir,
    engine: MemEngine,
    locks: MemLocks,
    config: Config,
    tools: Tools,
    jobs: Jobs,
    /// More of the datastore's document.
    more: &'static str,
}

const BASE: &str = "/var/lib/one//datastores/1";

impl Bed {
    fn new() -> Bed {
        let dir = tempfile::tempdir().unwrap();
        let log = |n: &str| crate::obs::jsonl::Log { path: dir.path().join(n), max_size: 1 << 20, keep: 1 };
        let jobs = Jobs {
            run: dir.path().join("run"),
            events: log("events"),
            history: log("history"),
            cancel: Cancel::default(),
            waits: Waits { lock: Duration::from_millis(100), grace: Duration::from_millis(100) },
            copies: Copies::default(),
            plan: None,
        };
        std::fs::write(dir.path().join("a"), "content a").unwrap();
        std::fs::write(dir.path().join("b"), "content b, longer").unwrap();
        let tools = Tools::new(BTreeMap::new()).unwrap();
        let config = Config::builtin().unwrap();
        Bed { dir, engine: MemEngine::default(), locks: MemLocks::default(), config, tools, jobs, more: "" }
    }

    fn domain(&self) -> Domain {
        Domain::in_memory(&self.engine, &self.locks).unwrap()
    }

    fn request(&self, image: &str) -> DsRequest {
        let xml = format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><REGTIME>1</REGTIME>{}</IMAGE><DATASTORE><ID>1</ID>\
             <BASE_PATH>{BASE}</BASE_PATH><TEMPLATE/>{}</DATASTORE></DS_DRIVER_ACTION_DATA>",
            image.replace("DIR", &self.dir.path().to_string_lossy()),
            self.more
        );
        DsDump::parse(xml.as_bytes()).unwrap().request(Path::new("/")).unwrap()
    }

    /// One verb by a host that dies after so many changes.
    fn cut(&self, verb: Verb, image: &str, left: i64, after: bool) -> Result<String> {
        self.cut_as(JobId::generate(), verb, image, left, after)
    }

    fn cut_as(&self, id: JobId, verb: Verb, image: &str, left: i64, after: bool) -> Result<String> {
        self.on(id, verb, image, &|| Faulty::new(self.engine.clone(), left, after))
    }

    /// One verb on an engine that fails as it likes.
    fn on(
        &self,
        id: JobId,
        verb: Verb,
        image: &str,
        engine: &dyn Fn() -> Faulty<MemEngine>,
    ) -> Result<String> {
        let open = |_: &Path, _: i64| -> Result<Domain, SdmError> {
            Ok(Domain { engine: Box::new(engine()), ..self.domain() })
        };
        self.opening(id, verb, image, &open)
    }

    /// One verb on whatever is opened for it.
    fn opening(&self, id: JobId, verb: Verb, image: &str, open: &crate::verb::Open<'_>) -> Result<String> {
        let (settings, tools, jobs) = (&self.config.settings, &self.tools, &self.jobs);
        let (ready, peer) = (&|| Ok(()), None);
        let ctx = Ctx { settings, tools, jobs, job: id, repeatable: true, open, ready, peer };
        let job = self.jobs.start(id, Topic { verb: "test".into(), ..Topic::default() });
        verb(&ctx, &self.request(image), &job)
    }

    fn run(&self, verb: Verb, image: &str) -> Result<String> {
        self.cut(verb, image, i64::MAX, false)
    }

    /// Every public object with its content.
    fn tree(&self) -> BTreeMap<String, String> {
        let (d, mut out) = (self.domain(), BTreeMap::new());
        let mut dirs = vec![None];
        while let Some(dir) = dirs.pop() {
            for o in d.engine.list(dir.as_ref()).unwrap() {
                let Place::Public(name) = &o.place else { continue };
                let text = match o.kind {
                    Kind::File => {
                        let text =
                            std::fs::read_to_string(d.engine.attach(&o.place, Access::Read).unwrap().path);
                        text.unwrap()
                    }
                    ref other => format!("{other:?}"),
                };
                if o.kind == Kind::Dir {
                    dirs.push(Some(name.clone()));
                }
                out.insert(name.to_string(), text);
            }
        }
        out
    }

    /// What a collector run by another host leaves: nothing to collect, no broken rule.
    fn collect(&self) {
        let policy = gc::Policy {
            trash_keep: Duration::from_secs(3600),
            done_max: 1000,
            done_age: Duration::from_secs(3600),
            short: false,
        };
        let (d, job) = (self.domain(), self.jobs.start(JobId::generate(), Topic::default()));
        let report = gc::collect(&d, &job, &policy).unwrap();
        assert!(report.errors.is_empty(), "{:?}", report.errors);
        assert_eq!(check(&d).unwrap(), []);
        assert!(garbage(&d, &policy).unwrap().is_empty(), "gc twice is gc once");
        assert!(d.engine.jobs().unwrap().is_empty(), "nobody works any more");
    }

    /// Puts members below an image's `.snap`, as transfer-manager verbs would.
    fn snapshots(&self, image: &str, members: &[(&str, &str)]) {
        let (d, job) = (self.domain(), self.jobs.start(JobId::generate(), Topic::default()));
        let dir = Name::parse(&format!("{image}.snap")).unwrap();
        let publish = |name: &Name, content: Option<&str>| {
            let mut work = Work::begin(&d, &job, std::slice::from_ref(name)).unwrap();
            let slab = match content {
                None => work.dir().unwrap(),
                Some(text) => {
                    let slab = work.file(Bytes(0)).unwrap();
                    std::fs::write(&slab.path, text).unwrap();
                    slab
                }
            };
            let step = work.step_to(&slab, name).unwrap();
            work.commit("", "", vec![step]).unwrap();
        };
        publish(&dir, None);
        for (id, content) in members {
            publish(&dir.child(id).unwrap(), Some(content));
        }
        publish(&Name::parse(&format!("{image}.md5sum")).unwrap(), Some("digest"));
    }
}

fn image(id: i64) -> String {
    crate::one::image_name(id, Some(1), SystemTime::now()).to_string()
}

/// A verb, the message it gets, and what makes the datastore it finds.
type Scene = (&'static str, Verb, String, fn(&Bed));

fn scenes() -> Vec<Scene> {
    fn nothing(_: &Bed) {}
    fn one(b: &Bed) {
        b.run(cp::run, "<ID>0</ID><PATH>DIR/a</PATH>").unwrap();
    }
    fn snaps(b: &Bed) {
        one(b);
        b.snapshots(&image(0), &[("0", "first"), ("1", "second")]);
    }
    let source = |more: &str| format!("<SOURCE>{BASE}/{}</SOURCE>{more}", image(0));
    let on_snap = || source("<TARGET_SNAPSHOT>1</TARGET_SNAPSHOT>");
    vec![
        ("cp", cp::run, "<ID>0</ID><PATH>DIR/a</PATH>".into(), nothing),
        ("cp over another request's image", cp::run, "<ID>0</ID><PATH>DIR/b</PATH>".into(), one),
        ("mkfs", mkfs::run, "<ID>7</ID><FORMAT>raw</FORMAT><SIZE>1</SIZE>".into(), nothing),
        ("clone", clone::run, format!("<ID>5</ID><PATH>{BASE}/{}</PATH>", image(0)), one),
        ("rm", rm::run, source(""), one),
        ("rm with snapshots", rm::run, source(""), snaps),
        ("rm of nothing", rm::run, source(""), nothing),
        ("snap_revert", snap::revert, on_snap(), snaps),
        ("snap_flatten", snap::flatten, on_snap(), snaps),
        ("snap_delete", snap::delete, on_snap(), snaps),
    ]
}

/// The number of changes a verb makes when nobody stops it.
fn changes(new_bed: fn() -> Bed, verb: Verb, message: &str, before: fn(&Bed)) -> i64 {
    (0..1000)
        .find(|n| {
            let bed = new_bed();
            before(&bed);
            bed.cut(verb, message, *n, false).is_ok() && bed.domain().engine.jobs().unwrap().is_empty()
        })
        .unwrap()
}

#[test]
fn every_verb_cut_off_at_every_change_leaves_the_old_or_the_new() {
    let points = sweep(Bed::new, scenes());
    assert!(points > 150, "only {points} points");
}

fn sweep(new_bed: fn() -> Bed, scenes: Vec<Scene>) -> usize {
    let mut points = 0;
    for (what, verb, message, before) in scenes {
        let whole = new_bed();
        before(&whole);
        let old = whole.tree();
        let answer = whole.run(verb, &message).unwrap_or_else(|e| panic!("{what}: {e:#}"));
        let new = whole.tree();
        whole.collect();
        assert_eq!(whole.tree(), new, "{what}: collecting touches nothing public");
        for n in 0..=changes(new_bed, verb, &message, before) {
            for after in [false, true] {
                let bed = new_bed();
                before(&bed);
                let first = bed.cut(verb, &message, n, after);
                bed.collect();
                let now = bed.tree();
                assert!(now == old || now == new, "{what} cut at {n} {after}: {now:#?}");
                if let Ok(a) = &first {
                    assert_eq!(
                        (a, &now),
                        (&answer, &new),
                        "{what} cut at {n} {after}: what was answered is there"
                    );
                }
                let again =
                    bed.run(verb, &message).unwrap_or_else(|e| panic!("{what} again after {n}: {e:#}"));
                assert_eq!((&again, bed.tree()), (&answer, new.clone()), "{what} again after {n} {after}");
                bed.collect();
                points += 1;
            }
        }
    }
    points
}

#[test]
fn the_same_job_gets_the_same_answer_and_another_wish_replaces() {
    let bed = Bed::new();
    let id = JobId::generate();
    let run = |id, from: &str| {
        bed.cut_as(id, cp::run, &format!("<ID>0</ID><PATH>DIR/{from}</PATH>"), i64::MAX, false)
    };
    let first = run(id, "a").unwrap();
    assert_eq!(run(id, "gone").unwrap(), first, "from the record, without looking at the source");
    assert_eq!(bed.tree()[&image(0)], "content a");
    assert_eq!(
        run(JobId::generate(), "b").unwrap(),
        first,
        "the name derives from the image, not from the job"
    );
    assert_eq!(bed.tree()[&image(0)], "content b, longer");
    assert_eq!(bed.domain().engine.dead().unwrap().len(), 1, "what was displaced is kept");
}

#[test]
fn a_leased_image_is_busy_and_the_message_says_so() {
    let bed = Bed::new();
    bed.run(cp::run, "<ID>0</ID><PATH>DIR/a</PATH>").unwrap();
    let d = bed.domain();
    let _lease =
        lock::slab_leases(&*d.locks, &[(&image(0), Mode::Shared)], Duration::ZERO, &Cancel::default())
            .unwrap();
    let e = bed.run(rm::run, &format!("<SOURCE>{BASE}/{}</SOURCE>", image(0))).unwrap_err();
    assert_eq!(crate::verb::class_of(&e), Class::Busy);
    assert!(bed.tree().contains_key(&image(0)));
}

/// What was displaced is kept for its time and goes in two runs, or at once where space is short; records go
/// by their number and by their age.
#[test]
fn what_is_kept_goes_in_its_time() {
    let bed = Bed::new();
    let cp = |file: &str| bed.run(cp::run, &format!("<ID>0</ID><PATH>DIR/{file}</PATH>")).unwrap();
    let d = bed.domain();
    let hour = Duration::from_secs(3600);
    let policy = gc::Policy { trash_keep: hour, done_max: 1000, done_age: hour, short: false };
    let collect = |policy: gc::Policy| {
        let job = bed.jobs.start(JobId::generate(), Topic::default());
        gc::collect(&d, &job, &policy).unwrap();
        let kept = |o: &crate::engine::Object| matches!(o.place, Place::Dead(grave) if grave.keep);
        d.engine.dead().unwrap().iter().map(kept).collect::<Vec<bool>>()
    };
    cp("a");
    cp("b");
    assert_eq!(collect(policy), [true]);
    let over = gc::Policy { trash_keep: Duration::ZERO, ..policy };
    assert_eq!(collect(over), [false], "released by one run");
    assert!(collect(over).is_empty(), "deleted by the next");
    cp("a");
    assert_eq!(collect(policy), [true]);
    assert!(collect(gc::Policy { short: true, ..policy }).is_empty());
    let done = || d.engine.done().unwrap().len();
    assert_eq!(done(), 3);
    collect(gc::Policy { done_max: 1, ..policy });
    assert_eq!(done(), 1);
    std::thread::sleep(Duration::from_millis(1100));
    collect(gc::Policy { done_age: Duration::ZERO, ..policy });
    assert_eq!(done(), 0);
}
