//! What a caller asks for: the fields of a job.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::clip;
use crate::{
    DecodeError, JobId, Json, Labels, Lane, LimitKeys, Limits, Name, RetryPolicy, RunAt, SessionKey, Tenant,
    TraceId, TraceParent, Usd, given, trace, usd,
};

/// What a job does when another job of its session runs, or an earlier one is unfinished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// Waits for its turn.
    #[default]
    Enqueue,
    /// Fails at once with the code `session_busy`.
    Reject,
    /// Ends the running job at its next checkpoint, and waits for its turn. The session keeps what that job did.
    Interrupt,
    /// Ends the running job at once, and waits for its turn. Memory, context and progress return to what they were
    /// before that job. What it cost stays counted.
    Rollback,
}

impl OnBusy {
    /// All of them.
    pub const ALL: [OnBusy; 4] = [OnBusy::Enqueue, OnBusy::Reject, OnBusy::Interrupt, OnBusy::Rollback];

    fn is_default(&self) -> bool {
        *self == OnBusy::default()
    }

    /// Returns its name in the envelope.
    pub fn as_str(self) -> &'static str {
        match self {
            OnBusy::Enqueue => "enqueue",
            OnBusy::Reject => "reject",
            OnBusy::Interrupt => "interrupt",
            OnBusy::Rollback => "rollback",
        }
    }
}

impl FromStr for OnBusy {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        OnBusy::ALL.into_iter().find(|way| way.as_str() == text).ok_or_else(|| {
            format!("got \"{text}\", expected one of {}", OnBusy::ALL.map(OnBusy::as_str).join(", "))
        })
    }
}

/// A job as its caller described it. This is the body of a `harness.job.v1` message, field by field. Fields that are
/// not listed here are ignored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// A UUIDv7, made by the caller. Publishing the same id again is the same job.
    pub job_id: JobId,
    /// Whose work it is. A message may name another tenant than `default` only if the ledger knows its job already.
    #[serde(default, deserialize_with = "given::or_default", skip_serializing_if = "Tenant::is_default")]
    pub tenant: Tenant,
    /// The session whose state the job continues. It is created if it does not exist. Each tenant has its own.
    pub session_id: Name,
    /// The agent that does the work, by its name in the workers' `agents.toml`.
    pub agent_id: Name,
    /// The user on whose behalf the job runs, at most 255 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<String>,
    /// The pool of workers, and therefore the queue `harness.jobs.<pool>`.
    #[serde(default, deserialize_with = "given::or_default")]
    pub pool: Name,
    /// The harness's input; any JSON.
    #[serde(default = "Json::null")]
    pub input: Json,
    /// How often and when the job is tried again.
    #[serde(default, deserialize_with = "given::object_or_default")]
    pub retry: RetryPolicy,
    /// The wall-clock limit of one attempt, in milliseconds. If absent, the agent's own limit holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// The moment before which the job does not start. Until then it is not in its session's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<RunAt>,
    /// The same, as milliseconds from the time inside `job_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Milliseconds until the job must have ended: from the time inside `job_id`, or from `run_at` or the end of `delay_ms`
    /// where that is later. After that it fails, whether it runs
    /// or not, and is not tried again. No limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// How many iterations in a row may leave memory and progress unchanged before the attempt fails for good.
    /// No limit if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_stalled_iterations: Option<u32>,
    /// The most answers of a model loop, in all attempts. The lower limit holds: the agent's stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_iterations: Option<u32>,
    /// The most tokens of a model loop, read and written in all its answers. The lower limit holds: the agent's
    /// stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// The most that the job's model calls may cost, in dollars, in all attempts. The lowest limit holds: the agent's and
    /// those of the ledger stay. What a program reports itself has no limit.
    #[serde(default, deserialize_with = "usd::limit", skip_serializing_if = "Option::is_none")]
    pub max_cost_usd: Option<Usd>,
    /// What to do when the session is busy.
    #[serde(default, deserialize_with = "given::or_default", skip_serializing_if = "OnBusy::is_default")]
    pub on_busy: OnBusy,
    /// How soon it is wanted, where its pool has a line.
    #[serde(default, deserialize_with = "given::or_default", skip_serializing_if = "Lane::is_default")]
    pub lane: Lane,
    /// The limit keys, at most four: for each of them an operator may bound how many jobs are at work at a time. They count
    /// where the pool has a line.
    #[serde(default, deserialize_with = "given::or_default", skip_serializing_if = "LimitKeys::is_empty")]
    pub limits: LimitKeys,
    /// What the caller writes on the job, to find it by: at most eight, each with a key of its own.
    #[serde(
        default,
        deserialize_with = "given::object_or_default",
        skip_serializing_if = "Labels::is_empty"
    )]
    pub labels: Labels,
    /// The queue that gets a `harness.result.v1` message at the end. The [`crate::ReplyRule`] must allow it. The AMQP
    /// property `reply_to` sets it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply_to: Option<String>,
    /// Returned in the reply; the job id if absent. The AMQP property `correlation_id` sets it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correlation_id: Option<String>,
    /// The caller's trace (W3C Trace Context). A text that is not a valid `traceparent` is ignored. The AMQP header
    /// `traceparent` sets it too.
    #[serde(default, deserialize_with = "trace::read", skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<TraceParent>,
}

