//! `--plan`: what a verb would do, as people and programs read it.

use super::invocation::Invocation;
use super::render;
use super::table::{self, Role};
use super::world::{self, World};
use crate::config::Env;
use crate::data::Planned;
use crate::sdm::plan::{Change, Draft, How, Pool, Room};
use crate::sys::{Bytes, Class};
use crate::verb::{Planning, refuse};
use anyhow::{Context as _, Result};
use serde_json::{json, to_value};

/// A verb by its name; its message comes as from oned.
pub fn verb(env: &Env, call: &Invocation, as_json: bool) -> Result<u8> {
    let def = table::find(call)?;
    if !def.moves_data {
        return Err(refuse(Class::Usage, format!("{call} moves no data, so there is nothing to plan")));
    }
    let mut planning = None;
    let mut before = |w: &mut World| begin(w).map(|p| planning = Some(p));
    let done = match def.role {
        Role::Datastore => world::datastore_call(env, def, call, &mut before),
        Role::Tm => world::tm_call(env, def, call, &mut before),
    };
    match planning {
        Some(planning) => show(&planning.draft(done), as_json),
        None => done.map(|_| 0),
    }
}

/// A verb in this world, which plans from now on.
pub fn run(w: &mut World, as_json: bool, run: impl FnOnce(&World) -> Result<String>) -> Result<u8> {
    let planning = begin(w)?;
    let done = run(w);
    show(&planning.draft(done), as_json)
}

fn begin(w: &mut World) -> Result<Planning> {
    let planning = Planning::begin(&w.paths.run).context("preparing a plan")?;
    w.jobs.plan = Some(planning.plan.clone());
    Ok(planning)
}

/// The status is the one that the verb would end with.
fn show(draft: &Draft, as_json: bool) -> Result<u8> {
    if as_json {
        let mut doc = to_value(draft)?;
        doc["nothing"] = json!(draft.is_nothing());
        doc["refused"] = draft.refused.as_ref().map_or(
            json!(null),
            |(class, line)| json!({ "class": class.word(), "status": class.status(), "line": line }),
        );
        render::json(&doc)?;
    } else {
        render::print(&text(draft))?;
    }
    Ok(draft.refused.as_ref().map_or(0, |(class, _)| class.status()))
}

fn text(d: &Draft) -> String {
    let mut lines = Vec::new();
    if d.is_nothing() {
        lines.push("nothing to do: what is asked for is there (a repeat)".to_owned());
    }
    lines.extend(d.moves.iter().map(|m| format!("{:10} {}{}", m.how, m.from, sizes(m))));
    lines.extend(d.names.iter().map(|Change { name, how, kept }| {
        let kept = if *kept { ", which is kept for a while" } else { "" };
        match how {
            How::New => format!("new        {name}"),
            How::Replaced => format!("replaces   {name}{kept}"),
            How::Removed => format!("removes    {name}{kept}"),
            How::Grown => format!("grows      {name}"),
            How::Attached => format!("attaches   {name} to the host as a device"),
            How::Detached => format!("detaches   {name} from the host"),
        }
    }));
    lines.extend(d.space.iter().map(room));
    lines.extend(d.pools.iter().map(pool));
    lines.extend(d.notes.iter().map(|n| format!("note       {n}")));
    match &d.refused {
        Some((class, why)) => {
            lines.push(format!("refused    {}: {why}", class.word()));
            let waits = *class == Class::Busy;
            lines.extend(waits.then(|| "           (after `lock.wait`, if it is still so)".to_owned()));
        }
        None if d.answer.is_empty() => {}
        None => lines.push(format!("answer     {}", d.answer)),
    }
    lines.push("nothing was changed".to_owned());
    lines.join("\n")
}

fn room(r: &Room) -> String {
    let free = format!("space      {}: {} of {} are free", r.place, r.free, r.total);
    let Some((takes, extent)) = r.takes.zip(r.extent) else { return free };
    let (extents, then) = (takes.0.div_ceil(extent.0.max(1)), Bytes(r.free.0.saturating_sub(takes.0)));
    format!("{free}; it takes {takes} ({extents} extents of {extent}), and leaves {then}")
}

fn pool(p: &Pool) -> String {
    let size = match (p.size, p.then) {
        (Bytes(0), then) => format!("made with {then}"),
        (now, then) if now == then => format!("of {now}, which is enough"),
        (now, then) => format!("grows from {now} to {then}"),
    };
    let used = p.used.as_ref().map(|u| {
        let ((data, _), (tables, of)) = (u.data, u.tables);
        format!("; {data} are used, and {tables} of {of} of its tables")
    });
    format!("pool       {} {size}{}", p.name, used.unwrap_or_default())
}

fn sizes(m: &Planned) -> String {
    let data = m.data.map_or(String::new(), |d| format!(", {} of it data", Bytes(d)));
    m.size.map_or(String::new(), |s| format!(": {}{data}", Bytes(s)))
}
