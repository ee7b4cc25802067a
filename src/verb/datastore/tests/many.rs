//! Four hosts as threads on one in-memory engine: random verbs on a few images, some of them dead after so many
//! changes, others paused until their leases are another's: whenever they look at one, and before whatever they do
//! in their own area. What they are answered must have an order. None sees the others' jobs, so removals fence them off.

#[path = "../../../../tests/it/linear.rs"]
mod linear;

use super::*;
use crate::engine::faulty::Pause;
use crate::lock::{Held, LeaseId, LockBackend, LockError, Mode};
use linear::{Content, Deed, Event, IMAGES, check};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

const CONTENTS: [&str; 2] = ["content a", "content b, longer"];

/// A small generator, so that a seed says what was called.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % n as u64).unwrap()
    }
}

/// A host that falls asleep once and loses all its leases meanwhile.
#[derive(Clone, Debug)]
struct Sleeper {
    locks: MemLocks,
    left: Arc<AtomicI64>,
}

impl Sleeper {
    fn look(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.locks.lose();
            std::thread::sleep(Duration::from_millis(3));
        }
    }
}

#[derive(Debug)]
struct Watched(Sleeper, Box<dyn Held>);

impl Held for Watched {
    fn still_held(&self) -> Result<(), LockError> {
        self.0.look();
        self.1.still_held()
    }
}

impl LockBackend for Sleeper {
    fn name(&self) -> &'static str {
        self.locks.name()
    }

    fn try_acquire(&self, id: &LeaseId, mode: Mode) -> Result<Box<dyn Held>, LockError> {
        Ok(Box::new(Watched(self.clone(), self.locks.try_acquire(id, mode)?)))
    }

    fn is_held(&self, id: &LeaseId) -> Result<bool, LockError> {
        self.locks.is_held(id)
    }
}

/// One verb by a host that dies after so many changes, or falls asleep after so many looks.
fn run(bed: &Bed, (verb, message): (Verb, String), (left, after): (i64, bool), looks: i64) -> Result<String> {
    let sleeper = Sleeper { locks: bed.locks.another_host(), left: Arc::new(AtomicI64::new(looks)) };
    let open = |_: &Path, _: i64| -> Result<Domain, SdmError> {
        let (locks, pausing) = (sleeper.clone(), sleeper.clone());
        let engine =
            Faulty::new(bed.engine.clone(), left, after).pausing(Pause(Arc::new(move || pausing.look())));
        Ok(Domain { engine: Box::new(engine), locks: Box::new(locks), ..bed.domain() })
    };
    bed.opening(JobId::generate(), verb, &message, &open)
}

fn md5(text: &str) -> String {
    use md5::Digest as _;
    crate::sys::hex(&md5::Md5::digest(text))
}

fn call(deed: Deed) -> (Verb, String) {
    let name = |n: usize| image(i64::try_from(n).unwrap());
    let source = |n: usize| format!("<ID>{n}</ID><SOURCE>{BASE}/{}</SOURCE>", name(n));
    match deed {
        Deed::Write(n, c) => {
            (cp::run, format!("<ID>{n}</ID><PATH>DIR/{}</PATH>", if c == 0 { "a" } else { "b" }))
        }
        Deed::Clone(n, of) => (clone::run, format!("<ID>{n}</ID><PATH>{BASE}/{}</PATH>", name(of))),
        Deed::Remove(n) => (rm::run, source(n)),
        Deed::Read(n, _) => (export::run, source(n)),
    }
}

fn host(bed: &Bed, host: usize, clock: &AtomicU64, mut dice: Dice) -> Vec<Event> {
    let (mut events, now) = (Vec::new(), || clock.fetch_add(1, Ordering::SeqCst));
    for _ in 0..8 {
        let (n, other) = (dice.below(IMAGES), dice.below(IMAGES - 1));
        let deed = match dice.below(10) {
            0..4 => Deed::Write(n, Content::try_from(dice.below(CONTENTS.len())).unwrap()),
            4..6 => Deed::Clone(n, (n + 1 + other) % IMAGES),
            6..8 => Deed::Remove(n),
            _ => Deed::Read(n, None),
        };
        let fate = dice.below(6);
        let (dies, sleeps) = (fate == 0, fate == 1);
        let mut within = |n: usize| i64::try_from(dice.below(n)).unwrap();
        let left = if dies { within(12) } else { i64::MAX };
        let looks = if sleeps { within(16) } else { i64::MAX };
        let from = now();
        let said = run(bed, call(deed), (left, dice.below(2) == 0), looks);
        let class = said.as_ref().err().map(crate::verb::class_of);
        let told = match (deed, &said, class) {
            (Deed::Read(n, _), Ok(answer), _) => {
                let c = CONTENTS.iter().position(|c| answer.contains(&md5(c))).expect("a whole image");
                Some(Deed::Read(n, Content::try_from(c).ok()))
            }
            (_, Ok(_), _) => Some(deed),
            _ if dies || sleeps => None,
            (Deed::Read(n, _) | Deed::Clone(_, n), _, Some(Class::NotFound)) => Some(Deed::Read(n, None)),
            (_, _, Some(Class::Busy | Class::Cancelled)) => continue,
            _ => panic!("{deed:?}: {said:?}"),
        };
        match told {
            Some(deed) => events.push(Event { host, from, to: Some(now()), deed }),
            None if matches!(deed, Deed::Read(..)) => {}
            None => events.push(Event { host, from, to: None, deed }),
        }
    }
    events
}

#[test]
fn hosts_in_memory_are_answered_in_an_order() {
    let rounds = if std::env::var_os("ONESDM_FULL").is_some() { 5000 } else { 150 };
    let (mut answered, mut lost) = (0, 0);
    for seed in 0..rounds {
        let mut bed = Bed::new();
        let nowhere = || PathBuf::from("/proc/nowhere");
        (bed.jobs.run, bed.jobs.events.path, bed.jobs.history.path) = (nowhere(), nowhere(), nowhere());
        bed.jobs.waits = Waits { lock: Duration::from_secs(20), grace: Duration::from_millis(1) };
        let (bed, clock) = (&bed, &AtomicU64::new(0));
        let mut events: Vec<Event> = std::thread::scope(|s| {
            let hosts = (0..4).map(|n| s.spawn(move || host(bed, n, clock, Dice(seed * 4 + n as u64))));
            let hosts: Vec<_> = hosts.collect();
            hosts.into_iter().flat_map(|h| h.join().unwrap()).collect()
        });
        answered += events.iter().filter(|e| e.to.is_some()).count();
        lost += events.iter().filter(|e| e.to.is_none()).count();
        bed.collect();
        let (tree, end) = (bed.tree(), clock.load(Ordering::SeqCst));
        for n in 0..IMAGES {
            let there = tree.get(&image(i64::try_from(n).unwrap()));
            let seen = there.map(|text| CONTENTS.iter().position(|c| c == text).expect("a whole image"));
            let deed = Deed::Read(n, seen.map(|c| Content::try_from(c).unwrap()));
            events.push(Event { host: 4, from: end, to: Some(end), deed });
        }
        check(&events).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
    assert!(answered > lost && lost > 100, "{answered} answers, {lost} died or lost their leases");
}
