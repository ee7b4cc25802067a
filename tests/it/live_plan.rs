//! `--plan` of verbs on the disk of a running machine: a real libvirtd, asked by a `virsh` that writes down what it
//! was asked.

use crate::call::Call;
use crate::live_hostile::Peer;
use crate::plans::all_of;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The verb as a person or as oned gives it, of a machine in this state.
fn call<'a>(p: &'a Peer, how: &[&str], (verb, state, args): (&str, u32, &[&str])) -> Call<'a> {
    let h = &p.h;
    let name = format!("tm/shared/{verb}");
    let call = if how.is_empty() {
        h.one.tm("shared", verb)
    } else {
        h.one.onesdm(&[how, &["--as", &name, "--"]].concat())
    };
    args.iter().fold(call.env("ONESDM_XML_DIR", h.document(state)), Call::arg)
}

/// Snapshots are made, one goes down into another, one is pulled up, and the disk is saved: each is planned first,
/// which changes no file and asks libvirt for what a reader may ask; then it is done.
#[test]
fn a_plan_of_a_running_machine_changes_nothing_and_says_what_the_verb_then_does() {
    let p = Peer::new();
    let h = &p.h;
    let rc = h.one.remotes().join("etc/vmm/kvm");
    std::fs::create_dir_all(&rc).unwrap();
    std::fs::write(rc.join("kvmrc"), format!("LIBVIRT_URI=\"{}\"\nVIRSH_TIMEOUT=20\n", h.ok(&["uri"])))
        .unwrap();
    let disk = format!("localhost:{}/7/disk.0", h.one.base_path(101));
    let saved = format!("{}/saved", h.one.base_path(100));
    let on = |n: &'static str| [disk.clone(), n.to_owned(), "7".to_owned(), "100".to_owned()];
    let save = [disk.clone(), saved, "-1".to_owned(), "7".to_owned(), "100".to_owned()];
    let (suspends, mirrors) =
        ("until its disk vda goes on in ", "when libvirt's mirror of the disk has caught up");
    let scenes: [(&str, u32, Vec<String>, &str, &str); 6] = [
        ("snap_create_live", 57, on("0").into(), "", suspends),
        ("snap_create_live", 57, on("1").into(), "", suspends),
        ("snap_create_live", 57, on("2").into(), "", suspends),
        ("cpds", 26, save.into(), "mirror", mirrors),
        ("snap_delete", 59, on("1").into(), "merge", ""),
        ("snap_delete", 59, on("2").into(), "pull", "gets what it has from "),
    ];
    let mut saw = "A".to_owned();
    for (verb, state, args, how, note) in scenes {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let what = (verb, state, &args[..]);
        p.rules(&[]);
        let planned = call(&p, &["--plan", "--json"], what);
        let before = all_of(&h.one);
        let done = planned.run();
        let plan: Value = serde_json::from_slice(&done.stdout)
            .unwrap_or_else(|e| panic!("{verb}: {e}: {} {}", done.out(), done.err()));
        println!("{verb}: {plan}");
        let asked = p.calls();
        let after = all_of(&h.one);
        // What is beside the storage: where `virsh` writes down what it is asked.
        let paths = before.keys().chain(after.keys()).filter(|k| !k.starts_with(&p.dir));
        let differs: Vec<&PathBuf> = paths.filter(|k| before.get(*k) != after.get(*k)).collect();
        assert_eq!(differs, Vec::<&PathBuf>::new(), "{verb}");
        let looks = |c: &str| ["domstats ", "dumpxml ", "--info "].iter().any(|w| c.contains(w));
        assert!(!asked.is_empty() && asked.lines().all(|c| c.contains("--readonly ") && looks(c)), "{asked}");
        assert_eq!(h.state(), "running", "{verb}");
        assert_eq!((done.code, &plan["refused"]), (Some(0), &Value::Null), "{plan}");
        let first = plan["moves"][0]["how"].as_str().unwrap_or_default();
        assert!(first == how && plan["notes"].to_string().contains(note), "{plan}");
        assert!(plan["nothing"] == false && (plan["partial"] == true) == (how == "pull"), "{plan}");
        call(&p, &[], what).run().ok();
        for change in plan["names"].as_array().unwrap() {
            let there = Path::new(change["name"].as_str().unwrap()).symlink_metadata().is_ok();
            assert_eq!(there, change["how"] != "removed", "{change}");
        }
        if verb == "snap_create_live" {
            let letter = char::from(b'A' + u8::try_from(saw.len()).unwrap());
            h.write(letter, saw.len());
            saw.push(letter);
        }
        h.sees(&saw);
    }
    assert_eq!(h.says(&h.at("100/saved")), saw);
    h.power_off();
    assert_eq!(h.says(&h.at("101/7/disk.0")), saw);
}
