//! An operator's own scripts: `remotes` of an installation, which may be in a directory of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Stock {
    pub remotes: PathBuf,
    /// ONE_LOCATION, where `<it>/var/remotes` was given.
    pub home: Option<PathBuf>,
}

impl Stock {
    pub fn of(remotes: &Path) -> Stock {
        let remotes = remotes.canonicalize().unwrap();
        let home = remotes.parent().and_then(Path::parent).map(Path::to_owned);
        let home = home.filter(|h| remotes.ends_with("var/remotes") && h.join("lib/sh").is_dir());
        Stock { remotes, home }
    }

    /// What its scripts have to be told of where it is.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let Some(home) = self.home.as_deref().map(Path::display) else { return Vec::new() };
        vec![
            ("ONE_LOCATION", home.to_string()),
            ("RUBYLIB", format!("{home}/lib/ruby")),
            ("PATH", format!("{home}/bin:/usr/sbin:/usr/bin:/sbin:/bin")),
        ]
    }

    /// The same call of the stock driver's script, of a verb below `remotes`; nothing where there is none.
    pub fn instead(&self, ours: &Command, remotes: &Path) -> Option<Command> {
        let script = self.remotes.join(Path::new(ours.get_program()).strip_prefix(remotes).ok()?);
        let mut c = Command::new(script.exists().then_some(script)?);
        c.args(ours.get_args()).env_clear().envs(ours.get_envs().filter_map(|(k, v)| Some((k, v?))));
        c.envs(self.env()).current_dir(ours.get_current_dir()?);
        Some(c)
    }
}
