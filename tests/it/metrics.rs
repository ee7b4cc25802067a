//! Numbers for monitoring, `top`, and what the journal gets.

use crate::bed::{Bed, tool};
use crate::doc::Doc;
use crate::guest;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn cp(bed: &Bed, image: u32) {
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 256, 1);
    bed.ds("cp", image, &Doc::new(bed, image).image("PATH", path.display()).xml()).run().ok();
}

fn fail(bed: &Bed) {
    let gone = bed.images().join("gone").display().to_string();
    bed.ds("stat", 8, &Doc::new(bed, 8).image("PATH", gone).xml()).run().fails(3);
}

/// Every sample by its name and labels, in the grammar of the text format; whatever else fails.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let (mut out, mut kinds) = (BTreeMap::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} has two families");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            let name = series.split('{').next().unwrap();
            let base =
                ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
            assert!(kinds.contains_key(name) || kinds.get(base).is_some_and(|k| k == "histogram"), "{line}");
            assert!(out.insert(series.to_owned(), value.parse().unwrap()).is_none(), "twice: {series}");
        }
    }
    out
}

#[test]
fn what_happened_is_counted_and_stays_counted() {
    let bed = Bed::new();
    let store = bed.store(100);
    cp(&bed, 7);
    fail(&bed);
    let killed = Doc::new(&bed, 8).image("PATH", bed.images().join("a.raw").display()).xml();
    assert!(bed.ds("cp", 8, &killed).env("ONESDM_TEST_KILL", "5:after").run().killed());
    let file = bed.root().join("onesdm.prom");
    let written = ["metrics", "--output", file.to_str().unwrap()];
    for _ in 0..2 {
        bed.onesdm(&written).run().ok();
    }
    let read = || samples(&std::fs::read_to_string(&file).unwrap());
    let now = read();
    let count = |s: &BTreeMap<String, f64>, verb: &str, class: &str| {
        s.get(&format!("onesdm_jobs_total{{verb=\"{verb}\",class=\"{class}\"}}")).copied().unwrap_or(0.0)
    };
    let sum = count(&now, "cp", "ok") + count(&now, "stat", "not-found");
    assert!((sum - 2.0).abs() < 0.1, "{now:?}");
    let of_domain = |name: &str| {
        let found = now.iter().find(|(k, _)| k.starts_with(&format!("{name}{{datastore=\"100\"")));
        *found.unwrap_or_else(|| panic!("no {name} in {now:?}")).1
    };
    assert!((of_domain("onesdm_domain_up") - 1.0).abs() < 0.1);
    assert!((of_domain("onesdm_domain_garbage_objects") - 1.0).abs() < 0.1, "of the copy that was killed");
    assert!(of_domain("onesdm_domain_free_bytes") < of_domain("onesdm_domain_size_bytes"));
    let history = bed.root().join("state/history.jsonl");
    std::fs::remove_file(&history).unwrap_or_else(|e| panic!("{}: {e}", history.display()));
    cp(&bed, 9);
    bed.onesdm(&written).run().ok();
    assert!(count(&read(), "cp", "ok") > 1.9, "counters grow although the history was lost");
    // Storage that is not there is told, and hides nothing else.
    std::fs::rename(&store, bed.root().join("away")).unwrap();
    let page = samples(&bed.onesdm(&["metrics"]).run().ok());
    let up = page.iter().find(|(k, _)| k.starts_with("onesdm_domain_up{")).unwrap();
    assert!(up.1.abs() < 0.1 && count(&page, "cp", "ok") > 1.0, "{page:?}");
    std::fs::rename(bed.root().join("away"), &store).unwrap();
}

#[test]
fn the_dashboard_asks_for_numbers_that_there_are() {
    let bed = Bed::new();
    bed.store(100);
    cp(&bed, 7);
    let page = bed.onesdm(&["metrics"]).run().ok();
    let there: BTreeSet<&str> =
        page.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana.json");
    let text = std::fs::read_to_string(file).unwrap();
    let board: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut asked = BTreeSet::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            let words = expr.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let names: Vec<&str> = words.filter(|w| w.starts_with("onesdm_")).collect();
            assert!(!names.is_empty() || expr.contains("node_textfile_mtime_seconds"), "{expr}");
            asked.extend(names.into_iter().map(|n| n.strip_suffix("_bucket").unwrap_or(n).to_owned()));
        }
    }
    let missing: Vec<_> = asked.iter().filter(|n| !there.contains(n.as_str())).collect();
    assert!(missing.is_empty() && asked.len() >= 8, "{missing:?} of {asked:?} are not in {there:?}");
}

