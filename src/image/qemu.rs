//! `qemu-img`, with every format given, every file name literal and a cache mode that reports errors.
//! It can still lose data with status 0 where it has no cache mode (`create`, `resize`): the descriptor
//! the job opened before, and its fsync, are the proof.

use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::{
    Bytes, Cancel, Tool, ToolError, Tools,
    tool::{Limits, Output, Run, Watch},
};

use super::chain::has_protocol;
use super::error::shown;
use super::{Format, ImageError};

/// For what reads headers only.
const SMALL: Limits = Limits { memory: Some(2 << 30), cpu: Some(60) };
/// For what moves or checks all data: room for its threads and for the tables of a large image.
const LARGE: Limits = Limits { memory: Some(32 << 30), cpu: None };

/// Creation options a caller may give; others could name files or keys.
const OPTIONS: [&str; 8] = [
    "preallocation",
    "cluster_size",
    "compat",
    "lazy_refcounts",
    "refcount_bits",
    "compression_type",
    "extended_l2",
    "nocow",
];

/// The tool with what all its runs share.
#[derive(Clone, Copy)]
pub struct Qemu<'a> {
    pub tools: &'a Tools,
    pub cancel: &'a Cancel,
    pub deadline: Duration,
    /// Descriptors each run keeps: the lease of the job that writes.
    pub inherit: &'a [BorrowedFd<'a>],
}

/// What `convert` writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A file: made, or emptied and made anew.
    Create,
    /// An existing image or device, which is overwritten.
    Existing,
    /// The same, and it reads as zeroes, so zeroes need not be written.
    Zeroed,
}

/// Where progress goes.
pub struct Progress<'a> {
    /// Size of the disk.
    pub total: Bytes,
    /// Called with the bytes done, out of `total`.
    pub report: &'a mut dyn FnMut(Bytes),
}

/// How to convert.
pub struct Convert<'a> {
    pub target: Target,
    /// Leave blocks of zeroes out; otherwise everything is written.
    pub sparse: bool,
    /// The source is open in a machine that stands still.
    pub in_use: bool,
    /// For `Target::Create`.
    pub options: &'a [(&'a str, &'a str)],
    pub progress: Option<Progress<'a>>,
}

impl Default for Convert<'_> {
    fn default() -> Self {
        Convert { target: Target::Create, sparse: true, in_use: false, options: &[], progress: None }
    }
}

/// What happens to the space that an image grows by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    AsNeeded,
    /// Taken at once.
    Reserved,
}

/// How to change a backing file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rebase {
    /// Copies what would change, so the content stays. Can be run again after a crash.
    Safe,
    /// Only the name, for a file known to hold the same data; nothing is opened but the image.
    HeaderOnly,
}

/// What `check` counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Counts {
    /// Data is or may be wrong.
    pub corruptions: u64,
    /// Space is lost, data is not.
    pub leaks: u64,
    /// Places that could not be looked at.
    pub check_errors: u64,
}

