//! NFS_AUTO, the whole life of a mount: what `nfs` runs in its machine besides `nfs_inside`. The host is client
//! a; the share is a directory of the server's export.

use crate::bed::{self, Bed, Call, names};
use crate::doc::Doc;
use crate::guest;
use std::path::{Path, PathBuf};
use std::process::Command;

const SERVER: &str = "10.77.1.1";
/// A host of its own.
const HOST: [&str; 8] = [
    "/usr/bin/nsenter",
    "--net=/run/netns/a",
    "/bin/unshare",
    "-u",
    "/bin/sh",
    "-c",
    "hostname a; exec \"$0\" \"$@\"",
    "/bin/env",
];

/// A front-end that is a host, too, with a share of its own for each datastore and nothing mounted.
struct Auto {
    bed: Bed,
    share: String,
}

impl Auto {
    fn new(share: &str) -> Auto {
        let stores = PathBuf::from(format!("/tmp/{share}"));
        for ds in [100, 101] {
            std::fs::create_dir_all(format!("/export/{share}/{ds}")).unwrap();
        }
        let bed = Bed::on(&stores);
        guest::make_raw(&bed.images().join("src"), 256, 1);
        Auto { bed, share: share.to_owned() }
    }

    fn attributes(&self, ds: u32) -> [(&'static str, String); 4] {
        let path = format!("/{}/{ds}", self.share);
        [
            ("NFS_AUTO_ENABLE", "YES".into()),
            ("NFS_AUTO_HOST", SERVER.into()),
            ("NFS_AUTO_PATH", path),
            ("NFS_AUTO_OPTS", "vers=4.2,noauto".into()),
        ]
    }

    fn doc(&self, image: u32) -> Doc {
        let doc = Doc::new(&self.bed, image).image("PATH", self.bed.images().join("src").display());
        self.attributes(100).into_iter().fold(doc, |doc, (key, value)| doc.store_template(key, value))
    }

    fn cp(&self, image: u32, doc: &Doc) -> Call<'_> {
        self.bed.ds("cp", image, &doc.xml()).under(&HOST)
    }

    /// A transfer verb on disk 0 of VM 7, which has image `img` of datastore 100.
    fn tm(&self, verb: &str, args: &[&str]) -> Call<'_> {
        let xml = self.bed.root().join("xml");
        std::fs::create_dir_all(&xml).unwrap();
        let vm = "<VM><ID>7</ID><LCM_STATE>3</LCM_STATE><TEMPLATE><DISK><DISK_ID>0</DISK_ID><FORMAT>raw</FORMAT>\
                  <SIZE>1</SIZE></DISK></TEMPLATE></VM>";
        std::fs::write(xml.join("vm-7.xml"), vm).unwrap();
        for ds in [100, 101] {
            let attributes = self.attributes(ds).map(|(k, v)| format!("<{k}>{v}</{k}>")).concat();
            let text = format!("<DATASTORE><ID>{ds}</ID><TEMPLATE>{attributes}</TEMPLATE></DATASTORE>");
            std::fs::write(xml.join(format!("datastore-{ds}.xml")), text).unwrap();
        }
        let call = self.bed.tm("shared", verb).env("ONESDM_XML_DIR", xml).under(&HOST);
        let call = call.env("DS_DIR", self.point(0).parent().unwrap());
        args.iter().fold(call, Call::arg)
    }

    fn point(&self, ds: u32) -> PathBuf {
        self.bed.store_path(ds)
    }

    fn connection(&self, words: &[&str]) -> Call<'_> {
        self.bed.onesdm(&[&["connection"], words].concat())
    }

    fn list(&self) -> String {
        self.connection(&["list"]).run().ok()
    }
}

/// Sources of what is mounted at a place.
fn mounted(point: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = table.lines().filter(|l| l.split(' ').nth(4) == point.to_str());
    lines.map(|l| l.split_once(" - ").unwrap().1.split(' ').nth(1).unwrap().to_owned()).collect()
}

