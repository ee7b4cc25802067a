//! Drivers on a volume group with the kernel's device mapper, in the micro-VM: the built program through its
//! links, messages on stdin, as the account that oned has.

use crate::{bed, vm};
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const GROUP: &str = "vg-one-100";
const MIB: usize = 1 << 20;

/// As root: the test arranges it, not the drivers.
fn root(words: &[&str]) -> String {
    let tool = format!("/usr/sbin/{}", words[0]);
    let out = Command::new("sudo").args(["-n", &tool]).args(&words[1..]).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The account's world: an installation of its own, and names that lead to the program.
struct Host {
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { dir: tempfile::tempdir().unwrap() };
        for d in ["etc", "var/remotes/datastore/lvm", "var/datastores", "images"] {
            std::fs::create_dir_all(host.at(d)).unwrap();
        }
        for verb in ["cp", "mkfs", "rm", "clone", "monitor", "snap_revert"] {
            let link = host.at("var/remotes/datastore/lvm").join(verb);
            std::os::unix::fs::symlink(bed::program(), link).unwrap();
        }
        std::fs::write(host.at("etc/onesdm.toml"), "[lvm]\ndevices = [\"/dev/vda\"]\n").unwrap();
        host
    }

    fn at(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    fn command(&self, program: &Path) -> Command {
        let mut c = Command::new(program);
        c.env_clear().env("ONE_LOCATION", self.dir.path()).env("HOME", self.dir.path());
        c
    }

    fn own(&self, words: &[&str]) -> (i32, String) {
        let out = self.command(&bed::program()).args(words).output().unwrap();
        said(&out)
    }

    fn call(&self, verb: &str, image: &str) -> (i32, String) {
        let xml = format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><REGTIME>1</REGTIME>{}</IMAGE><DATASTORE><ID>100</ID><TYPE>0</TYPE>\
             <DS_MAD>lvm</DS_MAD><TM_MAD>lvm</TM_MAD><BASE_PATH>{}</BASE_PATH><TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS>\
             <STAGING_DIR>/tmp</STAGING_DIR></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>",
            image.replace("DIR", &self.at("images").to_string_lossy()),
            self.at("var/datastores/100").display(),
            self.at("images").display(),
        );
        let mut c = self.command(&self.at("var/remotes/datastore/lvm").join(verb));
        let c = c.arg("7").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = c.spawn().unwrap();
        child.stdin.take().unwrap().write_all(xml.as_bytes()).unwrap();
        said(&child.wait_with_output().unwrap())
    }

    #[track_caller]
    fn ok(&self, verb: &str, image: &str) -> String {
        let (status, text) = self.call(verb, image);
        assert_eq!(status, 0, "{verb} {image}: {text}");
        println!("{verb} {image}: {text}");
        text
    }
}

fn said(out: &std::process::Output) -> (i32, String) {
    let text = [&out.stdout[..], &out.stderr[..]].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).trim().to_owned())
}

/// Blocks that tell where they lie, and a hole.
fn disk(seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..4 * MIB).map(|i| u8::try_from(i / 4096 % 251).unwrap() ^ seed).collect();
    bytes[MIB..2 * MIB].fill(0);
    bytes
}

