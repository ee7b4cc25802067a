//! What an image is: its header, its chain, whether it may come in and whether it is complete. Headers
//! are read by our own bounded parsers; `qemu-img` moves and checks the bytes. Knows no engine.

pub mod admit;
pub mod chain;
pub mod check;
mod error;
#[cfg(test)]
mod fixture;
mod names;
mod other;
pub mod probe;
mod qcow;
pub mod qemu;
mod source;
mod vmdk;
mod whole;

pub use admit::{Admit, admit};
pub use chain::{Link, below, chain, chain_as, held, root_of_chain};
pub use check::{Finding, Severity, check};
pub use error::ImageError;
pub use names::names;
pub use probe::{Backing, Format, Probe, probe, probe_as, probe_bytes};
pub use qcow::Qcow2;
pub use qemu::{Convert, Counts, Progress, Qemu, Rebase, Space, Target};
pub use whole::whole;
