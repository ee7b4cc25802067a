//! Power loss at every moment of every verb that changes storage.
//!
//! A verb runs once while the program under test writes down each of its steps, what files held when
//! they were flushed, and keeps alive every inode that loses its last name (`effect.rs`, `Snap`). From
//! that the tests compute what a medium may hold had the power gone after any step:
//!
//! * *Content.* A file holds what its last flush found. Written since, it may hold that, all of the new,
//!   or, if it was never flushed, nothing, zeros, or a part. A live file changed in place by `qemu-img`
//!   is as before or as after: the order of writes inside is `qemu-img`'s, which flushes between them.
//! * *Entries.* A change of entries is durable once a directory it is in was flushed, and with it
//!   earlier changes of the same entries and of the same objects. Each other one may be missing,
//!   whatever happened to the rest, except that a directory is not removed before what was in it. One
//!   step is atomic, but a file that was renamed into another directory may have its old name besides, as on
//!   btrfs, until the old directory was flushed.
//!
//! Records name objects by inode and birth time, so a state is laid out with the very inodes of the run:
//! they are all still there, and directories are moved, files moved and rewritten in place. Nothing in
//! the program is told about it. What follows must hold as after any other crash, and more: an answer that
//! was given is kept, and given again to a repeat with the same job id.

use crate::bed::{Call, Done, names};
use crate::kill::{full, ready, swept};
use crate::pause;
use crate::scenes::{self, Scene, Stage};
use crate::tm_scenes;
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

type Ino = u64;
type Content = Rc<Vec<u8>>;
/// Which object has which name in which directory.
type Entries = BTreeMap<(Ino, String), Ino>;

enum Step {
    /// Names set or, with 0, removed.
    Entries(Vec<((Ino, String), Ino, Ino)>),
    File(Ino),
    Dir(Ino),
    Other,
}

/// What a file held after so many steps.
struct Version {
    steps: usize,
    durable: bool,
    content: Content,
}

/// What one run of a verb did to the datastore.
struct Run {
    root: Ino,
    start: Entries,
    steps: Vec<(String, Step)>,
    /// Each file's content at the start, at its flushes, and at the end.
    versions: HashMap<Ino, Vec<Version>>,
    /// For each step, the earlier ones it cannot be without.
    needs: Vec<Vec<usize>>,
    known: HashSet<Ino>,
    dirs: HashSet<Ino>,
}

/// What the medium holds.
#[derive(Hash)]
struct State {
    entries: Entries,
    content: BTreeMap<Ino, Content>,
}

/// A small generator: the seed is printed, and the same seed makes the same states.
pub struct Random(pub u64);

impl Random {
    pub fn seeded() -> Random {
        let given = std::env::var("ONESDM_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let mut bytes = [0; 8];
        getrandom(&mut bytes, GetRandomFlags::empty()).unwrap();
        let seed = given.unwrap_or(u64::from_le_bytes(bytes) >> 16);
        println!("ONESDM_TEST_SEED={seed}");
        Random(seed)
    }
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % n as u64).unwrap()
    }
}

fn ino(path: &Path) -> Ino {
    path.symlink_metadata().unwrap_or_else(|e| panic!("{}: {e}", path.display())).ino()
}

/// All entries below a directory, what its files hold, and itself and the directories in it.
fn scan(dir: &Path, entries: &mut Entries, files: &mut HashMap<Ino, Content>, dirs: &mut HashSet<Ino>) {
    dirs.insert(ino(dir));
    for name in names(dir) {
        let path = dir.join(&name);
        let meta = path.symlink_metadata().unwrap();
        entries.insert((ino(dir), name), meta.ino());
        if meta.is_dir() {
            scan(&path, entries, files, dirs);
        } else if meta.is_file() {
            files.insert(meta.ino(), Rc::new(std::fs::read(&path).unwrap()));
        }
    }
}

