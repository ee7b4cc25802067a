//! The steps of the protocol that `model.rs` explores: of two jobs that want one name, and of whoever ends a dead
//! one. One step here is one look or one change of storage there.

/// What there is to store: the old object and that of either job.
pub const OBJECTS: usize = 3;
pub const JOBS: usize = 2;
/// Processes: the two jobs' own, and the collector.
pub const PROCESSES: usize = 3;
pub const COLLECTOR: usize = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum At {
    Nowhere,
    Staged(usize),
    Public,
    /// A tombstone of this job, kept for a while or not.
    Dead(usize, bool),
}

/// Where a process is. Jobs go from the top to `Over`, by way of `Lost` when they fail. `Settle` and what follows
/// ends a dead job: the collector's work, and that of a job that finds one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pc {
    Slab,
    Owner,
    Begin,
    Stage,
    Look,
    Decide,
    Lock,
    Intent,
    Held,
    Compare,
    Act,
    Verify,
    Bury,
    Close,
    Unlock,
    Purge,
    End,
    Answer,
    Lost,
    Drop,
    Over,
    Idle,
    Settle(usize),
    Finish(usize),
    Record(usize),
    TakeAway(usize, bool),
    PutBack(usize),
    Free(usize),
    Delete(usize),
    Clean(usize),
    Done(usize),
}
use Pc::{
    Act, Answer, Begin, Bury, Clean, Close, Compare, Decide, Delete, Done, Drop, End, Finish, Free, Held,
    Idle, Intent, Lock, Look, Lost, Over, Owner, Purge, PutBack, Record, Settle, Slab, Stage, TakeAway,
    Unlock, Verify,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub at: [At; OBJECTS],
    /// Staging areas, and whether their intent is in them.
    pub area: [bool; JOBS],
    /// The decision is written down: that what was seen is to be replaced.
    pub record: [bool; JOBS],
    pub seen: [Option<usize>; JOBS],
    pub pc: [Pc; PROCESSES],
    /// Who has the leases, as the storage knows it.
    pub lock: Option<usize>,
    pub owner: [Option<usize>; JOBS],
    pub slab: Option<usize>,
    pub crashes: u8,
    pub pauses: u8,
    // What nobody sees: who is entitled to the name, what was decided about a job, who was told.
    pub due: [bool; OBJECTS],
    pub decided: [bool; JOBS],
    pub undone: [bool; JOBS],
    pub acked: [bool; JOBS],
}

/// How the protocol is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    None,
    /// The collector looks whether a job had decided, and takes nothing away.
    OnlyLooks,
    /// A job's object gets its name without leaving the staging area for it.
    NoSource,
    /// A job answers before it decided.
    AnswersFirst,
    /// Who ends a dead job takes what lies where its object was staged for the one that it replaces.
    DropsForeign,
    /// A job that has waited for the lock does not ask whether it has it still.
    NoLook,
    /// Nor whether it lives and its intent is there.
    NoIntent,
    /// Who lost the lock after the step that decides goes on with the others.
    LateSteps,
    /// Who ends a dead job does not ask whether it still has the lock.
    LateSettling,
    /// A job does not compare what has the name with what it saw.
    NoCompare,
    /// A job does not compare what came out with what it meant to replace.
    NoVerify,
    /// The collector does not ask whether a job lives.
    AnyJob,
}

pub struct Protocol {
    pub bug: Bug,
    /// The name is free at first.
    pub fresh: bool,
    /// A lease may be lost between a look at it and the change that relies on it.
    pub window: bool,
    pub crashes: u8,
    pub pauses: u8,
}

/// A job's own object.
pub fn mine(job: usize) -> usize {
    job + 1
}

