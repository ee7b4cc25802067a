//! Leases by real sanlock daemons: two hosts on one storage, by a faster clock, without a watchdog.

use crate::bed::{self, tool};
use crate::doc::Doc;
use crate::history;
use crate::pause::{self, Paused};
use crate::sanhosts::{children, joined, up};
use std::time::{Duration, Instant};

#[test]
fn the_backend_conforms_and_two_hosts_exclude_each_other() {
    let (_fs, bed, hosts, store) = joined(&["a", "b"]);
    let says = |host: &str, what: &str| hosts.process(host, what, &store).says();
    assert_eq!(says("a", "conformance"), "conforms");
    for name in ["x", "domain"] {
        let mut a = hosts.process("a", &format!("hold {name} exclusive"), &store);
        let first: u64 = a.says().strip_prefix("held ").unwrap().parse().unwrap();
        for host in ["a", "b"] {
            assert_eq!(says(host, &format!("try {name} exclusive")), "busy", "{host} {name}");
            assert_eq!(says(host, &format!("try {name} shared")), "busy", "{host} {name}");
        }
        assert_eq!(says("b", "try y exclusive"), "held", "another lease is free");
        let shown = hosts.onesdm(&bed, "b", &["lock", "show", store.to_str().unwrap()]).run();
        let line = shown.out().lines().find(|l| l.contains("(id 1)")).map(str::to_owned);
        let line = line.unwrap_or_else(|| panic!("{}{}", shown.out(), shown.err()));
        assert!(name == "domain" || (line.contains("image x") && line.contains("pid ")), "{line}");
        a.go_on();
        assert_eq!((a.says().as_str(), a.says().as_str()), ("still held", "given back"));
        let mut b = hosts.process("b", &format!("hold {name} exclusive"), &store);
        let second: u64 = b.says().strip_prefix("held ").unwrap().parse().unwrap();
        assert!(second > first, "the token grows with each holder: {first} {second}");
    }
    let mut a = hosts.process("a", "hold x shared", &store);
    assert!(a.says().starts_with("held"));
    for host in ["a", "b"] {
        assert_eq!(says(host, "try x shared"), "held", "{host} shares");
        assert_eq!(says(host, "try x exclusive"), "busy", "{host}: shared excludes exclusive");
    }
}

#[test]
fn there_are_places_for_many_leases_and_a_killed_process_frees_them_at_once() {
    let (_fs, _bed, hosts, store) = joined(&["a", "b"]);
    let mut a = hosts.process("a", "many 12", &store);
    assert_eq!(a.says(), "held");
    assert_eq!(hosts.process("b", "try image-3 exclusive", &store).says(), "busy");
    a.kill();
    let began = Instant::now();
    while hosts.process("b", "try image-3 exclusive", &store).says() != "held" {
        assert!(began.elapsed() < Duration::from_secs(3), "its leases are still held");
    }
    // The places are used again: names need not have been there before.
    assert_eq!(hosts.process("b", "many 12", &store).says(), "held");
    let size = store.join(".sdm/sanlock").metadata().unwrap().len();
    assert!(size <= 40 << 20, "{size}");
}

/// The connection is what holds; without it others may have our leases, so everything ends, children first.
#[test]
fn a_lost_lease_stops_the_process_and_its_children_and_is_free_after_its_time() {
    let (_fs, _bed, hosts, store) = joined(&["a", "b"]);
    let mut holder = hosts.process("a", "hold x exclusive", &store);
    let mut writer = hosts.process("a", "child", &store);
    assert!(holder.says().starts_with("held"));
    assert_eq!(writer.says(), "held");
    let began = Instant::now();
    while children().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(5), "no child came up");
    }
    // Until b has seen a renew, it takes a for a host that may be dying; it never gets the lease.
    let tried = |_: &u32| hosts.process("b", "try x exclusive", &store).says();
    let said = (0..100).map(|n| tried(&n)).inspect(|s| assert_ne!(s, "held")).find(|s| s != "dying");
    assert_eq!(said.as_deref(), Some("busy"));
    hosts.tell("kill", "a");
    let killed = Instant::now();
    for p in [&mut holder, &mut writer] {
        let (status, took) = p.ends();
        assert_eq!(status, 8);
        assert!(took < Duration::from_secs(2), "{took:?}");
    }
    assert_eq!(children(), Vec::<String>::new());
    // A host that died looks alive for a while; who waits as a verb does gets it when it is known dead.
    assert_eq!(hosts.process("b", "wait x", &store).says(), "held");
    let took = killed.elapsed();
    assert!(took > Duration::from_secs(5) && took < Duration::from_secs(30), "{took:?}");
}

