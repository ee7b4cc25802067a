//! The check of images that come from outside: what a reader would be led to, and what it would choke on.

use std::ffi::OsStr;

use crate::sys::Bytes;
use crate::sys::effect::bug;

use super::error::shown;
use super::{Format, ImageError, Probe};

/// What may come in.
#[derive(Clone, Debug)]
pub struct Admit {
    /// Largest disk, as the guest sees it, and largest file.
    pub max_size: Bytes,
    /// Exact exceptions, each `backing:<name>`, `data-file:<name>`, `extent:<name>` or `format:<word>`
    /// with names as the header has them.
    pub allow: Vec<String>,
}

impl Default for Admit {
    fn default() -> Self {
        Admit { max_size: Bytes(1 << 50), allow: Vec::new() }
    }
}

impl Admit {
    fn demand(&self, what: &str, kind: &str, name: &OsStr) -> Result<(), ImageError> {
        let wanted = [kind.as_bytes(), b":", name.as_encoded_bytes()].concat();
        if self.allow.iter().any(|a| a.as_bytes() == wanted) {
            return Ok(());
        }
        let name = shown(name);
        Err(ImageError::Refused {
            what: format!("an image with {what} {name}"),
            allow: format!("{kind}:{name}"),
        })
    }
}

/// Whether an image from outside may be stored. Class refused for what would reach other files or is too
/// large, integrity for damage, unsupported for features nobody here knows.
pub fn admit(probe: &Probe, rules: &Admit) -> Result<(), ImageError> {
    if matches!(probe.format, Format::Qed | Format::Parallels | Format::Dmg) {
        rules.demand("the format", "format", probe.format.opennebula().as_ref())?;
    }
    for size in [probe.virtual_size, probe.length].into_iter().flatten() {
        if size > rules.max_size {
            return Err(ImageError::TooLarge { size, limit: rules.max_size });
        }
    }
    if let Some(backing) = probe.backing.as_ref().filter(|_| !bug("believe-header")) {
        rules.demand("the backing file", "backing", &backing.name)?;
    }
    if let Some(name) = &probe.data_file {
        rules.demand("the external data file", "data-file", name)?;
    }
    for name in &probe.extents {
        rules.demand("content in the other file", "extent", name)?;
    }
    sound(probe)
}

/// The part of the check that holds for every image, wherever it comes from.
pub(super) fn sound(probe: &Probe) -> Result<(), ImageError> {
    let Some(q) = &probe.qcow2 else { return Ok(()) };
    if q.unknown != 0 {
        return Err(ImageError::UnknownFeatures { format: probe.format, bits: q.unknown });
    }
    if q.corrupt {
        return Err(ImageError::damaged(probe.format, "it is marked as corrupt"));
    }
    let size = probe.virtual_size.unwrap_or_default().0;
    match q.damage(size, probe.length.map(|l| l.0)) {
        Some(what) => Err(ImageError::damaged(probe.format, what)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Header, MIB};
    use super::super::probe::{probe, probe_bytes};
    use super::*;
    use crate::sys::Class;

    fn judge(h: &Header, allow: &[&str]) -> Result<(), ImageError> {
        let bytes = h.bytes();
        let probe = probe_bytes(&bytes, Some(bytes.len() as u64)).unwrap();
        admit(&probe, &Admit { allow: allow.iter().map(|&a| a.into()).collect(), ..Admit::default() })
    }

    #[test]
    fn references_to_other_files_need_an_exact_permission() {
        let shadow = Header { backing: b"/etc/shadow".to_vec(), ..Header::default() };
        let e = judge(&shadow, &[]).unwrap_err();
        assert_eq!(e.class(), Class::Refused);
        assert_eq!(
            e.to_string(),
            "an image with the backing file /etc/shadow is not accepted \
             (to permit it: image.allow = [\"backing:/etc/shadow\"])"
        );
        for near in
            ["backing:/etc/", "backing:/etc/shadow2", "data-file:/etc/shadow", "/etc/shadow", "backing:*"]
        {
            assert!(judge(&shadow, &[near]).is_err(), "{near}");
        }
        judge(&shadow, &["backing:/x", "backing:/etc/shadow"]).unwrap();

        let data = vec![(0x4441_5441, b"/dev/sda".to_vec())];
        let data = Header { incompatible: 4, extensions: data, ..Header::default() };
        assert!(judge(&data, &[]).unwrap_err().to_string().contains("data-file:/dev/sda"));
        judge(&data, &["data-file:/dev/sda"]).unwrap();
        // The bit without a name, and the name without the bit.
        assert!(judge(&Header { incompatible: 4, ..Header::default() }, &[]).is_err());
        assert!(judge(&Header { incompatible: 0, ..data }, &[]).is_err());

        let vmdk = probe_bytes(b"# Disk DescriptorFile\nRW 8 FLAT \"/etc/shadow\" 0\n", None).unwrap();
        let e = admit(&vmdk, &Admit::default()).unwrap_err();
        assert!(e.to_string().contains("extent:/etc/shadow"), "{e}");
        admit(&vmdk, &Admit { allow: vec!["extent:/etc/shadow".into()], ..Admit::default() }).unwrap();
    }

    #[test]
    fn names_cannot_break_the_line() {
        let h = Header { backing: b"x\n\x1b[2Jy\xff".to_vec(), ..Header::default() };
        let text = judge(&h, &[]).unwrap_err().to_string();
        assert!(!text.contains(char::is_control), "{text:?}");
    }

    #[test]
    fn damage_and_unknown_features_are_told_apart() {
        let l1 = |n, at| Header { l1: (n, at), ..Header::default() };
        for (h, class) in [
            (l1(1, 1 << 40), Class::Integrity),
            (l1(1, u64::MAX - 0xffff), Class::Integrity),
            (l1(1, 0), Class::Integrity),
            (l1(1, 3 << 16 | 8), Class::Integrity),
            (l1(1 << 20, 3 << 16), Class::Integrity),
            (Header { size: 1 << 40, ..Header::default() }, Class::Integrity),
            (Header { incompatible: 2, ..Header::default() }, Class::Integrity),
            (Header { file: 1 << 16, ..Header::default() }, Class::Integrity),
            (Header { incompatible: 1 << 63, ..Header::default() }, Class::Unsupported),
            (Header { size: (1 << 50) + 512, ..Header::default() }, Class::Refused),
        ] {
            let e = judge(&h, &[]).unwrap_err();
            assert_eq!(e.class(), class, "{e}");
        }
        judge(&Header { incompatible: 1, ..Header::default() }, &[]).unwrap();
    }

    #[test]
    fn a_raw_file_may_be_too_large_too() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * MIB).unwrap();
        let probe = probe(&file).unwrap();
        let rules = |n| Admit { max_size: Bytes(n), ..Admit::default() };
        admit(&probe, &rules(8 * MIB)).unwrap();
        let e = admit(&probe, &rules(8 * MIB - 1)).unwrap_err();
        assert!(e.to_string().contains("image.max_size"), "{e}");
    }
}
