//! All sequences of up to three verbs on two images and two snapshots, each verb whole, dead in the middle,
//! or failing at one change and living on, with no collector in between. A model of what each verb does
//! says what must be read afterwards; where a verb was cut off, both of its outcomes stand until something
//! tells them apart. `ONESDM_FULL=1` takes all of them, without it every n-th of the third verbs.

use super::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Op {
    /// Image and the file that is copied.
    Cp(usize, &'static str),
    Mkfs,
    /// The image that is made, of the other one.
    Clone(usize),
    Rm(usize),
    Delete(i64),
    Revert(i64),
    Flatten(i64),
    /// Of the image that has no snapshots.
    RevertOther,
    Export(usize),
}

const OPS: [Op; 17] = [
    Op::Cp(0, "a"),
    Op::Cp(0, "b"),
    Op::Cp(1, "a"),
    Op::Cp(1, "b"),
    Op::Mkfs,
    Op::Clone(0),
    Op::Clone(1),
    Op::Rm(0),
    Op::Rm(1),
    Op::Delete(0),
    Op::Delete(1),
    Op::Revert(0),
    Op::Revert(1),
    Op::Flatten(0),
    Op::RevertOther,
    Op::Export(0),
    Op::Export(1),
];

/// What a datastore holds, as far as these verbs can tell.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Model {
    /// Content, and whose work it is: that request made again is answered and changes nothing.
    images: [Option<(&'static str, Option<Op>)>; 2],
    /// Of the first image.
    snaps: Option<BTreeMap<i64, &'static str>>,
    sum: bool,
}

const EMPTY: &str = "\0\0\0\0";

fn content(file: &str) -> &'static str {
    if file == "a" { "content a" } else { "content b, longer" }
}

impl Model {
    fn start() -> Model {
        let snaps = Some(BTreeMap::from([(0, "first"), (1, "second")]));
        Model { images: [Some((content("a"), Some(Op::Cp(0, "a")))), None], snaps, sum: true }
    }

    /// What a verb makes of it; `None` when it must refuse.
    fn after(&self, op: Op) -> Option<Model> {
        let mut m = self.clone();
        let mine = |n: usize| self.images[n].is_some_and(|(_, by)| by == Some(op));
        match op {
            Op::Cp(n, _) if mine(n) => {}
            Op::Cp(n, file) => m.images[n] = Some((content(file), Some(op))),
            Op::Mkfs if mine(1) => {}
            Op::Mkfs => m.images[1] = Some((EMPTY, Some(op))),
            Op::Clone(n) => {
                let (source, _) = self.images[1 - n]?;
                if !mine(n) {
                    m.images[n] = Some((source, Some(op)));
                }
            }
            Op::Rm(1) => m.images[1] = None,
            Op::Rm(_) => m = Model { images: [None, self.images[1]], snaps: None, sum: false },
            Op::Delete(n) => {
                if m.snaps.as_mut().and_then(|s| s.remove(&n)).is_some() {
                    m.sum = false;
                }
            }
            Op::Revert(n) => {
                m.images[0] = Some((self.snaps.as_ref()?.get(&n)?, Some(op)));
                m.sum = false;
            }
            Op::Flatten(_) if self.snaps.is_none() && mine(0) => {}
            Op::Flatten(n) => {
                m.images[0] = Some((self.snaps.as_ref()?.get(&n)?, Some(op)));
                (m.snaps, m.sum) = (None, false);
            }
            Op::RevertOther => return None,
            Op::Export(n) => drop(self.images[n]?),
        }
        Some(m)
    }

    fn tree(&self) -> BTreeMap<String, String> {
        let mut out = BTreeMap::new();
        for (n, i) in self.images.iter().enumerate() {
            out.extend(i.map(|(content, _)| (name(n), content.to_owned())));
        }
        let image = name(0);
        if let Some(snaps) = &self.snaps {
            out.insert(format!("{image}.snap"), "Dir".to_owned());
            out.extend(snaps.iter().map(|(n, c)| (format!("{image}.snap/{n}"), (*c).to_owned())));
        }
        if self.sum {
            out.insert(format!("{image}.md5sum"), "digest".to_owned());
        }
        out
    }

    /// The digest that an export of the image must answer.
    fn md5(&self, n: usize) -> String {
        use md5::Digest as _;
        let (content, _) = self.images[n].unwrap_or_default();
        let mut digest = md5::Md5::new();
        digest.update(content);
        if content == EMPTY {
            digest.update(vec![0; (1 << 20) - EMPTY.len()]);
        }
        crate::sys::hex(&digest.finalize())
    }
}

fn name(n: usize) -> String {
    image(i64::try_from(n).unwrap())
}

impl Op {
    fn call(self) -> (Verb, String) {
        let source = |n: usize| format!("<ID>{n}</ID><SOURCE>{BASE}/{}</SOURCE>", name(n));
        let on_snap = |n: i64| source(0) + &format!("<TARGET_SNAPSHOT>{n}</TARGET_SNAPSHOT>");
        match self {
            Op::Cp(n, file) => (cp::run, format!("<ID>{n}</ID><PATH>DIR/{file}</PATH>")),
            Op::Mkfs => (mkfs::run, "<ID>1</ID><FORMAT>raw</FORMAT><SIZE>1</SIZE>".to_owned()),
            Op::Clone(n) => (clone::run, format!("<ID>{n}</ID><PATH>{BASE}/{}</PATH>", name(1 - n))),
            Op::Rm(n) => (rm::run, source(n)),
            Op::Delete(n) => (snap::delete, on_snap(n)),
            Op::Revert(n) => (snap::revert, on_snap(n)),
            Op::Flatten(n) => (snap::flatten, on_snap(n)),
            Op::RevertOther => (snap::revert, source(1) + "<TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>"),
            Op::Export(n) => (export::run, source(n)),
        }
    }
}

/// At which change, and whether that change still happens.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Ok,
    Crash(i64, bool),
    Error(i64, bool),
}

