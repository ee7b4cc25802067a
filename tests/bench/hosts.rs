//! Transfer verbs on the bed of hosts (tests/bed/hosts), each beside an empty request to the same hosts in the
//! same round; and what goes from host to host beside `tar | ssh`. Needs root.

use crate::Options;
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, least, median};
use crate::store::{PROGRAM, raw};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const RUNS: u32 = 15;
const DS: &str = "/var/lib/one/datastores";
/// Milliseconds beyond an empty request; and beyond a program that does nothing, of a verb that has nothing to do.
const ABOVE: f64 = 15.0;
const NOTHING: f64 = 3.0;
const MIB: u64 = 256;
const ROUNDS: u32 = 5;

/// A front-end and two hosts. Datastores 1 and 100 are on all of them, 101 is each one's own.
struct Bed {
    dir: PathBuf,
    child: Child,
    program: &'static str,
}

impl Bed {
    fn up(dir: &Path) -> Bed {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/hosts");
        let mut up = Command::new(&script);
        up.args(["up", "-f", "-s"]).arg(Path::new(PROGRAM).parent().unwrap());
        up.args(["-s", &format!("{DS}/1"), "-s", &format!("{DS}/100"), "h1", "h2"]).env("ONESDM_BED", dir);
        let mut child = up.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n", "the bed of hosts needs root and the packages of packaging/need test");
        let bed = Bed { dir: dir.to_owned(), child, program: PROGRAM };
        for host in ["h1", "h2"] {
            bed.on(host, &["ln", "-s", bed.program, "/usr/local/bin/onesdm"]);
        }
        for driver in ["shared", "local"] {
            let links = format!("/var/lib/one/remotes/tm/{driver}");
            bed.on("fe", &["mkdir", "-p", &links]);
            for verb in ["clone", "ln", "cpds", "context", "snap_create", "delete", "mv", "mvds"] {
                bed.on("fe", &["ln", "-s", bed.program, &format!("{links}/{verb}")]);
            }
        }
        std::fs::create_dir(dir.join("xml")).unwrap();
        for (ds, tm) in [(1, "shared"), (100, "shared"), (101, "local")] {
            let doc = format!("<ID>{ds}</ID><NAME>d</NAME><TM_MAD>{tm}</TM_MAD><TEMPLATE></TEMPLATE>");
            let doc = format!("<DATASTORE>{doc}</DATASTORE>");
            std::fs::write(dir.join(format!("xml/datastore-{ds}.xml")), doc).unwrap();
        }
        bed
    }

    /// A command on a host; what lies below the bed's directory is seen there.
    fn command(&self, host: &str, words: &[&str]) -> Command {
        let pid = std::fs::read_to_string(self.dir.join(format!("{host}.pid"))).unwrap();
        let mut c = Command::new("nsenter");
        c.args(["-t", pid.trim(), "-m", "-u", "-i", "-n", "-p", "--wd=/", "--"]).args(words).env_clear();
        c.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        c.env("ONESDM_XML_DIR", self.dir.join("xml"));
        c
    }

    fn on(&self, host: &str, words: &[&str]) -> String {
        String::from_utf8_lossy(&run::run(&mut self.command(host, words), b"").1).into_owned()
    }

    fn time(&self, words: &[&str]) -> f64 {
        run::run(&mut self.command("fe", words), b"").0.ms()
    }

    /// Sessions that the hosts' ssh servers have seen.
    fn sessions(&self) -> usize {
        let log = |h| format!("{}/data/{h}/sshd.log", self.dir.display());
        let seen = |h| self.on("fe", &["cat", &log(h)]).matches("Accepted publickey").count();
        seen("h1") + seen("h2")
    }

    /// Programs that a call starts on the front-end, itself included.
    fn processes(&self, words: &[&str]) -> Option<u32> {
        if !run::have("strace") {
            return None;
        }
        let file = self.dir.join("trace").display().to_string();
        self.on("fe", &[&["strace", "-f", "-qq", "-e", "trace=execve", "-o", &file], words].concat());
        let text = std::fs::read_to_string(file).unwrap();
        let started = text.lines().filter(|l| l.contains("execve(") && l.ends_with(" = 0")).count();
        Some(u32::try_from(started).unwrap())
    }

