//! Transfer verbs on the bed of hosts (tests/bed/hosts), each beside an empty request to the same hosts in the
//! same round; and what goes from host to host beside `tar | ssh`. Needs root.

use crate::Options;
use crate::oned_server::OnedServer;
use crate::place::Place;
use crate::report::Row;
use crate::run::{self, least, median};
use crate::stock::Stock;
use crate::store::{PROGRAM, raw};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const RUNS: u32 = 15;
const DS: &str = "/var/lib/one/datastores";
/// Beside the place where an operator's own scripts may be.
pub const OURS: &str = "/srv/remotes";
/// Milliseconds beyond an empty request; and beyond a program that does nothing, of a verb that has nothing to do.
const ABOVE: f64 = 15.0;
const NOTHING: f64 = 3.0;
const MIB: u64 = 256;
const ROUNDS: u32 = 5;

/// A front-end and two hosts. Datastores 1 and 100 are on all of them, 101 is each one's own.
pub struct Bed {
    pub dir: PathBuf,
    child: Child,
    program: &'static str,
    /// On the front-end; it ends with this process.
    oned: &'static OnedServer,
    /// For every command of the front-end.
    env: Vec<(&'static str, String)>,
}

impl Bed {
    fn up(dir: &Path, stock: Option<&Stock>) -> Bed {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bed/hosts");
        let mut up = Command::new(&script);
        up.args(["up", "-f", "-s"]).arg(Path::new(PROGRAM).parent().unwrap());
        if let Some(home) = stock.and_then(|s| s.home.as_deref()) {
            up.arg("-s").arg(home);
        }
        up.args(["-s", &format!("{DS}/1"), "-s", &format!("{DS}/100"), "h1", "h2"]).env("ONESDM_BED", dir);
        let mut child = up.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "up\n", "the bed of hosts needs root and the packages of packaging/need test");
        let pid: i32 = std::fs::read_to_string(dir.join("fe.pid")).unwrap().trim().parse().unwrap();
        let oned = oned_on(Pid::from_raw(pid).unwrap());
        let env = oned.env(dir).into();
        let bed = Bed { dir: dir.to_owned(), child, program: PROGRAM, oned, env };
        for host in ["h1", "h2"] {
            bed.on(host, &["ln", "-s", bed.program, "/usr/local/bin/onesdm"]);
        }
        for driver in ["shared", "local"] {
            let links = format!("{OURS}/tm/{driver}");
            bed.on("fe", &["mkdir", "-p", &links]);
            for verb in ["clone", "ln", "cpds", "context", "snap_create", "delete", "mv", "mvds"] {
                bed.on("fe", &["ln", "-s", bed.program, &format!("{links}/{verb}")]);
            }
        }
        for (ds, kind, tm) in [(1, 0, "shared"), (100, 1, "shared"), (101, 1, "local")] {
            let doc = format!(
                "<DATASTORE><ID>{ds}</ID><NAME>d</NAME><DS_MAD>fs</DS_MAD><TM_MAD>{tm}</TM_MAD><BASE_PATH>{DS}/{ds}\
                 </BASE_PATH><TYPE>{kind}</TYPE><TEMPLATE><TM_MAD>{tm}</TM_MAD></TEMPLATE></DATASTORE>"
            );
            bed.oned.put_datastore(ds, &doc);
        }
        bed
    }

    /// With an image of 1 MiB and what `context` packs.
    pub fn ready(place: &Place, stock: Option<&Stock>) -> Bed {
        let bed = Bed::up(&place.dir.join("bed"), stock);
        let small = bed.dir.join("img");
        raw(&small, 1 << 20, 1 << 20, 1);
        bed.on("fe", &["cp", &small.display().to_string(), &format!("{DS}/1/img")]);
        bed.on("fe", &["mkdir", "-p", "/var/lib/one/vms"]);
        bed.on("fe", &["cp", "/etc/hostname", "/var/lib/one/vms/context.sh"]);
        bed
    }

