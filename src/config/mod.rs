//! Settings, and where each came from. Layers, lowest first: built-in defaults, stock rc files,
//! `onesdm.toml`, datastore attributes, the environment (places only), the command line. The only
//! reader of the environment. Knows no verb.

mod env;
mod error;
mod layers;
mod load;
mod rc;
mod settings;
mod value;

pub use env::Env;
pub use error::ConfigError;
pub use layers::Source;
pub use load::{Config, Inputs, Origin};
pub use rc::{Assignments, parse_rc};
pub use settings::{
    CancelSettings, DataSettings, FsSettings, HttpSettings, ImageSettings, JobSettings, LockSettings,
    LogSettings, Paths, Settings, Wipe, WipeSettings,
};
