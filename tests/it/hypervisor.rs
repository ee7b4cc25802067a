//! The bed of machines (tests/bed/libvirt) as the suite uses it: a real libvirtd, real qemu under software
//! emulation, a machine 7 whose disk is OpenNebula's disk 0. "The guest" writes through qemu's own monitor.

use crate::bed::{self, Bed};
use crate::call::Call;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub const MIB: usize = 1 << 20;

pub struct Libvirt {
    dir: PathBuf,
    bed: Child,
    _tmp: tempfile::TempDir,
}

pub struct Hypervisor {
    libvirt: Libvirt,
    pub one: Bed,
}

impl Libvirt {
    pub fn up() -> Libvirt {
        let tmp = bed::scratch();
        let dir = tmp.path().join("libvirt");
        let mut command = Command::new(script());
        command.args(["up", "-f"]).env("ONESDM_LIBVIRT", &dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::inherit()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "up\n", "the bed of machines needs root and the packages of packaging/need test");
        Libvirt { dir, bed: child, _tmp: tmp }
    }

    pub fn command(&self, args: &[&str]) -> (bool, String) {
        let out = Command::new(script()).args(args).env("ONESDM_LIBVIRT", &self.dir).output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        let (ok, said) = self.command(args);
        assert!(ok, "{args:?}: {said}");
        said
    }
}

impl Hypervisor {
    /// A directory with what oned says of the machine in this state.
    pub fn document(&self, state: u32) -> PathBuf {
        let xml = self.one.root().join("xml");
        std::fs::create_dir_all(&xml).unwrap();
        let document = format!(
            "<VM><ID>7</ID><DEPLOY_ID>one-7</DEPLOY_ID><LCM_STATE>{state}</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID>\
             <FORMAT>qcow2</FORMAT><TARGET>vda</TARGET><SIZE>16</SIZE><SOURCE>{}</SOURCE></DISK></TEMPLATE><HISTORY_RECORDS>\
             <HISTORY><SEQ>0</SEQ><VM_MAD>kvm</VM_MAD></HISTORY></HISTORY_RECORDS></VM>",
            self.text("100/img")
        );
        std::fs::write(xml.join("vm-7.xml"), document).unwrap();
        xml
    }

    /// Up, with datastores 100 (images) and 101 (system).
    pub fn up() -> Hypervisor {
        let libvirt = Libvirt::up();
        let one = Bed::new();
        for id in [100, 101] {
            one.store(id);
        }
        Hypervisor { libvirt, one }
    }

    pub fn command(&self, args: &[&str]) -> (bool, String) {
        self.libvirt.command(args)
    }

    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> String {
        self.libvirt.ok(args)
    }

    pub fn at(&self, rel: &str) -> PathBuf {
        self.one.store_path(101).parent().unwrap().join(rel)
    }

    pub fn text(&self, rel: &str) -> String {
        self.at(rel).to_str().unwrap().to_owned()
    }

    pub fn machine(&self) -> Value {
        let uri = self.ok(&["uri"]);
        json!({"uri": uri, "domain": "one-7", "target": "vda", "timeout": 20, "freeze": "try"})
    }

    pub fn disk(&self, format: &str) -> Value {
        json!({"path": self.text("101/7/disk.0"), "image": self.text("100/img"), "format": format})
    }

    /// An operation, as the front-end would ask for it.
    pub fn op(&self, op: &Value) -> Call<'_> {
        self.one.onesdm(&["op"]).stdin(op.to_string())
    }

    pub fn snap(&self, op: &str, n: i64) -> Value {
        let mut v = json!({"op": op, "disk": self.disk("qcow2"), "snapshot": n});
        if op.ends_with("_live") {
            let snap = json!({"disk": self.disk("qcow2"), "snapshot": n});
            v = json!({"op": op, "snap": snap, "machine": self.machine()});
        }
        v
    }

    #[track_caller]
    pub fn did(&self, op: &str, n: i64) {
        self.op(&self.snap(op, n)).run().ok();
    }

    /// Image `img` of 16 MiB, and disk 0 of VM 7 from it.
    pub fn deploy(&self, format: &str, persistent: bool) {
        let img = self.text("100/img");
        bed::tool("/usr/bin/qemu-img", &["create", "-q", "-f", format, &img, "16M"].map(OsStr::new));
        self.disk_of(format, persistent);
    }

    /// Disk 0 of VM 7 from image `img`.
    pub fn disk_of(&self, format: &str, persistent: bool) {
        let img = self.text("100/img");
        let op = if persistent {
            json!({"op": "link", "image": img, "disk": self.text("101/7/disk.0"), "format": format})
        } else {
            json!({"op": "clone", "image": img, "disk": self.text("101/7/disk.0"), "format": format,
                "standalone": false, "sparse": true, "size_mib": null, "original_mib": null})
        };
        self.op(&op).run().ok();
    }

    pub fn boot(&self, format: &str) {
        self.ok(&["start", "one-7", &format!("{}={format}", self.text("101/7/disk.0"))]);
    }

    pub fn power_off(&self) {
        self.ok(&["virsh", "destroy", "--graceful", "one-7"]);
    }

    pub fn state(&self) -> String {
        self.ok(&["virsh", "domstate", "one-7"])
    }

    /// The guest fills the first 64 KiB of a MiB with a letter.
    #[track_caller]
    pub fn write(&self, letter: char, mib: usize) {
        self.ok(&["write", "one-7", "vda", &letter.to_string(), &format!("{mib}M"), "64k"]);
    }

    /// What the guest reads itself, one letter for each of the first MiB.
    #[track_caller]
    pub fn sees(&self, letters: &str) {
        for (n, letter) in letters.chars().enumerate() {
            self.ok(&["read", "one-7", "vda", &letter.to_string(), &format!("{n}M"), "64k"]);
        }
    }

    pub fn link(&self) -> String {
        let to = std::fs::read_link(self.at("101/7/disk.0")).unwrap();
        to.file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// The letters of an image's first MiBs, read with tools that are not ours, while it may be in use.
    pub fn says(&self, path: &Path) -> String {
        let flat = self.libvirt.dir.join("flat");
        let args = ["convert", "-U", "-O", "raw"].map(OsStr::new);
        bed::tool("/usr/bin/qemu-img", &[&args[..], &[path.as_os_str(), flat.as_os_str()]].concat());
        let bytes = std::fs::read(&flat).unwrap();
        let letters: String = (0..bytes.len() / MIB).map(|n| char::from(bytes[n * MIB])).collect();
        letters.trim_end_matches('\0').to_owned()
    }

    /// The snapshots' directory.
    pub fn layers(&self, persistent: bool) -> PathBuf {
        self.at(if persistent { "100/img.snap" } else { "101/7/disk.0.snap" })
    }

    /// The content of a snapshot, as a reader of `.current` files finds it.
    pub fn snapshot(&self, persistent: bool, n: i64) -> Option<String> {
        let dir = self.layers(persistent);
        let mut marks = BTreeMap::new();
        for name in bed::names(&dir) {
            if let Some(n) = name.strip_suffix(".current") {
                let text = std::fs::read_to_string(dir.join(&name)).unwrap();
                marks.insert(n.parse::<i64>().unwrap(), PathBuf::from(text.trim()));
            }
        }
        let own = dir.join(n.to_string());
        let file = match marks.get(&n) {
            Some(file) => file.clone(),
            None if marks.values().any(|f| *f == own || *f == own.with_extension("deleted")) => return None,
            None => own,
        };
        file.exists().then(|| self.says(&file))
    }
}

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/libvirt")
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        drop(self.bed.stdin.take());
        let _ = self.bed.wait();
    }
}
