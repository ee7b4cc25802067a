//! What a guest would see in an image file, read with tools that are not ours: qemu-img tells format and
//! size, and the bytes are the test's own reading.

use crate::bed::{self, tool};
use sha2::Digest as _;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Digest of a guest's data: where it is not zero, and what is there. Trailing zeros do not count; the
/// virtual size is compared by itself.
pub type Data = [u8; 32];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    pub format: String,
    pub size: u64,
    pub data: Data,
    pub backing: Option<String>,
}

/// Reads images, and remembers those that did not change: device, inode and change time say so.
#[derive(Default)]
pub struct Reader {
    seen: RefCell<HashMap<(u64, u64, i64, i64), Guest>>,
}

impl Reader {
    pub fn read(&self, path: &Path) -> Result<Guest, String> {
        let meta = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let key = (meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec());
        // An overlay's data changes with its backing file, so only files that stand alone are remembered.
        if let Some(guest) = self.seen.borrow().get(&key) {
            return Ok(guest.clone());
        }
        let guest = read(path)?;
        if guest.backing.is_none() {
            self.seen.borrow_mut().insert(key, guest.clone());
        }
        Ok(guest)
    }
}

fn read(path: &Path) -> Result<Guest, String> {
    let info = qemu_img(&["info", "-U", "--output=json"], &[path])?;
    let info: serde_json::Value = serde_json::from_str(&info).map_err(|e| e.to_string())?;
    let format = info["format"].as_str().unwrap_or_default().to_owned();
    let size = info["virtual-size"].as_u64().unwrap_or_default();
    let backing = info["backing-filename"].as_str().map(str::to_owned);
    let data = if format == "raw" {
        digest(path)?
    } else {
        let tmp = bed::scratch();
        let flat = tmp.path().join("flat");
        qemu_img(&["convert", "-U", "-O", "raw"], &[path, &flat])?;
        digest(&flat)?
    };
    // qemu rounds a raw file up to sectors; the file itself is the truth.
    let size = if format == "raw" { std::fs::metadata(path).map_or(size, |m| m.len()) } else { size };
    Ok(Guest { format, size, data, backing })
}

fn qemu_img(words: &[&str], paths: &[&Path]) -> Result<String, String> {
    let mut command = std::process::Command::new("qemu-img");
    let out =
        command.args(words).args(paths).output().map_err(|e| format!("the suite needs qemu-img: {e}"))?;
    if out.status.success() {
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    } else {
        Err(format!("qemu-img {}: {}", words[0], String::from_utf8_lossy(&out.stderr).trim()))
    }
}

/// Digest of the bytes of a raw file.
pub fn digest(path: &Path) -> Result<Data, String> {
    let file = std::fs::File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    digest_of(file).map_err(|e| format!("{}: {e}", path.display()))
}

pub fn digest_of(mut file: impl std::io::Read) -> std::io::Result<Data> {
    let mut hash = sha2::Sha256::new();
    let mut block = vec![0u8; 64 << 10];
    for n in 0u64.. {
        let mut len = 0;
        while len < block.len() {
            match file.read(&mut block[len..])? {
                0 => break,
                got => len += got,
            }
        }
        if len == 0 {
            break;
        }
        block[len..].fill(0);
        if block.iter().any(|b| *b != 0) {
            hash.update(n.to_le_bytes());
            hash.update(&block);
        }
    }
    Ok(hash.finalize().into())
}

/// Digest of an image that is all zeros.
pub fn zeros() -> Data {
    sha2::Sha256::new().finalize().into()
}

/// A raw image of `kib` KiB: data at the start, a hole, data in the middle, a hole at the end. `seed` makes
/// it different from others.
pub fn make_raw(path: &Path, kib: u64, seed: u8) {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(kib << 10).unwrap();
    let mut word = u64::from(seed) + 1;
    let block: Vec<u8> = (0..(kib << 10) / 8)
        .map(|_| {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            word.to_be_bytes()[0] | 1
        })
        .collect();
    file.write_all_at(&block, 0).unwrap();
    file.write_all_at(&block[..block.len() / 2], kib << 9).unwrap();
}

/// The same data as a qcow2 file.
pub fn make_qcow2(raw: &Path, path: &Path) {
    let words = ["convert", "-f", "raw", "-O", "qcow2"].map(OsStr::new);
    tool("qemu-img", &[&words[..], &[raw.as_os_str(), path.as_os_str()]].concat());
}

/// An empty qcow2 layer over `backing`, then `change` KiB written into it as a guest would.
pub fn make_layer(path: &Path, backing: &Path, seed: u8) {
    let words = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"].map(OsStr::new);
    tool("qemu-img", &[&words[..], &[backing.as_os_str(), path.as_os_str()]].concat());
    let write = format!("write -P {seed} 64k 64k");
    tool("qemu-io", &["-f".as_ref(), "qcow2".as_ref(), "-c".as_ref(), write.as_ref(), path.as_os_str()]);
}

/// What `mkfs` and `mkswap` leave at a fixed place, by the formats' own documents.
pub fn signature(path: &Path) -> Option<&'static str> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::File::open(path).ok()?;
    let at = |offset, magic: &[u8]| {
        let mut found = vec![0; magic.len()];
        file.read_exact_at(&mut found, offset).is_ok() && found == magic
    };
    let table: [(&str, u64, &[u8]); 4] = [
        ("ext4", 1080, &[0x53, 0xef]),
        ("xfs", 0, b"XFSB"),
        ("btrfs", 65_600, b"_BHRfS_M"),
        ("swap", 4086, b"SWAPSPACE2"),
    ];
    table.into_iter().find(|(_, offset, magic)| at(*offset, magic)).map(|(name, ..)| name)
}

#[test]
fn two_forms_of_one_disk_read_the_same_and_others_do_not() {
    let tmp = bed::scratch();
    let at = |n: &str| -> PathBuf { tmp.path().join(n) };
    make_raw(&at("a"), 512, 1);
    make_raw(&at("b"), 512, 2);
    make_qcow2(&at("a"), &at("q"));
    let reader = Reader::default();
    let (a, b, q) =
        (reader.read(&at("a")).unwrap(), reader.read(&at("b")).unwrap(), reader.read(&at("q")).unwrap());
    assert_eq!(
        (a.format.as_str(), q.format.as_str(), a.size, q.size),
        ("raw", "qcow2", 512 << 10, 512 << 10)
    );
    assert_eq!(a.data, q.data);
    assert_ne!(a.data, b.data);
    make_layer(&at("l"), &at("q"), 9);
    let layer = reader.read(&at("l")).unwrap();
    assert_eq!(layer.backing.as_deref(), at("q").to_str());
    assert_ne!(layer.data, q.data);
    // A file written again is read again.
    make_raw(&at("a"), 512, 3);
    assert_ne!(reader.read(&at("a")).unwrap().data, a.data);
}
