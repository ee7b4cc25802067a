//! `onesdm install`: makes the drivers' names below a remotes directory lead to this program, keeps what
//! it replaces, and gives it back.

mod helper;
mod manifest;
mod oned;
mod slot;
mod tree;

#[cfg(test)]
pub use manifest::Entry;
pub use manifest::{Manifest, Style};
pub use tree::{Stand, Tree};

use super::admin::all_known;
use super::render;
use super::table::{Role, VERBS, Verb};
use super::world::World;
use crate::sdm::group;
use crate::sys::{Bytes, Class, path, shim, user};
use crate::verb::{one_line, refuse};
use anyhow::{Context as _, Result};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde_json::json;
use slot::Put;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use tree::{Action, Step};

pub fn command() -> Command {
    let flag = |name, help| Arg::new(name).long(name).help(help).action(ArgAction::SetTrue);
    Command::new("install")
        .about("make the drivers below a remotes directory lead to this program, and back")
        .long_about(
            "Makes the drivers below a remotes directory lead to this program: always under our own \
             driver names, and with --replace under stock ones. What had a name before is kept beside it \
             and comes back with --uninstall. Run again after an upgrade of either side, or after an \
             interruption: it does what is missing.",
        )
        .arg(
            Arg::new("remotes")
                .long("remotes")
                .value_name("DIR")
                .help("the remotes directory; the setting paths.remotes when not given")
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("replace")
                .long("replace")
                .value_name("DRIVER")
                .help("take over a stock driver's name, too, such as fs; may be given several times")
                .action(ArgAction::Append)
                .conflicts_with("uninstall"),
        )
        .arg(
            Arg::new("style")
                .long("style")
                .value_name("STYLE")
                .help("symlink, or shim: a file of two lines, for trees that are copied to many hosts; at first symlink")
                .value_parser(["symlink", "shim"])
                .conflicts_with("uninstall"),
        )
        .arg(flag("uninstall", "give back everything that was replaced"))
        .arg(flag("leave", "uninstall although domains have work or garbage left").requires("uninstall"))
        .arg(flag("plan", "show what would be done, change nothing").visible_alias("dry-run"))
        .arg(flag("brief", "say only what changes"))
        .arg(flag("show-oned-conf", "print what oned.conf and vmm_execrc need for our own driver names, and stop"))
}

pub fn run(w: &World, m: &ArgMatches, as_json: bool) -> Result<u8> {
    if m.get_flag("show-oned-conf") {
        return show_oned_conf(w, as_json);
    }
    let remotes = m.get_one::<PathBuf>("remotes").unwrap_or(&w.paths.remotes);
    let remotes = std::path::absolute(remotes)?;
    if m.get_flag("uninstall") {
        return uninstall(w, &remotes, m, as_json);
    }
    let program = path::own_program().context("finding this program")?;
    let replace: Vec<&str> =
        m.get_many::<String>("replace").into_iter().flatten().map(String::as_str).collect();
    stock_names(&replace)?;
    let plan_only = m.get_flag("plan");
    let tree = if plan_only { Tree::open(&remotes)? } else { Tree::open_alone(&remotes)? };
    if !user::may_execute(&program) {
        let text = format!(
            "{} cannot be run by user {}, who owns {}: put it where that account reaches it",
            program.display(),
            user::uid(),
            remotes.display()
        );
        return Err(refuse(Class::Refused, text));
    }
    let wanted = m.get_one::<String>("style").map(|s| if s == "shim" { Style::Shim } else { Style::Symlink });
    let style = tree::style(tree.manifest.as_ref(), wanted);
    if shim::text(&program, "").is_none() {
        let text = format!("{}: move the program to a path that is text of one line", program.display());
        return Err(refuse(Class::Refused, text));
    }
    let paths = paths(&tree, &remotes, &replace)?;
    let plan = tree.plan(&paths, Put { style, program: &program })?;
    let borrowers = tree.borrowers(&plan.steps)?;
    if !borrowers.is_empty() {
        let text = format!(
            "{} in {} lead to files that would be replaced, and would stop working; make them copies \
             (`cp --remove-destination`) first",
            borrowers.join(", "),
            remotes.display()
        );
        return Err(refuse(Class::Refused, text));
    }
    if !plan_only {
        tree.apply(&plan)?;
    }
    let stays = stays(&remotes, &plan.steps);
    let cost = cost(style, &program, plan.steps.len());
    if as_json {
        render::json(&json!({
            "remotes": remotes, "program": program, "style": style, "plan": plan_only, "verbs": plan.steps,
            "helpers": plan.helpers, "stays": stays, "cost": cost,
        }))?;
        return Ok(0);
    }
    let all = [plan.steps, plan.helpers].concat();
    if m.get_flag("brief") {
        render::print(&changes(&all))?;
        return Ok(0);
    }
    let mut text = shown(&all);
    if !stays.is_empty() {
        text += &format!("not offered by this program, so the stock files stay: {}\n", stays.join(", "));
    }
    text += &format!(
        "{cost}\nfor drivers under our own names oned.conf needs lines: `onesdm install --show-oned-conf`\n"
    );
    text += &format!("the way back: `onesdm install --uninstall --remotes {}`\n", remotes.display());
    if plan_only {
        text += "this was a plan; nothing was changed\n";
    }
    render::print(&text)?;
    Ok(0)
}

