//! The double of the providers itself: what it refuses, finds, caches and bills.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use reqwest::Response;
use serde_json::{Value, json};
use tests::provider::{Fault, FindingKind, PROVIDER_KEY, Provider, Script, client};

use crate::bench::{PATHS, request, with_key};

async fn send(provider: &Provider, path: &str, body: &str) -> Response {
    let url = format!("{}{path}", provider.base_url());
    let sent = client().post(url).header("content-type", "application/json").body(body.to_owned());
    with_key(sent, path, PROVIDER_KEY).send().await.expect("an answer")
}

async fn said(provider: &Provider, path: &str, body: &str) -> (u16, String) {
    let answer = send(provider, path, body).await;
    (answer.status().as_u16(), answer.text().await.expect("a text"))
}

/// Applies a change of each kind to a valid request, and expects this refusal.
async fn refuses(path: &str, changes: &[(&str, Value, &str)]) {
    let provider = Provider::start().await;
    for (at, (field, value, expected)) in changes.iter().enumerate() {
        let mut body = request(path, false);
        body[*field] = value.clone();
        let (status, text) = said(&provider, path, &body.to_string()).await;
        assert_eq!(status, 400, "{field} {value}: {text}");
        let error: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(error["error"]["type"], "invalid_request_error");
        let message = error["error"]["message"].as_str().expect("a message");
        assert!(message.contains(expected), "{field} {value}: {message}");
        assert_eq!(provider.findings().len(), at + 1);
    }
    assert_eq!(provider.bill_micros(), 0, "a refusal costs nothing");
    let (status, _) = said(&provider, path, &request(path, false).to_string()).await;
    assert_eq!(status, 200);
}

fn user(content: Value) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: Value) -> Value {
    json!({"role": "assistant", "content": content})
}

