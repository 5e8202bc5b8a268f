//! Tools that the provider runs.

use super::*;

#[test]
fn hosted_tools_are_refused_without_a_cap_per_call() {
    for kind in [
        "web_search_20250305",
        "web_fetch_20250910",
        "code_execution_20250825",
        "advisor_20260301",
        "unheard_of",
    ] {
        let request = with(&message("claude-opus-5"), "tools", json!([{"type": kind, "name": "x"}]));
        let error = read(Wire::Messages, &request).expect_err(kind);
        assert!(error.to_string().contains(kind), "{error}");
    }
    for (kind, setting) in
        [("web_search", "web_searches_per_call"), ("file_search", "file_searches_per_call")]
    {
        let request =
            json!({"model": "gpt-6-sol", "input": "x", "max_tool_calls": 1, "tools": [{"type": kind}]});
        let error = read(Wire::Responses, &request).expect_err(kind);
        assert!(error.to_string().contains(setting), "{error}");
    }
    for kind in ["web_search", "file_search", "code_interpreter", "image_generation", "mcp", "unheard_of"] {
        let request = json!({"model": "gpt-6-sol", "input": "x", "tools": [{"type": kind}]});
        assert_eq!(refused(Wire::Responses, &request), "tools", "{kind}");
    }
    assert_eq!(
        refused(Wire::Chat, &with(&chat("m"), "web_search_options", json!({"a": 1}))),
        "web_search_options"
    );
    assert_eq!(
        refused(Wire::Messages, &with(&message("m"), "mcp_servers", json!([{"url": "x"}]))),
        "mcp_servers"
    );
    assert_eq!(
        refused(Wire::Responses, &json!({"model": "m", "input": "x", "background": true})),
        "background"
    );
    let compacts = json!({"edits": [{"type": "compact_20260112"}]});
    assert_eq!(
        refused(Wire::Messages, &with(&message("m"), "context_management", compacts)),
        "context_management"
    );
    let sound = json!([{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "A"}}]}]);
    assert_eq!(refused(Wire::Chat, &with(&chat("m"), "messages", sound)), "input_audio");
    let own = json!([{"name": "f", "input_schema": {}}, {"type": "custom", "name": "g"}, {"type": "bash_20250124", "name": "bash"}]);
    assert!(read(Wire::Messages, &with(&message("m"), "tools", own)).is_ok());
}

#[test]
fn a_hosted_tool_is_found_wherever_a_request_brings_it() {
    let hosted = json!([{"type": "code_interpreter", "container": {"type": "auto"}}]);
    let own = json!([{"type": "function", "name": "f", "parameters": {}}]);
    let request = |tools: &Value, item: &Value| json!({"model": "gpt-6-sol", "max_output_tokens": 9, "tools": tools, "input": [{"role": "user", "content": "Hi."}, item]});
    let within = |tools: &Value| json!([{"type": "namespace", "name": "n", "tools": tools}]);
    let brought = |tools: &Value| json!({"type": "tool_search_output", "tools": tools});
    assert!(read(Wire::Responses, &request(&within(&own), &brought(&own))).is_ok());
    for request in [
        request(&within(&hosted), &brought(&own)),
        request(&own, &brought(&hosted)),
        request(&own, &brought(&within(&hosted))),
    ] {
        assert_eq!(refused(Wire::Responses, &request), "tools", "{request}");
    }
}

#[test]
fn a_capped_search_is_reserved_with_its_fees_and_the_input_of_each_pass() {
    let caps = HostedCaps { web_search: 3, ..HostedCaps::default() };
    let read = |tool: Value| {
        let request = with(&message("claude-haiku-4-5"), "tools", json!([tool]));
        Wire::Messages.read(request.to_string().as_bytes(), caps)
    };
    let search = |uses: Value| json!({"type": "web_search_20250305", "name": "web_search", "max_uses": uses});
    assert!(read(search(json!(4))).is_err());
    assert!(read(search(Value::Null)).is_err());
    let ask = read(search(json!(2))).expect("within the cap");
    let bound = ask.bound(&LIST, today(), &Counted::default()).expect("priced");
    assert_eq!((bound.input, bound.output), (600_000, 300));
    assert_eq!(bound.cost.micros(), 600_000 + 300 * 5 + 20_000);
}

