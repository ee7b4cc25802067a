//! What the PATH of an image is: a local path, a web address, or something not offered.

use super::{HostName, OneError};
use std::path::PathBuf;

/// Bytes of a path that the kernel takes.
pub(super) const LONGEST: usize = 4095;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImagePath {
    Local(PathBuf),
    /// An http or https URL, unchanged. May carry a password: show it with `shown`.
    Http(String),
    /// A path on another host: `ssh://[user@]host:/path`.
    Ssh(HostName, PathBuf),
}

impl ImagePath {
    /// For messages and logs: without user, password, query and fragment.
    pub fn shown(&self) -> String {
        match self {
            ImagePath::Local(path) => path.display().to_string(),
            ImagePath::Http(url) => crate::data::shown(url),
            ImagePath::Ssh(host, path) => format!("{host}:{}", path.display()),
        }
    }
}

/// Tells what `path` is. Relative paths and unknown schemes are refused, as are control characters
/// and blanks in URLs.
pub fn image_path(path: &str) -> Result<ImagePath, OneError> {
    let refuse = |why| OneError::Path { path: path.chars().take(200).collect(), why };
    if let Some((scheme, rest)) = path.split_once("://").filter(|(s, _)| is_scheme(s)) {
        let scheme = scheme.to_ascii_lowercase();
        if scheme == "ssh" {
            // Without the rest: some write a password there.
            let refuse = |why| OneError::Path { path: "ssh://".into(), why };
            return on_host(rest)
                .ok_or_else(|| refuse("is followed by [user@]host:/path, and by nothing else"));
        }
        if scheme != "http" && scheme != "https" {
            return Err(OneError::Scheme { scheme });
        }
        // Without the rest: it may hold a password.
        let refuse = |why| Err(OneError::Path { path: format!("{scheme}://"), why });
        if rest.is_empty() || rest.starts_with(['/', '?', '#']) {
            return refuse("names no host");
        }
        if path.len() > 2 * LONGEST {
            return refuse("begins a URL that is too long");
        }
        if path.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return refuse("begins a URL with blanks or control characters: write them as %XX");
        }
        return Ok(ImagePath::Http(path.to_owned()));
    }
    match path {
        "" => Err(refuse("is empty")),
        p if p.len() > LONGEST => Err(refuse("is too long")),
        // It may be a URL with a slash too few, and then hold a password.
        p if !p.starts_with('/') => {
            let path = shown_word(p);
            Err(OneError::Path { path, why: "is neither an absolute path nor a URL" })
        }
        p if p.contains('\0') => Err(refuse("holds a NUL byte")),
        p => Ok(ImagePath::Local(p.into())),
    }
}

fn on_host(text: &str) -> Option<ImagePath> {
    let (host, path) = match text.split_once('[') {
        Some((user, rest)) => {
            let (ip, path) = rest.split_once("]:")?;
            (format!("{user}{ip}"), path)
        }
        None => text.split_once(':').map(|(host, path)| (host.to_owned(), path))?,
    };
    let is_path = path.starts_with('/') && path.len() <= LONGEST && !path.contains('\0');
    Some(ImagePath::Ssh(HostName::parse(&host).ok().filter(|_| is_path)?, path.into()))
}

/// The beginning of what is no path, without what may be user, password or query.
fn shown_word(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    text.rsplit('@').next().unwrap_or_default().chars().take(200).collect()
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::Class;

    #[test]
    fn paths_and_web_addresses() {
        for local in ["/a.img", "/a://b", "/with 'quotes' \"and\"\nnewline", "/-rf", "/a/../b"] {
            assert_eq!(image_path(local).unwrap(), ImagePath::Local(local.into()));
        }
        for url in ["http://h/x", "HTTPS://h", "https://u:p@h:8/x?y#z"] {
            assert_eq!(image_path(url).unwrap(), ImagePath::Http(url.into()));
        }
    }

    #[test]
    fn paths_on_other_hosts() {
        for (text, host, path) in [
            ("ssh://h1:/a.img", "h1", "/a.img"),
            ("SSH://oneadmin@h1.example:/a:b", "oneadmin@h1.example", "/a:b"),
            ("ssh://[::1]:/a", "::1", "/a"),
            ("ssh://u@[fe80::1]:/a", "u@fe80::1", "/a"),
        ] {
            let want = ImagePath::Ssh(HostName::parse(host).unwrap(), path.into());
            assert_eq!(image_path(text).unwrap(), want, "{text}");
        }
        for bad in [
            "ssh://",
            "ssh://h",
            "ssh://h/x",
            "ssh://h:",
            "ssh://h:x",
            "ssh://:/x",
            "ssh://-oProxyCommand=x:/y",
            "ssh://h h:/x",
            "ssh://[::1:/x",
            "ssh://h:/x\0",
            "ssh://u:secret@h:/x",
            "ssh://h;id:/x",
        ] {
            let error = image_path(bad).unwrap_err();
            assert_eq!(error.class(), Class::Usage, "{bad}");
            assert!(
                !error.to_string().contains(['\n', '\0']) && !error.to_string().contains("secret"),
                "{error}"
            );
        }
    }

    #[test]
    fn everything_else_is_refused_in_one_line() {
        let schemes = ["s3", "rbd", "lxd", "rsync", "restic", "onebex", "docker", "file", "FTP", "x-y+z.1"];
        for scheme in schemes {
            let error = image_path(&format!("{scheme}://host/x")).unwrap_err();
            assert_eq!(error.class(), Class::Unsupported);
            assert!(error.to_string().contains("not supported yet"), "{error}");
        }
        for bad in
            ["", "a.img", "-rf", "../x", "http://", "http:///x", "http://h/a b", "http://h/\nERROR: 1 x"]
        {
            let error = image_path(bad).unwrap_err();
            assert_eq!(error.class(), Class::Usage);
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        for (url, shown) in [
            ("https://u:p@h:8/x?token=1#z", "https://h:8/x"),
            ("http://h", "http://h"),
            ("http://u:p@h?x", "http://h"),
            ("http://h/a@b", "http://h/a@b"),
        ] {
            assert_eq!(image_path(url).unwrap().shown(), shown);
        }
        let long = format!("http://u:secret@h/{}", "x".repeat(10_000));
        for bad in [
            "http:///u:secret@h/x",
            "http:/u:secret@h/x",
            "u:secret@h/x?secret",
            "http://u:secret@h/ x",
            &long,
        ] {
            let error = image_path(bad).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.len() < 300, "{error}");
        }
    }
}
