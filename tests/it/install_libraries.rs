//! What `onesdm install` does with the libraries for drivers written in bash.

use crate::bed::{self, Bed};
use crate::install::{install, same, snapshot, stock};
use std::path::Path;

/// Libraries for drivers in bash: put where there is none, never over one, and renewed only while they are as
/// we wrote them.
#[test]
fn shell_libraries_are_put_where_there_are_none() {
    let bed = Bed::new();
    let top = stock(&bed);
    let before = snapshot(&top);
    let said = install(&bed, &top, &[]).run().ok();
    assert!(said.contains("scripts_common.sh") && !said.contains("libfs.sh"), "{said}");
    let ours = std::fs::read_to_string(top.join("scripts_common.sh")).unwrap();
    assert!(ours.contains("exec_and_log()") && top.join("tm/tm_common.sh").exists());
    assert_eq!(std::fs::read_to_string(top.join("datastore/libfs.sh")).unwrap(), "# functions\n");
    // One of an earlier release, which the manifest knows, is renewed; one that somebody changed is theirs.
    let old = "# an earlier release\n";
    std::fs::write(top.join("scripts_common.sh"), old).unwrap();
    let manifest = top.join(".onesdm.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut doc: serde_json::Value = serde_json::from_str(&text).unwrap();
    let digest = bed::tool("sha256sum", &[top.join("scripts_common.sh").as_os_str()]);
    doc["helpers"][0]["sha256"].as_array_mut().unwrap().insert(0, digest[..64].into());
    std::fs::write(&manifest, doc.to_string()).unwrap();
    std::fs::write(top.join("tm/tm_common.sh"), "# mine\n").unwrap();
    let said = install(&bed, &top, &[]).run().ok();
    assert_eq!(std::fs::read_to_string(top.join("scripts_common.sh")).unwrap(), ours, "{said}");
    assert_eq!(std::fs::read_to_string(top.join("tm/tm_common.sh")).unwrap(), "# mine\n");
    // The package's comes back: ours that build on it would not work beside it.
    std::fs::remove_file(top.join("tm/tm_common.sh")).unwrap();
    install(&bed, &top, &[]).run().ok();
    assert!(top.join("tm/tm_common.sh").exists());
    std::fs::write(top.join("scripts_common.sh"), "# stock\n").unwrap();
    for _ in 0..2 {
        install(&bed, &top, &[]).run().ok();
        assert!(!top.join("tm/tm_common.sh").exists());
        assert_eq!(std::fs::read_to_string(top.join("scripts_common.sh")).unwrap(), "# stock\n");
    }
    std::fs::remove_file(top.join("scripts_common.sh")).unwrap();
    install(&bed, &top, &[]).run().ok();
    std::fs::write(top.join("tm/tm_common.sh"), "# mine\n").unwrap();
    install(&bed, &top, &["--uninstall"]).run().ok();
    assert!(!top.join("scripts_common.sh").exists(), "ours goes");
    assert_eq!(std::fs::read_to_string(top.join("tm/tm_common.sh")).unwrap(), "# mine\n", "theirs stays");
    std::fs::remove_file(top.join("tm/tm_common.sh")).unwrap();
    install(&bed, &top, &[]).run().ok();
    install(&bed, &top, &["--uninstall"]).run().ok();
    let mut after = snapshot(&top);
    after.insert("tm".into(), before[Path::new("tm")].clone()); // this test's own doing
    same(&after, &before, "there and back");
}
