//! Four hosts as threads on one in-memory engine: random verbs on a few images, some of them dead after so many
//! changes. What they are answered must have an order. None sees the others' jobs, so removals fence them off.

#[path = "../../../../tests/it/linear.rs"]
mod linear;

use super::*;
use linear::{Content, Deed, Event, IMAGES, check};
use std::sync::atomic::{AtomicU64, Ordering};

const CONTENTS: [&str; 2] = ["content a", "content b, longer"];

/// A small generator, so that a seed says what was called.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % n as u64).unwrap()
    }
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
        let dies = dice.below(4) == 0;
        let left = if dies { i64::try_from(dice.below(12)).unwrap() } else { i64::MAX };
        let ((verb, message), from) = (call(deed), now());
        let said = bed.cut(verb, &message, left, dice.below(2) == 0);
        let class = said.as_ref().err().map(crate::verb::class_of);
        let told = match (deed, &said, class) {
            (Deed::Read(n, _), Ok(answer), _) => {
                let c = CONTENTS.iter().position(|c| answer.contains(&md5(c))).expect("a whole image");
                Some(Deed::Read(n, Content::try_from(c).ok()))
            }
            (_, Ok(_), _) => Some(deed),
            _ if dies => None,
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
    let (mut answered, mut dead) = (0, 0);
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
        dead += events.iter().filter(|e| e.to.is_none()).count();
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
    assert!(answered > dead && dead > 100, "{answered} answers, {dead} died");
}
