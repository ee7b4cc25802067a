//! One small scene per verb and kind of image: what lies in the datastore, the call, and what must lie
//! there afterwards. The sweeps, the tracer and the full disk all play these.

use crate::bed::{self, Bed, Done};
use crate::doc::{self, Doc};
use crate::guest;
use crate::oracle::{Node, Oracle, Tree};
use crate::tm_scenes;
use std::path::{Path, PathBuf};

pub struct Scene {
    pub name: &'static str,
    pub verb: &'static str,
    pub(crate) set: fn(&mut Stage<'_>),
}

/// A datastore ready for the call.
pub struct Stage<'a> {
    pub bed: &'a Bed,
    pub oracle: Oracle,
    pub dump: String,
    /// Of a transfer verb: the driver, and the words of the call.
    pub tm: Option<(&'static str, Vec<String>)>,
    pub before: Tree,
    pub after: Tree,
    /// Between the old and the new there is something harmless that stays until the call is made again.
    pub rest: bool,
    /// What the answer is, when the verb answers; the rest of the line may follow the path.
    answer: Option<String>,
}

const ID: u32 = 7;
const EXISTING: &str = "0123456789abcdef0123456789abcdef";
const KIB: u64 = 768;
const REGTIME: u64 = 1_795_168_000;

impl Scene {
    /// Lays out the files in stock's layout and takes the datastore over.
    pub fn stage<'a>(&self, bed: &'a Bed) -> Stage<'a> {
        let store = bed.store(100);
        let oracle = Oracle::new(&store);
        let (before, after) = (Tree::default(), Tree::default());
        let (dump, tm) = (String::new(), None);
        let mut stage = Stage { bed, oracle, dump, tm, before, after, rest: false, answer: None };
        (self.set)(&mut stage);
        stage
    }

    pub fn call<'a>(&self, stage: &Stage<'a>) -> bed::Call<'a> {
        match &stage.tm {
            Some((driver, args)) => tm_scenes::call(stage.bed, driver, self.verb, args),
            None => stage.bed.ds(self.verb, ID, &stage.dump),
        }
    }
}

