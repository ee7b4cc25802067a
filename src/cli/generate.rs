//! Views of the table of verbs and of the command tree: the manual, completions, driver links.

use super::args;
use super::render;
use super::table::{Meets, Role, VERBS, Verb};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgMatches, Command};
use clap_complete::Shell;
use clap_mangen::roff::{Roff, bold, italic, roman};
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
    let put = |name: &str, page: &Roff| {
        let file = format!("{name}.7");
        std::fs::write(dir.join(&file), page.render()).with_context(|| format!("writing {file}"))
    };
    let mut all = page("onesdm-verbs", "driver verbs of onesdm");
    all.control("SH", ["DESCRIPTION"]).text([roman(INTRODUCTION)]).control("SH", ["VERBS"]);
    for v in VERBS {
        let name = page_of(v);
        let see =
            if v.run.is_some() { format!("; see {name}(7)") } else { " (not supported yet)".to_owned() };
        all.control("TP", [])
            .text([bold(format!("{}/{}", v.role, v.name))])
            .text([roman(v.summary.to_owned() + &see)]);
        if v.run.is_some() {
            put(&name, &verb_page(&name, v))?;
        }
    }
    put("onesdm-verbs", &all)
}

const INTRODUCTION: &str = "oned starts a verb by its name below the remotes directory, ROLE/DRIVER/VERB, with its arguments and a \
document on standard input. A verb answers on standard output; when it fails it says why in one line on standard error \
and ends with the status of its class (onesdm(1)).";

fn page(name: &str, about: &str) -> Roff {
    let mut out = Roff::new();
    let version = concat!("onesdm ", env!("CARGO_PKG_VERSION"));
    out.control("TH", [name, "7", "", version, "onesdm"])
        .control("SH", ["NAME"])
        .text([roman(format!("{name} - {about}"))]);
    out
}

fn page_of(v: &Verb) -> String {
    format!("onesdm-{}-{}", v.role, v.name)
}

fn verb_page(name: &str, v: &Verb) -> Roff {
    let mut out = page(name, v.summary);
    out.control("SH", ["SYNOPSIS"]).text([
        bold(format!("remotes/{}/", v.role)),
        italic("DRIVER"),
        bold(format!("/{} ", v.name)),
        italic("ARGUMENTS"),
    ]);
    out.text([roman(format!("DRIVER is one of {}.", v.role.drivers().collect::<Vec<_>>().join(", ")))]);
    for (title, text) in sections(v) {
        out.control("SH", [title.to_uppercase().as_str()]).text([roman(text)]);
    }
    out.control("SH", ["SEE ALSO"]).text([roman("onesdm(1), onesdm-verbs(7)")]);
    out
}

fn completions(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut args::tree(), "onesdm", dir).context("writing completions")?;
    }
    Ok(())
}

/// What is to be said of a verb: title and text.
fn sections(v: &Verb) -> Vec<(&'static str, String)> {
    let answer = if v.answer.is_empty() { "nothing" } else { v.answer };
    let repeats = match v.meets {
        Meets::Reads => "changes nothing, so a repeat answers what is so then",
        Meets::State => "looks, and does what is missing: a repeat finds it done and succeeds",
        Meets::Named => {
            "the name derives from the request, so a repeat finds what the first made and gives the same answer"
        }
        Meets::Again => {
            "does it anew, and keeps what it displaces for a while; the same job id gets the recorded answer"
        }
    };
    let locks = if v.locks.is_empty() { "nothing" } else { v.locks };
    let mut out = vec![
        ("Answer", answer.to_owned()),
        ("Repeated", repeats.to_owned()),
        ("Locks", locks.to_owned()),
        ("Evidence", v.evidence.to_owned()),
    ];
    if v.moves_data {
        out.push(("Plan", "`onesdm --plan` says what it would do".to_owned()));
    }
    if !v.variants.is_empty() {
        out.push(("Also as", v.names().skip(1).collect::<Vec<_>>().join(", ")));
    }
    out
}

/// The table of verbs as `docs/verbs.md`.
fn verbs() -> String {
    let mut out = String::from(
        "# Verbs\n\nWhat oned calls, as `onesdm generate verbs` writes it from the program's own table; each has a man page, too:\n\
         `man onesdm-datastore-cp`. *Evidence* is what on storage shows how a call ended, for whoever lost its answer.\n\
         On a volume group an image is the volume `vg-one-<datastore>/img-one-<image>` in place of a file, a VM's own disk is\n\
         `vm-one-<vm>-<disk>` in the group of its image, and snapshot N is either of them with `_one_sN` behind.\n",
    );
    for role in [Role::Datastore, Role::Tm] {
        for v in VERBS.iter().filter(|v| v.role == role) {
            let _ = writeln!(out, "\n## {role}/{}\n\n{}.", v.name, capital(v.summary));
            if v.run.is_none() {
                out += "Not supported yet.\n";
                continue;
            }
            out += "\n";
            for (title, text) in sections(v) {
                let _ = writeln!(out, "- **{title}**: {text}");
            }
        }
    }
    out
}

fn capital(s: &str) -> String {
    let mut chars = s.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_verb_has_a_page_that_says_what_it_answers_and_what_shows_success() {
        let t = tempfile::tempdir().unwrap();
        super::man(t.path()).unwrap();
        for v in super::VERBS {
            let page = std::fs::read_to_string(t.path().join(format!("onesdm-{}-{}.7", v.role, v.name)));
            assert_eq!(page.is_ok(), v.run.is_some(), "{}", v.name);
            let missing = |p: &String| {
                ["NAME", "SYNOPSIS", "ANSWER", "LOCKS", "EVIDENCE"]
                    .iter()
                    .any(|s| !p.contains(&format!(".SH {s}")))
            };
            assert!(!page.is_ok_and(|p| missing(&p)), "{}", v.name);
        }
    }

    #[test]
    fn links_are_listed_for_our_own_names() {
        let r = super::remotes();
        for link in ["datastore/sdm/cp", "tm/sdm_shared/mkimage", "tm/sdm_shared/clone.ssh"] {
            assert!(r.lines().any(|l| l == link), "{link}");
        }
        assert!(r.lines().all(|l| !l.contains("/fs/") && !l.ends_with("/restore")));
    }
}
