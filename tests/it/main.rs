//! The integration suite: the built program, called as oned and people call it, on real file systems.
//! One binary, so it links once. A test that needs root or a tool fails without it; nothing is skipped.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::format_collect,
    clippy::needless_pass_by_value,
    unreachable_pub,
    reason = "tests stand outside the house: they start the program, read the environment and say what they saw"
)]

mod admin;
mod agent;
mod bed;
mod blackout;
mod bridge;
mod bridge_stream;
mod call;
mod context;
mod contract;
mod cost;
mod defects;
mod defects_cost;
mod defects_security;
mod deps;
mod direct;
mod doc;
mod docs;
mod doctor;
mod dumps;
mod exit0;
mod explore;
mod fail;
mod failures;
mod fight;
mod floors;
mod footprint;
mod fsbed;
mod full;
mod fuzz;
mod guest;
mod hang;
mod history;
mod hostile;
mod hosts;
mod http;
mod hypervisor;
mod install;
mod install_libraries;
mod kill;
mod layers;
mod linear;
mod live;
mod live_agent;
mod live_dead;
mod live_hostile;
mod live_kill;
mod live_move;
mod live_plan;
mod local;
mod lvm;
mod lvmbed;
mod lvmbridge;
mod lvmdeath;
mod lvmfull;
mod lvmhosts;
mod lvmkill;
mod lvmlive;
mod lvmmeet;
mod lvmmember;
mod lvmmigrate;
mod lvmorphan;
mod lvmpause;
mod lvmplan;
mod lvmpower;
mod lvmverbs;
mod lvmwipe;
mod many;
mod media;
mod metrics;
mod mixed;
mod model;
mod monitoring;
mod nfs;
mod nfs_auto;
mod nfs_inside;
mod nfs_stale;
mod noshell;
mod oned;
mod oned_server;
mod oracle;
mod packages;
mod pause;
mod plans;
mod power;
mod progress;
mod proof;
mod protocol;
mod race;
mod records;
mod redteam;
mod redteam_hosts;
mod redteam_more;
mod replay;
mod runner;
mod sanhosts;
mod sanlock;
mod scale;
mod scenes;
mod secrets;
mod security;
mod seeded;
mod server;
mod shell;
mod sources;
mod sysoracle;
mod tm;
mod tm_calls;
mod tm_failures;
mod tm_kill;
mod tm_local;
mod tm_local_kill;
mod tm_scenes;
mod tmcalls;
mod turns;
mod turns_hosts;
mod vm;
mod writelog;
