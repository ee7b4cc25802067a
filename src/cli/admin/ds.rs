//! `onesdm ds VERB`: options become the message oned would have sent, and take the same way.

use super::World;
use crate::cli::table::{self, Role};
use crate::cli::{plan, render, world};
use crate::config::Env;
use crate::one::DsDump;
use crate::sys::Class;
use crate::verb::refuse;
use anyhow::Result;
use clap::ArgMatches;
use serde_json::json;
use std::fmt::Write as _;

pub fn run(env: &Env, w: &mut World, m: &ArgMatches, job: Option<&str>, as_json: bool) -> Result<u8> {
    let Some((name, m)) = m.subcommand() else { return Ok(Class::Usage.status()) };
    let name = name.replace('-', "_");
    let def = table::VERBS.iter().find(|v| v.role == Role::Datastore && v.name == name);
    let def = def.ok_or_else(|| refuse(Class::Usage, format!("no verb {name:?}")))?;
    let dump = DsDump::parse(message(m)?.as_bytes())?;
    let req = dump.request(&w.config.settings.paths.datastores)?;
    let (id, repeatable) = world::job_id(env, job)?;
    if def.moves_data && m.get_flag("plan") {
        return plan::run(w, as_json, |w| w.run(env, def, (id, repeatable), &req));
    }
    let answer = w.run(env, def, (id, repeatable), &req)?;
    if as_json {
        render::json(&json!({ "job": id, "answer": answer }))?;
    } else if !answer.is_empty() {
        render::answer(&answer)?;
    }
    Ok(0)
}

fn message(m: &ArgMatches) -> Result<String> {
    let get = |k: &str| m.try_get_one::<String>(k).ok().flatten().cloned();
    let dir = std::path::absolute(get("datastore").unwrap_or_default())?;
    let mut image = String::new();
    let mut template = String::new();
    let add = |out: &mut String, tag: &str, value: Option<String>| {
        if let Some(v) = value {
            let _ = write!(out, "<{tag}>{}</{tag}>", escape(&v));
        }
    };
    let fields = [
        ("ID", "id"),
        ("PATH", "path"),
        ("SOURCE", "source"),
        ("REGTIME", "regtime"),
        ("FORMAT", "format"),
        ("FS", "fs"),
        ("SIZE", "size"),
        ("TARGET_SNAPSHOT", "snapshot"),
    ];
    for (tag, option) in fields {
        // A bare name of an image is meant in the datastore.
        let value = get(option).map(|v| match option {
            "source" if !v.contains('/') => format!("{}/{v}", dir.display()),
            _ => v,
        });
        add(&mut image, tag, value);
    }
    add(&mut template, "SHA256", get("sha256"));
    add(&mut template, "MD5", get("md5"));
    let mut ds = String::new();
    add(&mut ds, "DRIVER", get("driver"));
    let safe: Vec<String> =
        m.try_get_many::<String>("safe-dir").ok().flatten().into_iter().flatten().cloned().collect();
    // A person who may read the file may import it: the policy is for requests that come from users.
    add(&mut ds, "SAFE_DIRS", Some(if safe.is_empty() { "/".to_owned() } else { safe.join(" ") }));
    let number =
        get("datastore-id").or_else(|| dir.file_name()?.to_str()?.parse::<u32>().ok().map(|n| n.to_string()));
    Ok(format!(
        "<DS_DRIVER_ACTION_DATA><IMAGE>{image}<TEMPLATE>{template}</TEMPLATE></IMAGE><DATASTORE><ID>{}</ID>\
         <BASE_PATH>{}</BASE_PATH><TEMPLATE>{ds}</TEMPLATE></DATASTORE></DS_DRIVER_ACTION_DATA>",
        number.unwrap_or_else(|| "-1".to_owned()),
        escape(&dir.to_string_lossy())
    ))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
