//! Hostile sources: what users may write as PATH, and what may lie there or come to lie there while it is
//! being read.

use crate::bed::{self, Bed, base64};
use crate::doc::Doc;
use crate::guest;
use crate::hostile::{at, image, nothing_left, refused};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

const SECRET: &str = "not for tenants, not even for a moment";

/// A file below the installation's own directory, which is restricted everywhere.
fn secret(bed: &Bed) -> std::path::PathBuf {
    let path = bed.root().join("var/.one_auth");
    std::fs::write(&path, SECRET.repeat(100)).unwrap();
    path
}

#[test]
fn names_are_only_names() {
    let long = "n".repeat(250);
    for name in [
        "it's",
        "say \"hi\"",
        "two\nlines",
        "tab\there",
        "-rf",
        "--help",
        "$(touch owned)",
        "`touch owned`",
        "a;touch owned",
        "a|b",
        "a&b",
        "a>b",
        "a*b?[c]",
        "~",
        "back\\slash\\n",
        "100%s%n",
        "größe",
        "名前",
        "e\u{301}",
        "\u{202e}gnp.exe",
        "ERROR: 7 lost",
        "name (deleted)",
        "a:b",
        "x//y",
        "a/./b",
        "a/../b",
        " leading",
        "trailing ",
        "&amp;",
        "]]>",
        &long,
    ] {
        let bed = Bed::new();
        bed.store(100);
        let path = bed.images().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::create_dir_all(bed.images().join("a")).unwrap();
        guest::make_raw(&path, 64, 1);
        // Not as CDATA, which the name may end; white space at its ends belongs to it.
        let xml = at(&bed, "PLACE").xml().replace("<![CDATA[PLACE]]>", &escaped(path.to_str().unwrap()));
        for verb in ["stat", "cp"] {
            bed.ds(verb, 7, &xml).run().answer().unwrap_or_else(|e| panic!("{verb} {name:?}: {e}"));
        }
        assert_eq!(guest::digest(&image(&bed)).unwrap(), guest::digest(&path).unwrap(), "{name:?}");
        assert!(!bed.root().join("var/owned").exists(), "{name:?} was run");
        // And when they are not there, the message is one line still.
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(image(&bed)).unwrap();
        bed.ds("cp", 7, &xml).run().failure(Some(3)).unwrap_or_else(|e| panic!("missing {name:?}: {e}"));
    }
}

fn escaped(text: &str) -> String {
    text.chars().map(|c| format!("&#{};", u32::from(c))).collect()
}

#[test]
fn what_is_no_image_is_refused_at_once() {
    type Make = fn(&Bed) -> String;
    let cases: [(&str, &[i32], Make); 16] = [
        ("nothing", &[2], |_| String::new()),
        ("a blank", &[2], |_| " ".into()),
        ("a relative name", &[2], |_| "images/a".into()),
        ("an option", &[2], |_| "--output=/etc/passwd".into()),
        ("a name with a slash at its end", &[2, 3, 10], |b| {
            guest::make_raw(&b.images().join("a"), 64, 1);
            format!("{}/", b.images().join("a").display())
        }),
        ("a file as a directory", &[2, 3, 10], |b| {
            guest::make_raw(&b.images().join("a"), 64, 1);
            format!("{}/b", b.images().join("a").display())
        }),
        ("a directory", &[2, 5, 10], |b| b.images().display().to_string()),
        ("the root", &[2, 5, 10], |_| "/".into()),
        ("a FIFO", &[2, 5, 10], |b| {
            bed::tool("mkfifo", &[b.images().join("fifo").as_os_str()]);
            b.images().join("fifo").display().to_string()
        }),
        ("a socket", &[2, 5, 10], |b| {
            drop(std::os::unix::net::UnixListener::bind(b.images().join("s")).unwrap());
            b.images().join("s").display().to_string()
        }),
        ("a device that never ends", &[2, 5, 10], |_| "/dev/zero".into()),
        ("a link to such a device", &[2, 5, 10], |b| {
            symlink("/dev/zero", b.images().join("l")).unwrap();
            b.images().join("l").display().to_string()
        }),
        ("its own stdin", &[2, 3, 5, 10], |_| "/dev/stdin".into()),
        ("the memory of a process", &[2, 3, 5, 10], |_| "/proc/self/mem".into()),
        ("a link in a circle", &[2, 3, 10, 70], |b| {
            symlink("l", b.images().join("l")).unwrap();
            b.images().join("l").display().to_string()
        }),
        ("a name too long", &[2, 3, 70], |b| format!("{}/{}", b.images().display(), "x".repeat(5000))),
    ];
    for (what, statuses, make) in cases {
        for verb in ["cp", "stat"] {
            let bed = Bed::new();
            bed.store(100);
            let path = make(&bed);
            let done = bed.ds(verb, 7, &at(&bed, path).xml()).run();
            if verb == "stat" && ["a directory", "the root"].contains(&what) {
                continue; // the size of a directory is an answer
            }
            refused(&bed, &done, statuses, &format!("{verb} of {what}"));
            assert!(done.took.as_secs() < 20, "{what}: {:?}", done.took);
        }
    }
}

