//! A small look-alike of oned's driver runner on the bed of hosts, and a model of one VM: what its disks and
//! snapshots hold, and which files that makes by the contract's section 3.0.4.

use crate::guest::{self, Reader};
use crate::hosts::Cloud;
use crate::sysoracle::look;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Output;

pub const STORES: &str = "/var/lib/one/datastores";
const REMOTES: &str = "/var/lib/one/remotes";
pub const MIB: usize = 1 << 20;

/// A front-end whose transfer drivers are ours, and two hosts. All see all datastores, except those in
/// `local`, which each has its own of.
pub fn cloud(shared: &[u32]) -> Cloud {
    cloud_with(shared, None)
}

/// And another directory of this machine.
fn cloud_with(shared: &[u32], seen: Option<&Path>) -> Cloud {
    let dirs = shared.iter().map(|ds| format!("{STORES}/{ds}"));
    let dirs: Vec<String> = dirs.chain(seen.map(|dir| dir.display().to_string())).collect();
    let options: Vec<&str> = dirs.iter().flat_map(|d| ["-s", d.as_str()]).collect();
    let cloud = Cloud::up(&options, &["h1", "h2"]);
    for host in ["h1", "h2"] {
        cloud.place_agent(host, "--silence 3 --orphan-grace 1");
    }
    let program = crate::bed::program();
    let links = cloud.on("fe", &[program.to_str().unwrap(), "generate", "remotes"]);
    cloud.inside("fe", || {
        let families =
            [("sdm_shared", ["sdm_shared", "shared", "qcow2"]), ("sdm_local", ["sdm_local", "local", "ssh"])];
        for (family, drivers) in families {
            let head = format!("tm/{family}/");
            for verb in links.lines().filter_map(|l| l.strip_prefix(&head)) {
                for driver in drivers {
                    let at = Path::new(REMOTES).join("tm").join(driver).join(verb);
                    std::fs::create_dir_all(at.parent().unwrap()).unwrap();
                    std::os::unix::fs::symlink(&program, at).unwrap();
                }
            }
        }
        let stored = format!("{STORES}/100");
        for dir in ["/var/lib/one/xml", "/etc/one", &stored] {
            std::fs::create_dir_all(dir).unwrap();
        }
    });
    cloud.write(
        "fe",
        "/etc/one/onesdm.toml",
        "[ssh]\nconnect = \"2s\"\nsilence = \"3s\"\n[lock]\nwait = \"10s\"\n",
    );
    for ds in [100, 101, 102] {
        let doc = format!("<DATASTORE><ID>{ds}</ID><NAME>d</NAME><TEMPLATE></TEMPLATE></DATASTORE>");
        cloud.write("fe", &format!("/var/lib/one/xml/datastore-{ds}.xml"), &doc);
    }
    cloud
}

fn is_local(driver: &str) -> bool {
    ["local", "ssh", "sdm_local"].contains(&driver)
}

/// The datastores as a driver wants them.
pub fn cloud_for(driver: &str) -> Cloud {
    cloud_for_with(driver, None)
}

pub fn cloud_for_with(driver: &str, seen: Option<&Path>) -> Cloud {
    cloud_with(if is_local(driver) { &[] } else { &[100, 101, 102] }, seen)
}

/// The words that run a driver of ours as oned does.
pub fn words(cloud: &Cloud, driver: &str, verb: &str, stdin: &str, args: &[String]) -> Vec<String> {
    let env = ["HOME=/root", "PATH=/usr/bin:/bin", "ONESDM_XML_DIR=/var/lib/one/xml"].map(str::to_owned);
    words_in(cloud, (&env, Path::new(REMOTES)), (driver, verb), stdin, args)
}

