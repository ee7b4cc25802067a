//! A test bed: a front-end's directories in a temporary place, a remotes tree of symlinks to the built
//! program, calls made the way oned makes them, and the leak gates, which run when the bed goes.

pub use crate::call::{Call, Done, Running};
use base64::Engine as _;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Verbs of the datastore role that do work, then those that answer "not supported yet".
pub const VERBS: [&str; 10] =
    ["cp", "mkfs", "rm", "stat", "clone", "monitor", "export", "snap_delete", "snap_revert", "snap_flatten"];
pub const LATER: [&str; 5] = ["restore", "backup", "backup_cancel", "ls", "increment_flatten"];

pub struct Bed {
    root: PathBuf,
    /// Where datastores lie: below `root`, or on a file system mounted for the test.
    stores: PathBuf,
    _tmp: tempfile::TempDir,
}

/// The program under test: the one cargo built, or one named by hand.
pub fn program() -> PathBuf {
    std::env::var_os("ONESDM_TEST_BIN").map_or_else(|| env!("CARGO_BIN_EXE_onesdm").into(), Into::into)
}

/// A temporary directory in memory where there is one: a suite of thousands of calls should wait for
/// no disk.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let base = if shm.is_dir() { shm.to_owned() } else { std::env::temp_dir() };
    tempfile::Builder::new().prefix("onesdm-test-").tempdir_in(base).unwrap()
}

impl Bed {
    pub fn new() -> Bed {
        let tmp = scratch();
        let stores = tmp.path().join("var/datastores");
        Bed::at(tmp, stores)
    }

    /// A bed whose datastores lie in `stores`, on another file system.
    pub fn on(stores: &Path) -> Bed {
        Bed::at(scratch(), stores.to_owned())
    }

    fn at(tmp: tempfile::TempDir, stores: PathBuf) -> Bed {
        let root = tmp.path().canonicalize().unwrap();
        // Others may enter: a verb acts as the owner of the datastore.
        chmod(&root, 0o755);
        for dir in ["var", "etc", "run", "state", "log", "images", "home", "tmp"] {
            std::fs::create_dir(root.join(dir)).unwrap();
        }
        std::fs::create_dir_all(&stores).unwrap();
        let place = |key: &str| match key {
            "log" => root.join("log/onesdm.jsonl"),
            dir => root.join(dir),
        };
        let paths = ["var", "etc", "run", "state", "log"]
            .map(|k| format!("{k} = \"{}\"\n", place(k).display()))
            .concat();
        let stores = stores.canonicalize().unwrap();
        let text = format!("[paths]\n{paths}datastores = {:?}\n", stores.to_str().unwrap());
        std::fs::write(root.join("onesdm.toml"), text).unwrap();
        let bed = Bed { stores, root, _tmp: tmp };
        for driver in ["fs", "sdm"] {
            std::fs::create_dir_all(bed.remotes().join("datastore").join(driver)).unwrap();
            for verb in VERBS.iter().chain(&LATER) {
                bed.link(driver, verb, &program());
            }
        }
        bed
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
    pub fn remotes(&self) -> PathBuf {
        self.root.join("var/remotes")
    }
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }
    /// `BASE_PATH` of a datastore as oned writes it, double slash included.
    pub fn base_path(&self, id: u32) -> String {
        format!(
            "{}//{}/{id}",
            self.stores.parent().unwrap().display(),
            self.stores.file_name().unwrap().display()
        )
    }
    pub fn store_path(&self, id: u32) -> PathBuf {
        self.stores.join(id.to_string())
    }
    /// The datastore's directory, made as oned's administrator makes it.
    pub fn store(&self, id: u32) -> PathBuf {
        let dir = self.store_path(id);
        if !dir.exists() {
            std::fs::create_dir(&dir).unwrap();
            chmod(&dir, 0o750);
        }
        dir
    }

    /// Makes `remotes/datastore/<driver>/<verb>` a link to `target`, replacing what was there.
    pub fn link(&self, driver: &str, verb: &str, target: &Path) {
        let link = self.remotes().join("datastore").join(driver).join(verb);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(target, link).unwrap();
    }