impl Qemu<'_> {
    /// Makes an image of `size`, emptying what is at `path`. The backing name is recorded as it is and not
    /// opened. Undefined content after a crash: make it in a staging place.
    pub fn create(
        &self,
        path: &Path,
        format: Format,
        size: Bytes,
        backing: Option<(&OsStr, Format)>,
        options: &[(&str, &str)],
    ) -> Result<(), ImageError> {
        let mut args = words(&["create", "-q", "-f", format.opennebula()]);
        push_options(&mut args, options)?;
        if let Some((name, of)) = backing {
            recordable(name)?;
            args.extend(["-u".into(), "-b".into(), name.to_owned(), "-F".into(), of.opennebula().into()]);
        }
        args.extend([literal(path)?, size.0.to_string().into()]);
        self.run(&args, Run { limits: LARGE, writes: &[path], ..self.opts() }).map(drop)
    }

    /// Copies the disk a guest sees, with its whole chain, into one image. The source is only read.
    /// Undefined content after a crash.
    pub fn convert(
        &self,
        (src, from): (&Path, Format),
        (dst, to): (&Path, Format),
        mut how: Convert<'_>,
    ) -> Result<(), ImageError> {
        let mut args = words(&["convert", "-f", from.opennebula(), "-O", to.opennebula(), "-t", cache(dst)]);
        args.extend(words(match how.target {
            Target::Create => &[],
            Target::Existing => &["-n"],
            Target::Zeroed => &["-n", "--target-is-zero"],
        }));
        args.extend(words(if how.in_use { &["-U"] } else { &[] }));
        args.extend(words(if how.sparse { &[] } else { &["-S", "0"] }));
        args.extend(words(if how.progress.is_some() { &["-p"] } else { &["-q"] }));
        if how.target == Target::Create {
            push_options(&mut args, how.options)?;
        }
        args.extend([literal(src)?, literal(dst)?]);
        let mut percent = Percent::default();
        let mut watch = how
            .progress
            .as_mut()
            .map(|p| move |data: &[u8]| percent.feed(data, |n| (p.report)(Bytes(part(p.total.0, n)))));
        let watch = watch.as_mut().map(|w| w as Watch<'_>);
        self.run(&args, Run { limits: LARGE, writes: &[dst], watch, ..self.opts() }).map(drop)
    }

    /// Grows an image; a smaller size is refused. Run again it completes.
    pub fn resize(&self, path: &Path, format: Format, size: Bytes, space: Space) -> Result<(), ImageError> {
        let mut args = words(&["resize", "-q", "-f", format.opennebula()]);
        if space == Space::Reserved {
            args.push("--preallocation=falloc".into());
        }
        args.extend([literal(path)?, size.0.to_string().into()]);
        self.run(&args, Run { limits: LARGE, writes: &[path], ..self.opts() }).map(drop)
    }

    /// Puts another backing file under an image, or none.
    pub fn rebase(
        &self,
        path: &Path,
        format: Format,
        backing: Option<(&OsStr, Format)>,
        how: Rebase,
    ) -> Result<(), ImageError> {
        let mut args = words(&["rebase", "-q", "-f", format.opennebula(), "-t", cache(path)]);
        if how == Rebase::HeaderOnly {
            args.push("-u".into());
        }
        match backing {
            Some((name, of)) => {
                recordable(name)?;
                args.extend(["-b".into(), name.to_owned(), "-F".into(), of.opennebula().into()]);
            }
            None => args.extend(words(&["-b", ""])),
        }
        args.push(literal(path)?);
        self.run(&args, Run { limits: LARGE, writes: &[path], ..self.opts() }).map(drop)
    }

    /// Looks at all tables of an image, changing nothing; `None` when its format has nothing to check.
    pub fn check(&self, path: &Path, format: Format) -> Result<Option<Counts>, ImageError> {
        const NOT_CHECKED: i32 = 63;
        if format.is_raw() {
            return Ok(None);
        }
        let mut args = words(&["check", "--output=json", "-f", format.opennebula()]);
        args.push(literal(path)?);
        // 1: could not complete, 2: corrupt, 3: leaks.
        let ok = &[0, 1, 2, 3, NOT_CHECKED];
        let out = self.run(&args, Run { limits: LARGE, ok, ..self.opts() })?;
        if out.status == NOT_CHECKED {
            return Ok(None);
        }
        match serde_json::from_slice(&out.stdout) {
            Ok(counts) => Ok(Some(counts)),
            // It did not come as far as counting.
            Err(_) if out.status != 0 => Err(failed(out).into()),
            Err(e) => Err(ImageError::Answer(e.to_string())),
        }
    }

    /// What `qemu-img info` says, of an image in use as well. Its chain is not opened.
    pub fn info_json(&self, path: &Path, format: Format) -> Result<serde_json::Value, ImageError> {
        let mut args = words(&["info", "--output=json", "-U", "-f", format.opennebula()]);
        args.push(literal(path)?);
        let out = self.run(&args, Run { limits: SMALL, ..self.opts() })?;
        serde_json::from_slice(&out.stdout).map_err(|e| ImageError::Answer(e.to_string()))
    }

    fn opts(&self) -> Run<'_> {
        Run { inherit: self.inherit, ..Run::new(self.deadline, self.cancel) }
    }

    fn run(&self, args: &[OsString], opts: Run<'_>) -> Result<Output, ImageError> {
        let args: Vec<&OsStr> = args.iter().map(OsString::as_os_str).collect();
        let out = self.tools.run(Tool::QemuImg, &args, opts)?;
        // It says so when its last tables could not be written, and ends with status 0.
        if out.status == 0 && out.stderr_tail.contains("Failed to flush") {
            return Err(failed(out).into());
        }
        Ok(out)
    }
}

