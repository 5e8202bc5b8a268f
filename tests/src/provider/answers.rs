//! What it says, in each protocol.

use serde_json::{Value, json};

use super::Speaks;

/// An answer.
pub(super) struct Said<'a> {
    pub model: &'a str,
    pub words: u64,
    /// Input and output, if they are reported.
    pub usage: Option<(u64, u64)>,
}

impl Said<'_> {
    fn text(&self) -> String {
        (0..self.words).map(|number| format!("w{number} ")).collect()
    }

    fn usage(&self, speaks: Speaks) -> Value {
        let Some((input, output)) = self.usage else { return Value::Null };
        match speaks {
            Speaks::Messages => json!({"input_tokens": input, "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0, "output_tokens": output, "service_tier": "standard",
                "inference_geo": "global"}),
            Speaks::Chat => {
                json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}})
            }
            Speaks::Responses => json!({"input_tokens": input, "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": output, "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": input + output}),
        }
    }
}

/// Returns an answer that is no stream.
pub(super) fn whole(speaks: Speaks, said: &Said<'_>) -> Value {
    match speaks {
        Speaks::Messages => {
            json!({"id": "msg_1", "type": "message", "role": "assistant", "model": said.model,
            "content": [{"type": "text", "text": said.text()}], "stop_reason": "end_turn", "stop_sequence": null,
            "usage": said.usage(speaks)})
        }
        Speaks::Chat => json!({"id": "chatcmpl-1", "object": "chat.completion", "created": 1_700_000_000,
            "model": said.model, "service_tier": "default", "usage": said.usage(speaks),
            "choices": [{"index": 0, "finish_reason": "stop", "logprobs": null,
                "message": {"role": "assistant", "content": said.text(), "refusal": null}}]}),
        Speaks::Responses => response(said, "completed", true),
    }
}

fn response(said: &Said<'_>, status: &str, done: bool) -> Value {
    let output = json!([{"type": "message", "id": "m_1", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": said.text(), "annotations": []}]}]);
    json!({"id": "resp_1", "object": "response", "created_at": 1_700_000_000, "status": status, "model": said.model,
        "service_tier": "default", "error": null, "incomplete_details": null, "instructions": null, "metadata": {},
        "parallel_tool_calls": true, "tool_choice": "auto", "tools": [], "temperature": 1.0, "top_p": 1.0,
        "output": if done { output } else { json!([]) },
        "usage": if done { said.usage(Speaks::Responses) } else { Value::Null }})
}

/// Returns the events of a stream, each with its blank line.
pub(super) fn events(speaks: Speaks, said: &Said<'_>, request: &Value) -> Vec<String> {
    match speaks {
        Speaks::Messages => named(messages(said)),
        Speaks::Chat => chat(said, request["stream_options"]["include_usage"] == json!(true)),
        Speaks::Responses => named(responses(said)),
    }
}

fn named(events: Vec<Value>) -> Vec<String> {
    let written = events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap_or_default()));
    written.collect()
}

fn messages(said: &Said<'_>) -> Vec<Value> {
    let mut first = said.usage(Speaks::Messages);
    if first.is_object() {
        first["output_tokens"] = json!(said.words.min(1));
    }
    let output = said.usage.map(|(_, output)| json!({"output_tokens": output})).unwrap_or(Value::Null);
    let mut events = vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [],
            "model": said.model, "stop_reason": null, "stop_sequence": null, "usage": first}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
    ];
    events.extend((0..said.words).map(|number| {
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": format!("w{number} ")}})
    }));
    events.extend([
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null}, "usage": output}),
        json!({"type": "message_stop"}),
    ]);
    events
}

fn chat(said: &Said<'_>, include_usage: bool) -> Vec<String> {
    let chunk = |choices: Value, usage: Option<Value>| {
        let mut chunk = json!({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000,
            "model": said.model, "service_tier": "default", "choices": choices});
        if include_usage {
            chunk["usage"] = usage.unwrap_or(Value::Null);
        }
        format!("data: {chunk}\n\n")
    };
    let part = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "finish_reason": reason}]);
    let mut events = vec![chunk(part(json!({"role": "assistant", "content": ""}), Value::Null), None)];
    events.extend(
        (0..said.words)
            .map(|number| chunk(part(json!({"content": format!("w{number} ")}), Value::Null), None)),
    );
    events.push(chunk(part(json!({}), json!("stop")), None));
    if include_usage && said.usage.is_some() {
        events.push(chunk(json!([]), Some(said.usage(Speaks::Chat))));
    }
    events.push("data: [DONE]\n\n".to_owned());
    events
}

fn responses(said: &Said<'_>) -> Vec<Value> {
    let mut events = vec![
        json!({"type": "response.created", "response": response(said, "in_progress", false)}),
        json!({"type": "response.in_progress", "response": response(said, "in_progress", false)}),
    ];
    events.extend((0..said.words).map(|number| {
        json!({"type": "response.output_text.delta", "item_id": "m_1", "output_index": 0, "content_index": 0,
            "logprobs": [], "delta": format!("w{number} ")})
    }));
    events.push(json!({"type": "response.completed", "response": response(said, "completed", true)}));
    for (number, event) in events.iter_mut().enumerate() {
        event["sequence_number"] = json!(number);
    }
    events
}
