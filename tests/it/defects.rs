//! The defects of the stock drivers that concern these verbs, by their numbers in the contract's section 8. Each
//! test does what brought the defect out and asks for what should have happened. Those of security and
//! cost are in `defects_security` and `defects_cost`.

use crate::bed::{self, Bed, Call, Done, base64, names, tool};
use crate::doc::{Doc, image_name};
use crate::fsbed::{Fs, Kind};
use crate::guest::{self, Reader};
use crate::hostile::{at, at_rest, image, nothing_left, refused, settings};
use crate::oracle::{Node, Oracle, Tree};
use crate::scenes;
use crate::server::{Asked, Out, Server, packed};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

pub const NAME: &str = "0123456789abcdef0123456789abcdef";

pub fn ready() -> Bed {
    let bed = Bed::new();
    bed.store(100);
    settings(&bed, "[http]\nstall_timeout = \"2s\"\nretries = 1");
    bed
}

/// The same request in both generations' forms.
pub fn both<'a>(bed: &'a Bed, verb: &str, id: u32, doc: &Doc) -> [Call<'a>; 2] {
    let argument = String::from_utf8(base64(doc.xml())).unwrap();
    [bed.ds(verb, id, &doc.xml()), bed.verb("sdm", verb).arg(argument).arg(id.to_string())]
}

pub fn source(bed: &Bed, kib: u64) -> PathBuf {
    let path = bed.images().join("source");
    guest::make_raw(&path, kib, 1);
    path
}

/// A persistent qcow2 image in stock's layout: the image, and snapshots 0 (the image itself), 1 and 2, each a
/// layer over the one before.
fn chain(bed: &Bed) -> PathBuf {
    let store = bed.store(100);
    let (image, snap) = (store.join(NAME), store.join(format!("{NAME}.snap")));
    guest::make_qcow2(&source(bed, 768), &image);
    std::fs::create_dir(&snap).unwrap();
    symlink(".", snap.join(format!("{NAME}.snap"))).unwrap();
    symlink(&image, snap.join("0")).unwrap();
    guest::make_layer(&snap.join("1"), &snap.join("0"), 0x11);
    guest::make_layer(&snap.join("2"), &snap.join("1"), 0x22);
    std::fs::write(store.join(format!("{NAME}.md5sum")), "stale").unwrap();
    image
}

/// A raw image with two snapshots, whole copies.
pub fn copies(bed: &Bed, name: &str) -> PathBuf {
    let image = bed.store(100).join(name);
    let snap = bed.store(100).join(format!("{name}.snap"));
    guest::make_raw(&image, 64, 1);
    std::fs::create_dir(&snap).unwrap();
    guest::make_raw(&snap.join("0"), 64, 2);
    guest::make_raw(&snap.join("1"), 64, 3);
    std::fs::write(bed.store(100).join(format!("{name}.md5sum")), "stale").unwrap();
    image
}

pub fn snap(bed: &Bed, id: u32) -> Doc {
    Doc::new(bed, 7).source(bed, NAME).image("TARGET_SNAPSHOT", id)
}

/// What a call did, as strace tells it.
pub fn traced(bed: &Bed, what: &str, call: Call<'_>) -> (Done, String) {
    let file = bed.root().join("trace");
    let what = format!("trace={what}");
    let done = call
        .under(&["strace", "-f", "-qq", "-y", "-s", "4096", "-e", &what, "-o", file.to_str().unwrap()])
        .run();
    let text = std::fs::read(&file).expect("the suite needs strace");
    (done, String::from_utf8_lossy(&text).into_owned())
}

// Data loss and silent corruption.

