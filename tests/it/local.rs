//! The drivers `local` and `ssh` on a cloud of three machines: a disk goes to its host, gets a snapshot, moves
//! to another host and goes back into its image, read at every step; and a move whose network is cut.

use crate::bed;
use crate::hosts::{Cloud, eventually};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

pub const DS: &str = "/var/lib/one/datastores";
const XML: &str = "ONESDM_XML_DIR=/var/lib/one/xml";
pub const SOON: Duration = Duration::from_secs(30);

/// A front-end with image 1 of datastore 1, and VM 7, whose disk 0 it is.
pub struct Site {
    pub cloud: Cloud,
    driver: &'static str,
}

impl Site {
    pub fn new(driver: &'static str, format: &str, mib: u32) -> Site {
        Site::with(&[], driver, format, mib)
    }

    fn with(options: &[&str], driver: &'static str, format: &str, mib: u32) -> Site {
        let cloud = Cloud::up(options, &["h1", "h2"]);
        for host in ["h1", "h2"] {
            cloud.place_agent(host, "--silence 2 --orphan-grace 2");
        }
        let disk = format!(
            "<DISK_ID>0</DISK_ID><FORMAT>{format}</FORMAT><SIZE>{mib}</SIZE><ORIGINAL_SIZE>{mib}</ORIGINAL_SIZE>\
             <SOURCE>{DS}/1/img</SOURCE><CLONE>NO</CLONE><TM_MAD>{driver}</TM_MAD><DATASTORE_ID>1</DATASTORE_ID>"
        );
        let vm = format!("<VM><ID>7</ID><TEMPLATE><DISK>{disk}</DISK></TEMPLATE></VM>");
        cloud.write("fe", "/var/lib/one/xml/vm-7.xml", &vm);
        for ds in [1, 100] {
            let tm = format!("<ID>{ds}</ID><NAME>d</NAME><TM_MAD>{driver}</TM_MAD><TEMPLATE></TEMPLATE>");
            let doc = format!("<DATASTORE>{tm}</DATASTORE>");
            cloud.write("fe", &format!("/var/lib/one/xml/datastore-{ds}.xml"), &doc);
        }
        cloud.write("fe", "/etc/one/onesdm.toml", "[ssh]\nsilence = \"2s\"\n");
        let site = Site { cloud, driver };
        site.on("fe", &["mkdir", "-p", &format!("{DS}/1")]);
        site.on(
            "fe",
            &["qemu-img", "create", "-q", "-f", format, &format!("{DS}/1/img"), &format!("{mib}M")],
        );
        site.guest("fe", &format!("{DS}/1/img"), 0, 0x41);
        site
    }

    pub fn on(&self, host: &str, command: &[&str]) -> String {
        self.cloud.on(host, command)
    }

    /// `remotes/tm/<driver>/<verb>` of the front-end.
    fn link(&self, verb: &str) -> String {
        let link = format!("/var/lib/one/remotes/tm/{}/{verb}", self.driver);
        let program = bed::program();
        self.on("fe", &["mkdir", "-p", Path::new(&link).parent().unwrap().to_str().unwrap()]);
        self.on("fe", &["ln", "-sfn", program.to_str().unwrap(), &link]);
        link
    }

    /// A verb with more in its environment.
    pub fn call(&self, env: &[&str], verb: &str, args: &[&str]) -> Output {
        let link = self.link(verb);
        self.cloud.hosts(&[&["exec", "fe", "env", XML], env, &[&link], args].concat())
    }

    fn verb(&self, verb: &str, args: &[&str]) -> Result<(), String> {
        let out = self.call(&[], verb, args);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    }

    #[track_caller]
    pub fn ok(&self, verb: &str, args: &[&str]) {
        self.verb(verb, args).unwrap_or_else(|e| panic!("{verb} {args:?}: {e}"));
    }

    /// Where the link leads, as a machine is started with it.
    fn real(&self, host: &str, path: &str) -> (String, &'static str) {
        let real = self.on(host, &["readlink", "-f", path]);
        let info = self.on(host, &["qemu-img", "info", "--output=json", &real]);
        (real, if info.contains("\"format\": \"qcow2\"") { "qcow2" } else { "raw" })
    }

    /// Fills the n-th block of 64 KiB.
    fn guest(&self, host: &str, path: &str, n: usize, byte: u8) {
        let ((real, format), at) = (self.real(host, path), n << 16);
        self.on(host, &["qemu-io", "-f", format, "-c", &format!("write -q -P {byte} {at} 64k"), &real]);
    }

