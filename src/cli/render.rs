//! All that is printed. To oned: the answer on stdout exactly, log lines of its protocol and at most
//! one other line on stderr, which is what the user will read.

use crate::verb::one_line;
use std::io::{self, IsTerminal as _, Write as _};

/// A verb's answer and a newline.
pub fn answer(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// Lines for people, or a JSON document and a newline.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    if !text.ends_with('\n') && !text.is_empty() {
        out.write_all(b"\n")?;
    }
    out.flush()
}

pub fn json<T: serde::Serialize>(value: &T) -> anyhow::Result<()> {
    Ok(print(&serde_json::to_string_pretty(value)?)?)
}

/// A line of the log protocol. `text` never begins with a digit, which would be taken as an object.
pub fn log(level: &str, verb: &str, text: &str) {
    let _ = writeln!(io::stderr(), "{level}: {verb}: {}", fold(text));
}

/// The one line of a failure.
pub fn failure(e: &anyhow::Error) {
    let _ = writeln!(io::stderr(), "{}", failure_line(&one_line(e)));
}

/// The one line of a process that hangs in a call of the system and is ended from beside it.
pub fn given_up(why: &str) {
    let text = format!(
        "{why}, and its storage does not answer; what it left is garbage for `onesdm gc` once the storage is back"
    );
    let _ = writeln!(io::stderr(), "{}", failure_line(&text));
}

/// Folded into one line that oned takes neither for a log line nor for "no text".
pub fn failure_line(text: &str) -> String {
    let text = fold(text);
    let is_log = ["ERROR", "INFO", "WARN", "DEBUG"]
        .iter()
        .any(|l| text.strip_prefix(l).is_some_and(|t| t.starts_with(':')));
    if text.is_empty() || text.starts_with('-') || is_log { format!("onesdm: {text}") } else { text }
}

/// Control characters and runs of white space become one blank.
fn fold(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut out = String::with_capacity(clean.len());
    for word in clean.split_whitespace() {
        if !out.is_empty() {
            out.push(' ');
        }
        out.push_str(word);
    }
    out
}

pub fn is_broken_pipe(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::BrokenPipe
}

/// A line that on a terminal takes the place of the one before.
pub fn progress(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        write!(out, "\r\x1b[K{line}")?;
    } else {
        writeln!(out, "{line}")?;
    }
    out.flush()
}

pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The whole of a terminal: lines are overwritten in place, so that it does not flicker.
pub fn screen(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\r\n"))?;
    out.flush()
}

/// A panic is our bug; oned still gets one line and no trace.
pub fn one_line_panics() {
    std::panic::set_hook(Box::new(|info| {
        let p = info.payload();
        let text =
            p.downcast_ref::<&str>().copied().or_else(|| p.downcast_ref::<String>().map(String::as_str));
        let what = text.unwrap_or("unknown");
        let at = info.location().map(ToString::to_string).unwrap_or_default();
        let text = format!("internal error at {at}: {what}; please report it");
        let _ = writeln!(io::stderr(), "{}", failure_line(&text));
        std::process::exit(70);
    }));
}

/// Rows under headings, columns as wide as their widest cell.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |i: usize| {
        let cells = rows.iter().map(|r| r.get(i).map_or(0, |c| c.chars().count()));
        cells.chain([headings[i].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut headings.iter().copied());
    for r in rows {
        out += &line(&mut r.iter().map(String::as_str));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Contract 1.5: what the driver manager does with a line of stderr.
    fn is_log_line(line: &str) -> bool {
        ["ERROR", "INFO", "WARN", "DEBUG"].iter().any(|l| {
            line.trim()
                .strip_prefix(l)
                .and_then(|t| t.strip_prefix(':'))
                .is_some_and(|t| t.starts_with(char::is_whitespace))
        })
    }

    proptest! {
        #[test]
        fn a_failure_is_one_line_that_users_see(text in "(ERROR|INFO|-|- )?(:)?[ \\n\\t]?\\PC{0,40}[\\r\\n]?\\PC{0,10}") {
            let line = failure_line(&text);
            prop_assert!(!line.contains(['\n', '\r']));
            prop_assert!(!line.starts_with('-') && !line.is_empty());
            prop_assert!(!is_log_line(&line), "{line:?}");
        }
    }

    #[test]
    fn tables_line_up() {
        let t = table(&["A", "LONG"], &[vec!["xyz".into(), "1".into()]]);
        assert_eq!(t, "A    LONG\nxyz  1\n");
    }
}
