//! Cargo.lock against `packaging/deny.toml`: licences by the list, one version of each crate but for the
//! named exceptions, everything from crates.io. Needs nothing but cargo.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Whether an SPDX expression can be met with the allowed licences. `/` is the old spelling of OR.
fn met(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<_> = spaced.split_whitespace().collect();
    let mut at = 0;
    let ok = any(&words, &mut at, allowed);
    ok && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut ok = every(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        ok |= every(words, at, allowed);
    }
    ok
}

fn every(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let mut ok = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        ok &= one(words, at, allowed);
    }
    ok
}

fn one(words: &[&str], at: &mut usize, allowed: &[String]) -> bool {
    let Some(word) = words.get(*at) else { return false };
    *at += 1;
    if *word == "(" {
        let ok = any(words, at, allowed);
        *at += 1;
        return ok;
    }
    let mut name = (*word).to_owned();
    if words.get(*at) == Some(&"WITH") {
        name = format!("{name} WITH {}", words.get(*at + 1).unwrap_or(&""));
        *at += 2;
    }
    allowed.contains(&name)
}

#[test]
fn crates_are_those_we_agreed_to() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = std::fs::read_to_string(top.join("packaging/deny.toml")).unwrap();
    let rules: toml::Table = rules.parse().unwrap();
    let strings = |v: &toml::Value| {
        v.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let allowed = strings(&rules["licenses"]["allow"]);
    let skipped: Vec<_> =
        rules["bans"]["skip"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();

    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command.args(["metadata", "--format-version=1", "--locked", "--all-features"]).current_dir(top);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let meta: Value = serde_json::from_slice(&out.stdout).unwrap();

    let (mut wrong, mut versions) = (Vec::new(), BTreeMap::<&str, Vec<&str>>::new());
    for package in meta["packages"].as_array().unwrap() {
        let (name, version) = (package["name"].as_str().unwrap(), package["version"].as_str().unwrap());
        versions.entry(name).or_default().push(version);
        let licence = package["license"].as_str().unwrap_or("none given");
        if !met(licence, &allowed) {
            wrong.push(format!("{name} {version}: licence {licence}"));
        }
        let ours = package["source"].is_null() && name == env!("CARGO_PKG_NAME");
        if !ours && !package["source"].as_str().is_some_and(|s| s.contains("crates.io")) {
            wrong.push(format!("{name} {version}: from {}", package["source"]));
        }
    }
    for (name, versions) in &versions {
        match (versions.len() > 1, skipped.contains(name)) {
            (true, false) => wrong.push(format!("{name} in several versions: {versions:?}")),
            (false, true) => wrong.push(format!("{name} is no longer there twice: strike it from the list")),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn licence_expressions_are_read() {
    let allowed = ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(String::from);
    for (expression, ok) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(GPL-3.0 OR MIT) AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("Apache-2.0", false),
        ("", false),
        ("MIT )", false),
    ] {
        assert_eq!(met(expression, &allowed), ok, "{expression}");
    }
}
