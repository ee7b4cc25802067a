//! The defects of section 8.2 of the contract: what users write is never run, read outside its place, or written
//! where others may write. S9 is in `secrets`; S3 is of a driver that is still to come.

use crate::bed::{self, base64, names};
use crate::defects::{both, ready, snap, source, traced};
use crate::doc::Doc;
use crate::guest;
use crate::hostile::{at, image, refused, settings};
use crate::server::{Server, Tls, packed};
use md5::Digest as _;
use std::os::unix::fs::symlink;
use std::path::Path;

/// What a shell would run, in every attribute that stock pastes into a script.
#[test]
fn s1_a_hash_is_not_a_command() {
    let commands = ["x; touch OWNED", "$(touch OWNED)", "x' ; touch OWNED ; '", "x\ntouch OWNED\n"];
    for command in commands {
        let bed = ready();
        let path = source(&bed, 64);
        let owned = bed.root().join("images/owned");
        let evil = command.replace("OWNED", owned.to_str().unwrap());
        let mut docs = vec![];
        for key in ["MD5", "SHA1", "SHA256", "SHA512"] {
            docs.push((key, "cp", at(&bed, &path).image_template(key, &evil)));
        }
        for key in [
            "LIMIT_TRANSFER_BW",
            "STAGING_DIR",
            "DRIVER",
            "CONVERT",
            "NO_DECOMPRESS",
            "RESTRICTED_DIRS",
            "SAFE_DIRS",
            "SPARSE",
        ] {
            docs.push((key, "cp", at(&bed, &path).store_template(key, &evil)));
            docs.push((key, "stat", at(&bed, &path).store_template(key, &evil)));
        }
        for key in ["FORMAT", "FS", "SIZE", "ID", "TYPE", "REGTIME"] {
            docs.push((
                key,
                "mkfs",
                Doc::new(&bed, 7).image("SIZE", 4).image("FORMAT", "raw").image(key, &evil),
            ));
        }
        for key in ["SOURCE", "TARGET_SNAPSHOT"] {
            for verb in ["rm", "snap_delete", "snap_revert", "snap_flatten", "export"] {
                docs.push((key, verb, snap(&bed, 0).image(key, &evil)));
            }
        }
        for key in ["BRIDGE_LIST", "NFS_AUTO_HOST"] {
            docs.push((
                key,
                "cp",
                at(&bed, &path)
                    .store_template("NFS_AUTO_ENABLE", "yes")
                    .store_template("NFS_AUTO_PATH", "/x")
                    .store_template(key, &evil),
            ));
        }
        for (key, verb, doc) in docs {
            for call in both(&bed, verb, 7, &doc) {
                let done = call.run();
                assert!(!owned.exists(), "{key} of {verb} was run: {command:?}");
                if done.code != Some(0) {
                    done.failure(None).unwrap_or_else(|e| panic!("{verb} with {key} {command:?}: {e}"));
                }
            }
        }
    }
}

#[test]
fn s2_a_path_is_not_a_command() {
    for name in [
        "it's; touch owned; '",
        "\\x27; touch owned; \\x27",
        "$(touch owned)",
        "a\\\\'b",
        "\"; touch owned; \"",
    ] {
        let bed = ready();
        let path = bed.images().join(name);
        guest::make_raw(&path, 64, 1);
        for driver in ["fs", "sdm"] {
            let dump = at(&bed, &path).store("DS_MAD", driver).xml();
            bed.verb(driver, "stat").arg("7").stdin(base64(&dump)).run().ok();
            bed.verb(driver, "cp").arg("7").stdin(base64(&dump)).run().ok();
            assert!(std::fs::read(image(&bed)).unwrap() == std::fs::read(&path).unwrap());
        }
        let sources = [&bed.root().join("var"), &bed.images()];
        assert!(!sources.iter().any(|d| d.join("owned").exists()), "{name} was run");
    }
}

#[test]
fn s4_a_safe_directory_is_no_prefix() {
    let bed = ready();
    let (safe, near) = (bed.root().join("tmpdir"), bed.root().join("tmpdirfoo"));
    for dir in [&safe, &near] {
        std::fs::create_dir(dir).unwrap();
        guest::make_raw(&dir.join("a"), 64, 1);
    }
    let ask = |path: &Path, safe: &Path| {
        let doc = at(&bed, path)
            .store_template("SAFE_DIRS", safe.display())
            .store_template("RESTRICTED_DIRS", bed.root().display());
        bed.ds("cp", 7, &doc.xml()).run()
    };
    refused(&bed, &ask(&near.join("a"), &safe), &[10], "a longer name");
    refused(&bed, &ask(&safe.join("a"), &bed.root().join("tmpd.r")), &[10], "a pattern");
    ask(&safe.join("a"), &safe).ok();
}

