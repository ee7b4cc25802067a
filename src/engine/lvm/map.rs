//! How a volume becomes a device of this host, and whose it is meanwhile.

use super::group::Group;
use super::view::{View, Volume};
use super::{Access, EngineError, PoolUse, Result, thin, view};
use crate::sys::fs;
use std::fmt::{self, Debug, Display};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// One life of a host: what it made active in an earlier life is active no more. A lock backend that
/// numbers hosts has both; a host alone is number 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    pub id: u64,
    pub generation: u64,
}

impl Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.generation)
    }
}

impl FromStr for Host {
    type Err = ();
    fn from_str(s: &str) -> std::result::Result<Host, ()> {
        let (id, generation) = s.rsplit_once('.').ok_or(())?;
        Ok(Host { id: id.parse().map_err(|_| ())?, generation: generation.parse().map_err(|_| ())? })
    }
}

/// What is known of the hosts of a group.
pub trait Peers: Debug + Send + Sync {
    /// As whom this host works.
    fn us(&self) -> Result<Host>;
    /// Proven, not guessed: a host that only went silent may write when it wakes.
    fn is_dead(&self, host: &Host) -> bool;
}

/// Nothing is known of others: what another host has active stays its own.
#[derive(Debug)]
pub struct Alone(pub Host);

impl Peers for Alone {
    fn us(&self) -> Result<Host> {
        Ok(self.0)
    }

    fn is_dead(&self, _host: &Host) -> bool {
        false
    }
}

/// Makes devices.
pub(super) trait Mapper: Debug + Send + Sync {
    /// Words that every command begins with.
    fn flags(&self) -> &'static [&'static str] {
        &[]
    }
    /// Whether a command that makes a volume may make its device, too.
    fn creates(&self) -> bool {
        true
    }
    /// The device, if there is one.
    fn device(&self, group: &Group, volume: &str) -> Option<PathBuf>;
    /// The device, made if need be.
    fn open(&self, group: &Group, volume: &str) -> Result<PathBuf>;
    /// Takes it away. It may be gone already.
    fn close(&self, group: &Group, volume: &str) -> Result<()>;
    /// All devices here of the group with this UUID, by their volumes' UUIDs.
    fn devices(&self, _group: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// Those of them that stand still: a command stops what it changes, and may be killed meanwhile.
    fn asleep(&self, _group: &str) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// Whether an open device is this volume of this group.
    fn is(&self, group: &str, volume: &str, device: &File) -> bool;
    /// The group's pools that are active here.
    fn pools(&self, _group: &Group) -> Result<Vec<PoolUse>> {
        Ok(Vec::new())
    }
}

/// The kernel's device mapper.
#[derive(Debug)]
pub(super) struct DeviceMapper;

/// As its name leads to it, whether it is there or not.
pub(super) fn path(group: &Group, volume: &str) -> PathBuf {
    PathBuf::from(format!("/dev/{}", group.path(volume)))
}

impl Mapper for DeviceMapper {
    fn device(&self, group: &Group, volume: &str) -> Option<PathBuf> {
        Some(path(group, volume)).filter(|p| p.exists())
    }

    fn open(&self, group: &Group, volume: &str) -> Result<PathBuf> {
        let path = path(group, volume);
        if !path.exists() {
            group.device(volume, true)?;
        }
        Ok(path)
    }

    fn close(&self, group: &Group, volume: &str) -> Result<()> {
        group.device(volume, false)
    }

    fn is(&self, group: &str, volume: &str, device: &File) -> bool {
        let uuid = fs::mapped_as(device).unwrap_or_default();
        uuid == format!("LVM-{}{volume}", view::bare(group))
    }

    fn pools(&self, group: &Group) -> Result<Vec<PoolUse>> {
        thin::pools(group)
    }

    fn devices(&self, group: &str) -> Result<Vec<String>> {
        mapped(group, |_| true)
    }

    fn asleep(&self, group: &str) -> Result<Vec<String>> {
        mapped(group, |dm| std::fs::read_to_string(dm.join("suspended")).is_ok_and(|s| s.trim() == "1"))
    }
}

/// The kernel knows devices by `LVM-<group><volume>`, also those whose names are others' by now.
fn mapped(group: &str, which: fn(&Path) -> bool) -> Result<Vec<String>> {
    let prefix = format!("LVM-{}", view::bare(group));
    let io = |source| EngineError::Io { what: "looking at this host's devices".to_owned(), source };
    let mut out = Vec::new();
    for e in std::fs::read_dir("/sys/class/block").map_err(io)? {
        let dm = e.map_err(io)?.path().join("dm");
        let uuid = std::fs::read_to_string(dm.join("uuid")).unwrap_or_default();
        let volume = uuid.trim().strip_prefix(&prefix).and_then(|v| v.get(..view::UUID));
        out.extend(volume.filter(|_| which(&dm)).map(str::to_owned));
    }
    Ok(out)
}