fn roles() -> impl Iterator<Item = Role> {
    [Role::Datastore, Role::Tm].into_iter()
}

/// Stock names must be of a role we offer.
fn stock_names(replace: &[&str]) -> Result<()> {
    let offered: BTreeSet<&str> =
        roles().flat_map(Role::families).flat_map(|f| f.iter().skip(1)).copied().collect();
    match replace.iter().find(|d| !offered.contains(*d)) {
        None => Ok(()),
        Some(d) => {
            let all = offered.into_iter().collect::<Vec<_>>().join(", ");
            Err(refuse(Class::Usage, format!("--replace {d}: not a stock driver we offer; there are {all}")))
        }
    }
}

/// Every name that is to be ours: our own drivers', those asked for, and those of an install before.
fn paths(tree: &Tree, remotes: &Path, replace: &[&str]) -> Result<BTreeSet<String>> {
    let before: BTreeSet<&str> = tree
        .manifest
        .iter()
        .flat_map(|m| &m.verbs)
        .filter_map(|e| Some(e.path.rsplit_once('/')?.0))
        .collect();
    let mut out = BTreeSet::new();
    for role in roles() {
        for (i, driver) in role.families().iter().flat_map(|f| f.iter().enumerate()) {
            let dir = format!("{role}/{driver}");
            let asked = replace.contains(driver);
            if !(i == 0 || asked || before.contains(dir.as_str())) {
                continue;
            }
            let need = if asked { &dir } else { &role.to_string() };
            if (i == 0 || asked) && !(tree.has(&role.to_string())? && remotes.join(need).is_dir()) {
                let text =
                    format!("{}/{need} does not exist; is this a remotes directory?", remotes.display());
                return Err(refuse(Class::NotFound, text));
            }
            let verbs = VERBS.iter().filter(|v| v.role == role && v.run.is_some());
            out.extend(verbs.flat_map(Verb::names).map(|name| format!("{dir}/{name}")));
        }
    }
    Ok(out)
}

/// Stock files of verbs we do not offer, in directories of drivers we took over.
fn stays(remotes: &Path, steps: &[Step]) -> Vec<String> {
    let dirs: BTreeSet<&str> = steps.iter().filter_map(|s| Some(s.path.rsplit_once('/')?.0)).collect();
    let verbs = |dir: &str| {
        let role = dir.split('/').next().unwrap_or_default().to_owned();
        VERBS.iter().filter(move |v| v.run.is_none() && v.role.to_string() == role)
    };
    dirs.into_iter()
        .flat_map(|d| verbs(d).map(move |v| format!("{d}/{}", v.name)))
        .filter(|p| remotes.join(p).exists())
        .collect()
}

/// What the style costs at a site.
pub fn cost(style: Style, program: &Path, verbs: usize) -> String {
    let size = std::fs::metadata(program).map_or(0, |m| m.len());
    let all = Bytes(size.saturating_mul(verbs as u64));
    match style {
        Style::Symlink => format!(
            "{verbs} names lead to {} as symlinks: a call costs nothing more, but `onehost sync` follows links and \
             copies the program once per name to every host, {all} in all; `--style shim` copies a line instead",
            program.display()
        ),
        Style::Shim => format!(
            "{verbs} names lead to {} as files of two lines: `onehost sync` copies next to nothing, but each call \
             starts a shell first, and the program must be at that path on every host where verbs run",
            program.display()
        ),
    }
}

fn word(a: Action) -> &'static str {
    match a {
        Action::Nothing => "is as it should be",
        Action::Make => "new",
        Action::Replace => "replaced, what was there is kept beside it",
        Action::Relink => "ours already, led elsewhere",
        Action::Restore => "given back",
        Action::Remove => "removed, nothing was there before",
        Action::LeaveNewer => "somebody put another file there since: it stays",
        Action::Lost => "stays ours: what was kept of it is gone",
    }
}

