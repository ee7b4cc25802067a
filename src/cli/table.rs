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

    /// Families of driver names, in each ours first; the others are stock names that behave the same.
    pub fn families(self) -> &'static [&'static [&'static str]] {
        match self {
            Role::Datastore => &[&["sdm", "fs", "lvm"]],
            Role::Tm => {
                &[&["sdm_shared", "shared", "qcow2"], &["sdm_local", "local", "ssh"], &["sdm_lvm", "lvm"]]
            }
        }
    }

    pub fn drivers(self) -> impl Iterator<Item = &'static str> {
        self.families().iter().copied().flatten().copied()
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

/// What does a verb.
#[derive(Clone, Copy, Debug)]
pub enum Run {
    Datastore(fn(&Ctx<'_>, &DsRequest, &Job) -> anyhow::Result<String>),
    /// One front-end half for all of them: `verb::tm::front`.
    Tm,
}

/// One verb.
#[derive(Debug)]
pub struct Verb {
    pub role: Role,
    pub name: &'static str,
    /// Suffixes that make it another verb: `clone.ssh`.
    pub variants: &'static [&'static str],
    pub summary: &'static str,
    pub answer: &'static str,
    pub meets: Meets,
    /// Whether it may have to move data: those can be planned.
    pub moves_data: bool,
    pub locks: &'static str,
    /// What on storage shows that it succeeded, for those who lost its answer.
    pub evidence: &'static str,
    /// `None`: offered by a later release.
    pub run: Option<Run>,
}

impl Verb {
    /// Its names below a driver's directory.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let plain = std::iter::once(self.name.to_owned());
        plain.chain(self.variants.iter().map(|v| format!("{}.{v}", self.name)))
    }
}

const fn later(role: Role, name: &'static str, summary: &'static str) -> Verb {
    Verb {
        role,
        name,
        variants: &[],
        summary,
        answer: "",
        meets: Meets::Reads,
        moves_data: false,
        locks: "",
        evidence: "",
        run: None,
    }
}

