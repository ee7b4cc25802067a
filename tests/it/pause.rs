//! A call that is paused (SIGSTOP) before one of its steps, as a host that hangs, and what may happen to
//! it meanwhile.

use crate::bed::{Bed, Call, Done, Running};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

pub struct Paused(Running);

impl Paused {
    /// Starts a call and waits until it stands still before step `n`. `Err` when it ended before.
    pub fn before(n: usize, call: Call<'_>) -> Result<Paused, Box<Done>> {
        let mut running = call.env("ONESDM_TEST_STOP", n.to_string()).start();
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            if state(&running) == Some('T') {
                return Ok(Paused(running));
            }
            if !running.is_running() {
                return Err(Box::new(running.wait()));
            }
            assert!(Instant::now() < end, "it neither paused nor ended");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn pid(&self) -> i32 {
        self.0.pid().as_raw_nonzero().get()
    }

    /// It wakes and goes on to its end.
    pub fn wakes(self) -> Done {
        let _ = rustix::process::kill_process(self.0.pid(), Signal::CONT);
        self.0.wait()
    }
}

fn state(running: &Running) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", running.pid().as_raw_nonzero())).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

/// The steps a call takes, `effect TAB path TAB path`, from a run of it.
pub fn steps(bed: &Bed, call: Call<'_>) -> (Vec<String>, Done) {
    let log = bed.root().join("steps");
    let done = call.env("ONESDM_TEST_LOG", &log).run();
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    (text.lines().map(|l| l.split_once('\t').unwrap().1.to_owned()).collect(), done)
}

/// The number of the first step that fits, counted from one as the program does.
pub fn step(steps: &[String], fits: impl Fn(&str) -> bool) -> usize {
    1 + steps.iter().position(|s| fits(s)).unwrap_or_else(|| panic!("no such step among {steps:#?}"))
}

/// What makes every lease of a domain free although its holders live: the lease file is put back by a
/// restore. On a network file system the server's patience with a silent client comes to the same.
pub fn lose_leases(store: &Path) {
    let leases = store.join(".sdm/leases");
    let new = store.join(".sdm/tmp");
    std::fs::copy(&leases, &new).unwrap();
    std::fs::rename(new, leases).unwrap();
}

/// Appends settings to the bed's configuration.
pub fn set(bed: &Bed, text: &str) {
    use std::io::Write as _;
    let mut f = std::fs::File::options().append(true).open(bed.root().join("onesdm.toml")).unwrap();
    writeln!(f, "{text}").unwrap();
}
