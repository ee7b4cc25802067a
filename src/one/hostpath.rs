//! `host:path` arguments. A host becomes an argument of ssh, a path the object of removals: both are
//! refused unless they are plainly what they should be.

use super::name::squeeze;
use super::{OneError, Volume};
use std::path::{Path, PathBuf};

/// A host as OpenNebula names it: `node1`, `one@node1.example`, an IPv6 address without brackets.
/// Never an option of a command, and nothing a shell or ssh would expand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(String);

impl HostName {
    pub fn parse(text: &str) -> Result<HostName, &'static str> {
        if text.is_empty() {
            return Err("a host name and not nothing");
        }
        // ssh puts host and user into command lines (ProxyCommand %h), so only plain words pass.
        let word = |part: &str| {
            !part.is_empty()
                && !part.starts_with('-')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        let address = |part: &str| {
            let (ip, zone) = part.split_once('%').unwrap_or((part, "0"));
            ip.parse::<std::net::Ipv6Addr>().is_ok() && word(zone)
        };
        let (user, host) = text.split_once('@').unwrap_or(("one", text));
        if word(user) && (word(host) || address(host)) && text.len() <= 255 {
            return Ok(HostName(text.to_owned()));
        }
        Err("a host name of letters, digits, dots and dashes, not beginning with a dash")
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for HostName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A place on a host. Without a host it is on the front-end: an argument without a colon, which stock
/// drivers read as host and path at once, and know by that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPath {
    pub host: Option<HostName>,
    /// Absolute, without `..`, double slashes and the last slash.
    pub path: PathBuf,
}

impl HostPath {
    /// The host is before the first colon, unless the text begins with a slash: no host does, and core
    /// leaves `fe:` away before sources that hold a colon. The error says what was expected.
    pub fn parse(text: &str) -> Result<HostPath, &'static str> {
        // An image on a volume group has no path; its device has.
        let place = |path: &str| match Volume::parse(path) {
            Ok(v) => Ok(PathBuf::from(format!("/dev/{}", v.source()))),
            Err(_) => absolute(path),
        };
        let (host, path) = match text.strip_prefix('[').and_then(|t| t.split_once("]:")) {
            _ if Volume::parse(text).is_ok() => (None, text),
            _ if text.starts_with('/') => (None, text),
            Some((host, path)) => (Some(host), path),
            None => match text.split_once(':') {
                Some((_, path)) if path.starts_with("//") => return Err("host:path and not a URL"),
                Some((host, path)) => (Some(host), path),
                None => return Err("host:path or an absolute path"),
            },
        };
        let host = host.map(HostName::parse).transpose()?;
        Ok(HostPath { host, path: place(path)? })
    }

    /// The number in the name of a disk; `None` for directories, kernels and the like.
    pub fn disk_id(&self) -> Option<u32> {
        disk_number(self.path.file_name()?.to_str()?)
    }

    /// Whether the last component is `disk.<digits>`. Stock looks for that anywhere in the path, and so
    /// takes the directory of a VM below `/srv/disk.1/` for a disk.
    pub fn is_disk(&self) -> bool {
        self.disk_id().is_some()
    }
}

/// Shows it as an argument, IPv6 addresses in brackets.
impl std::fmt::Display for HostPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            None => Ok(()),
            Some(host) if host.0.contains(':') => write!(f, "[{host}]:"),
            Some(host) => write!(f, "{host}:"),
        }?;
        write!(f, "{}", self.path.display())
    }
}

/// A clean absolute path, below the root.
pub(super) fn absolute(path: &str) -> Result<PathBuf, &'static str> {
    let clean = squeeze(path);
    match path {
        p if !p.starts_with('/') => Err("an absolute path after the host"),
        p if p.split('/').any(|c| c == "..") => Err("a path without \"..\""),
        p if p.chars().any(char::is_control) => Err("a path without control characters"),
        _ if clean == Path::new("/") => Err("a path below the root"),
        _ => Ok(clean),
    }
}

fn disk_number(name: &str) -> Option<u32> {
    digits(name.strip_prefix("disk.")?)
}