#[test]
fn d3_the_chain_is_told_from_the_files_and_not_from_the_drivers_name() {
    for tm in ["shared", "qcow2", "ssh", "sdm_shared", ""] {
        for format in ["qcow2", ""] {
            let bed = ready();
            let image = chain(&bed);
            let oracle = Oracle::new(&bed.store(100));
            let mut tree = oracle.look().unwrap();
            bed.ds("snap_revert", 7, &snap(&bed, 0).image("FORMAT", format).store("TM_MAD", tm).xml())
                .run()
                .ok();
            tree.snap_revert(NAME, "0");
            oracle.compare(&tree).unwrap_or_else(|e| panic!("qcow2 with {tm}: {e}"));
            tool("qemu-img", &["check".as_ref(), "-q".as_ref(), image.as_os_str()]);
        }
        let bed = ready();
        let image = copies(&bed, NAME);
        bed.ds("snap_revert", 7, &snap(&bed, 1).image("FORMAT", "raw").store("TM_MAD", tm).xml()).run().ok();
        let expected = bed.store(100).join(format!("{NAME}.snap/1"));
        assert!(std::fs::read(&image).unwrap() == std::fs::read(expected).unwrap(), "raw with {tm}");
    }
}

/// A full disk in the middle of a copy, whatever comes after the copy.
#[test]
fn d5_a_copy_that_met_a_full_disk_is_no_image() {
    let fs = Fs::new(Kind::Tmpfs, 6);
    let stores = fs.stores();
    for (what, verb, driver, kib) in [
        ("a copy", "cp", None, 8192),
        ("a conversion to qcow2", "cp", Some("qcow2"), 4096),
        ("a clone", "clone", None, 3072),
        ("a conversion to raw by clone", "clone", Some("qcow2"), 3072),
        ("a reservation", "cp", Some("SPARSE"), 16384),
    ] {
        let _ = std::fs::remove_dir_all(&stores);
        let bed = Bed::on(&stores);
        let store = bed.store(100);
        let path = bed.images().join("source");
        std::fs::write(&path, (0..kib * 128).flat_map(|n: u64| (n | 1).to_le_bytes()).collect::<Vec<_>>())
            .unwrap();
        let mut doc = at(&bed, &path);
        if verb == "clone" {
            std::fs::copy(&path, store.join(NAME)).unwrap();
            doc = at(&bed, format!("{}/{NAME}", bed.base_path(100)));
        }
        doc = match driver {
            Some("SPARSE") => {
                std::fs::File::create(&path).unwrap().set_len(kib << 10).unwrap();
                doc.store_template("SPARSE", "no")
            }
            Some(driver) => doc.store_template("DRIVER", driver),
            None => doc,
        };
        let done = bed.ds(verb, 7, &doc.xml()).run();
        let line = done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert!(line.to_lowercase().contains("no space"), "{what}: {line}");
        assert!(!image(&bed).exists(), "{what}");
        at_rest(&bed, what);
    }
}

type Script = fn(&Asked, &mut Out, &[u8]) -> std::io::Result<()>;