    /// The first bytes of the first blocks, as a guest reads them.
    fn says(&self, host: &str, path: &str) -> String {
        let (real, format) = self.real(host, path);
        self.on(host, &["qemu-img", "convert", "-f", format, "-O", "raw", &real, "/tmp/flat"]);
        let flat = self.cloud.inside(host, || std::fs::read("/tmp/flat").unwrap());
        let letter = |b: &[u8]| if b[0] == 0 { '.' } else { char::from(b[0]) };
        flat.chunks(1 << 16).take(8).map(letter).collect::<String>().trim_end_matches('.').to_owned()
    }

    pub fn names(&self, host: &str, dir: &str) -> Vec<String> {
        self.cloud.inside(host, || {
            let mut names = if Path::new(dir).exists() { bed::names(Path::new(dir)) } else { Vec::new() };
            names.sort();
            names
        })
    }

    /// Bytes that came to a host over its network.
    pub fn came(&self, host: &str) -> u64 {
        came(&self.on(host, &["cat", "/proc/net/dev"]))
    }

    pub fn staged(&self, host: &str) -> u64 {
        self.cloud.inside(host, || weight(Path::new(&format!("{DS}/100/.sdm/new"))))
    }
}

/// The same of the text in which the kernel says it.
pub fn came(dev: &str) -> u64 {
    let of = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() != "lo").then(|| numbers.split_whitespace().next()?.parse::<u64>().ok())?
    };
    dev.lines().filter_map(of).sum()
}

/// Bytes below a directory.
pub fn weight(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let each = entries.map(|e| match e.metadata() {
        Ok(m) if m.is_dir() => weight(&e.path()),
        Ok(m) => m.blocks() * 512,
        Err(_) => 0,
    });
    each.sum()
}

fn whole_life(driver: &'static str, format: &str) {
    let site = Site::new(driver, format, 4);
    let (image, disk) = (format!("fe:{DS}/1/img"), |host: &str| format!("{host}:{DS}/100/7/disk.0"));
    let (vm, at) = (|host: &str| format!("{host}:{DS}/100/7"), format!("{DS}/100/7/disk.0"));
    site.ok("ln", &[&image, &disk("h1"), "7", "1"]);
    assert_eq!(site.says("h1", &at), "A");
    site.ok("snap_create", &[&disk("h1"), "0", "7", "1"]);
    site.guest("h1", &at, 1, 0x42);
    let is_layered = format == "qcow2" && driver != "ssh";
    let link = site.on("h1", &["sh", "-c", &format!("readlink {at} || true")]);
    assert_eq!(link, if is_layered { "disk.0.snap/1" } else { "" });
    // oned moves disk by disk, then the directory.
    site.ok("mv", &[&disk("h1"), &disk("h2"), "7", "1"]);
    site.ok("mv", &[&vm("h1"), &vm("h2"), "7", "100"]);
    assert_eq!(site.names("h1", &format!("{DS}/100")), [".monitor", ".sdm"]);
    assert_eq!(site.says("h2", &at), "AB");
    assert_eq!(site.says("h2", &format!("{at}.snap/0")), "A");
    assert_eq!(site.on("h2", &["cat", &format!("{DS}/100/.monitor")]), "ssh");
    // And again: there is nothing at the source any more, and what went is at the destination.
    site.ok("mv", &[&vm("h1"), &vm("h2"), "7", "100"]);
    assert_eq!(site.says("h2", &at), "AB");
    site.ok("cpds", &[&disk("h2"), &format!("fe:{DS}/1/saved"), "0", "7", "1"]);
    assert_eq!(site.says("fe", &format!("{DS}/1/saved")), "A");
    site.ok("mvds", &[&disk("h2"), &image, "7", "1"]);
    site.ok("delete", &[&vm("h2"), "7", "100"]);
    assert_eq!(site.says("fe", &format!("{DS}/1/img")), "AB");
    assert_eq!(site.says("fe", &format!("{DS}/1/img.snap/0")), "A");
    assert_eq!(site.names("h2", &format!("{DS}/100")), [".monitor", ".sdm"]);
    // Home and away again, with its snapshots.
    site.ok("clone", &[&image, &disk("h2"), "7", "1"]);
    assert_eq!(site.says("h2", &at), "AB");
    for (host, ds) in [("fe", 1), ("h1", 100), ("h2", 100)] {
        assert_eq!(site.names(host, &format!("{DS}/{ds}/.sdm/new")), Vec::<String>::new(), "{host}");
    }
}

#[test]
fn a_layered_disk_lives_on_two_hosts() {
    whole_life("local", "qcow2");
}

#[test]
fn a_raw_disk_lives_on_two_hosts() {
    whole_life("sdm_local", "raw");
}

