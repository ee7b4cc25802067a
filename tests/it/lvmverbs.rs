//! Drivers on a volume group with the kernel's device mapper, in the micro-VM: the built program through its
//! links, messages on stdin, as the account that oned has.

use crate::{bed, vm};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const GROUP: &str = "vg-one-100";
pub const MIB: usize = 1 << 20;

/// Disks: a copy, a persistent one, a volatile one.
pub const VM: &str = "<VM><ID>7</ID><STATE>8</STATE><LCM_STATE>0</LCM_STATE><TEMPLATE>\
<DISK><DISK_ID>0</DISK_ID><CLONE>YES</CLONE><TM_MAD>lvm</TM_MAD><DATASTORE_ID>100</DATASTORE_ID><SIZE>8</SIZE>\
<ORIGINAL_SIZE>6</ORIGINAL_SIZE><FORMAT>raw</FORMAT><SOURCE>vg-one-100/img-one-1</SOURCE></DISK>\
<DISK><DISK_ID>1</DISK_ID><CLONE>NO</CLONE><SAVE>YES</SAVE><PERSISTENT>YES</PERSISTENT><TM_MAD>lvm</TM_MAD>\
<DATASTORE_ID>100</DATASTORE_ID><SIZE>8</SIZE><SOURCE>vg-one-100/img-one-2</SOURCE></DISK>\
<DISK><DISK_ID>2</DISK_ID><TYPE>swap</TYPE><SIZE>1</SIZE></DISK></TEMPLATE></VM>";

