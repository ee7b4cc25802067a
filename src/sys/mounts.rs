//! The mount table of this process.

use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its number, as long as it lasts; a later one may have the same.
    pub id: u64,
    /// The device number of what is mounted.
    pub dev: u64,
    pub point: PathBuf,
    pub kind: String,
    pub source: String,
    /// Of the mount and of the file system.
    pub options: Vec<String>,
}

impl Mount {
    /// Of a type that other hosts may have mounted, too.
    pub fn is_of_network(&self) -> bool {
        const TYPES: [&str; 8] = ["nfs", "nfs4", "ceph", "cifs", "smb3", "gfs2", "ocfs2", "lustre"];
        TYPES.contains(&self.kind.as_str()) || self.kind.starts_with("fuse.")
    }
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
        let id = left.first()?.parse().ok()?;
        Some(Mount { id, dev, point: unescape(left.get(4)?).into(), kind, source, options })
    };
    text.lines().filter_map(mount).collect()
}

/// The kernel writes blanks, tabs, newlines and backslashes in octal.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
}

/// What is mounted now. Asks no file system, so it does not hang with one.
pub fn read() -> std::io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// What a parameter of a module of the kernel is now; `None` where the module or the parameter is not there.
pub fn parameter(module: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/module/{module}/parameters/{name}")).ok()?;
    Some(text.trim().to_owned())
}

/// The mount a path (absolute, no links in it) lies on; of several at one point the last one covers the others.
pub fn of<'a>(path: &Path, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let under = mounts.iter().filter(|m| path.starts_with(&m.point));
    under.max_by_key(|m| m.point.components().count())
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
}
