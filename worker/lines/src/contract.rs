//! The messages of `harness.command.v1`: the one line that a program reads, and the lines that it writes.
//!
//! A line becomes a [`Message`], or a [`Failure`] that names the line's number and the field. What follows from a
//! message is decided elsewhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use harness::{Delta, Event, Run, Session, Usage, storable};
use job::{
    CallId, ClosedInput, Failure, FailureCode, InputKind, InputRequest, JobId, Json, JsonError, Labels, Name,
    Tenant, Usd,
};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::lines::Line;

/// The value of the field `protocol`.
const PROTOCOL: &str = "harness.command.v1";

/// What the program is given.
#[derive(Serialize)]
struct Order<'a> {
    protocol: &'static str,
    job: OrderedJob<'a>,
    session: &'a Session,
    /// What became of the calls that earlier attempts asked persons to answer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    answers: &'a BTreeMap<CallId, ClosedInput>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workspace: Option<&'a Path>,
}

#[derive(Serialize)]
struct OrderedJob<'a> {
    job_id: JobId,
    tenant: &'a Tenant,
    session_id: &'a Name,
    agent_id: &'a Name,
    user_id: Option<&'a str>,
    labels: &'a Labels,
    input: &'a Json,
    attempt: u32,
    epoch: i64,
}

/// Writes the line that a program is given.
pub fn order(run: &Run, workspace: Option<&Path>) -> serde_json::Result<String> {
    let (task, session, answers) = (run.task(), run.session(), run.answers());
    let job = OrderedJob {
        job_id: task.job_id,
        tenant: &task.tenant,
        session_id: &task.session_id,
        agent_id: &task.agent_id,
        user_id: task.user_id.as_deref(),
        labels: &task.labels,
        input: &task.input,
        attempt: task.attempt,
        epoch: task.epoch,
    };
    // The input is kept as the caller wrote it, and may contain line breaks.
    let mut line = job::one_line(serde_json::to_string(&Order {
        protocol: PROTOCOL,
        job,
        session,
        answers,
        workspace,
    })?);
    line.push('\n');
    Ok(line)
}

/// One line that the program wrote.
#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    Checkpoint(Delta),
    Event(Event),
    Text(String),
    Cost(Usage),
    Ask(InputRequest),
    Result(Json),
    Error(Failure),
}

#[derive(Deserialize)]
struct Head {
    r#type: String,
}

// An unknown field is refused, because a misspelt field would otherwise lose state without any sign of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckpointLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    memory: Option<Map<String, Value>>,
    #[serde(default)]
    context_window: Vec<Json>,
    #[serde(default)]
    replace_context: bool,
    feature_progress: Option<Map<String, Value>>,
    #[serde(default = "one")]
    iterations: u64,
    #[serde(default)]
    cost_usd: Usd,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

