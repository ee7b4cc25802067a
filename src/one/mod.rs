//! OpenNebula's dialect: driver messages and arguments, VM documents, names of images, what may be
//! read from where, and the questions oned answers. Turns bytes and words from outside into typed
//! requests, or into one line that says what is wrong. Knows nothing of storage and changes nothing
//! on it.

mod dirs;
mod dump;
mod error;
mod hostpath;
mod monitord;
mod name;
mod oned;
mod request;
mod tm;
mod url;
mod vm;
pub mod volume;
mod xml;
mod xmlrpc;

pub use dirs::{BlockDevices, DirPolicy, open_checked};
pub use dump::{DsCall, DsDump, MAX_DUMP};
pub use error::OneError;
pub use hostpath::{HostName, HostPath, Leaf, VmDir, VmPath};
pub use monitord::{Monitord, PAYLOAD};
pub use name::{ImageName, image_name, source_name};
pub use oned::{Cloud, Files, HostDoc, Oned, Template, WithVm, cloud};
pub use request::{
    DatastoreDoc, Datastores, DigestKind, DsRequest, DsType, ImageDoc, ImageType, MarketDoc, NfsAuto, is_yes,
};
pub use tm::{
    Context, ContextFile, Cpds, FromImage, Migrate, Mkimage, Mkswap, Mv, Mvds, Object, Place, Resize, Snap,
    TmCall,
};
pub use url::{ImagePath, image_path};
pub use vm::{Disk, DiskSnapshots, History, Snapshot, Vm, lcm, state};
pub use volume::Volume;
pub use xmlrpc::RpcOptions;
#[cfg(feature = "failpoints")]
pub use xmlrpc::read_answer;
