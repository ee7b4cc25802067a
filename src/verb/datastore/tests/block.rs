//! The verbs of a datastore on volumes, on the engine in memory, which has pools, too.

use super::*;
use crate::engine::lvm::tests as lvm;
use crate::lock::LockBackend;
use crate::verb::class_of;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

fn bed() -> Bed {
    let bed = Bed { more: "<TM_MAD>lvm</TM_MAD><DS_MAD>lvm</DS_MAD>", ..Bed::new() };
    let disk = |name: &str, text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.resize(64 << 10, 0);
        std::fs::write(bed.dir.path().join(name), bytes).unwrap();
    };
    disk("a", "content a");
    disk("b", "content b");
    bed
}

const THIN: &str = "<PERSISTENT>1</PERSISTENT>";
const SOURCE: &str = "<SOURCE>vg-one-1/img-one-0</SOURCE>";

fn on(n: i64) -> String {
    format!("{SOURCE}<TARGET_SNAPSHOT>{n}</TARGET_SNAPSHOT>")
}

fn thick(b: &Bed) {
    b.run(cp::run, "<ID>0</ID><PATH>DIR/a</PATH>").unwrap();
}

fn thin(b: &Bed) {
    b.run(cp::run, &format!("<ID>0</ID><PATH>DIR/a</PATH>{THIN}")).unwrap();
}

/// Two snapshots, as transfer verbs make them, and what came after.
fn snaps(b: &Bed) {
    thin(b);
    for n in 0..2 {
        let (d, job) = (b.domain(), b.jobs.start(JobId::generate(), Topic::default()));
        let name = |s: &str| Name::parse(s).unwrap();
        let mut work = Work::begin(&d, &job, &[name("img-one-0")]).unwrap();
        let slab = work.slab(&crate::engine::Spec::Clone(name("img-one-0"))).unwrap();
        let step = work.step_to(&slab, &name(&format!("img-one-0_one_s{n}"))).unwrap();
        work.commit("", "", vec![step]).unwrap();
        let at = Place::Public(name("img-one-0"));
        let path = d.engine.attach(&at, Access::Write).unwrap().path;
        let file = std::fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(format!("after {n}").as_bytes(), 0).unwrap();
    }
}

/// What there is, without the zeroes behind it.
fn view(b: &Bed) -> BTreeMap<String, String> {
    b.tree().into_iter().map(|(k, v)| (k, v.trim_end_matches('\0').to_owned())).collect()
}

#[test]
fn every_verb_on_volumes_cut_off_at_every_change_leaves_the_old_or_the_new() {
    fn nothing(_: &Bed) {}
    let clone = || "<ID>5</ID><PATH>vg-one-1/img-one-0</PATH>".to_owned();
    let mkfs = |more: &str| format!("<ID>0</ID><FORMAT>raw</FORMAT><SIZE>1</SIZE>{more}");
    let points = sweep(
        bed,
        vec![
            ("cp", cp::run, "<ID>0</ID><PATH>DIR/a</PATH>".into(), nothing),
            ("cp persistent", cp::run, format!("<ID>0</ID><PATH>DIR/a</PATH>{THIN}"), nothing),
            ("cp over a persistent image", cp::run, "<ID>0</ID><PATH>DIR/b</PATH>".into(), snaps),
            ("cp persistent over another", cp::run, format!("<ID>0</ID><PATH>DIR/b</PATH>{THIN}"), snaps),
            ("mkfs", mkfs::run, mkfs(""), nothing),
            ("mkfs persistent over a thick one", mkfs::run, mkfs(THIN), thick),
            ("clone", clone::run, clone(), thick),
            ("clone persistent", clone::run, clone() + THIN, snaps),
            ("rm", rm::run, SOURCE.into(), thick),
            ("rm persistent", rm::run, SOURCE.into(), snaps),
            ("rm of nothing", rm::run, SOURCE.into(), nothing),
            ("snap_delete", snap::delete, on(0), snaps),
            ("snap_revert", snap::revert, on(0), snaps),
            ("snap_flatten", snap::flatten, on(1), snaps),
        ],
    );
    assert!(points > 250, "only {points} points");
}

