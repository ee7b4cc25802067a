//! The order of the house, read from the source: arrows point down, engines do not know each other, only
//! `cli` prints, only `sys` starts programs, files stay small, and no machine's own paths are in the tree.

use std::path::{Path, PathBuf};

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name();
        if path.is_dir() && !path.is_symlink() && name != "target" && name != ".git" {
            walk(&path, found);
        } else if path.is_file() && !path.is_symlink() {
            found.push(path);
        }
    }
}

fn files(dir: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(&top().join(dir), &mut found);
    found.sort();
    found
}

/// Rooms from top to bottom, as the table in `src/lib.rs` lists them.
fn rooms(lib: &str) -> Vec<String> {
    let rows = lib.lines().filter_map(|l| l.strip_prefix("//! | `"));
    rows.filter_map(|l| l.split('`').next()).map(str::to_owned).collect()
}

/// The code of a file without comments and without its tests: `#[cfg(test)]` comes last by house rule, and
/// files that are only tests are named so.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    text[..end].lines().enumerate().filter(|(_, l)| !l.trim_start().starts_with("//"))
}

/// What a file of `src/` does against the order of the house.
fn objections(rooms: &[String], path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let lines = text.lines().count();
    if lines > 700 {
        wrong.push(format!("{path}: {lines} lines"));
    }
    let mut parts = path.split('/');
    let room = parts.next().unwrap_or_default();
    let Some(own) = rooms.iter().position(|r| r == room) else {
        return wrong; // lib.rs and main.rs stand above the rooms
    };
    let engine = parts.next().unwrap_or_default().trim_end_matches(".rs");
    let is_test = path.ends_with("_tests.rs") || path.ends_with("/tests.rs") || path.contains("/tests/");
    for (n, line) in code(text) {
        let at = |what: &str| format!("{path}:{}: {what}: {}", n + 1, line.trim());
        for (i, _) in line.match_indices("crate::") {
            let rest = &line[i + 7..];
            let named: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            match rooms.iter().position(|r| *r == named) {
                Some(theirs) if theirs < own => wrong.push(at("an arrow up")),
                None if rest.starts_with('{') => wrong.push(at("one use per room")),
                _ => {}
            }
            let other = rest.strip_prefix("engine::").unwrap_or_default();
            let other: String = other.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if room == "engine"
                && ENGINES.contains(&engine)
                && ENGINES.contains(&other.as_str())
                && other != engine
            {
                wrong.push(at("an engine that names another"));
            }
        }
        let prints =
            ["println!", "eprintln!", "print!(", "eprint!(", "io::stdout()", "io::stderr()", "dbg!("];
        if room != "cli" && !is_test && prints.iter().any(|p| line.contains(p)) {
            wrong.push(at("prints"));
        }
        // clap has a Command of its own, for people's commands.
        let starts = ["process::Command", "fork()", "posix_spawn", "Command::new"];
        let starts = if text.contains("use clap::") { &starts[..3] } else { &starts[..] };
        if room != "sys" && !is_test && starts.iter().any(|p| line.contains(p)) {
            wrong.push(at("starts a program"));
        }
        if room != "sys" && !is_test && (line.contains("unsafe {") || line.contains("libc::")) {
            wrong.push(at("goes to the floor"));
        }
        // `sys` knows their names to refuse them.
        let shells = ["\"sh\"", "\"bash\"", "/bin/sh", "/bin/bash"];
        if room != "sys" && !is_test && shells.iter().any(|p| line.contains(p)) {
            wrong.push(at("names a shell"));
        }
    }
    wrong
}

const ENGINES: [&str; 4] = ["file", "lvm", "process", "mem"];

#[test]
fn the_order_of_the_house_holds() {
    let lib = std::fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let rooms = rooms(&lib);
    assert!(rooms.len() >= 11 && rooms[0] == "cli" && rooms[rooms.len() - 1] == "sys", "{rooms:?}");
    let src = top().join("src");
    let mut wrong = Vec::new();
    for path in files("src").iter().filter(|p| p.extension().is_some_and(|e| e == "rs")) {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap();
        wrong.extend(objections(&rooms, name, &std::fs::read_to_string(path).unwrap()));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_room_is_in_the_list_and_every_listed_room_exists() {
    let lib = std::fs::read_to_string(top().join("src/lib.rs")).unwrap();
    let mut listed = rooms(&lib);
    listed.sort();
    let dirs = std::fs::read_dir(top().join("src")).unwrap().flatten().filter(|e| e.path().is_dir());
    let mut there: Vec<_> = dirs.map(|e| e.file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(listed, there);
}

#[test]
fn tests_stay_small_too() {
    let all = files("tests").into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs"));
    let long: Vec<_> = all.filter(|p| std::fs::read_to_string(p).unwrap().lines().count() > 700).collect();
    assert!(long.is_empty(), "{long:?}");
}

/// A fresh clone has none of these: where this checkout lies, and what lies beside it.
#[test]
fn the_tree_names_no_machine() {
    let beside = concat!("..", "/shared");
    let own = top().to_str().unwrap();
    let mut wrong = Vec::new();
    for path in files(".") {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        for (n, line) in text.lines().enumerate() {
            if line.contains(own) || line.contains(beside) {
                wrong.push(format!("{}:{}: {line:.120}", path.display(), n + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_kind_of_disorder_is_seen() {
    let rooms: Vec<_> = ["cli", "verb", "sdm", "engine", "sys"].map(String::from).into();
    for (path, text, says) in [
        ("sdm/gc.rs", "use crate::verb::Cp;", "an arrow up"),
        ("sys/fs.rs", "fn f() { crate::engine::mem::open() }", "an arrow up"),
        ("verb/cp.rs", "use crate::{sdm, sys};", "one use per room"),
        ("engine/file/mod.rs", "use crate::engine::mem::Mem;", "an engine that names another"),
        ("verb/cp.rs", "    println!(\"x\");", "prints"),
        ("verb/cp.rs", "    std::io::stdout().write_all(b\"x\");", "prints"),
        ("engine/file.rs", "std::process::Command::new(\"x\")", "starts a program"),
        ("engine/file.rs", "unsafe { libc::close(3) }", "goes to the floor"),
        ("verb/cp.rs", "let p = \"/bin/sh\";", "names a shell"),
        ("main.rs", &"\n".repeat(701), "701 lines"),
    ] {
        let said = objections(&rooms, path, text);
        assert!(said.iter().any(|s| s.contains(says)), "{path}: {text}: {said:?}");
    }
    for (path, text) in [
        ("verb/cp.rs", "use crate::sdm::Job;\nuse crate::sys::Bytes;\n// use crate::cli::x"),
        ("engine/file.rs", "use crate::engine::Engine;\nuse crate::sys::fs;"),
        (
            "sdm/gc.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::cli::x;\n    fn g() { println!() }\n}",
        ),
        ("sys/tool.rs", "const REFUSED: [&str; 1] = [\"sh\"];"),
        ("cli/args.rs", "use clap::Command;\nfn f() { Command::new(\"gc\"); }"),
        ("cli/render.rs", "fn f() { let _ = std::io::stdout(); }"),
    ] {
        assert_eq!(objections(&rooms, path, text), Vec::<String>::new(), "{path}");
    }
}
