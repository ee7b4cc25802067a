//! `onesdm connection`: what this program mounted on this host for datastores with NFS_AUTO.

use super::World;
use crate::cli::render;
use crate::connection::State;
use crate::sys::Class;
use anyhow::Result;
use clap::{Arg, ArgMatches, Command};
use serde_json::{json, to_value};

pub fn command() -> Command {
    let id = Arg::new("id").value_name("ID").help("as `onesdm connection list` shows it").required(true);
    Command::new("connection")
        .about("shares that were mounted on this host for datastores")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(Command::new("list").about("all that this program mounted, and whether they still are"))
        .subcommand(
            Command::new("drop")
                .about("unmount one that nobody uses and forget it; what somebody else mounted there stays")
                .arg(id),
        )
}

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let all = w.connections();
    let Some((verb, m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    if verb == "drop" {
        let id = m.get_one::<String>("id").map_or("", String::as_str);
        let was = all.drop(id)?;
        let text = match was {
            State::Mounted => "unmounted",
            State::Gone => "was not mounted any more; forgotten",
            State::Other => "what is mounted there now is somebody else's and stays; forgotten",
        };
        if as_json {
            render::json(&json!({ "id": id, "was": was }))?;
        } else {
            render::print(&format!("{id}: {text}"))?;
        }
        return Ok(0);
    }
    let list = all.list()?;
    if as_json {
        let doc = |(record, state)| -> Result<_> {
            let mut doc = to_value(record)?;
            doc["state"] = to_value::<State>(state)?;
            Ok(doc)
        };
        render::json(&list.into_iter().map(doc).collect::<Result<Vec<_>>>()?)?;
        return Ok(0);
    }
    let row = |(r, state): (crate::connection::Record, State)| {
        let state = match state {
            State::Mounted => "mounted",
            State::Gone => "not mounted",
            State::Other => "another mount is there",
        };
        vec![r.id, r.share.to_string(), r.point.display().to_string(), r.owner, r.since, state.to_owned()]
    };
    let rows: Vec<Vec<String>> = list.into_iter().map(row).collect();
    render::print(&render::table(&["ID", "SHARE", "DIRECTORY", "OWNER", "SINCE", "STATE"], &rows))?;
    Ok(0)
}
