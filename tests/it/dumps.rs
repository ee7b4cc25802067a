//! Messages that are no messages: cut, bent, endless, contradicting themselves, or about places outside the
//! datastore. Every verb refuses all of them in one line and touches nothing.

use crate::bed::{Bed, VERBS, base64};
use crate::doc::Doc;
use crate::guest;
use crate::hostile::{at, nothing_left, peak, refused};
use crate::oracle::Oracle;
use std::fmt::Write as _;
use std::time::Duration;

const ROOT: &str = "DS_DRIVER_ACTION_DATA";

fn wrap(inner: &str) -> Vec<u8> {
    format!("<{ROOT}>{inner}</{ROOT}>").into_bytes()
}

#[test]
fn every_verb_refuses_every_bent_message() {
    let deep = "<A>".repeat(100_000);
    let closed = format!("{deep}{}", "</A>".repeat(100_000));
    let laughs = "<!DOCTYPE x [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>";
    let utf16: Vec<u8> =
        [0xff, 0xfe].into_iter().chain("<a/>".encode_utf16().flat_map(u16::to_le_bytes)).collect();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("blanks", b" \r\n\t ".to_vec()),
        ("text", b"PATH=/etc/passwd".to_vec()),
        ("an option", b"--help".to_vec()),
        ("another root", b"<VM><ID>1</ID></VM>".to_vec()),
        ("two roots", [wrap(""), wrap("")].concat()),
        ("text behind the root", [wrap(""), b"x".to_vec()].concat()),
        ("100,000 levels", format!("<{ROOT}>{deep}").into_bytes()),
        ("100,000 levels, closed", wrap(&closed)),
        ("100,000 levels in IMAGE", wrap(&format!("<IMAGE><TEMPLATE>{closed}</TEMPLATE></IMAGE>"))),
        ("entities that laugh", [laughs.as_bytes(), &wrap("<IMAGE><PATH>&b;</PATH></IMAGE>")].concat()),
        (
            "a file as an entity",
            [
                &b"<!DOCTYPE x [<!ENTITY f SYSTEM \"file:///etc/passwd\">]>"[..],
                &wrap("<IMAGE><PATH>&f;</PATH></IMAGE>"),
            ]
            .concat(),
        ),
        (
            "a file as a document type",
            [&b"<!DOCTYPE x SYSTEM \"file:///etc/passwd\">"[..], &wrap("")].concat(),
        ),
        ("an unknown entity", wrap("<IMAGE><PATH>&nbsp;</PATH></IMAGE>")),
        ("a NUL by reference", wrap("<IMAGE><PATH>/a&#0;b</PATH></IMAGE>")),
        ("a surrogate by reference", wrap("<IMAGE><PATH>/a&#xD800;b</PATH></IMAGE>")),
        ("a NUL", wrap("<IMAGE><PATH>/a\0b</PATH></IMAGE>")),
        (
            "no UTF-8",
            [
                b"<DS_DRIVER_ACTION_DATA><IMAGE><PATH>/\xc3\x28</PATH></IMAGE>",
                &b"</DS_DRIVER_ACTION_DATA>"[..],
            ]
            .concat(),
        ),
        (
            "overlong UTF-8",
            [
                b"<DS_DRIVER_ACTION_DATA><IMAGE><PATH>\xc0\xaf",
                &b"</PATH></IMAGE></DS_DRIVER_ACTION_DATA>"[..],
            ]
            .concat(),
        ),
        ("UTF-16", utf16),
        ("crossed elements", wrap("<IMAGE><TEMPLATE></IMAGE></TEMPLATE>")),
        ("an open comment", wrap("<!-- ")),
        ("an open CDATA", wrap("<IMAGE><PATH><![CDATA[/a</PATH></IMAGE>")),
        ("two paths", wrap("<IMAGE><PATH>/a</PATH><PATH>/b</PATH></IMAGE>")),
        ("two images", wrap("<IMAGE><PATH>/a</PATH></IMAGE><IMAGE><PATH>/b</PATH></IMAGE>")),
        ("an element as a value", wrap("<IMAGE><PATH><B>/a</B></PATH></IMAGE>")),
        ("no datastore", wrap("<IMAGE><ID>7</ID></IMAGE>")),
        ("a datastore without an id", wrap("<DATASTORE><BASE_PATH>/a</BASE_PATH></DATASTORE>")),
        ("an id that is none", wrap("<DATASTORE><ID>7; reboot</ID></DATASTORE>")),
        ("an id beyond numbers", wrap("<DATASTORE><ID>99999999999999999999999</ID></DATASTORE>")),
        ("33 MiB", wrap(&" ".repeat(33 << 20))),
        ("a name of 8 MiB", wrap(&format!("<{}/>", "N".repeat(8 << 20)))),
        ("a million attributes", wrap(&format!("<A{}/>", " a=\"1\"".repeat(1_000_000) + "<"))),
    ];
    let bed = Bed::new();
    bed.store(100);
    for verb in VERBS {
        for (what, xml) in &cases {
            // The large ones once are enough.
            if xml.len() > 1 << 20 && verb != "cp" {
                continue;
            }
            for plain in [false, true] {
                let stdin = if plain { xml.clone() } else { base64(xml) };
                let (done, kib) = peak(bed.verb("fs", verb).arg("7").stdin(stdin).start());
                let what = format!("{verb}, {what}, {}", if plain { "plain" } else { "base64" });
                refused(&bed, &done, &[2], &what);
                assert!(
                    done.took < Duration::from_secs(4) && kib < 128 << 10,
                    "{what}: {:?}, {kib} KiB",
                    done.took
                );
            }
        }
        assert!(!bed.store(100).join(".sdm").exists(), "{verb} made a domain for a message it refused");
    }
    for argument in ["!!!!", "PATH=/etc/passwd", "<a/>", "AAAA"] {
        refused(&bed, &bed.verb("fs", "cp").arg(argument).arg("7").run(), &[2], argument);
    }
    for id in ["seven", "7 8", "-", "0x7", "9999999999999999999999"] {
        let dump = String::from_utf8(base64(Doc::new(&bed, 7).xml())).unwrap();
        refused(&bed, &bed.verb("fs", "rm").arg(dump).arg(id).run(), &[2], id);
    }
}

