//! Images for the tests of this room: made by the real `qemu-img`, or by hand where it would refuse.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use crate::sys::{Bytes, Cancel, Tool, ToolError, Tools, tool::Run};

use super::{Format, Qemu};

pub(super) const MIB: u64 = 1 << 20;

static TOOLS: LazyLock<Tools> = LazyLock::new(|| Tools::new(std::collections::BTreeMap::new()).unwrap());
static CANCEL: LazyLock<Cancel> = LazyLock::new(Cancel::default);

pub(super) fn qemu() -> Qemu<'static> {
    Qemu { tools: &TOOLS, cancel: &CANCEL, deadline: Duration::from_secs(60), inherit: &[] }
}

/// Runs `qemu-img` in `dir` and gives its stdout.
pub(super) fn img(dir: &Path, args: &[&str]) -> Vec<u8> {
    try_img(dir, args).expect("the tests need a working qemu-img")
}

fn try_img(dir: &Path, args: &[&str]) -> Result<Vec<u8>, ToolError> {
    let args: Vec<_> = args.iter().map(OsStr::new).collect();
    let opts = Run { cwd: Some(dir), ..Run::new(Duration::from_secs(60), &CANCEL) };
    Ok(TOOLS.run(Tool::QemuImg, &args, opts)?.stdout)
}

/// A qcow2 of 4 MiB with a recorded, not opened, backing name.
pub(super) fn overlay(path: &Path, backing: Option<(&str, Format)>) {
    let backing = backing.map(|(n, f)| (OsStr::new(n), f));
    qemu().create(path, Format::Qcow2, Bytes(4 * MIB), backing, &[]).unwrap();
}

/// What a version 3 header says, to be bent.
#[derive(Clone)]
pub(super) struct Header {
    pub size: u64,
    pub incompatible: u64,
    pub l1: (u32, u64),
    pub backing: Vec<u8>,
    pub extensions: Vec<(u32, Vec<u8>)>,
    pub file: usize,
}

impl Default for Header {
    fn default() -> Self {
        let (backing, extensions) = (Vec::new(), Vec::new());
        Header { size: MIB, incompatible: 0, l1: (1, 3 << 16), backing, extensions, file: 4 << 16 }
    }
}

impl Header {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut h = b"QFI\xfb\0\0\0\x03".to_vec();
        let mut tail = Vec::new();
        for (kind, data) in &self.extensions {
            tail.extend(kind.to_be_bytes());
            tail.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            tail.extend(data);
            tail.resize(tail.len().next_multiple_of(8), 0);
        }
        tail.extend([0; 8]);
        let name = if self.backing.is_empty() { 0 } else { 104 + tail.len() as u64 };
        h.extend(name.to_be_bytes());
        h.extend(u32::try_from(self.backing.len()).unwrap().to_be_bytes());
        h.extend(16u32.to_be_bytes());
        h.extend(self.size.to_be_bytes());
        h.extend(0u32.to_be_bytes());
        h.extend(self.l1.0.to_be_bytes());
        h.extend(self.l1.1.to_be_bytes());
        h.extend((1u64 << 16).to_be_bytes());
        h.extend(1u32.to_be_bytes());
        h.extend([0; 12]);
        h.extend(self.incompatible.to_be_bytes());
        h.extend([0; 16]);
        h.extend(4u32.to_be_bytes());
        h.extend(104u32.to_be_bytes());
        h.extend(tail);
        h.extend(&self.backing);
        h.resize(h.len().max(self.file), 0);
        h
    }
}

/// One image of every format `qemu-img` makes, with the name of its file.
pub(super) fn zoo(dir: &Path) -> Vec<(Format, PathBuf)> {
    img(dir, &["create", "-q", "-f", "raw", "base", "3M"]);
    let made: [(&str, Format, &[&str]); 12] = [
        ("raw", Format::Raw, &[]),
        ("qcow2", Format::Qcow2, &[]),
        ("qcow2", Format::Qcow2, &["-o", "compat=0.10"]),
        ("qcow2", Format::Qcow2, &["-o", "cluster_size=2M,extended_l2=on,compression_type=zstd"]),
        ("qcow", Format::Qcow, &[]),
        ("vmdk", Format::Vmdk, &[]),
        ("vmdk", Format::Vmdk, &["-o", "subformat=streamOptimized"]),
        ("vdi", Format::Vdi, &[]),
        ("vpc", Format::Vhd, &[]),
        ("vhdx", Format::Vhdx, &[]),
        ("qed", Format::Qed, &[]),
        ("parallels", Format::Parallels, &[]),
    ];
    let mut zoo = Vec::new();
    for (n, (word, format, options)) in made.into_iter().enumerate() {
        let name = format!("{n}.{word}");
        img(dir, &[&["convert", "-f", "raw", "-O", word], options, &["base", &name]].concat());
        zoo.push((format, dir.join(name)));
    }
    let secret = ["--object", "secret,id=s,data=x", "-o", "key-secret=s,iter-time=10", "-f", "luks"];
    // It times itself first, and gives up where others take the processor meanwhile.
    let create = [&["create", "-q"], secret.as_slice(), &["luks", "3M"]].concat();
    let mut tries = (0..50).map(|_| try_img(dir, &create));
    assert!(tries.any(|made| made.is_ok()), "no LUKS image was made");
    zoo.push((Format::Luks, dir.join("luks")));
    for (name, format, at, magic) in [
        ("iso", Format::Iso9660, 32_769, b"CD001".as_slice()),
        ("dmg", Format::Dmg, 65_536 - 512, b"koly\0\0\0\x04"),
    ] {
        let mut bytes = vec![0; 65_536];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        std::fs::write(dir.join(name), bytes).unwrap();
        zoo.push((format, dir.join(name)));
    }
    zoo
}