/// A daemon that hangs tells nobody: renewals that are not seen end the process before others may have its
/// leases.
#[test]
fn a_daemon_that_stands_still_ends_its_holders_before_others_take_over() {
    let (_fs, _bed, hosts, store) = joined(&["a", "b"]);
    let mut holder = hosts.process("a", "hold x exclusive", &store);
    assert!(holder.says().starts_with("held"));
    hosts.tell("stop", "a");
    let stopped = Instant::now();
    let mut other = hosts.process("b", "wait x", &store);
    assert_eq!(holder.ends().0, 8);
    let ended = stopped.elapsed();
    assert_eq!(other.says(), "held");
    let taken = stopped.elapsed();
    assert!(ended < taken, "ended after {ended:?}, taken after {taken:?}");
    hosts.tell("cont", "a");
}

/// Renewals fail: a process that watches ends by itself, one that does not (by this machine's clock its patience
/// is ten times the daemon's) is killed by the daemon, and not asked first.
#[test]
fn storage_that_fails_under_a_host_ends_its_holders() {
    let (fs, _bed, hosts, store) = joined(&["a"]);
    let mut watchful = hosts.process("a", "hold x exclusive", &store);
    let mut patient = hosts.patient_process("a", "hold y exclusive", &store);
    assert!(watchful.says().starts_with("held") && patient.says().starts_with("held"));
    tool("xfs_io", &["-x".as_ref(), "-c".as_ref(), "shutdown".as_ref(), fs.path().as_os_str()]);
    assert_eq!(watchful.ends().0, 8);
    let (code, took) = patient.ends();
    assert_eq!(code, -9);
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn a_copy_whose_daemon_ends_says_so_in_one_line_and_leaves_garbage_that_goes() {
    let (_fs, bed, hosts, store) = joined(&["a", "b"]);
    let source = bed.images().join("src.raw");
    std::fs::write(&source, vec![7; 8 << 20]).unwrap();
    let cp = Doc::new(&bed, 1).image("SIZE", 8).image("PATH", source.display());
    let cp = cp.store_template("LIMIT_TRANSFER_BW", "256K").xml();
    let mut call = hosts.ds(&bed, "a", "cp", 1, &cp).start();
    let staged = || std::fs::read_dir(store.join(".sdm/new")).unwrap().flatten().next();
    let began = Instant::now();
    while staged().is_none_or(|job| !job.path().join("0").exists()) {
        assert!(call.is_running(), "nothing was staged: {}", call.wait().err());
        assert!(began.elapsed() < Duration::from_secs(20), "nothing was staged");
        std::thread::sleep(Duration::from_millis(5));
    }
    hosts.tell("kill", "a");
    let done = call.wait();
    assert_eq!(done.code, Some(8), "{}", done.err());
    assert_eq!(done.err().lines().count(), 1, "{}", done.err());
    assert!(done.err().contains("the sanlock daemon ended"), "{}", done.err());
    let dir = store.to_str().unwrap();
    let began = Instant::now();
    while staged().is_some() {
        assert!(began.elapsed() < Duration::from_secs(30), "the garbage stays");
        assert_eq!(hosts.onesdm(&bed, "b", &["gc", dir]).run().code, Some(0));
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 1, "only .sdm");
}

/// A whole host that pauses for longer than others wait, and goes on as if nothing had happened.
#[test]
fn a_host_that_was_paused_past_its_time_publishes_nothing() {
    let (_fs, bed, hosts, store) = joined(&["a", "b"]);
    let mkfs = |id: u32| {
        let doc = Doc::new(&bed, id).image("SIZE", 1).image("FORMAT", "raw").xml();
        hosts.by_its_clock("a", hosts.ds(&bed, "a", "mkfs", id, &doc))
    };
    let (steps, done) = pause::steps(&bed, mkfs(1));
    done.answer().unwrap();
    // Before the record that decides: leases are looked at after it.
    let n = pause::step(&steps, |s| s.starts_with("Rename") && s.contains("commit.json"));
    let paused = Paused::before(n, mkfs(2)).unwrap();
    hosts.tell("stop", "a");
    let before = std::fs::read_dir(&store).unwrap().count();
    std::thread::sleep(Duration::from_secs(11));
    hosts.tell("cont", "a");
    let done = paused.wakes();
    assert!(done.code == Some(8) || done.killed(), "{:?} {}", done.code, done.err());
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), before, "nothing became visible");
}

