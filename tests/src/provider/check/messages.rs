//! What Messages refuses.
//!
//! Sources, at platform.claude.com/docs: "Messages" of the API reference (fields, roles, limits, prefill), "Errors" (shape,
//! sizes), "How to implement tool use" and "Handling tool results" (calls and results), "Extended thinking" (signatures,
//! rounds of tools, budgets), "Prompt caching" (marks), "Context windows" (overflow). Two rules are in no page: a
//! text of white space is refused in every role (github.com/home-assistant/core/issues/175637), and so is thinking
//! at the end of an answer (github.com/tailcallhq/forgecode/issues/3071). The fields are those of the official SDKs
//! for Python of November 2026, and those that older ones had.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Against, strange, tools};
use crate::provider::price::Model;
use crate::provider::request::Asking;
use crate::provider::seal::{Prefix, is_thinking};
use crate::provider::wire::{Refusal, Speaks};

const FIELDS: [&str; 26] = [
    "cache_control",
    "container",
    "context_management",
    "diagnostics",
    "fallbacks",
    "inference_geo",
    "max_tokens",
    "mcp_servers",
    "messages",
    "metadata",
    "model",
    "output_config",
    "output_format",
    "service_tier",
    "speed",
    "stop_sequences",
    "stream",
    "system",
    "temperature",
    "thinking",
    "tool_choice",
    "tools",
    "top_k",
    "top_p",
    "user_profile_id",
    "workspace_id",
];
const MOST_MARKS: usize = 4;

pub(super) fn check(request: &Value, model: &Model, against: &Against<'_>) -> Result<(), Refusal> {
    let fields = request.as_object().ok_or_else(|| Refusal::invalid("Input should be a valid dictionary"))?;
    if let Some(name) = strange(fields, &FIELDS).next() {
        return Err(Refusal::invalid(format!("{name}: Extra inputs are not permitted")));
    }
    if !against.counts_only {
        limits(request, model)?;
    }
    tools::of_messages(request)?;
    let system = &request["system"];
    if system == "" || system.as_array().is_some_and(|blocks| blocks.iter().any(|block| block["text"] == ""))
    {
        return Err(Refusal::invalid("system: text content blocks must be non-empty"));
    }
    let Some(messages) = request["messages"].as_array() else {
        return Err(Refusal::invalid("messages: Field required"));
    };
    if messages.is_empty() {
        return Err(Refusal::invalid("messages: at least one message is required"));
    }
    for (at, message) in messages.iter().enumerate() {
        shape(at, message, at + 1 == messages.len())?;
    }
    if messages[0]["role"] == "assistant" {
        return Err(Refusal::invalid("messages: first message must use the \"user\" role"));
    }
    prefill(request, messages)?;
    marks(request)?;
    calls(messages)?;
    thinking(request, messages, against)
}

fn limits(request: &Value, model: &Model) -> Result<(), Refusal> {
    let limit = match &request["max_tokens"] {
        Value::Null => return Err(Refusal::invalid("max_tokens: Field required")),
        limit => limit.as_u64().filter(|limit| *limit > 0),
    };
    let Some(limit) = limit else {
        return Err(Refusal::invalid("max_tokens: Input should be greater than or equal to 1"));
    };
    if limit > model.max_output {
        let problem = format!(
            "max_tokens: {limit} > {}, which is the maximum allowed number of output tokens for {}",
            model.max_output,
            request["model"].as_str().unwrap_or_default()
        );
        return Err(Refusal::invalid(problem));
    }
    if request["temperature"].as_f64().is_some_and(|heat| !(0.0..=1.0).contains(&heat)) {
        return Err(Refusal::invalid("temperature: range: 0..1"));
    }
    if let Some(name) =
        request["metadata"].as_object().and_then(|data| data.keys().find(|name| *name != "user_id"))
    {
        return Err(Refusal::invalid(format!("metadata.{name}: Extra inputs are not permitted")));
    }
    let thinking = &request["thinking"];
    if thinking["type"] == "enabled" {
        let budget = thinking["budget_tokens"].as_u64();
        let Some(budget) = budget else {
            return Err(Refusal::invalid("thinking.enabled.budget_tokens: Field required"));
        };
        if budget < 1_024 {
            let problem = "thinking.enabled.budget_tokens: Input should be greater than or equal to 1024";
            return Err(Refusal::invalid(problem));
        }
        if budget >= limit {
            return Err(Refusal::invalid("`max_tokens` must be greater than `thinking.budget_tokens`"));
        }
        if matches!(request["tool_choice"]["type"].as_str(), Some("any" | "tool")) {
            return Err(Refusal::invalid("Thinking may not be enabled when tool_choice forces tool use."));
        }
    }
    Ok(())
}

