//! Another driver of the same remotes tree, called as oned would call it: by its path, with our environment,
//! which is oned's. It may be anybody's script; what it is given goes into arguments and its input.

#![expect(unsafe_code, reason = "a child is prepared between fork and exec")]

use super::effect::{Effect, step};
use super::fork::{close_on_exec_from_3, spawn_child};
use super::tool::clean;
use super::{Cancel, Class};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::{self, Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Of what it says, the end.
const SAID: usize = 4096;
/// How long a driver that was asked to stop may take.
const GRACE: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error("{} does not exist or is no program", .0.display())]
    Missing(PathBuf),
    #[error("{} ended with status {status}: {said}", path.display())]
    Failed { path: PathBuf, status: i32, said: String },
    #[error("{} was killed by signal {signal}: {said}", path.display())]
    Killed { path: PathBuf, signal: i32, said: String },
    #[error("{} was stopped on request", .0.display())]
    Cancelled(PathBuf),
    #[error("{}: {what}: {source}", path.display())]
    Io { path: PathBuf, what: &'static str, source: io::Error },
}

impl DriverError {
    pub fn class(&self) -> Class {
        match self {
            DriverError::Missing(_) => Class::NotFound,
            DriverError::Cancelled(_) => Class::Cancelled,
            DriverError::Failed { .. } | DriverError::Killed { .. } | DriverError::Io { .. } => {
                Class::Internal
            }
        }
    }
}

/// Runs it to its end. Its answer is nobody's.
#[expect(clippy::disallowed_methods, reason = "beside `tool` the one place that starts programs")]
pub fn call(path: &Path, args: &[&OsStr], input: &[u8], cancel: &Cancel) -> Result<(), DriverError> {
    if !super::tool::is_executable(path) {
        return Err(DriverError::Missing(path.to_owned()));
    }
    let io = |what| move |source| DriverError::Io { path: path.to_owned(), what, source };
    let mut cmd = Command::new(path);
    cmd.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let prepare = || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        close_on_exec_from_3();
        super::signal::unblock_all()?;
        Ok(())
    };
    // SAFETY: between fork and exec `prepare` makes system calls only: no allocation, no lock, no panic.
    unsafe { cmd.pre_exec(prepare) };
    let mut child = step(Effect::Child, &[], || spawn_child(&mut cmd)).map_err(io("starting it"))?;
    let (mut stdin, stderr) = (child.stdin.take(), child.stderr.take());
    std::thread::scope(|s| {
        s.spawn(move || {
            // Who does not read it has no use for it.
            let _ = stdin.as_mut().map(|pipe| pipe.write_all(input));
        });
        let said = s.spawn(move || stderr.map(tail).unwrap_or_default());
        let mut asked: Option<Instant> = None;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(io("waiting for it"))? {
                break status;
            }
            if cancel.is_requested() && asked.is_none() {
                asked = Some(Instant::now());
                if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                    let _ = kill_process(pid, Signal::TERM);
                }
            }
            if asked.is_some_and(|t| t.elapsed() > GRACE) {
                let _ = child.kill();
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        if status.success() {
            return Ok(());
        }
        if asked.is_some() {
            return Err(DriverError::Cancelled(path.to_owned()));
        }
        let (path, said) = (path.to_owned(), said.join().unwrap_or_default());
        Err(match status.code() {
            Some(status) => DriverError::Failed { path, status, said },
            None => DriverError::Killed { path, signal: status.signal().unwrap_or(0), said },
        })
    })
}

/// The end of what it says, in one line.
fn tail(mut from: impl Read) -> String {
    let (mut kept, mut buf) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = from.read(&mut buf) {
        kept.extend_from_slice(&buf[..n]);
        kept.drain(..kept.len().saturating_sub(SAID));
    }
    clean(&kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn script(dir: &Path, text: &str) -> PathBuf {
        let path = dir.join("premigrate");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn a_driver_gets_its_arguments_and_input_and_its_failure_is_told() {
        let t = tempfile::tempdir().unwrap();
        let out = t.path().join("out");
        let (cancel, args) = (Cancel::default(), [OsStr::new("a b"), OsStr::new("$x"), out.as_os_str()]);
        let path = script(t.path(), "echo \"$1|$2|$(cat)\" > \"$3\"");
        call(&path, &args, b"doc", &cancel).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "a b|$x|doc\n");
        // It need not read, and may say much.
        let path = script(t.path(), "seq 5000 >&2; echo the reason >&2; exit 3");
        let e = call(&path, &[], &vec![0; 1 << 20], &cancel).unwrap_err();
        assert!(e.to_string().contains("status 3") && e.to_string().ends_with("the reason"), "{e}");
        assert!(e.to_string().len() < 5000);
        let e = call(&t.path().join("none"), &[], b"", &cancel).unwrap_err();
        assert_eq!(e.class(), Class::NotFound);
        let path = script(t.path(), "exec sleep 100");
        let stop = cancel.clone();
        let waits = std::thread::spawn(move || call(&path, &[], b"", &cancel));
        std::thread::sleep(Duration::from_millis(100));
        stop.request();
        assert_eq!(waits.join().unwrap().unwrap_err().class(), Class::Cancelled);
    }
}