    /// A command on a host; what lies below the bed's directory is seen there.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        let pid = std::fs::read_to_string(self.dir.join(format!("{host}.pid"))).unwrap();
        let mut c = Command::new("nsenter");
        c.args(["-t", pid.trim(), "-m", "-u", "-i", "-n", "-p", "--wd=/", "--"]).args(words).env_clear();
        c.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        c.envs(self.env.iter().map(|(k, v)| (k, v)));
        c
    }

    pub fn on(&self, host: &str, words: &[&str]) -> String {
        String::from_utf8_lossy(&run::run(&mut self.command(host, words), b"").1).into_owned()
    }

    pub fn time(&self, words: &[&str]) -> f64 {
        run::run(&mut self.command("fe", words), b"").0.ms()
    }

    /// Sessions that the hosts' ssh servers have seen.
    pub fn sessions(&self) -> usize {
        let log = |h| format!("{}/data/{h}/sshd.log", self.dir.display());
        let seen = |h| self.on("fe", &["cat", &log(h)]).matches("Accepted publickey").count();
        seen("h1") + seen("h2")
    }

    /// Bytes that came to the front-end and left it.
    pub fn network(&self) -> u64 {
        let pid = std::fs::read_to_string(self.dir.join("fe.pid")).unwrap();
        let text = std::fs::read_to_string(format!("/proc/{}/net/dev", pid.trim())).unwrap();
        let cards = text.lines().filter_map(|l| l.split_once(':')).filter(|(name, _)| name.trim() != "lo");
        let bytes = |numbers: &str| {
            numbers.split_whitespace().step_by(8).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>()
        };
        cards.map(|(_, numbers)| bytes(numbers)).sum()
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
    fn vm(&self, id: u32, driver: &str, image: &str, size: u64) {
        let source = format!("<SIZE>{size}</SIZE><FORMAT>raw</FORMAT><SOURCE>{DS}/1/{image}</SOURCE>");
        let disk = format!(
            "<DISK_ID>0</DISK_ID><IMAGE_ID>1</IMAGE_ID>{source}<ORIGINAL_SIZE>{size}</ORIGINAL_SIZE>\
             <TYPE>FILE</TYPE><TARGET>vda</TARGET><CLONE>YES</CLONE><TM_MAD>{driver}</TM_MAD>\
             <DATASTORE_ID>1</DATASTORE_ID>"
        );
        let stay = format!(
            "<OID>{id}</OID><SEQ>0</SEQ><HOSTNAME>h1</HOSTNAME><HID>1</HID><DS_ID>100</DS_ID>\
             <VM_MAD>kvm</VM_MAD><TM_MAD>{driver}</TM_MAD>"
        );
        let doc = format!(
            "<VM><ID>{id}</ID><TEMPLATE><DISK>{disk}</DISK></TEMPLATE><HISTORY_RECORDS><HISTORY>{stay}</HISTORY>\
             </HISTORY_RECORDS></VM>"
        );
        self.oned.put_vm(id.into(), &doc);
        let doc = format!(
            "<IMAGE><ID>1</ID><NAME>i</NAME><PERSISTENT>0</PERSISTENT><DATASTORE_ID>1</DATASTORE_ID>\
             <DATASTORE>d</DATASTORE><MODTIME>0</MODTIME>{source}</IMAGE>"
        );
        self.oned.put("one.image.info", 1, &doc);
    }
}

/// A small oned that is reached from the front-end alone.
fn oned_on(front_end: Pid) -> &'static OnedServer {
    let start = move || {
        let fd = pidfd_open(front_end, PidfdFlags::empty()).unwrap();
        move_into_thread_name_spaces(fd.as_fd(), ThreadNameSpaceType::NETWORK).unwrap();
        OnedServer::start()
    };
    Box::leak(Box::new(std::thread::spawn(start).join().unwrap()))
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

pub struct Case {
    pub driver: &'static str,
    pub verb: &'static str,
    pub what: &'static str,
    /// Verbs that come before, not counted.
    before: &'static [&'static str],
    /// Hosts that have to be asked.
    hosts: &'static [&'static str],
}

