//! Layouts of contract 3.0.4 to the letter, for disks that are made, linked and deleted.

use super::*;

#[test]
fn a_raw_clone_is_a_file_of_the_right_size_before_anybody_sees_it() {
    let bed = Bed::new();
    bed.image("img", "raw", "A");
    let op = op::Clone {
        size_mib: Some(2),
        original_mib: Some(1),
        ..clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Raw)
    };
    let sizes = std::cell::Cell::new(0);
    let open = |_: &Path, ds: i64| Ok(bed.domain(ds));
    let ready = || {
        // Everything is filled and flushed, nothing is visible: D5.
        assert!(!bed.at("101/7/disk.0").exists());
        sizes.set(sizes.get() + 1);
        Ok(())
    };
    bed.with(crate::lock::JobId::generate(), &open, &ready, &Op::Clone(op)).unwrap();
    assert_eq!(sizes.get(), 1, "asked once");
    assert_eq!(bed.view()["101/7/disk.0"], "2048 A");
    bed.collect();
}

#[test]
fn a_front_end_that_says_no_has_nothing_made_visible() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "A");
    let open = |_: &Path, ds: i64| Ok(bed.domain(ds));
    let ready = || Err(crate::verb::refuse(Class::Remote, "the front-end is gone"));
    for op in [
        Op::Clone(clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2)),
        link(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2),
        Op::MakeSwap(op::MakeSwap { disk: bed.text("101/7/disk.0"), size_mib: 1 }),
    ] {
        let before = bed.view();
        let e = bed.with(crate::lock::JobId::generate(), &open, &ready, &op).unwrap_err();
        assert_eq!(class_of(&e), Class::Remote);
        assert_eq!(bed.view(), before);
        bed.sound();
    }
}

#[test]
fn a_qcow2_clone_is_a_layer_over_the_image() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "AB");
    bed.ok(&Op::Clone(clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2)));
    assert_eq!(bed.link("101/7/disk.0"), "disk.0.snap/0");
    assert_eq!(bed.link("101/7/disk.0.snap/disk.0.snap"), ".");
    assert_eq!(bed.backing("101/7/disk.0.snap/0"), Some(bed.text("100/img")));
    bed.write("101/7/disk.0", 1, 'x');
    assert_eq!(bed.says("101/7/disk.0"), "Ax");
    assert_eq!(bed.says("100/img"), "AB");
    // The reader of these tests against the real one.
    bed.img(&["convert", "-f", "qcow2", "-O", "raw", &bed.text("101/7/disk.0"), &bed.text("../out")]);
    assert_eq!(std::fs::read(bed.at("../out")).unwrap(), bed::read(&bed.at("101/7/disk.0")));
    bed.collect();
}

#[test]
fn a_standalone_clone_needs_no_image_and_grows() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "AB");
    for sparse in [true, false] {
        let op = clone(&bed, "100/img", "101/7/disk.1", DiskFormat::Qcow2);
        let (size_mib, original_mib) = (Some(3), Some(1));
        bed.ok(&Op::Clone(op::Clone { standalone: true, sparse, size_mib, original_mib, ..op }));
        assert_eq!(bed.backing("101/7/disk.1.snap/0"), None);
        assert_eq!(bed.view()["101/7/disk.1"], "-> disk.1.snap/0");
        assert_eq!(bed.view()["101/7/disk.1.snap/0"], "3072 AB");
    }
    let thin = clone(&bed, "100/img", "101/7/disk.2", DiskFormat::Qcow2);
    bed.ok(&Op::Clone(op::Clone { size_mib: Some(3), original_mib: Some(1), ..thin }));
    assert_eq!(bed.view()["101/7/disk.2.snap/0"], "3072 AB");
    bed.collect();
}

/// E11: a format nobody expected gave success without a disk.
#[test]
fn other_formats_and_kernels_are_copied_as_they_are() {
    let bed = Bed::new();
    bed.image("img", "vmdk", "A");
    for disk in ["101/7/disk.0", "101/7/kernel", "101/7/initrd"] {
        bed.ok(&Op::Clone(clone(&bed, "100/img", disk, DiskFormat::Other)));
        assert_eq!(std::fs::read(bed.at(disk)).unwrap(), std::fs::read(bed.at("100/img")).unwrap());
    }
    bed.collect();
}

#[test]
fn a_persistent_raw_disk_is_the_image() {
    let bed = Bed::new();
    bed.image("img", "raw", "A");
    let op = link(&bed, "100/img", "101/7/disk.1", DiskFormat::Raw);
    bed.ok(&op);
    assert_eq!(bed.link("101/7/disk.1"), bed.text("100/img"));
    let inode = || std::os::unix::fs::MetadataExt::ino(&bed.at("101/7/disk.1").symlink_metadata().unwrap());
    let first = inode();
    bed.ok(&op);
    assert_eq!(inode(), first, "what is right stays");
    bed.collect();
}