impl Stage<'_> {
    /// The call did what it was asked: right answer, right tree.
    pub fn done(&self, done: &Done) -> Result<(), String> {
        let answer = done.answer()?;
        let wrong = |want: &str| Err(format!("answered {answer:?} instead of {want:?}"));
        match (&self.answer, done.verb.as_str()) {
            (_, "monitor") => crate::replay::monitor(&answer)?,
            (Some(want), "export") if answer.contains(want) => {}
            (Some(want), _) if answer.trim().replace("//", "/") == *want => {}
            (None, _) if answer.is_empty() => {}
            (want, _) => return wrong(want.as_deref().unwrap_or_default()),
        }
        self.oracle.compare(&self.after)
    }

    /// The datastores that take part.
    pub fn stores(&self) -> Vec<PathBuf> {
        let all: &[u32] = if self.tm.is_some() { &[100, 101, 102] } else { &[100] };
        all.iter().map(|n| self.bed.store_path(*n)).collect()
    }

    /// What may be there once a collector was.
    pub fn settled(&self) -> Result<(), String> {
        let (old, new) = (&self.before, &self.after);
        if self.rest { self.oracle.between(old, new) } else { self.oracle.either(old, new) }
    }

    /// Whether a line says what it is about: the image, the file given as its source, or the datastore.
    pub fn names_object(&self, line: &str) -> bool {
        let store = self.bed.store_path(100).display().to_string();
        let new = doc::image_name(REGTIME, ID);
        if self.tm.is_some() {
            let system = self.bed.store_path(101).display().to_string();
            return ["datastore 10", &store, &system].iter().any(|n| line.contains(n));
        }
        [EXISTING, &new, "datastore 100", &store, self.bed.images().to_str().unwrap()]
            .iter()
            .any(|n| line.contains(n))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.bed.store_path(100).join(name)
    }
    fn doc(&self) -> Doc {
        Doc::new(self.bed, ID).image("REGTIME", REGTIME)
    }

    /// A source image of the given form, outside the datastore.
    fn source(&self, name: &str) -> PathBuf {
        let path = self.bed.images().join(name);
        let raw = self.bed.images().join("src.raw");
        guest::make_raw(&raw, KIB, 1);
        match name {
            "src.raw" => {}
            "src.qcow2" => guest::make_qcow2(&raw, &path),
            "src.raw.gz" => {
                let packed = std::process::Command::new("gzip").arg("-c").arg(&raw).output().unwrap();
                std::fs::write(&path, packed.stdout).unwrap();
            }
            other => panic!("no source {other}"),
        }
        path
    }

    /// An image already in the datastore, with two snapshots if asked for.
    fn existing(&mut self, format: &str, snapshots: bool) -> &'static str {
        let name = EXISTING;
        let (image, snap) = (self.path(name), self.path(&format!("{name}.snap")));
        if format == "qcow2" {
            guest::make_qcow2(&self.source("src.raw"), &image);
        } else {
            guest::make_raw(&image, KIB, 1);
        }
        if snapshots {
            std::fs::create_dir(&snap).unwrap();
            if format == "qcow2" {
                // Layout of a persistent qcow2 image: 0 is the image, each further number a layer.
                std::os::unix::fs::symlink(".", snap.join(format!("{name}.snap"))).unwrap();
                std::os::unix::fs::symlink(&image, snap.join("0")).unwrap();
                guest::make_layer(&snap.join("1"), &snap.join("0"), 0x11);
                guest::make_layer(&snap.join("2"), &snap.join("1"), 0x22);
            } else {
                guest::make_raw(&snap.join("0"), KIB, 2);
                guest::make_raw(&snap.join("1"), KIB, 3);
            }
            std::fs::write(self.path(&format!("{name}.md5sum")), "stale").unwrap();
        }
        self.before = self.look();
        self.after = self.before.clone();
        name
    }

    fn look(&self) -> Tree {
        self.oracle.look().unwrap()
    }

    /// The call makes the new image with the data of `from`.
    fn makes(&mut self, format: &'static str, from: &Path) {
        let guest = guest::Reader::default().read(from).unwrap();
        self.makes_node(Node::Image { format, size: guest.size, data: guest.data });
        self.answer = self.answer.take().map(|a| format!("{a} {format}"));
    }
    fn makes_node(&mut self, node: Node) {
        let name = doc::image_name(REGTIME, ID);
        self.answer = Some(self.path(&name).display().to_string());
        self.after.create(&name, node);
    }
}

/// The scene of this name.
pub fn named(name: &str) -> Scene {
    all()
        .into_iter()
        .chain(tm_scenes::all())
        .find(|s| s.name == name)
        .unwrap_or_else(|| panic!("no scene {name}"))
}

