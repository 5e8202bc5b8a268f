//! How a child process runs: as the leader of a group of its own, within limits, and never longer than the worker.
//!
//! [`spawn()`] starts one, a [`Group`] is all of it until its end, [`Stderr`] listens to what it complains of. What a program is
//! told, what it says on stdout and what its end means is not known here; jobs and sessions are not either.
//!
//! Linux only: process groups, `waitid` and parent-death signals.

mod spawn;
mod group;
mod stderr;

pub use group::{Exit, Group};
pub use spawn::{limit_open_files, spawn};
pub use stderr::Stderr;
