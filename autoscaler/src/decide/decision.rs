//! A decision, with the rules that made it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many workers a pool should have, and why. It is stored as JSON in `harness_scale_decisions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// When it was made, as Unix time in milliseconds.
    pub at_ms: u64,
    /// Workers that the workload is set to before this decision; `None` when that was never read.
    pub current: Option<u32>,
    /// Workers that demand asks for, after the tolerance and before any limit. The stabilization windows remember this
    /// number. `None` when it is unknown.
    pub recommended: Option<u32>,
    /// Workers that the workload should have. `None` when `current` is `None`: then nothing may be changed.
    pub desired: Option<u32>,
    /// The rule that binds: that of the last step.
    pub reason: Reason,
    /// What the rules made of demand, in their order: the first says what demand asks for, and each later one changes
    /// that.
    pub steps: Vec<Step>,
    /// Since when nothing is ready, running or due; `None` while something is, or while that is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_since_ms: Option<u64>,
}

impl Decision {
    /// Returns the decision for a workload of unknown size: nothing may be changed.
    pub(super) fn unknown(at_ms: u64) -> Decision {
        let reason = Reason::WorkloadUnknown;
        Decision {
            at_ms,
            current: None,
            recommended: None,
            desired: None,
            reason,
            steps: Vec::new(),
            idle_since_ms: None,
        }
    }
}

/// What one rule did to the number of workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The rule.
    pub rule: Reason,
    /// Workers before.
    pub from: u32,
    /// Workers after.
    pub to: u32,
}

/// A rule that can bind a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The number is what demand asks for.
    Demand,
    /// Demand is close enough to the current number.
    Tolerance,
    /// Fewer workers were enough within the window for growing.
    ScaleUpStabilized,
    /// More workers were needed within the window for shrinking.
    ScaleDownStabilized,
    /// The policies for growing do not allow more workers yet.
    ScaleUpLimit,
    /// The policies for shrinking do not allow fewer workers yet.
    ScaleDownLimit,
    /// Growing is disabled by its `select_policy`.
    ScaleUpDisabled,
    /// Shrinking is disabled by its `select_policy`.
    ScaleDownDisabled,
    /// There is something to do, so the first worker starts, whatever the limits say.
    Wake,
    /// Too few jobs wait to wake the pool.
    Activation,
    /// The pool has not been idle for long enough to remove its last worker.
    Cooldown,
    /// `min_replicas`.
    Minimum,
    /// The minimum of a time window.
    Schedule,
    /// `max_replicas`.
    Maximum,
    /// The queue's depth was never read, or could not be.
    QueueUnknown,
    /// The queue's depth is too old.
    QueueStale,
    /// The ledger's numbers were never read, or could not be.
    LedgerUnknown,
    /// The ledger's numbers are too old.
    LedgerStale,
    /// Jobs wait in the pool's line, and how many of them could run is not known: no admitter has looked lately.
    LineStale,
    /// The workload was never read.
    WorkloadUnknown,
    /// The workload's size is too old.
    WorkloadStale,
    /// The management API's number is too old.
    ManagementStale,
    /// The management API disagrees about the queue's depth.
    Disagreement,
    /// The budget is spent.
    BudgetExhausted,
    /// Growing is paused.
    PausedUp,
    /// Shrinking is paused.
    PausedDown,
    /// This many workers hold jobs, and a worker that holds a job is not removed.
    Busy,
}

impl Reason {
    /// All reasons, for metrics that begin at zero.
    pub const ALL: [Reason; 27] = [
        Reason::Demand,
        Reason::Tolerance,
        Reason::ScaleUpStabilized,
        Reason::ScaleDownStabilized,
        Reason::ScaleUpLimit,
        Reason::ScaleDownLimit,
        Reason::ScaleUpDisabled,
        Reason::ScaleDownDisabled,
        Reason::Wake,
        Reason::Activation,
        Reason::Cooldown,
        Reason::Minimum,
        Reason::Schedule,
        Reason::Maximum,
        Reason::QueueUnknown,
        Reason::QueueStale,
        Reason::LedgerUnknown,
        Reason::LedgerStale,
        Reason::LineStale,
        Reason::WorkloadUnknown,
        Reason::WorkloadStale,
        Reason::ManagementStale,
        Reason::Disagreement,
        Reason::BudgetExhausted,
        Reason::PausedUp,
        Reason::PausedDown,
        Reason::Busy,
    ];