/// Checks a message alone.
fn shape(at: usize, message: &Value, is_last: bool) -> Result<(), Refusal> {
    let role = message["role"].as_str().unwrap_or_default();
    if !["user", "assistant", "system"].contains(&role) {
        let problem = format!("messages.{at}.role: Input should be 'user', 'assistant' or 'system'");
        return Err(Refusal::invalid(problem));
    }
    // What it may hold beside its text is not documented; Claude Code sends an `output_config`.
    if role == "system" {
        return Ok(());
    }
    if let Some(name) = message.as_object().and_then(|message| strange(message, &["role", "content"]).next())
    {
        return Err(Refusal::invalid(format!("messages.{at}.{name}: Extra inputs are not permitted")));
    }
    let may_be_empty = is_last && role == "assistant";
    let empty = format!(
        "messages.{at}: all messages must have non-empty content except for the optional final assistant message"
    );
    match &message["content"] {
        Value::String(text) if text.is_empty() && !may_be_empty => Err(Refusal::invalid(empty)),
        Value::Array(blocks) if blocks.is_empty() && !may_be_empty => Err(Refusal::invalid(empty)),
        Value::String(_) => Ok(()),
        Value::Array(blocks) => {
            let mut blocks = blocks.iter().enumerate();
            blocks.try_for_each(|(block, content)| {
                self::block(&format!("messages.{at}.content.{block}"), role, content)
            })?;
            ends(at, message)
        }
        _ => Err(Refusal::invalid(format!("messages.{at}.content: Field required"))),
    }
}

/// Checks that something follows each thought of a message.
fn ends(at: usize, message: &Value) -> Result<(), Refusal> {
    match blocks(message).last().filter(|last| is_thinking(last)) {
        Some(last) => Err(Refusal::invalid(format!(
            "messages.{at}: The final block in an assistant message cannot be `{}`.",
            last["type"].as_str().unwrap_or_default()
        ))),
        None => Ok(()),
    }
}

/// Checks a block alone.
fn block(place: &str, role: &str, block: &Value) -> Result<(), Refusal> {
    let Some(kind) = block["type"].as_str() else {
        return Err(Refusal::invalid(format!("{place}.type: Field required")));
    };
    let known: &[&str] = match kind {
        "text" => &["type", "text", "cache_control", "citations"],
        "tool_use" => &["type", "id", "name", "input", "cache_control", "caller", "toolset_name"],
        "tool_result" => &["type", "tool_use_id", "content", "is_error", "cache_control", "toolset_name"],
        "thinking" => &["type", "thinking", "signature"],
        "redacted_thinking" => &["type", "data"],
        _ => return Ok(()),
    };
    if let Some(name) = block.as_object().and_then(|block| strange(block, known).next()) {
        return Err(Refusal::invalid(format!("{place}.{kind}.{name}: Extra inputs are not permitted")));
    }
    let required = |name: &str| match &block[name] {
        Value::String(text) => Ok(text.as_str()),
        _ => Err(Refusal::invalid(format!("{place}.{kind}.{name}: Field required"))),
    };
    let only = |expected: &str| match role == expected {
        true => Ok(()),
        false => {
            Err(Refusal::invalid(format!("{place}: `{kind}` blocks can only be in `{expected}` messages")))
        }
    };
    match kind {
        "text" => match required("text")? {
            "" => Err(Refusal::invalid(format!("{place}: text content blocks must be non-empty"))),
            text if text.trim().is_empty() => Err(Refusal::invalid(format!(
                "{place}: text content blocks must contain non-whitespace text"
            ))),
            _ => Ok(()),
        },
        "tool_use" => {
            only("assistant")?;
            let (id, name) = (required("id")?, required("name")?);
            if !super::is_name(id, 256) {
                let problem = "String should match pattern '^[a-zA-Z0-9_-]+$'";
                return Err(Refusal::invalid(format!("{place}.tool_use.id: {problem}")));
            }
            if name.is_empty() || !block["input"].is_object() {
                let problem = "tool_use.input: Input should be a valid dictionary";
                return Err(Refusal::invalid(format!("{place}.{problem}")));
            }
            Ok(())
        }
        "tool_result" => {
            only("user")?;
            required("tool_use_id")?;
            let content = block["content"].as_array().into_iter().flatten();
            let mut empty = content.filter(|inner| inner["type"] == "text" && inner["text"] == "");
            match empty.next() {
                Some(_) => Err(Refusal::invalid(format!(
                    "{place}.tool_result: text content blocks must be non-empty"
                ))),
                None => Ok(()),
            }
        }
        "thinking" => {
            only("assistant")?;
            required("thinking").and(required("signature")).map(drop)
        }
        _ => only("assistant").and(required("data").map(drop)),
    }
}

/// Models since Claude Opus 4.6 do not continue an answer that the request begins.
fn prefill(request: &Value, messages: &[Value]) -> Result<(), Refusal> {
    let last = messages.last().filter(|last| last["role"] == "assistant");
    let Some(last) = last else { return Ok(()) };
    let paused = last["content"].as_array().is_some_and(|blocks| {
        blocks
            .last()
            .is_some_and(|block| !["text", "tool_use"].contains(&block["type"].as_str().unwrap_or("text")))
    });
    let old = request["model"].as_str().is_some_and(|model| model.starts_with("claude-haiku-4-5"));
    if !old
        && !paused
        && !last["content"].as_array().is_some_and(|blocks| blocks.iter().any(|b| b["type"] == "tool_use"))
    {
        let problem = "This model does not support assistant message prefill. The conversation must end with a user message.";
        return Err(Refusal::invalid(problem));
    }
    let text = match &last["content"] {
        Value::Array(blocks) => blocks.last().map_or("", |block| block["text"].as_str().unwrap_or_default()),
        content => content.as_str().unwrap_or_default(),
    };
    if text.ends_with(char::is_whitespace) {
        let problem = "messages: final assistant content cannot end with trailing whitespace";
        return Err(Refusal::invalid(problem));
    }
    Ok(())
}

