//! The envelope `harness.job.v1`: a job's way over the wire.

use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;
use serde_path_to_error::Segment;

use crate::id::clip;
use crate::{JobId, JobSpec, JsonError, Name, ReplyRule, shown};

/// The version this fleet reads and writes, in the body's field `schema` and in the AMQP property `type`.
pub const SCHEMA: &str = "harness.job.v1";

/// The greatest body that is accepted unless set otherwise: 1 MiB.
pub const DEFAULT_MAX_BYTES: usize = 1024 * 1024;

/// What a message is measured by.
#[derive(Clone, Debug)]
pub struct Limits {
    /// The greatest body, in bytes.
    pub max_bytes: usize,
    /// How long results are kept, and so how old a job id may be.
    pub retention: Duration,
    /// The present, as Unix time in milliseconds.
    pub now_unix_ms: u64,
    /// Where results may be sent.
    pub replies: ReplyRule,
}

/// Why a message is no job: the field, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct DecodeError {
    /// The path of the field, such as `retry.max_attempts`, or `body` for the message as a whole.
    pub field: String,
    /// What was given and what would be right.
    pub problem: String,
}

impl DecodeError {
    pub(crate) fn new(field: impl Into<String>, problem: impl ToString) -> Self {
        let (field, problem) = (field.into(), problem.to_string());
        // Both may hold what a stranger wrote, and people will read them.
        DecodeError { field: shown(&field).into_owned(), problem: shown(&problem).into_owned() }
    }
}

/// The body's field `schema`; any other value than [`SCHEMA`] fails to parse.
struct Schema;

impl Serialize for Schema {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(SCHEMA)
    }
}

impl<'de> Deserialize<'de> for Schema {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let got = String::deserialize(deserializer)?;
        if got == SCHEMA {
            return Ok(Schema);
        }
        Err(D::Error::custom(format!("got \"{}\", expected \"{SCHEMA}\"", clip(&got))))
    }
}

#[derive(Serialize)]
struct Outgoing<'a> {
    schema: Schema,
    #[serde(flatten)]
    spec: &'a JobSpec,
}

/// Only the version: looked at first when a body does not fit, because another version explains all else.
#[derive(Deserialize)]
struct Incoming {
    #[serde(rename = "schema")]
    _schema: Schema,
}

/// The body of a message for this job.
pub fn encode(spec: &JobSpec) -> String {
    serde_json::to_string(&Outgoing { schema: Schema, spec }).expect("a job spec has only string keys")
}

/// Reads a message's body. `message_id` is the AMQP property of that name; when set it must equal the body's
/// `job_id`, so that a message is known by its properties alone.
pub fn decode(body: &[u8], message_id: Option<&str>, limits: &Limits) -> Result<JobSpec, DecodeError> {
    if body.len() > limits.max_bytes {
        let problem = format!("got {} bytes, expected at most {}", body.len(), limits.max_bytes);
        return Err(DecodeError::new("body", problem));
    }
    let text = std::str::from_utf8(body)
        .map_err(|error| DecodeError::new("body", format!("not UTF-8: {error}, expected JSON")))?;
    parse::<Incoming>(text)?;
    let spec: JobSpec = parse(text)?;
    spec.check(limits)?;
    match message_id {
        Some(id) if id.parse::<JobId>().as_ref() != Ok(&spec.job_id) => {
            let problem = format!("got \"{}\", expected the body's job_id {}", clip(id), spec.job_id);
            Err(DecodeError::new("message_id", problem))
        }
        _ => Ok(spec),
    }
}

/// Reads a job that a person wrote: like a message's body, but `schema` and `job_id` may be left out or null, and are then
/// the present version and a fresh id.
pub fn decode_loose(text: &str, limits: &Limits) -> Result<JobSpec, DecodeError> {
    #[derive(Deserialize)]
    struct Given<'a> {
        #[serde(borrow, default)]
        schema: Loose<'a>,
        #[serde(borrow, default)]
        job_id: Loose<'a>,
    }
    let given: Given<'_> = parse(text)?;
    let members =
        [("schema", given.schema, SCHEMA.to_owned()), ("job_id", given.job_id, JobId::now().to_string())];
    // As text, so that the rest stays to the letter.
    let (mut added, mut nulls) = (String::new(), Vec::new());
    for (name, given, value) in members {
        match given {
            Loose::Absent => added += &format!("\"{name}\":\"{value}\","),
            Loose::Null(null) => nulls.push((null.as_ptr().addr() - text.as_ptr().addr(), value)),
            Loose::Given => {}
        }
    }
    let mut whole = text.to_owned();
    nulls.sort();
    for (at, value) in nulls.into_iter().rev() {
        whole.replace_range(at..at + "null".len(), &format!("\"{value}\""));
    }
    let fields = whole.trim_start().strip_prefix('{').unwrap_or(&whole);
    if fields.trim_start().starts_with('}') {
        added.pop();
    }
    decode(format!("{{{added}{fields}").as_bytes(), None, limits)
}

