//! Doctored records and foreign things in `.sdm/`: whatever lies there, nothing outside the job's own objects
//! is touched, nobody hangs or crashes, and the datastore's other images can be worked with.

use crate::bed::{self, Bed, chmod, names, tool};
use crate::doc::{Doc, image_name};
use crate::guest;
use crate::oracle::{Node, Oracle, Tree};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

const JOB: &str = "0193e3a5-0000-7000-8000-000000000001";
const VICTIM: u32 = 20;
/// Whoever takes longer hangs.
const PATIENCE: [&str; 5] = ["timeout", "--foreground", "-s", "KILL", "20"];

/// A datastore with a domain, a victim and something precious outside.
struct Yard {
    bed: Bed,
    outside: PathBuf,
}

impl Yard {
    fn new() -> Yard {
        let bed = Bed::new();
        bed.store(100);
        let outside = bed.root().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("0"), "precious").unwrap();
        std::fs::write(outside.join("intent.json"), "precious").unwrap();
        let yard = Yard { bed, outside };
        yard.cp(VICTIM).run().ok();
        yard
    }

    fn cp(&self, id: u32) -> bed::Call<'_> {
        let source = self.bed.images().join("a");
        guest::make_raw(&source, 64, 1);
        self.bed.ds("cp", id, &Doc::new(&self.bed, id).image("PATH", source.display()).xml())
    }

    fn victim(&self) -> PathBuf {
        self.bed.store(100).join(image_name(1_795_168_000, VICTIM))
    }

    fn sdm(&self, path: &str) -> PathBuf {
        self.bed.store(100).join(".sdm").join(path)
    }

    fn put(&self, path: &str, bytes: &[u8]) {
        let path = self.sdm(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// A commit record with a valid checksum.
    fn commit(&self, steps: &str) {
        self.put(
            &format!("new/{JOB}/commit.json"),
            &record(&format!(
                r#"{{"format":1,"job":"{JOB}","who":{WHO},"request":"r","answer":"","steps":[{steps}]}}"#
            )),
        );
    }

    fn intent(&self, targets: &str) {
        self.put(
            &format!("new/{JOB}/intent.json"),
            &record(&format!(r#"{{"format":1,"job":"{JOB}","who":{WHO},"targets":[{targets}]}}"#)),
        );
    }
}

const WHO: &str = r#"{"host":"h","pid":1,"verb":"cp","since":"2020-01-01T00:00:00Z"}"#;

fn record(json: &str) -> Vec<u8> {
    use sha2::Digest as _;
    let sum: String = sha2::Sha256::digest(json).iter().map(|b| format!("{b:02x}")).collect();
    format!("{json}\n{sum}\n").into_bytes()
}

fn identity(path: &Path) -> String {
    let meta = path.symlink_metadata().unwrap();
    let born = meta.created().unwrap().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
    format!(r#"{{"ino":{},"born":{born}}}"#, meta.ino())
}

fn grave(n: u32) -> String {
    format!(r#"{{"job":"{JOB}","n":{n},"keep":false}}"#)
}

type Doctor = fn(&Yard);

fn cases() -> Vec<(&'static str, Doctor)> {
    let mut cases: Vec<(&'static str, Doctor)> = vec![
        ("a commit that buries the victim's name with another identity", |y| {
            y.commit(&format!(
                r#"{{"step":"bury","name":"{}","id":{},"grave":{}}}"#,
                y.victim().file_name().unwrap().display(),
                identity(&y.outside),
                grave(0)
            ));
        }),
        ("a commit that replaces the victim by its own slab, of another identity", |y| {
            y.put(&format!("new/{JOB}/0"), b"evil");
            let staged = identity(&y.sdm(&format!("new/{JOB}/0")));
            y.commit(&format!(
                r#"{{"step":"replace","from":0,"id":{staged},"to":"{}","old":{},"grave":{}}}"#,
                y.victim().file_name().unwrap().display(),
                identity(&y.outside),
                grave(0)
            ));
        }),
        ("a commit that publishes over the victim", |y| {
            y.put(&format!("new/{JOB}/0"), b"evil");
            let staged = identity(&y.sdm(&format!("new/{JOB}/0")));
            y.commit(&format!(
                r#"{{"step":"publish","from":0,"id":{staged},"to":"{}"}}"#,
                y.victim().file_name().unwrap().display()
            ));
        }),
        ("a commit of another job", |y| {
            let other = JOB.replace("0001", "0002");
            let bytes = record(&format!(
                r#"{{"format":1,"job":"{other}","who":{WHO},"request":"r","answer":"","steps":[{{"step":"bury","name":"{}","id":{},"grave":{}}}]}}"#,
                y.victim().file_name().unwrap().display(),
                identity(&y.victim()),
                grave(0)
            ));
            y.put(&format!("new/{JOB}/commit.json"), &bytes);
        }),
        ("a grave of another job", |y| {
            let g = grave(0).replace(JOB, "../../../outside/x");
            y.commit(&format!(
                r#"{{"step":"bury","name":"{}","id":{},"grave":{g}}}"#,
                y.victim().file_name().unwrap().display(),
                identity(&y.victim())
            ));
        }),
        ("a commit with a wrong checksum", |y| {
            y.put(&format!("new/{JOB}/commit.json"), b"{\"format\":1}\n0000\n");
        }),
        ("a commit of 100,000 levels", |y| {
            y.put(&format!("new/{JOB}/commit.json"), &record(&"[".repeat(100_000)));
        }),
        ("a commit of a future format", |y| {
            y.put(&format!("new/{JOB}/commit.json"), &record(&format!(
                r#"{{"format":99,"job":"{JOB}","who":{WHO},"request":"r","answer":"","steps":[],"more":1}}"#)));
        }),
        ("a huge commit", |y| y.put(&format!("new/{JOB}/commit.json"), &vec![b'x'; 3 << 20])),
        ("a huge intent", |y| y.put(&format!("new/{JOB}/intent.json"), &vec![b'x'; 3 << 20])),
        ("an intent about the victim, and nothing else", |y| {
            y.intent(&format!("\"{}\"", y.victim().file_name().unwrap().display()));
        }),
        ("an intent about paths outside", |y| y.intent("\"../outside/0\",\"/etc/passwd\",\".sdm/leases\"")),
    ];
    cases.extend(things());
    cases
}

/// Things that are not files where files should be, and foreign ones.
fn things() -> Vec<(&'static str, Doctor)> {
    vec![
        ("a link in place of a job", |y| symlink(&y.outside, y.sdm(&format!("new/{JOB}"))).unwrap()),
        ("a file in place of a job", |y| y.put(&format!("new/{JOB}"), b"x")),
        ("a pipe in place of a job", |y| drop(tool("mkfifo", &[y.sdm(&format!("new/{JOB}")).as_os_str()]))),
        ("a pipe in place of a commit", |y| {
            y.intent("");
            tool("mkfifo", &[y.sdm(&format!("new/{JOB}/commit.json")).as_os_str()]);
        }),
        ("a pipe in place of an intent", |y| {
            std::fs::create_dir(y.sdm(&format!("new/{JOB}"))).unwrap();
            tool("mkfifo", &[y.sdm(&format!("new/{JOB}/intent.json")).as_os_str()]);
        }),
        ("a directory in place of a commit", |y| {
            std::fs::create_dir_all(y.sdm(&format!("new/{JOB}/commit.json/x"))).unwrap();
        }),
        ("a link in place of a commit", |y| {
            y.intent("");
            symlink(y.outside.join("0"), y.sdm(&format!("new/{JOB}/commit.json"))).unwrap();
        }),
        ("a link in place of a slab", |y| {
            y.intent("");
            symlink(&y.outside, y.sdm(&format!("new/{JOB}/0"))).unwrap();
        }),
        ("a slab full of links", |y| {
            y.intent("");
            let dir = y.sdm(&format!("new/{JOB}/0"));
            std::fs::create_dir(&dir).unwrap();
            symlink(&y.outside, dir.join("out")).unwrap();
            symlink("../../../..", dir.join("up")).unwrap();
            symlink(y.victim(), dir.join("victim")).unwrap();
        }),
        ("a second name of the victim as a slab", |y| {
            y.intent("");
            std::fs::hard_link(y.victim(), y.sdm(&format!("new/{JOB}/0"))).unwrap();
        }),
        ("foreign files in new", |y| {
            y.put("new/README", b"mine");
            symlink(&y.outside, y.sdm("new/link")).unwrap();
        }),
        ("foreign files in del", |y| {
            y.put("del/README", b"mine");
            symlink(&y.outside, y.sdm("del/link")).unwrap();
            std::fs::create_dir(y.sdm("del/dir")).unwrap();
        }),
        ("a link as a tombstone", |y| symlink(&y.outside, y.sdm(&format!("del/{JOB}-0"))).unwrap()),
        ("a tree of links as a tombstone", |y| {
            let dir = y.sdm(&format!("del/{JOB}-0"));
            std::fs::create_dir_all(dir.join("deep")).unwrap();
            symlink(&y.outside, dir.join("deep/out")).unwrap();
            symlink(y.victim(), dir.join("victim")).unwrap();
        }),
        ("a tombstone nobody may enter", |y| {
            let dir = y.sdm(&format!("del/{JOB}-0"));
            std::fs::create_dir_all(dir.join("x")).unwrap();
            chmod(&dir, 0);
        }),
        ("a done record that is a pipe", |y| {
            drop(tool("mkfifo", &[y.sdm(&format!("done/{JOB}.json")).as_os_str()]));
        }),
        ("a done record that is a link", |y| {
            symlink(y.outside.join("0"), y.sdm(&format!("done/{JOB}.json"))).unwrap();
        }),
        ("a huge done record", |y| y.put(&format!("done/{JOB}.json"), &vec![b'x'; 3 << 20])),
        ("a done record of rubbish", |y| y.put(&format!("done/{JOB}.json"), b"rubbish")),
        ("an event of a stranger", |y| y.put("stranger", b"x")),
    ]
}

/// Collects, then works on the victim's neighbours and on the victim itself.
#[test]
fn whatever_lies_in_our_area_harms_nobody() {
    let mut wrong = Vec::new();
    for (what, doctor) in cases() {
        let yard = Yard::new();
        let bed = &yard.bed;
        doctor(&yard);
        let store = bed.store(100);
        let before = std::fs::read(yard.victim()).unwrap();
        let seen = guest::Reader::default().read(&yard.victim()).unwrap();
        let image = Node::Image { format: "raw", size: seen.size, data: seen.data };
        let mut say = |text: String| wrong.push(format!("{what}: {text}"));
        for word in ["gc --plan", "gc", "gc", "check", "lock show"] {
            let words: Vec<&str> = word.split(' ').chain([store.to_str().unwrap()]).collect();
            let done = bed.onesdm(&words).under(&PATIENCE).run();
            if done.code.is_none_or(|c| [101, 137].contains(&c)) {
                say(format!("{word} ended with {:?} {:?}: {}", done.code, done.signal, done.err()));
            }
        }
        let mut tree = Tree::default();
        for id in [1, 2] {
            let done = yard.cp(id).under(&PATIENCE).run();
            match done.answer() {
                Ok(_) => drop(tree.0.insert(image_name(1_795_168_000, id).into(), image.clone())),
                Err(e) => say(format!("cp: {e}")),
            }
        }
        tree.0.insert(yard.victim().file_name().unwrap().into(), image.clone());
        if std::fs::read(yard.victim()).unwrap_or_default() != before {
            say("the victim was changed".into());
        }
        if let Err(e) = Oracle::new(&store).compare(&tree) {
            say(e);
        }
        if names(&yard.outside) != ["0", "intent.json"]
            || std::fs::read(yard.outside.join("0")).unwrap() != b"precious"
        {
            say("something outside was changed".into());
        }
        let gone =
            Doc::new(bed, VICTIM).source(bed, yard.victim().file_name().unwrap().to_str().unwrap()).xml();
        let done = bed.ds("rm", VICTIM, &gone).under(&PATIENCE).run();
        if let Err(e) = done.answer() {
            say(format!("rm: {e}"));
        }
        if yard.victim().exists() {
            say("the victim cannot be removed".into());
        }
        for (dir, name) in [("new", "README"), ("del", "README")] {
            if what == format!("foreign files in {dir}") && !yard.sdm(dir).join(name).exists() {
                say("what is not ours was deleted".into());
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The area itself, or its header, is something else: nothing is done, nobody hangs, and reading goes on.
#[test]
fn an_area_that_is_none_is_refused() {
    type Change = fn(&Yard);
    let cases: [(&str, Change); 7] = [
        ("a link to another directory", |y| {
            std::fs::rename(y.sdm(""), y.bed.root().join("area")).unwrap();
            symlink(y.bed.root().join("area"), y.bed.store(100).join(".sdm")).unwrap();
        }),
        ("a file", |y| {
            std::fs::remove_dir_all(y.sdm("")).unwrap();
            std::fs::write(y.bed.store(100).join(".sdm"), "x").unwrap();
        }),
        ("a header that is a pipe", |y| {
            std::fs::remove_file(y.sdm("domain.json")).unwrap();
            tool("mkfifo", &[y.sdm("domain.json").as_os_str()]);
        }),
        ("a header that is a link", |y| {
            std::fs::rename(y.sdm("domain.json"), y.bed.root().join("header")).unwrap();
            symlink(y.bed.root().join("header"), y.sdm("domain.json")).unwrap();
        }),
        ("a huge header", |y| y.put("domain.json", &vec![b'x'; 3 << 20])),
        ("leases that are a link", |y| {
            std::fs::remove_file(y.sdm("leases")).unwrap();
            symlink(y.outside.join("0"), y.sdm("leases")).unwrap();
        }),
        ("leases that are a pipe", |y| {
            std::fs::remove_file(y.sdm("leases")).unwrap();
            tool("mkfifo", &[y.sdm("leases").as_os_str()]);
        }),
    ];
    for (what, change) in cases {
        let yard = Yard::new();
        let bed = &yard.bed;
        change(&yard);
        let name = yard.victim().file_name().unwrap().to_str().unwrap().to_owned();
        for id in [1, VICTIM] {
            let done = yard.cp(id).under(&PATIENCE).run();
            done.failure(None).unwrap_or_else(|e| panic!("{what}: cp: {e}"));
            assert_ne!(done.code, Some(137), "{what}: cp hangs");
        }
        let rm = bed.ds("rm", VICTIM, &Doc::new(bed, VICTIM).source(bed, &name).xml()).under(&PATIENCE).run();
        rm.failure(None).unwrap_or_else(|e| panic!("{what}: rm: {e}"));
        assert_ne!(rm.code, Some(137), "{what}: rm hangs");
        for word in ["gc", "check"] {
            let done = bed.onesdm(&[word, bed.store(100).to_str().unwrap()]).under(&PATIENCE).run();
            assert!(
                done.code.is_some_and(|c| ![0, 101, 137].contains(&c)),
                "{what}: {word}: {:?}",
                done.code
            );
        }
        bed.ds("monitor", 100, &Doc::new(bed, 100).xml()).run().ok();
        assert!(yard.victim().exists(), "{what}");
        assert_eq!(names(&yard.outside), ["0", "intent.json"], "{what}");
        assert_eq!(std::fs::read(yard.outside.join("0")).unwrap(), b"precious", "{what}");
        assert_eq!(names(&bed.store(100)), [".sdm", name.as_str()], "{what}");
    }
}