#[test]
fn verbs_work_from_both_hosts_and_their_records_carry_the_token() {
    let (_fs, bed, hosts, store) = joined(&["a", "b"]);
    let source = bed.images().join("src.raw");
    std::fs::write(&source, vec![7; 3 << 20]).unwrap();
    let size = |d: Doc| d.image("SIZE", 3);
    let cp = size(Doc::new(&bed, 1)).image("PATH", source.display()).xml();
    let answer = hosts.ds(&bed, "a", "cp", 1, &cp).run().answer().unwrap();
    let first = answer.split(' ').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let clone = size(Doc::new(&bed, 2)).image("PATH", store.join(&first).display()).xml();
    let answer = hosts.ds(&bed, "b", "clone", 2, &clone).run().answer().unwrap();
    let second = answer.split(' ').next().unwrap().rsplit('/').next().unwrap().to_owned();
    assert_eq!(std::fs::read(store.join(&second)).unwrap(), vec![7; 3 << 20]);
    let rm = Doc::new(&bed, 1).source(&bed, &first).xml();
    hosts.ds(&bed, "b", "rm", 1, &rm).run().answer().unwrap();
    assert!(!store.join(&first).exists());
    let done: Vec<_> = std::fs::read_dir(store.join(".sdm/done")).unwrap().flatten().collect();
    let mut hosts_seen: Vec<u64> = Vec::new();
    for d in done {
        let text = std::fs::read_to_string(d.path()).unwrap();
        let record: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let token = &record["token"];
        assert!(token["version"].as_u64().unwrap() > 0 && token["generation"] == 1, "{record}");
        hosts_seen.push(token["host_id"].as_u64().unwrap());
    }
    hosts_seen.sort_unstable();
    assert_eq!(hosts_seen, [1, 2]);
    let dir = store.to_str().unwrap();
    for verb in [&["check", dir][..], &["gc", dir], &["gc", "--plan", dir]] {
        let done = hosts.onesdm(&bed, "a", verb).run();
        assert_eq!(done.code, Some(0), "{verb:?} {}{}", done.out(), done.err());
    }
    let listed = hosts.onesdm(&bed, "b", &["domain", "show", "--json", dir]).run();
    let doc: serde_json::Value = serde_json::from_str(&listed.out()).unwrap();
    assert_eq!(doc["header"]["incompat"], serde_json::json!(["sanlock"]));
    assert_eq!(doc["members"].as_array().unwrap().len(), 2, "{doc}");
}

#[test]
fn the_lock_of_a_datastore_is_never_held_twice() {
    let (_fs, bed, hosts, store) = joined(&["a", "b"]);
    let history = bed.root().join("history");
    let calls: Vec<_> = (0..8)
        .map(|id| {
            let doc = Doc::new(&bed, id).image("SIZE", 1).image("FORMAT", "raw").xml();
            let host = if id % 2 == 0 { "a" } else { "b" };
            hosts.ds(&bed, host, "mkfs", id, &doc).env("ONESDM_TEST_HISTORY", &history).start()
        })
        .collect();
    for call in calls {
        call.wait().answer().unwrap();
    }
    assert_eq!(std::fs::read_dir(&store).unwrap().count(), 9);
    let holdings = history::one_clock(&std::fs::read_to_string(&history).unwrap()).unwrap();
    assert!(holdings >= 8, "{holdings}");
}

