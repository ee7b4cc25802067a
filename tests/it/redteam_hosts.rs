//! The red team's scenarios that need several hosts, numbered as there, on the bed of hosts. Those about one domain
//! under two ids are in `local` and `proof`, those about what a host remembers of a share in `nfs_stale`.

use crate::bed::{self, names};
use crate::hosts::{Cloud, eventually};
use crate::kill::full;
use crate::runner::{self, Disk, Kind, STORES, Vm, source};
use crate::tm::{blank, deploy, end, sound};
use crate::tm_failures::start;
use crate::tm_kill::{arm_on, kill, signal};
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

fn onesdm(cloud: &Cloud, host: &str, words: &[&str]) -> String {
    cloud.on(host, &[&[bed::program().to_str().unwrap()], words].concat())
}

/// What jobs have in hand in a datastore of a host.
fn staged(cloud: &Cloud, host: &str, ds: u32) -> usize {
    let dir = format!("{STORES}/{ds}/.sdm/new");
    cloud.inside(host, || std::fs::read_dir(dir).map_or(0, Iterator::count))
}

fn plans(vm: &mut Vm<'_>, n: u32, image: &str) {
    let (kind, content) = vm.images[image].clone();
    let active = vm.first_layer(kind);
    vm.disks.insert(n, Disk { image: Some(image.to_owned()), active, ..blank(kind, content) });
}

