//! Names of volume groups and volumes, as the stock driver `lvm` gives them (contract 2.5, 3.7).

use super::OneError;
use std::path::PathBuf;

/// A volume of a datastore's group: an image, or the disk of a VM. Its pool and its snapshots are named
/// after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub ds: i64,
    name: String,
}

/// The volume group of an image datastore, as a place.
pub fn group(ds: i64) -> PathBuf {
    PathBuf::from(format!("/dev/vg-one-{ds}"))
}

impl Volume {
    pub fn image(ds: i64, id: i64) -> Volume {
        Volume { ds, name: format!("img-one-{id}") }
    }

    /// The image that a SOURCE or the PATH of a clone names.
    pub fn parse(source: &str) -> Result<Volume, OneError> {
        let number = |s: &str| s.parse::<u32>().ok().filter(|n| n.to_string() == s).map(i64::from);
        let parts = source.strip_prefix("vg-one-").and_then(|s| s.split_once("/img-one-"));
        let parts = parts.and_then(|(ds, id)| Some((number(ds)?, number(id)?)));
        let wrong = || OneError::NoVolume { source_text: source.to_owned() };
        parts.map(|(ds, id)| Volume::image(ds, id)).ok_or_else(wrong)
    }

    /// The same, of this datastore and no other.
    pub fn parse_of(ds: i64, source: &str) -> Result<Volume, OneError> {
        let v = Volume::parse(source)?;
        if v.ds == ds { Ok(v) } else { Err(OneError::OtherGroup { source_text: source.to_owned(), ds }) }
    }

    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// What is answered to oned as its source.
    pub fn source(&self) -> String {
        format!("vg-one-{}/{}", self.ds, self.name)
    }

    /// The pool that it lies in when it is thin.
    pub fn pool(&self) -> String {
        format!("{}-pool", self.name)
    }

    pub fn snapshot(&self, n: i64) -> String {
        format!("{}_one_s{n}", self.name)
    }

    /// Whether a volume was made of this one: a snapshot, for a user or for a backup.
    pub fn is_made_of(&self, volume: &str) -> bool {
        volume.strip_prefix(&self.name).is_some_and(|rest| rest.starts_with("_one_"))
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
        assert_eq!((v.pool().as_str(), v.snapshot(3).as_str()), ("img-one-7-pool", "img-one-7_one_s3"));
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
        }
        assert!(Volume::parse_of(100, "vg-one-101/img-one-7").is_err());
    }
}