impl Run {
    /// Plays a call and writes it down.
    fn record(call: Call<'_>, store: &Path, snap: &Path) -> (Run, Done) {
        std::fs::create_dir_all(snap.join("keep")).unwrap();
        let (mut start, mut files, mut dirs) = (Entries::new(), HashMap::new(), HashSet::new());
        scan(store, &mut start, &mut files, &mut dirs);
        let done = call.env("ONESDM_TEST_SNAP", snap).env("ONESDM_JOB_ID", JOB).run();
        let mut versions: HashMap<Ino, Vec<Version>> = HashMap::new();
        let mut add = |ino, steps, durable, content| {
            versions.entry(ino).or_default().push(Version { steps, durable, content });
        };
        for (ino, content) in files {
            add(ino, 0, true, content);
        }
        let mut steps = Vec::new();
        for line in std::fs::read_to_string(snap.join("log")).unwrap_or_default().lines() {
            let mut words = line.split('\t');
            let mut word = || words.next().unwrap_or_default();
            let (n, effect, at) = (word().to_owned(), word().to_owned(), word().parse().unwrap());
            let step = match effect.as_str() {
                "Sync" => {
                    let content = Rc::new(std::fs::read(snap.join(format!("sync.{n}"))).unwrap());
                    add(at, steps.len() + 1, true, content);
                    Step::File(at)
                }
                "SyncDir" => Step::Dir(at),
                _ => {
                    let slots: Vec<_> = words.map(slot).collect();
                    if slots.is_empty() { Step::Other } else { Step::Entries(slots) }
                }
            };
            steps.push((effect, step));
        }
        // Objects that were made and are gone: kept aside by the run.
        let (mut end, mut files) = (Entries::new(), HashMap::new());
        scan(store, &mut end, &mut files, &mut dirs);
        scan(&snap.join("keep"), &mut end, &mut files, &mut dirs);
        for (ino, content) in files {
            add(ino, steps.len(), false, content);
        }
        let known = start.values().chain(end.values()).copied().collect();
        let mut run = Run { root: ino(store), start, steps, versions, needs: Vec::new(), known, dirs };
        run.needs = (0..run.steps.len()).map(|n| run.needed(n)).collect();
        (run, done)
    }

    /// Earlier steps that changed the same names or the same objects.
    fn needed(&self, n: usize) -> Vec<usize> {
        let Step::Entries(mine) = &self.steps[n].1 else { return Vec::new() };
        let removed = if self.steps[n].0 == "Rmdir" { mine[0].1 } else { 0 };
        let shares = |other: &Step| match other {
            Step::Entries(theirs) if theirs.iter().any(|((parent, _), ..)| *parent == removed) => true,
            Step::Entries(theirs) => mine.iter().any(|(at, a, b)| {
                theirs
                    .iter()
                    .any(|(at2, c, d)| at == at2 || [c, d].iter().any(|i| **i != 0 && (*i == a || *i == b)))
            }),
            _ => false,
        };
        (0..n).filter(|k| shares(&self.steps[*k].1)).collect()
    }

    fn with_needed(&self, n: usize, into: &mut BTreeSet<usize>) {
        if into.insert(n) {
            for k in &self.needs[n] {
                self.with_needed(*k, into);
            }
        }
    }

    /// What is there after a power loss when `len` steps were taken. `keep` decides about each step that
    /// no flush made durable, `both` about each old name that may be there besides the new one, `pick` chooses
    /// among the contents a file may have.
    fn state(
        &self,
        len: usize,
        mut keep: impl FnMut() -> bool,
        mut both: impl FnMut() -> bool,
        mut pick: impl FnMut(usize) -> usize,
    ) -> State {
        let mut taken = BTreeSet::new();
        for (k, (_, step)) in self.steps[..len].iter().enumerate() {
            let Step::Dir(dir) = step else { continue };
            for n in 0..k {
                let Step::Entries(slots) = &self.steps[n].1 else { continue };
                if slots.iter().any(|((parent, _), ..)| parent == dir) {
                    self.with_needed(n, &mut taken);
                }
            }
        }
        for n in 0..len {
            if matches!(self.steps[n].1, Step::Entries(_)) && !taken.contains(&n) && keep() {
                self.with_needed(n, &mut taken);
            }
        }
        let mut all = self.start.clone();
        for n in taken {
            let Step::Entries(slots) = &self.steps[n].1 else { continue };
            let second = self.may_be_second(n, len) && both();
            for (at, _, new) in slots {
                if *new != 0 {
                    all.insert(at.clone(), *new);
                } else if !second {
                    all.remove(at);
                }
            }
        }
        let mut state = State { entries: Entries::new(), content: BTreeMap::new() };
        let mut todo = vec![self.root];
        while let Some(dir) = todo.pop() {
            for ((parent, name), ino) in all.range((dir, String::new())..(dir + 1, String::new())) {
                state.entries.insert((*parent, name.clone()), *ino);
                if let Some(versions) = self.versions.get(ino) {
                    let may = Self::may_hold(versions, len);
                    state.content.insert(*ino, may[pick(may.len())].clone());
                } else {
                    todo.push(*ino); // a directory, or a link, below which there is nothing
                }
            }
        }
        state
    }

