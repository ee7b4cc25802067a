//! Where secrets go: to the server they are for, and nowhere else. Not into answers, messages, events, history,
//! records, state, nor into the arguments and the environment of children.

use crate::bed::{Bed, base64, names, processes};
use crate::doc::Doc;
use crate::guest;
use crate::hostile::{at, img, settings};
use crate::server::Server;
use std::path::{Path, PathBuf};
use std::time::Duration;

const HIDDEN: [&str; 6] =
    ["hidden-user", "hidden-pass", "hidden-query", "hidden-part", "hidden-attr", "hidden-env"];

/// All places below the bed, and the given texts, that hold a secret in clear or in base64.
fn found(bed: &Bed, texts: &[(&str, &[u8])]) -> Vec<String> {
    let mut needles: Vec<Vec<u8>> = HIDDEN.iter().map(|h| h.as_bytes().to_vec()).collect();
    needles.push(base64("hidden-user:hidden-pass"));
    let holds = |bytes: &[u8]| needles.iter().any(|n| bytes.windows(n.len()).any(|w| w == n));
    let mut found: Vec<String> = texts
        .iter()
        .filter(|(_, t)| holds(t))
        .map(|(what, t)| format!("{what}: {}", String::from_utf8_lossy(t)))
        .collect();
    let mut dirs = vec![bed.root().to_owned()];
    while let Some(dir) = dirs.pop() {
        for path in names(&dir).into_iter().map(|n| dir.join(n)) {
            if path.is_symlink() || path.ends_with("trace") {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else if path.display().to_string().contains("hidden-")
                || holds(&std::fs::read(&path).unwrap_or_default())
            {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

/// A datastore whose attributes are secret, too.
fn doc(bed: &Bed, url: &str) -> Doc {
    at(bed, url).store_template("PASSWORD", "hidden-attr").store_template("AWS_SECRET", "hidden-attr")
}

fn qcow2(bed: &Bed) -> Vec<u8> {
    let (raw, path) = (bed.root().join("tmp/raw"), bed.root().join("tmp/qcow2"));
    guest::make_raw(&raw, 256, 1);
    img(&["convert", "-f", "raw", "-O", "qcow2", raw.to_str().unwrap()], &path, "");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::remove_file(raw).unwrap();
    std::fs::remove_file(path).unwrap();
    bytes
}

/// Runs a verb under strace and answers what every process it started was given.
fn given(bed: &Bed, verb: &str, dump: &str) -> (crate::bed::Done, Vec<u8>, usize) {
    let file: PathBuf = bed.root().join("trace");
    let words = [
        "strace",
        "-f",
        "-qq",
        "-v",
        "-s",
        "1000000",
        "-e",
        "trace=execve,execveat",
        "-o",
        file.to_str().unwrap(),
    ];
    let done = bed.ds(verb, 7, dump).env("SECRET", "hidden-env").under(&words).run();
    let text = std::fs::read(&file).expect("the suite needs strace");
    // The first is the verb itself, as the test called it.
    let children: Vec<&[u8]> =
        text.split(|b| *b == b'\n').filter(|l| l.windows(6).any(|w| w == b"execve")).skip(1).collect();
    (done, children.concat(), children.len())
}

#[test]
fn s9_children_are_told_no_secret() {
    let bed = Bed::new();
    bed.store(100);
    let bytes = qcow2(&bed);
    let server = Server::of(bytes);
    let convert = doc(&bed, &server.secret_url()).store_template("DRIVER", "raw");
    let mut seen = 0;
    for (verb, dump) in [
        ("stat", convert.xml()),
        ("cp", convert.xml()),
        (
            "mkfs",
            doc(&bed, "").image("ID", 8).image("FORMAT", "raw").image("FS", "ext4").image("SIZE", 4).xml(),
        ),
        ("clone", {
            let path = format!("{}/{}", bed.base_path(100), crate::doc::image_name(1_795_168_000, 7));
            doc(&bed, &path).image("ID", 9).store_template("DRIVER", "qcow2").xml()
        }),
    ] {
        let (done, children, n) = given(&bed, verb, &dump);
        done.answer().unwrap_or_else(|e| panic!("{verb}: {e}"));
        let found =
            found(&bed, &[("stdout", &done.stdout), ("stderr", &done.stderr), ("a child", &children)]);
        assert!(found.is_empty(), "{verb}: {found:#?}");
        seen += n;
    }
    assert!(seen >= 3, "only {seen} children were met");
}

/// However a transfer fails.
#[test]
fn failures_tell_no_secret() {
    let cut = |out: &mut crate::server::Out| {
        out.head("200 OK", &["Content-Length: 1000", "ETag: \"1\""])?;
        out.body(&[1; 10])
    };
    let elsewhere = |code: &'static str, to: &'static str| {
        Server::new(move |_, out| out.status(code, &[&format!("Location: {to}")]))
    };
    let servers: Vec<(&str, Server)> = vec![
        ("not found", Server::new(|_, out| out.status("404 No", &[]))),
        ("forbidden", Server::new(|_, out| out.status("403 No", &[]))),
        ("unwell", Server::new(|_, out| out.status("500 No", &[]))),
        ("cut", Server::new(move |_, out| cut(out))),
        (
            "silent",
            Server::new(|_, out| {
                out.silence();
                Ok(())
            }),
        ),
        ("no server", Server::new(|_, out| out.raw(b"hidden-part\r\n\r\n"))),
        ("to a file", elsewhere("302 To", "file://hidden-user:hidden-pass@x/etc?hidden-query")),
        (
            "to nobody",
            elsewhere("302 To", "http://hidden-user:hidden-pass@127.0.0.1:1/x?hidden-query#hidden-part"),
        ),
        ("to an odd place", elsewhere("302 To", "//hidden-user:hidden-pass@127.0.0.1:1/?hidden-query")),
        ("to no URL", elsewhere("302 To", "http://hidden-user:hidden pass@[::1/hidden")),
        ("another image", Server::of(vec![1; 4096])),
    ];
    for (what, server) in servers {
        for verb in ["cp", "stat"] {
            let bed = Bed::new();
            bed.store(100);
            settings(&bed, "[http]\nstall_timeout = \"1s\"\nretries = 0");
            let dump = doc(&bed, &server.secret_url()).image_template("MD5", "0".repeat(32)).xml();
            let (done, children, _) = given(&bed, verb, &dump);
            if verb == "cp" {
                done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            let more =
                [["event", "--json"], ["job", "list"], ["lock", "show"]].map(|w| bed.onesdm(&w).run().stdout);
            let mut texts: Vec<(&str, &[u8])> =
                vec![("stdout", &done.stdout), ("stderr", &done.stderr), ("a child", &children)];
            texts.extend(more.iter().map(|t| ("a command", t.as_slice())));
            let found = found(&bed, &texts);
            assert!(found.is_empty(), "{verb}, {what}: {found:#?}");
        }
    }
    // URLs that are none, and other schemes.
    for url in [
        "http:///hidden-user:hidden-pass@h/x",
        "http:/hidden-user:hidden-pass@h/x",
        "http://hidden-user:hidden-pass@/x",
        "http://hidden-user:hidden-pass@h ost/x?hidden-query",
        "http://hidden-user:hidden-pass@h:99999/x?hidden-query",
        "http://hidden-user:hidden/pass@h/x",
        "https://hidden-user:hidden-pass@127.0.0.1:1/x?hidden-query#hidden-part",
        "s3://hidden-user:hidden-pass@bucket/x?hidden-query",
        "ssh://hidden-user:hidden-pass@host:/x",
        "rbd://hidden-user@host/pool/image?CEPH_KEY=hidden-query",
        "hidden-user:hidden-pass@host/x",
    ] {
        for verb in ["cp", "stat", "clone"] {
            let bed = Bed::new();
            bed.store(100);
            settings(&bed, "[http]\nretries = 0");
            let done = bed.ds(verb, 7, &doc(&bed, url).xml()).run();
            done.failure(None).unwrap_or_else(|e| panic!("{verb} {url}: {e}"));
            let all = bed.onesdm(&["job", "list", "--all", "--json"]).run().stdout;
            let found = found(&bed, &[("stdout", &done.stdout), ("stderr", &done.stderr), ("history", &all)]);
            assert!(found.is_empty(), "{verb} {url}: {found:#?}");
        }
    }
}

/// While it runs, too: its staging area, its job, its locks, and the arguments of all processes.
#[test]
fn a_running_transfer_shows_no_secret() {
    let bed = Bed::new();
    bed.store(100);
    let server = Server::stalled();
    let mut running =
        bed.ds("cp", 7, &doc(&bed, &server.secret_url()).xml()).env("SECRET", "hidden-env").start();
    let new = bed.store_path(100).join(".sdm/new");
    while names(&new).is_empty() || server.sent() == 0 {
        assert!(running.is_running());
        std::thread::sleep(Duration::from_millis(5));
    }
    let shown = [["job", "list"], ["lock", "show"], ["gc", "--plan"]].map(|w| bed.onesdm(&w).run().stdout);
    let texts: Vec<(&str, &[u8])> = shown.iter().map(|t| ("a command", t.as_slice())).collect();
    let found = found(&bed, &texts);
    let told = processes(|line| HIDDEN.iter().any(|h| line.contains(h)));
    running.signal(rustix::process::Signal::TERM);
    running.wait().failure(Some(130)).unwrap();
    assert!(found.is_empty() && told.is_empty(), "{found:#?} {told:#?}");
}

#[test]
fn the_search_finds_what_is_there() {
    let bed = Bed::new();
    std::fs::write(bed.root().join("log/x"), base64("hidden-user:hidden-pass")).unwrap();
    assert_eq!(found(&bed, &[("a text", b"x hidden-query x"), ("none", b"hidden")]).len(), 2);
    assert!(found(&bed, &[])[0].ends_with("log/x"));
    assert!(Path::new(&found(&bed, &[])[0]).exists());
}
