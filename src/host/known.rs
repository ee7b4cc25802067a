//! The site's record of host keys (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT): plain, hashed and pattern
//! names, `@revoked` and `@cert-authority`. libssh2's own reader knows no markers and no patterns.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use sha1::{Digest as _, Sha1};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Known,
    Unknown,
    /// Another key of the same kind is recorded, there.
    Changed(PathBuf, usize),
    Revoked(PathBuf, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    None,
    Revoked,
    Authority,
}

struct Line<'a> {
    marker: Marker,
    names: &'a str,
    kind: &'a str,
    key: Vec<u8>,
}

fn parse(line: &str) -> Option<Line<'_>> {
    let mut words = line.split_ascii_whitespace().peekable();
    let marker = match words.peek()? {
        w if w.starts_with('#') => return None,
        &"@revoked" => Marker::Revoked,
        &"@cert-authority" => Marker::Authority,
        w if w.starts_with('@') => return None,
        _ => Marker::None,
    };
    if marker != Marker::None {
        words.next();
    }
    let (names, kind, key) = (words.next()?, words.next()?, words.next()?);
    Some(Line { marker, names, kind, key: STANDARD.decode(key).ok()? })
}

/// Files that are not there record nothing.
fn lines(files: &[PathBuf]) -> Vec<(&Path, String)> {
    let read = |p: &PathBuf| std::fs::read(p).map(|b| String::from_utf8_lossy(&b).into_owned());
    files.iter().filter_map(|p| read(p).ok().map(|text| (p.as_path(), text))).collect()
}

/// Every line that is about `name`.
fn each<'a>(
    texts: &'a [(&'a Path, String)],
    name: &'a str,
) -> impl Iterator<Item = (&'a Path, usize, Line<'a>)> {
    texts.iter().flat_map(move |(path, text)| {
        let numbered = text.lines().enumerate().filter_map(|(n, l)| parse(l).map(|l| (n + 1, l)));
        numbered.filter(move |(_, l)| names_match(l.names, name)).map(move |(n, l)| (*path, n, l))
    })
}

/// Judges a key. `name` is what the key is recorded under: a host's name or address, `[host]:port` for
/// other ports than 22, or an alias.
pub fn check(files: &[PathBuf], name: &str, kind: &str, key: &[u8]) -> Verdict {
    let texts = lines(files);
    let mut verdict = judge(&texts, name, kind, key);
    // A host that moved to another port keeps its key; what it is not, only its own lines can say.
    if verdict == Verdict::Unknown
        && let Some((host, _)) = name.strip_prefix('[').and_then(|n| n.split_once("]:"))
        && let v @ (Verdict::Known | Verdict::Revoked(..)) = judge(&texts, host, kind, key)
    {
        verdict = v;
    }
    verdict
}

fn judge(texts: &[(&Path, String)], name: &str, kind: &str, key: &[u8]) -> Verdict {
    let mut verdict = Verdict::Unknown;
    for (path, n, line) in each(texts, name) {
        match line.marker {
            Marker::Revoked if line.key == key => return Verdict::Revoked(path.to_owned(), n),
            Marker::None if line.key == key => verdict = Verdict::Known,
            Marker::None if line.kind == kind && verdict == Verdict::Unknown => {
                verdict = Verdict::Changed(path.to_owned(), n);
            }
            _ => {}
        }
    }
    // A host we know by keys of other kinds only is not new: it has to show one of those.
    if verdict == Verdict::Unknown
        && let Some((path, n, _)) = each(texts, name).find(|(_, _, l)| l.marker == Marker::None)
    {
        return Verdict::Changed(path.to_owned(), n);
    }
    verdict
}

/// Kinds of the keys recorded for a host; it should be asked for these first.
pub fn kinds(files: &[PathBuf], name: &str) -> Vec<String> {
    let texts = lines(files);
    let plain = each(&texts, name).filter(|(_, _, l)| l.marker == Marker::None);
    let mut kinds: Vec<String> = plain.map(|(_, _, l)| l.kind.to_owned()).collect();
    kinds.dedup();
    kinds
}

/// The file that names an authority for a host's key, if any does.
pub fn has_authority(files: &[PathBuf], name: &str) -> Option<PathBuf> {
    let texts = lines(files);
    each(&texts, name).find(|(_, _, l)| l.marker == Marker::Authority).map(|(p, _, _)| p.to_owned())
}

