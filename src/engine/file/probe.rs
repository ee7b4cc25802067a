//! What a file system can do, found by doing it in a staging area.

use crate::engine::Capabilities;
use crate::sys::fs::Dir;
use rustix::fs::{FallocateFlags, OFlags};
use std::ffi::OsStr;
use std::io::{self, Write as _};

pub(super) fn capabilities(dir: &Dir) -> io::Result<Capabilities> {
    let (a, b) = (OsStr::new("probe-a"), OsStr::new("probe-b"));
    dir.remove_tree(a)?;
    dir.remove_tree(b)?;
    let mut fa = dir.create(a, 0o660, true)?;
    let fb = dir.create(b, 0o660, true)?;
    fa.write_all(&[1; 8192])?;
    fa.sync_all()?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let caps = Capabilities {
        exchange: dir.exchange(a, dir, b).is_ok() && dir.exchange(a, dir, b).is_ok(),
        noreplace: rustix::fs::renameat_with(dir.fd(), a, dir.fd(), b, rustix::fs::RenameFlags::NOREPLACE)
            == Err(rustix::io::Errno::EXIST),
        reflink: rustix::fs::ioctl_ficlone(&fb, &fa).is_ok(),
        sparse: fb.set_len(1 << 20).is_ok() && rustix::fs::fstat(&fb).is_ok_and(|s| s.st_blocks < 2048),
        punch_hole: rustix::fs::fallocate(&fa, punch, 0, 4096).is_ok(),
        direct: rustix::fs::openat(dir.fd(), a, OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC, 0.into())
            .is_ok(),
        directories: true,
        zero_initialised: true,
    };
    dir.unlink(a)?;
    dir.unlink(b)?;
    Ok(caps)
}
