//! The protocol of docs/format.md as a model, all of whose states are visited: two jobs that want one name, a
//! collector, hosts that crash, and hosts that are paused for so long that their leases are another's.
//!
//! A job is held to what its record says: an object *is due* from the step that decides in its favour to the one
//! that replaces it by name. What is due must not be deleted, and is what the name shows in the end.

use crate::explore::{Deed, System, explore};
use crate::protocol::Pc::{Idle, Over, Slab, Verify};
use crate::protocol::{At, Bug, COLLECTOR, JOBS, OBJECTS, PROCESSES, Protocol, State};

impl System for Protocol {
    type State = State;

    fn start(&self) -> State {
        let at = if self.fresh { At::Nowhere } else { At::Public };
        State {
            at: [at, At::Nowhere, At::Nowhere],
            area: [false; JOBS],
            record: [false; JOBS],
            pc: [Slab, Slab, Idle],
            seen: [None; JOBS],
            lock: None,
            owner: [None; JOBS],
            slab: None,
            crashes: self.crashes,
            pauses: self.pauses,
            due: [!self.fresh, false, false],
            decided: [false; JOBS],
            undone: [false; JOBS],
            acked: [false; JOBS],
        }
    }

    fn next(&self, now: &State) -> Vec<(Deed, State)> {
        let mut all = Vec::new();
        let mut may = |who, what, by_itself, next| all.push((Deed { who, what, by_itself }, next));
        // A change and the look at what it brought are one, but for a crash: nobody comes between them.
        let at_once = (0..JOBS).find(|j| now.pc[*j] == Verify);
        let turn = |p: &usize| at_once.is_none_or(|j| j == *p);
        for j in (0..JOBS).filter(turn) {
            if let Some(next) = self.job(now, j) {
                may(j, "goes on", true, next);
            }
        }
        for next in self.collector(now).into_iter().filter(|_| at_once.is_none()) {
            may(COLLECTOR, "goes on", true, next);
        }
        for p in (0..PROCESSES).filter(turn) {
            // A collector that dies is started again.
            let over = if p == COLLECTOR { Idle } else { Over };
            if now.crashes > 0 && now.pc[p] != over {
                let mut s = now.clone();
                s.crashes -= 1;
                s.pc[p] = over;
                s.forget(p);
                may(p, "crashes", false, s);
            }
            let holds = [now.lock, now.slab].iter().chain(&now.owner).any(|l| *l == Some(p));
            if now.pauses > 0 && holds && (self.window || !Self::in_window(now.pc[p])) {
                let mut s = now.clone();
                s.pauses -= 1;
                s.forget(p);
                may(p, "is paused until its leases are lost", false, s);
            }
        }
        all
    }

    fn wrong(&self, s: &State) -> Option<String> {
        let is = |wrong: bool, why: &str| wrong.then(|| why.to_owned());
        let due = || (0..OBJECTS).filter(|o| s.due[*o]);
        let both = (0..JOBS).any(|j| s.undone[j] && s.decided[j]);
        let in_window = s.pc.iter().filter(|pc| Self::in_window(**pc)).count();
        is(both, "a job decided after it was undone")
            .or(is((0..JOBS).any(|j| s.acked[j] && !s.decided[j]), "an answer without a decision"))
            .or(is(due().any(|o| s.at[o] == At::Nowhere), "a committed object was deleted"))
            .or(is(!self.window && in_window > 1, "two decide at once"))
            .or(is(!self.window && due().any(|o| s.at[o] != At::Public), "a committed object lost its name"))
            .or(is(self.settled(s) && due().any(|o| s.at[o] != At::Public), "it never got its name again"))
            .or(is(
                s.public().is_some_and(|o| !s.due[o]) && self.settled(s),
                "the name shows what nobody decided",
            ))
    }

    fn settled(&self, s: &State) -> bool {
        let waste = |at: &At| matches!(at, At::Staged(_) | At::Dead(_, false));
        s.pc == [Over, Over, Idle] && s.area == [false; JOBS] && !s.at.iter().any(waste)
    }
}

fn protocol(bug: Bug, fresh: bool, window: bool) -> Protocol {
    let pauses = if crate::kill::full() { 2 } else { 1 };
    Protocol { bug, fresh, window, crashes: pauses, pauses }
}

/// Leases are lost at any moment but between a look at them and the step that relies on it: section 6 of the format.
#[test]
fn the_protocol_holds_in_every_state() {
    for fresh in [true, false] {
        let explored = explore(&protocol(Bug::None, fresh, false)).unwrap_or_else(|e| panic!("{e}"));
        println!("model: {explored}");
        assert!(explored.states > 10_000, "only {explored}");
    }
}

/// And when they are lost just there, too: nothing is deleted, and the name shows in the end what was decided.
#[test]
fn a_late_step_loses_nothing_in_the_end() {
    for fresh in [true, false] {
        let explored = explore(&protocol(Bug::None, fresh, true)).unwrap_or_else(|e| panic!("{e}"));
        println!("model: {explored}");
    }
}

#[test]
fn wrong_protocols_are_caught() {
    for (bug, fresh, window) in [
        (Bug::OnlyLooks, true, true),
        (Bug::NoSource, true, true),
        (Bug::AnswersFirst, false, false),
        (Bug::DropsForeign, false, true),
        (Bug::NoLook, false, false),
        (Bug::NoIntent, true, false),
        (Bug::NoCompare, false, false),
        (Bug::NoVerify, false, true),
    ] {
        let said = explore(&protocol(bug, fresh, window)).err();
        println!("{bug:?}: {}", said.unwrap_or_else(|| panic!("{bug:?}: nobody noticed")));
    }
}

/// Guards that spare somebody work, or end it early, and that nothing rests on: the lock is looked at again before each
/// step behind the one that decides, and whether a job lives before it is ended.
#[test]
fn second_guards_carry_nothing() {
    for bug in [Bug::LateSteps, Bug::LateSettling, Bug::AnyJob] {
        let explored = explore(&protocol(bug, false, true)).unwrap_or_else(|e| panic!("{bug:?}: {e}"));
        println!("{bug:?}: {explored}");
    }
}
