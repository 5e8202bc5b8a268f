//! Anthropic's Messages: an answer of content blocks.
//!
//! Every block goes back as it came, also one of a kind that is not known here. Blocks arrive in pieces, and the rule for
//! putting them together is general: a text in a delta is appended to the block's field of the same name, which holds for
//! text, thinking and signatures. It is kept whatever it says, NUL included: a signature holds for these letters. Only `partial_json` (the input of a tool, kept as the model wrote it) and `citation`
//! have other targets.
//!
//! Three kinds of blocks do not go back, because the provider would refuse them, and with them each later request of
//! the session: thinking whose signature never came (the limit of output came first), thinking that nothing follows,
//! and a text of nothing but white space. They are no part of the entry. Older releases have kept them: there they
//! are left out of each request.
//!
//! Sources: platform.claude.com/docs/en/build-with-claude/streaming; github.com/tailcallhq/forgecode/issues/3071
//! (thinking at the end); github.com/home-assistant/core/issues/175637 (white space).

use std::borrow::Cow;
use std::collections::BTreeMap;

use job::Json;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Calls, is_blank};
use crate::answer::{
    Answer, BadInput, NoAnswer, StopReason, Tokens, ToolCall, embedded, entry, kept_embedded, storable,
};
use crate::raw::{Fields, Pieces, items, raw};

/// An answer on its way.
#[derive(Default)]
pub(crate) struct Assembly {
    model: String,
    blocks: Vec<Block>,
    stop: Option<String>,
    usage: Usage,
    ended: bool,
}

