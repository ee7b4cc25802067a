//! Paths of the driver protocol, taken apart: `<datastores>/<datastore>/<image>` and
//! `<datastores>/<datastore>/<vm>/<disk>`. What is not one of these is refused, whatever is there.

use crate::engine::Name;
use crate::sys::Class;
use crate::verb::{Ctx, refuse};
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// A name in a datastore.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// The datastore's directory, as the path had it without repeated slashes.
    pub dir: PathBuf,
    pub ds: i64,
    pub name: Name,
}

fn is_number(s: &str) -> bool {
    !s.is_empty() && s.len() < 19 && s.bytes().all(|b| b.is_ascii_digit())
}

fn is_disk(s: &str) -> bool {
    s.strip_prefix("disk.").is_some_and(is_number)
}

/// Below the directory of all datastores: the path up to one datastore, and the rest.
fn split(ctx: &Ctx<'_>, path: &str) -> Result<(PathBuf, i64, Vec<String>)> {
    let datastores = &ctx.settings.paths.datastores;
    let wrong = |why: &str| {
        let text = format!("{path}: {why}; nothing was changed");
        refuse(Class::Refused, text)
    };
    let mut plain = PathBuf::new();
    for c in Path::new(path).components() {
        match c {
            Component::RootDir | Component::Normal(_) => plain.push(c),
            Component::CurDir | Component::ParentDir | Component::Prefix(_) => {
                return Err(wrong("a path with . or .. in it"));
            }
        }
    }
    let root = plain.ancestors().skip(1).find(|a| same_dir(a, datastores));
    let root = root.ok_or_else(|| {
        wrong(&format!("it is not below {} (setting `paths.datastores`)", datastores.display()))
    })?;
    let rest: Option<Vec<String>> =
        plain.strip_prefix(root)?.iter().map(|c| c.to_str().map(str::to_owned)).collect();
    let mut rest = rest.ok_or_else(|| wrong("it is not text"))?;
    let id = rest.remove(0);
    let ds = id.parse().ok().filter(|_| is_number(&id));
    let ds = ds.ok_or_else(|| wrong("a datastore's directory is a number"))?;
    Ok((root.join(id), ds, rest))
}

fn same_dir(a: &Path, b: &Path) -> bool {
    let plain: PathBuf = b.components().collect();
    a == plain || a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// The datastores that paths lead into. A group is none.
pub(super) fn stores(ctx: &Ctx<'_>, paths: &[&str]) -> Result<BTreeMap<i64, PathBuf>> {
    let paths = paths.iter().filter(|p| !p.starts_with("/dev/"));
    paths.map(|path| split(ctx, path).map(|(dir, ds, _)| (ds, dir))).collect()
}

impl Spot {
    fn of(ctx: &Ctx<'_>, path: &str, what: &str, is: fn(&[&str]) -> bool) -> Result<Spot> {
        let (dir, ds, rest) = split(ctx, path)?;
        let words: Vec<&str> = rest.iter().map(String::as_str).collect();
        if words.is_empty() || !is(&words) {
            let text = format!("{path} is not {what}; nothing was changed");
            return Err(refuse(Class::Refused, text));
        }
        Ok(Spot { dir, ds, name: Name::parse(&rest.join("/"))? })
    }

    /// The directory of a VM.
    pub fn vm(ctx: &Ctx<'_>, path: &str) -> Result<Spot> {
        Spot::of(ctx, path, "the directory of a VM", |w| matches!(w, [vm] if is_number(vm)))
    }

    /// A disk, kernel or initrd of a VM.
    pub fn disk(ctx: &Ctx<'_>, path: &str) -> Result<Spot> {
        Spot::of(
            ctx,
            path,
            "a disk of a VM",
            |w| matches!(w, [vm, disk] if is_number(vm) && (is_disk(disk) || ["kernel", "initrd"].contains(disk))),
        )
    }

    /// An image, not one of its companions and not a VM.
    pub fn image(ctx: &Ctx<'_>, path: &str) -> Result<Spot> {
        Spot::of(
            ctx,
            path,
            "an image of a datastore",
            |w| matches!(w, [name] if !is_number(name) && !name.starts_with('.') && !name.contains(".snap")),
        )
    }

    /// An image, or one of its layers: then the image, and the layer's name.
    pub fn image_or_layer(ctx: &Ctx<'_>, path: &str) -> Result<(Spot, Name)> {
        let spot = Spot::of(ctx, path, "an image or a layer of one", |w| match w {
            [_] => true,
            [dir, layer] => dir.strip_suffix(".snap").is_some() && is_number(layer),
            _ => false,
        })?;
        let file = spot.name.clone();
        let base = file.parent().unwrap_or_else(|| file.clone());
        let image = spot.dir.join(base.as_str().trim_end_matches(".snap"));
        Ok((Spot::image(ctx, &image.to_string_lossy())?, file))
    }

    /// A datastore: its directory and number.
    pub fn datastore(ctx: &Ctx<'_>, path: &str) -> Result<(PathBuf, i64)> {
        match split(ctx, path)? {
            (dir, ds, rest) if rest.is_empty() => Ok((dir, ds)),
            _ => Err(refuse(Class::Refused, format!("{path} is not a datastore's directory"))),
        }
    }

    /// The whole path, which is what links and backing files record.
    pub fn path(&self) -> PathBuf {
        self.dir.join(self.name.as_str())
    }

    pub fn text(&self) -> String {
        self.path().to_string_lossy().into_owned()
    }

    /// The VM a disk belongs to.
    pub fn parent(&self) -> Option<Name> {
        self.name.parent()
    }
}
