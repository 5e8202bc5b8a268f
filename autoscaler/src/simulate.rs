//! Simulate: plays a trace of jobs through the same `decide`, under a policy, in modelled time.
//!
//! It does not know RabbitMQ, Postgres or Kubernetes: it models all three with a queue, a pool of workers and their
//! delays. It is deterministic: the same trace, policy and setup give exactly the same report.

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
