//! The arguments of transfer verbs, of every generation of the contract, as types. A call that is not
//! exactly one of the known shapes is refused with the argument that is wrong and what belongs there.

use super::hostpath::{absolute, digits};
use super::{DsCall, HostName, HostPath, ImagePath, Leaf, OneError, VmPath, image_path};
use crate::sys::Bytes;
use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;

/// One call of a transfer verb.
#[derive(Debug)]
pub enum TmCall {
    Clone(FromImage),
    Ln(FromImage),
    Mv(Mv),
    Mvds(Mvds),
    Cpds(Cpds),
    Delete(Place),
    Context(Context),
    Mkimage(Mkimage),
    Mkswap(Mkswap),
    SnapCreate(Snap),
    SnapCreateLive(Snap),
    SnapDelete(Snap),
    SnapRevert(Snap),
    Resize(Resize),
    Premigrate(Migrate),
    Postmigrate(Migrate),
    Failmigrate(Migrate),
    /// The message is a datastore dump.
    Monitor(DsCall),
    /// The directory of a system datastore.
    MonitorDs(PathBuf),
}

/// Which VM, and the datastore the core names with it: the image's for disks of images, else the system
/// datastore. Calls without both are accepted as the documentation's examples have them: then the VM
/// is the one of the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    pub vm: u32,
    pub ds: Option<u32>,
}

/// clone, ln: an image becomes a disk, a kernel or a ramdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromImage {
    pub image: HostPath,
    /// Never the directory itself.
    pub to: VmPath,
    pub object: Object,
}

/// mv: a disk or a whole VM directory; both places are of the same kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mv {
    pub from: VmPath,
    pub to: VmPath,
    pub object: Object,
}

/// mvds: a disk goes back into its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mvds {
    pub disk: VmPath,
    pub image: HostPath,
    pub object: Object,
}

/// cpds: a copy of a disk, or of a snapshot of it, becomes an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cpds {
    pub disk: VmPath,
    pub image: HostPath,
    /// `None`: the present content.
    pub snapshot: Option<u32>,
    pub object: Object,
}

