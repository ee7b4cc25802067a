//! `oned.progress`: how far a verb is stands in the template of its image while it runs, and not after it.

use crate::bed::Bed;
use crate::doc::Doc;
use crate::guest;
use crate::oned_server::{Manner, OnedServer};

/// An image of 192 KiB that takes some three seconds.
fn slow(bed: &Bed, oned: &OnedServer, settings: &str) -> Result<(), String> {
    bed.store(100);
    let path = bed.images().join("a.raw");
    guest::make_raw(&path, 192, 1);
    let toml = bed.root().join("onesdm.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(toml, format!("{text}[data]\nlimit = \"64KiB\"\n{settings}")).unwrap();
    let dump = Doc::new(bed, 7).image("ID", 7).image("PATH", path.display()).xml();
    let [url, auth] = oned.env(bed.root());
    bed.ds("cp", 7, &dump).env(url.0, url.1).env(auth.0, auth.1).run().answer().map(drop)
}

#[test]
fn a_long_verb_is_seen_in_the_template_of_its_image() {
    let (bed, oned) = (Bed::new(), OnedServer::start());
    oned.put("one.image.update", 7, "7");
    slow(&bed, &oned, "[oned]\nprogress = \"1s\"\n").unwrap();
    let updates = oned.updates();
    let [said @ .., last] = updates.as_slice() else { panic!("nothing was told") };
    assert!(!said.is_empty(), "{updates:?}");
    for (method, id, text) in &updates {
        assert_eq!((method.as_str(), *id), ("one.image.update", 7), "{text}");
    }
    assert!(said.iter().all(|u| u.2.starts_with("ONESDM_PROGRESS=\"cp ") && u.2.contains("%, ")), "{said:?}");
    assert_eq!(last.2, "ONESDM_PROGRESS=\"\"");
}

#[test]
fn nobody_is_told_unless_it_is_asked_for_and_who_does_not_listen_is_left_alone() {
    let (bed, oned) = (Bed::new(), OnedServer::start());
    slow(&bed, &oned, "").unwrap();
    assert_eq!(oned.calls(), []);
    let (bed, oned) = (Bed::new(), OnedServer::start());
    oned.behave(Manner::Silent);
    slow(&bed, &oned, "[oned]\nprogress = \"1s\"\n").unwrap();
    assert_eq!(oned.calls().len(), 1);
}
