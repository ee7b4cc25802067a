//! A `qemu-img` that writes to a volume, and whose parent is killed. Nothing of it may reach the image that is made
//! of the same extents next. Two guards are in the way: it dies with its parent, and while it lives the job does, since
//! it has the lease. LVM is a third on the same host, and sees no process of another one: so here it does not look.

use crate::lvmbed::root;
use crate::lvmverbs::{GROUP, Host, MIB};
use crate::{bed, vm};
use onesdm::sys::direct::{BLOCK, Direct};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

const PLACE: &str = "/dev/vg-one-100";
/// In MiB. The group has room for one such image.
const SIZE: usize = 24;

/// A removal does not see whether the volume is open here, as on a host where it is not.
const BEFORE: &str = r#"
cat >/usr/sbin/unseeing <<'X'
#!/bin/sh
exec /usr/sbin/lvm lvremove --driverloaded n "$@"
X
chmod 755 /usr/sbin/unseeing; ln -sf unseeing /usr/sbin/lvremove
"#;

/// The child that has begun to write, standing still.
struct Writer {
    pid: Pid,
    device: PathBuf,
}

impl Writer {
    /// `qemu-img` of this job, when the first of these blocks is on the device.
    fn of(parent: &mut Child, block: &[u8]) -> Writer {
        let began = Instant::now();
        let found = loop {
            assert!(parent.try_wait().unwrap().is_none(), "it ended before it wrote anything");
            assert!(began.elapsed() < Duration::from_secs(60), "nothing is written");
            if let Some(w) = Writer::find(parent.id())
                && Direct::open_device(&w.device).is_ok_and(|d| d.read(0, BLOCK).unwrap() == block)
            {
                break w;
            }
        };
        found.send(Signal::STOP);
        while found.state() != Some('T') {
            std::thread::yield_now();
        }
        found
    }

    fn find(parent: u32) -> Option<Writer> {
        let tasks = bed::names(Path::new(&format!("/proc/{parent}/task")));
        let of = |t: &String| std::fs::read_to_string(format!("/proc/{parent}/task/{t}/children"));
        let pids: Vec<i32> = tasks.iter().filter_map(|t| of(t).ok()).flat_map(|l| numbers(&l)).collect();
        pids.into_iter().find_map(|pid| {
            let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let words: Vec<&str> = line.trim_end_matches('\0').split('\0').collect();
            let is = words[0].ends_with("/qemu-img") && words.contains(&"convert");
            is.then(|| Writer { pid: Pid::from_raw(pid).unwrap(), device: words.last().unwrap().into() })
        })
    }

