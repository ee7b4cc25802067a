//! What system datastores hold by the contract, for VMs with raw disks: followed call by call and compared with
//! what is there.

use crate::guest::{self, Guest, Reader};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    Dir,
    Link(PathBuf),
    /// What a guest sees; the size, too, where the call says it.
    File(guest::Data, Option<u64>),
}

/// The directories of VMs in all system datastores of a bed.
pub struct Systems {
    stores: PathBuf,
    /// Disks are copies, persistent ones, too.
    copies: bool,
    known: BTreeMap<PathBuf, Thing>,
    reader: Reader,
}

/// The path of `host:path`.
pub fn local(arg: &str) -> PathBuf {
    let path = arg.split_once(':').map_or(arg, |(_, path)| path);
    PathBuf::from(path.replace("//", "/"))
}

pub fn snaps(of: &Path) -> PathBuf {
    PathBuf::from(format!("{}.snap", of.display()))
}

impl Systems {
    pub fn new(stores: &Path, copies: bool) -> Systems {
        Systems { stores: stores.to_owned(), copies, known: BTreeMap::new(), reader: Reader::default() }
    }

    fn read(&self, path: &Path) -> Result<Guest, String> {
        self.reader.read(path)
    }

    fn put(&mut self, path: &Path, thing: Thing) {
        let dir = path.parent().unwrap();
        self.known.entry(dir.to_owned()).or_insert(Thing::Dir);
        self.known.insert(path.to_owned(), thing);
    }

    fn drop(&mut self, path: &Path) {
        self.known.retain(|p, _| !p.starts_with(path));
    }

    /// What the guest or somebody else did to a disk is as it is.
    pub fn refresh(&mut self, disk: &Path) -> Result<(), String> {
        if !disk.is_symlink() && disk.exists() {
            let guest = self.read(disk)?;
            self.put(disk, Thing::File(guest.data, Some(guest.size)));
        }
        for name in crate::bed::names(&snaps(disk)) {
            let path = snaps(disk).join(name);
            let guest = self.read(&path)?;
            self.put(&snaps(disk), Thing::Dir);
            self.put(&path, Thing::File(guest.data, Some(guest.size)));
        }
        Ok(())
    }

