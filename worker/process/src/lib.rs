//! Runs a child process as the leader of its own process group, within limits, and never longer than the worker.
//!
//! [`Program`] says which one, [`Sandbox`] what it may reach, [`spawn()`] starts it, [`Group`] holds its processes until their end, a guard kills them when the worker is killed, and [`Stderr`] reads what it writes to
//! stderr. This crate does not know what a program is given, what it writes to stdout, or what its end means. It knows
//! no jobs and no sessions.
//!
//! Linux only: process groups, `waitid` and parent-death signals.

mod workspace;
mod program;
mod sandbox;
mod guard;
mod spawn;
mod group;
mod stderr;

pub use group::{Exit, Group};
pub use program::{Program, SettingError, WITHHELD, is_withheld};
pub use sandbox::{
    Entry, Files, Kernel, Level, Network, Online, Reach, Rules, Sandbox, SandboxConfig, SandboxError,
};
pub use spawn::{Limits, limit_open_files, spawn};
pub use stderr::Stderr;
pub use workspace::{is_of_the_session, make_workspace};
