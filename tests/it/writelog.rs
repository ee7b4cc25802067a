//! A disk that writes down what reaches it, under a file system of the kernel's: qemu-storage-daemon shows it
//! as a file (FUSE, loop-mounted) and logs each write and flush, in the format of dm-log-writes. From the log
//! follows every content that the medium may have after a power loss: all that came before some flush, and
//! any choice of what came between it and the next one, a write of several pages also in part.

use crate::bed::{scratch, tool};
use crate::fsbed::{Kind, Mount};
use crate::power::Random;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const SECTOR: u64 = 512;
/// What no medium writes in parts, as file systems rely on.
const PAGE: u64 = 4096;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

pub struct Disk {
    kind: Kind,
    mount: Option<Mount>,
    daemon: Child,
    dir: TempDir,
}

/// A write, where the log has its data, or a flush.
struct Entry {
    at: u64,
    len: u64,
    flags: u64,
    data: u64,
}

/// A log in the format of dm-log-writes.
pub struct Writes {
    entries: Vec<Entry>,
    data: File,
    /// What no medium writes in parts, at each place.
    grain: fn(u64) -> u64,
}

pub struct Log {
    kind: Kind,
    writes: Writes,
    /// The medium up to the last flush before the next state.
    now: File,
    applied: usize,
    dir: TempDir,
}

/// What survived: everything before entry `flushed`, and of each later one so many bytes.
pub struct State {
    flushed: usize,
    kept: Vec<(usize, u64)>,
    /// How many there were to choose from.
    of: usize,
    /// The call had been answered before the power went.
    pub acked: bool,
}

impl State {
    /// Of how many writes something is left, of how many nothing.
    pub fn kept(&self) -> (usize, usize) {
        (self.kept.len(), self.of - self.kept.len())
    }
}

fn word(bytes: &[u8], n: usize) -> u64 {
    u64::from_le_bytes(bytes[n * 8..][..8].try_into().unwrap())
}

impl Disk {
    /// A new file system of 320 MiB, mounted.
    pub fn new(kind: Kind) -> Disk {
        // Others' mounts are not to be kept here, either.
        for line in std::fs::read_to_string("/proc/self/mounts").unwrap().lines() {
            let at = line.split(' ').nth(1).unwrap();
            if at.contains("/onesdm-test-") {
                tool("umount", &["-l".as_ref(), at.as_ref()]);
            }
        }
        let dir = scratch();
        crate::bed::chmod(dir.path(), 0o755);
        let [disk, base, log, dev, mnt] = ["disk", "base", "log", "dev", "mnt"].map(|n| dir.path().join(n));
        for file in [&disk, &log, &dev] {
            File::create(file).unwrap();
        }
        File::options().write(true).open(&disk).unwrap().set_len(320 << 20).unwrap();
        kind.mkfs(&disk);
        copy(&disk, &base);
        std::fs::create_dir(&mnt).unwrap();
        let file = |node: &str, path: &Path| {
            format!("driver=file,node-name={node},filename={},discard=unmap", path.display())
        };
        let mut daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file("disk", &disk), "--blockdev", &file("log", &log), "--blockdev"])
            .arg("driver=blklogwrites,node-name=top,file=disk,log=log,log-sector-size=512,log-super-update-interval=1,discard=unmap")
            .arg("--export")
            .arg(format!("type=fuse,id=e,node-name=top,mountpoint={},writable=on", dev.display()))
            .stdin(Stdio::null())
            .spawn()
            .expect("the suite needs qemu-storage-daemon (packaging/setup installs it)");
        let end = Instant::now() + Duration::from_secs(20);
        while dev.metadata().unwrap().len() == 0 {
            assert!(daemon.try_wait().unwrap().is_none(), "qemu-storage-daemon ended");
            assert!(Instant::now() < end, "qemu-storage-daemon shows no disk");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mount = Some(Mount::new(&["-t", kind.name(), "-o", "loop"], &dev, &mnt).unwrap());
        crate::bed::chmod(&mnt, 0o755);
        Disk { kind, mount, daemon, dir }
    }

    /// Where a bed puts its datastores on it.
    pub fn stores(&self) -> PathBuf {
        self.dir.path().join("mnt/datastores")
    }

    /// Makes durable what is there.
    pub fn sync(&self) {
        tool("sync", &[OsStr::new("-f"), self.dir.path().join("mnt").as_os_str()]);
    }

    /// How many entries the log has.
    pub fn logged(&self) -> usize {
        Writes::logged(&File::open(self.dir.path().join("log")).unwrap())
    }

    /// Takes the disk away and keeps entries of the log up to `end`.
    pub fn off(mut self, end: usize) -> Log {
        drop(self.mount.take());
        self.stop();
        let path = |name: &str| self.dir.path().join(name);
        copy(&path("base"), &path("now"));
        let writes = Writes::read(File::open(path("log")).unwrap(), end, |_| PAGE);
        let now = File::options().read(true).write(true).open(path("now")).unwrap();
        let dir = std::mem::replace(&mut self.dir, scratch());
        Log { kind: self.kind, writes, now, applied: 0, dir }
    }

    fn stop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.daemon), Signal::TERM);
        let _ = self.daemon.wait();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.mount.take());
        self.stop();
    }
}

fn copy(from: &Path, to: &Path) {
    tool("cp", &["--sparse=always".as_ref(), from.as_os_str(), to.as_os_str()]);
}

impl Writes {
    /// How many entries a log has.
    fn logged(log: &File) -> usize {
        let mut head = [0; 24];
        log.read_exact_at(&mut head, 0).unwrap();
        usize::try_from(word(&head, 2)).unwrap()
    }

