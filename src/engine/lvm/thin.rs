//! How full pools are, as the kernel tells of those that this host has active, and whether another program of
//! this host makes them larger. Neither looks at the group.

use super::group::Group;
use super::view::View;
use super::{Bytes, LvmEngine, PoolUse, Result};
use crate::sys::Tool;

/// A block of a pool's own tables.
const TABLE_BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
/// `--noflush`: a look is no commit of the pool's tables.
pub(super) const STATUS: [&str; 4] = ["status", "--noflush", "--target", "thin-pool"];
const GROWTH: [&str; 4] =
    ["--typeconfig", "full", "activation/monitoring", "activation/thin_pool_autoextend_threshold"];

/// What a new pool takes: itself, its tables, and as much again for their repair, which a group has once. As LVM
/// computes it where nobody told it otherwise: 64 bytes for each 64 KiB, at least 2 MiB.
pub(super) fn of_pool(view: &View, size: Bytes) -> Bytes {
    let tables = |size: Bytes| LvmEngine::whole(view, Bytes((size.0 / 1024).max(2 << 20)));
    let size = LvmEngine::whole(view, size);
    let spare = view.volumes.iter().filter(|v| v.is_pool).map(|v| tables(v.size)).max().unwrap_or_default();
    let more = tables(size).0.saturating_sub(spare.0);
    Bytes(size.0.saturating_add(tables(size).0).saturating_add(more))
}

impl LvmEngine {
    /// From how many percent on dmeventd of this host makes pools larger; it knows nothing of our locks.
    pub fn grown_at(&self) -> Result<Option<u64>> {
        grown_at(&self.group)
    }
}

pub(super) fn grown_at(group: &Group) -> Result<Option<u64>> {
    let said = group.ask(Tool::LvmConfig, &GROWTH, false)?;
    let said = String::from_utf8_lossy(&said);
    let number = |key: &str| said.lines().find_map(|l| l.trim().strip_prefix(key)?.parse::<u64>().ok());
    let monitored = number("monitoring=") != Some(0);
    Ok(number("thin_pool_autoextend_threshold=").filter(|percent| monitored && *percent < 100))
}

pub(super) fn pools(group: &Group) -> Result<Vec<PoolUse>> {
    let said = group.ask(Tool::DmSetup, &STATUS, true)?;
    Ok(String::from_utf8_lossy(&said).lines().filter_map(|l| pool(&group.name, l)).collect())
}

/// `<group>-<pool>-tpool: <first> <sectors> thin-pool <transaction> <tables> <data> <root> <mode> ...`, where a
/// hyphen in a name is doubled.
fn pool(group: &str, line: &str) -> Option<PoolUse> {
    let (device, rest) = line.split_once(": ")?;
    let name = device.strip_prefix(&group.replace('-', "--"))?.strip_prefix('-')?;
    if name.starts_with('-') {
        // Of a group whose name begins as this one's does.
        return None;
    }
    let name = name.strip_suffix("-tpool").unwrap_or(name).replace("--", "-");
    let words: Vec<&str> = rest.split_whitespace().collect();
    let sectors: u64 = words.get(1)?.parse().ok()?;
    if words.get(3) == Some(&"Fail") {
        let trouble = Some("it failed".to_owned());
        let size = Bytes(sectors.saturating_mul(SECTOR));
        let none = (Bytes(0), Bytes(0));
        return Some(PoolUse { name, data: (Bytes(0), size), tables: none, trouble });
    }
    let pair = |at: usize| {
        let (used, all) = words.get(at)?.split_once('/')?;
        Some((used.parse::<u64>().ok()?, all.parse::<u64>().ok()?))
    };
    let ((tables, all_tables), (data, all_data)) = (pair(4)?, pair(5)?);
    let block = sectors.saturating_mul(SECTOR) / all_data.max(1);
    let bytes = |blocks: u64, of: u64| Bytes(blocks.saturating_mul(of));
    let trouble = match words.get(7) {
        Some(&"rw") if words.contains(&"needs_check") => Some("its tables need `thin_check`".to_owned()),
        Some(&"rw") => None,
        mode => Some(format!("it takes no writes ({})", mode.unwrap_or(&"without a mode"))),
    };
    Some(PoolUse {
        name,
        data: (bytes(data, block), bytes(all_data, block)),
        tables: (bytes(tables, TABLE_BLOCK), bytes(all_tables, TABLE_BLOCK)),
        trouble,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Cancel, Tools};
    use std::collections::BTreeMap;
    use std::time::Duration;

    #[test]
    fn a_pool_is_read_as_the_kernel_tells_of_it() {
        let own = "vg--one--1-img--one--2--pool-tpool: 0 16384 thin-pool 1 11/1024 32/128 - rw discard_passdown \
                   queue_if_no_space - 1024 ";
        let found = pool("vg-one-1", own).unwrap();
        assert_eq!(found.name, "img-one-2-pool");
        assert_eq!(found.data, (Bytes(2 << 20), Bytes(8 << 20)));
        assert_eq!(found.tables, (Bytes(11 * 4096), Bytes(4 << 20)));
        assert_eq!(found.trouble, None);
        for (mode, word) in [(" ro ", "ro"), (" out_of_data_space ", "out_of_data_space")] {
            let trouble = pool("vg-one-1", &own.replace(" rw ", mode)).unwrap().trouble.unwrap();
            assert!(trouble.contains(word), "{trouble}");
        }
        assert!(pool("vg-one-1", &own.replace("- 1024", "needs_check 1024")).unwrap().trouble.is_some());
        let dead = "vg--one--1-a--pool: 0 16384 thin-pool Fail";
        assert!(pool("vg-one-1", dead).unwrap().trouble.is_some());
        for other in
            ["vg--one--10-a: 0 16384 thin-pool 1 1/2 1/2 - rw", "No devices found", "x: 0 1 thin-pool"]
        {
            assert!(pool("vg-one-1", other).is_none() && pool("vg-one", own).is_none(), "{other}");
        }
    }

    const SETTINGS: [([&str; 2], Option<u64>); 3] = [
        (["--config", "activation{monitoring=1 thin_pool_autoextend_threshold=70}"], Some(70)),
        (["--config", "activation{monitoring=1 thin_pool_autoextend_threshold=100}"], None),
        (["--config", "activation{monitoring=0 thin_pool_autoextend_threshold=70}"], None),
    ];

    #[test]
    fn growth_by_another_program_is_seen_in_the_hosts_configuration() {
        let at = |flags: &'static [&'static str]| {
            let tools = Tools::new(BTreeMap::new()).unwrap();
            let group = Group::new("vg-one-1", &[], tools, Duration::from_secs(60), Cancel::default(), flags);
            grown_at(&group.unwrap()).unwrap()
        };
        for (flags, percent) in &SETTINGS {
            assert_eq!(at(flags), *percent, "{flags:?}");
        }
    }
}
