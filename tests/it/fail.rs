//! Each effect of every verb fails as a system can let it fail: full, over quota, broken, stale, read-only,
//! interrupted, too slow, written in part, a helper that gives up or dies half-way. Then the verb either
//! did all it was asked or says in one line what failed, on what and why; and what it leaves is old or new,
//! collected without a rest, and done by the same call made again. `ONESDM_FULL=1`: everything at every effect.

use crate::kill::{aftermath, effects, full, ready};
use crate::scenes::{self, Scene};
use crate::tm_scenes;
use std::collections::BTreeMap;
use std::time::Instant;

/// A way to fail, and what the line must say of it.
pub type Way = (&'static str, &'static [&'static str]);

const NO_SPACE: &[&str] = &["No space", "no space"];
const TOO_LARGE: &[&str] = &["File too large", "qemu-img", "mkfs", "mkswap"];

const ERRORS: [Way; 8] = [
    (":ENOSPC", NO_SPACE),
    ("-:EIO", &["Input/output error"]),
    (":EDQUOT", &["quota"]),
    ("-:EROFS", &["Read-only file system"]),
    (":EIO", &["Input/output error"]),
    (":EINTR", &["Interrupted"]),
    ("-:ESTALE", &["Stale file handle"]),
    (":ETIMEDOUT", &["timed out"]),
];

/// Only these write data that can come out short.
const WRITES: [Way; 2] = [(":short=100", TOO_LARGE), (":short=65536", TOO_LARGE)];
const CHILD: [Way; 3] = [(":short=100", TOO_LARGE), (":short=65536", TOO_LARGE), (":crash", &["signal 9"])];

/// How an effect of this kind can fail.
pub fn ways(effect: &str) -> Vec<Way> {
    let special: &[Way] = match effect {
        "Write" => &WRITES,
        "Child" => &CHILD,
        _ => &[],
    };
    special.iter().chain(&ERRORS).copied().collect()
}

/// Lets one step fail and puts everything to the test; whether the call failed.
pub fn point(
    scene: &Scene,
    domain: bool,
    at: &str,
    says: &[&str],
    bug: Option<&str>,
) -> Result<bool, String> {
    let bed = ready(None, domain);
    let stage = scene.stage(&bed);
    let call = scene.call(&stage).env("ONESDM_TEST_FAIL", at);
    let done = bug.into_iter().fold(call, |c, bug| c.env("ONESDM_TEST_BUG", bug)).run();
    let failed = done.code != Some(0);
    if failed {
        let line = done.failure(None)?;
        if !says.iter().any(|s| line.contains(s)) {
            return Err(format!("the line does not say why ({says:?}): {line}"));
        }
        if !stage.names_object(&line) {
            return Err(format!("the line does not say on what: {line}"));
        }
    } else {
        stage.done(&done).map_err(|e| format!("it said success: {e}"))?;
    }
    aftermath(scene, &bed, &stage, domain)?;
    Ok(failed)
}

#[test]
fn failing_at_every_effect() {
    let (began, mut wrong) = (Instant::now(), Vec::new());
    let (mut sum, mut failed) = (0, 0);
    let first = scenes::all().swap_remove(0);
    let all = scenes::all().into_iter().map(|s| (s, true)).chain([(first, false)]);
    let all = all.map(|(s, domain)| (s, domain, 2)).chain(tm_scenes::all().into_iter().map(|s| (s, true, 6)));
    for (at, (scene, domain, stride)) in all.enumerate() {
        let mut points: BTreeMap<&str, usize> = BTreeMap::new();
        for (n, effect) in effects(&scene, None, domain).iter().enumerate() {
            let ways = ways(effect);
            // One way at every so many-th effect, in turn, so that a kind of effect meets all of them somewhere.
            let turn = (at + n / stride) % ways.len();
            let mine = if full() { 0..ways.len() } else { turn..turn + usize::from((at + n) % stride == 0) };
            for (how, says) in &ways[mine] {
                match point(&scene, domain, &format!("{}{how}", n + 1), says, None) {
                    Ok(f) => failed += usize::from(f),
                    Err(e) => wrong.push(format!("{} {}{how} ({effect}): {e}", scene.name, n + 1)),
                }
                *points.entry(how.trim_start_matches(['-', ':'])).or_default() += 1;
                sum += 1;
            }
        }
        let points: String = points.iter().map(|(k, n)| format!("{k} {n}  ")).collect();
        println!("{:24} {points}", scene.name);
    }
    println!("{sum} points in {:.0?}, the verb failed at {failed}", began.elapsed());
    assert!(wrong.is_empty(), "{} of {sum} points were wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Found by the sweep: qemu-img's last write, over the header of a layer that has its name, came out short.
#[test]
fn a_header_that_was_written_in_part_is_put_back() {
    for name in ["tm snap_delete qcow2", "snap_delete qcow2"] {
        let scene = scenes::all().into_iter().chain(tm_scenes::all()).find(|s| s.name == name).unwrap();
        let children = effects(&scene, None, true).into_iter().enumerate().filter(|(_, e)| e == "Child");
        let mut failed = 0;
        for (n, _) in children {
            for bytes in [100, 4096, 65536] {
                let at = format!("{}:short={bytes}", n + 1);
                let done = point(&scene, true, &at, TOO_LARGE, None);
                failed += usize::from(done.unwrap_or_else(|e| panic!("{name} {at}: {e}")));
            }
        }
        assert!(failed > 0, "{name}");
    }
}

/// The same, and nobody lives to put it back: the job is killed at that very moment.
#[test]
fn a_header_that_a_dead_job_left_in_part_is_put_back() {
    let mut wrong = Vec::new();
    for name in ["tm snap_delete qcow2", "snap_delete qcow2"] {
        let scene = scenes::all().into_iter().chain(tm_scenes::all()).find(|s| s.name == name).unwrap();
        let children = effects(&scene, None, true).into_iter().enumerate().filter(|(_, e)| e == "Child");
        for (n, _) in children {
            for bytes in [1, 18, 100, 300, 512, 530, 4096] {
                let bed = ready(None, true);
                let stage = scene.stage(&bed);
                let call = scene.call(&stage).env("ONESDM_TEST_FAIL", format!("{}:short={bytes}", n + 1));
                let done = call.env("ONESDM_TEST_KILL", format!("{}:after", n + 1)).run();
                assert!(done.killed(), "{name}: {done:?}");
                // Until somebody ends the dead job the layer may be unreadable.
                bed.onesdm(&["gc"]).run().ok();
                if let Err(e) = aftermath(&scene, &bed, &stage, true) {
                    wrong.push(format!("{name} {n} {bytes}: {e}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} were wrong:\n{}", wrong.len(), wrong.join("\n"));
}