#[test]
fn hosts_join_and_leave_and_each_refusal_says_what_to_do() {
    let (_fs, bed, hosts) = up(&["a", "b"]);
    let store = bed.store(100);
    let dir = store.to_str().unwrap();
    let on = |host: &str, args: &[&str]| hosts.onesdm(&bed, host, args).run();
    let nobody = on("nobody", &["domain", "init", "--lock", "sanlock", dir]).failure(None).unwrap();
    assert!(nobody.contains("no sanlock daemon answers"), "{nobody}");
    // The header is there, its leases are not: said, and done by the same call.
    let half = on("a", &["domain", "join", "--host-id", "1", dir]).failure(None).unwrap();
    assert!(half.contains("onesdm domain init --lock sanlock"), "{half}");
    for _ in 0..2 {
        assert_eq!(on("a", &["domain", "init", "--lock", "sanlock", dir]).code, Some(0));
    }
    let other = on("a", &["domain", "init", "--lock", "ofd", dir]).failure(Some(10)).unwrap();
    assert!(other.contains("has locks of kind sanlock"), "{other}");

    let mkfs = Doc::new(&bed, 1).image("SIZE", 1).image("FORMAT", "raw").xml();
    let not = hosts.ds(&bed, "a", "mkfs", 1, &mkfs).run().failure(Some(10)).unwrap();
    assert!(not.contains("onesdm domain join"), "{not}");
    let who = on("a", &["domain", "join", dir]).failure(Some(2)).unwrap();
    assert!(who.contains("sanlock.host_id"), "{who}");
    let set = "sanlock.without_watchdog=false";
    let dog = on("a", &["--set", set, "domain", "join", "--host-id", "1", dir]).failure(Some(10)).unwrap();
    assert!(dog.contains("without a watchdog (the daemon was started with -w 0)"), "{dog}");
    let doctor = on("a", &["--set", set, "doctor", dir]).out();
    assert!(doctor.contains("BAD   watchdog") && doctor.contains("BAD   membership"), "{doctor}");

    // A verb joins by itself where the settings say as whom; a command joins again.
    let id = |n: u32| format!("sanlock.host_id={n}");
    let config = bed.root().join("as-1.toml");
    let settings = std::fs::read_to_string(bed.root().join("onesdm.toml")).unwrap();
    std::fs::write(&config, settings + "host_id = 1\n").unwrap();
    let made = hosts.ds(&bed, "a", "mkfs", 1, &mkfs).env("ONESDM_CONFIG", &config).run();
    assert!(made.code == Some(0) && made.err().contains("WARN: domain: "), "{}", made.err());
    assert_eq!(on("a", &["--set", &id(1), "domain", "join", dir]).code, Some(0), "joined already is fine");
    let doctor = on("a", &["doctor", dir]).out();
    assert!(doctor.contains("ok    membership") && doctor.contains("warn  watchdog"), "{doctor}");
    hosts.ds(&bed, "a", "mkfs", 1, &mkfs).run().answer().unwrap();

    assert_eq!(on("b", &["--set", &id(2), "domain", "join", dir]).code, Some(0));
    let member = on("a", &["domain", "remove", dir]).failure(Some(10)).unwrap();
    assert!(member.contains("host 2") && member.contains("onesdm domain leave"), "{member}");
    let mut holder = hosts.process("b", "hold x exclusive", &store);
    assert!(holder.says().starts_with("held"));
    let held = on("b", &["domain", "leave", dir]).failure(Some(4)).unwrap();
    assert!(held.contains("leave"), "{held}");
    holder.go_on();
    assert_eq!(holder.says(), "still held");
    assert_eq!(holder.says(), "given back");
    assert_eq!(on("b", &["domain", "leave", dir]).code, Some(0));
    // Others learn of it when they renew.
    let began = Instant::now();
    while on("a", &["domain", "remove", dir]).code != Some(0) {
        assert!(began.elapsed() < Duration::from_secs(5), "the host that left is still a member");
    }
    assert!(!store.join(".sdm").exists());
}

/// A command of LVM commits what it read, whoever has the lock by then: so nobody has it before the command ends.
#[test]
fn the_lock_of_a_killed_process_is_held_until_its_command_has_ended() {
    let (_fs, _bed, hosts, store) = joined(&["a", "b"]);
    let command = || bed::processes(|line| line.contains("/usr/bin/sleep 3.21"));
    let mut killed = hosts.process("a", "slow", &store);
    assert_eq!(killed.says(), "held");
    let began = Instant::now();
    while command().is_empty() {
        assert!(began.elapsed() < Duration::from_secs(5), "no command came up");
    }
    killed.kill();
    while hosts.process("b", "try domain exclusive", &store).says() != "held" {
        assert!(began.elapsed() < Duration::from_secs(20), "its lock is still held");
    }
    assert_eq!(command(), Vec::<String>::new(), "it was held by another host while the command ran");
    assert!(began.elapsed() > Duration::from_secs(3), "the command ended with its process");
    let mut unharmed = hosts.process("a", "slow", &store);
    assert_eq!((unharmed.says().as_str(), unharmed.says().as_str()), ("held", "done"));
}

/// What a host had is another's when it is dead or began anew, and not because it left: it may have devices still.
#[test]
fn a_life_of_a_host_is_over_when_it_is_dead_or_joined_anew_and_not_when_it_left() {
    let (_fs, bed, hosts, store) = joined(&["a", "b"]);
    let dir = store.to_str().unwrap();
    let over = |life: u64| hosts.process("b", &format!("over 1 {life}"), &store).says();
    let until = |life: u64, want: &str| {
        let began = Instant::now();
        while over(life) != want {
            assert!(began.elapsed() < Duration::from_secs(30), "{life} is never {want}");
        }
        began.elapsed()
    };
    assert_eq!(over(1), "not over");
    hosts.tell("kill", "a");
    let took = until(1, "over");
    assert!(took > Duration::from_secs(5), "{took:?}");
    hosts.tell("start", "a");
    let join = || hosts.onesdm(&bed, "a", &["domain", "join", "--host-id", "1", dir]).run();
    assert_eq!(join().code, Some(0));
    // b learns of it when it renews; dead is dead meanwhile.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!((over(1).as_str(), over(2).as_str()), ("over", "not over"));
    assert_eq!(hosts.onesdm(&bed, "a", &["domain", "leave", dir]).run().code, Some(0));
    std::thread::sleep(Duration::from_secs(15));
    assert_eq!(over(2), "not over", "it may have devices still");
    assert_eq!(join().code, Some(0));
    until(2, "over");
}
