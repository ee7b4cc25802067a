//! OpenNebula's dialect: driver messages, names of images, what may be read from where. Turns bytes
//! and words from outside into typed requests, or into one line that says what is wrong. Knows
//! nothing of storage and changes nothing on it.

mod dirs;
mod dump;
mod error;
mod name;
mod request;
mod url;
mod xml;

pub use dirs::{BlockDevices, DirPolicy, open_checked};
pub use dump::{DsCall, DsDump, MAX_DUMP};
pub use error::OneError;
pub use name::{ImageName, image_name, source_name};
pub use request::{
    DatastoreDoc, Datastores, DigestKind, DsRequest, DsType, ImageDoc, ImageType, MarketDoc, NfsAuto, is_yes,
};
pub use url::{ImagePath, image_path};
