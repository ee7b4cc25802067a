//! Four hosts on one domain: random verbs on a few images, some killed before or after a step or by `kill -9` at any
//! moment, some paused. What they were answered, and what is there in the end, must be what one caller after the
//! other could have been answered (`linear.rs`). The same for hours is the soak: `packaging/soak HOURS`.

use crate::bed::{Bed, Call, Done};
use crate::doc::{Doc, image_name};
use crate::guest;
use crate::kill::{self, full, ready};
use crate::linear::{Content, Deed, Event, IMAGES, check};
use crate::oracle::{Oracle, Tree};
use crate::power::Random;
use crate::race::{REGTIME, bed};
use crate::redteam::rm;
use crate::{scenes, tm_scenes};
use md5::{Digest as _, Md5};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const HOSTS: usize = 4;
const CONTENTS: u8 = 4;

fn image(n: usize) -> u32 {
    u32::try_from(n).unwrap() + 1
}

struct Many {
    bed: Bed,
    began: Instant,
    sums: Vec<String>,
}

/// What was done to how many calls.
#[derive(Debug, Default)]
struct Counts {
    rounds: usize,
    calls: usize,
    killed: usize,
    paused: usize,
    refused: usize,
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
        Many { bed, began: Instant::now(), sums }
    }

    fn call(&self, deed: Deed) -> Call<'_> {
        let bed = &self.bed;
        let doc = |n: usize| Doc::new(bed, image(n)).image("REGTIME", REGTIME);
        let at = |n: usize| bed.store_path(100).join(image_name(REGTIME, image(n)));
        match deed {
            Deed::Write(n, c) => {
                let path = bed.images().join(format!("{c}.raw"));
                bed.ds("cp", image(n), &doc(n).image("PATH", path.display()).xml())
            }
            Deed::Clone(n, of) => {
                let dump = doc(n).image("PATH", at(of).display()).store_template("DRIVER", "raw").xml();
                bed.ds("clone", image(n), &dump)
            }
            Deed::Remove(n) => bed.ds("rm", image(n), &rm(bed, image(n))),
            Deed::Read(n, _) => {
                let dump =
                    Doc::new(bed, image(n)).source(bed, &image_name(REGTIME, image(n))).image("SIZE", 1);
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
    fn host(&self, host: usize, calls: usize, mut dice: Random) -> (Vec<Event>, Counts) {
        let (mut events, mut counts) = (Vec::new(), Counts::default());
        for _ in 0..calls {
            let (n, other) = (dice.below(IMAGES), dice.below(IMAGES - 1));
            let deed = match dice.below(11) {
                0..4 => Deed::Write(n, Content::try_from(dice.below(CONTENTS.into())).unwrap()),
                4..6 => Deed::Clone(n, (n + 1 + other) % IMAGES),
                6..8 => Deed::Remove(n),
                8..10 => Deed::Read(n, None),
                _ => {
                    self.bed.onesdm(&["gc", self.bed.store_path(100).to_str().unwrap()]).run().ok();
                    continue;
                }
            };
            let (fate, from) = (dice.below(8), self.now());
            let mut call = self.call(deed);
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

    /// All hosts at once, a collection when none is left, and a look at what is there.
    fn round(&self, calls: usize, dice: &mut Random, counts: &mut Counts) -> Vec<Event> {
        let mut events = Vec::new();
        std::thread::scope(|s| {
            let seeds: Vec<_> =
                (0..HOSTS).map(|_| Random(dice.0 ^ (dice.below(1 << 30) as u64) << 32)).collect();
            let hosts =
                seeds.into_iter().enumerate().map(|(n, dice)| s.spawn(move || self.host(n, calls, dice)));
            for host in hosts.collect::<Vec<_>>() {
                let (mine, c) = host.join().unwrap();
                events.extend(mine);
                counts.calls += c.calls;
                counts.killed += c.killed;
                counts.paused += c.paused;
                counts.refused += c.refused;
            }
        });
        counts.rounds += 1;
        self.bed.onesdm(&["gc"]).run().ok();
        self.bed.onesdm(&["check"]).run().ok();
        kill::swept(&self.bed).unwrap();
        for n in 0..IMAGES {
            let path = self.bed.store_path(100).join(image_name(REGTIME, image(n)));
            let sum = std::fs::read(path).ok().map(|bytes| hex(&Md5::digest(bytes)));
            let seen = sum.map(|sum| self.sums.iter().position(|s| *s == sum).expect("a whole image"));
            let deed = Deed::Read(n, seen.map(|c| Content::try_from(c).unwrap()));
            events.push(Event { host: HOSTS, from: self.now(), to: Some(self.now()), deed });
        }
        events
    }

    fn clear(&self) {
        for n in 0..IMAGES {
            self.call(Deed::Remove(n)).run().ok();
        }
        self.bed.onesdm(&["gc"]).run().ok();
        Oracle::new(&self.bed.store(100)).compare(&Tree::default()).unwrap();
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
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
        check(&events).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        many.clear();
    }
    println!("{HOSTS} hosts: {counts:?}");
    assert!(counts.rounds > 1 && counts.killed > 0 && counts.calls > counts.killed * 2);
}

/// The history of a real round with one answer changed has no order.
#[test]
fn a_wrong_history_is_caught() {
    let (many, mut counts) = (Many::new(), Counts::default());
    let mut events = many.round(6, &mut Random(4), &mut counts);
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
        check(&events).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
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
