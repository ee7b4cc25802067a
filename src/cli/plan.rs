//! `--plan`: what a verb would do, as people and programs read it.

use super::invocation::Invocation;
use super::render;
use super::table::{self, Role};
use super::world::{self, World};
use crate::config::Env;
use crate::data::Planned;
use crate::sdm::plan::{Change, Draft, How};
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
    lines.extend(d.names.iter().map(|Change { name, how }| match how {
        How::New => format!("new        {name}"),
        How::Replaced => format!("replaces   {name}, which is kept for a while"),
        How::Removed => format!("removes    {name}, which is kept for a while"),
    }));
    lines.extend(
        d.space.iter().map(|r| format!("space      {}: {} of {} are free", r.place, r.free, r.total)),
    );
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

fn sizes(m: &Planned) -> String {
    let data = m.data.map_or(String::new(), |d| format!(", {} of it data", Bytes(d)));
    m.size.map_or(String::new(), |s| format!(": {}{data}", Bytes(s)))
}
