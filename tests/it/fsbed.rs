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

pub struct Fs {
    mount: PathBuf,
    _tmp: tempfile::TempDir,
}

impl Fs {
    /// A file system of `mib` MiB, mounted. Its backing file is sparse. XFS takes no less than 300.
    pub fn new(kind: Kind, mib: u64) -> Fs {
        let tmp = bed::scratch();
        bed::chmod(tmp.path(), 0o755);
        let (image, mount) = (tmp.path().join("disk"), tmp.path().join("mnt"));
        std::fs::create_dir(&mount).unwrap();
        let mkfs: &[&str] = match kind {
            Kind::Tmpfs => &[],
            Kind::Ext4 => &["mkfs.ext4", "-q", "-F"],
            Kind::Xfs => &["mkfs.xfs", "-q", "-m", "reflink=1"],
            Kind::Btrfs => &["mkfs.btrfs", "-q"],
        };
        let m = mount.as_os_str();
        if let Some((program, args)) = mkfs.split_first() {
            std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
            let args: Vec<_> = args.iter().map(OsStr::new).chain([image.as_os_str()]).collect();
            tool(program, &args);
            tool("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), m]);
        } else {
            let size = format!("size={mib}m");
            tool(
                "mount",
                &["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "tmpfs".as_ref(), m],
            );
        }
        bed::chmod(&mount, 0o755);
        Fs { mount, _tmp: tmp }
    }

    pub fn path(&self) -> &Path {
        &self.mount
    }

    /// Where a bed puts its datastores on it.
    pub fn stores(&self) -> PathBuf {
        self.mount.join("datastores")
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        // A mount that is still busy is a leak, unless the test is failing for another reason already.
        if std::thread::panicking() {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.mount).status();
        } else {
            tool("umount", &[self.mount.as_os_str()]);
        }
    }
}

#[test]
fn every_kind_can_be_had_and_goes_without_a_trace() {
    for (kind, name) in
        [(Kind::Ext4, "ext4"), (Kind::Xfs, "xfs"), (Kind::Btrfs, "btrfs"), (Kind::Tmpfs, "tmpfs")]
    {
        let fs = Fs::new(kind, 320);
        std::fs::write(fs.path().join("x"), b"x").unwrap();
        let mount = fs.path().to_owned();
        let line =
            |mounts: String| mounts.lines().find(|l| l.contains(mount.to_str().unwrap())).map(str::to_owned);
        let mounted = line(std::fs::read_to_string("/proc/self/mounts").unwrap()).expect("it is mounted");
        assert_eq!(mounted.split(' ').nth(2), Some(name));
        drop(fs);
        assert_eq!(line(std::fs::read_to_string("/proc/self/mounts").unwrap()), None);
        for dev in bed::names(Path::new("/sys/block")) {
            let file =
                std::fs::read_to_string(format!("/sys/block/{dev}/loop/backing_file")).unwrap_or_default();
            assert!(!file.contains(mount.parent().unwrap().to_str().unwrap()), "{dev} still holds {file}");
        }
    }
}
