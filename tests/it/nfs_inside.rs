//! What `nfs` runs in its machine: /a and /b are one NFS 4.2 export, mounted by two clients.

use crate::bed::{self, Bed, Running, names};
use crate::doc::Doc;
use crate::pause::{self, Paused};
use crate::{guest, scenes};
use onesdm::engine::conformance;
use onesdm::engine::file::FileEngine;
use onesdm::lock::{LeaseId, LockBackend as _, LockError, Mode, OfdLocks};
use onesdm::sdm::{Domain, proof};
use onesdm::sys::fs::Dir;
use rustix::process::Signal;
use std::cell::Cell;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn nfs(args: &[&str]) {
    bed::tool("/usr/bin/nfs", &args.iter().map(AsRef::as_ref).collect::<Vec<_>>());
}

/// Locks that the server knows of.
fn known_locks() -> usize {
    let clients = names(Path::new("/proc/fs/nfsd/clients"));
    let states = clients.iter().map(|c| format!("/proc/fs/nfsd/clients/{c}/states"));
    states.map(|s| std::fs::read_to_string(s).unwrap_or_default().matches("type: lock").count()).sum()
}

/// Ends the time in which clients may claim what they held; refused when it is over already.
fn end_grace() {
    let _ = std::fs::write("/proc/fs/nfsd/v4_end_grace", "Y");
}

/// Calls that no cache answers: clients notice what became of their server.
fn wake() {
    for host in ["/a", "/b"] {
        Dir::open(Path::new(host)).unwrap().entry(".".as_ref()).unwrap();
    }
}

