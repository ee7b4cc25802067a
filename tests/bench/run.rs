//! Starting programs and measuring them from outside: wall time, processor time, memory, system calls.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What one run took. Processor time is of the program and all its children, in steps of 10 ms.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    pub wall: Duration,
    pub cpu: Duration,
}

impl Took {
    pub fn ms(self) -> f64 {
        self.wall.as_secs_f64() * 1e3
    }
}

/// Runs a program to its end and insists that it succeeds.
pub fn run(command: &mut Command, stdin: &[u8]) -> (Took, Vec<u8>) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let cpu = cpu_of_children();
    let began = Instant::now();
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
    // A program need not read it.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let out = child.wait_with_output().unwrap();
    let wall = began.elapsed();
    let took = Took { wall, cpu: cpu_of_children().saturating_sub(cpu) };
    (took, must(command, out))
}

/// What one call took of the machine. Time and memory are of the program and of all that it waited for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub ms: f64,
    pub cpu_ms: f64,
    /// Of the largest of its processes, resident.
    pub mib: f64,
    /// Read and written by system calls.
    pub kib: f64,
}

/// The argument that makes this program one that starts and measures the words behind it.
pub const LAUNCH: &str = "--launch";

/// Runs a program to its end: what it took, and what it said; else what it complained of. The kernel counts the memory
/// of whoever starts a program as the program's, so a small process does it.
pub fn cost(command: &mut Command, stdin: &[u8]) -> Result<(Cost, String), String> {
    let mut launcher = Command::new(std::env::current_exe().unwrap());
    launcher.arg(LAUNCH).arg(command.get_program()).args(command.get_args()).env_clear();
    launcher.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
    if let Some(dir) = command.get_current_dir() {
        launcher.current_dir(dir);
    }
    launcher.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = launcher.spawn().map_err(|e| format!("cannot start {launcher:?}: {e}"))?;
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let out = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    let (said, took) = err.trim_end().rsplit_once('\n').ok_or_else(|| err.clone().into_owned())?;
    let took: Vec<f64> = took.split(' ').filter_map(|n| n.parse().ok()).collect();
    let [status, ms, cpu_ms, mib, kib] = took[..] else { return Err(err.into_owned()) };
    if status != 0.0 {
        return Err(said.trim().lines().last().unwrap_or("it says nothing").to_owned());
    }
    Ok((Cost { ms, cpu_ms, mib, kib }, String::from_utf8_lossy(&out.stdout).into_owned()))
}

/// What the small process does: its last line on stderr is what `cost` reads.
pub fn launch(words: &[OsString]) -> Result<(), String> {
    let before = moved();
    let began = Instant::now();
    let child = Command::new(&words[0]).args(&words[1..]).spawn();
    let (status, usage) = wait(child.map_err(|e| format!("cannot start {words:?}: {e}"))?.id());
    let ms = began.elapsed().as_secs_f64() * 1e3;
    let spent = |t: libc::timeval| t.tv_sec as f64 * 1e3 + t.tv_usec as f64 / 1e3;
    let cpu_ms = spent(usage.ru_utime) + spent(usage.ru_stime);
    let kib = moved().saturating_sub(before) as f64 / 1024.0;
    eprintln!("\n{status} {ms} {cpu_ms} {} {kib}", usage.ru_maxrss as f64 / 1024.0);
    Ok(())
}

/// Status and use of a child that has ended or will.
#[expect(unsafe_code, reason = "nothing safe tells what one child and its children used")]
fn wait(pid: u32) -> (i32, libc::rusage) {
    let mut status = 0;
    // SAFETY: rusage is numbers only, for which zeros are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both places live as long as the call, and nobody else waits for this child.
    let got = unsafe { libc::wait4(pid.cast_signed(), &raw mut status, 0, &raw mut usage) };
    assert_eq!(got, pid.cast_signed(), "{}", std::io::Error::last_os_error());
    (status, usage)
}

