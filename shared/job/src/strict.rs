//! A job as a caller of the HTTP API writes it: `harness.job.v1` without `schema`, in which nothing is ignored.
//!
//! What a job is, [`decode`] decides. This refuses more: a field that a message may carry and no worker reads is a
//! spelling mistake here, and the caller waits for the answer.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::message::{Loose, complete, parse};
use crate::{DecodeError, JobId, JobSpec, Limits, SCHEMA, decode};

/// The fields of a job. A test keeps them in step with [`JobSpec`].
const FIELDS: [&str; 14] = [
    "job_id",
    "session_id",
    "agent_id",
    "user_id",
    "pool",
    "input",
    "retry",
    "timeout_ms",
    "deadline_ms",
    "max_stalled_iterations",
    "on_busy",
    "reply_to",
    "correlation_id",
    "traceparent",
];
/// The fields of `retry`.
const RETRY_FIELDS: [&str; 3] = ["max_attempts", "base_delay_ms", "max_delay_ms"];

/// Reads a job of which every field must be known. `job_id` may be left out or null and is then a fresh id;
/// `session_id` as well, and is then the text of the job's id: a session of the job's own.
pub fn decode_strict(text: &str, limits: &Limits) -> Result<JobSpec, DecodeError> {
    let Members(members) = parse(text)?;
    check_known(&members, "", &FIELDS)?;
    let given = |name: &str| members.iter().find(|(field, _)| field == name).map(|(_, raw)| *raw);
    if let Some(retry) = given("retry")
        && let Ok(Members(inner)) = serde_json::from_str(retry.get())
    {
        check_known(&inner, "retry.", &RETRY_FIELDS)?;
    }
    let loose = |name| match given(name) {
        None => Loose::Absent,
        Some(raw) if raw.get() == "null" => Loose::Null(raw.get()),
        Some(_) => Loose::Given,
    };
    // One that is no id is refused below, by its own name.
    let own = given("job_id").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let own = own.and_then(|id| JobId::from_str(&id).ok()).unwrap_or_else(JobId::now).to_string();
    let members = [
        ("schema", Loose::Absent, SCHEMA.to_owned()),
        ("job_id", loose("job_id"), own.clone()),
        ("session_id", loose("session_id"), own),
    ];
    decode(complete(text, members).as_bytes(), None, limits)
}

fn check_known(members: &[(String, &RawValue)], within: &str, known: &[&str]) -> Result<(), DecodeError> {
    match members.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some((name, _)) => {
            let problem = format!("an unknown field, expected one of {}", known.join(", "));
            Err(DecodeError::new(format!("{within}{}", crate::id::clip(name)), problem))
        }
    }
}

/// An object's members, in their order.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members: Vec<(String, &RawValue)> = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    if members.iter().any(|(other, _)| *other == name) {
                        return Err(A::Error::custom(format!("duplicate field `{name}`")));
                    }
                    // Far more than are known: the first unknown one is among them.
                    if members.len() < 2 * FIELDS.len() {
                        members.push((name, value));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ReplyRule;

    fn limits() -> Limits {
        Limits {
            max_bytes: 1024,
            retention: Duration::from_secs(86_400),
            now_unix_ms: JobId::now().unix_ms(),
            replies: ReplyRule::default(),
        }
    }

    fn refused(text: &str) -> String {
        decode_strict(text, &limits()).expect_err(text).field
    }

    #[test]
    fn a_job_without_a_session_has_one_of_its_own() {
        let fresh = decode_strict(r#"{"agent_id":"echo"}"#, &limits()).unwrap();
        assert_eq!(fresh.session_id.as_str(), fresh.job_id.to_string());
        let id = JobId::now();
        let given = format!(r#"{{"session_id":null,"agent_id":"echo","job_id":"{id}","input":[1.50]}}"#);
        let given = decode_strict(&given, &limits()).unwrap();
        assert_eq!((given.job_id, given.session_id.to_string()), (id, id.to_string()));
        assert_eq!(given.input.as_str(), "[1.50]");
    }

    #[test]
    fn a_field_that_is_unknown_or_wrong_is_named() {
        assert_eq!(refused(r#"{"agent_id":"echo","sesion":1}"#), "sesion");
        assert_eq!(refused(r#"{"agent_id":"echo","schema":"harness.job.v1"}"#), "schema");
        assert_eq!(refused(r#"{"agent_id":"echo","retry":{"attempts":1}}"#), "retry.attempts");
        assert_eq!(refused(r#"{"agent_id":"echo","retry":[1]}"#), "retry");
        assert_eq!(refused(r#"{"agent_id":"echo","agent_id":"echo"}"#), "agent_id");
        assert_eq!(refused(r#"{"agent_id":"echo","job_id":"x"}"#), "job_id");
        assert_eq!(refused(r#"{"agent_id":7}"#), "agent_id");
        assert_eq!(refused("{}"), "agent_id");
        assert_eq!(refused("[]"), "body");
        let many: String = (0..100).map(|n| format!("\"x{n}\":1,")).collect();
        assert_eq!(refused(&format!("{{{many}\"agent_id\":\"echo\"}}")), "x0");
    }

    #[test]
    fn every_field_of_a_job_is_known() {
        let mut text: serde_json::Value = serde_json::from_str(r#"{"agent_id":"echo"}"#).unwrap();
        for field in FIELDS {
            text[field] = match field {
                "job_id" => JobId::now().to_string().into(),
                "retry" => serde_json::json!({"max_attempts": 2, "base_delay_ms": 1, "max_delay_ms": 2}),
                "timeout_ms" | "deadline_ms" | "max_stalled_iterations" => 9.into(),
                "on_busy" => "reject".into(),
                "traceparent" => "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
                _ => "x".into(),
            };
        }
        let spec = decode_strict(&text.to_string(), &limits()).unwrap();
        let written: serde_json::Value = serde_json::to_value(&spec).unwrap();
        let mut written: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        let mut known = FIELDS.to_vec();
        written.sort();
        known.sort();
        assert_eq!(written, known);
    }
}
