//! What was decided before: all that a decision remembers. It is read back from `harness_scale_decisions`.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// The past that the stabilization windows and rate limits look at.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// Raw recommendations, oldest first. One stands until the next.
    pub recommendations: VecDeque<Recommendation>,
    /// Changes that were written to the workload, in both directions, oldest first.
    pub resizes: VecDeque<Resize>,
    /// Since when nothing is there to be done: nothing ready, running or due. `None` while something is, or unknown.
    pub idle_since_ms: Option<u64>,
}

/// What the mode asked for, before any behaviour was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recommendation {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Workers.
    pub replicas: u32,
}

/// A change of the workload's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resize {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// Workers before.
    pub from: u32,
    /// Workers after.
    pub to: u32,
}
