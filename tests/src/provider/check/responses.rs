//! What Responses refuses.
//!
//! Sources, at developers.openai.com/api/docs: "Responses" of the API reference (fields, items), "Function calling" (calls
//! and their outputs), "Reasoning models" (items of reasoning, encrypted content), "Error codes". The words about reasoning
//! are those of github.com/openai/openai-agents-python/issues/919 and github.com/Wei-Shaw/sub2api/issues/3138.

use std::collections::BTreeSet;

use serde_json::Value;

use super::chat::limit;
use super::{Against, strange, tools};
use crate::provider::price::Model;
use crate::provider::seal::Prefix;
use crate::provider::wire::Refusal;

const FIELDS: [&str; 36] = [
    "access_programs",
    "background",
    "background_options",
    "context_management",
    "conversation",
    "image",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "moderation",
    "multi_agent",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
    "verbosity",
];

pub(super) fn check(request: &Value, model: &Model, against: &Against<'_>) -> Result<(), Refusal> {
    let fields = request.as_object().ok_or_else(|| Refusal::invalid("We could not parse your request."))?;
    if let Some(name) = strange(fields, &FIELDS).next() {
        let refused = Refusal::invalid(format!("Unknown parameter: '{name}'.")).param(name);
        return Err(refused.code("unknown_parameter"));
    }
    limit(request, "max_output_tokens", model)?;
    tools::of_openai(request, None)?;
    let items = match &request["input"] {
        Value::String(_) => return Ok(()),
        Value::Array(items) => items,
        _ => {
            let refused = Refusal::invalid("Missing required parameter: 'input'.").param("input");
            return Err(refused.code("missing_required_parameter"));
        }
    };
    // What the provider keeps itself may hold the calls.
    if !request["previous_response_id"].is_null() || !request["conversation"].is_null() {
        return Ok(());
    }
    reasoning(request, items, against)?;
    let (mut calls, mut outputs) = (BTreeSet::new(), BTreeSet::new());
    for (at, item) in items.iter().enumerate() {
        let id = item["call_id"].as_str().unwrap_or_default();
        match item["type"].as_str() {
            Some("function_call") => {
                calls.insert(id);
            }
            Some("function_call_output") => {
                if !calls.contains(id) {
                    let problem = format!("No tool call found for function call output with call_id {id}.");
                    return Err(Refusal::invalid(problem).param("input"));
                }
                outputs.insert(id);
            }
            Some("reasoning") if !items.get(at + 1).is_some_and(is_said) => {
                let id = item["id"].as_str().unwrap_or_default();
                let problem = format!(
                    "Item '{id}' of type 'reasoning' was provided without its required following item."
                );
                return Err(Refusal::invalid(problem).param("input"));
            }
            _ => {}
        }
    }
    match calls.difference(&outputs).next() {
        Some(id) => {
            let problem = format!("No tool output found for function call {id}.");
            Err(Refusal::invalid(problem).param("input"))
        }
        None => Ok(()),
    }
}

/// Whether the model has said an item.
fn is_said(item: &Value) -> bool {
    item["role"] == "assistant"
        || !matches!(item["type"].as_str(), None | Some("message" | "function_call_output"))
}

/// Checks that reasoning is whole and stands where it was thought, and that no call stands without its own.
fn reasoning(request: &Value, items: &[Value], against: &Against<'_>) -> Result<(), Refusal> {
    let mut prefix = Prefix::head(request);
    let mut ids = BTreeSet::new();
    let mut thought = false;
    for item in items {
        let id = item["id"].as_str();
        if let Some(id) = id.filter(|id| !ids.insert(*id)) {
            let problem = format!(
                "Duplicate item found with id {id}. Remove duplicate items from your input and try again."
            );
            return Err(Refusal::invalid(problem).param("input"));
        }
        thought = is_said(item) && (thought || item["type"] == "reasoning");
        if item["type"] == "reasoning" {
            sealed(request, item, &prefix, against)?;
        }
        let call = item["call_id"].as_str().filter(|_| item["type"] == "function_call" && !thought);
        // Without an id it is a call of any other conversation.
        if let (Some(id), Some(true)) = (id, call.map(|call| against.memory.thought_before(call))) {
            let problem = format!(
                "Item '{id}' of type 'function_call' was provided without its required 'reasoning' item."
            );
            return Err(Refusal::invalid(problem).param("input"));
        }
        prefix.message(item);
    }
    Ok(())
}

fn sealed(request: &Value, item: &Value, prefix: &Prefix, against: &Against<'_>) -> Result<(), Refusal> {
    let id = item["id"].as_str().unwrap_or_default();
    let Some(seal) = item["encrypted_content"].as_str() else {
        let is_stored = request["store"] != false;
        let problem = format!(
            "Item with id '{id}' not found. Items are not persisted when `store` is set to false. Try again with `store` set to true, or remove this item from your input."
        );
        return if is_stored { Ok(()) } else { Err(Refusal::new(404, problem).param("input")) };
    };
    let text = item["summary"][0]["text"].as_str().unwrap_or_default();
    if against.models.names().any(|model| prefix.sign(model, text) == seal) {
        return Ok(());
    }
    let problem = format!(
        "The encrypted content for item {id} could not be verified. Reason: Encrypted content could not be decrypted or parsed."
    );
    Err(Refusal::invalid(problem).code("invalid_encrypted_content"))
}
