//! What a system datastore has and its VMs take, as oned and monitord get it.

use crate::bed::{self, Bed, Call};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::rsa::{Padding, Rsa};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read as _;
use std::net::UdpSocket;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn bed() -> (Bed, PathBuf) {
    let bed = Bed::new();
    let store = bed.store(101);
    fs::create_dir_all(bed.remotes().join("tm/shared")).unwrap();
    for verb in ["monitor", "monitor_ds"] {
        symlink(bed::program(), bed.remotes().join("tm/shared").join(verb)).unwrap();
    }
    (bed, store)
}

/// A file that takes so many KiB.
fn file(path: PathBuf, kib: usize) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, vec![1; kib << 10]).unwrap();
}

fn monitor<'a>(bed: &'a Bed, disks: &str) -> Call<'a> {
    let dump = format!(
        "<DS_DRIVER_ACTION_DATA><DATASTORE><ID>101</ID><TYPE>1</TYPE><TM_MAD>shared</TM_MAD><BASE_PATH>{}</BASE_PATH>\
         <TEMPLATE/></DATASTORE><DATASTORE_LOCATION>{}</DATASTORE_LOCATION>{disks}</DS_DRIVER_ACTION_DATA>",
        bed.base_path(101),
        bed.store_path(101).parent().unwrap().display()
    );
    let program = bed.remotes().join("tm/shared/monitor");
    Call::new(bed, "monitor", program).arg("101").stdin(bed::base64(dump))
}

const DISKS: &str = "<MONITOR_VM_DISKS>1</MONITOR_VM_DISKS>";

/// A monitord, and its configuration at the front-end.
fn monitord(bed: &Bed) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let port = socket.local_addr().unwrap().port();
    let conf = format!("NETWORK = [\n MONITOR_ADDRESS = \"auto\",\n PORT = {port},\n PUBKEY = \"\"\n]\n");
    fs::write(bed.root().join("etc/monitord.conf"), conf).unwrap();
    socket
}

/// One datagram taken apart: each VM with its report.
fn heard(socket: &UdpSocket) -> BTreeMap<u32, String> {
    heard_by(socket, &|plain| plain)
}

fn heard_by(socket: &UdpSocket, decrypt: &dyn Fn(Vec<u8>) -> Vec<u8>) -> BTreeMap<u32, String> {
    let mut buf = vec![0; 1 << 16];
    let n = socket.recv(&mut buf).expect("no datagram came");
    let text = std::str::from_utf8(&buf[..n]).unwrap();
    let payload = text.strip_prefix("MONITOR_VM SUCCESS -1 0 ").unwrap().trim_end();
    let mut out = Vec::new();
    let packed = STANDARD.decode(payload).unwrap();
    flate2::read::ZlibDecoder::new(packed.as_slice()).read_to_end(&mut out).unwrap();
    let out = String::from_utf8(decrypt(out)).unwrap();
    out.lines().map(|l| vm(l, "VM=[ID=", ", MONITOR=\"", "\"]")).collect()
}

fn vm(line: &str, open: &str, middle: &str, close: &str) -> (u32, String) {
    let inner = line.strip_prefix(open).and_then(|l| l.strip_suffix(close));
    let (id, report) = inner.and_then(|l| l.split_once(middle)).unwrap_or_else(|| panic!("{line}"));
    (id.parse().unwrap(), String::from_utf8(STANDARD.decode(report).unwrap()).unwrap())
}