#[test]
fn s5_certificates_are_verified_by_default() {
    let bed = ready();
    let server = Tls::of(&bed, b"an image");
    let done = bed.ds("cp", 7, &at(&bed, server.url()).xml()).run();
    assert!(refused(&bed, &done, &[6, 10], "signed by itself").contains("certificate"));
    settings(&bed, "insecure = true");
    bed.ds("cp", 7, &at(&bed, server.url()).xml()).run().ok();
}

/// Nothing is written to a shared directory, under a name to be guessed or any other.
#[test]
fn s6_s7_no_file_is_made_where_others_may_write() {
    let bed = ready();
    let path = source(&bed, 256);
    let gz = bed.images().join("gz");
    std::fs::write(&gz, packed("gzip", &["-c"], &path)).unwrap();
    let server = Server::of(std::fs::read(&gz).unwrap());
    let staging = bed.root().join("staging");
    std::fs::create_dir(&staging).unwrap();
    bed::chmod(&staging, 0o777);
    let md5: String =
        md5::Md5::digest(std::fs::read(&gz).unwrap()).iter().map(|b| format!("{b:02x}")).collect();
    let doc = at(&bed, server.url())
        .image_template("MD5", md5)
        .store_template("STAGING_DIR", staging.display())
        .store_template("DRIVER", "qcow2");
    for verb in ["stat", "cp"] {
        let (done, trace) = traced(
            &bed,
            "open,openat,openat2,creat,mkdir,mkdirat,mknod,mknodat,link,linkat,symlink,symlinkat,rename,renameat,renameat2",
            bed.ds(verb, 7, &doc.xml()),
        );
        if verb == "cp" {
            done.ok();
        }
        let made = |l: &&str| !l.contains(" = -1 ") && (l.contains("O_CREAT") || !l.contains(" open"));
        let outside = |l: &&str| {
            ["\"/tmp", "\"/var/tmp", "</tmp", "</var/tmp", staging.to_str().unwrap()]
                .iter()
                .any(|d| l.contains(d))
        };
        let bad: Vec<_> = trace.lines().filter(made).filter(outside).collect();
        assert!(bad.is_empty(), "{verb}: {bad:#?}");
        assert!(names(&staging).is_empty() && names(&bed.root().join("tmp")).is_empty());
        if verb == "cp" {
            // Staging is inside the datastore, below a name nobody can guess, and new.
            let staged: Vec<_> = trace
                .lines()
                .filter(|l| l.contains("/.sdm/new/") && l.contains("O_CREAT") && !l.contains(" = -1 "))
                .collect();
            assert!(!staged.is_empty() && staged.iter().any(|l| l.contains("O_EXCL")), "{staged:#?}");
        }
    }
}

/// Somebody put something at the place where the image will be: it is neither followed nor lost.
#[test]
fn s7_a_link_at_the_images_place_is_not_followed() {
    let bed = ready();
    let precious = bed.images().join("precious");
    std::fs::write(&precious, "precious").unwrap();
    symlink(&precious, image(&bed)).unwrap();
    let done = bed.ds("cp", 7, &at(&bed, source(&bed, 64)).xml()).run();
    assert_eq!(std::fs::read(&precious).unwrap(), b"precious");
    if done.code == Some(0) {
        assert!(image(&bed).symlink_metadata().unwrap().is_file());
    }
}

#[test]
fn s10_nothing_outside_the_datastore_is_removed() {
    for bridge in [None, Some("localhost"), Some("host01 host02")] {
        for source in
            ["images/precious", "var/datastores/101/precious", "var/datastores/100/../101/precious", "var"]
        {
            let bed = ready();
            let path = bed.root().join(source);
            if source != "var" {
                let dir = path.parent().unwrap();
                std::fs::create_dir_all(dir).unwrap();
                std::fs::write(&path, "precious").unwrap();
            }
            let mut doc = Doc::new(&bed, 7).image("SOURCE", path.display());
            if let Some(hosts) = bridge {
                doc = doc.store_template("BRIDGE_LIST", hosts);
            }
            for call in both(&bed, "rm", 7, &doc) {
                let done = call.run();
                done.failure(None).unwrap();
                assert!([Some(5), Some(10)].contains(&done.code), "{:?} {}", done.code, done.err());
                assert!(path.exists(), "{source} with {bridge:?}");
            }
        }
    }
}
