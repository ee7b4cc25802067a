//! Data that comes along with an operation.

use super::*;
use crate::host::{Gone, Link, Progress};
use crate::lock::JobId;
use crate::sys::{Cancel, hex};
use sha2::{Digest as _, Sha256};
use std::sync::Mutex;

/// A peer that gives these blocks, then ends or is lost.
pub struct Blob {
    blocks: Mutex<Vec<Vec<u8>>>,
    lost: bool,
    cancel: Cancel,
}

impl Blob {
    pub fn of(data: &[u8], lost: bool) -> Blob {
        let blocks = data.chunks(10_000).map(<[u8]>::to_vec).rev().collect();
        Blob { blocks: Mutex::new(blocks), lost, cancel: Cancel::default() }
    }
}

impl Link for Blob {
    fn cancel(&self) -> &Cancel {
        &self.cancel
    }
    fn progress(&self, _: Progress) {}
    fn log(&self, _: bool, _: &str) {}
    fn ready(&self) -> bool {
        true
    }
    fn send(&self, _: Vec<u8>) -> Result<(), Gone> {
        Err(Gone)
    }
    fn receive(&self) -> Result<Option<Vec<u8>>, Gone> {
        match self.blocks.lock().unwrap().pop() {
            None if self.lost => Err(Gone),
            block => Ok(block),
        }
    }
}

/// What looks like an ISO, filled with a letter.
pub fn iso(letter: u8) -> Vec<u8> {
    let mut data = vec![letter; 128 << 10];
    data[0x8001..0x8006].copy_from_slice(b"CD001");
    data
}

pub fn put(bed: &Bed, data: &[u8]) -> Op {
    let (disk, sha256) = (bed.text("101/7/disk.1"), hex(&Sha256::digest(data)));
    Op::Put(op::Put { disk, size: data.len() as u64, sha256 })
}

fn given(bed: &Bed, op: &Op, data: &[u8], lost: bool) -> anyhow::Result<Answer> {
    bed.with_peer(JobId::generate(), op, Some(&Blob::of(data, lost)))
}

fn graves(bed: &Bed) -> Vec<String> {
    let at = bed.at("101/.sdm/del");
    let names = std::fs::read_dir(at).into_iter().flatten().flatten();
    names.map(|e| e.file_name().into_string().unwrap()).collect()
}

#[test]
fn an_iso_is_put_and_put_again_and_the_first_is_not_kept() {
    let bed = Bed::new();
    for letter in [b'A', b'B'] {
        let data = iso(letter);
        given(&bed, &put(&bed, &data), &data, false).unwrap();
        assert_eq!(std::fs::read(bed.at("101/7/disk.1")).unwrap(), data);
    }
    assert_eq!(graves(&bed), [""; 0], "the secrets of the first are gone");
    // A machine that runs reads what it has open; its disk is another matter.
    let held = bed.hold("101/7/disk.1");
    let data = iso(b'C');
    given(&bed, &put(&bed, &data), &data, false).unwrap();
    bed.let_go(held, "101/7/disk.1");
    bed.sound();
}

#[test]
fn a_disk_that_is_no_iso_is_kept_and_not_taken_from_its_guest() {
    let bed = Bed::new();
    bed.image("img", "raw", "AB");
    let clone = clone(&bed, "100/img", "101/7/disk.1", DiskFormat::Raw);
    bed.ok(&Op::Clone(clone));
    let data = iso(b'A');
    let held = bed.hold("101/7/disk.1");
    let e = given(&bed, &put(&bed, &data), &data, false).unwrap_err();
    assert_eq!(class_of(&e), Class::InUse, "{e:#}");
    bed.let_go(held, "101/7/disk.1");
    given(&bed, &put(&bed, &data), &data, false).unwrap();
    let kept = graves(&bed);
    assert!(kept.len() == 1 && kept[0].contains(".keep"), "{kept:?}");
}

#[test]
fn data_that_is_not_what_was_announced_changes_nothing() {
    let bed = Bed::new();
    let (good, other) = (iso(b'A'), iso(b'B'));
    given(&bed, &put(&bed, &good), &good, false).unwrap();
    let before = bed.view();
    let long = [other.as_slice(), b"x"].concat();
    for (data, lost, class, says) in [
        (&other[..], false, Class::Integrity, "digest"),
        (&good[..1000], false, Class::Integrity, "ends early"),
        (&long[..], false, Class::Integrity, "longer"),
        (&good[..50_000], true, Class::Remote, "gone"),
    ] {
        let e = given(&bed, &put(&bed, &good), data, lost).unwrap_err();
        assert!(class_of(&e) == class && format!("{e:#}").contains(says), "{says}: {e:#}");
        assert_eq!(bed.view(), before, "{says}");
        bed.sound();
    }
    let huge = Op::Put(op::Put { disk: bed.text("101/7/disk.1"), size: u64::MAX, sha256: String::new() });
    assert!(bed.refused(&huge, Class::Usage).contains("image.max_size"));
    let e = bed.with_peer(JobId::generate(), &put(&bed, &good), None).unwrap_err();
    assert!(format!("{e:#}").contains("nobody gives the data"), "{e:#}");
}