#[tokio::test]
async fn it_refuses_what_messages_refuses() {
    let call = |id: &str| json!({"type": "tool_use", "id": id, "name": "t", "input": {}});
    let result = |id: &str| json!({"type": "tool_result", "tool_use_id": id, "content": "done"});
    let text = |text: &str| json!({"type": "text", "text": text});
    let thought = |kind: &str| match kind {
        "thinking" => json!({"type": kind, "thinking": "So.", "signature": "c2ln"}),
        _ => json!({"type": kind, "data": "eA=="}),
    };
    let hello = || user(json!("hello"));
    let tool = |name: &str, schema: Value| json!([{"name": name, "input_schema": schema}]);
    let mark = json!({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}});
    refuses(
        PATHS[0],
        &[
            ("max_tokens", Value::Null, "max_tokens: Field required"),
            ("max_tokens", json!(128_001), "maximum allowed number of output tokens"),
            ("question", json!(1), "question: Extra inputs are not permitted"),
            ("messages", json!([]), "at least one message"),
            ("messages", json!([assistant(json!("hello"))]), "first message must use"),
            ("messages", json!([{"role": "tool", "content": "x"}]), "'user', 'assistant' or 'system'"),
            (
                "messages",
                json!([hello(), assistant(json!("It is"))]),
                "does not support assistant message prefill",
            ),
            ("messages", json!([user(json!([text("")]))]), "text content blocks must be non-empty"),
            ("messages", json!([user(json!(""))]), "must have non-empty content"),
            ("messages", json!([user(json!([text("\n ")]))]), "must contain non-whitespace text"),
            (
                "messages",
                json!([hello(), assistant(json!([text("Hi."), text("\n\n")])), hello()]),
                "must contain non-whitespace text",
            ),
            (
                "messages",
                json!([hello(), assistant(json!([text("Hi."), thought("thinking")])), hello()]),
                "messages.1: The final block in an assistant message cannot be `thinking`.",
            ),
            (
                "messages",
                json!([hello(), assistant(json!([thought("redacted_thinking")])), hello()]),
                "cannot be `redacted_thinking`",
            ),
            (
                "messages",
                json!([user(json!([{"type": "text", "text": "x", "mood": 1}]))]),
                "text.mood: Extra inputs",
            ),
            (
                "messages",
                json!([hello(), assistant(json!([call("a")])), hello()]),
                "without `tool_result` blocks",
            ),
            ("messages", json!([hello(), assistant(json!([call("a")]))]), "without `tool_result` blocks"),
            (
                "messages",
                json!([hello(), assistant(json!([call("a")])), user(json!([text("first"), result("a")]))]),
                "without `tool_result` blocks",
            ),
            (
                "messages",
                json!([hello(), assistant(json!([call("a")])), user(json!([result("a"), result("b")]))]),
                "unexpected `tool_use_id` found in `tool_result` blocks: b",
            ),
            (
                "messages",
                json!([hello(), assistant(json!([call("a"), call("a")])), user(json!([result("a")]))]),
                "ids must be unique",
            ),
            ("messages", json!([user(json!([mark, mark, mark, mark, mark]))]), "maximum of 4 blocks"),
            ("tools", tool("a b", json!({"type": "object"})), "should match pattern"),
            ("tools", tool("a", json!({})), "input_schema.type: Field required"),
            ("tools", tool("a", json!({"type": "object", "required": "x"})), "JSON schema is invalid"),
            ("tools", tool("a", json!({"type": "object", "anyOf": []})), "at the top level"),
            ("thinking", json!({"type": "enabled", "budget_tokens": 20}), "greater than or equal to 1024"),
            (
                "thinking",
                json!({"type": "enabled", "budget_tokens": 2_000}),
                "greater than `thinking.budget_tokens`",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn it_refuses_what_openai_refuses() {
    let called = json!({"role": "assistant", "content": null,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "t", "arguments": "{}"}}]});
    let result = |id: &str| json!({"role": "tool", "tool_call_id": id, "content": "done"});
    let hello = || user(json!("hello"));
    let named = |name: &str| json!([{"type": "function", "function": {"name": name}}]);
    refuses(
        PATHS[1],
        &[
            ("question", json!(1), "Unrecognized request argument supplied: question"),
            ("messages", json!([]), "empty array"),
            ("messages", json!([hello(), called, hello()]), "did not have response messages: a"),
            ("messages", json!([hello(), called]), "did not have response messages: a"),
            ("messages", json!([hello(), result("a")]), "must be a response to a preceeding message"),
            ("messages", json!([{"role": "person", "content": "x"}]), "Invalid value: 'person'"),
            ("tools", named("a b"), "does not match pattern"),
        ],
    )
    .await;
    let item =
        |kind: &str| json!({"type": kind, "call_id": "a", "name": "t", "arguments": "{}", "output": "done"});
    refuses(
        PATHS[2],
        &[
            ("question", json!(1), "Unknown parameter: 'question'."),
            ("input", json!([hello(), item("function_call")]), "No tool output found for function call a"),
            ("input", json!([hello(), item("function_call_output")]), "No tool call found"),
            ("input", json!([hello(), {"type": "reasoning", "id": "rs_1"}]), "required following item"),
            (
                "tools",
                json!([{"type": "function", "name": "t", "parameters": {"type": "array"}}]),
                "Invalid schema",
            ),
        ],
    )
    .await;
}

#[tokio::test]
async fn keys_and_versions_are_looked_at_first() {
    let provider = Provider::start().await;
    for path in PATHS {
        let url = format!("{}{path}", provider.base_url());
        for key in [None, Some("wrong")] {
            let sent = client().post(&url).body("{}");
            let sent = key.into_iter().fold(sent, |sent, key| with_key(sent, path, key));
            assert_eq!(sent.send().await.expect("an answer").status(), 401, "{path} {key:?}");
        }
    }
    let url = format!("{}{}", provider.base_url(), PATHS[0]);
    let unversioned =
        client().post(url).header("x-api-key", PROVIDER_KEY).body(request(PATHS[0], false).to_string());
    let refused = unversioned.send().await.expect("an answer").text().await.expect("a text");
    assert!(refused.contains("anthropic-version: header is required"), "{refused}");
}

