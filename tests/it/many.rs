//! Four hosts on one domain: random verbs on a few images, some killed before or after a step or by `kill -9` at any
//! moment, some paused. At some moment the domain is copied, with all that jobs have under way, and the hosts work on both:
//! on the copy not before somebody said that it is one. What they were answered of each, and what is there in the end,
//! must be what one caller after the other could have been answered (`linear.rs`). The same for hours is the soak:
//! `packaging/soak HOURS`.

use crate::bed::{Bed, Call, Done, names};
use crate::doc::{Doc, image_name};
use crate::guest;
use crate::kill::{self, full, ready};
use crate::linear::{Content, Deed, Event, IMAGES, check};
use crate::oracle::{Oracle, Tree};
use crate::power::Random;
use crate::race::{REGTIME, bed};
use crate::{scenes, tm_scenes};
use md5::{Digest as _, Md5};
use rustix::process::Signal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

const HOSTS: usize = 4;
const CONTENTS: u8 = 4;
/// The domain, and its copy.
const STORES: [u32; 2] = [100, 101];

/// How far the copy is: there, being adopted, adopted.
const COPIED: u8 = 1;
const ADOPTING: u8 = 2;
const ADOPTED: u8 = 3;

fn image(n: usize) -> u32 {
    u32::try_from(n).unwrap() + 1
}

struct Many {
    bed: Bed,
    began: Instant,
    sums: Vec<String>,
    copy: AtomicU8,
}

/// Of each store.
type Histories = [Vec<Event>; 2];

/// What was done to how many calls.
#[derive(Debug, Default)]
struct Counts {
    rounds: usize,
    calls: usize,
    killed: usize,
    paused: usize,
    refused: usize,
    /// Jobs that were under way in the copies.
    copied: usize,
    /// On copies, and those of them that were refused because nobody had adopted it.
    on_copies: usize,
    too_early: usize,
}

impl Many {
    fn new() -> Many {
        let bed = bed();
        crate::pause::set(&bed, "[lock]\nwait = \"3s\"\n[cancel]\ngrace = \"1s\"");
        let mut sums = Vec::new();
        for n in 0..CONTENTS {
            let path = bed.images().join(format!("{n}.raw"));
            guest::make_raw(&path, 256, n + 1);
            sums.push(hex(&Md5::digest(std::fs::read(path).unwrap())));
        }
        Many { bed, began: Instant::now(), sums, copy: AtomicU8::new(0) }
    }

    fn call(&self, store: u32, deed: Deed) -> Call<'_> {
        let bed = &self.bed;
        let doc = |n: usize| {
            let doc = Doc::new(bed, image(n)).image("REGTIME", REGTIME);
            doc.store("ID", store).store("BASE_PATH", bed.base_path(store))
        };
        let at = |n: usize| bed.store_path(store).join(image_name(REGTIME, image(n)));
        match deed {
            Deed::Write(n, c) => {
                let path = bed.images().join(format!("{c}.raw"));
                bed.ds("cp", image(n), &doc(n).image("PATH", path.display()).xml())
            }
            Deed::Clone(n, of) => {
                let dump = doc(n).image("PATH", at(of).display()).store_template("DRIVER", "raw").xml();
                bed.ds("clone", image(n), &dump)
            }
            Deed::Remove(n) => bed.ds("rm", image(n), &doc(n).image("SOURCE", at(n).display()).xml()),
            Deed::Read(n, _) => {
                let dump = doc(n).image("SOURCE", at(n).display()).image("SIZE", 1);
                bed.ds("export", image(n), &dump.xml())
            }
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap()
    }

