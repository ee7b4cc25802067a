//! The one table of verbs. Dispatch, `remotes/`, the manual, the completions and the tests are views
//! of it.

use super::invocation::Invocation;
use crate::one::DsRequest;
use crate::sdm::Job;
use crate::sys::Class;
use crate::verb::datastore as ds;
use crate::verb::{Ctx, refuse};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Datastore,
    Tm,
}

impl Role {
    pub fn parse(s: &str) -> Option<Role> {
        [Role::Datastore, Role::Tm].into_iter().find(|r| r.to_string() == s)
    }

    /// Driver names, ours first; the others are stock names that behave the same.
    pub fn drivers(self) -> &'static [&'static str] {
        match self {
            Role::Datastore => &["sdm", "fs"],
            Role::Tm => &[],
        }
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if *self == Role::Datastore { "datastore" } else { "tm" })
    }
}

/// How a verb meets what is already there when it comes as a new wish (design R5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meets {
    /// Reads only.
    Reads,
    /// Looks, and does what is missing.
    State,
    /// The name derives from the request, so a repeat finds it.
    Named,
    /// Keeps what it displaces and does it anew.
    Again,
}

type Run = fn(&Ctx<'_>, &DsRequest, &Job) -> anyhow::Result<String>;

/// One verb.
#[derive(Debug)]
pub struct Verb {
    pub role: Role,
    pub name: &'static str,
    pub summary: &'static str,
    pub answer: &'static str,
    pub meets: Meets,
    pub locks: &'static str,
    /// What on storage shows that it succeeded, for those who lost its answer.
    pub evidence: &'static str,
    /// `None`: offered by a later release.
    pub run: Option<Run>,
}

const fn later(name: &'static str, summary: &'static str) -> Verb {
    Verb {
        role: Role::Datastore,
        name,
        summary,
        answer: "",
        meets: Meets::Reads,
        locks: "",
        evidence: "",
        run: None,
    }
}

/// Sorted by role and name; a test sees to it.
pub static VERBS: &[Verb] = &[
    later("backup", "store a VM's disks in a backup datastore"),
    later("backup_cancel", "stop a backup"),
    Verb {
        role: Role::Datastore,
        name: "clone",
        summary: "copy an image under a new name",
        answer: "SOURCE FORMAT",
        meets: Meets::Named,
        locks: "the new image exclusively, the original shared, to the end of the copy",
        evidence: "success: the file BASE_PATH/md5(\"REGTIME:ID\\n\") exists. Failure: it does not",
        run: Some(ds::clone::run),
    },
    Verb {
        role: Role::Datastore,
        name: "cp",
        summary: "take an image into the datastore",
        answer: "SOURCE FORMAT",
        meets: Meets::Named,
        locks: "the new image exclusively, to the end of the copy",
        evidence: "success: the file or directory BASE_PATH/md5(\"REGTIME:ID\\n\") exists. Failure: it does not",
        run: Some(ds::cp::run),
    },
    Verb {
        role: Role::Datastore,
        name: "export",
        summary: "describe an image for a marketplace",
        answer: "an IMPORT_INFO document in one line",
        meets: Meets::Reads,
        locks: "the image, shared",
        evidence: "none: it changes nothing",
        run: Some(ds::export::run),
    },
    later("increment_flatten", "merge increments of a backup"),
    later("ls", "list the disks of a backup"),
    Verb {
        role: Role::Datastore,
        name: "mkfs",
        summary: "make an empty image",
        answer: "SOURCE",
        meets: Meets::Named,
        locks: "the new image exclusively",
        evidence: "success: the file BASE_PATH/md5(\"REGTIME:ID\\n\") exists (never with FORMAT save_as). Failure: it does not",
        run: Some(ds::mkfs::run),
    },
    Verb {
        role: Role::Datastore,
        name: "monitor",
        summary: "report used, total and free space",
        answer: "USED_MB=n, TOTAL_MB=n, FREE_MB=n, a line each, in MiB",
        meets: Meets::Reads,
        locks: "nothing",
        evidence: "none: it changes nothing",
        run: Some(ds::monitor::run),
    },
    later("restore", "register the images of a backup"),
    Verb {
        role: Role::Datastore,
        name: "rm",
        summary: "remove an image, its snapshots and its cached digest",
        answer: "",
        meets: Meets::State,
        locks: "the image exclusively; a job that is making it is cancelled",
        evidence: "success: SOURCE, SOURCE.snap and SOURCE.md5sum do not exist. Failure: SOURCE exists",
        run: Some(ds::rm::run),
    },
    Verb {
        role: Role::Datastore,
        name: "snap_delete",
        summary: "delete a snapshot of an image that no VM uses",
        answer: "",
        meets: Meets::State,
        locks: "the image exclusively",
        evidence: "success: SOURCE.snap/TARGET_SNAPSHOT does not exist. Failure: it does",
        run: Some(ds::snap::delete),
    },
    Verb {
        role: Role::Datastore,
        name: "snap_flatten",
        summary: "make a snapshot the image and drop all snapshots",
        answer: "",
        meets: Meets::Again,
        locks: "the image exclusively",
        evidence: "success: SOURCE.snap does not exist. Failure: it does",
        run: Some(ds::snap::flatten),
    },
    Verb {
        role: Role::Datastore,
        name: "snap_revert",
        summary: "give an image the content of one of its snapshots",
        answer: "",
        meets: Meets::Again,
        locks: "the image exclusively",
        evidence: "success: the done record of the job exists (`onesdm job show`); the content is the snapshot's",
        run: Some(ds::snap::revert),
    },
    Verb {
        role: Role::Datastore,
        name: "stat",
        summary: "find the size an image will need, in MiB",
        answer: "SIZE",
        meets: Meets::Reads,
        locks: "nothing",
        evidence: "none: it changes nothing",
        run: Some(ds::stat::run),
    },
];

/// The verb of an invocation, matched exactly; otherwise what exists.
pub fn find(call: &Invocation) -> anyhow::Result<&'static Verb> {
    let drivers = call.role.drivers();
    if !drivers.contains(&call.driver.as_str()) {
        let text = if drivers.is_empty() {
            format!("{call}: {} drivers are not supported yet", call.role)
        } else {
            format!("{call}: no {} driver {:?}; there are {}", call.role, call.driver, drivers.join(", "))
        };
        return Err(refuse(Class::Unsupported, text));
    }
    let of_role = || VERBS.iter().filter(|v| v.role == call.role);
    match of_role().find(|v| v.name == call.verb && call.variant.is_none()) {
        Some(v) if v.run.is_some() => Ok(v),
        Some(_) => Err(refuse(Class::Unsupported, format!("{call}: not supported yet"))),
        None => {
            let names: Vec<&str> = of_role().filter(|v| v.run.is_some()).map(|v| v.name).collect();
            let text = format!("{call}: no such verb; there are {}", names.join(", "));
            Err(refuse(Class::Unsupported, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn verbs_are_sorted_and_unique() {
        assert!(VERBS.windows(2).all(|w| (w[0].role, w[0].name) < (w[1].role, w[1].name)));
    }

    #[test]
    fn what_does_not_exist_says_what_does() {
        let says = |path: &str| {
            let call = Invocation::named(Path::new(path)).unwrap();
            find(&call).map_or_else(|e| e.to_string(), |v| v.name.to_owned())
        };
        assert_eq!(says("datastore/fs/cp"), "cp");
        assert!(says("datastore/fs/cpx").contains("there are clone, cp, export"));
        assert!(says("datastore/fs/cp.ssh").contains("no such verb"), "variants match exactly, too");
        assert!(says("datastore/nfs/cp").contains("there are sdm, fs"));
        assert!(says("datastore/fs/restore").contains("not supported yet"));
        assert!(says("tm/shared/clone").contains("not supported yet"));
    }
}