    /// Whether a step gave a file a name in another directory, and its old one was not flushed since.
    fn may_be_second(&self, n: usize, len: usize) -> bool {
        let (effect, Step::Entries(slots)) = &self.steps[n] else { return false };
        let [((old, _), file, 0), ((new, _), ..)] = slots[..] else { return false };
        let flushed = |(_, step): &(String, Step)| matches!(step, Step::Dir(dir) if *dir == old);
        effect == "Rename"
            && old != new
            && !self.dirs.contains(&file)
            && !self.steps[n..len].iter().any(flushed)
    }

    /// The contents a file may have: the durable one first, the newest last.
    fn may_hold(versions: &[Version], len: usize) -> Vec<Content> {
        let durable = versions.iter().rev().find(|v| v.durable && v.steps <= len);
        let next = versions.iter().find(|v| v.steps > len).or(versions.last());
        let next = next.map(|v| Rc::clone(&v.content)).unwrap_or_default();
        match durable {
            Some(old) if old.content == next => vec![next],
            Some(old) => vec![Rc::clone(&old.content), next],
            None => {
                let half = next[..next.len() / 2].to_vec();
                vec![Rc::default(), Rc::new(vec![0; next.len()]), Rc::new(half), next]
            }
        }
    }

    /// Makes the datastore what the state says.
    fn lay(&self, state: &State, store: &Path, keep: &Path) {
        Run::gather(store, keep);
        for name in names(keep) {
            if !self.known.contains(&name.parse().unwrap_or_default()) {
                let path = keep.join(name);
                if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
                    .unwrap();
            }
        }
        let mut at: HashMap<Ino, PathBuf> = HashMap::from([(self.root, store.to_owned())]);
        let mut todo = vec![self.root];
        while let Some(dir) = todo.pop() {
            for ((_, name), ino) in state.entries.range((dir, String::new())..(dir + 1, String::new())) {
                let path = at[&dir].join(name);
                if let Some(first) = at.get(ino) {
                    std::fs::hard_link(first, &path).unwrap();
                    continue;
                }
                std::fs::rename(keep.join(ino.to_string()), &path).unwrap();
                if let Some(content) = state.content.get(ino)
                    && std::fs::read(&path).unwrap() != **content
                {
                    std::fs::write(&path, &**content).unwrap();
                }
                at.insert(*ino, path);
                todo.push(*ino);
            }
        }
    }

    /// Takes a directory apart: every object goes aside under its inode number.
    fn gather(dir: &Path, keep: &Path) {
        for name in names(dir) {
            let path = dir.join(name);
            if path.symlink_metadata().unwrap().is_dir() {
                Run::gather(&path, keep);
            }
            let aside = keep.join(ino(&path).to_string());
            if aside.symlink_metadata().is_ok() {
                std::fs::remove_file(&path).unwrap(); // another name of it
            } else {
                std::fs::rename(&path, aside).unwrap();
            }
        }
    }
}

pub const JOB: &str = "0193e3a5-0000-7000-8000-0000000000aa";

fn slot(word: &str) -> ((Ino, String), Ino, Ino) {
    let mut parts = word.splitn(4, '/');
    let mut number = || parts.next().unwrap_or_default().parse::<Ino>().unwrap();
    let (parent, old, new) = (number(), number(), number());
    ((parent, parts.next().unwrap_or_default().to_owned()), old, new)
}

fn told<'a>(call: Call<'a>, env: &[(&str, &OsStr)]) -> Call<'a> {
    env.iter().fold(call, |c, (key, value)| c.env(key, value))
}

