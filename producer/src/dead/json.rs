//! Dead letters as JSON.

use std::time::{Duration, UNIX_EPOCH};

use job::Peek;
use queue::{DeadLetter, pool_of_queue};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use store::FailedJob;

use super::read::{DeadEntry, DeadEntryDetail, id_of};

impl DeadEntry {
    /// An entry of a list.
    pub fn json(&self) -> Value {
        match self {
            DeadEntry::Job(job) => job_json(job),
            DeadEntry::Message(letter, peek, _) => letter_json(letter, peek),
        }
    }
}

impl DeadEntryDetail {
    /// A job with its result and envelope, or a message with its headers and body.
    pub fn json(&self) -> serde_json::Result<Value> {
        match self {
            DeadEntryDetail::Job(failed, view) => {
                let envelope =
                    failed.message.as_deref().map(serde_json::from_str::<Box<RawValue>>).transpose()?;
                let mut whole = job_json(failed);
                whole["redriven_as"] = json!(failed.redriven_as);
                whole["dismissed_at"] = json!(failed.dismissed_at);
                whole["result"] = serde_json::to_value(view)?;
                whole["envelope"] = serde_json::to_value(envelope)?;
                Ok(whole)
            }
            DeadEntryDetail::Message(letter, peek) => Ok(letter_json(letter, peek)),
        }
    }
}

fn job_json(job: &FailedJob) -> Value {
    json!({
        "kind": "job",
        "id": job.job_id,
        "session_id": job.session_id,
        "agent_id": job.agent_id,
        "pool": job.pool,
        "code": job.code,
        "reason": job.reason,
        "attempts": job.attempts,
        "dead_at": job.finished_at,
        "dead_at_unix_ms": job.finished_unix_ms,
    })
}

/// The body is JSON if it parses, otherwise a string.
fn letter_json(letter: &DeadLetter, peek: &Peek) -> Value {
    let body = serde_json::from_slice(&letter.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&letter.body).into_owned()));
    json!({
        "kind": "message",
        "id": id_of(letter),
        "session_id": peek.session_id,
        "agent_id": peek.agent_id,
        "pool": letter.source_queue.as_deref().and_then(pool_of_queue),
        "code": letter.code,
        "reason": letter.reason,
        "dead_at": letter.dead_at_unix_ms.map(rfc3339),
        "dead_at_unix_ms": letter.dead_at_unix_ms,
        "message_id": letter.message_id,
        "mark": letter.mark,
        "type": letter.kind,
        "queue": letter.source_queue,
        "headers": letter.headers,
        "bytes": letter.body.len(),
        "body": body,
    })
}

/// Times after the year 9999 become its last second, because a header can hold any number.
pub fn rfc3339(unix_ms: u64) -> String {
    let latest = Duration::from_secs(253_402_300_799);
    let at = UNIX_EPOCH + Duration::from_millis(unix_ms).min(latest);
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_time_can_be_shown() {
        assert_eq!(rfc3339(1_500), "1970-01-01T00:00:01.500Z");
        assert!(rfc3339(u64::MAX).starts_with("9999-12-31"));
    }
}
