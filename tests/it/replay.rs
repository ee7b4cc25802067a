//! The recorded calls of a real oned, replayed as one chain against our verbs. Names of images differ
//! from run to run and are mapped; numbers that depend on the machine are checked for form only. After
//! every call the oracle compares the whole image datastore.

use crate::bed::{Bed, Call};
use crate::doc;
use crate::guest;
use crate::oracle::{Node, Oracle, Tree};
use crate::sysoracle::{Systems, local, snaps};
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

pub struct Replay<'a> {
    bed: &'a Bed,
    folder: PathBuf,
    oracle: Oracle,
    tree: Tree,
    systems: Systems,
    /// Recorded image name to ours.
    names: BTreeMap<String, String>,
    exported: bool,
}

impl Replay<'_> {
    pub fn new<'a>(bed: &'a Bed, folder: &str) -> Replay<'a> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/recorded").join(folder);
        // The recorded qcow2 image has other data than the raw one, and a raw datastore converts it.
        let images = bed.images();
        guest::make_raw(&images.join("lc1.raw"), 32 << 10, 1);
        guest::make_raw(&images.join("alt"), 32 << 10, 2);
        guest::make_qcow2(&images.join("alt"), &images.join("lc1.alt.qcow2"));
        let oracle = Oracle::new(&bed.store(100));
        let systems = Systems::new(bed.store(101).parent().unwrap(), folder.starts_with("ssh"));
        bed.store(102);
        let (tree, names) = (Tree::default(), BTreeMap::new());
        Replay { bed, folder: dir, oracle, tree, systems, names, exported: false }
    }

    /// Replays the chain. The error names the first call that is not as it must be; the answer is the
    /// number of calls of ours.
    pub fn run(mut self) -> Result<usize, String> {
        let calls = std::fs::read_to_string(self.folder.join("calls.jsonl")).map_err(|e| e.to_string())?;
        let mut ours = 0;
        for line in calls.lines() {
            let call: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
            let at = format!("call {} ({}: {} {})", call["seq"], call["step"], call["role"], call["verb"]);
            if call["step"] == "images_delete" && !self.exported {
                self.exported = true;
                self.export().map_err(|e| format!("before {at}: export: {e}"))?;
            }
            let done = if call["role"] == "datastore" { self.datastore(&call) } else { self.transfer(&call) };
            done.map_err(|e| format!("{at}: {e}"))?;
            self.oracle.compare(&self.tree).map_err(|e| format!("after {at}: {e}"))?;
            ours += 1;
        }
        if !self.tree.0.is_empty() {
            return Err(format!("images outlive the chain: {:?}", self.tree.0.keys()));
        }
        self.bed.onesdm(&["gc"]).run().answer()?;
        self.bed.onesdm(&["check"]).run().answer()?;
        Ok(ours)
    }

    /// The recorded text with this bed's places and names.
    fn here(&self, text: &str) -> String {
        let var = self.bed.root().join("var");
        let mut text = text.replace("{VAR}", &var.display().to_string());
        text = text.replace("{IMAGES}", &self.bed.images().display().to_string());
        text = text.replace("{HOME}", &self.bed.root().join("home").display().to_string());
        for (recorded, actual) in &self.names {
            text = text.replace(recorded, actual);
        }
        text
    }

    fn document(&self, name: &Value) -> Result<String, String> {
        let path = self.folder.join("documents").join(name.as_str().ok_or("no document")?);
        Ok(self.here(&std::fs::read_to_string(path).map_err(|e| e.to_string())?))
    }

    /// A transfer call with the documents oned would have given. All hosts are this one, and no machine runs on it:
    /// what was recorded of one that did is asked of one that does not.
    fn transfer(&mut self, call: &Value) -> Result<(), String> {
        let verb = call["verb"].as_str().unwrap_or_default();
        let verb = if verb == "snap_create_live" { "snap_create" } else { verb };
        let driver = call["driver"].as_str().unwrap_or_default();
        let here = |arg: &String| match arg.split_once(":/") {
            Some((_, path)) => format!("localhost:/{path}"),
            None if arg.starts_with("node") => "localhost".to_owned(),
            None => arg.clone(),
        };
        let argv: Vec<_> = strings(&call["argv"]).iter().map(|a| here(&self.here(a))).collect();
        let xml = self.bed.root().join("xml");
        std::fs::create_dir_all(&xml).map_err(|e| e.to_string())?;
        let write =
            |name: String, text: String| std::fs::write(xml.join(name), text).map_err(|e| e.to_string());
        if call["vm"].is_string() {
            let document = self.document(&call["vm"])?.replace("<LCM_STATE>26<", "<LCM_STATE>3<");
            write(format!("vm-{}.xml", doc::field(&document, "VM", "ID").unwrap_or_default()), document)?;
        }
        for (id, name) in call["datastores"].as_object().into_iter().flatten() {
            write(format!("datastore-{id}.xml"), self.document(name)?)?;
        }
        let mut run = argv.iter().fold(self.bed.tm(driver, verb).env("ONESDM_XML_DIR", &xml), Call::arg);
        if call["stdin"]["encoding"] == "base64" {
            run = run.stdin(crate::bed::base64(self.document(&call["stdin"]["document"])?));
        }
        if verb == "context" {
            // The core wrote them; the recording has their names.
            for file in &argv[..argv.len() - 3] {
                let path = Path::new(file.split(':').next().unwrap_or_default());
                std::fs::create_dir_all(path.parent().unwrap_or(path)).map_err(|e| e.to_string())?;
                std::fs::write(path, "# context\n").map_err(|e| e.to_string())?;
            }
        }
        let answer = run.run().answer()?;
        if verb == "monitor" {
            return if answer.trim().contains('\n') {
                Err(format!("two lines: {answer}"))
            } else {
                monitor(&answer)
            };
        }
        if !answer.is_empty() {
            return Err(format!("answered {answer:?}"));
        }
        // The hypervisor resizes the disk of a running VM.
        if call["step"] != "resize_live" {
            self.systems.did(verb, &argv)?;
        }
        let disk = local(argv.get(usize::from(["clone", "ln"].contains(&verb))).map_or("", String::as_str));
        self.systems.compare()?;
        if ["clone", "ln", "snap_create"].contains(&verb) {
            guest_writes(call["seq"].as_u64().unwrap_or_default(), &disk).map_err(|e| e.to_string())?;
            self.systems.refresh(&disk)?;
        }
        // What is in the image datastore now, by the call and by the guest.
        let image = std::fs::read_link(&disk).ok();
        match (verb, image) {
            ("cpds", _) => self.image(&local(&argv[1])),
            ("ln", Some(image)) => self.image(&image),
            ("mvds", None) => {
                let image = local(&argv[1]);
                self.image(&image)?;
                let dir = snaps(&image);
                let all = std::fs::read_dir(&dir).into_iter().flatten().flatten().map(|e| e.path());
                dir.is_dir()
                    .then(|| dir.clone())
                    .into_iter()
                    .chain(all)
                    .try_for_each(|path| self.image(&path))
            }
            ("snap_create", Some(image)) => {
                let dir = snaps(&image);
                [&image, &dir, &dir.join(&argv[1])].into_iter().try_for_each(|path| self.image(path))
            }
            _ => Ok(()),
        }
    }

    /// Takes something of the image datastore as it is.
    fn image(&mut self, path: &Path) -> Result<(), String> {
        let root = self.bed.store_path(100);
        let inside = path.strip_prefix(&root).map_err(|e| format!("{}: {e}", path.display()))?;
        let node = if path.is_dir() { Node::Dir } else { self.oracle.image(path)? };
        self.tree.put(inside, node);
        Ok(())
    }

    fn datastore(&mut self, call: &Value) -> Result<(), String> {
        let verb = call["verb"].as_str().unwrap_or_default();
        let name = call["stdin"]["document"].as_str().ok_or("a datastore call without a dump")?;
        let dump =
            std::fs::read_to_string(self.folder.join("documents").join(name)).map_err(|e| e.to_string())?;
        let dump = self.here(&dump);
        let mut run = self.bed.verb(call["driver"].as_str().unwrap_or_default(), verb);
        for arg in strings(&call["argv"]) {
            run = run.arg(arg);
        }
        let done = run.stdin(crate::bed::base64(&dump)).run();
        if call["exit"] != 0 {
            return done.failure(None).map(drop);
        }
        let answer = done.answer()?;
        self.same_answer(verb, call["stdout"].as_str().unwrap_or_default(), &answer)?;
        self.expect(verb, &dump, &answer)
    }

    /// Our answer is the recorded one, but for names and machine-dependent numbers.
    fn same_answer(&mut self, verb: &str, recorded: &str, ours: &str) -> Result<(), String> {
        if verb == "monitor" {
            return monitor(ours);
        }
        let plain = |text: &str| text.replace("//", "/").trim().to_owned();
        if matches!(verb, "cp" | "mkfs" | "clone") {
            let name = |text: &str| text.split_whitespace().next()?.rsplit('/').next().map(str::to_owned);
            let (Some(recorded), Some(ours)) = (name(recorded), name(ours)) else {
                return Err(format!("no source in the answer {ours:?}"));
            };
            if ours.len() != 32 || !ours.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(format!("{ours} is no image name"));
            }
            let known: HashSet<_> = self.names.values().cloned().collect();
            if known.contains(&ours) {
                return Err(format!("{ours} was given twice"));
            }
            self.names.insert(recorded, ours);
        }
        let (recorded, ours) = (plain(&self.here(recorded)), plain(ours));
        if recorded == ours { Ok(()) } else { Err(format!("answered {ours:?}, recorded {recorded:?}")) }
    }

    /// What the contract says the call did to the tree.
    fn expect(&mut self, verb: &str, dump: &str, answer: &str) -> Result<(), String> {
        let image =
            |f: &str| doc::field(dump, "IMAGE", f).ok_or_else(|| format!("the dump has no IMAGE/{f}"));
        let made = || answer.split_whitespace().next().and_then(|p| p.rsplit('/').next()).unwrap_or_default();
        let source = || image("SOURCE").map(|s| s.rsplit('/').next().unwrap_or_default().to_owned());
        match verb {
            "cp" | "clone" => {
                let format = if doc::template(dump, "DATASTORE", "DRIVER").as_deref() == Some("qcow2") {
                    "qcow2"
                } else {
                    "raw"
                };
                let guest = guest::Reader::default().read(Path::new(&image("PATH")?))?;
                self.tree.create(made(), Node::Image { format, size: guest.size, data: guest.data });
            }
            "mkfs" if image("FORMAT")? == "save_as" => {}
            "mkfs" => {
                let size = image("SIZE")?.parse::<u64>().map_err(|e| e.to_string())? << 20;
                let node = match image("FS").as_deref() {
                    Ok("ext4") => Node::Fresh { format: "raw", size, signature: "ext4" },
                    _ => Node::Image { format: "raw", size, data: guest::zeros() },
                };
                self.tree.create(made(), node);
            }
            "rm" => self.tree.rm(&source()?),
            "snap_delete" => self.tree.snap_delete(&source()?, &image("TARGET_SNAPSHOT")?),
            "snap_revert" => self.tree.snap_revert(&source()?, &image("TARGET_SNAPSHOT")?),
            "snap_flatten" => self.tree.snap_flatten(&source()?, &image("TARGET_SNAPSHOT")?),
            _ => {}
        }
        Ok(())
    }

    /// The recordings hold no `export`: made here, on the first image, by the contract's section 2.4.
    fn export(&self) -> Result<(), String> {
        let images = self.tree.0.iter().filter_map(|(name, node)| match node {
            Node::Image { size, format, .. } => Some((name, size, format)),
            _ => None,
        });
        let (name, size, format) = images.min().ok_or("no image to export")?;
        let dump = doc::Doc::new(self.bed, 0)
            .source(self.bed, &name.display().to_string())
            .image("SIZE", size >> 20);
        let answer = self.bed.ds("export", 0, &dump.xml()).run().answer()?;
        let path = self.bed.store_path(100).join(name);
        let sum = crate::bed::tool("md5sum", &[path.as_os_str()]);
        let inside = |tag: &str| doc::field(&answer, "IMPORT_INFO", tag).unwrap_or_default();
        let got = [
            inside("IMPORT_SOURCE").replace("//", "/"),
            inside("MD5"),
            inside("SIZE"),
            inside("FORMAT"),
            inside("DISPOSE"),
        ];
        let want = [
            path.display().to_string(),
            sum[..32].into(),
            (size >> 20).to_string(),
            (*format).into(),
            "NO".into(),
        ];
        if got == want { Ok(()) } else { Err(format!("exported {got:?} instead of {want:?}")) }
    }
}

