//! onesdm: the storage drivers of an OpenNebula cloud and the storage manager below them.
//!
//! Rooms, top to bottom; arrows (`use crate::room`) point down this list only, and the `layers`
//! test fails when one points up:
//!
//! | room | decides | must not know |
//! |---|---|---|
//! | `cli` | dispatch, admin commands, rendering; the only writer to stdout and stderr | storage |
//! | `verb` | one file per OpenNebula verb | system calls, processes |
//! | `one` | OpenNebula's dialect: dumps, names, directories that may be read | storage |
//! | `image` | what an image is: probing, chains, checks | OpenNebula, engines |
//! | `sdm` | domains, jobs, events, the publish protocol, garbage | paths, XML, processes |
//! | `engine` | slabs and tags on one kind of storage | verbs, image formats |
//! | `lock` | leases: who may change what | slabs |
//! | `data` | moving bytes: copy, fetch, verify, decompress | where they end up |
//! | `host` | where work runs: frames, the agent's side, local, ssh2 and system ssh | what the work is |
//! | `connection` | storage connections: which share is mounted where, and for whom | what the storage holds |
//! | `config` | settings and where each came from; the only reader of the environment | verbs |
//! | `obs` | event log, history, journald | what the events mean |
//! | `sys` | the only room with unsafe code, raw system calls and child processes | everything above |

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests arrange what they need"))]

pub mod cli;
pub mod config;
pub mod connection;
pub mod data;
pub mod engine;
pub mod host;
pub mod image;
pub mod lock;
pub mod obs;
pub mod one;
pub mod sdm;
pub mod sys;
pub mod verb;
