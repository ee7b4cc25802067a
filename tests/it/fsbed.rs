//! Real file systems on loop devices, and small ones in memory. They need root: a test that cannot have
//! its file system fails.

use crate::bed::{self, tool};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

/// Something mounted.
pub struct Mount(PathBuf);

impl Mount {
    pub fn new(options: &[&str], what: &Path, at: &Path) -> Result<Mount, String> {
        let out = std::process::Command::new("mount").args(options).arg(what).arg(at).output().unwrap();
        let mount = || Mount(at.to_owned());
        let why = || format!("does not mount: {}", String::from_utf8_lossy(&out.stderr).trim());
        out.status.success().then(mount).ok_or_else(why)
    }
}

pub struct Fs {
    mount: Mount,
    _tmp: tempfile::TempDir,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ext4 => "ext4",
            Kind::Xfs => "xfs",
            Kind::Btrfs => "btrfs",
            Kind::Tmpfs => "tmpfs",
        }
    }

    /// Makes a file system in a file. XFS takes no less than 300 MiB.
    pub fn mkfs(self, image: &Path) {
        let words: &[&str] = match self {
            Kind::Tmpfs => return,
            // Nothing is left to be initialised later, in the background.
            Kind::Ext4 => &["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            Kind::Xfs => &["mkfs.xfs", "-q", "-m", "reflink=1"],
            Kind::Btrfs => &["mkfs.btrfs", "-q"],
        };
        let args: Vec<_> = words[1..].iter().map(OsStr::new).chain([image.as_os_str()]).collect();
        tool(words[0], &args);
    }
}

impl Fs {
    /// A file system of `mib` MiB, mounted. Its backing file is sparse.
    pub fn new(kind: Kind, mib: u64) -> Fs {
        let tmp = bed::scratch();
        bed::chmod(tmp.path(), 0o755);
        let (image, mount) = (tmp.path().join("disk"), tmp.path().join("mnt"));
        std::fs::create_dir(&mount).unwrap();
        std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
        kind.mkfs(&image);
        let size = format!("size={mib}m");
        let options = if kind == Kind::Tmpfs {
            ["-t", "tmpfs", "-o", &size]
        } else {
            ["-t", kind.name(), "-o", "loop"]
        };
        let mount = Mount::new(&options, &image, &mount).unwrap();
        bed::chmod(&mount.0, 0o755);
        Fs { mount, _tmp: tmp }
    }

    pub fn path(&self) -> &Path {
        &self.mount.0
    }

    /// Where a bed puts its datastores on it.
    pub fn stores(&self) -> PathBuf {
        self.mount.0.join("datastores")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // A mount that is still busy is a leak, unless the test is failing for another reason already.
        if std::thread::panicking() {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        } else {
            tool("umount", &[self.0.as_os_str()]);
        }
    }
}

#[test]
fn every_kind_can_be_had_and_goes_without_a_trace() {
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Tmpfs] {
        let fs = Fs::new(kind, 320);
        std::fs::write(fs.path().join("x"), b"x").unwrap();
        let mount = fs.path().to_owned();
        let line =
            |mounts: String| mounts.lines().find(|l| l.contains(mount.to_str().unwrap())).map(str::to_owned);
        let mounted = line(std::fs::read_to_string("/proc/self/mounts").unwrap()).expect("it is mounted");
        assert_eq!(mounted.split(' ').nth(2), Some(kind.name()));
        drop(fs);
        assert_eq!(line(std::fs::read_to_string("/proc/self/mounts").unwrap()), None);
        for dev in bed::names(Path::new("/sys/block")) {
            let file =
                std::fs::read_to_string(format!("/sys/block/{dev}/loop/backing_file")).unwrap_or_default();
            assert!(!file.contains(mount.parent().unwrap().to_str().unwrap()), "{dev} still holds {file}");
        }
    }
}