/// A content block on its way.
struct Block {
    fields: Fields,
    kind: String,
    /// What was appended to its texts.
    texts: BTreeMap<String, Pieces>,
    input: Pieces,
    citations: Vec<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    index: Option<usize>,
    #[serde(borrow)]
    content_block: Option<&'a RawValue>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    message: Option<Message>,
    usage: Option<Usage>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Message {
    #[serde(default)]
    model: String,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Ending {
    stop_reason: Option<String>,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    message: String,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(default)]
struct Usage {
    input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    output_tokens: Option<u64>,
}

impl Usage {
    /// Reports are totals so far, and the largest of each counts.
    fn take(&mut self, more: Usage) {
        self.input_tokens = self.input_tokens.max(more.input_tokens);
        self.cache_creation_input_tokens =
            self.cache_creation_input_tokens.max(more.cache_creation_input_tokens);
        self.cache_read_input_tokens = self.cache_read_input_tokens.max(more.cache_read_input_tokens);
        self.output_tokens = self.output_tokens.max(more.output_tokens);
    }

    fn tokens(self) -> Tokens {
        let or_none = Option::unwrap_or_default;
        let cache_read: u64 = or_none(self.cache_read_input_tokens);
        let input = or_none(self.input_tokens).saturating_add(cache_read);
        let input = input.saturating_add(or_none(self.cache_creation_input_tokens));
        Tokens { input, cache_read, output: or_none(self.output_tokens) }
    }
}

impl Assembly {
    pub fn event(&mut self, data: &str) -> Result<Option<String>, NoAnswer> {
        let event: Event<'_> = serde_json::from_str(data).map_err(NoAnswer::garbage)?;
        match &*event.kind {
            "message_start" => {
                let message =
                    event.message.ok_or_else(|| NoAnswer::garbage("a message_start without one"))?;
                self.model = message.model;
                self.usage.take(message.usage.unwrap_or_default());
            }
            "content_block_start" => {
                let block =
                    event.content_block.ok_or_else(|| NoAnswer::garbage("a block without content"))?;
                if event.index != Some(self.blocks.len()) {
                    return Err(NoAnswer::garbage("blocks out of order"));
                }
                let block = Block::begin(block)?;
                let text = block.fields.text("text").filter(|text| block.kind == "text" && !text.is_empty());
                self.blocks.push(block);
                return Ok(text);
            }
            "content_block_delta" => {
                let (Some(index), Some(delta)) = (event.index, event.delta) else {
                    return Err(NoAnswer::garbage("a delta without its block"));
                };
                let block = self.blocks.get_mut(index);
                return block.ok_or_else(|| NoAnswer::garbage("a delta without its block"))?.add(delta);
            }
            "message_delta" => {
                if let Some(delta) = event.delta {
                    let ending: Ending = serde_json::from_str(delta.get()).map_err(NoAnswer::garbage)?;
                    self.stop = ending.stop_reason.or(self.stop.take());
                }
                self.usage.take(event.usage.unwrap_or_default());
            }
            "message_stop" => self.ended = true,
            "error" => {
                let problem = event.error.unwrap_or(Problem { kind: String::new(), message: String::new() });
                return Err(NoAnswer::Failed { kind: problem.kind, message: problem.message });
            }
            _ => {}
        }
        Ok(None)
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn finish(self) -> Result<Answer, NoAnswer> {
        let stop = self.stop.filter(|_| self.ended).ok_or(NoAnswer::NoEnd)?;
        let stop = match &*stop {
            "tool_use" => StopReason::Tools,
            "max_tokens" => StopReason::OutputLimit,
            "pause_turn" => StopReason::Pause,
            "refusal" => StopReason::Refusal,
            "model_context_window_exceeded" => StopReason::WindowFull,
            // end_turn, stop_sequence, and what is not known here.
            _ => StopReason::End,
        };
        let is_limited = matches!(stop, StopReason::OutputLimit | StopReason::WindowFull);
        let last = self.blocks.len();
        let (mut content, mut text, mut calls) = (Vec::new(), String::new(), Vec::new());
        for (at, block) in self.blocks.into_iter().enumerate() {
            let whole = block.finish(is_limited && at + 1 == last)?;
            text.push_str(&storable(whole.said));
            calls.extend(whole.call);
            content.push(whole.fields);
        }
        leave_out(&mut content);
        let written = format!(r#"{{"role":"assistant","content":{}}}"#, list(&content));
        let entry = (!content.is_empty()).then(|| entry(Json::verbatim(&written))).transpose()?;
        Ok(Answer {
            entries: entry.into_iter().collect(),
            text,
            calls,
            stop,
            model: self.model,
            tokens: self.usage.tokens(),
        })
    }
}

/// A block as it ended.
struct Whole {
    fields: Fields,
    said: String,
    call: Option<ToolCall>,
}

impl Block {
    fn begin(block: &RawValue) -> Result<Block, NoAnswer> {
        let fields = Fields::parse(block.get()).map_err(NoAnswer::garbage)?;
        let kind = fields.text("type").ok_or_else(|| NoAnswer::garbage("a block without a type"))?;
        Ok(Block { fields, kind, texts: BTreeMap::new(), input: Pieces::default(), citations: Vec::new() })
    }

    fn add(&mut self, delta: &RawValue) -> Result<Option<String>, NoAnswer> {
        let delta: BTreeMap<Cow<'_, str>, &RawValue> =
            serde_json::from_str(delta.get()).map_err(NoAnswer::garbage)?;
        let mut said = None;
        for (name, value) in delta {
            match &*name {
                "type" => {}
                "citation" => self.citations.push(value.to_owned()),
                "partial_json" => drop(self.input.push(value)),
                // What is no text does not grow in pieces.
                name if value.get().starts_with('"') => {
                    let text = self.texts.entry(name.to_owned());
                    let added = text.or_insert_with(|| Pieces::begun(self.fields.raw(name))).push(value);
                    if name == "text" && self.kind == "text" {
                        said = added;
                    }
                }
                _ => {}
            }
        }
        Ok(said)
    }

    fn finish(self, is_cut: bool) -> Result<Whole, NoAnswer> {
        let Block { mut fields, kind, texts, input: given, citations } = self;
        for (name, text) in texts {
            fields.set(&name, raw(text.written()));
        }
        if !citations.is_empty() {
            let old = fields.raw("citations").and_then(|old| items(old).ok()).unwrap_or_default();
            let all: Vec<&str> = old.iter().chain(&citations).map(|citation| citation.get()).collect();
            fields.set("citations", raw(format!("[{}]", all.join(","))));
        }
        let takes_input = kind == "tool_use" || kind == "server_tool_use";
        let whole = takes_input.then(|| {
            let begun = fields.raw("input").unwrap_or("{}").to_owned();
            if given.is_empty() { begun } else { given.text() }
        });
        let input = whole.map(|whole| {
            fields.set("input", raw(kept_embedded(&whole, is_cut).trim().to_owned()));
            embedded(&whole, is_cut)
        });
        let call = input.filter(|_| kind == "tool_use").map(|input| call(&fields, input)).transpose()?;
        let said = if kind == "text" { fields.text("text").unwrap_or_default() } else { String::new() };
        Ok(Whole { fields, said, call })
    }
}

fn call(fields: &Fields, input: Result<Json, BadInput>) -> Result<ToolCall, NoAnswer> {
    let (Some(id), Some(name)) = (fields.text("id"), fields.text("name")) else {
        return Err(NoAnswer::garbage("a call without its id or name"));
    };
    Ok(ToolCall { id, name, input })
}

/// Returns the calls that an entry makes or answers.
pub(super) fn calls(entry: &str) -> Calls {
    let fields = Fields::parse(entry).unwrap_or_default();
    let blocks = blocks(&fields);
    if fields.text("role").as_deref() == Some("assistant") {
        let made = blocks.iter().filter(|block| block.text("type").as_deref() == Some("tool_use"));
        let read = |block: &Fields| call(block, embedded(block.raw("input").unwrap_or("{}"), false)).ok();
        Calls::Made(made.filter_map(read).collect())
    } else {
        Calls::Answered(blocks.iter().filter_map(|block| block.text("tool_use_id")).collect())
    }
}

/// Leaves out what the provider would not take back of an answer.
fn leave_out(content: &mut Vec<Fields>) {
    content.retain(|block| !is_refused(block));
    while content.last().is_some_and(is_thinking) {
        content.pop();
    }
}

/// Whether the provider takes a block back nowhere.
pub(crate) fn is_refused(block: &Fields) -> bool {
    let is_empty = |name: &str| block.text(name).is_none_or(|text| is_blank(&text));
    match block.text("type").as_deref() {
        Some("text") => is_empty("text"),
        Some("thinking") => is_empty("signature"),
        _ => false,
    }
}

pub(crate) fn is_thinking(block: &Fields) -> bool {
    matches!(block.text("type").as_deref(), Some("thinking" | "redacted_thinking"))
}

/// Returns whether the provider takes an answer back as it is.
pub(crate) fn goes_back(answer: &str) -> bool {
    let content = blocks(&Fields::parse(answer).unwrap_or_default());
    !content.iter().any(is_refused) && !content.last().is_some_and(is_thinking)
}

/// Returns an answer without what the provider would not take back; none if nothing is left.
pub(crate) fn taken_back(answer: &Json) -> Option<Json> {
    let mut fields = Fields::parse(answer.as_str()).ok()?;
    let mut content = blocks(&fields);
    leave_out(&mut content);
    fields.set("content", raw(list(&content)));
    Json::verbatim(&fields.write()).ok().filter(|_| !content.is_empty())
}

/// Writes blocks as a content.
pub(crate) fn list(content: &[Fields]) -> String {
    let written: Vec<String> = content.iter().map(Fields::write).collect();
    format!("[{}]", written.join(","))
}

/// Returns the content blocks of a message.
pub(crate) fn blocks(message: &Fields) -> Vec<Fields> {
    let content = message.raw("content").and_then(|content| items(content).ok()).unwrap_or_default();
    content.iter().filter_map(|block| Fields::parse(block.get()).ok()).collect()
}

#[cfg(test)]
mod tests;
