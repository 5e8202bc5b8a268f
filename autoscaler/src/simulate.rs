//! Simulate: a trace of jobs played through the same `decide` under a policy, in modelled time.
//!
//! It has never heard of RabbitMQ, Postgres or Kubernetes: it stands in for all three with a queue, a pool of workers and
//! their delays. Deterministic: the same trace, policy and setup give the same report, to the letter.

mod trace;
mod synthetic;
mod service_times;
mod fleet;
mod run;
mod report;
mod table;
mod plot;
#[cfg(test)]
mod tests;

pub use fleet::Delays;
pub use plot::{Drawn, plot};
pub use report::{Comparison, Difference, Report, Waits};
pub use run::{Run, Sample, Setup, Simulation, TICK_MS};
pub use synthetic::{Shape, Synthetic};
pub use table::table;
pub use trace::{Arrival, Trace, TraceError};