/// The server ends and comes back, and its clients claim what they held. On a slow machine that takes them
/// longer than a fixed time; the server gives them 30 s.
fn restart() {
    let held = known_locks();
    nfs(&["stop"]);
    std::thread::sleep(Duration::from_secs(1));
    nfs(&["start"]);
    wake();
    let begin = Instant::now();
    while known_locks() < held && begin.elapsed() < Duration::from_secs(25) {
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("{:5.1} s: {} of {held} locks claimed", begin.elapsed().as_secs_f32(), known_locks());
    end_grace();
}

/// The server comes back and lets nobody claim anything.
fn forget() {
    nfs(&["stop"]);
    nfs(&["start"]);
    end_grace();
    wake();
}

/// The same datastores as hosts a and b see them.
pub fn beds(name: &str) -> [Bed; 2] {
    ["/a", "/b"].map(|m| Bed::on(&Path::new(m).join(name)))
}

/// The collector and the checker find a domain in order, and nothing is left in its area.
#[track_caller]
pub fn clean(bed: &Bed) {
    let dir = bed.store_path(100);
    let at = dir.to_str().unwrap();
    for verb in ["gc", "check"] {
        let done = bed.onesdm(&[verb, at]).run();
        assert!(done.code == Some(0), "{verb}: {done:?}");
    }
    assert_eq!(names(&dir.join(".sdm/new")), [""; 0]);
    let dead = names(&dir.join(".sdm/del"));
    assert!(dead.iter().all(|n| n.split_once('.').is_some_and(|(_, end)| end == "keep")), "{dead:?}");
    assert!(names(&dir).iter().all(|n| !n.starts_with(".nfs")), "{:?}", names(&dir));
}

fn locks(host: &str) -> OfdLocks {
    OfdLocks::new(Dir::open(&Path::new("/").join(host).join("locks")).unwrap())
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn locks_reach_the_other_host_and_survive_a_restart() {
    let _ = std::fs::create_dir("/a/locks");
    std::fs::write("/a/locks/leases", "").unwrap();
    let (a, b) = (locks("a"), locks("b"));
    let id = LeaseId::Domain;
    let busy = |l: &OfdLocks, mode| matches!(l.try_acquire(&id, mode), Err(LockError::Busy(_)));
    let held = a.try_acquire(&id, Mode::Exclusive).unwrap();
    assert!(busy(&b, Mode::Exclusive) && busy(&b, Mode::Shared));
    assert!(b.is_held(&id).unwrap());
    restart();
    assert!(busy(&b, Mode::Exclusive), "the server gave away what was held");
    held.still_held().unwrap();
    drop(held);
    let shared = b.try_acquire(&id, Mode::Shared).unwrap();
    assert!(busy(&a, Mode::Exclusive));
    drop((a.try_acquire(&id, Mode::Shared).unwrap(), shared));
    drop(a.try_acquire(&id, Mode::Exclusive).unwrap());
}

/// What one mount finds of the two bytes that another holds and has let go.
fn tried(holder: &str, other: &str) -> (bool, bool) {
    let at = |mount: &str| Path::new(mount).join("proof");
    std::fs::create_dir_all(at(holder)).unwrap();
    let domain = Domain::init_dir(&at(holder)).unwrap();
    let holding = proof::hold(&domain).unwrap();
    let other = Domain::open_dir(&at(other)).unwrap();
    (proof::is_free(&other, &holding.held).unwrap(), proof::is_free(&other, &holding.free).unwrap())
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn locks_of_two_hosts_are_proven_in_both_directions() {
    for (holder, other) in [("/a", "/b"), ("/b", "/a")] {
        assert_eq!(tried(holder, other), (false, true), "{holder} {other}");
    }
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn a_lock_that_the_server_gave_away_is_noticed_by_its_holder() {
    for mode in [Mode::Exclusive, Mode::Shared] {
        let _ = std::fs::create_dir("/a/locks");
        std::fs::write("/a/locks/leases", "").unwrap();
        let (a, b) = (locks("a"), locks("b"));
        let held = a.try_acquire(&LeaseId::Domain, mode).unwrap();
        let other = a.try_acquire(&LeaseId::Slab("x".into()), mode).unwrap();
        let begin = Instant::now();
        (0..100).for_each(|_| held.still_held().unwrap());
        println!("{:5.2} ms a look", begin.elapsed().as_secs_f64() * 10.0);
        forget();
        let theirs = b.try_acquire(&LeaseId::Domain, Mode::Exclusive).unwrap();
        for held in [&held, &other] {
            let e = held.still_held().unwrap_err();
            assert!(matches!(e, LockError::Stale { .. }), "{mode:?}: {e}");
        }
        drop((held, other));
        assert!(matches!(a.try_acquire(&LeaseId::Domain, mode), Err(LockError::Busy(_))));
        drop(theirs);
        // It works on, with a lock of its own.
        a.try_acquire(&LeaseId::Domain, mode).unwrap().still_held().unwrap();
    }
}

fn large(a: &Bed) -> (PathBuf, Doc) {
    a.store(100);
    let source = a.images().join("big");
    guest::make_raw(&source, 12 << 10, 1);
    let doc = Doc::new(a, 1).image("PATH", source.display());
    (source, doc)
}

/// The path of an answer, on the other host.
fn seen_by_b(answer: &str) -> String {
    answer.split(' ').next().unwrap().replace("/a//", "/b/")
}

/// `cp` of a large image in a datastore of host a, held still as soon as it has a lock.
fn caught(a: &Bed, doc: &Doc) -> Running {
    let mut running = a.ds("cp", 1, &doc.xml()).start();
    let begin = Instant::now();
    while known_locks() == 0 {
        assert!(running.is_running() && begin.elapsed() < Duration::from_secs(20));
    }
    running.signal(Signal::STOP);
    running
}

/// Whoever lost its locks commits nothing.
#[test]
#[ignore = "runs in the machine of `nfs`"]
fn a_verb_whose_locks_are_gone_publishes_nothing() {
    let [a, b] = beds("forgotten");
    let (source, doc) = large(&a);
    a.onesdm(&["domain", "init", a.store_path(100).to_str().unwrap()]).run().ok();
    // Before the record that decides: the leases are there, and are looked at after it.
    let (steps, done) = pause::steps(&a, a.ds("cp", 1, &doc.xml()));
    done.ok();
    let n = pause::step(&steps, |s| s.starts_with("Rename") && s.contains("commit.json"));
    std::fs::rename(seen_by_b(&done.ok()), "/b/forgotten/aside").unwrap();
    let paused = Paused::before(n, a.ds("cp", 1, &doc.xml())).unwrap();
    forget();
    let said = paused.wakes().fails(8);
    assert!(said.contains("server"), "{said}");
    assert_eq!(names(&b.store_path(100)), [".sdm"]);
    let answer = a.ds("cp", 1, &doc.xml()).run().ok();
    assert!(std::fs::read(seen_by_b(&answer)).unwrap() == std::fs::read(&source).unwrap());
    clean(&b);
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn the_engine_conforms() {
    let (n, begin) = (Cell::new(0), Instant::now());
    std::fs::create_dir("/a/conform").unwrap();
    conformance::run(&|| {
        n.set(n.get() + 1);
        let dir = Path::new("/a/conform").join(n.get().to_string());
        std::fs::create_dir(&dir).unwrap();
        Box::new(FileEngine::open(&dir).unwrap())
    });
    println!("{:.1} s", begin.elapsed().as_secs_f32());
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn every_scene_plays() {
    let full = std::env::var("ONESDM_FULL").is_ok_and(|v| v == "1");
    let some = ["clone raw to qcow2", "rm raw with snapshots", "snap_delete qcow2"];
    let wanted = scenes::all().into_iter().filter(|s| full || some.contains(&s.name));
    for (n, scene) in wanted.enumerate() {
        let begin = Instant::now();
        let [a, b] = beds(&format!("scene{n}"));
        let stage = scene.stage(&a);
        let done = scene.call(&stage).run();
        println!("{:5.1} s called", begin.elapsed().as_secs_f32());
        stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));
        if a.store_path(100).join(".sdm").exists() {
            clean(&b);
        }
        println!("{:5.1} s {}", begin.elapsed().as_secs_f32(), scene.name);
    }
}

/// An image in datastore 100.
pub fn image(bed: &Bed, id: u32) -> String {
    guest::make_raw(&bed.images().join("src"), 256, 1);
    let doc = Doc::new(bed, id).image("PATH", bed.images().join("src").display());
    bed.store(100);
    let answer = bed.ds("cp", id, &doc.xml()).run().answer().unwrap();
    let path = answer.split(' ').next().unwrap().to_owned();
    path.rsplit('/').next().unwrap().trim().to_owned()
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn open_files_are_removed_and_stay_readable_where_they_were_opened() {
    let [a, b] = beds("silly");
    let name = image(&a, 1);
    let store = a.store_path(100);
    let snaps = store.join(format!("{name}.snap"));
    std::fs::create_dir(&snaps).unwrap();
    guest::make_raw(&snaps.join("0"), 256, 2);
    let open = |path: &Path| std::fs::File::open(path).unwrap();
    let (mut top, mut below) = (open(&store.join(&name)), open(&snaps.join("0")));
    let first = |f: &mut std::fs::File| {
        let mut bytes = vec![0; 256 << 10];
        f.rewind().unwrap();
        f.read_exact(&mut bytes).unwrap();
        bytes
    };
    let before = (first(&mut top), first(&mut below));
    a.ds("rm", 1, &Doc::new(&a, 1).source(&a, &name).xml()).run().answer().unwrap();
    assert_eq!(names(&store), [".sdm"], "removed, whoever reads it");
    assert!(before == (first(&mut top), first(&mut below)));
    // The collector says nothing wrong about what its own host still has open.
    for verb in ["gc", "check"] {
        let done = a.onesdm(&[verb, store.to_str().unwrap()]).run();
        let said = String::from_utf8_lossy(&done.stdout).into_owned();
        assert!(done.code == Some(0), "{verb}: {said} {}", done.err());
    }
    drop((top, below));
    clean(&a);
    clean(&b);
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn a_verb_outlives_its_server() {
    let [a, b] = beds("restart");
    let (source, doc) = large(&a);
    let running = caught(&a, &doc);
    restart();
    running.signal(Signal::CONT);
    let answer = running.wait().ok();
    assert!(
        std::fs::read(seen_by_b(&answer)).unwrap() == std::fs::read(&source).unwrap(),
        "b reads what a wrote"
    );
    clean(&b);
}

/// Answers as rpcbind and mountd do, as far as the kernel asks: yes, and with the handle of /export.
fn answer(mut socket: std::net::TcpStream, handle: &[u8]) -> std::io::Result<()> {
    loop {
        let mut mark = [0; 4];
        socket.read_exact(&mut mark)?;
        let mut call = vec![0; (u32::from_be_bytes(mark) & 0x7fff_ffff) as usize];
        socket.read_exact(&mut call)?;
        let word = |n: usize| u32::from_be_bytes(call[4 * n..4 * n + 4].try_into().unwrap());
        let (program, procedure) = (word(3), word(5));
        let mut reply = call[..4].to_vec();
        let mut put = |words: &[u32]| words.iter().for_each(|w| reply.extend(w.to_be_bytes()));
        put(&[1, 0, 0, 0, 0]);
        match (program, procedure) {
            (100_000, 1..) => put(&[1]),
            (100_005, 1) => {
                put(&[0, u32::try_from(handle.len()).unwrap()]);
                put(&handle.chunks(4).map(|c| u32::from_be_bytes(c.try_into().unwrap())).collect::<Vec<_>>());
                put(&[1, 1]);
            }
            _ => {}
        }
        let mark = u32::try_from(reply.len()).unwrap() | 0x8000_0000;
        socket.write_all(&[&mark.to_be_bytes()[..], &reply].concat())?;
    }
}

/// The server with NFS 3, too, and its export mounted by both clients with locks that stay at home.
fn version_3() {
    let mut file = std::fs::File::options().read(true).write(true).open("/proc/fs/nfsd/filehandle").unwrap();
    file.write_all(b"clients /export 64\n").unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let hex = text.trim().trim_start_matches("\\x").as_bytes().chunks(2);
    let handle: Vec<u8> =
        hex.map(|h| u8::from_str_radix(std::str::from_utf8(h).unwrap(), 16).unwrap()).collect();
    for port in [111, 20048] {
        let (listener, handle) = (std::net::TcpListener::bind(("0.0.0.0", port)).unwrap(), handle.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let handle = handle.clone();
                std::thread::spawn(move || answer(socket, &handle));
            }
        });
    }
    nfs(&["stop"]);
    bed::tool("env", &["NFS3=+", "/usr/bin/nfs", "start"].map(AsRef::as_ref));
    std::fs::write("/proc/fs/nfsd/v4_end_grace", "Y").unwrap();
    for host in ["a", "b"] {
        let options = "vers=3,nolock,proto=tcp,port=2049,mountproto=tcp,mountport=20048";
        nfs(&["mount", host, &format!("/{host}3"), options]);
    }
}

#[test]
#[ignore = "runs in the machine of `nfs`"]
fn where_locks_stay_at_home_one_host_works() {
    version_3();
    let [a, b] = ["/a3", "/b3"].map(|m| Bed::on(&Path::new(m).join("datastores")));
    assert_eq!(tried("/a3", "/b3"), (true, true), "each has what the other holds");
    let name = image(&a, 1);
    let before = names(&b.store_path(100));
    let other = ["/bin/unshare", "-u", "/bin/sh", "-c", "hostname b; exec \"$0\" \"$@\""];
    let dump = Doc::new(&b, 1).source(&b, &name).xml();
    let at = b.store_path(100);
    for call in [b.ds("rm", 1, &dump), b.onesdm(&["gc", at.to_str().unwrap()])] {
        let done = call.under(&other).run();
        // The collector's report is what it prints.
        let said = format!("{}{}", done.err(), String::from_utf8_lossy(&done.stdout));
        assert!(done.code == Some(10) && said.contains("nolock"), "{said}");
    }
    assert_eq!(names(&at), before);
    // The first one goes on, wherever it has mounted it.
    b.ds("rm", 1, &dump).run().answer().unwrap();
    clean(&a);
}