impl JobSpec {
    /// Returns a job with defaults for everything optional.
    pub fn new(session_id: Name, agent_id: Name, input: Json) -> JobSpec {
        JobSpec {
            job_id: JobId::now(),
            tenant: Tenant::default(),
            session_id,
            agent_id,
            user_id: None,
            pool: Name::default(),
            input,
            retry: RetryPolicy::default(),
            timeout_ms: None,
            run_at: None,
            delay_ms: None,
            deadline_ms: None,
            max_stalled_iterations: None,
            max_iterations: None,
            max_tokens: None,
            max_cost_usd: None,
            on_busy: OnBusy::default(),
            lane: Lane::default(),
            limits: LimitKeys::default(),
            labels: Labels::default(),
            reply_to: None,
            correlation_id: None,
            traceparent: None,
        }
    }

    /// Checks what the types alone do not check: ranges and lengths.
    pub fn check(&self, limits: &Limits) -> Result<(), DecodeError> {
        self.job_id
            .check_window(limits.now_unix_ms, limits.retention)
            .map_err(|error| DecodeError::new("job_id", error))?;
        self.retry.check().map_err(|(field, problem)| DecodeError::new(field, problem))?;
        // AMQP short strings hold at most 255 bytes.
        for (field, value) in [
            ("user_id", &self.user_id),
            ("reply_to", &self.reply_to),
            ("correlation_id", &self.correlation_id),
        ] {
            check_text(field, value.as_deref())?;
        }
        if let Some(name) = &self.reply_to {
            limits.replies.check(name).map_err(|problem| DecodeError::new("reply_to", problem))?;
        }
        check_span("timeout_ms", self.timeout_ms, "a week", 7)?;
        self.check_due(limits)?;
        check_span("deadline_ms", self.deadline_ms, "a year", 365)?;
        for (field, count) in [
            ("max_stalled_iterations", self.max_stalled_iterations.map(u64::from)),
            ("max_iterations", self.max_iterations.map(u64::from)),
            ("max_tokens", self.max_tokens),
        ] {
            if count == Some(0) {
                return Err(DecodeError::new(field, "got 0, expected at least 1"));
            }
        }
        self.limits.check()?;
        self.labels.check()
    }

    /// Returns the key of its session in the ledger.
    pub fn session_key(&self) -> SessionKey {
        SessionKey::new(&self.tenant, &self.session_id)
    }

    /// Returns the trace that holds all attempts: the caller's, or the job's own.
    pub fn trace_id(&self) -> TraceId {
        self.traceparent.map_or(self.job_id.into(), TraceParent::trace_id)
    }

    /// A job's id must still be young when its message is published, and its result must find a place. So the bound
    /// counts from the time inside the id.
    fn check_due(&self, limits: &Limits) -> Result<(), DecodeError> {
        if self.run_at.is_some() && self.delay_ms.is_some() {
            return Err(DecodeError::new("delay_ms", "given beside run_at, expected one of the two"));
        }
        let most_ms = u64::try_from(limits.retention.as_millis() / 2).unwrap_or(u64::MAX);
        if let Some(delay_ms) = self.delay_ms.filter(|delay_ms| *delay_ms > most_ms) {
            let problem = format!("got {delay_ms}, expected 0 to {most_ms} (half of RETENTION_DAYS)");
            return Err(DecodeError::new("delay_ms", problem));
        }
        let last = self.job_id.unix_ms().saturating_add(most_ms);
        match self.run_at {
            Some(run_at) if run_at.unix_ms() > last => {
                let last = RunAt::of_unix_ms(last).map(|last| format!(", {last}")).unwrap_or_default();
                let problem = format!(
                    "got {run_at}, expected at most {most_ms} ms (half of RETENTION_DAYS) after the time inside job_id{last}"
                );
                Err(DecodeError::new("run_at", problem))
            }
            _ => Ok(()),
        }
    }

    /// Returns the moment before which the job does not start, as Unix time in milliseconds.
    pub fn due_unix_ms(&self) -> Option<u64> {
        let delayed = self.delay_ms.map(|delay_ms| self.job_id.unix_ms().saturating_add(delay_ms));
        self.run_at.map(RunAt::unix_ms).or(delayed)
    }

    /// Returns whether the job may start.
    pub fn is_due(&self, now_unix_ms: u64) -> bool {
        self.due_unix_ms().is_none_or(|due| due <= now_unix_ms)
    }

    /// Returns the moment by which the job must have ended, as Unix time in milliseconds.
    pub fn deadline_unix_ms(&self) -> Option<u64> {
        let from = self.due_unix_ms().unwrap_or(0).max(self.job_id.unix_ms());
        Some(from.saturating_add(self.deadline_ms?))
    }
}

pub(crate) fn check_span(
    field: &'static str,
    given: Option<u64>,
    longest: &str,
    longest_days: u64,
) -> Result<(), DecodeError> {
    let longest_ms = longest_days * 86_400_000;
    match given {
        Some(ms) if !(1..=longest_ms).contains(&ms) => {
            Err(DecodeError::new(field, format!("got {ms}, expected 1 to {longest_ms} ({longest})")))
        }
        _ => Ok(()),
    }
}

/// Reads the id of a user, as [`JobSpec::user_id`] must be.
pub fn parse_user_id(text: &str) -> Result<String, DecodeError> {
    check_text("user_id", Some(text))?;
    Ok(text.to_owned())
}

pub(crate) fn check_text(field: &'static str, value: Option<&str>) -> Result<(), DecodeError> {
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
