//! A volume group that can be put back: the disk under it has two layers, one for what a scene starts from and
//! one for what is tried on it. And LVM commands that fail, die, or see their job die, as a plan says.

use crate::bed;
use crate::lvmverbs::{GROUP, Host, MIB, VM};
use std::collections::BTreeMap;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// As root, before the test. `/dev/vda` is the disk, the others take what differs from it. In place of each
/// command that changes something stands one that follows `/fault/plan`: at the so-many-th such command
/// the job (`/fault/pid`) or the command itself ends.
pub const BEFORE: &str = r#"
sed -i 's|scan=|filter=["a\|^/dev/mapper/lun$\|","r\|.*\|"] scan=|' /etc/lvm/lvm.conf
mkdir /fault
cat >/usr/sbin/faulty <<'X'
#!/bin/sh
tool=${0##*/}
real() { /usr/sbin/lvm $tool "$@"; }
[ -e /fault/plan ] || exec /usr/sbin/lvm $tool "$@"
read n how k </fault/plan
echo "$tool $*" >>/fault/log
[ $(wc -l </fault/log) = $n ] || exec /usr/sbin/lvm $tool "$@"
while [ ! -s /fault/pid ]; do usleep 5000; done
echo "$how" >/fault/met
die() { kill -9 $(cat /fault/pid); }
case $how in
before) die; exit 5 ;;
during) die; real "$@" ;;
after) real "$@"; status=$?; die; exit $status ;;
fails) echo '  made to fail' >&2; exit 5 ;;
silent) real "$@"; echo '  made to look failed' >&2; exit 5 ;;
crash) exec strace -f -qq -o /dev/null -e trace=io_submit -e inject=io_submit:signal=KILL:when=$k /usr/sbin/lvm $tool "$@" ;;
esac
X
cat >/usr/sbin/bed-disk <<'X'
#!/bin/sh
export DM_DISABLE_UDEV=1
make() { dmsetup create $1 --table "$2"; }
size=$(blockdev --getsz /dev/vda)
if [ $1 != base ]; then
    # What a killed command left suspended would hold up everybody.
    for d in $(dmsetup ls | cut -f1); do dmsetup resume $d; done
    vgchange -q -an vg-one-100
    for n in 1 2 3 4; do for d in $(dmsetup ls | cut -f1 | grep ^vg--one); do dmsetup remove $d; done; done 2>/dev/null
    rm -rf /dev/vg-one-100
    dmsetup remove lun
fi
case $1 in
base) make lun "0 $size linear /dev/vda 0" ;;
scene) ! [ -e /dev/mapper/under ] || dmsetup remove under
    make under "0 $size snapshot /dev/vda /dev/vdb N 8"; make lun "0 $size linear /dev/mapper/under 0" ;;
point) make lun "0 $size snapshot /dev/mapper/under /dev/vdc N 8" ;;
esac
X
chmod 755 /usr/sbin/faulty /usr/sbin/bed-disk
for t in lvcreate lvrename lvchange lvextend lvreduce lvremove vgchange; do ln -sf faulty /usr/sbin/$t; done
"#;