/// All that must hold after a power loss: the call was answered before it, and is made again under the same id;
/// with more in the environment of those who come after it.
pub fn recovered(
    scene: &Scene,
    stage: &Stage<'_>,
    env: &[(&str, &OsStr)],
    acked: bool,
    same: bool,
) -> Result<(), String> {
    let bed = stage.bed;
    let stores = stage.stores();
    let person = |word: &str| {
        let words: Vec<&str> = [word].into_iter().chain(stores.iter().map(|s| s.to_str().unwrap())).collect();
        let done = told(bed.onesdm(&words), env).run();
        done.answer().map(drop).map_err(|e| format!("{word}: {e}{}", done.out()))
    };
    stage.oracle.between(&stage.before, &stage.after).map_err(|e| format!("right after: {e}"))?;
    // A power loss while the domain was being made may leave none: then there is nothing to collect.
    if stores[0].join(".sdm/domain.json").exists() {
        person("gc")?;
        person("check")?;
        swept(bed)?;
    }
    if acked {
        stage.oracle.compare(&stage.after).map_err(|e| format!("the answer was given: {e}"))?;
    } else {
        stage.settled().map_err(|e| format!("after gc: {e}"))?;
    }
    let mut again = told(scene.call(stage), env);
    if same {
        again = again.env("ONESDM_JOB_ID", JOB);
    }
    let again = again.run();
    stage
        .done(&again)
        .map_err(|e| format!("again{}: {e}\n{}", if same { ", same job" } else { "" }, again.err()))?;
    person("gc")?;
    person("check")?;
    stage.oracle.compare(&stage.after).map_err(|e| format!("at the end: {e}"))?;
    swept(bed)
}

/// What the power is lost during.
#[derive(Clone, Copy)]
pub enum During {
    /// The call; `false` when it is the first one for its datastore.
    Call(bool),
    /// The collection after the call was killed after its first step that fits.
    Collection(fn(&str) -> bool),
}

/// Loses power after every step, `random` times at random besides the extremes. Answers the states
/// tried, per effect after which the power went, and what was wrong. A bug is also in whoever comes after it.
pub fn lose(
    scene: &Scene,
    during: During,
    random: usize,
    seed: &mut Random,
    bug: Option<&str>,
) -> (BTreeMap<String, usize>, Vec<String>) {
    let domain = !matches!(during, During::Call(false));
    let bed = ready(None, domain);
    let stage = scene.stage(&bed);
    let (store, snap) = (stage.oracle.root().to_owned(), bed.root().join("snap"));
    let mut points = BTreeMap::new();
    let call = match during {
        During::Call(_) => bug.into_iter().fold(scene.call(&stage), |c, bug| c.env("ONESDM_TEST_BUG", bug)),
        During::Collection(last) => {
            let n = {
                let bed = ready(None, true);
                let stage = scene.stage(&bed);
                pause::step(&pause::steps(&bed, scene.call(&stage)).0, last)
            };
            assert!(scene.call(&stage).env("ONESDM_TEST_KILL", format!("{n}:after")).run().killed());
            bed.onesdm(&["gc", store.to_str().unwrap()])
        }
    };
    let (run, done) = Run::record(call, &store, &snap);
    let answered = matches!(during, During::Call(_));
    if let Err(e) = if answered { stage.done(&done) } else { done.answer().map(drop) } {
        return (points, vec![format!("{}: {e}\n{}", scene.name, done.err())]);
    }
    let (mut seen, mut wrong) = (HashSet::new(), Vec::new());
    let env = [("ONESDM_TEST_SNAP", snap.as_os_str()), ("ONESDM_TEST_BUG", bug.unwrap_or_default().as_ref())];
    for len in 0..=run.steps.len() {
        for variant in 0..4 + random {
            let (from, mut dice) = (seed.0, Random(seed.0));
            seed.below(2);
            let (mut coins, mut more) = (Random(seed.0), Random(!seed.0));
            let state = match variant {
                0 | 2 => run.state(len, || false, || variant == 2, |_| 0),
                1 | 3 => run.state(len, || true, || variant == 3, |n| n.saturating_sub(2)),
                _ => run.state(len, || coins.below(2) == 1, || more.below(2) == 1, |n| dice.below(n)),
            };
            let acked = answered && len == run.steps.len();
            let mut hash = DefaultHasher::new();
            (&state, acked).hash(&mut hash);
            if !seen.insert(hash.finish()) {
                continue;
            }
            run.lay(&state, &store, &snap.join("keep"));
            if !domain {
                // The note about a datastore is written when its domain is durable, not before.
                let _ = std::fs::remove_dir_all(bed.root().join("state/datastore"));
            }
            let effect = if len == 0 { "start" } else { &run.steps[len - 1].0 };
            *points.entry(effect.to_owned()).or_default() += 1;
            let same = acked || seen.len() % 2 == 0;
            if let Err(e) = recovered(scene, &stage, &env, acked, same) {
                let step = format!("{}: power lost after step {len} ({effect}), state {variant}", scene.name);
                wrong.push(format!("{step} of seed {from}: {e}\n{}", run.told(len)));
                if bug.is_some() {
                    return (points, wrong);
                }
            }
        }
    }
    (points, wrong)
}