fn failed(out: Output) -> ToolError {
    ToolError::Failed { tool: Tool::QemuImg, status: out.status, stderr: out.stderr_tail }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// A path that is taken as one: beginning with a slash it has no protocol, and it is no option.
fn literal(path: &Path) -> Result<OsString, ImageError> {
    let io = |source| ImageError::Io { what: "making the path absolute", source };
    std::path::absolute(path).map(PathBuf::into_os_string).map_err(io)
}

/// A name readers of the header will take as a local path.
fn recordable(name: &OsStr) -> Result<(), ImageError> {
    let why = match name.as_bytes() {
        [] => "it is empty",
        b if b.len() > 1023 => "it is longer than 1023 bytes",
        b if has_protocol(b) => "readers would take its start as a protocol",
        _ => return Ok(()),
    };
    Err(ImageError::Name { name: shown(name), why })
}

fn push_options(args: &mut Vec<OsString>, options: &[(&str, &str)]) -> Result<(), ImageError> {
    for (key, value) in options {
        // A comma would start another option.
        if !OPTIONS.contains(key) || value.contains(',') {
            return Err(ImageError::Option(format!("{key}={value}")));
        }
        args.extend(["-o".into(), format!("{key}={value}").into()]);
    }
    Ok(())
}

/// The fastest mode that cannot hide a failed write: direct where the file system does it, which only
/// opening tells. A file that is not there yet gets the slower one.
fn cache(path: &Path) -> &'static str {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NONBLOCK;
    if rustix::fs::open(path, flags, Mode::empty()).is_ok() { "none" } else { "writethrough" }
}

/// Hundredths of a percent of a size.
fn part(total: u64, hundredths: u32) -> u64 {
    let n = u128::from(total) * u128::from(hundredths) / 10_000;
    u64::try_from(n).unwrap_or(total)
}

/// Reads `    (12.34/100%)` out of a stream, however it is cut.
#[derive(Default)]
struct Percent(Option<String>);

impl Percent {
    /// Calls `seen` with hundredths of a percent.
    fn feed(&mut self, data: &[u8], mut seen: impl FnMut(u32)) {
        for &b in data {
            match (b, &mut self.0) {
                (b'(', _) => self.0 = Some(String::new()),
                (b'0'..=b'9' | b'.', Some(text)) if text.len() < 8 => text.push(char::from(b)),
                (b'/', Some(text)) => {
                    if let Some(n) = hundredths(text) {
                        seen(n);
                    }
                    self.0 = None;
                }
                _ => self.0 = None,
            }
        }
    }
}

