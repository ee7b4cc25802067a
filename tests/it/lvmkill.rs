//! Every LVM command of every verb on a volume group, on the kernel's device mapper: the job is killed before it,
//! while it works, and after it; the command fails with nothing done, looks failed although all is done, and
//! dies between two of its writes. The job is killed after each other effect, too, which is before the next one.
//! Then: collected without a rest, checked, `vgck`; old or new; and done by the same call made again.
//! `ONESDM_FULL=1` tries all points (with `ONESDM_TEST_PART=9` every ninth, with `ONESDM_TEST_SCENE="rm;tm ln"` of these
//! scenes), without it as many as two minutes allow, others each time.

use crate::lvmbed::{BEFORE, Bed, Call, View, awake};
use crate::power::Random;
use crate::{bed, vm};
use Call::{Ds, Thick, Tm, Write};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

pub struct Scene {
    pub name: &'static str,
    pub before: &'static [Call],
    pub call: Call,
}

const CLONE: Call = Tm("clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "7", "100"]);
const LINK: Call = Tm("ln", &["fe:vg-one-100/img-one-2", "DIR/disk.1", "7", "100"]);
const SWAP: Call = Tm("mkswap", &["1", "DIR/disk.2", "7", "101"]);
const SNAP: Call = Tm("snap_create", &["DIR/disk.0", "0", "7", "100"]);
const GROW: Call = Tm("resize", &["DIR/disk.0", "4", "7", "100"]);
const SNAP_IMAGE: Call = Tm("snap_create", &["DIR/disk.1", "0", "7", "100"]);
const STORE: Call = Tm("mvds", &["DIR/disk.1", "vg-one-100/img-one-2", "7", "100"]);
const OFF: Call = Tm("mv", &["DIR/disk.0", "THERE/disk.0", "7", "101"]);
const WITH_SNAPSHOT: &[Call] = &[LINK, SNAP_IMAGE, Write(1), STORE];

const fn scene(name: &'static str, before: &'static [Call], call: Call) -> Scene {
    Scene { name, before, call }
}

const THICK: Call = Thick("clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "7", "100"]);

pub const SCENES: [Scene; 28] = [
    scene("cp", &[], Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH>")),
    scene(
        "cp thin",
        &[],
        Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH><PERSISTENT>1</PERSISTENT>"),
    ),
    scene("mkfs", &[], Ds("mkfs", "<ID>5</ID><SIZE>2</SIZE>")),
    scene("mkfs thin", &[], Ds("mkfs", "<ID>5</ID><SIZE>2</SIZE><PERSISTENT>1</PERSISTENT>")),
    scene("clone", &[], Ds("clone", "<ID>5</ID><SIZE>2</SIZE><PATH>vg-one-100/img-one-1</PATH>")),
    scene("rm", &[], Ds("rm", "<SOURCE>vg-one-100/img-one-1</SOURCE>")),
    scene("rm with a snapshot", WITH_SNAPSHOT, Ds("rm", "<SOURCE>vg-one-100/img-one-2</SOURCE>")),
    scene("snap_revert", WITH_SNAPSHOT, Ds("snap_revert", IMAGE_SNAPSHOT)),
    scene("snap_flatten", WITH_SNAPSHOT, Ds("snap_flatten", IMAGE_SNAPSHOT)),
    scene("snap_delete", WITH_SNAPSHOT, Ds("snap_delete", IMAGE_SNAPSHOT)),
    scene("tm clone", &[], CLONE),
    scene("tm clone again", &[CLONE, SNAP, GROW, Write(0)], CLONE),
    scene("tm ln", &[], LINK),
    scene("tm mkswap", &[], SWAP),
    scene("tm mkimage", &[CLONE], Tm("mkimage", &["2", "raw", "DIR/disk.2", "7", "101"])),
    scene("tm snap_create", &[CLONE], SNAP),
    scene("tm snap_create, persistent", &[LINK], SNAP_IMAGE),
    scene(
        "tm snap_revert",
        &[CLONE, SNAP, GROW, Write(0)],
        Tm("snap_revert", &["DIR/disk.0", "0", "7", "100"]),
    ),
    scene("tm snap_delete", &[CLONE, SNAP], Tm("snap_delete", &["DIR/disk.0", "0", "7", "100"])),
    scene("tm cpds", &[CLONE], Tm("cpds", &["DIR/disk.0", "vg-one-100/img-one-9", "-1", "7", "100"])),
    scene("tm resize", &[CLONE], GROW),
    scene("tm clone, thick", &[CLONE, SNAP], THICK),
    scene("tm resize, thick", &[THICK, Write(0)], Thick("resize", &["DIR/disk.0", "5", "7", "100"])),
    scene("tm mv", &[CLONE, LINK], OFF),
    scene("tm mvds", &[LINK], STORE),
    scene("tm delete", &[CLONE, SNAP, SWAP], Tm("delete", &["DIR/disk.0", "7", "100"])),
    scene("tm delete, persistent", &[LINK], Tm("delete", &["DIR/disk.1", "7", "100"])),
    scene("tm delete of a VM", &[CLONE, SNAP, SWAP], Tm("delete", &["DIR", "7", "101"])),
];

const IMAGE_SNAPSHOT: &str = "<SOURCE>vg-one-100/img-one-2</SOURCE><TARGET_SNAPSHOT>0</TARGET_SNAPSHOT>";

/// As many commands each scene has at least: one that nobody sees any more fails here.
const FLOORS: &str = include_str!("lvmfloors.tsv");

/// Where a scene is broken, and how.
#[derive(Clone, Debug)]
enum Point {
    /// At the n-th command.
    Command(usize, &'static str),
    /// At a write of the n-th command: two reads come first, then the text, and two that decide.
    Crash(usize, usize),
    /// After the n-th effect of the program, which is no command.
    Effect(usize),
}

const WAYS: [&str; 5] = ["before", "during", "after", "fails", "silent"];

/// Without its link a volume of the VM is there for nobody: a repeat, or the VM's end, takes it. A pool has no
/// content.
pub fn seen(view: &View) -> View {
    let mut view = view.clone();
    for disk in 0..3 {
        if !view.contains_key(&format!("101/7/disk.{disk}")) {
            view.retain(|k, _| !k.starts_with(&format!("vm-one-7-{disk}")));
        }
    }
    view.retain(|k, _| k != "vm-one-7-pool");
    view
}

pub fn between(old: &View, new: &View, now: &View) -> Result<(), String> {
    let now = seen(now);
    if [old, new].iter().any(|v| seen(v) == now) {
        return Ok(());
    }
    Err(format!("neither old nor new: {now:?}\nold: {old:?}\nnew: {new:?}"))
}

struct Played {
    old: View,
    new: View,
    points: Vec<Point>,
    names: Vec<String>,
}

/// Plays a scene undisturbed, and finds where it can be broken.
fn play(bed: &mut Bed, scene: &Scene, random: &mut Random) -> Played {
    bed.scene(scene.before);
    bed.back();
    let old = bed.view();
    let (log, name) = (bed.h.at("effects"), scene.name);
    let _ = std::fs::remove_file(&log);
    let ended = bed.run(scene.call, "", &[("ONESDM_TEST_LOG", log.to_str().unwrap())]);
    assert_eq!(ended.status, Some(0), "{name}: {}", ended.text);
    let new = bed.view();
    assert!(
        old != new || ["mvds", "mv", "delete"].iter().any(|w| name.contains(w)),
        "{name} changes nothing"
    );
    let mut points = Vec::new();
    for (n, command) in ended.commands.iter().enumerate() {
        println!("{name}: {command}");
        points.extend(WAYS.map(|way| Point::Command(n + 1, way)));
        if !command.contains("--activate") || command.starts_with("lvcreate") {
            points.push(Point::Crash(n + 1, 3 + random.below(3)));
        }
    }
    let effects = std::fs::read_to_string(&log).unwrap_or_default();
    let effects: Vec<&str> = effects.lines().map(|l| l.split('\t').nth(1).unwrap()).collect();
    let own = effects.iter().enumerate().filter(|(_, e)| **e != "Child");
    points.extend(own.map(|(n, _)| Point::Effect(n + 1)));
    Played { old, new, points, names: ended.commands }
}

/// Breaks a scene at one point and puts everything to the test. Whether it was reached.
fn point(bed: &Bed, scene: &Scene, p: &Played, at: &Point, bug: &str) -> Result<bool, String> {
    bed.back();
    let plan = match at {
        Point::Command(n, way) => format!("{n} {way}"),
        Point::Crash(n, write) => format!("{n} crash {write}"),
        Point::Effect(_) => String::new(),
    };
    let kill = if let Point::Effect(n) = at { format!("{n}:after") } else { String::new() };
    let env = [("ONESDM_TEST_KILL", kill.as_str())];
    let ended = bed.run(scene.call, &plan, if kill.is_empty() { &[] } else { &env });
    let reached = if kill.is_empty() { ended.met } else { ended.status.is_none() };
    if ended.status.is_some() {
        awake()?;
    }
    match ended.status {
        Some(0) if seen(&bed.view()) != seen(&p.new) => {
            return Err(format!("it said success: {:?}", bed.view()));
        }
        Some(0) | None => {}
        Some(n) if n > 0 && !ended.text.is_empty() => {}
        Some(n) => return Err(format!("{n} {}", ended.text)),
    }
    bed.sound(bug)?;
    let now = bed.view();
    between(&p.old, &p.new, &now)?;
    let again = bed.run(scene.call, "", &[]);
    // What is done already may be refused, as long as the line says so.
    if again.status != Some(0) && !(again.status == Some(3) && seen(&now) == seen(&p.new)) {
        return Err(format!("again: {:?} {}", again.status, again.text));
    }
    let end = bed.view();
    if end == p.new { Ok(reached) } else { Err(format!("at the end: {end:?}\nnot {:?}", p.new)) }
}

/// `ONESDM_TEST_SCENE` names those that are.
pub fn is_wanted(scene: &Scene) -> bool {
    let only = std::env::var("ONESDM_TEST_SCENE").unwrap_or_default();
    only.is_empty() || only.split(';').any(|o| o == scene.name)
}

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn sweep_inside() {
    let (began, mut random) = (Instant::now(), Random::seeded());
    let full = crate::kill::full();
    let mut bed = Bed::new();
    println!("ready after {:.0?}", began.elapsed());
    let part = std::env::var("ONESDM_TEST_PART").ok().and_then(|v| v.parse().ok()).unwrap_or(1);
    let mut scenes: Vec<&Scene> = SCENES.iter().filter(|s| is_wanted(s)).collect();
    if !full {
        scenes.sort_by_cached_key(|_| random.below(1 << 20));
    }
    let (mut wrong, mut sums) = (Vec::new(), BTreeMap::<&str, usize>::new());
    let begin = Instant::now();
    for scene in scenes {
        if !full && begin.elapsed() > Duration::from_secs(70) {
            break;
        }
        let mut p = play(&mut bed, scene, &mut random);
        println!("floor: {}\t{}", scene.name, p.names.len());
        p.points.sort_by_cached_key(|_| random.below(1 << 20));
        let floor = FLOORS.lines().find_map(|l| l.strip_prefix(scene.name)?.strip_prefix('\t')?.parse().ok());
        if floor.is_some_and(|f| p.names.len() < f) {
            wrong.push(format!("{}: {} commands, {floor:?} wanted", scene.name, p.names.len()));
        }
        let some = if full { p.points.len().div_ceil(part) } else { 2 };
        for at in p.points.iter().take(some) {
            let begin = Instant::now();
            let r = point(&bed, scene, &p, at, "");
            println!("{} {at:?} {:.1?} {r:?}", scene.name, begin.elapsed());
            let kind = match at {
                Point::Command(_, way) => way,
                Point::Crash(..) => "crash",
                Point::Effect(_) => "effect",
            };
            match r {
                Ok(reached) => *sums.entry(if reached { kind } else { "not reached" }).or_default() += 1,
                Err(e) => wrong.push(format!("{} {at:?}: {e}", scene.name)),
            }
        }
        println!("played: {}\t{} of {} points", scene.name, some.min(p.points.len()), p.points.len());
        println!("so far: {sums:?}, {} wrong, {:.0?}", wrong.len(), began.elapsed());
    }
    assert!(wrong.is_empty(), "{} points were wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Whoever ends a dead job does not look what it had decided, and takes back what it can.
#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn wrong_inside() {
    let mut bed = Bed::new();
    let scene = SCENES.iter().find(|s| s.name == "mkfs thin").unwrap();
    let p = play(&mut bed, scene, &mut Random::seeded());
    let renames = p.names.iter().enumerate().filter(|(_, c)| c.starts_with("lvrename")).map(|(n, _)| n + 1);
    // A command that goes on alone may be done before its job is dead.
    let at = renames.flat_map(|n| ["after", "during"].map(|way| Point::Command(n, way)));
    let said = at.map(|at| {
        let said = point(&bed, scene, &p, &at, "forget-commit");
        println!("{at:?} {said:?}");
        said
    });
    println!("caught: {}", said.into_iter().find_map(Result::err).expect("no kill showed it"));
}

/// A command that changes a device in use stops it for a moment, in which it is killed: at each of its writes with
/// `ONESDM_FULL=1`, else at half of them.
#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn asleep_inside() {
    let mut bed = Bed::new();
    let (mut wrong, mut random) = (Vec::new(), Random::seeded());
    for name in ["tm snap_create, persistent", "tm resize"] {
        let scene = SCENES.iter().find(|s| s.name == name).unwrap();
        let p = play(&mut bed, scene, &mut random);
        let half = random.below(2);
        let writes = (1..=2).flat_map(|n| (3..=6).map(move |write| (n, write)));
        let writes = writes.filter(|(n, write)| crate::kill::full() || (n + write) % 2 == half);
        for at in writes.map(|(n, write)| Point::Crash(n, write)) {
            let said = point(&bed, scene, &p, &at, "");
            println!("{name} {at:?} {said:?}");
            wrong.extend(said.err());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_command_that_is_killed_leaves_no_device_standing_still() {
    in_machine("lvmkill::asleep_inside");
}

pub fn in_machine(test: &str) {
    let tmp = bed::scratch();
    let disks = ["lun", "scene", "point"].map(|name| vm::disk(tmp.path(), name, 384 << 20));
    let programs =
        [bed::program(), "/usr/bin/qemu-img".into(), "/usr/sbin/mkswap".into(), "/usr/bin/strace".into()];
    let disks: Vec<_> = disks.iter().map(AsRef::as_ref).collect();
    vm::passes_as_root(&[], BEFORE, test, &disks, &programs);
}

#[test]
fn a_forgotten_commit_is_caught_on_device_mapper() {
    in_machine("lvmkill::wrong_inside");
}

#[test]
fn killed_at_every_command_on_device_mapper() {
    in_machine("lvmkill::sweep_inside");
}
