//! A process of our own program that outlives us: it is told to do something, and it sees when we are gone.
//! Both ends talk in lines.

use super::tool::nap;
use rustix::event::{PollFd, PollFlags};
use rustix::stdio::{stdin, stdout};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The longest line either end takes.
const LINE: usize = 1 << 16;

/// What came from the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Line(String),
    /// The other end is closed: its process ended, in whatever way, or wants no more.
    Gone,
    /// Nothing came in time.
    Quiet,
}

/// One end of a conversation.
#[derive(Debug)]
pub struct Ends {
    from: OwnedFd,
    to: Option<OwnedFd>,
    got: Vec<u8>,
}

impl Ends {
    pub fn new(from: OwnedFd, to: OwnedFd) -> Ends {
        Ends { from, to: Some(to), got: Vec::new() }
    }

    /// The end of a process that was started as a companion: standard input and output.
    pub fn standard() -> io::Result<Ends> {
        let (from, to) = (stdin().try_clone_to_owned()?, stdout().try_clone_to_owned()?);
        Ok(Ends::new(from, to))
    }

    /// Sends one line. Lines are short, so a pipe that is read takes them at once.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        let to = self.to.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        let line = format!("{line}\n");
        let mut left = line.as_bytes();
        while !left.is_empty() {
            match rustix::io::write(to, left) {
                Ok(n) => left = &left[n..],
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// No more from here.
    pub fn close(&mut self) {
        self.to = None;
    }

    pub fn hear(&mut self, patience: Duration) -> Heard {
        let end = Instant::now() + patience;
        loop {
            if let Some(n) = self.got.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.got.drain(..=n).collect();
                return Heard::Line(String::from_utf8_lossy(&line[..n]).into_owned());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Heard::Quiet;
            }
            let mut fds = [PollFd::new(&self.from, PollFlags::IN)];
            nap(&mut fds, left.min(Duration::from_millis(999)));
            if fds[0].revents().is_empty() {
                continue;
            }
            let mut buf = [0; 4096];
            match rustix::io::read(&self.from, &mut buf) {
                Ok(n) if n > 0 && self.got.len() < LINE => self.got.extend_from_slice(&buf[..n]),
                Err(rustix::io::Errno::INTR) => {}
                _ => return Heard::Gone,
            }
        }
    }
}

/// The process, and our end.
#[derive(Debug)]
pub struct Companion {
    pub ends: Ends,
    child: Child,
}

impl Companion {
    /// Starts this very program with these arguments and our environment, in a process group of its own, so
    /// that what is sent to ours does not reach it. It has to call `detach` first.
    #[expect(clippy::disallowed_methods, reason = "our own program, which must not die with us")]
    pub fn start(args: &[&OsStr]) -> io::Result<Companion> {
        let mut cmd = Command::new(Path::new("/proc/self/exe"));
        cmd.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).process_group(0);
        // The tests stop one process at a time.
        #[cfg(feature = "failpoints")]
        for name in ["KILL", "STOP", "FAIL", "LOG", "SNAP", "BUG"] {
            cmd.env_remove(format!("ONESDM_TEST_{name}"));
        }
        let mut child = super::fork::spawn_child(&mut cmd)?;
        let (to, from) = (child.stdin.take(), child.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { return Err(io::ErrorKind::BrokenPipe.into()) };
        Ok(Companion { ends: Ends::new(from.into(), to.into()), child })
    }

    /// Waits for its end, which is to come soon.
    pub fn end(mut self, patience: Duration) {
        self.ends.close();
        let until = Instant::now() + patience;
        while Instant::now() < until && matches!(self.child.try_wait(), Ok(None)) {
            nap(&mut [], Duration::from_millis(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Ends, Ends) {
        let (a, b) = (io::pipe().unwrap(), io::pipe().unwrap());
        (Ends::new(a.0.into(), b.1.into()), Ends::new(b.0.into(), a.1.into()))
    }

    #[test]
    fn lines_arrive_whole_and_an_end_is_seen() {
        let (mut one, mut two) = pair();
        assert_eq!(two.hear(Duration::from_millis(10)), Heard::Quiet);
        one.say("a").unwrap();
        one.say("b c").unwrap();
        assert_eq!(two.hear(Duration::from_secs(9)), Heard::Line("a".into()));
        assert_eq!(two.hear(Duration::from_secs(9)), Heard::Line("b c".into()));
        one.close();
        assert!(one.say("d").is_err());
        assert_eq!(two.hear(Duration::from_secs(9)), Heard::Gone);
        drop(one);
        assert!(two.say("e").is_err(), "nobody reads");
    }

    #[test]
    fn a_line_without_end_is_an_end() {
        let (mut one, mut two) = pair();
        let long = std::thread::spawn(move || one.say(&"x".repeat(1 << 20)));
        assert_eq!(two.hear(Duration::from_secs(9)), Heard::Gone);
        drop(two);
        assert!(long.join().unwrap().is_err());
    }
}
