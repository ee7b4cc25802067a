//! Disks of running machines on a volume group, on the kernel's device mapper. The machine is a process that writes,
//! libvirt a program that stops that process and notes what it was asked: how real ones do it is shown elsewhere.

use crate::lvmverbs::{GROUP, Host, MIB, root, said, volumes};
use crate::{bed, vm};
use serde_json::Value;
use std::ffi::OsStr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The same place in the machine.
fn virsh() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("lvmlive-virsh")
}

/// Disk 0 is a copy of image 1, disk 1 image 3, thick.
fn document(lcm: u32) -> String {
    let disk = |id: u32, clone, image: u32, target| {
        format!(
            "<DISK><DISK_ID>{id}</DISK_ID><CLONE>{clone}</CLONE><TM_MAD>lvm</TM_MAD><DATASTORE_ID>100</DATASTORE_ID>\
             <SIZE>8</SIZE><TARGET>{target}</TARGET><FORMAT>raw</FORMAT><SOURCE>vg-one-100/img-one-{image}</SOURCE></DISK>"
        )
    };
    format!(
        "<VM><ID>7</ID><DEPLOY_ID>one-7</DEPLOY_ID><STATE>3</STATE><LCM_STATE>{lcm}</LCM_STATE><TEMPLATE>{}{}</TEMPLATE>\
         <HISTORY_RECORDS><HISTORY><SEQ>0</SEQ><HOSTNAME>localhost</HOSTNAME><VM_MAD>kvm</VM_MAD><DS_ID>101</DS_ID>\
         </HISTORY></HISTORY_RECORDS></VM>",
        disk(0, "YES", 1, "vda"),
        disk(1, "NO", 3, "vdb"),
    )
}

const SNAPSHOT: u32 = 57;
const SAVEAS: u32 = 26;

/// Where the machine counts.
const PLACES: u64 = 64;
const STRIDE: u64 = 128 << 10;