/// What is there, and what that can be.
struct World {
    engine: MemEngine,
    models: BTreeSet<Model>,
    done: Vec<(Op, Fate)>,
}

struct Sweep {
    bed: Bed,
    counts: [usize; 4],
    turn: usize,
    stride: usize,
}

impl Sweep {
    /// Takes a verb on a copy of the world; how many changes it made.
    fn take(&mut self, world: &World, op: Op, fate: Fate) -> (World, i64) {
        self.bed.engine = world.engine.apart();
        self.bed.locks = MemLocks::default();
        let left = Arc::new(AtomicI64::new(match fate {
            Fate::Ok => i64::MAX,
            Fate::Crash(at, _) | Fate::Error(at, _) => at,
        }));
        let on = |after| Faulty::sharing(self.bed.engine.clone(), &left, after);
        let engine = || match fate {
            Fate::Ok => on(false),
            Fate::Crash(_, after) => on(after),
            Fate::Error(_, after) => on(after).once(),
        };
        let (verb, message) = op.call();
        let said = self.bed.on(JobId::generate(), verb, &message, &engine);
        let mut done = world.done.clone();
        done.push((op, fate));
        let unharmed = matches!(fate, Fate::Ok);
        let mut models = BTreeSet::new();
        for m in &world.models {
            match (&said, m.after(op)) {
                (Ok(answer), Some(next)) if !matches!(op, Op::Export(n) if !answer.contains(&m.md5(n))) => {
                    models.insert(next);
                }
                // Refused as it should be, or on the way there.
                (Err(e), None) if !unharmed || crate::verb::class_of(e) == Class::NotFound => {
                    models.insert(m.clone());
                }
                (Err(_), Some(next)) if !unharmed => models.extend([m.clone(), next]),
                _ => {}
            }
        }
        assert!(!models.is_empty(), "{done:?}: {said:?} fits none of {:#?}", world.models);
        let changes = i64::MAX.wrapping_sub(left.load(Ordering::SeqCst));
        let world = World { engine: self.bed.engine.clone(), models, done };
        self.check(&world);
        (world, changes)
    }

    /// Each path is as in something that it can be, and once collected all of it is.
    fn check(&mut self, world: &World) {
        let trees: Vec<_> = world.models.iter().map(Model::tree).collect();
        let now = self.tree();
        for path in now.keys().chain(trees.iter().flat_map(BTreeMap::keys)) {
            let fits = trees.iter().any(|t| t.get(path) == now.get(path));
            assert!(fits, "{:?}: {path} is {:?}", world.done, now.get(path));
        }
        self.bed.engine = world.engine.apart();
        self.bed.collect();
        let now = self.tree();
        assert!(trees.contains(&now), "{:?}: {now:#?} is none of {trees:#?}", world.done);
        self.counts[world.done.len()] += 1;
    }

    /// As the bed's, of the empty image the beginning only.
    fn tree(&self) -> BTreeMap<String, String> {
        let cut = |text: String| if text.starts_with(EMPTY) { EMPTY.to_owned() } else { text };
        self.bed.tree().into_iter().map(|(k, v)| (k, cut(v))).collect()
    }

    fn all(&mut self, world: &World, depth: usize) {
        for op in OPS {
            self.turn += 1;
            if depth == 1 && !self.turn.is_multiple_of(self.stride) {
                continue;
            }
            let (next, changes) = self.take(world, op, Fate::Ok);
            self.deeper(&next, depth);
            if changes == 0 {
                continue;
            }
            // Another change each time, so that all sequences together meet every one of them.
            let turn = i64::try_from(self.turn / self.stride).unwrap();
            let (at, after) = (turn / 2 % changes, turn % 2 == 0);
            for fate in [Fate::Crash(at, after), Fate::Error(at, after)] {
                let (next, _) = self.take(world, op, fate);
                self.deeper(&next, depth);
            }
        }
    }

    fn deeper(&mut self, world: &World, depth: usize) {
        if depth > 1 {
            self.all(world, depth - 1);
        }
    }
}

#[test]
fn all_sequences_of_three_verbs_end_in_what_the_model_allows() {
    let mut bed = Bed::new();
    bed.run(cp::run, "<ID>0</ID><PATH>DIR/a</PATH>").unwrap();
    bed.snapshots(&image(0), &[("0", "first"), ("1", "second")]);
    // Nobody reads the list of jobs or their events here.
    let nowhere = || PathBuf::from("/proc/nowhere");
    (bed.jobs.run, bed.jobs.events.path, bed.jobs.history.path) = (nowhere(), nowhere(), nowhere());
    let engine = bed.engine.apart();
    let stride = if std::env::var_os("ONESDM_FULL").is_some() { 1 } else { 16 };
    let mut sweep = Sweep { bed, counts: [0; 4], turn: 0, stride };
    let start = World { engine, models: BTreeSet::from([Model::start()]), done: Vec::new() };
    sweep.all(&start, 3);
    let [_, one, two, three] = sweep.counts;
    assert!(three > 4000, "sequences of one verb {one}, of two {two}, of three only {three}");
}
