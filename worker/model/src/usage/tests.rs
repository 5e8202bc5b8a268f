//! What an answer has cost, as each provider says it, whole or cut off.

use serde_json::json;

use super::*;
use crate::wire::HostedCaps;

fn today() -> NaiveDate {
    "2026-11-28".parse().expect("a day")
}

fn ask(wire: Wire) -> Ask {
    let request = match wire {
        Wire::Messages => json!({"model": "claude-opus-5-5", "max_tokens": 10, "messages": []}),
        Wire::Chat => json!({"model": "gpt-6-sol", "messages": []}),
        Wire::Responses => json!({"model": "gpt-6-sol", "input": "x"}),
        Wire::Embeddings => json!({"model": "text-embedding-3-small", "input": "x"}),
    };
    wire.read(request.to_string().as_bytes(), HostedCaps::default()).expect("readable")
}

fn outcome(wire: Wire, meter: &Meter) -> Outcome {
    meter.outcome(&ask(wire), &Prices::built_in(), today())
}

fn of_body(wire: Wire, body: &Value) -> Outcome {
    let mut meter = Meter::new(wire);
    meter.body(body.to_string().as_bytes());
    outcome(wire, &meter)
}

fn micros(outcome: &Outcome) -> u64 {
    match outcome {
        Outcome::Settled(settled) => settled.cost.micros(),
        other => panic!("not settled: {other:?}"),
    }
}

fn unknown(outcome: Outcome) -> String {
    match outcome {
        Outcome::Unknown(reason) => reason.to_string(),
        other => panic!("known: {other:?}"),
    }
}

/// The events of Anthropic's own example of a stream with a tool call.
fn message_stream() -> Vec<Value> {
    vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "content": [],
            "model": "claude-opus-5-5", "stop_reason": null, "usage": {"input_tokens": 100, "cache_creation_input_tokens": 40,
            "cache_read_input_tokens": 1000, "cache_creation": {"ephemeral_5m_input_tokens": 30, "ephemeral_1h_input_tokens": 10},
            "output_tokens": 1, "service_tier": "standard", "inference_geo": "global"}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
            "usage": {"output_tokens": 15}}),
        json!({"type": "message_stop"}),
    ]
}

fn chat_stream() -> Vec<Value> {
    let chunk = |choices: Value, usage: Value| {
        json!({"id": "c", "object": "chat.completion.chunk", "model": "gpt-6-sol",
            "service_tier": "default", "choices": choices, "usage": usage})
    };
    vec![
        chunk(
            json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]),
            Value::Null,
        ),
        chunk(json!([{"index": 0, "delta": {"content": "Hi"}, "finish_reason": null}]), Value::Null),
        chunk(json!([{"index": 0, "delta": {}, "finish_reason": "stop"}]), Value::Null),
        chunk(
            json!([]),
            json!({"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120,
            "prompt_tokens_details": {"cached_tokens": 60, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 10, "audio_tokens": 0}}),
        ),
    ]
}

