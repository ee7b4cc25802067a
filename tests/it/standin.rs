//! STAND-IN, to be removed when all transfer verbs exist: performs what the recorded calls of drivers and verbs
//! that are not offered yet do to disks and to the image datastore, by the contract's sections 3.0.4 and 3.3,
//! for raw images. All hosts share one directory here. Between calls "the guest" writes to its disks, so that
//! every snapshot differs.

use crate::sysoracle::local;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// One recorded tm call with its paths already those of the bed.
pub struct TmCall<'a> {
    pub seq: u64,
    pub step: &'a str,
    pub verb: &'a str,
    pub argv: &'a [String],
}

/// Performs it. The answer lists files of the image datastore whose content this call made or changed.
pub fn perform(call: &TmCall<'_>) -> Result<Vec<PathBuf>, String> {
    act(call).map_err(|e| format!("stand-in for tm {} {:?}: {e}", call.verb, call.argv))
}

fn act(call: &TmCall<'_>) -> std::io::Result<Vec<PathBuf>> {
    let arg = |n: usize| call.argv.get(n).map(|a| local(a)).unwrap_or_default();
    let mut touched = Vec::new();
    match call.verb {
        "clone" | "ln" => {
            let (image, disk) = (arg(0), arg(1));
            fs::create_dir_all(disk.parent().unwrap_or(&disk))?;
            fs::copy(&image, &disk)?;
            copy_all(&snap_dir(&image), &snap_dir(&disk))?;
            guest_writes(call.seq, &disk)?;
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
                id => snap_dir(&arg(0)).join(id),
            };
            fs::copy(from, arg(1))?;
            touched.push(arg(1));
        }
        "snap_create" | "snap_create_live" => {
            let disk = arg(0);
            let dir = snap_dir(&disk);
            fs::create_dir_all(&dir)?;
            fs::copy(&disk, dir.join(&call.argv[1]))?;
            guest_writes(call.seq, &disk)?;
        }
        "snap_revert" => {
            let disk = arg(0);
            fs::copy(snap_dir(&disk).join(&call.argv[1]), &disk)?;
        }
        "snap_delete" => fs::remove_file(snap_dir(&arg(0)).join(&call.argv[1]))?,
        "mvds" => {
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
        // The hosts share a directory, so a move stays where it is.
        "mv" | "resize" | "monitor" | "premigrate" | "postmigrate" | "failmigrate" => {}
        other => return Err(std::io::Error::other(format!("no stand-in for {other}"))),
    }
    Ok(touched)
}

pub fn snap_dir(disk: &Path) -> PathBuf {
    let mut name = disk.as_os_str().to_owned();
    name.push(".snap");
    name.into()
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

pub fn guest_writes(seq: u64, disk: &Path) -> std::io::Result<()> {
    let file = fs::File::options().write(true).open(disk)?;
    file.write_all_at(format!("written by the guest after call {seq}").as_bytes(), 4096 * (seq % 200))
}