/// Appends a key in one write. The file and its directory are made when they are missing.
pub fn record(file: &Path, name: &str, kind: &str, key: &[u8], hashed: bool) -> io::Result<()> {
    let name = if hashed { hash_name(name)? } else { name.to_owned() };
    let mut line = format!("{name} {kind} {}\n", STANDARD.encode(key));
    if let Some(dir) = file.parent().filter(|d| !d.exists()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let open = std::fs::OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(file);
    let mut f = open?;
    let mut last = [b'\n'];
    if f.metadata()?.len() > 0 && f.seek(SeekFrom::End(-1)).is_ok() {
        f.read_exact(&mut last)?;
    }
    if last != *b"\n" {
        line.insert(0, '\n');
    }
    f.write_all(line.as_bytes())
}

/// As `ssh-keygen -l` shows it.
pub fn fingerprint(key: &[u8]) -> String {
    use sha2::Sha256;
    format!("SHA256:{}", STANDARD_NO_PAD.encode(Sha256::digest(key)))
}

/// The kind a key says it is.
pub fn kind_of(key: &[u8]) -> Option<&str> {
    let (len, rest) = key.split_at_checked(4)?;
    let len = len.iter().fold(0usize, |n, b| (n << 8) | usize::from(*b));
    std::str::from_utf8(rest.get(..len)?).ok()
}

/// The host key algorithms to offer: those the site allows, without certificates, which libssh2 does not
/// know; keys that are recorded come first.
pub fn prefer(allowed: &str, recorded: &[String]) -> String {
    let of = |kind: &str| if kind.starts_with("rsa-sha2-") { "ssh-rsa".to_owned() } else { kind.to_owned() };
    let plain: Vec<&str> =
        allowed.split(',').filter(|a| !a.contains("-cert-") && !a.starts_with("sk-")).collect();
    let (known, other): (Vec<&str>, Vec<&str>) = plain.into_iter().partition(|a| recorded.contains(&of(a)));
    [known, other].concat().join(",")
}

fn names_match(names: &str, name: &str) -> bool {
    if let Some(rest) = names.strip_prefix("|1|") {
        let decode = |s: &str| STANDARD.decode(s).ok();
        let parts = rest.split_once('|').and_then(|(salt, hash)| Some((decode(salt)?, decode(hash)?)));
        return parts.is_some_and(|(salt, hash)| hmac_sha1(&salt, name.as_bytes()) == *hash);
    }
    let mut found = false;
    for pattern in names.split(',') {
        match pattern.strip_prefix('!') {
            Some(p) if glob(p.as_bytes(), name.as_bytes()) => return false,
            None if glob(pattern.as_bytes(), name.as_bytes()) => found = true,
            _ => {}
        }
    }
    found
}

/// `*` and `?`; letters of either case. Takes time linear in both for all but one star at a time.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || c.eq_ignore_ascii_case(&name[n]) => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    p = at + 1;
                    n = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

fn hash_name(name: &str) -> io::Result<String> {
    let mut salt = [0; 20];
    let got = rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty())?;
    if got < salt.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(format!("|1|{}|{}", STANDARD.encode(salt), STANDARD.encode(hmac_sha1(&salt, name.as_bytes()))))
}