/// delete: a disk or a VM directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub at: VmPath,
    pub object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    pub files: Vec<ContextFile>,
    pub iso: VmPath,
    pub object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextFile {
    pub source: ImagePath,
    /// In the ISO: one path component.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mkimage {
    pub size: Bytes,
    /// `raw`, `qcow2`, `swap`, or older cores' name of a file system.
    pub format: String,
    pub disk: VmPath,
    pub object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mkswap {
    pub size: Bytes,
    pub disk: VmPath,
    pub object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snap {
    pub disk: VmPath,
    pub snapshot: u32,
    pub object: Object,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resize {
    pub disk: VmPath,
    pub size: Bytes,
    pub object: Object,
}

/// premigrate, postmigrate, failmigrate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Migrate {
    pub from: HostName,
    pub to: HostName,
    /// The VM's directory, at `to`'s side; it has no host of its own.
    pub dir: VmPath,
    pub object: Object,
    /// The VM document in base64 or XML, from the arguments (old cores) or from stdin; `None` when
    /// neither has one. See `Vm::parse`.
    pub template: Option<Vec<u8>>,
    /// The driver of the system datastore that handed the call on; its callee does not hand it on again.
    pub caller: Option<String>,
}

impl TmCall {
    /// Reads the arguments after the program's name of `verb` (without suffix). `stdin` is read only
    /// by the verbs that get a document there, and no further than the largest legal one.
    pub fn from(verb: &str, args: &[OsString], stdin: impl Read) -> Result<TmCall, OneError> {
        let args = Args(args);
        Ok(match verb {
            "clone" => TmCall::Clone(args.image_to_disk()?),
            "ln" => TmCall::Ln(args.image_to_disk()?),
            "mv" => TmCall::Mv(args.mv()?),
            "mvds" => {
                let disk = args.disk(0)?;
                let image = args.place(1)?;
                TmCall::Mvds(Mvds { object: args.object(2, &disk)?, disk, image })
            }
            "cpds" => {
                let disk = args.disk(0)?;
                let image = args.place(1)?;
                let snapshot = match args.text(2, SNAPSHOT_OR_NONE)? {
                    "-1" => None,
                    id => Some(digits(id).ok_or_else(|| args.bad(2, SNAPSHOT_OR_NONE))?),
                };
                TmCall::Cpds(Cpds { object: args.object(3, &disk)?, disk, image, snapshot })
            }
            "delete" => {
                let at = args.vm_path(0)?;
                TmCall::Delete(Place { object: args.object(1, &at)?, at })
            }
            "context" => TmCall::Context(args.context()?),
            "mkimage" => {
                let (size, format, disk) = (args.size(0)?, args.format(1)?, args.disk(2)?);
                TmCall::Mkimage(Mkimage { object: args.object(3, &disk)?, size, format, disk })
            }
            "mkswap" => {
                let (size, disk) = (args.size(0)?, args.disk(1)?);
                TmCall::Mkswap(Mkswap { object: args.object(2, &disk)?, size, disk })
            }
            "snap_create" => TmCall::SnapCreate(args.snap()?),
            "snap_create_live" => TmCall::SnapCreateLive(args.snap()?),
            "snap_delete" => TmCall::SnapDelete(args.snap()?),
            "snap_revert" => TmCall::SnapRevert(args.snap()?),
            "resize" => {
                let (disk, size) = (args.disk(0)?, args.size(1)?);
                TmCall::Resize(Resize { object: args.object(2, &disk)?, disk, size })
            }
            "premigrate" => TmCall::Premigrate(args.migrate(stdin)?),
            "postmigrate" => TmCall::Postmigrate(args.migrate(stdin)?),
            "failmigrate" => TmCall::Failmigrate(args.migrate(stdin)?),
            "monitor" => TmCall::Monitor(DsCall::from(args.0, stdin)?),
            "monitor_ds" => {
                args.end(1)?;
                TmCall::MonitorDs(args.path(0)?)
            }
            _ => return Err(OneError::Verb { verb: verb.chars().take(40).collect() }),
        })
    }

    /// What the call is about; `None` for the monitoring verbs.
    pub fn object(&self) -> Option<Object> {
        Some(match self {
            TmCall::Clone(c) | TmCall::Ln(c) => c.object,
            TmCall::Mv(c) => c.object,
            TmCall::Mvds(c) => c.object,
            TmCall::Cpds(c) => c.object,
            TmCall::Delete(c) => c.object,
            TmCall::Context(c) => c.object,
            TmCall::Mkimage(c) => c.object,
            TmCall::Mkswap(c) => c.object,
            TmCall::SnapCreate(c)
            | TmCall::SnapCreateLive(c)
            | TmCall::SnapDelete(c)
            | TmCall::SnapRevert(c) => c.object,
            TmCall::Resize(c) => c.object,
            TmCall::Premigrate(c) | TmCall::Postmigrate(c) | TmCall::Failmigrate(c) => c.object,
            TmCall::Monitor(_) | TmCall::MonitorDs(_) => return None,
        })
    }
}

const PLACE: &str = "host:path or an absolute path";
const VM_PLACE: &str = "host:path of a disk or a VM directory";
const DISK: &str = "host:<datastores>/<system datastore>/<vm>/disk.N";
const SIZE: &str = "a size in MiB";
const SNAPSHOT: &str = "a snapshot id";
const SNAPSHOT_OR_NONE: &str = "a snapshot id or -1";
const VM: &str = "the id of the VM";
const DS: &str = "the id of a datastore";
const HOST: &str = "a host name";
const FORMAT: &str = "an image format";
const FILE: &str = "path, path:name or a URL of a context file";

/// The arguments; positions are from 0 here and from 1 in messages.
struct Args<'a>(&'a [OsString]);

impl Args<'_> {
    fn text(&self, i: usize, want: &'static str) -> Result<&str, OneError> {
        let arg = self.0.get(i).ok_or(OneError::NoArgument { position: i + 1, want })?;
        arg.to_str().ok_or_else(|| self.bad(i, want))
    }

    fn bad(&self, i: usize, want: &'static str) -> OneError {
        let value = self.0.get(i).map(|a| a.to_string_lossy().chars().take(120).collect());
        OneError::Argument { position: i + 1, value: value.unwrap_or_default(), want }
    }

    fn place(&self, i: usize) -> Result<HostPath, OneError> {
        HostPath::parse(self.text(i, PLACE)?).map_err(|want| self.bad(i, want))
    }

    fn vm_path(&self, i: usize) -> Result<VmPath, OneError> {
        self.text(i, VM_PLACE)?;
        VmPath::of(self.place(i)?).map_err(|want| self.bad(i, want))
    }

    fn disk(&self, i: usize) -> Result<VmPath, OneError> {
        self.text(i, DISK)?;
        let at = self.vm_path(i)?;
        if at.disk_id().is_some() { Ok(at) } else { Err(self.bad(i, DISK)) }
    }

    fn path(&self, i: usize) -> Result<PathBuf, OneError> {
        absolute(self.text(i, "an absolute path")?).map_err(|want| self.bad(i, want))
    }

    fn number(&self, i: usize, want: &'static str) -> Result<u32, OneError> {
        digits(self.text(i, want)?).ok_or_else(|| self.bad(i, want))
    }

    fn size(&self, i: usize) -> Result<Bytes, OneError> {
        let text = self.text(i, SIZE)?;
        let mib = if text.bytes().all(|b| b.is_ascii_digit()) { text.parse().ok() } else { None };
        mib.and_then(Bytes::mib).filter(|b| b.0 > 0).ok_or_else(|| self.bad(i, SIZE))
    }

    fn format(&self, i: usize) -> Result<String, OneError> {
        let text = self.text(i, FORMAT)?;
        let plain = text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.len() <= 32
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-".contains(&b));
        if plain { Ok(text.to_owned()) } else { Err(self.bad(i, FORMAT)) }
    }

    /// There are `n` arguments and no more.
    fn end(&self, n: usize) -> Result<(), OneError> {
        if self.0.len() > n { Err(self.bad(n, "no more arguments")) } else { Ok(()) }
    }

    /// The ids behind the arguments of the verb itself, which must agree with the path.
    fn object(&self, i: usize, at: &VmPath) -> Result<Object, OneError> {
        self.end(i + 2)?;
        self.ids(i, at)
    }

    fn ids(&self, i: usize, at: &VmPath) -> Result<Object, OneError> {
        if self.0.len() == i {
            return Ok(Object { vm: at.dir.vm, ds: None });
        }
        let object = Object { vm: self.number(i, VM)?, ds: Some(self.number(i + 1, DS)?) };
        at.belongs_to(object.vm)?;
        Ok(object)
    }

    fn image_to_disk(&self) -> Result<FromImage, OneError> {
        let (image, to) = (self.place(0)?, self.vm_path(1)?);
        if to.leaf == Leaf::Dir {
            return Err(self.bad(1, DISK));
        }
        Ok(FromImage { object: self.object(2, &to)?, image, to })
    }

    fn mv(&self) -> Result<Mv, OneError> {
        let (from, to) = (self.vm_path(0)?, self.vm_path(1)?);
        if (from.leaf == Leaf::Dir) != (to.leaf == Leaf::Dir) {
            return Err(
                self.bad(1, "a place of the same kind as argument 1: both disks, or both directories")
            );
        }
        let object = self.object(2, &to)?;
        from.belongs_to(object.vm)?;
        Ok(Mv { from, to, object })
    }

    fn snap(&self) -> Result<Snap, OneError> {
        let (disk, snapshot) = (self.disk(0)?, self.number(1, SNAPSHOT)?);
        Ok(Snap { object: self.object(2, &disk)?, disk, snapshot })
    }

    /// `file... host:path/disk.N [vm ds]`: the disk is third from the end, or last.
    fn context(&self) -> Result<Context, OneError> {
        let n = self.0.len();
        let bare = n > 0 && self.disk(n - 1).is_ok();
        let at = if bare { n - 1 } else { n.saturating_sub(3) };
        let iso = self.disk(at)?;
        let files = (0..at).map(|i| context_file(self.text(i, FILE)?).ok_or_else(|| self.bad(i, FILE)));
        Ok(Context { files: files.collect::<Result<_, _>>()?, object: self.object(at + 1, &iso)?, iso })
    }

    /// `from to dir vm ds [template] [caller]`.
    fn migrate(&self, stdin: impl Read) -> Result<Migrate, OneError> {
        let host = |i| HostName::parse(self.text(i, HOST)?).map_err(|want| self.bad(i, want));
        let (from, to, dir) = (host(0)?, host(1)?, self.vm_path(2)?);
        if dir.leaf != Leaf::Dir {
            return Err(self.bad(2, "the path of the VM directory"));
        }
        let object = self.ids(3, &dir)?;
        self.end(7)?;
        let (mut template, mut caller) = (None, None);
        for i in 5..self.0.len() {
            let text = self.text(i, "the template of the VM, or the name of a driver")?;
            if template.is_none() && is_document(text) {
                template = Some(text.as_bytes().to_vec());
            } else if caller.is_none() && !text.is_empty() && text.len() <= 64 {
                caller = Some(self.format(i)?);
            } else {
                return Err(self.bad(i, "the template of the VM, or the name of a driver"));
            }
        }
        if template.is_none() {
            template = Some(super::dump::from_stdin(stdin, "the VM document")?);
        }
        let template = template.filter(|t| !t.trim_ascii().is_empty());
        Ok(Migrate { from, to, dir, object, template, caller })
    }
}

