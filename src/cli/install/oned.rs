//! The lines OpenNebula's configuration needs before it offers a driver of ours under its own name.

use std::fmt::Write as _;

/// The lines, with our drivers added to what this oned.conf has in `DATASTORE_MAD` and `TM_MAD`, and this vmm_execrc.
pub fn lines(conf: &str, execrc: &str, datastore: &str, transfer: &[&str]) -> String {
    let mut out =
        String::from("# oned.conf: names oned may use as DS_MAD, after -d, and as TM_MAD, after -s\n");
    let added = |mut block: String, option: &str, drivers: &[&str]| {
        for driver in drivers {
            block = with_driver(&block, option, driver);
        }
        block
    };
    let all = transfer.join(",");
    match block(conf, "DATASTORE_MAD") {
        Some(found) => out += &added(added(found, "-d", &[datastore]), "-s", transfer),
        None => {
            let _ = writeln!(
                out,
                "DATASTORE_MAD = [\n    EXECUTABLE = \"one_datastore\",\n    \
                 ARGUMENTS  = \"-t 15 -d ...,{datastore} -s ...,{all}\"   # ...: what is there already\n]"
            );
        }
    }
    out += "\n# names oned may use as TM_MAD, after -d\n";
    match block(conf, "TM_MAD") {
        Some(found) => out += &added(found, "-d", transfer),
        None => {
            let _ = writeln!(
                out,
                "TM_MAD = [\n    EXECUTABLE = \"one_tm\",\n    ARGUMENTS  = \"-t 15 -d ...,{all}\"\n]"
            );
        }
    }
    let ds = "REQUIRED_ATTRS = \"\",\n    PERSISTENT_ONLY = \"NO\", MARKETPLACE_ACTIONS = \"export\"";
    out += &conf_of(conf, "DS_MAD_CONF", datastore, ds);
    for driver in transfer {
        out += &conf_of(conf, "TM_MAD_CONF", driver, nature(driver));
    }
    out += &inherited(conf);
    out += &live(execrc, transfer);
    out += "\n# Then restart oned. Drivers under stock names (--replace) need none of this.\n";
    out
}

/// As the stock driver has it in whose place ours is: where disks end up, and what may be done with them there.
fn nature(driver: &str) -> &'static str {
    match driver {
        "sdm_local" => {
            "LN_TARGET = \"SYSTEM\", CLONE_TARGET = \"SYSTEM\",\n    \
             SHARED = \"NO\", DS_MIGRATE = \"YES\", DS_LIVE_MIGRATE = \"YES\", DS_MIGRATE_SNAP = \"YES\",\n    \
             ALLOW_ORPHANS = \"FORMAT\""
        }
        "sdm_lvm" => {
            "LN_TARGET = \"NONE\", CLONE_TARGET = \"SELF\",\n    \
             SHARED = \"YES\", DS_MIGRATE = \"YES\", DS_LIVE_MIGRATE = \"NO\", DS_MIGRATE_SNAP = \"NO\",\n    \
             DRIVER = \"raw\", DISK_TYPE = \"BLOCK\", ALLOW_ORPHANS = \"YES\""
        }
        _ => {
            "LN_TARGET = \"NONE\", CLONE_TARGET = \"SYSTEM\",\n    \
             SHARED = \"YES\", DS_MIGRATE = \"YES\", DS_LIVE_MIGRATE = \"YES\", DS_MIGRATE_SNAP = \"YES\",\n    \
             TM_MAD_SYSTEM = \"ssh\", LN_TARGET_SSH = \"SYSTEM\", CLONE_TARGET_SSH = \"SYSTEM\", DISK_TYPE_SSH = \"FILE\",\n    \
             ALLOW_ORPHANS = \"FORMAT\""
        }
    }
}

/// Attributes that disks must get from their datastore or image: transfer verbs read them there.
fn inherited(conf: &str) -> String {
    let ds = ["DISK_TYPE", "LVM_THIN_ENABLE", "PERSISTENT_SNAPSHOTS", "QCOW2_STANDALONE", "SPARSE"];
    let all =
        ds.map(|a| ("INHERIT_DATASTORE_ATTR", a)).into_iter().chain([("INHERIT_IMAGE_ATTR", "DISK_TYPE")]);
    let is_there = |key: &str, attr: &str| {
        conf.lines().any(|line| {
            line.trim_start().strip_prefix(key).and_then(|l| l.trim_start().strip_prefix('=')).is_some_and(
                |value| {
                    value.trim_start().strip_prefix('"').is_some_and(|v| v.split('"').next() == Some(attr))
                },
            )
        })
    };
    let missing: String = all
        .filter(|(key, attr)| !is_there(key, attr))
        .map(|(key, attr)| format!("{key} = \"{attr}\"\n"))
        .collect();
    if missing.is_empty() {
        return "\n# attributes that disks get from datastores and images are there already\n".to_owned();
    }
    format!("\n# attributes that disks get from datastores and images\n{missing}")
}