fn hmac_sha1(key: &[u8], message: &[u8]) -> [u8; 20] {
    const BLOCK: usize = 64;
    let mut block = [0; BLOCK];
    if key.len() > BLOCK {
        block[..20].copy_from_slice(&Sha1::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |with: u8| block.map(|b| b ^ with);
    let inner = Sha1::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha1::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    const B: &str = "AAAAC3NzaC1lZDI1NTE5AAAAIAEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEB";
    const ED: &str = "ssh-ed25519";

    fn verdict(text: &str, name: &str) -> Verdict {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("known_hosts");
        std::fs::write(&file, text).unwrap();
        let files = [dir.path().join("missing"), file.clone()];
        let shorten = |p: PathBuf| p.file_name().unwrap().into();
        match check(&files, name, ED, &STANDARD.decode(A).unwrap()) {
            Verdict::Changed(p, n) => Verdict::Changed(shorten(p), n),
            Verdict::Revoked(p, n) => Verdict::Revoked(shorten(p), n),
            v => v,
        }
    }

    #[test]
    fn keys_are_judged_by_all_lines() {
        let changed = |n| Verdict::Changed("known_hosts".into(), n);
        let revoked = |n| Verdict::Revoked("known_hosts".into(), n);
        for (text, name, expect) in [
            (String::new(), "h1", Verdict::Unknown),
            (format!("h1 {ED} {A}\n"), "h1", Verdict::Known),
            (format!("h2,H1,10.0.0.1 {ED} {A} comment\n"), "h1", Verdict::Known),
            (format!("# h1 {ED} {A}\nh1\nh1 {ED}\nh1 {ED} %%\n\n"), "h1", Verdict::Unknown),
            (format!("h1 {ED} {B}\n"), "h1", changed(1)),
            (format!("h1 {ED} {B}\nh1 {ED} {A}\n"), "h1", Verdict::Known),
            (format!("x y z\nh1 ssh-rsa {B}\n"), "h1", changed(2)),
            (format!("h1 {ED} {A}\n@revoked h1 {ED} {A}\n"), "h1", revoked(2)),
            (format!("@revoked * {ED} {A}\nh1 {ED} {A}\n"), "h1", revoked(1)),
            (format!("@revoked h1 {ED} {B}\n"), "h1", Verdict::Unknown),
            (format!("@cert-authority h1 {ED} {A}\n"), "h1", Verdict::Unknown),
            (format!("@new-marker h1 {ED} {A}\n"), "h1", Verdict::Unknown),
            (format!("*.example.org {ED} {A}\n"), "a.example.org", Verdict::Known),
            (format!("*.example.org,!b.* {ED} {A}\n"), "b.example.org", Verdict::Unknown),
            (format!("[h1]:22 {ED} {A}\n"), "h1", Verdict::Unknown),
            (format!("[h1]:2222 {ED} {A}\n"), "[h1]:2222", Verdict::Known),
            (format!("h1 {ED} {A}\n"), "[h1]:2222", Verdict::Known),
            (format!("h1 {ED} {B}\n"), "[h1]:2222", Verdict::Unknown),
            (format!("|1|x {ED} {A}\n|1|AA==|AA== {ED} {A}\n"), "h1", Verdict::Unknown),
        ] {
            assert_eq!(verdict(&text, name), expect, "{text}");
        }
    }

    #[test]
    fn hashed_names_are_those_of_openssh() {
        // RFC 2202, case 1 and 6.
        let hex = crate::sys::hex;
        assert_eq!(hex(&hmac_sha1(&[0x0b; 20], b"Hi There")), "b617318655057264e28bc0b6fb378c8ef146be00");
        let long = b"Test Using Larger Than Block-Size Key - Hash Key First";
        assert_eq!(hex(&hmac_sha1(&[0xaa; 80], long)), "aa4ae5e15272d00e95705637ce8a3b55ed402112");
        // From `ssh-keygen -H` of a line for h1.
        let theirs = "|1|OBs9COJB8fHgadXL0EvtpEWpL7g=|Fl+zQm452nbzGsCty5xOL6XoU0k=";
        assert!(names_match(theirs, "h1") && !names_match(theirs, "h2"));
        let name = hash_name("h1").unwrap();
        assert!(names_match(&name, "h1") && !names_match(&name, "h2"));
        assert_ne!(name, hash_name("h1").unwrap());
    }

    #[test]
    fn new_keys_are_appended_whole() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ssh/known_hosts");
        let key = STANDARD.decode(A).unwrap();
        record(&file, "h1", ED, &key, false).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("h1 {ED} {A}\n"));
        std::fs::write(&file, "h0 x y").unwrap();
        record(&file, "[h2]:99", ED, &key, true).unwrap();
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("h0 x y\n|1|"));
        assert_eq!(check(&[file], "[h2]:99", ED, &key), Verdict::Known);
        record(Path::new("/dev/null"), "h", ED, &key, true).unwrap();
    }

    #[test]
    fn recorded_kinds_are_asked_for_first() {
        let allowed =
            "ssh-ed25519-cert-v01@openssh.com,ssh-ed25519,ecdsa-sha2-nistp256,sk-x,rsa-sha2-512,rsa-sha2-256";
        assert_eq!(
            prefer(allowed, &["ssh-rsa".into()]),
            "rsa-sha2-512,rsa-sha2-256,ssh-ed25519,ecdsa-sha2-nistp256"
        );
        assert_eq!(prefer(allowed, &[]), "ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-512,rsa-sha2-256");
        let key = STANDARD.decode(A).unwrap();
        assert_eq!(kind_of(&key), Some(ED));
        assert_eq!(kind_of(&key[..3]), None);
        assert_eq!(kind_of(b"\xff\xff\xff\xffx"), None);
        assert!(fingerprint(&key).starts_with("SHA256:") && !fingerprint(&key).ends_with('='));
    }

    #[test]
    fn patterns_match_as_ssh_does() {
        for (p, n, yes) in [
            ("*", "", true),
            ("a*c*e", "abcde", true),
            ("a*c", "abcd", false),
            ("?", "", false),
            ("h?", "h1", true),
            ("", "x", false),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(glob(p.as_bytes(), n.as_bytes()), yes, "{p} {n}");
        }
    }
}
