//! `context`: files for a VM in an ISO, made where the files are and sent to where the VM is. Contract 3.8.
//! They may hold the VM's secrets: nothing of them is in a place that others read or guess, and nothing stays.

use super::pair::reach;
use super::{At, Driver, Front};
use crate::config::Settings;
use crate::data::{self, FetchOptions, Source, Watch, fetch};
use crate::host::Next;
use crate::one::{Context, ContextFile, ImagePath};
use crate::sdm::Job;
use crate::sys::fs::Dir;
use crate::sys::tool::{Limits, Run};
use crate::sys::{Bytes, Class, Tool, Tools, hex};
use crate::verb::stage::Stage;
use crate::verb::tm::op::{Op, Put};
use crate::verb::{fill, refuse};
use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

/// Characters of a name that Joliet has without its longer form.
const JOLIET: usize = 64;
const BLOCK: usize = 1 << 20;

pub(super) fn run(front: &Front<'_>, c: &Context) -> Result<()> {
    let disk = c.iso.path().to_string_lossy().into_owned();
    let op = |size, sha256| Op::Put(Put { disk: disk.clone(), size, sha256 });
    front.job.object(&disk);
    distinct(&c.files)?;
    let local = front.driver != Driver::Shared;
    let at = At { host: c.iso.host.as_ref(), dir: &c.iso.dir, local };
    let maker =
        Maker { settings: front.settings, state: front.state, tools: front.hosts.tools, job: front.job };
    // One works while the other waits for the host.
    let (made, line) = std::thread::scope(|s| {
        let making = s.spawn(|| {
            let iso = maker.make(&c.files)?;
            measure(&iso).map(|(size, sha256)| (iso, size, sha256))
        });
        let line = reach(front, at, Bytes(0));
        (making.join().unwrap_or_else(|e| std::panic::resume_unwind(e)), line)
    });
    let doing = || format!("making the context ISO {disk}");
    let (iso, size, sha256) = made.with_context(doing)?;
    if size == 0 {
        return Err(refuse(Class::Internal, "the tool made no ISO").context(doing()));
    }
    front.ask_by(&at, &op(size, sha256), Some(&iso), Some(line?)).map(drop)
}

/// Each name once: what would be in the ISO under a name that two files have is anybody's guess.
fn distinct(files: &[ContextFile]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match files.iter().find(|f| !seen.insert(&f.name)) {
        None => Ok(()),
        Some(f) => {
            let text =
                format!("two context files are called {:?}; give one another name (path:name)", f.name);
            Err(refuse(Class::Usage, text))
        }
    }
}

/// What the ISO is made with.
struct Maker<'a> {
    settings: &'a Settings,
    state: &'a Path,
    tools: &'a Tools,
    job: &'a Job,
}

impl Maker<'_> {
    /// The ISO, which has no name any more.
    fn make(&self, files: &[ContextFile]) -> Result<File> {
        let stage = Stage::new(&self.state.join("context"))?;
        // What the guest sees of it is its mode, too; who cannot enter the directory above sees nothing.
        stage.dir().mkdir(OsStr::new("files"), 0o755, true)?;
        let content = stage.dir().sub(Path::new("files"))?;
        for file in files {
            self.add(&content, file)?;
        }
        let iso = stage.dir().create(OsStr::new("iso"), 0o600, true)?;
        let path = stage.dir().path().join("iso");
        let mut args: Vec<&OsStr> =
            ["-quiet", "-input-charset", "utf-8", "-V", "CONTEXT", "-J", "-R"].map(OsStr::new).into();
        if files.iter().any(|f| f.name.encode_utf16().count() > JOLIET) {
            args.push(OsStr::new("-joliet-long"));
        }
        args.extend([OsStr::new("-o"), path.as_os_str(), content.path().as_os_str()]);
        self.job.phase("making the ISO");
        let limits = Limits { memory: Some(4 << 30), cpu: None };
        let writes = [path.as_path()];
        let run = Run { limits, writes: &writes, ..Run::new(self.settings.tool_deadline, self.job.cancel()) };
        self.tools.run(Tool::MkIso, &args, run)?;
        // The tool may have written the name anew.
        drop(iso);
        let iso = stage.dir().open_file(Path::new("iso"), false)?;
        Ok(iso)
    }

    fn add(&self, to: &Dir, file: &ContextFile) -> Result<()> {
        let s = self.settings;
        let (from, shown) = match &file.source {
            ImagePath::Local(path) => (Source::File(open(path)?), path.display().to_string()),
            ImagePath::Http(url) => (Source::Http(url.clone()), data::shown(url)),
            ImagePath::Ssh(..) => {
                return Err(refuse(Class::Unsupported, "context files come from here or by http"));
            }
        };
        let new = to.create(OsStr::new(&file.name), 0o644, true).map_err(|e| {
            if e.kind() == ErrorKind::InvalidFilename {
                return refuse(Class::Usage, format!("{:?} is too long a name for a file", file.name));
            }
            anyhow::Error::from(e).context(format!("making {:?}", file.name))
        })?;
        let opts = FetchOptions {
            decompress: false,
            limit: s.data.limit.map(|b| b.0),
            max_size: fill::max_size(s).0,
            http: fill::http(s),
            ..FetchOptions::default()
        };
        // Nothing that would have to wait for other copies.
        fetch::fetch(&from, &new, &opts, &Watch::silent(self.job.cancel().clone()))
            .with_context(|| format!("taking {shown} into the context as {:?}", file.name))?;
        Ok(())
    }
}

/// Links are followed: the core names the file. A pipe or a device is none.
fn open(path: &Path) -> Result<File> {
    let real = path.canonicalize().map_err(|e| {
        if e.kind() == ErrorKind::NotFound {
            return refuse(Class::NotFound, format!("context file {} does not exist", path.display()));
        }
        anyhow::Error::from(e).context(format!("opening context file {}", path.display()))
    })?;
    let (dir, name) = (real.parent().unwrap_or(Path::new("/")), real.file_name().unwrap_or_default());
    let opened = Dir::open(dir).and_then(|d| d.open_file(Path::new(name), false));
    opened.with_context(|| format!("opening context file {}", path.display()))
}

fn measure(mut iso: &File) -> Result<(u64, String)> {
    let (mut size, mut digest) = (0, Sha256::new());
    let mut block = vec![0; BLOCK];
    loop {
        let n = iso.read(&mut block)?;
        if n == 0 {
            return Ok((size, hex(&digest.finalize())));
        }
        digest.update(&block[..n]);
        size += n as u64;
    }
}

/// Blocks of a file, for a request. One that cannot be read ends early, which the receiver finds out.
pub(super) fn blocks(file: &File) -> impl FnMut() -> Next + Send + '_ {
    let mut at = 0;
    move || {
        let mut block = vec![0; BLOCK];
        match crate::sys::copy::read_full(file, &mut block, at) {
            Ok(n) if n > 0 => {
                at += n as u64;
                block.truncate(n);
                Next::Block(block)
            }
            _ => Next::End,
        }
    }
}
