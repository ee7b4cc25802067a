//! The context ISO: what goes in comes out, by two readers that share nothing with us; what cannot go in is
//! refused; and wherever it is cut off, no secret stays behind.

use crate::bed::{self, Bed, Call, names, tool};
use crate::hosts::Cloud;
use crate::server::Server;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const SECRET: &str = "hidden-token-of-the-vm";

fn bed() -> Bed {
    let bed = Bed::new();
    bed.store(101);
    std::fs::create_dir_all(bed.remotes().join("tm/shared")).unwrap();
    std::os::unix::fs::symlink(bed::program(), bed.remotes().join("tm/shared/context")).unwrap();
    std::fs::create_dir_all(bed.root().join("var/vms/7")).unwrap();
    source(&bed, "context.sh", &format!("TOKEN='{SECRET}'\n"));
    bed
}

fn source(bed: &Bed, name: &str, text: &str) -> String {
    let path = bed.root().join("var/vms/7").join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn disk(bed: &Bed) -> PathBuf {
    bed.store_path(101).join("7/disk.1")
}

fn call<'a>(bed: &'a Bed, files: &[&str]) -> Call<'a> {
    let program = bed.remotes().join("tm/shared/context");
    let place = format!("localhost:{}", disk(bed).display());
    let own = bed.root().join("var/vms/7/context.sh");
    let call = Call::new(bed, "context", program).arg(own);
    let call = files.iter().fold(call, Call::arg);
    call.arg(place).arg("7").arg("101")
}