fn hundredths(text: &str) -> Option<u32> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "00"));
    let rest = format!("{rest:0<2}");
    let n = whole.parse::<u32>().ok()?.checked_mul(100)? + rest.get(..2)?.parse::<u32>().ok()?;
    (n <= 10_000).then_some(n)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{MIB, overlay, qemu};
    use super::super::probe::probe;
    use super::*;
    use crate::sys::Class;
    use std::fs::File;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    const PLAIN: Format = Format::Raw;
    const COW: Format = Format::Qcow2;

    /// 8 MiB with data at the front and at 5 MiB.
    fn source(path: &Path) -> Vec<u8> {
        let file = File::create(path).unwrap();
        file.set_len(8 * MIB).unwrap();
        file.write_all_at(&vec![1; 100_000], 0).unwrap();
        file.write_all_at(&vec![2; 100_000], 5 * MIB).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn every_file_name_is_taken_literally() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "-f",
            "json:{}",
            "nbd:x:1",
            "file:a",
            "a,b",
            "a=b,size=1",
            "with\nnewline",
            "a b;id",
            "%s",
            "\u{e9}",
            "--",
        ] {
            let (a, b) = (dir.path().join(name), dir.path().join(format!("{name}2")));
            qemu().create(&a, COW, Bytes(MIB), None, &[]).unwrap();
            qemu().convert((&a, COW), (&b, PLAIN), Convert::default()).unwrap();
            assert_eq!(b.metadata().unwrap().len(), MIB, "{name}");
            qemu().resize(&a, COW, Bytes(2 * MIB), Space::AsNeeded).unwrap();
            assert_eq!(qemu().info_json(&a, COW).unwrap()["virtual-size"], 2 * MIB, "{name}");
            assert_eq!(qemu().check(&a, COW).unwrap(), Some(Counts::default()), "{name}");
            let recorded = a.as_os_str();
            qemu().create(&b, COW, Bytes(MIB), Some((recorded, COW)), &[]).unwrap();
            assert_eq!(probe(&File::open(&b).unwrap()).unwrap().backing.unwrap().name, recorded);
            qemu().rebase(&b, COW, Some((recorded, COW)), Rebase::Safe).unwrap();
        }
        let relative = literal(Path::new("json:{}")).unwrap();
        assert!(Path::new(&relative).is_absolute(), "{relative:?}");
    }

    #[test]
    fn a_backing_name_is_recorded_and_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        qemu().create(&path, COW, Bytes(MIB), Some(("disk.0.snap/3".as_ref(), PLAIN)), &[]).unwrap();
        let backing = probe(&File::open(&path).unwrap()).unwrap().backing.unwrap();
        assert_eq!((backing.name, backing.format), ("disk.0.snap/3".into(), Some(PLAIN)));
        for bad in ["", "nbd:x", "json:{}", &"x".repeat(1024)] {
            let got = qemu().create(&path, COW, Bytes(MIB), Some((bad.as_ref(), COW)), &[]);
            assert!(matches!(got, Err(ImageError::Name { .. })), "{bad}");
        }
    }

    #[test]
    fn options_cannot_name_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let make = |o: &[(&str, &str)]| qemu().create(&path, COW, Bytes(MIB), None, o);
        make(&[("cluster_size", "4096"), ("preallocation", "metadata")]).unwrap();
        assert_eq!(probe(&File::open(&path).unwrap()).unwrap().qcow2.unwrap().cluster_bits, 12);
        for bad in
            [("backing_file", "/etc/passwd"), ("cluster_size", "4096,backing_file=/x"), ("data_file", "x")]
        {
            assert!(matches!(make(&[bad]), Err(ImageError::Option(_))), "{bad:?}");
        }
    }

    #[test]
    fn conversion_keeps_content_flattens_and_stays_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        let content = source(&at("raw"));
        qemu().create(&at("over"), COW, Bytes(8 * MIB), Some(("raw".as_ref(), PLAIN)), &[]).unwrap();
        let mut seen = Vec::new();
        let mut note = |b: Bytes| seen.push(b.0);
        let progress = Some(Progress { total: Bytes(8 * MIB), report: &mut note });
        qemu()
            .convert((&at("over"), COW), (&at("flat"), COW), Convert { progress, ..Convert::default() })
            .unwrap();
        assert!(seen.is_sorted() && seen.last() == Some(&(8 * MIB)), "{seen:?}");
        assert_eq!(probe(&File::open(at("flat")).unwrap()).unwrap().backing, None);
        for target in [Target::Create, Target::Existing, Target::Zeroed] {
            let back = at("back");
            File::create(&back).unwrap().set_len(8 * MIB).unwrap();
            if target == Target::Existing {
                std::fs::write(&back, vec![9; content.len()]).unwrap();
            }
            let inode = back.metadata().unwrap().ino();
            qemu()
                .convert((&at("flat"), COW), (&back, PLAIN), Convert { target, ..Convert::default() })
                .unwrap();
            assert!(std::fs::read(&back).unwrap() == content, "{target:?}");
            let meta = back.metadata().unwrap();
            assert_eq!(meta.ino(), inode, "{target:?}: the staged file is filled, not replaced");
            assert!(meta.blocks() * 512 < MIB, "{target:?}: {} blocks", meta.blocks());
        }
        let full = Convert { sparse: false, ..Convert::default() };
        qemu().convert((&at("raw"), PLAIN), (&at("full"), PLAIN), full).unwrap();
        assert!(at("full").metadata().unwrap().blocks() * 512 >= 8 * MIB);
    }

    #[test]
    fn files_in_memory_work_by_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let content = source(&dir.path().join("raw"));
        let memory = File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let path = format!("/proc/{}/fd/{}", std::process::id(), memory.as_raw_fd());
        let path = Path::new(&path);
        qemu().convert((&dir.path().join("raw"), PLAIN), (path, COW), Convert::default()).unwrap();
        assert_eq!(probe(&memory).unwrap().virtual_size, Some(Bytes(8 * MIB)));
        qemu().convert((path, COW), (&dir.path().join("back"), PLAIN), Convert::default()).unwrap();
        assert!(std::fs::read(dir.path().join("back")).unwrap() == content);
    }

    #[test]
    fn the_cache_mode_is_honest_everywhere() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cache(&dir.path().join("not there yet")), "writethrough");
        assert_eq!(cache(Path::new("/proc/self/status")), "writethrough", "no direct access there");
        assert!(["none", "writethrough"].contains(&cache(&std::env::current_exe().unwrap())));
    }

    #[test]
    fn rebase_keeps_content_and_shrinking_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |p: &str| dir.path().join(p);
        let content = source(&at("raw"));
        let raw = at("raw").into_os_string();
        qemu().create(&at("over"), COW, Bytes(8 * MIB), Some((&raw, PLAIN)), &[]).unwrap();
        qemu().rebase(&at("over"), COW, None, Rebase::Safe).unwrap();
        qemu().convert((&at("over"), COW), (&at("back"), PLAIN), Convert::default()).unwrap();
        assert!(std::fs::read(at("back")).unwrap() == content);
        qemu().rebase(&at("over"), COW, Some(("elsewhere".as_ref(), COW)), Rebase::HeaderOnly).unwrap();
        let e = qemu().resize(&at("over"), COW, Bytes(MIB), Space::AsNeeded).unwrap_err();
        assert!(!e.to_string().contains('\n'), "{e}");
    }

    #[test]
    fn space_is_reserved_where_that_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        qemu().create(&path, COW, Bytes(MIB), None, &[]).unwrap();
        qemu().resize(&path, COW, Bytes(8 * MIB), Space::Reserved).unwrap();
        assert!(path.metadata().unwrap().blocks() * 512 >= 7 * MIB);
    }

    #[test]
    fn a_guess_would_have_followed_what_the_given_format_does_not() {
        let dir = tempfile::tempdir().unwrap();
        overlay(&dir.path().join("x"), Some(("/etc/passwd", PLAIN)));
        let back = dir.path().join("back");
        qemu().convert((&dir.path().join("x"), PLAIN), (&back, PLAIN), Convert::default()).unwrap();
        assert!(std::fs::read(back).unwrap().starts_with(b"QFI\xfb"));
    }

    #[test]
    fn deadline_and_cancel_reach_the_tool() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let e = Qemu { deadline: Duration::ZERO, ..qemu() }
            .create(&path, COW, Bytes(MIB), None, &[])
            .unwrap_err();
        assert_eq!(e.class(), Class::Timeout);
        let cancel = Cancel::default();
        cancel.request();
        let e = Qemu { cancel: &cancel, ..qemu() }.create(&path, COW, Bytes(MIB), None, &[]).unwrap_err();
        assert!(matches!(e, ImageError::Tool(ToolError::Cancelled { .. })), "{e}");
    }

    #[test]
    fn percentages_are_read_however_the_stream_is_cut() {
        let stream = b"    (0.00/100%)\r    (33.33/100%)\r    (7/100%)(x/100%)(999/100%)(100.00/100%)\r\n";
        for size in 1..stream.len() {
            let (mut parser, mut seen) = (Percent::default(), Vec::new());
            for chunk in stream.chunks(size) {
                parser.feed(chunk, |n| seen.push(n));
            }
            assert_eq!(seen, [0, 3333, 700, 10_000], "{size}");
        }
        assert_eq!(part(u64::MAX, 10_000), u64::MAX);
        assert_eq!(part(8 * MIB, 3333), 8 * MIB * 3333 / 10_000);
    }
}
