//! The system calls that move bytes between open files: share extents, copy in the kernel, find and
//! make holes. Thin: what a failure means is decided by `data`.
#![expect(unsafe_code, reason = "starting a write-back and discarding have no safe wrappers")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Advice, FallocateFlags, FileType, SeekFrom};
use rustix::io::Errno;

/// Makes `dst` share all extents of `src` (FICLONE). Not for block devices.
pub fn reflink(src: &File, dst: &File) -> io::Result<()> {
    rustix::fs::ioctl_ficlone(dst, src).map_err(Into::into)
}

/// Copies up to `len` bytes at the same offset of both files inside the kernel; the number copied,
/// 0 at the end of `src`. Never across a hole: several file systems fill it.
pub fn copy_range(src: &File, dst: &File, at: u64, len: usize) -> io::Result<usize> {
    let (mut from, mut to) = (at, at);
    rustix::fs::copy_file_range(src, Some(&mut from), dst, Some(&mut to), len).map_err(Into::into)
}

/// Whether the kernel or the file system does not offer this way of copying between these files,
/// so that another way may work.
pub fn is_not_offered(e: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(e),
        Some(
            Errno::XDEV
                | Errno::INVAL
                | Errno::NOSYS
                | Errno::OPNOTSUPP
                | Errno::NOTTY
                | Errno::PERM
                | Errno::TXTBSY
                | Errno::BADF
        )
    )
}

/// The first extent of data at or after `from`, cut at `end`; `None` when only a hole follows.
/// Fails with `Unsupported` on media that cannot tell (block devices).
pub fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range<u64>>> {
    if from >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(n) if n < end => n,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
        Err(e) => return Err(e.into()),
    };
    match rustix::fs::seek(file, SeekFrom::Hole(start)) {
        // A file that shrinks meanwhile has no data left here.
        Err(Errno::NXIO) => Ok(None),
        Ok(stop) => Ok(Some(start..stop.min(end))),
        Err(e) => Err(e.into()),
    }
}

/// Gives the space of a range back; it reads zero afterwards. The size stays.
pub fn punch(file: &File, range: &Range<u64>) -> io::Result<()> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, range.start, range.end - range.start).map_err(Into::into)
}

/// Writes zeroes, or has a block device do it.
pub fn zero(file: &File, range: &Range<u64>) -> io::Result<()> {
    let mode = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, mode, range.start, range.end - range.start).map_err(Into::into)
}

/// Tells a block device that nobody needs a range; what it reads as then is the device's to say (BLKDISCARD).
pub fn discard(file: &File, range: &Range<u64>) -> io::Result<()> {
    const BLKDISCARD: libc::Ioctl = 0x1277;
    let range = [range.start, range.end - range.start];
    // SAFETY: the call reads two numbers from an array that outlives it, on a descriptor that `file` keeps open.
    match unsafe { libc::ioctl(file.as_raw_fd(), BLKDISCARD, range.as_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reserves space for `0..len` and sets the size; `false` when the file system does not offer it.
pub fn reserve(file: &File, len: u64) -> io::Result<bool> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Tells the kernel that the file will be read once from front to back. Advice only.
pub fn will_read_once(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
}

/// Gives up what memory holds of a file, so that reading it reads the medium: what waits to be written
/// stays, so it is flushed first. Advice only.
pub fn forget(file: &File) {
    let _ = rustix::fs::fadvise(file, 0, None, Advice::DontNeed);
}

/// Starts to write a range back to the medium and waits for nothing. Says nothing of success: that is
/// still the fsync's to tell, which also sees the errors met here.
pub fn begin_writeback(file: &File, range: &Range<u64>) {
    let (Ok(at), Ok(len)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else {
        return;
    };
    // SAFETY: a plain system call on a descriptor that `file` keeps open and three numbers.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), at, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// What kind of thing an open file is, as far as copying cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    File,
    Block,
}

/// The kind and size in bytes of an open file or block device; anything else is `InvalidInput`.
pub fn measure(file: &File) -> io::Result<(Medium, u64)> {
    let stat = rustix::fs::fstat(file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((Medium::File, u64::try_from(stat.st_size).unwrap_or(0))),
        FileType::BlockDevice => Ok((Medium::Block, rustix::fs::seek(file, SeekFrom::End(0))?)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "neither a regular file nor a block device")),
    }
}

/// Reads at `at` until `buf` is full or the file ends; the number of bytes read.
pub fn read_full(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut n = 0;
    while n < buf.len() {
        match file.read_at(&mut buf[n..], at + n as u64) {
            Ok(0) => break,
            Ok(k) => n += k,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_and_holes_are_found_and_made() {
        let f = tempfile::tempfile().unwrap();
        f.set_len(1 << 20).unwrap();
        f.write_all_at(&[1; 8192], 512 << 10).unwrap();
        let extent = (512 << 10)..(520 << 10);
        assert_eq!(next_data(&f, 0, 1 << 20).unwrap(), Some(extent.clone()));
        assert_eq!(next_data(&f, extent.end, 1 << 20).unwrap(), None);
        assert_eq!(next_data(&f, 0, 100).unwrap(), None, "beyond the end that was asked for");
        punch(&f, &extent).unwrap();
        assert_eq!(next_data(&f, 0, 1 << 20).unwrap(), None);
        assert_eq!(measure(&f).unwrap(), (Medium::File, 1 << 20));
    }

    #[test]
    fn only_files_and_block_devices_are_media() {
        let null = File::open("/dev/null").unwrap();
        assert_eq!(measure(&null).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