/// A message that stops anywhere, in either form, is an error and never half a request.
#[test]
fn every_verb_refuses_a_message_cut_short() {
    let bed = Bed::new();
    let store = bed.store(100);
    let name = "0123456789abcdef0123456789abcdef";
    guest::make_raw(&store.join(name), 64, 1);
    let oracle = Oracle::new(&store);
    let before = oracle.look().unwrap();
    for verb in VERBS {
        let doc = Doc::new(&bed, 7).source(&bed, name).image("PATH", store.join(name).display());
        let xml = doc.image("TARGET_SNAPSHOT", 0).image("FORMAT", "raw").image("SIZE", 1).xml();
        let encoded = base64(&xml);
        let step = xml.len() / 9;
        for cut in (1..xml.len()).step_by(step).chain([xml.len() - 1, xml.len() - 2]) {
            for stdin in [xml.as_bytes()[..cut].to_vec(), encoded[..encoded.len() * cut / xml.len()].to_vec()]
            {
                let done = bed.verb("fs", verb).arg("7").stdin(stdin).run();
                done.failure(Some(2)).unwrap_or_else(|e| panic!("{verb} cut at {cut} of {}: {e}", xml.len()));
            }
        }
    }
    oracle.compare(&before).unwrap();
    assert!(!store.join(".sdm").exists());
}