    /// What a call that succeeded did.
    pub fn did(&mut self, verb: &str, argv: &[String]) -> Result<(), String> {
        let arg = |n: usize| argv.get(n).map(|a| local(a)).unwrap_or_default();
        let mib = |n: usize| argv[n].parse::<u64>().map(|m| m << 20).map_err(|e| e.to_string());
        match verb {
            "clone" => {
                let data = self.read(&arg(0))?.data;
                self.put(&arg(1), Thing::File(data, None));
            }
            "ln" if self.copies => {
                let data = self.read(&arg(0))?.data;
                self.put(&arg(1), Thing::File(data, None));
                for entry in std::fs::read_dir(snaps(&arg(0))).into_iter().flatten().flatten() {
                    let (data, dir) = (self.read(&entry.path())?.data, snaps(&arg(1)));
                    self.put(&dir, Thing::Dir);
                    self.put(&dir.join(entry.file_name()), Thing::File(data, None));
                }
            }
            "ln" => self.put(&arg(1), Thing::Link(arg(0))),
            "mkimage" | "mkswap" => {
                let disk = arg(argv.len() - 3);
                let (guest, size) = (self.read(&disk)?, mib(0)?);
                // Which bits a tool writes is its affair; that there is what was asked for is not.
                let wanted = if verb == "mkswap" { Some("swap") } else { None };
                if wanted.is_some_and(|w| guest::signature(&disk) != Some(w)) || guest.size != size {
                    return Err(format!("{} is no {verb} of {size}", disk.display()));
                }
                self.put(&disk, Thing::File(guest.data, Some(size)));
            }
            "context" => {
                let disk = arg(argv.len() - 3);
                let about = crate::bed::tool("isoinfo", &["-d".as_ref(), "-i".as_ref(), disk.as_os_str()]);
                if !about.contains("Volume id: CONTEXT\n") {
                    return Err(format!("{} is no context ISO: {about}", disk.display()));
                }
                self.put(&disk, Thing::File(self.read(&disk)?.data, None));
            }
            "delete" => {
                self.drop(&arg(0));
                self.drop(&snaps(&arg(0)));
            }
            "mv" if argv[0].contains("disk.") => {}
            "mv" => {
                let (from, to) = (arg(0), arg(1));
                let moved: Vec<_> =
                    self.known.clone().into_iter().filter(|(p, _)| p.starts_with(&from)).collect();
                self.drop(&from);
                for (path, thing) in moved {
                    let rest = path.strip_prefix(&from).map_err(|e| e.to_string())?;
                    let path = if rest.as_os_str().is_empty() { to.clone() } else { to.join(rest) };
                    self.known.insert(path, thing);
                }
            }
            "snap_create" => match self.known.get(&arg(0)).cloned() {
                Some(thing @ Thing::File(..)) => {
                    let path = snaps(&arg(0)).join(&argv[1]);
                    self.put(&snaps(&arg(0)), Thing::Dir);
                    self.put(&path, thing);
                }
                // Of a persistent disk they are with the image.
                Some(Thing::Link(image)) => {
                    let (disk, snap) = (self.read(&image)?, self.read(&snaps(&image).join(&argv[1]))?);
                    if disk.data != snap.data {
                        return Err(format!("snapshot {} is not what the disk was", argv[1]));
                    }
                }
                other => return Err(format!("a snapshot of {other:?}")),
            },
            "snap_revert" => {
                let thing = self.known[&snaps(&arg(0)).join(&argv[1])].clone();
                self.put(&arg(0), thing);
            }
            "snap_delete" => self.drop(&snaps(&arg(0)).join(&argv[1])),
            "resize" => {
                if let Some(Thing::File(_, size)) = self.known.get_mut(&arg(0)) {
                    *size = Some(argv[1].parse::<u64>().map_err(|e| e.to_string())? << 20);
                }
            }
            "cpds" | "mvds" => {
                let from = match argv[2].as_str() {
                    id if verb == "cpds" && id != "-1" => snaps(&arg(0)).join(id),
                    _ => arg(0),
                };
                let (disk, image) = (self.read(&from)?, self.read(&arg(1))?);
                if (disk.data, disk.size) != (image.data, image.size) {
                    return Err(format!("{} is not what was saved", arg(1).display()));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// What is there is what is known, and nothing more.
    pub fn compare(&self) -> Result<(), String> {
        let (mut found, mut todo) = (BTreeMap::new(), Vec::new());
        for ds in [101, 102] {
            todo.push(self.stores.join(ds.to_string()));
        }
        while let Some(dir) = todo.pop() {
            let entries = std::fs::read_dir(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
            for entry in entries.flatten().filter(|e| e.file_name() != ".sdm" && e.file_name() != ".monitor")
            {
                let (path, kind) = (entry.path(), entry.file_type().map_err(|e| e.to_string())?);
                let thing = if kind.is_symlink() {
                    Thing::Link(std::fs::read_link(&path).map_err(|e| e.to_string())?)
                } else if kind.is_dir() {
                    todo.push(path.clone());
                    Thing::Dir
                } else {
                    let guest = self.read(&path)?;
                    let told = matches!(self.known.get(&path), Some(Thing::File(_, Some(_))));
                    Thing::File(guest.data, told.then_some(guest.size))
                };
                found.insert(path, thing);
            }
        }
        let paths: BTreeSet<_> = found.keys().chain(self.known.keys()).collect();
        match paths.into_iter().find(|p| found.get(*p) != self.known.get(*p)) {
            None => Ok(()),
            Some(p) => {
                Err(format!("{}: {:?} in place of {:?}", p.display(), found.get(p), self.known.get(p)))
            }
        }
    }
}

/// What is there below a datastore, `100`, or the directory of a VM, and that itself: `path`, or `path -> target`.
pub fn look(stores: &str, top: &str) -> BTreeSet<String> {
    let (mut found, mut todo) = (BTreeSet::new(), Vec::new());
    if Path::new(stores).join(top).is_dir() {
        found.extend((top != "100").then(|| format!("{top}/")));
        todo.push(PathBuf::from(top));
    }
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(Path::new(stores).join(&dir)).unwrap().flatten() {
            let (path, kind) = (dir.join(entry.file_name()), entry.file_type().unwrap());
            if kind.is_symlink() {
                let to = std::fs::read_link(entry.path()).unwrap();
                found.insert(format!("{} -> {}", path.display(), to.display()));
            } else if kind.is_dir() && entry.file_name() != ".sdm" {
                found.insert(format!("{}/", path.display()));
                todo.push(path);
            } else if kind.is_file() {
                found.insert(path.display().to_string());
            }
        }
    }
    found
}
