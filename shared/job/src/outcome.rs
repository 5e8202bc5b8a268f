//! How one attempt at a job ends.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{InputRequest, Json};

/// The end of one attempt, as the worker reports it to the ledger.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The harness delivered an output.
    Succeeded(Json),
    /// The harness, or the worker on its behalf, gave up.
    Failed(Failure),
    /// Its end was requested, by a user or by a later job of its session. The failure says which.
    Cancelled(Failure),
    /// We stopped it (drain, rescale). It continues elsewhere, and no attempt is spent.
    Interrupted,
    /// It asks a person, and goes on when the answers are there. No attempt is spent.
    Asks(Vec<InputRequest>),
}

/// What went wrong, for the caller and for the retry policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Failure {
    /// The kind, from a fixed set.
    pub code: FailureCode,
    /// For people.
    pub message: String,
    /// Whether another attempt could help.
    pub retryable: bool,
}

impl Failure {
    /// Returns a failure that another attempt might not meet.
    pub fn retryable(code: FailureCode, message: impl Into<String>) -> Failure {
        Failure { code, message: storable(message.into()), retryable: true }
    }

    /// Returns a failure that every further attempt would meet.
    pub fn permanent(code: FailureCode, message: impl Into<String>) -> Failure {
        Failure { code, message: storable(message.into()), retryable: false }
    }
}

/// Messages come from programs. Postgres holds no NUL, and nobody reads more than a few thousand characters.
fn storable(message: String) -> String {
    const KEEP: usize = 4_000;
    message.chars().filter(|c| *c != '\0').take(KEEP).collect()
}

/// The kinds of failure: a fixed set, so that they can be metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// The harness reported an error of its own.
    HarnessError,
    /// The harness broke its contract: garbage on stdout, an unknown message, no result.
    Protocol,
    /// The harness's process ended by a signal or with a non-zero code, and reported nothing.
    Crashed,
    /// The harness could not be started.
    StartFailed,
    /// The attempt outlived its wall-clock limit.
    Timeout,
    /// The harness was silent for too long.
    IdleTimeout,
    /// The harness wrote more than it may.
    OutputLimit,
    /// What the harness wrote cannot be kept in Postgres.
    Unstorable,
    /// The job's input does not fit its agent.
    BadInput,
    /// No agent has that name.
    UnknownAgent,
    /// The worker died in every attempt.
    WorkerLost,
    /// Several workers died while they ran it, so it is taken for the cause.
    Poison,
    /// It had not ended by its `deadline_ms`.
    DeadlineExceeded,
    /// A budget left no room for its model calls.
    BudgetExhausted,
    /// The provider of its models failed, or could not be reached, however often it was asked.
    ProviderError,
    /// The provider of its models does not answer this.
    ProviderRefused,
    /// The conversation does not fit the model's context window, also not after a compaction.
    ContextOverflow,
    /// Its tools cannot be used.
    ToolError,
    /// What the model answers does not fit the agent's schema of its output.
    OutputInvalid,
    /// Too many iterations in a row changed neither memory nor progress.
    NoProgress,
    /// Its session was busy, and its `on_busy` says not to wait.
    SessionBusy,
    /// The broker dead-lettered its message before a worker took it.
    DeadLettered,
    /// What was enqueued by SQL is no job.
    Invalid,
    /// It was cancelled on request.
    Cancelled,
    /// A later job of its session took its place.
    Interrupted,
}

impl FailureCode {
    /// All of them.
    pub const ALL: [FailureCode; 25] = [
        FailureCode::HarnessError,
        FailureCode::Protocol,
        FailureCode::Crashed,
        FailureCode::StartFailed,
        FailureCode::Timeout,
        FailureCode::IdleTimeout,
        FailureCode::OutputLimit,
        FailureCode::Unstorable,
        FailureCode::BadInput,
        FailureCode::UnknownAgent,
        FailureCode::WorkerLost,
        FailureCode::Poison,
        FailureCode::DeadlineExceeded,
        FailureCode::BudgetExhausted,
        FailureCode::ProviderError,
        FailureCode::ProviderRefused,
        FailureCode::ContextOverflow,
        FailureCode::ToolError,
        FailureCode::OutputInvalid,
        FailureCode::NoProgress,
        FailureCode::SessionBusy,
        FailureCode::DeadLettered,
        FailureCode::Invalid,
        FailureCode::Cancelled,
        FailureCode::Interrupted,
    ];

    /// Returns its name in the ledger, on the wire and in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            FailureCode::HarnessError => "harness_error",
            FailureCode::Protocol => "protocol",
            FailureCode::Crashed => "crashed",
            FailureCode::StartFailed => "start_failed",
            FailureCode::Timeout => "timeout",
            FailureCode::IdleTimeout => "idle_timeout",
            FailureCode::OutputLimit => "output_limit",
            FailureCode::Unstorable => "unstorable",
            FailureCode::BadInput => "bad_input",
            FailureCode::UnknownAgent => "unknown_agent",
            FailureCode::WorkerLost => "worker_lost",
            FailureCode::Poison => "poison",
            FailureCode::DeadlineExceeded => "deadline_exceeded",
            FailureCode::BudgetExhausted => "budget_exhausted",
            FailureCode::ProviderError => "provider_error",
            FailureCode::ProviderRefused => "provider_refused",
            FailureCode::ContextOverflow => "context_overflow",
            FailureCode::ToolError => "tool_error",
            FailureCode::OutputInvalid => "output_invalid",
            FailureCode::NoProgress => "no_progress",
            FailureCode::SessionBusy => "session_busy",
            FailureCode::DeadLettered => "dead_lettered",
            FailureCode::Invalid => "invalid",
            FailureCode::Cancelled => "cancelled",
            FailureCode::Interrupted => "interrupted",
        }
    }
}

impl fmt::Display for FailureCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
