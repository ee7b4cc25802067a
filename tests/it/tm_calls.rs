//! Transfer verbs beside the common way: live migration and other drivers, hostile words, what is warned of
//! and what is not asked.

use crate::bed::{self, Bed, Call, base64};
use crate::guest;
use crate::hostile;
use crate::runner::{self, Disk, Kind, Vm};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::PathBuf;

/// Only the system datastore's driver is called; it calls the others, each once, and their failures count.
#[test]
fn other_drivers_of_a_vm_are_called_and_may_fail() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vm = Vm::new(&cloud, "shared", 7);
    vm.image("os", Kind::Raw, 1);
    let disk = |tm: &str| Disk {
        kind: Kind::Raw,
        image: Some("os".into()),
        persistent: false,
        content: vec![0; 1 << 20],
        snaps: BTreeMap::new(),
        active: None,
        tm: Some(tm.to_owned()),
    };
    for (n, tm) in [(0, "shared"), (1, "other"), (2, "other"), (3, "third")] {
        vm.disks.insert(n, disk(tm));
    }
    let script =
        "#!/bin/sh\necho \"$0 $@ $(base64 -d | grep -c TM_MAD)\" >> /tmp/called\nexit $(cat /tmp/status)\n";
    for path in ["other/premigrate", "other/postmigrate", "other/failmigrate", "third/premigrate"] {
        let path = format!("/var/lib/one/remotes/tm/{path}");
        cloud.write("fe", &path, script);
        cloud.on("fe", &["chmod", "755", &path]);
    }
    cloud.write("fe", "/tmp/status", "0");
    let document = String::from_utf8(base64(vm.document())).unwrap();
    let migrate = |verb: &str, from: &str, to: &str, more: &[&str]| {
        let dir = format!("{}//101/7", runner::STORES);
        let args: Vec<String> =
            [&[from, to, &dir, "7", "101"], more].concat().iter().map(|a| (*a).to_owned()).collect();
        cloud.on("fe", &["rm", "-f", "/tmp/called"]);
        let out = runner::call(&cloud, "shared", verb, &document, &args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        (out.status.code(), said, cloud.read("fe", "/tmp/called"))
    };
    let (code, said, called) = migrate("premigrate", "h1", "h2", &[]);
    assert_eq!(code, Some(0), "{said}");
    let tail = "h1 h2 /var/lib/one/datastores/101/7 7 101 shared 1\n";
    let dir = "/var/lib/one/remotes/tm";
    assert_eq!(called, format!("{dir}/other/premigrate {tail}{dir}/third/premigrate {tail}"));
    assert_eq!(migrate("premigrate", "h1", "h2", &["qcow2"]).2, "", "who is called calls nobody");
    assert_eq!(migrate("premigrate", "h1", "h1", &[]).2, "");
    let (code, said, _) = migrate("failmigrate", "h1", "h2", &[]);
    assert!(code == Some(3) && said.contains("third/failmigrate"), "{said}");
    cloud.write("fe", "/tmp/status", "9");
    let (code, said, called) = migrate("premigrate", "h1", "h2", &[]);
    assert!(code == Some(70) && said.contains("driver other") && said.contains("status 9"), "{said}");
    assert_eq!(called.lines().count(), 1, "the first failure ends it");
    // The migration went to another system datastore: the former directory goes, at the source.
    cloud.write("fe", "/tmp/status", "0");
    vm.disks.remove(&3);
    vm.ds = 102;
    vm.before = Some(101);
    vm.tell();
    cloud.write("h1", "/var/lib/one/datastores/101/7/disk.0", "old");
    let document = String::from_utf8(base64(vm.document())).unwrap();
    let args = ["h1", "h2", "/var/lib/one/datastores/102/7", "7", "102"].map(str::to_owned);
    let out = runner::call(&cloud, "shared", "postmigrate", &document, &args);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(!cloud.inside("h1", || PathBuf::from("/var/lib/one/datastores/101/7").exists()));
    assert!(
        cloud.read("h1", "/root/.local/state/onesdm/history.jsonl").contains("postmigrate")
            || cloud.read("h1", "/var/lib/one/onesdm/history.jsonl").contains("postmigrate")
    );
}

/// A local call with a document for the VM.
fn call<'a>(bed: &'a Bed, verb: &str, document: &str, args: &[&str]) -> Call<'a> {
    let xml = bed.root().join("xml");
    std::fs::create_dir_all(&xml).unwrap();
    std::fs::write(xml.join("vm-7.xml"), document).unwrap();
    let call = bed.tm("shared", verb).env("ONESDM_XML_DIR", xml);
    args.iter().fold(call, Call::arg)
}

const ONE_DISK: &str = "<VM><ID>7</ID><LCM_STATE>3</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>raw</FORMAT>\
                        <SIZE>1</SIZE></DISK></TEMPLATE></VM>";

