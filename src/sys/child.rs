//! A child that we talk to through pipes for as long as it lives. It dies with this value, and with us.

use super::effect::{Effect, step};
use super::tool::{Run, Running, STDERR_TAIL, Tool, ToolError, Tools, clean, nap};
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// What a pipe holds, 64 KiB unless asked for more.
const PIPE: usize = 1 << 20;

/// A running program; its pipes never block.
#[derive(Debug)]
pub struct Child {
    running: Running,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    tail: Vec<u8>,
}

impl Tools {
    /// Starts `tool` and comes back. Of `opts` the environment, the directory and the limits count.
    pub fn start(&self, tool: Tool, args: &[&OsStr], opts: &Run<'_>) -> Result<Child, ToolError> {
        let path = self.path(tool)?;
        let io = |what| move |source| ToolError::Io { tool, what, source };
        tracing::debug!(%tool, ?args, "tool starts");
        let start = || Running::lasting(path, args, opts);
        let mut running = step(Effect::Child, opts.writes, start).map_err(io("starting it"))?;
        let stdin = running.child.stdin.take().map(OwnedFd::from);
        let stdout = running.child.stdout.take().map(OwnedFd::from);
        let stderr = running.child.stderr.take().map(OwnedFd::from);
        for fd in [&stdin, &stdout, &stderr].into_iter().flatten() {
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| io("preparing its pipes")(e.into()))?;
        }
        for fd in [&stdin, &stdout].into_iter().flatten() {
            // Fewer turns between two programs that stream; the account may have used up its pages.
            let _ = rustix::pipe::fcntl_setpipe_size(fd, PIPE);
        }
        Ok(Child { running, stdin, stdout, stderr, tail: Vec::new() })
    }
}

impl Child {
    /// Writes what the pipe takes; `WouldBlock` when that is nothing.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fd = self.stdin.as_ref().ok_or(io::ErrorKind::BrokenPipe)?;
        Ok(rustix::io::write(fd, bytes)?)
    }

    /// Reads what is there: 0 at the end, `WouldBlock` when nothing came yet.
    pub fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.listen();
        let Some(fd) = &self.stdout else { return Ok(0) };
        Ok(rustix::io::read(fd, buf)?)
    }

    /// No more input for the child.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until something can be read (or written, when `writes`), here or from `bell`, at most `d`.
    pub fn wait(&mut self, writes: bool, bell: Option<BorrowedFd<'_>>, d: Duration) {
        let own = [&self.stdout, &self.stderr].into_iter().flatten().map(OwnedFd::as_fd);
        let reads = own.chain(bell).map(|f| PollFd::from_borrowed_fd(f, PollFlags::IN));
        let to = self.stdin.iter().filter(|_| writes).map(|f| PollFd::new(f, PollFlags::OUT));
        let mut fds: Vec<_> = reads.chain(to).collect();
        nap(&mut fds, d.min(Duration::from_millis(999)));
    }

    /// Its exit status and the end of what it said, once it has ended or `patience` is over; a child that
    /// is still there then is killed. `None`: a signal.
    pub fn end(&mut self, patience: Duration) -> (Option<i32>, String) {
        self.stdin = None;
        let until = Instant::now() + patience;
        loop {
            self.listen();
            match self.running.child.try_wait() {
                Ok(Some(status)) => {
                    self.listen();
                    return (status.code(), clean(&self.tail));
                }
                Ok(None) if Instant::now() < until => nap(&mut [], Duration::from_millis(2)),
                _ => {
                    self.running.stop();
                    self.listen();
                    return (None, clean(&self.tail));
                }
            }
        }
    }

    /// Keeps the end of what the child says.
    fn listen(&mut self) {
        let mut buf = [0; 4096];
        while let Some(fd) = &self.stderr {
            match rustix::io::read(fd, &mut buf) {
                Ok(0) => self.stderr = None,
                Ok(n) => {
                    self.tail.extend_from_slice(&buf[..n]);
                    self.tail.drain(..self.tail.len().saturating_sub(STDERR_TAIL));
                }
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Cancel;
    use std::collections::BTreeMap;

    fn start(path: &str, args: &[&str], env: &[(&str, &OsStr)]) -> Child {
        let tools = Tools::new(BTreeMap::from([(Tool::MkSwap, path.into())])).unwrap();
        let args: Vec<_> = args.iter().map(OsStr::new).collect();
        let cancel = Cancel::default();
        tools.start(Tool::MkSwap, &args, &Run { env, ..Run::new(Duration::ZERO, &cancel) }).unwrap()
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let asked = std::thread::spawn(|| start("/usr/bin/cat", &[], &[]));
        let mut cat = asked.join().unwrap();
        // The signal of a thread's death comes within its exit.
        nap(&mut [], Duration::from_millis(50));
        assert_eq!(cat.write(b"still here").unwrap(), 10);
        cat.close_stdin();
        assert_eq!(read_all(&mut cat), b"still here");
        assert_eq!(cat.end(Duration::from_secs(9)), (Some(0), String::new()));
    }

    fn read_all(child: &mut Child) -> Vec<u8> {
        let (mut out, mut buf, until) = (Vec::new(), [0; 999], Instant::now() + Duration::from_secs(20));
        while Instant::now() < until {
            match child.read(&mut buf) {
                Ok(0) => return out,
                Ok(n) => out.extend_from_slice(&buf[..n]),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    child.wait(false, None, Duration::from_millis(50));
                }
                Err(e) => panic!("{e}"),
            }
        }
        panic!("no end of output")
    }

    #[test]
    fn a_child_is_talked_to_and_ends() {
        let mut cat = start("/usr/bin/cat", &[], &[]);
        assert_eq!(cat.write(b"hello").unwrap(), 5);
        let mut buf = [0; 9];
        while cat.read(&mut buf).is_err() {
            cat.wait(false, None, Duration::from_millis(50));
        }
        assert_eq!(&buf[..5], b"hello");
        cat.close_stdin();
        assert_eq!(read_all(&mut cat), b"");
        assert_eq!(cat.end(Duration::from_secs(9)), (Some(0), String::new()));
        assert!(cat.write(b"x").is_err());
    }

    #[test]
    fn a_pipe_nobody_reads_does_not_block_and_a_stubborn_child_is_killed() {
        let mut sleep = start("/usr/bin/sleep", &["600"], &[]);
        let block = vec![0; 1 << 20];
        let full = (0..100).find_map(|_| sleep.write(&block).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(sleep.end(Duration::from_millis(20)), (None, String::new()));
    }

    #[test]
    fn status_errors_and_the_environment_of_the_call() {
        let mut ls = start("/usr/bin/ls", &["/no/such"], &[]);
        assert_eq!(read_all(&mut ls), b"");
        let (status, said) = ls.end(Duration::from_secs(9));
        assert!(status == Some(2) && said.contains("No such file"), "{status:?} {said}");
        let mut env =
            start("/usr/bin/printenv", &["SSH_AUTH_SOCK"], &[("SSH_AUTH_SOCK", OsStr::new("/a b"))]);
        assert_eq!(read_all(&mut env), b"/a b\n");
    }
}
