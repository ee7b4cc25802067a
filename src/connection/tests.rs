//! Without anything of NFS: what is refused, and what is left alone. The whole life is in tests/it/nfs_auto.rs.

use super::*;
use std::collections::BTreeMap;

fn share() -> Share {
    Share::parse("filer", "/export", "").unwrap()
}

struct Bed {
    tmp: tempfile::TempDir,
    tools: Tools,
    cancel: Cancel,
}

/// With this program in place of mount and umount.
fn bed(program: &str) -> Bed {
    let tools = BTreeMap::from([(Tool::MountNfs, program.into()), (Tool::Umount, program.into())]);
    let (tools, cancel) = (Tools::new(tools).unwrap(), Cancel::default());
    Bed { tmp: tempfile::tempdir().unwrap(), tools, cancel }
}

impl Bed {
    fn connections(&self) -> Connections<'_> {
        Connections { state: self.tmp.path(), tools: &self.tools, cancel: &self.cancel }
    }

    fn point(&self) -> PathBuf {
        self.tmp.path().join("100")
    }

    fn connect(&self) -> ConnectionError {
        self.connections().connect("datastore-100", "oned", &share(), &self.point()).unwrap_err()
    }

    fn note(&self, record: &Record) {
        fs::note(&self.connections().file(&record.id), &serde_json::to_vec(record).unwrap()).unwrap();
    }
}

fn record(point: &Path) -> Record {
    Record {
        id: "datastore-100".into(),
        owner: "oned".into(),
        share: share(),
        point: point.to_owned(),
        since: String::new(),
        mount: at(point).unwrap().map_or(0, |m| m.id),
        boot: boot(),
    }
}

#[test]
fn what_mount_says_is_not_believed_and_its_failure_is_told() {
    assert!(matches!(bed("/usr/bin/true").connect(), ConnectionError::Missing { .. }));
    let b = bed("/usr/bin/false");
    let e = b.connect();
    assert!(e.class() == Class::Remote && e.to_string().contains("filer:/export"), "{e}");
    assert!(b.connections().list().unwrap().is_empty(), "nothing is recorded");
}

#[test]
fn nothing_is_hidden_and_no_link_is_followed() {
    let b = bed("/usr/bin/true");
    std::fs::create_dir(b.point()).unwrap();
    std::fs::write(b.point().join("image"), "x").unwrap();
    let e = b.connect();
    assert!(e.class() == Class::Refused && e.to_string().contains("entries of its own"), "{e}");
    std::fs::rename(b.point(), b.tmp.path().join("away")).unwrap();
    std::os::unix::fs::symlink("away", b.point()).unwrap();
    let e = b.connect();
    assert!(e.class() == Class::Refused && e.to_string().contains("it is a link"), "{e}");
    let nowhere = b.tmp.path().join("none/100");
    let e = b.connections().connect("x", "oned", &share(), &nowhere).unwrap_err();
    assert_eq!(e.class(), Class::NotFound);
}

#[test]
fn what_is_not_ours_is_neither_used_nor_unmounted() {
    // Every Linux has something else mounted there. The program would fail if it was run.
    let (b, point) = (bed("/usr/bin/false"), Path::new("/proc"));
    let e = b.connections().connect("datastore-100", "oned", &share(), point).unwrap_err();
    assert!(e.class() == Class::Refused && e.to_string().contains("(proc)"), "{e}");
    b.note(&record(point));
    assert_eq!(b.connections().list().unwrap()[0].1, State::Other);
    assert_eq!(b.connections().drop("datastore-100").unwrap(), State::Other);
    assert!(at(point).unwrap().is_some());
    let e = b.connections().drop("datastore-100").unwrap_err();
    assert_eq!(e.class(), Class::NotFound, "it is forgotten");
    b.note(&record(&b.point()));
    assert_eq!(b.connections().drop("datastore-100").unwrap(), State::Gone);
}

#[test]
fn one_connects_and_the_others_wait_or_are_stopped() {
    let b = bed("/usr/bin/true");
    let held = b.connections().lock("datastore-100").unwrap();
    b.cancel.request();
    assert_eq!(b.connect().class(), Class::Cancelled);
    drop(held);
    assert!(b.connections().lock("datastore-100").is_ok());
}
