//! What the front-end asks the host that has the storage to do: plain data, paths and numbers, nothing of
//! OpenNebula's documents. Paths are absolute and as this host sees them.

use super::{
    Tm, bridge, clone, cpds, delete, live, ln, locks, make, meet, monitor, mv, mvds, private, put, receive,
    resize, retire, send, snap, turn, volume,
};
use crate::host::Identity;
use crate::lock::JobId;
use crate::sdm::Job;
use crate::sys::{Bytes, Class};
use crate::verb::{Ctx, refuse};
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;

/// One piece of work. How each meets what is already there is design R5's: *state* or *again*.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// A disk that is a copy of an image, or a layer over it. *Again*.
    Clone(Clone),
    /// A disk that is the image. *State*.
    Link(Link),
    /// A disk that is a copy of an image and of its snapshots, to be stored back later. *Again*.
    Pull(Pull),
    /// An empty disk. *Again*.
    MakeImage(MakeImage),
    /// An empty disk with a swap signature. *Again*.
    MakeSwap(MakeSwap),
    /// Data that comes along becomes a disk: the context ISO. *Again*.
    Put(Put),
    /// Removes a disk or a VM's directory. *State*.
    Delete(Delete),
    /// A disk, or one of its snapshots, becomes the content of an image. *Again*.
    Cpds(Cpds),
    /// Whether a persistent disk is where `DATASTORE` expects it. *State*.
    Mvds(Mvds),
    /// A disk that was pulled becomes the image again, with its snapshots. *Again*.
    Store(Store),
    /// A VM's directory moves to another system datastore of this host. *State*.
    Mv(Mv),
    /// *Again*.
    SnapCreate(Snap),
    /// *Again*.
    SnapRevert(Snap),
    /// *State*.
    SnapDelete(Snap),
    /// The same of a machine that runs (state 57). *Again*.
    SnapCreateLive(SnapLive),
    /// The same of a machine that runs (state 59). *State*.
    SnapDeleteLive(SnapLive),
    /// A disk's link leads to what its running machine writes to: ends what a crash left. *State*.
    Follow(Follow),
    /// Grows a disk. *State*.
    Resize(Resize),
    /// Gives data to the peer. Changes nothing.
    Send(Send),
    /// Gives data to another host, over a connection of this one's own. Changes nothing here.
    Pass(Pass),
    /// What the peer gives becomes a disk, an image or a VM's directory. *Again*.
    Receive(Receive),
    /// A VM's directory that was sent away goes. *State*.
    Retire(Retire),
    /// Whether a datastore is the same storage here and on another host. Changes nothing.
    Meet(Meet),
    /// Whether locks of this host and of another exclude each other. Changes nothing.
    Locks(Locks),
    /// A turn to move data, for this process' next operation. Changes nothing.
    Turn(turn::Turn),
    /// A datastore verb, on a host of BRIDGE_LIST. As the verb.
    Datastore(Datastore),
    /// Space of a system datastore, and what its VMs take. Reads only.
    Monitor(Monitor),
    /// A disk that is a volume of a group.
    OnVolume(volume::OnVolume),
    /// Removes a VM's directory, and what it has in groups. *State*.
    Gone(volume::Gone),
}

/// What OpenNebula has on record as a disk's format. It decides, not what a guest wrote into the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    Raw,
    Qcow2,
    /// Anything else: copied as it is.
    Other,
}

/// A disk that exists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// `<datastores>/<system ds>/<vm>/disk.<n>`
    pub path: String,
    /// The image it comes from, if any: `<datastores>/<image ds>/<name>`.
    pub image: Option<String>,
    pub format: DiskFormat,
}

impl Disk {
    fn paths(&self) -> impl Iterator<Item = &str> {
        [self.path.as_str()].into_iter().chain(self.image.as_deref())
    }
}

/// A disk of a machine that runs on this host, as libvirt knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// `LIBVIRT_URI` of kvmrc.
    pub uri: String,
    /// The VM's `DEPLOY_ID`.
    pub domain: String,
    /// The disk's `TARGET`.
    pub target: String,
    /// `VIRSH_TIMEOUT` of kvmrc, in seconds: for one answer, not for moving data.
    pub timeout: u64,
    #[serde(default)]
    pub freeze: Freeze,
}