/// A member that may be left out.
#[derive(Default)]
enum Loose<'a> {
    #[default]
    Absent,
    /// Where it stands.
    Null(&'a str),
    Given,
}

impl<'de: 'a, 'a> Deserialize<'de> for Loose<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        Ok(if raw == "null" { Loose::Null(raw) } else { Loose::Given })
    }
}

/// Reads back what [`decode`] or [`encode`] let through before, such as a message kept in the ledger: its limits
/// were checked then, and the clock has moved on since.
pub fn restore(body: &str) -> Result<JobSpec, DecodeError> {
    parse(body)
}

/// Whose a message seems to be, as far as that can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Glimpse {
    /// The job, where body and property do not contradict each other.
    pub job_id: Option<JobId>,
    /// Its session.
    pub session_id: Option<Name>,
    /// Its agent.
    pub agent_id: Option<Name>,
}

/// Looks at a message that may be no job. What it tells was not checked: it is for finding, not for running.
pub fn glimpse(body: &[u8], message_id: Option<&str>) -> Glimpse {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Seen {
        job_id: Value,
        session_id: Value,
        agent_id: Value,
    }
    let seen: Seen = serde_json::from_slice(body).unwrap_or_default();
    let name = |value: Value| value.as_str()?.parse().ok();
    let inside: Option<JobId> = seen.job_id.as_str().and_then(|id| id.parse().ok());
    let outside: Option<JobId> = message_id.and_then(|id| id.parse().ok());
    let job_id = match (inside, message_id) {
        (_, None) => inside,
        (None, Some(_)) => outside,
        (Some(_), Some(_)) => inside.filter(|id| outside == Some(*id)),
    };
    Glimpse { job_id, session_id: name(seen.session_id), agent_id: name(seen.agent_id) }
}

/// Parses fast; walks a second time, keeping track of the path, only to name the field that does not fit.
fn parse<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, DecodeError> {
    check_object(text)?;
    serde_json::from_str(text).map_err(|plain| {
        let mut walk = serde_json::Deserializer::from_str(text);
        match serde_path_to_error::deserialize::<_, T>(&mut walk) {
            Err(error)
                if plain.is_data() && error.path().iter().any(|at| !matches!(at, Segment::Unknown)) =>
            {
                DecodeError::new(error.path().to_string(), problem(text, &error.into_inner()))
            }
            _ => {
                let problem = problem(text, &plain);
                let field = unplaced_field(&problem).unwrap_or("body").to_owned();
                DecodeError::new(field, problem)
            }
        }
    })
}

/// serde takes a list of values for an object whose fields have lost their names, and of all else it says which struct of ours it expects.
fn check_object(text: &str) -> Result<(), DecodeError> {
    let got = match text.trim_start().chars().next() {
        Some('{') => return Ok(()),
        Some('[') => "an array",
        Some('"') => "a string",
        Some('n') => "null",
        Some('t' | 'f') => "true or false",
        Some(_) | None => "a number",
    };
    Err(DecodeError::new(
        "body",
        match serde_json::from_str::<&RawValue>(text) {
            Ok(_) => format!("got {got}, expected a JSON object"),
            Err(error) => problem(text, &error),
        },
    ))
}

/// What serde says, without the names of Rust's types. Where in the text helps only in text that is no JSON.
fn problem(text: &str, error: &serde_json::Error) -> String {
    if !error.is_data() {
        return JsonError::malformed(text, error).to_string();
    }
    let said = error.to_string();
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    for (name, most) in [("u32", u64::from(u32::MAX)), ("u64", u64::MAX)] {
        if let Some(said) = said.strip_suffix(name) {
            return format!("{said}a whole number from 0 to {most}");
        }
    }
    said.to_owned()
}