#[test]
fn a_search_that_runs_code_is_refused_unless_only_the_model_may_call_it() {
    let caps = HostedCaps { web_search: 3, ..HostedCaps::default() };
    let read = |kind: &str, callers: Value| {
        let tool = json!({"type": kind, "name": "web_search", "max_uses": 1, "allowed_callers": callers});
        let request = with(&message("claude-opus-5"), "tools", json!([tool]));
        Wire::Messages.read(request.to_string().as_bytes(), caps)
    };
    for kind in ["web_search_20260209", "web_search_20260318"] {
        for callers in [Value::Null, json!([]), json!(["direct", "code_execution_20260120"])] {
            let error = read(kind, callers).expect_err(kind).to_string();
            assert!(error.contains(kind) && error.contains("\"allowed_callers\": [\"direct\"]"), "{error}");
        }
        assert!(read(kind, json!(["direct"])).is_ok(), "{kind}");
    }
}

#[test]
fn code_at_the_provider_is_refused_whatever_is_allowed_because_its_time_has_no_bound() {
    let caps = HostedCaps { web_search: 9, file_search: 9 };
    let refused = |wire: Wire, request: Value| {
        wire.read(request.to_string().as_bytes(), caps).expect_err("refused").to_string()
    };
    for kind in ["code_execution_20250522", "code_execution_20250825", "code_execution_20260120"] {
        let tools = json!([{"type": kind, "name": "code_execution"}]);
        let error = refused(Wire::Messages, with(&message("claude-opus-5"), "tools", tools));
        assert!(error.starts_with(&format!("tools: `{kind}` is billed by the time")), "{error}");
    }
    for tool in [
        json!({"type": "code_interpreter", "container": {"type": "auto", "memory_limit": "1g"}}),
        json!({"type": "shell", "environment": {"type": "container_auto"}}),
    ] {
        let request = json!({"model": "gpt-6-sol", "input": "x", "max_tool_calls": 1, "tools": [tool]});
        let error = refused(Wire::Responses, request);
        assert!(error.contains("is billed by the time"), "{error}");
    }
}

#[test]
fn searches_in_the_web_and_in_files_share_one_limit_and_the_dearest_fee_is_held() {
    let caps = HostedCaps { web_search: 3, file_search: 5 };
    let read = |kinds: &[&str], most: Value| {
        let tools: Vec<Value> = kinds.iter().map(|kind| json!({"type": kind})).collect();
        let request = json!({"model": "gpt-6-sol", "input": "x", "max_output_tokens": 100, "max_tool_calls": most, "tools": tools});
        Wire::Responses.read(request.to_string().as_bytes(), caps)
    };
    let refused = |kinds: &[&str], most: Value| read(kinds, most).expect_err("refused").to_string();
    let both = ["file_search", "web_search"];
    assert!(refused(&both, json!(4)).contains("`web_search` needs `max_tool_calls` of at most 3"));
    assert!(refused(&both[..1], json!(6)).contains("`file_search` needs `max_tool_calls` of at most 5"));
    assert!(refused(&both[..1], Value::Null).contains("`file_searches_per_call`"));
    let bound = |kinds: &[&str], most: u64| {
        let ask = read(kinds, json!(most)).expect("within the caps");
        assert_eq!(ask.conversation(), None, "its tokens say nothing about the next request");
        ask.bound(&LIST, today(), &Counted::default()).expect("priced")
    };
    let (files, all) = (bound(&both[..1], 2), bound(&both, 2));
    assert_eq!((files.input, files.output), (3 * 1_050_000, 300), "the whole window, for each pass");
    assert_eq!(all.cost.micros() - files.cost.micros(), 2 * 10_000 - 2 * 2_500);
    // A capped tool on a wire that does not have it is none.
    let chat = with(&chat("gpt-6-sol"), "tools", json!([{"type": "file_search"}]));
    assert!(Wire::Chat.read(chat.to_string().as_bytes(), caps).is_err());
}