/// Sorted by role and name; a test sees to it.
pub static VERBS: &[Verb] = &[
    later(Role::Datastore, "backup", "store a VM's disks in a backup datastore"),
    later(Role::Datastore, "backup_cancel", "stop a backup"),
    Verb {
        role: Role::Datastore,
        name: "clone",
        variants: &[],
        summary: "copy an image under a new name",
        answer: "SOURCE FORMAT",
        meets: Meets::Named,
        moves_data: true,
        locks: "the new image exclusively, the original shared, to the end of the copy",
        evidence: "success: the file BASE_PATH/md5(\"REGTIME:ID\\n\") exists. Failure: it does not",
        run: Some(Run::Datastore(ds::clone::run)),
    },
    Verb {
        role: Role::Datastore,
        name: "cp",
        variants: &[],
        summary: "take an image into the datastore",
        answer: "SOURCE FORMAT",
        meets: Meets::Named,
        moves_data: true,
        locks: "the new image exclusively, to the end of the copy",
        evidence: "success: the file or directory BASE_PATH/md5(\"REGTIME:ID\\n\") exists. Failure: it does not",
        run: Some(Run::Datastore(ds::cp::run)),
    },
    Verb {
        role: Role::Datastore,
        name: "export",
        variants: &[],
        summary: "describe an image for a marketplace",
        answer: "an IMPORT_INFO document in one line",
        meets: Meets::Reads,
        moves_data: false,
        locks: "the image, shared",
        evidence: "none: it changes nothing",
        run: Some(Run::Datastore(ds::export::run)),
    },
    later(Role::Datastore, "increment_flatten", "merge increments of a backup"),
    later(Role::Datastore, "ls", "list the disks of a backup"),
    Verb {
        role: Role::Datastore,
        name: "mkfs",
        variants: &[],
        summary: "make an empty image",
        answer: "SOURCE",
        meets: Meets::Named,
        moves_data: true,
        locks: "the new image exclusively",
        evidence: "success: the file BASE_PATH/md5(\"REGTIME:ID\\n\") exists (never with FORMAT save_as). Failure: it does not",
        run: Some(Run::Datastore(ds::mkfs::run)),
    },
    Verb {
        role: Role::Datastore,
        name: "monitor",
        variants: &[],
        summary: "report used, total and free space",
        answer: "USED_MB=n, TOTAL_MB=n, FREE_MB=n, a line each, in MiB",
        meets: Meets::Reads,
        moves_data: false,
        locks: "nothing",
        evidence: "none: it changes nothing",
        run: Some(Run::Datastore(ds::monitor::run)),
    },
    later(Role::Datastore, "restore", "register the images of a backup"),
    Verb {
        role: Role::Datastore,
        name: "rm",
        variants: &[],
        summary: "remove an image, its snapshots and its cached digest",
        answer: "",
        meets: Meets::State,
        moves_data: false,
        locks: "the image exclusively; a job that is making it is cancelled",
        evidence: "success: SOURCE, SOURCE.snap and SOURCE.md5sum do not exist. Failure: SOURCE exists",
        run: Some(Run::Datastore(ds::rm::run)),
    },
    Verb {
        role: Role::Datastore,
        name: "snap_delete",
        variants: &[],
        summary: "delete a snapshot of an image that no VM uses",
        answer: "",
        meets: Meets::State,
        moves_data: true,
        locks: "the image exclusively",
        evidence: "success: SOURCE.snap/TARGET_SNAPSHOT does not exist. Failure: it does",
        run: Some(Run::Datastore(ds::snap::delete)),
    },
    Verb {
        role: Role::Datastore,
        name: "snap_flatten",
        variants: &[],
        summary: "make a snapshot the image and drop all snapshots",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the image exclusively",
        evidence: "success: SOURCE.snap does not exist. Failure: it does",
        run: Some(Run::Datastore(ds::snap::flatten)),
    },
    Verb {
        role: Role::Datastore,
        name: "snap_revert",
        variants: &[],
        summary: "give an image the content of one of its snapshots",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the image exclusively",
        evidence: "success: the done record of the job exists (`onesdm job show`); the content is the snapshot's",
        run: Some(Run::Datastore(ds::snap::revert)),
    },
    Verb {
        role: Role::Datastore,
        name: "stat",
        variants: &[],
        summary: "find the size an image will need, in MiB",
        answer: "SIZE",
        meets: Meets::Reads,
        moves_data: false,
        locks: "nothing",
        evidence: "none: it changes nothing",
        run: Some(Run::Datastore(ds::stat::run)),
    },
    Verb {
        role: Role::Tm,
        name: "clone",
        variants: SSH,
        summary: "make a VM's disk as a copy of an image, or a layer over it",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the image shared and the disk exclusively, to the end of the copy",
        evidence: "success: disk.N exists. Failure: it is what it was before",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "context",
        variants: &[],
        summary: "make the context ISO of a VM",
        answer: "",
        meets: Meets::Again,
        moves_data: false,
        locks: "the disk exclusively",
        evidence: "success: disk.N is an ISO 9660 file system called CONTEXT. Failure: it is what it was before",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "cpds",
        variants: SSH,
        summary: "save a disk, or a snapshot of it, as an image",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the image exclusively and the disk shared (of a running VM exclusively), to the end of the copy",
        evidence: "success: the image exists. Failure: it is what it was before",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "delete",
        variants: SSH,
        summary: "remove a disk with its snapshots, or a VM's directory",
        answer: "",
        meets: Meets::State,
        moves_data: false,
        locks: "the disks exclusively; a job that is making them is cancelled",
        evidence: "success: the path does not exist. Failure: it does",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "failmigrate",
        variants: &[],
        summary: "clean up after a live migration that failed, and hand it on to other drivers",
        answer: "",
        meets: Meets::State,
        moves_data: false,
        locks: "on volumes the disks exclusively, one after the other; else nothing",
        evidence: "success: on volumes the disks are the source's alone; else none, it changes nothing itself",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "ln",
        variants: SSH,
        summary: "make a VM's disk the image itself",
        answer: "",
        meets: Meets::State,
        moves_data: true,
        locks: "the image and the disk exclusively",
        evidence: "success: disk.N is a link to the image or to a layer of it (with ssh: to disk.N.snap, or a file). Failure: it is what it was before",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "mkimage",
        variants: &[],
        summary: "make an empty disk",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the disk exclusively",
        evidence: "success: disk.N exists. Failure: it is what it was before",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "mkswap",
        variants: &[],
        summary: "make a swap disk",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the disk exclusively",
        evidence: "success: disk.N exists. Failure: it is what it was before",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "monitor",
        variants: &[],
        summary: "report used, free and total space of a system datastore, and to monitord what its VMs take",
        answer: "USED_MB=n FREE_MB=n TOTAL_MB=n in one line, in MiB",
        meets: Meets::Reads,
        moves_data: false,
        locks: "nothing",
        evidence: "none: it changes nothing",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "monitor_ds",
        variants: &[],
        summary: "report what the VMs of a host's own system datastore take; called by the host's probe",
        answer: "VM = [ ID = n, MONITOR = \"base64\" ], a line a VM",
        meets: Meets::Reads,
        moves_data: false,
        locks: "nothing",
        evidence: "none: it changes nothing",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "mv",
        variants: SSH,
        summary: "move a VM's directory to another system datastore; a disk goes with it",
        answer: "",
        meets: Meets::State,
        moves_data: true,
        locks: "the disks exclusively, in both datastores",
        evidence: "success: the destination exists and the source does not. Failure: the source exists",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "mvds",
        variants: SSH,
        summary: "bring a persistent disk back to its image",
        answer: "",
        meets: Meets::State,
        moves_data: true,
        locks: "the image (with ssh exclusively) and the disk; none where the front-end sees that they are one file",
        evidence: "success: the image has what the VM wrote; without ssh it always has",
        run: Some(Run::Tm),
    },
    later(Role::Tm, "postbackup", "clean up after a backup"),
    later(Role::Tm, "postbackup_live", "clean up after a backup of a running VM"),
    Verb {
        role: Role::Tm,
        name: "postmigrate",
        variants: &[],
        summary: "clean up after a live migration, and hand it on to other drivers",
        answer: "",
        meets: Meets::State,
        moves_data: false,
        locks: "the disks at the source exclusively",
        evidence: "success: the VM's directory in its former system datastore does not exist; on volumes the disks \
                   are the destination's alone",
        run: Some(Run::Tm),
    },
    later(Role::Tm, "prebackup", "prepare a backup"),
    later(Role::Tm, "prebackup_live", "prepare a backup of a running VM"),
    Verb {
        role: Role::Tm,
        name: "premigrate",
        variants: &[],
        summary: "prepare a live migration, and hand it on to other drivers",
        answer: "",
        meets: Meets::State,
        moves_data: false,
        locks: "on volumes the disks exclusively, one after the other; else nothing",
        evidence: "success: on volumes the destination has the disks, too. Failure: the source alone",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "resize",
        variants: SSH,
        summary: "grow a disk that no VM has open",
        answer: "",
        meets: Meets::State,
        moves_data: true,
        locks: "the disk, or its image, exclusively",
        evidence: "success: the disk has the size. Failure: it has the former",
        run: Some(Run::Tm),
    },
    later(Role::Tm, "restore", "give a VM's disks the content of a backup"),
    Verb {
        role: Role::Tm,
        name: "snap_create",
        variants: SSH,
        summary: "make a snapshot of a disk that no VM has open",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the disk, or its image, exclusively",
        evidence: "success: the snapshot's file exists, and for qcow2 disk.N leads to the next. Failure: disk.N leads where it led",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "snap_create_live",
        variants: SSH,
        summary: "make a snapshot of the disk of a running VM",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the disk, or its image, exclusively",
        evidence: "success: disk.N leads to the layer that the machine writes to, above the snapshot's; for raw, the snapshot's file exists, on volumes its volume. Failure: disk.N leads where it led",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "snap_delete",
        variants: SSH,
        summary: "delete a snapshot of a disk",
        answer: "",
        meets: Meets::State,
        moves_data: true,
        locks: "the disk, or its image, exclusively",
        evidence: "success: the snapshot's file does not exist, or has another's content and a .current says so. Failure: it is there",
        run: Some(Run::Tm),
    },
    Verb {
        role: Role::Tm,
        name: "snap_revert",
        variants: SSH,
        summary: "give a disk the content of one of its snapshots",
        answer: "",
        meets: Meets::Again,
        moves_data: true,
        locks: "the disk, or its image, exclusively",
        evidence: "success: the done record of the job exists (`onesdm job show`); the content is the snapshot's",
        run: Some(Run::Tm),
    },
];

