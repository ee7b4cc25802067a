//! A front-end in a directory: settings, a datastore, source images, and calls as oned makes them.

use base64::Engine as _;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Store {
    pub root: PathBuf,
}

pub const DS: u32 = 100;
const REGTIME: u64 = 1_795_168_000;
/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_onesdm");

impl Store {
    /// Laid out below `dir`, which must be empty.
    pub fn new(dir: &Path) -> Store {
        let root = dir.to_owned();
        for d in ["var", "etc", "run", "state", "log", "images", "home", "var/datastores/100"] {
            std::fs::create_dir_all(root.join(d)).unwrap();
        }
        let links = root.join("var/remotes/datastore/fs");
        std::fs::create_dir_all(&links).unwrap();
        for verb in VERBS {
            std::os::unix::fs::symlink(PROGRAM, links.join(verb)).unwrap();
        }
        let mut text = "[paths]\n".to_owned();
        for (key, place) in
            [("var", "var"), ("etc", "etc"), ("run", "run"), ("state", "state"), ("log", "log/onesdm.jsonl")]
        {
            writeln!(text, "{key} = \"{}\"", root.join(place).display()).unwrap();
        }
        std::fs::write(root.join("onesdm.toml"), text).unwrap();
        Store { root }
    }

    pub fn datastore(&self) -> PathBuf {
        self.root.join("var/datastores/100")
    }
    pub fn remotes(&self) -> PathBuf {
        self.root.join("var/remotes")
    }
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// A verb's call, environment and directory as oned sets them.
    pub fn verb(&self, verb: &str) -> Command {
        let mut c = Command::new(self.remotes().join("datastore/fs").join(verb));
        c.arg("7").env_clear().current_dir(self.root.join("var"));
        c.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", self.root.join("home"));
        c.env("ONESDM_CONFIG", self.root.join("onesdm.toml"));
        c
    }

    /// The driver message, in base64: fields of the image and of the datastore's template.
    pub fn dump(&self, id: u32, image: &[(&str, &str)], template: &[(&str, &str)]) -> Vec<u8> {
        self.dump_with(id, image, template, &[], "")
    }

    /// The same with fields of the image's template, and more XML in the datastore.
    pub fn dump_with(
        &self,
        id: u32,
        image: &[(&str, &str)],
        template: &[(&str, &str)],
        image_template: &[(&str, &str)],
        more: &str,
    ) -> Vec<u8> {
        let xml = |fields: &[(&str, &str)]| {
            fields.iter().fold(String::new(), |all, (k, v)| all + &format!("<{k}><![CDATA[{v}]]></{k}>"))
        };
        let (image, template, image_template) = (xml(image), xml(template), xml(image_template));
        let (base, safe) = (self.datastore(), self.images());
        let dump = format!(
            "<DS_DRIVER_ACTION_DATA><IMAGE><ID>{id}</ID><REGTIME>{REGTIME}</REGTIME><TYPE>0</TYPE>{image}\
             <TEMPLATE>{image_template}</TEMPLATE></IMAGE><DATASTORE><ID>{DS}</ID><DS_MAD>fs</DS_MAD>\
             <TM_MAD>shared</TM_MAD><BASE_PATH>{}</BASE_PATH><TYPE>0</TYPE><DISK_TYPE>0</DISK_TYPE>{more}\
             <TEMPLATE><SAFE_DIRS>{}</SAFE_DIRS>{template}</TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>",
            base.display(),
            safe.display()
        );
        base64::engine::general_purpose::STANDARD.encode(dump).into_bytes()
    }

    /// A small image in the datastore, as a stock driver would have left it, with `snapshots` copies.
    pub fn existing(&self, id: u32, snapshots: u32) -> PathBuf {
        let path = self.datastore().join(format!("{id:032x}"));
        raw(&path, 1 << 20, 1 << 20, id);
        if snapshots > 0 {
            let snap = path.with_extension("snap");
            std::fs::create_dir(&snap).unwrap();
            for n in 0..snapshots {
                raw(&snap.join(n.to_string()), 1 << 20, 1 << 20, n);
            }
        }
        path
    }
}

pub const VERBS: [&str; 10] =
    ["cp", "mkfs", "rm", "stat", "clone", "monitor", "export", "snap_delete", "snap_revert", "snap_flatten"];

/// A raw image of `size` bytes; the first `data` bytes of each 4 MiB hold data that does not compress,
/// unlike for each seed. `data` of 4 MiB: no holes.
pub fn raw(path: &Path, size: u64, data: u64, seed: u32) {
    let file = File::create(path).unwrap();
    file.set_len(size).unwrap();
    let mut word = u64::from(seed) + 1;
    let mut block = vec![0u8; usize::try_from(data.min(size)).unwrap()];
    for at in (0..size).step_by(4 << 20) {
        for chunk in block.chunks_mut(8) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
        }
        let n = usize::try_from((size - at).min(data)).unwrap();
        file.write_all_at(&block[..n], at).unwrap();
    }
    file.sync_all().unwrap();
}

/// Contents as images have them: a third each of text, of machine code (this program's own), and zeros.
pub fn lifelike(path: &Path, size: u64) {
    let code = std::fs::read(PROGRAM).unwrap();
    let code = &code[..code.len().min(8 << 20) & !0xfff];
    let file = File::create(path).unwrap();
    let mut word = 88_172_645_463_325_252_u64;
    let mut text = vec![0u8; 1 << 20];
    for at in (0..size).step_by(3 << 20) {
        for chunk in text.chunks_mut(16) {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            let line = format!("{:x} key={:05}", word as u16, word >> 48);
            let n = chunk.len().min(line.len());
            chunk[..n].copy_from_slice(&line.as_bytes()[..n]);
        }
        file.write_all_at(&text, at).unwrap();
        let from = usize::try_from(at / 3).unwrap() % (code.len() - (1 << 20));
        // Programs of one image are not the same one over and over.
        let unlike: Vec<u8> = code[from..from + (1 << 20)].iter().map(|b| b ^ (at >> 20) as u8).collect();
        file.write_all_at(&unlike, at + (1 << 20)).unwrap();
    }
    file.set_len(size).unwrap();
    file.sync_all().unwrap();
}
