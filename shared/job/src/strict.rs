//! A job as a caller of the HTTP API writes it: `harness.job.v1` without `schema`, in which nothing is ignored.
//!
//! What a job is, [`decode`] decides. This refuses more: a field that a message may carry and no worker reads is a
//! spelling mistake here, and the caller waits for the answer.

use std::fmt;
use std::str::FromStr;

use serde::de::value::MapDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::message::{Loose, complete, parse};
use crate::spec::{check_span, check_text};
use crate::{DecodeError, JobId, JobSpec, Limits, SCHEMA, decode};

/// The fields of a job. A test keeps them in step with [`JobSpec`].
const FIELDS: [&str; 24] = [
    "job_id",
    "session_id",
    "agent_id",
    "user_id",
    "pool",
    "input",
    "retry",
    "timeout_ms",
    "run_at",
    "delay_ms",
    "deadline_ms",
    "max_stalled_iterations",
    "max_iterations",
    "max_tokens",
    "max_cost_usd",
    "on_busy",
    "lane",
    "limits",
    "labels",
    "reply_to",
    "correlation_id",
    "traceparent",
    "idempotency_key",
    "unique",
];
/// The fields of `retry`.
const RETRY_FIELDS: [&str; 3] = ["max_attempts", "base_delay_ms", "max_delay_ms"];
/// The fields of `unique`.
const UNIQUE_FIELDS: [&str; 2] = ["key", "for_ms"];

/// More than what is added to a job makes it longer.
const ADDED_BYTES: usize = 256;

/// A job as a caller asks for it, with what concerns the request alone.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestedJob {
    /// The job.
    pub spec: JobSpec,
    /// Whether its id is the caller's own; otherwise it is fresh, and another one with each request.
    pub has_own_id: bool,
    /// Finds the job of the same request again.
    pub idempotency_key: Option<String>,
    /// Finds the job of another request for the same work.
    pub unique: Option<Unique>,
}

/// What makes a job the only one of its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unique {
    /// The key: 1 to 255 bytes.
    pub key: String,
    /// Milliseconds from the acceptance on in which there is no other job of this key, even if this one has ended.
    /// While it has not, there is none in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
}

/// Reads a job of which every field must be known. `job_id` may be left out or null and is then a fresh id;
/// `session_id` as well, and is then the text of the job's id: a session of the job's own.
pub fn decode_strict(text: &str, limits: &Limits) -> Result<RequestedJob, DecodeError> {
    decode_strict_as(text, JobId::now(), limits)
}

/// As [`decode_strict`], where a job that brings no id of its own has this one.
pub fn decode_strict_as(text: &str, fresh: JobId, limits: &Limits) -> Result<RequestedJob, DecodeError> {
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
    let idempotency_key = given("idempotency_key").map(|raw| read_key(raw.get())).transpose()?.flatten();
    let unique = given("unique").filter(|raw| raw.get() != "null").map(|raw| read_unique(raw.get()));
    let unique = unique.transpose()?;
    let has_own_id = matches!(loose("job_id"), Loose::Given);
    // One that is no id is refused below, by its own name.
    let own = given("job_id").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    let own = own.and_then(|id| JobId::from_str(&id).ok()).unwrap_or(fresh).to_string();
    let spec = match read(&members, &own).filter(|_| text.len() + ADDED_BYTES <= limits.max_bytes) {
        Some(spec) => {
            spec.check(limits)?;
            spec
        }
        None => {
            let added = [
                ("schema", Loose::Absent, SCHEMA.to_owned()),
                ("job_id", loose("job_id"), own.clone()),
                ("session_id", loose("session_id"), own),
            ];
            decode(complete(text, added).as_bytes(), None, limits)?
        }
    };
    Ok(RequestedJob { spec, has_own_id, idempotency_key, unique })
}

/// Reads the job from its members, which saves writing the whole message and reading that. `None` if something is wrong,
/// which [`decode`] then names.
fn read(members: &[(String, &RawValue)], own: &str) -> Option<JobSpec> {
    let own = serde_json::value::to_raw_value(own).ok()?;
    let ids = ["job_id", "session_id"];
    let is_given = |name: &str, raw: &RawValue| !(ids.contains(&name) && raw.get() == "null");
    let given =
        members.iter().filter(|(name, raw)| is_given(name, raw)).map(|(name, raw)| (name.as_str(), *raw));
    let left_out =
        ids.into_iter().filter(|id| !members.iter().any(|(name, raw)| name == id && is_given(name, raw)));
    let all = given.chain(left_out.map(|id| (id, &*own)));
    JobSpec::deserialize(MapDeserializer::<_, serde_json::Error>::new(all)).ok()
}

fn read_key(raw: &str) -> Result<Option<String>, DecodeError> {
    let key: Option<String> = serde_json::from_str(raw)
        .map_err(|_| DecodeError::new("idempotency_key", "expected a text of 1 to 255 bytes"))?;
    check_text("idempotency_key", key.as_deref())?;
    Ok(key)
}

