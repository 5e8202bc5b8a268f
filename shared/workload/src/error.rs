//! The errors of a target, as far as a caller acts on them.

use std::error::Error;
use std::sync::Arc;

/// Why a target did not do what it was asked to do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TargetError {
    /// The workload has changed since it was looked at. Look again, and decide again.
    #[error("{target} has changed since it was looked at")]
    Conflict {
        /// The workload.
        target: String,
    },
    /// A right is missing.
    #[error("{target}: the right to {right} is missing: {message}")]
    Forbidden {
        /// The workload.
        target: String,
        /// What must be granted, such as `patch deployments/scale of apps named workers in the namespace fleet`.
        right: String,
        /// The API server's message.
        message: String,
    },
    /// The workload, or its kind, does not exist.
    #[error("{target}: {message}")]
    NotFound {
        /// The workload.
        target: String,
        /// What was not found.
        message: String,
    },
    /// Another autoscaler resizes the same workload. Two would undo each other's work, so this one leaves it
    /// alone.
    #[error("{target} is also scaled by {by}: remove that one, or give this pool another workload")]
    Contested {
        /// The workload.
        target: String,
        /// The other one, such as `HorizontalPodAutoscaler fleet/workers`.
        by: String,
    },
    /// The request was understood and refused, by validation, an admission webhook or a quota.
    #[error("{target}: {message}")]
    Refused {
        /// The workload.
        target: String,
        /// The reason, as it was given.
        message: String,
    },
    /// No answer in time, or one that says "later". Whether a change was made is unknown: look again.
    #[error("{target}: {reason}")]
    Unreachable {
        /// The workload.
        target: String,
        /// What was tried.
        reason: String,
        /// What came instead of an answer.
        #[source]
        source: Arc<dyn Error + Send + Sync>,
    },
}

impl TargetError {
    /// Returns whether it may pass by itself, after another look. The rest lasts until a person changes
    /// something.
    pub fn is_retryable(&self) -> bool {
        match self {
            TargetError::Conflict { .. } | TargetError::Unreachable { .. } => true,
            TargetError::Forbidden { .. }
            | TargetError::NotFound { .. }
            | TargetError::Contested { .. }
            | TargetError::Refused { .. } => false,
        }
    }

    /// Returns its kind in one word, for a metric's label.
    pub fn kind(&self) -> &'static str {
        match self {
            TargetError::Conflict { .. } => "conflict",
            TargetError::Forbidden { .. } => "forbidden",
            TargetError::NotFound { .. } => "not_found",
            TargetError::Contested { .. } => "contested",
            TargetError::Refused { .. } => "refused",
            TargetError::Unreachable { .. } => "unreachable",
        }
    }
}