#[test]
fn top_shows_nothing_when_nothing_runs_and_ends_without_a_terminal() {
    let bed = Bed::new();
    assert!(bed.onesdm(&["top"]).run().ok().starts_with("0 jobs of "));
    assert_eq!(bed.onesdm(&["top", "--json"]).run().ok().trim(), "[]");
}

/// The fields of each message as journald's own protocol has them, both of its forms.
fn fields(message: &[u8]) -> BTreeMap<String, String> {
    let (mut out, mut rest) = (BTreeMap::new(), message);
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        rest = &rest[end + 1..];
        let (key, value) = if let Some((k, v)) = line.split_once('=') {
            (k.to_owned(), v.to_owned())
        } else {
            let length = usize::try_from(u64::from_le_bytes(rest[..8].try_into().unwrap())).unwrap();
            let value = String::from_utf8_lossy(&rest[8..8 + length]).into_owned();
            rest = &rest[8 + length + 1..];
            (line, value)
        };
        assert!(out.insert(key.clone(), value).is_none(), "{key} twice in one message");
    }
    out
}

/// Runs with a journal of our own, in a mount namespace; answers what it heard.
#[test]
fn the_journal_gets_stable_ids_and_the_job_on_every_line() {
    let bed = Bed::new();
    bed.store(100);
    let dir = bed.root().join("journal");
    std::fs::create_dir(&dir).unwrap();
    let socket = std::os::unix::net::UnixDatagram::bind(dir.join("socket")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let set_up =
        "mount -t tmpfs none /run && mkdir /run/systemd && ln -s \"$0\" /run/systemd/journal && exec \"$@\"";
    let under = ["unshare", "--mount", "sh", "-c", set_up, dir.to_str().unwrap()];
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 256, 1);
    let job = "0198b3f0-0000-7000-8000-0000000000aa";
    let call = bed.ds("cp", 7, &Doc::new(&bed, 7).image("PATH", path.display()).xml());
    call.env("ONESDM_JOB_ID", job).under(&under).run().ok();
    let gone = Doc::new(&bed, 8).image("PATH", bed.images().join("gone").display()).xml();
    bed.ds("cp", 8, &gone).under(&under).run().fails(3);
    let mut heard = Vec::new();
    let mut buf = vec![0; 1 << 16];
    while let Ok(n) = socket.recv(&mut buf) {
        // The first thing sent is nothing, to see whether anybody listens.
        heard.extend((n > 0).then(|| fields(&buf[..n])));
    }
    let catalog = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/systemd/onesdm.catalog");
    let catalog = std::fs::read_to_string(catalog).unwrap();
    let entry = |id: &str| {
        catalog.split("-- ").find(|e| e.starts_with(id)).map(|e| e.lines().nth(1).unwrap().to_owned())
    };
    let told: Vec<_> = heard.iter().filter(|m| m.contains_key("MESSAGE_ID")).collect();
    let mut subjects = Vec::new();
    for m in &told {
        subjects.push(entry(&m["MESSAGE_ID"]).unwrap_or_else(|| panic!("the catalog lacks {m:?}")));
        assert_eq!((m["SYSLOG_IDENTIFIER"].as_str(), m["VERB"].as_str()), ("onesdm", "cp"), "{m:?}");
        assert!(m["MESSAGE"].starts_with("cp "), "{m:?}");
    }
    let wanted = ["began", "succeeded", "began", "failed"];
    assert!(
        subjects.len() == 4 && wanted.iter().zip(&subjects).all(|(w, s)| s.contains(w)),
        "{subjects:?}: {heard:#?}"
    );
    assert!(told[..2].iter().all(|m| m["JOB_ID"] == job), "{told:#?}");
    assert_eq!((told[3]["CLASS"].as_str(), told[3]["PRIORITY"].as_str()), ("not-found", "3"));
    assert!(heard.iter().all(|m| m.contains_key("JOB_ID")), "a line without its job: {heard:#?}");
    drop(socket);
    tool("rm", &["-r".as_ref(), dir.as_os_str()]);
}
