//! Moves from host to host, by the bytes that pass the front-end: straight where one host gets to the other,
//! with the front-end's key agent or with keys of its own; else through the front-end, which says why.

use crate::hosts::eventually;
use crate::local::{DS, SOON, Site};

const MIB: u64 = 32;

/// VM 7 on `h1`, with so much that nobody can compress.
fn site() -> Site {
    let site = Site::new("local", "raw", 64);
    let at = format!("{DS}/100/7/disk.0");
    site.ok("clone", &[&format!("fe:{DS}/1/img"), &format!("h1:{at}"), "7", "1"]);
    site.on("h1", &["sh", "-c", &format!("head -c {MIB}M /dev/urandom | dd of={at} conv=notrunc bs=1M")]);
    site
}

fn digest(site: &Site, host: &str) -> String {
    site.on(host, &["md5sum", &format!("{DS}/100/7/disk.0")])
}

/// Moves the VM from `h1`; MiB that came to the front-end meanwhile, and what was said.
#[track_caller]
fn moves(site: &Site, env: &[&str]) -> (u64, String) {
    let (whole, before) = (digest(site, "h1"), site.came("fe"));
    let vm = |host: &str| format!("{host}:{DS}/100/7");
    let out = site.call(env, "mv", &[&vm("h1"), &vm("h2"), "7", "100"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    assert_eq!(digest(site, "h2"), whole);
    for host in ["h1", "h2"] {
        assert_eq!(site.names(host, &format!("{DS}/100/.sdm/new")), Vec::<String>::new(), "{host}");
        let there = site.names(host, &format!("{DS}/100")).contains(&"7".to_owned());
        assert_eq!(there, host == "h2");
    }
    ((site.came("fe") - before) >> 20, said)
}

/// The hosts have no keys, only the front-end has.
fn take_keys(site: &Site) {
    for host in ["h1", "h2"] {
        site.on(host, &["rm", "/root/.ssh/id_ed25519"]);
    }
}

#[test]
fn data_goes_straight_with_the_hosts_own_keys() {
    let site = site();
    let (mib, said) = moves(&site, &[]);
    assert_eq!((mib, said.as_str()), (0, ""));
}

#[test]
fn data_goes_straight_with_the_key_agent_of_the_front_end() {
    let site = site();
    take_keys(&site);
    site.on("fe", &["ssh-agent", "-a", "/root/agent"]);
    site.on("fe", &["env", "SSH_AUTH_SOCK=/root/agent", "ssh-add", "-q"]);
    let (mib, said) = moves(&site, &["SSH_AUTH_SOCK=/root/agent"]);
    assert_eq!((mib, said.as_str()), (0, ""));
}

#[test]
fn without_keys_data_goes_through_the_front_end() {
    let site = site();
    take_keys(&site);
    let (mib, said) = moves(&site, &[]);
    assert!(mib >= MIB, "{mib}");
    assert!(said.contains("through the front-end, not straight from h1 to h2: host h2: no login"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn who_has_the_name_and_is_another_gets_nothing() {
    let site = site();
    // On that host the name leads elsewhere.
    site.on(
        "h1",
        &["sh", "-c", "sed 's/^10.78.0.3 /10.78.0.1 /' /etc/hosts >/tmp/h; cat /tmp/h >/etc/hosts"],
    );
    site.on(
        "h1",
        &[
            "sh",
            "-c",
            "printf 'Host h2\\n StrictHostKeyChecking accept-new\\n HostKeyAlias x\\n' >/root/.ssh/config",
        ],
    );
    site.cloud.place_agent("fe", "");
    let (mib, said) = moves(&site, &[]);
    assert!(mib >= MIB && said.contains("another machine"), "{mib} {said}");
}

#[test]
fn a_setting_keeps_data_on_the_way_through_the_front_end() {
    let site = site();
    site.cloud.write("fe", "/etc/one/onesdm.toml", "[data]\ndirect = false\n");
    let (mib, said) = moves(&site, &[]);
    assert!(mib >= MIB, "{mib}");
    assert_eq!(said, "");
}

/// What arrived the straight way is not sent again the other way.
#[test]
fn a_straight_way_that_breaks_is_gone_on_with_through_the_front_end() {
    let site = site();
    let config = "[ssh]\nsilence = \"2s\"\n[data]\nlimit = \"8MiB\"\n";
    site.cloud.write("fe", "/etc/one/onesdm.toml", config);
    let (mib, said) = std::thread::scope(|s| {
        let moving = s.spawn(|| moves(&site, &[]));
        eventually("data at the destination", SOON, || moving.is_finished() || site.staged("h2") > 16 << 20);
        site.on("h1", &["ip", "route", "add", "blackhole", "10.78.0.3"]);
        moving.join().unwrap()
    });
    assert!((8..=17).contains(&mib), "{mib} of {MIB} MiB");
    assert!(said.contains("host h2: nothing heard for 2 s"), "{said}");
}

/// Nobody is left who would say that it counts: it is not sent to its end, and a repeat gets what arrived.
#[test]
fn a_front_end_that_dies_ends_what_goes_straight() {
    let site = site();
    let config = "[ssh]\nsilence = \"2s\"\n[data]\nlimit = \"4MiB\"\n";
    site.cloud.write("fe", "/etc/one/onesdm.toml", config);
    let vm = |host: &str| format!("{host}:{DS}/100/7");
    std::thread::scope(|s| {
        let moving = s.spawn(|| site.call(&[], "mv", &[&vm("h1"), &vm("h2"), "7", "100"]));
        eventually("data at the destination", SOON, || moving.is_finished() || site.staged("h2") > 8 << 20);
        crate::tm_kill::signal_on(&site.cloud, "fe", "remotes/tm/", "KILL");
        assert!(!moving.join().unwrap().status.success());
    });
    site.cloud.write("fe", "/etc/one/onesdm.toml", "");
    let before = site.came("h2");
    moves(&site, &[]);
    let mib = (site.came("h2") - before) >> 20;
    assert!((8..=26).contains(&mib), "{mib} of {MIB} MiB");
}
