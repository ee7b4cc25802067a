//! install
use clap::{ArgMatches, Command};

pub fn command() -> Command {
    Command::new("install").about("link the drivers below a remotes directory, and back")
}

pub fn run(_w: &super::world::World, _m: &ArgMatches, _json: bool) -> anyhow::Result<u8> {
    Ok(0)
}