#[test]
fn an_image_is_thin_when_it_is_persistent_and_removed_whatever_it_is_called_then() {
    let b = bed();
    assert_eq!(b.run(cp::run, "<ID>0</ID><PATH>DIR/a</PATH>").unwrap(), "vg-one-1/img-one-0 raw");
    assert_eq!(view(&b), BTreeMap::from([("img-one-0".into(), "content a".into())]));
    snaps(&b);
    let names: Vec<String> = view(&b).into_keys().collect();
    assert_eq!(names, ["img-one-0", "img-one-0-pool", "img-one-0_one_s0", "img-one-0_one_s1"]);
    b.run(snap::revert, &on(0)).unwrap();
    assert_eq!(view(&b)["img-one-0"], "content a");
    let pool = Place::Public(Name::parse("img-one-0-pool").unwrap());
    let size = || b.domain().engine.look(&pool).unwrap().unwrap().size;
    assert!(size().0 >= 4 * (64 << 10), "room for the image, its snapshots and what was displaced");
    // Non-persistent by now, as oned has it: pool and snapshots go all the same (D25).
    b.run(rm::run, SOURCE).unwrap();
    assert!(b.tree().is_empty());
    // Where the datastore wants no pools none is made, and one that is displaced goes.
    let more =
        "<TM_MAD>lvm</TM_MAD><DS_MAD>lvm</DS_MAD><TEMPLATE><LVM_THIN_ENABLE>NO</LVM_THIN_ENABLE></TEMPLATE>";
    let b = Bed { more, ..b };
    for image in [format!("<ID>0</ID><PATH>DIR/a</PATH>{THIN}"), format!("<ID>1</ID><SIZE>1</SIZE>{THIN}")] {
        b.run(if image.contains("PATH") { cp::run } else { mkfs::run }, &image).unwrap();
    }
    assert_eq!(view(&b).into_keys().collect::<Vec<_>>(), ["img-one-0", "img-one-1"]);
}

/// An encrypted image is its container, as on a file system: nobody here has its key.
#[test]
fn an_encrypted_image_becomes_a_volume_as_it_is_and_an_archive_does_not() {
    let b = bed();
    let mut luks = b"LUKS\xba\xbe\0\x02 header, key slots and what nobody can read".to_vec();
    luks.resize(64 << 10, 0x5a);
    std::fs::write(b.dir.path().join("luks"), &luks).unwrap();
    for (id, thin) in [(0, ""), (1, THIN)] {
        b.run(cp::run, &format!("<ID>{id}</ID><PATH>DIR/luks</PATH>{thin}")).unwrap();
        let at = Place::Public(Name::parse(&format!("img-one-{id}")).unwrap());
        let path = b.domain().engine.attach(&at, Access::Read).unwrap().path;
        assert!(std::fs::read(path).unwrap().starts_with(&luks), "{id}");
    }
    b.run(clone::run, "<ID>5</ID><PATH>vg-one-1/img-one-1</PATH>").unwrap();
    let mut tar = vec![0; 1024];
    tar[257..263].copy_from_slice(b"ustar\0");
    std::fs::write(b.dir.path().join("tar"), &tar).unwrap();
    let e = b.run(cp::run, "<ID>7</ID><PATH>DIR/tar</PATH>").unwrap_err();
    assert!(class_of(&e) == Class::Unsupported && format!("{e:#}").contains("archive"), "{e:#}");
}

