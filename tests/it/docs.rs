//! What the documents claim of the tree is so.

use std::path::Path;

/// Every file below a directory of the tree with this ending.
fn sources(dir: &str, ending: &str) -> String {
    let mut out = String::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == ending) {
                out += &std::fs::read_to_string(&path).unwrap();
            }
        }
    }
    out
}

/// The words in backticks that can only be names of tests: long, lower case, with underscores.
fn tests_named_in(text: &str) -> Vec<&str> {
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|w| w.matches('_').count() >= 3)
        .filter(|w| w.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'))
        .collect()
}

fn document(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)).unwrap()
}

/// Every test that a document names exists; how many it names.
fn tests_exist(name: &str) -> usize {
    let (text, code) = (document(name), sources("tests/it", "rs") + &sources("src", "rs"));
    let named = tests_named_in(&text);
    for test in &named {
        assert!(code.contains(&format!("fn {test}()")), "docs/{name} names {test}, which is no test");
    }
    named.len()
}

/// A claim of the threat model is a row of a table, and its last cell names what shows it.
#[test]
fn each_claim_of_the_threat_model_names_tests_that_exist() {
    assert!(tests_exist("threat-model.md") > 40);
    let text = document("threat-model.md");
    let claims = text.lines().filter(|l| l.starts_with("| ") && l.matches(" | ").count() >= 3);
    for row in claims.filter(|l| !l.contains("---") && !l.ends_with("| shown by |")) {
        let last = row.trim_end_matches('|').rsplit(" | ").next().unwrap_or_default();
        assert!(!tests_named_in(last).is_empty(), "nothing shows {row}");
    }
}

#[test]
fn each_case_of_the_crash_argument_names_tests_that_exist() {
    assert!(tests_exist("format.md") > 15, "the argument names its tests");
    let format = document("format.md");
    for case in 1..=16 {
        let row =
            format.lines().find(|l| l.starts_with(&format!("| C{case} "))).expect("every case has a row");
        assert!(row.matches('`').count() >= 2, "case {case} names its test");
    }
}
