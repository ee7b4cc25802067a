//! What a process was called as: role, driver, verb and variant, matched exactly, from the last three
//! components of its name or from `--as`.

use super::table::Role;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};

/// `datastore/fs/cp`, `tm/shared/clone.ssh`, and the arguments behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invocation {
    pub role: Role,
    pub driver: String,
    pub verb: String,
    pub variant: Option<String>,
    pub args: Vec<OsString>,
    /// `--job` or `--set` given beside `--as`.
    pub job: Option<String>,
    pub set: Vec<(String, String)>,
    /// `--plan` beside `--as`: never so where oned calls by a name.
    pub plan: bool,
}

impl std::fmt::Display for Invocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.role, self.driver, self.verb)?;
        self.variant.iter().try_for_each(|v| write!(f, ".{v}"))
    }
}

impl Invocation {
    /// A verb's invocation, or `None` when the process was called by its own name.
    pub fn of(argv: &[OsString]) -> Option<Invocation> {
        let (name, args) = argv.split_first()?;
        Self::named(Path::new(name)).map(|i| Invocation { args: args.to_vec(), ..i })
    }

    /// From a path's last three components: `…/datastore/<driver>/<verb>[.<variant>]`.
    pub fn named(path: &Path) -> Option<Invocation> {
        let mut parts: Vec<&OsStr> = Vec::new();
        for c in path.components() {
            match c {
                Component::Normal(c) => parts.push(c),
                // Drivers call each other as `…/tm/ssh/../qcow2/mv`.
                Component::ParentDir => drop(parts.pop()),
                _ => {}
            }
        }
        let [.., role, driver, verb] = parts.as_slice() else { return None };
        let role = Role::parse(role.to_str()?)?;
        let (verb, variant) = match verb.to_str()?.split_once('.') {
            Some((v, x)) => (v, Some(x.to_owned())),
            None => (verb.to_str()?, None),
        };
        let (driver, verb) = (driver.to_str()?.to_owned(), verb.to_owned());
        let (args, job, set) = (Vec::new(), None, Vec::new());
        Some(Invocation { role, driver, verb, variant, args, job, set, plan: false })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_three_components_name_the_verb() {
        for (path, expect) in [
            ("/var/lib/one/remotes/datastore/fs/cp", Some("datastore/fs/cp")),
            ("/var/lib/one/remotes/tm/shared/clone.ssh", Some("tm/shared/clone.ssh")),
            ("datastore/fs/cp", Some("datastore/fs/cp")),
            ("./datastore/fs/cp", Some("datastore/fs/cp")),
            ("/r/tm/ssh/../qcow2/mv", Some("tm/qcow2/mv")),
            ("fs/cp", None),
            ("/usr/bin/onesdm", None),
            ("/x/datastores/fs/cp", None),
            ("/x/market/http/export", None),
        ] {
            assert_eq!(
                Invocation::named(Path::new(path)).map(|i| i.to_string()).as_deref(),
                expect,
                "{path}"
            );
        }
    }
}
