//! Answers of Responses. Reasoning is sealed as thinking is, if the request asks for it.

use serde_json::{Value, json};

use super::{Block, Event, Said, Usage};

fn usage(said: &Said) -> Value {
    let Some(used) = said.reported() else { return Value::Null };
    json!({"input_tokens": used.all_input(), "output_tokens": used.output,
        "total_tokens": used.all_input() + used.output,
        "input_tokens_details": {"cached_tokens": used.cache_read, "cache_write_tokens": used.cache_write},
        "output_tokens_details": {"reasoning_tokens": 0}})
}

/// How it ends: its status, and why it is not complete.
fn end(said: &Said) -> (&'static str, Value) {
    match said.stop.as_str() {
        "max_tokens" | "model_context_window_exceeded" => {
            ("incomplete", json!({"reason": "max_output_tokens"}))
        }
        "refusal" => ("incomplete", json!({"reason": "content_filter"})),
        _ => ("completed", Value::Null),
    }
}

fn response(said: &Said, status: &str, output: Vec<Value>, usage: Value) -> Value {
    let why = if status == "incomplete" { end(said).1 } else { Value::Null };
    json!({"id": format!("resp_{}", said.id), "object": "response", "created_at": 1_700_000_000, "status": status,
        "model": said.model, "service_tier": said.tier, "error": null, "incomplete_details": why,
        "instructions": null, "metadata": {}, "parallel_tool_calls": true, "tool_choice": "auto", "tools": [],
        "temperature": 1.0, "top_p": 1.0, "output": output, "usage": usage})
}

/// Returns the items of an answer.
fn items(said: &Said) -> Vec<Value> {
    let items = said.blocks.iter().enumerate().map(|(at, (block, _))| {
        let id = |prefix: &str| format!("{prefix}_{}_{at}", said.id);
        match block {
            Block::Thinking { text, signature } => {
                let summary = (!text.is_empty()).then(|| json!({"type": "summary_text", "text": text}));
                // A thought that was not finished has no seal.
                let sealed = Some(signature).filter(|seal| said.encrypts && !seal.is_empty());
                json!({"type": "reasoning", "id": id("rs"), "summary": Vec::from_iter(summary),
                    "encrypted_content": sealed})
            }
            Block::Raw(raw) => serde_json::from_str(raw).unwrap_or_default(),
            Block::Text(text) => {
                json!({"type": "message", "id": id("msg"), "role": "assistant", "status": "completed",
                "content": [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]})
            }
            Block::Tool { id: call, name, input } => json!({"type": "function_call", "id": id("fc"),
                "call_id": call, "name": name, "arguments": input, "status": "completed"}),
        }
    });
    items.collect()
}

pub(super) fn whole(said: &Said) -> Value {
    response(said, end(said).0, items(said), usage(said))
}

pub(super) fn events(said: &Said) -> Vec<Event> {
    let begun = || response(said, "in_progress", Vec::new(), Value::Null);
    let mut events = vec![
        json!({"type": "response.created", "response": begun()}),
        json!({"type": "response.in_progress", "response": begun()}),
    ];
    for (at, (item, (block, pieces))) in items(said).into_iter().zip(&said.blocks).enumerate() {
        let id = item["id"].clone();
        let mut begun = item.clone();
        let empty = match block {
            Block::Text(_) => Some(("content", json!([]))),
            Block::Tool { .. } => Some(("arguments", json!(""))),
            Block::Thinking { .. } | Block::Raw(_) => None,
        };
        if let Some((field, empty)) = empty {
            (begun[field], begun["status"]) = (empty, json!("in_progress"));
        }
        events.push(json!({"type": "response.output_item.added", "output_index": at, "item": begun}));
        match block {
            Block::Text(text) => {
                let part = |text: &str| json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []});
                let place =
                    |kind: &str| json!({"type": kind, "item_id": id, "output_index": at, "content_index": 0});
                let with = |kind: &str, field: &str, value: Value| {
                    let mut event = place(kind);
                    event[field] = value;
                    event
                };
                events.push(with("response.content_part.added", "part", part("")));
                events.extend(pieces.iter().map(|piece| {
                    let mut event = with("response.output_text.delta", "delta", json!(piece));
                    event["logprobs"] = json!([]);
                    event
                }));
                let mut done = with("response.output_text.done", "text", json!(text));
                done["logprobs"] = json!([]);
                events.push(done);
                events.push(with("response.content_part.done", "part", part(text)));
            }
            Block::Tool { name, input, .. } => {
                events.extend(pieces.iter().map(|piece| {
                    json!({"type": "response.function_call_arguments.delta", "item_id": id, "output_index": at,
                        "delta": piece})
                }));
                events.push(
                    json!({"type": "response.function_call_arguments.done", "item_id": id, "output_index": at,
                    "name": name, "arguments": input}),
                );
            }
            Block::Thinking { .. } | Block::Raw(_) => {}
        }
        events.push(json!({"type": "response.output_item.done", "output_index": at, "item": item}));
    }
    let (status, _) = end(said);
    let last = json!({"type": format!("response.{status}"), "response": whole(said)});
    let times = if said.usage == Usage::Twice { 2 } else { 1 };
    events.extend((0..times).map(|_| last.clone()));
    for (number, event) in events.iter_mut().enumerate() {
        event["sequence_number"] = json!(number);
    }
    events.iter().map(Event::named).collect()
}