/// Of a driver of anybody's: its environment, its own process group, stdin from a file.
pub fn words_in(
    cloud: &Cloud,
    (env, remotes): (&[String], &Path),
    (driver, verb): (&str, &str),
    stdin: &str,
    args: &[String],
) -> Vec<String> {
    cloud.write("fe", "/tmp/stdin", stdin);
    let dir = remotes.join("tm").join(driver);
    // What follows the last dot goes when there is no such file.
    let plain = verb.rsplit_once('.').map_or(verb, |(plain, _)| plain);
    let verb = if cloud.inside("fe", || dir.join(verb).exists()) { verb } else { plain };
    let run = ["setsid", "-w", "sh", "-c", "exec \"$@\" < /tmp/stdin", "sh"].map(str::to_owned);
    let program = dir.join(verb).display().to_string();
    [&["env".to_owned(), "-i".to_owned()], env, &run, &[program], args].concat()
}

pub fn call(cloud: &Cloud, driver: &str, verb: &str, stdin: &str, args: &[String]) -> Output {
    output(cloud, &words(cloud, driver, verb, stdin, args))
}

pub fn output(cloud: &Cloud, words: &[String]) -> Output {
    cloud.command("fe", &words.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Raw,
    Qcow2,
}

impl Kind {
    pub fn name(self) -> &'static str {
        if self == Kind::Raw { "raw" } else { "qcow2" }
    }
}

/// A disk: what its guest sees, and what each snapshot shows.
#[derive(Clone, Debug)]
pub struct Disk {
    pub kind: Kind,
    pub image: Option<String>,
    pub persistent: bool,
    pub content: Vec<u8>,
    pub snaps: BTreeMap<u32, Vec<u8>>,
    /// qcow2: the layer that it writes to. `None`: no layout.
    pub active: Option<u32>,
    /// The driver of its datastore, when that is not the VM's.
    pub tm: Option<String>,
}

/// Who makes a call, and how often.
pub trait Caller {
    /// The words of a call are there, and so is the document of its VM.
    fn call(&self, vm: &Vm<'_>, verb: &str, args: &[String]) -> Output;
}

/// Ours, once.
pub struct Plain;

impl Caller for Plain {
    fn call(&self, vm: &Vm<'_>, verb: &str, args: &[String]) -> Output {
        call(vm.cloud, vm.driver, verb, &vm.stdin(verb), args)
    }
}

/// One VM on the bed, and where it is.
pub struct Vm<'a> {
    pub cloud: &'a Cloud,
    pub caller: &'a dyn Caller,
    pub driver: &'static str,
    pub id: u32,
    pub host: &'static str,
    pub ds: u32,
    pub before: Option<u32>,
    pub lcm: u32,
    /// Of verbs.
    pub suffix: &'static str,
    /// The system datastore is its host's own: disks are copies, whatever they came from.
    pub copies: bool,
    /// Images are the front-end's own, too: the drivers `local` and `ssh`, on the bed of `cloud_for` them.
    pub local: bool,
    pub disks: BTreeMap<u32, Disk>,
    /// Images by name.
    pub images: BTreeMap<String, (Kind, Vec<u8>)>,
    /// What images have besides, of disks that went back into them.
    pub stored: BTreeMap<String, Disk>,
    letter: u8,
}

pub fn source(name: &str) -> String {
    format!("{STORES}//100/{name}")
}

/// These are looked at from the front-end, all else from the VM's host.
fn is_image(path: &Path) -> bool {
    path.starts_with(format!("{STORES}/100"))
}