    fn read(log: File, end: usize, grain: fn(u64) -> u64) -> Writes {
        let (mut head, mut at, mut entries) = ([0; 32], SECTOR, Vec::new());
        for _ in 0..end {
            log.read_exact_at(&mut head, at).unwrap();
            let [from, len, flags] = [0, 1, 2].map(|n| word(&head, n));
            at += SECTOR;
            entries.push(Entry { at: from * SECTOR, len: len * SECTOR, flags, data: at });
            at += if flags & DISCARD == 0 { len * SECTOR } else { 0 };
        }
        Writes { entries, data: log, grain }
    }

    /// A whole log, and which entry is the first mark.
    pub fn of(log: File, grain: fn(u64) -> u64) -> (Writes, usize) {
        let writes = Self::read(log.try_clone().unwrap(), Self::logged(&log), grain);
        let mark = writes.entries.iter().position(|e| e.flags & MARK != 0).unwrap();
        (writes, mark)
    }

    /// The states to try of what was written from entry `start` on, in the order of time: for each flush all
    /// before it, nothing since the one before it, and `random` choices between.
    pub fn states(&self, start: usize, random: usize, dice: &mut Random) -> Vec<State> {
        let flushes = (start..self.entries.len()).filter(|n| self.entries[*n].flags & FLUSH != 0);
        let ends: Vec<usize> = flushes.chain([self.entries.len()]).collect();
        let (mut states, mut flushed) = (Vec::new(), start);
        for end in ends {
            let acked = end == self.entries.len();
            let written: Vec<usize> = (flushed..end).filter(|n| self.entries[*n].len > 0).collect();
            // Nothing of it is the end of the epoch before, but for the answer and for what needs no flush.
            let first = acked || written.iter().any(|n| self.entries[*n].flags & FUA != 0);
            for variant in usize::from(!first)..=if written.is_empty() { 0 } else { 1 + random } {
                let kept = written.iter().map(|n| (*n, self.survives(*n, variant, dice)));
                let kept: Vec<_> = kept.filter(|(_, len)| *len > 0).collect();
                if states.iter().all(|s: &State| s.flushed != flushed || s.kept != kept) {
                    states.push(State { flushed, kept, of: written.len(), acked });
                }
            }
            flushed = end;
        }
        states
    }

    /// LVM's last commit with its text lost, and the head that points there kept: it flushes nothing in between.
    pub fn headless(&self, start: usize) -> Option<State> {
        let first = |n: usize| Some(&self.entries[n]).filter(|e| e.at == 0 && e.flags & DISCARD == 0);
        let last = |n: &usize| first(*n).is_some_and(|e| e.len > 0 && e.len < 2 * PAGE);
        let text = (start..self.entries.len()).rev().find(|n| first(*n).is_some_and(|e| e.len > 2 * PAGE))?;
        let head = (text..self.entries.len()).filter(last).nth(1)?;
        let flushed = self.entries[text..=head].iter().any(|e| e.flags & FLUSH != 0);
        let kept = vec![(head, self.entries[head].len)];
        (!flushed).then_some(State { flushed: text, kept, of: 3, acked: false })
    }

    /// How much of a write is on the medium: nothing in variant 0, all in variant 1, anything in others.
    fn survives(&self, n: usize, variant: usize, dice: &mut Random) -> u64 {
        let e = &self.entries[n];
        match variant {
            _ if e.flags & FUA != 0 => e.len,
            0 => 0,
            1 => e.len,
            _ => match dice.below(8) {
                0..3 => 0,
                3..6 => e.len,
                _ => {
                    let grain = (self.grain)(e.at);
                    let parts = usize::try_from((e.at + e.len).div_ceil(grain) - e.at / grain).unwrap();
                    let end = (e.at / grain + dice.below(parts) as u64) * grain;
                    end.saturating_sub(e.at).min(e.len)
                }
            },
        }
    }

    /// Lays out a state on a disk that is as it was when the log began.
    pub fn lay(&self, state: &State, disk: &File) {
        for n in 0..state.flushed {
            self.apply(disk, n, None);
        }
        for (n, len) in &state.kept {
            self.apply(disk, *n, Some(*len));
        }
    }

    fn apply(&self, disk: &File, n: usize, len: Option<u64>) {
        let e = &self.entries[n];
        let len = len.unwrap_or(e.len);
        if e.flags & DISCARD != 0 {
            fallocate(disk, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, e.at, len).unwrap();
        } else {
            let mut data = vec![0; usize::try_from(len).unwrap()];
            self.data.read_exact_at(&mut data, e.data).unwrap();
            disk.write_all_at(&data, e.at).unwrap();
        }
    }
}

impl Log {
    pub fn states(&self, start: usize, random: usize, dice: &mut Random) -> Vec<State> {
        self.writes.states(start, random, dice)
    }

    /// Mounts a state where the disk was; states come in the order of time.
    pub fn mount(&mut self, state: &State) -> Result<Mount, String> {
        for n in self.applied..state.flushed {
            self.writes.apply(&self.now, n, None);
        }
        self.applied = self.applied.max(state.flushed);
        let [now, probe, mnt] = ["now", "probe", "mnt"].map(|n| self.dir.path().join(n));
        copy(&now, &probe);
        let file = File::options().write(true).open(&probe).unwrap();
        for (n, len) in &state.kept {
            self.writes.apply(&file, *n, Some(*len));
        }
        Mount::new(&["-t", self.kind.name(), "-o", "loop"], &probe, &mnt)
    }
}

/// When the power went, and what of the last writes was lost.
impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let when = if self.acked { "after the answer" } else { "before it" };
        let kept: Vec<String> = self.kept.iter().map(|(n, len)| format!("{n}:{len}")).collect();
        write!(
            f,
            "{when}, flushed up to entry {}, of {} writes since: {}",
            self.flushed,
            self.of,
            kept.join(" ")
        )
    }
}
