//! Names of volume groups and volumes, as the stock driver `lvm` gives them (contract 2.5, 3.7).

use super::OneError;
use std::path::{Path, PathBuf};

/// A volume of a datastore's group: an image, or the disk of a VM. What was made of it is named after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub ds: i64,
    name: String,
    pool: String,
    /// VM and disk.
    disk: Option<(u32, u32)>,
}

/// The volume group of an image datastore, as a place.
pub fn group(ds: i64) -> PathBuf {
    PathBuf::from(format!("/dev/vg-one-{ds}"))
}

fn number(s: &str) -> Option<u32> {
    s.parse().ok().filter(|n: &u32| n.to_string() == s)
}

impl Volume {
    pub fn image(ds: i64, id: i64) -> Volume {
        let name = format!("img-one-{id}");
        Volume { ds, pool: format!("{name}-pool"), name, disk: None }
    }

    pub fn disk(ds: i64, vm: u32, disk: u32) -> Volume {
        let (name, pool) = (format!("vm-one-{vm}-{disk}"), format!("vm-one-{vm}-pool"));
        Volume { ds, name, pool, disk: Some((vm, disk)) }
    }

    /// The image that a SOURCE or the PATH of a clone names.
    pub fn parse(source: &str) -> Result<Volume, OneError> {
        let parts = source.strip_prefix("vg-one-").and_then(|s| s.split_once("/img-one-"));
        let parts = parts.and_then(|(ds, id)| Some((number(ds)?, number(id)?)));
        let wrong = || OneError::NoVolume { source_text: source.to_owned() };
        parts.map(|(ds, id)| Volume::image(ds.into(), id.into())).ok_or_else(wrong)
    }

    /// The same, of this datastore and no other.
    pub fn parse_of(ds: i64, source: &str) -> Result<Volume, OneError> {
        let v = Volume::parse(source)?;
        if v.ds == ds { Ok(v) } else { Err(OneError::OtherGroup { source_text: source.to_owned(), ds }) }
    }

    /// An image or a VM's disk.
    pub fn parse_any(source: &str) -> Result<Volume, OneError> {
        let disk = || {
            let (ds, rest) = source.strip_prefix("vg-one-")?.split_once("/vm-one-")?;
            let (vm, disk) = rest.split_once('-')?;
            Some(Volume::disk(number(ds)?.into(), number(vm)?, number(disk)?))
        };
        disk().map_or_else(|| Volume::parse(source), Ok)
    }

    /// The image whose device this is.
    pub fn of_device(path: &Path) -> Option<Volume> {
        Volume::parse(path.to_str()?.strip_prefix("/dev/")?).ok()
    }

    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// What is answered to oned as its source.
    pub fn source(&self) -> String {
        format!("vg-one-{}/{}", self.ds, self.name)
    }

    /// The VM and the disk that it is.
    pub fn vm_and_disk(&self) -> Option<(u32, u32)> {
        self.disk
    }

    /// The pool that it lies in when it is thin.
    pub fn pool(&self) -> &str {
        &self.pool
    }

    /// What is leased: a pool and its volumes are one slab, an image has the same name with and without.
    pub fn slab(&self) -> &str {
        if self.disk.is_some() { &self.pool } else { &self.name }
    }

    pub fn snapshot(&self, n: i64) -> String {
        format!("{}_one_s{n}", self.name)
    }

    /// Whether a volume was made of this one: a snapshot, for a user or for a backup.
    pub fn is_made_of(&self, volume: &str) -> bool {
        volume.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with("_one_"))
    }

    /// Whether a volume, by its name, is in this one's pool if it has one.
    pub fn shares_pool(&self, volume: &str) -> bool {
        let of_vm = || volume.starts_with(self.pool.trim_end_matches("pool")) && volume != self.pool;
        volume == self.name || self.is_made_of(volume) || (self.disk.is_some() && of_vm())
    }
}

impl std::fmt::Display for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.source())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_stock() {
        let v = Volume::image(100, 7);
        assert_eq!(v.source(), "vg-one-100/img-one-7");
        assert_eq!(Volume::parse("vg-one-100/img-one-7").unwrap(), v);
        assert_eq!((v.pool(), v.snapshot(3).as_str()), ("img-one-7-pool", "img-one-7_one_s3"));
        assert_eq!(Volume::of_device(Path::new("/dev/vg-one-100/img-one-7")).unwrap(), v);
        let d = Volume::parse_any("vg-one-100/vm-one-3-0").unwrap();
        assert_eq!((d.pool(), d.slab(), d.vm_and_disk()), ("vm-one-3-pool", "vm-one-3-pool", Some((3, 0))));
        assert!(d.shares_pool("vm-one-3-1_one_s0") && d.shares_pool("vm-one-3-0"));
        assert!(
            !d.shares_pool("vm-one-3-pool")
                && !d.shares_pool("vm-one-31-0")
                && !d.is_made_of("vm-one-3-1_one_s0")
        );
        assert!(!v.shares_pool("img-one-70") && v.shares_pool("img-one-7_one_s0"));
        assert!(v.is_made_of("img-one-7_one_s3") && v.is_made_of("img-one-7_one_backup_0"));
        assert!(!v.is_made_of("img-one-7-pool") && !v.is_made_of("img-one-70_one_s3"));
        assert_eq!(group(100), PathBuf::from("/dev/vg-one-100"));
    }

    #[test]
    fn a_source_is_an_image_of_the_datastore_s_own_group() {
        for bad in [
            "",
            "vg-one-100",
            "vg-one-100/",
            "vg-one-100/vm-one-1-0",
            "vg-one-100/sdm-meta",
            "/dev/vg-one-100/img-one-7",
            "vg-one-100/img-one-7/..",
            "vg-one-0100/img-one-7",
            "vg-one-100/img-one--7",
            "vg-one-100/img-one-7 ",
            "vg-one-100/img-one-7-pool",
            "root/img-one-7",
        ] {
            assert!(Volume::parse(bad).is_err(), "{bad:?}");
            assert!(Volume::parse_any(bad).is_err() || bad.ends_with("vm-one-1-0"), "{bad:?}");
        }
        for bad in ["vg-one-1/vm-one-1-pool", "vg-one-1/vm-one-1-0_one_s1", "vg-one-1/vm-one-01-0"] {
            assert!(Volume::parse_any(bad).is_err(), "{bad:?}");
        }
        assert!(Volume::parse_of(100, "vg-one-101/img-one-7").is_err());
    }
}