/// The test arranges it, not the drivers.
pub fn root(words: &[&str]) -> String {
    let out = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A call of a driver. `DIR` is the VM's directory, `/DIR` of a datastore verb that of the images.
#[derive(Clone, Copy, Debug)]
pub enum Call {
    Ds(&'static str, &'static str),
    Tm(&'static str, &'static [&'static str]),
    /// The same of a VM whose disks are to lie in no pool.
    Thick(&'static str, &'static [&'static str]),
    /// A guest writes to this disk of the VM's.
    Write(u32),
}

/// What everybody sees: volumes and what they hold, and what leads to them.
pub type View = BTreeMap<String, String>;

pub struct Bed {
    pub h: Host,
    /// The datastores of a scene, and its active volumes.
    kept: tempfile::TempDir,
    active: Vec<String>,
}

/// How a call ended.
pub struct Ended {
    pub status: Option<i32>,
    pub text: String,
    /// The commands of LVM's that change something.
    pub commands: Vec<String>,
    /// Whether the plan was followed.
    pub met: bool,
}

impl Bed {
    /// The group with a thick image 1 and a thin one 2, and a system datastore with nothing in it.
    pub fn new() -> Bed {
        root(&["bed-disk", "base"]);
        let h = Host::new();
        std::fs::create_dir(h.at("var/datastores/102")).unwrap();
        std::fs::write(h.at("etc/onesdm.toml"), "[lvm]\ndevices = [\"/dev/mapper/lun\"]\n").unwrap();
        root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/mapper/lun"]);
        let (status, text) = h.own(&["domain", "init", "--lock", "ofd", "/dev/vg-one-100"]);
        assert_eq!(status, 0, "{text}");
        let system = h.at("var/datastores/101");
        let (status, text) = h.own(&["domain", "init", system.to_str().unwrap()]);
        assert_eq!(status, 0, "{text}");
        for (name, letter) in [("one", 1u8), ("two", 2)] {
            let bytes = [vec![letter; MIB / 2], vec![0; MIB / 4], vec![letter + 2; MIB / 4]].concat();
            std::fs::write(h.at("images").join(name.to_owned() + ".raw"), bytes).unwrap();
        }
        let bed = Bed { h, kept: tempfile::tempdir().unwrap(), active: Vec::new() };
        for call in [
            Call::Ds("cp", "<ID>1</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH>"),
            Call::Ds("cp", "<ID>2</ID><SIZE>2</SIZE><PATH>DIR/two.raw</PATH><PERSISTENT>1</PERSISTENT>"),
        ] {
            bed.must(call);
        }
        bed
    }

    fn stores(&self) -> PathBuf {
        self.h.at("var/datastores")
    }

    /// Lays out what a scene starts from.
    pub fn scene(&mut self, before: &[Call]) {
        let base = self.stores().with_file_name("base");
        if !base.exists() {
            copy(&self.stores(), &base);
        }
        root(&["bed-disk", "scene"]);
        same(&base, &self.stores());
        for call in before {
            self.must(*call);
        }
        let active = root(&["lvs", "--noheadings", "-o", "lv_name,lv_active", GROUP]);
        let names = active.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
        let names = names.filter(|f| f.len() == 2 && f[1] == "active" && !f[0].ends_with("-pool"));
        self.active = names.map(|f| format!("{GROUP}/{}", f[0])).collect();
        let kept = self.kept.path().join("stores");
        let _ = std::fs::remove_dir_all(&kept);
        copy(&self.stores(), &kept);
    }

    /// Puts the scene back.
    pub fn back(&self) {
        root(&["bed-disk", "point"]);
        same(&self.kept.path().join("stores"), &self.stores());
        self.wake();
    }

    /// Makes the devices of a scene.
    pub fn wake(&self) {
        if !self.active.is_empty() {
            let words = ["lvchange", "-K", "-ay"].into_iter().chain(self.active.iter().map(String::as_str));
            root(&words.collect::<Vec<_>>());
        }
    }

    fn must(&self, call: Call) {
        if let Call::Write(disk) = call {
            let disk = self.stores().join(format!("101/7/disk.{disk}"));
            let mut device = std::fs::File::options().write(true).open(disk).unwrap();
            return device.write_all(&vec![7; MIB]).and_then(|()| device.sync_all()).unwrap();
        }
        let begin = Instant::now();
        let ended = self.run(call, "", &[]);
        println!("{call:?} {:.1?} {} commands", begin.elapsed(), ended.commands.len());
        assert_eq!(ended.status, Some(0), "{call:?}: {}", ended.text);
    }

    /// Makes a call, with a plan for its commands and more in its environment.
    pub fn run(&self, call: Call, plan: &str, env: &[(&str, &str)]) -> Ended {
        self.run_as(&[], call, plan, env)
    }

    /// The same as a person, with these words before the verb's name.
    pub fn run_as(&self, how: &[&str], call: Call, plan: &str, env: &[(&str, &str)]) -> Ended {
        let (log, met, pid) = (Path::new("/fault/log"), Path::new("/fault/met"), Path::new("/fault/pid"));
        for f in [log, met, pid] {
            let _ = std::fs::remove_file(f);
        }
        std::fs::write(log, "").unwrap();
        std::fs::write(
            "/fault/plan",
            if plan.is_empty() { "0 none\n".to_owned() } else { format!("{plan}\n") },
        )
        .unwrap();
        let command = |name: String| {
            if how.is_empty() {
                return self.h.command(&self.h.at("var/remotes").join(name));
            }
            let mut c = self.h.command(&bed::program());
            c.args(how).args(["--as", &name, "--"]);
            c
        };
        let (mut c, message) = match call {
            Call::Ds(verb, image) => {
                let mut c = command(format!("datastore/lvm/{verb}"));
                c.arg("7");
                (c, self.h.message(image))
            }
            Call::Tm(verb, args) | Call::Thick(verb, args) => {
                let mut c = command(format!("tm/lvm/{verb}"));
                let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
                let at = |ds| self.stores().join(ds).join("7").display().to_string();
                let there = format!("{}:{}", host.trim(), at("102"));
                let dir = format!("localhost:{}", at("101"));
                c.args(args.iter().map(|a| a.replace("THERE", &there).replace("DIR", &dir)));
                let vm = VM.replace("<SIZE>8<", "<SIZE>3<");
                let thick = "<LVM_THIN_ENABLE>NO</LVM_THIN_ENABLE></DISK>";
                let is_thick = matches!(call, Call::Thick(..));
                c.env("ONESDM_VM_XML", if is_thick { vm.replace("</DISK>", thick) } else { vm });
                (c, String::new())
            }
            Call::Write(_) => panic!("a guest's, not a driver's"),
        };
        std::fs::write("/fault/message", message).unwrap();
        c.envs(env.iter().copied()).stdin(std::fs::File::open("/fault/message").unwrap());
        let (status, text) = bounded(&mut c, Some(pid));
        std::fs::remove_file("/fault/plan").unwrap();
        let commands = std::fs::read_to_string(log).unwrap();
        let shape = |l: &str| {
            let (tool, rest) = l.split_once(' ').unwrap();
            let rest = rest.rsplit_once("\"%s\"} ").map_or(rest, |r| r.1);
            format!("{tool} {rest}")
        };
        Ended { status, text, commands: commands.lines().map(shape).collect(), met: met.exists() }
    }

    /// A command of ours, which has to succeed.
    fn own(&self, words: &[&str], bug: &str) -> Result<String, String> {
        let mut c = self.h.command(&bed::program());
        let (status, text) = bounded(c.args(words).env("ONESDM_TEST_BUG", bug), None);
        if status == Some(0) { Ok(text) } else { Err(format!("{words:?}: {status:?} {text}")) }
    }

    /// Collects, checks, and asks LVM; nothing of ours may be left but what is kept on purpose.
    pub fn sound(&self, bug: &str) -> Result<(), String> {
        let system = self.stores().join("101");
        let places = ["/dev/vg-one-100", system.to_str().unwrap()];
        self.own(&[&["gc"][..], &places].concat(), bug)?;
        awake()?;
        self.own(&[&["check"][..], &places].concat(), "")?;
        root(&["vgck", GROUP]);
        let left = root(&["lvs", "--noheadings", "-o", "lv_name", GROUP]);
        let is_left = |n: &&str| {
            n.starts_with("sdm-new-")
                || n.starts_with("sdm-del-") && Path::new(n).extension().is_none_or(|e| e != "keep")
        };
        let left: Vec<&str> = left.split_whitespace().filter(is_left).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("left by gc: {left:?}")) }
    }

    pub fn view(&self) -> View {
        let mut view = View::new();
        let all = root(&["lvs", "--noheadings", "-o", "lv_name,lv_active", GROUP]);
        let mut idle = Vec::new();
        for line in all.lines() {
            let f: Vec<&str> = line.split_whitespace().collect();
            if f[0].starts_with("sdm-") {
                continue;
            }
            let pool = f[0].ends_with("-pool");
            view.insert(f[0].to_owned(), if pool { "pool" } else { "" }.to_owned());
            if !pool && f.get(1) != Some(&"active") {
                idle.push(format!("{GROUP}/{}", f[0]));
            }
        }
        let change = |words: [&'static str; 2]| {
            if !idle.is_empty() {
                let words = ["lvchange"].into_iter().chain(words).chain(idle.iter().map(String::as_str));
                root(&words.collect::<Vec<_>>());
            }
        };
        change(["-K", "-ay"]);
        let at = |name: &String| Path::new("/dev").join(GROUP).join(name);
        let devices: Vec<PathBuf> = view.iter().filter(|v| v.1.is_empty()).map(|v| at(v.0)).collect();
        let found = view.values_mut().filter(|what| what.is_empty()).zip(contents(&devices));
        found.for_each(|(what, word)| *what = word);
        change(["-K", "-an"]);
        for ds in ["101", "102"] {
            entries(&self.stores().join(ds), &format!("{ds}/"), &mut view);
        }
        view
    }
}

/// That no device stands still: whoever reads it would wait for ever. Lets them go on, to come to an end.
pub fn awake() -> Result<(), String> {
    let all = root(&["dmsetup", "info", "-c", "--noheadings", "--separator", " ", "-o", "name,suspended"]);
    let mut asleep: Vec<&str> = all.lines().filter_map(|l| l.trim().strip_suffix(" Suspended")).collect();
    // What lies in a pool waits for it.
    asleep.sort_by_key(|name| !name.contains("-pool"));
    for name in &asleep {
        root(&["dmsetup", "resume", name]);
    }
    if asleep.is_empty() { Ok(()) } else { Err(format!("they stand still: {asleep:?}")) }
}

/// What devices hold, in a word each. Built for tests this program is slow at that.
fn contents(devices: &[PathBuf]) -> Vec<String> {
    let out = Command::new("md5sum").args(devices).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let out = String::from_utf8(out.stdout).unwrap();
    let word = |(line, path): (&str, &PathBuf)| {
        let (mut head, mut file) = ([0; 4096], std::fs::File::open(path).unwrap());
        file.read_exact(&mut head).unwrap();
        let size = file.seek(SeekFrom::End(0)).unwrap() / MIB as u64;
        // It has a number of its own each time.
        let sum = if &head[4086..] == b"SWAPSPACE2" { "swap" } else { &line[..8] };
        format!("{size} {sum}")
    };
    out.lines().zip(devices).map(word).collect()
}

fn entries(dir: &Path, prefix: &str, view: &mut View) {
    for name in bed::names(dir).into_iter().filter(|n| n != ".sdm") {
        let (path, name) = (dir.join(&name), format!("{prefix}{name}"));
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            entries(&path, &format!("{name}/"), view);
        } else if meta.is_symlink() {
            view.insert(name, std::fs::read_link(&path).unwrap().display().to_string());
        } else {
            view.insert(name, format!("{:?}", std::fs::read(&path).unwrap()));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let words = ["-a".as_ref(), from.as_os_str(), to.as_os_str()];
    assert!(Command::new("cp").args(words).status().unwrap().success());
}

/// Makes a directory what another one is, without touching what is the same already: a domain knows its own.
fn same(from: &Path, to: &Path) {
    for name in bed::names(to) {
        let (old, now) = (from.join(&name), to.join(&name));
        let kind = |p: &Path| p.symlink_metadata().ok().map(|m| (m.is_dir(), m.is_symlink()));
        if kind(&old) == kind(&now) && kind(&now) == Some((true, false)) {
            same(&old, &now);
        } else if kind(&now) == Some((true, false)) {
            std::fs::remove_dir_all(&now).unwrap();
        } else if kind(&old) != kind(&now)
            || std::fs::read_link(&old).ok() != std::fs::read_link(&now).ok()
            || kind(&now) == Some((false, false)) && std::fs::read(&old).ok() != std::fs::read(&now).ok()
        {
            std::fs::remove_file(&now).unwrap();
        }
    }
    for name in bed::names(from).iter().filter(|n| to.join(n).symlink_metadata().is_err()) {
        copy(&from.join(name), to);
    }
}

/// Its status and what it said. Nothing here takes longer than a few seconds, however slow the machine.
fn bounded(c: &mut Command, pid: Option<&Path>) -> (Option<i32>, String) {
    let said = std::fs::File::create("/fault/said").unwrap();
    let mut child = c.stdout(said.try_clone().unwrap()).stderr(said).spawn().unwrap();
    if let Some(pid) = pid {
        std::fs::write(pid, child.id().to_string()).unwrap();
    }
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if began.elapsed() > Duration::from_secs(240) {
            let blocked =
                Command::new("sh").args(["-c", "ps; dmsetup info -c 2>&1"]).stdin(Stdio::null()).output();
            println!("{}", String::from_utf8_lossy(&blocked.unwrap().stdout));
            child.kill().unwrap();
            break Some(-9);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = std::fs::read_to_string("/fault/said").unwrap_or_default();
    (status, text.trim().to_owned())
}
