//! The layers below the typed settings: files and words from outside, flattened to dotted keys, each
//! with its place.

use super::rc::parse_rc;
use super::value::{Parse as _, Value, Words};
use super::{ConfigError, Env};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// No settings file is larger; whatever is, is something else.
const MAX_FILE: u64 = 1 << 20;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    Default,
    File { path: PathBuf, line: usize },
    Datastore { attribute: String },
    Environment { variable: &'static str },
    CommandLine,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Default => f.write_str("built-in default"),
            Source::File { path, line } => write!(f, "{} line {line}", path.display()),
            Source::Datastore { attribute } => write!(f, "datastore attribute {attribute}"),
            Source::Environment { variable } => write!(f, "environment variable {variable}"),
            Source::CommandLine => f.write_str("command line"),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub key: String,
    pub value: Value,
    pub source: Source,
}

/// A settings file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, ConfigError> {
    let fail = |source| ConfigError::Read { path: path.into(), source };
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(fail)?,
    };
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError::TooLarge { path: path.into(), limit: MAX_FILE });
    }
    Ok(Some(text))
}

/// The entries of a TOML text; `path` is `None` for the built-in one.
pub(super) fn toml_entries(text: &str, path: Option<&Path>) -> Result<Vec<Entry>, ConfigError> {
    let file = || path.unwrap_or(Path::new("defaults.toml")).to_path_buf();
    let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line = |at: usize| ends.partition_point(|end| *end < at) + 1;
    let table = DeTable::parse(text).map_err(|e| ConfigError::Syntax {
        path: file(),
        line: line(e.span().map_or(0, |s| s.start)),
        message: e.message().replace('\n', " "),
    })?;
    let mut out = Vec::new();
    let mut open = vec![(String::new(), table.into_inner())];
    while let Some((prefix, table)) = open.pop() {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let source = match path {
                None => Source::Default,
                Some(path) => Source::File { path: path.into(), line: line(name.span().start) },
            };
            match value.into_inner() {
                DeValue::Table(inner) => open.push((format!("{key}."), inner)),
                value => {
                    let shown = || format!("{value:?}");
                    let Some(value) = plain(&value) else {
                        let (value, want) = (shown(), "a text, number, truth value, or an array of texts");
                        return Err(ConfigError::Value { key, value, origin: source, want });
                    };
                    out.push(Entry { key, value, source });
                }
            }
        }
    }
    Ok(out)
}

fn plain(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::Array(items) => {
            let items = items.iter().map(|item| match plain(item.get_ref()) {
                Some(Value::Text(text)) => Some(text),
                _ => None,
            });
            Value::List(items.collect::<Option<_>>()?)
        }
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(n) => Value::Text(i64::from_str_radix(n.as_str(), n.radix()).ok()?.to_string()),
        DeValue::Boolean(b) => Value::Text(b.to_string()),
        DeValue::Float(_) | DeValue::Datetime(_) | DeValue::Table(_) => return None,
    })
}

/// The entries the stock rc files stand for. A file that cannot be read, a line that is no plain assignment and
/// a value without meaning are warnings: these files are not ours to judge.
pub(super) fn rc_entries(remotes: &Path, warnings: &mut Vec<String>) -> Vec<Entry> {
    let mut out = rc_file(&remotes.join("etc/datastore/datastore.conf"), datastore_conf, warnings);
    out.extend(rc_file(&remotes.join("etc/vmm/kvm/kvmrc"), kvmrc, warnings));
    out
}

/// A setting and its value, for a name in an rc file and its value there; `None` where that has no meaning.
type Meaning = fn(&str, &str) -> Option<(String, Option<Value>)>;

fn rc_file(path: &Path, meaning: Meaning, warnings: &mut Vec<String>) -> Vec<Entry> {
    let text = match read(path) {
        Ok(None) => return Vec::new(),
        Ok(Some(text)) => text,
        Err(e) => {
            warnings.push(format!("{e}: ignored"));
            return Vec::new();
        }
    };
    let rc = parse_rc(&text);
    for line in rc.skipped {
        warnings.push(format!("{} line {line}: not a plain assignment: ignored", path.display()));
    }
    let mut out = Vec::new();
    for (name, (line, value)) in rc.values {
        match meaning(&name, &value).filter(|_| !value.is_empty()) {
            None => {}
            Some((key, Some(value))) => {
                out.push(Entry { key, value, source: Source::File { path: path.to_owned(), line } });
            }
            Some((_, None)) => {
                warnings.push(format!("{} line {line}: {name} cannot be used: ignored", path.display()));
            }
        }
    }
    out
}