fn response_stream() -> Vec<Value> {
    let response = |status: &str, usage: Value| {
        json!({"id": "r", "object": "response", "model": "gpt-6-sol", "service_tier": "default", "status": status,
            "error": null, "output": [], "usage": usage})
    };
    vec![
        json!({"type": "response.created", "response": response("in_progress", Value::Null)}),
        json!({"type": "response.in_progress", "response": response("in_progress", Value::Null)}),
        json!({"type": "response.output_text.delta", "delta": "Hi"}),
        json!({"type": "response.output_text.done", "text": "Hi"}),
        json!({"type": "response.completed", "response": response("completed", json!({"input_tokens": 100,
            "input_tokens_details": {"cached_tokens": 60}, "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 10}, "total_tokens": 120}))}),
    ]
}

/// The data of each event, and what the whole stream costs.
fn streams() -> [(Wire, Vec<String>, u64); 3] {
    let data = |events: Vec<Value>| events.iter().map(Value::to_string).collect::<Vec<_>>();
    let mut chat = data(chat_stream());
    chat.push("[DONE]".to_owned());
    [
        (Wire::Messages, data(message_stream()), 100 * 4 + 30 * 5 + 10 * 8 + 200 + 15 * 20),
        (Wire::Chat, chat, 40 * 2 + 12 + 20 * 10),
        (Wire::Responses, data(response_stream()), 40 * 2 + 12 + 20 * 10),
    ]
}

#[test]
fn a_stream_costs_what_it_reports_at_its_end() {
    for (wire, events, cost) in streams() {
        let mut meter = Meter::new(wire);
        let seen: Vec<Seen> = events.iter().map(|data| meter.event(data)).collect();
        assert_eq!(micros(&outcome(wire, &meter)), cost, "{wire:?}");
        assert_eq!(seen.last(), Some(&Seen::End));
        assert_eq!(seen.iter().filter(|seen| **seen == Seen::End).count(), 1);
        assert_eq!(seen.contains(&Seen::UsageAlone), wire == Wire::Chat);
        assert!(meter.is_answer());
    }
}

#[test]
fn a_stream_cut_after_any_of_its_events_is_no_answer_and_its_cost_is_unknown() {
    for (wire, events, _) in streams() {
        for cut in 0..events.len() {
            let mut meter = Meter::new(wire);
            for data in &events[..cut] {
                meter.event(data);
            }
            assert_eq!(outcome(wire, &meter), Outcome::Unknown(NoUsage::NoEnd), "{wire:?} cut after {cut}");
            assert!(!meter.is_answer());
            assert_eq!(meter.counted_input(), None);
        }
    }
}

#[test]
fn an_answer_that_is_no_stream_costs_what_it_reports() {
    let message = json!({"type": "message", "model": "claude-haiku-4-5-20251001", "stop_reason": "end_turn", "content": [],
        "usage": {"input_tokens": 10, "output_tokens": 5}});
    assert_eq!(micros(&of_body(Wire::Messages, &message)), 10 + 25, "priced as the model that answered");
    let chat = json!({"model": "gpt-6-luna", "choices": [{}], "service_tier": "priority",
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}});
    assert_eq!(micros(&of_body(Wire::Chat, &chat)), 2 * 15);
    let response = json!({"status": "incomplete", "model": "gpt-6-sol", "output": [], "service_tier": "default",
        "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}});
    assert_eq!(micros(&of_body(Wire::Responses, &response)), 12);
    let item = |kind: &str| json!({"type": kind});
    let searched = json!({"status": "completed", "model": "gpt-6-sol", "service_tier": "default",
        "output": [item("file_search_call"), item("web_search_call"), item("file_search_call"), item("message")],
        "usage": {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}});
    assert_eq!(micros(&of_body(Wire::Responses, &searched)), 12 + 10_000 + 2 * 2_500);
    let embedded = json!({"data": [], "model": "text-embedding-3-small", "usage": {"prompt_tokens": 500, "total_tokens": 500}});
    assert_eq!(micros(&of_body(Wire::Embeddings, &embedded)), 10);
}

#[test]
fn usage_that_is_missing_or_zero_or_garbage_is_unknown() {
    let chat =
        |usage: Value| of_body(Wire::Chat, &json!({"model": "gpt-6-sol", "choices": [], "usage": usage}));
    assert_eq!(unknown(chat(Value::Null)), "the answer reports no usage");
    assert_eq!(
        unknown(chat(json!({"prompt_tokens": 0, "completion_tokens": 0}))),
        "the answer reports a usage of zero"
    );
    assert_eq!(unknown(chat(json!("lots"))), "the answer is not what this wire sends");
    assert!(unknown(chat(json!({"prompt_tokens": "9", "completion_tokens": 1}))).contains("prompt_tokens"));
    assert!(unknown(chat(json!({"prompt_tokens": -9}))).contains("prompt_tokens"));
    assert!(unknown(chat(json!({"prompt_tokens": 1.5}))).contains("prompt_tokens"));
    for body in ["", "<html>", "[]", "{\"choices\":"] {
        let mut meter = Meter::new(Wire::Chat);
        meter.body(body.as_bytes());
        assert_eq!(outcome(Wire::Chat, &meter), Outcome::Unknown(NoUsage::Garbage), "{body}");
    }
    let mut meter = Meter::new(Wire::Messages);
    for event in message_stream() {
        meter.event(&event.to_string());
    }
    meter.event("not json");
    assert_eq!(outcome(Wire::Messages, &meter), Outcome::Unknown(NoUsage::Garbage));
}

#[test]
fn usage_that_is_reported_twice_counts_once_and_the_largest_counts() {
    let (wire, mut events, cost) = streams().into_iter().nth(1).expect("chat");
    events.insert(1, events[3].clone());
    let mut meter = Meter::new(wire);
    for data in &events {
        meter.event(data);
    }
    assert_eq!(micros(&outcome(wire, &meter)), cost);

    let mut meter = Meter::new(Wire::Messages);
    for event in message_stream() {
        meter.event(&event.to_string());
        if event["type"] == "message_delta" {
            meter.event(
                &json!({"type": "message_delta", "usage": {"input_tokens": 100, "output_tokens": 14}})
                    .to_string(),
            );
        }
    }
    assert_eq!(micros(&outcome(Wire::Messages, &meter)), streams()[0].2);
}

#[test]
fn a_field_that_costs_and_has_no_price_makes_the_reservation_count() {
    let message = |usage: Value| {
        let mut all = json!({"input_tokens": 10, "output_tokens": 5, "inference_geo": "global"});
        for (name, value) in usage.as_object().expect("fields") {
            all[name] = value.clone();
        }
        of_body(Wire::Messages, &json!({"type": "message", "stop_reason": "end_turn", "usage": all}))
    };
    for (usage, named) in [
        (json!({"quantum_tokens": 3}), "quantum_tokens"),
        (
            json!({"cache_creation": {"ephemeral_24h_input_tokens": 3}}),
            "cache_creation.ephemeral_24h_input_tokens",
        ),
        (json!({"server_tool_use": {"code_execution_requests": 1}}), "code_execution"),
        (json!({"iterations": [{"type": "compaction", "input_tokens": 5}]}), "iterations"),
        (json!({"speed": "ludicrous"}), "ludicrous"),
        (json!({"inference_geo": "mars"}), "mars"),
    ] {
        let reason = unknown(message(usage));
        assert!(reason.contains(named), "{reason}");
    }
    // What is there and counts nothing changes nothing.
    let none = json!({"quantum_tokens": 0, "note": "text", "server_tool_use": {"web_search_requests": 0}, "later": null});
    assert_eq!(micros(&message(none)), 10 * 4 + 5 * 20);
    assert_eq!(micros(&message(json!({"server_tool_use": {"web_search_requests": 2}}))), 140 + 20_000);
    let answer = json!({"choices": [], "model": "unheard-of", "usage": {"prompt_tokens": 1}});
    assert!(
        unknown(of_body(Wire::Chat, &answer)).contains("unheard-of"),
        "the model that answered has no price"
    );
    let audio =
        json!({"choices": [], "usage": {"prompt_tokens": 5, "prompt_tokens_details": {"audio_tokens": 2}}});
    assert!(unknown(of_body(Wire::Chat, &audio)).contains("audio_tokens"));
}

#[test]
fn a_count_that_no_call_can_have_makes_the_reservation_count() {
    let most = crate::wire::MAX_LIMIT;
    let chat = |prompt: u64, completion: u64| {
        let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion});
        json!({"model": "gpt-6-sol", "service_tier": "default", "choices": [], "usage": usage})
    };
    for body in [chat(u64::MAX, 1), chat(1, most + 1)] {
        assert_eq!(of_body(Wire::Chat, &body), Outcome::Unknown(NoUsage::Absurd), "{body}");
        let mut meter = Meter::new(Wire::Chat);
        meter.body(body.to_string().as_bytes());
        assert_eq!(meter.counted_input(), None, "it says nothing of the conversation");
    }
    assert!(micros(&of_body(Wire::Chat, &chat(1, most))) > 0);
    let searches = |calls: Value| {
        let usage =
            json!({"input_tokens": 1, "output_tokens": 1, "server_tool_use": {"web_search_requests": calls}});
        of_body(Wire::Messages, &json!({"type": "message", "stop_reason": "end_turn", "usage": usage}))
    };
    assert_eq!(searches(json!(u64::MAX)), Outcome::Unknown(NoUsage::Absurd));
    assert!(unknown(searches(json!(-1))).contains("web_search_requests"));
    // A larger one is no whole number to us.
    let body = r#"{"choices": [], "usage": {"prompt_tokens": 99999999999999999999, "completion_tokens": 1}}"#;
    let mut meter = Meter::new(Wire::Chat);
    meter.body(body.as_bytes());
    assert!(unknown(outcome(Wire::Chat, &meter)).contains("prompt_tokens"));
}

#[test]
fn a_tier_or_place_that_the_answer_does_not_name_was_the_dearest() {
    let chat = |tier: Value| {
        of_body(Wire::Chat, &json!({"choices": [], "service_tier": tier, "usage": {"prompt_tokens": 10}}))
    };
    assert_eq!(micros(&chat(json!("default"))), 20);
    assert_eq!(micros(&chat(Value::Null)), 40);
    let message = |region: Value| {
        of_body(
            Wire::Messages,
            &json!({"type": "message", "stop_reason": "end_turn",
        "usage": {"input_tokens": 100, "output_tokens": 0, "inference_geo": region}}),
        )
    };
    assert_eq!(micros(&message(json!("global"))), 400);
    assert_eq!(micros(&message(Value::Null)), 440);
}

#[test]
fn a_total_that_the_parts_do_not_explain_is_billed_as_output() {
    let answer = json!({"choices": [], "service_tier": "default", "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}});
    assert_eq!(micros(&of_body(Wire::Chat, &answer)), 10 * 2 + 30 * 10);
}

#[test]
fn a_failure_within_a_stream_is_no_answer() {
    let mut meter = Meter::new(Wire::Messages);
    meter.event(&message_stream()[0].to_string());
    meter.event(
        &json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}).to_string(),
    );
    assert_eq!(outcome(Wire::Messages, &meter), Outcome::Unknown(NoUsage::NoEnd));
    let mut meter = Meter::new(Wire::Responses);
    let failed = json!({"type": "response.failed", "response": {"status": "failed", "error": {"code": "server_error"},
        "model": "gpt-6-sol", "service_tier": "default", "usage": {"input_tokens": 5, "output_tokens": 1, "total_tokens": 6}}});
    assert_eq!(meter.event(&failed.to_string()), Seen::End);
    assert!(!meter.is_answer());
    assert_eq!(micros(&outcome(Wire::Responses, &meter)), 20, "what it reports is billed");
    let mut meter = Meter::new(Wire::Chat);
    meter.event(r#"{"error":{"message":"boom"}}"#);
    meter.event("[DONE]");
    assert!(!meter.is_answer());
}

#[test]
fn only_a_refusal_before_any_work_is_free() {
    for status in [400, 401, 403, 404, 413, 422, 429, 503, 529] {
        assert!(refused_before_work(status), "{status}");
    }
    for status in [200, 302, 500, 502, 504, 520] {
        assert!(!refused_before_work(status), "{status}");
    }
}

#[test]
fn what_a_filter_has_stopped_is_billed_and_stays_with_its_job() {
    let body = json!({"choices": [{"index": 0, "finish_reason": "content_filter", "message": {"content": null}}],
        "model": "gpt-6-sol", "service_tier": "default",
        "usage": {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}});
    let mut meter = Meter::new(Wire::Chat);
    meter.body(body.to_string().as_bytes());
    assert_eq!(micros(&outcome(Wire::Chat, &meter)), 20);
    assert!(meter.is_answer() && !meter.is_shareable());
    let mut meter = Meter::new(Wire::Messages);
    let refusal = json!({"type": "message", "stop_reason": "refusal", "content": [], "model": "claude-opus-5-5",
        "usage": {"input_tokens": 5, "output_tokens": 1}});
    meter.body(refusal.to_string().as_bytes());
    assert!(micros(&outcome(Wire::Messages, &meter)) > 0);
    assert!(meter.is_answer() && !meter.is_shareable());
    let mut meter = Meter::new(Wire::Messages);
    message_stream().iter().for_each(|event| _ = meter.event(&event.to_string()));
    assert!(meter.is_shareable());
}
