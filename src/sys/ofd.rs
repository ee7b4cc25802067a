//! Open-file-description locks on one byte. They belong to the description, not to the process, so
//! two leases of one process exclude each other and closing anything else releases nothing.
#![expect(unsafe_code, reason = "no safe wrapper of F_OFD_SETLK among our dependencies")]

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstatfs};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A file whose locks end when this is dropped, not a moment later: it is closed while no child of ours
/// is between its fork and its program, where it holds a copy of everything.
#[derive(Debug)]
pub struct Locked(ManuallyDrop<File>);

impl Locked {
    pub fn new(file: File) -> Locked {
        Locked(ManuallyDrop::new(file))
    }
}

impl Deref for Locked {
    type Target = File;
    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        let _no_fork = super::fork::no_fork();
        // SAFETY: dropped here only, and the value is not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.0) };
    }
}

fn flock(offset: u64, kind: libc::c_int) -> io::Result<libc::flock> {
    let start = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: flock is plain data; all zeroes is a valid value of it.
    let mut l: libc::flock = unsafe { std::mem::zeroed() };
    l.l_type = libc::c_short::try_from(kind).map_err(|_| io::ErrorKind::InvalidInput)?;
    l.l_whence = 0; // SEEK_SET
    l.l_start = start;
    l.l_len = 1;
    Ok(l)
}

/// Takes the byte, or says at once that somebody has it (`false`). Exclusive needs a writable descriptor.
pub fn try_lock(fd: BorrowedFd<'_>, offset: u64, exclusive: bool) -> io::Result<bool> {
    let l = flock(offset, if exclusive { libc::F_WRLCK } else { libc::F_RDLCK })?;
    loop {
        // SAFETY: the descriptor is open for the whole call and `l` outlives it.
        if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const l) } == 0 {
            return Ok(true);
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EAGAIN | libc::EACCES) => return Ok(false),
            _ => return Err(e),
        }
    }
}

/// Whether another description holds the byte so that we could not have it exclusively.
pub fn is_held(fd: BorrowedFd<'_>, offset: u64) -> io::Result<bool> {
    is_any_held(fd, offset..offset + 1)
}

/// The same of any of several bytes. Of none it is not.
pub fn is_any_held(fd: BorrowedFd<'_>, bytes: Range<u64>) -> io::Result<bool> {
    if bytes.is_empty() {
        return Ok(false);
    }
    let mut l = flock(bytes.start, libc::F_WRLCK)?;
    l.l_len = libc::off_t::try_from(bytes.end - bytes.start).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: as above; the kernel writes its answer into `l`.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut l) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::from(l.l_type) != libc::F_UNLCK)
}

/// Makes a descriptor's reads go to the server each time, where its file is on NFS; says whether it is.
pub fn past_caches(file: &File) -> io::Result<bool> {
    const NFS: u64 = 0x6969;
    let is_nfs = fstatfs(file)?.f_type.cast_unsigned() == NFS;
    if is_nfs {
        fcntl_setfl(file, fcntl_getfl(file)? | OFlags::DIRECT)?;
    }
    Ok(is_nfs)
}

/// Reads a little through such a descriptor. NFS 4 reads by the right of the lock: where the server does not
/// know the lock any more, and the client could not claim it again, that is `EIO` from then on.
pub fn is_known_to_server(file: &File) -> io::Result<bool> {
    match rustix::io::pread(file, &mut [0_u8; 512], 0) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::IO) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;

    #[test]
    fn two_descriptions_exclude_each_other_per_byte() {
        let t = tempfile::NamedTempFile::new().unwrap();
        let (a, b) = (Locked::new(t.reopen().unwrap()), t.reopen().unwrap());
        for off in [0, 5, 1 << 40, 1 << 62, i64::MAX as u64 - 1] {
            assert!(try_lock(a.as_fd(), off, true).unwrap());
            assert!(!try_lock(b.as_fd(), off, false).unwrap());
            assert!(is_held(b.as_fd(), off).unwrap());
            assert!(try_lock(b.as_fd(), off + 1, true).unwrap());
        }
        drop(a);
        assert!(try_lock(b.as_fd(), 0, true).unwrap());
    }

    /// Between fork and exec a child has everything its parent has.
    #[test]
    fn a_lock_ends_at_once_while_others_fork() {
        let t = tempfile::NamedTempFile::new().unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let tools =
                    crate::sys::Tools::new([(crate::sys::Tool::MkSwap, "/usr/bin/true".into())].into());
                let cancel = crate::sys::Cancel::default();
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    let run = crate::sys::tool::Run::new(std::time::Duration::from_secs(60), &cancel);
                    tools.as_ref().unwrap().run(crate::sys::Tool::MkSwap, &[], run).unwrap();
                }
            });
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    crate::sys::fork::output(&mut std::process::Command::new("/usr/bin/true")).unwrap();
                }
            });
            let late = (0..20_000).filter(|_| {
                let f = Locked::new(t.reopen().unwrap());
                !try_lock(f.as_fd(), 0, true).unwrap()
            });
            let late = late.count();
            done.store(true, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(late, 0, "locks of closed files were still held");
        });
    }
}