fn one() -> u64 {
    1
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    name: String,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TextLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    text: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CostLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    #[serde(default)]
    cost_usd: Usd,
    #[serde(default)]
    input_tokens: u64,
    #[serde(default)]
    output_tokens: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AskLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    call_id: CallId,
    #[serde(default)]
    kind: InputKind,
    question: Json,
    timeout_s: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResultLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    #[serde(default = "Json::null")]
    output: Json,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ErrorLine {
    #[serde(rename = "type")]
    _type: IgnoredAny,
    message: String,
    #[serde(default)]
    retryable: bool,
}

/// Reads one line. Returns `None` for a blank one.
pub(crate) fn parse(line: &Line) -> Result<Option<Message>, Failure> {
    let protocol = |problem: String| {
        let text = String::from_utf8_lossy(&line.bytes);
        let message =
            format!("{} line {}: {problem}; the line begins: {}", line.source, line.number, quote(&text));
        Failure::permanent(FailureCode::Protocol, message)
    };
    let text = std::str::from_utf8(&line.bytes)
        .map_err(|error| protocol(format!("not UTF-8 after {} bytes", error.valid_up_to())))?;
    // Some runtimes write a byte order mark first.
    let text = text.strip_prefix('\u{feff}').filter(|_| line.number == 1).unwrap_or(text).trim();
    if text.is_empty() {
        return Ok(None);
    }
    match Json::parse(text) {
        // Serde would also read a struct from a list of its values.
        Ok(_) if text.starts_with('{') => {}
        Ok(_) | Err(JsonError::Malformed(_)) => {
            return Err(protocol("expected a JSON object with a field \"type\"".to_owned()));
        }
        Err(_) => {
            let message = format!("{} line {}: {}", line.source, line.number, storable::describe(text));
            return Err(Failure::permanent(FailureCode::Unstorable, message));
        }
    }
    let head: Head = serde_json::from_str(text).map_err(|error| {
        protocol(format!("expected a JSON object with a field \"type\" ({})", without_place(&error)))
    })?;
    let kind = head.r#type.as_str();
    let lost = match kind {
        "checkpoint" => storable::lost_number(text, &["memory", "feature_progress"], true),
        "event" => storable::lost_number(text, &["data"], false),
        _ => None,
    };
    if let Some(lost) = lost {
        let message = format!("{} line {}: {lost}", line.source, line.number);
        return Err(Failure::permanent(FailureCode::Unstorable, message));
    }
    let message = match kind {
        "checkpoint" => body::<CheckpointLine>(kind, text).map(CheckpointLine::message),
        "event" => body::<EventLine>(kind, text).map(EventLine::message),
        "text" => body::<TextLine>(kind, text).map(|line| Message::Text(line.text)),
        "cost" => body::<CostLine>(kind, text).map(CostLine::message),
        "ask" => body::<AskLine>(kind, text).map(AskLine::message),
        "result" => body::<ResultLine>(kind, text).map(|line| Message::Result(line.output)),
        "error" => body::<ErrorLine>(kind, text).map(ErrorLine::message),
        unknown => Err(format!(
            "type: got {}, expected checkpoint, event, text, cost, ask, result or error",
            quote(unknown)
        )),
    };
    message.map(Some).map_err(protocol)
}

impl CheckpointLine {
    fn message(self) -> Message {
        Message::Checkpoint(Delta {
            memory: self.memory,
            context_window: self.context_window,
            replace_context: self.replace_context,
            feature_progress: self.feature_progress,
            iterations: self.iterations,
            usage: Usage {
                cost: self.cost_usd,
                input_tokens: self.input_tokens,
                output_tokens: self.output_tokens,
            },
        })
    }
}

impl EventLine {
    fn message(self) -> Message {
        Message::Event(Event::new(self.name, self.data))
    }
}

impl CostLine {
    fn message(self) -> Message {
        let (input_tokens, output_tokens) = (self.input_tokens, self.output_tokens);
        Message::Cost(Usage { cost: self.cost_usd, input_tokens, output_tokens })
    }
}

impl AskLine {
    fn message(self) -> Message {
        let AskLine { call_id, kind, question, timeout_s, .. } = self;
        let timeout = timeout_s.map(Duration::from_secs);
        Message::Ask(InputRequest { call_id, kind, content: question, timeout })
    }
}

impl ErrorLine {
    fn message(self) -> Message {
        Message::Error(if self.retryable {
            Failure::retryable(FailureCode::HarnessError, self.message)
        } else {
            Failure::permanent(FailureCode::HarnessError, self.message)
        })
    }
}

fn body<T: DeserializeOwned>(kind: &str, text: &str) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let problem = without_place(error.inner());
        let path = path.trim_start_matches('.');
        if path.is_empty() { format!("{kind}: {problem}") } else { format!("{kind}.{path}: {problem}") }
    })
}

