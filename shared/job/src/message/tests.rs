//! What is accepted as a message, and what is refused with the name of its field.

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

/// Returns a valid body with one field replaced.
fn with(field: &str, value: serde_json::Value) -> String {
    let mut body: serde_json::Value = serde_json::from_str(&encode(&spec())).unwrap();
    body[field] = value;
    body.to_string()
}

#[test]
fn what_is_encoded_decodes_to_the_same() {
    let mut spec = spec();
    spec.tenant = "acme".parse().unwrap();
    spec.user_id = Some("u".into());
    spec.retry = RetryPolicy { max_attempts: 7, base_delay_ms: 1, max_delay_ms: 2 };
    spec.timeout_ms = Some(5);
    spec.run_at = Some(crate::RunAt::of_unix_ms(spec.job_id.unix_ms() + 8).unwrap());
    spec.deadline_ms = Some(6);
    spec.max_stalled_iterations = Some(7);
    spec.max_iterations = Some(8);
    spec.max_tokens = Some(u64::MAX);
    spec.max_cost_usd = Some(crate::Usd::from_micros(100_001));
    spec.on_busy = crate::OnBusy::Rollback;
    spec.lane = crate::Lane::Low;
    spec.limits = crate::LimitKeys::of(["b".parse().unwrap(), "a".parse().unwrap()]).unwrap();
    spec.labels = crate::Labels::of(["team=search".parse().unwrap(), "run=".parse().unwrap()]).unwrap();
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
        r#"{{"schema":"harness.job.v1","job_id":"{}","session_id":"s","agent_id":"a","tenant":null,"user_id":null,"pool":null,"input":null,
        "retry":null,"timeout_ms":null,"run_at":null,"delay_ms":null,"deadline_ms":null,"max_stalled_iterations":null,"max_iterations":null,"max_tokens":null,"max_cost_usd":null,"on_busy":null,"lane":null,"limits":null,"labels":null,
        "reply_to":null,"correlation_id":null,"traceparent":null}}"#,
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
        (with("tenant", json!("a/b")), "tenant", "1 to 64 characters"),
        (with("tenant", json!(7)), "tenant", "integer `7`"),
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
        (with("max_iterations", json!(0)), "max_iterations", "got 0, expected at least 1"),
        (with("max_iterations", json!(-1)), "max_iterations", "expected a whole number from 0 to 4294967295"),
        (with("max_iterations", json!(1.5)), "max_iterations", "expected a whole number"),
        (with("max_tokens", json!(0)), "max_tokens", "got 0, expected at least 1"),
        (with("max_tokens", json!(-7)), "max_tokens", "expected a whole number"),
        (with("max_tokens", json!(0.5)), "max_tokens", "expected a whole number"),
        (with("max_tokens", json!("9")), "max_tokens", "expected a whole number"),
        (with("max_cost_usd", json!(-0.5)), "max_cost_usd", "got -0.5, expected dollars from 0"),
        (with("max_cost_usd", json!(0.0000001)), "max_cost_usd", "at most 6 digits"),
        (with("max_cost_usd", json!("1,5")), "max_cost_usd", "got \"1,5\""),
        (with("max_cost_usd", json!(true)), "max_cost_usd", "as a number or a text"),
        (with("on_busy", json!("wait")), "on_busy", "enqueue"),
        (with("lane", json!("urgent")), "lane", "expected one of `high`, `normal`, `low`"),
        (with("limits", json!("k")), "limits", "expected a list of names"),
        (with("limits", json!(["k", "k"])), "limits", "\"k\" twice"),
        (with("limits", json!(["a b"])), "limits[0]", "a b"),
        (with("limits", json!(["a", "b", "c", "d", "e"])), "limits", "at most 4"),
        (with("labels", json!(["a"])), "labels", "expected an object"),
        (with("labels", json!({"a b": "c"})), "labels", "the key \"a b\""),
        (with("labels", json!({"": "c"})), "labels", "1 to 63"),
        (with("labels", json!({"team": "a b"})), "labels.team", "\"a b\""),
        (with("labels", json!({"team": "x".repeat(64)})), "labels.team", "at most 63"),
        (with("labels", json!({"team": 7})), "labels.team", "integer `7`"),
        (with("labels", json!({"team": null})), "labels.team", "expected a string"),
        (with("labels", json!({"team": "\u{1b}[2J"})), "labels.team", "\\u{1b}[2J"),
        (
            with("labels", (0..9).map(|n| (format!("k{n}"), json!("v"))).collect()),
            "labels",
            "got 9, expected at most 8",
        ),
        (
            with("labels", json!({"team": 0})).replace("\"team\":0", "\"k\":\"1\",\"k\":\"2\""),
            "labels",
            "twice",
        ),
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
    let spec = decode_loose(text, false, &limits()).unwrap();
    assert_eq!(spec.input.as_str(), r#"{"n":12345678901234567890123}"#);
    assert_eq!(decode_loose(&encode(&spec), false, &limits()).unwrap(), spec);
    let nulls = r#"{"job_id": null,"session_id":"s","schema":null , "agent_id":"a","input":{"job_id":null}}"#;
    let spec = decode_loose(nulls, false, &limits()).unwrap();
    assert_eq!(spec.input.as_str(), r#"{"job_id":null}"#);
    assert_eq!(decode(encode(&spec).as_bytes(), None, &limits()).unwrap(), spec);
    for (bad, field) in [("{}", "session_id"), ("[1]", "body"), ("{", "body"), ("7", "body"), ("", "body")] {
        assert_eq!(decode_loose(bad, false, &limits()).unwrap_err().field, field, "{bad}");
    }
}

#[test]
fn a_line_over_the_api_needs_no_session_either() {
    let own = |text: &str| decode_loose(text, true, &limits());
    for text in [r#"{"agent_id":"a"}"#, r#"{"session_id":null,"agent_id":"a","job_id":null}"#] {
        let spec = own(text).unwrap();
        assert_eq!(spec.session_id.as_str(), spec.job_id.to_string());
        assert_eq!(decode_loose(text, false, &limits()).unwrap_err().field, "session_id", "{text}");
    }
    let job_id = JobId::now();
    let spec = own(&format!(r#"{{"agent_id":"a","job_id":"{job_id}"}}"#)).unwrap();
    assert_eq!((spec.job_id, spec.session_id.to_string()), (job_id, job_id.to_string()));
    assert_eq!(own(r#"{"session_id":"s","agent_id":"a"}"#).unwrap().session_id.as_str(), "s");
    assert_eq!(own(r#"{"agent_id":"a","job_id":"x"}"#).unwrap_err().field, "job_id");
}

#[test]
fn of_a_message_that_is_no_job_is_read_what_can_be_read() {
    let spec = spec();
    let (id, other) = (spec.job_id.to_string(), JobId::now().to_string());
    let body = with("timeout_ms", serde_json::json!("soon"));
    let seen = peek(body.as_bytes(), None);
    assert_eq!((seen.job_id, seen.session_id), (Some(spec_id(&body)), Some(spec.session_id)));
    assert_eq!(seen.agent_id, Some(spec.agent_id));
    assert_eq!(peek(b"{not json", Some(&id)).job_id, Some(spec.job_id));
    assert_eq!(peek(body.as_bytes(), Some(&other)).job_id, None, "body and property contradict each other");
    assert_eq!(peek(body.as_bytes(), Some("mine")).job_id, None);
    let nothing = Peek { tenant: Some(Tenant::default()), ..Peek::default() };
    assert_eq!(peek(br#"{"job_id":7,"session_id":"a/b","agent_id":[]}"#, None), nothing);
    assert_eq!(peek(b"\xff", None), nothing);
    let labels = peek(br#"{"labels":{"team":"search"}}"#, None).labels;
    assert!(labels.has(&"team=search".parse().unwrap()) && !labels.has(&"team=a".parse().unwrap()));
    let of = |tenant: &str| peek(with("tenant", serde_json::json!(tenant)).as_bytes(), None);
    assert_eq!(of("acme").session_key().unwrap().as_str(), "~acme/s-1");
    assert_eq!((of("a/b").tenant, of("a/b").session_key()), (None, None));
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

#[test]
fn the_tenant_default_is_not_written() {
    assert!(!encode(&spec()).contains("tenant"));
    let other = JobSpec { tenant: "acme".parse().unwrap(), ..spec() };
    assert!(encode(&other).contains(r#""tenant":"acme""#));
    assert_eq!(
        decode(with("tenant", "default".into()).as_bytes(), None, &limits()).unwrap().tenant,
        spec().tenant
    );
}

proptest! {
    #[test]
    fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&body, None, &limits());
    }
}
