//! The site's ssh settings for one host, as the system's ssh works them out (`ssh -G`), and whether
//! libssh2 can do what they ask for.

use super::error::HostError;
use super::transport::expand_home;
use crate::sys::Cancel;
use crate::sys::tool::Run;
use crate::sys::user;
use crate::sys::{Tool, Tools};
use std::ffi::OsStr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

const DEADLINE: Duration = Duration::from_secs(20);

/// What to do with a host's key that nobody recorded. Changed and revoked keys are refused in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    Refuse,
    Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Any,
    V4,
    V6,
}

/// What is in force for one host.
#[derive(Clone, Debug)]
pub struct Effective {
    /// As the caller spelled it.
    pub host: String,
    pub hostname: String,
    pub port: u16,
    pub user: String,
    pub unknown: Unknown,
    /// Under which its key is recorded.
    pub key_name: String,
    pub known_hosts: Vec<PathBuf>,
    /// The one of them that new keys go to.
    pub known_hosts_user: PathBuf,
    pub hash_known_hosts: bool,
    pub identity_files: Vec<PathBuf>,
    pub identities_only: bool,
    pub auth_sock: Option<PathBuf>,
    pub connect_timeout: Option<Duration>,
    pub proxy: Option<String>,
    pub host_key_algorithms: String,
    pub kex: String,
    pub ciphers: String,
    pub macs: String,
    /// A socket under which a connection of the system's ssh may be waiting.
    control: Option<PathBuf>,
    family: Family,
    /// Settings that libssh2 has no counterpart for, by name.
    beyond: Vec<&'static str>,
}

/// Which ssh the settings need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Need {
    Nothing,
    System(String),
}

impl Effective {
    /// Asks the system's ssh: one child, no connection.
    pub fn of(
        host: &str,
        tools: &Tools,
        auth_sock: Option<&Path>,
        cancel: &Cancel,
    ) -> Result<Effective, HostError> {
        check_name(host)?;
        let args = ["-G", "--", host].map(OsStr::new);
        let out = tools
            .run(Tool::Ssh, &args, Run::new(DEADLINE, cancel))
            .map_err(|source| HostError::Config { host: host.to_owned(), source })?;
        Effective::parse(host, &String::from_utf8_lossy(&out.stdout), auth_sock)
    }

    fn parse(host: &str, text: &str, auth_sock: Option<&Path>) -> Result<Effective, HostError> {
        let lines: Vec<(&str, &str)> =
            text.lines().map(|l| l.split_once(' ').unwrap_or((l, ""))).map(|(k, v)| (k, v.trim())).collect();
        let get = |key: &str| lines.iter().find(|(k, _)| *k == key).map_or("", |(_, v)| *v);
        let all = |key: &'static str| lines.iter().filter(move |(k, _)| *k == key).map(|(_, v)| *v);
        let bad = |what: &str| HostError::Setting { host: host.to_owned(), what: what.to_owned() };
        let set = |key: &str| Some(get(key)).filter(|v| !matches!(*v, "" | "none")).map(str::to_owned);
        let hostname = get("hostname").to_ascii_lowercase();
        if hostname.is_empty() {
            return Err(bad("hostname is missing from the answer of ssh -G"));
        }
        let port = get("port").parse().map_err(|_| bad("port is no number"))?;
        let unknown = match get("stricthostkeychecking") {
            "no" | "false" | "off" | "accept-new" => Unknown::Record,
            _ => Unknown::Refuse,
        };
        let key_name = match set("hostkeyalias") {
            Some(alias) => alias,
            None if port == 22 => hostname.clone(),
            None => format!("[{hostname}]:{port}"),
        };
        let paths = |v: &str| v.split_whitespace().filter(|p| *p != "none").filter_map(expand_home).collect();
        let users: Vec<PathBuf> = paths(get("userknownhostsfile"));
        let globals: Vec<PathBuf> = paths(get("globalknownhostsfile"));
        let identity_files = all("identityfile").filter_map(|p| expand(p, &hostname)).collect();
        let auth_sock = match get("identityagent") {
            "none" => None,
            "" | "SSH_AUTH_SOCK" => auth_sock.map(Path::to_owned),
            path => expand_home(path),
        };
        let seconds = get("connecttimeout").parse().ok().filter(|s| *s > 0);
        let family = match get("addressfamily") {
            "inet" => Family::V4,
            "inet6" => Family::V6,
            _ => Family::Any,
        };
        let mut beyond: Vec<&'static str> = BEYOND.iter().filter(|k| set(k).is_some()).copied().collect();
        for (key, usual) in USUAL {
            if !get(key).is_empty() && !usual.contains(&get(key)) {
                beyond.push(key);
            }
        }
        if get("identityagent").starts_with('$') {
            beyond.push("identityagent");
        }
        Ok(Effective {
            host: host.to_owned(),
            port,
            user: get("user").to_owned(),
            unknown,
            key_name,
            known_hosts_user: users.first().cloned().unwrap_or_else(|| "/dev/null".into()),
            known_hosts: users.into_iter().chain(globals).collect(),
            hash_known_hosts: get("hashknownhosts") == "yes",
            identity_files,
            identities_only: get("identitiesonly") == "yes",
            auth_sock,
            connect_timeout: seconds.map(Duration::from_secs),
            proxy: set("proxyjump").or_else(|| set("proxycommand")),
            host_key_algorithms: get("hostkeyalgorithms").to_owned(),
            kex: get("kexalgorithms").to_owned(),
            ciphers: get("ciphers").to_owned(),
            macs: get("macs").to_owned(),
            control: set("controlpath").and_then(|p| expand_home(&p)),
            family,
            beyond,
            hostname,
        })
    }

