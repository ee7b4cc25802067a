//! Whether what several callers were answered about the images of one datastore can be told as the work of one
//! caller, call after call, each at some moment between its beginning and its answer (linearizability). A call that
//! was killed may count at any moment after its beginning, or not at all. Wing and Gong's search, with a memory.

use std::collections::HashSet;
use std::fmt;

pub const IMAGES: usize = 3;

/// A content, by number.
pub type Content = u8;

/// What a call did, as far as its answer tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// `cp`: the image has this content.
    Write(usize, Content),
    /// `clone`, of the second image.
    Clone(usize, usize),
    Remove(usize),
    /// `export`, or a look: the content, none for an image that is not there.
    Read(usize, Option<Content>),
}

/// A call, with times of one clock.
#[derive(Clone, Debug)]
pub struct Event {
    pub host: usize,
    pub from: u64,
    /// Never, when it was killed.
    pub to: Option<u64>,
    pub deed: Deed,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.to.map_or("killed".to_owned(), |to| to.to_string());
        write!(f, "host {} {:>8} to {end:>8} {:?}", self.host, self.from, self.deed)
    }
}

/// Each image's content, and the image it was cloned of: the same clone again is answered and changes nothing.
type State = [Option<(Content, Option<usize>)>; IMAGES];

/// What a deed makes of it; `None` when the answer does not fit.
fn after(mut s: State, deed: Deed) -> Option<State> {
    match deed {
        Deed::Write(n, content) => s[n] = Some((content, None)),
        Deed::Clone(n, of) => {
            let (content, _) = s[of]?;
            if s[n].and_then(|(_, source)| source) != Some(of) {
                s[n] = Some((content, Some(of)));
            }
        }
        Deed::Remove(n) => s[n] = None,
        Deed::Read(n, seen) if s[n].map(|(content, _)| content) != seen => return None,
        Deed::Read(..) => {}
    }
    Some(s)
}

/// Checks a history that begins with no image. The error shows it.
pub fn check(events: &[Event]) -> Result<(), String> {
    assert!(events.len() <= 128, "{} events", events.len());
    let (mut todo, mut known) = (vec![(0_u128, State::default())], HashSet::new());
    let mut furthest = 0_u128;
    while let Some((done, state)) = todo.pop() {
        let open = || events.iter().enumerate().filter(|(n, _)| done & (1 << n) == 0);
        // Whatever comes next began before anything else that is open was answered.
        let Some(first) = open().filter_map(|(_, e)| e.to).min() else { return Ok(()) };
        if done.count_ones() > furthest.count_ones() {
            furthest = done;
        }
        for (n, e) in open().filter(|(_, e)| e.from <= first) {
            if let Some(next) = after(state, e.deed)
                && known.insert((done | 1 << n, next))
            {
                todo.push((done | 1 << n, next));
            }
        }
    }
    let mut lines: Vec<_> = events.iter().enumerate().collect();
    lines.sort_by_key(|(_, e)| e.from);
    let told =
        |(n, e): (usize, &Event)| format!("{} {e}\n", if furthest & (1 << n) == 0 { "   " } else { "   ok" });
    Err(format!(
        "no order of these calls explains their answers:\n{}",
        lines.into_iter().map(told).collect::<String>()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(from: u64, to: u64, deed: Deed) -> Event {
        Event { host: 0, from, to: Some(to), deed }
    }

    fn killed(from: u64, deed: Deed) -> Event {
        Event { host: 1, from, to: None, deed }
    }

    #[test]
    fn histories_are_told_apart() {
        use Deed::{Clone, Read, Remove, Write};
        let fine: [&[Event]; 6] = [
            &[],
            &[at(0, 9, Write(0, 1)), at(1, 2, Read(0, None)), at(3, 4, Read(0, Some(1)))],
            &[at(0, 9, Write(0, 1)), at(0, 9, Write(0, 2)), at(10, 11, Read(0, Some(1)))],
            &[killed(0, Write(0, 1)), at(5, 6, Read(0, None)), at(7, 8, Read(0, Some(1)))],
            &[at(0, 1, Write(0, 1)), at(2, 3, Clone(1, 0)), at(4, 5, Remove(0)), at(6, 7, Read(1, Some(1)))],
            // The same clone again.
            &[
                at(0, 1, Write(0, 1)),
                at(2, 3, Clone(1, 0)),
                at(4, 5, Write(0, 2)),
                at(6, 7, Clone(1, 0)),
                at(8, 9, Read(1, Some(1))),
            ],
        ];
        for events in fine {
            check(events).unwrap();
        }
        let wrong: [&[Event]; 6] = [
            // A stale read, one from the future, one of a removed image, a lost write, a write that came and went.
            &[at(0, 1, Write(0, 1)), at(2, 3, Read(0, None))],
            &[at(0, 1, Read(0, Some(1))), at(2, 3, Write(0, 1))],
            &[at(0, 1, Write(0, 1)), at(2, 3, Remove(0)), at(4, 5, Read(0, Some(1)))],
            &[at(0, 1, Write(0, 1)), at(2, 3, Write(0, 2)), at(4, 5, Read(0, Some(1)))],
            &[killed(0, Write(0, 1)), at(5, 6, Read(0, Some(1))), at(7, 8, Read(0, None))],
            // Of two images: the clone is of what was removed before it began.
            &[at(0, 1, Write(0, 1)), at(2, 3, Remove(0)), at(4, 5, Clone(1, 0))],
        ];
        for events in wrong {
            assert!(check(events).is_err(), "{events:?}");
        }
    }
}
