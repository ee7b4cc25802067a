//! What the documents claim of the tree is so, and what they tell people to type works.
//!
//! Every code block has a mark behind its fence: `sh run` is typed in, in order, in one shell per document; `sh
//! no-run: REASON` is not; `toml` is a configuration without mistakes; `text` is for reading and holds no command.

use crate::bed::{self, Bed};
use crate::call::Call;
use crate::{doc, guest, install};
use std::collections::BTreeSet;
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

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every document of the tree, by name.
fn documents() -> Vec<(String, String)> {
    let docs = bed::names(&top().join("docs")).into_iter().map(|n| format!("docs/{n}"));
    let names =
        docs.filter(|n| Path::new(n).extension().is_some_and(|e| e == "md")).chain(["README.md".to_owned()]);
    names.map(|n| (n.clone(), std::fs::read_to_string(top().join(n)).unwrap())).collect()
}

/// Code blocks: line, mark, text.
fn blocks(text: &str) -> Vec<(usize, String, String)> {
    let mut out: Vec<(usize, String, String)> = Vec::new();
    let mut open = false;
    for (n, line) in text.lines().enumerate() {
        match line.trim_start().strip_prefix("```") {
            Some(_) if open => open = false,
            Some(mark) => {
                open = true;
                out.push((n + 1, mark.trim().to_owned(), String::new()));
            }
            None if open => {
                let (_, _, text) = out.last_mut().unwrap();
                text.push_str(line);
                text.push('\n');
            }
            None => {}
        }
    }
    assert!(!open, "a block has no end");
    out
}

/// What is wrong with a block as it stands.
fn objection(mark: &str, text: &str) -> Option<&'static str> {
    let typed = |l: &str| {
        let known = ["onesdm ", "cargo ", "apt ", "systemctl ", "journalctl ", "$ "];
        let ours = l.strip_prefix("packaging/").is_some_and(|rest| rest.starts_with(char::is_alphabetic));
        ours || known.iter().any(|c| l.starts_with(c))
    };
    match mark {
        "sh run" => None,
        "toml" => text.parse::<toml::Table>().is_err().then_some("is not TOML"),
        "text" => {
            let holds = text.lines().any(|l| typed(l.trim_start()));
            holds.then_some("is marked as text and holds a command")
        }
        m if m.strip_prefix("sh no-run: ").is_some_and(|why| why.len() >= 10) => None,
        _ => Some("has no mark: sh run, sh no-run: REASON, toml or text"),
    }
}

