//! The files an image consists of, from the one a guest writes down to the root.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::sys::{Class, qemu_holds};

use super::error::shown;
use super::probe::{probe, probe_as};
use super::{Backing, Format, ImageError, Probe};

/// More files than anybody's snapshots, fewer than would exhaust a reader.
const DEPTH: usize = 200;

/// One file of a chain.
#[derive(Clone, Debug)]
pub struct Link {
    /// As reached: the given path, or the backing name beside the file that names it.
    pub path: PathBuf,
    /// The same without symbolic links, as the kernel says it of the file that was read.
    pub real: PathBuf,
    pub dev: u64,
    pub ino: u64,
    pub probe: Probe,
}

/// The files of the image at `top`, itself first, its root last. `top` is guessed (see `probe`), the
/// others have the format recorded for them.
pub fn chain(top: &Path) -> Result<Vec<Link>, ImageError> {
    walk(top, None)
}

/// The same when the format of `top` is on record: what a guest wrote into a raw disk stays its matter.
pub fn chain_as(top: &Path, format: Format) -> Result<Vec<Link>, ImageError> {
    walk(top, Some(format))
}

/// The last file of the chain, on which all others depend.
pub fn root_of_chain(top: &Path) -> Result<Link, ImageError> {
    // A chain has at least its top.
    chain(top)?.pop().ok_or(ImageError::NotAnImage)
}