    /// The document of a VM with image 1 as its disk.
    fn vm(&self, id: u32, driver: &str, size: u64) {
        let disk = format!(
            "<DISK_ID>0</DISK_ID><FORMAT>raw</FORMAT><SIZE>{size}</SIZE><ORIGINAL_SIZE>{size}</ORIGINAL_SIZE>\
             <SOURCE>{DS}/1/img</SOURCE><CLONE>YES</CLONE><TM_MAD>{driver}</TM_MAD><DATASTORE_ID>1</DATASTORE_ID>"
        );
        let doc = format!("<VM><ID>{id}</ID><TEMPLATE><DISK>{disk}</DISK></TEMPLATE></VM>");
        std::fs::write(self.dir.join(format!("xml/vm-{id}.xml")), doc).unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

struct Case {
    driver: &'static str,
    verb: &'static str,
    what: &'static str,
    /// Verbs that come before, not counted.
    before: &'static [&'static str],
    /// Hosts that have to be asked.
    hosts: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    const H1: &[&str] = &["h1"];
    let case = |driver, verb, before, hosts| Case { driver, verb, what: verb, before, hosts };
    let mut all = Vec::new();
    for driver in ["shared", "local"] {
        all.extend([
            case(driver, "clone", &[], H1),
            case(driver, "ln", &[], H1),
            case(driver, "cpds", &["clone"], H1),
            case(driver, "context", &[], H1),
            case(driver, "snap_create", &["clone"], H1),
            case(driver, "delete", &["clone"], H1),
            Case { what: "mv of a disk", ..case(driver, "mv disk", &["clone"], &[]) },
        ]);
    }
    all.push(case("shared", "mvds", &["ln"], &[]));
    all.push(case("local", "mvds", &["ln"], H1));
    all.push(Case { what: "mv to another host", ..case("local", "mv", &["clone"], &["h1", "h2"]) });
    all
}

impl Case {
    fn words(&self, remotes: &str, verb: &str, id: u32) -> Vec<String> {
        let ds = if self.driver == "shared" { 100 } else { 101 };
        let (dir, image) = (format!("{DS}/{ds}/{id}"), format!("fe:{DS}/1/img"));
        let (vm, disk) = (format!("h1:{dir}"), format!("h1:{dir}/disk.0"));
        let (id, ds) = (id.to_string(), ds.to_string());
        let own = |name: &str| if name == "img" { image.clone() } else { format!("fe:{DS}/1/{name}") };
        let iso = format!("h1:{dir}/disk.1");
        let context = "/var/lib/one/vms/context.sh".to_owned();
        let args = match verb {
            "clone" => vec![image, disk, id, "1".into()],
            "ln" => vec![own(&format!("own-{id}")), disk, id, "1".into()],
            "cpds" => vec![disk, own(&format!("saved-{id}")), "-1".into(), id, "1".into()],
            "context" => vec![context, iso, id, ds],
            "snap_create" => vec![disk, "0".into(), id, ds],
            "delete" => vec![vm, id, ds],
            "mv disk" => vec![disk.clone(), disk.replace("h1:", "h2:"), id, ds],
            "mv" => vec![vm.clone(), vm.replace("h1:", "h2:"), id, ds],
            _ => vec![disk, own(&format!("own-{id}")), id, "1".into()],
        };
        let program = format!("{remotes}/tm/{}/{}", self.driver, verb.split(' ').next().unwrap());
        [vec![program], args].concat()
    }

    /// Makes what the call needs.
    fn prepare(&self, bed: &Bed, id: u32) {
        bed.vm(id, self.driver, 1);
        if self.verb == "ln" || self.before.contains(&"ln") {
            bed.on("fe", &["cp", &format!("{DS}/1/img"), &format!("{DS}/1/own-{id}")]);
            let doc = bed.dir.join(format!("xml/vm-{id}.xml"));
            let text = std::fs::read_to_string(&doc).unwrap();
            std::fs::write(doc, text.replace("/1/img", &format!("/1/own-{id}"))).unwrap();
        }
        for verb in self.before {
            bed.time(&strs(&self.words("/var/lib/one/remotes", verb, id)));
        }
    }

