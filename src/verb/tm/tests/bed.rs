//! The bed, and a reader of qcow2 that shares nothing with what it checks.

use super::put::{Blob, iso};
use super::*;
use crate::config::Config;
use crate::engine::faulty::Faulty;
use crate::engine::file::FileEngine;
use crate::engine::mem::MemEngine;
use crate::lock::{JobId, MemLocks};
use crate::sdm::check::check;
use crate::sdm::job::{Topic, Waits};
use crate::sdm::turn::Copies;
use crate::sdm::{Domain, Job, Jobs, SdmError, gc};
use crate::sys::tool::Run;
use crate::sys::{Cancel, Tool, Tools};
use crate::verb::Ctx;
use anyhow::Result;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::Duration;

pub const MIB: usize = 1 << 20;
/// What there is, by path below the datastores; directories without anything in them left out.
pub type View = BTreeMap<String, String>;

pub struct Bed {
    dir: tempfile::TempDir,
    mem: Option<BTreeMap<i64, (MemEngine, MemLocks)>>,
    config: Config,
    tools: Tools,
    jobs: Jobs,
}

/// A public object and its content.
pub enum Thing {
    Dir,
    Link(PathBuf),
    File(Vec<u8>),
}

impl Bed {
    pub fn new() -> Bed {
        let bed = Bed::bare(None);
        for ds in [100, 101, 102] {
            std::fs::create_dir_all(bed.at(&ds.to_string())).unwrap();
        }
        bed
    }

    pub fn in_memory() -> Bed {
        let of = |ds| (ds, (MemEngine::default(), MemLocks::default()));
        Bed::bare(Some([100, 101, 102].map(of).into_iter().collect()))
    }

    fn bare(mem: Option<BTreeMap<i64, (MemEngine, MemLocks)>>) -> Bed {
        // In memory where that is possible: thousands of operations flush.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let log = |n: &str| crate::obs::jsonl::Log { path: dir.path().join(n), max_size: 1 << 20, keep: 1 };
        let jobs = Jobs {
            run: dir.path().join("run"),
            events: log("events"),
            history: log("history"),
            cancel: Cancel::default(),
            // A child of another test keeps all descriptors, leases too, until it is another program.
            waits: Waits { lock: Duration::from_secs(10), grace: Duration::from_millis(100) },
            copies: Copies::default(),
            plan: None,
        };
        let mut config = Config::builtin().unwrap();
        config.settings.paths.datastores = dir.path().canonicalize().unwrap().join("ds");
        let tools = Tools::new(BTreeMap::new()).unwrap();
        Bed { dir, mem, config, tools, jobs }
    }

    /// An absolute path below the datastores.
    pub fn at(&self, rel: &str) -> PathBuf {
        self.config.settings.paths.datastores.join(rel)
    }

    pub fn text(&self, rel: &str) -> String {
        self.at(rel).into_os_string().into_string().unwrap()
    }

    pub fn domain(&self, ds: i64) -> Domain {
        match &self.mem {
            Some(mem) => Domain::in_memory(&mem[&ds].0, &mem[&ds].1).unwrap(),
            None => Domain::init_dir(&self.at(&ds.to_string())).unwrap(),
        }
    }

