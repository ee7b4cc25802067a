//! A volume group as one query shows it, and what its names and tags mean.
//!
//! | volume | is |
//! |---|---|
//! | `sdm-meta` | the manager's records |
//! | `sdm-new-<job>-<n>` | staged; with a tag `sdm.to=<name>/<grave>` it has taken the place of `<name>` |
//! | `sdm-del-<grave>` | a tombstone |
//! | any other name | public |
//!
//! The tag decides a replacement, in one commit of the group's metadata: from then on the volume that
//! still has the name is the tombstone. The two renames that follow tidy, whoever makes them.

use super::{EngineError, Grave, Identity, Kind, Name, Object, Place, Result};
use crate::lock::JobId;
use crate::sys::Bytes;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

pub(super) const META: &str = "sdm-meta";
const NEW: &str = "sdm-new-";
const DEL: &str = "sdm-del-";
const OURS: &str = "sdm-";
const TO: &str = "sdm.to=";
/// Lock leases of a backend that keeps them in the group.
pub const LEASES: &str = "sdm-leases";
const BURIED: &str = "sdm.buried.";
/// What a query asks for. Activity is not among it: that is this host's alone.
pub(super) const FIELDS: &str = "lv_name,lv_uuid,lv_size,lv_tags,lv_layout,lv_time,pool_lv,\
                                 vg_uuid,vg_seqno,vg_tags,vg_extent_size,vg_size,vg_free,vg_mda_free";
/// The same of a group that has no volumes.
pub(super) const GROUP_FIELDS: &str = "vg_uuid,vg_seqno,vg_tags,vg_extent_size,vg_size,vg_free,vg_mda_free";

/// Where volumes lie, a row for each part.
pub(super) const EXTENTS: &str = "lv_name,seg_pe_ranges";

/// Of one of them.
pub(super) fn extents(json: &[u8], volume: &str) -> std::result::Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct Part {
        lv_name: String,
        seg_pe_ranges: String,
    }
    #[derive(Deserialize)]
    struct Parts {
        lv: Vec<Part>,
    }
    #[derive(Deserialize)]
    struct All {
        report: Vec<Parts>,
    }
    let all: All = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    let own = all.report.into_iter().flat_map(|r| r.lv).filter(|p| p.lv_name == volume);
    let out: Vec<String> = own.map(|p| p.seg_pe_ranges).collect();
    let is_range = |e: &String| e.starts_with("/dev/") && !e.contains([' ', ',']);
    if out.is_empty() || !out.iter().all(is_range) {
        return Err(format!("{volume} lies at {out:?}"));
    }
    Ok(out)
}

/// A row as LVM prints it: everything is text.
#[derive(Debug, Deserialize)]
struct Row {
    #[serde(default)]
    lv_name: String,
    #[serde(default)]
    lv_uuid: String,
    #[serde(default)]
    lv_size: String,
    #[serde(default)]
    lv_tags: String,
    #[serde(default)]
    lv_layout: String,
    #[serde(default)]
    lv_time: String,
    #[serde(default)]
    pool_lv: String,
    vg_uuid: String,
    vg_seqno: String,
    vg_tags: String,
    vg_extent_size: String,
    vg_size: String,
    vg_free: String,
    vg_mda_free: String,
}

#[derive(Debug, Deserialize)]
struct Report {
    report: Vec<Section>,
}

#[derive(Debug, Deserialize)]
struct Section {
    #[serde(default)]
    lv: Vec<Row>,
    #[serde(default)]
    vg: Vec<Row>,
}

#[derive(Clone, Debug)]
pub struct Volume {
    pub name: String,
    pub(super) id: Identity,
    pub(super) uuid: String,
    pub(super) size: Bytes,
    pub(super) tags: Vec<String>,
    pub(super) pool: Option<String>,
    pub(super) is_pool: bool,
    made: i64,
}

impl Volume {
    /// The replacement this volume's tag decides, as long as it is not tidied.
    fn takes_over(&self) -> Option<(Name, Grave)> {
        self.name.strip_prefix(NEW)?;
        let (name, grave) = self.tags.iter().find_map(|t| t.strip_prefix(TO))?.split_once('/')?;
        Some((Name::parse(name).ok()?, grave.parse().ok()?))
    }

    fn own_place(&self) -> Option<Place> {
        if let Some(rest) = self.name.strip_prefix(NEW) {
            let (job, n) = rest.rsplit_once('-')?;
            return Some(Place::Staged(job.parse().ok()?, n.parse().ok()?));
        }
        if let Some(rest) = self.name.strip_prefix(DEL) {
            return rest.parse().ok().map(Place::Dead);
        }
        if self.name.starts_with(OURS) {
            return None;
        }
        Name::parse(&self.name).ok().map(Place::Public)
    }

    pub(super) fn buried_tags(&self) -> Vec<String> {
        self.tags.iter().filter(|t| t.starts_with(BURIED)).cloned().collect()
    }

    fn buried(&self) -> Option<i64> {
        self.tags.iter().find_map(|t| t.strip_prefix(BURIED)?.parse().ok())
    }
}

/// One state of the group, whole: LVM's metadata changes by commits, and each has a number.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub volumes: Vec<Volume>,
    pub group: String,
    pub seqno: u64,
    pub tags: Vec<String>,
    pub extent: u64,
    pub size: Bytes,
    pub free: Bytes,
    pub metadata_free: Bytes,
}

fn words(tags: &str) -> Vec<String> {
    tags.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect()
}

/// Characters of a UUID, as the kernel writes it.
pub(super) const UUID: usize = 32;

/// A UUID as the kernel writes it.
pub(super) fn bare(uuid: &str) -> String {
    uuid.replace('-', "")
}

