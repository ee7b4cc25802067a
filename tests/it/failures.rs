//! Ways each verb must refuse, with the classes that fit. The contract's edges and the tracer play them.

use crate::bed::{self, Bed};
use crate::contract::source;
use crate::doc::Doc;
use std::path::Path;

pub struct Failure {
    pub what: &'static str,
    pub verb: &'static str,
    pub status: &'static [i32],
    pub dump: fn(&Bed) -> Doc,
}

fn at(bed: &Bed, path: impl AsRef<Path>) -> Doc {
    Doc::new(bed, 7).image("PATH", path.as_ref().display())
}
fn hostile(bed: &Bed, words: &[&str], size: &str) -> Doc {
    let path = bed.images().join("hostile");
    let all: Vec<_> =
        words.iter().map(std::ffi::OsStr::new).chain([path.as_os_str(), size.as_ref()]).collect();
    bed::tool("qemu-img", &all);
    at(bed, path)
}
fn snap(bed: &Bed, id: &str) -> Doc {
    let name = "0".repeat(32);
    Doc::new(bed, 7).source(bed, &name).image("TARGET_SNAPSHOT", id).image("FORMAT", "raw")
}
fn failure(what: &'static str, verb: &'static str, status: &'static [i32], dump: fn(&Bed) -> Doc) -> Failure {
    Failure { what, verb, status, dump }
}

pub fn all() -> Vec<Failure> {
    let mut all = sources();
    all.extend(others());
    all
}

/// Sources that `cp` must not take.
fn sources() -> Vec<Failure> {
    vec![
        failure("no such source", "cp", &[3], |b| at(b, b.images().join("gone"))),
        failure("no PATH", "cp", &[2], |b| Doc::new(b, 7)),
        failure("a restricted source", "cp", &[10], |b| {
            std::fs::write(b.root().join("var/secret"), "secret").unwrap();
            at(b, b.root().join("var/secret"))
        }),
        failure("a restricted source by ..", "cp", &[10], |b| {
            std::fs::write(b.root().join("var/secret"), "secret").unwrap();
            at(b, b.images().join("../var/secret"))
        }),
        failure("a restricted source by a link", "cp", &[10], |b| {
            std::fs::write(b.root().join("var/secret"), "secret").unwrap();
            std::os::unix::fs::symlink(b.root().join("var/secret"), b.images().join("link")).unwrap();
            at(b, b.images().join("link"))
        }),
        failure("a relative source", "cp", &[2, 3, 10], |b| at(b, "-rf")),
        failure("a wrong MD5", "cp", &[8], |b| source(b, "a.raw").image_template("MD5", "0".repeat(32))),
        failure("an MD5 that is none", "cp", &[2, 8], |b| {
            source(b, "a.raw").image_template("MD5", "$(reboot)")
        }),
        failure("a directory", "cp", &[2, 5, 10], |b| at(b, b.images())),
        failure("a named pipe", "cp", &[2, 5, 10], |b| {
            bed::tool("mkfifo", &[b.images().join("pipe").as_os_str()]);
            at(b, b.images().join("pipe"))
        }),
        failure("nobody at the port", "cp", &[6], |b| at(b, "http://127.0.0.1:1/image")),
        failure("a backing file", "cp", &[10], |b| {
            hostile(b, &["create", "-q", "-u", "-f", "qcow2", "-b", "/etc/shadow", "-F", "raw"], "1M")
        }),
        failure("an external data file", "cp", &[10], |b| {
            let data = format!("data_file={}", b.images().join("data").display());
            hostile(b, &["create", "-q", "-f", "qcow2", "-o", &data], "1M")
        }),
        failure("a header of 2^62 bytes", "cp", &[8, 10], |b| {
            use std::os::unix::fs::FileExt as _;
            let doc = hostile(b, &["create", "-q", "-f", "qcow2"], "1M");
            let file = std::fs::File::options().write(true).open(b.images().join("hostile")).unwrap();
            file.write_all_at(&(1u64 << 62).to_be_bytes(), 24).unwrap();
            doc
        }),
    ]
}

fn others() -> Vec<Failure> {
    vec![
        failure("an unknown file system", "mkfs", &[2, 5], |b| {
            Doc::new(b, 7).image("FORMAT", "raw").image("FS", "ext4; reboot").image("SIZE", 4)
        }),
        failure("an unknown format", "mkfs", &[2, 5], |b| {
            Doc::new(b, 7).image("FORMAT", "exotic").image("SIZE", 4)
        }),
        failure("no size", "mkfs", &[2], |b| Doc::new(b, 7).image("FORMAT", "raw")),
        failure("a size beyond numbers", "mkfs", &[2], |b| {
            Doc::new(b, 7).image("FORMAT", "raw").image("SIZE", "99999999999999999999")
        }),
        failure("no such source", "clone", &[3], |b| {
            b.store(100);
            at(b, format!("{}/{}", b.base_path(100), "0".repeat(32)))
        }),
        failure("an image elsewhere", "rm", &[2, 10], |b| {
            std::fs::write(b.images().join("precious"), "precious").unwrap();
            Doc::new(b, 7).image("SOURCE", b.images().join("precious").display())
        }),
        failure("an image elsewhere by ..", "rm", &[2, 10], |b| Doc::new(b, 7).source(b, "../../precious")),
        failure("the datastore itself", "rm", &[2, 10], |b| Doc::new(b, 7).source(b, ".")),
        failure("our own area", "rm", &[2, 10], |b| Doc::new(b, 7).source(b, ".sdm")),
        failure("no such image", "snap_revert", &[3], |b| snap(b, "0")),
        failure("no such image", "snap_flatten", &[3], |b| snap(b, "0")),
        failure("a path for a number", "snap_delete", &[2], |b| snap(b, "../../precious")),
        failure("a path for a number", "snap_revert", &[2], |b| snap(b, "../x")),
        failure("no such source", "stat", &[3], |b| at(b, b.images().join("gone"))),
        failure("a restricted source", "stat", &[10], |b| {
            std::fs::write(b.root().join("var/secret"), "secret").unwrap();
            at(b, b.root().join("var/secret"))
        }),
        failure("no such image", "export", &[3], |b| {
            Doc::new(b, 7).source(b, &"0".repeat(32)).image("SIZE", 1)
        }),
        failure("no datastore at all", "monitor", &[2], |b| {
            Doc::new(b, 7).store("BASE_PATH", "").store("ID", "")
        }),
    ]
}