/// The name in serde's "missing field `name`" and "duplicate field `name`", which have no path.
fn unplaced_field(problem: &str) -> Option<&str> {
    let named = ["missing field `", "duplicate field `"];
    named.iter().find_map(|start| problem.strip_prefix(start))?.split('`').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Json, RetryPolicy};
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits {
            max_bytes: DEFAULT_MAX_BYTES,
            retention: Duration::from_secs(86_400),
            now_unix_ms: JobId::now().unix_ms(),
            replies: ReplyRule::default(),
        }
    }

    fn spec() -> JobSpec {
        let input = Json::parse(r#"{"n":123456789012345678901234567890}"#).unwrap();
        JobSpec::new("s-1".parse().unwrap(), "echo".parse().unwrap(), input)
    }

    /// A good body with one field set to something else.
    fn with(field: &str, value: serde_json::Value) -> String {
        let mut body: serde_json::Value = serde_json::from_str(&encode(&spec())).unwrap();
        body[field] = value;
        body.to_string()
    }

    #[test]
    fn what_is_encoded_decodes_to_the_same() {
        let mut spec = spec();
        spec.user_id = Some("u".into());
        spec.retry = RetryPolicy { max_attempts: 7, base_delay_ms: 1, max_delay_ms: 2 };
        spec.timeout_ms = Some(5);
        spec.deadline_ms = Some(6);
        spec.max_stalled_iterations = Some(7);
        spec.on_busy = crate::OnBusy::Rollback;
        let id = spec.job_id.to_string();
        assert_eq!(decode(encode(&spec).as_bytes(), Some(&id), &limits()).unwrap(), spec);
    }

    #[test]
    fn only_four_fields_are_needed_and_unknown_ones_are_ignored() {
        let body = format!(
            r#"{{"schema":"harness.job.v1","job_id":"{}","session_id":"s","agent_id":"a","novel":[1]}}"#,
            JobId::now()
        );
        let spec = decode(body.as_bytes(), None, &limits()).unwrap();
        assert_eq!((spec.pool.as_str(), spec.input.as_str()), ("default", "null"));
        assert_eq!(spec.retry, RetryPolicy::default());
    }

    #[test]
    fn every_optional_field_may_be_null() {
        let all = format!(
            r#"{{"schema":"harness.job.v1","job_id":"{}","session_id":"s","agent_id":"a","user_id":null,"pool":null,"input":null,
            "retry":null,"timeout_ms":null,"deadline_ms":null,"max_stalled_iterations":null,"on_busy":null,"reply_to":null,
            "correlation_id":null,"traceparent":null}}"#,
            JobId::now()
        );
        let spec = decode(all.as_bytes(), None, &limits()).unwrap();
        let plain = JobSpec::new(spec.session_id.clone(), spec.agent_id.clone(), Json::null());
        assert_eq!(spec, JobSpec { job_id: spec.job_id, ..plain });
    }

    #[test]
    fn an_error_names_the_field_and_what_would_be_right() {
        use serde_json::json;
        let cases = [
            (with("schema", json!("harness.job.v2")), "schema", "harness.job.v2"),
            (with("schema", json!(1)), "schema", "expected a string"),
            (with("job_id", json!("0198")), "job_id", ""),
            (with("job_id", json!("00000000-0000-7000-8000-000000000000")), "job_id", "1 days ago"),
            (with("session_id", json!("a/b")), "session_id", "a/b"),
            (with("session_id", json!(7)), "session_id", "integer `7`"),
            (with("user_id", json!("a\u{0}b")), "user_id", "control"),
            (with("input", json!("a\u{0}b")), "input", "\\u0000"),
            (with("retry", json!({"max_attempts": 0})), "retry.max_attempts", "1 to 100"),
            (
                with("retry", json!({"max_attempts": "x"})),
                "retry.max_attempts",
                "expected a whole number from 0 to 4294967295",
            ),
            (
                with("timeout_ms", json!(-1)),
                "timeout_ms",
                "expected a whole number from 0 to 18446744073709551615",
            ),
            (with("timeout_ms", json!(0)), "timeout_ms", "got 0"),
            ("{}".to_owned(), "schema", "missing"),
            (r#"{"schema":"harness.job.v1"}"#.to_owned(), "job_id", "missing"),
            ("garbage".to_owned(), "body", "not JSON: expected value at byte 1"),
            ("{\"schema\":".to_owned(), "body", "not JSON: EOF while parsing a value at byte 10"),
            ("{\n\"schema\" 1}".to_owned(), "body", "not JSON: expected `:` at line 2, byte 10"),
            (encode(&spec()) + " x", "body", "not JSON: trailing characters at byte"),
            ("[]".to_owned(), "body", "array"),
            ("7".to_owned(), "body", "got a number, expected a JSON object"),
            ("\"x\"".to_owned(), "body", "got a string, expected a JSON object"),
            ("null".to_owned(), "body", "got null, expected a JSON object"),
            (r#"{"schema":"harness.job.v1","schema":"harness.job.v1"}"#.to_owned(), "schema", "duplicate"),
            (" [\"harness.job.v1\"]".to_owned(), "body", "array"),
            (with("deadline_ms", json!(0)), "deadline_ms", "a year"),
            (with("max_stalled_iterations", json!(0)), "max_stalled_iterations", "at least 1"),
            (with("on_busy", json!("wait")), "on_busy", "enqueue"),
            (with("reply_to", json!("harness.dead")), "reply_to", "reserved"),
            (with("retry", json!([])), "retry", "expected an object"),
            (with("retry", json!([1, 2, 3])), "retry", "expected an object"),
            (with("on_busy", json!("\u{1b}[2J")), "on_busy", "\\u{1b}[2J"),
            (with("pool", json!("a\u{202e}b")), "pool", "a\\u{202e}b"),
        ];
        for (body, field, hint) in cases {
            let error = decode(body.as_bytes(), None, &limits()).unwrap_err();
            assert_eq!(error.field, field, "{body}: {error}");
            assert!(error.problem.contains(hint), "{body}: {error}");
            for foreign in ["struct ", "u32", "u64", "line 1"] {
                assert!(!error.problem.contains(foreign), "{body}: {error}");
            }
        }
    }

    #[test]
    fn a_traceparent_that_is_none_is_passed_over_and_a_wrong_type_is_not() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let read = |value| decode(with("traceparent", value).as_bytes(), None, &limits());
        let spec = read(serde_json::json!(good)).unwrap();
        assert_eq!(spec.traceparent.unwrap().to_string(), good);
        assert_eq!(spec.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert!(encode(&spec).contains(good));
        for none in [serde_json::json!("00-me-and-you"), serde_json::json!(""), serde_json::Value::Null] {
            let spec = read(none).unwrap();
            assert_eq!(spec.traceparent, None);
            assert_eq!(spec.trace_id(), spec.job_id.into());
        }
        assert_eq!(read(serde_json::json!(7)).unwrap_err().field, "traceparent");
    }

    #[test]
    fn a_line_needs_neither_version_nor_id() {
        let text = r#" {"session_id":"s","agent_id":"a","input":{"n":12345678901234567890123}}"#;
        let spec = decode_loose(text, &limits()).unwrap();
        assert_eq!(spec.input.as_str(), r#"{"n":12345678901234567890123}"#);
        assert_eq!(decode_loose(&encode(&spec), &limits()).unwrap(), spec);
        let nulls =
            r#"{"job_id": null,"session_id":"s","schema":null , "agent_id":"a","input":{"job_id":null}}"#;
        let spec = decode_loose(nulls, &limits()).unwrap();
        assert_eq!(spec.input.as_str(), r#"{"job_id":null}"#);
        assert_eq!(decode(encode(&spec).as_bytes(), None, &limits()).unwrap(), spec);
        for (bad, field) in
            [("{}", "session_id"), ("[1]", "body"), ("{", "body"), ("7", "body"), ("", "body")]
        {
            assert_eq!(decode_loose(bad, &limits()).unwrap_err().field, field, "{bad}");
        }
    }

    #[test]
    fn of_a_message_that_is_no_job_is_read_what_can_be_read() {
        let spec = spec();
        let (id, other) = (spec.job_id.to_string(), JobId::now().to_string());
        let body = with("timeout_ms", serde_json::json!("soon"));
        let seen = glimpse(body.as_bytes(), None);
        assert_eq!((seen.job_id, seen.session_id), (Some(spec_id(&body)), Some(spec.session_id)));
        assert_eq!(seen.agent_id, Some(spec.agent_id));
        assert_eq!(glimpse(b"{not json", Some(&id)).job_id, Some(spec.job_id));
        assert_eq!(
            glimpse(body.as_bytes(), Some(&other)).job_id,
            None,
            "body and property contradict each other"
        );
        assert_eq!(glimpse(body.as_bytes(), Some("mine")).job_id, None);
        assert_eq!(glimpse(br#"{"job_id":7,"session_id":"a/b","agent_id":[]}"#, None), Glimpse::default());
        assert_eq!(glimpse(b"\xff", None), Glimpse::default());
    }

    fn spec_id(body: &str) -> JobId {
        serde_json::from_str::<serde_json::Value>(body).unwrap()["job_id"].as_str().unwrap().parse().unwrap()
    }

    #[test]
    fn size_encoding_and_message_id_are_checked() {
        let body = encode(&spec());
        let small = Limits { max_bytes: 10, ..limits() };
        assert_eq!(decode(body.as_bytes(), None, &small).unwrap_err().field, "body");
        assert_eq!(decode(b"\xff\xfe", None, &limits()).unwrap_err().field, "body");
        let other = JobId::now().to_string();
        assert_eq!(decode(body.as_bytes(), Some(&other), &limits()).unwrap_err().field, "message_id");
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&body, None, &limits());
        }
    }
}