/// Bytes that this process and the children it waited for moved by system calls.
pub fn moved() -> u64 {
    let text = std::fs::read_to_string("/proc/self/io").unwrap();
    let of = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.trim().parse::<u64>().ok());
    of("rchar:").unwrap() + of("wchar:").unwrap()
}

fn must(command: &Command, out: Output) -> Vec<u8> {
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}: {said}", out.status);
    out.stdout
}

/// Runs a tool of the bench's own.
pub fn tool(program: &str, args: &[&str]) -> String {
    let (_, out) = run(Command::new(program).args(args), b"");
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a program can be had.
pub fn have(program: &str) -> bool {
    ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].iter().any(|d| Path::new(d).join(program).is_file())
}

/// Processor time of the children that ended, and of their children.
fn cpu_of_children() -> Duration {
    let [_, _, user, system] = ticks();
    Duration::from_millis((user + system) * 10)
}

/// Processor time of this process itself: the bench's own server works in it.
pub fn own_cpu() -> Duration {
    let [user, system, ..] = ticks();
    Duration::from_millis((user + system) * 10)
}

/// utime, stime, cutime and cstime in hundredths of a second, as proc(5) has them.
fn ticks() -> [u64; 4] {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    [11, 12, 13, 14].map(|n| fields[n].parse().unwrap())
}

/// Runs a program and looks at its memory while it runs: the largest resident size seen, in MiB.
pub fn memory(command: &mut Command, stdin: &[u8]) -> f64 {
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut pipe = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || drop(pipe.write_all(stdin)));
        let mut peak = 0;
        while child.try_wait().unwrap().is_none() {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            let kib =
                text.lines().find_map(|l| l.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
            peak = peak.max(kib.unwrap_or(0));
            std::thread::sleep(Duration::from_micros(200));
        }
        f64::from(peak) / 1024.0
    })
}

/// What a program did, as strace saw it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    /// Programs started after the first.
    pub children: u32,
    /// fsync, fdatasync and the like of the program itself, and of its children.
    pub syncs: u32,
    pub child_syncs: u32,
    /// System calls of the program itself.
    pub own: u32,
}

/// Runs a program once under strace. `None` where there is no strace.
pub fn traced(command: &Command, stdin: &[u8], scratch: &Path) -> Option<Calls> {
    if !have("strace") {
        return None;
    }
    let file = scratch.join("trace");
    let mut under = Command::new("strace");
    under.args(["-f", "-qq", "-s", "0", "-o"]).arg(&file).arg(command.get_program()).args(command.get_args());
    under.env_clear();
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            under.env(key, value);
        }
    }
    if let Some(dir) = command.get_current_dir() {
        under.current_dir(dir);
    }
    run(&mut under, stdin);
    let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
    Some(count(&text))
}

fn count(text: &str) -> Calls {
    let mut calls = Calls::default();
    let mut children: HashSet<String> = HashSet::new();
    let mut started = 0u32;
    for line in text.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        // Who is born to a child is one, too; the answer may come on a line of its own.
        let births = ["clone", "fork", "vfork"];
        if births.iter().any(|n| rest.trim_start_matches("<... ").starts_with(n))
            && let (true, Some((_, born))) = (children.contains(pid), rest.rsplit_once(" = "))
        {
            children.insert(born.trim().to_owned());
        }
        let Some((name, _)) = rest.split_once('(') else { continue };
        if !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
            continue; // the second half of a call, a signal, an exit
        }
        if name.starts_with("execve") && !rest.contains(" = -1 ") {
            started += 1;
            if started > 1 {
                children.insert(pid.to_owned());
            }
        }
        let sync = matches!(name, "fsync" | "fdatasync" | "sync" | "syncfs" | "msync");
        if children.contains(pid) {
            calls.child_syncs += u32::from(sync);
        } else {
            calls.own += 1;
            calls.syncs += u32::from(sync);
        }
    }
    calls.children = started.saturating_sub(1);
    calls
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// What a quiet moment gave: on a shared machine the figure that says most of the program.
pub fn least(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
