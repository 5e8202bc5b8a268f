//! Anthropic's Messages: an answer of content blocks.
//!
//! Every block goes back as it came, also one of a kind that is not known here. Blocks arrive in pieces, and the rule for
//! putting them together is general: a text in a delta is appended to the block's field of the same name, which holds for
//! text, thinking and signatures. It is kept whatever it says, NUL included: a signature holds for these letters. Only `partial_json` (the input of a tool, kept as the model wrote it) and `citation`
//! have other targets.
//!
//! Source: platform.claude.com/docs/en/build-with-claude/streaming.

use std::borrow::Cow;
use std::collections::BTreeMap;

use job::Json;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Calls;
use crate::answer::{Answer, BadInput, NoAnswer, StopReason, Tokens, ToolCall, input, kept_input, storable};
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
            content.extend(whole.written);
        }
        let entry = format!(r#"{{"role":"assistant","content":[{}]}}"#, content.join(","));
        let entry = (!content.is_empty()).then(|| Json::verbatim(&entry)).transpose();
        let entry = entry.map_err(|error| NoAnswer::Unstorable(error.to_string()))?;
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
    /// As it goes back; none for an empty text, which the provider would not take back.
    written: Option<String>,
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
            fields.set("input", raw(kept_input(&whole, is_cut).trim().to_owned()));
            input(&whole, is_cut)
        });
        let call = input.filter(|_| kind == "tool_use").map(|input| call(&fields, input)).transpose()?;
        let said = if kind == "text" { fields.text("text").unwrap_or_default() } else { String::new() };
        let written = (kind != "text" || !said.is_empty()).then(|| fields.write());
        Ok(Whole { written, said, call })
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
        let read = |block: &Fields| call(block, input(block.raw("input").unwrap_or("{}"), false)).ok();
        Calls::Made(made.filter_map(read).collect())
    } else {
        Calls::Answered(blocks.iter().filter_map(|block| block.text("tool_use_id")).collect())
    }
}