    fn send(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    fn state(&self) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero())).ok()?;
        stat.rsplit_once(") ")?.1.chars().next().filter(|s| *s != 'Z')
    }

    fn ends(&self) {
        let began = Instant::now();
        while self.state().is_some() {
            assert!(began.elapsed() < Duration::from_secs(60), "it lives on: {:?}", self.state());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn numbers(line: &str) -> Vec<i32> {
    line.split_whitespace().filter_map(|w| w.parse().ok()).collect()
}

fn staged() -> Option<String> {
    let all = root(&["lvs", "--noheadings", "-o", "lv_name", GROUP]);
    all.split_whitespace().find(|v| v.starts_with("sdm-new-") || v.starts_with("sdm-del-")).map(str::to_owned)
}

fn extents(volume: &str) -> String {
    root(&["lvs", "--noheadings", "-o", "seg_pe_ranges", &format!("{GROUP}/{volume}")]).trim().to_owned()
}

fn gc(h: &Host) -> String {
    let (status, text) = h.own(&["gc", PLACE]);
    assert_eq!(status, 0, "{text}");
    text
}

/// What there is when the parent of a writer has been killed.
struct Scene<'a> {
    h: &'a Host,
    writer: Writer,
    /// What the next image holds.
    letter: u8,
    extents: String,
}

impl<'a> Scene<'a> {
    fn new(h: &'a Host, letter: u8, bug: &str) -> (Scene<'a>, Child) {
        let [raw, source] = ["raw", "qcow2"].map(|f| h.at(&format!("images/one.{f}")));
        std::fs::write(&raw, vec![letter; SIZE * MIB]).unwrap();
        let words = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"];
        root(&[&words[..], &[raw.to_str().unwrap(), source.to_str().unwrap()]].concat());
        let message = h.message(&format!("<ID>1</ID><SIZE>{SIZE}</SIZE><PATH>DIR/one.qcow2</PATH>"));
        let mut parent = h.start("cp", &message, &[("ONESDM_TEST_BUG", bug)]);
        let writer = Writer::of(&mut parent, &[letter; BLOCK]);
        let device = Direct::open_device(&writer.device).unwrap();
        let last = device.read(((SIZE * MIB) - BLOCK) as u64, BLOCK).unwrap();
        assert!(last != [letter; BLOCK], "it was too fast: all is written");
        let extents = extents(&staged().unwrap());
        std::fs::write(&raw, vec![letter + 1; SIZE * MIB]).unwrap();
        (Scene { h, writer, letter: letter + 1, extents }, parent)
    }

    fn another(&self) -> (i32, String) {
        self.h.call("cp", &format!("<ID>2</ID><SIZE>{SIZE}</SIZE><PATH>DIR/one.raw</PATH>"))
    }

    /// Another image in the same extents.
    fn reallocated(&self) {
        gc(self.h);
        assert_eq!(staged(), None, "the job is dead, and what it left is gone");
        let (status, text) = self.another();
        assert_eq!(status, 0, "{text}");
        assert_eq!(extents("img-one-2"), self.extents);
    }

    /// How many blocks of the new image are not its own. Afterwards there is none.
    fn late(self) -> usize {
        root(&["lvchange", "-K", "-ay", "vg-one-100/img-one-2"]);
        let device = Direct::open_device(Path::new("/dev/vg-one-100/img-one-2")).unwrap();
        let all = (0..SIZE).map(|n| device.read((n * MIB) as u64, MIB).unwrap());
        let wrong = |part: Vec<u8>| part.chunks(BLOCK).filter(|b| **b != [self.letter; BLOCK]).count();
        let late = all.map(wrong).sum();
        drop(device);
        root(&["lvchange", "-an", "vg-one-100/img-one-2"]);
        self.h.ok("rm", "<SOURCE>vg-one-100/img-one-2</SOURCE>");
        gc(self.h);
        root(&["vgck", GROUP]);
        // What it did not see has a device still.
        for device in root(&["dmsetup", "ls"]).lines().filter_map(|l| l.split_whitespace().next()) {
            if device.contains("sdm--del") {
                root(&["dmsetup", "remove", device]);
            }
        }
        late
    }
}

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn orphan_inside() {
    let h = Host::new();
    root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
    let (status, text) = h.own(&["domain", "init", "--lock", "ofd", PLACE]);
    assert_eq!(status, 0, "{text}");
    let die = |mut parent: Child| {
        parent.kill().unwrap();
        parent.wait().unwrap();
    };

    // It stands still when its parent is killed, or is at work.
    for (letter, stands) in [(0x10, true), (0x20, false)] {
        let (scene, parent) = Scene::new(&h, letter, "");
        if !stands {
            scene.writer.send(Signal::CONT);
        }
        die(parent);
        scene.writer.ends();
        scene.reallocated();
        assert_eq!(scene.late(), 0, "standing still: {stands}");
    }

    // It does not die: the job lives on with it, and keeps its extents.
    let (scene, parent) = Scene::new(&h, 0x30, "outlive");
    die(parent);
    let volume = staged();
    println!("{}", gc(&h));
    assert_eq!(staged(), volume, "its writer lives");
    let (status, text) = scene.another();
    assert!(status != 0 && text.contains("no space left"), "{status} {text}");
    assert_eq!(staged(), volume, "its writer lives");
    scene.writer.send(Signal::CONT);
    scene.writer.ends();
    scene.reallocated();
    assert_eq!(scene.late(), 0);

    // It does not die, and has no lease: what it still had to write is in the other image.
    let (scene, parent) = Scene::new(&h, 0x40, "orphan");
    die(parent);
    scene.reallocated();
    scene.writer.send(Signal::CONT);
    scene.writer.ends();
    let late = scene.late();
    println!("caught: {late} blocks of {} are the orphan's", SIZE * MIB / BLOCK);
    assert!(late > 0, "nobody missed the guards");
}

#[test]
fn an_orphan_writes_nothing_into_what_becomes_another_image() {
    let tmp = bed::scratch();
    let lun = vm::disk(tmp.path(), "lun", (66 + SIZE as u64 + SIZE as u64 / 2) << 20);
    let programs = [bed::program(), "/usr/bin/qemu-img".into()];
    vm::passes_as_root(&[], BEFORE, "lvmorphan::orphan_inside", &[&lun], &programs);
}
