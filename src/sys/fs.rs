//! File system calls that change something, each one effect, all relative to an open directory and
//! never through a symbolic link. Paths given here are for the effect log only.

use super::effect::{Effect, bug, step};
use rustix::fs::{self, AtFlags, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Component, Path, PathBuf};

/// An open directory and the path it was reached by (for messages and for tools that need a name).
#[derive(Debug)]
pub struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

/// What kind of object a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link(OsString),
    /// Device, socket, pipe: never ours.
    Other,
}

/// Facts about one directory entry; a link is described, not followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: OsString,
    pub kind: Kind,
    pub ino: u64,
    /// Birth time in ns, 0 where the file system has none. With `ino` it survives inode reuse.
    pub born: u64,
    pub dev: u64,
    pub nlink: u32,
    pub size: u64,
    pub allocated: u64,
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    /// Seconds since 1970 of the last change of the inode, a rename included on most file systems.
    pub changed: i64,
    /// Nanoseconds since 1970 of the last change of the content.
    pub modified: i64,
}

const OPEN: OFlags = OFlags::CLOEXEC.union(OFlags::NOFOLLOW);

impl Dir {
    /// Opens a directory by path; links on the way are followed (the caller chose the path).
    pub fn open(path: &Path) -> io::Result<Dir> {
        let fd = fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Dir { fd, path: path.to_owned() })
    }

    /// Opens a directory below this one, through no link and on the same file system. Each on the way is
    /// opened by itself: then a network file system asks its server what has changed there. What it remembers
    /// of names, and of names that were not there, may be older than a lock that we hold.
    pub fn sub(&self, rel: &Path) -> io::Result<Dir> {
        let open = |at: &OwnedFd, name: &Path| {
            Dir::beneath(at, name, OFlags::DIRECTORY | OFlags::RDONLY, Mode::empty())
        };
        let mut fd = open(&self.fd, Path::new("."))?;
        for name in rel.components().filter(|c| *c != Component::CurDir) {
            fd = open(&fd, name.as_ref())?;
        }
        Ok(Dir { fd, path: self.path.join(rel) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new file without a name, which goes with its last user.
    pub fn unnamed(&self) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        Ok(fs::openat(&self.fd, ".", flags, Mode::from_raw_mode(0o600)).map(File::from)?)
    }

    fn beneath(at: &OwnedFd, rel: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        loop {
            match fs::openat2(at, rel, flags | OPEN, mode, how) {
                // EAGAIN: a rename raced with the walk.
                Err(Errno::AGAIN) => {}
                r => return Ok(r?),
            }
        }
    }

    /// Opens an existing file below this directory for reading, or for reading and writing. Anything but
    /// a regular file is refused; a pipe that somebody put there does not hold us up.
    pub fn open_file(&self, rel: &Path, write: bool) -> io::Result<File> {
        let rw = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let file =
            File::from(Dir::beneath(&self.fd, rel, rw | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?);
        if file.metadata()?.is_file() {
            return Ok(file);
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"))
    }

    /// As `open_file` for writing, past all caches, each write durable on return.
    pub fn open_direct(&self, rel: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::DIRECT | OFlags::DSYNC | OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(Dir::beneath(&self.fd, rel, flags, Mode::empty())?))
    }

    /// Makes a file that must not exist. `mode` is masked by the umask; `exact` sets it whatever the umask.
    pub fn create(&self, name: &OsStr, mode: u32, exact: bool) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OPEN;
        let path = self.path.join(name);
        let f: File = step(Effect::Create, &[&path], || {
            fs::openat(&self.fd, name, flags, Mode::from_raw_mode(mode)).map(File::from)
        })?;
        if exact {
            fs::fchmod(&f, Mode::from_raw_mode(mode))?;
        }
        Ok(f)
    }

    /// Makes a directory that must not exist; `exact` as for `create`, a set-group-id bit is kept.
    pub fn mkdir(&self, name: &OsStr, mode: u32, exact: bool) -> io::Result<()> {
        let path = self.path.join(name);
        step(Effect::Mkdir, &[&path], || fs::mkdirat(&self.fd, name, Mode::from_raw_mode(mode)))?;
        if exact {
            let setgid = fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode & 0o2000;
            fs::chmodat(&self.fd, name, Mode::from_raw_mode(mode | setgid), AtFlags::empty())?;
        }
        Ok(())
    }

    pub fn symlink(&self, target: &OsStr, name: &OsStr) -> io::Result<()> {
        let path = self.path.join(name);
        step(Effect::Symlink, &[Path::new(target), &path], || Ok(fs::symlinkat(target, &self.fd, name)?))
    }

    /// A second name for a file (or for a link itself), which must not exist yet.
    pub fn link(&self, name: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
        let (a, b) = (self.path.join(name), to.path.join(new));
        step(Effect::Link, &[&a, &b], || Ok(fs::linkat(&self.fd, name, &to.fd, new, AtFlags::empty())?))
    }

    /// Renames; an existing target is an error (`EEXIST`). Where the file system cannot promise that
    /// (NFS), files and links go by link and unlink, directories by a look and a bare rename.
    pub fn rename_new(&self, name: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
        self.rename_or(name, to, new, Dir::rename_new_slowly)
    }

    fn rename_or(
        &self,
        name: &OsStr,
        to: &Dir,
        new: &OsStr,
        slowly: fn(&Dir, &OsStr, &Dir, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let (a, b) = (self.path.join(name), to.path.join(new));
        let r = step(Effect::Rename, &[&a, &b], || {
            fs::renameat_with(&self.fd, name, &to.fd, new, RenameFlags::NOREPLACE)
        });
        match r {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => slowly(self, name, to, new),
            r => Ok(r?),
        }
    }

    /// As `rename_new`, into a directory where nobody else makes names: where the file system cannot promise
    /// it, by a look and a bare rename. Unlinking an old name would leave an open file on NFS where it was,
    /// under a name of the client's.
    pub fn rename_own(&self, name: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
        self.rename_or(name, to, new, Dir::look_and_rename)
    }

    fn look_and_rename(&self, name: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
        match to.entry(new)? {
            Some(_) => Err(Errno::EXIST.into()),
            None => self.rename_over(name, to, new),
        }
    }

    fn rename_new_slowly(&self, name: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
        let e = self.entry(name)?.ok_or(Errno::NOENT)?;
        if e.kind == Kind::Dir {
            return self.look_and_rename(name, to, new);
        }
        self.link(name, to, new)?;
        self.unlink(name)
    }

    /// Bare rename: replaces what is there.
    pub fn rename_over(&self, name: &OsStr, to: &Dir, new: &OsStr) -> io::Result<()> {
        let (a, b) = (self.path.join(name), to.path.join(new));
        step(Effect::Rename, &[&a, &b], || Ok(fs::renameat(&self.fd, name, &to.fd, new)?))
    }

    /// Swaps two existing names in one step.
    pub fn exchange(&self, name: &OsStr, to: &Dir, other: &OsStr) -> io::Result<()> {
        let (a, b) = (self.path.join(name), to.path.join(other));
        step(Effect::Exchange, &[&a, &b], || {
            Ok(fs::renameat_with(&self.fd, name, &to.fd, other, RenameFlags::EXCHANGE)?)
        })
    }

    pub fn unlink(&self, name: &OsStr) -> io::Result<()> {
        let path = self.path.join(name);
        step(Effect::Unlink, &[&path], || Ok(fs::unlinkat(&self.fd, name, AtFlags::empty())?))
    }

    pub fn rmdir(&self, name: &OsStr) -> io::Result<()> {
        let path = self.path.join(name);
        step(Effect::Rmdir, &[&path], || Ok(fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR)?))
    }

    /// Makes the entries of this directory durable.
    pub fn sync(&self) -> io::Result<()> {
        if bug("drop-fsync") {
            return Ok(());
        }
        step(Effect::SyncDir, &[&self.path], || Ok(fs::fsync(&self.fd)?))
    }

    /// One entry, `None` when the name is absent.
    pub fn entry(&self, name: &OsStr) -> io::Result<Option<Entry>> {
        let want = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        // FORCE_SYNC: on network file systems a cached answer may predate the lock we hold.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
        let s = match fs::statx(&self.fd, name, flags, want) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            s => s?,
        };
        let kind = match fs::FileType::from_raw_mode(s.stx_mode.into()) {
            fs::FileType::RegularFile => Kind::File,
            fs::FileType::Directory => Kind::Dir,
            fs::FileType::Symlink => {
                let t = fs::readlinkat(&self.fd, name, Vec::new())?;
                Kind::Link(OsString::from_vec(t.into_bytes()))
            }
            _ => Kind::Other,
        };
        let born = if s.stx_mask & StatxFlags::BTIME.bits() == 0 {
            0
        } else {
            s.stx_btime
                .tv_sec
                .cast_unsigned()
                .wrapping_mul(1_000_000_000)
                .wrapping_add(s.stx_btime.tv_nsec.into())
        };
        Ok(Some(Entry {
            name: name.to_owned(),
            kind,
            ino: s.stx_ino,
            born,
            dev: fs::makedev(s.stx_dev_major, s.stx_dev_minor),
            nlink: s.stx_nlink,
            size: s.stx_size,
            allocated: s.stx_blocks.saturating_mul(512),
            uid: s.stx_uid,
            gid: s.stx_gid,
            mode: u32::from(s.stx_mode) & 0o7777,
            changed: s.stx_ctime.tv_sec,
            modified: s
                .stx_mtime
                .tv_sec
                .saturating_mul(1_000_000_000)
                .saturating_add(s.stx_mtime.tv_nsec.into()),
        }))
    }

    /// The names in this directory, unordered, without `.` and `..`.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut out = Vec::new();
        // A descriptor of its own: the position of a shared one would be shared, too.
        for e in fs::Dir::read_from(&self.fd)? {
            let e = e?;
            let n = e.file_name().to_bytes();
            if n != b"." && n != b".." {
                out.push(OsStr::from_bytes(n).to_owned());
            }
        }
        Ok(out)
    }

    /// Removes a name and all below it: no link is followed, no other file system entered. Can be
    /// interrupted anywhere and run again. Other file systems met on the way are an error. What this host
    /// has open on NFS stays, with the directories it is in, until it is closed and this is run again.
    pub fn remove_tree(&self, name: &OsStr) -> io::Result<()> {
        let Some(e) = self.entry(name)? else { return Ok(()) };
        if e.kind != Kind::Dir {
            return match self.unlink(name) {
                Err(e) if is_open_elsewhere(name) && e.kind() == io::ErrorKind::ResourceBusy => Ok(()),
                r => ignore_absent(r),
            };
        }
        let sub = self.sub(Path::new(name))?;
        for n in sub.names()? {
            sub.remove_tree(&n)?;
        }
        match self.rmdir(name) {
            Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty && sub.holds_open()? => Ok(()),
            r => ignore_absent(r),
        }
    }

    /// Whether nothing is left here but what this host has open.
    fn holds_open(&self) -> io::Result<bool> {
        for n in self.names()? {
            let inside = match self.entry(&n)? {
                Some(e) if e.kind == Kind::Dir => self.sub(Path::new(&n))?.holds_open()?,
                _ => is_open_elsewhere(&n),
            };
            if !inside {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes allocated to a name and all below it; a file with other names elsewhere frees nothing.
    pub fn weight(&self, name: &OsStr) -> io::Result<u64> {
        let Some(e) = self.entry(name)? else { return Ok(0) };
        match e.kind {
            Kind::Dir => {
                let sub = self.sub(Path::new(name))?;
                sub.names()?.iter().try_fold(0, |sum, n| Ok(sum + sub.weight(n)?))
            }
            _ if e.nlink > 1 => Ok(0),
            _ => Ok(e.allocated),
        }
    }

    /// Bytes of the files below this directory, links not followed, as `du -sb` adds them up.
    pub fn content(&self) -> io::Result<u64> {
        let mut sum = 0;
        for n in self.names()? {
            match self.entry(&n)? {
                Some(e) if e.kind == Kind::Dir => sum += self.sub(Path::new(&n))?.content()?,
                Some(e) => sum += e.size,
                None => {}
            }
        }
        Ok(sum)
    }

    /// Flushes a name and all below it, files before the directories that hold them.
    pub fn sync_tree(&self, name: &OsStr) -> io::Result<()> {
        let Some(e) = self.entry(name)? else { return Err(Errno::NOENT.into()) };
        match e.kind {
            Kind::File => sync_file(&self.open_file(Path::new(name), false)?, &self.path.join(name)),
            Kind::Dir => {
                let sub = self.sub(Path::new(name))?;
                for n in sub.names()? {
                    sub.sync_tree(&n)?;
                }
                sub.sync()
            }
            Kind::Link(_) | Kind::Other => Ok(()),
        }
    }

    /// Writes a small file that must not exist, complete and durable before it has its name.
    /// The directory is not flushed.
    pub fn put_new(&self, name: &OsStr, tmp: &OsStr, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.put(name, tmp, bytes, 0o660, durable)
    }

    /// As `put_new`, with a mode, over whatever file or link has the name.
    pub fn put(&self, name: &OsStr, tmp: &OsStr, bytes: &[u8], mode: u32, durable: bool) -> io::Result<()> {
        ignore_absent(self.unlink_if_there(tmp))?;
        let mut f = self.create(tmp, mode, true)?;
        let path = self.path.join(tmp);
        step(Effect::Write, &[&path], || f.write_all(bytes))?;
        if durable {
            sync_file(&f, &path)?;
        }
        self.rename_over(tmp, self, name)
    }

    /// A name that is absent already is fine, and no effect.
    pub fn unlink_if_there(&self, name: &OsStr) -> io::Result<()> {
        if self.entry(name)?.is_some() { self.unlink(name) } else { Ok(()) }
    }

    /// Sets the time of the last change of a name's content, in ns since 1970; a link is not followed.
    pub fn set_modified(&self, name: &OsStr, ns: i64) -> io::Result<()> {
        let path = self.path.join(name);
        let time =
            fs::Timespec { tv_sec: ns.div_euclid(1_000_000_000), tv_nsec: ns.rem_euclid(1_000_000_000) };
        let keep = fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_OMIT };
        let times = fs::Timestamps { last_access: keep, last_modification: time };
        step(Effect::Mode, &[&path], || Ok(fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Locks the directory against others who do the same, until this value is dropped; `false` when
    /// somebody has it.
    pub fn try_lock(&self) -> io::Result<bool> {
        match fs::flock(&self.fd, fs::FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            r => Ok(r.map(|()| true)?),
        }
    }

    /// Total, available to us, and used bytes, as `df` computes them.
    pub fn space(&self) -> io::Result<(u64, u64, u64)> {
        let v = fs::fstatvfs(&self.fd)?;
        Ok((
            v.f_blocks.saturating_mul(v.f_frsize),
            v.f_bavail.saturating_mul(v.f_frsize),
            v.f_blocks.saturating_sub(v.f_bfree).saturating_mul(v.f_frsize),
        ))
    }

    pub fn fd(&self) -> impl AsFd + '_ {
        self.fd.as_fd()
    }
}

/// Makes a file's content durable. An error is final: the kernel may have dropped the pages.
pub fn sync_file(f: &File, path: &Path) -> io::Result<()> {
    if bug("drop-fsync") || bug("drop-file-fsync") {
        return Ok(());
    }
    step(Effect::Sync, &[path], || f.sync_all())
}

/// The name by which the kernel's device mapper knows an open device, of whatever path.
pub fn mapped_as(device: &File) -> io::Result<String> {
    let rdev = fs::fstat(device)?.st_rdev;
    let at = format!("/sys/dev/block/{}:{}/dm/uuid", fs::major(rdev), fs::minor(rdev));
    Ok(std::fs::read_to_string(at)?.trim().to_owned())
}

/// Opens a block device that nothing else has claimed: no file system on it is mounted, no other device made of it.
pub fn claim_device(path: &Path) -> io::Result<File> {
    let flags = (OFlags::EXCL | OFlags::CLOEXEC).bits().cast_signed();
    File::options().read(true).write(true).custom_flags(flags).open(path)
}

/// Sets a file's length; new bytes read zero.
pub fn set_len(f: &File, path: &Path, len: u64) -> io::Result<()> {
    step(Effect::Truncate, &[path], || f.set_len(len))
}

/// Writes one of this host's own notes, whole or not at all, and its directory if need be. Not storage: no
/// effect of a job.
#[expect(clippy::disallowed_methods, reason = "a note of this host, not storage")]
pub fn note(path: &Path, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    let tmp = path.with_extension(format!("tmp{}", std::process::id()));
    std::fs::write(&tmp, bytes)?;
    std::fs::rename(tmp, path)
}

/// Removes one of them; none is as good.
#[expect(clippy::disallowed_methods, reason = "a note of this host, not storage")]
pub fn unnote(path: &Path) -> io::Result<()> {
    ignore_absent(std::fs::remove_file(path))
}

/// The name an NFS client gives a file that was removed while it was open.
pub fn is_open_elsewhere(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".nfs")
}

/// What is not there is as good as removed.
pub fn ignore_absent(r: io::Result<()>) -> io::Result<()> {
    match r {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        r => r,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn dir() -> (tempfile::TempDir, Dir) {
        let t = tempfile::tempdir().unwrap();
        let d = Dir::open(t.path()).unwrap();
        (t, d)
    }

    #[test]
    fn a_rename_never_replaces() {
        let (t, d) = dir();
        std::fs::write(t.path().join("a"), "a").unwrap();
        std::fs::write(t.path().join("b"), "b").unwrap();
        for f in [Dir::rename_new, Dir::rename_new_slowly, Dir::rename_own, Dir::look_and_rename] {
            let e = f(&d, OsStr::new("a"), &d, OsStr::new("b")).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
            assert_eq!(std::fs::read(t.path().join("b")).unwrap(), b"b");
            f(&d, OsStr::new("a"), &d, OsStr::new("c")).unwrap();
            d.rename_new(OsStr::new("c"), &d, OsStr::new("a")).unwrap();
        }
    }

    #[test]
    fn removing_a_tree_follows_no_link() {
        let (t, d) = dir();
        let out = tempfile::tempdir().unwrap();
        std::fs::write(out.path().join("live"), "x").unwrap();
        std::fs::create_dir_all(t.path().join("x/y")).unwrap();
        symlink(out.path(), t.path().join("x/y/out")).unwrap();
        symlink(".", t.path().join("x/self")).unwrap();
        d.remove_tree(OsStr::new("x")).unwrap();
        assert!(d.names().unwrap().is_empty());
        assert!(out.path().join("live").exists());
        d.remove_tree(OsStr::new("x")).unwrap();
    }

    #[test]
    fn a_link_on_the_way_is_refused() {
        let (t, d) = dir();
        std::fs::create_dir(t.path().join("real")).unwrap();
        symlink("real", t.path().join("link")).unwrap();
        assert!(d.sub(Path::new("link")).is_err());
        assert!(d.sub(Path::new("../")).is_err());
        assert!(d.sub(Path::new("real")).is_ok());
    }

    #[test]
    fn a_new_inode_is_told_from_an_old_one() {
        let (t, d) = dir();
        std::fs::write(t.path().join("a"), "1").unwrap();
        let old = d.entry(OsStr::new("a")).unwrap().unwrap();
        std::fs::remove_file(t.path().join("a")).unwrap();
        std::fs::write(t.path().join("a"), "1").unwrap();
        let new = d.entry(OsStr::new("a")).unwrap().unwrap();
        assert_ne!((old.ino, old.born), (new.ino, new.born));
        assert_eq!(d.entry(OsStr::new("none")).unwrap(), None);
    }

    #[test]
    fn times_are_set_on_links_themselves() {
        let (t, d) = dir();
        std::fs::write(t.path().join("a"), "1").unwrap();
        symlink("a", t.path().join("l")).unwrap();
        let before = d.entry(OsStr::new("a")).unwrap().unwrap().modified;
        for ns in [0, 1_500_000_000_123_456_789, -1] {
            d.set_modified(OsStr::new("l"), ns).unwrap();
            assert_eq!(d.entry(OsStr::new("l")).unwrap().unwrap().modified, ns);
        }
        assert_eq!(d.entry(OsStr::new("a")).unwrap().unwrap().modified, before);
    }

    #[test]
    fn a_directory_is_locked_by_one() {
        let (t, d) = dir();
        let other = Dir::open(t.path()).unwrap();
        assert!(d.try_lock().unwrap() && !other.try_lock().unwrap());
        drop(d);
        assert!(other.try_lock().unwrap());
    }

    #[test]
    fn a_file_is_put_over_a_link_and_not_through_it() {
        let (t, d) = dir();
        std::fs::write(t.path().join("a"), "1").unwrap();
        symlink("a", t.path().join("l")).unwrap();
        d.put(OsStr::new("l"), OsStr::new("tmp"), b"2", 0o751, false).unwrap();
        assert_eq!(std::fs::read(t.path().join("a")).unwrap(), b"1");
        let e = d.entry(OsStr::new("l")).unwrap().unwrap();
        assert_eq!((e.kind, e.mode), (Kind::File, 0o751));
    }
}
