//! Turns and plans of transfers between hosts, on the bed of hosts.

use crate::bed;
use crate::hosts::Cloud;
use crate::runner::{self, Kind, STORES, Vm};
use crate::tm::deploy;
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const WAITS: &str = "waits for a copy of another job to end";

/// Two VMs, one on each host, with a disk that takes about two seconds to move.
fn two(cloud: &Cloud) -> [Vm<'_>; 2] {
    let settings = "[ssh]\nconnect = \"2s\"\nsilence = \"3s\"\n[lock]\nwait = \"10s\"\n[data]\n";
    cloud.write("fe", "/etc/one/onesdm.toml", &format!("{settings}host_copies = 1\nlimit = \"1MiB\"\n"));
    [(1, "h1"), (2, "h2")].map(|(id, host)| {
        let mut vm = Vm::new(cloud, "ssh", id);
        vm.host = host;
        vm.image("os", Kind::Raw, 2);
        deploy(&mut vm, 0, "os", false, 0);
        let random: Vec<u8> =
            (0..2_u64 << 20).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
        let disk = format!("{STORES}/101/{id}/disk.0");
        cloud.inside(host, || std::fs::write(&disk, &random).unwrap());
        vm
    })
}

fn mv(cloud: &Cloud, vm: &Vm<'_>, to: &str) -> Vec<String> {
    vm.tell();
    let (from, to, id) = (vm.at(vm.host, 101, None), vm.at(to, 101, None), vm.id.to_string());
    runner::words(cloud, "ssh", "mv", "", &[from, to, id, "101".to_owned()])
}

fn phases(cloud: &Cloud, host: &str) -> Vec<String> {
    cloud.inside(host, || {
        let jobs = std::fs::read_dir("/run/one/onesdm/job").into_iter().flatten().flatten();
        let jobs = jobs.filter_map(|e| std::fs::read(e.path()).ok());
        let jobs = jobs.filter_map(|b| serde_json::from_slice::<Value>(&b).ok());
        jobs.filter_map(|j| Some(j["phase"].as_str()?.to_owned())).collect()
    })
}

/// Each host may move one at a time, and each move needs both: neither waits for what the other keeps.
#[test]
fn moves_in_opposite_directions_take_turns_and_both_end() {
    let cloud = runner::cloud_for("ssh");
    let [one, two] = two(&cloud);
    let start = |vm: &Vm<'_>, to: &str| -> Child {
        let words = mv(&cloud, vm, to);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        cloud.command("fe", &words).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut moves = [start(&one, "h2"), start(&two, "h1")];
    let (mut most, mut waited, end) = (0, false, Instant::now() + Duration::from_secs(40));
    while moves.iter_mut().any(|m| m.try_wait().unwrap().is_none()) {
        assert!(Instant::now() < end, "{:?} {:?}", phases(&cloud, "h1"), phases(&cloud, "h2"));
        for host in ["h1", "h2"] {
            let all = phases(&cloud, host);
            most = most.max(all.iter().filter(|p| ["sending", "receiving"].contains(&p.as_str())).count());
            waited |= all.iter().any(|p| p == WAITS);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for m in moves {
        let out = m.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert!(most == 1 && waited, "{most} at once on a host; waited: {waited}");
    for (host, id) in [("h2", 1), ("h1", 2)] {
        let there = |p: &str| cloud.inside(host, || Path::new(p).exists());
        assert!(there(&format!("{STORES}/101/{id}/disk.0")) && !there(&format!("{STORES}/101/{}", 3 - id)));
    }
}

#[test]
fn a_plan_of_a_move_asks_both_hosts_and_changes_nothing_on_any() {
    let cloud = runner::cloud_for("ssh");
    let [one, _two] = two(&cloud);
    let words = mv(&cloud, &one, "h2");
    let at = words.iter().position(|w| w.ends_with("/tm/ssh/mv")).unwrap();
    let program = bed::program().display().to_string();
    let plan = [
        &words[..at],
        &[program, "--plan".into(), "--json".into(), "--as".into(), "tm/ssh/mv".into(), "--".into()],
        &words[at + 1..],
    ]
    .concat();
    let tree = |host: &str| {
        // The agent's own place is not the plan's matter.
        let find = ["find", "/var/lib/one/datastores", "/var/lib/one/onesdm", "/run/one", "/var/log/one"];
        let find = [
            &find[..],
            &["-not", "-path", "/run/one/onesdm", "-not", "-path", "*/agents*", "-printf", "%p %i %T@ %l\\n"],
        ]
        .concat();
        cloud.command(host, &find).output().unwrap().stdout
    };
    let before = ["fe", "h1", "h2"].map(tree);
    let out = runner::output(&cloud, &plan);
    let doc: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {out:?}"));
    for (was, host) in before.iter().zip(["fe", "h1", "h2"]) {
        assert_eq!(String::from_utf8_lossy(was), String::from_utf8_lossy(&tree(host)), "{host}");
    }
    assert_eq!(doc["refused"], Value::Null, "{doc}");
    let has = |list: &str, key: &str, what: &str| {
        doc[list].as_array().unwrap().iter().any(|e| e[key].as_str().unwrap_or_default().contains(what))
    };
    assert!(has("moves", "how", "send") && has("moves", "from", "/101/1/disk.0"), "{doc}");
    assert!(has("names", "name", "/101/1") && doc["space"].as_array().unwrap().len() == 1, "{doc}");
    assert!(doc["notes"].to_string().contains("straight from host h1 to host h2"), "{doc}");
}
