//! What is to be mounted: an NFS export and the options of its mount, all of it checked. It comes from a
//! template that people write, and goes to a program that runs as root.

use super::{ConnectionError, Result};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::path::Path;

/// Of what mount.nfs knows, what may be asked for without a value.
pub(super) const FLAGS: [&str; 48] = [
    "ac",
    "acl",
    "async",
    "atime",
    "cto",
    "defaults",
    "diratime",
    "exec",
    "fg",
    "fsc",
    "hard",
    "intr",
    "lazytime",
    "lock",
    "migration",
    "noac",
    "noacl",
    "noatime",
    "nocto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofsc",
    "nointr",
    "nolazytime",
    "nolock",
    "nomigration",
    "nordirplus",
    "norelatime",
    "noresvport",
    "nosharecache",
    "nosoftreval",
    "nosuid",
    "rdirplus",
    "rdma",
    "relatime",
    "resvport",
    "ro",
    "rw",
    "sharecache",
    "soft",
    "softerr",
    "softreval",
    "strictatime",
    "sync",
    "tcp",
    "trunkdiscovery",
    "udp",
];
/// And what with one.
pub(super) const VALUES: [&str; 28] = [
    "acdirmax",
    "acdirmin",
    "acregmax",
    "acregmin",
    "actimeo",
    "clientaddr",
    "local_lock",
    "lookupcache",
    "max_connect",
    "minorversion",
    "mounthost",
    "mountport",
    "mountproto",
    "mountvers",
    "namlen",
    "nconnect",
    "nfsvers",
    "port",
    "proto",
    "rdirplus",
    "retrans",
    "retry",
    "rsize",
    "sec",
    "timeo",
    "vers",
    "wsize",
    "xprtsec",
];
/// They mean something in fstab only.
const TABLE_ONLY: [&str; 4] = ["_netdev", "auto", "noauto", "nofail"];
/// Behind all that was asked for, so that it wins: one attempt, and no file of the share gives anybody rights
/// of this host.
pub(super) const ALWAYS: &str = "retry=0,nosuid,nodev";
const LONGEST: usize = 1024;

/// An export that a directory is to be mounted from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Text", into = "Text")]
pub struct Share {
    host: String,
    path: String,
    /// Those asked for, with commas.
    options: String,
}

/// The same as it travels and is noted.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    host: String,
    path: String,
    options: String,
}

impl TryFrom<Text> for Share {
    type Error = ConnectionError;
    fn try_from(t: Text) -> Result<Share> {
        Share::parse(&t.host, &t.path, &t.options)
    }
}

impl From<Share> for Text {
    fn from(s: Share) -> Text {
        Text { host: s.host, path: s.path, options: s.options }
    }
}

/// As the mount table shows it.
impl Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.path)
    }
}

impl Share {
    pub fn parse(host: &str, path: &str, options: &str) -> Result<Share> {
        let bad = |what, value: &str, why| {
            let value = value.chars().take(80).collect();
            Err(ConnectionError::Bad { what, value, why })
        };
        let host = host.trim();
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let is_v6 = bare.parse::<std::net::Ipv6Addr>().is_ok();
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let is_name = host.starts_with(|c: char| c.is_ascii_alphanumeric()) && host.chars().all(fits);
        if !(is_v6 || (is_name && host.len() <= 253)) {
            return bad("host", host, "expected a host's name or address");
        }
        let host = if is_v6 { format!("[{bare}]") } else { host.to_owned() };
        let path = path.trim();
        let fits = |c: char| c.is_ascii_alphanumeric() || "/._+@~-".contains(c);
        if !path.starts_with('/') || path.len() > LONGEST || !path.chars().all(fits) {
            return bad("path", path, "expected an absolute path of letters, digits and /._+@~-");
        }
        if path.split('/').any(|c| c == "..") {
            return bad("path", path, "\"..\" is not allowed");
        }
        if options.len() > LONGEST {
            return bad("options", options, "too long");
        }
        let mut wanted = Vec::new();
        for option in options.split(',').map(str::trim).filter(|o| !o.is_empty()) {
            let fits = |c: char| c.is_ascii_alphanumeric() || "_.:@-".contains(c);
            match option.split_once('=') {
                _ if TABLE_ONLY.contains(&option) || option.starts_with("x-systemd.") => {}
                None if FLAGS.contains(&option) => wanted.push(option),
                Some((name, value))
                    if VALUES.contains(&name) && !value.is_empty() && value.chars().all(fits) =>
                {
                    wanted.push(option);
                }
                _ => return bad("option", option, "not one that a share may be mounted with"),
            }
        }
        Ok(Share { host, path: plain(path), options: wanted.join(",") })
    }

    /// Whether something that is mounted is this.
    pub(super) fn is(&self, kind: &str, source: &str) -> bool {
        let found = source.split_once(":/").map(|(host, path)| (host, plain(&format!("/{path}"))));
        ["nfs", "nfs4"].contains(&kind)
            && found.is_some_and(|(host, path)| host.eq_ignore_ascii_case(&self.host) && path == self.path)
    }

    /// What mount.nfs is told.
    pub(super) fn arguments(&self, point: &Path) -> [String; 4] {
        let comma = if self.options.is_empty() { "" } else { "," };
        let options = format!("{}{comma}{ALWAYS}", self.options);
        [self.to_string(), point.to_string_lossy().into_owned(), "-o".to_owned(), options]
    }
}

