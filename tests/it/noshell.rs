//! Every verb traced, failures included: no shell is ever started and at most one child; every descriptor is
//! close-on-exec; nothing is made outside the datastore and the bed. The costs are printed and guarded.

use crate::bed::{self, Bed, Call, Done};
use crate::{failures, scenes};
use std::collections::HashSet;

const CALLS: &str = "trace=execve,execveat,openat,open,creat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,\
                     symlink,symlinkat,mknod,mknodat,pipe2,pipe,socket,dup,dup2,dup3,accept4,memfd_create,\
                     eventfd2,signalfd4,pidfd_open,fsync,fdatasync";

/// Runs a call under strace and reads what it did.
fn traced(bed: &Bed, call: Call<'_>) -> (Done, Trace) {
    let file = bed.root().join("trace");
    let words = ["strace", "-f", "-qq", "-y", "-s", "4096", "-o", file.to_str().unwrap(), "-e", CALLS];
    let done = call.under(&words).run();
    let text = std::fs::read(&file).expect("the suite needs strace");
    (done, Trace::read(&String::from_utf8_lossy(&text)))
}

#[derive(Default, Debug)]
struct Trace {
    /// Programs tried, the verb itself first, and whether they started.
    execs: Vec<(String, bool)>,
    /// Descriptors of ours that a child would inherit.
    inherited: Vec<String>,
    /// Lines that make something, with the absolute path made.
    made: Vec<(String, String)>,
    fsyncs: usize,
}

