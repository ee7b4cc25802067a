//! What is left of volumes that went, on the kernel's device mapper.

use crate::lvmlive::in_machine;
use crate::lvmverbs::{GROUP, Host, MIB, VM, root, volumes};
use std::io::Read as _;

/// Whether the LUN has this anywhere, as the medium has it.
fn lun_has(byte: u8) -> bool {
    let lun = std::fs::File::open("/dev/vda").unwrap();
    onesdm::sys::copy::forget(&lun);
    let mut block = vec![0; MIB];
    std::iter::from_fn(|| {
        let n = (&lun).read(&mut block).unwrap();
        (n > 0).then(|| block[..n].chunks(4096).any(|b| b.iter().all(|x| *x == byte)))
    })
    .any(|found| found)
}

/// A thick image, a thin one and a copy on a thin volume go, and nothing of them is left on the LUN.
#[test]
#[ignore = "runs in the machine of the next test"]
fn wiped_inside() {
    let h = Host::new();
    root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
    assert_eq!(h.own(&["domain", "init", "--lock", "ofd", "/dev/vg-one-100"]).0, 0);
    let toml = h.at("etc/onesdm.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(&toml, format!("{text}[trash]\nwipe = \"zero\"\n")).unwrap();
    let tm = |verb: &str, args: &[&str]| {
        let (status, text) = h.tm_of((7, VM), verb, args);
        assert_eq!(status, 0, "{verb}: {text}");
    };
    std::fs::write(h.at("images/secret.raw"), vec![0xc7; 4 * MIB]).unwrap();
    h.ok("cp", "<ID>1</ID><SIZE>8</SIZE><PATH>DIR/secret.raw</PATH>");
    h.ok("cp", "<ID>2</ID><SIZE>8</SIZE><PATH>DIR/secret.raw</PATH><PERSISTENT>1</PERSISTENT>");
    tm("clone", &["fe:vg-one-100/img-one-1", "DIR/disk.0", "7", "100"]);
    assert!(lun_has(0xc7));
    tm("delete", &["DIR", "7", "101"]);
    for id in [1, 2] {
        h.ok("rm", &format!("<SOURCE>vg-one-100/img-one-{id}</SOURCE>"));
    }
    assert_eq!(volumes(), ["sdm-meta"]);
    assert!(!lun_has(0xc7), "something of them is left");
}

#[test]
fn what_is_wiped_is_nowhere_on_the_disk_any_more() {
    in_machine("lvmwipe::wiped_inside", &[]);
}
