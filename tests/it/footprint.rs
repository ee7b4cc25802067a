//! What the program asks of a machine before it does anything: libraries, and system calls at start. Printed, and
//! held to ceilings. The size is held to one where packages are built (`packaging/stage`), where it means something.

use crate::bed::{Bed, program, tool};
use crate::doc::Doc;
use std::path::Path;

#[test]
fn it_needs_glibc_and_openssl_as_old_as_we_promise_and_nothing_else() {
    let guard = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/guard");
    print!("{}", tool("sh", &[guard.as_os_str(), program().as_os_str()]));
}

#[test]
fn another_library_would_be_seen() {
    let guard = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/guard");
    let refused = |words: &[&str]| {
        let out = std::process::Command::new("sh").arg(&guard).args(words).output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    // A program everybody has, which needs a library that we do not.
    let (status, said) = refused(&["/usr/bin/ls"]);
    assert!(status == Some(1) && said.contains("library libselinux"), "{status:?} {said}");
    let (status, said) = refused(&[program().to_str().unwrap(), "1"]);
    assert!(status == Some(1) && said.contains("larger than 1 MiB"), "{status:?} {said}");
}

/// The loader's calls and ours: a verb is a process, and a cloud starts thousands.
#[test]
fn a_start_costs_few_system_calls() {
    let bed = Bed::new();
    bed.store(100);
    let file = bed.root().join("trace");
    let under = ["strace", "-f", "-qq", "-o", file.to_str().unwrap()];
    let count =
        || std::fs::read_to_string(&file).unwrap().lines().filter(|l| !l.contains("resumed>")).count();
    let monitor = Doc::new(&bed, 0).xml();
    bed.ds("monitor", 100, &monitor).run().ok();
    for (what, most, call) in [
        ("onesdm --version", 110, bed.onesdm(&["--version"])),
        ("onesdm job list", 200, bed.onesdm(&["job", "list"])),
        ("datastore/fs/monitor", 240, bed.ds("monitor", 100, &monitor)),
    ] {
        call.under(&under).run().ok();
        let found = count();
        println!("{what:24} {found:>4} system calls of {most}");
        assert!(found <= most, "{what}: {found} system calls, more than {most}");
    }
}
