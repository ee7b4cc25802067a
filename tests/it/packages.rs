//! What packages bring for systemd: units that it takes, and that do nothing where nothing is to be done.

use crate::bed::{Bed, program};
use std::path::{Path, PathBuf};
use std::process::Command;

fn units() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd");
    let all = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let ours = |p: &PathBuf| p.extension().is_some_and(|e| e == "service" || e == "timer");
    all.filter(ours).collect()
}

fn name(unit: &Path) -> String {
    unit.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn systemd_takes_every_unit() {
    let dir = tempfile::tempdir().unwrap();
    let mut words = vec!["verify".to_owned(), "--man=no".to_owned()];
    for unit in units() {
        // The program is not where a package puts it.
        let text = std::fs::read_to_string(&unit).unwrap();
        let text = text.replace("/usr/bin/onesdm", program().to_str().unwrap());
        let copy = dir.path().join(name(&unit));
        std::fs::write(&copy, text).unwrap();
        words.push(copy.display().to_string());
    }
    assert!(words.len() > 7);
    let out = Command::new("systemd-analyze").args(&words).output().expect("the suite needs systemd-analyze");
    let said = String::from_utf8_lossy(&out.stderr);
    // It may complain of others, too.
    let ours: Vec<&str> = said.lines().filter(|l| l.contains("onesdm-")).collect();
    assert!(out.status.success() && ours.is_empty(), "{said}");
}

/// What is installed knows of each unit, whichever family the package is of.
#[test]
fn every_unit_to_install_is_enabled_or_not_by_both_packages() {
    let read = |file: &str| {
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(file)).unwrap()
    };
    let preset = read("systemd/90-onesdm.preset");
    let (rpm, postinst, postrm) = (read("onesdm.spec"), read("debian/postinst"), read("debian/postrm"));
    let loop_of =
        |text: &str| text.lines().find(|l| l.trim_start().starts_with("for unit in")).unwrap().to_owned();
    for unit in units() {
        if !std::fs::read_to_string(&unit).unwrap().contains("[Install]") {
            continue;
        }
        let unit = name(&unit);
        let enabled = preset.lines().any(|l| l == format!("enable {unit}"));
        assert!(enabled || preset.lines().any(|l| l == format!("disable {unit}")), "{unit} has no preset");
        assert_eq!(loop_of(&postinst).contains(&unit), enabled, "{unit} in debian/postinst");
        assert!(postrm.contains(&unit), "{unit} in debian/postrm");
        assert_eq!(rpm.matches(&unit).count(), 2, "{unit} in the scripts of the RPM package");
    }
}

#[test]
fn what_runs_at_boot_does_nothing_where_nothing_is_to_be_done() {
    let bed = Bed::new();
    for words in [&["domain", "join"][..], &["domain", "leave"], &["activate"]] {
        assert_eq!(bed.onesdm(words).run().ok().trim(), "", "{words:?}");
    }
    let store = bed.store(100);
    bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
    for words in [&["domain", "join"][..], &["domain", "leave"], &["activate"]] {
        assert_eq!(bed.onesdm(words).run().ok().trim(), "", "{words:?}: its locks have no members");
    }
}
