//! What is promised about a process in its surroundings: how it starts, what it reports, what it connects to, how it
//! ends.

mod settings;
mod pages;
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
mod clients;
mod door;
mod stopping;
mod backup;
mod keys;
mod mixed_fleet;
