//! Views of the table of verbs and of the command tree: the manual, completions, driver links.

use super::args;
use super::render;
use super::table::{Role, VERBS};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use std::fmt::Write as _;
use std::path::Path;

pub fn command() -> Command {
    let dir = || Arg::new("dir").required(true).value_name("DIR").help("directory to write to");
    let sub = |name: &'static str, about: &'static str| Command::new(name).about(about);
    Command::new("generate")
        .about("files for packages: manual, completions, driver links")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(sub("man", "write man pages").arg(dir()))
        .subcommand(sub("completions", "write shell completions").arg(dir()))
        .subcommand(sub("remotes", "list the driver links to make, role/driver/verb, a line each"))
        .subcommand(sub("verbs", "the table of verbs, as Markdown"))
}

pub fn run(m: &ArgMatches) -> Result<u8> {
    let dir = |m: &ArgMatches| Path::new(m.get_one::<String>("dir").map_or(".", String::as_str)).to_owned();
    match m.subcommand() {
        Some(("man", m)) => man(&dir(m))?,
        Some(("completions", m)) => completions(&dir(m))?,
        Some(("remotes", _)) => render::print(&remotes())?,
        _ => render::print(&verbs())?,
    }
    Ok(0)
}

/// The links of our own driver names; stock names are made by `install --replace`.
pub fn remotes() -> String {
    let mut out = String::new();
    for v in VERBS.iter().filter(|v| v.run.is_some()) {
        for own in v.role.families().iter().filter_map(|f| f.first()) {
            for name in v.names() {
                let _ = writeln!(out, "{}/{own}/{name}", v.role);
            }
        }
    }
    out
}

fn man(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    clap_mangen::generate_to(args::tree(), dir).context("writing man pages")?;
    let mut page = Vec::new();
    let table = Command::new("onesdm-verbs").about("driver verbs of onesdm").after_long_help(verbs());
    clap_mangen::Man::new(table).title("onesdm-verbs").section("7").render(&mut page)?;
    std::fs::write(dir.join("onesdm-verbs.7"), page).context("writing onesdm-verbs.7")
}

fn completions(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut args::tree(), "onesdm", dir).context("writing completions")?;
    }
    Ok(())
}

/// One section per verb: answer, what is locked, how it meets what is there, evidence on storage.
fn verbs() -> String {
    let mut out = String::new();
    for role in [Role::Datastore, Role::Tm] {
        for v in VERBS.iter().filter(|v| v.role == role) {
            let _ = writeln!(out, "## {role}/{}\n\n{}.", v.name, v.summary);
            if v.run.is_none() {
                out += "Not supported yet.\n\n";
                continue;
            }
            let answer = if v.answer.is_empty() { "nothing" } else { v.answer };
            let _ = writeln!(
                out,
                "\n- answers: {answer}\n- repeats: {:?}\n- locks: {}\n- evidence: {}",
                v.meets, v.locks, v.evidence
            );
            if !v.variants.is_empty() {
                let _ = writeln!(out, "- also as: {}", v.names().skip(1).collect::<Vec<_>>().join(", "));
            }
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn links_are_listed_for_our_own_names() {
        let r = super::remotes();
        for link in ["datastore/sdm/cp", "tm/sdm_shared/mkimage", "tm/sdm_shared/clone.ssh"] {
            assert!(r.lines().any(|l| l == link), "{link}");
        }
        assert!(r.lines().all(|l| !l.contains("/fs/") && !l.ends_with("/restore")));
    }
}