/// Something else after each call, so that every snapshot differs.
fn guest_writes(seq: u64, disk: &Path) -> std::io::Result<()> {
    let file = std::fs::File::options().write(true).open(disk)?;
    file.write_all_at(format!("written by the guest after call {seq}").as_bytes(), 4096 * (seq % 200))
}

/// Three numbers in MiB, and they add up to something a disk could be.
pub fn monitor(answer: &str) -> Result<(), String> {
    let mut found = BTreeMap::new();
    for word in answer.split_whitespace() {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("{word:?} is no NAME=VALUE"))?;
        found.insert(key, value.parse::<u64>().map_err(|_| format!("{word:?} is no number of MiB"))?);
    }
    let get = |key| found.get(key).copied().ok_or_else(|| format!("no {key} in {answer:?}"));
    let (used, free, total) = (get("USED_MB")?, get("FREE_MB")?, get("TOTAL_MB")?);
    if found.len() != 3 || total == 0 || used > total || free > total {
        return Err(format!("no sane capacity: {answer:?}"));
    }
    Ok(())
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

#[test]
fn shared_raw() {
    let bed = Bed::new();
    println!("{} calls of ours", Replay::new(&bed, "shared-raw").run().unwrap());
}

#[test]
fn ssh_raw() {
    let bed = Bed::new();
    println!("{} calls of ours", Replay::new(&bed, "ssh-raw").run().unwrap());
}

#[test]
fn capacities_that_no_disk_has_are_refused() {
    monitor("USED_MB=1\nFREE_MB=2\nTOTAL_MB=3\n").unwrap();
    for bad in
        ["", "USED_MB=1 FREE_MB=2", "USED_MB=x FREE_MB=2 TOTAL_MB=3", "USED_MB=9 FREE_MB=2 TOTAL_MB=3", "12M"]
    {
        assert!(monitor(bad).is_err(), "{bad:?}");
    }
}