#[test]
fn the_sizes_of_restricted_directories_are_not_told() {
    let bed = Bed::new();
    secret(&bed);
    symlink(bed.root().join("var"), bed.images().join("link")).unwrap();
    for path in [bed.root().join("var"), bed.images().join("link"), bed.images().join("../var")] {
        let done = bed.ds("stat", 7, &at(&bed, &path).xml()).run();
        done.failure(Some(10)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
}

/// All ways to a restricted file.
#[test]
fn restricted_files_are_not_reached_by_any_name() {
    for (way, home) in [
        ("plain", false),
        ("dots", false),
        ("link", false),
        ("dirlink", false),
        ("hop", false),
        ("plain", true),
    ] {
        let bed = Bed::new();
        bed.store(100);
        let mut target = secret(&bed);
        if home {
            target = bed.root().join("home/.ssh_key");
            std::fs::copy(secret(&bed), &target).unwrap();
        }
        let images = bed.images();
        let path = match way {
            "plain" => target.clone(),
            "dots" => images.join("../var/./x/..").join(".one_auth"),
            "link" => {
                symlink(&target, images.join("l")).unwrap();
                images.join("l")
            }
            "dirlink" => {
                symlink(target.parent().unwrap(), images.join("d")).unwrap();
                images.join("d/.one_auth")
            }
            _ => {
                symlink("b", images.join("a")).unwrap();
                symlink(images.join("c"), images.join("b")).unwrap();
                symlink("../var/.one_auth", images.join("c")).unwrap();
                images.join("a")
            }
        };
        std::fs::create_dir(bed.root().join("var/x")).unwrap();
        for (driver, verb) in [("fs", "cp"), ("sdm", "cp"), ("fs", "stat"), ("sdm", "stat")] {
            let dump = at(&bed, &path).store("DS_MAD", driver).xml();
            let done = bed.verb(driver, verb).arg("7").stdin(base64(&dump)).run();
            let line = refused(&bed, &done, &[10], &format!("{driver} {verb} {way}"));
            assert!(line.contains("RESTRICTED_DIRS"), "{line}");
        }
        // Both generations of the call ask the same policy.
        let dump = String::from_utf8(base64(at(&bed, &path).xml())).unwrap();
        let old = bed.verb("fs", "cp").arg(dump).arg("7").run();
        refused(&bed, &old, &[10], &format!("{way}, message as an argument"));
        if home {
            std::fs::remove_file(&target).unwrap();
        }
    }
}

/// SAFE_DIRS and RESTRICTED_DIRS are directories: no prefix, no pattern, and safe wins.
#[test]
fn lists_of_directories_mean_directories() {
    for (safe, restricted, dir, allowed) in [
        ("BED/safe", "BED", "safe", true),
        ("BED/safe/", "BED", "safe", true),
        ("BED/safe", "BED", "safefoo", false),
        ("BED/s.fe", "BED", "safe", false),
        ("BED/sa*", "BED", "safe", false),
        (".*", "BED", "safe", false),
        ("safe", "BED", "safe", false),
        ("BED/free/../safe", "BED", "safe", false),
        ("BED/none BED/safe", "BED", "safe", true),
        ("BED/x", "BED/sa", "safe", true),
        ("BED/x", "BED/saf.", "safe", true),
        ("BED/x", "BED/safe", "safe", false),
    ] {
        let bed = Bed::new();
        bed.store(100);
        let put = |list: &str| list.replace("BED", bed.root().to_str().unwrap());
        let path = bed.root().join(dir).join("a");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        guest::make_raw(&path, 64, 1);
        let doc = at(&bed, &path)
            .store_template("SAFE_DIRS", put(safe))
            .store_template("RESTRICTED_DIRS", put(restricted));
        let done = bed.ds("cp", 7, &doc.xml()).run();
        let what = format!("safe {safe:?}, restricted {restricted:?}, {dir}");
        if allowed {
            done.answer().unwrap_or_else(|e| panic!("{what}: {e}"));
        } else {
            refused(&bed, &done, &[10], &what);
        }
    }
}

/// Flips a link between what is allowed and what is not for as long as `during` runs.
fn flipping(bed: &Bed, good: &Path, bad: &Path, link: &Path, during: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flipper = scope.spawn(|| {
            let next = bed.images().join("next");
            let mut flips = 0u64;
            while !over.load(Ordering::SeqCst) {
                for target in [bad, good] {
                    let _ = std::fs::remove_file(&next);
                    symlink(target, &next).unwrap();
                    std::fs::rename(&next, link).unwrap();
                    flips += 1;
                }
            }
            flips
        });
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
        over.store(true, Ordering::SeqCst);
        println!("{} flips", flipper.join().unwrap());
        ended.unwrap_or_else(|e| std::panic::resume_unwind(e));
    });
}

