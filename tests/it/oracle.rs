//! The oracle: what a datastore's directory must hold after each verb, written from the contract's
//! sections 2.3, 2.4 and 3.0.4 and from nothing of ours. It keeps its own picture of the tree and
//! compares all of it, names, kinds, contents, owners and modes, with what is there. Only `.sdm/` is not
//! its business.

use crate::guest::{self, Data, Reader};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// What must be at one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Node {
    /// An image or a snapshot of one.
    Image {
        format: &'static str,
        size: u64,
        data: Data,
    },
    /// An image with a fresh file system or swap area; its bytes are anyone's until somebody reads them.
    Fresh {
        format: &'static str,
        size: u64,
        signature: &'static str,
    },
    /// A plain file, by digest.
    File(Data),
    Dir,
    /// A directory that may be gone once it is empty: stock leaves an empty `.snap`.
    EmptyDir,
    Link(PathBuf),
}

/// A picture of a datastore: what is at each path below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Node>);

impl Tree {
    pub fn put(&mut self, path: impl Into<PathBuf>, node: Node) {
        self.0.insert(path.into(), node);
    }

    /// `cp`, `mkfs` and `clone` make one entry and touch nothing else.
    pub fn create(&mut self, name: &str, node: Node) {
        self.put(name, node);
    }

    /// `rm` takes the image, its snapshots and its cached sum.
    pub fn rm(&mut self, name: &str) {
        let snap = PathBuf::from(format!("{name}.snap"));
        let sum = PathBuf::from(format!("{name}.md5sum"));
        self.0.retain(|p, _| !(p.starts_with(name) || p.starts_with(&snap) || *p == sum));
    }

    /// `snap_delete` takes one snapshot, and with the cached sum what became stale by it.
    pub fn snap_delete(&mut self, name: &str, id: &str) {
        let dir = PathBuf::from(format!("{name}.snap"));
        self.0.remove(&dir.join(id));
        self.0.remove(&PathBuf::from(format!("{name}.md5sum")));
        if !self.0.keys().any(|p| p.starts_with(&dir) && *p != dir) {
            self.0.insert(dir, Node::EmptyDir);
        }
    }

    /// `snap_revert`: what the name leads to has the snapshot's data; the snapshots stay. The data goes
    /// where the chain's active file is: for a raw image the image, for qcow2 the highest number.
    pub fn snap_revert(&mut self, name: &str, id: &str) {
        let dir = PathBuf::from(format!("{name}.snap"));
        let Some(snapshot) = self.0.get(&dir.join(id)).cloned() else { return };
        let numbers = self.0.keys().filter(|p| p.parent() == Some(&dir)).filter_map(|p| number(p)).max();
        let qcow2 = matches!(&snapshot, Node::Image { format: "qcow2", .. } | Node::Link(_));
        let active = if qcow2 { dir.join(numbers.unwrap_or(0).to_string()) } else { name.into() };
        let snapshot = match snapshot {
            Node::Link(_) => self.0[Path::new(name)].clone(),
            other => other,
        };
        self.0.insert(active, snapshot);
        self.0.remove(&PathBuf::from(format!("{name}.md5sum")));
    }

    /// `snap_flatten`: the image stands alone with the snapshot's data, and no snapshot is left.
    pub fn snap_flatten(&mut self, name: &str, id: &str) {
        let dir = PathBuf::from(format!("{name}.snap"));
        if let Some(node @ Node::Image { .. }) = self.0.get(&dir.join(id)).cloned() {
            self.0.insert(name.into(), node);
        }
        self.0.retain(|p, _| !p.starts_with(&dir));
        self.0.remove(&PathBuf::from(format!("{name}.md5sum")));
    }
}

fn number(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.parse().ok()
}

/// A datastore and the means to look at it.
pub struct Oracle {
    root: PathBuf,
    reader: Reader,
}

