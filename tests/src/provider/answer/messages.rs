//! Answers of Messages. Inputs of tools keep their letters.

use serde_json::{Value, json};

use super::{Block, Event, Said, Usage};

fn usage(said: &Said) -> Value {
    let Some(used) = said.reported() else { return Value::Null };
    let mut usage = json!({"input_tokens": used.input,
        "cache_creation_input_tokens": used.cache_write + used.cache_write_long,
        "cache_read_input_tokens": used.cache_read,
        "cache_creation": {"ephemeral_5m_input_tokens": used.cache_write, "ephemeral_1h_input_tokens": used.cache_write_long},
        "output_tokens": used.output, "service_tier": "standard", "inference_geo": said.region});
    if let Some(speed) = &said.speed {
        usage["speed"] = json!(speed);
    }
    usage
}

fn block(block: &Block) -> String {
    match block {
        Block::Thinking { text, signature } => {
            json!({"type": "thinking", "thinking": text, "signature": signature}).to_string()
        }
        Block::Raw(raw) => raw.clone(),
        Block::Text(text) => json!({"type": "text", "text": text}).to_string(),
        Block::Tool { id, name, input } => {
            // What was cut off is no JSON.
            let whole = serde_json::from_str::<&serde_json::value::RawValue>(input).is_ok();
            let input = if whole { input.as_str() } else { "{}" };
            format!(r#"{{"type":"tool_use","id":{},"name":{},"input":{input}}}"#, json!(id), json!(name))
        }
    }
}

pub(super) fn whole(said: &Said) -> String {
    let content: Vec<String> = said.blocks.iter().map(|(content, _)| block(content)).collect();
    format!(
        r#"{{"id":{},"type":"message","role":"assistant","model":{},"content":[{}],"stop_reason":{},"stop_sequence":null,"usage":{}}}"#,
        json!(format!("msg_{}", said.id)),
        json!(said.model),
        content.join(","),
        json!(said.stop),
        usage(said)
    )
}

pub(super) fn events(said: &Said) -> Vec<Event> {
    let mut first = usage(said);
    if first.is_object() {
        first["output_tokens"] = json!(said.used.output.min(1));
    }
    let message = json!({"id": format!("msg_{}", said.id), "type": "message", "role": "assistant", "content": [],
        "model": said.model, "stop_reason": null, "stop_sequence": null, "usage": first});
    let mut events = vec![Event::named(&json!({"type": "message_start", "message": message}))];
    for (index, (content, pieces)) in said.blocks.iter().enumerate() {
        let begin = |block: &str| Event {
            name: "content_block_start".to_owned(),
            text: format!(
                "event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":{index},\"content_block\":{block}}}\n\n"
            ),
        };
        let delta = |delta: Value| {
            Event::named(&json!({"type": "content_block_delta", "index": index, "delta": delta}))
        };
        let (began, kind, field) = match content {
            Block::Thinking { .. } => (
                json!({"type": "thinking", "thinking": "", "signature": ""}).to_string(),
                "thinking_delta",
                "thinking",
            ),
            Block::Raw(raw) => (raw.clone(), "", ""),
            Block::Text(_) => (json!({"type": "text", "text": ""}).to_string(), "text_delta", "text"),
            Block::Tool { id, name, .. } => {
                let call = json!({"type": "tool_use", "id": id, "name": name, "input": {}});
                (call.to_string(), "input_json_delta", "partial_json")
            }
        };
        events.push(begin(&began));
        if index == 0 {
            events.push(Event::named(&json!({"type": "ping"})));
        }
        events.extend(pieces.iter().map(|piece| delta(json!({"type": kind, field: piece}))));
        if let Block::Thinking { signature, .. } = content
            && !signature.is_empty()
        {
            events.push(delta(json!({"type": "signature_delta", "signature": signature})));
        }
        events.push(Event::named(&json!({"type": "content_block_stop", "index": index})));
    }
    let output = said.reported().map_or(Value::Null, |used| json!({"output_tokens": used.output}));
    let end = json!({"type": "message_delta", "delta": {"stop_reason": said.stop, "stop_sequence": null}, "usage": output});
    let times = if said.usage == Usage::Twice { 2 } else { 1 };
    events.extend((0..times).map(|_| Event::named(&end)));
    events.push(Event::named(&json!({"type": "message_stop"})));
    events
}