/// As root: the test arranges it, not the drivers.
pub fn root(words: &[&str]) -> String {
    let tool = format!("/usr/sbin/{}", words[0]);
    let out = Command::new("sudo").args(["-n", &tool]).args(&words[1..]).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// The account's world: an installation of its own, and names that lead to the program.
pub struct Host {
    dir: PathBuf,
    _tmp: Option<tempfile::TempDir>,
}

impl Host {
    pub fn new() -> Host {
        let tmp = tempfile::tempdir().unwrap();
        Host { dir: tmp.path().to_owned(), _tmp: Some(tmp) }.furnished()
    }

    /// At a place that is the same on other hosts.
    pub fn at_place(place: &str) -> Host {
        Host { dir: place.into(), _tmp: None }.furnished()
    }

    fn furnished(self) -> Host {
        let host = self;
        for d in ["etc", "var/datastores/101", "images"] {
            std::fs::create_dir_all(host.at(d)).unwrap();
        }
        let datastore =
            ["cp", "mkfs", "rm", "clone", "monitor", "snap_revert", "snap_flatten", "snap_delete"];
        let tm = [
            "clone",
            "ln",
            "mv",
            "mkswap",
            "mvds",
            "cpds",
            "delete",
            "resize",
            "mkimage",
            "snap_create",
            "snap_revert",
            "snap_delete",
            "monitor_ds",
            "premigrate",
            "postmigrate",
            "failmigrate",
        ];
        for (role, verbs) in [("datastore", &datastore[..]), ("tm", &tm)] {
            let dir = host.at("var/remotes").join(role).join("lvm");
            std::fs::create_dir_all(&dir).unwrap();
            for verb in verbs {
                std::os::unix::fs::symlink(bed::program(), dir.join(verb)).unwrap();
            }
        }
        std::fs::write(host.at("etc/onesdm.toml"), "[lvm]\ndevices = [\"/dev/vda\"]\n").unwrap();
        host
    }

    pub fn at(&self, rel: &str) -> PathBuf {
        self.dir.join(rel)
    }

    pub fn command(&self, program: &Path) -> Command {
        let mut c = Command::new(program);
        c.env_clear().env("ONE_LOCATION", &self.dir).env("HOME", &self.dir);
        c.env("ONESDM_TEST_HISTORY", self.at("history"));
        c.envs(std::env::var_os(vm::PROFILE).map(|file| (vm::PROFILE, file)));
        c
    }

    pub fn own(&self, words: &[&str]) -> (i32, String) {
        let out = self.command(&bed::program()).args(words).output().unwrap();
        said(&out)
    }

    pub fn call(&self, verb: &str, image: &str) -> (i32, String) {
        let xml = self.message(image);
        said(&self.start(verb, &xml, &[]).wait_with_output().unwrap())
    }

    pub fn message(&self, image: &str) -> String {
        format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><REGTIME>1</REGTIME>{}</IMAGE><DATASTORE><ID>100</ID><TYPE>0</TYPE>\
             <DS_MAD>lvm</DS_MAD><TM_MAD>lvm</TM_MAD><BASE_PATH>{}</BASE_PATH><TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS>\
             <STAGING_DIR>/tmp</STAGING_DIR></TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>",
            image.replace("DIR", &self.at("images").to_string_lossy()),
            self.at("var/datastores/100").display(),
            self.at("images").display(),
        )
    }

    /// A datastore verb with its message, under way.
    pub fn start(&self, verb: &str, xml: &str, env: &[(&str, &str)]) -> Child {
        let mut c = self.command(&self.at("var/remotes/datastore/lvm").join(verb));
        let c = c.arg("7").envs(env.iter().copied());
        let mut child =
            c.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(xml.as_bytes()).unwrap();
        child
    }

    /// A transfer verb about VM 7; `DIR` is its directory on this host.
    #[track_caller]
    fn tm(&self, verb: &str, args: &[&str]) -> String {
        let (status, text) = self.tm_of((7, VM), verb, args);
        assert_eq!(status, 0, "{verb} {args:?}: {text}");
        println!("{verb} {args:?} {text}");
        text
    }

    /// The same of another VM, with its document.
    pub fn tm_of(&self, (vm, xml): (u64, &str), verb: &str, args: &[&str]) -> (i32, String) {
        let dir = format!("localhost:{}", self.at(&format!("var/datastores/101/{vm}")).display());
        let mut c = self.command(&self.at("var/remotes/tm/lvm").join(verb));
        let c = c.args(args.iter().map(|a| a.replace("DIR", &dir))).env("ONESDM_VM_XML", xml);
        said(&c.stdin(Stdio::null()).output().unwrap())
    }

    /// The group of datastore 100, a domain with a thick image 1 and a thin one 2.
    fn with_images(one: &[u8], two: &[u8]) -> Host {
        let h = Host::new();
        root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
        let (status, text) = h.own(&["domain", "init", "--lock", "ofd", "/dev/vg-one-100"]);
        assert_eq!(status, 0, "{text}");
        std::fs::write(h.at("images/one.raw"), one).unwrap();
        std::fs::write(h.at("images/two.raw"), two).unwrap();
        h.ok("cp", "<ID>1</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
        h.ok("cp", "<ID>2</ID><SIZE>8</SIZE><PATH>DIR/two.raw</PATH><PERSISTENT>1</PERSISTENT>");
        h
    }

    #[track_caller]
    pub fn ok(&self, verb: &str, image: &str) -> String {
        let (status, text) = self.call(verb, image);
        assert_eq!(status, 0, "{verb} {image}: {text}");
        println!("{verb} {image}: {text}");
        text
    }
}

pub fn said(out: &std::process::Output) -> (i32, String) {
    let text = [&out.stdout[..], &out.stderr[..]].concat();
    (out.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).trim().to_owned())
}

/// Blocks that tell where they lie, and a hole.
pub fn disk(seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..4 * MIB).map(|i| u8::try_from(i / 4096 % 251).unwrap() ^ seed).collect();
    bytes[MIB..2 * MIB].fill(0);
    bytes
}

/// What a volume reads as: its first bytes, and whether zeroes follow.
pub fn content(volume: &str, len: usize) -> (String, bool) {
    let path = format!("{GROUP}/{volume}");
    root(&["lvchange", "-K", "-ay", &path]);
    let bytes = std::fs::read(format!("/dev/{path}")).unwrap();
    root(&["lvchange", "-an", &path]);
    (digest(&bytes[..len]), bytes[len..].iter().all(|b| *b == 0))
}

pub fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

pub fn volumes() -> Vec<String> {
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
    given_back(&h, &place, &one);
}

