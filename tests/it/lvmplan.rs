//! `--plan` of verbs on a volume group, on the kernel's device mapper. The disk under the group is a snapshot: what
//! was written to it since then lies on a device of its own, and can be read there.

use crate::lvmbed::{Bed, Call, Ended, root};
use crate::lvmkill::{SCENES, in_machine, is_wanted};
use crate::lvmverbs::{GROUP, digest};
use crate::plans::{can_be_planned, tree};
use crate::power::Random;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// All that could have changed: the group, every write to its disk, and every file of the installation.
#[derive(Debug, PartialEq, Eq)]
struct State {
    group: String,
    written: String,
    files: BTreeMap<PathBuf, String>,
}

const META: &str = "vg-one-100/sdm-meta";
const VOLUMES: &str = "lv_name,lv_uuid,lv_size,lv_tags,lv_active,pool_lv,vg_seqno,vg_free,vg_tags";

impl State {
    #[track_caller]
    fn is_still(&self, now: &State, what: &str) {
        assert_eq!((&now.group, &now.written), (&self.group, &self.written), "{what}");
        let changed = |(path, was): &(&PathBuf, &String)| now.files.get(*path) != Some(*was);
        let changed: Vec<_> = self.files.iter().filter(changed).collect();
        let new: Vec<_> = now.files.keys().filter(|p| !self.files.contains_key(*p)).collect();
        assert!(changed.is_empty() && new.is_empty(), "{what}: {changed:?} {new:?}");
    }
}

/// As the scene starts, with the records that a host has open from its first verb on.
fn laid_out(bed: &Bed) {
    bed.back();
    root(&["lvchange", "-K", "-ay", META]);
}

fn state(bed: &Bed) -> State {
    let mut files = BTreeMap::new();
    tree(&bed.h.at("var"), &mut files);
    tree(&bed.h.at("etc"), &mut files);
    // Where a plan stages for a moment.
    files.retain(|path, _| !path.to_string_lossy().contains("/run"));
    root(&["sync"]);
    root(&["blockdev", "--flushbufs", "/dev/vdc"]);
    // `<first> <sectors> snapshot <used>/<all> <tables>`
    let used = root(&["dmsetup", "status", "lun"]);
    let sectors: u64 = used.split([' ', '/']).nth(3).unwrap().parse().unwrap();
    let mut cow = std::fs::File::open("/dev/vdc").unwrap();
    let mut bytes = vec![0; usize::try_from(sectors * 512).unwrap()];
    std::io::Read::read_exact(&mut cow, &mut bytes).unwrap();
    State { group: root(&["lvs", "-a", "-o", VOLUMES, GROUP]), written: digest(&bytes) + &used, files }
}

/// Sizes by volume, and the free space of the group.
fn sizes() -> (BTreeMap<String, u64>, u64) {
    let report = |words: &[&str]| {
        let how = ["--noheadings", "--units", "b", "--nosuffix", "-o"];
        root(&[&words[..1], &how, &words[1..], &[GROUP]].concat())
    };
    let all = report(&["lvs", "lv_name,lv_size"]);
    let volumes = all.lines().map(|l| l.split_whitespace().collect::<Vec<_>>());
    let volumes = volumes.map(|f| (f[0].to_owned(), f[1].parse().unwrap())).collect();
    (volumes, report(&["vgs", "vg_free"]).trim().parse().unwrap())
}

fn plan(bed: &Bed, call: Call) -> (Option<i32>, Value) {
    let done = bed.run_as(&["--plan", "--json"], call, "", &[]);
    assert_eq!(done.commands, Vec::<String>::new(), "{call:?}");
    let text = &done.text;
    let json = text.find('{').zip(text.rfind('}')).map_or("", |(a, b)| &text[a..=b]);
    (done.status, serde_json::from_str(json).unwrap_or_else(|e| panic!("{call:?}: {e}: {text}")))
}