impl<'a> Vm<'a> {
    pub fn new(cloud: &'a Cloud, driver: &'static str, id: u32) -> Vm<'a> {
        let (disks, images, local) = (BTreeMap::new(), BTreeMap::new(), is_local(driver));
        Vm {
            cloud,
            caller: &Plain,
            driver,
            id,
            host: "h1",
            ds: 101,
            before: None,
            lcm: 3,
            suffix: "",
            copies: local,
            local,
            disks,
            images,
            stored: BTreeMap::new(),
            letter: b'a',
        }
    }

    /// The layer that a disk made of such an image writes to.
    pub fn first_layer(&self, kind: Kind) -> Option<u32> {
        (kind == Kind::Qcow2 && self.driver != "ssh").then_some(0)
    }

    pub fn image(&mut self, name: &str, kind: Kind, mib: usize) {
        let mut content = vec![0; mib * MIB];
        content[..1000].fill(b'0');
        content[MIB / 2..MIB / 2 + 5000].fill(name.as_bytes()[0]);
        let path = format!("{STORES}/100/{name}");
        self.cloud.inside("fe", || {
            let raw = PathBuf::from(format!("/tmp/{name}"));
            std::fs::write(&raw, &content).unwrap();
            match kind {
                Kind::Raw => drop(std::fs::copy(&raw, &path).unwrap()),
                Kind::Qcow2 => guest::make_qcow2(&raw, Path::new(&path)),
            }
        });
        self.images.insert(name.to_owned(), (kind, content));
    }

    /// `host:<datastores>/<ds>/<vm>/disk.N`, as oned writes it.
    pub fn at(&self, host: &str, ds: u32, disk: Option<u32>) -> String {
        let dir = format!("{host}:{STORES}//{ds}/{}", self.id);
        disk.map_or_else(|| dir.clone(), |n| format!("{dir}/disk.{n}"))
    }

    pub fn disk(&self, n: u32) -> String {
        self.at(self.host, self.ds, Some(n))
    }

    /// The document oned would have now.
    pub fn document(&self) -> String {
        let mut disks = String::new();
        let mut snaps = String::new();
        for (n, d) in &self.disks {
            let size = d.content.len() / MIB;
            let from = d.image.as_ref().map(|i| {
                let id = self.images.keys().position(|name| name == i).unwrap();
                let original = self.images[i].1.len() / MIB;
                let (clone, save) = if d.persistent { ("NO", "YES") } else { ("YES", "NO") };
                let source = source(i);
                format!("<CLONE>{clone}</CLONE><SAVE>{save}</SAVE><SOURCE>{source}</SOURCE><ORIGINAL_SIZE>{original}</ORIGINAL_SIZE><IMAGE_ID>{id}</IMAGE_ID><DATASTORE_ID>100</DATASTORE_ID>")
            });
            let (from, format) = (from.unwrap_or_else(|| "<TYPE>fs</TYPE>".to_owned()), d.kind.name());
            let tm = d.tm.as_deref().unwrap_or(self.driver);
            let _ = write!(
                disks,
                "<DISK><DISK_ID>{n}</DISK_ID><SIZE>{size}</SIZE><FORMAT>{format}</FORMAT><TM_MAD>{tm}</TM_MAD>{from}</DISK><NIC/>"
            );
            let list: String = d.snaps.keys().map(|s| format!("<SNAPSHOT><ID>{s}</ID></SNAPSHOT>")).collect();
            let _ = write!(snaps, "<SNAPSHOTS><DISK_ID>{n}</DISK_ID>{list}</SNAPSHOTS>");
        }
        let record = |ds: u32| {
            format!(
                "<HISTORY><HOSTNAME>{}</HOSTNAME><DS_ID>{ds}</DS_ID><VM_MAD>kvm</VM_MAD></HISTORY>",
                self.host
            )
        };
        let history: String = self.before.into_iter().chain([self.ds]).map(record).collect();
        let (id, lcm) = (self.id, self.lcm);
        format!(
            "<VM><ID>{id}</ID><NAME>größe</NAME><STATE>3</STATE><LCM_STATE>{lcm}</LCM_STATE><TEMPLATE>{disks}</TEMPLATE>{snaps}<HISTORY_RECORDS>{history}</HISTORY_RECORDS></VM>"
        )
    }

    /// Calls about a live migration get the document so, too.
    pub fn stdin(&self, verb: &str) -> String {
        let text = if verb.ends_with("migrate") { self.document() } else { String::new() };
        String::from_utf8(crate::bed::base64(text)).unwrap()
    }

    pub fn tell(&self) {
        let path = format!("/var/lib/one/xml/vm-{}.xml", self.id);
        self.cloud.write("fe", &path, &self.document());
    }

    /// A call as oned makes it, with the VM's id and a datastore's behind the arguments.
    pub fn run(&self, verb: &str, args: &[&str], ds: u32) -> Output {
        self.tell();
        let mut args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        args.extend([self.id.to_string(), ds.to_string()]);
        self.caller.call(self, &format!("{verb}{}", self.suffix), &args)
    }

    #[track_caller]
    pub fn ok(&self, verb: &str, args: &[&str], ds: u32) {
        let out = self.run(verb, args, ds);
        let (said, err) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && said.is_empty(), "{verb} {args:?}: {:?} {said} {err}", out.status);
        self.check();
    }

    /// What the guest writes next, different each time.
    pub fn guest(&mut self, n: u32) {
        self.letter += 1;
        let copies = self.copies;
        let (letter, disk) = (self.letter, self.disks.get_mut(&n).unwrap());
        let at = usize::from(letter) * 4096 % (disk.content.len() - 8192) / 512 * 512;
        disk.content[at..at + 1024].fill(letter);
        let write = format!("write -P {letter} {at} 1024");
        let (fmt, host) = (disk.kind.name(), self.host);
        let path = PathBuf::from(format!("{STORES}/{}/{}/disk.{n}", self.ds, self.id));
        let path = self.cloud.inside(host, || path.canonicalize()).unwrap().display().to_string();
        let wrote = self.cloud.command(host, &["qemu-io", "-f", fmt, "-c", &write, &path]).output().unwrap();
        assert!(wrote.status.success(), "{wrote:?}");
        let (content, image) =
            (disk.content.clone(), disk.image.clone().filter(|_| disk.persistent && !copies));
        if let Some(image) = image {
            self.images.get_mut(&image).unwrap().1 = content;
        }
    }

    /// Every disk and snapshot holds what it should, in the files that it should be in, and no other is there.
    #[track_caller]
    pub fn check(&self) {
        self.reads();
        let mut found = self.cloud.inside("fe", || look(STORES, "100"));
        let want = self.layout();
        for host in ["fe", "h1", "h2"].iter().filter(|h| self.copies || **h == self.host) {
            for ds in [101, 102] {
                let top = format!("{ds}/{}", self.id);
                let own = self.cloud.inside(host, || look(STORES, &top));
                assert!(*host == self.host || own.is_empty(), "left on {host}: {own:?}");
                found.extend(own);
            }
        }
        // Stock drivers write links as oned writes paths.
        let found: BTreeSet<String> = found.iter().map(|path| path.replace("//", "/")).collect();
        let differ: Vec<_> = found.symmetric_difference(&want).collect();
        assert!(differ.is_empty(), "found {found:#?}, wanted {want:#?}, differ {differ:#?}");
    }

    /// Every disk and snapshot holds what it should.
    #[track_caller]
    pub fn reads(&self) {
        let all = self.contents();
        let read = |host: &str, images: bool| {
            self.cloud.inside(host, || {
                let reader = Reader::default();
                // As a machine is started: bare names of layers lead on from where the link leads.
                let real = |path: &Path| path.canonicalize().map_err(|e| e.to_string());
                let mine = |path: &Path| (is_image(path) == images).then(|| reader.read(&real(path)?));
                all.iter().map(|(_, path, _)| mine(path)).collect::<Vec<_>>()
            })
        };
        let (images, disks) = (read("fe", true), read(self.host, false));
        for ((what, path, content), (image, disk)) in all.iter().zip(images.into_iter().zip(disks)) {
            let got = image.or(disk).unwrap();
            let want = guest::digest_of(content.as_slice()).unwrap();
            let (got, path) = (got.map(|g| (g.size, g.data)), path.display());
            assert_eq!(got, Ok((content.len() as u64, want)), "{what} at {path}");
        }
    }

    /// What each place shows a guest.
    fn contents(&self) -> Vec<(String, PathBuf, &Vec<u8>)> {
        let mut out = Vec::new();
        for (n, d) in &self.disks {
            let disk = PathBuf::from(format!("{STORES}/{}/{}/disk.{n}", self.ds, self.id));
            let base = d.image.as_ref().filter(|_| d.persistent && !self.copies);
            let base = base.map_or_else(|| disk.clone(), |i| PathBuf::from(format!("{STORES}/100/{i}")));
            out.push((format!("disk {n}"), disk, &d.content));
            for (s, content) in &d.snaps {
                let at = PathBuf::from(format!("{}.snap/{s}", base.display()));
                out.push((format!("snapshot {s} of disk {n}"), at, content));
            }
        }
        for (name, (kind, content)) in &self.images {
            // Of a persistent qcow2 image, the layers hold what was written since.
            let layered = |d: &Disk| d.persistent && d.image.as_ref() == Some(name) && *kind == Kind::Qcow2;
            if self.copies || !self.disks.values().any(layered) {
                out.push((format!("image {name}"), PathBuf::from(format!("{STORES}/100/{name}")), content));
            }
        }
        for (name, disk) in &self.stored {
            for (s, content) in &disk.snaps {
                let at = PathBuf::from(format!("{STORES}/100/{name}.snap/{s}"));
                out.push((format!("snapshot {s} of image {name}"), at, content));
            }
        }
        out
    }

    /// The files by the contract, of this VM and of all images: `path`, or `path -> target`.
    fn layout(&self) -> BTreeSet<String> {
        let mut out = BTreeSet::new();
        for name in self.images.keys() {
            let Some(disk) = self.stored.get(name) else {
                out.insert(format!("100/{name}"));
                continue;
            };
            let to = disk.active.map(|n| format!(" -> {name}.snap/{n}")).unwrap_or_default();
            out.insert(format!("100/{name}{to}"));
            let layers: Vec<_> = disk.active.iter().chain(disk.snaps.keys()).collect();
            out.extend(layers.iter().map(|n| format!("100/{name}.snap/{n}")));
            out.extend((!layers.is_empty()).then(|| format!("100/{name}.snap/")));
        }
        if !self.disks.is_empty() {
            out.insert(format!("{}/{}/", self.ds, self.id));
        }
        for (n, d) in &self.disks {
            let disk = format!("{}/{}/disk.{n}", self.ds, self.id);
            let image = d.image.as_ref().filter(|_| d.persistent && !self.copies).map(|i| format!("100/{i}"));
            let (base, whole) = match &image {
                Some(i) => (i.clone(), format!("{STORES}/{i}")),
                None => (disk.clone(), format!("disk.{n}")),
            };
            let last = base.rsplit('/').next().unwrap().to_owned();
            match d.active {
                None => {
                    out.insert(if image.is_some() { format!("{disk} -> {whole}") } else { disk.clone() });
                }
                Some(active) => {
                    out.insert(format!("{disk} -> {whole}.snap/{active}"));
                    // The driver `local` names layers by bare numbers and needs no such link.
                    out.extend((!self.local).then(|| format!("{base}.snap/{last}.snap -> .")));
                    out.insert(format!("{base}.snap/{active}"));
                }
            }
            out.extend(d.snaps.keys().map(|s| format!("{base}.snap/{s}")));
            if d.active.is_some() || !d.snaps.is_empty() {
                out.insert(format!("{base}.snap/"));
            }
            // The first layer of a persistent image is the image.
            if d.active.is_some() && image.is_some() {
                out.remove(&format!("{base}.snap/0"));
                out.insert(format!("{base}.snap/0 -> {whole}"));
            }
        }
        out
    }
}