    /// Everything public, to be put back by `restore`.
    pub fn capture(&self) -> BTreeMap<PathBuf, Thing> {
        let mut out = BTreeMap::new();
        let mut todo = vec![self.at("")];
        while let Some(dir) = todo.pop() {
            for e in std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.file_name() != ".sdm") {
                let (path, kind) = (e.path(), e.file_type().unwrap());
                let thing = if kind.is_dir() {
                    todo.push(path.clone());
                    Thing::Dir
                } else if kind.is_symlink() {
                    Thing::Link(std::fs::read_link(&path).unwrap())
                } else {
                    Thing::File(std::fs::read(&path).unwrap())
                };
                out.insert(path, thing);
            }
        }
        out
    }

    /// The same content at the same paths, in new domains.
    pub fn restore(&self, things: &BTreeMap<PathBuf, Thing>) {
        std::fs::remove_dir_all(self.at("")).unwrap();
        std::fs::create_dir(self.at("")).unwrap();
        for (path, thing) in things {
            match thing {
                Thing::Dir => std::fs::create_dir(path).unwrap(),
                Thing::Link(to) => std::os::unix::fs::symlink(to, path).unwrap(),
                Thing::File(bytes) => std::fs::write(path, bytes).unwrap(),
            }
        }
    }

    /// By a host that dies after so many changes of storage, wherever they are.
    pub fn cut(&self, id: JobId, op: &Op, left: i64, after: bool) -> Result<Answer> {
        self.cut_with(id, op, (left, after), &|| Ok(()), Some(&Blob::of(&iso(b'I'), false)))
    }

    /// The same, with another side.
    pub fn cut_with(
        &self,
        id: JobId,
        op: &Op,
        (left, after): (i64, bool),
        ready: &crate::verb::Ready<'_>,
        peer: Option<&dyn crate::host::Link>,
    ) -> Result<Answer> {
        let left = Arc::new(AtomicI64::new(left));
        let open = |dir: &Path, ds: i64| -> Result<Domain, SdmError> {
            let domain = self.domain(ds);
            let engine: Box<dyn crate::engine::Engine> = match &self.mem {
                Some(mem) => Box::new(Faulty::sharing(mem[&ds].0.clone(), &left, after)),
                None => Box::new(Faulty::sharing(FileEngine::open(dir)?, &left, after)),
            };
            Ok(Domain { engine, ..domain })
        };
        self.perform(id, &open, ready, peer, op)
    }

    /// With another side, or none.
    pub fn with_peer(&self, id: JobId, op: &Op, peer: Option<&dyn crate::host::Link>) -> Result<Answer> {
        let open = |_: &Path, ds: i64| Ok(self.domain(ds));
        self.perform(id, &open, &|| Ok(()), peer, op)
    }

    /// The other side gives the same ISO always.
    pub fn with(
        &self,
        id: JobId,
        open: &crate::verb::Open<'_>,
        ready: &crate::verb::Ready<'_>,
        op: &Op,
    ) -> Result<Answer> {
        self.perform(id, open, ready, Some(&Blob::of(&iso(b'I'), false)), op)
    }

    fn perform(
        &self,
        id: JobId,
        open: &crate::verb::Open<'_>,
        ready: &crate::verb::Ready<'_>,
        peer: Option<&dyn crate::host::Link>,
        op: &Op,
    ) -> Result<Answer> {
        // Each on a host of its own: nobody can signal the others.
        let jobs = &Jobs { run: self.dir.path().join(format!("run-{id}")), ..self.jobs.clone() };
        let (settings, tools) = (&self.config.settings, &self.tools);
        let ctx = Ctx { settings, tools, jobs, job: id, repeatable: true, open, ready, peer };
        let job = jobs.start(id, Topic { verb: "test".into(), ..Topic::default() });
        op::perform(op, &ctx, &job)
    }

    pub fn start(&self, topic: Topic) -> Job {
        self.jobs.start(JobId::generate(), topic)
    }

    pub fn run(&self, op: &Op) -> Result<Answer> {
        self.cut(JobId::generate(), op, i64::MAX, false)
    }

    pub fn ok(&self, op: &Op) {
        self.run(op).unwrap_or_else(|e| panic!("{op:?}: {e:#}"));
    }

    pub fn refused(&self, op: &Op, class: Class) -> String {
        let before = self.view();
        let e = self.run(op).unwrap_err();
        assert_eq!(class_of(&e), class, "{e:#}");
        assert_eq!(self.view(), before, "a refusal changes nothing");
        self.sound();
        format!("{e:#}")
    }

    /// What another host's collector leaves is sound, and nobody works any more.
    pub fn collect(&self) {
        for ds in [100, 101, 102] {
            let hour = Duration::from_secs(3600);
            let policy = gc::Policy { trash_keep: hour, done_max: 1000, done_age: hour, short: false };
            let (d, job) = (self.domain(ds), self.jobs.start(JobId::generate(), Topic::default()));
            let report = gc::collect(&d, &job, &policy).unwrap();
            assert!(report.errors.is_empty(), "{:?}", report.errors);
        }
        self.sound();
    }

    pub fn sound(&self) {
        for ds in [100, 101, 102] {
            let d = self.domain(ds);
            let mut wrong = check(&d).unwrap();
            // Links between domains lead nowhere in memory.
            wrong.retain(|p| self.mem.is_none() || p.rule != "dangling");
            assert_eq!(wrong, [], "datastore {ds}");
            assert!(d.engine.jobs().unwrap().is_empty(), "datastore {ds}: nobody works any more");
        }
    }

    pub fn view(&self) -> View {
        let mut out = View::new();
        if self.mem.is_some() {
            self.memory_view(&mut out);
            return out;
        }
        let mut todo = vec![self.at("")];
        while let Some(dir) = todo.pop() {
            for e in std::fs::read_dir(dir).unwrap().flatten() {
                let path = e.path();
                let rel = path.strip_prefix(self.at("")).unwrap().to_string_lossy().into_owned();
                let kind = e.file_type().unwrap();
                if kind.is_dir() && e.file_name() != ".sdm" {
                    todo.push(path);
                } else if kind.is_symlink() {
                    out.insert(rel, format!("-> {}", std::fs::read_link(&path).unwrap().display()));
                } else if kind.is_file() {
                    out.insert(rel, shown(&read(&path)));
                }
            }
        }
        out
    }

    fn memory_view(&self, out: &mut View) {
        use crate::engine::{Access, Kind, Place};
        for ds in [100, 101, 102] {
            let (d, mut dirs) = (self.domain(ds), vec![None]);
            while let Some(dir) = dirs.pop() {
                for o in d.engine.list(dir.as_ref()).unwrap() {
                    let Place::Public(name) = &o.place else { continue };
                    let text = match &o.kind {
                        Kind::File => {
                            let path = d.engine.attach(&o.place, Access::Read).unwrap().path;
                            shown(&std::fs::read(path).unwrap())
                        }
                        Kind::Link(to) => format!("-> {to}"),
                        Kind::Pool => "pool".to_owned(),
                        _ => {
                            dirs.push(Some(name.clone()));
                            continue;
                        }
                    };
                    out.insert(format!("{ds}/{name}"), text);
                }
            }
        }
    }

    pub fn img(&self, args: &[&str]) {
        let args: Vec<&OsStr> = args.iter().map(OsStr::new).collect();
        let cancel = Cancel::default();
        let run = Run { cwd: Some(self.dir.path()), ..Run::new(Duration::from_secs(60), &cancel) };
        self.tools.run(Tool::QemuImg, &args, run).unwrap();
    }

    /// An image in datastore 100 with this content.
    pub fn image(&self, name: &str, format: &str, text: &str) {
        if self.mem.is_some() {
            self.publish(100, name, &content(text));
            return;
        }
        let (raw, path) = (self.text("../raw"), self.text(&format!("100/{name}")));
        std::fs::write(&raw, content(text)).unwrap();
        self.img(&["convert", "-q", "-f", "raw", "-O", format, &raw, &path]);
    }

    /// Puts a file in place as a verb would; its directory must exist.
    pub fn publish(&self, ds: i64, name: &str, content: &[u8]) {
        let (d, job) = (self.domain(ds), self.jobs.start(JobId::generate(), Topic::default()));
        let name = crate::engine::Name::parse(name).unwrap();
        let mut work = crate::sdm::Work::begin(&d, &job, std::slice::from_ref(&name)).unwrap();
        let slab = work.file(crate::sys::Bytes(0)).unwrap();
        std::fs::write(&slab.path, content).unwrap();
        let step = work.step_to(&slab, &name).unwrap();
        work.commit("", "", vec![step]).unwrap();
    }

    /// What a guest wrote: the `n`-th block of 64 KiB of a disk filled with a letter.
    pub fn write(&self, disk: &str, n: usize, letter: char) {
        guest_writes(&self.at(disk), n << 16, letter);
    }

    /// The letters of the disk's first blocks, `.` for zeroes, read through the chain.
    pub fn says(&self, disk: &str) -> String {
        shown(&read(&self.at(disk))).split_once(' ').unwrap().1.to_owned()
    }

    pub fn link(&self, rel: &str) -> String {
        std::fs::read_link(self.at(rel)).unwrap_or_else(|e| panic!("{rel}: {e}")).display().to_string()
    }

    /// The backing name in a layer's header.
    pub fn backing(&self, rel: &str) -> Option<String> {
        let file = std::fs::File::open(self.at(rel)).unwrap();
        let found = crate::image::probe_as(&file, crate::image::Format::Qcow2).unwrap();
        found.backing.map(|b| b.name.into_string().unwrap())
    }

    pub fn write_link(&self, to: &str, rel: &str) {
        std::os::unix::fs::symlink(to, self.at(rel)).unwrap();
    }

    /// Ends what `hold` began. A child of another test may have the descriptor for a moment more.
    pub fn let_go(&self, held: std::fs::File, rel: &str) {
        drop(held);
        let file = std::fs::File::open(self.at(rel)).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while crate::sys::qemu_holds(&file).unwrap() {
            assert!(std::time::Instant::now() < end, "{rel} stays held");
            std::thread::yield_now();
        }
    }

    /// Holds a file as a running qemu does.
    pub fn hold(&self, rel: &str) -> std::fs::File {
        self.hold_at(rel, 100)
    }

    /// The same, with this byte of those by which it says what it does.
    pub fn hold_at(&self, rel: &str, byte: u64) -> std::fs::File {
        use std::os::fd::AsFd as _;
        let f = std::fs::File::options().read(true).write(true).open(self.at(rel)).unwrap();
        assert!(crate::sys::ofd::try_lock(f.as_fd(), byte, false).unwrap());
        f
    }
}

