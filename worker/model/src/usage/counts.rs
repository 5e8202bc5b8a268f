//! The fields of usage reports.
//!
//! Sources: `usage` at platform.claude.com/docs/en/api/messages (the cached classes are beside `input_tokens`), and at
//! platform.openai.com/docs/api-reference/chat/object and responses/object (they are within `prompt_tokens` and
//! `input_tokens`).

use serde_json::{Map, Value};

use super::Hosted;
use crate::prices::{CacheWrites, Tokens};
use crate::wire::{MAX_LIMIT, Wire};

/// The largest that was reported of each field.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub reported: bool,
    pub tier: Option<String>,
    pub region: Option<String>,
    pub hosted: Hosted,
    /// A field that counts something and is not known.
    pub unknown_field: Option<String>,
    /// Whether a count is larger than any can be.
    pub absurd: bool,
    input: u64,
    output: u64,
    total: u64,
    cache_read: u64,
    cache_write: u64,
    short: u64,
    long: u64,
}

impl Counts {
    pub fn read(&mut self, wire: Wire, usage: &Map<String, Value>) {
        self.reported = true;
        for (name, value) in usage.iter().filter(|(_, value)| !value.is_null()) {
            match wire {
                Wire::Messages => self.anthropic(name, value),
                Wire::Chat | Wire::Responses | Wire::Embeddings => self.openai(name, value),
            }
        }
    }

    /// Returns the tokens by class. `writes` says which cache writes were asked for, if a report does not.
    pub fn tokens(&self, wire: Wire, writes: CacheWrites) -> Tokens {
        let unsplit = self.cache_write.saturating_sub(self.short.saturating_add(self.long));
        let (short, long) = if writes == CacheWrites::Long { (0, unsplit) } else { (unsplit, 0) };
        let within =
            if wire == Wire::Messages { 0 } else { self.cache_read.saturating_add(self.cache_write) };
        Tokens {
            input: self.input.saturating_sub(within),
            output: self.output.max(self.total.saturating_sub(self.input)),
            cache_read: self.cache_read,
            cache_write: self.short.saturating_add(short),
            cache_write_long: self.long.saturating_add(long),
        }
    }

    fn anthropic(&mut self, name: &str, value: &Value) {
        match (name, value) {
            ("input_tokens", _) => self.count(name, value, |counts| &mut counts.input),
            ("output_tokens", _) => self.count(name, value, |counts| &mut counts.output),
            ("cache_read_input_tokens", _) => self.count(name, value, |counts| &mut counts.cache_read),
            ("cache_creation_input_tokens", _) => self.count(name, value, |counts| &mut counts.cache_write),
            ("cache_creation", Value::Object(parts)) => {
                for (part, value) in parts {
                    match part.as_str() {
                        "ephemeral_5m_input_tokens" => self.count(part, value, |counts| &mut counts.short),
                        "ephemeral_1h_input_tokens" => self.count(part, value, |counts| &mut counts.long),
                        _ => self.unknown(&format!("{name}.{part}"), value),
                    }
                }
            }
            ("server_tool_use", Value::Object(tools)) => {
                for (tool, value) in tools {
                    match tool.strip_suffix("_requests") {
                        // A fetch costs the tokens of what it finds, and these are input.
                        Some("web_fetch") => {}
                        Some(of) => {
                            if let Some(calls) = self.counted(tool, value) {
                                let most = self.hosted.entry(of.to_owned()).or_default();
                                *most = calls.max(*most);
                            }
                        }
                        None => self.unknown(&format!("{name}.{tool}"), value),
                    }
                }
            }
            ("speed", Value::String(speed)) => self.tier = Some(speed.clone()),
            ("inference_geo", Value::String(region)) => self.region = Some(region.clone()),
            // A priority tier is paid by its contract, never above the list price.
            ("service_tier", Value::String(_)) | ("output_tokens_details", _) => {}
            // One entry for each pass. What is no message (a compaction, an advisor) is not in the sums above.
            ("iterations", Value::Array(passes)) => {
                let is_message = |pass: &Value| pass.get("type").and_then(Value::as_str) == Some("message");
                if !passes.iter().all(is_message) {
                    self.unknown(name, value);
                }
            }
            _ => self.unknown(name, value),
        }
    }

    fn openai(&mut self, name: &str, value: &Value) {
        match (name, value) {
            ("prompt_tokens" | "input_tokens", _) => self.count(name, value, |counts| &mut counts.input),
            ("completion_tokens" | "output_tokens", _) => {
                self.count(name, value, |counts| &mut counts.output)
            }
            // What is in no other sum is billed as output, the dearest class.
            ("total_tokens", _) => self.count(name, value, |counts| &mut counts.total),
            ("prompt_tokens_details" | "input_tokens_details", Value::Object(parts)) => {
                for (part, value) in parts {
                    match part.as_str() {
                        "cached_tokens" => self.count(part, value, |counts| &mut counts.cache_read),
                        "cache_write_tokens" => self.count(part, value, |counts| &mut counts.cache_write),
                        "text_tokens" | "image_tokens" => {}
                        _ => self.unknown(&format!("{name}.{part}"), value),
                    }
                }
            }
            ("completion_tokens_details" | "output_tokens_details", Value::Object(parts)) => {
                for (part, value) in parts {
                    let known = [
                        "reasoning_tokens",
                        "text_tokens",
                        "accepted_prediction_tokens",
                        "rejected_prediction_tokens",
                    ];
                    if !known.contains(&part.as_str()) {
                        self.unknown(&format!("{name}.{part}"), value);
                    }
                }
            }
            _ => self.unknown(name, value),
        }
    }

    fn count(&mut self, name: &str, value: &Value, field: impl FnOnce(&mut Counts) -> &mut u64) {
        if let Some(count) = self.counted(name, value) {
            let most = field(self);
            *most = count.max(*most);
        }
    }

    /// Returns a count, if it is one that can be.
    fn counted(&mut self, name: &str, value: &Value) -> Option<u64> {
        let count = value.as_u64();
        if count.is_none() {
            self.unknown_field.get_or_insert_with(|| name.to_owned());
        }
        self.absurd |= count.is_some_and(|count| count > MAX_LIMIT);
        count.filter(|count| *count <= MAX_LIMIT)
    }

    /// A field that is not known costs, unless it counts nothing.
    fn unknown(&mut self, name: &str, value: &Value) {
        if counts_something(value) && self.unknown_field.is_none() {
            self.unknown_field = Some(name.to_owned());
        }
    }
}

fn counts_something(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => false,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::Array(items) => items.iter().any(counts_something),
        Value::Object(members) => members.values().any(counts_something),
    }
}
