//! Whose rights we act with.
#![expect(unsafe_code, reason = "the ids of the process and the account database have no safe wrapper")]

use super::tool;
use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// No crash of this process writes its memory down: it may hold a password.
pub fn dump_no_core() {
    // Lowering one's own limit is refused to nobody.
    let _ = tool::limit(rustix::process::Resource::Core, Some(tool::NO_CORE));
}

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
    // All groups of the account: the lock daemon's socket is open to one of them.
    let name = account_of(uid).and_then(|(name, _)| CString::new(name).ok());
    // SAFETY: plain system calls on numbers and a terminated name; libc applies them to every thread.
    // Groups first, while we still may.
    let failed = unsafe {
        name.map_or_else(|| libc::setgroups(1, &raw const gid), |n| libc::initgroups(n.as_ptr(), gid)) != 0
            || libc::setresgid(gid, gid, gid) != 0
            || libc::setresuid(uid, uid, uid) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The home the account database gives this account, and its name: what the system's ssh goes by,
/// whatever the environment says. `None` when the account is not in it.
pub fn account() -> Option<(String, PathBuf)> {
    account_of(uid())
}

fn account_of(uid: u32) -> Option<(String, PathBuf)> {
    let mut buf = vec![0; 1 << 14];
    // SAFETY: passwd is plain data; all zeroes is a valid value of it.
    let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: `entry`, `buf` and `found` outlive the call, and `buf` is as long as it says.
    let rc = unsafe { libc::getpwuid_r(uid, &raw mut entry, buf.as_mut_ptr(), buf.len(), &raw mut found) };
    if rc != 0 || found.is_null() {
        return None;
    }
    // SAFETY: on success both point to terminated strings in `buf`, which is still there.
    let (name, home) = unsafe { (CStr::from_ptr(entry.pw_name), CStr::from_ptr(entry.pw_dir)) };
    Some((name.to_string_lossy().into_owned(), OsStr::from_bytes(home.to_bytes()).into()))
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