fn umount(point: &Path) {
    bed::tool("umount", &[point.as_os_str()]);
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn a_share_is_mounted_once_and_again_after_a_boot_and_ends_when_it_is_dropped() {
    let auto = Auto::new("life");
    let calls: Vec<_> = (1..=3).map(|n| auto.cp(n, &auto.doc(n)).start()).collect();
    let answers: Vec<_> = calls.into_iter().map(|c| c.wait().ok()).collect();
    let wanted = format!("{SERVER}:/life/100");
    assert_eq!(mounted(&auto.point(100)), [wanted.as_str()]);
    let images = names(Path::new("/export/life/100"));
    assert_eq!(images.len(), 4, "three and our area: {images:?}");
    assert!(auto.list().contains("datastore-100") && auto.list().contains(" mounted"), "{}", auto.list());
    // A VM's disk: both datastores, as their documents say.
    let image = answers[0].split(' ').next().unwrap();
    let disk = format!("localhost:{}/7/disk.0", auto.bed.base_path(101));
    auto.tm("clone", &[&format!("fe:{image}"), &disk, "7", "100"]).run().ok();
    assert_eq!(mounted(&auto.point(101)), [format!("{SERVER}:/life/101")]);
    // As after a boot: no document says it again, and it is mounted again.
    for ds in [100, 101] {
        umount(&auto.point(ds));
    }
    assert!(auto.list().contains("not mounted"), "{}", auto.list());
    auto.tm("delete", &[&disk, "7", "101"]).run().ok();
    assert_eq!((mounted(&auto.point(101)).len(), mounted(&auto.point(100)).len()), (1, 0));
    assert!(!Path::new("/export/life/101/7/disk.0").exists());
    auto.bed.ds("monitor", 100, &auto.doc(1).xml()).under(&HOST).run().ok();
    assert_eq!(mounted(&auto.point(100)).len(), 1);
    // In use it stays, and is still known.
    let open = std::fs::File::open(auto.point(100).join(".sdm/leases")).unwrap();
    let said = auto.connection(&["drop", "datastore-100"]).run().fails(9);
    assert!(said.contains("busy"), "{said}");
    drop(open);
    for id in ["datastore-100", "datastore-101"] {
        auto.connection(&["drop", id]).run().ok();
        auto.connection(&["drop", id]).run().fails(3);
    }
    assert!(mounted(&auto.point(100)).is_empty() && mounted(&auto.point(101)).is_empty());
    assert!(!Path::new("/etc/fstab").exists(), "the table is nobody's business");
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn what_somebody_else_mounted_is_used_or_refused_and_stays() {
    let auto = Auto::new("other");
    let point = auto.bed.store(100);
    // The same share, mounted by hand.
    let by_hand = |share: &str| {
        let mut mount = Command::new(HOST[0]);
        mount.args(&HOST[1..]).args(["mount", "-t", "nfs", "-o", "vers=4.2", share]).arg(&point);
        assert!(mount.status().unwrap().success());
    };
    by_hand(&format!("{SERVER}:/other/100"));
    auto.cp(1, &auto.doc(1)).run().ok();
    assert!(!auto.list().contains("datastore-100"));
    auto.connection(&["drop", "datastore-100"]).run().fails(3);
    assert_eq!(mounted(&point).len(), 1, "it stays");
    umount(&point);
    // Ours, and then replaced by somebody else's: no longer ours.
    auto.cp(2, &auto.doc(2)).run().ok();
    umount(&point);
    for other in ["another share", "a bind mount", "tmpfs"] {
        match other {
            "another share" => by_hand(&format!("{SERVER}:/other/101")),
            "a bind mount" => {
                bed::tool("mount", &["--bind".as_ref(), "/export/other".as_ref(), point.as_os_str()]);
            }
            _ => {
                bed::tool("mount", &["-t".as_ref(), "tmpfs".as_ref(), "x".as_ref(), point.as_os_str()]);
            }
        }
        let before = names(&point);
        let said = auto.cp(3, &auto.doc(3)).run().fails(10);
        assert!(said.contains("is wanted") && said.contains("/other/100"), "{other}: {said}");
        assert!(auto.list().contains("another mount is there"), "{}", auto.list());
        assert_eq!((names(&point), mounted(&point).len()), (before, 1), "{other}");
        if other == "tmpfs" {
            let said = auto.connection(&["drop", "datastore-100"]).run().ok();
            assert!(said.contains("stays"), "{said}");
            assert_eq!(mounted(&point).len(), 1);
        }
        umount(&point);
    }
    // What lies there is not hidden.
    std::fs::write(point.join("image"), "x").unwrap();
    let said = auto.cp(3, &auto.doc(3)).run().fails(10);
    assert!(said.contains("entries of its own"), "{said}");
    assert!(mounted(&point).is_empty());
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn a_server_that_refuses_or_is_silent_ends_the_verb_and_nothing_else() {
    let auto = Auto::new("dead");
    let refused = auto.doc(1).store_template("NFS_AUTO_PATH", "/dead/nowhere");
    let said = auto.cp(1, &refused).run().fails(6);
    assert!(said.contains("/dead/nowhere") && said.contains("mount.nfs"), "{said}");
    // It takes the connection and never answers.
    let _silent = std::net::TcpListener::bind((SERVER, 2050)).unwrap();
    let silent = auto.doc(1).store_template("NFS_AUTO_OPTS", "vers=4.2,port=2050");
    let done = auto.cp(1, &silent).run();
    let said = done.fails(7);
    assert!(said.contains("30 s") && done.took.as_secs() < 45, "{:?}: {said}", done.took);
    assert!(mounted(&auto.point(100)).is_empty() && names(&auto.point(100)).is_empty());
    assert!(!auto.list().contains("datastore-100"));
    // And the verb that comes later finds nothing in its way.
    auto.cp(1, &auto.doc(1)).run().ok();
    auto.connection(&["drop", "datastore-100"]).run().ok();
}

/// Not of NFS_AUTO, but of this kernel.
#[test]
#[ignore = "runs in the machine of `nfs`"]
fn the_doctor_warns_of_locks_that_come_back_unasked() {
    let bed = Bed::on(Path::new("/a/doctor"));
    let store = bed.store(100);
    for (value, warned) in [("Y", true), ("N", false)] {
        std::fs::write("/sys/module/nfs/parameters/recover_lost_locks", value).unwrap();
        let said = bed.onesdm(&["doctor", store.to_str().unwrap()]).run().out();
        assert_eq!(said.contains("recover_lost_locks is on"), warned, "{said}");
    }
}