fn marks(request: &Value) -> Result<(), Refusal> {
    let asking = Asking::read(Speaks::Messages, &request.to_string(), request.clone());
    let marks = asking.marks().len();
    match marks > MOST_MARKS {
        true => Err(Refusal::invalid(format!(
            "A maximum of {MOST_MARKS} blocks with cache_control may be provided. Found {marks}."
        ))),
        false => Ok(()),
    }
}

/// Checks that each call has one result in the next message, before anything else there, and each result a call.
fn calls(messages: &[Value]) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&str> = Vec::new();
    for (at, message) in messages.iter().enumerate() {
        let blocks = blocks(message);
        let results = blocks.iter().take_while(|block| block["type"] == "tool_result").count();
        let mut answered = BTreeSet::new();
        for (place, block) in blocks.iter().enumerate() {
            let id = block["tool_use_id"].as_str().unwrap_or_default();
            if block["type"] != "tool_result" {
                continue;
            }
            if !open.contains(&id) {
                return Err(Refusal::invalid(format!(
                    "messages.{at}.content.{place}: unexpected `tool_use_id` found in `tool_result` blocks: {id}. Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
                )));
            }
            if place < results && !answered.insert(id) {
                return Err(Refusal::invalid(format!(
                    "messages.{at}.content.{place}: each tool_use must have a single result. Found multiple `tool_result` blocks with id: {id}"
                )));
            }
        }
        missing(at, &open, &answered)?;
        open.clear();
        for (place, block) in blocks.iter().enumerate().filter(|(_, block)| block["type"] == "tool_use") {
            let id = block["id"].as_str().unwrap_or_default();
            if !seen.insert(id) {
                let problem = format!("messages.{at}.content.{place}: `tool_use` ids must be unique");
                return Err(Refusal::invalid(problem));
            }
            open.push(id);
        }
    }
    missing(messages.len(), &open, &BTreeSet::new())
}

fn missing(at: usize, open: &[&str], answered: &BTreeSet<&str>) -> Result<(), Refusal> {
    let without: Vec<&str> = open.iter().filter(|id| !answered.contains(*id)).copied().collect();
    match without.is_empty() {
        true => Ok(()),
        false => Err(Refusal::invalid(format!(
            "messages.{}: `tool_use` ids were found without `tool_result` blocks immediately after: {}. Each `tool_use` block must have a corresponding `tool_result` block in the next message.",
            at.saturating_sub(1),
            without.join(", ")
        ))),
    }
}

fn blocks(message: &Value) -> &[Value] {
    message["content"].as_array().map_or(&[], Vec::as_slice)
}

/// Whether a message of the user is more than results of tools, so that it begins a turn.
fn opens_a_turn(message: &Value) -> bool {
    message["role"] == "user" && !blocks(message).iter().any(|block| block["type"] == "tool_result")
}

/// Checks that signed thinking stands where it was thought, and that the turn that is open still has its own.
fn thinking(request: &Value, messages: &[Value], against: &Against<'_>) -> Result<(), Refusal> {
    let began = messages.iter().rposition(opens_a_turn).unwrap_or(0);
    let mut prefix = Prefix::head(request);
    for (at, message) in messages.iter().enumerate() {
        for (place, block) in blocks(message).iter().enumerate() {
            let thought = match block["type"].as_str() {
                Some("thinking") => (block["thinking"].as_str(), block["signature"].as_str()),
                Some("redacted_thinking") => (Some(""), block["data"].as_str()),
                _ => continue,
            };
            let (Some(text), Some(signature)) = thought else { continue };
            let signed = |model: &str| prefix.sign(model, text) == signature;
            if !against.models.names().any(signed) {
                let kind = block["type"].as_str().unwrap_or_default();
                return Err(Refusal::invalid(format!(
                    "messages.{at}.content.{place}: Invalid `signature` in `{kind}` block"
                )));
            }
        }
        let dropped = at > began
            && request["thinking"]["type"] != "disabled"
            && !blocks(message).iter().any(is_thinking)
            && calls_of(message).any(|id| against.memory.thought_before(id));
        if dropped {
            return Err(Refusal::invalid(format!(
                "messages.{at}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{}`. When `thinking` is enabled, a final `assistant` message must start with a thinking block (preceeding the lastmost set of `tool_use` and `tool_result` blocks).",
                blocks(message)[0]["type"].as_str().unwrap_or_default()
            )));
        }
        prefix.message(message);
    }
    Ok(())
}

fn calls_of(message: &Value) -> impl Iterator<Item = &str> {
    let calls = blocks(message).iter().filter(|block| block["type"] == "tool_use");
    calls.filter_map(|block| block["id"].as_str())
}
