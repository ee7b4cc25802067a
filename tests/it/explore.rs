//! An exhaustive explorer of small state machines: all states that can be reached, breadth first, so that what
//! it finds wrong comes with the shortest way there.

use std::collections::HashMap;
use std::fmt::{Debug, Display, Formatter};
use std::hash::Hash;

pub trait System {
    type State: Clone + Eq + Hash + Debug;

    fn start(&self) -> Self::State;
    /// What may happen next: who does what, and whether it happens by itself. Crashes, pauses and lost
    /// leases do not: nothing may rely on them.
    fn next(&self, now: &Self::State) -> Vec<(Deed, Self::State)>;
    fn wrong(&self, now: &Self::State) -> Option<String>;
    /// Nothing is left to do. What can no longer come to that is wrong, too.
    fn settled(&self, now: &Self::State) -> bool;
}

#[derive(Clone, Copy, Debug)]
pub struct Deed {
    pub who: usize,
    pub what: &'static str,
    pub by_itself: bool,
}

pub struct Explored {
    pub states: usize,
    pub steps: usize,
    pub depth: usize,
}

impl Display for Explored {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} states, {} steps between them, {} deep", self.states, self.steps, self.depth)
    }
}

/// Visits every state. `Err` says what is wrong with one, and how it comes about.
pub fn explore<S: System>(system: &S) -> Result<Explored, String> {
    let mut known = HashMap::from([(system.start(), 0)]);
    let mut from: Vec<(usize, Option<Deed>)> = vec![(0, None)];
    let (mut level, mut depth) = (vec![(0, system.start())], 0);
    // Ways that lead on by themselves, backwards, and where they may end.
    let (mut back, mut ends): (Vec<(usize, usize)>, Vec<usize>) = (Vec::new(), Vec::new());
    let mut steps = 0;
    while !level.is_empty() {
        let mut below = Vec::new();
        for (n, state) in level {
            if let Some(why) = system.wrong(&state) {
                return Err(format!("{why}\n{}    {state:?}", way(&from, n)));
            }
            if system.settled(&state) {
                ends.push(n);
            }
            for (deed, next) in system.next(&state) {
                steps += 1;
                let at = *known.entry(next.clone()).or_insert_with(|| {
                    from.push((n, Some(deed)));
                    below.push((from.len() - 1, next));
                    from.len() - 1
                });
                if deed.by_itself {
                    back.push((at, n));
                }
            }
        }
        (level, depth) = (below, depth + 1);
    }
    back.sort_unstable();
    let mut can_end = vec![false; from.len()];
    while let Some(n) = ends.pop() {
        if !std::mem::replace(&mut can_end[n], true) {
            let first = back.partition_point(|(at, _)| *at < n);
            ends.extend(back[first..].iter().take_while(|(at, _)| *at == n).map(|(_, before)| *before));
        }
    }
    match can_end.iter().position(|can| !can) {
        Some(n) => Err(format!("this never ends:\n{}", way(&from, n))),
        None => Ok(Explored { states: from.len(), steps, depth }),
    }
}

fn way(from: &[(usize, Option<Deed>)], mut n: usize) -> String {
    let mut deeds = Vec::new();
    while let (before, Some(deed)) = from[n] {
        deeds.push(format!("    {} {}\n", deed.who, deed.what));
        n = before;
    }
    deeds.into_iter().rev().collect()
}