/// The system datastore is its host's own, the image's is not.
const SSH: &[&str] = &["ssh"];

/// The verb of an invocation, matched exactly; otherwise what exists.
pub fn find(call: &Invocation) -> anyhow::Result<&'static Verb> {
    let drivers: Vec<&str> = call.role.drivers().collect();
    if !drivers.contains(&call.driver.as_str()) {
        let text =
            format!("{call}: no {} driver {:?}; there are {}", call.role, call.driver, drivers.join(", "));
        return Err(refuse(Class::Unsupported, text));
    }
    let of_role = || VERBS.iter().filter(|v| v.role == call.role);
    let fits = |v: &Verb| call.variant.as_deref().is_none_or(|x| v.variants.contains(&x));
    match of_role().find(|v| v.name == call.verb && fits(v)) {
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
        assert!(says("datastore/nfs/cp").contains("there are sdm, fs, lvm"));
        assert!(says("datastore/fs/restore").contains("not supported yet"));
        assert_eq!((says("tm/shared/clone"), says("tm/qcow2/clone.ssh")), ("clone".into(), "clone".into()));
        assert!(says("tm/shared/clone.replica").contains("no such verb"));
        assert!(says("tm/shared/prebackup_live").contains("not supported yet"));
        assert!(says("tm/fs_lvm/clone").contains("there are sdm_shared, shared, qcow2"));
    }
}
