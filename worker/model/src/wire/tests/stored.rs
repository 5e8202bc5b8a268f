//! What the provider of Responses has stored, and a request names.

use super::*;

fn asks(items: &Value) -> Value {
    json!({"model": "gpt-6-sol", "input": items})
}

fn input(items: &Value) -> u64 {
    bound(Wire::Responses, &asks(items)).input
}

#[test]
fn a_stored_prompt_is_refused_because_it_may_bring_hosted_tools() {
    for input in [json!("hi"), Value::Null] {
        let request = json!({"model": "gpt-6-sol", "input": input, "prompt": {"id": "pmpt_1"}});
        assert_eq!(refused(Wire::Responses, &request), "prompt");
    }
    let none = json!({"model": "gpt-6-sol", "input": "hi", "prompt": null});
    assert!(read(Wire::Responses, &none).is_ok());
}

#[test]
fn an_item_that_the_provider_loads_by_its_id_counts_as_the_whole_window() {
    for item in [
        json!({"type": "item_reference", "id": "msg_1"}),
        json!({"id": "msg_1"}),
        json!({"id": "msg_1", "type": null}),
        json!({"id": "rs_1", "type": "reasoning", "summary": []}),
        json!({"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": null}),
        json!({"id": "cmp_1", "type": "compaction"}),
        json!({"id": "ig_1", "type": "image_generation_call"}),
        json!({"id": "ws_1", "type": "web_search_call", "status": "completed", "action": {"type": "search"}}),
        json!({"id": "fs_1", "type": "file_search_call", "status": "completed", "queries": ["q"], "results": null}),
        json!({"id": "ci_1", "type": "code_interpreter_call", "code": "1", "container_id": "c"}),
        json!({"id": "x_1", "type": "unheard_of"}),
    ] {
        let with_text = json!([{"role": "user", "content": "hi"}, item]);
        assert_eq!(input(&with_text), 1_050_000, "{item}");
        assert!(!read(Wire::Responses, &asks(&with_text)).expect("readable").is_whole(), "{item}");
    }
}

#[test]
fn an_item_with_its_content_counts_by_its_bytes() {
    for item in [
        json!({"id": "msg_1", "type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"}]}),
        json!({"role": "user", "content": "hi"}),
        json!({"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "gAAA"}),
        json!({"id": "fc_1", "type": "function_call", "call_id": "c", "name": "n", "arguments": "{}"}),
        json!({"id": "out_1", "type": "function_call_output", "call_id": "c", "output": "o"}),
        json!({"id": "fs_1", "type": "file_search_call", "queries": ["q"], "results": []}),
    ] {
        assert!(input(&json!([item])) < 3_000, "{item}");
        assert!(read(Wire::Responses, &asks(&json!([item]))).expect("readable").is_whole(), "{item}");
    }
}

#[test]
fn an_item_that_was_counted_with_all_before_it_is_not_the_whole_window_again() {
    let before =
        json!([{"role": "user", "content": "hi"}, {"id": "rs_1", "type": "reasoning", "summary": []}]);
    let ask = read(Wire::Responses, &asks(&before)).expect("readable");
    let mut counted = Counted::default();
    counted.remember(ask.conversation().expect("it is counted"), 700);
    let mut after = before.clone();
    after.as_array_mut().expect("a list").push(json!({"role": "user", "content": "more"}));
    let ask = read(Wire::Responses, &asks(&after)).expect("readable");
    let input = ask.bound(&LIST, today(), &counted).expect("priced").input;
    assert!((701..1_000).contains(&input), "{input}");
}