    /// What a call's answer says; nothing when it was refused: then it did nothing.
    fn told(&self, deed: Deed, done: &Done) -> Option<Deed> {
        match (done.code, deed) {
            (Some(0), Deed::Read(n, _)) => {
                let text = done.ok();
                let c = self.sums.iter().position(|s| text.contains(s)).unwrap_or_else(|| panic!("{text}"));
                Some(Deed::Read(n, Some(Content::try_from(c).unwrap())))
            }
            (Some(0), deed) => {
                done.ok();
                Some(deed)
            }
            (Some(3), Deed::Read(n, _) | Deed::Clone(_, n)) => {
                done.fails(3);
                Some(Deed::Read(n, None))
            }
            // Somebody else is at it, or a removal stopped it.
            (Some(4 | 130), _) => done.failure(None).map(|_| None).unwrap(),
            _ => panic!("{deed:?}: {done:?}"),
        }
    }

    /// Some calls of one host.
    fn host(&self, host: usize, calls: usize, mut dice: Random) -> (Histories, Counts) {
        let (mut events, mut counts) = (Histories::default(), Counts::default());
        for _ in 0..calls {
            let copy = self.copy.load(Ordering::SeqCst);
            let at = dice.below(2).min(copy.into());
            let (store, events) = (STORES[at], &mut events[at]);
            let (n, other) = (dice.below(IMAGES), dice.below(IMAGES - 1));
            let deed = match dice.below(11) {
                0..4 => Deed::Write(n, Content::try_from(dice.below(CONTENTS.into())).unwrap()),
                4..6 => Deed::Clone(n, (n + 1 + other) % IMAGES),
                6..8 => Deed::Remove(n),
                8..10 => Deed::Read(n, None),
                _ => {
                    let done = self.bed.onesdm(&["gc", self.bed.store_path(store).to_str().unwrap()]).run();
                    assert!(done.code == Some(0) || at == 1 && copy < ADOPTED, "{done:?}");
                    continue;
                }
            };
            let (fate, from) = (dice.below(8), self.now());
            let mut call = self.call(store, deed);
            if fate == 0 {
                let side = if dice.below(2) == 0 { "before" } else { "after" };
                call = call.env("ONESDM_TEST_KILL", format!("{}:{side}", 1 + dice.below(40)));
            }
            let running = call.start();
            if fate == 1 || fate == 2 {
                std::thread::sleep(Duration::from_micros(u64::try_from(dice.below(20_000)).unwrap()));
                running.signal(if fate == 1 { Signal::KILL } else { Signal::STOP });
            }
            if fate == 2 {
                std::thread::sleep(Duration::from_millis(u64::try_from(dice.below(300)).unwrap()));
                running.signal(Signal::CONT);
                counts.paused += 1;
            }
            let done = running.wait();
            counts.calls += 1;
            counts.on_copies += at;
            if at == 1 && copy < ADOPTED && done.code == Some(10) {
                done.fails(10);
                counts.too_early += 1;
                continue;
            }
            let changed = done.code == Some(0) && !matches!(deed, Deed::Read(..));
            assert!(at == 0 || !changed || self.copy.load(Ordering::SeqCst) > COPIED, "{deed:?} on a copy");
            if done.killed() {
                counts.killed += 1;
                if !matches!(deed, Deed::Read(..)) {
                    events.push(Event { host, from, to: None, deed });
                }
            } else if let Some(deed) = self.told(deed, &done) {
                events.push(Event { host, from, to: Some(self.now()), deed });
            } else {
                counts.refused += 1;
            }
        }
        (events, counts)
    }