fn words<'a>(words: &'a [&'a str]) -> Vec<&'a OsStr> {
    words.iter().map(OsStr::new).collect()
}

/// The names in an ISO with their content, as Rock Ridge has them.
fn rock_ridge(iso: &Path) -> Vec<(String, String)> {
    let iso = iso.to_str().unwrap();
    let list = tool("isoinfo", &words(&["-R", "-f", "-i", iso]));
    let content = |name: &str| tool("isoinfo", &words(&["-R", "-i", iso, "-x", name]));
    let mut all: Vec<_> = list.lines().map(|n| (n[1..].to_owned(), content(n))).collect();
    all.sort();
    all
}

/// The same as Joliet has them.
fn joliet(bed: &Bed, iso: &Path) -> Vec<(String, String)> {
    let out = bed.root().join("images/joliet");
    let iso = format!("stdio:{}", iso.display());
    let args = ["-no_rc", "-read_fs", "norock", "-osirrox", "on", "-indev", &iso];
    tool("xorriso", &words(&[&args[..], &["-extract", "/", out.to_str().unwrap()]].concat()));
    let all = names(&out).into_iter().map(|n| (n.clone(), std::fs::read_to_string(out.join(n)).unwrap()));
    let all = all.collect();
    tool("chmod", &words(&["-R", "u+w", out.to_str().unwrap()]));
    std::fs::remove_dir_all(out).unwrap();
    all
}

/// Files below the bed that hold the secret, the VM's own and its ISO apart.
fn secrets(bed: &Bed) -> Vec<String> {
    let root = bed.root().to_str().unwrap();
    let grep = ["-rlaF", SECRET, root, "--exclude-dir=vms"];
    let found = std::process::Command::new("grep").args(grep).output().unwrap();
    let found = String::from_utf8(found.stdout).unwrap();
    found.lines().filter(|l| Path::new(l) != disk(bed)).map(str::to_owned).collect()
}

/// S13: names are names, whatever is in them.
#[test]
fn what_goes_in_comes_out() {
    let bed = bed();
    let long = format!("{}.txt", "n".repeat(90));
    let very_long = format!("{}.txt", "v".repeat(240));
    let odd = "naïve \"日本\" it's \\ = ;1 *.txt";
    let server = Server::of(b"from the web".to_vec());
    let first = source(&bed, "one", "1");
    let files = [
        format!("{first}:{long}"),
        format!("{first}:{very_long}"),
        format!("{}:'{odd}'", source(&bed, "two", "2")),
        format!("{}:-rf", source(&bed, "three", "")),
        source(&bed, "token.txt", "4"),
        server.url(),
    ];
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    assert_eq!(call(&bed, &files).run().ok(), "");
    let iso = disk(&bed);
    let about = tool("isoinfo", &words(&["-d", "-i", iso.to_str().unwrap()]));
    for says in ["Volume id: CONTEXT", "Joliet with UCS level 3 found", "Rock Ridge signatures"] {
        assert!(about.contains(says), "{about}");
    }
    let context = format!("TOKEN='{SECRET}'\n");
    let mut want: Vec<(String, String)> = [
        ("context.sh", &*context),
        (&long, "1"),
        (&very_long, "1"),
        (odd, "2"),
        ("-rf", ""),
        ("token.txt", "4"),
        ("image", "from the web"),
    ]
    .map(|(n, c)| (n.to_owned(), c.to_owned()))
    .into();
    want.sort();
    assert_eq!(rock_ridge(&iso), want);
    // Joliet has no `*`, no `\` and no `;`, and at most 103 characters.
    let found = joliet(&bed, &iso);
    assert_eq!(found.len(), want.len());
    for name in ["context.sh", &long, "token.txt", "image", "-rf"] {
        assert!(want.iter().any(|w| w.0 == name && found.contains(w)), "{name}: {found:?}");
    }
    assert!(found.iter().any(|(n, c)| n.starts_with("naïve \"日本\" it's") && c == "2"), "{found:?}");
    assert_eq!(secrets(&bed), [""; 0]);
    // Made again by another tool, with less in it. The first is not kept: it has secrets.
    let xorrisofs = config(&bed, "/usr/bin/xorrisofs");
    let less = [format!("{first}:{long}"), format!("{first}:日本")];
    call(&bed, &less.each_ref().map(String::as_str)).env("ONESDM_CONFIG", xorrisofs).run().ok();
    let mut want =
        [("context.sh", &*context), (&*long, "1"), ("日本", "1")].map(|(n, c)| (n.to_owned(), c.to_owned()));
    want.sort();
    assert_eq!(rock_ridge(&iso), want);
    assert_eq!(joliet(&bed, &iso), want);
    assert_eq!(secrets(&bed), [""; 0]);
    assert_eq!(names(&bed.root().join("state/context")), [""; 0]);
}

#[test]
fn what_cannot_go_in_is_refused_and_nothing_stays() {
    let bed = bed();
    call(&bed, &[]).run().ok();
    let before = std::fs::read(disk(&bed)).unwrap();
    let one = source(&bed, "one", "1");
    let gone = Server::new(|_, out| out.status("404 Not Found", &[]));
    let pipe = bed.root().join("var/vms/7/pipe");
    tool("mkfifo", &[pipe.as_os_str()]);
    let dir = bed.root().join("var/vms");
    let missing = format!("{one}-not");
    for (files, status, says) in [
        (&[&*format!("{one}:..")][..], 2, "argument 2"),
        (&[&format!("{one}:a/b")], 2, "argument 2"),
        (&[&format!("{one}:/etc/passwd")], 2, "argument 2"),
        (&[&format!("{one}:")], 2, "argument 2"),
        (&[&format!("{one}:{}", "n".repeat(256))], 2, "argument 2"),
        (&["relative"], 2, "argument 2"),
        (&[&one, &format!("{one}:one")], 2, "two context files are called \"one\""),
        (&[&format!("{one}:context.sh")], 2, "two context files are called \"context.sh\""),
        (&[&missing], 3, "does not exist"),
        (&[pipe.to_str().unwrap()], 70, "not a regular file"),
        (&[dir.to_str().unwrap()], 70, "vms"),
        (&[&gone.url()], 3, "404"),
    ] {
        let line = call(&bed, files).run().failure(None).unwrap();
        let done = call(&bed, files).run();
        assert!(line.contains(says), "{files:?}: {line}");
        assert_eq!(done.code, Some(status), "{files:?}: {line}");
        assert_eq!(std::fs::read(disk(&bed)).unwrap(), before, "{files:?}");
        assert_eq!(secrets(&bed), [""; 0], "{files:?}");
    }
    // The tool fails, or says nothing and does nothing.
    for (program, says) in
        [("/usr/bin/false", "genisoimage ended with status 1"), ("/usr/bin/true", "no ISO")]
    {
        let call = call(&bed, &[]).env("ONESDM_CONFIG", config(&bed, program));
        let line = call.run().failure(None).unwrap();
        assert!(line.contains(says), "{line}");
        assert_eq!(std::fs::read(disk(&bed)).unwrap(), before);
        assert_eq!(secrets(&bed), [""; 0]);
    }
}

fn config(bed: &Bed, tool: &str) -> PathBuf {
    let text = std::fs::read_to_string(bed.root().join("onesdm.toml")).unwrap();
    let path = bed.root().join("other.toml");
    std::fs::write(&path, format!("{text}[tools]\ngenisoimage = \"{tool}\"\n")).unwrap();
    path
}

/// L10. Killed before and after each change of storage; the next call, for another VM, takes away what was staged.
#[test]
fn killed_anywhere_the_next_leaves_no_secret() {
    let bed = bed();
    let mut points = 0;
    // After the effect at a point is before that at the next, but for what lies between two effects.
    for n in 1.. {
        let side = if n % 2 == 0 { "before" } else { "after" };
        if !call(&bed, &[]).env("ONESDM_TEST_KILL", format!("{n}:{side}")).run().killed() {
            break;
        }
        points += 1;
        let iso = std::fs::read(disk(&bed)).unwrap_or_default();
        assert!(iso.is_empty() || iso[0x8001..0x8006] == *b"CD001", "{n} {side}: half an ISO");
        bed.onesdm(&["gc"]).run().ok();
        call(&bed, &[]).run().ok();
        assert_eq!(secrets(&bed), [""; 0], "{n} {side}");
        assert_eq!(names(&bed.root().join("state/context")), [""; 0], "{n} {side}");
    }
    println!("killed {points} times");
    assert!(points > 15, "{points}");
}

/// R7. Made on the front-end and published on a host, in parallel for several disks of one VM.
#[test]
fn a_host_gets_what_the_front_end_made() {
    let store = "/var/lib/one/datastores/101";
    let cloud = Cloud::up(&["-s", store], &["h1"]);
    cloud.place_agent("h1", "");
    let big = "x".repeat(3 << 20);
    cloud.write("fe", "/var/lib/one/vms/7/context.sh", SECRET);
    cloud.write("fe", "/var/lib/one/vms/7/big", &big);
    let program = bed::program();
    let run = |disk: u32| {
        let place = format!("h1:{store}/7/disk.{disk}");
        let files = ["/var/lib/one/vms/7/context.sh", "/var/lib/one/vms/7/big:large file"];
        let head = [program.to_str().unwrap(), "--as", "tm/shared/context", "--"];
        cloud.on("fe", &[&head[..], &files, &[&place, "7", "101"]].concat())
    };
    std::thread::scope(|s| {
        for disk in 1..4 {
            s.spawn(move || assert_eq!(run(disk), ""));
        }
    });
    cloud.inside("h1", || {
        for disk in 1..4 {
            let iso = PathBuf::from(format!("{store}/7/disk.{disk}"));
            let want =
                [("context.sh", SECRET), ("large file", &*big)].map(|(n, c)| (n.to_owned(), c.to_owned()));
            assert!(rock_ridge(&iso) == want, "disk {disk}");
        }
    });
    assert_eq!(cloud.on("fe", &["ls", "/var/lib/one/onesdm/context"]), "");
    assert_eq!(
        cloud.on("h1", &["sh", "-c", &format!("ls {store}/.sdm/new {store}/.sdm/del | grep -v :")]).trim(),
        ""
    );
}
