//! `onesdm activate`: after a boot, the devices of the volumes that this host had before. Which those are is
//! told by their tags.

use super::World;
use super::domain::path_of;
use super::garbage::all_known;
use crate::cli::render;
use crate::sdm::{Domain, group};
use crate::verb::one_line;
use anyhow::{Context as _, Result};
use clap::ArgMatches;
use serde_json::json;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let given: Vec<&OsString> = m.get_many::<OsString>("domain").into_iter().flatten().collect();
    let places: BTreeSet<PathBuf> = if given.is_empty() {
        let known = all_known(w).into_iter().map(|(_, k)| k.path);
        known.filter(|path| group::group_of(path).is_some()).collect()
    } else {
        given.into_iter().map(|a| path_of(w, a)).collect::<Result<_>>()?
    };
    let (mut devices, mut failed) = (Vec::new(), None);
    // What can be had is had, whatever else cannot.
    let mut skipped = |e: anyhow::Error| {
        render::log("ERROR", "activate", &one_line(&e));
        failed = failed.take().or(Some(e));
    };
    for place in places {
        let (group, stores) =
            (group::group_of(&place).unwrap_or_default(), &w.config.settings.paths.datastores);
        let opened = w.open(&place).with_context(|| format!("opening {}", place.display()));
        let regained = opened.and_then(|d| Ok((group::regain(&*d.engine, (group, stores))?, d)));
        let (volumes, domain): (_, Domain) = match regained {
            Ok(found) => found,
            Err(e) => {
                skipped(e);
                continue;
            }
        };
        for (at, device) in volumes {
            match device {
                Ok(path) => devices.push(path.display().to_string()),
                Err(e) => skipped(anyhow::Error::from(e).context(format!("{}/{at}", domain.place))),
            }
        }
    }
    if as_json {
        render::json(&json!({ "devices": devices }))?;
    } else {
        render::print(&devices.join("\n"))?;
    }
    failed.map_or(Ok(0), Err)
}
