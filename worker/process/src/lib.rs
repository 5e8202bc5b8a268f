//! Runs a child process as the leader of its own process group, within limits, and never longer than the worker.
//!
//! [`Sandbox`] says what a program may reach, [`spawn()`] starts it, [`Group`] holds its processes until their end, and [`Stderr`] reads what it writes to
//! stderr. This crate does not know what a program is given, what it writes to stdout, or what its end means. It knows
//! no jobs and no sessions.
//!
//! Linux only: process groups, `waitid` and parent-death signals.

mod sandbox;
mod spawn;
mod group;
mod stderr;

pub use group::{Exit, Group};
pub use sandbox::{Entry, Files, Network, Rules, Sandbox, SandboxError};
pub use spawn::{limit_open_files, spawn};
pub use stderr::Stderr;