/// A path as one writes it: no slash too many.
fn plain(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|c| !c.is_empty() && *c != ".").collect();
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_share_is_what_mount_understands_and_nothing_else() {
        let s = Share::parse("filer.example", "//export/./one/", "vers=4.2, rw,noauto,x-systemd.automount")
            .unwrap();
        assert_eq!(s.to_string(), "filer.example:/export/one");
        assert_eq!(s.arguments(Path::new("/d/100"))[3], "vers=4.2,rw,retry=0,nosuid,nodev");
        assert_eq!(Share::parse("::1", "/", "").unwrap().to_string(), "[::1]:/");
        assert_eq!(Share::parse("[fe80::1]", "/x", "").unwrap().to_string(), "[fe80::1]:/x");
        for (host, path, options) in [
            ("", "/x", ""),
            ("-o", "/x", ""),
            ("a b", "/x", ""),
            ("a;b", "/x", ""),
            ("a:b", "/x", ""),
            ("a\nb", "/x", ""),
            ("$(id)", "/x", ""),
            ("[a]", "/x", ""),
            ("a", "x", ""),
            ("a", "", ""),
            ("a", "/x/../y", ""),
            ("a", "/x y", ""),
            ("a", "/x,y", ""),
            ("a", "/x'", ""),
            ("a", "/\u{e4}", ""),
            ("a", "/x", "suid"),
            ("a", "/x", "dev"),
            ("a", "/x", "bg"),
            ("a", "/x", "remount"),
            ("a", "/x", "bind"),
            ("a", "/x", "loop=/dev/loop0"),
            ("a", "/x", "X-mount.owner=0"),
            ("a", "/x", "rw -o suid"),
            ("a", "/x", "vers=4 suid"),
            ("a", "/x", "vers="),
            ("a", "/x", "rw=1"),
            ("a", "/x", "rw; touch /x"),
            ("a", "/x", "context=\"x\""),
            ("a", "/x", "addr=1.2.3.4"),
        ] {
            let e = Share::parse(host, path, options).unwrap_err();
            assert!(e.to_string().lines().count() == 1, "{e}");
        }
    }

    #[test]
    fn what_travels_is_checked_again() {
        let s = Share::parse("a", "/x", "rw").unwrap();
        let text = serde_json::to_string(&s).unwrap();
        assert_eq!(serde_json::from_str::<Share>(&text).unwrap(), s);
        assert!(serde_json::from_str::<Share>(&text.replace("\"rw\"", "\"suid\"")).is_err());
        assert!(serde_json::from_str::<Share>(&text.replace("\"/x\"", "\"/x y\"")).is_err());
    }

    #[test]
    fn a_mount_is_recognised_however_it_is_spelled() {
        let s = Share::parse("filer", "/export/one", "").unwrap();
        for (kind, source, same) in [
            ("nfs4", "filer:/export/one", true),
            ("nfs", "FILER://export//one/", true),
            ("nfs4", "filer:/export/on", false),
            ("nfs4", "filer2:/export/one", false),
            ("fuse", "filer:/export/one", false),
            ("ext4", "/dev/sda1", false),
        ] {
            assert_eq!(s.is(kind, source), same, "{kind} {source}");
        }
    }

    /// The shapes that the sudoers file allows for a program.
    fn may(program: &str, words: &str) -> bool {
        let text = include_str!("../../packaging/sudoers");
        let begin = format!("{program} ^");
        text.lines().filter_map(|l| l.trim().strip_prefix(&begin)).any(|shape| {
            use std::io::Write as _;
            let shape = shape.trim_end_matches([',', ' ', '\\']).strip_suffix('$').unwrap();
            let mut grep = Command::new("grep");
            let mut grep =
                crate::sys::fork::spawn(grep.args(["-Exqe", shape]).stdin(Stdio::piped())).unwrap();
            grep.stdin.take().unwrap().write_all(words.as_bytes()).unwrap();
            grep.wait().unwrap().success()
        })
    }

    #[test]
    fn the_sudoers_file_allows_the_commands_we_give_and_no_others() {
        let point = Path::new("/var/lib/one/datastores/100");
        let mount =
            |share: &Share, point: &Path| may("/usr/sbin/mount.nfs", &share.arguments(point).join(" "));
        let all = FLAGS.iter().map(|f| (*f).to_owned()).chain(VALUES.iter().map(|v| format!("{v}=a:4.2")));
        let all: Vec<String> = all.collect();
        for options in ["", "rw", "vers=4.2,sec=sys:krb5"].into_iter().map(str::to_owned).chain(all) {
            for host in ["10.0.0.1", "filer-1.example", "::1"] {
                let share = Share::parse(host, "/export/a_b.c+d@e~f", &options).unwrap();
                assert!(mount(&share, point), "{:?}", share.arguments(point));
            }
        }
        let share = Share::parse("filer", "/x", "").unwrap();
        for other in [
            "/etc",
            "/var/lib/one/datastores",
            "/var/lib/one/datastores/100/../../x",
            "/var/lib/one/datastores/1/x",
        ] {
            assert!(!mount(&share, Path::new(other)), "{other}");
            assert!(!may("/usr/bin/umount", other));
        }
        assert!(may("/usr/bin/umount", "/var/lib/one/datastores/100"));
        let words = share.arguments(point).join(" ");
        for (from, to) in [
            ("-o ", "-o suid,"),
            ("-o ", "-o rw,X-mount.owner=1000,"),
            ("-o ", "-o rw -o "),
            (",nosuid", ""),
            ("filer:", "/etc/x:"),
            ("filer:", "-x:"),
            ("nodev", "nodev,dev"),
            ("nodev", "nodev -i"),
        ] {
            assert!(!may("/usr/sbin/mount.nfs", &words.replace(from, to)), "{from} {to}");
        }
    }
}
