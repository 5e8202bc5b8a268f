//! The autoscaler decides how many workers a pool should have, and records why.
//!
//! Once a second, for every pool: [`observe`] → [`decide`] → [`workload`]. It knows a pool from two sources: the
//! broker's count of ready messages, and the ledger's jobs and workers. It never talks to a worker. It sets how many
//! there are (replicas in Kubernetes, or processes), and writes into the ledger which are to drain. [`reconcile`] is
//! the loop, and [`dispatch::Leader`] decides which process runs it. [`simulate`] makes the same decisions over a
//! trace.

// The pools.
mod config;

// A tick.
pub mod observe;
pub mod decide;
pub mod scale_in;
mod reconcile;

// The process of `autoscaler run`.
mod metrics;
mod settings;
mod serve;

// The other commands, and the command line.
mod once;
pub mod explain;
pub mod simulate;
mod cli;

pub use cli::Args;