const ACTIVE: &str = "sdm.active.";
const READS: &str = "sdm.reads.";
const SHARES: &str = "sdm.shares.";
const LENT: &str = "sdm.lent.";

pub(super) fn host_tag(host: &Host) -> String {
    format!("sdm.host.{host}")
}

/// Says who may have a volume's device, before it is made.
pub(super) fn active_tag(host: &Host, access: Access) -> String {
    let says = match access {
        Access::Write => ACTIVE,
        Access::Share => SHARES,
        Access::Read => READS,
    };
    format!("{says}{host}")
}

fn owner(tag: &str) -> Option<(Host, Access)> {
    let all = [(ACTIVE, Access::Write), (SHARES, Access::Share), (READS, Access::Read)];
    all.into_iter().find_map(|(says, access)| Some((tag.strip_prefix(says)?.parse().ok()?, access)))
}

/// Whether this host has a volume so, or in a way that is more, in this life.
pub(super) fn has_now(v: &Volume, us: &Host, access: Access) -> bool {
    let enough = |has| has == Access::Write || access == Access::Read || has == access;
    v.tags.iter().filter_map(|t| owner(t)).any(|(h, has)| h == *us && enough(has))
}

/// The tags of this host's lives, and of lives that are proven over.
pub(super) fn ended(v: &Volume, us: &Host, peers: &dyn Peers) -> Vec<String> {
    let over = |h: Host| h.id == us.id || peers.is_dead(&h);
    let of = |t: &str| owner(t).map(|(h, _)| h).or_else(|| lender(t));
    v.tags.iter().filter(|t| of(t).is_some_and(over)).cloned().collect()
}

/// Says that who has a volume lets others have it, too.
pub(super) fn lent_tag(host: &Host) -> String {
    format!("{LENT}{host}")
}

fn lender(tag: &str) -> Option<Host> {
    tag.strip_prefix(LENT)?.parse().ok()
}

/// Refuses what another living host has and does not lend.
pub(super) fn all_lend(v: &Volume, us: &Host, peers: &dyn Peers) -> Result<()> {
    for (host, has) in v.tags.iter().filter_map(|t| owner(t)).filter(|(h, _)| h.id != us.id) {
        let lends = has == Access::Write && v.tags.contains(&lent_tag(&host));
        if !lends && !peers.is_dead(&host) {
            return Err(EngineError::InUse { what: v.name.clone(), by: format!("host {host}") });
        }
    }
    Ok(())
}

/// Whether a host, in any of its lives, lent a volume.
pub(super) fn lends(v: &Volume, host: &Host) -> bool {
    v.tags.iter().filter_map(|t| lender(t)).any(|h| h.id == host.id)
}

/// Whether a host, in any of its lives, has a volume attached so.
pub(super) fn has(v: &Volume, host: &Host, access: Access) -> bool {
    v.tags.iter().filter_map(|t| owner(t)).any(|(h, a)| h.id == host.id && a == access)
}

/// Another living host that has a volume for its machines.
pub(super) fn user(v: &Volume, us: &Host, peers: &dyn Peers) -> Option<Host> {
    let mut users = v.tags.iter().filter_map(|t| owner(t)).filter(|(_, a)| *a != Access::Read);
    users.find(|(h, _)| h.id != us.id && !peers.is_dead(h)).map(|(h, _)| h)
}

/// Refuses what another living host may have open: with a pool every volume in it, since two hosts
/// that both have a pool active destroy it.
pub(super) fn nobody_else(
    view: &View,
    v: &Volume,
    us: &Host,
    peers: &dyn Peers,
    access: Access,
) -> Result<()> {
    let pool = v.pool.as_deref().or(v.is_pool.then_some(v.name.as_str()));
    let together = |w: &Volume| pool.is_some_and(|p| w.name == p || w.pool.as_deref() == Some(p));
    for w in view.volumes.iter().filter(|w| w.name == v.name || together(w)) {
        for (host, has) in w.tags.iter().filter_map(|t| owner(t)) {
            let apart = ![access, has].contains(&Access::Write) && pool.is_none();
            if host.id != us.id && !apart && !peers.is_dead(&host) {
                return Err(EngineError::InUse { what: w.name.clone(), by: format!("host {host}") });
            }
        }
    }
    Ok(())
}
