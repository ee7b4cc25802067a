//! Images made to be read by somebody careless: headers that name other files, that lie about sizes, that
//! end too early. They come in by `cp`, or a guest wrote them where an image lies already.

use crate::bed::{Bed, Done, Running, names, tool};
use crate::doc::{self, Doc};
use crate::guest;
use crate::oracle::{Oracle, Tree};
use md5::Digest as _;
use rustix::process::Signal;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// Adds to the installation's settings.
pub fn settings(bed: &Bed, more: &str) {
    let path = bed.root().join("onesdm.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(path, format!("{text}\n{more}\n")).unwrap();
}

/// The datastore is as empty as before, our own area included.
pub fn nothing_left(bed: &Bed, what: &str) {
    let store = bed.store(100);
    Oracle::new(&store).compare(&Tree::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
    at_rest(bed, what);
    let done = names(&store.join(".sdm/done"));
    assert!(done.is_empty(), "{what}: a record of what was not done: {done:?}");
}

/// Nothing staged, nothing on its way out.
pub fn at_rest(bed: &Bed, what: &str) {
    for dir in ["new", "del"] {
        let left = names(&bed.store(100).join(".sdm").join(dir));
        assert!(left.is_empty(), "{what}: left in .sdm/{dir}: {left:?}");
    }
}

/// The message to register `path`.
pub fn at(bed: &Bed, path: impl AsRef<Path>) -> Doc {
    Doc::new(bed, 7).image("PATH", path.as_ref().display())
}

/// Where image 7 of `Doc::new` is registered.
pub fn image(bed: &Bed) -> PathBuf {
    bed.store(100).join(doc::image_name(1_795_168_000, 7))
}

/// A call that must fail with one of these statuses and leave nothing.
#[track_caller]
pub fn refused(bed: &Bed, done: &Done, statuses: &[i32], what: &str) -> String {
    let line = done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(done.code.is_some_and(|c| statuses.contains(&c)), "{what}: status {:?}: {line}", done.code);
    nothing_left(bed, what);
    line
}

/// Waits for a call and answers the most memory it held, in KiB.
pub fn peak(mut running: Running) -> (Done, u64) {
    let status = format!("/proc/{}/status", running.pid().as_raw_nonzero());
    // Until it is the program's own image, what is seen is the memory it shares with this process: the kernel lets a
    // parent go on a moment before that, and the name changes a moment after.
    let me = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    let (mut most, began) = (0, std::time::Instant::now());
    while running.is_running() {
        if began.elapsed().as_secs() > 60 {
            running.signal(Signal::KILL);
            running.wait();
            panic!("a call did not end");
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let own = !text.starts_with(&format!("Name:\t{me}"));
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).filter(|_| own);
        let kib = line.and_then(|l| l.trim().split(' ').next()?.parse().ok()).unwrap_or(0);
        most = most.max(kib);
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    (running.wait(), most)
}

/// `qemu-img WORDS… PATH SIZE`.
pub fn img(words: &[&str], path: &Path, size: &str) {
    let size = (!size.is_empty()).then_some(OsStr::new(size));
    let all: Vec<_> = words.iter().map(OsStr::new).chain([path.as_os_str()]).chain(size).collect();
    tool("qemu-img", &all);
}

/// Overwrites a part of a file.
pub fn bend(path: &Path, at: u64, bytes: &[u8]) {
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// A qcow2 header that names a backing file, as anybody can write one.
pub fn over(path: &Path, backing: &str, format: &str) {
    img(&["create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", format], path, "1M");
}

struct Case {
    what: &'static str,
    /// Refused 10, integrity 8, unsupported 5.
    status: &'static [i32],
    make: fn(&Path, &Bed),
}

fn case(what: &'static str, status: &'static [i32], make: fn(&Path, &Bed)) -> Case {
    Case { what, status, make }
}

fn others() -> Vec<Case> {
    vec![
        case("qcow2 over /etc/shadow", &[10], |p, _| over(p, "/etc/shadow", "raw")),
        case("qcow2 over a neighbour", &[10], |p, _| over(p, "neighbour", "qcow2")),
        case("qcow2 over an image of the datastore", &[10], |p, b| {
            over(p, b.store(100).join("victim").to_str().unwrap(), "raw");
        }),
        case("qcow2 over a server", &[10], |p, _| over(p, "nbd://127.0.0.1:1/x", "raw")),
        case("qcow2 over a json: name", &[10], |p, _| {
            over(p, "json:{\"driver\":\"raw\",\"file.filename\":\"/etc/shadow\"}", "raw");
        }),
        case("qcow2 over a name that breaks lines", &[8, 10], |p, _| {
            over(p, "a\nERROR: 7 b\u{1b}[2J", "raw");
        }),
        case("qcow version 1 over /etc/shadow", &[10], |p, _| {
            img(&["create", "-q", "-u", "-f", "qcow", "-b", "/etc/shadow", "-F", "raw"], p, "1M");
        }),
        case("qcow2 with an external data file", &[10], |p, b| {
            let data = format!("data_file={}", b.images().join("data").display());
            img(&["create", "-q", "-f", "qcow2", "-o", &data], p, "1M");
        }),
        case("qcow2 with the external data file /etc/shadow", &[10], |p, b| {
            let data = b.images().join("shadowy.");
            img(&["create", "-q", "-f", "qcow2", "-o", &format!("data_file={}", data.display())], p, "1M");
            let mut bytes = std::fs::read(p).unwrap();
            let at = bytes.windows(9).position(|w| w == b"/shadowy.").unwrap();
            let name = data.as_os_str().len();
            let start = at + 9 - name;
            bytes[start..start + name].fill(b'/');
            bytes[start + name - 11..start + name].copy_from_slice(b"/etc/shadow");
            std::fs::write(p, bytes).unwrap();
        }),
        case("VMDK descriptor of /etc/shadow", &[10], |p, _| {
            std::fs::write(
                p,
                "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n\
                createType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/shadow\" 0\n",
            )
            .unwrap();
        }),
        case("VMDK descriptor of a neighbour", &[10], |p, _| {
            img(
                &["create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentFlat"],
                &p.with_extension("vmdk"),
                "1M",
            );
            std::fs::rename(p.with_extension("vmdk"), p).unwrap();
        }),
        case("VMDK with a parent", &[10], |p, _| {
            img(&["create", "-q", "-f", "vmdk"], p, "1M");
            let bytes = std::fs::read(p).unwrap();
            let at = bytes.windows(5).position(|w| w == b"# The").unwrap() as u64;
            bend(p, at, b"parentFileNameHint=\"/etc/shadow\"\n#");
        }),
        case("VDI that is a difference", &[10], |p, _| {
            img(&["create", "-q", "-f", "vdi"], p, "1M");
            bend(p, 0x1a8, &[7; 16]);
        }),
        case("QED", &[5, 10], |p, _| {
            let mut bytes = vec![0; 128 << 10];
            bytes[..4].copy_from_slice(b"QED\0");
            std::fs::write(p, bytes).unwrap();
        }),
    ]
}

fn liars() -> Vec<Case> {
    fn fresh(p: &Path) {
        img(&["create", "-q", "-f", "qcow2"], p, "1M");
    }
    vec![
        case("qcow2 of 2^62 bytes", &[8, 10], |p, _| {
            fresh(p);
            bend(p, 24, &(1u64 << 62).to_be_bytes());
        }),
        case("qcow2 of 2^64-1 bytes", &[8, 10], |p, _| {
            fresh(p);
            bend(p, 24, &u64::MAX.to_be_bytes());
        }),
        case("qcow2 with its L1 beyond the end", &[8], |p, _| {
            fresh(p);
            bend(p, 40, &(1u64 << 40).to_be_bytes());
        }),
        case("qcow2 with an L1 of 2^32 entries", &[8], |p, _| {
            fresh(p);
            bend(p, 36, &u32::MAX.to_be_bytes());
        }),
        case("qcow2 with refcounts beyond the end", &[8], |p, _| {
            fresh(p);
            bend(p, 48, &(1u64 << 40).to_be_bytes());
        }),
        case("qcow2 marked corrupt", &[8], |p, _| {
            fresh(p);
            bend(p, 79, &[2]);
        }),
        case("qcow2 with features of the future", &[5], |p, _| {
            fresh(p);
            bend(p, 72, &[0x80]);
        }),
        case("qcow2 cut in its tables", &[8], |p, b| {
            guest::make_raw(&b.images().join("whole"), 256, 1);
            guest::make_qcow2(&b.images().join("whole"), p);
            std::fs::File::options().write(true).open(p).unwrap().set_len(100_000).unwrap();
        }),
        case("qcow2 cut in its data", &[8], |p, b| {
            guest::make_raw(&b.images().join("whole"), 4096, 1);
            guest::make_qcow2(&b.images().join("whole"), p);
            let file = std::fs::File::options().write(true).open(p).unwrap();
            file.set_len(p.metadata().unwrap().len() - (300 << 10)).unwrap();
        }),
        case("qcow2 cut in its header", &[8], |p, _| {
            fresh(p);
            std::fs::File::options().write(true).open(p).unwrap().set_len(60).unwrap();
        }),
        case("VHDX cut short", &[8], |p, _| {
            img(&["create", "-q", "-f", "vhdx"], p, "4M");
            std::fs::File::options().write(true).open(p).unwrap().set_len(150_000).unwrap();
        }),
        case("VDI of 2^62 bytes", &[8, 10], |p, _| {
            img(&["create", "-q", "-f", "vdi"], p, "1M");
            bend(p, 0x170, &(1u64 << 62).to_le_bytes());
        }),
    ]
}

/// However an image comes in, and whatever it is to become.
#[test]
fn hostile_images_do_not_come_in() {
    for Case { what, status, make } in others().into_iter().chain(liars()) {
        for (form, driver) in [("as it is", None), ("to raw", Some("raw")), ("in gzip", Some("qcow2"))] {
            let what = format!("{what}, {form}");
            let bed = Bed::new();
            bed.store(100);
            let path = bed.images().join("hostile");
            make(&path, &bed);
            if form == "in gzip" {
                tool("gzip", &["-n".as_ref(), path.as_os_str()]);
                std::fs::rename(path.with_extension("gz"), &path).unwrap();
            }
            let mut doc = at(&bed, &path);
            if let Some(driver) = driver {
                doc = doc.store_template("DRIVER", driver);
            }
            let done = bed.ds("cp", 7, &doc.xml()).run();
            refused(&bed, &done, status, &what);
        }
    }
}

/// A raw image in the datastore whose guest wrote an image header over its first sectors.
struct Written {
    bed: Bed,
    name: String,
    /// The bytes of the guest's disk.
    bytes: Vec<u8>,
}

const SECRET: &[u8] = b"the bytes of another tenant's disk";

impl Written {
    /// `backing` is what the guest's header names.
    fn new(backing: &str) -> Written {
        let bed = Bed::new();
        let store = bed.store(100);
        let victim = store.join("victim");
        guest::make_raw(&victim, 1024, 9);
        bend(&victim, 4096, SECRET);
        let name = "0123456789abcdef0123456789abcdef".to_owned();
        let path = store.join(&name);
        over(&path, &backing.replace("STORE", store.to_str().unwrap()), "raw");
        // A disk is larger than the header on it.
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 20).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        Written { bed, name, bytes }
    }

    fn doc(&self, format: &str) -> Doc {
        Doc::new(&self.bed, 7).source(&self.bed, &self.name).image("FORMAT", format).image("SIZE", 1)
    }

    /// No file but the victim itself holds its bytes, and no header leads to it anew.
    fn nothing_leaked(&self, what: &str) {
        let mut files = vec![];
        let mut dirs = vec![self.bed.store(100)];
        while let Some(dir) = dirs.pop() {
            for name in names(&dir) {
                let path = dir.join(name);
                if path.is_dir() && !path.is_symlink() { dirs.push(path) } else { files.push(path) }
            }
        }
        for path in files.iter().filter(|p| !p.ends_with("victim")) {
            let bytes = std::fs::read(path).unwrap_or_default();
            let found = bytes.windows(SECRET.len()).any(|w| w == SECRET);
            assert!(!found, "{what}: {} holds the victim's bytes", path.display());
        }
    }
}

const BACKINGS: [&str; 4] = ["/etc/shadow", "STORE/victim", "victim", "../100/victim"];

#[test]
fn a_header_that_a_guest_wrote_is_not_followed_by_clone() {
    for backing in BACKINGS {
        for driver in [None, Some("raw"), Some("qcow2")] {
            let what = format!("clone over {backing} to {driver:?}");
            let w = Written::new(backing);
            let path = format!("{}/{}", w.bed.base_path(100), w.name);
            let mut doc = Doc::new(&w.bed, 7).image("PATH", path).image("FORMAT", "raw");
            if let Some(driver) = driver {
                doc = doc.store_template("DRIVER", driver);
            }
            let done = w.bed.ds("clone", 7, &doc.xml()).run();
            w.nothing_leaked(&what);
            let line = done.failure(Some(10)).unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(line.contains("victim") || line.contains("shadow"), "{line}");
            assert!(!image(&w.bed).exists(), "{what}");
            at_rest(&w.bed, &what);
        }
    }
}

#[test]
fn a_header_that_a_guest_wrote_is_data_to_export() {
    for backing in BACKINGS {
        let w = Written::new(backing);
        let said = w.bed.ds("export", 7, &w.doc("raw").xml()).run().ok();
        let md5: String = md5::Md5::digest(&w.bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert!(said.contains(&md5) && said.contains("<FORMAT><![CDATA[raw]]>"), "{backing}: {said}");
        // Without a format on record nobody may be sent an image that leads elsewhere.
        let done = w.bed.ds("export", 7, &w.doc("").xml()).run();
        done.failure(Some(10)).unwrap_or_else(|e| panic!("{backing}: {e}"));
    }
}

/// Snapshots of a raw image are copies, whatever the guest wrote into them.
#[test]
fn headers_in_raw_snapshots_are_data() {
    for backing in BACKINGS {
        for verb in ["snap_revert", "snap_flatten", "snap_delete"] {
            let what = format!("{verb} of raw over {backing}");
            let w = Written::new(backing);
            let store = w.bed.store(100);
            let snap = store.join(format!("{}.snap", w.name));
            std::fs::create_dir(&snap).unwrap();
            std::fs::copy(store.join(&w.name), snap.join("0")).unwrap();
            std::fs::copy(store.join(&w.name), snap.join("1")).unwrap();
            guest::make_raw(&store.join(&w.name), 1024, 3);
            let before = std::fs::read(store.join(&w.name)).unwrap();
            let done = w.bed.ds(verb, 7, &w.doc("raw").image("TARGET_SNAPSHOT", 0).xml()).run();
            done.answer().unwrap_or_else(|e| panic!("{what}: {e}"));
            w.nothing_leaked(&what);
            let now = std::fs::read(store.join(&w.name)).unwrap();
            match verb {
                "snap_delete" => assert!(now == before && !snap.join("0").exists(), "{what}"),
                _ => assert!(now == w.bytes, "{what}: the image is not the snapshot"),
            }
        }
    }
}

/// A qcow2 chain with a member that leads elsewhere: refused, and nothing is changed.
#[test]
fn doctored_members_of_a_chain_are_refused() {
    for backing in BACKINGS {
        for format in ["qcow2", ""] {
            for verb in ["snap_revert", "snap_flatten", "snap_delete"] {
                let what = format!("{verb} of {format:?} over {backing}");
                let w = Written::new(backing);
                let store = w.bed.store(100);
                let (path, snap) = (store.join(&w.name), store.join(format!("{}.snap", w.name)));
                let doctored = std::fs::read(&path).unwrap();
                img(&["create", "-q", "-f", "qcow2"], &path, "1M");
                std::fs::create_dir(&snap).unwrap();
                std::os::unix::fs::symlink(&path, snap.join("0")).unwrap();
                std::fs::write(snap.join("1"), doctored).unwrap();
                over(&snap.join("2"), snap.join("1").to_str().unwrap(), "qcow2");
                let digests = || -> Vec<_> {
                    [&path, &snap.join("1"), &snap.join("2")].map(|p| guest::digest(p).unwrap()).into()
                };
                let before = digests();
                let done = w.bed.ds(verb, 7, &w.doc(format).image("TARGET_SNAPSHOT", 1).xml()).run();
                done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
                // Not found: the name fits nowhere from where the member lies.
                assert!([Some(10), Some(3)].contains(&done.code), "{what}: {:?} {}", done.code, done.err());
                w.nothing_leaked(&what);
                assert_eq!(digests(), before, "{what}");
                at_rest(&w.bed, &what);
            }
        }
    }
}

/// What the operator allows comes in, exactly that, and is not cloned without it.
#[test]
fn an_exception_is_exact() {
    let bed = Bed::new();
    bed.store(100);
    let base = bed.images().join("base");
    guest::make_raw(&base, 1024, 4);
    let path = bed.images().join("layer");
    over(&path, base.to_str().unwrap(), "raw");
    settings(&bed, &format!("[image]\nallow = [\"backing:{}x\"]", base.display()));
    refused(&bed, &bed.ds("cp", 7, &at(&bed, &path).xml()).run(), &[10], "a longer name is allowed");
    let text = std::fs::read_to_string(bed.root().join("onesdm.toml")).unwrap();
    std::fs::write(bed.root().join("onesdm.toml"), text.replace("basex", "base")).unwrap();
    let answer = bed.ds("cp", 7, &at(&bed, &path).xml()).run().ok();
    assert!(answer.ends_with(" qcow2\n"), "{answer}");
    let seen = guest::Reader::default();
    let flat = Doc::new(&bed, 8).image("PATH", image(&bed).display()).store_template("DRIVER", "raw");
    let clone = bed.ds("clone", 8, &flat.xml()).run().ok();
    let clone = Path::new(clone.split(' ').next().unwrap());
    assert_eq!(seen.read(clone).unwrap().data, seen.read(&base).unwrap().data);
}