/// The group as the stock driver wants it: its image, and nothing of ours. Killed in the middle it goes on.
fn given_back(h: &Host, place: &str, one: &[u8]) {
    h.ok("cp", "<ID>5</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH><PERSISTENT>1</PERSISTENT>");
    let (status, text) =
        h.own(&["install", "--uninstall", "--remotes", h.at("var/remotes").to_str().unwrap()]);
    assert!(status == 10 && text.contains("onesdm domain remove /dev/vg-one-100"), "{status} {text}");
    // Killed a step later each time, until this is there.
    let killed = |begun: &str, start: &dyn Fn(&str) -> Child| {
        let found = (4..60).any(|n| {
            let done = start(&format!("{n}:after")).wait().unwrap();
            assert!(!done.success(), "it was through before {begun} was there");
            volumes().iter().any(|v| v.starts_with(begun))
        });
        assert!(found, "no {begun}");
    };
    let message = h.message("<ID>6</ID><SIZE>4</SIZE>");
    killed("sdm-new-", &|n| h.start("mkfs", &message, &[("ONESDM_TEST_KILL", n)]));
    let (status, text) = h.own(&["domain", "remove", place]);
    assert!(status == 10 && text.contains("onesdm gc"), "{status} {text}");
    assert_eq!(h.own(&["gc", place]).0, 0);
    killed("sdm-del-", &|n| {
        let mut program = h.command(&bed::program());
        program.args(["domain", "remove", place]).env("ONESDM_TEST_KILL", n).spawn().unwrap()
    });
    let (status, text) = h.own(&["domain", "init", "--lock", "ofd", place]);
    assert!(status == 10 && text.contains("was being given back"), "{status} {text}");
    let (status, text) = h.own(&["domain", "remove", place]);
    assert!(status == 0 && text.contains("no domain any more"), "{status} {text}");
    let left = root(&[
        "lvs",
        "--noheadings",
        "--separator",
        ";",
        "-o",
        "lv_name,lv_tags,lv_active,lv_skip_activation",
        GROUP,
    ]);
    let left: Vec<&str> = left.lines().map(str::trim).collect();
    assert_eq!(left, ["img-one-5;;;skip activation", "img-one-5-pool;;;skip activation"]);
    assert_eq!(content("img-one-5", one.len()), (digest(one), true));
    let (status, text) = h.call("mkfs", "<ID>6</ID><SIZE>4</SIZE>");
    assert!(status == 3 && text.contains("onesdm domain init"), "{status} {text}");
    // And it may be a domain again, with what is there.
    assert_eq!(h.own(&["domain", "init", "--lock", "ofd", place]).0, 0);
    h.ok("rm", "<SOURCE>vg-one-100/img-one-5</SOURCE>");
    assert_eq!(volumes(), ["sdm-meta"]);
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

/// What the device of a disk reads as.
pub fn read(disk: &Path, len: usize) -> (String, bool) {
    let bytes = std::fs::read(disk).unwrap();
    (digest(&bytes[..len]), bytes[len..].iter().all(|b| *b == 0))
}

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn transfers_inside() {
    let (one, two) = (disk(0), disk(0x55));
    let h = Host::with_images(&one, &two);
    let at = |n: u32| h.at(&format!("var/datastores/101/7/disk.{n}"));
    let leads = |n: u32| std::fs::read_link(at(n)).unwrap();
    let len = one.len();
    h.tm("clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "7", "100"]);
    assert_eq!(leads(0), Path::new("/dev/vg-one-100/vm-one-7-0"));
    assert_eq!(read(&at(0), len), (digest(&one), true), "grown by zeroes");
    h.tm("ln", &["fe:vg-one-100/img-one-2", "DIR/disk.1", "7", "100"]);
    assert_eq!(read(&at(1), len), (digest(&two), true));
    h.tm("mkswap", &["1", "DIR/disk.2", "7", "101"]);
    assert_eq!(&std::fs::read(at(2)).unwrap()[4086..4096], b"SWAPSPACE2");

    // As after a boot: the disks come back, and nothing else does.
    let all = ["vm-one-7-0", "vm-one-7-2", "img-one-2"];
    for v in all {
        root(&["lvchange", "-an", &format!("{GROUP}/{v}")]);
    }
    assert!(!at(0).exists() && !at(1).exists());
    let (status, text) = h.own(&["activate"]);
    assert!(status == 0 && text.lines().count() == 3, "{status} {text}");
    assert!(at(0).exists() && at(1).exists() && at(2).exists());

    h.tm("snap_create", &["DIR/disk.0", "0", "7", "100"]);
    let write = |bytes: &[u8]| {
        let mut dev = std::fs::File::options().write(true).open(at(0)).unwrap();
        dev.write_all(bytes).unwrap();
        dev.sync_all().unwrap();
    };
    write(&two);
    h.tm("cpds", &["DIR/disk.0", "vg-one-100/img-one-9", "-1", "7", "100"]);
    // How full the pools are that this host has, as the account that oned has may ask.
    let (status, page) = h.own(&["metrics"]);
    let used = |of: &str| {
        let name = format!(
            "onesdm_pool_used_bytes{{datastore=\"100\",path=\"/dev/{GROUP}\",pool=\"vm-one-7-pool\",of=\"{of}\"}} "
        );
        page.lines().find_map(|l| l.strip_prefix(&name)?.parse::<usize>().ok())
    };
    let (data, tables) = (used("data").unwrap_or(0), used("tables").unwrap_or(0));
    assert!(status == 0 && data >= 2 * 3 * MIB && tables >= 4096, "{data} {tables} {page}");
    assert!(page.contains("onesdm_pool_up{") && page.contains("pool=\"img-one-2-pool\""), "{page}");
    let (_, text) = h.own(&["doctor", "/dev/vg-one-100"]);
    assert!(text.contains("pools") && text.contains("2 active here, all well"), "{text}");
    h.tm("snap_revert", &["DIR/disk.0", "0", "7", "100"]);
    assert_eq!(read(&at(0), len), (digest(&one), true));
    h.tm("resize", &["DIR/disk.0", "12", "7", "100"]);
    let bytes = std::fs::read(at(0)).unwrap();
    assert_eq!(bytes.len(), 12 * MIB);
    let report = h.tm("monitor_ds", &[h.at("var/datastores/101").to_str().unwrap()]);
    let report = STANDARD.decode(report.split('"').nth(1).unwrap()).unwrap();
    let report = String::from_utf8(report).unwrap();
    assert!(report.contains("DISK_SIZE = [ ID=0, SIZE=12 ]"), "{report}");
    // All that its volumes can take fits into the pool.
    write(&vec![0x77; 12 * MIB]);
    assert_eq!(content("img-one-9", len).0, digest(&two), "what the disk was when it was saved");

    h.tm("mvds", &["DIR/disk.1", "vg-one-100/img-one-2", "7", "100"]);
    assert!(!at(1).exists() && !Path::new("/dev/vg-one-100/img-one-2").exists());
    h.tm("delete", &["DIR/disk.0", "7", "100"]);
    h.tm("delete", &["DIR", "7", "101"]);
    assert_eq!(volumes(), ["img-one-1", "img-one-2", "img-one-2-pool", "img-one-9", "sdm-meta"]);
    let tags = || root(&["lvs", "--noheadings", "-o", "lv_name,lv_tags", GROUP]);
    let before = tags();
    for place in ["/dev/vg-one-100".to_owned(), h.at("var/datastores/101").display().to_string()] {
        let (status, text) = h.own(&["check", &place]);
        assert!(status == 0, "{text}");
    }
    assert_eq!(tags(), before, "who checks keeps nothing from other hosts");
    root(&["vgck", GROUP]);
}

#[test]
fn a_vm_lives_on_volumes_from_its_deployment_to_its_end() {
    let tmp = bed::scratch();
    let lun = vm::disk(tmp.path(), "lun", 512 << 20);
    let programs = [bed::program(), "/usr/bin/qemu-img".into(), "/usr/sbin/mkswap".into()];
    vm::passes_with("lvmverbs::transfers_inside", &[&lun], &programs);
}
