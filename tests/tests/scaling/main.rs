//! What is promised about an autoscaler: what it observes, what it decides, and which workers are drained.

mod observe;
mod demand;
mod leader_lease;
mod drain_marks;
mod scale_decisions;
mod scale_in;
mod simulate;
mod autoscaler;
