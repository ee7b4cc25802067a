//! The replay must notice a driver that does nothing: with any one verb replaced by a program that just
//! exits 0, the chain fails.

use crate::bed::{Bed, VERBS};
use crate::replay::Replay;

#[test]
fn a_verb_that_only_says_yes_fails_the_replay() {
    let mut passed = Vec::new();
    for verb in VERBS {
        let bed = Bed::new();
        bed.link("fs", verb, "/bin/true".as_ref());
        match Replay::new(&bed, "ssh-raw").run() {
            Ok(_) => passed.push(verb),
            Err(said) => println!("{verb}: {}", said.lines().next().unwrap_or_default()),
        }
    }
    assert!(passed.is_empty(), "exit 0 would pass for {passed:?}");
}