/// Pairs of hypervisor and driver that take snapshots while the machine runs; volumes do not yet.
fn live(execrc: &str, transfer: &[&str]) -> String {
    let found = assignment(execrc, "LIVE_DISK_SNAPSHOTS").map(|(from, to)| execrc[from..to].to_owned());
    let mut pairs = found.unwrap_or_else(|| "...".to_owned());
    for driver in transfer.iter().filter(|d| **d != "sdm_lvm") {
        for pair in ["kvm", "qemu"].map(|hypervisor| format!("{hypervisor}-{driver}")) {
            if !pairs.split_whitespace().any(|p| p == pair) {
                pairs += &format!(" {pair}");
            }
        }
    }
    format!(
        "\n# vmm_exec/vmm_execrc: whose disks may be snapshotted while the machine runs\nLIVE_DISK_SNAPSHOTS=\"{pairs}\"\n"
    )
}

/// What oned has to know of a driver, unless it does.
fn conf_of(conf: &str, section: &str, driver: &str, what: &str) -> String {
    let known = format!("\"{driver}\"");
    let has = |b: &String| assignment(b, "NAME").is_some_and(|(from, to)| b[from - 1..=to] == known);
    if blocks(conf, section).iter().any(has) {
        return format!("\n# {section} of {driver} is there already\n");
    }
    format!("\n# what oned has to know of {driver}\n{section} = [\n    NAME = \"{driver}\", {what}\n]\n")
}

/// The first `name = [ … ]` that is not a comment, whole lines.
fn block(conf: &str, name: &str) -> Option<String> {
    blocks(conf, name).into_iter().next()
}

fn blocks(conf: &str, name: &str) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    let mut open = false;
    for line in conf.lines() {
        let text = line.trim_start();
        if !open && text.strip_prefix(name).is_some_and(|t| t.trim_start().starts_with('=')) {
            open = true;
            out.push(String::new());
        }
        if let (true, Some(block)) = (open, out.last_mut()) {
            *block += line;
            *block += "\n";
            open = text.starts_with('#') || !text.contains(']');
        }
    }
    out
}

/// Where the quoted value of `key = "…"` begins and ends, the quotes left out.
fn assignment(block: &str, key: &str) -> Option<(usize, usize)> {
    let mut at = 0;
    for line in block.split_inclusive('\n') {
        let begin = at;
        at += line.len();
        if line.trim_start().starts_with('#') {
            continue;
        }
        let found = line.match_indices(key).find(|(i, _)| {
            !line[..*i].ends_with(|c: char| c.is_alphanumeric() || c == '_')
                && line[i + key.len()..].trim_start().starts_with('=')
        });
        if let Some((i, _)) = found {
            let from = i + line[i..].find('"')? + 1;
            return Some((begin + from, begin + from + line[from..].find('"')?));
        }
    }
    None
}

