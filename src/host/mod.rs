//! Where work runs. A request is a JSON value that a handler understands; this room carries it to the
//! handler, in this process or in `onesdm agent` on another host, and knows nothing of what it means.
//!
//! The job on the host fills and flushes, says `ready`, and publishes only when the front-end says
//! `commit`. A lost connection does not stop it before that point; cancel and SIGTERM do.

mod agent;
mod effective;
mod error;
mod install;
mod known;
mod link;
#[cfg(any(test, feature = "failpoints"))]
pub mod scripted;
mod sftp;
mod transport;
pub mod wire;

pub use agent::{Limits, serve};
pub use error::{HostError, HostKey, Stage};
pub use install::Program;
pub use link::{Gone, Handler, Link};
pub use transport::{
    Bell, Channel, Commit, Event, Hosts, Local, Next, Request, Route, Settings, Source, Transport,
};
pub use wire::{Hello, Identity, Progress, WireError};

#[cfg(test)]
mod install_tests;
#[cfg(test)]
mod tests;
