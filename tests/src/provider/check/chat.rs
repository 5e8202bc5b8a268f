//! What Chat Completions refuses.
//!
//! Sources, at developers.openai.com/api/docs: "Chat Completions" of the API reference (fields, roles), "Function calling"
//! (calls and their results), "Error codes".

use std::collections::BTreeSet;

use serde_json::Value;

use super::{strange, tools};
use crate::provider::price::Model;
use crate::provider::wire::Refusal;

const FIELDS: [&str; 37] = [
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "messages",
    "metadata",
    "modalities",
    "model",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
];
const ROLES: [&str; 6] = ["assistant", "developer", "function", "system", "tool", "user"];

pub(super) fn check(request: &Value, model: &Model) -> Result<(), Refusal> {
    let fields = request.as_object().ok_or_else(|| Refusal::invalid("We could not parse your request."))?;
    if let Some(name) = strange(fields, &FIELDS).next() {
        return Err(Refusal::invalid(format!("Unrecognized request argument supplied: {name}")));
    }
    for name in ["max_tokens", "max_completion_tokens"] {
        limit(request, name, model)?;
    }
    tools::of_openai(request, Some("function"))?;
    let Some(messages) = request["messages"].as_array() else {
        let refused = Refusal::invalid("Missing required parameter: 'messages'.").param("messages");
        return Err(refused.code("missing_required_parameter"));
    };
    if messages.is_empty() {
        let problem = "Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array instead.";
        return Err(Refusal::invalid(problem).param("messages").code("empty_array"));
    }
    let mut open: BTreeSet<&str> = BTreeSet::new();
    for (at, message) in messages.iter().enumerate() {
        let role = message["role"].as_str().unwrap_or_default();
        if !ROLES.contains(&role) {
            let problem = format!(
                "Invalid value: '{role}'. Supported values are: 'system', 'assistant', 'user', 'function', 'tool', and 'developer'."
            );
            return Err(Refusal::invalid(problem)
                .param(format!("messages[{at}].role"))
                .code("invalid_value"));
        }
        let calls = message["tool_calls"].as_array().filter(|_| role == "assistant");
        if message["content"].is_null() && calls.is_none_or(Vec::is_empty) && message["refusal"].is_null() {
            let problem =
                format!("Invalid value for 'content': expected a string, got null in messages[{at}].");
            return Err(Refusal::invalid(problem).param(format!("messages[{at}].content")));
        }
        if role == "tool" {
            let id = message["tool_call_id"].as_str().unwrap_or_default();
            if !open.remove(id) {
                let problem =
                    "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.";
                let place = format!("messages.[{at}].role");
                return Err(Refusal::invalid(format!("Invalid parameter: {problem}")).param(place));
            }
            continue;
        }
        unanswered(at, &open)?;
        open = calls.into_iter().flatten().filter_map(|call| call["id"].as_str()).collect();
    }
    unanswered(messages.len(), &open)
}

fn unanswered(at: usize, open: &BTreeSet<&str>) -> Result<(), Refusal> {
    if open.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = open.iter().copied().collect();
    let problem = format!(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. The following tool_call_ids did not have response messages: {}",
        ids.join(", ")
    );
    Err(Refusal::invalid(problem).param(format!("messages.[{at}].role")))
}

/// Checks a limit of output.
pub(super) fn limit(request: &Value, name: &str, model: &Model) -> Result<(), Refusal> {
    let limit = &request[name];
    if limit.is_null() {
        return Ok(());
    }
    match limit.as_u64() {
        Some(limit) if (1..=model.max_output).contains(&limit) => Ok(()),
        Some(0) | None => {
            let problem =
                format!("Invalid '{name}': expected an integer of at least 1, got {limit} instead.");
            Err(Refusal::invalid(problem).param(name).code("integer_below_min_value"))
        }
        Some(limit) => {
            let problem = format!(
                "{name} is too large: {limit}. This model supports at most {} completion tokens, whereas you provided {limit}.",
                model.max_output
            );
            Err(Refusal::invalid(problem).param(name).code("invalid_value"))
        }
    }
}
