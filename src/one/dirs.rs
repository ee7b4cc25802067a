//! Which local files may become images. The decision is made about the file that was opened, by its
//! real path and whole path components, for every driver alike.

use super::{DatastoreDoc, OneError};
use crate::sys::path::Pinned;
use rustix::fs::FileType;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// No image lives there, and reading there tells secrets of processes.
const PSEUDO: &[&str] = &["/proc", "/sys"];

/// Whether block devices may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockDevices {
    Refuse,
    Allow,
}

/// The directories of one datastore's policy. SAFE_DIRS win over restricted ones; what neither names
/// is allowed, as in the stock drivers.
#[derive(Clone, Debug)]
pub struct DirPolicy {
    datastore: i64,
    safe: Vec<PathBuf>,
    restricted: Vec<PathBuf>,
    devices: BlockDevices,
    warnings: Vec<String>,
}

impl DirPolicy {
    /// `builtin` are the directories restricted in every datastore: the installation's var and etc
    /// directories and the account's home.
    pub fn new(builtin: &[&Path], datastore: &DatastoreDoc, devices: BlockDevices) -> DirPolicy {
        let mut policy = DirPolicy {
            datastore: datastore.id,
            safe: Vec::new(),
            restricted: Vec::new(),
            devices,
            warnings: Vec::new(),
        };
        let listed = datastore.restricted_dirs.iter().map(Path::new);
        for dir in builtin.iter().copied().chain(PSEUDO.iter().map(Path::new)).chain(listed) {
            // A restricted directory that is a link, or below one, counts by its target too.
            let target = dir.canonicalize().ok().filter(|_| dir.is_absolute());
            match (clean(dir), target) {
                (None, None) => policy.ignore(dir, "RESTRICTED_DIRS"),
                (clean, target) => policy.restricted.extend(clean.into_iter().chain(target)),
            }
        }
        for dir in datastore.safe_dirs.iter().map(Path::new) {
            // Not by its target: whoever may move the link would decide what is safe.
            let Some(clean) = clean(dir) else {
                policy.ignore(dir, "SAFE_DIRS");
                continue;
            };
            if let Some(target) = dir.canonicalize().ok().filter(|t| *t != clean) {
                policy.warnings.push(format!(
                    "SAFE_DIRS entry {} of datastore {} leads to {} and allows nothing: name that directory",
                    dir.display(),
                    policy.datastore,
                    target.display()
                ));
            }
            policy.safe.push(clean);
        }
        policy
    }

    /// Entries that do not mean what they seem to.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Decides about a real path; `asked` is what the user wrote.
    fn check(&self, asked: &Path, real: &Path) -> Result<(), OneError> {
        if self.safe.iter().any(|dir| real.starts_with(dir)) {
            return Ok(());
        }
        match self.restricted.iter().find(|dir| real.starts_with(dir)) {
            None => Ok(()),
            Some(dir) => Err(OneError::Restricted {
                path: asked.into(),
                real: real.into(),
                rule: dir.clone(),
                remedy: format!("RESTRICTED_DIRS and SAFE_DIRS of datastore {}", self.datastore),
            }),
        }
    }

    fn ignore(&mut self, dir: &Path, list: &str) {
        self.warnings.push(format!(
            "{list} entry {} of datastore {} is not an absolute path without \"..\": ignored",
            dir.display(),
            self.datastore
        ));
    }
}

/// Without double slashes, `.` and the last slash.
fn clean(dir: &Path) -> Option<PathBuf> {
    let plain = dir.is_absolute() && !dir.components().any(|c| c == Component::ParentDir);
    plain.then(|| dir.components().collect())
}

/// Opens a file or directory for reading if the policy allows the one that is really there. Links
/// are followed once, before the decision; FIFOs, sockets and character devices are refused without
/// being opened.
pub fn open_checked(path: &Path, policy: &DirPolicy) -> Result<File, OneError> {
    let pinned = Pinned::at(path).map_err(|source| OneError::Open { path: path.into(), source })?;
    open_pinned(path, &pinned, policy)
}

