//! What dies on hosts of which each has its own system datastores, while data is on its way from one host to
//! another: at moments of which each has a reason. At any moment: `tm_kill`.

use crate::hosts::eventually;
use crate::kill::full;
use crate::runner::{self, Kind, STORES, Vm};
use crate::tm::{deploy, end, sound};
use crate::tm_kill::{arm_on, kill};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);

/// A VM on `h1` with one disk, written to.
fn vm_on_h1(cloud: &crate::hosts::Cloud, kind: Kind) -> Vm<'_> {
    let mut vm = Vm::new(cloud, "local", 7);
    vm.image("os", kind, 2);
    deploy(&mut vm, 0, "os", false, 0);
    vm.guest(0);
    vm
}

/// Red team 1.3: the front-end dies when the VM is at its destination and still at its source. oned knows of
/// a failure, and the VM runs on where it was. What it wrote since is what is moved in the end.
#[test]
fn a_front_end_that_dies_between_publish_and_retire() {
    let cloud = runner::cloud(&[]);
    let mut vm = vm_on_h1(&cloud, Kind::Qcow2);
    // What the source's host changes in a move: from its last intent on it is what retires the source.
    arm_on("h1", &vm, "ONESDM_TEST_LOG=/tmp/effects");
    let (a, b) = (vm.at("h1", 101, None), vm.at("h2", 101, None));
    vm.host = "h2";
    vm.ok("mv", &[&a, &b], 101);
    let log = cloud.read("h1", "/tmp/effects");
    let mut intents = log.lines().filter(|l| l.contains("Rename") && l.ends_with("intent.json"));
    let retires = intents.next_back().and_then(|l| l.split_once('\t')).expect("the source is retired").0;
    vm.host = "h1";
    vm.ok("mv", &[&b, &a], 101);
    arm_on("h1", &vm, &format!("ONESDM_TEST_STOP={retires}"));
    let args = [a.clone(), b.clone(), "7".into(), "101".into()];
    vm.tell();
    let words = runner::words(&cloud, "local", "mv", "", &args);
    let mut call =
        cloud.command("fe", &words.iter().map(String::as_str).collect::<Vec<_>>()).spawn().unwrap();
    let there = format!("{STORES}/101/7/disk.0");
    eventually("it is published", SOON, || cloud.inside("h2", || std::path::Path::new(&there).exists()));
    // The host that is to retire the source stands still.
    std::thread::sleep(std::time::Duration::from_millis(500));
    kill(&vm, "fe", "remotes/tm/");
    assert!(!call.wait().unwrap().success());
    kill(&vm, "h1", "agent");
    cloud.place_agent("h1", "--silence 3 --orphan-grace 1");
    vm.reads();
    vm.guest(0);
    vm.host = "h2";
    vm.ok("mv", &[&a, &b], 101);
    // And when it died after all was done, the same call finds that out.
    vm.ok("mv", &[&a, &b], 101);
    vm.guest(0);
    vm.ok("mv", &[&a, &b], 101);
    // What is nowhere is no success.
    end(&mut vm);
    let out = vm.run("mv", &[&a, &b], 101);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(3) && said.contains("does not exist"), "{said}");
    sound(&cloud);
}

/// The agent that receives dies once, at each change of storage in turn: before the commit the move fails
/// and the source is whole; after it the same call finds out by itself that it was done.
#[test]
fn a_reply_lost_during_a_transfer_is_found_again() {
    let cloud = runner::cloud(&[]);
    let mut vm = vm_on_h1(&cloud, Kind::Qcow2);
    let log = || cloud.read("h2", "/tmp/effects").lines().count();
    let step = if full() { 1 } else { 4 };
    let (mut at, mut effects, mut done, mut failed) = (0, 0, 0, 0);
    while at == 0 || at <= effects {
        let armed = if at == 0 {
            "ONESDM_TEST_LOG=/tmp/effects".to_owned()
        } else {
            format!("ONESDM_TEST_KILL={at}:after")
        };
        arm_on("h2", &vm, &armed);
        let (a, b) = (vm.at("h1", 101, None), vm.at("h2", 101, None));
        let out = vm.run("mv", &[&a, &b], 101);
        if out.status.success() {
            done += 1;
        } else {
            failed += 1;
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.code() == Some(6) && said.contains("h2"), "{at}: {said}");
            vm.reads();
            assert!(vm.run("mv", &[&a, &b], 101).status.success(), "again at {at}");
        }
        vm.host = "h2";
        vm.check();
        vm.guest(0);
        vm.host = "h1";
        vm.ok("mv", &[&b, &a], 101);
        effects = effects.max(log());
        at += if at == 0 { 1 } else { step };
    }
    assert!(effects > 10 && done > 1 && failed > 1, "{done} were done, {failed} failed, of {effects}");
    sound(&cloud);
}