/// E10: whether the image is raw is on record; a guest's first bytes do not turn it into a chain.
#[test]
fn a_raw_disk_with_a_header_in_it_stays_raw() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "A");
    bed.ok(&link(&bed, "100/img", "101/7/disk.1", DiskFormat::Raw));
    assert_eq!(bed.link("101/7/disk.1"), bed.text("100/img"));
    bed.ok(&Op::Clone(clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Raw)));
    assert_eq!(std::fs::read(bed.at("101/7/disk.0")).unwrap(), std::fs::read(bed.at("100/img")).unwrap());
    assert!(!bed.at("101/7/disk.0.snap").exists() && !bed.at("100/img.snap").exists());
}

#[test]
fn a_persistent_qcow2_disk_is_the_images_active_layer() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "A");
    std::fs::create_dir_all(bed.at("101/7/disk.0.snap")).unwrap();
    std::fs::write(bed.at("101/7/disk.0.snap/0"), "of a copy").unwrap();
    bed.ok(&link(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2));
    assert_eq!(bed.link("100/img.snap/img.snap"), ".");
    assert_eq!(bed.link("100/img.snap/0"), bed.text("100/img"));
    assert_eq!(bed.link("101/7/disk.0"), bed.text("100/img.snap/0"));
    assert!(!bed.at("101/7/disk.0.snap").exists(), "what a copy left is no part of it");
    bed.collect();
}

/// R8: the highest number is not always the active layer.
#[test]
fn the_active_layer_is_told_from_the_chain() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "A");
    let op = link(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2);
    bed.ok(&op);
    let layer = |n: &str, on: &str| {
        let (n, on) = (bed.text(&format!("100/img.snap/{n}")), bed.text(&format!("100/img.snap/{on}")));
        bed.img(&["create", "-q", "-f", "qcow2", "-b", &on, "-F", "qcow2", &n]);
    };
    for (made, on, active) in [("1", "0", "1"), ("10", "1", "10"), ("9", "10", "9")] {
        layer(made, on);
        bed.ok(&op);
        assert_eq!(bed.link("101/7/disk.0"), bed.text(&format!("100/img.snap/{active}")), "{made} on {on}");
    }
    // A live delete left the content of snapshot 11 in the file of another number.
    layer("12", "9");
    layer("8", "9");
    std::fs::write(bed.at("100/img.snap/11.current"), bed.text("100/img.snap/12")).unwrap();
    bed.ok(&op);
    assert_eq!(bed.link("101/7/disk.0"), bed.text("100/img.snap/8"), "12 is frozen");
    std::fs::write(bed.at("100/img.snap/7.current"), bed.text("100/img.snap/8")).unwrap();
    bed.refused(&op, Class::Integrity);
    std::fs::remove_file(bed.at("100/img.snap/7.current")).unwrap();
    std::fs::write(bed.at("100/img.snap/13"), "half a header").unwrap();
    bed.refused(&op, Class::Integrity);
}

/// A layer that is the image's content is what a clone copies, not the stale root.
#[test]
fn a_clone_of_an_image_with_layers_shows_what_the_image_is_now() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "A");
    bed.ok(&link(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2));
    bed.ok(&Op::SnapCreate(snap(&bed, Some("100/img"), DiskFormat::Qcow2, 0)));
    bed.write("101/7/disk.0", 0, 'x');
    bed.ok(&Op::Clone(clone(&bed, "100/img", "101/8/disk.0", DiskFormat::Qcow2)));
    assert_eq!(bed.says("101/8/disk.0"), "x");
}

#[test]
fn volatile_disks_are_made_and_made_anew() {
    let bed = Bed::new();
    let make = |format: &str, fs: Option<&str>, size_mib| {
        let (disk, format, fs) = (bed.text("101/7/disk.2"), format.to_owned(), fs.map(str::to_owned));
        Op::MakeImage(op::MakeImage { disk, size_mib, format, fs, sparse: true })
    };
    let read = || std::fs::read(bed.at("101/7/disk.2")).unwrap();
    bed.ok(&make("raw", None, 2));
    assert_eq!(read(), vec![0; 2 << 20]);
    bed.ok(&make("qcow2", None, 4));
    assert_eq!(bed.view()["101/7/disk.2"], "4096 ");
    bed.ok(&make("raw", Some("ext4"), 8));
    assert_eq!(read()[1080..1082], [0x53, 0xef]);
    bed.ok(&Op::MakeSwap(op::MakeSwap { disk: bed.text("101/7/disk.2"), size_mib: 1 }));
    assert_eq!(&read()[4086..4096], b"SWAPSPACE2");
    for bad in [make("qed", None, 1), make("raw", Some("ntfs"), 1), make("raw", None, 0)] {
        assert!([Class::Unsupported, Class::Usage].contains(&class_of(&bed.run(&bad).unwrap_err())));
    }
    bed.collect();
}

