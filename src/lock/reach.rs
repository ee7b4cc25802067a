//! How far locks on a file system reach: what types and options of mounts mean for locks.

use crate::sys::fs::Dir;
use crate::sys::mounts::{self, Mount};

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
    let table = mounts::read()?;
    // A file system has one set of these options, wherever it is mounted.
    Ok(table.iter().find(|m| m.dev == dev).map_or(Locks::Alone("it is not in the mount table"), locks))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("lustre", "rw,localflock", "Alone"),
            ("lustre", "rw", "None"),
            ("smb3", "rw,nobrl", "Alone"),
            ("fuse.sshfs", "rw", "Alone"),
            ("fuse.glusterfs", "rw", "Shared"),
            ("9p", "rw", "Alone"),
            ("tomorrowfs", "rw", "Alone"),
        ] {
            let m = &mounts::parse(&format!("1 0 0:1 / /x rw - {kind} src {options}"))[0];
            let found = format!("{:?}", locks(m));
            assert!(found.starts_with(reach), "{kind} {options}: {found}");
        }
    }
}
