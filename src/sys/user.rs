//! Whose rights we act with.
#![expect(unsafe_code, reason = "changing the ids of the whole process has no safe wrapper")]

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Root becomes the owner of a directory for the rest of the process, so that all it makes there can
/// be used by that account. Anybody else stays who they are.
pub fn become_owner(dir: &Path) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let m = match std::fs::metadata(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        m => m?,
    };
    if m.uid() == 0 {
        return Ok(());
    }
    let (uid, gid) = (m.uid(), m.gid());
    // SAFETY: plain system calls on numbers; libc applies them to every thread. Groups first, while
    // we still may.
    let failed = unsafe {
        libc::setgroups(1, &raw const gid) != 0
            || libc::setresgid(gid, gid, gid) != 0
            || libc::setresuid(uid, uid, uid) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this account may make entries in a directory.
pub fn may_write(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK).is_ok()
}

/// Whether this account may write a file.
pub fn may_write_file(file: &Path) -> bool {
    rustix::fs::access(file, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whether this account may run a program.
pub fn may_execute(program: &Path) -> bool {
    rustix::fs::access(program, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The number of the account we act as.
pub fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}
