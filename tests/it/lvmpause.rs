//! Hosts on one volume group that stand still, and many that do the same at once.

use crate::lvmmeet::{Blow, Here, PLACE, changes, hosts, passed, said, seed, seqno, watched};
use crate::lvmverbs::{GROUP, MIB, digest, read, root, volumes};
use std::path::Path;
use std::time::{Duration, Instant};

/// In MiB: copying it takes a while.
const LARGE: u64 = 96;

fn staged() -> bool {
    volumes().iter().any(|v| v.starts_with("sdm-new-"))
}

/// The first machine is at work on a large copy when everything stops, for longer than its leases last.
fn paused(here: &Here) {
    let (h, meet) = (&here.h, &here.meet);
    std::fs::write(h.at("images/large.raw"), vec![0x11; usize::try_from(LARGE).unwrap() * MIB]).unwrap();
    let _ = std::fs::remove_file(h.at("history"));
    let image = format!("<ID>4</ID><SIZE>{LARGE}</SIZE><PATH>DIR/large.raw</PATH>");
    let child = h.start("cp", &h.message(&image), &[]);
    while !staged() {
        std::thread::sleep(Duration::from_millis(20));
    }
    meet.say(7);
    let out = child.wait_with_output().unwrap();
    let woke = std::fs::read_to_string(h.at("history")).unwrap_or_default();
    println!("woken: {:?} {}", out.status, String::from_utf8_lossy(&out.stderr));
    for l in woke.lines() {
        println!("history: {l}");
    }
    assert!(!out.status.success(), "it lost its leases and all");
    // Nor does anything else work here until the host joins again.
    let (status, text) = h.call("mkfs", "<ID>5</ID><SIZE>2</SIZE>");
    assert!(status != 0, "{text}");
    println!("and then: {status} {text}");
    meet.say(8);
    meet.wait(9);
}

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn pause_inside() {
    let here = Here::joined();
    if here.id == 1 {
        return paused(&here);
    }
    let (h, meet) = (&here.h, &here.meet);
    meet.wait(7);
    let began = Instant::now();
    while staged() {
        assert!(began.elapsed() < Duration::from_secs(300), "the job of a host that is dead stays");
        let (status, text) = h.own(&["gc", PLACE]);
        assert_eq!(status, 0, "{text}");
        std::thread::sleep(Duration::from_secs(1));
    }
    println!("taken over after {:?}", began.elapsed());
    // The very extents that the other machine was writing to.
    std::fs::write(h.at("images/two.raw"), vec![0x22; usize::try_from(LARGE).unwrap() * MIB]).unwrap();
    h.ok("cp", &format!("<ID>6</ID><SIZE>{LARGE}</SIZE><PATH>DIR/two.raw</PATH>"));
    let (number, all) = (seqno(), volumes());
    meet.say(8);
    if watched() {
        // It is woken now, and reset.
        std::thread::sleep(Duration::from_secs(90));
    } else {
        meet.wait(8);
    }
    assert_eq!((seqno(), volumes()), (number, all), "no metadata of whoever woke");
    root(&["vgck", GROUP]);
    let (status, text) = h.own(&["check", PLACE]);
    assert!(status == 0 && text.contains("no broken rule"), "{text}");
    // Without a watchdog nothing keeps what its kernel had still to write.
    root(&["lvchange", "-K", "-ay", "vg-one-100/img-one-6"]);
    let bytes = std::fs::read("/dev/vg-one-100/img-one-6").unwrap();
    let late = bytes.chunks(4096).filter(|b| *b != [0x22; 4096]).count();
    println!("late blocks: {late} of {}", bytes.len() / 4096);
    assert!(late == 0 || !watched(), "the watchdog came too late");
    meet.say(9);
}

/// It is woken when the other one has ended its job and has written where it wrote.
#[test]
fn a_machine_that_stood_still_changes_no_metadata() {
    let texts = passed(hosts("lvmpause::pause_inside", ["h1", "h2"], Some(Blow::Pause(7, 8))));
    let late = texts[1].lines().find(|l| l.starts_with("late blocks: ")).unwrap();
    println!("written by who had no lease any more: {late}");
}

/// The same at real timing, with the watchdog that a site has.
#[test]
#[ignore = "takes some ten minutes"]
fn a_machine_that_stood_still_is_reset_by_its_watchdog() {
    let outs = hosts("lvmpause::pause_inside", ["h1", "h2"], Some(Blow::Reset(7, 8)));
    let [first, second] = outs.map(|o| (o.status.code(), said(&o)));
    println!("{}\n=======\n{}", first.1, second.1);
    assert!(first.0 == Some(125) && second.0 == Some(0) && second.1.contains("1 passed"), "see above");
}

/// VMs 1 and 4 on the first host, and so on.
const VMS: u64 = 5;
const HOSTS: u64 = 3;

#[test]
#[ignore = "runs in the micro-VMs of the next test"]
fn clones_inside() {
    let here = Here::joined();
    let (h, meet) = (&here.h, &here.meet);
    if here.id == 1 {
        here.source("one.raw", &seed(1));
        h.ok("cp", "<ID>1</ID><SIZE>6</SIZE><PATH>DIR/one.raw</PATH>");
    }
    meet.at(3);
    let before = seqno();
    let _ = std::fs::remove_file(h.at("history"));
    meet.at(4);
    std::thread::scope(|scope| {
        for vm in (1..=VMS).filter(|vm| (vm - 1) % HOSTS + 1 == here.id) {
            let here = &here;
            scope.spawn(move || {
                std::fs::create_dir_all(here.h.at(&format!("var/datastores/101/{vm}"))).unwrap();
                let doc = here.vm(1, 2).1.replacen(&format!("<ID>{}<", here.id), &format!("<ID>{vm}<"), 1);
                let args = ["fe:vg-one-100/img-one-1", "DIR/disk.0", &vm.to_string(), "100"];
                here.tm(&(vm, doc), "clone", &args);
                let disk = here.h.at(&format!("var/datastores/101/{vm}/disk.0"));
                assert_eq!(read(&disk, 4 * MIB), (digest(&seed(1)), true), "VM {vm}");
            });
        }
    });
    let ended = std::fs::read_to_string(h.at("history")).unwrap();
    meet.at(1000);
    ended.lines().for_each(|l| println!("history: {l}"));
    println!("number: {before} {}", seqno());
    let disks: Vec<String> = volumes().into_iter().filter(|v| v.starts_with("vm-one-")).collect();
    let want = (1..=VMS).flat_map(|vm| [format!("vm-one-{vm}-0"), format!("vm-one-{vm}-pool")]);
    assert_eq!(disks, want.collect::<Vec<_>>());
    assert!(Path::new("/dev/vg-one-100").exists());
    root(&["vgck", GROUP]);
    meet.at(1001);
}

/// The race that the stock driver loses: names and metadata of one group from three hosts.
#[test]
fn three_hosts_clone_one_image_at_once() {
    changes(&passed(hosts("lvmpause::clones_inside", ["h1", "h2", "h3"], None)));
}
