//! Signatures of thinking.
//!
//! A signature is an HMAC over what the model had before it when it thought (tools, system prompt, all messages, without
//! earlier thinking and cache marks) and over the thought. So a thought that was altered, or that stands behind anything
//! that was changed, is found. It is an HMAC of the meaning: other letters for the same JSON are a finding, no refusal.
//! The encrypted content of a reasoning item of Responses is such a signature.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

const KEY: &[u8] = b"the double's own";

/// What a model has before it.
#[derive(Clone)]
pub(super) struct Prefix(Hmac<Sha256>);

impl Prefix {
    /// Begins with the head of a request.
    pub fn head(request: &Value) -> Prefix {
        let mut prefix = Prefix(Hmac::new_from_slice(KEY).expect("a key of any length"));
        prefix.add(&meaning(&request["tools"]));
        let system = if request["input"].is_null() { &request["system"] } else { &request["instructions"] };
        prefix.add(&meaning(&blocks(system)));
        prefix
    }

    /// Adds a message, or an item that is no reasoning.
    pub fn message(&mut self, message: &Value) {
        if message["type"] != "reasoning" {
            self.add(&meaning(message));
        }
    }

    /// Returns the signature of a thought of this model.
    pub fn sign(&self, model: &str, thought: &str) -> String {
        let mut signed = self.clone();
        signed.add(model);
        signed.add(thought);
        BASE64_STANDARD.encode(signed.0.finalize().into_bytes())
    }

    fn add(&mut self, text: &str) {
        self.0.update(&(text.len() as u64).to_be_bytes());
        self.0.update(text.as_bytes());
    }
}

/// Returns the prefix before an answer to this request.
pub(super) fn before_answer(request: &Value) -> Prefix {
    let mut prefix = Prefix::head(request);
    let said = if request["input"].is_null() { &request["messages"] } else { &request["input"] };
    for message in said.as_array().into_iter().flatten() {
        prefix.message(message);
    }
    prefix
}

/// Returns what a part of a conversation means, whatever its letters: keys in one order, without cache marks and
/// thinking, a text as the block that it stands for.
pub(super) fn meaning(part: &Value) -> String {
    let Value::Object(members) = part else {
        return match part {
            Value::Array(parts) => format!("[{}]", parts.iter().map(meaning).collect::<Vec<_>>().join(",")),
            other => other.to_string(),
        };
    };
    let mut members = members.clone();
    members.remove("cache_control");
    if let Some(content) = members.get_mut("content") {
        let mut said = blocks(content);
        if let Value::Array(said) = &mut said {
            said.retain(|block| !is_thinking(block));
            for block in said {
                if let Value::Object(block) = block {
                    block.remove("cache_control");
                }
            }
        }
        *content = said;
    }
    Value::Object(members).to_string()
}

/// Whether a block is a thought.
pub(super) fn is_thinking(block: &Value) -> bool {
    matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))
}

fn blocks(content: &Value) -> Value {
    match content {
        Value::String(text) => json!([{"type": "text", "text": text}]),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_holds_for_the_same_meaning_and_for_no_other() {
        let request = |system: &str, said: Value| json!({"system": system, "tools": [{"name": "t"}], "messages": [{"role": "user", "content": said}]});
        let signed = |request: &Value, thought: &str| before_answer(request).sign("m", thought);
        let first = request("s", json!("hello"));
        let same =
            request("s", json!([{"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]));
        assert_eq!(signed(&first, "so"), signed(&same, "so"));
        for other in [request("t", json!("hello")), request("s", json!("hello!"))] {
            assert_ne!(signed(&first, "so"), signed(&other, "so"));
        }
        assert_ne!(signed(&first, "so"), signed(&first, "No"));
        assert_ne!(before_answer(&first).sign("n", "so"), signed(&first, "so"));
    }
}
