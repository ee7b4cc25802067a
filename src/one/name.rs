//! Names of images in a datastore directory: made the way stock drivers make them, and taken apart
//! again without ever leaving that directory.

use super::OneError;
use crate::sys::hex;
use md5::{Digest as _, Md5};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

const COMPANIONS: [&str; 2] = [".snap", ".md5sum"];

/// The name of an image in its datastore directory: one visible path component that is not the name
/// of another image's companion.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(String);

impl ImageName {
    pub fn parse(name: &str) -> Result<ImageName, &'static str> {
        let why = match name {
            "" => "it has no name",
            n if n.contains(['/', '\0']) => "it is not one path component",
            n if n.starts_with('.') => "hidden names are not images",
            n if COMPANIONS.iter().any(|suffix| n.ends_with(suffix)) => "it is the companion of an image",
            n if n.len() > 240 => "its name is too long",
            n => return Ok(ImageName(n.to_owned())),
        };
        Err(why)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Directory of the image's snapshots.
    pub fn snap(&self) -> String {
        format!("{}.snap", self.0)
    }

    /// Digest kept for replicas.
    pub fn md5sum(&self) -> String {
        format!("{}.md5sum", self.0)
    }

    /// The source answered to oned: the base path as oned wrote it, a slash, the name.
    pub fn source(&self, base_path: &str) -> String {
        format!("{base_path}/{}", self.0)
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a new image: the same for the same request, as long as the core tells when the image
/// was registered; otherwise from `now`.
pub fn image_name(id: i64, regtime: Option<u64>, now: SystemTime) -> ImageName {
    let clock = || now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let time = regtime.filter(|t| *t > 0).unwrap_or_else(clock);
    ImageName(hex(&Md5::digest(format!("{time}:{id}\n"))))
}

/// The image a SOURCE names. It must lie directly in `base_path`, compared as text after squeezing
/// slashes and dropping `.` components; nothing is looked up on storage.
pub fn source_name(base_path: &str, source: &str) -> Result<ImageName, OneError> {
    let refuse = |why| OneError::Source { source_text: source.to_owned(), base: base_path.to_owned(), why };
    if !source.starts_with('/') {
        return Err(refuse("it is not absolute"));
    }
    let (base, path) = (components(base_path), components(source));
    if path.contains(&"..") || base.contains(&"..") {
        return Err(refuse("\"..\" is not followed"));
    }
    match path.split_last() {
        Some((name, dir)) if dir == base => ImageName::parse(name).map_err(refuse),
        _ => Err(refuse("it lies elsewhere")),
    }
}

fn components(path: &str) -> Vec<&str> {
    path.split('/').filter(|c| !c.is_empty() && *c != ".").collect()
}

/// The datastore directory without the double slashes of its text.
pub(crate) fn squeeze(path: &str) -> PathBuf {
    let mut out = PathBuf::from("/");
    out.extend(components(path));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_new_image_is_named_as_stock_names_it() {
        let now = UNIX_EPOCH + Duration::from_secs(1_385_145_541);
        let name = image_name(0, Some(1_385_145_541), UNIX_EPOCH);
        // printf '1385145541:0\n' | md5sum
        assert_eq!(name.as_str(), "41838f290c3d92c4d4dcbe15251286bb");
        // As recorded from a stock driver that ran in the second of registration.
        let stock = image_name(0, Some(1_795_167_999), UNIX_EPOCH);
        assert_eq!(stock.as_str(), "ad4b151c1c9cfb44ee81508564f3d99e");
        for missing in [None, Some(0)] {
            assert_eq!(image_name(0, missing, now), name);
        }
        assert_ne!(image_name(1, Some(1_385_145_541), UNIX_EPOCH), name);
    }

    #[test]
    fn companions_and_echo() {
        let name = ImageName::parse("a").unwrap();
        assert_eq!((name.snap().as_str(), name.md5sum().as_str()), ("a.snap", "a.md5sum"));
        assert_eq!(name.source("/var/lib/one//datastores/1"), "/var/lib/one//datastores/1/a");
        assert_eq!(name.source("/ds/"), "/ds//a");
    }

    #[test]
    fn a_source_lies_directly_in_its_datastore() {
        let base = "/var/lib/one//datastores/100";
        for (source, name) in [
            ("/var/lib/one//datastores/100/abc", "abc"),
            ("/var/lib/one/datastores/100/abc", "abc"),
            ("//var/./lib/one/datastores/100//abc/", "abc"),
            ("/var/lib/one/datastores/100/a b'\"\n$(x)", "a b'\"\n$(x)"),
            ("/var/lib/one/datastores/100/-rf", "-rf"),
        ] {
            assert_eq!(source_name(base, source).unwrap().as_str(), name, "{source}");
        }
        for source in [
            "",
            "abc",
            "/",
            "/var/lib/one/datastores/100",
            "/var/lib/one/datastores/100/",
            "/var/lib/one/datastores/1000/abc",
            "/var/lib/one/datastores/10/abc",
            "/var/lib/one/datastores/100/../101/abc",
            "/var/lib/one/datastores/100/..",
            "/var/lib/one/datastores/100/x/../abc",
            "/var/lib/one/datastores/100/abc.snap/0",
            "/var/lib/one/datastores/100/abc.snap",
            "/var/lib/one/datastores/100/abc.md5sum",
            "/var/lib/one/datastores/100/.sdm",
            "/var/lib/one/datastores/100/.sdm/leases",
            "/var/lib/one/datastores/100/.monitor",
            "/etc/passwd",
            "/var/lib/one/datastores/100/a\0b",
            "fe:/var/lib/one/datastores/100/abc",
        ] {
            let error = source_name(base, source).unwrap_err();
            assert_eq!(error.class(), crate::sys::Class::Refused);
            assert!(!error.to_string().contains('\n'), "{error}");
        }
        assert!(source_name("/ds/../1", "/ds/../1/abc").is_err());
    }

    #[test]
    fn squeezing_keeps_the_directory() {
        for (path, want) in [("/a//b/./c/", "/a/b/c"), ("/", "/"), ("//x", "/x")] {
            assert_eq!(squeeze(path), PathBuf::from(want));
        }
    }
}