/// What a volume reads as: its first bytes, and whether zeroes follow.
fn content(volume: &str, len: usize) -> (String, bool) {
    let path = format!("{GROUP}/{volume}");
    root(&["lvchange", "-K", "-ay", &path]);
    let bytes = std::fs::read(format!("/dev/{path}")).unwrap();
    root(&["lvchange", "-an", &path]);
    (digest(&bytes[..len]), bytes[len..].iter().all(|b| *b == 0))
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

fn volumes() -> Vec<String> {
    let out = root(&["lvs", "--noheadings", "-o", "lv_name", GROUP]);
    let mut names: Vec<String> = out.split_whitespace().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn datastore_inside() {
    root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
    let h = Host::new();
    let (status, text) = h.call("mkfs", "<ID>1</ID><SIZE>4</SIZE>");
    assert!(status == 3 && text.contains("onesdm domain init"), "{status} {text}");
    let place = format!("/dev/{GROUP}");
    let (status, text) = h.own(&["domain", "init", &place]);
    assert!(status == 2 && text.contains("--lock"), "{status} {text}");
    let (status, text) = h.own(&["domain", "init", "--lock", "ofd", &place]);
    assert_eq!(status, 0, "{text}");

    let (one, two) = (disk(0), disk(0x55));
    std::fs::write(h.at("images/one.raw"), &one).unwrap();
    std::fs::write(h.at("images/two.raw"), &two).unwrap();
    let sh = |words: &[&str]| assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success());
    let (raw, qcow2) = (h.at("images/two.raw"), h.at("images/two.qcow2"));
    sh(&[
        "/usr/bin/qemu-img",
        "convert",
        "-q",
        "-O",
        "qcow2",
        raw.to_str().unwrap(),
        qcow2.to_str().unwrap(),
    ]);

    assert_eq!(h.ok("cp", "<ID>1</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>"), "vg-one-100/img-one-1 raw");
    let thin = "<PERSISTENT>1</PERSISTENT>";
    h.ok("cp", &format!("<ID>2</ID><SIZE>8</SIZE><PATH>DIR/two.qcow2</PATH>{thin}"));
    assert_eq!(volumes(), ["img-one-1", "img-one-2", "img-one-2-pool", "sdm-meta"]);
    let active = root(&["lvs", "--noheadings", "-o", "lv_name,lv_active", GROUP]);
    assert_eq!(active.matches("active").count(), 1, "only the records: {active}");
    let len = one.len();
    assert_eq!(content("img-one-1", len), (digest(&one), true), "and nothing of what was there before");
    assert_eq!(content("img-one-2", len), (digest(&two), true));

    // A snapshot as transfer verbs make it.
    root(&["lvchange", "-K", "-ay", "vg-one-100/img-one-2"]);
    root(&["lvcreate", "-q", "-kn", "-s", "-n", "img-one-2_one_s0", "vg-one-100/img-one-2"]);
    let mut dev = std::fs::File::options().write(true).open("/dev/vg-one-100/img-one-2").unwrap();
    dev.write_all(&one).unwrap();
    dev.sync_all().unwrap();
    drop(dev);
    root(&["lvchange", "-an", "vg-one-100/img-one-2", "vg-one-100/img-one-2-pool"]);
    let on = "<SOURCE>vg-one-100/img-one-2</SOURCE><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>";
    h.ok("snap_revert", on);
    assert_eq!(content("img-one-2", len).0, digest(&two));

    // Full: nothing is left of it, and what is there stays.
    let (status, text) = h.call("mkfs", "<ID>9</ID><SIZE>9000</SIZE>");
    assert!(status != 0 && text.contains("no space left"), "{status} {text}");
    let before = h.ok("monitor", "");
    for n in 1..=2 {
        h.ok("rm", &format!("<SOURCE>vg-one-100/img-one-{n}</SOURCE>"));
    }
    assert_eq!(volumes(), ["sdm-meta"]);
    assert_ne!(h.ok("monitor", ""), before);
    for (words, want) in [(["check", &place], "no broken rule"), (["domain", "list"], GROUP)] {
        let (status, text) = h.own(&words);
        assert!(status == 0 && text.contains(want), "{words:?}: {text}");
    }
    root(&["vgck", GROUP]);
}

#[test]
fn a_datastore_on_a_volume_group_works_through_its_links() {
    let tmp = bed::scratch();
    let lun = vm::disk(tmp.path(), "lun", 512 << 20);
    // What a new volume must not show.
    let full = vec![0xa5u8; 128 * MIB];
    std::fs::File::options().write(true).open(&lun).unwrap().write_all(&full).unwrap();
    let programs = [bed::program(), "/usr/bin/qemu-img".into()];
    vm::passes_with("lvmverbs::datastore_inside", &[&lun], &programs);
}