    /// Copies the domain at some moment, as rsync would; later somebody says what the copy is. What is in it, as writes, and
    /// how many jobs.
    fn copy(&self, mut dice: Random) -> (Vec<Event>, usize) {
        let mut wait = |most| std::thread::sleep(Duration::from_millis(dice.below(most) as u64));
        let (aside, to) = (self.bed.root().join("copy"), self.bed.store_path(STORES[1]));
        wait(250);
        let jobs = || names(&aside.join(".sdm/new")).len();
        // With something under way, if it can be had.
        for _ in 0..20 {
            let _ = std::fs::remove_dir_all(&aside);
            // What goes away meanwhile is an error of cp's.
            let mut cp = Command::new("cp");
            cp.arg("-a").arg(self.bed.store_path(STORES[0])).arg(&aside).stderr(Stdio::null());
            cp.status().unwrap();
            if jobs() > 0 {
                break;
            }
        }
        let write = |e: Event| match e.deed {
            Deed::Read(n, Some(content)) => Some(Event { deed: Deed::Write(n, content), ..e }),
            _ => None,
        };
        let events = (self.look(&aside).filter_map(write).collect(), jobs());
        std::fs::rename(&aside, &to).unwrap();
        self.copy.store(COPIED, Ordering::SeqCst);
        wait(100);
        self.copy.store(ADOPTING, Ordering::SeqCst);
        let words = ["domain", "adopt", "--new-id", to.to_str().unwrap()];
        self.bed.onesdm(&words).run().ok();
        self.copy.store(ADOPTED, Ordering::SeqCst);
        events
    }

    /// What is there.
    fn look(&self, store: &Path) -> impl Iterator<Item = Event> {
        (0..IMAGES).map(|n| {
            let sum = std::fs::read(store.join(image_name(REGTIME, image(n)))).ok();
            let sum = sum.map(|bytes| hex(&Md5::digest(bytes)));
            let seen = sum.map(|sum| self.sums.iter().position(|s| *s == sum).expect("a whole image"));
            let deed = Deed::Read(n, seen.map(|c| Content::try_from(c).unwrap()));
            Event { host: HOSTS, from: self.now(), to: Some(self.now()), deed }
        })
    }

    /// All hosts at once, a collection when none is left, and a look at what is there, in the domain and in the copy.
    fn round(&self, calls: usize, dice: &mut Random, counts: &mut Counts) -> Histories {
        let mut events = Histories::default();
        std::thread::scope(|s| {
            let seeds: Vec<_> =
                (0..HOSTS).map(|_| Random(dice.0 ^ (dice.below(1 << 30) as u64) << 32)).collect();
            let hosts =
                seeds.into_iter().enumerate().map(|(n, dice)| s.spawn(move || self.host(n, calls, dice)));
            let hosts: Vec<_> = hosts.collect();
            let dice = Random(!dice.0);
            let (copied, jobs) = s.spawn(move || self.copy(dice)).join().unwrap();
            events[1].extend(copied);
            counts.copied += jobs;
            for host in hosts {
                let (mine, c) = host.join().unwrap();
                events.iter_mut().zip(mine).for_each(|(all, mine)| all.extend(mine));
                counts.calls += c.calls;
                counts.killed += c.killed;
                counts.paused += c.paused;
                counts.refused += c.refused;
                counts.too_early += c.too_early;
                counts.on_copies += c.on_copies;
            }
        });
        counts.rounds += 1;
        let stores = STORES.map(|n| self.bed.store_path(n));
        for word in ["gc", "check"] {
            self.bed.onesdm(&[word, stores[0].to_str().unwrap(), stores[1].to_str().unwrap()]).run().ok();
        }
        kill::swept(&self.bed).unwrap();
        events.iter_mut().zip(&stores).for_each(|(events, store)| events.extend(self.look(store)));
        events
    }

