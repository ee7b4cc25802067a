//! Puts the layers on top of each other and turns the result into typed settings.

use super::layers::{Entry, Source};
use super::layers::{attribute_entries, env_entries, location_entries, rc_entries, read, toml_entries};
use super::value::{Parse, Value};
use super::{ConfigError, Env, Settings};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const DEFAULTS: &str = include_str!("defaults.toml");

/// What the layers above the files are made of.
#[derive(Debug, Default)]
pub struct Inputs {
    pub env: Env,
    /// `ONESDM_*` attributes of the datastore at hand, under their whole names.
    pub attributes: BTreeMap<String, String>,
    /// `--set key=value`, in order.
    pub set: Vec<(String, String)>,
}

/// A setting, and where its value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub key: String,
    pub value: String,
    pub source: Source,
}

/// The settings in force.
#[derive(Debug)]
pub struct Config {
    pub settings: Settings,
    values: Values,
    warnings: Vec<String>,
}

impl Config {
    /// Reads the files and merges all layers. A missing file is no error (except one named by
    /// `ONESDM_CONFIG`), an unknown key a warning, a bad value an error that names file and key.
    pub fn load(inputs: &Inputs) -> Result<Config, ConfigError> {
        let mut warnings = Vec::new();
        let mut values = Values::default();
        values.put(toml_entries(DEFAULTS, None)?);
        let known: BTreeSet<String> = values.0.keys().cloned().collect();
        values.put(location_entries(&inputs.env));

        let mut upper = file_entries(&inputs.env, &values)?;
        upper.retain(|entry| {
            let is_known = known.contains(&entry.key) || is_fs_option(&entry.key);
            if !is_known {
                warnings.push(format!("{}: unknown setting {:?}: ignored", entry.source, entry.key));
            }
            is_known
        });
        upper.extend(attribute_entries(&inputs.attributes, &known, &mut warnings));
        upper.extend(env_entries(&inputs.env));
        for (key, value) in &inputs.set {
            let (key, origin) = (key.clone(), Source::CommandLine);
            if !known.contains(&key) && !is_fs_option(&key) {
                return Err(ConfigError::Unknown { key, origin });
            }
            upper.push(Entry { key, value: Value::Text(value.clone()), source: origin });
        }

        // The rc files lie where the layers above them say.
        let mut places = values.clone();
        places.put(upper.iter().filter(|e| e.key.starts_with("paths.")).cloned());
        places.derive_paths()?;
        let remotes = places.get::<PathBuf>("paths.remotes")?;
        values.put(rc_entries(&remotes, &mut warnings));
        values.put(upper);
        values.derive_paths()?;
        Ok(Config { settings: Settings::of(&values, &inputs.env)?, values, warnings })
    }

    /// The built-in defaults alone; reads no file.
    pub fn builtin() -> Result<Config, ConfigError> {
        let mut values = Values::default();
        values.put(toml_entries(DEFAULTS, None)?);
        values.derive_paths()?;
        Ok(Config { settings: Settings::of(&values, &Env::default())?, values, warnings: Vec::new() })
    }

    /// Every setting with the layer its value came from, by key.
    pub fn origins(&self) -> Vec<Origin> {
        let origin = |(key, (value, source)): (&String, &(Value, Source))| Origin {
            key: key.clone(),
            value: value.to_string(),
            source: source.clone(),
        };
        self.values.0.iter().map(origin).collect()
    }

    /// What was ignored, each with its place.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The commented defaults, for `onesdm config defaults` and the manual.
    pub fn documentation() -> &'static str {
        DEFAULTS
    }
}

fn is_fs_option(key: &str) -> bool {
    key.strip_prefix("fs.options.").is_some_and(|fs| !fs.is_empty() && !fs.contains('.'))
}

fn file_entries(env: &Env, values: &Values) -> Result<Vec<Entry>, ConfigError> {
    let path = match &env.config {
        Some(path) => path.clone(),
        None => values.get::<PathBuf>("paths.etc")?.join("onesdm.toml"),
    };
    match read(&path)? {
        Some(text) => toml_entries(&text, Some(&path)),
        None if env.config.is_some() => {
            let source =
                std::io::Error::new(std::io::ErrorKind::NotFound, "named by ONESDM_CONFIG, not there");
            Err(ConfigError::Read { path, source })
        }
        None => Ok(Vec::new()),
    }
}