/// A turn with a thought and a call, whose input has letters that a careless reader changes.
fn thinks_and_calls() -> Script {
    Script::parse(
        r#"{"plays": {"reads": [
            {"thinking": "Page {turn}.", "tools": [{"name": "read", "input": {"z": 1e5, "a": 12345678901234567890123}}]},
            {"thinking": "", "text": "Done."}]}}"#,
    )
    .expect("a script")
}

/// Asks once, and returns the text of the request that follows, with the answer as it came.
async fn second_request(provider: &Provider) -> String {
    let head = r#"{"model":"claude-opus-5-5","max_tokens":500,"system":"Be kind.","tools":[{"name":"read","input_schema":{"type":"object"}}],"messages":[{"role":"user","content":"play:reads"}"#;
    let (status, answer) = said(provider, PATHS[0], &format!("{head}]}}")).await;
    assert_eq!(status, 200, "{answer}");
    let (_, content) = answer.split_once(r#""content":"#).expect("content");
    let (content, _) = content.split_once(r#","stop_reason""#).expect("content");
    let value: Value = serde_json::from_str(content).expect("JSON");
    let result = json!([{"type": "tool_result", "tool_use_id": value[1]["id"], "content": "text"}]);
    format!(r#"{head},{{"role":"assistant","content":{content}}},{{"role":"user","content":{result}}}]}}"#)
}

#[tokio::test]
async fn a_thought_is_refused_behind_anything_that_was_changed() {
    let provider = Provider::playing(thinks_and_calls()).await;
    let second = second_request(&provider).await;
    let invalid = "messages.1.content.0: Invalid `signature` in `thinking` block";
    for (from, to, problem) in [
        ("Be kind.", "Be kind!", invalid),
        (r#""name":"read","input_schema""#, r#""name":"reads","input_schema""#, invalid),
        ("\"play:reads\"", "\"play:reads \"", invalid),
        ("Page 0.", "Page 1.", invalid),
    ] {
        let changed = second.replacen(from, to, 1);
        assert_ne!(changed, second, "{from}");
        let (status, text) = said(&provider, PATHS[0], &changed).await;
        assert_eq!((status, text.contains(problem)), (400, true), "{from}: {text}");
    }
    let thought = second.find(r#"{"signature""#).expect("a thought");
    let end = thought + second[thought..].find("},").expect("its end") + 2;
    let dropped = format!("{}{}", &second[..thought], &second[end..]);
    let (status, text) = said(&provider, PATHS[0], &dropped).await;
    assert_eq!((status, text.contains("Expected `thinking`")), (400, true), "{text}");
    assert_eq!(provider.findings().len(), 5);
    let (status, text) = said(&provider, PATHS[0], &second).await;
    assert_eq!((status, text.contains("Done.")), (200, true), "{text}");
    assert_eq!(provider.findings().len(), 5, "{:?}", provider.findings());
}

/// Asks Responses once, and returns the text of the request that follows, with the items of the answer as they came.
async fn second_request_of_items(provider: &Provider) -> String {
    let head = r#"{"model":"gpt-6-sol","max_output_tokens":500,"store":false,"include":["reasoning.encrypted_content"],"instructions":"Be kind.","tools":[{"type":"function","name":"read","parameters":{"type":"object"}}],"input":[{"role":"user","content":"play:reads"}"#;
    let (status, answer) = said(provider, PATHS[2], &format!("{head}]}}")).await;
    assert_eq!(status, 200, "{answer}");
    let value: Value = serde_json::from_str(&answer).expect("JSON");
    let items = value["output"].as_array().expect("items");
    let call = &items[1]["call_id"];
    let result = json!({"type": "function_call_output", "call_id": call, "output": "text"});
    format!("{head},{},{},{result}]}}", items[0], items[1])
}

#[tokio::test]
async fn reasoning_is_refused_where_it_was_not_thought_and_a_call_without_its_own() {
    let provider = Provider::playing(thinks_and_calls()).await;
    let second = second_request_of_items(&provider).await;
    let invalid = "could not be verified";
    let value: Value = serde_json::from_str(&second).expect("JSON");
    let (thought, call) = (value["input"][1].to_string(), value["input"][2].to_string());
    let seal = value["input"][1]["encrypted_content"].to_string();
    for (from, to, status, problem) in [
        ("Be kind.", "Be kind!", 400, invalid),
        (r#""name":"read","parameters""#, r#""name":"reads","parameters""#, 400, invalid),
        ("\"play:reads\"", "\"play:reads \"", 400, invalid),
        ("Page 0.", "Page 1.", 400, invalid),
        (&*seal, "null", 404, "Items are not persisted"),
        (&*format!("{thought},"), "", 400, "without its required 'reasoning' item"),
        (&*format!("{call},"), "", 400, "without its required following item"),
        (&*call, &*format!("{call},{call}"), 400, "Duplicate item found"),
    ] {
        let changed = second.replacen(from, to, 1);
        assert_ne!(changed, second, "{from}");
        let (given, text) = said(&provider, PATHS[2], &changed).await;
        assert_eq!((given, text.contains(problem)), (status, true), "{from}: {text}");
    }
    assert_eq!(provider.findings().len(), 8);
    let (status, text) = said(&provider, PATHS[2], &second).await;
    assert_eq!((status, text.contains("Done.")), (200, true), "{text}");
    assert_eq!(provider.findings().len(), 8, "{:?}", provider.findings());
}

#[tokio::test]
async fn items_that_come_back_changed_are_found() {
    for (from, to) in [("12345678901234567890123", "1.2345678901234568e+22"), ("1e5", "100000.0")] {
        let provider = Provider::playing(thinks_and_calls()).await;
        let second = second_request_of_items(&provider).await;
        let changed = second.replace(from, to);
        assert_ne!(changed, second, "{from}");
        let (status, text) = said(&provider, PATHS[2], &changed).await;
        assert_eq!(status, 200, "its meaning is the same: {text}");
        let findings = provider.findings();
        assert_eq!((findings.len(), findings[0].kind), (1, FindingKind::OtherAnswer), "{findings:?}");
    }
}

#[tokio::test]
async fn a_conversation_that_is_not_extended_to_the_letter_is_found_and_the_byte_is_named() {
    for (from, to, kind) in [
        (r#"{"z":1e5,"#, r#"{"z":100000.0,"#, FindingKind::OtherAnswer),
        ("12345678901234567890123", "1.2345678901234568e+22", FindingKind::OtherAnswer),
    ] {
        let provider = Provider::playing(thinks_and_calls()).await;
        let second = second_request(&provider).await;
        // The script's own blanks are its letters too.
        let second = second.replace(
            r#"{"z": 1e5, "a": 12345678901234567890123}"#,
            r#"{"z":1e5,"a":12345678901234567890123}"#,
        );
        let changed = second.replace(from, to);
        assert_ne!(changed, second, "{from}");
        let (status, text) = said(&provider, PATHS[0], &changed).await;
        assert_eq!(status, 200, "its meaning is the same: {text}");
        let findings = provider.findings();
        assert_eq!((findings.len(), findings[0].kind), (1, kind), "{findings:?}");
    }
    let provider = Provider::start().await;
    let turn = |question: &str| {
        let mut body = request(PATHS[0], false);
        body["messages"] = json!([user(json!("first")), assistant(json!("w0")), user(json!(question))]);
        body.to_string()
    };
    let (asked, other) = (turn("second"), turn("sevond"));
    for body in [&asked, &asked, &other] {
        assert_eq!(said(&provider, PATHS[0], body).await.0, 200);
    }
    let findings = provider.findings();
    assert_eq!((findings.len(), findings[0].kind), (1, FindingKind::Changed), "{findings:?}");
    assert!(
        findings[0].message.starts_with("messages[2].content is not what it was in request 2"),
        "{findings:?}"
    );
    let again: Vec<bool> = provider.charged().iter().map(|call| call.again).collect();
    assert_eq!(again, [false, true, false], "the same request is paid again");
    let mut shorter = request(PATHS[0], false);
    shorter["messages"] = json!([user(json!("first"))]);
    said(&provider, PATHS[0], &shorter.to_string()).await;
    assert_eq!(provider.findings()[1].kind, FindingKind::Shorter);
}

#[tokio::test]
async fn prompts_are_cached_by_prefix_and_billed_by_class() {
    let provider = Provider::start().await;
    let long = "x".repeat(8_000);
    let turns = |turns: usize| {
        let said = (0..turns).flat_map(|at| [user(json!(format!("{at}"))), assistant(json!("w0"))]);
        said.chain([user(json!("now"))]).collect::<Vec<_>>()
    };
    let messages = |count| {
        let mut body = request(PATHS[0], false);
        body["system"] = json!([{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}]);
        body["messages"] = json!(turns(count));
        body.to_string()
    };
    let mut seen = Vec::new();
    for count in [0, 1, 2] {
        let (_, text) = said(&provider, PATHS[0], &messages(count)).await;
        let answer: Value = serde_json::from_str(&text).expect("JSON");
        let usage = |name: &str| answer["usage"][name].as_u64().expect("a count");
        seen.push((usage("cache_creation_input_tokens"), usage("cache_read_input_tokens")));
    }
    let prefix = seen[0].0;
    assert!(prefix > 2_000, "{seen:?}");
    assert_eq!(seen, [(prefix, 0), (0, prefix), (0, prefix)]);
    for path in [PATHS[1], PATHS[2]] {
        let provider = Provider::start().await;
        let field = if path == PATHS[1] { "messages" } else { "input" };
        let mut body = request(path, false);
        let mut cached = Vec::new();
        for count in [0, 1] {
            let head = json!({"role": "developer", "content": long});
            body[field] = json!([vec![head], turns(count)].concat());
            let (_, text) = said(&provider, path, &body.to_string()).await;
            let answer: Value = serde_json::from_str(&text).expect("JSON");
            let details = ["prompt_tokens_details", "input_tokens_details"];
            let details =
                details.iter().find_map(|name| answer["usage"][*name].as_object()).expect("details");
            cached.push(details["cached_tokens"].as_u64().expect("a count"));
        }
        assert_eq!((cached[0], cached[1] % 128, cached[1] > 1_024), (0, 0, true), "{path}: {cached:?}");
        let used: Vec<u64> = provider.charged().iter().map(|call| call.used.cache_read).collect();
        assert_eq!(used, cached);
    }
}

#[tokio::test]
async fn every_fault_is_given_on_order_and_what_was_worked_is_billed_in_full() {
    let script = |fault: &str| {
        format!(r#"{{"words": 5, "plays": {{"p": [{{"text": "a b c d e", "fault": {fault}}}]}}}}"#)
    };
    for path in PATHS {
        let mut body = request(path, true);
        body[if path == PATHS[2] { "input" } else { "messages" }] = json!([user(json!("play:p"))]);
        for (fault, worked, whole) in [
            (r#"{"refuses": 529}"#, false, false),
            (r#"{"fails": 500}"#, true, false),
            (r#"{"cut_after": 2}"#, true, false),
            (r#"{"cut_after_event": "message_stop"}"#, true, false),
            (r#""garbage""#, true, true),
            (r#""usage_twice""#, true, true),
            (r#""no_usage""#, true, true),
        ] {
            let provider = Provider::playing(Script::parse(&script(fault)).expect("a script")).await;
            let answer = send(&provider, path, &body.to_string()).await;
            let refused = answer.headers().get("retry-after").is_some();
            assert_eq!(refused, !worked, "{fault}");
            let text = answer.text().await;
            assert_eq!(provider.bill_micros() > 0, worked, "{path} {fault}");
            assert_eq!(provider.charged().iter().any(|call| call.whole), whole, "{path} {fault}: {text:?}");
            // The same turn comes without its fault.
            let again = said(&provider, path, &body.to_string()).await;
            assert_eq!(again.0, 200, "{path} {fault}");
            let used: Vec<u64> = provider.charged().iter().map(|call| call.used.output).collect();
            assert!(used.iter().all(|output| *output == 5), "{path} {fault}: {used:?}");
        }
    }
    let ruled = r#"{"faults": [{"fault": {"refuses": 429}, "every": 3, "first": 1, "times": 2}]}"#;
    let provider = Provider::playing(Script::parse(ruled).expect("a script")).await;
    let mut seen = Vec::new();
    for _ in 0..9 {
        seen.push(said(&provider, PATHS[0], &request(PATHS[0], false).to_string()).await.0);
    }
    assert_eq!(seen, [200, 429, 200, 200, 429, 200, 200, 200, 200]);
}

#[tokio::test]
async fn a_limit_of_output_tears_the_call_that_it_hits() {
    let script =
        r#"{"plays": {"p": [{"tools": [{"name": "t", "input": {"text": "abcdefghijklmnopqrstuvwxyz"}}]}]}}"#;
    let provider = Provider::playing(Script::parse(script).expect("a script")).await;
    for (stream, said) in [(true, r#""stop_reason":"max_tokens""#), (false, r#""input":{},"#)] {
        let mut body = request(PATHS[0], stream);
        (body["messages"], body["max_tokens"]) = (json!([user(json!("play:p"))]), json!(3));
        let answer = send(&provider, PATHS[0], &body.to_string()).await.text().await.expect("whole");
        assert!(answer.contains("max_tokens"), "{answer}");
        assert!(answer.contains(said) || answer.contains(r#""input":{}}"#), "{answer}");
    }
    assert!(provider.charged().iter().all(|call| call.used.output == 3));
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn as_a_process_it_reports_its_bill_and_its_findings() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("script.json");
    std::fs::write(&path, r#"{"words": 3}"#).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_provider"));
    command.args(["--key", "sk-other", "--script"]).arg(&path).stdout(Stdio::piped());
    let mut process = Process(command.spawn().expect("started"));
    let mut url = String::new();
    BufReader::new(process.0.stdout.take().expect("its stdout")).read_line(&mut url).expect("its address");
    let url = url.trim();
    let post = async |path: &str, body: String| {
        let sent = with_key(client().post(format!("{url}{path}")), "/v1/messages", "sk-other").body(body);
        sent.send().await.expect("an answer")
    };
    assert_eq!(post(PATHS[0], request(PATHS[0], false).to_string()).await.status(), 200);
    assert_eq!(post(PATHS[0], "{}".to_owned()).await.status(), 400);
    assert_eq!(post("/double/faults", r#"[{"refuses": 503}]"#.to_owned()).await.status(), 204);
    assert_eq!(post(PATHS[0], request(PATHS[0], false).to_string()).await.status(), 503);
    let report =
        client().get(format!("{url}/double")).send().await.expect("an answer").text().await.expect("text");
    let report: Value = serde_json::from_str(&report).expect("JSON");
    let input = report["tokens"]["input"].as_u64().expect("a count");
    assert_eq!((&report["requests"], &report["tokens"]["output"]), (&json!(3), &json!(3)));
    assert_eq!(report["bill_microusd"].as_u64(), Some(4 * input + 20 * 3));
    assert_eq!(report["findings"][0]["message"], "model: Field required");
}

#[tokio::test]
async fn a_fault_of_one_request_is_not_that_of_the_next() {
    let provider = Provider::start().await;
    provider.fault(Fault::Refuses(429));
    let body = request(PATHS[0], false).to_string();
    assert_eq!(
        (said(&provider, PATHS[0], &body).await.0, said(&provider, PATHS[0], &body).await.0),
        (429, 200)
    );
    assert!(provider.findings().is_empty());
}