#[test]
fn every_code_block_is_marked() {
    let mut wrong = Vec::new();
    for (name, text) in documents() {
        for (line, mark, block) in blocks(&text) {
            wrong.extend(objection(&mark, &block).map(|why| format!("{name}:{line}: {why}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn blocks_without_a_mark_are_seen() {
    let found = blocks("a\n```\nonesdm gc\n```\n  ```sh run\n  x\n  ```\n");
    assert_eq!(found[0], (2, String::new(), "onesdm gc\n".to_owned()));
    assert_eq!((found[1].0, found[1].1.as_str()), (5, "sh run"));
    for (mark, text, ok) in [
        ("", "x", false),
        ("sh", "x", false),
        ("sh no-run", "x", false),
        ("sh no-run: no", "x", false),
        ("sh no-run: it needs a second machine", "x", true),
        ("text", "  onesdm gc\n", false),
        ("text", "onesdm: says this", true),
        ("toml", "a = ", false),
    ] {
        assert_eq!(objection(mark, text).is_none(), ok, "{mark:?} {text:?}");
    }
}

/// A machine on which the documents' commands make sense: OpenNebula's tree with stock scripts, datastore
/// 100 with two images and something in the trash, the program in the search path, an empty directory.
fn machine() -> Bed {
    let bed = Bed::new();
    let store = bed.store(100);
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 256, 1);
    for image in [7, 8] {
        bed.ds("cp", image, &doc::Doc::new(&bed, image).image("PATH", path.display()).xml()).run().ok();
    }
    let second = doc::image_name(1_795_168_000, 8);
    bed.ds("rm", 8, &doc::Doc::new(&bed, 8).source(&bed, &second).xml()).run().ok();
    assert!(store.join(doc::image_name(1_795_168_000, 7)).exists());
    let stock = install::stock(&bed);
    std::fs::remove_dir_all(bed.remotes()).unwrap();
    std::fs::rename(stock, bed.remotes()).unwrap();
    std::fs::create_dir(bed.root().join("bin")).unwrap();
    std::os::unix::fs::symlink(bed::program(), bed.root().join("bin/onesdm")).unwrap();
    bed
}

#[test]
fn every_command_of_the_documents_works() {
    for (name, text) in documents() {
        let script: String = blocks(&text)
            .into_iter()
            .filter(|(_, mark, _)| mark == "sh run")
            .map(|(.., text)| text)
            .collect();
        if script.is_empty() {
            continue;
        }
        let bed = machine();
        let work = bed.root().join("work");
        std::fs::create_dir(&work).unwrap();
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", bed.root().display());
        // As typed: line by line, and each must succeed.
        let shell = ["sh", "-euc", "cd \"$1\"; . ./script", "sh"];
        std::fs::write(work.join("script"), &script).unwrap();
        let done = Call::new(&bed, "doc", work).under(&shell).env("PATH", path).run();
        assert_eq!(done.code, Some(0), "{name}: {}\n{}", done.err(), done.out());
    }
}

/// A document may say which settings to put where: they are all known, and their values can be used.
#[test]
fn every_setting_of_the_documents_is_one() {
    for (name, text) in documents() {
        for (line, _, block) in blocks(&text).into_iter().filter(|(_, mark, _)| mark == "toml") {
            let bed = Bed::new();
            let file = bed.root().join("example.toml");
            std::fs::write(&file, block).unwrap();
            let done = bed.onesdm(&["config", "show"]).env("ONESDM_CONFIG", &file).run();
            assert_eq!((done.code, done.err().as_str()), (Some(0), ""), "{name}:{line}");
        }
    }
}

/// Commands in running text, and those that messages of the program send people to: the words before the
/// first that is no word of a command line must be one of ours, with options that exist.
#[test]
fn every_command_that_is_named_exists() {
    let all = documents()
        .into_iter()
        .map(|(_, t)| t)
        .chain([sources("src", "rs"), sources("packaging", "catalog")]);
    let mut named = BTreeSet::new();
    for text in all {
        // What comments of the source say is for those who read it.
        let text: String =
            text.lines().filter(|l| !l.trim_start().starts_with("//")).map(|l| format!("{l}\n")).collect();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("`onesdm ") {
            rest = &rest[at + 8..];
            let command = rest.split(['`', '\n']).next().unwrap();
            let words: Vec<&str> = command.split_whitespace().take_while(|w| *w != "\\").collect();
            named.insert(words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        }
    }
    assert!(named.len() > 20, "{named:?}");
    let bed = Bed::new();
    let mut wrong = Vec::new();
    for words in named {
        // What stands for something else is given as a word.
        let words: Vec<String> = words
            .iter()
            .map(|w| {
                if w.contains('{') || w.contains('@') {
                    "x".to_owned()
                } else {
                    w.trim_matches(['[', ']', '…']).to_owned()
                }
            })
            .filter(|w| !w.is_empty())
            .collect();
        let mut call: Vec<&str> = words.iter().map(String::as_str).collect();
        call.push("--help");
        let done = bed.onesdm(&call).run();
        if done.code != Some(0) {
            wrong.push(format!("{words:?}: {}", done.err()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_list_of_verbs_is_the_table() {
    let bed = Bed::new();
    let table = bed.onesdm(&["generate", "verbs"]).run().ok();
    let page = std::fs::read_to_string(top().join("docs/verbs.md")).unwrap_or_default();
    assert!(page == table, "docs/verbs.md is old: `remotes/onesdm generate verbs >docs/verbs.md`");
}

/// All classes of failure are explained where operators look, with the status they end with.
#[test]
fn every_class_is_explained() {
    let guide = std::fs::read_to_string(top().join("docs/operations.md")).unwrap();
    let class = std::fs::read_to_string(top().join("src/sys/class.rs")).unwrap();
    let mut seen = 0;
    for line in class.lines().filter_map(|l| l.trim().strip_prefix("Class::")) {
        let Some((name, status)) = line.trim_end_matches(',').split_once(" => ") else { continue };
        let Ok(status) = status.parse::<u8>() else { continue };
        let kebab: String = name
            .chars()
            .enumerate()
            .flat_map(|(i, c)| (i > 0 && c.is_uppercase()).then_some('-').into_iter().chain(c.to_lowercase()))
            .collect();
        let row = format!("| {status} | `{kebab}` |");
        assert!(guide.contains(&row), "docs/operations.md has no row {row}");
        seen += 1;
    }
    assert_eq!(seen, 11);
}