    fn clear(&self, bed: &Bed, id: u32) {
        for host in ["h1", "h2"] {
            let mut delete = self.words("/var/lib/one/remotes", "delete", id);
            delete[1] = delete[1].replace("h1:", &format!("{host}:"));
            bed.time(&strs(&delete));
        }
        bed.on("fe", &["rm", "-rf", &format!("{DS}/1/own-{id}"), &format!("{DS}/1/saved-{id}")]);
    }
}

fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

pub fn bench(place: &Place, options: &Options) -> Vec<Row> {
    let bed = Bed::up(&place.dir.join("bed"));
    let small = bed.dir.join("img");
    raw(&small, 1 << 20, 1 << 20, 1);
    bed.on("fe", &["cp", &small.display().to_string(), &format!("{DS}/1/img")]);
    bed.on("fe", &["mkdir", "-p", "/var/lib/one/vms"]);
    bed.on("fe", &["cp", "/etc/hostname", "/var/lib/one/vms/context.sh"]);
    let mut rows: Vec<Row> = cases().iter().map(|c| one(&bed, c, place, options)).collect();
    rows.extend([(100, 4 << 20), (20, 819_200)].map(|(data, of)| stream(&bed, (data, of), place, options)));
    rows
}

fn one(bed: &Bed, case: &Case, place: &Place, options: &Options) -> Row {
    // What asks no host is beside a program that does nothing.
    let empty_call = || match case.hosts {
        [] => bed.time(&["true"]),
        hosts => hosts.iter().map(|host| bed.time(&[bed.program, "host", "probe", host])).sum(),
    };
    let (mut ours, mut empty, mut above, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut stock = options.stock.as_ref().map(|d| d.display().to_string());
    let mut id = 1000;
    for n in 0..options.runs(RUNS) + 2 {
        id += 1;
        case.prepare(bed, id);
        let words = case.words("/var/lib/one/remotes", case.verb, id);
        let (took, nothing): (f64, f64);
        if n % 2 == 0 {
            nothing = empty_call();
            took = bed.time(&strs(&words));
        } else {
            took = bed.time(&strs(&words));
            nothing = empty_call();
        }
        case.clear(bed, id);
        // The first runs make the domains and warm the caches.
        if n >= 2 {
            ours.push(took);
            empty.push(nothing);
            above.push(took - nothing);
        }
        if let Some(dir) = stock.clone() {
            case.prepare(bed, id);
            let words = case.words(&dir, case.verb, id);
            let mut call = bed.command("fe", &strs(&words));
            let began = std::time::Instant::now();
            if call.output().is_ok_and(|o| o.status.success()) {
                theirs.push(began.elapsed().as_secs_f64() * 1e3);
            } else {
                stock = None;
            }
            case.clear(bed, id);
        }
    }
    case.prepare(bed, id + 1);
    let words = case.words("/var/lib/one/remotes", case.verb, id + 1);
    let before = bed.sessions();
    let processes = bed.processes(&strs(&words));
    let sessions = bed.sessions() - before;
    case.clear(bed, id + 1);
    let aim = if case.hosts.is_empty() { NOTHING } else { ABOVE };
    let fast = median(&above) <= aim;
    let row = Row::new("hosts", &format!("{} {}", case.driver, case.what), &place.fs)
        .number("ms", median(&ours))
        .number("ms_least", least(&ours))
        .number("empty_ms", median(&empty))
        .number("above_ms", median(&above))
        .number("above_least_ms", least(&ours) - least(&empty))
        .number("aim_ms", aim)
        .count("connections", u32::try_from(sessions).unwrap())
        .within(fast && sessions <= case.hosts.len() && processes.is_none_or(|n| n <= 3));
    let row = match processes {
        Some(n) => row.count("processes", n),
        None => row.text("processes", "not measured"),
    };
    if stock.is_none() || theirs.is_empty() {
        return row.text("stock_ms", "not measured");
    }
    row.number("stock_ms", median(&theirs)).number("ratio", median(&ours) / median(&theirs))
}

/// An image from the front-end to a host's own datastore.
fn stream(bed: &Bed, (percent, data): (u32, u64), place: &Place, options: &Options) -> Row {
    let mib = options.size(MIB);
    let file = bed.dir.join("large");
    raw(&file, mib << 20, data, percent);
    bed.on("fe", &["cp", "--sparse=always", &file.display().to_string(), &format!("{DS}/1/img")]);
    let case = Case { driver: "local", verb: "clone", what: "", before: &[], hosts: &[] };
    let dir = format!("{DS}/101/tar");
    bed.on("h1", &["mkdir", "-p", &dir]);
    let tar = |options: &str| {
        let line = format!("tar -C {DS}/1 -{options}cf - img | ssh h1 tar -C {dir} -{options}xf -");
        let ms = bed.time(&["bash", "-o", "pipefail", "-c", &line]);
        bed.on("h1", &["rm", "-f", &format!("{dir}/img")]);
        ms
    };
    let mut took = [Vec::new(), Vec::new(), Vec::new()];
    for n in 0..=options.runs(ROUNDS) {
        for way in (0..3).map(|w| (w + n as usize) % 3) {
            let ms = match way {
                0 => {
                    let id = 5000 + 100 * percent + n;
                    bed.vm(id, "local", mib);
                    let ms = bed.time(&strs(&case.words("/var/lib/one/remotes", "clone", id)));
                    case.clear(bed, id);
                    ms
                }
                1 => tar("S"),
                _ => tar(""),
            };
            if n > 0 {
                took[way].push(ms);
            }
        }
    }
    let rounds = |way: usize| {
        let each: Vec<f64> = took[way].iter().zip(&took[0]).map(|(theirs, ours)| theirs / ours).collect();
        median(&each)
    };
    let (sparse, plain) = (rounds(1), rounds(2));
    // Where there are holes the aim is five times what goes through without leaving any out.
    let met = if percent == 100 { sparse >= 1.0 && plain >= 1.0 } else { sparse >= 1.0 && plain >= 5.0 };
    Row::new("hosts, stream", &format!("{mib} MiB, {percent} % data"), &place.fs)
        .number("ms", median(&took[0]))
        .number("mib_per_s", mib as f64 / median(&took[0]) * 1e3)
        .number("times_tar_S", sparse)
        .number("times_tar", plain)
        .detail("tar -S | ssh", median(&took[1]))
        .detail("tar | ssh", median(&took[2]))
        .within(met)
}