/// XML, or the base64 of XML: it begins with `<` or, encoded, with one of these.
fn is_document(text: &str) -> bool {
    text.starts_with('<') || ["PFZN", "PD94"].iter().any(|head| text.starts_with(head))
}

/// `path`, `path:name` (the name possibly in single quotes), or a URL, named by its last component.
fn context_file(text: &str) -> Option<ContextFile> {
    let last = |s: &str| s.rsplit('/').next().unwrap_or_default().to_owned();
    let (source, name) = if text.contains("://") {
        let end = text.find(['?', '#']).unwrap_or(text.len());
        let (_, path) = text[..end].split_once("://")?.1.split_once('/')?;
        (image_path(text).ok().filter(|s| !matches!(s, ImagePath::Ssh(..)))?, last(path))
    } else {
        let given = text.split_once(':');
        let (path, name) = given.unwrap_or((text, text));
        let name = name.strip_prefix('\'').and_then(|n| n.strip_suffix('\'')).unwrap_or(name);
        // A name that was given is meant as it is.
        let name = if given.is_some() { name.to_owned() } else { last(name) };
        (ImagePath::Local(absolute(path).ok()?), name)
    };
    let is_component = !["", ".", ".."].contains(&name.as_str()) && !name.contains('/');
    let plain = is_component && !name.chars().any(char::is_control);
    (plain && name.len() <= 255).then_some(ContextFile { source, name })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt as _;

    fn call(verb: &str, args: &[&str]) -> Result<TmCall, OneError> {
        with_stdin(verb, args, "")
    }

    fn with_stdin(verb: &str, args: &[&str], stdin: &str) -> Result<TmCall, OneError> {
        let args: Vec<_> = args.iter().map(OsString::from).collect();
        TmCall::from(verb, &args, stdin.as_bytes())
    }

    const DISK0: &str = "h:/v//ds/101/7/disk.0";
    const DIR: &str = "h:/v/ds/101/7";
    const IMG: &str = "fe:/v/ds/100/abc";

    #[test]
    fn every_verb_has_its_shapes() {
        let ids = Object { vm: 7, ds: Some(100) };
        let bare = Object { vm: 7, ds: None };
        for (verb, args) in [
            ("clone", &[IMG, DISK0][..]),
            ("clone", &["/v/ds/100/abc", DISK0]),
            ("clone", &[IMG, "h:/v/ds/101/7/kernel"]),
            ("ln", &[IMG, DISK0]),
            ("mv", &[DISK0, "g:/v/ds/102/7/disk.0"]),
            ("mv", &[DIR, "fe:/v/ds/101/7/"]),
            ("mvds", &[DISK0, "/v/ds/100/abc"]),
            ("mvds", &[DISK0, IMG]),
            ("cpds", &[DISK0, "/v/ds/100/abc", "-1"]),
            ("cpds", &[DISK0, IMG, "3"]),
            ("delete", &[DISK0]),
            ("delete", &[DIR]),
            ("context", &["/vms/7/context.sh", DISK0]),
            ("context", &["/vms/7/context.sh", "/a:b c", "https://w/x?y", DISK0]),
            ("context", &[DISK0]),
            ("mkimage", &["16", "raw", DISK0]),
            ("mkswap", &["8", DISK0]),
            ("snap_create", &[DISK0, "0"]),
            ("snap_create_live", &[DISK0, "12"]),
            ("snap_delete", &[DISK0, "0"]),
            ("snap_revert", &[DISK0, "0"]),
            ("resize", &[DISK0, "48"]),
            ("premigrate", &["h", "g", "/v/ds/101/7"]),
            ("postmigrate", &["h", "fe80::1", "/v/ds/101/7/"]),
            ("failmigrate", &["h", "g", "/v/ds/101/7"]),
        ] {
            assert_eq!(call(verb, args).unwrap().object(), Some(bare), "{verb} {args:?}");
            let full = [args, &["7", "100"]].concat();
            assert_eq!(call(verb, &full).unwrap().object(), Some(ids), "{verb} {full:?}");
            let one = [args, &["7"]].concat();
            assert!(call(verb, &one).is_err(), "{verb} {one:?}");
            let other = call(verb, &[args, &["8", "100"]].concat()).unwrap_err();
            assert!(other.to_string().contains("VM 7, but the call is about VM 8"), "{verb}: {other}");
            let more =
                call(verb, &[args, &["7", "100", "x", "PFZNPg==", "y"]].concat()).unwrap_err().to_string();
            assert!(more.contains("no more arguments") || verb == "context", "{verb}: {more}");
        }
    }

    #[test]
    fn what_calls_say_is_kept() {
        let Ok(TmCall::Cpds(c)) = call("cpds", &[DISK0, "/v//ds/100/abc", "-1", "7", "100"]) else {
            panic!()
        };
        assert_eq!((c.snapshot, c.image.host, c.disk.disk_id()), (None, None, Some(0)));
        let Ok(TmCall::Mkimage(c)) = call("mkimage", &["16", "qcow2", DISK0, "7", "101"]) else { panic!() };
        assert_eq!((c.size, c.format.as_str()), (Bytes::mib(16).unwrap(), "qcow2"));
        let Ok(TmCall::Mv(c)) = call("mv", &[DIR, "g:/v/ds/102/7", "7", "102"]) else { panic!() };
        assert_eq!((c.from.dir.ds, c.to.dir.ds, c.to.leaf), (101, 102, Leaf::Dir));
        let files = ["/vms/7/context.sh", "/i/1:'my name'", "/i/2:b:c", "http://w:8/p/f.txt?k=/v", "/i/x"];
        let args: Vec<_> = files.iter().copied().chain([DISK0, "7", "101"]).collect();
        let Ok(TmCall::Context(c)) = call("context", &args) else { panic!() };
        let names: Vec<_> = c.files.iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["context.sh", "my name", "b:c", "f.txt", "x"]);
        assert_eq!(c.files[1].source, ImagePath::Local("/i/1".into()));
        assert_eq!(c.files[3].source, ImagePath::Http("http://w:8/p/f.txt?k=/v".into()));
    }

    #[test]
    fn a_template_comes_as_argument_or_on_stdin() {
        let head = ["h", "g", "/v/ds/101/7", "7", "101"];
        for (rest, stdin, template, caller) in [
            (&[][..], "", None, None),
            (&[], " \n", None, None),
            (&[], "PFZNPg==", Some("PFZNPg=="), None),
            (&["PFZNPg=="], "unread", Some("PFZNPg=="), None),
            (&["<VM/>"], "", Some("<VM/>"), None),
            (&["shared"], "PFZNPg==", Some("PFZNPg=="), Some("shared")),
            (&["PFZNPg==", "fs_lvm"], "", Some("PFZNPg=="), Some("fs_lvm")),
        ] {
            let args = [&head, rest].concat();
            let Ok(TmCall::Premigrate(c)) = with_stdin("premigrate", &args, stdin) else {
                panic!("{args:?}")
            };
            assert_eq!(c.template.as_deref(), template.map(str::as_bytes), "{args:?}");
            assert_eq!(c.caller.as_deref(), caller, "{args:?}");
        }
        for rest in [&["a", "b"][..], &["<VM/>", "<VM/>"], &["../x"], &[""], &["x", "<VM/>", "y"]] {
            assert!(call("premigrate", &[&head, rest].concat()).is_err(), "{rest:?}");
        }
        let args: Vec<_> = head.iter().map(OsString::from).collect();
        let endless = TmCall::from("premigrate", &args, std::io::repeat(b'P'));
        assert!(matches!(endless, Err(OneError::TooLarge { .. })));
    }

    #[test]
    fn malformed_calls_name_the_argument() {
        for (verb, args, want) in [
            ("clone", &[][..], "argument 1 is missing, expected host:path"),
            ("clone", &["x"], "argument 1 is \"x\", expected host:path or an absolute path"),
            ("clone", &[IMG], "argument 2 is missing"),
            ("clone", &[IMG, DISK0, "7"], "argument 4 is missing, expected the id of a datastore"),
            ("clone", &[IMG, DISK0, "x", "1"], "argument 3 is \"x\", expected the id of the VM"),
            ("clone", &[IMG, DISK0, "7", "-1"], "argument 4 is \"-1\""),
            ("clone", &[IMG, DISK0, "7", "1", "z"], "argument 5 is \"z\", expected no more arguments"),
            ("clone", &[IMG, DIR, "7", "1"], "argument 2 is"),
            (
                "clone",
                &["-oProxyCommand=x:/v", DISK0],
                "argument 1 is \"-oProxyCommand=x:/v\", expected a host name",
            ),
            ("clone", &["a\nERROR: 1:/v", DISK0], "\"a\\nERROR: 1:/v\""),
            ("ln", &["fe:/a/../b", DISK0], "expected a path without \"..\""),
            ("mv", &[DISK0, DIR, "7", "1"], "argument 2 is"),
            ("mv", &["h:/v/ds/101/8/disk.0", DISK0, "7", "1"], "VM 8, but the call is about VM 7"),
            ("mv", &["h:/v/ds/101/8", DIR], "VM 8, but the call is about VM 7"),
            ("mvds", &[DIR, IMG], "argument 1 is"),
            ("cpds", &[DISK0, IMG, "-2", "7", "1"], "argument 3 is \"-2\", expected a snapshot id or -1"),
            ("cpds", &[DISK0, IMG], "argument 3 is missing"),
            ("delete", &["h:/etc"], "argument 1 is \"h:/etc\""),
            ("delete", &["h:/", "0", "0"], "a path below the root"),
            ("delete", &["h:/v/ds/101/7/checkpoint", "7", "101"], "argument 1 is"),
            ("context", &[], "argument 1 is missing"),
            (
                "context",
                &["relative", DISK0, "7", "101"],
                "argument 1 is \"relative\", expected path, path:name",
            ),
            ("context", &["/a:..", DISK0, "7", "101"], "argument 1 is"),
            ("context", &["/a:b/c", DISK0, "7", "101"], "argument 1 is"),
            ("context", &["/a", "/b", "7", "101"], "argument 2 is"),
            ("mkimage", &["0", "raw", DISK0], "argument 1 is \"0\", expected a size in MiB"),
            ("mkimage", &["+1", "raw", DISK0], "argument 1 is"),
            ("mkimage", &["1G", "raw", DISK0], "argument 1 is"),
            ("mkimage", &["99999999999999999999", "raw", DISK0], "argument 1 is"),
            ("mkimage", &["18446744073709551615", "raw", DISK0], "argument 1 is"),
            ("mkimage", &["1", "-f raw", DISK0], "argument 2 is \"-f raw\", expected an image format"),
            ("mkswap", &["8", DIR], "argument 2 is"),
            ("snap_create", &[DISK0, "-1", "7", "1"], "argument 2 is \"-1\", expected a snapshot id"),
            ("snap_delete", &[DISK0, "01"], "argument 2 is"),
            ("resize", &[DISK0, ""], "argument 2 is \"\""),
            ("premigrate", &["-h", "g", "/v/ds/101/7"], "argument 1 is \"-h\", expected a host name"),
            ("premigrate", &["h", "g h", "/v/ds/101/7"], "argument 2 is"),
            ("premigrate", &["h", "g", "/v/ds/101/7/disk.0"], "argument 3 is"),
            ("premigrate", &["h", "g"], "argument 3 is missing"),
            ("monitor_ds", &[], "argument 1 is missing"),
            ("monitor_ds", &["x"], "argument 1 is \"x\""),
        ] {
            let error = call(verb, args).expect_err(verb);
            let text = error.to_string();
            assert!(text.contains(want), "{verb} {args:?}: {text}");
            assert!(error.class() == Class::Usage && !text.contains('\n'), "{text}");
        }
        for verb in ["prebackup", "postbackup_live", "restore", "", "clone.ssh", "CLONE"] {
            assert_eq!(call(verb, &[]).unwrap_err().class(), Class::Unsupported, "{verb}");
        }
        let bytes = OsString::from_vec(b"h:/\xff".to_vec());
        assert!(TmCall::from("delete", &[bytes], std::io::empty()).is_err());
    }

    #[test]
    fn monitoring_verbs() {
        let Ok(TmCall::Monitor(c)) = with_stdin("monitor", &["101"], "<X/>") else { panic!() };
        assert_eq!((c.id, c.dump.as_slice()), (Some(101), &b"<X/>"[..]));
        assert!(
            matches!(call("monitor_ds", &["/v/ds/101/"]), Ok(TmCall::MonitorDs(p)) if p.ends_with("101"))
        );
    }

    proptest! {
        #[test]
        fn no_arguments_panic(
            verb in "(clone|ln|mv|mvds|cpds|delete|context|mkimage|mkswap|snap_create|resize|premigrate|monitor_ds)",
            args in prop::collection::vec("(h:/v/ds/101/7/disk.0|h:/v/101/7|7|-1|raw|/a:b|-x|\\PC{0,9})", 0..8),
        ) {
            let args: Vec<_> = args.into_iter().map(OsString::from).collect();
            if let Err(e) = TmCall::from(&verb, &args, std::io::empty()) {
                prop_assert!(!e.to_string().contains('\n'));
            }
        }
    }
}
