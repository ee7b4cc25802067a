//! Locks of hosts are tried before the hosts are used: on the bed of hosts, where one of them has a copy of a
//! datastore in place of the datastore. On NFS see `nfs_inside`.

use crate::bed::{self, names};
use crate::runner::{self, Disk, Kind, STORES, Vm, source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Output;

fn clone(vm: &Vm<'_>) -> Output {
    vm.run("clone", &[&format!("fe:{}", source("os")), &vm.disk(0)], 100)
}

#[test]
fn a_host_whose_locks_are_others_is_refused_and_one_whose_are_the_same_is_asked_once() {
    let cloud = runner::cloud(&[100, 101, 102]);
    let mut vms: Vec<Vm<'_>> = (1..=4).map(|id| Vm::new(&cloud, "shared", id)).collect();
    vms[0].image("os", Kind::Raw, 1);
    let image = vms[0].images.clone();
    for vm in &mut vms {
        vm.images.clone_from(&image);
        let (image, content) = (Some("os".to_owned()), image["os"].1.clone());
        let (snaps, active, tm) = (BTreeMap::new(), None, None);
        vm.disks.insert(0, Disk { kind: Kind::Raw, image, persistent: false, content, snaps, active, tm });
    }
    let proofs = || cloud.inside("fe", || names(Path::new("/var/lib/one/onesdm/proof")));
    // The first makes the domains, the next has something to try.
    for vm in &vms[..2] {
        let out = clone(vm);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let noted = proofs();
    assert_eq!(noted.len(), 2, "{noted:?}");
    assert!(noted[0].starts_with("100@") && noted[1].starts_with("101@"), "{noted:?}");
    // Nothing is asked of a host again.
    let note = PathBuf::from("/var/lib/one/onesdm/proof").join(&noted[1]);
    let (text, changed) =
        cloud.inside("fe", || (std::fs::read(&note).unwrap(), note.metadata().unwrap().modified().unwrap()));
    assert!(clone(&vms[2]).status.success());
    assert_eq!(cloud.inside("fe", || note.metadata().unwrap().modified().unwrap()), changed);
    // Of another mount it is proven anew.
    cloud.inside("fe", || std::fs::write(&note, "what was").unwrap());
    assert!(clone(&vms[2]).status.success());
    assert_eq!(cloud.inside("fe", || std::fs::read(&note).unwrap()), text);
    // The same domain by its id and all, but on storage of its own.
    let at = format!("{STORES}/101");
    let program = bed::program().display().to_string();
    let copy =
        format!("cp -a {at} /root/copy && mount --bind /root/copy {at} && {program} domain adopt {at}");
    cloud.on("h2", &["sh", "-c", &copy]);
    vms[3].host = "h2";
    let before = cloud.inside("h2", || names(Path::new(&at)));
    let out = clone(&vms[3]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.code() == Some(10) && said.contains("host h2") && said.contains("do not work together"),
        "{said}"
    );
    assert_eq!(cloud.inside("h2", || names(Path::new(&at))), before);
    assert_eq!(proofs().len(), 3, "the image's datastore is one");
    // As it should be.
    cloud.on("h2", &["umount", &at]);
    let out = clone(&vms[3]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(proofs().len(), 4);
}