#[test]
fn to_the_ssh_driver_a_qcow2_disk_is_a_file() {
    whole_life("ssh", "qcow2");
}

/// And what arrived before is not sent again.
#[test]
fn a_move_that_is_cut_leaves_the_source_whole() {
    cut(48);
}

/// The system's ssh carries it.
#[test]
fn a_large_move_that_is_cut_leaves_the_source_whole() {
    cut(64);
}

fn cut(mib: u32) {
    let site = Site::new("local", "raw", mib);
    let (image, at) = (format!("fe:{DS}/1/img"), format!("{DS}/100/7/disk.0"));
    let vm = |host: &str| format!("{host}:{DS}/100/7");
    site.ok("clone", &[&image, &format!("h1:{at}"), "7", "1"]);
    site.on("h1", &["sh", "-c", &format!("head -c 32M /dev/urandom | dd of={at} conv=notrunc bs=1M")]);
    site.guest("h1", &at, 0, 0x43);
    let digest = |host: &str| site.on(host, &["md5sum", &at]);
    let whole = digest("h1");
    let config = "[ssh]\nsilence = \"2s\"\n[data]\nlimit = \"8MiB\"\n";
    site.cloud.write("fe", "/etc/one/onesdm.toml", config);
    for (cut, mib) in [("h2", 8), ("h1", 16)] {
        std::thread::scope(|s| {
            let moving = s.spawn(|| site.verb("mv", &[&vm("h1"), &vm("h2"), "7", "100"]));
            eventually("data at the destination", SOON, || {
                moving.is_finished() || site.staged("h2") > mib << 20
            });
            site.cloud.ok(&["cut", cut]);
            let e = moving.join().unwrap().unwrap_err();
            assert!(e.contains(&format!("host {cut}")), "{e}");
        });
        assert_eq!(digest("h1"), whole);
        assert!(!site.names("h2", &format!("{DS}/100")).contains(&"7".to_owned()));
        site.cloud.ok(&["heal", cut]);
        assert!(site.staged("h2") > mib << 20, "it waits for a repeat");
    }
    site.cloud.write("fe", "/etc/one/onesdm.toml", "");
    let before = site.came("h2");
    site.ok("mv", &[&vm("h1"), &vm("h2"), "7", "100"]);
    let mib = (site.came("h2") - before) >> 20;
    assert!((8..=17).contains(&mib), "of 32 MiB came {mib}, and 16 were there");
    assert_eq!(digest("h2"), whole);
    assert_eq!(site.names("h2", &format!("{DS}/100/.sdm/new")), Vec::<String>::new());
    assert!(!site.names("h1", &format!("{DS}/100")).contains(&"7".to_owned()));
}

/// Both hosts have the same directory mounted: nothing is copied, and nothing is retired.
#[test]
fn a_move_on_storage_that_both_see_does_nothing() {
    let site = Site::with(&["-s", &format!("{DS}/100")], "local", "raw", 4);
    let at = format!("{DS}/100/7/disk.0");
    site.ok("clone", &[&format!("fe:{DS}/1/img"), &format!("h1:{at}"), "7", "1"]);
    let before = site.on("h1", &["stat", "-c", "%i", &at]);
    site.ok("mv", &[&format!("h1:{DS}/100/7"), &format!("h2:{DS}/100/7"), "7", "100"]);
    assert_eq!(site.on("h1", &["stat", "-c", "%i", &at]), before);
    assert_eq!(site.on("h2", &["stat", "-c", "%i", &at]), before);
    // A copy of the datastore is neither the same nor another one (red team 1.1).
    let copied = Site::new("local", "raw", 4);
    copied.ok("clone", &[&format!("fe:{DS}/1/img"), &format!("h1:{at}"), "7", "1"]);
    let id = copied.cloud.read("h1", &format!("{DS}/100/.sdm/domain.json"));
    copied.ok("clone", &[&format!("fe:{DS}/1/img"), &format!("h2:{at}"), "7", "1"]);
    copied.cloud.write("h2", &format!("{DS}/100/.sdm/domain.json"), &id);
    let e = copied.verb("mv", &[&format!("h1:{DS}/100/7"), &format!("h2:{DS}/100/7"), "7", "100"]);
    assert!(e.is_err(), "it was moved onto a copy of its datastore");
    assert_eq!(copied.says("h1", &at), "A");
}