fn with_driver(block: &str, option: &str, driver: &str) -> String {
    let Some((from, to)) = assignment(block, "ARGUMENTS") else { return block.to_owned() };
    let words: Vec<&str> = block[from..to].split_whitespace().collect();
    let list = words.iter().position(|w| *w == option).and_then(|i| words.get(i + 1));
    match list {
        // Without -d every directory is a driver; without -s the stock names count.
        None => block.to_owned(),
        Some(list) if list.split(',').any(|d| d == driver) => block.to_owned(),
        Some(list) => {
            let end = from + block[from..to].find(&format!("{option} {list}")).unwrap_or(0) + 3 + list.len();
            if block.is_char_boundary(end) && block[..end].ends_with(list) {
                format!("{},{driver}{}", &block[..end], &block[end..])
            } else {
                block.to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_joins_the_list_that_is_there() {
        for (conf, part) in [
            (
                "# DATASTORE_MAD = [ ARGUMENTS = \"-d x\" ]\nDATASTORE_MAD = [\n    EXECUTABLE = \"one_datastore\",\n    ARGUMENTS = \"-t 15 -d dummy,fs -s shared\"\n]\nX = [ A = 1 ]\n",
                "ARGUMENTS = \"-t 15 -d dummy,fs,sdm -s shared,sdm_shared\"",
            ),
            ("DATASTORE_MAD=[ARGUMENTS=\"-d sdm,fs\"]\n", "DATASTORE_MAD=[ARGUMENTS=\"-d sdm,fs\"]"),
            ("DATASTORE_MAD = [ ARGUMENTS = \"-t 3\" ]\n", "ARGUMENTS = \"-t 3\""),
            ("DATASTORE_MAD = [ ARGUMENTS = \"-t 3 -d\" ]\n", "ARGUMENTS = \"-t 3 -d\""),
            ("DATASTORE_MAD = [ # ]\n", "DATASTORE_MAD = [ # ]"),
            ("", "-d ...,sdm -s ...,sdm_shared"),
            ("TM_MAD = [ ARGUMENTS = \"-t 15 -d shared,ssh\" ]\n", "-d shared,ssh,sdm_shared\""),
            ("TM_MAD_CONF = [ NAME = \"sdm_shared\" ]\n", "TM_MAD_CONF of sdm_shared is there"),
            ("", "NAME = \"sdm_shared\", LN_TARGET = \"NONE\""),
            ("DATASTORE_MAD = [ ARGUMENTS = \"unclosed\n", "unclosed"),
        ] {
            let text = lines(conf, "", "sdm", &["sdm_shared"]);
            assert!(text.contains(part), "{conf}: {text}");
            assert!(!text.contains("X = ["), "{text}");
            assert!(text.contains("NAME = \"sdm\", REQUIRED_ATTRS = \"\""), "{text}");
        }
    }

    #[test]
    fn what_is_there_is_not_asked_for_again() {
        let conf = "DS_MAD_CONF = [\n  NAME = \"fs\"\n]\nDS_MAD_CONF = [\n  NAME = \"sdm\", X = \"NO\"\n]\n";
        assert!(lines(conf, "", "sdm", &["sdm_shared"]).contains("DS_MAD_CONF of sdm is there"));
        let other = conf.replace("\"sdm\"", "\"sdm2\"");
        assert!(lines(&other, "", "sdm", &[]).contains("NAME = \"sdm\", REQUIRED"));
    }

    #[test]
    fn each_driver_is_what_the_stock_one_of_its_kind_is() {
        let text = lines("", "", "sdm", &["sdm_shared", "sdm_local", "sdm_lvm"]);
        let of = |driver: &str| {
            let from = text.find(&format!("NAME = \"{driver}\"")).unwrap();
            text[from..].split(']').next().unwrap().to_owned()
        };
        assert!(of("sdm_shared").contains("SHARED = \"YES\"") && of("sdm_shared").contains("TM_MAD_SYSTEM"));
        assert!(
            of("sdm_local").contains("SHARED = \"NO\"") && of("sdm_local").contains("LN_TARGET = \"SYSTEM\"")
        );
        assert!(
            of("sdm_lvm").contains("DISK_TYPE = \"BLOCK\"")
                && of("sdm_lvm").contains("DS_LIVE_MIGRATE = \"NO\"")
        );
    }

    #[test]
    fn what_disks_inherit_and_live_snapshots_are_asked_for_where_they_are_missing() {
        let text = lines("", "", "sdm", &["sdm_shared", "sdm_lvm"]);
        assert!(text.contains("INHERIT_DATASTORE_ATTR = \"SPARSE\""), "{text}");
        assert!(text.contains("LIVE_DISK_SNAPSHOTS=\"... kvm-sdm_shared qemu-sdm_shared\""), "{text}");
        let conf = "INHERIT_DATASTORE_ATTR  = \"SPARSE\"\n#INHERIT_DATASTORE_ATTR=\"QCOW2_STANDALONE\"\n";
        let rc = "# LIVE_DISK_SNAPSHOTS=\"x\"\nLIVE_DISK_SNAPSHOTS=\"kvm-shared kvm-sdm_shared\"\n";
        let text = lines(conf, rc, "sdm", &["sdm_shared"]);
        assert!(!text.contains("\"SPARSE\"") && text.contains("\"QCOW2_STANDALONE\""), "{text}");
        assert!(text.contains("LIVE_DISK_SNAPSHOTS=\"kvm-shared kvm-sdm_shared qemu-sdm_shared\""), "{text}");
    }
}