/// A number as core writes it: digits only, so `+1` and `01` name nothing.
pub(super) fn digits(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The directory of a VM in a system datastore: `<root>/<ds>/<vm>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmDir {
    /// Where datastores live on that host, which may differ from the front-end's.
    pub root: PathBuf,
    pub ds: u32,
    pub vm: u32,
}

impl VmDir {
    pub fn parse(dir: &Path) -> Option<VmDir> {
        let number = |p: &Path| digits(p.file_name()?.to_str()?);
        let ds = dir.parent()?;
        Some(VmDir { root: ds.parent()?.to_owned(), ds: number(ds)?, vm: number(dir)? })
    }

    pub fn path(&self) -> PathBuf {
        self.datastore().join(self.vm.to_string())
    }

    /// The directory of the system datastore.
    pub fn datastore(&self) -> PathBuf {
        self.root.join(self.ds.to_string())
    }

    pub fn disk(&self, id: u32) -> PathBuf {
        self.path().join(format!("disk.{id}"))
    }

    /// The front-end's path of an image as the host of this directory sees it: the host's own root and
    /// the last two components, `<datastore>/<image>`. `None` when it has no two.
    pub fn translate(&self, image: &Path) -> Option<PathBuf> {
        let name = image.file_name()?;
        Some(self.root.join(image.parent()?.file_name()?).join(name))
    }
}

/// What lies in a VM's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaf {
    /// The directory itself.
    Dir,
    Disk(u32),
    /// `kernel`, `initrd`.
    Named(String),
}

/// A place in the directory of a VM on a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmPath {
    pub host: Option<HostName>,
    pub dir: VmDir,
    pub leaf: Leaf,
}

impl VmPath {
    /// The error says what was expected.
    pub fn of(place: HostPath) -> Result<VmPath, &'static str> {
        const WANT: &str = "host:<datastores>/<system datastore>/<vm>, and there a disk.N or nothing more";
        let HostPath { host, path } = place;
        if let Some(dir) = VmDir::parse(&path) {
            return Ok(VmPath { host, dir, leaf: Leaf::Dir });
        }
        let name = path.file_name().and_then(|n| n.to_str()).ok_or(WANT)?;
        let leaf = match disk_number(name) {
            Some(n) => Leaf::Disk(n),
            None if name == "kernel" || name == "initrd" => Leaf::Named(name.to_owned()),
            None => return Err(WANT),
        };
        let dir = path.parent().and_then(VmDir::parse).ok_or(WANT)?;
        Ok(VmPath { host, dir, leaf })
    }

    pub fn path(&self) -> PathBuf {
        match &self.leaf {
            Leaf::Dir => self.dir.path(),
            Leaf::Disk(n) => self.dir.disk(*n),
            Leaf::Named(name) => self.dir.path().join(name),
        }
    }

    pub fn disk_id(&self) -> Option<u32> {
        if let Leaf::Disk(n) = self.leaf { Some(n) } else { None }
    }

    /// An error when the directory is another VM's than the call says.
    pub(super) fn belongs_to(&self, vm: u32) -> Result<(), OneError> {
        if self.dir.vm == vm {
            return Ok(());
        }
        Err(OneError::OtherVm { path: self.dir.path(), found: self.dir.vm, want: vm })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hosts_and_paths_are_taken_apart() {
        for (text, host, path, disk) in [
            ("h:/v//ds/101/0/disk.0", Some("h"), "/v/ds/101/0/disk.0", Some(0)),
            ("fe.example:/v/ds/101/0///", Some("fe.example"), "/v/ds/101/0", None),
            ("h:/v/a:b/101/0/disk.12", Some("h"), "/v/a:b/101/0/disk.12", Some(12)),
            ("/v//ds/100/abc", None, "/v/ds/100/abc", None),
            ("/v/ds/100/a:/b", None, "/v/ds/100/a:/b", None),
            ("[fe80::1]:/v/1/2/disk.3", Some("fe80::1"), "/v/1/2/disk.3", Some(3)),
            ("[fe80::1%eth0]:/v", Some("fe80::1%eth0"), "/v", None),
            ("one@h-1_x:/v/./x", Some("one@h-1_x"), "/v/x", None),
            ("h:/srv/disk.1/ds/101/0", Some("h"), "/srv/disk.1/ds/101/0", None),
            ("h:/v/1/2/disk.x", Some("h"), "/v/1/2/disk.x", None),
            ("h:/v/1/2/disk.0.snap", Some("h"), "/v/1/2/disk.0.snap", None),
            ("h:/v/1/2/disk.", Some("h"), "/v/1/2/disk.", None),
            ("h:/v/1/2/disk.99999999999", Some("h"), "/v/1/2/disk.99999999999", None),
            ("h:/v/größe x", Some("h"), "/v/größe x", None),
            ("fe:vg-one-100/img-one-7", Some("fe"), "/dev/vg-one-100/img-one-7", None),
            ("vg-one-100/img-one-7", None, "/dev/vg-one-100/img-one-7", None),
        ] {
            let got = HostPath::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(got.host.as_ref().map(HostName::as_str), host, "{text}");
            assert_eq!((got.path.as_path(), got.disk_id()), (Path::new(path), disk), "{text}");
            assert_eq!(got.is_disk(), disk.is_some());
            assert_eq!(HostPath::parse(&got.to_string()).unwrap(), got);
        }
    }

    #[test]
    fn what_is_no_place_is_refused() {
        for bad in [
            "",
            "h",
            ":",
            "h:",
            ":/v",
            "h:v/x",
            "vg-one-100/vm-one-7-0",
            "h:vg-one-100/../x",
            "h:./x",
            "h:/",
            "h://",
            "h:/.",
            "/",
            "h:/v/../x",
            "/v/..",
            "h:/a\nb",
            "h:/a\0b",
            "h:/\x1b[31m",
            "-oProxyCommand=x:/v",
            "-l:/v",
            "a b:/v",
            "h\t:/v",
            "h\n:/v",
            "$(x):/v",
            "`x`:/v",
            "h;x:/v",
            "a/b:/v",
            "x@-h:/v",
            "-x@h:/v",
            "@h:/v",
            "h@:/v",
            "a@b@c:/v",
            "[h:/v",
            "[]:/v",
            "[-h]:/v",
            "[fe80::1%-e]:/v",
            "[fe80::1]/v",
            "fe80::1:/v",
            "rbd:pool/one-1",
            "http://h/x",
            "h%h:/v",
            "hö:/v",
        ] {
            assert!(HostPath::parse(bad).is_err(), "{bad:?}");
        }
        assert!(HostPath::parse(&format!("{}:/v", "h".repeat(300))).is_err());
    }

    #[test]
    fn directories_of_vms() {
        let of = |text: &str| VmPath::of(HostPath::parse(text).unwrap());
        let disk = of("h:/r/ds/101/7/disk.2").unwrap();
        assert_eq!(disk.dir, VmDir { root: "/r/ds".into(), ds: 101, vm: 7 });
        assert_eq!((disk.leaf.clone(), disk.path()), (Leaf::Disk(2), "/r/ds/101/7/disk.2".into()));
        assert_eq!(disk.dir.datastore(), Path::new("/r/ds/101"));
        let image = Path::new("/var/lib/one/datastores/100/abc");
        assert_eq!(disk.dir.translate(image).unwrap(), Path::new("/r/ds/100/abc"));
        assert_eq!((disk.dir.translate(Path::new("/abc")), disk.dir.translate(Path::new("/"))), (None, None));
        assert_eq!(of("h:/r/101/7").unwrap().leaf, Leaf::Dir);
        assert_eq!(of("h:/101/7").unwrap().dir.root, Path::new("/"));
        assert_eq!(of("h:/r/101/7/kernel").unwrap().path(), Path::new("/r/101/7/kernel"));
        assert!(disk.belongs_to(7).is_ok() && disk.belongs_to(8).is_err());
        for bad in [
            "h:/r",
            "h:/r/101",
            "h:/7",
            "h:/r/a/7",
            "h:/r/101/07",
            "h:/r/101/+7",
            "h:/r/101/7/x",
            "h:/r/101/7/disk.0/x",
            "h:/r/101/7/disk.00",
            "h:/etc/passwd",
            "h:/r/101/disk.0",
            "h:/r/101/99999999999",
        ] {
            assert!(of(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_safe(text in "(h|-|:|/|\\.|\\.\\.|disk\\.1|\\[|\\]|@| |1|\\PC){0,12}") {
            if let Ok(place) = HostPath::parse(&text) {
                prop_assert!(place.path.is_absolute());
                let ok = place.path.components().all(|c| c != std::path::Component::ParentDir);
                prop_assert!(ok);
                if let Some(host) = &place.host {
                    prop_assert!(!host.as_str().starts_with('-') && !host.as_str().contains([' ', '/']));
                }
            }
        }
    }
}