    fn clear(&self) {
        for store in STORES {
            for n in 0..IMAGES {
                self.call(store, Deed::Remove(n)).run().ok();
            }
            self.bed.onesdm(&["gc", self.bed.store_path(store).to_str().unwrap()]).run().ok();
            Oracle::new(&self.bed.store(store)).compare(&Tree::default()).unwrap();
        }
        std::fs::remove_dir_all(self.bed.store_path(STORES[1])).unwrap();
        let _ = std::fs::remove_file(self.bed.root().join(format!("state/datastore/{}.json", STORES[1])));
        self.copy.store(0, Ordering::SeqCst);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn ordered(seed: u64, events: &Histories) {
    for (events, store) in events.iter().zip(["domain", "copy"]) {
        check(events).unwrap_or_else(|e| panic!("seed {seed}, {store}: {e}"));
    }
}

/// Seeds that once failed, or are likely to show something.
const SEEDS: [u64; 3] = [1, 2, 3];

#[test]
fn what_many_hosts_are_answered_has_an_order() {
    let (many, mut counts, mut fresh) = (Many::new(), Counts::default(), Random::seeded());
    let end = Instant::now() + Duration::from_secs(if full() { 600 } else { 6 });
    let mut seeds = SEEDS.into_iter();
    while Instant::now() < end {
        let seed = seeds.next().unwrap_or_else(|| fresh.0 ^ fresh.below(1 << 30) as u64);
        let events = many.round(9, &mut Random(seed), &mut counts);
        ordered(seed, &events);
        many.clear();
    }
    println!("{HOSTS} hosts: {counts:?}");
    assert!(counts.rounds > 1 && counts.killed > 0 && counts.calls > counts.killed * 2);
    assert!(counts.copied > 0 && counts.too_early > 0 && counts.on_copies > counts.too_early);
}

/// The history of a real round with one answer changed has no order.
#[test]
fn a_wrong_history_is_caught() {
    let (many, mut counts) = (Many::new(), Counts::default());
    let [mut events, _] = many.round(6, &mut Random(4), &mut counts);
    check(&events).unwrap();
    for n in 0..IMAGES {
        let last = events.len() - IMAGES + n;
        let right = events[last].deed;
        // Contents that nobody ever wrote, and a write that is forgotten.
        events[last].deed = Deed::Read(n, Some(CONTENTS));
        println!("caught: {}", check(&events).expect_err("nobody wrote that").lines().next().unwrap());
        events[last].deed = right;
    }
    let later = many.now();
    let write = Event { host: 0, from: later, to: Some(later + 1), deed: Deed::Write(0, 0) };
    events
        .extend([write, Event { host: 1, from: later + 2, to: Some(later + 3), deed: Deed::Read(0, None) }]);
    println!("caught: {}", check(&events).expect_err("the write is gone").lines().next().unwrap());
}

/// `ONESDM_SOAK` says for how many seconds: rounds as above, and between them scenes of all verbs, each killed at
/// some moment and then put to the test as by the sweeps.
#[test]
fn soak() {
    let given = std::env::var("ONESDM_SOAK").ok().and_then(|s| s.parse().ok());
    let (began, mut dice) = (Instant::now(), Random::seeded());
    let end = began + Duration::from_secs(given.unwrap_or(12));
    let (many, mut counts) = (Many::new(), Counts::default());
    let all: Vec<_> = scenes::all().into_iter().chain(tm_scenes::all()).collect();
    let (mut cycles, mut checks, mut shot) = (0, 0, 0);
    let mut said = Instant::now();
    while Instant::now() < end {
        let seed = dice.0;
        let events = many.round(9, &mut Random(seed), &mut counts);
        ordered(seed, &events);
        many.clear();
        for _ in 0..8 {
            let scene = &all[dice.below(all.len())];
            let bed = ready(None, true);
            let stage = scene.stage(&bed);
            let running = scene.call(&stage).start();
            std::thread::sleep(Duration::from_micros(u64::try_from(dice.below(40_000)).unwrap()));
            running.signal(Signal::KILL);
            let done = running.wait();
            if !done.killed() {
                stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}", scene.name));
            }
            kill::aftermath(scene, &bed, &stage, true)
                .unwrap_or_else(|e| panic!("{} after kill -9: {e}", scene.name));
            shot += usize::from(done.killed());
            cycles += 1;
            checks += 2;
        }
        checks += 1;
        if said.elapsed() > Duration::from_secs(300) || Instant::now() >= end {
            said = Instant::now();
            println!(
                "soak {:.2} h: {cycles} verbs alone, {shot} killed; {} rounds of {HOSTS} hosts, {} calls, {} killed, {} paused; \
                 {checks} checks, nothing wrong",
                began.elapsed().as_secs_f64() / 3600.0,
                counts.rounds,
                counts.calls,
                counts.killed,
                counts.paused
            );
        }
    }
}
