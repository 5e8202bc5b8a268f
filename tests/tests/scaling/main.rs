//! What is promised of an autoscaler: what it sees, what it decides, and who is drained.

mod observe;
mod demand;
mod leader_lease;
mod drain_marks;
mod scale_decisions;
mod scale_in;
mod simulate;
mod autoscaler;