    /// Which ssh can do this.
    pub fn need(&self, forward_agent: bool) -> Need {
        let system = |why: String| Need::System(why);
        if let Some(proxy) = &self.proxy {
            return system(format!("the way leads over {proxy}"));
        }
        if forward_agent {
            return system("the host needs our key agent".to_owned());
        }
        if self.control.as_ref().is_some_and(|p| UnixStream::connect(p).is_ok()) {
            return system("a shared connection is up".to_owned());
        }
        if let Some(key) = self.beyond.first() {
            return system(format!("setting {key}"));
        }
        if let Some(path) = super::known::has_authority(&self.known_hosts, &self.key_name) {
            return system(format!("a certificate authority for it in {}", path.display()));
        }
        Need::Nothing
    }

    /// Whether addresses of this kind may be used.
    pub fn allows(&self, addr: &std::net::SocketAddr) -> bool {
        self.family != if addr.is_ipv4() { Family::V6 } else { Family::V4 }
    }
}

/// Settings that are beyond libssh2 when they are set at all.
const BEYOND: [&str; 7] = [
    "knownhostscommand",
    "certificatefile",
    "bindaddress",
    "bindinterface",
    "revokedhostkeys",
    "pkcs11provider",
    "localcommand",
];

/// Settings that are beyond libssh2 when they are anything else.
const USUAL: [(&str, &[&str]); 5] = [
    ("checkhostip", &["no"]),
    ("verifyhostkeydns", &["false", "no"]),
    ("pubkeyauthentication", &["true", "yes"]),
    ("hostbasedauthentication", &["no"]),
    ("tunnel", &["false", "no"]),
];

/// What stands for itself on a command line, in a file name, and in a setting of the site.
fn check_name(host: &str) -> Result<(), HostError> {
    let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
    let ok = !host.is_empty() && host.len() < 256 && !host.starts_with(['-', '.']) && host.bytes().all(fits);
    if ok { Ok(()) } else { Err(HostError::Name(host.to_owned())) }
}

