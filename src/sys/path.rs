//! Where an opened file really is. A file is first pinned without opening it for data (so no FIFO
//! blocks, no device reacts, no link can be swapped afterwards), looked at, then opened.

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// A file that is held but not open for data.
#[derive(Debug)]
pub struct Pinned {
    fd: OwnedFd,
    stat: rustix::fs::Stat,
}

impl Pinned {
    /// Follows links as `open` does, except those of /proc that lead into other processes.
    pub fn at(path: &Path) -> io::Result<Pinned> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS) {
            // Kernels before 5.6, and sandboxes that do not know the call.
            Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
                rustix::fs::open(path, flags, Mode::empty())
            }
            other => other,
        }?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Pinned { fd, stat })
    }

    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Its path in this mount namespace. An error when it has none any more: removed, or the path
    /// already leads to another file.
    pub fn real_path(&self) -> io::Result<PathBuf> {
        let path = real_path(&self.fd)?;
        let now = std::fs::symlink_metadata(&path)?;
        if (now.dev(), now.ino()) == (self.stat.st_dev, self.stat.st_ino) {
            return Ok(path);
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "removed or renamed while it was being opened"))
    }

    /// Opens this very file for reading.
    pub fn open(&self) -> io::Result<File> {
        let link = format!("/proc/self/fd/{}", self.fd.as_raw_fd());
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(link, flags, Mode::empty())?.into())
    }
}

/// What the kernel calls the file behind a descriptor; ends in ` (deleted)` when it has no name.
pub fn real_path(fd: &impl AsFd) -> io::Result<PathBuf> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))?;
    if path.is_absolute() {
        return Ok(path);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "not reachable in this mount namespace"))
}

/// The file this process runs, with no link on the way. An error when it was removed or replaced since.
pub fn own_program() -> io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let (now, mine) = (std::fs::metadata(&path)?, std::fs::metadata("/proc/self/exe")?);
    if (now.dev(), now.ino()) == (mine.dev(), mine.ino()) {
        return Ok(path);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "this program was replaced while it ran; run it again"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn the_pinned_file_is_the_opened_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::write(root.join("a"), "first").unwrap();
        std::os::unix::fs::symlink("a", root.join("link")).unwrap();
        let pinned = Pinned::at(&root.join("link")).unwrap();
        assert_eq!(pinned.real_path().unwrap(), root.join("a"));
        std::fs::write(root.join("b"), "second").unwrap();
        rustix::fs::rename(root.join("b"), root.join("a")).unwrap();
        assert!(pinned.real_path().is_err(), "another file has the name now");
        let mut text = String::new();
        pinned.open().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "first");
    }

    #[test]
    fn a_name_that_looks_deleted_is_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().canonicalize().unwrap().join("x (deleted)");
        std::fs::write(&path, "").unwrap();
        assert_eq!(Pinned::at(&path).unwrap().real_path().unwrap(), path);
        let gone = path.with_file_name("x");
        std::fs::write(&gone, "").unwrap();
        let pinned = Pinned::at(&gone).unwrap();
        rustix::fs::unlink(&gone).unwrap();
        assert!(pinned.real_path().is_err());
    }

    #[test]
    fn links_into_processes_are_not_followed() {
        assert!(Pinned::at(Path::new("/proc/self/fd/0")).is_err());
        assert!(Pinned::at(Path::new("/proc/self/root/etc/passwd")).is_err());
    }

    #[test]
    fn the_running_program_is_found_without_links() {
        let own = own_program().unwrap();
        assert_eq!(own, own.canonicalize().unwrap());
        assert_eq!(own, std::env::current_exe().unwrap().canonicalize().unwrap());
    }
}
