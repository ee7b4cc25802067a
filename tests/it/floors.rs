//! How much there is to kill and to fail: the effects of each scene by kind, beside a floor that is kept in
//! `floors.tsv`. A change that makes effects disappear from the sweeps' sight fails here; one that makes a
//! verb do with fewer of them on purpose lowers the floor in the same commit (`ONESDM_TEST_FLOORS=write`).

use crate::fail::ways;
use crate::kill::effects;
use crate::{scenes, tm_scenes};
use std::collections::BTreeMap;

type Counts = BTreeMap<String, usize>;

/// On tmpfs, ext4, XFS and btrfs; before each effect and after it.
const KILLS: usize = 4 * 2;

fn parse(text: &str) -> BTreeMap<String, Counts> {
    let count = |word: &str| word.split_once('=').map(|(kind, n)| (kind.to_owned(), n.parse().unwrap()));
    let line = |l: &str| {
        let (scene, counts) = l.split_once('\t').unwrap();
        (scene.to_owned(), counts.split(' ').filter_map(count).collect())
    };
    text.lines().map(line).collect()
}

fn print(all: &BTreeMap<String, Counts>) -> String {
    let line = |(scene, counts): (&String, &Counts)| {
        let counts: Vec<String> = counts.iter().map(|(kind, n)| format!("{kind}={n}")).collect();
        format!("{scene}\t{}\n", counts.join(" "))
    };
    all.iter().map(line).collect()
}

#[test]
fn no_effect_is_out_of_sight() {
    let (mut found, mut failures) = (BTreeMap::new(), 0);
    for scene in scenes::all().into_iter().chain(tm_scenes::all()) {
        let mut counts = Counts::new();
        for effect in effects(&scene, None, true) {
            failures += ways(&effect).len();
            *counts.entry(effect).or_default() += 1;
        }
        found.insert(scene.name.to_owned(), counts);
    }
    let sum: usize = found.values().flat_map(BTreeMap::values).sum();
    println!("{} scenes, {sum} effects: {} points to kill, {failures} to fail", found.len(), sum * KILLS);
    if std::env::var_os("ONESDM_TEST_FLOORS").is_some_and(|v| v == "write") {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/floors.tsv");
        std::fs::write(file, print(&found)).unwrap();
        return;
    }
    let floors = parse(include_str!("floors.tsv"));
    let mut wrong = Vec::new();
    for (scene, floor) in &floors {
        let Some(counts) = found.get(scene) else {
            wrong.push(format!("{scene}: no scene any more"));
            continue;
        };
        for (kind, least) in floor {
            let n = counts.get(kind).copied().unwrap_or_default();
            if n < *least {
                wrong.push(format!("{scene}: {n} of {kind}, at least {least} wanted"));
            }
        }
    }
    let new = found.keys().filter(|s| !floors.contains_key(*s));
    wrong.extend(new.map(|s| format!("{s}: has no floor")));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(sum * KILLS + failures > 10_000, "the aim of the whole");
}