/// An IdentityFile with its tokens; `None` when it has one that we do not know.
fn expand(path: &str, hostname: &str) -> Option<PathBuf> {
    if !path.contains('%') {
        return expand_home(path);
    }
    let (name, home) = user::account()?;
    let (mut out, mut rest) = (String::new(), path);
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let mut chars = after.chars();
        match chars.next()? {
            '%' => out.push('%'),
            'd' => out.push_str(home.to_str()?),
            'h' => out.push_str(hostname),
            'u' => out.push_str(&name),
            _ => return None,
        }
        rest = chars.as_str();
    }
    out.push_str(rest);
    expand_home(&out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "host h1\nuser oneadmin\nhostname 10.0.0.7\nport 22\naddressfamily any\ncheckhostip no\n\
        controlmaster false\nhashknownhosts yes\nidentitiesonly no\npubkeyauthentication true\n\
        stricthostkeychecking ask\ntunnel false\nverifyhostkeydns false\nhostbasedauthentication no\n\
        identityfile ~/.ssh/id_ed25519\nidentityfile /k/%h.key\nidentityfile /k/%Z\n\
        globalknownhostsfile /etc/ssh/ssh_known_hosts\nuserknownhostsfile /x/known_hosts /x/known_hosts2\n\
        connecttimeout none\nforwardagent no\n";

    fn parse(more: &str) -> Effective {
        Effective::parse("h1", &format!("{more}{PLAIN}"), Some(Path::new("/run/agent"))).unwrap()
    }

    #[test]
    fn the_usual_settings_are_done_in_process() {
        let e = parse("");
        assert_eq!(e.need(false), Need::Nothing);
        assert_eq!((e.hostname.as_str(), e.port, e.user.as_str()), ("10.0.0.7", 22, "oneadmin"));
        assert_eq!(e.unknown, Unknown::Refuse);
        assert_eq!(e.key_name, "10.0.0.7");
        assert_eq!(e.known_hosts_user, Path::new("/x/known_hosts"));
        assert_eq!(e.known_hosts.len(), 3);
        assert_eq!(e.identity_files.last().unwrap(), Path::new("/k/10.0.0.7.key"));
        assert_eq!(e.identity_files.len(), 2);
        assert_eq!(e.auth_sock.as_deref(), Some(Path::new("/run/agent")));
        assert_eq!(e.connect_timeout, None);
    }

    #[test]
    fn what_libssh2_lacks_takes_the_system_ssh() {
        for (more, why) in [
            ("proxyjump gate\n", "the way leads over gate"),
            ("proxycommand nc %h %p\n", "the way leads over nc %h %p"),
            ("certificatefile ~/.ssh/x-cert.pub\n", "setting certificatefile"),
            ("knownhostscommand /bin/x\n", "setting knownhostscommand"),
            ("verifyhostkeydns true\n", "setting verifyhostkeydns"),
            ("pubkeyauthentication no\n", "setting pubkeyauthentication"),
            ("checkhostip yes\n", "setting checkhostip"),
            ("identityagent $OTHER\n", "setting identityagent"),
        ] {
            assert_eq!(parse(more).need(false), Need::System(why.to_owned()), "{more}");
        }
        for more in
            ["proxyjump none\n", "proxycommand none\n", "controlpath none\n", "certificatefile none\n"]
        {
            assert_eq!(parse(more).need(false), Need::Nothing, "{more}");
        }
        assert!(matches!(parse("").need(true), Need::System(_)));
    }

    #[test]
    fn a_live_shared_connection_is_used_and_a_dead_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ctl");
        let more = format!("controlpath {}\n", path.display());
        assert_eq!(parse(&more).need(false), Need::Nothing);
        let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(parse(&more).need(false), Need::System(_)));
        drop(socket);
        assert_eq!(parse(&more).need(false), Need::Nothing, "the file is there, nobody listens");
    }

    #[test]
    fn words_of_settings() {
        for (word, unknown) in [
            ("true", Unknown::Refuse),
            ("yes", Unknown::Refuse),
            ("ask", Unknown::Refuse),
            ("nonsense", Unknown::Refuse),
            ("false", Unknown::Record),
            ("off", Unknown::Record),
            ("accept-new", Unknown::Record),
        ] {
            assert_eq!(parse(&format!("stricthostkeychecking {word}\n")).unknown, unknown, "{word}");
        }
        assert_eq!(parse("port 2222\n").key_name, "[10.0.0.7]:2222");
        assert_eq!(parse("port 2222\nhostkeyalias gold\n").key_name, "gold");
        assert_eq!(parse("identityagent none\n").auth_sock, None);
        assert_eq!(parse("identityagent /a\n").auth_sock.as_deref(), Some(Path::new("/a")));
        assert_eq!(parse("connecttimeout 4\n").connect_timeout, Some(Duration::from_secs(4)));
        let [v4, v6] = ["10.0.0.1:1", "[::1]:1"].map(|a| a.parse().unwrap());
        for (word, expect) in [("any", (true, true)), ("inet", (true, false)), ("inet6", (false, true))] {
            let e = parse(&format!("addressfamily {word}\n"));
            assert_eq!((e.allows(&v4), e.allows(&v6)), expect, "{word}");
        }
        assert!(Effective::parse("h", "port x\nhostname y\n", None).is_err());
        assert!(Effective::parse("h", "", None).is_err());
    }

    #[test]
    fn hostile_names_are_refused() {
        for ok in ["h1", "h1.example.org", "10.0.0.1", "fe80::1", "a_b"] {
            assert!(check_name(ok).is_ok(), "{ok}");
        }
        for bad in [
            "",
            "-oProxyCommand=x",
            "h1;id",
            "h 1",
            "h\n",
            "h/..",
            "../x",
            "%h",
            "a@b",
            "ü",
            &"a".repeat(256),
        ] {
            assert!(matches!(check_name(bad), Err(HostError::Name(_))), "{bad}");
        }
    }
}
