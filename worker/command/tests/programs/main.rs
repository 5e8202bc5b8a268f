//! The harness against real processes: one file for each promise of the contract.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, like the test itself")]

mod support;

mod conversation;
mod failures;
mod stopping;
mod surroundings;
mod worker_death;
mod reader;