impl Run {
    /// The last steps before a power loss, for the message.
    fn told(&self, len: usize) -> String {
        let steps = self.steps[..len].iter().enumerate().rev().take(6);
        let shown = steps.map(|(n, (effect, step))| match step {
            Step::Entries(slots) => {
                let names: Vec<_> = slots.iter().map(|((_, name), a, b)| format!("{name} {a}>{b}")).collect();
                format!("    {} {effect} {}\n", n + 1, names.join(", "))
            }
            Step::File(at) | Step::Dir(at) => format!("    {} {effect} {at}\n", n + 1),
            Step::Other => format!("    {} {effect}\n", n + 1),
        });
        shown.collect()
    }
}

/// What is tried without `ONESDM_FULL=1`: one scene of each sort.
const SLICE: [&str; 11] = [
    "cp raw",
    "cp qcow2",
    "cp qcow2 to raw",
    "mkfs ext4",
    "clone raw",
    "rm raw with snapshots",
    "rm raw alone",
    "snap_revert raw",
    "snap_revert qcow2",
    "snap_flatten raw",
    "snap_delete raw",
];

/// Of the transfer verbs: those with the most steps that belong together.
const TRANSFERS: [&str; 6] = [
    "tm ln qcow2",
    "tm snap_create qcow2, persistent",
    "tm snap_delete qcow2",
    "tm mvds qcow2, local",
    "tm resize raw",
    "tm mv",
];

fn power_lost(cases: &[(String, During)]) {
    let (began, mut seed, mut wrong, mut sum) = (Instant::now(), Random::seeded(), Vec::new(), 0);
    for (name, during) in cases {
        let scene = scenes::named(name);
        let (points, found) = lose(&scene, *during, if full() { 12 } else { 1 }, &mut seed, None);
        let shown: String = points.iter().map(|(k, n)| format!("{k} {n}  ")).collect();
        let what = match during {
            During::Call(true) => "",
            During::Call(false) => ", first contact",
            During::Collection(_) => ", collected",
        };
        println!("power  {:34} {shown}", format!("{name}{what}"));
        sum += points.values().sum::<usize>();
        wrong.extend(found);
    }
    println!("power  {sum} states in {:.0?}", began.elapsed());
    assert!(wrong.is_empty(), "{} of the states were not recovered:\n{}", wrong.len(), wrong.join("\n"));
}

/// Scenes of these verbs: all, or the slice.
fn of(verbs: &[&str]) -> Vec<(String, During)> {
    let all = scenes::all().into_iter().filter(|s| verbs.contains(&s.verb));
    let some = all.filter(|s| full() || SLICE.contains(&s.name));
    some.map(|s| (s.name.to_owned(), During::Call(true))).collect()
}

#[test]
fn power_lost_while_images_are_made() {
    let mut cases = of(&["cp", "mkfs", "clone"]);
    cases.push(("cp raw".into(), During::Call(false)));
    assert!(cases.len() > 5);
    power_lost(&cases);
}

#[test]
fn power_lost_while_images_are_changed_and_removed() {
    let mut cases = of(&["rm", "snap_revert", "snap_flatten", "snap_delete"]);
    assert!(cases.len() > 5);
    cases.push((
        "cp raw".into(),
        During::Collection(|s| s.starts_with("Rename") && s.ends_with("commit.json")),
    ));
    cases.push(("rm raw with snapshots".into(), During::Collection(|s| s.contains("/del/"))));
    cases.push(("snap_flatten raw".into(), During::Collection(|s| s.starts_with("Exchange"))));
    power_lost(&cases);
}

#[test]
fn power_lost_during_transfer_verbs() {
    let all = tm_scenes::all().into_iter().filter(|s| full() || TRANSFERS.contains(&s.name));
    let cases: Vec<_> = all.map(|s| (s.name.to_owned(), During::Call(true))).collect();
    power_lost(&cases);
}