/// `curl --retry` into a pipe sends the first bytes twice.
#[test]
fn d12_a_retry_does_not_duplicate_bytes() {
    let tmp = bed::scratch();
    guest::make_raw(&tmp.path().join("a"), 512, 5);
    let whole = std::fs::read(tmp.path().join("a")).unwrap();
    let cases: [(&str, bool, Script); 9] = [
        ("cut, then goes on where it was", true, |a, o, b| {
            o.ranged(a, b, "\"1\"", if a.nth == 0 { 100_000 } else { usize::MAX })
        }),
        ("cut at the first byte", true, |a, o, b| {
            o.ranged(a, b, "\"1\"", if a.nth == 0 { 0 } else { usize::MAX })
        }),
        ("cut at the last byte", true, |a, o, b| {
            o.ranged(a, b, "\"1\"", if a.nth == 0 { b.len() - 1 } else { usize::MAX })
        }),
        ("cut, and knows no ranges", false, |a, o, b| {
            o.head("200 OK", &["ETag: \"1\"", &format!("Content-Length: {}", b.len())])?;
            o.body(if a.nth == 0 { &b[..100_000] } else { b })
        }),
        ("cut, and the content is another one now", false, |a, o, b| {
            o.ranged(
                a,
                b,
                if a.nth == 0 { "\"1\"" } else { "\"2\"" },
                if a.nth == 0 { 100_000 } else { usize::MAX },
            )
        }),
        ("cut, ignores If-Range and names another content", false, |a, o, b| {
            if a.nth == 0 {
                return o.ranged(a, b, "\"1\"", 100_000);
            }
            let span = format!("Content-Range: bytes 100000-{}/{}", b.len() - 1, b.len());
            o.head(
                "206 Partial Content",
                &["ETag: \"2\"", &span, &format!("Content-Length: {}", b.len() - 100_000)],
            )?;
            o.body(&b[100_000..])
        }),
        ("cut, and goes on elsewhere", false, |a, o, b| {
            if a.nth == 0 {
                return o.ranged(a, b, "\"1\"", 100_000);
            }
            let span = format!("Content-Range: bytes 99999-{}/{}", b.len() - 1, b.len());
            o.head(
                "206 Partial Content",
                &["ETag: \"1\"", &span, &format!("Content-Length: {}", b.len() - 99_999)],
            )?;
            o.body(&b[99_999..])
        }),
        ("cut, and goes on elsewhere with the right length", false, |a, o, b| {
            if a.nth == 0 {
                return o.ranged(a, b, "\"1\"", 100_000);
            }
            let span = format!("Content-Range: bytes 99999-{}/{}", b.len() - 2, b.len());
            let len = format!("Content-Length: {}", b.len() - 100_000);
            o.head("206 Partial Content", &["ETag: \"1\"", &span, &len])?;
            o.body(&b[99_999..b.len() - 1])
        }),
        ("500, then well", true, |a, o, b| if a.nth == 0 { o.status("500 Oops", &[]) } else { o.whole(b) }),
    ];
    for (what, good, script) in cases {
        let bed = ready();
        let bytes = whole.clone();
        let server = Server::new(move |asked, out| script(asked, out, &bytes));
        let done = bed.ds("cp", 7, &at(&bed, server.url()).xml()).run();
        if good {
            done.answer().unwrap_or_else(|e| panic!("{what}: {e}"));
            assert!(std::fs::read(image(&bed)).unwrap() == whole, "{what}");
            assert_eq!(server.seen().len(), 2, "{what}");
        } else {
            refused(&bed, &done, &[6, 8], what);
        }
    }
}

/// A tool that fails, at whatever verb.
#[test]
fn d16_a_failed_revert_leaves_the_disk_as_it_was() {
    for tool in ["/bin/false", "/bin/true", "/nowhere/qemu-img"] {
        for verb in ["snap_revert", "snap_flatten", "snap_delete"] {
            let bed = ready();
            chain(&bed);
            settings(&bed, &format!("[tools]\nqemu_img = \"{tool}\""));
            let oracle = Oracle::new(&bed.store(100));
            let before = oracle.look().unwrap();
            let done = bed.ds(verb, 7, &snap(&bed, 1).image("FORMAT", "qcow2").xml()).run();
            let what = format!("{verb} with {tool}");
            // To take a layer out of a chain in place nobody can look at the result for.
            if tool == "/bin/true" && verb == "snap_delete" {
                continue;
            }
            done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
            oracle.compare(&before).unwrap_or_else(|e| panic!("{what}: {e}"));
            at_rest(&bed, &what);
        }
    }
}

/// Killed anywhere, a flatten is not begun or done: never the new image beside the old snapshots, whose highest
/// number a VM would take for its disk.
#[test]
fn d18_a_flatten_is_one_step() {
    for name in ["snap_flatten raw", "snap_flatten qcow2"] {
        let mut killed = 0;
        for n in (1..).step_by(4) {
            let bed = crate::kill::ready(None, true);
            let scene = scenes::named(name);
            let stage = scene.stage(&bed);
            let done = scene.call(&stage).env("ONESDM_TEST_KILL", format!("{n}:after")).run();
            if !done.killed() {
                break;
            }
            killed += 1;
            // Whoever comes next finds one or the other.
            bed.onesdm(&["gc", bed.store(100).to_str().unwrap()]).run().ok();
            let is = |tree: &Tree| stage.oracle.compare(tree).is_ok();
            assert!(is(&stage.before) || is(&stage.after), "{name} killed after step {n}: a mixture");
            stage.done(&scene.call(&stage).run()).unwrap();
        }
        println!("{name}: killed {killed} times");
        assert!(killed > 3);
    }
}

