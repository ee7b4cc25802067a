//! The inputs that fuzzing kept, replayed without it, small changes of each, and for some seconds random ones.
//! `packaging/fuzz` looks for hours, with an eye on which code an input reaches.

#[path = "../fuzz/targets.rs"]
mod targets;

use crate::kill::full;
use crate::power::Random;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

/// What is kept of a target, by name, so that a seed means the same everywhere.
fn kept(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let names = crate::bed::names(&dir);
    assert!(!names.is_empty(), "no corpus of {target}");
    names.iter().map(|n| std::fs::read(dir.join(n)).unwrap()).collect()
}

#[test]
fn what_fuzzing_kept_is_replayed() {
    let mut seen = 0;
    for (name, target) in targets::TARGETS {
        for data in kept(name) {
            target(&data);
            // Cut anywhere, and with any one byte changed.
            let stride = data.len().div_ceil(400).max(1);
            for at in (0..data.len()).step_by(stride) {
                target(&data[..at]);
                for change in [0x01, 0x80, 0xff] {
                    let mut bent = data.clone();
                    bent[at] ^= change;
                    target(&bent);
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} inputs");
}

/// No target is forgotten by cargo-fuzz.
#[test]
fn every_fuzz_target_is_in_its_manifest() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    for (name, _) in targets::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets::TARGETS.len());
}

/// One random change: what parsers trip over.
fn bend(data: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Random) {
    const WORDS: [&[u8]; 12] = [
        b"\0",
        b"\n",
        b"--",
        b"../",
        b"<",
        b"]]>",
        b"&#0;",
        b"\xff\xff\xff\xff",
        b"\x80\0\0\0",
        b"\xc0\x80",
        b"=",
        b"9999999999999999999",
    ];
    let at = dice.below(data.len() + 1);
    let end = at + dice.below((data.len() - at).min(64) + 1);
    match dice.below(7) {
        0 => drop(data.drain(at..end)),
        1 => drop(data.splice(at..at, WORDS[dice.below(WORDS.len())].iter().copied())),
        2 => drop(data.splice(at..end, WORDS[dice.below(WORDS.len())].iter().copied())),
        // A part of itself or of another input, in this place.
        3 | 4 => {
            let from = &others[dice.below(others.len())];
            let first = dice.below(from.len() + 1);
            let last = first + dice.below((from.len() - first).min(256) + 1);
            drop(data.splice(at..end, from[first..last].iter().copied()));
        }
        5 => data.iter_mut().skip(at).take(1).for_each(|b| *b = u8::try_from(dice.below(256)).unwrap()),
        _ => data.iter_mut().skip(at).take(1).for_each(|b| *b ^= 1 << dice.below(8)),
    }
}

/// A plain run: a second each; `ONESDM_FULL=1`: twenty.
#[test]
fn random_inputs_break_nothing() {
    let (mut dice, time) = (Random::seeded(), Duration::from_millis(if full() { 20_000 } else { 1_000 }));
    for (name, target) in targets::TARGETS {
        let (corpus, end) = (kept(name), Instant::now() + time);
        let mut tried = 0;
        while Instant::now() < end {
            let mut data = corpus[dice.below(corpus.len())].clone();
            for _ in 0..=dice.below(8) {
                bend(&mut data, &corpus, &mut dice);
            }
            let held = catch_unwind(AssertUnwindSafe(|| target(&data))).is_ok();
            assert!(held, "{name} breaks on {:?}", data.escape_ascii().to_string());
            tried += 1;
        }
        println!("{name:10} {tried} inputs");
    }
}