/// The machine: it counts in many blocks of its disk, one after the other, and flushes none.
#[test]
#[ignore = "runs until it is ended"]
fn machine() {
    let disk = std::env::var_os("ONESDM_TEST_DISK").expect("a disk");
    let disk = std::fs::File::options().write(true).open(disk).unwrap();
    for n in 1u64.. {
        for place in 0..PLACES {
            disk.write_all_at(&n.to_be_bytes().repeat(512), place * STRIDE).unwrap();
            // For whoever else needs the processor.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

struct Machine(Child);

impl Machine {
    fn on(disk: &Path) -> Machine {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "--ignored", "lvmlive::machine"]).env("ONESDM_TEST_DISK", disk);
        Machine(c.stdout(Stdio::null()).spawn().unwrap())
    }

    fn stands_still(&self) -> bool {
        std::fs::read_to_string(format!("/proc/{}/stat", self.0.id())).unwrap().contains(") T ")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// What was counted, as of one moment: nowhere more than in a block before, and all within one round.
#[track_caller]
fn moment(volume: &str) -> u64 {
    moment_in(GROUP, volume)
}

#[track_caller]
fn moment_in(group: &str, volume: &str) -> u64 {
    let path = format!("{group}/{volume}");
    root(&["lvchange", "-K", "-ay", &path]);
    let device = std::fs::File::open(format!("/dev/{path}")).unwrap();
    let count = |place| {
        let mut bytes = [0; 8];
        device.read_exact_at(&mut bytes, place * STRIDE).unwrap();
        u64::from_be_bytes(bytes)
    };
    let all: Vec<u64> = (0..PLACES).map(count).collect();
    drop(device);
    root(&["lvchange", "-an", &path]);
    assert!(all.is_sorted_by(|a, b| a >= b) && all[0] <= all[all.len() - 1] + 1, "{volume}: {all:?}");
    all[0]
}

/// A VM's disk that its machine writes to.
struct Scene {
    h: Host,
    machine: Machine,
}

impl Scene {
    fn new() -> Scene {
        let h = Host::new();
        root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
        assert_eq!(h.own(&["domain", "init", "--lock", "ofd", "/dev/vg-one-100"]).0, 0);
        std::fs::copy(virsh(), h.at("virsh")).unwrap();
        let toml = h.at("etc/onesdm.toml");
        let text = std::fs::read_to_string(&toml).unwrap();
        std::fs::write(&toml, format!("{text}[tools]\nvirsh = \"{}\"\n", h.at("virsh").display())).unwrap();
        std::os::unix::fs::symlink(bed::program(), h.at("var/remotes/tm/lvm/snap_create_live")).unwrap();
        std::fs::write(h.at("images/one.raw"), vec![0; 8 * MIB]).unwrap();
        for id in [1, 3] {
            h.ok("cp", &format!("<ID>{id}</ID><SIZE>8</SIZE><PATH>DIR/one.raw</PATH>"));
        }
        let doc = document(3);
        for (verb, image, disk) in [("clone", 1, 0), ("ln", 3, 1)] {
            let args = [format!("fe:vg-one-100/img-one-{image}"), format!("DIR/disk.{disk}")];
            let (status, text) = h.tm_of((7, &doc), verb, &[&args[0], &args[1], "7", "100"]);
            assert_eq!(status, 0, "{text}");
        }
        let machine = Machine::on(&h.at("var/datastores/101/7/disk.0"));
        let s = Scene { h, machine };
        s.has("vda", 0);
        s
    }

    /// What libvirt says of the machine: it has this disk of the VM's there.
    fn has(&self, target: &str, disk: u32) {
        let (pid, disk) = (self.machine.0.id(), self.h.at(&format!("var/datastores/101/7/disk.{disk}")));
        let xml = format!(
            "<domain id='1'><devices><disk type='block'><source dev='{}'/><target dev='{target}'/></disk></devices></domain>",
            disk.display()
        );
        let rules = format!(
            "domstats\tsay\tstate.state=1\nsuspend\tstop\t{pid}\nresume\tcont\t{pid}\nqemu-agent-command\tfail\tno agent\n\
             dumpxml\tsay\t{xml}\n"
        );
        std::fs::write(self.h.at("rules"), rules).unwrap();
        let _ = std::fs::remove_file(self.h.at("calls"));
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.h.at("calls")).unwrap_or_default()
    }

    /// How often the machine was stopped, and let go on.
    fn held(&self) -> (usize, usize) {
        let calls = self.calls();
        let times = |word: &str| calls.lines().filter(|l| l.contains(word)).count();
        (times(" suspend "), times(" resume "))
    }

    /// The verb as oned gives it, or a person with these words before.
    fn command(&self, how: &[&str], (lcm, verb, args): (u32, &str, &[&str])) -> Command {
        let mut c = if how.is_empty() {
            self.h.command(&self.h.at("var/remotes/tm/lvm").join(verb))
        } else {
            let mut c = self.h.command(&bed::program());
            c.args(how).args(["--as", &format!("tm/lvm/{verb}"), "--"]);
            c
        };
        let dir = format!("localhost:{}", self.h.at("var/datastores/101/7").display());
        c.args(args.iter().map(|a| a.replace("DIR", &dir))).env("ONESDM_VM_XML", document(lcm));
        c.stdin(Stdio::null());
        c
    }

    fn run(&self, call: (u32, &str, &[&str])) -> (i32, String) {
        said(&self.command(&[], call).output().unwrap())
    }

    /// The plan of it, which changes nothing and asks only what a reader may.
    fn plan(&self, call: (u32, &str, &[&str])) -> Value {
        let state = || {
            root(&["lvs", "--noheadings", "-a", "-o", "lv_name,lv_size,lv_tags,lv_active,vg_seqno", GROUP])
        };
        let _ = std::fs::remove_file(self.h.at("calls"));
        let before = state();
        let out = self.command(&["--plan", "--json"], call).output().unwrap();
        assert_eq!(state(), before, "{call:?}");
        let asked = self.calls();
        assert!(asked.lines().all(|c| c.contains("--readonly ")) && self.held() == (0, 0), "{asked}");
        let _ = std::fs::remove_file(self.h.at("calls"));
        let plan = serde_json::from_slice(&out.stdout);
        plan.unwrap_or_else(|e| panic!("{call:?}: {e}: {:?}", said(&out)))
    }

    /// Planned, then done: what the plan names is there, and the machine stood still once.
    #[track_caller]
    fn planned(&self, call: (u32, &str, &[&str]), name: &str, copies: bool) {
        let plan = self.plan(call);
        println!("{call:?}: {plan}");
        assert_eq!((&plan["refused"], &plan["partial"]), (&Value::Null, &Value::Bool(false)), "{plan}");
        assert_eq!(plan["names"][0]["name"], format!("/dev/{GROUP}/{name}"), "{plan}");
        assert!(plan["names"][0]["how"] == "new" && plan["names"].as_array().unwrap().len() == 1, "{plan}");
        let note = "it is suspended for as long as a snapshot of /dev/vg-one-100/vm-one-7-0 takes";
        assert!(plan["notes"].to_string().contains(note), "{plan}");
        assert_eq!(plan["moves"][0]["size"].as_u64(), copies.then_some(8 << 20), "{plan}");
        let (status, text) = self.run(call);
        assert_eq!(status, 0, "{call:?}: {text}");
        assert_eq!(self.held(), (1, 1), "{}", self.calls());
        assert!(!self.machine.stands_still());
        let then = plan["pools"][0]["then"].as_u64().unwrap();
        let size = root(&[
            "lvs",
            "--noheadings",
            "--units",
            "b",
            "--nosuffix",
            "-o",
            "lv_size",
            "vg-one-100/vm-one-7-pool",
        ]);
        // The moment that was saved took room in the pool.
        assert_eq!(size.trim().parse(), Ok(then), "{plan}");
        assert!(volumes().iter().any(|v| v == name));
    }

    /// Kills the verb at an effect. Whether it had suspended the machine by then, and whether that stood still when the
    /// verb died. It goes on in any case.
    fn kill(&self, call: (u32, &str, &[&str]), at: &str) -> (bool, bool) {
        let (stay, (suspended, resumed)) = (self.h.at("stay"), self.held());
        std::fs::write(&stay, "").unwrap();
        let mut verb =
            self.command(&[], call).env("ONESDM_TEST_KILL", at).stderr(Stdio::null()).spawn().unwrap();
        let still = loop {
            let asked = self.held().1 > resumed;
            std::thread::sleep(Duration::from_millis(if asked { 500 } else { 10 }));
            if verb.try_wait().unwrap().is_some() {
                break self.machine.stands_still();
            } else if asked {
                // The verb itself waits for that.
                break false;
            }
        };
        std::fs::remove_file(&stay).unwrap();
        let status = verb.wait().unwrap();
        assert!(status.code().is_none(), "{at}: {status}");
        let end = Instant::now() + Duration::from_secs(60);
        while self.held().0 != self.held().1 || self.machine.stands_still() {
            assert!(Instant::now() < end, "{at}: nobody lets it go on: {}", self.calls());
            std::thread::sleep(Duration::from_millis(20));
        }
        let seen = (self.held().0 > suspended, still);
        println!("{at}: {seen:?}");
        seen
    }

    fn refused(&self, call: (u32, &str, &[&str]), status: i32, line: &str) {
        let all = volumes();
        let plan = self.plan(call);
        assert!(plan["refused"].to_string().contains(line), "{plan}");
        let (is, text) = self.run(call);
        assert!(is == status && text.contains(line), "{is} {text}");
        assert_eq!((volumes(), self.held()), (all, (0, 0)), "{line}");
    }
}

#[test]
#[ignore = "runs in the machine of a test below"]
fn live_inside() {
    let s = Scene::new();
    let snap: (u32, &str, &[&str]) = (SNAPSHOT, "snap_create_live", &["DIR/disk.0", "0", "7", "100"]);
    let save: (u32, &str, &[&str]) =
        (SAVEAS, "cpds", &["DIR/disk.0", "vg-one-100/img-one-9", "-1", "7", "100"]);
    s.planned(snap, "vm-one-7-0_one_s0", false);
    s.planned(save, "img-one-9", true);
    let (first, later) = (moment("vm-one-7-0_one_s0"), moment("img-one-9"));
    assert!(0 < first && first < later, "the machine went on: {first} {later}");
    let all = [
        "img-one-1",
        "img-one-3",
        "img-one-9",
        "sdm-meta",
        "vm-one-7-0",
        "vm-one-7-0_one_s0",
        "vm-one-7-pool",
    ];
    assert_eq!(volumes(), all, "the moment that was saved is no volume of its own any more");

    let thick: (u32, &str, &[&str]) = (SNAPSHOT, "snap_create_live", &["DIR/disk.1", "0", "7", "100"]);
    s.has("vdb", 1);
    s.refused(thick, 5, "vg-one-100/img-one-3 is a thick volume");
    s.has("vda", 1);
    s.refused(snap, 8, "not /dev/vg-one-100/vm-one-7-0; nothing was changed");
    s.has("vda", 0);
    killed(&s, save, snap);
    assert_eq!(volumes(), all);
    let (status, text) = s.run(save);
    assert_eq!(status, 0, "{text}");
    assert!(moment("img-one-9") > later);
    root(&["vgck", GROUP]);
}

/// The moment is staged in the disk's group, the image in its own.
#[test]
#[ignore = "runs in the machine of a test below"]
fn elsewhere_inside() {
    let s = Scene::new();
    let toml = s.h.at("etc/onesdm.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(&toml, text.replace("\"/dev/vda\"", "\"/dev/vda\", \"/dev/vdb\"")).unwrap();
    root(&["vgcreate", "-q", "-y", "-s", "1m", "vg-one-102", "/dev/vdb"]);
    assert_eq!(s.h.own(&["domain", "init", "--lock", "ofd", "/dev/vg-one-102"]).0, 0);
    let (before, tags) = (volumes(), || root(&["lvs", "--noheadings", "-o", "lv_name,lv_tags", GROUP]));
    let tagged = tags();
    let save: (u32, &str, &[&str]) =
        (SAVEAS, "cpds", &["DIR/disk.0", "vg-one-102/img-one-9", "-1", "7", "102"]);
    let (status, text) = s.run(save);
    assert_eq!((status, s.held()), (0, (1, 1)), "{text}");
    assert!(0 < moment_in("vg-one-102", "img-one-9"));
    assert_eq!((volumes(), tags()), (before, tagged));
}

/// The verb is killed before some of its commands, to find the first one for which the machine stands still, and after
/// that and the next ones, until the moment is there: the machine stood still all the time, and goes on; and what was
/// begun goes, by the collector or by another verb on the disk, which has to know what takes room in the pool.
fn killed(s: &Scene, call: (u32, &str, &[&str]), other: (u32, &str, &[&str])) {
    let (all, log) = (volumes(), s.h.at("effects"));
    let out = s.command(&[], call).env("ONESDM_TEST_LOG", &log).output().unwrap();
    assert!(out.status.success(), "{:?}", said(&out));
    let effects = std::fs::read_to_string(&log).unwrap();
    let commands = effects.lines().zip(1..).filter(|(l, _)| l.contains("\tChild\t")).map(|(_, n)| n);
    let commands: Vec<u32> = commands.collect();
    let collect = || {
        let (status, text) = s.h.own(&["gc", "--short", "/dev/vg-one-100"]);
        assert_eq!((status, volumes()), (0, all.clone()), "{text}");
    };
    collect();
    let first = commands.partition_point(|n| {
        let (suspended, _) = s.kill(call, &format!("{n}:before"));
        collect();
        !suspended
    });
    // Nothing is there yet but the volume of the new image; then the moment is.
    for n in &commands[first..] {
        let (_, still) = s.kill(call, &format!("{n}:after"));
        assert!(still, "it went on before there was a moment");
        match volumes().len() - all.len() {
            2 => {
                let (status, text) = s.run(other);
                assert_eq!((status, volumes()), (0, all), "{text}");
                return;
            }
            left => assert_eq!(left, 1),
        }
        collect();
    }
    panic!("no moment");
}

fn fake_virsh() -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/virsh.c");
    // In place, for whoever else runs this.
    let virsh = virsh();
    let own = tempfile::NamedTempFile::new_in(virsh.parent().unwrap()).unwrap().into_temp_path();
    let args = ["-O1", "-w", "-o"].map(OsStr::new);
    bed::tool("cc", &[&args[..], &[own.as_os_str(), source.as_os_str()]].concat());
    own.persist(&virsh).unwrap();
    virsh
}

#[test]
fn a_running_machines_disk_is_snapshot_and_saved_as_it_is_at_one_moment() {
    in_machine("lvmlive::live_inside", &[fake_virsh()]);
}

#[test]
fn a_running_machines_disk_is_saved_in_another_group() {
    in_machine("lvmlive::elsewhere_inside", &[fake_virsh()]);
}

/// With these programs, too.
pub fn in_machine(test: &str, programs: &[PathBuf]) {
    let tmp = bed::scratch();
    let [lun, other] = ["lun", "other"].map(|name| vm::disk(tmp.path(), name, 256 << 20));
    let programs = [&[bed::program(), "/usr/bin/qemu-img".into()], programs].concat();
    vm::passes_as_root(&[], "", test, &[&lun, &other], &programs);
}