// Errors lost or misreported.

/// Stock prints the reason of a failed monitor or export where nobody looks.
#[test]
fn e1_the_reason_of_a_failure_is_on_stderr() {
    let bed = ready();
    std::fs::write(bed.images().join("file"), "x").unwrap();
    let nowhere = Doc::new(&bed, 100).store("BASE_PATH", bed.images().join("file/x").display());
    for call in both(&bed, "monitor", 100, &nowhere) {
        let done = call.run();
        let line = done.failure(None).unwrap();
        assert!(done.stdout.is_empty() && line.contains("file/x"), "{line}");
    }
    for call in both(&bed, "export", 7, &Doc::new(&bed, 7).source(&bed, NAME).image("SIZE", 1)) {
        let done = call.run();
        let line = done.failure(Some(3)).unwrap();
        assert!(done.stdout.is_empty() && line.contains(NAME), "{line}");
    }
}

/// No failure is "-" to the user, and each names what it is about.
#[test]
fn e2_every_failure_says_what_failed() {
    let bed = ready();
    let path = source(&bed, 64);
    std::fs::write(bed.images().join("empty"), "").unwrap();
    let gone = bed.images().join("gone");
    let store = bed.store(100);
    std::fs::write(store.join("broken"), b"QFI\xfb\0\0\0\x03").unwrap();
    let cases: [(&str, Doc, &str); 7] = [
        ("cp", at(&bed, &gone), "gone"),
        ("cp", at(&bed, &path).image_template("MD5", "0".repeat(32)), "source"),
        ("rm", Doc::new(&bed, 7).image("SOURCE", "/etc/passwd"), "/etc/passwd"),
        ("rm", Doc::new(&bed, 7), "SOURCE"),
        ("clone", at(&bed, format!("{}/{NAME}", bed.base_path(100))), NAME),
        ("export", Doc::new(&bed, 7).source(&bed, "broken").image("SIZE", 1), "broken"),
        ("mkfs", Doc::new(&bed, 7).image("FORMAT", "exotic").image("SIZE", 1), "exotic"),
    ];
    for (verb, doc, names) in cases {
        for call in both(&bed, verb, 7, &doc) {
            let line = call.run().failure(None).unwrap_or_else(|e| panic!("{verb}: {e}"));
            assert!(line.contains(names), "{verb}: {line} does not name {names}");
        }
    }
}

#[test]
fn e4_rm_of_a_missing_image_succeeds() {
    let bed = ready();
    let doc = Doc::new(&bed, 7).source(&bed, NAME);
    for call in both(&bed, "rm", 7, &doc).into_iter().chain(both(&bed, "rm", 7, &doc)) {
        assert_eq!(call.run().ok(), "");
    }
    // What an interrupted rm left is removed by the next one.
    let image = copies(&bed, NAME);
    std::fs::remove_file(&image).unwrap();
    bed.ds("rm", 7, &doc.xml()).run().ok();
    nothing_but_area(&bed);
    copies(&bed, NAME);
    std::fs::remove_dir_all(bed.store(100).join(format!("{NAME}.snap"))).unwrap();
    bed.ds("rm", 7, &doc.xml()).run().ok();
    nothing_but_area(&bed);
}

fn nothing_but_area(bed: &Bed) {
    assert_eq!(names(&bed.store(100)), [".sdm"]);
    at_rest(bed, "after rm");
}

/// The status of a stage in the middle of a pipeline counts: here the one that unpacks.
#[test]
fn e14_damage_in_the_middle_of_a_stream_is_noticed() {
    let bed = ready();
    let path = source(&bed, 1024);
    for (program, kind) in [("gzip", "gz"), ("bzip2", "bz2"), ("xz", "xz")] {
        let mut bytes = packed(program, &["-c"], &path);
        let mid = bytes.len() / 2;
        bytes[mid..mid + 64].fill(0xaa);
        let bad = bed.images().join(kind);
        std::fs::write(&bad, &bytes).unwrap();
        let server = Server::of(bytes);
        for url in [bad.display().to_string(), server.url()] {
            refused(&bed, &bed.ds("cp", 7, &at(&bed, url).xml()).run(), &[8], kind);
        }
    }
}

