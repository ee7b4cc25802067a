//! What goes over the wire to hosts of BRIDGE_LIST: no holes, and after a cut or the death of the host's agent
//! nothing that arrived before.

use crate::bed::names;
use crate::bridge::{DS, SOON, bytes, cloud, empty, message, ok, place, words};
use crate::hosts::{Cloud, eventually};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

fn came(cloud: &Cloud, host: &str) -> u64 {
    crate::local::came(&cloud.on(host, &["cat", "/proc/net/dev"])) >> 20
}

/// 256 MiB with a MiB of data at both ends, on a host.
fn sparse(cloud: &Cloud, host: &str, path: &str) {
    cloud.inside(host, || std::fs::create_dir_all(Path::new(path).parent().unwrap()).unwrap());
    let dd = |at: &str| ["dd", "if=/dev/urandom", "bs=1M", "count=1", "conv=notrunc", at].map(str::to_owned);
    for at in ["seek=0", "seek=255"] {
        let mut words = dd(at).to_vec();
        words.push(format!("of={path}"));
        cloud.on(host, &words.iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn holes_stay_holes_on_the_way_to_a_bridge_host() {
    let cloud = cloud();
    for (from, path, source) in [("fe", "/srv/os", "/srv/os"), ("h2", "/srv/os", "ssh://h2:/srv/os")] {
        sparse(&cloud, from, path);
        let sum = cloud.on(from, &["md5sum", path])[..32].to_owned();
        let (before, image) =
            (came(&cloud, "h1"), format!("<PATH>{source}</PATH><TEMPLATE><MD5>{sum}</MD5></TEMPLATE>"));
        let wanted = if from == "fe" {
            message("h1", &image, "")
        } else {
            message("h1", &image, "").replace("REGTIME>9", "REGTIME>8")
        };
        let made = place(&ok(&cloud, "cp", &wanted), "raw");
        assert!(came(&cloud, "h1") - before < 8, "{source}");
        assert_eq!(cloud.on("h1", &["md5sum", made.to_str().unwrap()])[..32], sum);
        let taken = cloud.inside("h1", || std::fs::metadata(&made).unwrap().blocks() / 2048);
        assert!(taken < 4, "{taken} MiB");
    }
}

fn staged(cloud: &Cloud) -> u64 {
    cloud.inside("h1", || crate::local::weight(&Path::new(DS).join(".sdm/new")) >> 20)
}

/// The network, and the agent by a signal that it cannot hear.
#[test]
fn a_copy_that_is_cut_goes_on_where_it_stopped() {
    let cloud = cloud();
    cloud.on("fe", &["sh", "-c", "head -c 32M /dev/urandom >/srv/os"]);
    let content = bytes(&cloud, "fe", Path::new("/srv/os"));
    let config = cloud.read("fe", "/etc/one/onesdm.toml");
    let wanted = message("h1", "<PATH>/srv/os</PATH>", "");
    for (mib, is_network) in [(8, true), (16, false)] {
        cloud.write("fe", "/etc/one/onesdm.toml", &format!("{config}[data]\nlimit = \"8MiB\"\n"));
        let words = words(&cloud, "cp", &wanted);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut call = cloud.command("fe", &words).spawn().unwrap();
        eventually("data at the host", SOON, || call.try_wait().unwrap().is_some() || staged(&cloud) > mib);
        if is_network {
            cloud.ok(&["cut", "h1"]);
        } else {
            crate::tm_kill::signal_on(&cloud, "h1", "onesdm agent", "KILL");
        }
        assert!(!call.wait().unwrap().success());
        assert!(cloud.inside("h1", || names(Path::new(DS))).iter().all(|n| n == ".sdm"));
        cloud.ok(&["heal", "h1"]);
    }
    cloud.write("fe", "/etc/one/onesdm.toml", &config);
    let before = came(&cloud, "h1");
    let made = place(&ok(&cloud, "cp", &wanted), "raw");
    let came = came(&cloud, "h1") - before;
    assert!((8..=17).contains(&came), "{came} MiB of 32");
    assert!(bytes(&cloud, "h1", &made) == content);
    let source = format!("<SOURCE>{}</SOURCE>", made.display());
    ok(&cloud, "rm", &message("h1", &source, ""));
    assert!(empty(&cloud, "h1"));
}
