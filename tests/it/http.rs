//! Servers that lie, stall, cut, redirect, or send more than anybody asked for. After each failure the
//! datastore is as empty as before.

use crate::bed::Bed;
use crate::doc::Doc;
use crate::fsbed::{Fs, Kind};
use crate::guest;
use crate::hostile::{at, image, nothing_left, peak, refused, settings};
use crate::server::{Server, Tls, packed};
use flate2::{Compress, Compression, FlushCompress};
use rustix::process::Signal;
use std::io;
use std::time::{Duration, Instant};

/// Impatient settings, so that tests end; retries come as in life.
const SHORT: &str = "[http]\nconnect_timeout = \"2s\"\nstall_timeout = \"1s\"\nretries = 1";

fn ready() -> Bed {
    let bed = Bed::new();
    bed.store(100);
    settings(&bed, SHORT);
    bed
}

/// Bytes no two of which are easily taken for each other.
fn content(kib: u64) -> Vec<u8> {
    let tmp = crate::bed::scratch();
    guest::make_raw(&tmp.path().join("a"), kib, 7);
    let mut bytes = std::fs::read(tmp.path().join("a")).unwrap();
    for (n, block) in bytes.chunks_mut(512).enumerate() {
        block[..8].copy_from_slice(&(n as u64 + 1).to_be_bytes());
    }
    bytes
}

fn from(bed: &Bed, server: &Server) -> Doc {
    at(bed, server.url())
}

