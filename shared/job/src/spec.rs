//! What a caller asks for.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::id::clip;
use crate::{DecodeError, JobId, Json, Limits, Name, RetryPolicy};

/// A job as its caller described it. This is the body of a `harness.job.v1` message, field by field; fields that
/// are not listed here are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// A UUIDv7, made by the caller: publishing the same id again is the same job.
    pub job_id: JobId,
    /// The session whose state the job continues; it is created when it does not exist.
    pub session_id: Name,
    /// The agent that does the work, as named in the workers' `agents.toml`.
    pub agent_id: Name,
    /// On whose behalf, at most 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The pool of workers, and so the queue `harness.jobs.<pool>`.
    #[serde(default)]
    pub pool: Name,
    /// What the harness is given; any JSON.
    #[serde(default = "Json::null")]
    pub input: Json,
    /// How often and when it is tried again.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Wall-clock limit of one attempt, in milliseconds; the agent's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The queue that gets a `harness.result.v1` message at the end. The AMQP property `reply_to` sets it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Handed back in the reply; the job id when absent. The AMQP property `correlation_id` sets it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The caller's trace (W3C Trace Context). The AMQP header `traceparent` sets it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

impl JobSpec {
    /// A job with defaults for all that is optional.
    pub fn new(session_id: Name, agent_id: Name, input: Json) -> JobSpec {
        JobSpec {
            job_id: JobId::now(),
            session_id,
            agent_id,
            user_id: None,
            pool: Name::default(),
            input,
            retry: RetryPolicy::default(),
            timeout_ms: None,
            reply_to: None,
            correlation_id: None,
            traceparent: None,
        }
    }

    /// Checks what the types alone do not: ranges and lengths.
    pub fn check(&self, limits: &Limits) -> Result<(), DecodeError> {
        self.job_id
            .check_window(limits.now_unix_ms, limits.retention)
            .map_err(|error| DecodeError::new("job_id", error))?;
        self.retry.check().map_err(|(field, problem)| DecodeError::new(field, problem))?;
        // The broker's short strings end at 255 bytes.
        for (field, value) in [
            ("user_id", &self.user_id),
            ("reply_to", &self.reply_to),
            ("correlation_id", &self.correlation_id),
        ] {
            check_text(field, value.as_deref())?;
        }
        const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 86_400);
        if let Some(timeout_ms) = self.timeout_ms
            && !(1..=MAX_TIMEOUT.as_millis() as u64).contains(&timeout_ms)
        {
            let problem = format!("got {timeout_ms}, expected 1 to {} (a week)", MAX_TIMEOUT.as_millis());
            return Err(DecodeError::new("timeout_ms", problem));
        }
        Ok(())
    }
}

fn check_text(field: &'static str, value: Option<&str>) -> Result<(), DecodeError> {
    match value {
        Some(text) if text.is_empty() || text.len() > 255 || text.chars().any(char::is_control) => {
            let got = clip(&text.escape_default().to_string());
            Err(DecodeError::new(
                field,
                format!("got \"{got}\", expected 1 to 255 bytes without control characters"),
            ))
        }
        _ => Ok(()),
    }
}
