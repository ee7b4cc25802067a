//! STAND-IN, to be removed when the tm verbs exist: performs what the recorded tm calls do to disks and
//! to the image datastore, by the contract's sections 3.0.4, 3.1 and 3.3, for raw images. All hosts share
//! one directory here. Between calls "the guest" writes to its disks, so that every snapshot differs.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// One recorded tm call with its paths already those of the bed.
pub struct TmCall<'a> {
    pub seq: u64,
    pub step: &'a str,
    pub driver: &'a str,
    pub verb: &'a str,
    pub argv: &'a [String],
}

/// Performs it. The answer lists files of the image datastore whose content this call made or changed.
pub fn perform(call: &TmCall<'_>) -> Result<Vec<PathBuf>, String> {
    act(call).map_err(|e| format!("stand-in for tm {} {:?}: {e}", call.verb, call.argv))
}

fn act(call: &TmCall<'_>) -> std::io::Result<Vec<PathBuf>> {
    let shared = call.driver == "shared";
    let arg = |n: usize| call.argv.get(n).map(|a| local(a)).unwrap_or_default();
    let mut touched = Vec::new();
    match call.verb {
        "clone" | "ln" => {
            let (image, disk) = (arg(0), arg(1));
            fs::create_dir_all(disk.parent().unwrap_or(&disk))?;
            if shared && call.verb == "ln" {
                std::os::unix::fs::symlink(&image, &disk)?;
            } else {
                fs::copy(&image, &disk)?;
                copy_all(&snap_dir(&image), &snap_dir(&disk))?;
            }
            guest_writes(call.seq, &disk)?;
            if shared && call.verb == "ln" {
                touched.push(image);
            }
        }
        "mkimage" | "mkswap" | "context" => {
            let disk = arg(call.argv.len() - 3);
            fs::create_dir_all(disk.parent().unwrap_or(&disk))?;
            fs::File::create(&disk)?.set_len(1 << 20)?;
        }
        "delete" => {
            let disk = arg(0);
            if disk.is_dir() {
                fs::remove_dir_all(&disk)?;
            } else if disk.symlink_metadata().is_ok() {
                fs::remove_file(&disk)?;
                let _ = fs::remove_dir_all(snap_dir(&disk));
            }
        }
        "cpds" => {
            let from = match call.argv[2].as_str() {
                "-1" => arg(0),
                id => real_snap_dir(&arg(0), shared)?.join(id),
            };
            fs::copy(from, arg(1))?;
            touched.push(arg(1));
        }
        "snap_create" | "snap_create_live" => {
            let disk = arg(0);
            let dir = real_snap_dir(&disk, shared)?;
            fs::create_dir_all(&dir)?;
            let snapshot = dir.join(&call.argv[1]);
            fs::copy(&disk, &snapshot)?;
            guest_writes(call.seq, &disk)?;
            if shared && disk.is_symlink() {
                touched.extend([dir, snapshot, fs::read_link(&disk)?]);
            }
        }
        "snap_revert" => {
            let disk = arg(0);
            let to = disk.canonicalize()?;
            fs::copy(real_snap_dir(&disk, shared)?.join(&call.argv[1]), &to)?;
        }
        "snap_delete" => fs::remove_file(real_snap_dir(&arg(0), shared)?.join(&call.argv[1]))?,
        "mvds" if !shared => {
            let (disk, image) = (arg(0), arg(1));
            fs::rename(&disk, &image)?;
            touched.push(image.clone());
            if snap_dir(&disk).is_dir() {
                let to = snap_dir(&image);
                let _ = fs::remove_dir_all(&to);
                fs::rename(snap_dir(&disk), &to)?;
                touched.push(to.clone());
                touched.extend(fs::read_dir(to)?.flatten().map(|e| e.path()));
            }
        }
        "resize" if call.step != "resize_live" => {
            let mib: u64 = call.argv[1].parse().unwrap_or_default();
            fs::File::options().write(true).open(arg(0))?.set_len(mib << 20)?;
        }
        // The hosts share a directory, so a move stays where it is; shared mvds works in the image itself.
        "mvds" | "mv" | "resize" | "monitor" | "premigrate" | "postmigrate" | "failmigrate" => {}
        other => return Err(std::io::Error::other(format!("no stand-in for {other}"))),
    }
    Ok(touched)
}

/// The path of `host:path`.
fn local(arg: &str) -> PathBuf {
    let path = arg.split_once(':').map_or(arg, |(_, path)| path);
    PathBuf::from(path.replace("//", "/"))
}

fn snap_dir(disk: &Path) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(".snap");
    name.into()
}

/// Shared and persistent: beside the image; otherwise beside the disk.
fn real_snap_dir(disk: &Path, shared: bool) -> std::io::Result<PathBuf> {
    if shared && disk.is_symlink() { Ok(snap_dir(&fs::read_link(disk)?)) } else { Ok(snap_dir(disk)) }
}

fn copy_all(from: &Path, to: &Path) -> std::io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

fn guest_writes(seq: u64, disk: &Path) -> std::io::Result<()> {
    let file = fs::File::options().write(true).open(disk)?;
    file.write_all_at(format!("written by the guest after call {seq}").as_bytes(), 4096 * (seq % 200))
}