    /// The reason's name in metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Demand => "demand",
            Reason::Tolerance => "tolerance",
            Reason::ScaleUpStabilized => "scale_up_stabilized",
            Reason::ScaleDownStabilized => "scale_down_stabilized",
            Reason::ScaleUpLimit => "scale_up_limit",
            Reason::ScaleDownLimit => "scale_down_limit",
            Reason::ScaleUpDisabled => "scale_up_disabled",
            Reason::ScaleDownDisabled => "scale_down_disabled",
            Reason::Wake => "wake",
            Reason::Activation => "activation",
            Reason::Cooldown => "cooldown",
            Reason::Minimum => "minimum",
            Reason::Schedule => "schedule",
            Reason::Maximum => "maximum",
            Reason::QueueUnknown => "queue_unknown",
            Reason::QueueStale => "queue_stale",
            Reason::LedgerUnknown => "ledger_unknown",
            Reason::LedgerStale => "ledger_stale",
            Reason::LineStale => "line_stale",
            Reason::WorkloadUnknown => "workload_unknown",
            Reason::WorkloadStale => "workload_stale",
            Reason::ManagementStale => "management_stale",
            Reason::Disagreement => "disagreement",
            Reason::BudgetExhausted => "budget_exhausted",
            Reason::PausedUp => "paused_up",
            Reason::PausedDown => "paused_down",
            Reason::Busy => "busy",
        }
    }
}

/// The reason as a clause, such as "growing is paused".
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::Demand => "demand asks for that",
            Reason::Tolerance => "demand is within the tolerance of what there is",
            Reason::ScaleUpStabilized => "growing waits: fewer were enough within its stabilization window",
            Reason::ScaleDownStabilized => {
                "shrinking waits: more were asked for within its stabilization window"
            }
            Reason::ScaleUpLimit => "the scale_up policies allow no more yet",
            Reason::ScaleDownLimit => "the scale_down policies allow no fewer yet",
            Reason::ScaleUpDisabled => "growing is disabled (scale_up.select_policy)",
            Reason::ScaleDownDisabled => "shrinking is disabled (scale_down.select_policy)",
            Reason::Wake => "there is something to do, so the first worker starts at once",
            Reason::Activation => "too little waits to wake the pool (activation)",
            Reason::Cooldown => "the last worker stays until there was nothing to do for the whole cooldown",
            Reason::Minimum => "min_replicas asks for it",
            Reason::Schedule => "the schedule asks for it",
            Reason::Maximum => "max_replicas allows no more",
            Reason::QueueUnknown => "the queue's depth is unknown",
            Reason::QueueStale => "the queue's depth is too old to rely on",
            Reason::LedgerUnknown => "the ledger's numbers are unknown",
            Reason::LedgerStale => "the ledger's numbers are too old to rely on",
            Reason::LineStale => "nobody has looked lately at what waits in line",
            Reason::WorkloadUnknown => "the workload's size is unknown",
            Reason::WorkloadStale => "the workload's size is too old to shrink by",
            Reason::ManagementStale => "the management API's depth is too old to shrink by",
            Reason::Disagreement => "the management API reports another depth, so nothing shrinks",
            Reason::BudgetExhausted => "the budget is spent, so nothing grows",
            Reason::PausedUp => "growing is paused",
            Reason::PausedDown => "shrinking is paused",
            Reason::Busy => "a worker that holds a job is not removed",
        })
    }
}

/// "12 → 10: max_replicas allows no more".
impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.from == self.to {
            return write!(f, "{}: {}", self.to, self.rule);
        }
        write!(f, "{} → {}: {}", self.from, self.to, self.rule)
    }
}

/// "grows from 2 to 7: 2 → 30: demand asks for that; 30 → 7: the scale_up policies allow no more yet".
impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some(current), Some(desired)) = (self.current, self.desired) else {
            return write!(f, "nothing to decide: {}", self.reason);
        };
        match desired.cmp(&current) {
            std::cmp::Ordering::Greater => write!(f, "grows from {current} to {desired}")?,
            std::cmp::Ordering::Less => write!(f, "shrinks from {current} to {desired}")?,
            std::cmp::Ordering::Equal => write!(f, "stays at {current}")?,
        }
        for (index, step) in self.steps.iter().enumerate() {
            write!(f, "{} {step}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}