/// Every layout of the contract's section 3.0.4, and what they must report.
fn layouts(bed: &Bed, store: &Path) -> BTreeMap<u32, String> {
    let image = bed.store(100).join("img");
    // Raw: a file, its snapshots beside it; a sparse file counts what it takes.
    file(store.join("3/disk.0"), 2048);
    file(store.join("3/disk.0.snap/0"), 1024);
    file(store.join("3/disk.0.snap/12"), 3072);
    fs::File::create(store.join("3/disk.1")).unwrap().set_len(1 << 40).unwrap();
    file(store.join("3/vm.xml"), 4);
    file(store.join("3/disk.x"), 4);
    // qcow2: the disk is a layer; another's content is where .current says.
    file(store.join("10/disk.0.snap/0"), 1024);
    file(store.join("10/disk.0.snap/1"), 2048);
    file(store.join("10/disk.0.snap/11"), 4096);
    symlink("disk.0.snap/11", store.join("10/disk.0")).unwrap();
    symlink(".", store.join("10/disk.0.snap/disk.0.snap")).unwrap();
    let current = store.join("10/disk.0.snap/1");
    fs::write(store.join("10/disk.0.snap/5.current"), format!("{}\n", current.display())).unwrap();
    // Persistent: the image itself with its snapshots.
    file(image.clone(), 1024);
    file(image.with_extension("snap").join("2"), 2048);
    symlink(&image, store.join("7/disk.3")).unwrap_or_else(|_| {
        fs::create_dir(store.join("7")).unwrap();
        symlink(&image, store.join("7/disk.3")).unwrap();
    });
    // Nothing to report: no disk, no VM, nothing that hangs.
    fs::create_dir(store.join("8")).unwrap();
    file(store.join("9"), 4);
    file(store.join("+3/disk.0"), 4);
    file(store.join("007/disk.0"), 4);
    symlink("nowhere", store.join("8/disk.0")).unwrap();
    for pipe in ["10/disk.7", "10/disk.0.snap/6.current"] {
        bed::tool("mkfifo", &[store.join(pipe).as_os_str()]);
    }
    let lines = |all: &[&str]| all.iter().map(|l| format!("{l}\n")).collect::<String>();
    BTreeMap::from([
        (
            3,
            lines(&[
                "DISK_SIZE = [ ID=0, SIZE=2 ]",
                "SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=1 ]",
                "SNAPSHOT_SIZE = [ ID=12, DISK_ID=0, SIZE=3 ]",
                "DISK_SIZE = [ ID=1, SIZE=0 ]",
            ]),
        ),
        (7, lines(&["DISK_SIZE = [ ID=3, SIZE=1 ]", "SNAPSHOT_SIZE = [ ID=2, DISK_ID=3, SIZE=2 ]"])),
        (
            10,
            lines(&[
                "DISK_SIZE = [ ID=0, SIZE=4 ]",
                "SNAPSHOT_SIZE = [ ID=0, DISK_ID=0, SIZE=1 ]",
                "SNAPSHOT_SIZE = [ ID=1, DISK_ID=0, SIZE=2 ]",
                "SNAPSHOT_SIZE = [ ID=5, DISK_ID=0, SIZE=2 ]",
                "DISK_SIZE = [ ID=7, SIZE=0 ]",
            ]),
        ),
    ])
}

/// B1, E1.
#[test]
fn space_goes_to_oned_and_sizes_to_monitord() {
    let (bed, store) = bed();
    let want = layouts(&bed, &store);
    let space = |said: String| {
        let keys: Vec<&str> =
            said.split_whitespace().filter_map(|w| w.split_once('=')).map(|w| w.0).collect();
        assert!(keys == ["USED_MB", "FREE_MB", "TOTAL_MB"] && said.lines().count() == 1, "{said}");
    };
    space(monitor(&bed, DISKS).run().ok());
    let socket = monitord(&bed);
    space(monitor(&bed, "").run().ok());
    space(monitor(&bed, "<MONITOR_VM_DISKS>0</MONITOR_VM_DISKS>").run().ok());
    space(monitor(&bed, DISKS).run().ok());
    assert_eq!(heard(&socket), want, "one datagram, of the call that asked for it");
    // With a key, made as stock's manual says.
    let key = bed.root().join("key");
    let public = bed.root().join("key.pub");
    bed::tool("openssl", &["genrsa".as_ref(), "-out".as_ref(), key.as_os_str(), "2048".as_ref()]);
    let words = ["rsa", "-RSAPublicKey_out", "-in"].map(OsStr::new);
    bed::tool("openssl", &[&words[..], &[key.as_os_str(), "-out".as_ref(), public.as_os_str()]].concat());
    let conf = fs::read_to_string(bed.root().join("etc/monitord.conf")).unwrap();
    let secret = conf.replace("PUBKEY = \"", &format!("PUBKEY = \"{}", public.display()));
    fs::write(bed.root().join("etc/monitord.conf"), secret).unwrap();
    space(monitor(&bed, DISKS).run().ok());
    let key = Rsa::private_key_from_pem(&fs::read(&key).unwrap()).unwrap();
    let decrypt = |secret: Vec<u8>| {
        let mut block = vec![0; 256];
        let piece = |part| {
            let n = key.private_decrypt(part, &mut block, Padding::PKCS1).unwrap();
            block[..n].to_vec()
        };
        secret.chunks(256).flat_map(piece).collect()
    };
    assert_eq!(heard_by(&socket, &decrypt), want);
    fs::remove_file(public).unwrap();
    let done = monitor(&bed, DISKS).run();
    assert_eq!(done.code, Some(0), "the space is worth more than what VMs take");
    space(done.out());
    assert!(done.err().starts_with("WARN: ") && done.err().contains("key.pub"), "{}", done.err());
}

