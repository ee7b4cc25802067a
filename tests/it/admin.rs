//! The commands for people, as far as a caller can rely on them: status, valid JSON, quiet pipes.

use crate::bed::Bed;
use crate::doc::Doc;
use crate::guest;
use serde_json::Value;

/// A bed in which something happened.
fn lived_in() -> (Bed, String) {
    let bed = Bed::new();
    let store = bed.store(100).display().to_string();
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 256, 1);
    bed.ds("cp", 7, &Doc::new(&bed, 7).image("PATH", path.display()).xml()).run().ok();
    bed.ds("stat", 8, &Doc::new(&bed, 8).image("PATH", bed.images().join("gone").display()).xml())
        .run()
        .fails(3);
    (bed, store)
}

#[test]
fn everything_takes_json() {
    let (bed, store) = lived_in();
    let image = bed.images().join("a.raw").display().to_string();
    let commands: [&[&str]; 12] = [
        &["job", "list"],
        &["job", "list", "--all"],
        &["event"],
        &["gc", "--plan"],
        &["gc", "--plan", &store],
        &["gc"],
        &["check", &store],
        &["lock", "show"],
        &["domain", "list"],
        &["domain", "show", &store],
        &["image", "probe", &image],
        &["config", "show", "--origin"],
    ];
    for words in commands {
        let plain = bed.onesdm(words).run();
        assert_eq!(plain.code, Some(0), "{words:?}: {}", plain.err());
        let json = bed.onesdm(&[words, &["--json"]].concat()).run();
        assert_eq!(json.code, Some(0), "{words:?}: {}", json.err());
        let values = serde_json::Deserializer::from_slice(&json.stdout).into_iter::<Value>();
        let values: Result<Vec<_>, _> = values.collect();
        assert!(values.is_ok_and(|v| !v.is_empty() || words[0] == "event"), "{words:?}: {}", json.out());
    }
}

#[test]
fn the_history_holds_what_was_done_and_what_failed() {
    let (bed, _) = lived_in();
    let jobs = bed.onesdm(&["job", "list", "--all", "--json"]).run().out();
    assert!(jobs.contains("\"cp\"") && jobs.contains("\"stat\""), "{jobs}");
    let active: Value = serde_json::from_str(&bed.onesdm(&["job", "list", "--json"]).run().out()).unwrap();
    assert!(active.as_object().is_some_and(serde_json::Map::is_empty), "nothing runs: {active}");
    let events = bed.onesdm(&["event", "--json"]).run().out();
    assert!(events.contains("succeeded") && events.contains("failed"), "{events}");
}

#[test]
fn a_command_that_does_not_exist_is_a_usage_error() {
    let bed = Bed::new();
    for words in [&["frobnicate"][..], &["job"], &["job", "frobnicate"], &["gc", "--frobnicate"]] {
        let done = bed.onesdm(words).run();
        assert_eq!(done.code, Some(2), "{words:?}: {}", done.err());
        assert!(done.out().is_empty() && !done.err().is_empty(), "{words:?}");
    }
}

/// `onesdm job list | head -1`: the reader goes first, and nobody complains.
#[test]
fn broken_pipes_are_quiet() {
    let (bed, _) = lived_in();
    let shell = ["sh", "-c", "\"$@\" | true", "pipe"];
    for words in [&["config", "show", "--origin"][..], &["event"], &["--help"]] {
        for _ in 0..5 {
            let done = bed.onesdm(words).under(&shell).run();
            assert_eq!(done.err(), "", "{words:?}");
        }
    }
}

#[test]
fn the_version_names_the_formats() {
    let bed = Bed::new();
    let out = bed.onesdm(&["--version"]).run().out();
    assert!(
        out.starts_with("onesdm ") && out.contains(env!("CARGO_PKG_VERSION")) && out.contains("format"),
        "{out}"
    );
}

#[test]
fn names_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt as _;
    let bed = Bed::new();
    let path = bed.images().join(std::ffi::OsStr::from_bytes(b"caf\xe9.raw"));
    guest::make_raw(&path, 64, 1);
    let done = bed.onesdm(&["image", "probe"]).arg(&path).run();
    assert_eq!(done.code, Some(0), "{}", done.err());
}
