//! The engine on real LVM metadata, without the kernel's device mapper: volumes are linear, so a loop
//! device over their extents shows their bytes. What needs device mapper is shown in the virtual
//! machine of the integration suite.

use super::*;
use crate::lock::MemLocks;
use crate::sys::fork;
use std::collections::{BTreeMap, HashMap};
use std::process::Command;

pub(super) fn tool(words: &[&str]) -> String {
    let out = fork::output(Command::new(words[0]).args(&words[1..]).env("LVM_SUPPRESS_FD_WARNINGS", "1"));
    let out = out.unwrap_or_else(|e| panic!("the suite needs {}: {e}", words[0]));
    assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

const METADATA_ONLY: [&str; 2] = ["--driverloaded", "n"];

const DATA_START: u64 = 1 << 20;

/// A group on a file.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(super) name: String,
    device: PathBuf,
    dir: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new(size: u64) -> Arc<Bed> {
        let exe = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(exe.parent().unwrap()).unwrap();
        let file = dir.path().join("pv");
        std::fs::File::create(&file).unwrap().set_len(size).unwrap();
        let device = tool(&["losetup", "--find", "--show", file.to_str().unwrap()]);
        let name = format!("sdmtest-{}", &uuid::Uuid::now_v7().simple().to_string()[12..]);
        let bed = Arc::new(Bed { name, device: device.into(), dir });
        let start = format!("{DATA_START}b");
        bed.lvm(&["pvcreate", "-q", "--dataalignment", &start, bed.device.to_str().unwrap()]);
        bed.lvm(&["vgcreate", "-q", "-s", "1m", &bed.name, bed.device.to_str().unwrap()]);
        bed
    }

    /// What the group lies on.
    pub(super) fn file(&self) -> PathBuf {
        self.dir.path().join("pv")
    }

    /// A command that a person or another program gives.
    pub(crate) fn lvm(&self, words: &[&str]) -> String {
        let filter =
            format!("devices{{filter=[\"a|^{}$|\",\"r|.*|\"] use_devicesfile=0}}", self.device.display());
        let config = ["--config", &filter];
        tool(&[&words[..1], &METADATA_ONLY, &config, &words[1..]].concat())
    }
}

impl std::fmt::Display for Bed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = fork::output(Command::new("losetup").arg("-d").arg(&self.device));
    }
}

/// Loop devices over the extents of volumes.
#[derive(Debug)]
struct Windows {
    bed: Arc<Bed>,
    open: Mutex<HashMap<String, String>>,
}

impl Mapper for Windows {
    fn flags(&self) -> &'static [&'static str] {
        &METADATA_ONLY
    }

    fn creates(&self) -> bool {
        false
    }

    fn device(&self, _group: &Group, _volume: &str) -> Option<PathBuf> {
        None
    }

    fn open(&self, group: &Group, volume: &str) -> Result<PathBuf> {
        let fields = ["--noheadings", "--units", "b", "--nosuffix", "--separator", ";"];
        let what = ["lvs", "-o", "lv_uuid,lv_size,seg_pe_ranges,vg_extent_size"];
        let path = group.path(volume);
        let said = self.bed.lvm(&[&what[..], &fields, &[&path]].concat());
        let f: Vec<&str> = said.split(';').map(str::trim).collect();
        let first: u64 = f[2].rsplit_once(':').unwrap().1.split('-').next().unwrap().parse().unwrap();
        let at = DATA_START + first * f[3].parse::<u64>().unwrap();
        let mut open = self.open.lock().unwrap();
        let key = format!("{}/{at}/{}", f[0], f[1]);
        if let Some(path) = open.get(&key) {
            return Ok(path.into());
        }
        let (at, size) = (at.to_string(), f[1]);
        let words = ["losetup", "--find", "--show", "--offset", &at, "--sizelimit", size];
        let path = tool(&[&words[..], &[self.bed.device.to_str().unwrap()]].concat());
        open.insert(key, path.clone());
        Ok(path.into())
    }

    fn close(&self, _group: &Group, _volume: &str) -> Result<()> {
        Ok(())
    }

    fn is(&self, _group: &str, _volume: &str, _device: &std::fs::File) -> bool {
        true
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        for path in self.open.lock().unwrap().values() {
            let _ = fork::output(Command::new("losetup").args(["-d", path]));
        }
    }
}

pub(super) fn host(id: u64) -> Host {
    Host { id, generation: 1 }
}

/// The engine as one host has it.
pub(crate) fn engine(bed: &Arc<Bed>, id: u64, locks: &Arc<dyn LockBackend>) -> LvmEngine {
    knowing(bed, locks, Box::new(Alone(host(id))))
}

pub(crate) fn knowing(bed: &Arc<Bed>, locks: &Arc<dyn LockBackend>, peers: Box<dyn Peers>) -> LvmEngine {
    let options = Options {
        group: bed.name.clone(),
        devices: vec![bed.device.clone()],
        peers,
        tools: Tools::new(BTreeMap::new()).unwrap(),
        locks: Arc::clone(locks),
        wait: Duration::from_secs(30),
        deadline: Duration::from_secs(60),
        cancel: Cancel::default(),
    };
    LvmEngine::with(options, Box::new(Windows { bed: Arc::clone(bed), open: Mutex::default() })).unwrap()
}

pub(super) fn mem() -> Arc<dyn LockBackend> {
    Arc::new(MemLocks::default())
}

#[test]
fn conforms() {
    super::super::conformance::run(&|| Box::new(engine(&Bed::new(200 << 20), 1, &mem())));
}

pub(super) fn name(s: &str) -> Name {
    Name::parse(s).unwrap()
}

pub(super) fn public(s: &str) -> Place {
    Place::Public(name(s))
}
