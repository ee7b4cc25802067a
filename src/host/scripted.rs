//! A handler that does as it is told, for tests of what carries requests: the test build only. The body is
//! a list of steps, each an object with one field.

use super::link::{Handler, Link};
use super::wire::Progress;
use crate::sys::Class;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

/// Steps: `{"note": FILE}` appends a line to a file; `{"sleep": MS}` ends early on cancel; `{"ready":
/// FILE}` asks for the word and appends it to a file as `true` or `false`, and ends the script on no;
/// `{"once": FILE}` answers `"again"` at once when the file names this job, else adds it to it;
/// `{"progress": N}`, `{"send": BYTES}`, `{"receive": 0}`, `{"fail": TEXT}`, `{"answer": VALUE}`, `{"long": BYTES}`.
#[derive(Debug, Default)]
pub struct Scripted;

fn append(file: &str, line: &str) -> Result<(), (Class, String)> {
    let open = OpenOptions::new().append(true).create(true).open(file);
    let written = open.and_then(|mut f| f.write_all(format!("{line}\n").as_bytes()));
    written.map_err(|e| (Class::Internal, format!("{file}: {e}")))
}

impl Handler for Scripted {
    fn handle(&self, job: &str, body: Value, link: &dyn Link) -> Result<Value, (Class, String)> {
        let cancelled = || Err((Class::Cancelled, "stopped on request".to_owned()));
        let mut answer = Value::Null;
        let steps = body.as_array().cloned().unwrap_or_default();
        for step in steps.iter().filter_map(Value::as_object).flatten() {
            let (text, number) = (step.1.as_str().unwrap_or_default(), step.1.as_u64().unwrap_or_default());
            match step.0.as_str() {
                "note" => append(text, job)?,
                "sleep" if !link.cancel().wait(Duration::from_millis(number)) => return cancelled(),
                "ready" => {
                    let yes = link.ready();
                    append(text, &yes.to_string())?;
                    if !yes {
                        return cancelled();
                    }
                }
                "once" => {
                    let seen = std::fs::read_to_string(Path::new(text)).unwrap_or_default();
                    if seen.lines().any(|l| l == job) {
                        return Ok(json!("again"));
                    }
                    append(text, job)?;
                }
                "progress" => {
                    let (phase, total) = ("test".to_owned(), None);
                    link.progress(Progress { phase, done: number, total });
                    link.log(true, "a line");
                }
                "send" => {
                    let block = vec![7; usize::try_from(number).unwrap_or_default()];
                    link.send(block).map_err(|e| (Class::Remote, e.to_string()))?;
                }
                "receive" => {
                    let mut bytes = 0;
                    while let Some(b) = link.receive().map_err(|e| (Class::Remote, e.to_string()))? {
                        bytes += b.len();
                    }
                    answer = json!(bytes);
                }
                "fail" => return Err((Class::NotFound, text.to_owned())),
                "long" => answer = json!("x".repeat(usize::try_from(number).unwrap_or_default())),
                "answer" => answer = step.1.clone(),
                _ => {}
            }
        }
        Ok(answer)
    }
}
