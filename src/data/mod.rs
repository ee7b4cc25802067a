//! Moving bytes: copy, fetch, verify, decompress, unpack. Knows nothing of where they end up: callers
//! hand in open files and make the result visible themselves. After an error the target holds a part
//! of the data and is the caller's to discard; nothing here is durable before the caller's fsync.

pub mod archive;
pub mod extent;
pub mod fetch;
pub mod measure;

mod compress;
mod copy;
mod digest;
mod error;
mod http;
mod pipe;
mod rate;
mod source;
mod sparse;
#[cfg(test)]
mod testserver;
mod url;
mod watch;
mod wipe;

pub use compress::Compression;
pub use copy::{Copied, Method, copy, pour, punch};
pub use digest::{Algo, Expected, digest_of};
pub use error::DataError;
pub use fetch::{FetchOptions, Fetched};
pub use http::HttpOptions;
pub use rate::parse_rate;
pub use source::Source;
pub use sparse::{Sparse, zero};
pub use url::shown;
pub use watch::{NoProgress, Planned, Progress, Watch, path_of};
pub use wipe::{Wiping, wipe};
