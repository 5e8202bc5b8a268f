//! How many workers there are to be: which process leads, what the pools want, what was decided, and which
//! workers are to go.

mod leader;
mod marks;
mod decisions;
mod demand;
mod gauges;

pub use decisions::{DecisionOutcome, DecisionView, NewDecision};
pub use demand::{MarkView, PoolDemand, WorkerView};
pub use gauges::PoolGauges;
pub use leader::Leadership;
pub use marks::{Asked, DrainMark, MARK_FOR};