fn shown(steps: &[Step]) -> String {
    let rows: Vec<Vec<String>> =
        steps.iter().map(|s| vec![s.path.clone(), word(s.action).to_owned()]).collect();
    if rows.is_empty() { String::new() } else { render::table(&["NAME", "WHAT"], &rows) }
}

/// A line per name that is not as it should be, with what is done about it.
fn changes(steps: &[Step]) -> String {
    let done = steps.iter().filter(|s| s.action != Action::Nothing);
    done.map(|s| format!("{}: {}\n", s.path, word(s.action))).collect()
}

fn uninstall(w: &World, remotes: &Path, m: &ArgMatches, as_json: bool) -> Result<u8> {
    let (plan_only, leave) = (m.get_flag("plan"), m.get_flag("leave"));
    // Before we become the owner of the tree, who need not be the datastores' owner.
    let busy = unfinished(w);
    if !(busy.is_empty() || leave || plan_only) {
        let text = format!(
            "work or garbage is left that stock drivers know nothing of: {}; run `onesdm gc --short`, or say --leave",
            busy.join("; ")
        );
        return Err(refuse(Class::Refused, text));
    }
    let tree = if plan_only { Tree::open(remotes)? } else { Tree::open_alone(remotes)? };
    let steps = tree.undo_plan()?;
    let helpers = tree.undo_helpers()?;
    if !plan_only {
        tree.undo(&steps, &helpers)?;
    }
    let lost = steps.iter().any(|s| s.action == Action::Lost);
    if as_json {
        render::json(
            &json!({ "remotes": remotes, "plan": plan_only, "verbs": steps, "helpers": helpers, "left": busy }),
        )?;
    } else {
        let all = [steps, helpers].concat();
        let mut text = if m.get_flag("brief") { changes(&all) } else { shown(&all) };
        if tree.manifest.is_none() {
            text = format!("nothing is installed in {}\n", remotes.display());
        }
        text += &busy.iter().map(|b| format!("left behind: {b}\n")).collect::<String>();
        if lost {
            text +=
                "put the stock files of those that stay ours back from the package, then run this again\n";
        }
        text += "datastores keep their .sdm area, which stock drivers ignore; `onesdm domain remove DIR` takes it away\n";
        render::print(&text)?;
    }
    Ok(if lost { Class::Integrity.status() } else { 0 })
}

/// What stock drivers would not look after: running jobs, staged objects, tombstones.
fn unfinished(w: &World) -> Vec<String> {
    let mut out: Vec<String> = match w.jobs.active() {
        Ok(jobs) => jobs.iter().map(|j| format!("job {} ({}) is running", j.id, j.description)).collect(),
        Err(e) => vec![format!("the jobs of this host cannot be listed ({e})")],
    };
    let mut seen = BTreeSet::new();
    for (id, known) in all_known(w) {
        if !seen.insert(known.path.clone()) {
            continue;
        }
        let count = || -> Result<(usize, usize)> {
            let d = w.inspect(&known.path)?;
            Ok((d.engine.jobs()?.len(), d.engine.dead()?.len()))
        };
        match count() {
            // Their writers would change a domain past its locks.
            Ok(_) if group::group_of(&known.path).is_some() => {
                let place = known.path.display();
                out.push(format!("{place} is a domain; `onesdm domain remove {place}` gives it back"));
            }
            Ok((0, 0)) => {}
            Ok((jobs, dead)) => {
                out.push(format!("{}: {jobs} unfinished jobs, {dead} tombstones", known.path.display()));
            }
            Err(e) => out.push(format!("datastore {id} cannot be looked at ({})", one_line(&e))),
        }
    }
    out
}

fn show_oned_conf(w: &World, as_json: bool) -> Result<u8> {
    let read = |file| std::fs::read_to_string(w.paths.etc.join(file)).unwrap_or_default();
    let (conf, execrc) = (read("oned.conf"), read("vmm_exec/vmm_execrc"));
    let ours = |role: Role| role.families().iter().filter_map(|f| f.first().copied()).collect::<Vec<_>>();
    let datastore = ours(Role::Datastore).concat();
    let text = oned::lines(&conf, &execrc, &datastore, &ours(Role::Tm));
    if as_json {
        render::json(&json!({ "oned_conf": text }))?;
    } else {
        render::print(&text)?;
    }
    Ok(0)
}