/// The first file that a running qemu has open. An answer for this moment.
pub fn held(links: &[Link]) -> Result<Option<&Link>, ImageError> {
    for link in links {
        let io = |source| ImageError::Io { what: "looking for a running qemu", source }.at(&link.path);
        if qemu_holds(&open(&link.path).map_err(|e| e.at(&link.path))?).map_err(io)? {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

fn walk(top: &Path, format: Option<Format>) -> Result<Vec<Link>, ImageError> {
    let mut links: Vec<Link> = Vec::new();
    let mut next = Some((top.to_owned(), open(top).map_err(|e| e.at(top))?, format));
    while let Some((path, file, format)) = next.take() {
        let link = read(path, &file, format)?;
        if links.iter().any(|l| (l.dev, l.ino) == (link.dev, link.ino)) {
            return Err(ImageError::Loop { path: link.path });
        }
        if links.len() == DEPTH {
            return Err(ImageError::TooDeep { limit: DEPTH });
        }
        if let Some(backing) = &link.probe.backing {
            let (path, file) = follow(&link, backing)?;
            next = Some((path, file, backing.format));
        }
        links.push(link);
    }
    Ok(links)
}

fn read(path: PathBuf, file: &File, format: Option<Format>) -> Result<Link, ImageError> {
    let meta =
        file.metadata().map_err(|source| ImageError::Io { what: "looking at it", source }.at(&path))?;
    let real =
        std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap_or_else(|_| path.clone());
    let probe = match format {
        Some(format) => probe_as(file, format),
        None => probe(file),
    };
    let probe = probe.map_err(|e| e.at(&path))?;
    Ok(Link { path, real, dev: meta.dev(), ino: meta.ino(), probe })
}

/// Opens the backing file. Readers look beside the path they were given; where nothing is there we also
/// look beside the file that path leads to, since the bare numbers some drivers record only fit there.
fn follow(link: &Link, backing: &Backing) -> Result<(PathBuf, File), ImageError> {
    let name = local(&backing.name)?;
    let beside = |at: &Path| at.parent().unwrap_or(Path::new("")).join(name);
    let path = beside(&link.path);
    let missing = |e: &ImageError| e.class() == Class::NotFound;
    match open(&path) {
        Err(e) if missing(&e) => match open(&beside(&link.real)) {
            Ok(file) => Ok((beside(&link.real), file)),
            Err(_) => Err(e.at(&path)),
        },
        Err(e) => Err(e.at(&path)),
        Ok(file) => Ok((path, file)),
    }
}

/// Where the file is that the image at `path` builds on, found as `chain` finds it. Nothing is opened.
pub fn below(path: &Path, backing: &Backing) -> Result<PathBuf, ImageError> {
    let name = local(&backing.name)?;
    let beside = |at: &Path| at.parent().unwrap_or(Path::new("")).join(name);
    let first = beside(path);
    match std::fs::metadata(&first) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let real = path.canonicalize().map(|real| beside(&real)).ok().filter(|p| p.exists());
            real.ok_or(ImageError::Io { what: "opening it", source: e }.at(&first))
        }
        Err(source) => Err(ImageError::Io { what: "looking at it", source }.at(&first)),
        Ok(_) => Ok(first),
    }
}

/// The path a recorded name means, if it means one: `nbd:…`, `json:…` and the like do not.
fn local(name: &OsStr) -> Result<&Path, ImageError> {
    let bytes = name.as_bytes();
    let path = bytes.strip_prefix(b"file:").unwrap_or(bytes);
    if path.is_empty() || has_protocol(path) {
        return Err(ImageError::Foreign { name: shown(name) });
    }
    Ok(Path::new(OsStr::from_bytes(path)))
}

/// Whether readers take what stands before the first colon as a protocol.
pub(super) fn has_protocol(name: &[u8]) -> bool {
    name.iter().find(|b| matches!(b, b':' | b'/')) == Some(&b':')
}

/// Opens to read, without hanging in a pipe that somebody put in place of an image.
pub(super) fn open(path: &Path) -> Result<File, ImageError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = rustix::fs::open(path, flags, Mode::empty());
    fd.map(File::from).map_err(|e| ImageError::Io { what: "opening it", source: e.into() })
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Header, MIB, overlay};
    use super::*;
    use std::os::unix::fs::symlink;

    fn raw(path: &Path) {
        File::create(path).unwrap().set_len(4 * MIB).unwrap();
    }

    /// The names of the files, each as the kernel knows it.
    fn files(top: &Path) -> Vec<String> {
        let name = |l: Link| l.real.file_name().unwrap().to_string_lossy().into_owned();
        chain(top).unwrap_or_else(|e| panic!("{e}")).into_iter().map(name).collect()
    }

    #[test]
    fn the_layouts_of_the_drivers_resolve() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        let text = |p: &str| at(p).into_os_string().into_string().unwrap();
        for d in ["ds", "ds/img.snap", "vm", "vm/disk.0.snap", "vm/disk.1.snap"] {
            std::fs::create_dir(at(d)).unwrap();
        }
        raw(&at("ds/base"));
        overlay(&at("ds/img"), Some((&text("ds/base"), Format::Raw)));
        // Persistent: absolute links and names, and a link of the directory to itself.
        symlink(at("ds/img"), at("ds/img.snap/0")).unwrap();
        symlink(".", at("ds/img.snap/img.snap")).unwrap();
        overlay(&at("ds/img.snap/1"), Some((&text("ds/img.snap/0"), Format::Qcow2)));
        overlay(&at("ds/img.snap/2"), Some((&text("ds/img.snap/1"), Format::Qcow2)));
        symlink(at("ds/img.snap/2"), at("vm/disk.2")).unwrap();
        // Not persistent: names that fit beside the disk and, by the self link, beside the file.
        overlay(&at("vm/disk.0.snap/0"), Some((&text("ds/img"), Format::Qcow2)));
        overlay(&at("vm/disk.0.snap/1"), Some(("disk.0.snap/0", Format::Qcow2)));
        symlink(".", at("vm/disk.0.snap/disk.0.snap")).unwrap();
        symlink("disk.0.snap/1", at("vm/disk.0")).unwrap();
        // Local: bare numbers.
        overlay(&at("vm/disk.1.snap/0"), None);
        overlay(&at("vm/disk.1.snap/1"), Some(("0", Format::Qcow2)));
        overlay(&at("vm/disk.1.snap/2"), Some(("1", Format::Qcow2)));
        symlink("disk.1.snap/2", at("vm/disk.1")).unwrap();
        for layer in ["ds/img.snap/2", "vm/disk.0.snap/1", "vm/disk.0", "vm/disk.1", "ds/img"] {
            let chain = chain(&at(layer)).unwrap();
            let found = below(&at(layer), chain[0].probe.backing.as_ref().unwrap()).unwrap();
            assert_eq!(found.metadata().unwrap().ino(), chain[1].ino, "{layer}");
        }
        for (top, expected) in [
            ("ds/base", vec!["base"]),
            ("vm/disk.2", vec!["2", "1", "img", "base"]),
            ("vm/disk.0", vec!["1", "0", "img", "base"]),
            ("vm/disk.0.snap/1", vec!["1", "0", "img", "base"]),
            ("vm/disk.1", vec!["2", "1", "0"]),
        ] {
            assert_eq!(files(&at(top)), expected, "{top}");
        }
        let root = root_of_chain(&at("vm/disk.0")).unwrap();
        assert_eq!(root.ino, at("ds/base").metadata().unwrap().ino());
        assert!(held(&chain(&at("vm/disk.0")).unwrap()).unwrap().is_none());
    }

    #[test]
    fn loops_and_endless_chains_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        overlay(&at("self"), Some(("self", Format::Qcow2)));
        overlay(&at("a"), Some(("b", Format::Qcow2)));
        overlay(&at("b"), Some(("also-a", Format::Qcow2)));
        std::fs::hard_link(at("a"), at("also-a")).unwrap();
        for top in ["self", "a", "b"] {
            assert!(matches!(chain(&at(top)), Err(ImageError::Loop { .. })), "{top}");
        }
        for n in 0..=DEPTH {
            let backing = format!("{}", n + 1).into_bytes();
            std::fs::write(at(&n.to_string()), Header { backing, ..Header::default() }.bytes()).unwrap();
        }
        raw(&at(&(DEPTH + 1).to_string()));
        assert!(matches!(chain(&at("1")), Err(ImageError::TooDeep { .. })));
        assert_eq!(chain(&at("2")).unwrap().len(), DEPTH);
    }

    #[test]
    fn what_a_guest_wrote_into_its_raw_disk_names_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        std::fs::write(at("disk"), Header { backing: b"/etc/passwd".to_vec(), ..Header::default() }.bytes())
            .unwrap();
        overlay(&at("top"), Some(("disk", Format::Raw)));
        assert_eq!(chain(&at("top")).unwrap().len(), 2);
        assert_eq!(chain_as(&at("disk"), Format::Raw).unwrap().len(), 1);
        assert_eq!(chain(&at("disk")).unwrap().len(), 2, "only a guess follows it");
    }

    #[test]
    fn broken_links_say_which_file() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        overlay(&at("orphan"), Some(("gone", Format::Qcow2)));
        let e = chain(&at("orphan")).unwrap_err();
        assert!(e.class() == Class::NotFound && e.to_string().contains("/gone"), "{e}");
        raw(&at("raw"));
        overlay(&at("mistaken"), Some(("raw", Format::Qcow2)));
        assert_eq!(chain(&at("mistaken")).unwrap_err().class(), Class::Integrity);
        for name in ["nbd://host/x", "json:{\"file\":1}", "rbd:pool/image", "file:"] {
            let h = Header { backing: name.into(), ..Header::default() };
            std::fs::write(at("foreign"), h.bytes()).unwrap();
            assert!(matches!(chain(&at("foreign")), Err(ImageError::Foreign { .. })), "{name}");
        }
        let h =
            Header { backing: [b"file:", at("raw").as_os_str().as_bytes()].concat(), ..Header::default() };
        std::fs::write(at("prefixed"), h.bytes()).unwrap();
        assert_eq!(chain(&at("prefixed")).unwrap().len(), 2);
        rustix::fs::mknodat(rustix::fs::CWD, at("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        let e = chain(&at("pipe")).unwrap_err();
        assert!(matches!(e.cause(), ImageError::NotAnImage), "{e}");
    }
}