    /// `remotes/datastore/<driver>/<verb>`, to be given its arguments.
    pub fn verb(&self, driver: &str, verb: &str) -> Call<'_> {
        let program = self.remotes().join("datastore").join(driver).join(verb);
        Call::new(self, verb, program)
    }

    /// `remotes/tm/<driver>/<verb>`, a link to the program, to be given its arguments.
    pub fn tm(&self, driver: &str, verb: &str) -> Call<'_> {
        let link = self.remotes().join("tm").join(driver).join(verb);
        if !link.is_symlink() {
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(program(), &link).unwrap();
        }
        Call::new(self, verb, link)
    }

    /// The call oned makes for image or datastore `id`: the dump in base64 on stdin.
    pub fn ds(&self, verb: &str, id: u32, dump: &str) -> Call<'_> {
        self.verb("fs", verb).arg(id.to_string()).stdin(base64(dump))
    }

    /// `onesdm ARGS…`, as a person types it.
    pub fn onesdm(&self, args: &[&str]) -> Call<'_> {
        let noun = args.first().copied().unwrap_or("onesdm");
        args.iter().fold(Call::new(self, noun, program()), Call::arg)
    }

    /// The leak gates. They run by themselves when the bed is dropped.
    fn leaks(&self) -> Vec<String> {
        let mut found = Vec::new();
        for dir in ["tmp", "home"] {
            let left = names(&self.root.join(dir));
            if !left.is_empty() {
                found.push(format!("left in {dir}: {left:?}"));
            }
        }
        let ours = |text: &str| [&self.root, &self.stores].iter().any(|d| text.contains(d.to_str().unwrap()));
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for line in mounts.lines() {
            let point = line.split(' ').nth(4).unwrap_or_default();
            if ours(point) && Path::new(point) != self.stores {
                found.push(format!("mounted: {line}"));
            }
        }
        for dev in names(Path::new("/sys/block")) {
            let file = std::fs::read_to_string(format!("/sys/block/{dev}/loop/backing_file"));
            if file.is_ok_and(|f| f.contains(self.root.to_str().unwrap())) {
                found.push(format!("loop device {dev}"));
            }
        }
        found.extend(processes(|line| ours(line)).into_iter().map(|p| format!("process: {p}")));
        found
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut left = self.leaks();
        for _ in 0..20 {
            if left.is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50)); // the kernel may still be reaping
            left = self.leaks();
        }
        panic!("the bed is not clean: {left:#?}");
    }
}

/// Processes other than this one whose working directory, arguments or open files satisfy `hit`.
pub fn processes(hit: impl Fn(&str) -> bool) -> Vec<String> {
    let me = std::process::id().to_string();
    let mut found = Vec::new();
    for pid in names(Path::new("/proc")).into_iter().filter(|n| n.parse::<u32>().is_ok() && *n != me) {
        let dir = Path::new("/proc").join(&pid);
        let args = std::fs::read(dir.join("cmdline")).unwrap_or_default();
        let args = String::from_utf8_lossy(&args).replace('\0', " ");
        let fds = names(&dir.join("fd")).into_iter().map(|f| dir.join("fd").join(f));
        let links = fds.chain([dir.join("cwd"), dir.join("exe")]).filter_map(|l| std::fs::read_link(l).ok());
        if let Some(why) = links.map(|l| l.display().to_string()).chain([args.clone()]).find(|l| hit(l)) {
            found.push(format!("{pid} {args}({why})"));
        }
    }
    found
}

/// Names in a directory, sorted; none when it cannot be read.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

pub fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

pub fn base64(text: impl AsRef<[u8]>) -> Vec<u8> {
    base64::engine::general_purpose::STANDARD.encode(text).into_bytes()
}

/// Runs a tool of the bed itself and insists that it works.
pub fn tool(program: &str, args: &[&OsStr]) -> String {
    let out = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("the suite needs {program}: {e} (packaging/setup installs it)"));
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {}: {err}", out.status);
    String::from_utf8_lossy(&out.stdout).into_owned()
}