fn read_unique(raw: &str) -> Result<Unique, DecodeError> {
    let within = |error: DecodeError| match error.field.as_str() {
        "body" => DecodeError { field: "unique".to_owned(), ..error },
        field => DecodeError { field: format!("unique.{field}"), ..error },
    };
    let Members(members) = parse(raw).map_err(within)?;
    check_known(&members, "unique.", &UNIQUE_FIELDS)?;
    let unique: Unique = parse(raw).map_err(within)?;
    check_text("unique.key", Some(&unique.key))?;
    check_span("unique.for_ms", unique.for_ms, "30 days", 30)?;
    Ok(unique)
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
        assert!(!fresh.has_own_id);
        let fresh = fresh.spec;
        assert_eq!(fresh.session_id.as_str(), fresh.job_id.to_string());
        let id = JobId::now();
        let given = format!(r#"{{"session_id":null,"agent_id":"echo","job_id":"{id}","input":[1.50]}}"#);
        let given = decode_strict(&given, &limits()).unwrap();
        assert!(given.has_own_id);
        let given = given.spec;
        assert_eq!((given.job_id, given.session_id.to_string()), (id, id.to_string()));
        assert_eq!(given.input.as_str(), "[1.50]");
    }

    #[test]
    fn a_job_is_the_same_whichever_way_it_is_read() {
        let id = JobId::now();
        let own = id.to_string();
        for text in [
            r#"{"agent_id":"echo"}"#.to_owned(),
            format!(r#"{{"job_id":"{id}","agent_id":"echo","session_id":"s"}}"#),
            r#"{"job_id":null,"session_id":null,"agent_id":"e\u0063ho","input":{"a":[1.50,"\u00e9"]},"pool":null}"#.to_owned(),
            r#"{"agent_\u0069d":"echo","retry":{"max_attempts":2},"labels":{"a":"b"},"unique":null,"timeout_ms":7}"#
                .to_owned(),
        ] {
            let Members(members) = parse(&text).unwrap();
            let read = read(&members, &own).expect(&text);
            let wide = Limits { max_bytes: text.len() + ADDED_BYTES, ..limits() };
            let narrow = Limits { max_bytes: text.len() + ADDED_BYTES - 1, ..limits() };
            let [fast, slow] = [wide, narrow].map(|limits| decode_strict_as(&text, id, &limits).unwrap());
            assert_eq!((&fast.spec, &fast), (&read, &slow), "{text}");
        }
    }

    #[test]
    fn a_field_that_is_unknown_or_wrong_is_named() {
        assert_eq!(refused(r#"{"agent_id":"echo","sesion":1}"#), "sesion");
        assert_eq!(refused(r#"{"agent_id":"echo","schema":"harness.job.v1"}"#), "schema");
        assert_eq!(refused(r#"{"agent_id":"echo","retry":{"attempts":1}}"#), "retry.attempts");
        assert_eq!(refused(r#"{"agent_id":"echo","retry":[1]}"#), "retry");
        assert_eq!(refused(r#"{"agent_id":"echo","agent_id":"echo"}"#), "agent_id");
        assert_eq!(refused(r#"{"agent_id":"echo","job_id":"x"}"#), "job_id");
        assert_eq!(refused(r#"{"agent_id":"echo","labels":{"team":7}}"#), "labels.team");
        assert_eq!(refused(r#"{"agent_id":"echo","max_cost_usd":"much"}"#), "max_cost_usd");
        assert_eq!(refused(r#"{"agent_id":"echo","max_iterations":0}"#), "max_iterations");
        assert_eq!(refused(r#"{"agent_id":"echo","max_tokens":"many"}"#), "max_tokens");
        assert_eq!(refused(r#"{"agent_id":7}"#), "agent_id");
        assert_eq!(refused(r#"{"agent_id":"echo","idempotency_key":7}"#), "idempotency_key");
        assert_eq!(refused(r#"{"agent_id":"echo","idempotency_key":""}"#), "idempotency_key");
        assert_eq!(refused(r#"{"agent_id":"echo","unique":"k"}"#), "unique");
        assert_eq!(refused(r#"{"agent_id":"echo","unique":{}}"#), "unique.key");
        assert_eq!(refused(r#"{"agent_id":"echo","unique":{"key":7}}"#), "unique.key");
        assert_eq!(refused(r#"{"agent_id":"echo","unique":{"key":"\u0000"}}"#), "unique.key");
        assert_eq!(refused(r#"{"agent_id":"echo","unique":{"key":"k","for":1}}"#), "unique.for");
        assert_eq!(refused(r#"{"agent_id":"echo","unique":{"key":"k","for_ms":0}}"#), "unique.for_ms");
        assert_eq!(refused("{}"), "agent_id");
        assert_eq!(refused("[]"), "body");
        let many: String = (0..100).map(|n| format!("\"x{n}\":1,")).collect();
        assert_eq!(refused(&format!("{{{many}\"agent_id\":\"echo\"}}")), "x0");
    }

    #[test]
    fn a_start_is_at_most_half_the_retention_ahead_of_the_id() {
        let (id, half_ms) = (JobId::now(), 43_200_000);
        let with = |field: &str| format!(r#"{{"agent_id":"echo","job_id":"{id}",{field}}}"#);
        let at = |ms: u64| format!(r#""run_at":"{}""#, crate::RunAt::of_unix_ms(id.unix_ms() + ms).unwrap());
        for (field, due_ms) in [
            (at(half_ms), Some(half_ms)),
            (format!(r#""delay_ms":{half_ms}"#), Some(half_ms)),
            (r#""delay_ms":0"#.to_owned(), Some(0)),
            (r#""delay_ms":null,"run_at":null"#.to_owned(), None),
        ] {
            let spec = decode_strict(&with(&field), &limits()).expect(&field).spec;
            assert_eq!(spec.due_unix_ms(), due_ms.map(|ms| id.unix_ms() + ms), "{field}");
        }
        assert_eq!(refused(&with(&at(half_ms + 1))), "run_at");
        assert_eq!(refused(&with(&format!(r#""delay_ms":{}"#, half_ms + 1))), "delay_ms");
        assert_eq!(refused(&with(&format!(r#"{},"delay_ms":1"#, at(1)))), "delay_ms");
        assert_eq!(refused(&with(r#""run_at":"tomorrow""#)), "run_at");
        assert_eq!(refused(&with(r#""run_at":7"#)), "run_at");
        assert_eq!(refused(&with(r#""delay_ms":-1"#)), "delay_ms");
    }

    #[test]
    fn a_deadline_counts_from_when_the_job_is_due() {
        let id = JobId::now();
        let deadline = |fields: &str| {
            let text = format!(r#"{{"agent_id":"echo","job_id":"{id}","deadline_ms":10{fields}}}"#);
            decode_strict(&text, &limits()).expect(&text).spec.deadline_unix_ms().expect("given")
                - id.unix_ms()
        };
        assert_eq!(deadline(""), 10);
        assert_eq!(deadline(r#","delay_ms":500"#), 510);
        assert_eq!(
            deadline(r#","run_at":"2026-01-01T00:00:00Z""#),
            10,
            "a moment that is over counts for nothing"
        );
    }

    #[test]
    fn keys_concern_the_request_and_are_not_in_the_job() {
        let text = r#"{"agent_id":"echo","idempotency_key":"i","unique":{"key":"u","for_ms":7}}"#;
        let asked = decode_strict(text, &limits()).unwrap();
        assert_eq!(asked.idempotency_key.as_deref(), Some("i"));
        assert_eq!(asked.unique, Some(Unique { key: "u".to_owned(), for_ms: Some(7) }));
        let written = serde_json::to_string(&asked.spec).unwrap();
        assert!(!written.contains("unique") && !written.contains("idempotency"), "{written}");
        let none = r#"{"agent_id":"echo","idempotency_key":null,"unique":null}"#;
        let none = decode_strict(none, &limits()).unwrap();
        assert_eq!((none.idempotency_key, none.unique), (None, None));
    }

    #[test]
    fn every_field_of_a_job_is_known() {
        let mut text: serde_json::Value = serde_json::from_str(r#"{"agent_id":"echo"}"#).unwrap();
        let of_jobs =
            FIELDS.iter().copied().filter(|field| !["idempotency_key", "unique", "delay_ms"].contains(field));
        for field in of_jobs.clone() {
            text[field] = match field {
                "job_id" => JobId::now().to_string().into(),
                "retry" => serde_json::json!({"max_attempts": 2, "base_delay_ms": 1, "max_delay_ms": 2}),
                "timeout_ms" | "deadline_ms" | "max_stalled_iterations" | "max_iterations" | "max_tokens" => {
                    9.into()
                }
                "run_at" => "2026-03-29T06:30:00Z".into(),
                "max_cost_usd" => "0.25".into(),
                "on_busy" => "reject".into(),
                "lane" => "high".into(),
                "limits" => serde_json::json!(["k"]),
                "labels" => serde_json::json!({"team": "search"}),
                "traceparent" => "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into(),
                _ => "x".into(),
            };
        }
        let spec = decode_strict(&text.to_string(), &limits()).unwrap().spec;
        let written: serde_json::Value = serde_json::to_value(&spec).unwrap();
        let mut written: Vec<&str> = written.as_object().unwrap().keys().map(String::as_str).collect();
        let mut known: Vec<&str> = of_jobs.collect();
        written.sort();
        known.sort();
        assert_eq!(written, known);
        // It is refused beside run_at.
        let delayed = decode_strict(r#"{"agent_id":"echo","delay_ms":7}"#, &limits()).unwrap().spec;
        assert_eq!(delayed.delay_ms, Some(7));
    }
}