impl State {
    pub fn public(&self) -> Option<usize> {
        self.at.iter().position(|at| *at == At::Public)
    }
    fn staged(&self, job: usize) -> Option<usize> {
        self.at.iter().position(|at| *at == At::Staged(job))
    }
    pub fn forget(&mut self, who: usize) {
        let free = |lease: &mut Option<usize>| *lease = lease.filter(|p| *p != who);
        free(&mut self.lock);
        free(&mut self.slab);
        self.owner.iter_mut().for_each(free);
    }
    /// Exchanges what is staged with what has the name, if both are there.
    fn exchange(&mut self, job: usize) -> bool {
        let (Some(a), Some(b)) = (self.staged(job), self.public()) else { return false };
        self.at.swap(a, b);
        true
    }
    fn delete(&mut self, doomed: impl Fn(At) -> bool) {
        for at in self.at.iter_mut().filter(|at| doomed(**at)) {
            *at = At::Nowhere;
        }
    }
    #[expect(clippy::unnecessary_wraps, reason = "what a step answers")]
    fn to(mut self, who: usize, pc: Pc) -> Option<State> {
        self.pc[who] = pc;
        if matches!(pc, Over | Idle) {
            self.forget(who);
        }
        Some(self)
    }
    /// From now on the job's object is what the name is to show.
    fn falls_due(&mut self, job: usize) {
        self.due = [false; OBJECTS];
        self.due[mine(job)] = true;
        self.decided[job] = true;
    }
}

impl Protocol {
    /// One step of a job; `None` while it waits.
    pub fn job(&self, now: &State, j: usize) -> Option<State> {
        let mut s = now.clone();
        let holds = |bug| s.lock == Some(j) || self.bug == bug;
        let (looks, goes_on) = (holds(Bug::NoLook), holds(Bug::LateSteps));
        match s.pc[j] {
            Slab if s.slab.is_none() => {
                s.slab = Some(j);
                let other = JOBS - 1 - j;
                if s.area[other] && s.owner[other].is_none() {
                    s.owner[other] = Some(j);
                    return s.to(j, Settle(other));
                }
                s.to(j, Owner)
            }
            Owner if s.owner[j].is_none() => {
                s.owner[j] = Some(j);
                s.to(j, Begin)
            }
            Begin => {
                s.area[j] = true;
                s.to(j, Stage)
            }
            Stage | Decide if !s.area[j] => s.to(j, Lost),
            Stage => {
                s.at[mine(j)] = At::Staged(j);
                s.to(j, Look)
            }
            Look => {
                s.seen[j] = s.public();
                s.to(j, Decide)
            }
            Decide => {
                s.record[j] = true;
                s.acked[j] |= self.bug == Bug::AnswersFirst;
                s.to(j, Lock)
            }
            Lock if s.lock.is_none() => {
                s.lock = Some(j);
                s.to(j, Intent)
            }
            // The owner's lease and the intent, then the lock, then what is there.
            Intent => {
                let lives = (s.owner[j] == Some(j) && s.area[j]) || self.bug == Bug::NoIntent;
                s.to(j, if lives { Held } else { Lost })
            }
            Held => s.to(j, if looks { Compare } else { Lost }),
            Compare => {
                let same = s.public() == s.seen[j] || self.bug == Bug::NoCompare;
                let fits = s.staged(j) == Some(mine(j)) && same;
                s.to(j, if fits { Act } else { Lost })
            }
            Act => self.act(s, j),
            Verify if s.staged(j) == s.seen[j] || self.bug == Bug::NoVerify => s.to(j, Bury),
            // Somebody else's came out: it gets its name again. Or it was put back already.
            Verify => {
                if s.staged(j) != Some(mine(j)) {
                    s.exchange(j);
                }
                s.to(j, Lost)
            }
            // Who lost the lock leaves the rest to whoever has it.
            Bury | Close if !goes_on => s.to(j, Over),
            Bury => {
                if let Some(old) = s.staged(j) {
                    s.at[old] = At::Dead(j, false);
                }
                s.to(j, Close)
            }
            Close => {
                s.record[j] = false;
                s.to(j, Unlock)
            }
            Unlock | Lost => {
                s.lock = s.lock.filter(|p| *p != j);
                // What cannot be told is left as it is.
                let mine = [Some(mine(j)), None].contains(&s.staged(j));
                let next = if s.pc[j] == Unlock { Purge } else { Drop };
                s.to(j, if mine { next } else { Over })
            }
            Purge => {
                s.delete(|at| at == At::Dead(j, false));
                s.to(j, End)
            }
            End | Drop => {
                s.delete(|at| at == At::Staged(j));
                (s.area[j], s.record[j]) = (false, false);
                let next = if s.pc[j] == End { Answer } else { Over };
                s.to(j, next)
            }
            Answer => {
                s.acked[j] = true;
                s.to(j, Over)
            }
            _ => self.settles(s, j),
        }
    }