/// Removes the position that serde_json appends: it helps no reader of a line that a program has generated.
fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Quotes the first 200 characters of what a program wrote.
fn quote(text: &str) -> String {
    const KEEP: usize = 200;
    let clipped: String = text.chars().take(KEEP).collect();
    let more = if clipped.len() < text.len() { "…" } else { "" };
    format!("{clipped:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use harness::testing::MemoryJournal;
    use harness::{Stopper, Task};
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: impl AsRef<[u8]>) -> Result<Option<Message>, Failure> {
        parse(&Line { source: "stdout", number: 7, bytes: text.as_ref().to_vec(), complete: true })
    }

    #[test]
    fn every_type_is_understood_with_its_defaults() {
        assert_eq!(
            read(r#"{"type":"checkpoint","context_window":["x"],"cost_usd":0.5}"#).unwrap(),
            Some(Message::Checkpoint(Delta {
                context_window: vec![Json::parse("\"x\"").unwrap()],
                iterations: 1,
                usage: Usage { cost: Usd::from_micros(500_000), ..Usage::default() },
                ..Delta::default()
            }))
        );
        let event = Event::new("tool", Value::Null);
        assert_eq!(read(r#"{"type":"event","name":"tool"}"#).unwrap(), Some(Message::Event(event)));
        let text = Message::Text("a\n".to_owned());
        assert_eq!(read(r#"{"type":"text","text":"a\n"}"#).unwrap(), Some(text));
        let cost = Usage { input_tokens: 3, ..Usage::default() };
        assert_eq!(read(r#"{"type":"cost","input_tokens":3}"#).unwrap(), Some(Message::Cost(cost)));
        assert_eq!(read(r#"{"type":"result"}"#).unwrap(), Some(Message::Result(Json::null())));
        let failure = Failure::permanent(FailureCode::HarnessError, "no");
        assert_eq!(read(r#"{"message":"no","type":"error"}"#).unwrap(), Some(Message::Error(failure)));
        assert_eq!(read(" \t").unwrap(), None);
    }

    #[test]
    fn an_entry_of_the_context_passes_to_the_letter() {
        let entry = r#"{"z": 1e5, "a" :12345678901234567890123,"\u00e9":[ ]}"#;
        let line = format!(r#"{{"type":"checkpoint","context_window":[ {entry} ]}}"#);
        let Some(Message::Checkpoint(delta)) = read(line).unwrap() else { panic!("no checkpoint") };
        assert_eq!(delta.context_window[0].as_str(), entry);
    }

    #[test]
    fn a_big_number_passes_through_a_result_to_the_letter() {
        let line = r#"{"type":"result","output":{"n":123456789012345678901234567890}}"#;
        let Some(Message::Result(output)) = read(line).unwrap() else { panic!("no result") };
        assert_eq!(output.as_str(), r#"{"n":123456789012345678901234567890}"#);
    }

    #[test]
    fn a_wrong_line_is_answered_with_its_number_and_its_field() {
        for (line, expected) in [
            ("Loading model…", "expected a JSON object"),
            ("[1]", "expected a JSON object"),
            (r#"["result", 1]"#, "expected a JSON object"),
            ("{}", "missing field `type`"),
            (r#"{"type":"chekpoint"}"#, "type: got \"chekpoint\", expected checkpoint, event"),
            (r#"{"type":"checkpoint","memroy":{}}"#, "unknown field `memroy`"),
            (r#"{"type":"checkpoint","memory":[]}"#, "checkpoint.memory: invalid type"),
            (r#"{"type":"checkpoint","cost_usd":-1}"#, "checkpoint.cost_usd: got -1"),
            (r#"{"type":"checkpoint","iterations":1.5}"#, "checkpoint.iterations: invalid type"),
            (r#"{"type":"cost","input_tokens":"3"}"#, "cost.input_tokens: invalid type"),
            (r#"{"type":"event"}"#, "event: missing field `name`"),
            (r#"{"type":"text","text":1}"#, "text.text: invalid type"),
            (r#"{"type":"error"}"#, "error: missing field `message`"),
            (r#"{"type":"ask","question":1}"#, "ask: missing field `call_id`"),
            (r#"{"type":"ask","call_id":"c"}"#, "ask: missing field `question`"),
            (r#"{"type":"ask","call_id":"a b","question":1}"#, "ask.call_id: got \"a b\""),
            (r#"{"type":"ask","call_id":"c","question":1,"timeout_s":-1}"#, "ask.timeout_s: invalid"),
            (
                r#"{"type":"ask","call_id":"c","question":1,"kind":"vote"}"#,
                "ask.kind: unknown variant `vote`",
            ),
        ] {
            let failure = read(line).unwrap_err();
            assert_eq!((failure.code, failure.retryable), (FailureCode::Protocol, false), "{line}");
            assert!(failure.message.starts_with("stdout line 7: "), "{failure}");
            assert!(failure.message.contains(expected), "{failure}");
        }
        assert!(read([0xff, 0xfe]).unwrap_err().message.contains("not UTF-8 after 0 bytes"));
    }

    #[test]
    fn a_byte_order_mark_before_the_first_line_is_ignored() {
        let line = |number| Line {
            source: "stdout",
            number,
            bytes: "\u{feff}{\"type\":\"result\"}\r".into(),
            complete: true,
        };
        assert_eq!(parse(&line(1)).unwrap(), Some(Message::Result(Json::null())));
        assert_eq!(parse(&line(2)).unwrap_err().code, FailureCode::Protocol);
    }

    #[test]
    fn a_line_is_quoted_up_to_two_hundred_characters() {
        let failure = read("é".repeat(500)).unwrap_err();
        assert_eq!(failure.message.matches('é').count(), 200);
        assert!(failure.message.ends_with("\"…"));
    }

    #[test]
    fn what_postgres_cannot_hold_is_distinguished_from_what_is_no_json() {
        for (line, place) in [
            (r#"{"type":"result","output":{"a":["\u0000"]}}"#, "output.a[0]: "),
            (r#"{"type":"checkpoint","memory":{"k":"\ud800"}}"#, "memory.k: "),
            (r#"{"type":"event","name":"x","data":1e999999}"#, "data: "),
            (r#"{"type":"event","name":"x","data":[1e400]}"#, "data[0]: 1e400 is past"),
            (r#"{"type":"checkpoint","memory":{"k":-1e309}}"#, "memory.k: -1e309 is past"),
            (
                r#"{"type":"checkpoint","feature_progress":{"k":12345678901234567890.12}}"#,
                "feature_progress.k: 1234",
            ),
            (r#"{"type":"checkpoint","context_window":[{"a":"\u0000"}]}"#, "context_window[0].a: "),
            (r#"{"type":"checkpoint","context_window":["\ud800"]}"#, "context_window[0]: "),
        ] {
            let failure = read(line).unwrap_err();
            assert_eq!(failure.code, FailureCode::Unstorable, "{failure}");
            assert!(failure.message.starts_with(&format!("stdout line 7: {place}")), "{failure}");
        }
    }

    #[test]
    fn an_order_is_one_line_whatever_the_input_looks_like() {
        let task = Task {
            job_id: JobId::now(),
            tenant: Tenant::default(),
            session_id: Name::default(),
            agent_id: Name::default(),
            user_id: None,
            labels: Labels::default(),
            input: Json::parse("{\n  \"a\": \"x\\ny\u{2028}\u{85}\u{2029}\"\r\n}").unwrap(),
            attempt: 1,
            epoch: 2,
            traceparent: None,
            max_stalled_iterations: None,
            max_iterations: None,
            max_tokens: None,
        };
        let timed_out = ClosedInput { answer: None, by: None, timed_out: true };
        let run = Run::new(task, Session::default(), MemoryJournal::new(), Stopper::default().signal())
            .answered([("c".parse().unwrap(), timed_out)]);
        let line = order(&run, Some(Path::new("/w"))).unwrap();
        assert_eq!(line.matches(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count(), 1);
        let read: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["job"]["input"], json!({"a": "x\ny\u{2028}\u{85}\u{2029}"}));
        assert_eq!(read["session"]["cost_usd"], json!(0.0));
        assert_eq!(read["workspace"], json!("/w"));
        assert_eq!(read["answers"], json!({"c": {"timed_out": true}}));
    }

    proptest! {
        #[test]
        fn no_line_panics(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\{\"type\":\"(cost|error)\".*") {
            let _ = read(bytes);
            let _ = read(text);
        }
    }
}
