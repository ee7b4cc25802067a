//! What the holders of a domain's lock wrote down (`ONESDM_TEST_HISTORY`), and whether it can have been: no lock
//! held twice, no change of the group that is not one of theirs.
//!
//! A holding is told from all others by its version, which grows with every holder, on whatever host. Times are
//! compared on one host only, unless all have one clock.

use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Line<'a> {
    host: u64,
    version: u64,
    time: i64,
    what: &'a str,
    /// The group's number before and after a change.
    numbers: (u64, u64),
}

fn parse(line: &str) -> Option<Line<'_>> {
    let f: Vec<&str> = line.split(' ').collect();
    let number = |i: usize| f.get(i).map_or(Some(0), |n| n.parse().ok());
    Some(Line {
        what: f.first()?,
        host: number(1)?,
        version: number(2)?,
        time: f.get(3)?.parse().ok()?,
        numbers: (number(4)?, number(5)?),
    })
}

/// How many holdings and changes there were, if the group had the number `first` before all of them and has
/// `last` now, and the hosts have clocks of their own.
pub fn check(text: &str, first: u64, last: u64) -> Result<(usize, usize), String> {
    judge(text, (first, last), |host| host)
}

/// How many holdings there were, if no group was changed and all hosts have one clock.
pub fn one_clock(text: &str) -> Result<usize, String> {
    judge(text, (0, 0), |_| 0).map(|(holdings, _)| holdings)
}

fn judge(text: &str, (first, last): (u64, u64), clock: fn(u64) -> u64) -> Result<(usize, usize), String> {
    // Locks that only one host sees have no versions.
    let lines: Vec<Line<'_>> = text.lines().filter_map(parse).filter(|l| l.version > 0).collect();
    let mut holdings: BTreeMap<u64, (u64, i64, Option<i64>)> = BTreeMap::new();
    let mut changes = Vec::new();
    for l in &lines {
        match (l.what, holdings.get_mut(&l.version)) {
            ("take", None) => drop(holdings.insert(l.version, (l.host, l.time, None))),
            ("take", Some(_)) => return Err(format!("version {} was held twice: {l:?}", l.version)),
            ("give", Some((host, _, end @ None))) if *host == l.host => *end = Some(l.time),
            ("change", Some((host, _, None))) if *host == l.host => changes.push(*l),
            _ => return Err(format!("not by who had the lock then: {l:?}")),
        }
    }
    let mut free: BTreeMap<u64, i64> = BTreeMap::new();
    for (version, (host, begin, end)) in &holdings {
        let end = end.ok_or(format!("version {version} was never given back"))?;
        if free.insert(clock(*host), end).is_some_and(|before| before > *begin) {
            return Err(format!("host {host} had version {version} before it gave back the one before"));
        }
    }
    changes.sort_by_key(|l| (l.version, l.numbers));
    let mut now = first;
    for l in &changes {
        if l.numbers.0 != now || l.numbers.1 < now {
            return Err(format!("the group had number {now} before {l:?}"));
        }
        now = l.numbers.1;
    }
    if now == last { Ok((holdings.len(), changes.len())) } else { Err(format!("{now} is not {last}")) }
}

#[test]
fn a_history_that_cannot_have_been_is_caught() {
    let good = "take 0 0 90\ngive 0 0 91\ntake 1 5 100\nchange 1 5 110 7 8\ngive 1 5 120\ntake 2 6 50\nchange 2 6 55 8 9\n\
                change 2 6 56 9 11\ngive 2 6 60\ntake 1 9 130\ngive 1 9 131\n";
    assert_eq!(check(good, 7, 11), Ok((3, 3)));
    for (was, is, why) in [
        ("take 2 6 50", "take 2 5 50", "held twice"),
        ("give 1 5 120\n", "", "never given back"),
        ("give 1 5 120", "give 1 5 140", "before it gave back"),
        ("change 2 6 55 8 9", "change 2 6 55 7 8", "the group had number 8"),
        ("change 2 6 55 8 9\n", "", "the group had number 8"),
        ("change 1 5 110 7 8", "change 2 5 110 7 8", "not by who had the lock"),
        ("give 1 5 120\n", "give 1 5 120\nchange 1 5 125 8 8\n", "not by who had the lock"),
    ] {
        let bad = good.replace(was, is);
        assert_ne!(bad, good);
        let said = check(&bad, 7, 11).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
    let other = "take 1 5 100\ngive 1 5 120\ntake 2 6 119\ngive 2 6 130";
    assert_eq!(check(other, 7, 7), Ok((2, 0)));
    assert!(one_clock(other).unwrap_err().contains("before it gave back"));
    assert_eq!(one_clock(&other.replace("119", "121")), Ok(2));
    assert!(check(good, 7, 12).unwrap_err().contains("is not 12"), "somebody else's change");
}