/// A link that leads elsewhere after it was checked. Each round either copies the allowed file, whole, or is
/// refused; never is a byte of the other one in the datastore.
#[test]
fn a_link_that_changes_after_the_check_gains_nothing() {
    let bed = Bed::new();
    let store = bed.store(100);
    let (good, bad, link) = (bed.images().join("good"), secret(&bed), bed.images().join("link"));
    std::fs::write(&good, "public".repeat(700)).unwrap();
    symlink(&good, &link).unwrap();
    let dump = at(&bed, &link).xml();
    let (mut copied, mut refusals) = (0, 0);
    flipping(&bed, &good, &bad, &link, || {
        for round in 0..60 {
            let done = bed.ds("cp", 7, &dump).run();
            if done.code == Some(0) {
                copied += 1;
                let bytes = std::fs::read(image(&bed)).unwrap();
                assert!(bytes == std::fs::read(&good).unwrap(), "round {round}");
                bed.ds(
                    "rm",
                    7,
                    &Doc::new(&bed, 7).source(&bed, image(&bed).file_name().unwrap().to_str().unwrap()).xml(),
                )
                .run()
                .ok();
            } else {
                refusals += 1;
                // Not found: the file the name led to when it was looked at has it no longer.
                refused_in(&store, &done);
            }
        }
    });
    println!("{copied} copied, {refusals} refused");
    assert!(copied > 0 && refusals > 0, "{copied} copied, {refusals} refused");
}

fn refused_in(store: &Path, done: &bed::Done) {
    let line = done.failure(None).unwrap();
    assert!([Some(10), Some(3)].contains(&done.code), "{:?}: {line}", done.code);
    for dir in ["new", "del"] {
        assert!(bed::names(&store.join(".sdm").join(dir)).is_empty(), "left by: {line}");
    }
}

/// The same with a directory and `stat`: the size of the other one is not told.
#[test]
fn a_directory_that_changes_after_the_check_is_not_measured() {
    let bed = Bed::new();
    let (good, bad, link) =
        (bed.images().join("good"), bed.root().join("var/big"), bed.images().join("link"));
    for (dir, mib) in [(&good, 1u64), (&bad, 77)] {
        std::fs::create_dir(dir).unwrap();
        std::fs::File::create(dir.join("f")).unwrap().set_len(mib << 20).unwrap();
    }
    symlink(&good, &link).unwrap();
    let dump = at(&bed, &link).xml();
    let mut told = 0;
    flipping(&bed, &good, &bad, &link, || {
        for _ in 0..150 {
            let done = bed.ds("stat", 7, &dump).run();
            if done.code == Some(0) {
                assert_eq!(done.out(), "1\n");
                told += 1;
            } else {
                done.failure(None).unwrap();
            }
        }
    });
    assert!(told > 0);
}

/// A source that changes its size while it is read is no image.
#[test]
fn a_source_that_grows_or_shrinks_meanwhile_is_an_error() {
    for grows in [true, false] {
        let bed = Bed::new();
        bed.store(100);
        let path = bed.images().join("a");
        guest::make_raw(&path, 16 << 10, 1);
        // A limit, so that there is a meanwhile.
        let doc = at(&bed, &path).store_template("LIMIT_TRANSFER_BW", "24M");
        let running = bed.ds("cp", 7, &doc.xml()).start();
        std::thread::sleep(std::time::Duration::from_millis(250));
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(if grows { 17 << 20 } else { 1 << 20 })
            .unwrap();
        refused(&bed, &running.wait(), &[8], if grows { "it grew" } else { "it shrank" });
    }
    let bed = Bed::new();
    bed.store(100);
    nothing_left(&bed, "untouched");
}