/// From here on `path` is only what the messages say.
fn open_pinned(path: &Path, pinned: &Pinned, policy: &DirPolicy) -> Result<File, OneError> {
    let open = |source| OneError::Open { path: path.into(), source };
    policy.check(path, &pinned.real_path().map_err(open)?)?;
    let kind = match pinned.kind() {
        FileType::RegularFile | FileType::Directory => return pinned.open().map_err(open),
        FileType::BlockDevice if policy.devices == BlockDevices::Allow => {
            return pinned.open().map_err(open);
        }
        FileType::BlockDevice => "block device",
        FileType::CharacterDevice => "character device",
        FileType::Fifo => "FIFO",
        FileType::Socket => "socket",
        FileType::Symlink | FileType::Unknown => "file of unknown type",
    };
    Err(OneError::Kind { path: path.into(), kind })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::one::DsDump;
    use crate::sys::Class;
    use std::os::unix::fs::symlink;
    use std::time::{Duration, Instant};

    fn policy(builtin: &[&Path], restricted: &str, safe: &str) -> DirPolicy {
        let xml = format!(
            "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>7</ID><TEMPLATE><RESTRICTED_DIRS>{restricted}</RESTRICTED_DIRS>\
             <SAFE_DIRS>{safe}</SAFE_DIRS></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>"
        );
        let request = DsDump::parse(xml.as_bytes()).unwrap().request(Path::new("/ds")).unwrap();
        DirPolicy::new(builtin, &request.datastore, BlockDevices::Refuse)
    }

    fn scene() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for sub in ["var/secret", "safe", "safefoo", "free"] {
            std::fs::create_dir_all(root.join(sub)).unwrap();
        }
        for file in ["var/one_auth", "safe/a", "safefoo/a", "free/a"] {
            std::fs::write(root.join(file), file).unwrap();
        }
        (dir, root)
    }

    #[test]
    fn whole_components_decide_and_safe_wins() {
        let p = |r, s| policy(&[Path::new("/var/lib/one//"), Path::new("/etc/one")], r, s);
        let ask = |p: &DirPolicy, path: &str| p.check(Path::new(path), Path::new(path)).is_ok();
        for (restricted, safe, path, allowed) in [
            ("", "", "/srv/a", true),
            ("", "", "/var/lib/one/a", false),
            ("", "", "/var/lib/one", false),
            ("", "", "/var/lib/onefoo/a", true),
            ("", "", "/proc/1/environ", false),
            ("", "/var/lib/one/images", "/var/lib/one/images/a", true),
            ("", "/var/lib/one/images", "/var/lib/one/imagesfoo/a", false),
            ("/", "/var/tmp", "/var/tmp/a", true),
            ("/", "/var/tmp/", "/var/tmp/a", true),
            ("/", "/var/tmp", "/var/tmpfoo/a", false),
            ("/", "/var/t.p", "/var/tmp/a", false),
            ("/", "/var/tmp /srv", "/srv/a", true),
            ("/", "tmp .", "/tmp/a", false),
            ("/srv  /data\n/x//y/", "", "/x/y/z", false),
            ("/usr/../etc", "", "/etc/a", false),
            ("/none/../data", "", "/data/a", true),
        ] {
            assert_eq!(ask(&p(restricted, safe), path), allowed, "{restricted:?} {safe:?} {path}");
        }
        assert_eq!(p("/none/../b x", ".. /usr/bin/../lib").warnings().len(), 4);
    }

    #[test]
    fn the_opened_file_is_judged_not_its_name() {
        let (_dir, root) = scene();
        let var = root.join("var");
        let p = policy(&[&var], "", "");
        symlink("../var/one_auth", root.join("free/link")).unwrap();
        symlink("../var", root.join("free/dir")).unwrap();
        symlink("safe/a", root.join("good")).unwrap();
        for bad in
            ["var/one_auth", "free/link", "free/dir/one_auth", "free/../var/one_auth", "var", "free/dir"]
        {
            let error = open_checked(&root.join(bad), &p).unwrap_err();
            assert_eq!(error.class(), Class::Refused, "{bad}: {error}");
            let text = error.to_string();
            assert!(text.contains("SAFE_DIRS of datastore 7") && text.contains(bad), "{text}");
            assert!(text.contains(&format!("{var:?}")), "{text}");
        }
        for good in ["free/a", "good", "safe", "var/../free/a"] {
            open_checked(&root.join(good), &p).unwrap();
        }
        let p = policy(&[&var], "/", root.join("safe").to_str().unwrap());
        open_checked(&root.join("good"), &p).unwrap();
        assert_eq!(open_checked(&root.join("safefoo/a"), &p).unwrap_err().class(), Class::Refused);
        assert_eq!(open_checked(&root.join("none"), &p).unwrap_err().class(), Class::NotFound);
    }

    #[test]
    fn links_in_the_policy_restrict_but_do_not_allow() {
        let (_dir, root) = scene();
        symlink(root.join("var"), root.join("varlink")).unwrap();
        let p = policy(&[&root.join("varlink")], "", "");
        assert_eq!(open_checked(&root.join("var/one_auth"), &p).unwrap_err().class(), Class::Refused);
        let p = policy(&[], "/", root.join("varlink").to_str().unwrap());
        assert_eq!(open_checked(&root.join("varlink/one_auth"), &p).unwrap_err().class(), Class::Refused);
        assert!(p.warnings()[0].contains("name that directory"), "{:?}", p.warnings());
    }

    #[test]
    fn a_link_swapped_after_pinning_gains_nothing() {
        let (_dir, root) = scene();
        let (link, next) = (root.join("free/link"), root.join("free/next"));
        let p = policy(&[&root.join("var")], "", "");
        let point = |target| {
            symlink(target, &next).unwrap();
            rustix::fs::rename(&next, &link).unwrap();
        };
        point("../var/one_auth");
        let secret = Pinned::at(&link).unwrap();
        point("a");
        let harmless = Pinned::at(&link).unwrap();
        assert_eq!(open_pinned(&link, &secret, &p).unwrap_err().class(), Class::Refused);
        point("../var/one_auth");
        let file = open_pinned(&link, &harmless, &p).unwrap();
        assert_eq!(std::io::read_to_string(file).unwrap(), "free/a");
    }

    #[test]
    fn special_files_are_refused_at_once() {
        let (_dir, root) = scene();
        let fifo = root.join("free/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, 0o600.into(), 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("free/sock")).unwrap();
        let p = policy(&[], "", "");
        let start = Instant::now();
        for special in [&fifo, &root.join("free/sock"), Path::new("/dev/zero"), Path::new("/dev/tty")] {
            let error = open_checked(special, &p).unwrap_err();
            assert!(matches!(error, OneError::Kind { .. }), "{error}");
        }
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn names_are_bytes_and_messages_one_line() {
        let (_dir, root) = scene();
        for name in ["it's \"a\" name", "two\nlines", "-rf", "$(touch x)", "back\\slash", "a (deleted)"] {
            let path = root.join("free").join(name);
            let p = policy(&[&root.join("free")], "", "");
            let missing = open_checked(&path, &p).unwrap_err().to_string();
            std::fs::write(&path, "x").unwrap();
            let refused = open_checked(&path, &p).unwrap_err().to_string();
            assert!(!missing.contains('\n') && !refused.contains('\n'), "{missing} {refused}");
            open_checked(&path, &policy(&[], "", "")).unwrap();
        }
        let long = root.join("x".repeat(5000));
        assert!(open_checked(&long, &policy(&[], "", "")).is_err());
        assert!(open_checked(Path::new("/a\0b"), &policy(&[], "", "")).is_err());
    }
}