fn hex(digest: impl AsRef<[u8]>) -> String {
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// All digests of `bytes`, by the name of their attribute.
fn digests(bytes: &[u8]) -> [(&'static str, String); 4] {
    use md5::Digest as _;
    [
        ("MD5", hex(md5::Md5::digest(bytes))),
        ("SHA1", hex(sha1::Sha1::digest(bytes))),
        ("SHA256", hex(sha2::Sha256::digest(bytes))),
        ("SHA512", hex(sha2::Sha512::digest(bytes))),
    ]
}

#[test]
fn every_digest_counts() {
    let bytes = content(256);
    let server = Server::of(bytes.clone());
    for (name, good) in digests(&bytes) {
        let bed = ready();
        bed.ds("cp", 7, &from(&bed, &server).image_template(name, &good).xml()).run().ok();
        std::fs::remove_file(image(&bed)).unwrap();
        let bed = ready();
        bed.ds(
            "cp",
            7,
            &from(&bed, &server).image_template(name, format!(" {} ", good.to_uppercase())).xml(),
        )
        .run()
        .ok();

        let bed = ready();
        let mut bad = good.clone();
        bad.replace_range(..1, if good.starts_with('0') { "1" } else { "0" });
        let done = bed.ds("cp", 7, &from(&bed, &server).image_template(name, &bad).xml()).run();
        let line = refused(&bed, &done, &[8], name);
        assert!(line.to_uppercase().contains(name) && line.contains(&bad) && line.contains(&good), "{line}");
        for none in [&good[1..], "", "xyz", &good.replace(|c: char| c.is_ascii_digit(), "g")] {
            if none.is_empty() || none == good {
                continue;
            }
            let done = bed.ds("cp", 7, &from(&bed, &server).image_template(name, none).xml()).run();
            refused(&bed, &done, &[2], &format!("{name} {none}"));
        }
    }
}

/// The digest is of what came over the wire, not of what was in it.
#[test]
fn digests_are_of_the_transferred_bytes() {
    let bed = ready();
    let path = bed.images().join("a");
    std::fs::write(&path, content(64)).unwrap();
    let gz = packed("gzip", &["-nc"], &path);
    let server = Server::of(gz.clone());
    let good = digests(&gz)[2].1.clone();
    bed.ds("cp", 7, &from(&bed, &server).image_template("SHA256", good).xml()).run().ok();
    assert_eq!(std::fs::read(image(&bed)).unwrap(), std::fs::read(&path).unwrap());
    let bed = ready();
    let inner = digests(&std::fs::read(crate::bed::scratch().path()).unwrap_or_default())[2].1.clone();
    refused(
        &bed,
        &bed.ds("cp", 7, &from(&bed, &server).image_template("SHA256", inner).xml()).run(),
        &[8],
        "inner",
    );
}

#[test]
fn servers_that_lie_about_length() {
    let bytes = content(256);
    let (long, short) = (bytes.clone(), bytes.clone());
    let long = Server::new(move |_, out| {
        out.head("200 OK", &[&format!("Content-Length: {}", long.len() + 1000)])?;
        out.body(&long)
    });
    let bed = ready();
    let done = bed.ds("cp", 7, &from(&bed, &long).xml()).run();
    let line = refused(&bed, &done, &[6], "promises more than it sends");
    assert!(line.contains("cut"), "{line}");

    // By HTTP's rules the first so many bytes are the content: only what knows better can tell.
    let short = Server::new(move |_, out| {
        out.head("200 OK", &[&format!("Content-Length: {}", short.len() - 100_000)])?;
        out.body(&short)
    });
    let md5 = digests(&bytes)[0].1.clone();
    let done = bed.ds("cp", 7, &from(&bed, &short).image_template("MD5", md5).xml()).run();
    refused(&bed, &done, &[8], "promises less, and a digest tells");
    let (raw, qcow2) = (bed.images().join("raw"), bed.images().join("qcow2"));
    std::fs::write(&raw, &bytes).unwrap();
    guest::make_qcow2(&raw, &qcow2);
    for (name, bytes) in
        [("a qcow2", std::fs::read(&qcow2).unwrap()), ("a gzip", packed("gzip", &["-c"], &raw))]
    {
        let promise = bytes.len() / 2;
        let server = Server::new(move |_, out| {
            out.head("200 OK", &[&format!("Content-Length: {promise}")])?;
            out.body(&bytes)
        });
        let done = bed.ds("cp", 7, &from(&bed, &server).xml()).run();
        refused(&bed, &done, &[8], &format!("promises less than {name} needs"));
    }

    for (what, line) in [
        ("negative", "-1"),
        ("no number", "many"),
        ("two", "5\r\nContent-Length: 6"),
        ("2^64", "18446744073709551616"),
    ] {
        let server = Server::new(move |_, out| {
            out.head("200 OK", &[&format!("Content-Length: {line}")])?;
            out.body(&[7; 10_000])
        });
        let done = bed.ds("cp", 7, &from(&bed, &server).xml()).run();
        if done.code == Some(0) {
            // Ignoring it is as good, if then everything is taken.
            assert_eq!(std::fs::read(image(&bed)).unwrap().len(), 10_000, "{what}");
            std::fs::remove_file(image(&bed)).unwrap();
            std::fs::remove_dir_all(bed.store(100).join(".sdm")).unwrap();
        } else {
            refused(&bed, &done, &[6, 8, 10], what);
        }
    }
}

/// More than may be stored is refused before it is transferred.
#[test]
fn an_announced_exabyte_is_not_fetched() {
    let bed = ready();
    settings(&bed, "[image]\nmax_size = \"1MiB\"");
    let server = Server::new(|_, out| {
        out.head("200 OK", &["Content-Length: 1152921504606846976"])?;
        while !out.is_over() {
            out.body(&vec![7; 64 << 10])?;
        }
        Ok(())
    });
    let (done, kib) = peak(bed.ds("cp", 7, &from(&bed, &server).xml()).start());
    let line = refused(&bed, &done, &[10], "an exabyte");
    assert!(line.contains("1.0 MiB"), "{line}");
    assert!(server.sent() < 32 << 20 && kib < 64 << 10, "{} bytes sent, {kib} KiB held", server.sent());
}

#[test]
fn servers_that_fall_silent() {
    type Part = fn(&mut crate::server::Out) -> io::Result<()>;
    let parts: [(&str, Part); 4] = [
        ("before the first byte", |_| Ok(())),
        ("in the head", |out| out.raw(b"HTTP/1.1 200 OK\r\nContent-Le")),
        ("before the body", |out| out.head("200 OK", &["Content-Length: 100000"])),
        ("in the body", |out| {
            out.head("200 OK", &["Content-Length: 100000", "ETag: \"1\""])?;
            out.body(&vec![7; 70_000])
        }),
    ];
    for (what, part) in parts {
        for verb in ["cp", "stat"] {
            if verb == "stat" && what == "in the body" {
                continue; // it has all it needs
            }
            let bed = ready();
            let server = Server::new(move |_, out| {
                part(out)?;
                out.silence();
                Ok(())
            });
            let done = bed.ds(verb, 7, &from(&bed, &server).xml()).run();
            let line = refused(&bed, &done, &[7], &format!("{verb}: silent {what}"));
            assert!(line.contains("1 s"), "{line}");
            assert!(done.took < Duration::from_secs(20), "{what}: {:?}", done.took);
        }
    }
}

/// Slow is no error, but it can be ended: by the verb's own deadline, by a signal, by `rm`.
#[test]
fn drips_are_waited_for_and_can_be_ended() {
    let bytes = content(4);
    let whole = bytes.clone();
    let drip = Server::new(move |_, out| {
        out.head("200 OK", &[&format!("Content-Length: {}", whole.len())])?;
        for part in whole.chunks(64) {
            out.body(part)?;
            std::thread::sleep(Duration::from_millis(4));
        }
        Ok(())
    });
    let bed = ready();
    bed.ds("cp", 7, &from(&bed, &drip).xml()).run().ok();
    assert_eq!(std::fs::read(image(&bed)).unwrap(), bytes);

    let endless = || {
        Server::new(|_, out| {
            out.head("200 OK", &["Content-Length: 1000000"])?;
            while !out.is_over() {
                out.body(b"x")?;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        })
    };
    let bed = ready();
    settings(&bed, "[verb]\ndeadline = \"1s\"");
    let server = endless();
    let done = bed.ds("cp", 7, &from(&bed, &server).xml()).run();
    println!("{:?}: {}", done.code, done.err());
    refused(&bed, &done, &[7], "the deadline of the verb");
    assert!(done.took < Duration::from_secs(20), "{:?}", done.took);

    let bed = ready();
    let server = endless();
    let running = bed.ds("cp", 7, &from(&bed, &server).xml()).start();
    std::thread::sleep(Duration::from_millis(500));
    running.signal(Signal::TERM);
    let done = running.wait();
    refused(&bed, &done, &[130], "SIGTERM");
    assert!(done.took < Duration::from_secs(20), "{:?}", done.took);
}

#[test]
fn redirects_lead_to_web_servers_only() {
    let target = Server::of(content(64));
    for (what, to, status) in [
        ("a file", "file:///etc/passwd".to_owned(), Some(10)),
        ("a file in capitals", "FILE:///etc/passwd".to_owned(), Some(10)),
        ("ftp", "ftp://127.0.0.1/x".to_owned(), Some(10)),
        ("nowhere", String::new(), Some(10)),
        ("itself", "/image".to_owned(), Some(10)),
        ("no host", "http:///x".to_owned(), Some(10)),
        ("a socket", "unix:/var/run/docker.sock".to_owned(), Some(10)),
        ("a broken line", "http://127.0.0.1:1/\u{7f}".to_owned(), None),
        ("another server", target.url(), Some(0)),
    ] {
        for (code, verb) in
            [("301 Moved", "cp"), ("302 Found", "stat"), ("307 Temporary", "cp"), ("308 Permanent", "stat")]
        {
            {
                let bed = ready();
                let location = format!("Location: {to}");
                let server = Server::new(move |_, out| out.status(code, &[&location]));
                let doc = at(&bed, server.secret_url());
                let done = bed.ds(verb, 7, &doc.xml()).run();
                let what = format!("{verb}: {code} to {what}");
                match status {
                    Some(0) => drop(done.answer().unwrap_or_else(|e| panic!("{what}: {e}"))),
                    Some(n) => drop(refused(&bed, &done, &[n], &what)),
                    None => drop(refused(&bed, &done, &[2, 6, 10], &what)),
                }
            }
        }
    }
    // The password was for the first server.
    assert!(target.seen().iter().all(|a| a.header("authorization").is_none()), "{:?}", target.seen());
}

#[test]
fn credentials_in_a_url_reach_the_server_and_nobody_else() {
    let server = Server::of(content(64));
    let bed = ready();
    bed.ds("cp", 7, &at(&bed, server.secret_url()).xml()).run().ok();
    let seen = server.seen();
    let sent = String::from_utf8(crate::bed::base64("hidden-user:hidden-pass")).unwrap();
    assert_eq!(seen[0].header("authorization"), Some(format!("Basic {sent}").as_str()));
    assert!(seen[0].head.starts_with("GET /image?sig=hidden-query HTTP/1.1"), "{:?}", seen[0]);
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_is_not() {
    let bytes = content(64);
    for (first, tries, status) in [
        ("500 Oops", 1, None),
        ("503 Busy", 1, None),
        ("500 Oops", 9, Some(6)),
        ("404 Not Found", 9, Some(3)),
        ("410 Gone", 9, Some(3)),
        ("403 Forbidden", 9, Some(6)),
        ("204 No Content", 9, Some(6)),
        ("206 Partial Content", 9, Some(6)),
        ("304 Not Modified", 9, Some(6)),
        ("100 Continue", 9, Some(6)),
    ] {
        let bed = ready();
        let whole = bytes.clone();
        let server = Server::new(
            move |asked, out| {
                if asked.nth < tries { out.status(first, &[]) } else { out.whole(&whole) }
            },
        );
        let done = bed.ds("cp", 7, &from(&bed, &server).xml()).run();
        match status {
            None => {
                done.answer().unwrap_or_else(|e| panic!("{first}: {e}"));
                assert_eq!(std::fs::read(image(&bed)).unwrap(), bytes, "{first}");
                assert_eq!(server.seen().len(), tries + 1);
            }
            Some(n) => {
                refused(&bed, &done, &[n, 7], first);
                let asked = server.seen().len();
                assert_eq!(asked, if first.starts_with('5') { 2 } else { 1 }, "{first}");
            }
        }
    }
    let bed = ready();
    let server = Server::new(|_, out| out.raw(b"SSH-2.0-OpenSSH_9.2\r\n"));
    refused(&bed, &bed.ds("cp", 7, &from(&bed, &server).xml()).run(), &[6], "no HTTP at all");
    let server = Server::new(|_, out| {
        out.raw(b"HTTP/1.1 200 OK\r\n")?;
        while !out.is_over() {
            out.raw(b"X-Padding: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n")?;
        }
        Ok(())
    });
    let (done, kib) = peak(bed.ds("cp", 7, &from(&bed, &server).xml()).start());
    refused(&bed, &done, &[6], "a head without end");
    assert!(kib < 64 << 10, "{kib} KiB held");
}

/// Deflate data that unpacks to a MiB of `byte` and can be repeated.
fn segment(byte: u8) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 << 20);
    let mut deflate = Compress::new(Compression::best(), false);
    deflate.compress_vec(&vec![byte; 1 << 20], &mut out, FlushCompress::Full).unwrap();
    out
}

/// A server whose gzip goes on to a terabyte.
fn terabyte(byte: u8) -> Server {
    let segment = segment(byte).repeat(64);
    Server::new(move |_, out| {
        out.head("200 OK", &[])?;
        out.body(&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3])?;
        for _ in 0..(1 << 20) / 64 {
            out.body(&segment)?;
        }
        Ok(())
    })
}

#[test]
fn a_bomb_ends_at_the_largest_size() {
    for byte in [0, b'A'] {
        let bed = ready();
        settings(&bed, "[image]\nmax_size = \"48MiB\"");
        let server = terabyte(byte);
        let (done, kib) = peak(bed.ds("cp", 7, &from(&bed, &server).xml()).start());
        let line = refused(&bed, &done, &[10], "a bomb");
        assert!(line.contains("48.0 MiB"), "{line}");
        println!("bomb of {byte}: {:?}, {kib} KiB, {} KiB sent", done.took, server.sent() >> 10);
        assert!(kib < 96 << 10, "{kib} KiB held");
        assert!(done.took < Duration::from_secs(30), "{:?}", done.took);
    }
}

#[test]
fn a_bomb_ends_at_the_end_of_the_disk() {
    let fs = Fs::new(Kind::Tmpfs, 24);
    {
        let bed = Bed::on(&fs.stores());
        bed.store(100);
        let server = terabyte(b'A');
        let (done, kib) = peak(bed.ds("cp", 7, &from(&bed, &server).xml()).start());
        let line = done.failure(None).unwrap();
        assert!(line.to_lowercase().contains("no space"), "{line}");
        nothing_left(&bed, "a full disk");
        assert!(kib < 96 << 10 && done.took < Duration::from_secs(30), "{kib} KiB held, {:?}", done.took);
    }
}

/// Bombs in the other formats, from a file: a few kilobytes each.
#[test]
fn bombs_of_every_kind() {
    let bed = ready();
    let zeros = bed.images().join("zeros");
    std::fs::File::create(&zeros).unwrap().set_len(512 << 20).unwrap();
    let once = packed("zstd", &["-qc"], &zeros);
    settings(&bed, "[image]\nmax_size = \"16MiB\"");
    for (kind, bytes) in [
        ("zstd", once),
        (
            "bzip2",
            packed("bzip2", &["-c"], &{
                let small = bed.images().join("small");
                std::fs::File::create(&small).unwrap().set_len(40 << 20).unwrap();
                small
            }),
        ),
        ("xz", packed("xz", &["-0c"], &bed.images().join("small"))),
    ] {
        let path = bed.images().join(kind);
        std::fs::write(&path, bytes).unwrap();
        for verb in ["cp", "stat"] {
            let (done, kib) = peak(bed.ds(verb, 7, &at(&bed, &path).xml()).start());
            if verb == "stat" && done.code == Some(0) {
                assert!(["40\n", "512\n"].contains(&done.out().as_str()), "{kind}"); // read, not counted out
            } else {
                refused(&bed, &done, &[10], kind);
            }
            let quick = done.took < Duration::from_secs(30);
            assert!(kib < 160 << 10 && quick, "{verb} of {kind}: {kib} KiB, {:?}", done.took);
        }
    }
}

#[test]
fn an_xz_that_asks_for_all_memory_is_refused() {
    let bed = ready();
    let path = bed.images().join("a");
    std::fs::write(&path, content(64)).unwrap();
    let mut xz = packed("xz", &["-c"], &path);
    // The block header at 12: size, flags, filter 0x21, one byte of properties: the dictionary. Then its CRC.
    assert_eq!(xz[14..16], [0x21, 1]);
    xz[16] = 40; // 4 GiB
    let len = (usize::from(xz[12]) + 1) * 4;
    let mut crc = flate2::Crc::new();
    crc.update(&xz[12..12 + len - 4]);
    xz[12 + len - 4..12 + len].copy_from_slice(&crc.sum().to_le_bytes());
    std::fs::write(&path, xz).unwrap();
    let (done, kib) = peak(bed.ds("cp", 7, &at(&bed, &path).xml()).start());
    refused(&bed, &done, &[8, 10], "a dictionary of 4 GiB");
    assert!(kib < 64 << 10, "{kib} KiB held");
}

#[test]
fn certificates_are_verified() {
    let bed = ready();
    let bytes = content(64);
    let server = Tls::of(&bed, &bytes);
    for verb in ["cp", "stat"] {
        let done = bed.ds(verb, 7, &at(&bed, server.url()).xml()).run();
        let line = refused(&bed, &done, &[6, 10], "signed by itself");
        assert!(line.to_lowercase().contains("certificate"), "{line}");
    }
    settings(&bed, "ca_file = \"/nowhere\"");
    refused(&bed, &bed.ds("cp", 7, &at(&bed, server.url()).xml()).run(), &[2, 3], "no such authorities");
    let text = std::fs::read_to_string(bed.root().join("onesdm.toml")).unwrap();
    let text = text.replace("/nowhere", server.certificate.to_str().unwrap());
    std::fs::write(bed.root().join("onesdm.toml"), text).unwrap();
    bed.ds("cp", 7, &at(&bed, server.url()).xml()).run().ok();
    assert_eq!(std::fs::read(image(&bed)).unwrap(), bytes);
    // The name must fit as well.
    let elsewhere = server.url().replace("127.0.0.1", "127.0.0.2");
    let other = bed.ds("cp", 8, &Doc::new(&bed, 8).image("PATH", elsewhere).xml()).run();
    assert!([Some(6), Some(10)].contains(&other.code), "{:?} {}", other.code, other.err());
}

#[test]
fn the_bandwidth_is_limited() {
    let bed = ready();
    let server = Server::of(content(2048));
    for (limit, least) in [("2M", 950), ("4096k", 450), ("1.5M", 1250)] {
        let _ = std::fs::remove_file(image(&bed));
        let began = Instant::now();
        bed.ds("cp", 7, &from(&bed, &server).store_template("LIMIT_TRANSFER_BW", limit).xml()).run().ok();
        let took = began.elapsed();
        println!("2 MiB at {limit}: {took:?}");
        assert!(
            took > Duration::from_millis(least) && took < Duration::from_millis(least * 10),
            "{limit}: {took:?}"
        );
    }
    for bad in ["fast", "-1", "0", "1M; reboot"] {
        let bed = ready();
        let done = bed.ds("cp", 7, &from(&bed, &server).store_template("LIMIT_TRANSFER_BW", bad).xml()).run();
        refused(&bed, &done, &[2], bad);
    }
}

/// `stat` of what lies on a server transfers no more than it needs: the server sends slowly, so what it got
/// rid of is what was read.
#[test]
fn stat_downloads_little() {
    let bed = ready();
    let raw = bed.images().join("raw");
    std::fs::write(&raw, content(2048)).unwrap();
    std::fs::File::options().write(true).open(&raw).unwrap().set_len(48 << 20).unwrap();
    let qcow2 = bed.images().join("qcow2");
    guest::make_qcow2(&raw, &qcow2);
    let noise = bed.images().join("noise");
    std::fs::write(&noise, packed("openssl", &["rand", "-hex"], "6000000".as_ref())).unwrap();
    for (what, bytes, mib) in [
        ("raw", std::fs::read(&raw).unwrap(), Some(48)),
        ("qcow2", std::fs::read(&qcow2).unwrap(), Some(48)),
        ("qcow2 in gzip", packed("gzip", &["-1c"], &qcow2), Some(48)),
        ("qcow2 in xz", packed("xz", &["-0c"], &qcow2), Some(48)),
        ("raw in xz", packed("xz", &["-0c"], &noise), Some(12)),
        ("raw in zstd", packed("zstd", &["-qc"], &noise), Some(12)),
        ("raw in gzip", packed("gzip", &["-1c"], &noise), None),
        ("raw in bzip2", packed("bzip2", &["-1c"], &noise), None),
    ] {
        let all = bytes.len() as u64;
        let server = Server::new(move |asked, out| {
            let from = asked.range().unwrap_or(0);
            let until = asked.header("range").and_then(|r| r.rsplit_once('-')?.1.parse::<usize>().ok());
            let until = until.map_or(bytes.len(), |n| n + 1);
            if asked.range().is_some() {
                let span = format!("Content-Range: bytes {from}-{}/{}", until - 1, bytes.len());
                out.head("206 Partial Content", &[&span, &format!("Content-Length: {}", until - from)])?;
            } else {
                out.head("200 OK", &[&format!("Content-Length: {}", bytes.len())])?;
            }
            for part in bytes[from..until].chunks(16 << 10) {
                out.body(part)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let done = bed.ds("stat", 7, &from(&bed, &server).xml()).run();
        match mib {
            Some(mib) => assert_eq!(done.ok(), format!("{mib}\n"), "{what}"),
            None => assert!(refused(&bed, &done, &[5], what).contains("does not tell its size")),
        }
        println!(
            "stat of {what}: {} of {} KiB in {} requests",
            server.sent() >> 10,
            all >> 10,
            server.seen().len()
        );
        assert!(server.sent() < 1 << 20 || server.sent() < all / 4, "{what}: {} of {all}", server.sent());
        assert!(server.seen().len() <= 4, "{what}");
    }
}

#[test]
fn a_server_that_is_not_there() {
    let bed = Bed::new();
    bed.store(100);
    settings(&bed, "[http]\nretries = 0");
    for url in ["http://127.0.0.1:1/x", "http://name.invalid/x", "https://127.0.0.1:1/x"] {
        for verb in ["cp", "stat"] {
            let done = bed.ds(verb, 7, &at(&bed, url).xml()).run();
            refused(&bed, &done, &[6], url);
        }
    }
}
