//! The command line of people's commands, as one clap tree: parsing, `--help`, the manual and the
//! completions are views of it.

use super::table::{Role, VERBS};
use clap::{Arg, ArgAction, Command, value_parser};
use std::ffi::OsString;
use std::path::PathBuf;

fn arg(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    arg(name, help).action(ArgAction::SetTrue)
}

fn positional(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).help(help).value_name(name.to_uppercase())
}

fn domains() -> Arg {
    positional("domain", "directory, domain id or datastore number; all known ones when none is given")
        .num_args(0..)
        .value_parser(value_parser!(OsString))
}

fn one_domain() -> Arg {
    domains().num_args(1).required(true).help("directory, /dev/GROUP, domain id or datastore number")
}

fn noun(name: &'static str, about: &'static str, verbs: impl IntoIterator<Item = Command>) -> Command {
    Command::new(name).about(about).subcommand_required(true).arg_required_else_help(true).subcommands(verbs)
}

/// The whole tree.
pub fn tree() -> Command {
    Command::new("onesdm")
        .about("Storage drivers and storage domain manager for OpenNebula clouds")
        .long_about(
            "Storage drivers and storage domain manager for OpenNebula clouds.\n\nCalled through a link \
             named ROLE/DRIVER/VERB it is that driver's verb, as oned calls it; `--as` does the same \
             without a link. Called by its own name it offers the commands below.",
        )
        .after_help(
            "Exit status: 0 done, 2 usage, 3 not found, 4 busy, 5 unsupported, 6 remote, 7 timeout, \
             8 integrity, 9 in use, 10 refused, 70 internal, 130 cancelled.",
        )
        .disable_version_flag(true)
        .subcommand_required(false)
        .args_conflicts_with_subcommands(false)
        .arg(flag("version", "version, and the formats read and written").short('V'))
        .arg(flag("json", "answer in JSON").global(true))
        .arg(
            arg("set", "a setting for this call, KEY=VALUE")
                .value_name("KEY=VALUE")
                .action(ArgAction::Append)
                .global(true),
        )
        .arg(
            arg("job", "id of this request, a UUID; the same id gets the same answer")
                .id("job-id")
                .value_name("UUID")
                .global(true),
        )
        .arg(
            arg("as", "be this driver's verb; its arguments follow --")
                .value_name("ROLE/DRIVER/VERB")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(flag("plan", "say what the verb given by --as would do, and change nothing").requires("as"))
        .arg(
            Arg::new("args")
                .help("arguments of the verb given by --as")
                .last(true)
                .num_args(0..)
                .value_parser(value_parser!(OsString)),
        )
        .subcommand(jobs())
        .subcommand(super::admin::top::command())
        .subcommand(super::admin::metrics::command())
        .subcommand(
            Command::new("event")
                .about("what happened on this host")
                .arg(flag("follow", "go on as new events come"))
                .arg(arg("of-job", "events of one job").value_name("UUID")),
        )
        .subcommand(
            Command::new("activate")
                .about(
                    "make the devices of volumes that this host had before its boot; fails if one is skipped",
                )
                .arg(domains()),
        )
        .subcommand(
            Command::new("gc")
                .about("remove what dead jobs left, and removed images")
                .arg(flag("plan", "show what would go and why, change nothing"))
                .arg(flag("reconcile", "list published images that nobody acknowledged"))
                .arg(flag("short", "space is short: kept tombstones go, too"))
                .arg(domains()),
        )
        .subcommand(
            Command::new("check")
                .about("look for broken rules; 8 when there are any")
                .arg(flag("deep", "read all tables of every image, too"))
                .arg(domains()),
        )
        .subcommand(noun("lock", "locks", [Command::new("show").about("who holds what").arg(domains())]))
        .subcommand(domain())
        .subcommand(super::admin::connection::command())
        .subcommand(noun(
            "image",
            "disk images",
            [Command::new("probe").about("what an image is, as its header says").arg(
                positional("file", "path of the image").required(true).value_parser(value_parser!(PathBuf)),
            )],
        ))
        .subcommand(noun(
            "config",
            "settings",
            [
                Command::new("show")
                    .about("settings in force")
                    .arg(flag("origin", "where each value came from")),
                Command::new("defaults").about("every setting with its default, commented"),
            ],
        ))
        .subcommand(datastore())
        .subcommand(super::agent::command())
        .subcommand(super::agent::probe_command())
        .subcommand(super::monitord::command())
        .subcommand(super::install::command())
        .subcommand(super::doctor::command())
        .subcommand(super::generate::command())
        .subcommand(super::guard::command())
        .subcommands(for_tests())
}

#[cfg(not(feature = "failpoints"))]
fn for_tests() -> [Command; 0] {
    []
}

#[cfg(feature = "failpoints")]
fn for_tests() -> [Command; 1] {
    [super::guard::op_command()]
}

fn jobs() -> Command {
    let job = || positional("job", "UUID of the job").required(true);
    noun(
        "job",
        "jobs of this host",
        [
            Command::new("list")
                .about("active jobs; with --all the finished ones, too")
                .arg(flag("all", "finished jobs, too")),
            Command::new("show").about("one job").arg(job()),
            Command::new("watch").about("follow one job to its end").arg(job()),
            Command::new("cancel")
                .about("ask a job of this host to stop; it leaves nothing behind")
                .arg(job()),
        ],
    )
}

fn domain() -> Command {
    noun(
        "domain",
        "storage domains",
        [
            Command::new("init")
                .about("make a directory, or a volume group (/dev/GROUP), a storage domain")
                .arg(
                    arg(
                        "lock",
                        "what keeps its users apart: ofd (the default for directories), or sanlock for several hosts",
                    )
                    .value_name("KIND")
                    .value_parser(["ofd", "sanlock"]),
                )
                .arg(one_domain()),
            Command::new("list").about("domains this host knows"),
            Command::new("show").about("one domain and what its storage can do").arg(one_domain()),
            Command::new("adopt")
                .about("say that a copied or restored domain is the real one")
                .arg(flag("new-id", "the original lives on: this copy becomes a domain of its own"))
                .arg(one_domain()),
            Command::new("join")
                .about(
                    "make this host a member of domains with sanlock's locks; all of them when none is given",
                )
                .arg(
                    arg("host-id", "this host's number, from 1; setting sanlock.host_id")
                        .value_name("N")
                        .value_parser(value_parser!(u32)),
                )
                .arg(domains()),
            Command::new("leave")
                .about("end this host's membership; refused while a job of this host holds a lock")
                .arg(domains()),
            Command::new("remove")
                .about("take our area out of a directory; refuses while there is work or garbage")
                .arg(one_domain()),
        ],
    )
}

/// `onesdm ds VERB`: a datastore verb with options in place of a driver message.
fn datastore() -> Command {
    let verbs = VERBS.iter().filter(|v| v.role == Role::Datastore && v.run.is_some());
    noun(
        "ds",
        "datastore verbs, with options in place of oned's message",
        verbs.map(|v| {
            let name = v.name.replace('_', "-");
            let c = Command::new(name)
                .about(v.summary)
                .arg(arg("datastore", "the datastore's directory").value_name("DIR").required(true));
            let c = c.arg(arg("datastore-id", "OpenNebula's number of the datastore").value_name("N"));
            let c = c.args(v.moves_data.then(|| flag("plan", "say what it would do, and change nothing")));
            match v.name {
                "cp" | "clone" | "stat" => c
                    .arg(arg("path", "the source: a path, or an http(s) URL").required(true))
                    .args((v.name != "stat").then(|| arg("id", "the new image's number").required(true)))
                    .args(
                        (v.name != "stat")
                            .then(|| arg("regtime", "its registration time; its name derives from both")),
                    )
                    .args((v.name == "cp").then(|| arg("sha256", "digest the source must have")))
                    .args((v.name == "cp").then(|| arg("md5", "digest the source must have")))
                    .arg(arg("driver", "format to store: raw or qcow2"))
                    .arg(arg("safe-dir", "directories that may be read").action(ArgAction::Append)),
                "mkfs" => c
                    .arg(arg("id", "the new image's number").required(true))
                    .arg(arg("regtime", "its registration time; its name derives from both"))
                    .arg(arg("size", "MiB").required(true))
                    .arg(arg("format", "raw, qcow2 or swap"))
                    .arg(arg("fs", "file system to make")),
                "rm" | "export" => c.arg(arg("source", "the image").required(true)),
                "monitor" => c,
                _ => c
                    .arg(arg("source", "the image").required(true))
                    .arg(arg("snapshot", "number of the snapshot").required(true)),
            }
        }),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_sound() {
        super::tree().debug_assert();
    }
}