/// How a moment is made at which the disk is whole. The machine is suspended for it in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Freeze {
    /// The guest's agent flushes its file systems first where it answers.
    #[default]
    Try,
    /// It has to.
    Agent,
    /// It is not asked.
    Suspend,
}

/// The text by which host probes find a system datastore that is local to its host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Marker {
    #[default]
    Keep,
    /// The datastore is shared: the front-end monitors it.
    Remove,
    Write(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clone {
    pub image: String,
    /// `disk.<n>`, `kernel` or `initrd` of a VM.
    pub disk: String,
    pub format: DiskFormat,
    /// qcow2: a whole copy, not a layer.
    pub standalone: bool,
    pub sparse: bool,
    /// What the disk shall have, when that is more than the image has.
    pub size_mib: Option<u64>,
    pub original_mib: Option<u64>,
    #[serde(default)]
    pub marker: Marker,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    pub image: String,
    pub disk: String,
    pub format: DiskFormat,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pull {
    pub image: String,
    pub disk: String,
    pub format: DiskFormat,
    #[serde(default)]
    pub marker: Marker,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    pub disk: Disk,
    pub target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeImage {
    pub disk: String,
    pub size_mib: u64,
    /// `raw`, `qcow2` or `swap`.
    pub format: String,
    pub fs: Option<String>,
    pub sparse: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MakeSwap {
    pub disk: String,
    pub size_mib: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Put {
    pub disk: String,
    /// Bytes of the data, and their digest in hexadecimal.
    pub size: u64,
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delete {
    /// A disk, or a VM's directory.
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpds {
    pub disk: Disk,
    /// `None`: what the disk is now.
    pub snapshot: Option<i64>,
    /// The name that `mkfs` gave for `save_as`.
    pub target: String,
    /// The VM runs (state 26).
    #[serde(default)]
    pub live: Option<Machine>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mvds {
    pub disk: Disk,
    /// The image whose content the disk is meant to be.
    pub target: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mv {
    pub from: String,
    pub to: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snap {
    pub disk: Disk,
    pub snapshot: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapLive {
    pub snap: Snap,
    pub machine: Machine,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    pub disk: Disk,
    pub machine: Machine,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resize {
    pub disk: Disk,
    pub size_mib: u64,
    pub sparse: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Send {
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum What {
    /// A VM's directory, and the path that it will have; whether its machine runs.
    Vm {
        dir: String,
        to: String,
        #[serde(default)]
        runs: bool,
    },
    /// An image; of a qcow2 one all its layers, of others their snapshots when they are asked for.
    Image { path: String, format: DiskFormat, snapshots: bool },
    /// A disk with its snapshots.
    Disk { disk: Disk },
    /// An image as one file that needs no other.
    Whole { path: String, limit: Option<u64> },
    /// A file that is to become an image: PATH of the message, which says what may be read. `limit`: bytes per
    /// second.
    Outside { path: String, limit: Option<u64>, message: BTreeMap<String, String> },
    /// What a disk is, or was in a snapshot, as one file. `live`: a machine that writes to it.
    Content {
        disk: Disk,
        snapshot: Option<i64>,
        #[serde(default)]
        live: Option<Machine>,
    },
}

/// The text of what `Send` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Tells the source, as it was sent, from every other.
    pub source: String,
    /// Of the stream; `None` when the receiver wanted nothing.
    pub digest: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pass {
    pub what: What,
    /// The host that takes it, as the front-end calls it, and which machine that is.
    pub host: String,
    pub identity: Identity,
    /// What is asked there, under which id.
    pub job: JobId,
    pub request: Value,
    /// What is likely to go.
    pub data: Bytes,
    /// The front-end's settings of these.
    pub connect: Duration,
    pub silence: Duration,
}

/// The text of what `Pass` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Passed {
    /// Nothing was asked there.
    Not { why: String },
    /// The connection broke; the host may have done it.
    Lost { why: String },
    /// What was told of the source, and what the host answered.
    Done { told: Told, received: Value },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receive {
    pub into: Into,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Into {
    Vm {
        dir: String,
    },
    /// As in `Clone`.
    Disk {
        path: String,
        format: DiskFormat,
        sparse: bool,
        size_mib: Option<u64>,
        original_mib: Option<u64>,
        #[serde(default)]
        marker: Marker,
    },
    Image {
        path: String,
        format: DiskFormat,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retire {
    pub dir: String,
    /// What it was when it was sent.
    pub source: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meet {
    /// `<datastores>/<system ds>`
    pub dir: String,
    /// The job of the other side.
    pub other: JobId,
    /// The one that begins.
    pub first: bool,
}

/// The text of what `Meet` answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Met {
    pub domain: uuid::Uuid,
    /// The other side's sign is there.
    pub found: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locks {
    /// The datastore's directory.
    pub dir: String,
    /// Names of bytes: one that the other host holds, and one that it has let go.
    pub held: String,
    pub free: String,
}

/// The text of what `Locks` answers: which of the two could be had, and whether only one host may work there
/// anyway, since locks are known not to reach others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tried {
    pub alone: bool,
    pub held: bool,
    pub free: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Monitor {
    /// `<datastores>/<system ds>`
    pub dir: String,
    /// What each VM's disks take, too.
    pub vms: bool,
}

impl What {
    pub fn path(&self) -> &str {
        match self {
            What::Vm { dir, .. } => dir,
            What::Image { path, .. } | What::Whole { path, .. } | What::Outside { path, .. } => path,
            What::Disk { disk } | What::Content { disk, .. } => &disk.path,
        }
    }

    /// Those of this host.
    fn paths(&self) -> Vec<&str> {
        match self {
            What::Disk { disk } | What::Content { disk, .. } => disk.paths().collect(),
            What::Outside { .. } => Vec::new(),
            what => vec![what.path()],
        }
    }
}

impl Into {
    pub fn path(&self) -> &str {
        match self {
            Into::Vm { dir } => dir,
            Into::Disk { path, .. } | Into::Image { path, .. } => path,
        }
    }
}

/// A datastore verb.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Datastore {
    pub verb: String,
    /// The datastore's directory.
    pub dir: String,
    /// The values of oned's message.
    pub message: BTreeMap<String, String>,
    /// The peer gives the content of the source.
    #[serde(default)]
    pub stream: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// Empty, or the lines that the operation is asked for.
    pub text: String,
}

impl Op {
    /// The path that the work is about, for lists of jobs and for messages.
    pub fn object(&self) -> &str {
        match self {
            Op::Clone(o) => &o.disk,
            Op::Link(o) => &o.disk,
            Op::Pull(o) => &o.disk,
            Op::Store(o) => &o.disk.path,
            Op::MakeImage(o) => &o.disk,
            Op::MakeSwap(o) => &o.disk,
            Op::Put(o) => &o.disk,
            Op::Delete(o) => &o.path,
            Op::Cpds(o) => &o.disk.path,
            Op::Mvds(o) => &o.disk.path,
            Op::Mv(o) => &o.from,
            Op::SnapCreate(o) | Op::SnapRevert(o) | Op::SnapDelete(o) => &o.disk.path,
            Op::SnapCreateLive(o) | Op::SnapDeleteLive(o) => &o.snap.disk.path,
            Op::Follow(o) => &o.disk.path,
            Op::Resize(o) => &o.disk.path,
            Op::Monitor(o) => &o.dir,
            Op::Send(o) => o.what.path(),
            Op::Pass(o) => o.what.path(),
            Op::Receive(o) => o.into.path(),
            Op::Retire(o) => &o.dir,
            Op::Meet(o) => &o.dir,
            Op::Locks(o) => &o.dir,
            Op::Turn(o) => o.of.object(),
            Op::Datastore(o) => &o.dir,
            Op::OnVolume(o) => &o.disk,
            Op::Gone(o) => &o.dir,
        }
    }

    /// All its paths: of the datastores that it works in.
    pub fn paths(&self) -> Vec<&str> {
        match self {
            Op::Clone(o) => vec![&o.disk, &o.image],
            Op::Link(o) => vec![&o.disk, &o.image],
            Op::Pull(o) => vec![&o.disk, &o.image],
            Op::Store(o) => o.disk.paths().chain([o.target.as_str()]).collect(),
            Op::MakeImage(o) => vec![&o.disk],
            Op::MakeSwap(o) => vec![&o.disk],
            Op::Put(o) => vec![&o.disk],
            Op::Delete(o) => vec![&o.path],
            Op::Cpds(o) => o.disk.paths().chain([o.target.as_str()]).collect(),
            Op::Mvds(o) => o.disk.paths().chain([o.target.as_str()]).collect(),
            Op::Mv(o) => vec![&o.from, &o.to],
            Op::SnapCreate(o) | Op::SnapRevert(o) | Op::SnapDelete(o) => o.disk.paths().collect(),
            Op::SnapCreateLive(o) | Op::SnapDeleteLive(o) => o.snap.disk.paths().collect(),
            Op::Follow(o) => o.disk.paths().collect(),
            Op::Resize(o) => o.disk.paths().collect(),
            Op::Monitor(o) => vec![&o.dir],
            Op::Send(o) => o.what.paths(),
            Op::Pass(o) => o.what.paths(),
            Op::Receive(o) => vec![o.into.path()],
            Op::Retire(o) => vec![&o.dir],
            Op::Meet(o) => vec![&o.dir],
            Op::Locks(o) => vec![&o.dir],
            Op::Turn(o) => o.of.paths(),
            Op::Datastore(o) => vec![&o.dir],
            Op::OnVolume(o) => vec![&o.disk],
            Op::Gone(o) => vec![&o.dir],
        }
    }

    /// Talks to a peer, who cannot begin anew in the middle.
    pub fn streams(&self) -> bool {
        matches!(
            self,
            Op::Send(_) | Op::Pass(_) | Op::Receive(_) | Op::Datastore(Datastore { stream: true, .. })
        )
    }

    /// Changes nothing, and is not worth an entry in the history.
    pub fn only_reads(&self) -> bool {
        match self {
            Op::Monitor(_) | Op::Locks(_) | Op::Turn(_) => true,
            Op::Datastore(o) => ["monitor", "stat"].contains(&o.verb.as_str()),
            _ => false,
        }
    }

    fn doing(&self) -> String {
        match self {
            Op::Clone(o) => format!("cloning {} to {}", o.image, o.disk),
            Op::Link(o) => format!("linking {} to {}", o.disk, o.image),
            Op::Pull(o) => format!("copying {} to {}", o.image, o.disk),
            Op::Store(o) => format!("storing {} in {}", o.disk.path, o.target),
            Op::MakeImage(_) | Op::MakeSwap(_) => format!("making {}", self.object()),
            Op::Put(o) => format!("storing the context ISO {}", o.disk),
            Op::Delete(o) => format!("deleting {}", o.path),
            Op::Cpds(o) => format!("saving {} as {}", o.disk.path, o.target),
            Op::Mvds(o) => format!("storing {} in {}", o.disk.path, o.target),
            Op::Mv(o) => format!("moving {} to {}", o.from, o.to),
            Op::SnapCreate(o) => format!("making snapshot {} of {}", o.snapshot, o.disk.path),
            Op::SnapRevert(o) => format!("reverting {} to snapshot {}", o.disk.path, o.snapshot),
            Op::SnapDelete(o) => format!("deleting snapshot {} of {}", o.snapshot, o.disk.path),
            Op::SnapCreateLive(o) => {
                format!("making snapshot {} of {}, which is running", o.snap.snapshot, o.snap.disk.path)
            }
            Op::SnapDeleteLive(o) => {
                format!("deleting snapshot {} of {}, which is running", o.snap.snapshot, o.snap.disk.path)
            }
            Op::Follow(o) => format!("looking after {}", o.disk.path),
            Op::Resize(o) => format!("growing {} to {} MiB", o.disk.path, o.size_mib),
            Op::Monitor(o) => format!("looking at {}", o.dir),
            Op::Send(_) => format!("sending {}", self.object()),
            Op::Pass(o) => format!("sending {} to host {}", self.object(), o.host),
            Op::Receive(_) => format!("receiving {}", self.object()),
            Op::Retire(o) => format!("removing {}, which has moved", o.dir),
            Op::Datastore(o) => format!("{} in {}", o.verb, o.dir),
            Op::Locks(o) => format!("trying locks in {}", o.dir),
            Op::Turn(o) => format!("{} (waiting for other copies)", o.of.doing()),
            Op::Meet(o) => format!("comparing {} with another host's", o.dir),
            Op::OnVolume(o) => format!("disk {} on volume {}", o.disk, o.volume),
            Op::Gone(o) => format!("deleting {} and its volumes", o.dir),
        }
    }
}

/// Does it, here. On an error nothing is visible of what was to be made, except where the operation says
/// so; what a crash leaves, the same call made again completes or displaces.
pub fn perform(op: &Op, ctx: &Ctx<'_>, job: &Job) -> Result<Answer> {
    let tm = Tm::new(ctx, job, op)?;
    let done = match op {
        Op::Clone(o) => clone::run(&tm, o),
        Op::Link(o) => ln::run(&tm, o),
        Op::Pull(o) => private::pull(&tm, o),
        Op::Store(o) => private::store(&tm, o),
        Op::MakeImage(o) => make::image(&tm, o),
        Op::MakeSwap(o) => make::swap(&tm, o),
        Op::Put(o) => put::run(&tm, o),
        Op::Delete(o) => delete::run(&tm, o),
        Op::Cpds(o) => cpds::run(&tm, o),
        Op::Mvds(o) => mvds::run(&tm, o),
        Op::Mv(o) => mv::run(&tm, o),
        Op::SnapCreate(o) => snap::create::run(&tm, o),
        Op::SnapRevert(o) => snap::revert(&tm, o),
        Op::SnapDelete(o) => snap::delete(&tm, o),
        Op::SnapCreateLive(o) => live::create(&tm, o),
        Op::SnapDeleteLive(o) => live::delete(&tm, o),
        Op::Follow(o) => live::follow(&tm, o),
        Op::Resize(o) => resize::run(&tm, o),
        Op::Receive(o) => receive::run(&tm, o),
        Op::Retire(o) => retire::run(&tm, o),
        Op::OnVolume(o) => volume::run(&tm, o),
        Op::Gone(o) => volume::gone(&tm, o),
        Op::Send(o) => return send::run(&tm, o).and_then(|told| json(&told)).with_context(|| op.doing()),
        Op::Locks(o) => return locks::run(&tm, o).and_then(|tried| json(&tried)).with_context(|| op.doing()),
        Op::Pass(_) => return Err(refuse(Class::Usage, "who has no hosts to ask passes nothing on")),
        Op::Turn(_) => return Err(refuse(Class::Usage, "a turn is taken by who runs operations")),
        Op::Meet(o) => return meet::run(&tm, o).and_then(|met| json(&met)).with_context(|| op.doing()),
        Op::Datastore(o) => return bridge::run(ctx, job, o).map(|text| Answer { text }),
        Op::Monitor(o) => return monitor::run(&tm, o).map(|text| Answer { text }),
    };
    done.map(|()| Answer::default()).with_context(|| op.doing())
}

fn json(told: &impl Serialize) -> Result<Answer> {
    Ok(Answer { text: serde_json::to_string(told).context("writing down the answer")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_survives_its_text_and_unknown_fields_are_refused() {
        let (uri, domain, target) = ("qemu:///system".into(), "one-0".into(), "vda".into());
        let machine = Machine { uri, domain, target, timeout: 60, freeze: Freeze::Agent };
        let disk = || Disk { path: "/d/1/0/disk.0".into(), image: None, format: DiskFormat::Qcow2 };
        let ops = [
            Op::Clone(Clone {
                image: "/d/2/x".into(),
                disk: "/d/1/0/disk.0".into(),
                format: DiskFormat::Raw,
                standalone: false,
                sparse: true,
                size_mib: Some(5),
                original_mib: None,
                marker: Marker::Write("ssh".into()),
            }),
            Op::SnapDelete(Snap { disk: disk(), snapshot: 3 }),
            Op::SnapDeleteLive(SnapLive { snap: Snap { disk: disk(), snapshot: 3 }, machine }),
            Op::Monitor(Monitor { dir: "/d/1".into(), vms: true }),
        ];
        for op in ops {
            let text = serde_json::to_string(&op).unwrap();
            assert_eq!(serde_json::from_str::<Op>(&text).unwrap(), op, "{text}");
            let more = text.replacen('{', "{\"also\":1,", 1);
            assert!(serde_json::from_str::<Op>(&more).is_err(), "{more}");
        }
        let nested = serde_json::to_string(&Op::SnapCreate(Snap { disk: disk(), snapshot: 0 })).unwrap();
        let more = nested.replacen("\"path\"", "\"also\":1,\"path\"", 1);
        assert!(serde_json::from_str::<Op>(&more).is_err(), "{more}");
    }
}
