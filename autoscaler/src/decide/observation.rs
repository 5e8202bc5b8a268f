//! What was observed of a pool. Each source has the time of its own reading.

use serde::{Deserialize, Serialize};

/// A value and when it was read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reading<T> {
    /// What was read.
    pub value: T,
    /// When, as Unix time in milliseconds.
    pub at_ms: u64,
}

/// The last readings of a pool. `None` never means zero: the source was never read, or what was read means unknown
/// (such as a missing queue). A source that fails keeps its last reading, which ages until the policy calls it stale.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Messages ready in the pool's queue, by passive declare.
    pub ready: Option<Reading<u64>>,
    /// What the ledger knows.
    pub demand: Option<Reading<Demand>>,
    /// The workload's size.
    pub replicas: Option<Reading<Replicas>>,
    /// Messages ready by the broker's management API, if that is read as a cross-check.
    pub managed_ready: Option<Reading<u64>>,
    /// Whether the budget is spent, if there is one.
    pub budget_exhausted: Option<Reading<bool>>,
}

/// A pool's jobs and workers in the ledger. Draining workers count neither as capacity nor as demand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// Jobs that run, on any worker.
    pub running: u64,
    /// Jobs whose turn in their session has not come; another worker could not take them either.
    pub blocked: u64,
    /// Jobs due within the policy's horizon that are not in the queue yet.
    pub due_soon: u64,
    /// How long the oldest job that could run has waited, in milliseconds.
    pub oldest_waiting_ms: Option<u64>,
    /// Jobs in the pool's line that another worker could take.
    #[serde(default)]
    pub in_line: u64,
    /// Whether no admitter has looked lately. Then `in_line` counts all jobs that wait there, also those that are held back.
    #[serde(default)]
    pub line_is_old: bool,
    /// How long the oldest of these has waited, in milliseconds.
    #[serde(default)]
    pub oldest_in_line_ms: Option<u64>,
    /// Workers that take jobs: alive and not draining.
    pub workers: u32,
    /// Their slots together.
    pub slots: u64,
    /// Workers that hold at least one job, draining or not.
    pub busy_workers: u32,
    /// Workers that drain, by a mark or a signal.
    pub draining_workers: u32,
    /// Recently accepted jobs per second.
    pub arrivals_per_s: f64,
    /// How long recent jobs ran; `None` when none ended.
    pub service: Option<ServiceTime>,
}

/// How long jobs ran, from claim to end.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServiceTime {
    /// How many ended.
    pub jobs: u64,
    /// In milliseconds.
    pub mean_ms: f64,
    /// In milliseconds.
    pub p50_ms: f64,
    /// In milliseconds.
    pub p95_ms: f64,
}

/// How many workers the workload should have, and how many are Ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replicas {
    /// The number in its specification (`spec.replicas`), which a decision starts from.
    pub wanted: u32,
    /// Workers that are Ready.
    pub ready: u32,
}
