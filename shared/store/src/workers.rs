//! Workers: their leases, how fast they work, and the rescue of a dead one's jobs.

mod throughput;
mod lease;
mod rescue;

pub use lease::{Beat, OlderWorker, WorkerRegistration};
pub use throughput::{Durations, Throughput};
