//! Whether a host that loses its leases is reset. The daemon does not tell; its arguments and its
//! configuration do.

/// What the daemon does when a lease is lost and its holder does not end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watchdog {
    /// The machine is reset before others take the lease over.
    Used,
    /// Nothing: the text says where that is set.
    Off(&'static str),
    Unknown,
}

impl Watchdog {
    /// Of the daemon with this process id.
    pub fn of(daemon: u32) -> Watchdog {
        let Ok(args) = std::fs::read(format!("/proc/{daemon}/cmdline")) else { return Watchdog::Unknown };
        let conf = std::fs::read_to_string("/etc/sanlock/sanlock.conf").unwrap_or_default();
        judge(&args, &conf)
    }
}

/// Arguments outrank the configuration; without either the watchdog is used.
fn judge(args: &[u8], conf: &str) -> Watchdog {
    let words: Vec<&[u8]> = args.split(|b| *b == 0).collect();
    let after = |w: &[u8]| words.iter().rposition(|x| *x == w).and_then(|i| words.get(i + 1)).copied();
    match after(b"-w").or_else(|| words.iter().rev().find_map(|w| w.strip_prefix(b"-w"))) {
        Some(b"0") => return Watchdog::Off("the daemon was started with -w 0"),
        Some(_) => return Watchdog::Used,
        None => {}
    }
    let set = |l: &str| {
        let (key, value) = l.split_once('=')?;
        (key.trim() == "use_watchdog").then(|| value.trim() == "0")
    };
    match conf.lines().filter_map(set).next_back() {
        Some(true) => Watchdog::Off("sanlock.conf says use_watchdog = 0"),
        _ => Watchdog::Used,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_and_configuration_are_read() {
        for (args, conf, used) in [
            ("sanlock\0daemon\0", "", true),
            ("sanlock\0daemon\0-w\x000\0-h\x001\0", "", false),
            ("sanlock\0daemon\0-w0\0", "", false),
            ("sanlock\0daemon\0-w\x001\0", "use_watchdog = 0\n", true),
            ("sanlock\0daemon\0", "# use_watchdog = 0\n", true),
            ("sanlock\0daemon\0", "use_watchdog=0", false),
        ] {
            assert_eq!(judge(args.as_bytes(), conf) == Watchdog::Used, used, "{args:?} {conf:?}");
        }
    }
}
