//! Images that come to a volume group through a host of BRIDGE_LIST: the front-end sees nothing of the group.

use crate::lvmverbs::{GROUP, Host, content, digest, disk, root, said, volumes};
use crate::{bed, vm};
use std::os::unix::fs::PermissionsExt as _;

#[test]
#[ignore = "runs in the micro-VM of the next test"]
fn bridge_inside() {
    let two = disk(0x55);
    root(&["vgcreate", "-q", "-y", "-s", "1m", GROUP, "/dev/vda"]);
    let there = Host::new();
    let (status, text) = there.own(&["domain", "init", "--lock", "ofd", "/dev/vg-one-100"]);
    assert_eq!(status, 0, "{text}");
    // A front-end that knows nothing of the group, and a way to the host that is not the machine's network.
    let front = Host::new();
    let log = front.at("log");
    let script = format!(
        "#!/bin/sh\necho >>{}\nONE_LOCATION={} exec {} agent\n",
        log.display(),
        there.at("").display(),
        bed::program().display()
    );
    std::fs::write("/tmp/there", script).unwrap();
    std::fs::set_permissions("/tmp/there", std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(front.at("etc/onesdm.toml"), "").unwrap();
    std::fs::write(front.at("images/new.raw"), &two).unwrap();
    let call = |verb: &str, image: &str| {
        let xml = front.message(image).replace("<SAFE_DIRS>", "<BRIDGE_LIST>there</BRIDGE_LIST><SAFE_DIRS>");
        said(&front.start(verb, &xml, &[]).wait_with_output().unwrap())
    };
    let before = volumes();
    let image = |id: u32, more: &str| format!("<ID>{id}</ID><SIZE>8</SIZE><PATH>DIR/new.raw</PATH>{more}");
    let wrong = image(3, "<TEMPLATE><MD5>00000000000000000000000000000000</MD5></TEMPLATE>");
    let (status, text) = call("cp", &wrong);
    assert_eq!((status, volumes()), (8, before.clone()), "{text}");
    for (id, more) in [(3, ""), (4, "<PERSISTENT>1</PERSISTENT>")] {
        let (status, text) = call("cp", &image(id, more));
        assert!(status == 0 && text.ends_with(&format!("{GROUP}/img-one-{id} raw")), "{status} {text}");
        assert_eq!(content(&format!("img-one-{id}"), two.len()), (digest(&two), true), "image {id}");
    }
    for id in [3, 4] {
        let (status, text) = call("rm", &format!("<SOURCE>{GROUP}/img-one-{id}</SOURCE>"));
        assert_eq!(status, 0, "{text}");
    }
    assert_eq!(volumes(), before);
    assert!(std::fs::read_to_string(&log).unwrap().lines().count() >= 5, "each call went there");
}

#[test]
fn volumes_are_filled_through_a_host_of_bridge_list() {
    let tmp = bed::scratch();
    let lun = vm::disk(tmp.path(), "lun", 512 << 20);
    let programs = [bed::program(), "/usr/bin/qemu-img".into()];
    // It knows one host.
    let ssh = "cat >/usr/bin/ssh <<'X'
#!/bin/sh
[ \"$1\" = -G ] || exec /tmp/there
for line in 'hostname there' 'user oneadmin' 'port 22' 'proxycommand x'; do echo $line; done
X
chmod 755 /usr/bin/ssh
";
    vm::passes_after(ssh, "lvmbridge::bridge_inside", &[&lun], &programs);
}
