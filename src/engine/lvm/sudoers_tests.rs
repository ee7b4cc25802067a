//! The sudoers file against the commands that the engine makes.

use super::tests::{host, name, tool};
use super::*;
use crate::lock::JobId;
use crate::sys::Tool;
use std::collections::BTreeMap;
use std::process::Command;

/// The shapes that the sudoers file allows, by the program's path.
fn allowed() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/sudoers")).unwrap();
    let lines = text.lines().filter_map(|l| l.trim().strip_prefix("/usr/sbin/"));
    let shape = |l: &str| {
        let (tool, shape) = l.split_once(' ').unwrap();
        let shape = shape.trim_end_matches([',', ' ', '\\']);
        (tool.to_owned(), shape.strip_prefix('^').unwrap().strip_suffix('$').unwrap().to_owned())
    };
    lines.map(shape).collect()
}

fn may(tool: Tool, words: &[&str]) -> bool {
    allowed().iter().filter(|(t, _)| *t == tool.to_string()).any(|(_, shape)| {
        use std::io::Write as _;
        let mut grep = Command::new("grep");
        let grep = grep.args(["-Exqe", shape]).stdin(std::process::Stdio::piped());
        let mut grep = crate::sys::fork::spawn(grep).unwrap();
        grep.stdin.take().unwrap().write_all(words.join(" ").as_bytes()).unwrap();
        grep.wait().unwrap().success()
    })
}

#[test]
fn the_sudoers_file_allows_the_commands_we_give_and_no_others() {
    let job = JobId::generate();
    let volume = view::volume_name(&Place::Staged(job, 3)).unwrap();
    let dead = view::volume_name(&Place::Dead(Grave { job, n: 3, keep: true })).unwrap();
    let (image, tags) = ("img-one-5".to_owned(), vec![map::active_tag(&host(7), Access::Write)]);
    let to = view::to_tag(&name(&image), &Grave { job, n: 0, keep: true });
    let create = |how| Change::Create { name: volume.clone(), how, tags: tags.clone(), activate: true };
    let changes = || {
        let at = image.clone();
        [
            Change::Rename { from: volume.clone(), to: image.clone() },
            Change::Tag { volume: volume.clone(), add: vec![to.clone()], del: tags.clone() },
            Change::Group { tag: retire::domain_tag(uuid::Uuid::now_v7()), domain: true },
            Change::Group { tag: retire::domain_tag(uuid::Uuid::now_v7()), domain: false },
            Change::Release { volume: image.clone(), del: tags.clone() },
            create(How::Linear(Bytes(4 << 20))),
            create(How::Pool(Bytes(4 << 20))),
            create(How::Thin { pool: "img-one-5-pool".to_owned(), size: Bytes(1 << 40) }),
            create(How::Snapshot(image.clone())),
            Change::Resize { volume: image.clone(), from: Bytes(1), to: Bytes(2), pool: false },
            Change::Resize { volume: image.clone(), from: Bytes(2), to: Bytes(1), pool: false },
            Change::Append {
                volume: image.clone(),
                to: Bytes(2),
                extents: vec!["/dev/mapper/360014-lun_1:7-9".to_owned(), "/dev/sda:1-1".to_owned()],
            },
            Change::Remove { volume: dead.clone(), thin: false },
            Change::Device { volume: at, on: true },
            Change::Wake { volume: image.clone() },
        ]
    };
    tool(&["visudo", "-cqf", concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/sudoers")]);
    let device = ["/dev/mapper/360014-lun_1".into(), "/dev/sda".into()];
    let group = |name: &str, devices: &[PathBuf]| {
        let tools = Tools::new(BTreeMap::new()).unwrap();
        Group::new(name, devices, tools, Duration::ZERO, Cancel::default(), &[]).unwrap()
    };
    assert!(may(Tool::DmSetup, &thin::STATUS));
    assert!(!may(Tool::DmSetup, &["remove", "x"]) && !may(Tool::DmSetup, &["status"]));
    for devices in [&device[..], &[]] {
        let (ours, other) = (group("vg-one-100", devices), group("vg-root", devices));
        for change in changes() {
            let (tool, words) = ours.words(&change);
            assert!(may(tool, &ours.all_words(&words)), "{tool} {:?}", ours.all_words(&words));
            let (tool, words) = other.words(&change);
            assert!(!may(tool, &other.all_words(&words)), "another group: {tool} {words:?}");
        }
        for (tool, fields) in
            [(Tool::Lvs, view::FIELDS), (Tool::Lvs, view::EXTENTS), (Tool::Vgs, view::GROUP_FIELDS)]
        {
            assert!(may(tool, &ours.all_words(&ours.query(fields))), "{tool}");
        }
        let (tool, words) = ours.words(&Change::Remove { volume: image.clone(), thin: false });
        assert!(!may(tool, &ours.all_words(&words)), "a public volume is never removed");
        let (tool, mut words) = ours.words(&Change::Remove { volume: dead.clone(), thin: false });
        words.insert(0, "--config global{thin_check_executable=\"/tmp/x\"}".to_owned());
        assert!(!may(tool, &ours.all_words(&words)), "no other setting");
    }
}
