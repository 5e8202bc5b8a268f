//! One stored decision.

use serde::{Deserialize, Serialize};

use crate::decide::{Decision, Observation};

/// A row of `harness_scale_decisions`, read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionRow {
    /// When it was decided, as Unix time in milliseconds.
    pub decided_at_ms: u64,
    /// The leader's epoch.
    pub epoch: i64,
    /// What was seen.
    pub inputs: Observation,
    /// What was decided.
    pub decision: Decision,
    /// What came of it, in one word; `None` while that is unknown.
    pub outcome: Option<String>,
    /// More of the outcome, for people.
    pub detail: Option<String>,
}

impl DecisionRow {
    /// Reads the columns of a row.
    ///
    /// # Errors
    /// When `inputs` or `decision` is not the JSON that this version writes.
    pub fn read(
        decided_at_ms: u64,
        epoch: i64,
        inputs: &str,
        decision: &str,
        outcome: Option<String>,
        detail: Option<String>,
    ) -> serde_json::Result<DecisionRow> {
        let (inputs, decision) = (serde_json::from_str(inputs)?, serde_json::from_str(decision)?);
        Ok(DecisionRow { decided_at_ms, epoch, inputs, decision, outcome, detail })
    }

    /// Whether there were more replicas than wanted, and none could be removed.
    pub(super) fn waits(&self) -> bool {
        self.outcome.as_deref() == Some("waiting")
    }
}