/// B1, B2: a VM without disks is no reason to report none.
#[test]
fn a_host_reports_its_own_datastore() {
    let (bed, store) = bed();
    let call =
        |dir: &Path| Call::new(&bed, "monitor_ds", bed.remotes().join("tm/shared/monitor_ds")).arg(dir);
    assert_eq!(call(&store).run().ok(), "", "an empty one is no error");
    let want = layouts(&bed, &store);
    let said = call(&store).run();
    assert_eq!(said.code, Some(0), "{}", said.err());
    let found: BTreeMap<u32, String> =
        said.out().lines().map(|l| vm(l, "VM = [ ID = ", ", MONITOR = \"", "\" ]")).collect();
    assert_eq!(found, want);
    call(&store.join("none")).run().fails(3);
    let line = call(Path::new("101")).run().fails(2);
    assert!(line.contains("absolute"), "{line}");
}

/// 10,000 VMs in under a second: held by counting system calls, since a busy machine has no clock.
#[test]
fn ten_thousand_vms_are_reported_with_few_system_calls() {
    const VMS: u32 = 10_000;
    let (bed, store) = bed();
    for n in 0..VMS {
        let dir = store.join(n.to_string());
        fs::create_dir_all(dir.join("disk.0.snap")).unwrap();
        fs::write(dir.join("disk.0.snap/0"), "x").unwrap();
        fs::write(dir.join("disk.0.snap/1"), "x").unwrap();
        symlink("disk.0.snap/1", dir.join("disk.0")).unwrap();
        fs::write(dir.join("disk.1"), "x").unwrap();
    }
    let socket = monitord(&bed);
    let listener = socket.try_clone().unwrap();
    let heard = std::thread::spawn(move || {
        let mut all = BTreeMap::new();
        while all.len() < VMS as usize {
            all.extend(heard(&listener));
        }
        all
    });
    let began = Instant::now();
    monitor(&bed, DISKS).run().ok();
    let took = began.elapsed();
    let all = heard.join().unwrap();
    assert_eq!((all.len(), all.keys().next(), all.keys().last()), (VMS as usize, Some(&0), Some(&(VMS - 1))));
    let trace = bed.root().join("trace");
    monitor(&bed, "").run().ok();
    let counted = |disks: &str| {
        let log = trace.to_str().unwrap();
        monitor(&bed, disks).under(&["strace", "-f", "-c", "-U", "calls,name", "-o", log]).run().ok();
        let text = fs::read_to_string(&trace).unwrap();
        let total = text.lines().rev().find_map(|l| l.trim().strip_suffix("total"));
        total.unwrap_or_else(|| panic!("{text}")).split_whitespace().next().unwrap().parse::<u32>().unwrap()
    };
    let each = (counted(DISKS) - counted("")) / VMS;
    println!("{VMS} VMs in {took:?}, {each} system calls each");
    assert!(each <= 16, "{each} system calls for a VM with two disks and a snapshot");
    assert!(took < Duration::from_secs(10), "{took:?}");
}