/// Eight bytes of a digest, as a number.
fn number(text: &str, part: usize) -> u64 {
    let hash = Sha256::digest(text);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[part * 8..part * 8 + 8]);
    u64::from_be_bytes(first)
}

/// The volume of a place that is no replacement in progress.
pub(super) fn volume_name(at: &Place) -> Result<String> {
    match at {
        Place::Staged(job, n) => Ok(format!("{NEW}{job}-{n}")),
        Place::Dead(grave) => Ok(format!("{DEL}{grave}")),
        Place::Public(name) => {
            let text = name.as_str();
            let bad = |why| Err(EngineError::BadName { name: text.to_owned(), why });
            let fits = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
            if text.contains('/') {
                // A volume group has no directories: the one it would lie in does not exist.
                return Err(EngineError::Absent(text.to_owned()));
            }
            if !text.chars().all(fits) || text.starts_with('-') || text.len() > 100 {
                return bad("not one that a logical volume can have");
            }
            if text.starts_with(OURS) { bad("the manager's own volumes") } else { Ok(text.to_owned()) }
        }
    }
}

pub(super) fn to_tag(name: &Name, grave: &Grave) -> String {
    format!("{TO}{name}/{grave}")
}

pub(super) fn buried_tag(when: i64) -> String {
    format!("{BURIED}{when}")
}

impl View {
    pub(super) fn parse(json: &[u8]) -> std::result::Result<Option<View>, String> {
        let report: Report = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let rows: Vec<Row> = report.report.into_iter().flat_map(|s| s.lv.into_iter().chain(s.vg)).collect();
        let num = |s: &str| s.parse::<u64>().map_err(|_| format!("{s:?} is no number"));
        let Some(first) = rows.first() else { return Ok(None) };
        let mut view = View {
            volumes: Vec::new(),
            group: first.vg_uuid.clone(),
            seqno: num(&first.vg_seqno)?,
            tags: words(&first.vg_tags),
            extent: num(&first.vg_extent_size)?,
            size: Bytes(num(&first.vg_size)?),
            free: Bytes(num(&first.vg_free)?),
            metadata_free: Bytes(num(&first.vg_mda_free)?),
        };
        for row in rows.iter().filter(|r| !r.lv_name.is_empty()) {
            let layout = words(&row.lv_layout);
            view.volumes.push(Volume {
                name: row.lv_name.clone(),
                id: Identity { ino: number(&row.lv_uuid, 0), born: number(&row.lv_uuid, 1) },
                uuid: bare(&row.lv_uuid),
                size: Bytes(num(&row.lv_size)?),
                tags: words(&row.lv_tags),
                pool: Some(row.pool_lv.clone()).filter(|p| !p.is_empty()),
                is_pool: layout.iter().any(|l| l == "pool"),
                made: row.lv_time.parse().unwrap_or(0),
            });
        }
        Ok(Some(view))
    }

    /// A number that tells this group from others.
    pub(super) fn area(&self) -> u64 {
        number(&self.group, 0)
    }

    pub(super) fn named(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }

    /// The first replacement that is decided and not tidied: who takes over, which name, and where
    /// the volume goes that has the name.
    pub(super) fn unfinished(&self) -> Option<(&Volume, Name, Grave)> {
        self.volumes.iter().find_map(|v| v.takes_over().map(|(name, grave)| (v, name, grave)))
    }

    fn place(&self, v: &Volume) -> Option<Place> {
        if let Some((name, _)) = v.takes_over() {
            return Some(Place::Public(name));
        }
        let own = v.own_place()?;
        let over = |w: &Volume| w.takes_over().filter(|(name, _)| name.as_str() == v.name);
        Some(match self.volumes.iter().find_map(over) {
            Some((_, grave)) => Place::Dead(grave),
            None => own,
        })
    }

    pub(super) fn at(&self, at: &Place) -> Option<&Volume> {
        self.volumes.iter().find(|v| self.place(v).as_ref() == Some(at))
    }

    /// The volume at a place, which must be the object meant.
    pub(super) fn expect(&self, at: &Place, id: Identity) -> Result<&Volume> {
        match self.at(at) {
            None => Err(EngineError::Absent(at.to_string())),
            Some(v) if v.id == id => Ok(v),
            Some(_) => Err(EngineError::Changed(at.to_string())),
        }
    }

    pub(super) fn object(&self, v: &Volume) -> Option<Object> {
        let place = self.place(v)?;
        let kind = if v.is_pool { Kind::Pool } else { Kind::File };
        let changed = match &place {
            Place::Dead(_) => v.buried().unwrap_or(v.made),
            _ => v.made,
        };
        // A thin volume's own share is known only where its pool is active.
        let allocated = if v.pool.is_some() { Bytes(0) } else { v.size };
        Some(Object { place, kind, id: v.id, size: v.size, allocated, changed })
    }

    pub(super) fn objects(&self, wanted: impl Fn(&Place) -> bool) -> Vec<Object> {
        let all = self.volumes.iter().filter_map(|v| self.object(v));
        let mut out: Vec<Object> = all.filter(|o| wanted(&o.place)).collect();
        out.sort_by(|a, b| a.place.cmp(&b.place));
        out
    }

    /// Jobs that staged something.
    pub(super) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.volumes.iter().filter_map(|v| match self.place(v) {
            Some(Place::Staged(job, _)) => Some(job),
            _ => None,
        })
    }

    /// Names that begin as ours do and mean nothing.
    pub(super) fn strays(&self) -> Vec<String> {
        let odd = |v: &&Volume| {
            v.name.starts_with(OURS) && ![META, LEASES].contains(&v.name.as_str()) && v.own_place().is_none()
        };
        let odd = self.volumes.iter().filter(odd);
        odd.map(|v| format!("logical volume {} is not part of the format", v.name)).collect()
    }
}
