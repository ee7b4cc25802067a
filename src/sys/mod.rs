//! The floor: system calls, child processes, signals, and the few words every room shares. The only
//! room with unsafe code. Every effect on storage passes through `effect`, so that tests can stop the
//! process before and after each one.

pub mod cancel;
pub mod child;
pub mod class;
pub mod companion;
pub mod copy;
pub mod detach;
pub mod direct;
pub mod driver;
pub mod effect;
pub mod fork;
pub mod fs;
pub mod mounts;
pub mod ofd;
pub mod path;
pub mod qemulock;
pub mod sanlock;
pub mod shim;
pub mod signal;
pub mod stop;
pub mod tool;
pub mod user;

pub use cancel::Cancel;
pub use child::Child;
pub use class::{Bytes, Class, hex};
pub use qemulock::{qemu_holds, qemu_writes};
pub use tool::{Tool, ToolError, Tools};