fn datastore_conf(name: &str, value: &str) -> Option<(String, Option<Value>)> {
    let text = Value::Text(value.to_owned());
    if name == "SUPPORTED_FS" {
        return Some(("fs.supported".to_owned(), Some(text)));
    }
    let key = format!("fs.options.{}", name.strip_prefix("FS_OPTS_")?.to_ascii_lowercase());
    let fits = Words::parse(&text).is_some();
    Some((key, fits.then_some(text)))
}

fn kvmrc(name: &str, value: &str) -> Option<(String, Option<Value>)> {
    match name {
        "LIBVIRT_URI" => Some(("libvirt.uri".to_owned(), Some(Value::Text(value.to_owned())))),
        "VIRSH_TIMEOUT" => {
            let seconds = value.parse::<u32>().ok().map(|s| Value::Text(format!("{s}s")));
            Some(("libvirt.timeout".to_owned(), seconds))
        }
        _ => None,
    }
}

/// What a self-contained installation puts elsewhere: a changed default, not an order.
pub(super) fn location_entries(env: &Env) -> Vec<Entry> {
    let Some(base) = &env.one_location else { return Vec::new() };
    let places = [
        ("paths.var", "var"),
        ("paths.etc", "etc"),
        ("paths.run", "var/onesdm/run"),
        ("paths.state", "var/onesdm"),
        ("paths.log", "var/onesdm.jsonl"),
    ];
    places.map(|(key, below)| place(key, &base.join(below), "ONE_LOCATION")).into()
}

pub(super) fn env_entries(env: &Env) -> Vec<Entry> {
    let log = env.log_dir.as_ref().map(|dir| dir.join("onesdm.jsonl"));
    let places = [
        ("paths.datastores", &env.ds_dir, "DS_DIR"),
        ("paths.state", &env.state_dir, "ONESDM_STATE_DIR"),
        ("paths.run", &env.run_dir, "ONESDM_RUN_DIR"),
        ("paths.log", &log, "ONESDM_LOG_DIR"),
    ];
    places.into_iter().filter_map(|(key, dir, name)| Some(place(key, dir.as_ref()?, name))).collect()
}

fn place(key: &str, path: &Path, variable: &'static str) -> Entry {
    let value = Value::Text(path.to_string_lossy().into_owned());
    Entry { key: key.into(), value, source: Source::Environment { variable } }
}

/// Sections that say how this host works; a datastore cannot change them.
const HOST_ONLY: &[&str] = &["paths.", "sanlock.", "lvm.", "job.", "log.", "tools.", "fs.options.", "ssh."];

/// `ONESDM_LOCK_WAIT` is `lock.wait`, for the keys a datastore may set.
pub(super) fn attribute_entries(
    attributes: &BTreeMap<String, String>,
    known: &BTreeSet<String>,
    warnings: &mut Vec<String>,
) -> Vec<Entry> {
    let mut out = Vec::new();
    for (attribute, value) in attributes {
        let is_meant = |key: &&String| {
            let name = attribute.strip_prefix("ONESDM_").unwrap_or(attribute);
            key.replace('.', "_").eq_ignore_ascii_case(name)
        };
        match known.iter().find(is_meant) {
            Some(key) if HOST_ONLY.iter().any(|section| key.starts_with(section)) => {
                warnings
                    .push(format!("datastore attribute {attribute}: a datastore cannot set {key}: ignored"));
            }
            Some(key) => out.push(Entry {
                key: key.clone(),
                value: Value::Text(value.clone()),
                source: Source::Datastore { attribute: attribute.clone() },
            }),
            None => warnings.push(format!("datastore attribute {attribute}: unknown setting: ignored")),
        }
    }
    out
}
