//! Where the bench works: memory, the temporary directory's file system, and XFS with shared extents.

use crate::run::{have, tool};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::path::{Path, PathBuf};

pub struct Place {
    /// The file system's name.
    pub fs: String,
    pub dir: PathBuf,
    pub what: String,
    /// Whether extents can be shared.
    pub reflink: bool,
    mounted: Option<PathBuf>,
    tmp: tempfile::TempDir,
}

fn scratch(base: &Path) -> Option<tempfile::TempDir> {
    tempfile::Builder::new().prefix("onesdm-bench-").tempdir_in(base).ok()
}

/// The places of this machine, and a line for each one it does not have.
pub fn all() -> (Vec<Place>, Vec<String>) {
    let (mut places, mut missing) = (Vec::new(), Vec::new());
    match scratch(Path::new("/dev/shm")) {
        Some(tmp) => places.push(Place::at(tmp, "in memory")),
        None => missing.push("tmpfs: /dev/shm cannot be written".to_owned()),
    }
    if let Some(tmp) = scratch(&std::env::temp_dir()) {
        places.push(Place::at(tmp, "the temporary directory"));
    }
    match xfs() {
        Ok(place) => places.push(place),
        Err(why) => missing.push(format!("xfs: {why}")),
    }
    (places, missing)
}

impl Place {
    fn at(tmp: tempfile::TempDir, what: &str) -> Place {
        let dir = tmp.path().canonicalize().unwrap();
        let fs = fs_of(&dir);
        let reflink = matches!(fs.as_str(), "xfs" | "btrfs");
        Place { fs, dir, what: what.to_owned(), reflink, mounted: None, tmp }
    }
}

/// A loop-mounted XFS in the temporary directory; needs root.
fn xfs() -> Result<Place, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("mounting one needs root".to_owned());
    }
    if !have("mkfs.xfs") {
        return Err("mkfs.xfs is not installed".to_owned());
    }
    let tmp = scratch(&std::env::temp_dir()).ok_or("no temporary directory")?;
    let (image, mount) = (tmp.path().join("disk"), tmp.path().join("mnt"));
    std::fs::create_dir(&mount).map_err(|e| e.to_string())?;
    std::fs::File::create(&image).and_then(|f| f.set_len(12 << 30)).map_err(|e| e.to_string())?;
    let text = |p: &Path| p.display().to_string();
    tool("mkfs.xfs", &["-q", "-m", "reflink=1", &text(&image)]);
    let out = std::process::Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&mount).output();
    if !out.is_ok_and(|o| o.status.success()) {
        return Err("no loop device can be mounted here".to_owned());
    }
    let what = format!("on a loop device over {}", fs_of(tmp.path()));
    Ok(Place { fs: "xfs".into(), dir: mount.clone(), what, reflink: true, mounted: Some(mount), tmp })
}

impl Drop for Place {
    fn drop(&mut self) {
        clear(self.mounted.as_deref(), self.tmp.path());
    }
}

fn clear(mount: Option<&Path>, tmp: &Path) {
    if let Some(mount) = mount {
        // Lazily: a child may still be at work there when a signal ends the bench.
        let _ = std::process::Command::new("umount").arg("-l").arg(mount).status();
    }
    let _ = std::fs::remove_dir_all(tmp);
}

/// Whoever stops the bench finds nothing left of it.
pub fn clear_on_signal(places: &[Place]) {
    let all: Vec<_> = places.iter().map(|p| (p.mounted.clone(), p.tmp.path().to_owned())).collect();
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).unwrap();
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            for (mount, tmp) in &all {
                clear(mount.as_deref(), tmp);
            }
            std::process::exit(130);
        }
    });
}

/// The type of the file system a directory lies on, from the mount table.
fn fs_of(dir: &Path) -> String {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mounts = table.lines().filter_map(|l| {
        let mut words = l.split(' ').skip(1);
        let (point, fs) = (words.next()?, words.next()?);
        dir.starts_with(point).then_some((point.len(), fs))
    });
    mounts.max_by_key(|(len, _)| *len).map_or("unknown", |(_, fs)| fs).to_owned()
}
