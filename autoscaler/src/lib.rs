//! The autoscaler: how many workers a pool should have, and why.
//!
//! Once a second, for every pool: [`observe`] → [`decide`] → [`workload`]. It sees a pool through two windows, the broker's
//! ready messages and the ledger's jobs and workers, and never talks to a worker: what it wants of one it writes into
//! the ledger. [`reconcile`] is the loop, [`dispatch::Leader`] says who runs it, [`simulate`] runs the same decisions over a trace.

mod config;
pub mod observe;
pub mod decide;
pub mod scale_in;
mod reconcile;
mod metrics;
mod settings;
mod serve;
mod once;
pub mod explain;
pub mod simulate;
mod cli;

pub use cli::Args;