#[test]
fn delete_takes_a_disk_with_its_snapshots_or_the_whole_vm_and_nothing_else() {
    let bed = Bed::new();
    bed.image("img", "qcow2", "A");
    bed.image("raw", "raw", "A");
    bed.ok(&Op::Clone(clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Qcow2)));
    bed.ok(&link(&bed, "100/raw", "101/7/disk.1", DiskFormat::Raw));
    let (images, view) = (bed.view()["100/raw"].clone(), bed.view());
    for path in ["101", "101/7/disk.0.snap/0", "101/7/../7", "100/img", "101/.sdm", "101/7/disk.0/", ""] {
        let op = delete(&bed, path);
        if path.ends_with('/') {
            continue;
        }
        bed.refused(&op, Class::Refused);
    }
    bed.refused(&Op::Delete(op::Delete { path: "/etc/7".into() }), Class::Refused);
    assert_eq!(bed.view(), view);
    for _ in 0..2 {
        bed.ok(&delete(&bed, "101/7/disk.0"));
        assert!(!bed.at("101/7/disk.0").exists() && !bed.at("101/7/disk.0.snap").exists());
        assert_eq!(bed.link("101/7/disk.1"), bed.text("100/raw"));
    }
    for _ in 0..2 {
        bed.ok(&delete(&bed, "101/7"));
        assert!(!bed.at("101/7").exists());
    }
    assert_eq!(bed.view()["100/raw"], images, "the image stays");
    bed.collect();
    assert!(std::fs::read_dir(bed.at("101/.sdm/del")).unwrap().next().is_none(), "deleted at once");
}

#[test]
fn the_marker_follows_the_verb() {
    let bed = Bed::new();
    bed.image("img", "raw", "A");
    let with = |marker: Marker| {
        bed.ok(&Op::Clone(op::Clone { marker, ..clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Raw) }));
        std::fs::read_to_string(bed.at("101/.monitor")).ok()
    };
    assert_eq!(with(Marker::Keep), None);
    for text in ["ssh", "ssh", "replica"] {
        assert_eq!(with(Marker::Write(text.into())), Some(format!("{text}\n")));
    }
    assert_eq!(with(Marker::Keep).as_deref(), Some("replica\n"));
    assert_eq!(with(Marker::Remove), None);
    assert_eq!(with(Marker::Remove), None);
    bed.collect();
}

/// A guest's header, or somebody's link, leads to no file of others.
#[test]
fn nothing_outside_is_read_or_linked() {
    let bed = Bed::new();
    bed.image("victim", "raw", "S");
    let evil = bed.text("100/evil");
    bed.img(&["create", "-q", "-f", "qcow2", "-b", &bed.text("100/victim"), "-F", "raw", &evil]);
    bed.refused(&Op::Clone(clone(&bed, "100/evil", "101/7/disk.0", DiskFormat::Qcow2)), Class::Refused);
    std::fs::create_dir_all(bed.at("101/7")).unwrap();
    bed.write_link("/etc/hostname", "101/7/disk.0");
    for image in [None, Some("100/victim")] {
        bed.refused(&Op::SnapCreate(snap(&bed, image, DiskFormat::Raw, 0)), Class::Refused);
    }
    bed.ok(&link(&bed, "100/victim", "101/7/disk.1", DiskFormat::Raw));
    let other = op::Snap { disk: disk(&bed, "101/7/disk.1", Some("100/evil"), DiskFormat::Raw), snapshot: 0 };
    bed.refused(&Op::SnapCreate(other), Class::Integrity);
}

/// Contract 1.6: oned cancels `clone` without ending it and sends `delete` at once.
#[test]
fn delete_during_clone_leaves_nothing() {
    let bed = Bed::new();
    bed.image("img", "raw", "A");
    let open = |_: &Path, ds: i64| Ok(bed.domain(ds));
    // The clone has everything ready, and hears from nobody.
    let ready = || {
        bed.ok(&delete(&bed, "101/7"));
        Ok(())
    };
    let op = Op::Clone(clone(&bed, "100/img", "101/7/disk.0", DiskFormat::Raw));
    let e = bed.with(crate::lock::JobId::generate(), &open, &ready, &op).unwrap_err();
    assert_eq!(class_of(&e), Class::Cancelled, "{e:#}");
    assert!(!bed.at("101/7").exists());
    bed.collect();
    bed.ok(&op);
}