#[test]
fn hostile_words_are_one_line_and_change_nothing() {
    let bed = Bed::new();
    bed.store(100);
    bed.store(101);
    std::fs::write(bed.store_path(100).join("img"), "image").unwrap();
    let before = tree(&bed);
    let (ds, img) = (bed.base_path(101), format!("fe:{}/img", bed.base_path(100)));
    let disk = format!("localhost:{ds}/7/disk.0");
    let outside = format!("localhost:{}/outside/101/7", bed.root().display());
    std::fs::create_dir_all(bed.root().join("outside/101/7")).unwrap();
    let up = format!("localhost:{ds}/../101/7/disk.0");
    for (verb, args) in [
        ("delete", vec![outside.as_str(), "7", "101"]),
        ("delete", vec!["localhost:/etc/101/7", "7", "101"]),
        ("delete", vec![up.as_str(), "7", "101"]),
        ("delete", vec![disk.as_str(), "8", "101"]),
        ("delete", vec!["-oProxyCommand=touch${IFS}x:/v/101/7", "7", "101"]),
        ("delete", vec![]),
        ("delete", vec!["", "7", "101"]),
        ("delete", vec!["localhost:/", "7", "101"]),
        ("mkswap", vec!["1", disk.as_str(), "7", "101", "x"]),
        ("mkswap", vec!["-1", disk.as_str(), "7", "101"]),
        ("mkswap", vec!["99999999999999999999", disk.as_str(), "7", "101"]),
        ("mkimage", vec!["1", "../../x", disk.as_str(), "7", "101"]),
        ("mkimage", vec!["1", "vmdk", disk.as_str(), "7", "101"]),
        ("clone", vec!["fe:/etc/passwd", disk.as_str(), "7", "100"]),
        ("clone", vec!["fe:/etc/shadow/100/../../x", disk.as_str(), "7", "100"]),
        ("clone", vec![img.as_str(), disk.as_str(), "9", "100"]),
        ("ln", vec!["fe:/etc/passwd", disk.as_str(), "7", "100"]),
        ("cpds", vec![disk.as_str(), "/etc/passwd", "-1", "7", "100"]),
        ("mvds", vec![disk.as_str(), "/etc/x/passwd", "7", "100"]),
        ("snap_create", vec![disk.as_str(), "-1", "7", "100"]),
        ("resize", vec![disk.as_str(), "0x10", "7", "100"]),
        ("mv", vec![disk.as_str(), outside.as_str(), "7", "101"]),
        ("premigrate", vec!["h1;id", "h2", "/v/101/7", "7", "101"]),
        ("context", vec!["/v/context.sh", disk.as_str(), "7", "101"]),
        ("context", vec!["/v/a:../b", disk.as_str(), "7", "101"]),
        ("monitor", vec!["101"]),
    ] {
        let done = call(&bed, verb, ONE_DISK, &args).run();
        let line = done.failure(None).unwrap_or_else(|e| panic!("{verb} {args:?}: {e}"));
        assert!(!line.contains('\n') && !line.is_empty(), "{verb} {args:?}: {line}");
        assert_eq!(tree(&bed), before, "{verb} {args:?}: {line}");
    }
}