impl Oracle {
    pub fn new(root: &Path) -> Oracle {
        Oracle { root: root.to_owned(), reader: Reader::default() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The picture of what is there now, to start from.
    pub fn look(&self) -> Result<Tree, String> {
        let mut tree = Tree::default();
        for path in self.walk()? {
            let full = self.root.join(&path);
            let meta = std::fs::symlink_metadata(&full).map_err(|e| e.to_string())?;
            let node = if meta.is_dir() {
                Node::Dir
            } else if meta.is_symlink() {
                Node::Link(std::fs::read_link(&full).map_err(|e| e.to_string())?)
            } else {
                self.image(&full)?
            };
            tree.put(path, node);
        }
        Ok(tree)
    }

    /// An image file as a node.
    pub fn image(&self, path: &Path) -> Result<Node, String> {
        let guest = self.reader.read(path)?;
        let format = if guest.format == "qcow2" { "qcow2" } else { "raw" };
        Ok(Node::Image { format, size: guest.size, data: guest.data })
    }

    /// Every entry below the datastore, or below several, but `.sdm`, relative to it, parents first.
    fn walk(&self) -> Result<Vec<PathBuf>, String> {
        let (mut found, mut todo) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(dir) = todo.pop() {
            let entries =
                std::fs::read_dir(self.root.join(&dir)).map_err(|e| format!("{}: {e}", dir.display()))?;
            for entry in entries {
                let entry = entry.map_err(|e| e.to_string())?;
                let path = dir.join(entry.file_name());
                if entry.file_name() == ".sdm" {
                    continue;
                }
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    todo.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Compares everything. The error lists all differences.
    pub fn compare(&self, want: &Tree) -> Result<(), String> {
        let found = self.walk()?;
        let mut wrong = Vec::new();
        for path in found.iter().filter(|p| !want.0.contains_key(*p)) {
            wrong.push(format!("{}: nobody made this", path.display()));
        }
        for (path, node) in &want.0 {
            if found.contains(path) {
                self.fits(path, node).unwrap_or_else(|e| wrong.push(format!("{}: {e}", path.display())));
            } else if *node != Node::EmptyDir {
                wrong.push(format!("{}: missing", path.display()));
            }
        }
        if wrong.is_empty() {
            Ok(())
        } else {
            Err(format!("the datastore is not as the contract says: {wrong:#?}"))
        }
    }

    /// Every path is as one of two pictures has it: all a reader may find while a verb is unfinished.
    pub fn between(&self, before: &Tree, after: &Tree) -> Result<(), String> {
        let found = self.walk()?;
        let paths = found.iter().chain(before.0.keys()).chain(after.0.keys());
        for path in paths {
            let fits = |tree: &Tree| match tree.0.get(path) {
                Some(Node::EmptyDir) if !found.contains(path) => Ok(()),
                Some(node) => self.fits(path, node),
                None if found.contains(path) => Err("nobody made this".to_owned()),
                None => Ok(()),
            };
            if let (Err(old), Err(new)) = (fits(before), fits(after)) {
                return Err(format!("{}: neither old ({old}) nor new ({new})", path.display()));
            }
        }
        Ok(())
    }

    /// The whole is as one of two pictures has it: all that may be left once a collector was there.
    pub fn either(&self, before: &Tree, after: &Tree) -> Result<(), String> {
        self.compare(before)
            .or_else(|old| self.compare(after).map_err(|new| format!("not old ({old}), not new ({new})")))
    }

    fn fits(&self, path: &Path, node: &Node) -> Result<(), String> {
        let full = self.root.join(path);
        let meta = std::fs::symlink_metadata(&full).map_err(|e| e.to_string())?;
        let kind = meta.file_type();
        let owner = std::fs::metadata(&self.root).map_err(|e| e.to_string())?;
        if (meta.uid(), meta.gid()) != (owner.uid(), owner.gid()) {
            return Err(format!("owner {}:{}, not the datastore's", meta.uid(), meta.gid()));
        }
        match node {
            Node::Dir | Node::EmptyDir => {
                sane(kind.is_dir(), meta.mode(), &[0o700, 0o750, 0o755, 0o770, 0o775])?;
                if *node == Node::EmptyDir && std::fs::read_dir(&full).is_ok_and(|mut d| d.next().is_some()) {
                    return Err("should be empty".into());
                }
            }
            Node::Link(target) => {
                let found = std::fs::read_link(&full).map_err(|_| "should be a link".to_owned())?;
                if found != *target {
                    return Err(format!("leads to {} instead of {}", found.display(), target.display()));
                }
                full.metadata().map_err(|e| format!("dangling: {e}"))?;
            }
            Node::File(data) => {
                sane(kind.is_file(), meta.mode(), FILE_MODES)?;
                if guest::digest(&full)? != *data {
                    return Err("other content".into());
                }
            }
            Node::Image { format, size, data } => {
                sane(kind.is_file(), meta.mode(), FILE_MODES)?;
                let guest = self.seen(&full, format, *size)?;
                if guest.data != *data {
                    return Err("other data for the guest".into());
                }
            }
            Node::Fresh { format, size, signature } => {
                sane(kind.is_file(), meta.mode(), FILE_MODES)?;
                self.seen(&full, format, *size)?;
                if guest::signature(&full) != Some(signature) {
                    return Err(format!("no {signature} in it"));
                }
            }
        }
        Ok(())
    }

    fn seen(&self, full: &Path, format: &str, size: u64) -> Result<guest::Guest, String> {
        let guest = self.reader.read(full)?;
        if (guest.format.as_str(), guest.size) != (format, size) {
            return Err(format!("{} of {} bytes instead of {format} of {size}", guest.format, guest.size));
        }
        if let Some(backing) = &guest.backing {
            let dir = full.parent().unwrap_or(full);
            let real =
                dir.join(backing).canonicalize().map_err(|e| format!("backing file {backing}: {e}"))?;
            if !real.starts_with(self.root.canonicalize().map_err(|e| e.to_string())?) {
                return Err(format!("backing file {backing} lies outside the datastore"));
            }
        }
        Ok(guest)
    }
}

const FILE_MODES: &[u32] = &[0o600, 0o640, 0o644, 0o660, 0o664];

fn sane(kind: bool, mode: u32, modes: &[u32]) -> Result<(), String> {
    if !kind {
        return Err("of another kind".into());
    }
    if modes.contains(&(mode & 0o7777)) { Ok(()) } else { Err(format!("mode {:o}", mode & 0o7777)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bed;

    /// Each way a driver could spoil a datastore, and none passes.
    #[test]
    fn the_oracle_objects_to_every_kind_of_damage() {
        type Damage = (&'static str, fn(&Path));
        let damages: [Damage; 9] = [
            ("nobody made this", |d| std::fs::write(d.join("left.tmp"), "x").unwrap()),
            ("missing", |d| std::fs::remove_file(d.join("img")).unwrap()),
            ("other data", |d| guest::make_raw(&d.join("img"), 256, 2)),
            ("bytes instead of", |d| {
                std::fs::File::options().write(true).open(d.join("img")).unwrap().set_len(1 << 20).unwrap();
            }),
            ("instead of raw", |d| {
                guest::make_qcow2(&d.join("img.snap/0"), &d.join("img"));
            }),
            ("mode 666", |d| bed::chmod(&d.join("img"), 0o666)),
            ("another kind", |d| {
                std::fs::remove_file(d.join("img")).unwrap();
                std::fs::create_dir(d.join("img")).unwrap();
            }),
            ("leads to", |d| {
                std::fs::remove_file(d.join("link")).unwrap();
                std::os::unix::fs::symlink("img.snap/0", d.join("link")).unwrap();
            }),
            ("missing", |d| std::fs::remove_file(d.join("img.snap/0")).unwrap()),
        ];
        for (says, damage) in damages {
            let tmp = bed::scratch();
            let dir = tmp.path();
            guest::make_raw(&dir.join("img"), 256, 1);
            std::fs::create_dir(dir.join("img.snap")).unwrap();
            guest::make_raw(&dir.join("img.snap/0"), 256, 3);
            std::os::unix::fs::symlink("img", dir.join("link")).unwrap();
            std::fs::create_dir(dir.join(".sdm")).unwrap();
            std::fs::write(dir.join(".sdm/leases"), "").unwrap();
            let oracle = Oracle::new(dir);
            let tree = oracle.look().unwrap();
            assert_eq!(tree.0.len(), 4);
            oracle.compare(&tree).unwrap();
            damage(dir);
            let said = oracle.compare(&tree).unwrap_err();
            assert!(said.contains(says), "{says}: {said}");
            oracle
                .between(&tree, &Tree::default())
                .err()
                .or_else(|| (says == "missing").then(String::new))
                .unwrap();
        }
    }

    #[test]
    fn pictures_change_as_the_contract_says() {
        let image = |seed| Node::Image { format: "raw", size: 1, data: [seed; 32] };
        let mut tree = Tree::default();
        tree.create("a", image(0));
        tree.put("a.snap", Node::Dir);
        tree.put("a.snap/0", image(1));
        tree.put("a.snap/1", image(2));
        tree.put("a.md5sum", Node::File([9; 32]));
        tree.create("ab", image(7));
        let mut flat = tree.clone();
        tree.snap_revert("a", "1");
        assert_eq!(tree.0[Path::new("a")], image(2));
        tree.snap_delete("a", "1");
        tree.snap_delete("a", "0");
        assert_eq!(tree.0[Path::new("a.snap")], Node::EmptyDir);
        tree.rm("a");
        assert_eq!(tree.0.keys().collect::<Vec<_>>(), [Path::new("ab")]);
        flat.snap_flatten("a", "0");
        assert_eq!(flat.0.keys().collect::<Vec<_>>(), [Path::new("a"), Path::new("ab")]);
        assert_eq!(flat.0[Path::new("a")], image(1));
    }
}
