//! The autoscaler decides how many workers a pool should have, and records why.
//!
//! Once a second, for every pool: [`observe`] → [`decide`] → [`workload`]. It knows a pool from two sources: the
//! broker's count of ready messages, and the ledger's jobs and workers. It never talks to a worker: what it asks of
//! one, it writes into the ledger. [`reconcile`] is the loop, [`dispatch::Leader`] decides which process runs it, and
//! [`simulate`] makes the same decisions over a trace.

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