/// Root and IMAGE may both name the snapshot; they must not disagree. -1 is none.
#[test]
fn the_snapshot_is_named_once() {
    for (root, inner, status) in [
        ("1", "1", Some(0)),
        ("1", "", Some(0)),
        ("", "1", Some(0)),
        ("1", "-1", Some(0)),
        ("-1", "1", Some(0)),
        ("1", "0", Some(2)),
        ("0", "1", Some(2)),
        ("-1", "-1", Some(2)),
        ("", "", Some(2)),
        ("", "1x", Some(2)),
        ("", "-2", Some(2)),
        ("", "../0", Some(2)),
        ("", "99999999999999999999", Some(2)),
    ] {
        for verb in ["snap_revert", "snap_delete", "snap_flatten"] {
            let bed = Bed::new();
            let store = bed.store(100);
            let name = "0123456789abcdef0123456789abcdef";
            guest::make_raw(&store.join(name), 64, 1);
            std::fs::create_dir(store.join(format!("{name}.snap"))).unwrap();
            for n in ["0", "1"] {
                guest::make_raw(&store.join(format!("{name}.snap/{n}")), 64, 2 + n.parse::<u8>().unwrap());
            }
            let oracle = Oracle::new(&store);
            let mut after = oracle.look().unwrap();
            let xml = Doc::new(&bed, 7)
                .source(&bed, name)
                .image("FORMAT", "raw")
                .image("TARGET_SNAPSHOT", inner)
                .xml();
            let xml = xml.replace(
                &format!("</{ROOT}>"),
                &format!("<TARGET_SNAPSHOT>{root}</TARGET_SNAPSHOT></{ROOT}>"),
            );
            let done = bed.ds(verb, 7, &xml).run();
            let what = format!("{verb} of {root:?} and {inner:?}");
            if status == Some(0) {
                done.answer().unwrap_or_else(|e| panic!("{what}: {e}"));
                match verb {
                    "snap_revert" => after.snap_revert(name, "1"),
                    "snap_delete" => after.snap_delete(name, "1"),
                    _ => after.snap_flatten(name, "1"),
                }
            } else {
                done.failure(status).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            oracle.compare(&after).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
    }
}

/// Cores of generation 5 say FSTYPE where later ones say FORMAT.
#[test]
fn both_names_of_the_format_are_read() {
    for (key, word, magic) in
        [("FORMAT", "qcow2", &b"QFI\xfb"[..]), ("FSTYPE", "qcow2", b"QFI\xfb"), ("FSTYPE", "raw", &[0; 4])]
    {
        let bed = Bed::new();
        bed.store(100);
        let dump = Doc::new(&bed, 7).image(key, word).image("SIZE", 1).xml();
        let old = bed.verb("fs", "mkfs").arg(String::from_utf8(base64(&dump)).unwrap()).arg("7").run().ok();
        assert_eq!(&std::fs::read(old.trim()).unwrap()[..4], magic, "{key}={word}");
    }
    let bed = Bed::new();
    bed.store(100);
    let dump = Doc::new(&bed, 7).image("FSTYPE", "save_as").image("SIZE", 1).xml();
    let named = bed.ds("mkfs", 7, &dump).run().ok();
    assert!(!std::path::Path::new(named.trim()).exists());
}

/// BASE_PATH and SOURCE that do not belong together, or to a datastore at all.
#[test]
fn places_outside_the_datastore() {
    let victim = "0123456789abcdef0123456789abcdef";
    for (what, base, source) in [
        ("another datastore", "STORES/100", "STORES/101/VICTIM"),
        ("upwards", "STORES/100", "STORES/100/../101/VICTIM"),
        ("upwards and back", "STORES/100", "STORES/100/../100/x"),
        ("a longer name", "STORES/10", "STORES/101/VICTIM"),
        ("a directory below", "STORES/101", "STORES/101/VICTIM.snap/0"),
        ("a companion", "STORES/101", "STORES/101/VICTIM.snap"),
        ("a sum", "STORES/101", "STORES/101/VICTIM.md5sum"),
        ("the datastore", "STORES/101", "STORES/101"),
        ("its dot", "STORES/101", "STORES/101/."),
        ("our area", "STORES/101", "STORES/101/.sdm"),
        ("a hidden file", "STORES/101", "STORES/101/.monitor"),
        ("no path", "STORES/101", "VICTIM"),
        ("a host", "STORES/101", "localhost:STORES/101/VICTIM"),
        ("a base upwards", "STORES/100/../101", "STORES/100/../101/VICTIM"),
        ("a base that is relative", "datastores/101", "datastores/101/VICTIM"),
        ("another case", "STORES/101", "STORES/101/../101/VICTIM"),
    ] {
        for verb in ["rm", "export", "snap_delete", "snap_revert", "snap_flatten"] {
            let bed = Bed::new();
            let stores = bed.store(100).parent().unwrap().display().to_string();
            let dir = bed.store(101);
            bed.store(10);
            std::fs::create_dir(dir.join(format!("{victim}.snap"))).unwrap();
            for name in [victim.to_owned(), format!("{victim}.snap/0"), format!("{victim}.snap/1")] {
                guest::make_raw(&dir.join(name), 64, 1);
            }
            std::fs::write(dir.join(format!("{victim}.md5sum")), "x").unwrap();
            std::fs::write(dir.join(".monitor"), "x").unwrap();
            let before = Oracle::new(&dir).look().unwrap();
            let put = |s: &str| s.replace("STORES", &stores).replace("VICTIM", victim);
            let doc = Doc::new(&bed, 7).store("BASE_PATH", put(base)).image("SOURCE", put(source));
            let doc = doc.image("TARGET_SNAPSHOT", 0).image("FORMAT", "raw").image("SIZE", 1);
            for call in [
                bed.ds(verb, 7, &doc.xml()),
                bed.ds(verb, 7, &doc.store_template("BRIDGE_LIST", "localhost").xml()),
            ] {
                let done = call.run();
                let what = format!("{verb}: {what}");
                done.failure(None).unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(
                    [Some(2), Some(5), Some(10)].contains(&done.code),
                    "{what}: {:?} {}",
                    done.code,
                    done.err()
                );
                Oracle::new(&dir).compare(&before).unwrap_or_else(|e| panic!("{what}: {e}"));
            }
        }
    }
}

#[test]
fn a_datastore_that_is_not_there() {
    for (what, base) in [
        ("nothing", "var/datastores/9"),
        ("a file", "images/file"),
        ("below a file", "images/file/9"),
        ("a circle", "images/circle"),
    ] {
        for verb in ["cp", "mkfs", "monitor", "rm"] {
            let bed = Bed::new();
            std::fs::write(bed.images().join("file"), "x").unwrap();
            std::os::unix::fs::symlink("circle", bed.images().join("circle")).unwrap();
            guest::make_raw(&bed.images().join("a"), 64, 1);
            let base = bed.root().join(base).display().to_string();
            let doc = at(&bed, bed.images().join("a")).image("FORMAT", "raw").image("SIZE", 1);
            let doc = doc.image("SOURCE", format!("{base}/x")).store("BASE_PATH", &base);
            let done = bed.ds(verb, 7, &doc.xml()).run();
            if done.code == Some(0) {
                assert!(what == "nothing", "{verb} in {what}"); // stock makes it, too
            } else {
                done.failure(None).unwrap_or_else(|e| panic!("{verb} in {what}: {e}"));
            }
        }
    }
}

/// The cost of a large message, as the issue has it: 100 ms and 64 MiB. The test build is not optimised and the
/// machine is busy, so the time has room here; the memory has not.
#[test]
fn a_message_of_ten_megabytes_is_cheap() {
    let bed = Bed::new();
    bed.store(100);
    let mut many = String::new();
    while many.len() < 10_000_000 {
        let n = many.len();
        write!(many, "<IMAGE><ID>{n}</ID><NAME><![CDATA[i&{n}]]></NAME><A b=\"c\">&amp;</A></IMAGE>")
            .unwrap();
    }
    let xml =
        Doc::new(&bed, 7).xml().replace("</DATASTORE>", &format!("<IMAGES>{many}</IMAGES></DATASTORE>"));
    for (form, stdin) in [("base64", base64(&xml)), ("plain", xml.into_bytes())] {
        let (done, kib) = peak(bed.verb("fs", "monitor").arg("100").stdin(stdin).start());
        done.ok();
        println!("10 MB {form}: {:?}, {kib} KiB at most", done.took);
        let limit = Duration::from_millis(if cfg!(debug_assertions) { 3000 } else { 300 });
        assert!(done.took < limit, "{form}: {:?}", done.took);
        assert!(kib < 64 << 10, "{form}: {kib} KiB held");
    }
    nothing_left(&bed, "monitor");
}