/// Returns the content blocks of a message.
pub(crate) fn blocks(message: &Fields) -> Vec<Fields> {
    let content = message.raw("content").and_then(|content| items(content).ok()).unwrap_or_default();
    content.iter().filter_map(|block| Fields::parse(block.get()).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::quoted;

    fn assembled(events: &[&str]) -> Result<Answer, NoAnswer> {
        let mut assembly = Assembly::default();
        for event in events {
            assembly.event(event)?;
        }
        assembly.finish()
    }

    const START: &str = r#"{"type":"message_start","message":{"model":"claude-opus-5-5","content":[],
        "usage":{"input_tokens":10,"cache_read_input_tokens":90,"cache_creation_input_tokens":5,"output_tokens":1}}}"#;
    const STOP: &str = r#"{"type":"message_stop"}"#;

    #[test]
    fn every_block_goes_back_as_it_came() {
        let answer = assembled(&[
            START,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"eA=="}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"novel","z":1e5,"a":[1, 2]}}"#,
            r#"{"type":"content_block_start","index":3,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"Ca"}}"#,
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"f\u00e9"}}"#,
            r#"{"type":"content_block_delta","index":3,"delta":{"type":"citations_delta","citation":{"b":1,"a":2}}}"#,
            r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"toolu_1","name":"add","input":{}}}"#,
            r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":""}}"#,
            r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":"{\"z\": 1e5,"}}"#,
            r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":" \"a\":12345678901234567890123}"}}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":42}}"#,
            STOP,
        ])
        .unwrap();
        let entry = concat!(
            r#"{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"c2ln"},"#,
            r#"{"type":"redacted_thinking","data":"eA=="},{"type":"novel","z":1e5,"a":[1, 2]},"#,
            r#"{"type":"text","text":"Café","citations":[{"b":1,"a":2}]},"#,
            r#"{"type":"tool_use","id":"toolu_1","name":"add","input":{"z": 1e5, "a":12345678901234567890123}}]}"#,
        );
        assert_eq!(answer.entries[0].as_str(), entry);
        assert_eq!((answer.text.as_str(), answer.stop), ("Café", StopReason::Tools));
        assert_eq!(answer.tokens, Tokens { input: 105, cache_read: 90, output: 42 });
        assert_eq!(
            answer.calls[0].input.as_ref().unwrap().as_str(),
            r#"{"z": 1e5, "a":12345678901234567890123}"#
        );
        assert_eq!(calls(entry), Calls::Made(answer.calls));
    }

    #[test]
    fn what_no_text_of_ours_may_hold_goes_back_to_the_letter_and_is_not_passed_on() {
        let delta = |kind: &str, field: &str, text: &str| {
            format!(
                r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"{kind}_delta","{field}":"{text}"}}}}"#
            )
        };
        let thinking = r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#;
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
        let [first, second] =
            [r"a\u0000\ud83d", r"\ude00\udc00"].map(|text| delta("thinking", "thinking", text));
        let signed = delta("signature", "signature", "c2ln");
        let answer = assembled(&[START, thinking, &first, &second, &signed, end, STOP]).unwrap();
        let entry = r#"{"role":"assistant","content":[{"type":"thinking","thinking":"a\u0000\ud83d\ude00\udc00","signature":"c2ln"}]}"#;
        assert_eq!(answer.entries[0].as_str(), entry);
        let text = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"x"}}"#;
        let answer = assembled(&[START, text, &delta("text", "text", r"\u0000y"), end, STOP]).unwrap();
        assert_eq!(
            answer.entries[0].as_str(),
            r#"{"role":"assistant","content":[{"type":"text","text":"x\u0000y"}]}"#
        );
        assert_eq!(answer.text, "x\u{fffd}y");
    }

    fn one_call(input: &str, stop: &str) -> ToolCall {
        let delta = format!(
            r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"input_json_delta","partial_json":{}}}}}"#,
            quoted(input)
        );
        let stop = format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"{stop}"}}}}"#);
        let answer = assembled(&[
            START,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"add","input":{}}}"#,
            &delta,
            &stop,
            STOP,
        ]);
        let mut answer = answer.unwrap();
        assert!(answer.entries[0].as_str().contains(r#""input":{"#));
        let kept = Json::verbatim(input).is_ok_and(|input| input.as_str().starts_with('{'));
        let kept = if kept { input } else { "{}" };
        assert!(
            answer.entries[0].as_str().ends_with(&format!(r#""input":{kept}}}]}}"#)),
            "{kept}: {answer:?}"
        );
        answer.calls.remove(0)
    }

    #[test]
    fn a_call_whose_input_is_torn_or_no_object_is_none_to_make() {
        assert_eq!(one_call(r#"{"a":"#, "max_tokens").input, Err(BadInput::Torn));
        assert_eq!(one_call("", "max_tokens").input, Err(BadInput::Torn));
        assert_eq!(one_call("", "tool_use").input.unwrap().as_str(), "{}");
        for broken in ["{", "[1]", "7", r#"{"a":"\u0000"}"#, r#"{"a":1e99999}"#] {
            assert!(matches!(one_call(broken, "tool_use").input, Err(BadInput::NoObject(_))), "{broken}");
        }
    }

    #[test]
    fn a_stream_without_its_own_end_is_no_answer() {
        let text = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"All"}}"#;
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
        assert_eq!(assembled(&[START, text, end]), Err(NoAnswer::NoEnd));
        assert_eq!(assembled(&[START, text, STOP]), Err(NoAnswer::NoEnd));
        assert_eq!(assembled(&[START, text, end, STOP]).unwrap().text, "All");
        let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;
        assert!(matches!(assembled(&[START, text, error]), Err(NoAnswer::Failed { .. })));
        for garbage in ["", "nonsense", r#"{"type":"content_block_delta","index":3,"delta":{}}"#] {
            assert!(matches!(assembled(&[START, garbage]), Err(NoAnswer::Garbage(_))), "{garbage}");
        }
    }

    #[test]
    fn an_answer_that_says_nothing_has_no_entry() {
        let empty = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
        let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
        let answer = assembled(&[START, empty, end, STOP]).unwrap();
        assert_eq!((answer.entries, answer.text.as_str()), (Vec::new(), ""));
    }
}
