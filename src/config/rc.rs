//! Stock rc files. Shell drivers source them; here only plain assignments count, nothing is expanded
//! and nothing run, and every other line is reported.

use std::collections::BTreeMap;

/// What an rc file assigns.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Assignments {
    /// By name: line and value of the last assignment.
    pub values: BTreeMap<String, (usize, String)>,
    /// Lines that are no plain assignment, counted from 1.
    pub skipped: Vec<usize>,
}

/// Reads `[export] NAME=VALUE # comment` lines. A value is a bare word, or text in single quotes, or
/// in double quotes without `$`, backquote and backslash.
pub fn parse_rc(text: &str) -> Assignments {
    let mut out = Assignments::default();
    for (line, content) in (1..).zip(text.lines()) {
        match content.trim() {
            "" => {}
            c if c.starts_with('#') => {}
            c => match assignment(c) {
                Some((name, value)) => {
                    out.values.insert(name.to_owned(), (line, value.to_owned()));
                }
                None => out.skipped.push(line),
            },
        }
    }
    out
}

fn assignment(line: &str) -> Option<(&str, &str)> {
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with([' ', '\t']) => rest.trim_start(),
        _ => line,
    };
    let (name, rest) = line.split_once('=')?;
    let named = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let (value, rest) = match rest.as_bytes().first() {
        Some(b'\'') => rest[1..].split_once('\'')?,
        Some(b'"') => rest[1..].split_once('"').filter(|(v, _)| !v.contains(['$', '`', '\\']))?,
        _ => {
            let end = rest.find([' ', '\t']).unwrap_or(rest.len());
            let (value, rest) = rest.split_at(end);
            // What a shell would treat as more than a word.
            let special = value.contains(|c| "$`\\\"'()<>|&;*?[]{}!".contains(c)) || value.starts_with('~');
            (!special).then_some((value, rest))?
        }
    };
    let tail = rest.trim_start();
    let ends = tail.is_empty() || (tail.starts_with('#') && tail.len() < rest.len());
    (named && ends).then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn plain_assignments_count_and_the_rest_is_reported() {
        for (line, want) in [
            ("A=b", Some(("A", "b"))),
            ("  export A=b  ", Some(("A", "b"))),
            ("export\tA=", Some(("A", ""))),
            ("exportA=b", Some(("exportA", "b"))),
            ("A=\"b c\" # why", Some(("A", "b c"))),
            ("A='$b \"c\"'", Some(("A", "$b \"c\""))),
            ("A=b # c", Some(("A", "b"))),
            ("A=b#c", Some(("A", "b#c"))),
            ("A=x=y,-F", Some(("A", "x=y,-F"))),
            ("LIBVIRT_URI=qemu:///system", Some(("LIBVIRT_URI", "qemu:///system"))),
            ("A=\"b\"#c", None),
            ("A=\"b\"c", None),
            ("A=$B", None),
            ("A=\"$B\"", None),
            ("A=`id`", None),
            ("A=$(id)", None),
            ("A=(1 2)", None),
            ("A=b c", None),
            ("A=b; rm", None),
            ("A=\"b", None),
            ("A=b\\", None),
            ("A=~/x", None),
            ("A = b", None),
            ("1A=b", None),
            ("A-B=c", None),
            ("=b", None),
            ("if true; then", None),
            ("source x", None),
            ("declare -A X", None),
        ] {
            assert_eq!(assignment(line.trim()), want, "{line}");
        }
        let rc = parse_rc("# c\r\n\nA=1\r\nfi\nA=2\n");
        assert_eq!(rc.values["A"], (5, "2".to_owned()));
        assert_eq!(rc.skipped, [4]);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}|([A-Z =\"'#$\\\\]|export ){0,30}") {
            parse_rc(&text);
        }
    }
}