/// What a disk or an image is, and cannot be used as.
#[test]
fn what_is_no_disk_and_no_image_is_refused() {
    let bed = Bed::new();
    let images = bed.store(100);
    let vm = bed.store(101).join("7");
    std::fs::create_dir_all(images.join("tree")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", images.join("outside")).unwrap();
    guest::make_raw(&images.join("raw"), 16, 1);
    std::fs::create_dir_all(vm.join("disk.1")).unwrap();
    std::os::unix::fs::symlink(images.join("gone"), vm.join("disk.2")).unwrap();
    bed::tool(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", vm.join("disk.3").to_str().unwrap(), "1M"].map(OsStr::new),
    );
    let disks = [(0, "raw"), (1, "raw"), (2, "raw"), (3, "qcow2"), (4, "raw")].map(|(n, format)| {
        format!("<DISK><DISK_ID>{n}</DISK_ID><FORMAT>{format}</FORMAT><DRIVER>{format}</DRIVER><SIZE>1</SIZE></DISK>")
    });
    let document =
        format!("<VM><ID>7</ID><LCM_STATE>3</LCM_STATE><TEMPLATE>{}</TEMPLATE></VM>", disks.concat());
    let image = |name: &str| format!("fe:{}/{name}", bed.base_path(100));
    let disk = |n: u32| format!("localhost:{}/7/disk.{n}", bed.base_path(101));
    hostile::settings(&bed, "[image]\nmax_size = \"1GiB\"");
    let before = tree(&bed);
    for (verb, args, class, why) in [
        ("clone", vec![image("gone"), disk(0), "7".into(), "100".into()], 3, "does not exist"),
        ("clone", vec![image("tree"), disk(0), "7".into(), "100".into()], 5, "not a file"),
        ("clone", vec![image("outside"), disk(0), "7".into(), "100".into()], 10, "outside its snapshots"),
        ("ln", vec![image("gone"), disk(0), "7".into(), "100".into()], 3, "does not exist"),
        ("ln", vec![image("outside"), disk(0), "7".into(), "100".into()], 10, "outside its snapshots"),
        (
            "mkimage",
            vec!["2048".into(), "raw".into(), disk(4), "7".into(), "101".into()],
            2,
            "`image.max_size`",
        ),
        ("snap_create", vec![disk(1), "0".into(), "7".into(), "101".into()], 5, "neither a file nor a link"),
        ("snap_create", vec![disk(2), "0".into(), "7".into(), "101".into()], 3, "which does not exist"),
        ("snap_create", vec![disk(3), "0".into(), "7".into(), "101".into()], 5, "without the layout"),
        ("resize", vec![disk(4), "4".into(), "7".into(), "101".into()], 3, "does not exist"),
        ("cpds", vec![disk(4), image("new"), "-1".into(), "7".into(), "100".into()], 3, "does not exist"),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let line = call(&bed, verb, &document, &args).run().fails(class);
        assert!(line.contains(why), "{verb} {args:?}: {line}");
        assert_eq!(tree(&bed), before, "{verb} {args:?}: {line}");
    }
}

/// What is there, our own area left out.
fn tree(bed: &Bed) -> Vec<String> {
    let (mut out, mut todo) = (Vec::new(), vec![bed.store_path(100), bed.store_path(101)]);
    while let Some(dir) = todo.pop() {
        for e in std::fs::read_dir(dir).unwrap().flatten().filter(|e| e.file_name() != ".sdm") {
            out.push(e.path().display().to_string());
            if e.file_type().unwrap().is_dir() {
                todo.push(e.path());
            }
        }
    }
    out.sort();
    out
}

/// A verb asks for what it needs and for nothing else; attributes that are not offered are said.
#[test]
fn documents_that_are_needed_and_those_that_are_not() {
    let bed = Bed::new();
    bed.store(100);
    bed.store(101);
    std::fs::write(bed.store_path(100).join("img"), vec![1; 1 << 20]).unwrap();
    let disk = format!("localhost:{}/7/disk.0", bed.base_path(101));
    // There is no document: these do not ask for one.
    let none = "";
    call(&bed, "mkswap", none, &["1", &disk, "7", "101"]).run().ok();
    call(&bed, "delete", none, &[&disk, "7", "101"]).run().ok();
    call(&bed, "mv", none, &[&disk, &disk.replace("localhost", "elsewhere"), "7", "101"]).run().ok();
    let line = call(&bed, "mkimage", none, &["1", "raw", &disk, "7", "101"]).run().failure(None).unwrap();
    assert!(line.contains("VM"), "{line}");
    let document =
        ONE_DISK.replace("</FORMAT>", "</FORMAT><RECOVERY_SNAPSHOT_FREQ>60</RECOVERY_SNAPSHOT_FREQ>");
    let put = |ds: u32, attribute: &str| {
        let text = format!("<DATASTORE><ID>{ds}</ID><TEMPLATE>{attribute}</TEMPLATE></DATASTORE>");
        std::fs::write(bed.root().join(format!("xml/datastore-{ds}.xml")), text).unwrap();
    };
    put(100, "<CACHE_ENABLE>YES</CACHE_ENABLE>");
    put(101, "<REPLICA_HOST>h9</REPLICA_HOST>");
    let image = format!("fe:{}/img", bed.base_path(100));
    let done = call(&bed, "clone", &document, &[&image, &disk, "7", "100"]).run();
    assert_eq!(done.code, Some(0), "{}", done.err());
    for word in ["RECOVERY_SNAPSHOT_FREQ", "CACHE_ENABLE", "REPLICA_HOST"] {
        let said = done.err().lines().filter(|l| l.starts_with("WARN: ") && l.contains(word)).count();
        assert_eq!(said, 1, "{word}: {}", done.err());
    }
    put(
        100,
        "<NFS_AUTO_ENABLE>YES</NFS_AUTO_ENABLE><NFS_AUTO_HOST>n</NFS_AUTO_HOST><NFS_AUTO_PATH>/x</NFS_AUTO_PATH>",
    );
    let done = call(&bed, "clone", &document, &[&image, &disk, "7", "100"]).run();
    assert!(done.code == Some(10) && done.err().contains("n:/x is to be mounted there"), "{}", done.err());
    // The hypervisor resizes a running VM's disk.
    let before = tree(&bed);
    let running = ONE_DISK.replace("<LCM_STATE>3<", "<LCM_STATE>62<");
    call(&bed, "resize", &running, &[&disk, "9", "7", "101"]).run().ok();
    let saving = ONE_DISK.replace("<LCM_STATE>3<", "<LCM_STATE>26<");
    let target = format!("{}/new", bed.base_path(100));
    let done = call(&bed, "cpds", &saving, &[&disk, &target, "-1", "7", "100"]).run();
    assert!(done.code == Some(5), "{}", done.err());
    assert_eq!(tree(&bed), before);
}
