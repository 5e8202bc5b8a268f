//! What the API shows: jobs and sessions.

use job::{FailureCode, InputKind, JobId, JobState, Json, Labels, TraceId, Usd};
use serde::{Deserialize, Deserializer, de};
use uuid::Uuid;

/// A job. A key without the scope `read` is shown its id and its state; all other fields are empty then.
#[derive(Clone, Debug, Deserialize)]
pub struct Job {
    /// Its id.
    pub job_id: JobId,
    /// The trace in which its attempts are.
    #[serde(default, deserialize_with = "trace")]
    pub trace_id: Option<TraceId>,
    /// Its session.
    #[serde(default)]
    pub session_id: String,
    /// Its agent.
    #[serde(default)]
    pub agent_id: String,
    /// Its pool.
    #[serde(default)]
    pub pool: String,
    /// Its labels.
    #[serde(default)]
    pub labels: Labels,
    /// Where it is.
    pub state: JobState,
    /// Attempts spent.
    #[serde(default)]
    pub attempts: i32,
    /// Iterations that are safe in the ledger.
    #[serde(default)]
    pub iterations: i64,
    /// Spend so far.
    #[serde(default)]
    pub cost_usd: Usd,
    /// Tokens read so far.
    #[serde(default)]
    pub input_tokens: i64,
    /// Tokens written so far.
    #[serde(default)]
    pub output_tokens: i64,
    /// The worker that runs it or ended it.
    pub worker_id: Option<Uuid>,
    /// RFC 3339, UTC.
    #[serde(default)]
    pub accepted_at: String,
    /// RFC 3339, UTC.
    pub started_at: Option<String>,
    /// RFC 3339, UTC.
    pub finished_at: Option<String>,
    /// What it asks persons, while it waits for their answers.
    #[serde(default)]
    pub questions: Vec<Question>,
    /// Why the last attempt failed.
    pub failure: Option<Failure>,
    /// What it was given; for keys with the scope `content`, and where one job is read.
    #[serde(default, deserialize_with = "said")]
    pub input: Option<Json>,
    /// What it delivered; for keys with the scope `content`.
    #[serde(default, deserialize_with = "said")]
    pub output: Option<Json>,
    /// The size of what it delivered.
    pub output_bytes: Option<u64>,
    /// The SHA-256 of what it delivered, in hexadecimal.
    pub output_sha256: Option<String>,
}

/// A question that waits for a person: see [`Client::answer`](crate::Client::answer).
#[derive(Clone, Debug, Deserialize)]
pub struct Question {
    /// The call, which the answer names.
    pub call_id: String,
    /// What kind of answer it takes.
    pub kind: InputKind,
    /// What the person is shown; for keys with the scope `content`.
    #[serde(default, deserialize_with = "said")]
    pub question: Option<Json>,
    /// The size of what the person is shown.
    pub question_bytes: Option<u64>,
    /// The SHA-256 of what the person is shown, in hexadecimal.
    pub question_sha256: Option<String>,
    /// RFC 3339, UTC.
    pub asked_at: String,
    /// When the job goes on without an answer: RFC 3339, UTC.
    pub expires_at: Option<String>,
}

/// Why an attempt failed.
#[derive(Clone, Debug, Deserialize)]
pub struct Failure {
    /// The kind, from a fixed set.
    pub code: FailureCode,
    /// For people; for keys with the scope `content`.
    pub message: Option<String>,
    /// Whether another attempt could help.
    pub retryable: bool,
}

/// A job in a list.
#[derive(Clone, Debug, Deserialize)]
pub struct JobEntry {
    /// Its id.
    pub job_id: JobId,
    /// Its session.
    pub session_id: String,
    /// Its agent.
    pub agent_id: String,
    /// Its pool.
    pub pool: String,
    /// Where it is.
    pub state: JobState,
    /// Attempts spent.
    pub attempts: i32,
    /// RFC 3339, UTC.
    pub accepted_at: String,
    /// RFC 3339, UTC.
    pub finished_at: Option<String>,
    /// The code of the last failure.
    pub code: Option<String>,
}

/// A session in a list.
#[derive(Clone, Debug, Deserialize)]
pub struct SessionEntry {
    /// Its name.
    pub session_id: String,
    /// The agent of its first job.
    pub agent_id: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub last_updated: String,
    /// Jobs folded so far.
    pub jobs: i64,
}

/// A session.
#[derive(Clone, Debug, Deserialize)]
pub struct Session {
    /// Its name.
    pub session_id: String,
    /// The agent of its first job.
    pub agent_id: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// RFC 3339, UTC.
    pub last_updated: String,
    /// Jobs folded so far.
    pub jobs: i64,
    /// Iterations in all.
    pub iterations: i64,
    /// Spend in all.
    pub cost_usd: Usd,
    /// Tokens read in all.
    pub input_tokens: i64,
    /// Tokens written in all.
    pub output_tokens: i64,
    /// Its memory as of its last checkpoint; for keys with the scope `content`, like its context and progress.
    pub memory: Option<serde_json::Value>,
    /// The size of its memory.
    pub memory_bytes: Option<u64>,
    /// The SHA-256 of its memory, in hexadecimal.
    pub memory_sha256: Option<String>,
    /// Its context as of its last checkpoint.
    pub context_window: Option<serde_json::Value>,
    /// The size of its context.
    pub context_window_bytes: Option<u64>,
    /// The SHA-256 of its context, in hexadecimal.
    pub context_window_sha256: Option<String>,
    /// Its progress as of its last checkpoint.
    pub feature_progress: Option<serde_json::Value>,
    /// The size of its progress.
    pub feature_progress_bytes: Option<u64>,
    /// The SHA-256 of its progress, in hexadecimal.
    pub feature_progress_sha256: Option<String>,
}

/// What was said may be `null`, which is not the same as not shown.
pub(crate) fn said<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Json>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

fn trace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<TraceId>, D::Error> {
    Uuid::deserialize(deserializer)?.try_into().map(Some).map_err(de::Error::custom)
}

/// A sum of model calls. The first five fields are set where the sums are taken by them.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SpendEntry {
    /// The day of the calls, in the time zone of the fleet's budgets.
    pub day: Option<String>,
    /// The agent.
    pub agent_id: Option<String>,
    /// The user; empty for jobs without one.
    pub user_id: Option<String>,
    /// The model that the request named.
    pub model: Option<String>,
    /// The job; empty for calls that are so old that only their sums are kept.
    pub job_id: Option<String>,
    /// Calls.
    pub calls: u64,
    /// What they cost; what is not known counts in full.
    pub cost_usd: Usd,
    /// The part of the cost that is not known.
    pub unknown_usd: Usd,
    /// What is held for calls under way.
    pub held_usd: Usd,
    /// Input that no cache had.
    pub input_tokens: u64,
    /// Input from a cache.
    pub cache_read_tokens: u64,
    /// Input that was written into a cache.
    pub cache_write_tokens: u64,
    /// Output.
    pub output_tokens: u64,
}

impl SpendEntry {
    /// Adds other calls of the same.
    pub(crate) fn add(&mut self, part: &SpendEntry) {
        self.calls += part.calls;
        self.cost_usd += part.cost_usd;
        self.unknown_usd += part.unknown_usd;
        self.held_usd += part.held_usd;
        self.input_tokens += part.input_tokens;
        self.cache_read_tokens += part.cache_read_tokens;
        self.cache_write_tokens += part.cache_write_tokens;
        self.output_tokens += part.output_tokens;
    }
}
