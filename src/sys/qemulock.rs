//! Whether a qemu process has an image open, seen from the byte ranges it locks.

#![expect(unsafe_code, reason = "fcntl F_OFD_GETLK has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// Where qemu locks, 64 bytes each, read-only users too: what it does with the image, and what others may not.
const ALL: [(libc::off_t, libc::off_t); 2] = [(100, 64), (200, 64)];
/// What those do who write to the image, or change its size.
const WRITES: [(libc::off_t, libc::off_t); 2] = [(101, 1), (103, 1)];

/// Whether another open description holds a lock on qemu's bytes: a running machine, or a `qemu-img` at
/// work. Takes no lock, so it disturbs nobody; the answer may be old when it arrives. A file opened
/// read-only will do. Errors are those of the file system: one without locks cannot say.
pub fn qemu_holds(file: &File) -> io::Result<bool> {
    holds(file, &ALL)
}

/// The same of those only who may write to it.
pub fn qemu_writes(file: &File) -> io::Result<bool> {
    holds(file, &WRITES)
}

fn holds(file: &File, ranges: &[(libc::off_t, libc::off_t)]) -> io::Result<bool> {
    for (start, len) in ranges.iter().copied() {
        // SAFETY: `flock` is a plain C struct for which all zeroes is a valid value.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        #[expect(clippy::cast_possible_truncation, reason = "both constants are below 3")]
        {
            lock.l_type = libc::F_WRLCK as libc::c_short;
            lock.l_whence = libc::SEEK_SET as libc::c_short;
        }
        lock.l_start = start;
        lock.l_len = len;
        // SAFETY: the descriptor is open for the call; the kernel writes one `flock` through the pointer.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if libc::c_int::from(lock.l_type) != libc::F_UNLCK {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    fn lock(file: &File, kind: libc::c_int, start: i64, len: i64) {
        // SAFETY: as in `qemu_holds`.
        let mut l: libc::flock = unsafe { std::mem::zeroed() };
        l.l_type = libc::c_short::try_from(kind).unwrap();
        (l.l_start, l.l_len) = (start, len);
        // SAFETY: as in `qemu_holds`; the kernel only reads the struct.
        assert_eq!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const l) }, 0);
    }

    #[test]
    fn locks_of_others_are_seen_in_both_ranges_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, [0; 512]).unwrap();
        let ours = File::open(&path).unwrap();
        for (start, len, kind, seen) in [
            (0, 100, libc::F_WRLCK, false),
            (100, 1, libc::F_RDLCK, true),
            (163, 1, libc::F_RDLCK, true),
            (164, 36, libc::F_WRLCK, false),
            (200, 1, libc::F_WRLCK, true),
            (263, 1, libc::F_RDLCK, true),
            (264, 1000, libc::F_WRLCK, false),
        ] {
            let theirs =
                super::super::ofd::Locked::new(File::options().read(true).write(true).open(&path).unwrap());
            lock(&theirs, kind, start, len);
            assert_eq!(qemu_holds(&ours).unwrap(), seen, "{start}+{len}");
            assert!(!qemu_writes(&ours).unwrap(), "{start}+{len}");
            drop(theirs);
            assert!(!qemu_holds(&ours).unwrap(), "{start}+{len} closed");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a real qemu tool has to hold the image")]
    fn a_real_qemu_process_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let ours = File::open(&path).unwrap();
        for mode in [&["-r"][..], &[]] {
            // Without a command it keeps the image open and reads commands until stdin ends.
            let mut qemu = Command::new("/usr/bin/qemu-io");
            qemu.args(mode).args(["-f", "raw"]).arg(&path).stdin(Stdio::piped()).stdout(Stdio::null());
            let mut qemu = super::super::fork::spawn(&mut qemu).expect("this test needs qemu-io");
            let end = Instant::now() + Duration::from_secs(30);
            let is_open = || if mode.is_empty() { qemu_writes(&ours) } else { qemu_holds(&ours) };
            while !is_open().unwrap() {
                assert!(Instant::now() < end, "qemu-io holds no lock we can see");
            }
            assert_eq!(qemu_writes(&ours).unwrap(), mode.is_empty());
            drop(qemu.stdin.take());
            qemu.wait().unwrap();
            assert!(!qemu_holds(&ours).unwrap() && !qemu_writes(&ours).unwrap());
        }
    }
}
