//! The defects of section 8.7 of the contract: programs started, sources opened, images read through for one
//! number, messages that did not fit. Counts of every verb are in `noshell` and `cost`.

use crate::bed::base64;
use crate::defects::{NAME, copies, ready, source, traced};
use crate::doc::Doc;
use crate::hostile::{at, image};
use crate::server::{Server, packed};

/// A source is opened once and read once, a server asked once; and no program is started to look at it.
#[test]
fn p2_the_source_is_opened_once() {
    let bed = ready();
    let path = source(&bed, 256);
    let gz = bed.images().join("packed");
    std::fs::write(&gz, packed("gzip", &["-c"], &path)).unwrap();
    for from in [&path, &gz] {
        for verb in ["stat", "cp"] {
            let (done, trace) =
                traced(&bed, "execve,open,openat,openat2", bed.ds(verb, 7, &at(&bed, from).xml()));
            done.ok();
            let pinned = trace
                .lines()
                .filter(|l| l.contains(from.to_str().unwrap()) && l.contains('"') && !l.contains("O_PATH"));
            let opened = pinned
                .filter(|l| l.split('"').nth(1) == from.to_str() || l.contains("/proc/self/fd/"))
                .count();
            assert!(opened <= 1, "{verb} opened it {opened} times:\n{trace}");
            assert_eq!(trace.matches("execve(").count(), 1, "{verb} started something:\n{trace}");
        }
        std::fs::remove_file(image(&bed)).unwrap();
    }
    let server = Server::of(std::fs::read(&gz).unwrap());
    bed.ds("cp", 7, &at(&bed, server.url()).xml()).run().ok();
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn p3_monitor_starts_nothing() {
    let bed = ready();
    let (done, trace) = traced(
        &bed,
        "execve,statfs,fstatfs,clone,clone3,vfork,fork",
        bed.ds("monitor", 100, &Doc::new(&bed, 100).xml()),
    );
    done.ok();
    assert_eq!(trace.matches("execve(").count(), 1, "{trace}");
    assert!(trace.matches("statfs(").count() <= 2, "{trace}");
}

/// A number that the format keeps is read, not counted out: most of the file is left alone.
#[test]
fn p8_a_size_does_not_cost_a_decompression() {
    let bed = ready();
    let path = bed.images().join("noise");
    std::fs::write(&path, packed("openssl", &["rand", "-hex"], "3000000".as_ref())).unwrap();
    let mib = path.metadata().unwrap().len().div_ceil(1 << 20);
    for (program, args) in [("xz", &["-0c"][..]), ("zstd", &["-qc"])] {
        let from = bed.images().join(program);
        std::fs::write(&from, packed(program, args, &path)).unwrap();
        let (done, trace) =
            traced(&bed, "read,pread64,readv,preadv,mmap", bed.ds("stat", 7, &at(&bed, &from).xml()));
        assert_eq!(done.ok(), format!("{mib}\n"));
        let reads = trace.lines().filter(|l| l.contains(from.to_str().unwrap()));
        let read: u64 = reads.filter_map(|l| l.rsplit_once(" = ")?.1.parse::<u64>().ok()).sum();
        let all = from.metadata().unwrap().len();
        println!("stat of {program}: {read} of {all} bytes read");
        assert!(read > 0 && read < all / 4, "{program}: {read} of {all} bytes were read");
    }
    // A server is not asked for the whole of anything: `http::stat_downloads_little`.
}

/// `xpath.rb` got the message as an argument; 7,000 images made it too long.
#[test]
fn p9_nine_thousand_images_in_the_dump() {
    let bed = ready();
    let image = copies(&bed, NAME);
    let many: String = (0..9000).map(|n| format!("<ID>{n}</ID>")).collect();
    let xml = Doc::new(&bed, 7)
        .source(&bed, NAME)
        .xml()
        .replace("</DATASTORE>", &format!("<IMAGES>{many}</IMAGES></DATASTORE>"));
    assert!(xml.len() > 96_000);
    bed.ds("rm", 7, &xml).run().ok();
    assert!(!image.exists());
    // The kernel's limit for one argument, 128 KiB, is out of our hands; below it the old form works, too.
    let fewer: String = (0..6000).map(|n| format!("<ID>{n}</ID>")).collect();
    let xml = Doc::new(&bed, 7)
        .source(&bed, NAME)
        .xml()
        .replace("</DATASTORE>", &format!("<IMAGES>{fewer}</IMAGES></DATASTORE>"));
    let argument = String::from_utf8(base64(&xml)).unwrap();
    assert!(argument.len() > 96_000 && argument.len() < 128 << 10, "{}", argument.len());
    bed.verb("fs", "rm").arg(argument).arg("7").run().ok();
}
