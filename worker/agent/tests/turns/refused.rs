//! What Messages refuses of texts, of thinking at the end and of the ids of calls.

use std::collections::BTreeSet;

use serde_json::Value;

/// Checks texts, which may not be empty, the last block of an answer, and ids, which are of few letters and each once
/// in a request.
pub fn of_messages(request: &Value) -> Result<(), String> {
    let messages = request["messages"].as_array().into_iter().flatten();
    let mut ids = BTreeSet::new();
    for (at, message) in messages.enumerate() {
        let blocks = message["content"].as_array();
        if blocks.and_then(|blocks| blocks.last()).is_some_and(|last| last["type"] == "thinking") {
            return Err(format!(
                "messages.{at}: The final block in an assistant message cannot be `thinking`."
            ));
        }
        for block in blocks.into_iter().flatten() {
            let inner = block["content"].as_array().into_iter().flatten();
            if inner.chain([block]).any(|block| block["type"] == "text" && is_blank(&block["text"])) {
                return Err(format!("messages.{at}: text content blocks must be non-empty"));
            }
            if block["type"] != "tool_use" {
                continue;
            }
            let (id, name) = (&block["id"], &block["name"]);
            if !is_name(id) || !is_name(name) {
                let pattern = "String should match pattern '^[a-zA-Z0-9_-]+$'";
                return Err(format!("messages.{at}: {id} {name}: {pattern}"));
            }
            if !ids.insert(id.to_string()) {
                return Err(format!("messages.{at}: `tool_use` ids must be unique"));
            }
        }
    }
    Ok(())
}

fn is_blank(text: &Value) -> bool {
    text.as_str().is_none_or(|text| text.trim().is_empty())
}

fn is_name(name: &Value) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    name.as_str().is_some_and(|name| !name.is_empty() && name.chars().all(fits))
}