/// Red team 1.11: a snapshot of a persistent disk is a layer with its image and a link with its VM, in two domains. The
/// host dies between any two steps of it, and a host that sees the images alone collects.
#[test]
fn r1_11_a_collector_that_sees_one_of_two_domains_harms_neither() {
    let cloud = runner::cloud_for("shared");
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("data", Kind::Qcow2, 1);
    deploy(&mut vm, 0, "data", true, 0);
    cloud.on("h2", &["umount", &format!("{STORES}/101")]);
    let images = format!("{STORES}/100");
    let (mut snapshot, mut at, mut effects) = (0, 0, 0);
    while at <= effects {
        let armed = if at == 0 {
            "ONESDM_TEST_LOG=/tmp/effects".to_owned()
        } else {
            format!("ONESDM_TEST_KILL={at}:after")
        };
        arm_on("h1", &vm, &armed);
        vm.guest(0);
        let out = vm.run("snap_create", &[&vm.disk(0), &snapshot.to_string()], 100);
        assert!(at > 0 || out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        onesdm(&cloud, "h2", &["gc", &images]);
        vm.reads();
        if !out.status.success() {
            vm.guest(0);
        }
        let disk = vm.disks.get_mut(&0).unwrap();
        disk.snaps.insert(snapshot, disk.content.clone());
        disk.active = Some(snapshot + 1);
        vm.ok("snap_create", &[&vm.disk(0), &snapshot.to_string()], 100);
        effects = effects.max(cloud.read("h1", "/tmp/effects").lines().count());
        (snapshot, at) = (snapshot + 1, at + if full() || at == 0 { 1 } else { 4 });
    }
    assert!(effects > 20, "{effects}");
    onesdm(&cloud, "h2", &["check", &images]);
    sound(&cloud);
}

/// Red team 2.4: what dead jobs left on shared storage is the front-end's to collect, what they left on a host's own is
/// that host's; by `onesdm gc` alone, as every machine's timer calls it.
#[test]
fn r2_4_shared_domains_are_collected_by_the_front_end_and_others_by_their_host() {
    for (driver, collects, others) in [("shared", "fe", ["h1", "h2"]), ("local", "h1", ["fe", "h2"])] {
        let cloud = runner::cloud_for(driver);
        let mut vm = Vm::new(&cloud, driver, 7);
        vm.image("os", Kind::Raw, 1);
        // The hosts have worked on the datastore before.
        for host in ["h2", "h1"] {
            vm.host = host;
            deploy(&mut vm, 0, "os", false, 0);
            end(&mut vm);
        }
        plans(&mut vm, 0, "os");
        arm_on("h1", &vm, "ONESDM_TEST_STOP=14");
        let mut call = start(&vm, "clone", &[&format!("fe:{}", source("os")), &vm.disk(0)], 100);
        eventually("something is staged", SOON, || staged(&cloud, "h1", 101) > 0);
        kill(&vm, "fe", "remotes/tm/");
        kill(&vm, "h1", "onesdm agent");
        call.wait().unwrap();
        assert_eq!(staged(&cloud, "h1", 101), 1, "{driver}");
        for host in others {
            onesdm(&cloud, host, &["gc"]);
            assert_eq!(staged(&cloud, "h1", 101), 1, "{driver}: collected by {host}");
        }
        onesdm(&cloud, collects, &["gc"]);
        assert_eq!(staged(&cloud, "h1", 101), 0, "{driver}: not collected by {collects}");
        sound(&cloud);
    }
}

/// Another front-end takes over: it has nothing of what the old one knew.
fn new_leader(vm: &Vm<'_>) {
    kill(vm, "fe", "remotes/tm/");
    vm.cloud.on("fe", &["rm", "-r", "/var/lib/one/onesdm"]);
    vm.cloud.on("fe", &["rm", "-rf", "/run/one/onesdm", "/root/.local/state/onesdm"]);
}

/// Red team 5.7: the new leader of the front-ends has neither the old one's jobs nor the ids of its domains. It takes
/// away, or does again, what the old one began and a host has in hand.
#[test]
fn r5_7_a_new_leader_goes_on_with_what_the_old_one_began() {
    for driver in ["shared", "local"] {
        let cloud = runner::cloud_for(driver);
        let mut vm = Vm::new(&cloud, driver, 7);
        vm.image("os", Kind::Raw, 1);
        let from = format!("fe:{}", source("os"));
        deploy(&mut vm, 0, "os", false, 0);
        end(&mut vm);
        arm_on("h1", &vm, "ONESDM_TEST_LOG=/tmp/effects");
        deploy(&mut vm, 0, "os", false, 0);
        let log = cloud.read("h1", "/tmp/effects");
        let decides = log.lines().find(|l| l.contains("Rename") && l.ends_with("commit.json"));
        let decides = decides.and_then(|l| l.split_once('\t')).expect("it decides").0;
        for takes_away in [true, false] {
            // The front-end said that it counts, and the host stands still before it decides.
            end(&mut vm);
            plans(&mut vm, 0, "os");
            arm_on("h1", &vm, &format!("ONESDM_TEST_STOP={decides}"));
            let mut call = start(&vm, "clone", &[&from, &vm.disk(0)], 100);
            let stopped = ["sh", "-c", "grep -l 'State:.T' /proc/[0-9]*/status"];
            eventually("the agent stands still", SOON, || {
                cloud.command("h1", &stopped).output().unwrap().status.success()
            });
            new_leader(&vm);
            call.wait().unwrap();
            if takes_away {
                end(&mut vm);
                signal(&vm, "h1", "onesdm agent", "CONT");
                eventually("nothing is left", SOON, || staged(&cloud, "h1", 101) == 0);
                let disk = format!("{STORES}/101/7/disk.0");
                assert!(!cloud.inside("h1", || Path::new(&disk).exists()), "{driver}: published for nobody");
                deploy(&mut vm, 0, "os", false, 0);
            } else {
                signal(&vm, "h1", "onesdm agent", "CONT");
                vm.ok("clone", &[&from, &vm.disk(0)], 100);
            }
        }
        // Done, and nobody heard of it.
        vm.guest(0);
        new_leader(&vm);
        let (a, b) = (vm.at("h1", 101, None), vm.at("h2", 102, None));
        (vm.host, vm.ds) = ("h2", 102);
        vm.ok("mv", &[&a, &b], 102);
        new_leader(&vm);
        vm.ok("mv", &[&a, &b], 102);
        end(&mut vm);
        // It knows the storage again, and notices when it is not there.
        let known = cloud.inside("fe", || names(Path::new("/var/lib/one/onesdm/datastore")));
        assert!(known.iter().any(|n| n.starts_with("102")), "{known:?}");
        sound(&cloud);
    }
}