/// What is wrong about a plan when the verb has done it.
fn wrong(plan: &Value, call: Call, done: &Ended, free: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut check = |is: bool, what: String| wrong.extend((!is).then_some(what));
    let (volumes, now) = sizes();
    let said = done.text.lines().find(|l| !l.starts_with("WARN: ")).unwrap_or_default();
    check(plan["answer"].as_str() == Some(said), format!("answered {said:?}"));
    let list = |key: &str| plan[key].as_array().cloned().unwrap_or_default();
    let of_group = |v: &Value| v.as_str().and_then(|n| n.strip_prefix("/dev/vg-one-100/").map(str::to_owned));
    for change in list("names") {
        let there = match of_group(&change["name"]) {
            Some(volume) => volumes.contains_key(&volume),
            None => Path::new(change["name"].as_str().unwrap()).symlink_metadata().is_ok(),
        };
        check(there == (change["how"] != "removed"), format!("{change} is there: {there}"));
    }
    let goes = list("names").iter().any(|c| ["removed", "replaced"].iter().any(|how| c["how"] == *how));
    for room in list("space").iter().filter(|r| r["place"] == "/dev/vg-one-100") {
        let left = room["free"].as_u64().unwrap() - room["takes"].as_u64().unwrap();
        check(room["free"] == free && room["extent"] == 1 << 20, format!("{free} were free"));
        // What is displaced may be gone by now.
        check(left == now || (goes && left < now), format!("{now} are free in place of {left}"));
    }
    for pool in list("pools") {
        let now = of_group(&pool["name"]).and_then(|n| volumes.get(&n).copied());
        check(pool["then"].as_u64() == now, format!("a pool of {now:?}"));
    }
    let (Call::Ds(verb, _) | Call::Tm(verb, _) | Call::Thick(verb, _)) = call else { return wrong };
    let moves = ["cp", "clone", "cpds"].contains(&verb);
    let size = list("moves").first().and_then(|m| m["size"].as_u64());
    check(moves == size.is_some_and(|s| s >= 1 << 20), format!("moves {size:?}"));
    check((plan["nothing"] == true) == done.commands.is_empty(), format!("{:?}", done.commands));
    wrong
}

/// Each verb that can be planned, in each of its scenes: the plan gives no command that changes something, nothing
/// is written to the disk or to a directory, and the verb then does what the plan said. Some scenes, others
/// each time; `ONESDM_FULL=1`: all of them.
#[test]
#[ignore = "runs in the machine of the next test"]
fn plans_inside() {
    let mut bed = Bed::new();
    in_the_way(&mut bed);
    let (mut all, mut random, began) = (Vec::new(), Random::seeded(), Instant::now());
    let mut scenes: Vec<_> = SCENES.iter().filter(|s| is_wanted(s)).collect();
    scenes.sort_by_cached_key(|_| random.below(1 << 20));
    for scene in scenes {
        if !crate::kill::full() && began.elapsed() > Duration::from_secs(20) {
            break;
        }
        let (role, verb) = match scene.call {
            Call::Ds(verb, _) => ("datastore", verb),
            Call::Tm(verb, _) | Call::Thick(verb, _) => ("tm", verb),
            Call::Write(_) => continue,
        };
        if !can_be_planned(role, verb) {
            continue;
        }
        bed.scene(scene.before);
        laid_out(&bed);
        let (before, (_, free)) = (state(&bed), sizes());
        let began = Instant::now();
        let (status, plan) = plan(&bed, scene.call);
        println!("{}: planned in {:.1?}", scene.name, began.elapsed());
        before.is_still(&state(&bed), scene.name);
        let done = bed.run(scene.call, "", &[]);
        println!("{}: {} commands; {plan}", scene.name, done.commands.len());
        assert_eq!((status, done.status), (Some(0), Some(0)), "{}: {plan} {}", scene.name, done.text);
        let told = wrong(&plan, scene.call, &done, free);
        all.extend(told.into_iter().map(|w| format!("{}: {w}: {plan}", scene.name)));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

fn in_the_way(bed: &mut Bed) {
    let cp = Call::Ds("cp", "<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH>");
    bed.scene(&[]);
    laid_out(bed);
    // A job that stands still has the image.
    let xml = bed.h.message("<ID>5</ID><SIZE>2</SIZE><PATH>DIR/one.raw</PATH>");
    let mut child = bed.h.start("cp", &xml, &[("ONESDM_TEST_STOP", "12")]);
    let stat = format!("/proc/{}/stat", child.id());
    while !std::fs::read_to_string(&stat).unwrap().contains(") T ") {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (status, told) = plan(bed, cp);
    let line = told["refused"]["line"].as_str().unwrap_or_default();
    assert!(status == Some(4) && line.contains("(cp on host "), "{told}");
    child.kill().unwrap();
    child.wait().unwrap();
    laid_out(bed);
    // More than there is.
    let (status, told) = plan(bed, Call::Ds("mkfs", "<ID>6</ID><SIZE>900</SIZE>"));
    let line = told["refused"]["line"].as_str().unwrap_or_default();
    assert!(
        status.is_some_and(|s| s != 0) && line.contains("no space left for 900.0 MiB in /dev/vg-one-100"),
        "{told}"
    );
    // Without the records nobody can tell what a verb would do, nor is that a failure.
    root(&["lvchange", "-K", "-an", META]);
    let before = state(bed);
    let (status, told) = plan(bed, cp);
    before.is_still(&state(bed), "without records");
    assert!(status == Some(0) && told["partial"] == true && told["nothing"] == false, "{told}");
    assert!(told["notes"].to_string().contains("vg-one-100/sdm-meta is not active on this host"), "{told}");
}

#[test]
fn a_plan_on_volumes_changes_nothing_and_says_what_the_verb_then_does() {
    in_machine("lvmplan::plans_inside");
}
