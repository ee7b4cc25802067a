//! Datastore verbs where only hosts of BRIDGE_LIST see the storage: on the bed of hosts, called as oned calls
//! them, with a front-end that has no such directory.

use crate::bed::{base64, names, program};
use crate::guest::{make_layer, make_qcow2, make_raw};
use crate::hosts::{Cloud, eventually};
use crate::server::Server;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

const STORES: &str = "/var/lib/one/datastores";
pub const DS: &str = "/var/lib/one/datastores/100";
pub const SOON: Duration = Duration::from_secs(20);

/// Only the hosts have datastore 100; the front-end and h2 have 101.
pub fn cloud() -> Cloud {
    let other = format!("{STORES}/101");
    let cloud = Cloud::up(&["-s", DS, "-s", &other], &["h1", "h2"]);
    for host in ["h1", "h2"] {
        cloud.place_agent(host, "--silence 3 --orphan-grace 1");
    }
    cloud.on("fe", &["umount", DS]);
    cloud.on("fe", &["rmdir", DS]);
    cloud.on("h1", &["umount", &other]);
    cloud.on("h1", &["rmdir", &other]);
    let links = cloud.on("fe", &[program().to_str().unwrap(), "generate", "remotes"]);
    cloud.inside("fe", || {
        for link in links.lines().filter(|l| l.starts_with("datastore/sdm/")) {
            let at = Path::new("/var/lib/one/remotes").join(link);
            std::fs::create_dir_all(at.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink(program(), at).unwrap();
        }
        for dir in ["/var/lib/one/xml", "/srv"] {
            std::fs::create_dir_all(dir).unwrap();
        }
    });
    let text = "[ssh]\nconnect = \"2s\"\nsilence = \"3s\"\n[lock]\nwait = \"5s\"\n";
    cloud.write("fe", "/etc/one/onesdm.toml", text);
    cloud
}

/// The message about image 7 of datastore 100, which is to be made on `hosts`.
pub fn message(hosts: &str, image: &str, root: &str) -> String {
    store(100, &format!("<BRIDGE_LIST>{hosts}</BRIDGE_LIST>"), image, root)
}

fn store(ds: u32, template: &str, image: &str, root: &str) -> String {
    format!(
        "<DS_DRIVER_ACTION_DATA><IMAGE><ID>7</ID><REGTIME>9</REGTIME>{image}</IMAGE><DATASTORE><ID>{ds}</ID>\
         <BASE_PATH>{STORES}//{ds}</BASE_PATH><TEMPLATE>{template}<STAGING_DIR>/nowhere</STAGING_DIR>\
         </TEMPLATE></DATASTORE>{root}</DS_DRIVER_ACTION_DATA>"
    )
}

pub fn words(cloud: &Cloud, verb: &str, message: &str) -> Vec<String> {
    let input = String::from_utf8(base64(message)).unwrap();
    cloud.write("fe", "/tmp/stdin", &input);
    let verb = format!("/var/lib/one/remotes/datastore/sdm/{verb}");
    let head = ["env", "-i", "HOME=/root", "PATH=/usr/bin:/bin", "ONESDM_XML_DIR=/var/lib/one/xml"];
    let run = ["setsid", "-w", "sh", "-c", "exec \"$@\" < /tmp/stdin", "sh", &verb, "7"];
    head.iter().chain(&run).map(|w| (*w).to_owned()).collect()
}

fn call(cloud: &Cloud, verb: &str, message: &str) -> Output {
    let words = words(cloud, verb, message);
    cloud.command("fe", &words.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
}

#[track_caller]
pub fn ok(cloud: &Cloud, verb: &str, message: &str) -> String {
    let out = call(cloud, verb, message);
    assert!(out.status.success(), "{verb}: {}", String::from_utf8_lossy(&out.stderr));
    assert!(!cloud.inside("fe", || Path::new(DS).exists()), "{verb} made a directory on the front-end");
    String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
}

#[track_caller]
fn fails(cloud: &Cloud, verb: &str, message: &str, code: i32) -> String {
    let out = call(cloud, verb, message);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{verb}: {said}");
    said
}

/// The path of an answer as a host sees it.
pub fn place(answer: &str, format: &str) -> PathBuf {
    let (source, is) = answer.split_once(' ').unwrap_or((answer, ""));
    assert!(is == format && source.starts_with(&format!("{STORES}//")), "{answer}");
    PathBuf::from(source.replace("//", "/"))
}

pub fn bytes(cloud: &Cloud, host: &str, path: &Path) -> Vec<u8> {
    cloud.inside(host, || std::fs::read(path).unwrap())
}

fn compare(cloud: &Cloud, a: &str, b: &str) {
    cloud.on("h1", &["qemu-img", "compare", "-U", a, b]);
}

fn made(cloud: &Cloud, at: &str) -> Vec<u8> {
    cloud.inside("fe", || make_raw(Path::new(at), 5 << 10, 3));
    bytes(cloud, "fe", Path::new(at))
}

/// No image, and nothing of a job, in a datastore.
pub fn empty(cloud: &Cloud, host: &str) -> bool {
    cloud.inside(host, || {
        let left = |dir: &str| names(&Path::new(DS).join(dir));
        left("").iter().all(|n| n == ".sdm") && left(".sdm/new").is_empty()
    })
}

#[test]
fn an_image_lives_on_bridge_hosts() {
    let cloud = cloud();
    let content = made(&cloud, "/srv/os.raw");
    let md5 = cloud.on("fe", &["md5sum", "/srv/os.raw"])[..32].to_owned();
    let path = |p: &str, more: &str| format!("<PATH>{p}</PATH><TEMPLATE>{more}</TEMPLATE>");
    let both = "h1 h2";

    // A path of the front-end comes along; compressed, it is unpacked there.
    let cp = message(both, &path("/srv/os.raw", &format!("<MD5>{md5}</MD5>")), "");
    assert_eq!(ok(&cloud, "stat", &cp), "5");
    let answer = ok(&cloud, "cp", &cp);
    let image = place(&answer, "raw");
    assert_eq!(bytes(&cloud, "h1", &image), content);
    assert_eq!(ok(&cloud, "cp", &cp), answer, "the same wish is found");
    cloud.on("fe", &["gzip", "-k", "/srv/os.raw"]);
    let rm = |source: &str| message(both, &format!("<SOURCE>{source}</SOURCE>"), "");
    let source = answer.split(' ').next().unwrap().to_owned();
    ok(&cloud, "rm", &rm(&source));
    ok(&cloud, "rm", &rm(&source));
    assert!(empty(&cloud, "h2"));
    let packed = message(both, &path("/srv/os.raw.gz", ""), "");
    assert_eq!(bytes(&cloud, "h2", &place(&ok(&cloud, "cp", &packed), "raw")), content);

    // What is wrong with the source leaves nothing.
    ok(&cloud, "rm", &rm(&source));
    let wrong = message(both, &path("/srv/os.raw", "<MD5>00000000000000000000000000000000</MD5>"), "");
    fails(&cloud, "cp", &wrong, 8);
    fails(&cloud, "cp", &message(both, &path("/etc/one/onesdm.toml", ""), ""), 10);
    fails(&cloud, "cp", &message(both, &path("/srv/none", ""), ""), 3);
    assert!(empty(&cloud, "h1"));

    // A URL is fetched by the host.
    let sent = content.clone();
    // It would knock at its own door to end, which is on the host.
    let url = cloud.inside("h1", || std::mem::ManuallyDrop::new(Server::of(sent)).url());
    let web = message("h1", &path(&url, ""), "");
    assert_eq!(bytes(&cloud, "h2", &place(&ok(&cloud, "cp", &web), "raw")), content);

    // A source on another host, by ssh, for a datastore there and for one here.
    cloud.inside("h2", || make_raw(Path::new("/srv.raw"), 3 << 10, 5));
    let remote = bytes(&cloud, "h2", Path::new("/srv.raw"));
    ok(&cloud, "rm", &rm(&source));
    let ssh = path("ssh://h2:/srv.raw", "");
    assert_eq!(ok(&cloud, "stat", &message("h1", &ssh, "")), "3");
    assert_eq!(bytes(&cloud, "h2", &place(&ok(&cloud, "cp", &message("h1", &ssh, "")), "raw")), remote);
    assert_eq!(bytes(&cloud, "fe", &place(&ok(&cloud, "cp", &store(101, "", &ssh, "")), "raw")), remote);
    cloud.write("h2", "/var/lib/one/secret", "x");
    let secret = path("ssh://h2:/var/lib/one/secret", "");
    assert!(fails(&cloud, "cp", &message("h1", &secret, ""), 10).contains("restricted"));
    let said = fails(&cloud, "stat", &message("h1", &secret, ""), 10);
    assert!(said.contains("h2"), "{said}");
}

#[test]
fn images_are_made_cloned_and_turned_back_on_bridge_hosts() {
    let cloud = cloud();
    let both = "h1 h2";
    let mkfs = "<FORMAT>qcow2</FORMAT><SIZE>3</SIZE>";
    let image = place(&ok(&cloud, "mkfs", &message(both, mkfs, "")), "");
    let info = cloud.on("h1", &["qemu-img", "info", image.to_str().unwrap()]);
    assert!(info.contains("file format: qcow2"), "{info}");
    let space = ok(&cloud, "monitor", &message(both, "", ""));
    assert!(space.lines().count() == 3 && space.starts_with("USED_MB="), "{space}");

    // Snapshots as the shared driver has them.
    let base = Path::new(DS).join("base");
    cloud.inside("h1", || {
        make_raw(&base, 4 << 10, 1);
        std::fs::create_dir(Path::new(DS).join("base.snap")).unwrap();
        for n in [0, 1, 2] {
            make_raw(&Path::new(DS).join(format!("base.snap/{n}")), 4 << 10, 10 + n);
        }
    });
    let snapshot = |n: u8| bytes(&cloud, "h2", &Path::new(DS).join(format!("base.snap/{n}")));
    let source = format!("<SOURCE>{STORES}//100/base</SOURCE><FORMAT>raw</FORMAT>");
    let snap = |n: u8| message(both, &format!("{source}<TARGET_SNAPSHOT>{n}</TARGET_SNAPSHOT>"), "");
    let (one, two) = (snapshot(1), snapshot(2));
    ok(&cloud, "snap_delete", &snap(0));
    assert!(!cloud.inside("h2", || Path::new(DS).join("base.snap/0").exists()));
    ok(&cloud, "snap_revert", &snap(1));
    assert_eq!(bytes(&cloud, "h2", &base), one);
    ok(&cloud, "snap_flatten", &snap(2));
    assert_eq!(bytes(&cloud, "h2", &base), two);
    let export = ok(&cloud, "export", &message(both, &source, ""));
    assert!(export.contains(&cloud.on("h1", &["md5sum", base.to_str().unwrap()])[..32]), "{export}");

    // Of the same datastore; to one that the front-end has; from there to here, by two hosts.
    let clone = |from: &str| format!("<PATH>{from}</PATH><ID>8</ID>").replace("<ID>8</ID>", "");
    ok(&cloud, "rm", &message(both, &format!("<SOURCE>{}</SOURCE>", image.display()), ""));
    let here = clone(&format!("{STORES}//100/base"));
    assert_eq!(bytes(&cloud, "h2", &place(&ok(&cloud, "clone", &message(both, &here, "")), "raw")), two);
    let bridges = "<SOURCE_BRIDGE_LIST>h1</SOURCE_BRIDGE_LIST>";
    let to_front = store(101, "", &here, bridges);
    assert_eq!(bytes(&cloud, "fe", &place(&ok(&cloud, "clone", &to_front), "raw")), two);
    cloud.inside("h1", || {
        let (raw, low, top) = ("/tmp/raw", format!("{DS}/low"), format!("{DS}/top"));
        make_raw(Path::new(raw), 2 << 10, 7);
        make_qcow2(Path::new(raw), Path::new(&low));
        std::fs::create_dir(format!("{top}.snap")).unwrap();
        std::fs::rename(&low, format!("{top}.snap/0")).unwrap();
        make_layer(Path::new(&format!("{top}.snap/1")), Path::new(&format!("{top}.snap/0")), 8);
        std::os::unix::fs::symlink("top.snap/1", &top).unwrap();
    });
    cloud.on("fe", &["sh", "-c", &format!("rm {STORES}/101/????????????????????????????????")]);
    let list = "<BRIDGE_LIST>h2</BRIDGE_LIST><DRIVER>qcow2</DRIVER>";
    let chain = store(101, list, &clone(&format!("{STORES}//100/top")), bridges);
    let whole = place(&ok(&cloud, "clone", &chain), "qcow2");
    cloud.on("fe", &["cp", whole.to_str().unwrap(), "/srv/whole"]);
    let bytes = bytes(&cloud, "fe", Path::new("/srv/whole"));
    cloud.inside("h1", || std::fs::write("/tmp/whole", bytes).unwrap());
    compare(&cloud, "/tmp/whole", &format!("{DS}/top.snap/1"));
}

#[test]
fn hosts_that_are_down_are_passed_over() {
    let cloud = cloud();
    let content = made(&cloud, "/srv/os.raw");
    let image = "<PATH>/srv/os.raw</PATH>";
    let mkfs = "<FORMAT>raw</FORMAT><SIZE>1</SIZE>";
    // Image 7 of two hosts falls to the second.
    cloud.ok(&["cut", "h2"]);
    let made = place(&ok(&cloud, "cp", &message("h1 h2", image, "")), "raw");
    assert_eq!(bytes(&cloud, "h1", &made), content);
    ok(&cloud, "rm", &message("h1 h2", &format!("<SOURCE>{}</SOURCE>", made.display()), ""));
    ok(&cloud, "mkfs", &message("h1 h2", "<FORMAT>save_as</FORMAT>", ""));
    assert!(empty(&cloud, "h1"));

    for (verb, image) in [("cp", image), ("mkfs", mkfs), ("monitor", "")] {
        let said = fails(&cloud, verb, &message("h2", image, ""), 6);
        assert!(said.contains("h2") && said.contains("nothing was changed"), "{verb}: {said}");
    }
    assert!(empty(&cloud, "h1"));
    cloud.ok(&["heal", "h2"]);

    // What oned knows to be off is not even tried.
    let host =
        |id: u32, state: u32| format!("<HOST><ID>{id}</ID><NAME>h{id}</NAME><STATE>{state}</STATE></HOST>");
    let pool = |a, b| format!("<HOST_POOL>{}{}</HOST_POOL>", host(1, a), host(2, b));
    cloud.write("fe", "/var/lib/one/xml/hosts.xml", &pool(4, 8));
    let said = fails(&cloud, "mkfs", &message("h1 h2", mkfs, ""), 6);
    assert!(said.contains("BRIDGE_LIST are off, in error or disabled"), "{said}");
    assert!(empty(&cloud, "h1"));
    cloud.write("fe", "/var/lib/one/xml/hosts.xml", &pool(2, 8));
    cloud.ok(&["crash", "h2"]);
    ok(&cloud, "mkfs", &message("h2 h1", mkfs, ""));
    fails(&cloud, "mkfs", &message("-oProxyCommand=x", mkfs, ""), 2);
}

/// Wherever the front-end dies, the host undoes what nobody wants any more.
#[test]
fn a_front_end_that_is_killed_leaves_nothing() {
    let cloud = cloud();
    made(&cloud, "/srv/os.raw");
    ok(&cloud, "monitor", &message("h1", "", ""));
    // While it makes the domain, while it begins, and when the image is coming: all before the commit.
    for stop in [9, 4, 6] {
        let text = format!(
            "#!/bin/sh\nexport ONESDM_TEST_STOP={stop}\nexec {} \"$@\" --silence 3 --orphan-grace 1\n",
            program().display()
        );
        cloud.place_script("h1", &text);
        let words = words(&cloud, "cp", &message("h1", "<PATH>/srv/os.raw</PATH>", ""));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut front = cloud.command("fe", &words).spawn().unwrap();
        let find = |host: &str, what: &str| {
            let script = format!("grep -l '{what}' /proc/[0-9]*/status | cut -d/ -f3");
            let out = cloud.command(host, &["sh", "-c", &script]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        eventually("the agent stands still", SOON, || !find("h1", "State:.T").is_empty());
        assert!(!empty(&cloud, "h1"));
        for pid in find("fe", "Name:.cp$") {
            cloud.on("fe", &["kill", "-KILL", &pid]);
        }
        front.wait().unwrap();
        for pid in find("h1", "State:.T") {
            cloud.on("h1", &["kill", "-CONT", &pid]);
        }
        eventually("the job on the host ends", SOON, || empty(&cloud, "h1"));
    }
    cloud.place_agent("h1", "");
    ok(&cloud, "cp", &message("h1", "<PATH>/srv/os.raw</PATH>", ""));
}
