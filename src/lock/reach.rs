//! How far locks on a file system reach: the mount table, and what types and options mean for locks.

use crate::sys::fs::Dir;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The device number of what is mounted.
    pub dev: u64,
    pub point: PathBuf,
    pub kind: String,
    pub source: String,
    /// Of the mount and of the file system.
    pub options: Vec<String>,
}

/// Reads `/proc/self/mountinfo`; a line that is none is passed over.
pub fn parse(text: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let left: Vec<&str> = left.split(' ').collect();
        let mut right = right.split(' ');
        let (kind, source) = (right.next()?.to_owned(), unescape(right.next()?));
        let options = [*left.get(5)?, right.next().unwrap_or_default()];
        let options = options.iter().flat_map(|o| o.split(',')).map(str::to_owned).collect();
        let (major, minor) = left.get(2)?.split_once(':')?;
        let dev = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
        Some(Mount { dev, point: unescape(left.get(4)?).into(), kind, source, options })
    };
    text.lines().filter_map(mount).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes in octal.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}

/// The mount a path (absolute, no links in it) lies on; of several at one point the last one covers the others.
pub fn of<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let under = mounts.iter().filter(|m| path.starts_with(&m.point));
    under.max_by_key(|m| m.point.components().count())
}

/// Who sees a file system, and whether locks on it reach them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locks {
    /// Only this host sees it.
    Local,
    /// Other hosts may see it, and locks reach them.
    Shared,
    /// Other hosts may see it, and locks do not reach them, or nobody knows.
    Alone(&'static str),
    /// No locks at all.
    None(&'static str),
}

const LOCAL: [&str; 14] = [
    "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "f2fs", "bcachefs", "jfs", "nilfs2",
    "overlay", "reiserfs",
];

pub fn locks(m: &Mount) -> Locks {
    let has = |o: &str| m.options.iter().any(|x| x == o);
    let starts = |o: &str| m.options.iter().any(|x| x.starts_with(o));
    match m.kind.as_str() {
        k if LOCAL.contains(&k) => Locks::Local,
        "nfs" | "nfs4" if has("nolock") => Locks::Alone("nolock: locks stay on this host"),
        "nfs" | "nfs4" if has("local_lock=all") || has("local_lock=posix") => {
            Locks::Alone("local_lock: locks stay on this host")
        }
        "nfs" | "nfs4" if starts("vers=3") || starts("vers=2") => {
            Locks::Alone("NFS before version 4: a lock is lost when a server restarts, and nobody is told")
        }
        "gfs2" | "ocfs2" if has("localflocks") => Locks::Alone("localflocks: locks stay on this host"),
        "nfs" | "nfs4" | "gfs2" | "ocfs2" | "ceph" | "fuse.ceph" | "fuse.ceph-fuse" | "fuse.glusterfs" => {
            Locks::Shared
        }
        "lustre" if has("flock") => Locks::Shared,
        "lustre" if has("localflock") => Locks::Alone("localflock: locks stay on this host"),
        "lustre" => Locks::None("lustre has locks only when mounted with flock"),
        "cifs" | "smb3" if has("nobrl") => Locks::Alone("nobrl: locks stay on this host"),
        _ => Locks::Alone("whether locks reach other hosts is not known for this type"),
    }
}

/// Types that only this host sees, by the number `statfs` gives: most datastores need no mount table.
const LOCAL_MAGIC: [u64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x2fc1_2fc1];

/// How far locks on the file system of a directory reach.
pub fn of_dir(dir: &Dir) -> std::io::Result<Locks> {
    let kind = rustix::fs::fstatfs(dir.fd())?.f_type.cast_unsigned();
    if LOCAL_MAGIC.contains(&kind) {
        return Ok(Locks::Local);
    }
    let dev = rustix::fs::fstat(dir.fd())?.st_dev;
    let table = parse(&std::fs::read_to_string("/proc/self/mountinfo")?);
    // A file system has one set of these options, wherever it is mounted.
    Ok(table.iter().find(|m| m.dev == dev).map_or(Locks::Alone("it is not in the mount table"), locks))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:40 / /var/lib/one/datastores/100 rw,noatime shared:2 master:3 - nfs4 srv:/ds rw,vers=4.2,hard,local_lock=none
31 22 0:41 / /mnt/with\\040blank ro - nfs srv:/x rw,vers=3
32 31 0:42 / /mnt/with\\040blank rw - tmpfs none rw
garbage
33 - x";

    #[test]
    fn a_path_lies_on_its_deepest_and_last_mount() {
        let table = parse(TABLE);
        assert_eq!(table.len(), 4);
        for (path, kind) in [
            ("/", "ext4"),
            ("/var/lib/one/datastores/1", "ext4"),
            ("/var/lib/one/datastores/1000", "ext4"),
            ("/var/lib/one/datastores/100/.sdm", "nfs4"),
            ("/mnt/with blank", "tmpfs"),
        ] {
            assert_eq!(of(Path::new(path), &table).unwrap().kind, kind, "{path}");
        }
        assert_eq!(of(Path::new("/"), &[]), None);
    }

    #[test]
    fn types_and_options_decide_how_far_locks_reach() {
        for (kind, options, reach) in [
            ("ext4", "rw", "Local"),
            ("nfs4", "rw,vers=4.2,local_lock=none", "Shared"),
            ("nfs4", "rw,vers=4.1,local_lock=flock", "Shared"),
            ("nfs", "rw,vers=4.0", "Shared"),
            ("nfs", "rw,vers=3,local_lock=none", "Alone"),
            ("nfs", "rw,vers=3,nolock", "Alone"),
            ("nfs4", "rw,vers=4.2,local_lock=all", "Alone"),
            ("nfs4", "rw,vers=4.2,local_lock=posix", "Alone"),
            ("gfs2", "rw", "Shared"),
            ("ocfs2", "rw,localflocks", "Alone"),
            ("lustre", "rw,flock", "Shared"),
            ("lustre", "rw", "None"),
            ("fuse.sshfs", "rw", "Alone"),
            ("fuse.glusterfs", "rw", "Shared"),
            ("9p", "rw", "Alone"),
            ("tomorrowfs", "rw", "Alone"),
        ] {
            let m = &parse(&format!("1 0 0:1 / /x rw - {kind} src {options}"))[0];
            let found = format!("{:?}", locks(m));
            assert!(found.starts_with(reach), "{kind} {options}: {found}");
        }
    }
}