/// A disk of 1 MiB whose first blocks of 64 KiB are filled with these letters.
pub fn content(text: &str) -> Vec<u8> {
    let mut out: Vec<u8> = text.bytes().flat_map(|b| std::iter::repeat_n(b, 1 << 16)).collect();
    out.resize(MIB, 0);
    out
}

/// Size in KiB, and a letter for each block up to the last that has one.
fn shown(content: &[u8]) -> String {
    let letter = |block: &[u8]| if block[0] == 0 { '.' } else { char::from(block[0]) };
    let letters: String = content.chunks(1 << 16).map(letter).collect();
    format!("{} {}", content.len() >> 10, letters.trim_end_matches('.'))
}

fn be(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Offset of a guest's cluster in the file, with clusters of 64 KiB; 0 where it has none, 1 for zeroes.
fn cluster(bytes: &[u8], n: usize) -> usize {
    let entry = |at: usize| usize::try_from(be(&bytes[at..at + 8])).unwrap();
    let mask = 0x00ff_ffff_ffff_fe00;
    let l2 = entry(entry(40) + 8 * (n >> 13)) & mask;
    if l2 == 0 { 0 } else { entry(l2 + 8 * (n & 0x1fff)) & (mask | 1) }
}

/// The disk that a file shows, with its chain.
pub fn read(path: &Path) -> Vec<u8> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    if !bytes.starts_with(b"QFI\xfb") {
        return bytes;
    }
    let num = |at: usize, n: usize| usize::try_from(be(&bytes[at..at + n])).unwrap();
    let (name, len) = (num(8, 8), num(16, 4));
    let mut out = vec![0; num(24, 8)];
    assert_eq!(num(20, 4), 16, "clusters of 64 KiB");
    if name != 0 {
        let name = std::str::from_utf8(&bytes[name..name + len]).unwrap();
        let mut below = path.parent().unwrap().join(name);
        if !below.exists() {
            below = path.canonicalize().unwrap().parent().unwrap().join(name);
        }
        let base = read(&below);
        let n = base.len().min(out.len());
        out[..n].copy_from_slice(&base[..n]);
    }
    for (n, guest) in out.chunks_mut(1 << 16).enumerate() {
        match cluster(&bytes, n) {
            0 => {}
            at if at & 1 == 1 => guest.fill(0),
            at => {
                let end = bytes.len().min(at + guest.len());
                guest[..end - at].copy_from_slice(&bytes[at..end]);
            }
        }
    }
    out
}