/// The merged layers.
#[derive(Clone, Debug, Default)]
pub(super) struct Values(BTreeMap<String, (Value, Source)>);

impl Values {
    fn put(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.0.extend(entries.into_iter().map(|e| (e.key, (e.value, e.source))));
    }

    pub(super) fn get<T: Parse>(&self, key: &str) -> Result<T, ConfigError> {
        let Some((value, source)) = self.0.get(key) else {
            return Err(ConfigError::Unknown { key: key.into(), origin: Source::Default });
        };
        T::parse(value).ok_or_else(|| ConfigError::Value {
            key: key.into(),
            value: value.to_string(),
            origin: source.clone(),
            want: T::WANT,
        })
    }

    /// Keys below `section` (which ends in a dot), without it.
    pub(super) fn names<'a>(&'a self, section: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.keys().filter_map(move |key| key.strip_prefix(section))
    }

    /// Gives the places that follow `paths.var` their values, with the same origin.
    fn derive_paths(&mut self) -> Result<(), ConfigError> {
        for (key, below) in [("paths.datastores", "datastores"), ("paths.remotes", "remotes")] {
            if self.get::<Option<PathBuf>>(key)?.is_some() {
                continue;
            }
            let var: PathBuf = self.get("paths.var")?;
            let source = self.0.get("paths.var").map_or(Source::Default, |(_, source)| source.clone());
            let value = Value::Text(Path::join(&var, below).to_string_lossy().into_owned());
            self.0.insert(key.into(), (value, source));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Bytes, Class};
    use std::time::{Duration, Instant};

    /// A self-contained installation with these files.
    fn install(files: &[(&str, &str)]) -> (tempfile::TempDir, Inputs) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let env = Env { one_location: Some(dir.path().into()), ..Env::default() };
        (dir, Inputs { env, ..Inputs::default() })
    }

    fn source(config: &Config, key: &str) -> String {
        config.origins().into_iter().find(|o| o.key == key).unwrap().source.to_string()
    }

    #[test]
    fn the_defaults_are_whole_and_their_attributes_distinct() {
        let config = Config::builtin().unwrap();
        let s = &config.settings;
        assert_eq!(s.lock.wait, Duration::from_secs(30));
        assert_eq!((s.trash_keep, s.cancel.grace), (Duration::from_secs(86400), Duration::from_secs(10)));
        assert_eq!((s.job.done_max, s.job.done_days), (1000, 30));
        assert_eq!(
            (s.paths.run.to_str(), s.paths.log.to_str()),
            (Some("/run/one/onesdm"), Some("/var/log/one/onesdm.jsonl"))
        );
        assert_eq!(s.paths.datastores, Path::new("/var/lib/one/datastores"));
        assert_eq!(s.paths.remotes, Path::new("/var/lib/one/remotes"));
        assert!(!s.http.insecure && s.tools.is_empty() && s.image.allow.is_empty());
        let mut names: Vec<String> = config.origins().iter().map(|o| o.key.replace('.', "_")).collect();
        names.sort();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "two keys would share an attribute");
    }

    #[test]
    fn each_layer_covers_the_ones_below() {
        let (dir, mut inputs) = install(&[
            (
                "var/remotes/etc/datastore/datastore.conf",
                "SUPPORTED_FS=\"ext4,xfs\"\nFS_OPTS_ext4=\"-O '^has_journal' -F\"\nX=$(id)\n",
            ),
            (
                "etc/onesdm.toml",
                "[lock]\nwait = \"5s\"\n\n\n[trash]\nkeep = \"1h\"\n[image]\nmax_size = \"1TiB\"\n[fs.options]\nxfs = [\"-K\", \"-m a b\"]\n",
            ),
        ]);
        inputs.attributes = BTreeMap::from([
            ("ONESDM_LOCK_WAIT".into(), "6s".into()),
            ("ONESDM_TRASH_KEEP".into(), "2h".into()),
        ]);
        inputs.set = vec![("lock.wait".into(), "7s".into())];
        let config = Config::load(&inputs).unwrap();
        let s = &config.settings;
        assert_eq!(s.lock.wait, Duration::from_secs(7));
        assert_eq!((s.trash_keep, s.image.max_size), (Duration::from_secs(7200), Some(Bytes(1 << 40))));
        assert_eq!(s.fs.supported, ["ext4", "xfs"]);
        assert_eq!(s.fs.options["ext4"], ["-O", "^has_journal", "-F"]);
        assert_eq!(s.fs.options["xfs"], ["-K", "-m a b"]);
        assert_eq!(s.paths.state, dir.path().join("var/onesdm"));
        let root = dir.path().display();
        for (key, want) in [
            ("lock.wait", "command line".to_owned()),
            ("trash.keep", "datastore attribute ONESDM_TRASH_KEEP".into()),
            ("image.max_size", format!("{root}/etc/onesdm.toml line 8")),
            ("fs.options.ext4", format!("{root}/var/remotes/etc/datastore/datastore.conf line 2")),
            ("paths.datastores", "environment variable ONE_LOCATION".into()),
            ("job.done_max", "built-in default".into()),
        ] {
            assert_eq!(source(&config, key), want);
        }
        let skipped = format!(
            "{root}/var/remotes/etc/datastore/datastore.conf line 3: not a plain assignment: ignored"
        );
        assert_eq!(config.warnings(), [skipped]);
    }

    #[test]
    fn odd_values_of_stock_files_are_left_out() {
        let conf = "SUPPORTED_FS=\nFS_OPTS_xfs=\"it's\"\nFS_OPTS_ext4='-F'\n";
        let (_dir, inputs) = install(&[("var/remotes/etc/datastore/datastore.conf", conf)]);
        let config = Config::load(&inputs).unwrap();
        let fs = &config.settings.fs;
        assert_eq!(fs.supported, ["ext2", "ext3", "ext4", "xfs"]);
        assert_eq!(fs.options, BTreeMap::from([("ext4".to_owned(), vec!["-F".to_owned()])]));
        let warned = config.warnings();
        assert_eq!(warned.len(), 1, "{warned:?}");
        assert!(
            warned[0].ends_with("datastore.conf line 2: FS_OPTS_xfs cannot be used: ignored"),
            "{warned:?}"
        );
    }

    #[test]
    fn places_follow_the_environment_and_each_other() {
        let (dir, mut inputs) = install(&[("etc/onesdm.toml", "[paths]\nvar = \"/v\"\nstate = \"/s\"\n")]);
        let load = |inputs: &Inputs| Config::load(inputs).unwrap().settings.paths;
        let paths = load(&inputs);
        assert_eq!((paths.datastores.to_str(), paths.state.to_str()), (Some("/v/datastores"), Some("/s")));
        assert_eq!(paths.etc, dir.path().join("etc"));
        inputs.env.ds_dir = Some("/d".into());
        inputs.env.state_dir = Some("/t".into());
        inputs.env.log_dir = Some("/l".into());
        inputs.env.home = Some("/h".into());
        let paths = load(&inputs);
        assert_eq!((paths.datastores.to_str(), paths.state.to_str()), (Some("/d"), Some("/t")));
        assert_eq!(paths.log, Path::new("/l/onesdm.jsonl"));
        assert_eq!(paths.restricted(), [Path::new("/v"), &dir.path().join("etc"), Path::new("/h")]);
        let private = paths.private(Path::new("/h"));
        assert_eq!(private.run, Path::new("/h/.local/state/onesdm/run"));
        assert_eq!((private.var, private.datastores), (paths.var, paths.datastores));
        inputs.env.ds_dir = Some("relative".into());
        let error = Config::load(&inputs).unwrap_err().to_string();
        assert_eq!(
            error,
            "paths.datastores = \"relative\" (environment variable DS_DIR): expected an absolute path"
        );
    }

    #[test]
    fn unknown_keys_warn_and_bad_values_fail_with_their_place() {
        for (toml, want) in [
            ("[lock]\nwiat = \"1s\"\n", Ok("line 2: unknown setting \"lock.wiat\"")),
            ("lock = 3", Ok("line 1: unknown setting \"lock\"")),
            ("[lock.wait]\nx = 1", Ok("line 2: unknown setting \"lock.wait.x\"")),
            ("[fs.options.ext4]\nx = 1", Ok("unknown setting \"fs.options.ext4.x\"")),
            ("\n[lock]\nwait = 30", Err("lock.wait = \"30\"")),
            ("[lock]\nwait = [\"30s\"]", Err("lock.wait = \"30s\"")),
            ("[tools]\nqemu_img = \"bin/x\"", Err("expected an absolute path")),
            ("[http]\nretries = -1", Err("expected a whole number")),
            ("[http]\ninsecure = 1.5", Err("expected a text")),
            ("[image]\nallow = [[1]]", Err("expected a text")),
            ("[fs.options]\next4 = \"'\"", Err("balanced quotes")),
            ("[lock]\nwait = \"1s\"\nwait = \"2s\"", Err("line 3")),
            ("[lock\n", Err("onesdm.toml\" line 1")),
        ] {
            let (_dir, inputs) = install(&[("etc/onesdm.toml", toml)]);
            match (Config::load(&inputs), want) {
                (Ok(config), Ok(want)) => {
                    assert!(config.warnings()[0].contains(want), "{:?}", config.warnings());
                }
                (Err(e), Err(want)) => {
                    let text = e.to_string();
                    assert!(text.contains(want) && text.contains("onesdm.toml"), "{toml}: {text}");
                    assert!(!text.contains('\n') && e.class() == Class::Usage, "{text}");
                }
                (got, want) => panic!("{toml}: {got:?}, expected {want:?}"),
            }
        }
    }

    #[test]
    fn a_datastore_does_not_rule_the_host() {
        let (_dir, mut inputs) = install(&[]);
        for (name, warns) in [
            ("ONESDM_TOOLS_QEMU_IMG", true),
            ("ONESDM_PATHS_STATE", true),
            ("ONESDM_FS_OPTIONS_EXT4", true),
            ("ONESDM_NONSENSE", true),
            ("ONESDM_", true),
            ("ONESDM_VERB_DEADLINE", false),
        ] {
            inputs.attributes = BTreeMap::from([(name.into(), "1h".into())]);
            let config = Config::load(&inputs).unwrap();
            assert_eq!(!config.warnings().is_empty(), warns, "{name} {:?}", config.warnings());
            assert!(config.settings.tools.is_empty());
        }
        inputs.attributes = BTreeMap::from([("ONESDM_LOCK_WAIT".into(), "soon".into())]);
        let error = Config::load(&inputs).unwrap_err().to_string();
        assert!(error.contains("lock.wait = \"soon\" (datastore attribute ONESDM_LOCK_WAIT)"), "{error}");
    }

    #[test]
    fn wrong_calls_are_refused() {
        let (dir, mut inputs) = install(&[]);
        inputs.set = vec![("lock.wiat".into(), "1s".into())];
        assert!(Config::load(&inputs).unwrap_err().to_string().contains("unknown setting \"lock.wiat\""));
        inputs.set.clear();
        inputs.env.config = Some(dir.path().join("none.toml"));
        assert_eq!(Config::load(&inputs).unwrap_err().class(), Class::NotFound);
        std::fs::write(dir.path().join("big.toml"), "#".repeat((1 << 20) + 1)).unwrap();
        inputs.env.config = Some(dir.path().join("big.toml"));
        assert!(matches!(Config::load(&inputs), Err(ConfigError::TooLarge { .. })));
    }

    #[test]
    fn without_files_loading_is_quick() {
        let (_dir, inputs) = install(&[]);
        let start = Instant::now();
        for _ in 0..100 {
            Config::load(&inputs).unwrap();
        }
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("settings loaded in {:?}\n", start.elapsed() / 100),
        );
    }
}