/// What `clone` may take: images of datastores, by their own names.
#[test]
fn clone_takes_images_and_nothing_else() {
    for (what, path, status) in [
        ("an image of another datastore", "STORES/101/image", 0),
        ("the same with more slashes", "STORES//101///image", 0),
        ("out by dots", "STORES/101/../../.one_auth", 10),
        ("out and in by dots", "STORES/101/../101/image", 10),
        ("a link out", "STORES/101/link", 10),
        ("a link in the datastore itself", "STORES/100/link", 10),
        ("a hidden file", "STORES/101/.hidden", 10),
        ("our own area", "STORES/101/.sdm/x", 10),
        ("a cached sum", "STORES/101/image.md5sum", 10),
        ("a file beside the datastores", "STORES/../.one_auth", 10),
        ("a directory of a datastore", "STORES/101/dir/image", 10),
        ("a datastore", "STORES/101", 10),
        ("a pipe", "STORES/101/pipe", 10),
        ("a relative path", "101/image", 2),
    ] {
        let bed = Bed::new();
        let stores = bed.store(100).parent().unwrap().to_owned();
        let other = bed.store(101);
        let target = secret(&bed);
        guest::make_raw(&other.join("image"), 64, 1);
        std::fs::write(other.join("image.md5sum"), SECRET).unwrap();
        std::fs::write(other.join(".hidden"), SECRET).unwrap();
        std::fs::create_dir(other.join(".sdm")).unwrap();
        std::fs::write(other.join(".sdm/x"), SECRET).unwrap();
        std::fs::create_dir(other.join("dir")).unwrap();
        guest::make_raw(&other.join("dir/image"), 64, 1);
        bed::tool("mkfifo", &[other.join("pipe").as_os_str()]);
        for dir in [&other, &bed.store(100)] {
            symlink(&target, dir.join("link")).unwrap();
        }
        std::fs::remove_dir_all(other.join(".sdm")).unwrap();
        let doc = at(&bed, path.replace("STORES", stores.to_str().unwrap()));
        for driver in ["", "qcow2"] {
            let done = bed
                .ds("clone", 7, &doc.clone().store_template("DRIVER", driver).xml())
                .under(&["timeout", "--foreground", "20"])
                .run();
            if status == 0 {
                done.answer().unwrap_or_else(|e| panic!("{what}: {e}"));
                std::fs::remove_file(image(&bed)).unwrap();
                continue;
            }
            let line = done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
            let fits = [Some(status), Some(3), Some(5)].contains(&done.code);
            assert!(fits && !image(&bed).exists(), "{what}: {:?} {line}", done.code);
        }
    }
}

/// Snapshots that are links: to the image itself they may be, as stock makes them, and nowhere else.
#[test]
fn a_snapshot_that_is_a_link_elsewhere_is_refused() {
    let name = "0123456789abcdef0123456789abcdef";
    for to in ["SECRET", "STORE/victim", "../victim", "../../../.one_auth"] {
        for format in ["raw", "qcow2", ""] {
            for (verb, by) in [
                ("snap_revert", "link"),
                ("snap_flatten", "link"),
                ("snap_revert", "current"),
                ("snap_flatten", "current"),
            ] {
                let bed = Bed::new();
                let store = bed.store(100);
                let target = secret(&bed);
                guest::make_raw(&store.join("victim"), 64, 9);
                let (path, snap) = (store.join(name), store.join(format!("{name}.snap")));
                guest::make_raw(&path, 64, 1);
                std::fs::create_dir(&snap).unwrap();
                guest::make_raw(&snap.join("0"), 64, 2);
                let to =
                    to.replace("SECRET", target.to_str().unwrap()).replace("STORE", store.to_str().unwrap());
                if by == "link" {
                    symlink(&to, snap.join("1")).unwrap();
                } else {
                    std::fs::write(snap.join("1.current"), &to).unwrap();
                }
                let before = std::fs::read(&path).unwrap();
                let doc =
                    Doc::new(&bed, 7).source(&bed, name).image("TARGET_SNAPSHOT", 1).image("FORMAT", format);
                let done = bed.ds(verb, 7, &doc.xml()).run();
                let what = format!("{verb} of {format:?}, {by} to {to}");
                done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!([Some(2), Some(3), Some(10)].contains(&done.code), "{what}: {:?}", done.code);
                assert!(std::fs::read(&path).unwrap() == before && !path.is_symlink(), "{what}");
                crate::hostile::at_rest(&bed, &what);
            }
        }
    }
}