/// The same on LVM's own metadata, without device mapper: thick images only.
#[test]
fn verbs_on_real_metadata_cut_off_at_any_change_leave_the_old_or_the_new() {
    let (group, b) = (lvm::Bed::new(120 << 20), bed());
    let locks: Arc<dyn LockBackend> = Arc::new(MemLocks::default());
    let engine = || lvm::engine(&group, 1, &locks);
    let sound = || Domain::in_group(engine(), Box::new(Arc::clone(&locks))).unwrap();
    let at = Place::Public(Name::parse("img-one-0").unwrap());
    let content = |d: &Domain| {
        d.engine.look(&at).unwrap()?;
        let mut bytes = vec![0; 9];
        let path = d.engine.attach(&at, Access::Read).unwrap().path;
        std::fs::File::open(path).unwrap().read_exact_at(&mut bytes, 0).unwrap();
        Some(String::from_utf8(bytes).unwrap())
    };
    let policy =
        gc::Policy { trash_keep: Duration::ZERO, done_max: 9, done_age: Duration::from_secs(9), short: true };
    let new = Some("content a".to_owned());
    let cp = "<ID>0</ID><PATH>DIR/a</PATH>";
    let scenes = [(cp::run as Verb, cp, None, new.clone()), (rm::run, SOURCE, new, None)];
    for (verb, message, old, new) in scenes {
        for n in 0.. {
            let open = |_: &Path, _: i64| -> Result<Domain, SdmError> {
                Ok(Domain { engine: Box::new(Faulty::new(engine(), n, true)), ..sound() })
            };
            let done = b.opening(JobId::generate(), verb, message, &open);
            let (d, job) = (sound(), b.jobs.start(JobId::generate(), Topic::default()));
            assert!(gc::collect(&d, &job, &policy).unwrap().errors.is_empty(), "{n}");
            assert_eq!(check(&d).unwrap(), [], "{n}");
            let now = content(&d);
            assert!(now == new || (now == old && done.is_err()), "{n}: {now:?} after {done:?}");
            if done.is_ok() {
                assert!(n > 1, "only {n} changes");
                break;
            }
            if now == new {
                // Back to where it was.
                let (back, message) =
                    if now.is_some() { (rm::run as Verb, SOURCE) } else { (cp::run as Verb, cp) };
                let open = |_: &Path, _: i64| Ok(sound());
                b.opening(JobId::generate(), back, message, &open).unwrap();
            }
        }
    }
    assert_eq!(group.lvm(&["lvs", "--noheadings", "-o", "lv_name", &group.to_string()]), "sdm-meta");
}

/// A tombstone in a pool would take space that nobody counts.
#[test]
fn what_is_displaced_in_a_pool_is_not_kept_there() {
    let b = bed();
    thin(&b);
    b.run(cp::run, &format!("<ID>0</ID><PATH>DIR/b</PATH>{THIN}")).unwrap();
    assert_eq!(view(&b)["img-one-0"], "content b");
    assert!(b.domain().engine.dead().unwrap().is_empty(), "gone from its pool");
    b.run(cp::run, "<ID>0</ID><PATH>DIR/a</PATH>").unwrap();
    assert_eq!(b.domain().engine.dead().unwrap().len(), 2, "kept with its pool");
}

#[test]
fn a_volume_s_content_is_the_disk_s() {
    let b = bed();
    let path = |name: &str| b.dir.path().join(name).to_string_lossy().into_owned();
    let run = |words: &[&str]| {
        let out = crate::sys::fork::output(std::process::Command::new(words[0]).args(&words[1..])).unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    run(&["qemu-img", "convert", "-O", "qcow2", &path("a"), &path("q")]);
    run(&["gzip", "-kf", &path("q")]);
    for (n, name, more) in [(1, "q", ""), (2, "q.gz", THIN), (3, "a", "<SIZE>1</SIZE>")] {
        b.run(cp::run, &format!("<ID>{n}</ID><PATH>DIR/{name}</PATH>{more}")).unwrap();
        assert_eq!(view(&b)[&format!("img-one-{n}")], "content a", "{name}");
    }
    assert_eq!(b.tree()["img-one-3"].len(), 1 << 20, "as large as oned has it");
    assert_eq!(b.tree()["img-one-1"].len(), 64 << 10);
}

#[test]
fn what_a_volume_cannot_hold_or_is_not_of_this_datastore_is_refused() {
    let b = bed();
    std::fs::write(b.dir.path().join("t"), [&[0; 257][..], b"ustar\0"].concat()).unwrap();
    let mut tar = vec![0u8; 1024];
    tar[..4].copy_from_slice(b"name");
    tar[257..263].copy_from_slice(b"ustar\0");
    std::fs::write(b.dir.path().join("t"), tar).unwrap();
    let class = |verb: Verb, message: &str| class_of(&b.run(verb, message).unwrap_err());
    assert_eq!(class(cp::run, "<ID>0</ID><PATH>DIR/t</PATH>"), Class::Unsupported);
    assert_eq!(class(rm::run, "<SOURCE>vg-one-2/img-one-0</SOURCE>"), Class::Refused);
    assert_eq!(class(rm::run, "<SOURCE>vg-one-1/sdm-meta</SOURCE>"), Class::Usage);
    assert_eq!(class(snap::revert, &on(0)), Class::NotFound);
    assert_eq!(class(clone::run, "<ID>5</ID><PATH>vg-one-1/img-one-0</PATH>"), Class::NotFound);
    assert_eq!(class(clone::run, "<ID>5</ID><PATH>/etc/passwd</PATH>"), Class::Usage);
    assert!(b.tree().is_empty());
    b.collect();
}