#[test]
fn e15_all_given_digests_count() {
    use md5::Digest as _;
    let bed = ready();
    let path = source(&bed, 64);
    let bytes = std::fs::read(&path).unwrap();
    let hex = |d: &[u8]| -> String { d.iter().map(|b| format!("{b:02x}")).collect() };
    let (md5, sha1) = (hex(&md5::Md5::digest(&bytes)), hex(&sha1::Sha1::digest(&bytes)));
    let server = Server::of(bytes);
    for url in [path.display().to_string(), server.url()] {
        for (a, b, good) in [
            (&md5, "0".repeat(40), false),
            (&"0".repeat(32), sha1.clone(), false),
            (&md5, sha1.clone(), true),
        ] {
            let doc = at(&bed, &url).image_template("MD5", a).image_template("SHA1", &b);
            for call in both(&bed, "cp", 7, &doc) {
                let done = call.run();
                if good {
                    done.ok();
                } else {
                    refused(&bed, &done, &[8], "one of two is wrong");
                }
            }
            if good {
                let done = Doc::new(&bed, 7).source(&bed, &image_name(1_795_168_000, 7));
                bed.ds("rm", 7, &done.xml()).run().ok();
                std::fs::remove_dir_all(bed.store(100).join(".sdm/done")).unwrap();
                std::fs::create_dir(bed.store(100).join(".sdm/done")).unwrap();
            }
        }
    }
}

// Features that do not work at all.

/// Stock's clone runs a script as if it were a command; here attributes are words for mount and nothing else. How
/// it mounts is tested on NFS (`nfs_auto`).
#[test]
fn b3_nfs_auto_attributes_are_no_commands() {
    for verb in ["cp", "clone", "mkfs", "rm"] {
        let bed = ready();
        copies(&bed, NAME);
        let before = Oracle::new(&bed.store(100)).look().unwrap();
        let doc = snap(&bed, 0)
            .image("PATH", bed.store(100).join(NAME).display())
            .image("FORMAT", "raw")
            .image("SIZE", 1);
        let doc = doc.store_template("NFS_AUTO_ENABLE", "yes").store_template("NFS_AUTO_HOST", "filer");
        let doc =
            doc.store_template("NFS_AUTO_PATH", "/export").store_template("NFS_AUTO_OPTS", "rw; touch /x");
        let done = bed.ds(verb, 7, &doc.xml()).run();
        let line = done.failure(Some(2)).unwrap_or_else(|e| panic!("{verb}: {e}"));
        assert!(line.contains("NFS_AUTO") && line.contains("touch /x"), "{line}");
        Oracle::new(&bed.store(100)).compare(&before).unwrap();
    }
}

/// Stock removes `/.md5sum` instead.
#[test]
fn b5_snapshot_verbs_remove_the_images_cached_digest_and_no_other() {
    let other = "ffffffffffffffffffffffffffffffff";
    for verb in ["snap_delete", "snap_flatten", "snap_revert"] {
        for layout in ["raw", "qcow2"] {
            let bed = ready();
            if layout == "raw" {
                copies(&bed, NAME)
            } else {
                chain(&bed)
            };
            copies(&bed, other);
            let sum = |name: &str| bed.store(100).join(format!("{name}.md5sum"));
            let (done, trace) = traced(
                &bed,
                "unlink,unlinkat,rename,renameat,renameat2",
                bed.ds(verb, 7, &snap(&bed, 1).image("FORMAT", layout).xml()),
            );
            done.answer().unwrap_or_else(|e| panic!("{verb} {layout}: {e}"));
            assert!(!sum(NAME).exists(), "{verb} {layout}: the cached digest is stale");
            assert_eq!(std::fs::read_to_string(sum(other)).unwrap(), "stale");
            assert!(!trace.contains("\"/.md5sum\""), "{trace}");
        }
    }
}