    /// The step that decides.
    fn act(&self, mut s: State, j: usize) -> Option<State> {
        let there = self.bug == Bug::NoSource || s.staged(j) == Some(mine(j));
        match (s.seen[j], s.public()) {
            _ if !there => s.to(j, Lost),
            (None, None) => {
                s.at[mine(j)] = At::Public;
                s.falls_due(j);
                s.to(j, Bury)
            }
            (Some(meant), Some(old)) => {
                if meant == old {
                    s.falls_due(j);
                }
                if self.bug == Bug::NoSource {
                    s.at[old] = At::Staged(j);
                    s.at[mine(j)] = At::Public;
                } else {
                    s.exchange(j);
                }
                s.to(j, Verify)
            }
            _ => s.to(j, Lost),
        }
    }

    /// Steps of the collector: which of several jobs it takes up next is its choice.
    pub fn collector(&self, now: &State) -> Vec<State> {
        let me = COLLECTOR;
        if now.pc[me] == Idle {
            let left = |j: &usize| now.area[*j] || now.at.contains(&At::Dead(*j, false));
            let dead = |j: &usize| now.owner[*j].is_none() || self.bug == Bug::AnyJob;
            let take = |j: usize| {
                let mut s = now.clone();
                s.owner[j] = Some(me);
                s.to(me, Settle(j))
            };
            return (0..JOBS).filter(left).filter(dead).filter_map(take).collect();
        }
        self.settles(now.clone(), me).into_iter().collect()
    }

    fn settles(&self, mut s: State, me: usize) -> Option<State> {
        let held = s.lock == Some(me) || self.bug == Bug::LateSettling;
        match s.pc[me] {
            Settle(j) if s.lock.is_none() => {
                s.lock = Some(me);
                let (staged, public) = (s.staged(j), s.public() == Some(mine(j)));
                let foreign = staged.is_some() && self.bug != Bug::DropsForeign;
                let next = if !s.record[j] {
                    TakeAway(j, false)
                } else if !public {
                    TakeAway(j, staged != Some(mine(j)))
                } else if foreign && staged != s.seen[j] {
                    PutBack(j)
                } else {
                    Finish(j)
                };
                s.to(me, next)
            }
            Finish(_) | Record(_) | TakeAway(..) | PutBack(_) if !held => {
                // It noticed: nothing more is done.
                let next = if me == COLLECTOR { Idle } else { Lost };
                s.to(me, next)
            }
            // What a late job pushed out gets its name again, unless that did so itself.
            PutBack(j) => {
                if s.public() == Some(mine(j)) {
                    s.exchange(j);
                }
                s.to(me, TakeAway(j, false))
            }
            Finish(j) => {
                if let (Some(old), true) = (s.staged(j), s.staged(j) == s.seen[j]) {
                    s.at[old] = At::Dead(j, false);
                }
                s.to(me, Record(j))
            }
            Record(j) => {
                s.record[j] = false;
                s.to(me, Free(j))
            }
            // It was exchanged at this very moment: the next look puts it back.
            TakeAway(j, false)
                if s.record[j]
                    && s.staged(j).is_some_and(|o| o != mine(j))
                    && self.bug != Bug::DropsForeign =>
            {
                let next = if me == COLLECTOR { Idle } else { Lost };
                s.to(me, next)
            }
            TakeAway(j, keep) => {
                if let (Some(o), false) = (s.staged(j), self.bug == Bug::OnlyLooks) {
                    s.at[o] = At::Dead(j, keep);
                }
                s.undone[j] |= !s.decided[j];
                s.to(me, Free(j))
            }
            Free(j) => {
                s.lock = s.lock.filter(|p| *p != me);
                s.to(me, Delete(j))
            }
            Delete(j) => {
                s.delete(|at| at == At::Dead(j, false));
                s.to(me, Clean(j))
            }
            Clean(j) => {
                s.delete(|at| at == At::Staged(j));
                (s.area[j], s.record[j]) = (false, false);
                s.to(me, Done(j))
            }
            Done(_) if me == COLLECTOR => s.to(me, Idle),
            Done(j) => {
                s.owner[j] = s.owner[j].filter(|p| *p != me);
                s.to(me, Owner)
            }
            _ => None,
        }
    }

    /// Between the look at the lock and the last step that relies on it.
    pub fn in_window(pc: Pc) -> bool {
        matches!(pc, Compare | Act | Verify)
    }
}
