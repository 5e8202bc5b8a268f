//! What is promised of a process among its surroundings: how it starts, what it says, what it is connected to, how it ends.

mod settings;
mod errors;
mod addresses;
mod certificates;
mod refused_access;
mod poolers;
mod inherited;
mod clock_skew;
mod clock_steps;
mod doctor;
mod preflight;
mod logs;
mod metrics;
mod tracing;
mod pipes;
mod stalled_readers;
mod terminals;
mod drain;
mod stopping;
mod backup;