// Races.

/// Two images in the same second, and two requests that get the same name.
#[test]
fn r5_one_name_is_one_image() {
    let bed = ready();
    let path = source(&bed, 64);
    let doc =
        |id: u32| Doc::new(&bed, id).image("REGTIME", 1_795_168_000).image("PATH", path.display()).xml();
    let answers: Vec<_> = (1..=4).map(|id| bed.ds("cp", id, &doc(id)).run().ok()).collect();
    let different: std::collections::HashSet<_> = answers.iter().collect();
    assert_eq!(different.len(), 4, "{answers:?}");

    // Two wishes for one name at once: one is made, the other waits, is told, or comes second; never a mixture.
    let (a, b) = (bed.images().join("a"), bed.images().join("b"));
    guest::make_raw(&a, 4096, 1);
    guest::make_raw(&b, 4096, 2);
    for round in 0..6 {
        let id = 50 + round;
        let ask = |path: &Path| {
            bed.ds(
                "cp",
                id,
                &Doc::new(&bed, id).image("REGTIME", 1_795_168_000).image("PATH", path.display()).xml(),
            )
        };
        let (one, two) = (ask(&a).start(), ask(&b).start());
        let (one, two) = (one.wait(), two.wait());
        assert!(one.code == Some(0) || two.code == Some(0), "{} {}", one.err(), two.err());
        let made = std::fs::read(bed.store(100).join(image_name(1_795_168_000, id))).unwrap();
        assert!(
            made == std::fs::read(&a).unwrap() || made == std::fs::read(&b).unwrap(),
            "round {round}: a mixture"
        );
        // What was there first is not lost.
        if one.code == Some(0) && two.code == Some(0) {
            let kept = names(&bed.store(100).join(".sdm/del"));
            assert!(kept.iter().any(|n| n.contains(".keep")), "round {round}: {kept:?}");
        }
    }
}

/// A digest that comes a moment too late is still waited for, each time.
#[test]
fn r10_the_digest_is_waited_for() {
    let bed = ready();
    let bytes = vec![7; 3 << 20];
    let server = Server::of(bytes);
    let doc = at(&bed, server.url())
        .image_template("MD5", "0".repeat(32))
        .image_template("SHA512", "0".repeat(128));
    for round in 0..25 {
        refused(&bed, &bed.ds("cp", 7, &doc.xml()).run(), &[8], &format!("round {round}"));
    }
}

// Leaks on failure.

#[test]
fn l1_a_failed_cp_leaves_nothing() {
    let cut = || {
        Server::new(|_, out| {
            out.head("200 OK", &["Content-Length: 1000000"])?;
            out.body(&vec![7; 300_000])
        })
    };
    let bed = ready();
    refused(&bed, &bed.ds("cp", 7, &at(&bed, cut().url()).xml()).run(), &[6], "a download that ends early");
    for tool in ["/bin/false", "/bin/true", "/nowhere/qemu-img"] {
        let bed = ready();
        settings(&bed, &format!("[tools]\nqemu_img = \"{tool}\""));
        let doc = at(&bed, source(&bed, 256)).store_template("DRIVER", "qcow2");
        let done = bed.ds("cp", 7, &doc.xml()).run();
        done.failure(None).unwrap();
        nothing_left(&bed, "a conversion that fails");
    }
}