impl Trace {
    fn read(text: &str) -> Trace {
        let mut trace = Trace::default();
        let mut children = HashSet::new();
        for line in text.lines() {
            let Some((pid, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            let Some((name, args)) = rest.split_once('(') else { continue };
            if name.starts_with("exec") {
                let path = quoted(args).into_iter().next().map(|(_, p)| p).unwrap_or_default();
                if !trace.execs.is_empty() {
                    children.insert(pid.to_owned());
                }
                trace.execs.push((path, !rest.contains(" = -1 ")));
                continue;
            }
            if name.ends_with("sync") {
                trace.fsyncs += usize::from(!children.contains(pid));
                continue;
            }
            let failed = rest.contains(" = -1 ");
            let fd =
                matches!(name, "openat" | "open" | "creat" | "pipe2" | "pipe" | "socket" | "dup" | "dup3")
                    || matches!(name, "accept4" | "memfd_create" | "eventfd2" | "signalfd4");
            // Libraries read their own settings without the flag; nothing in those is worth hiding.
            let public = ["/usr/", "/etc/"].iter().any(|d| rest.contains(&format!(", \"{d}")));
            if fd && !failed && !public && !rest.contains("CLOEXEC") && !children.contains(pid) {
                trace.inherited.push(rest.to_owned());
            }
            let makes = if name.starts_with("open") {
                rest.contains("O_CREAT")
            } else {
                !fd && name != "pidfd_open" && name != "dup2"
            };
            if makes && !failed {
                for (dir, path) in quoted(args) {
                    let path = if path.starts_with('/') { path } else { format!("{dir}/{path}") };
                    trace.made.push((path, rest.to_owned()));
                }
            }
        }
        trace
    }

    fn children(&self) -> usize {
        self.execs[1..].iter().filter(|(_, started)| *started).count()
    }

    fn gates(&self, bed: &Bed, what: &str) {
        let shells = ["sh", "bash", "dash", "ash", "busybox", "env", "sudo", "su", "python3", "perl", "ruby"];
        let tried = &self.execs[1..];
        let shell = |p: &str| p.rsplit('/').next().is_some_and(|name| shells.contains(&name));
        assert!(!tried.iter().any(|(p, _)| shell(p)), "{what}: a shell: {tried:?}");
        assert!(self.children() <= 1, "{what}: more than one child: {tried:?}");
        assert!(self.inherited.is_empty(), "{what}: a child would inherit: {:#?}", self.inherited);
        let inside = |path: &str| {
            let places = [bed.root().to_owned(), bed.store_path(100), "/dev/null".into()];
            places.iter().any(|d| path.starts_with(d.to_str().unwrap()))
        };
        let outside: Vec<_> = self.made.iter().filter(|(path, _)| !inside(path)).collect();
        assert!(outside.is_empty(), "{what}: made outside: {outside:#?}");
    }
}

/// Quoted arguments, each with the directory that strace wrote before it in angle brackets.
fn quoted(args: &str) -> Vec<(String, String)> {
    let (mut found, mut dir, mut rest) = (Vec::new(), String::new(), args);
    while let Some(at) = rest.find(['"', '<']) {
        let (open, tail) = (rest.as_bytes()[at], &rest[at + 1..]);
        let Some(end) = tail.find(if open == b'"' { '"' } else { '>' }) else { break };
        if open == b'"' {
            found.push((dir.clone(), tail[..end].to_owned()));
        } else {
            tail[..end].clone_into(&mut dir);
        }
        rest = &tail[end + 1..];
        if rest.starts_with(", [") {
            break; // argv of execve
        }
    }
    found
}

#[test]
fn no_verb_starts_a_shell() {
    println!("{:24} {:>9} {:>7} {:>6}", "", "children", "fsyncs", "made");
    for scene in scenes::all() {
        let bed = Bed::new();
        let store = bed.store(100);
        bed.onesdm(&["domain", "init", store.to_str().unwrap()]).run().ok();
        let stage = scene.stage(&bed);
        let (done, trace) = traced(&bed, scene.call(&stage));
        stage.done(&done).unwrap_or_else(|e| panic!("{}: {e}\n{}", scene.name, done.err()));
        trace.gates(&bed, scene.name);
        println!("{:24} {:>9} {:>7} {:>6}", scene.name, trace.children(), trace.fsyncs, trace.made.len());
        assert!(trace.fsyncs <= 24, "{}: {} flushes", scene.name, trace.fsyncs);
    }
}

#[test]
fn no_failure_starts_a_shell() {
    for f in failures::all() {
        let bed = Bed::new();
        bed.store(100);
        let dump = (f.dump)(&bed).xml();
        let (done, trace) = traced(&bed, bed.ds(f.verb, 7, &dump));
        let what = format!("{}, {}", f.verb, f.what);
        done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
        trace.gates(&bed, &what);
    }
}

/// What oned leaves open by mistake does not reach the tools: seen in the child itself, held up after its
/// exec.
#[test]
fn children_inherit_nothing_but_their_own() {
    let bed = Bed::new();
    bed.store(100);
    let scene = scenes::all().into_iter().find(|s| s.name == "cp qcow2 to raw").unwrap();
    let stage = scene.stage(&bed);
    // A shell of the test's own leaves descriptor 9 open for the program.
    let leak = ["sh", "-c", "exec 9</etc/passwd; exec \"$@\"", "leak"];
    let mut running = scene.call(&stage).under(&leak).slowed("execve", "delay_exit=400000").start();
    let (mut seen, mut foreign) = (false, Vec::new());
    while running.is_running() {
        for pid in bed::names("/proc".as_ref()).into_iter().filter(|n| n.parse::<u32>().is_ok()) {
            let dir = std::path::Path::new("/proc").join(&pid);
            let args = std::fs::read(dir.join("cmdline")).unwrap_or_default();
            let args = String::from_utf8_lossy(&args).into_owned();
            if args.contains(bed.root().to_str().unwrap())
                && args.split('\0').next().is_some_and(|a| a.ends_with("qemu-img"))
            {
                seen = true;
                for fd in bed::names(&dir.join("fd")).into_iter().filter(|f| f == "9") {
                    foreign.extend(std::fs::read_link(dir.join("fd").join(fd)).ok());
                }
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    stage.done(&running.wait()).unwrap();
    assert!(seen, "no qemu-img was met");
    assert!(foreign.is_empty(), "the child holds {foreign:?}");
}

#[test]
fn traces_are_read() {
    let text = "1 execve(\"/x/cp\", [\"/x/cp\", \"7\"], 0x7ff /* 6 vars */) = 0\n\
                1 openat(AT_FDCWD</x/var>, \"f\", O_RDONLY|O_CLOEXEC) = 3</x/var/f>\n\
                1 openat(3</x/ds>, \"new\", O_WRONLY|O_CREAT, 0600) = 4</x/ds/new>\n\
                1 openat(AT_FDCWD</x>, \"/etc/ssl/openssl.cnf\", O_RDONLY) = 5</etc/ssl/openssl.cnf>\n\
                1 mkdir(\"/tmp/y\", 0777) = 0\n\
                1 fsync(4</x/ds/new>) = 0\n\
                2 execve(\"/bin/sh\", [\"sh\", \"-c\", \"true\"], 0x1 /* 1 var */) = 0\n\
                2 openat(AT_FDCWD</>, \"/etc/passwd\", O_RDONLY) = 3</etc/passwd>\n";
    let trace = Trace::read(text);
    assert_eq!(trace.execs, [("/x/cp".to_owned(), true), ("/bin/sh".to_owned(), true)]);
    assert_eq!((trace.inherited.len(), trace.fsyncs), (1, 1));
    assert_eq!(trace.made.iter().map(|(p, _)| p.as_str()).collect::<Vec<_>>(), ["/x/ds/new", "/tmp/y"]);
}
