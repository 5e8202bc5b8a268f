//! Answers of Chat Completions. It keeps its thoughts to itself.

use serde_json::{Value, json};

use super::{Block, Event, Said, Usage};

fn usage(said: &Said) -> Value {
    let Some(used) = said.reported() else { return Value::Null };
    json!({"prompt_tokens": used.all_input(), "completion_tokens": used.output,
        "total_tokens": used.all_input() + used.output,
        "prompt_tokens_details": {"cached_tokens": used.cache_read, "cache_write_tokens": used.cache_write, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}})
}

fn reason(said: &Said) -> &'static str {
    match said.stop.as_str() {
        "tool_use" => "tool_calls",
        "max_tokens" | "model_context_window_exceeded" => "length",
        "refusal" => "content_filter",
        _ => "stop",
    }
}

pub(super) fn whole(said: &Said) -> Value {
    let text = said.text();
    let mut message = json!({"role": "assistant", "refusal": null,
        "content": if text.is_empty() { Value::Null } else { json!(text) }});
    let calls: Vec<Value> = (said.calls())
        .map(|(id, name, input, _)| {
            json!({"id": id, "type": "function", "function": {"name": name, "arguments": input}})
        })
        .collect();
    if !calls.is_empty() {
        message["tool_calls"] = json!(calls);
    }
    json!({"id": format!("chatcmpl-{}", said.id), "object": "chat.completion", "created": 1_700_000_000,
        "model": said.model, "service_tier": said.tier, "usage": usage(said),
        "choices": [{"index": 0, "finish_reason": reason(said), "logprobs": null, "message": message}]})
}

pub(super) fn events(said: &Said, include_usage: bool) -> Vec<Event> {
    let chunk = |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({"id": format!("chatcmpl-{}", said.id), "object": "chat.completion.chunk",
            "created": 1_700_000_000, "model": said.model, "service_tier": said.tier, "choices": choices});
        if include_usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        Event { name: "chat.completion.chunk".to_owned(), text: format!("data: {chunk}\n\n") }
    };
    let part = |delta: Value, reason: Value| {
        chunk(json!([{"index": 0, "delta": delta, "finish_reason": reason}]), None)
    };
    let mut events = vec![part(json!({"role": "assistant", "content": ""}), Value::Null)];
    for (block, pieces) in &said.blocks {
        if let Block::Text(_) = block {
            events.extend(pieces.iter().map(|piece| part(json!({"content": piece}), Value::Null)));
        }
    }
    for (index, (id, name, _, pieces)) in said.calls().enumerate() {
        let call = json!({"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}});
        events.push(part(json!({"tool_calls": [call]}), Value::Null));
        events.extend(pieces.iter().map(|piece| {
            let more = json!({"index": index, "function": {"arguments": piece}});
            part(json!({"tool_calls": [more]}), Value::Null)
        }));
    }
    events.push(part(json!({}), json!(reason(said))));
    if include_usage && said.reported().is_some() {
        let times = if said.usage == Usage::Twice { 2 } else { 1 };
        events.extend((0..times).map(|_| chunk(json!([]), Some(usage(said)))));
    }
    events.push(Event { name: "[DONE]".to_owned(), text: "data: [DONE]\n\n".to_owned() });
    events
}