#[test]
fn l2_a_failed_clone_or_mkfs_leaves_nothing() {
    for (tool, by) in
        [("qemu_img", "false"), ("qemu_img", "true"), ("mkfs_ext4", "false"), ("mkswap", "false")]
    {
        let bed = ready();
        settings(&bed, &format!("[tools]\n{tool} = \"/bin/{by}\""));
        let doc = match tool {
            "qemu_img" => Doc::new(&bed, 7).image("FORMAT", "qcow2").image("SIZE", 4),
            "mkfs_ext4" => Doc::new(&bed, 7).image("FORMAT", "raw").image("FS", "ext4").image("SIZE", 4),
            _ => Doc::new(&bed, 7).image("FORMAT", "swap").image("SIZE", 4),
        };
        bed.ds("mkfs", 7, &doc.xml()).run().failure(None).unwrap();
        nothing_left(&bed, tool);
    }
    let bed = ready();
    let image = bed.store(100).join(NAME);
    guest::make_raw(&image, 64, 1);
    settings(&bed, "[tools]\nqemu_img = \"/bin/false\"");
    let doc = at(&bed, format!("{}/{NAME}", bed.base_path(100))).store_template("DRIVER", "qcow2");
    bed.ds("clone", 7, &doc.xml()).run().failure(None).unwrap();
    assert_eq!(names(&bed.store(100)), [".sdm", NAME]);
    at_rest(&bed, "clone");
}

/// Nothing at all is made by `stat`, however it ends.
#[test]
fn l5_stat_makes_no_file() {
    let bed = ready();
    let good = source(&bed, 256);
    let bad = bed.images().join("bad");
    std::fs::write(&bad, b"QFI\xfb\0\0\0\x03").unwrap();
    let server = Server::of(std::fs::read(&good).unwrap());
    for url in
        [good.display().to_string(), bad.display().to_string(), server.url(), "http://127.0.0.1:1/".into()]
    {
        let (_, trace) = traced(
            &bed,
            "open,openat,openat2,creat,mkdir,mkdirat,memfd_create",
            bed.ds("stat", 7, &at(&bed, &url).xml()),
        );
        let ours = [bed.root().join("run"), bed.root().join("state"), bed.root().join("log")];
        let made: Vec<_> = trace
            .lines()
            .filter(|l| {
                (l.contains("O_CREAT") || l.contains("O_TMPFILE") || l.contains("mkdir"))
                    && !l.contains(" = -1 ")
            })
            .filter(|l| !ours.iter().any(|d| l.contains(d.to_str().unwrap())))
            .collect();
        assert!(made.is_empty(), "{url}: {made:#?}");
    }
    nothing_left(&bed, "stat");
}

#[test]
fn l6_a_failed_unpacking_leaves_nothing() {
    let bed = ready();
    let dir = bed.root().join("tree");
    std::fs::create_dir(&dir).unwrap();
    for n in 0..20 {
        guest::make_raw(&dir.join(n.to_string()), 64, n);
    }
    let tar = bed.images().join("tar");
    tool("tar", &["-C".as_ref(), dir.as_os_str(), "-cf".as_ref(), tar.as_os_str(), ".".as_ref()]);
    let whole = std::fs::read(&tar).unwrap();
    for cut in [700, whole.len() / 3, whole.len() / 2 + 77] {
        std::fs::write(&tar, &whole[..cut]).unwrap();
        refused(&bed, &bed.ds("cp", 7, &at(&bed, &tar).xml()).run(), &[8], &format!("cut at {cut}"));
    }
}

/// Owner and mode are those of a file that the account makes, whatever way it came: stock's `mv` keeps those of
/// the source, and a 0600 file in a datastore is of no use to the hypervisor.
#[test]
fn modes_are_not_taken_from_the_source() {
    for mode in [0o600, 0o4755, 0o444] {
        let bed = ready();
        let path = source(&bed, 64);
        bed::chmod(&path, mode);
        bed.ds("cp", 7, &at(&bed, &path).xml()).run().ok();
        let made = image(&bed).metadata().unwrap().mode() & 0o7777;
        assert!([0o644, 0o640, 0o664, 0o660].contains(&made), "{mode:o} became {made:o}");
    }
}

/// Not a defect of theirs: the oracle used here would see one.
#[test]
fn a_chain_made_here_reads_as_a_chain() {
    let bed = ready();
    let image = chain(&bed);
    let seen = Reader::default();
    let top = seen.read(&bed.store(100).join(format!("{NAME}.snap/2"))).unwrap();
    assert!(top.backing.is_some() && top.data != seen.read(&image).unwrap().data);
    assert!(matches!(Oracle::new(&bed.store(100)).look().unwrap().0[Path::new(NAME)], Node::Image { .. }));
}