pub fn cases() -> Vec<Case> {
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
    pub fn words(&self, remotes: &str, verb: &str, id: u32) -> Vec<String> {
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
    pub fn prepare(&self, bed: &Bed, id: u32) {
        let own = format!("own-{id}");
        if self.verb == "ln" || self.before.contains(&"ln") {
            bed.on("fe", &["cp", &format!("{DS}/1/img"), &format!("{DS}/1/{own}")]);
            bed.vm(id, self.driver, &own, 1);
        } else {
            bed.vm(id, self.driver, "img", 1);
        }
        for verb in self.before {
            bed.time(&strs(&self.words(OURS, verb, id)));
        }
    }

    pub fn clear(&self, bed: &Bed, id: u32) {
        for host in ["h1", "h2"] {
            let mut delete = self.words(OURS, "delete", id);
            delete[1] = delete[1].replace("h1:", &format!("{host}:"));
            bed.time(&strs(&delete));
        }
        bed.on("fe", &["rm", "-rf", &format!("{DS}/1/own-{id}"), &format!("{DS}/1/saved-{id}")]);
    }
}

pub fn strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

pub fn bench(place: &Place, options: &Options) -> Vec<Row> {
    let stock = options.stock.as_deref().map(Stock::of);
    let bed = Bed::ready(place, stock.as_ref());
    let mut rows: Vec<Row> = cases().iter().map(|c| one(&bed, c, stock.as_ref(), place, options)).collect();
    let streams = [(MIB, 100, 4 << 20), (MIB, 20, 819_200), (8 * MIB, 20, 819_200)];
    rows.extend(streams.map(|what| stream(&bed, what, place, options)));
    rows
}

fn one(bed: &Bed, case: &Case, stock: Option<&Stock>, place: &Place, options: &Options) -> Row {
    // What asks no host is beside a program that does nothing, which is what it costs to enter the bed.
    let empty_call = || match case.hosts {
        [] => bed.time(&["true"]),
        hosts => hosts.iter().map(|host| bed.time(&[bed.program, "host", "probe", host])).sum(),
    };
    let (mut ours, mut empty, mut above, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut entry = Vec::new();
    let mut failed = None;
    let mut id = 1000;
    for n in 0..options.runs(RUNS) + 2 {
        id += 1;
        case.prepare(bed, id);
        let words = case.words(OURS, case.verb, id);
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
            entry.push(bed.time(&["true"]));
        }
        if let Some(stock) = stock.filter(|_| failed.is_none() && n % 3 == 0) {
            case.prepare(bed, id);
            let words = case.words(stock.remotes.to_str().unwrap(), case.verb, id);
            let mut call = bed.command("fe", &strs(&words));
            call.envs(stock.env());
            let began = std::time::Instant::now();
            let out = call.output().unwrap();
            theirs.push(began.elapsed().as_secs_f64() * 1e3);
            if !out.status.success() {
                failed = Some(String::from_utf8_lossy(&out.stderr).trim().to_owned());
            }
            case.clear(bed, id);
        }
    }
    case.prepare(bed, id + 1);
    let words = case.words(OURS, case.verb, id + 1);
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
        // Between two hosts there is one of their own.
        .within(fast && sessions <= case.hosts.len() * 3 / 2 && processes.is_none_or(|n| n <= 3));
    let row = match processes {
        Some(n) => row.count("processes", n),
        None => row.text("processes", "not measured"),
    };
    match failed {
        Some(said) => row.text("stock_ms", &format!("failed: {said}")),
        None if theirs.is_empty() => row.text("stock_ms", "not measured"),
        None => row
            .number("stock_ms", median(&theirs))
            .number("stock_least_ms", least(&theirs))
            .number("times_stock", (least(&theirs) - least(&entry)) / (least(&ours) - least(&entry))),
    }
}

/// An image from the front-end to a host's own datastore.
fn stream(bed: &Bed, (mib, percent, data): (u64, u32, u64), place: &Place, options: &Options) -> Row {
    let mib = options.size(mib);
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
                    let id = 5000 + 10 * u32::try_from(mib).unwrap() + percent + n;
                    bed.vm(id, "local", "img", mib);
                    let ms = bed.time(&strs(&case.words(OURS, "clone", id)));
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
