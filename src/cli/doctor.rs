//! doctor
use clap::{ArgMatches, Command};

pub fn command() -> Command {
    Command::new("doctor").about("look for what will make trouble, each with its remedy")
}

pub fn run(_w: &super::world::World, _m: &ArgMatches, _json: bool) -> anyhow::Result<u8> {
    Ok(0)
}