/// Every scene. The first stands for the whole life of a verb and comes without a domain.
pub fn all() -> Vec<Scene> {
    fn scene(name: &'static str, verb: &'static str, set: fn(&mut Stage<'_>)) -> Scene {
        Scene { name, verb, set }
    }
    fn cp(s: &mut Stage<'_>, source: &str, driver: Option<&str>, format: &'static str) {
        let path = s.source(source);
        let mut doc = s.doc().image("PATH", path.display());
        if let Some(driver) = driver {
            doc = doc.store_template("DRIVER", driver);
        }
        s.dump = doc.xml();
        let plain = if path.extension().is_some_and(|e| e == "gz") { path.with_extension("") } else { path };
        s.makes(format, &plain);
    }
    fn mkfs(s: &mut Stage<'_>, format: &'static str, fs: &str, mib: u64, node: Option<Node>) {
        s.dump = s.doc().image("FORMAT", format).image("FS", fs).image("SIZE", mib).xml();
        match node {
            Some(node) => s.makes_node(node),
            None => s.answer = Some(s.path(&doc::image_name(REGTIME, ID)).display().to_string()),
        }
    }
    fn empty(format: &'static str, mib: u64) -> Node {
        Node::Image { format, size: mib << 20, data: guest::zeros() }
    }
    fn fresh(signature: &'static str, mib: u64) -> Node {
        Node::Fresh { format: "raw", size: mib << 20, signature }
    }
    fn clone(s: &mut Stage<'_>, from: &str, driver: &'static str) {
        let name = s.existing(from, false);
        let path = s.path(name);
        s.dump = s.doc().image("PATH", path.display()).store_template("DRIVER", driver).xml();
        s.makes(driver, &path);
    }
    fn snap(s: &mut Stage<'_>, format: &str, id: &str, change: fn(&mut Tree, &str, &str)) {
        let name = s.existing(format, true);
        let doc = s.doc().source(s.bed, name).image("TARGET_SNAPSHOT", id).image("FORMAT", format);
        s.dump = doc.store("TM_MAD", if format == "qcow2" { "qcow2" } else { "shared" }).xml();
        change(&mut s.after, name, id);
    }
    vec![
        scene("cp raw", "cp", |s| cp(s, "src.raw", None, "raw")),
        scene("cp qcow2", "cp", |s| cp(s, "src.qcow2", None, "qcow2")),
        scene("cp qcow2 to raw", "cp", |s| cp(s, "src.qcow2", Some("raw"), "raw")),
        scene("cp raw.gz", "cp", |s| cp(s, "src.raw.gz", None, "raw")),
        scene("mkfs raw", "mkfs", |s| mkfs(s, "raw", "", 4, Some(empty("raw", 4)))),
        scene("mkfs qcow2", "mkfs", |s| mkfs(s, "qcow2", "", 4, Some(empty("qcow2", 4)))),
        scene("mkfs ext4", "mkfs", |s| mkfs(s, "raw", "ext4", 4, Some(fresh("ext4", 4)))),
        scene("mkfs swap", "mkfs", |s| mkfs(s, "swap", "", 4, Some(fresh("swap", 4)))),
        scene("mkfs save_as", "mkfs", |s| mkfs(s, "save_as", "", 4, None)),
        scene("clone raw", "clone", |s| clone(s, "raw", "raw")),
        scene("clone raw to qcow2", "clone", |s| clone(s, "raw", "qcow2")),
        scene("rm raw with snapshots", "rm", |s| {
            let name = s.existing("raw", true);
            s.dump = s.doc().source(s.bed, name).xml();
            s.after.rm(name);
        }),
        scene("rm raw alone", "rm", |s| {
            let name = s.existing("raw", false);
            s.dump = s.doc().source(s.bed, name).xml();
            s.after.rm(name);
        }),
        scene("rm of nothing", "rm", |s| s.dump = s.doc().source(s.bed, &"0".repeat(32)).xml()),
        scene("snap_delete raw", "snap_delete", |s| snap(s, "raw", "1", Tree::snap_delete)),
        scene("snap_delete qcow2", "snap_delete", |s| snap(s, "qcow2", "1", Tree::snap_delete)),
        scene("snap_revert raw", "snap_revert", |s| snap(s, "raw", "0", Tree::snap_revert)),
        scene("snap_revert qcow2", "snap_revert", |s| snap(s, "qcow2", "0", Tree::snap_revert)),
        scene("snap_flatten raw", "snap_flatten", |s| snap(s, "raw", "0", Tree::snap_flatten)),
        scene("snap_flatten qcow2", "snap_flatten", |s| snap(s, "qcow2", "1", Tree::snap_flatten)),
        scene("stat raw.gz", "stat", |s| {
            s.dump = s.doc().image("PATH", s.source("src.raw.gz").display()).xml();
            s.answer = Some("1".into()); // 768 KiB, rounded up
        }),
        scene("export raw", "export", |s| {
            let name = s.existing("raw", false);
            s.dump = s.doc().source(s.bed, name).image("SIZE", 1).xml();
            s.answer = Some("<FORMAT><![CDATA[raw]]></FORMAT>".into());
        }),
        scene("monitor", "monitor", |s| s.dump = s.doc().xml()),
    ]
}

#[test]
fn every_scene_plays() {
    for scene in all() {
        let bed = Bed::new();
        let stage = scene.stage(&bed);
        stage.oracle.compare(&stage.before).unwrap_or_else(|e| panic!("{}: set up wrongly: {e}", scene.name));
        let done = scene.call(&stage).run();
        stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));
    }
}

#[test]
fn every_verb_has_a_scene() {
    for verb in bed::VERBS {
        assert!(all().iter().any(|s| s.verb == verb), "{verb}");
    }
}
