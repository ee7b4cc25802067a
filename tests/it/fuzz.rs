//! The inputs that fuzzing kept, replayed without it, and small changes of each.

#[path = "../fuzz/targets.rs"]
mod targets;

use std::path::Path;

#[test]
fn what_fuzzing_kept_is_replayed() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut seen = 0;
    for (name, target) in targets::TARGETS {
        let kept =
            std::fs::read_dir(corpus.join(name)).unwrap_or_else(|e| panic!("no corpus of {name}: {e}"));
        for entry in kept {
            let data = std::fs::read(entry.unwrap().path()).unwrap();
            target(&data);
            // Cut anywhere, and with any one byte changed.
            let stride = data.len().div_ceil(400).max(1);
            for at in (0..data.len()).step_by(stride) {
                target(&data[..at]);
                for change in [0x01, 0x80, 0xff] {
                    let mut bent = data.clone();
                    bent[at] ^= change;
                    target(&bent);
                }
            }
            seen += 1;
        }
    }
    assert!(seen > 40, "only {seen} inputs");
}

/// No target is forgotten by cargo-fuzz.
#[test]
fn every_fuzz_target_is_in_its_manifest() {
    let manifest = include_str!("../fuzz/Cargo.toml");
    for (name, _) in targets::TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
    assert_eq!(manifest.matches("[[bin]]").count(), targets::TARGETS.len());
}
