//! The environment, read once. Variables that are empty count as unset, as in the shell drivers.

use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Env {
    /// Self-contained installation: everything lives below it.
    pub one_location: Option<PathBuf>,
    /// Overrides `<var>/datastores`.
    pub ds_dir: Option<PathBuf>,
    pub home: Option<PathBuf>,
    /// Where oned answers, and the file with the secret for it.
    pub one_xmlrpc: Option<String>,
    pub one_auth: Option<PathBuf>,
    /// The VM's document, or the path of a file with it: for scripts without oned, see `one::cloud`.
    pub vm_xml: Option<OsString>,
    /// A directory of documents that stands in for oned.
    pub xml_dir: Option<PathBuf>,
    /// The socket of the account's key agent.
    pub ssh_auth_sock: Option<PathBuf>,
    /// Another `onesdm.toml`; it must exist.
    pub config: Option<PathBuf>,
    /// The id the caller gives this job.
    pub job_id: Option<String>,
    pub state_dir: Option<PathBuf>,
    pub run_dir: Option<PathBuf>,
    pub log_dir: Option<PathBuf>,
}

impl Env {
    pub fn of_process() -> Env {
        Env::from_vars(std::env::vars_os())
    }

    /// From any list of variables; the last of a name wins, unknown ones are ignored.
    pub fn from_vars(vars: impl IntoIterator<Item = (OsString, OsString)>) -> Env {
        let mut env = Env::default();
        for (name, value) in vars {
            let Some(name) = name.to_str() else { continue };
            let value = Some(value).filter(|v| !v.is_empty());
            let path = || value.clone().map(PathBuf::from);
            let text = || value.as_ref().and_then(|v| v.to_str()).map(str::to_owned);
            match name {
                "ONE_LOCATION" => env.one_location = path(),
                "DS_DIR" => env.ds_dir = path(),
                "HOME" => env.home = path(),
                "ONE_XMLRPC" => env.one_xmlrpc = text(),
                "ONE_AUTH" => env.one_auth = path(),
                "ONESDM_VM_XML" => env.vm_xml = value,
                "ONESDM_XML_DIR" => env.xml_dir = path(),
                "SSH_AUTH_SOCK" => env.ssh_auth_sock = path(),
                "ONESDM_CONFIG" => env.config = path(),
                "ONESDM_JOB_ID" => env.job_id = text(),
                "ONESDM_STATE_DIR" => env.state_dir = path(),
                "ONESDM_RUN_DIR" => env.run_dir = path(),
                "ONESDM_LOG_DIR" => env.log_dir = path(),
                _ => {}
            }
        }
        env
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_variables_are_taken_and_empty_ones_are_unset() {
        let vars = [
            ("ONE_LOCATION", "/srv/one"),
            ("DS_DIR", ""),
            ("PATH", "/bin"),
            ("ONESDM_JOB_ID", "a"),
            ("ONESDM_JOB_ID", "b"),
            ("ONESDM_LOG_DIR", "/l"),
            ("ONESDM_VM_XML", "<VM/>"),
            ("ONESDM_XML_DIR", "/x"),
        ];
        let env = Env::from_vars(vars.map(|(k, v)| (k.into(), v.into())));
        assert_eq!(
            env,
            Env {
                one_location: Some("/srv/one".into()),
                job_id: Some("b".into()),
                log_dir: Some("/l".into()),
                vm_xml: Some("<VM/>".into()),
                xml_dir: Some("/x".into()),
                ..Env::default()
            }
        );
    }
}
