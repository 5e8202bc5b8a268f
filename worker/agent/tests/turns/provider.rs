//! A provider of all wires. What it answers depends on the request alone: on how many answers are in it.
//!
//! It refuses what the real ones refuse: a call without its result, a message without content, a request without a limit, signed
//! thinking behind anything else than what it was thought behind, a message of another wire.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::refused;
use crate::world::{Points, Speaks};

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Refused with this status, and asked to come back at once.
    Refuses(u16),
    /// Refused, and asked to come back in a minute.
    Later,
    /// The stream is cut after this many events, if it has more.
    CutAfter(usize),
    /// The conversation is too long.
    TooLong,
    /// No answer ever comes.
    Stalls,
}

/// What the model says at its n-th turn.
pub type Script = Arc<dyn Fn(usize) -> Turn + Send + Sync>;

#[derive(Clone)]
pub enum Turn {
    /// Calls tools: id, name and input.
    Calls(Vec<(String, &'static str, String)>),
    /// Ends with a text, for this reason of Messages.
    Says(String, &'static str),
    /// Says something, and calls a tool.
    SaysAndCalls(String, (String, &'static str, String)),
    /// Thinks, and ends for this reason. If it is the limit of output, the thought is neither signed nor sealed.
    Thinks(&'static str),
}

impl Turn {
    fn text(&self) -> Option<&str> {
        match self {
            Turn::Says(text, _) | Turn::SaysAndCalls(text, _) => Some(text),
            Turn::Calls(_) | Turn::Thinks(_) => None,
        }
    }

    fn calls(&self) -> &[(String, &'static str, String)] {
        match self {
            Turn::Calls(calls) => calls,
            Turn::SaysAndCalls(_, call) => std::slice::from_ref(call),
            Turn::Says(..) | Turn::Thinks(_) => &[],
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Turn::Calls(_) | Turn::SaysAndCalls(..) => "tool_use",
            Turn::Says(_, reason) | Turn::Thinks(reason) => reason,
        }
    }

    fn is_cut_while_it_thinks(&self) -> bool {
        matches!(self, Turn::Thinks("max_tokens"))
    }
}

#[derive(Clone)]
pub struct Provider {
    pub addr: SocketAddr,
    state: Arc<State_>,
}

struct State_ {
    script: Script,
    points: Arc<Points>,
    asked: Mutex<Vec<(usize, String)>>,
    faults: Mutex<VecDeque<Fault>>,
}

impl Provider {
    pub async fn start(script: Script, points: Arc<Points>) -> Provider {
        let state = Arc::new(State_ { script, points, asked: Mutex::default(), faults: Mutex::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let routes = Router::new()
            .route("/v1/messages", post(|state, body| answer(state, body, Speaks::Messages)))
            .route("/v1/chat/completions", post(|state, body| answer(state, body, Speaks::Chat)))
            .route("/v1/responses", post(|state, body| answer(state, body, Speaks::Responses)))
            .layer(DefaultBodyLimit::disable())
            .with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.expect("served") });
        Provider { addr, state }
    }

    /// Returns the requests that it worked on: which turn they asked for, and their bodies.
    pub fn asked(&self) -> Vec<(usize, String)> {
        self.state.asked.lock().expect("not poisoned").clone()
    }

    pub fn fault(&self, fault: Fault) {
        self.state.faults.lock().expect("not poisoned").push_back(fault);
    }

    /// Returns how many faults no request has met yet.
    pub fn faults_left(&self) -> usize {
        self.state.faults.lock().expect("not poisoned").len()
    }
}

async fn answer(State(state): State<Arc<State_>>, body: String, speaks: Speaks) -> Response {
    state.points.pass().await;
    let fault = state.faults.lock().expect("not poisoned").pop_front();
    match fault {
        Some(Fault::Refuses(status)) => {
            let status = StatusCode::from_u16(status).expect("it works");
            return (status, [("retry-after", "0")], refusal("later")).into_response();
        }
        Some(Fault::Later) => {
            let status = StatusCode::TOO_MANY_REQUESTS;
            return (status, [("retry-after", "60")], refusal("later")).into_response();
        }
        Some(Fault::TooLong) => {
            return (StatusCode::BAD_REQUEST, refusal("prompt is too long: 9 tokens > 8 maximum"))
                .into_response();
        }
        Some(Fault::Stalls) => std::future::pending().await,
        _ => {}
    }
    let request: Value = serde_json::from_str(&body).expect("JSON");
    let checked = match speaks {
        Speaks::Messages => check_messages(&request),
        Speaks::Chat => check_chat(&request),
        Speaks::Responses => check_responses(&request),
    };
    if let Err(why) = checked {
        return (StatusCode::BAD_REQUEST, refusal(&why)).into_response();
    }
    let summary = body.contains("oldest part no longer fits");
    let at = answers(&request);
    state.asked.lock().expect("not poisoned").push((at, body.clone()));
    let turn =
        if summary { Turn::Says("All was well so far.".to_owned(), "end_turn") } else { (state.script)(at) };
    let model = request["model"].as_str().expect("a text").to_owned();
    let input = (body.len() as u64).div_ceil(4);
    let mut events = match speaks {
        Speaks::Messages => messages(at, &model, &signature(&request, usize::MAX), input, &turn),
        Speaks::Chat => chat(&model, input, &turn),
        Speaks::Responses => responses(at, &model, input, &turn),
    };
    let cut = match fault {
        Some(Fault::CutAfter(count)) if count < events.len() => {
            events.truncate(count);
            true
        }
        _ => false,
    };
    let points = state.points.clone();
    let events = stream::iter(events).then(move |event| {
        let points = points.clone();
        async move {
            points.pass().await;
            Ok(event)
        }
    });
    let end = stream::iter(cut.then_some(())).then(|()| async {
        // What is not on its way yet would be lost with the connection.
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    });
    let mut response = Response::new(Body::from_stream(events.chain(end)));
    response.headers_mut().insert("content-type", "text/event-stream".parse().expect("valid"));
    response
}

/// Returns how many answers a request has; items of Responses in a row are one.
fn answers(request: &Value) -> usize {
    let (list, in_rows) = match request.get("messages") {
        Some(messages) => (messages, false),
        None => (&request["input"], true),
    };
    let list = list.as_array().expect("a list");
    let is_said = |at: usize| {
        let item = &list[at];
        item["role"] == "assistant" || item["type"] == "function_call" || item["type"] == "reasoning"
    };
    let begins = |at: &usize| is_said(*at) && !(in_rows && *at > 0 && is_said(at - 1));
    (0..list.len()).filter(begins).count()
}

fn refusal(message: &str) -> String {
    json!({"type": "error", "error": {"type": "some_error", "message": message}}).to_string()
}

fn check_messages(request: &Value) -> Result<(), String> {
    if !request["max_tokens"].is_u64() || request["stream"] != true {
        return Err("max_tokens: Field required".to_owned());
    }
    let messages = request["messages"].as_array().ok_or("messages: Field required")?;
    if messages[0]["role"] != "user" {
        return Err("messages: first message must use the user role".to_owned());
    }
    let mut open: Vec<&Value> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let blocks = message["content"].as_array().filter(|blocks| !blocks.is_empty());
        let blocks = blocks.ok_or("messages: content must be non-empty")?;
        if !open.is_empty() {
            let answered: Vec<&Value> = blocks.iter().map(|block| &block["tool_use_id"]).collect();
            if open.iter().any(|id| !answered.contains(id)) {
                return Err("tool_use ids were found without tool_result blocks immediately after".to_owned());
            }
        }
        open = blocks.iter().filter(|block| block["type"] == "tool_use").map(|block| &block["id"]).collect();
        for block in blocks.iter().filter(|block| block["type"] == "thinking") {
            if block["signature"] != signature(request, at) {
                return Err("Invalid `signature` in `thinking` block".to_owned());
            }
        }
    }
    if !open.is_empty() {
        return Err("tool_use without tool_result".to_owned());
    }
    refused::of_messages(request)
}

fn check_chat(request: &Value) -> Result<(), String> {
    if !request["max_completion_tokens"].is_u64() || request["stream_options"]["include_usage"] != true {
        return Err("max_completion_tokens".to_owned());
    }
    let mut open: Vec<&Value> = Vec::new();
    for message in request["messages"].as_array().ok_or("messages")? {
        if !["system", "user", "assistant", "tool"].contains(&message["role"].as_str().unwrap_or_default()) {
            return Err(format!("a message of another wire: {message}"));
        }
        if message["role"] == "tool" {
            open.retain(|id| **id != message["tool_call_id"]);
        } else if !open.is_empty() {
            return Err("An assistant message with 'tool_calls' must be followed by tool messages".to_owned());
        }
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        open.extend(calls.map(|call| &call["id"]));
    }
    if open.is_empty() { Ok(()) } else { Err("tool_calls without answers".to_owned()) }
}

fn check_responses(request: &Value) -> Result<(), String> {
    if !request["max_output_tokens"].is_u64() || request["stream"] != true || request["store"] != false {
        return Err("max_output_tokens, stream, store".to_owned());
    }
    let items = request["input"].as_array().ok_or("input")?;
    let mut open: Vec<&Value> = Vec::new();
    for (at, item) in items.iter().enumerate() {
        match item["type"].as_str() {
            Some("function_call") => open.push(&item["call_id"]),
            Some("function_call_output") => {
                let before = open.len();
                open.retain(|id| **id != item["call_id"]);
                if open.len() == before {
                    return Err("No tool call found for function call output".to_owned());
                }
            }
            Some("reasoning") => {
                if item["encrypted_content"] != sealed(request["model"].as_str().expect("a text")) {
                    return Err("The encrypted content could not be verified".to_owned());
                }
                let next = items.get(at + 1).ok_or("without its required following item")?;
                if next["type"] == "function_call_output" || next["role"] == "user" {
                    return Err("without its required following item".to_owned());
                }
            }
            _ if item["role"] == "tool" || item.get("tool_calls").is_some() => {
                return Err(format!("an item of another wire: {item}"));
            }
            _ => {}
        }
    }
    if open.is_empty() { Ok(()) } else { Err("No tool output found for function call".to_owned()) }
}

fn sealed(model: &str) -> String {
    format!("signed by {model}")
}

fn responses(at: usize, model: &str, input: u64, turn: &Turn) -> Vec<String> {
    let seal = (!turn.is_cut_while_it_thinks()).then(|| sealed(model));
    let mut items = vec![json!({"id": format!("rs_{at}"), "type": "reasoning", "summary": [],
        "encrypted_content": seal})];
    items.extend(turn.text().map(|text| {
        json!({"id": format!("msg_{at}"), "type": "message", "role": "assistant",
            "status": "completed", "content": [{"type": "output_text", "text": text, "annotations": []}]})
    }));
    items.extend(turn.calls().iter().map(|(id, name, given)| {
        json!({"id": format!("fc_{id}"), "type": "function_call", "status": "completed", "name": name,
            "call_id": id, "arguments": given})
    }));
    let why = match turn.reason() {
        "max_tokens" => json!("max_output_tokens"),
        "refusal" => json!("content_filter"),
        _ => Value::Null,
    };
    let mut events = vec![json!({"type": "response.created", "response": {"status": "in_progress"}})];
    for (index, item) in items.iter().enumerate() {
        events.push(json!({"type": "response.output_item.added", "output_index": index, "item": {}}));
        if let Some(text) = item["content"][0]["text"].as_str() {
            events.push(json!({"type": "response.output_text.delta", "output_index": index, "delta": text}));
        }
        events.push(json!({"type": "response.output_item.done", "output_index": index, "item": item}));
    }
    let status = if why.is_null() { "completed" } else { "incomplete" };
    events.push(json!({"type": format!("response.{status}"), "response": {"model": model, "status": status,
        "service_tier": "default", "incomplete_details": {"reason": why}, "output": items, "error": null,
        "usage": {"input_tokens": input, "output_tokens": 20 + at, "total_tokens": input + 20}}}));
    let named = events.iter().map(|event| (event["type"].as_str().expect("a text"), event));
    named.map(|(name, event)| format!("event: {name}\ndata: {event}\n\n")).collect()
}

/// Signs thinking for its model and all that stands before the message at this place.
fn signature(request: &Value, at: usize) -> String {
    let before = request["messages"].as_array().expect("a list").iter().take(at);
    let mut sum = DefaultHasher::new();
    format!("{}{}", request["system"], request["tools"]).hash(&mut sum);
    before.for_each(|message| message.to_string().hash(&mut sum));
    format!("{} {:x}", sealed(request["model"].as_str().expect("a text")), sum.finish())
}

fn messages(at: usize, model: &str, signature: &str, input: u64, turn: &Turn) -> Vec<String> {
    let mut events = vec![
        json!({"type": "message_start", "message": {"model": model, "usage": {"input_tokens": input, "output_tokens": 1}}}),
    ];
    let mut block = |begun: Value, deltas: Vec<Value>| {
        let index = events.iter().filter(|event| event["type"] == "content_block_start").count();
        events.push(json!({"type": "content_block_start", "index": index, "content_block": begun}));
        let deltas = deltas.into_iter();
        events.extend(
            deltas.map(|delta| json!({"type": "content_block_delta", "index": index, "delta": delta})),
        );
        events.push(json!({"type": "content_block_stop", "index": index}));
    };
    let thought = match turn.is_cut_while_it_thinks() {
        true => json!({"type": "thinking_delta", "thinking": "Hm"}),
        false => json!({"type": "signature_delta", "signature": signature}),
    };
    block(json!({"type": "thinking", "thinking": "", "signature": ""}), vec![thought]);
    if let Some(text) = turn.text() {
        block(json!({"type": "text", "text": ""}), vec![json!({"type": "text_delta", "text": text})]);
    }
    for (id, name, given) in turn.calls() {
        let middle = given.len() / 2;
        let piece = |piece: &str| json!({"type": "input_json_delta", "partial_json": piece});
        block(
            json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
            vec![piece(&given[..middle]), piece(&given[middle..])],
        );
    }
    let reason = turn.reason();
    let output = 20 + at;
    events.push(json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": output}}));
    events.push(json!({"type": "message_stop"}));
    events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().expect("a text")))
        .collect()
}

fn chat(model: &str, input: u64, turn: &Turn) -> Vec<String> {
    let chunk = |delta: Value, reason: Value| {
        json!({"model": model, "service_tier": "default",
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
    };
    let mut events = vec![chunk(json!({"role": "assistant", "content": ""}), Value::Null)];
    if let Some(text) = turn.text() {
        events.push(chunk(json!({"content": text}), Value::Null));
    }
    for (index, (id, name, given)) in turn.calls().iter().enumerate() {
        let middle = given.len() / 2;
        events.push(chunk(
            json!({"tool_calls": [{"index": index, "id": id, "type": "function",
            "function": {"name": name, "arguments": &given[..middle]}}]}),
            Value::Null,
        ));
        events.push(chunk(
            json!({"tool_calls": [{"index": index,
            "function": {"arguments": &given[middle..]}}]}),
            Value::Null,
        ));
    }
    let reason = match turn.reason() {
        "tool_use" => "tool_calls",
        "max_tokens" => "length",
        "refusal" => "content_filter",
        _ => "stop",
    };
    events.push(chunk(json!({}), json!(reason)));
    events.push(
        json!({"model": model, "choices": [], "service_tier": "default", "usage": {"prompt_tokens": input,
        "completion_tokens": 20, "total_tokens": input + 20}}),
    );
    let mut events: Vec<String> = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    events.push("data: [DONE]\n\n".to_owned());
    events
}