/// The hypervisor copies the disks itself; what it needs is room, and that the source goes afterwards.
#[test]
fn a_live_migration_clears_the_destination_and_then_the_source() {
    let site = Site::new("local", "raw", 4);
    let (image, at) = (format!("fe:{DS}/1/img"), format!("{DS}/100/7/disk.0"));
    let args = ["h1", "h2", &format!("{DS}/100/7"), "7", "100"];
    for host in ["h1", "h2"] {
        site.ok("clone", &[&image, &format!("{host}:{at}"), "7", "1"]);
    }
    site.ok("premigrate", &args);
    let there = |host: &str| site.names(host, &format!("{DS}/100")).contains(&"7".to_owned());
    assert!(there("h1") && !there("h2"));
    site.ok("failmigrate", &args);
    assert!(there("h1"));
    site.ok("postmigrate", &args);
    assert!(!there("h1"));
}

#[test]
fn a_verb_connects_once_to_each_host_it_needs() {
    let site = Site::new("local", "raw", 4);
    let at = format!("{DS}/100/7/disk.0");
    let vm = |host: &str| format!("{host}:{DS}/100/7");
    let cost = |verb: &str, args: &[&str]| {
        let before = ["h1", "h2"].map(|h| site.cloud.logins(h));
        site.ok(verb, args);
        let after = ["h1", "h2"].map(|h| site.cloud.logins(h));
        [after[0] - before[0], after[1] - before[1]]
    };
    assert_eq!(cost("clone", &[&format!("fe:{DS}/1/img"), &format!("h1:{at}"), "7", "1"]), [1, 0]);
    let moving = cost("mv", &[&vm("h1"), &vm("h2"), "7", "100"]);
    assert_eq!(moving, [1, 2], "the source goes by the same one, the data by one of its own");
    assert!(!site.names("h1", &format!("{DS}/100")).contains(&"7".to_owned()));
    assert_eq!(cost("mv", &[&format!("h2:{at}"), &format!("h1:{at}"), "7", "100"]), [0, 0]);
    assert_eq!(cost("mvds", &[&format!("h2:{at}"), &format!("fe:{DS}/1/img"), "7", "1"]), [0, 1]);
}

/// Where much may go the system's ssh carries it, whose ciphers are quicker: one process more, and neither a
/// connection nor one for each that asks `ssh -G`.
#[test]
fn a_verb_starts_three_programs_for_a_host_at_most() {
    for (mib, wanted) in [(63, vec!["clone", "ssh"]), (64, vec!["clone", "ssh", "ssh"])] {
        let site = Site::new("local", "raw", mib);
        // It is what an image holds that counts.
        site.on("fe", &["fallocate", "-l", &format!("{mib}M"), &format!("{DS}/1/img")]);
        let at = format!("{DS}/100/7/disk.0");
        let (trace, image, disk) = ("/var/lib/one/trace", format!("fe:{DS}/1/img"), format!("h1:{at}"));
        // Where the host's agent is has to be found once.
        site.ok("delete", &[&format!("h1:{DS}/100/7"), "7", "100"]);
        let before = site.cloud.logins("h1");
        let link = site.link("clone");
        let words = ["strace", "-f", "-qq", "-e", "trace=execve", "-o", trace];
        let call = [&words[..], &["env", XML, &link, &image, &disk, "7", "1"]].concat();
        site.on("fe", &call);
        assert_eq!(site.cloud.logins("h1") - before, 1);
        assert_eq!(site.says("h1", &at), site.says("fe", &format!("{DS}/1/img")));
        let text = site.cloud.read("fe", trace);
        let started = text.lines().filter(|l| l.contains("execve(") && !l.contains(" = -1 "));
        let started = started.filter_map(|l| l.split('"').nth(1)?.rsplit('/').next());
        assert_eq!(started.skip(1).collect::<Vec<_>>(), wanted, "{mib} MiB");
    }
}

/// What the VM wrote is in the image: the front-end sees that, where it sees the datastores.
#[test]
fn storing_a_shared_disk_needs_no_host() {
    let shared = ["-s", &format!("{DS}/1"), "-s", &format!("{DS}/100")];
    let site = Site::with(&shared, "shared", "raw", 4);
    let (disk, image) = (format!("h1:{DS}/100/7/disk.0"), format!("fe:{DS}/1/img"));
    site.ok("ln", &[&image, &disk, "7", "1"]);
    site.cloud.ok(&["cut", "h1"]);
    site.ok("mvds", &[&disk, &image, "7", "1"]);
    site.cloud.ok(&["heal", "h1"]);
    // A file in place of the link would be lost with the VM's directory.
    let at = format!("{DS}/100/7/disk.0");
    site.on("h1", &["cp", "--remove-destination", &format!("{DS}/1/img"), &at]);
    let e = site.verb("mvds", &[&disk, &image, "7", "1"]).unwrap_err();
    assert!(e.contains("is a file of its own"), "{e}");
}
