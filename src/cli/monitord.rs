//! `onesdm monitord send`, for drivers written in bash: the datagram they cannot make themselves.

use super::world::World;
use crate::one::{Monitord, PAYLOAD};
use crate::sys::{Bytes, Class};
use crate::verb::refuse;
use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command, value_parser};
use std::io::Read as _;

pub fn command() -> Command {
    let arg = |name, help| Arg::new(name).value_name(name).help(help).required(true);
    Command::new("monitord")
        .about("monitord, which collects what VMs take")
        .subcommand_required(true)
        .subcommand(
            Command::new("send")
                .about("send one message, its content on stdin; nothing where monitord is not configured")
                .arg(arg("TYPE", "such as MONITOR_VM"))
                .arg(arg("RESULT", "SUCCESS or 0, else it is a failure"))
                .arg(
                    arg("OBJECT", "its id, or -1")
                        .allow_negative_numbers(true)
                        .value_parser(value_parser!(i64).range(-1..)),
                ),
        )
}

pub fn run(w: &World, m: &ArgMatches) -> Result<u8> {
    let Some(("send", m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    let get = |name: &str| m.get_one::<String>(name).map_or("", String::as_str);
    let kind = get("TYPE");
    if kind.is_empty() || !kind.bytes().all(|b| b.is_ascii_uppercase() || b == b'_') {
        return Err(refuse(Class::Usage, format!("{kind:?} is no type of message; MONITOR_VM is one")));
    }
    let Some(to) = Monitord::configured(&w.paths.etc)? else { return Ok(0) };
    let mut payload = Vec::new();
    // Packed, it may be less; what is still too long is refused.
    let limit = 16 * PAYLOAD as u64;
    std::io::stdin().lock().take(limit + 1).read_to_end(&mut payload).context("reading the message")?;
    if payload.len() as u64 > limit {
        return Err(refuse(Class::Usage, format!("the message is larger than {}", Bytes(limit))));
    }
    let good = ["0", "SUCCESS"].contains(&get("RESULT"));
    to.send(kind, good, m.get_one("OBJECT").copied().unwrap_or(-1), &payload)?;
    Ok(0)
}
