//! OpenAI's Chat Completions: an answer of text and calls of functions.
//!
//! The arguments of a function are a text to this wire. They go back to the letter if they are a JSON object; other providers'
//! servers read them, and refuse what is none.
//!
//! Source: platform.openai.com/docs/api-reference/chat-streaming.

use job::Json;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::Calls;
use crate::answer::{Answer, NoAnswer, StopReason, Tokens, ToolCall, input, kept_input, storable};
use crate::raw::{Pieces, quoted};

/// An answer on its way.
#[derive(Default)]
pub(crate) struct Assembly {
    model: String,
    text: Pieces,
    refusal: Pieces,
    calls: Vec<Function>,
    stop: Option<String>,
    usage: Usage,
    ended: bool,
}

#[derive(Default)]
struct Function {
    id: String,
    name: String,
    arguments: Pieces,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    model: String,
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Delta {
    content: Option<Box<RawValue>>,
    refusal: Option<Box<RawValue>>,
    tool_calls: Option<Vec<Piece>>,
}

#[derive(Deserialize)]
struct Piece {
    index: usize,
    id: Option<String>,
    function: Option<FunctionPiece>,
}

#[derive(Deserialize)]
struct FunctionPiece {
    name: Option<String>,
    arguments: Option<Box<RawValue>>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    prompt_tokens_details: Option<Details>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

#[derive(Deserialize)]
struct Problem {
    code: Option<serde_json::Value>,
    #[serde(default)]
    message: String,
}

/// More calls than any model makes in one answer.
const MOST_CALLS: usize = 1_000;

impl Assembly {
    pub fn event(&mut self, data: &str) -> Result<Option<String>, NoAnswer> {
        if data.trim() == "[DONE]" {
            self.ended = true;
            return Ok(None);
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(NoAnswer::garbage)?;
        if let Some(Problem { code, message }) = chunk.error {
            let kind = code.map(|code| code.to_string()).unwrap_or_default();
            return Err(NoAnswer::Failed { kind, message });
        }
        if !chunk.model.is_empty() {
            self.model = chunk.model;
        }
        if let Some(usage) = chunk.usage {
            self.usage = usage;
        }
        let Some(Choice { delta, finish_reason }) = chunk.choices.into_iter().next() else { return Ok(None) };
        self.stop = finish_reason.or(self.stop.take());
        if let Some(refusal) = delta.refusal {
            self.refusal.push(&refusal);
        }
        for Piece { index, id, function } in delta.tool_calls.unwrap_or_default() {
            if index >= MOST_CALLS {
                return Err(NoAnswer::garbage(format!("a call with the number {index}")));
            }
            if self.calls.len() <= index {
                self.calls.resize_with(index + 1, Function::default);
            }
            let call = &mut self.calls[index];
            call.id.push_str(&id.unwrap_or_default());
            if let Some(FunctionPiece { name, arguments }) = function {
                call.name.push_str(&name.unwrap_or_default());
                if let Some(arguments) = arguments {
                    call.arguments.push(&arguments);
                }
            }
        }
        let text = delta.content.and_then(|content| self.text.push(&content));
        Ok(text.filter(|text| !text.is_empty()))
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    pub fn finish(self) -> Result<Answer, NoAnswer> {
        let stop = self.stop.filter(|_| self.ended).ok_or(NoAnswer::NoEnd)?;
        let (text, refusal) = (storable(self.text.text()), storable(self.refusal.text()));
        let stop = match &*stop {
            "tool_calls" | "function_call" => StopReason::Tools,
            "length" => StopReason::OutputLimit,
            "content_filter" => StopReason::Refusal,
            _ if !refusal.is_empty() && text.is_empty() => StopReason::Refusal,
            _ => StopReason::End,
        };
        let last = self.calls.len();
        let is_limited = stop == StopReason::OutputLimit;
        let (mut calls, mut written) = (Vec::new(), Vec::new());
        for (at, Function { id, name, arguments }) in self.calls.into_iter().enumerate() {
            if id.is_empty() || name.is_empty() {
                return Err(NoAnswer::garbage("a call without its id or name"));
            }
            let (is_cut, text) = (is_limited && at + 1 == last, arguments.text());
            let input = input(&text, is_cut);
            let goes_back = input.is_ok() || kept_input(&text, is_cut) == text;
            written.push(format!(
                r#"{{"id":{},"type":"function","function":{{"name":{},"arguments":{}}}}}"#,
                quoted(&id),
                quoted(&name),
                if goes_back { arguments.written() } else { quoted("{}") }
            ));
            calls.push(ToolCall { id, name, input });
        }
        let content = if text.is_empty() { "null".to_owned() } else { self.text.written() };
        let calls_written = match &*written {
            [] => String::new(),
            written => format!(r#","tool_calls":[{}]"#, written.join(",")),
        };
        let refused = if refusal.is_empty() {
            String::new()
        } else {
            format!(r#","refusal":{}"#, self.refusal.written())
        };
        let says_nothing = text.is_empty() && calls.is_empty() && refusal.is_empty();
        let entry = format!(r#"{{"role":"assistant","content":{content}{calls_written}{refused}}}"#);
        let entry = (!says_nothing).then(|| Json::verbatim(&entry)).transpose();
        let entry = entry.map_err(|error| NoAnswer::Unstorable(error.to_string()))?;
        let cache_read = self.usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let tokens = Tokens {
            input: self.usage.prompt_tokens,
            cache_read: cache_read.unwrap_or_default(),
            output: self.usage.completion_tokens,
        };
        Ok(Answer { entries: entry.into_iter().collect(), text, calls, stop, model: self.model, tokens })
    }
}

#[derive(Deserialize)]
struct Entry {
    role: String,
    #[serde(default)]
    tool_calls: Option<Vec<Made>>,
    tool_call_id: Option<String>,
}

#[derive(Deserialize)]
struct Made {
    id: String,
    function: MadeFunction,
}

#[derive(Deserialize)]
struct MadeFunction {
    name: String,
    arguments: String,
}

/// Returns the calls that an entry makes or answers.
pub(super) fn calls(entry: &str) -> Calls {
    let Ok(entry) = serde_json::from_str::<Entry>(entry) else { return Calls::Answered(Vec::new()) };
    if entry.role != "assistant" {
        return Calls::Answered(entry.tool_call_id.into_iter().collect());
    }
    let made = entry.tool_calls.unwrap_or_default().into_iter().map(|Made { id, function }| {
        let input = input(&function.arguments, false);
        ToolCall { id, name: function.name, input }
    });
    Calls::Made(made.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(events: &[&str]) -> Result<Answer, NoAnswer> {
        let mut assembly = Assembly::default();
        for event in events {
            assembly.event(event)?;
        }
        assembly.finish()
    }

    #[test]
    fn text_and_calls_are_put_together_to_the_letter() {
        let answer = assembled(&[
            r#"{"model":"gpt-6-sol","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"model":"gpt-6-sol","choices":[{"index":0,"delta":{"content":"Wait"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"add","arguments":""}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"z\": 1e5"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"call_2","function":{"name":"b","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":4}}}"#,
            "[DONE]",
        ])
        .unwrap();
        let entry = concat!(
            r#"{"role":"assistant","content":"Wait","tool_calls":[{"id":"call_1","type":"function","#,
            r#""function":{"name":"add","arguments":"{\"z\": 1e5}"}},"#,
            r#"{"id":"call_2","type":"function","function":{"name":"b","arguments":"{}"}}]}"#,
        );
        assert_eq!(answer.entries[0].as_str(), entry);
        assert_eq!(answer.tokens, Tokens { input: 9, cache_read: 4, output: 3 });
        assert_eq!(answer.stop, StopReason::Tools);
        assert_eq!(calls(entry), Calls::Made(answer.calls));
        assert_eq!(
            calls(r#"{"role":"tool","tool_call_id":"call_1","content":"7"}"#),
            Calls::Answered(vec!["call_1".to_owned()])
        );
    }

    #[test]
    fn what_no_text_of_ours_may_hold_goes_back_to_the_letter_and_is_not_passed_on() {
        let answer = assembled(&[
            r#"{"model":"m","choices":[{"delta":{"content":"a\u0000\ud83d"}}]}"#,
            r#"{"choices":[{"delta":{"content":"\ude00\udc00"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"n\":\"\\u0000\"}"}}]},"finish_reason":"tool_calls"}]}"#,
            "[DONE]",
        ])
        .unwrap();
        let entry = concat!(
            r#"{"role":"assistant","content":"a\u0000\ud83d\ude00\udc00","tool_calls":[{"id":"c","type":"function","#,
            r#""function":{"name":"f","arguments":"{\"n\":\"\\u0000\"}"}}]}"#
        );
        assert_eq!(answer.entries[0].as_str(), entry);
        assert_eq!(answer.text, "a\u{fffd}😀\u{fffd}");
        assert!(matches!(answer.calls[0].input, Err(crate::answer::BadInput::NoObject(_))));
    }

    #[test]
    fn a_stream_ends_with_done_alone() {
        let end = r#"{"model":"m","choices":[{"delta":{"content":"x"},"finish_reason":"stop"}]}"#;
        assert_eq!(assembled(&[end]), Err(NoAnswer::NoEnd));
        assert_eq!(assembled(&["[DONE]"]), Err(NoAnswer::NoEnd));
        assert_eq!(assembled(&[end, "[DONE]"]).unwrap().stop, StopReason::End);
        assert!(matches!(assembled(&["<html>"]), Err(NoAnswer::Garbage(_))));
    }

    #[test]
    fn a_refusal_and_a_torn_call_are_known() {
        let refused = r#"{"choices":[{"delta":{"refusal":"no"},"finish_reason":"stop"}]}"#;
        assert_eq!(assembled(&[refused, "[DONE]"]).unwrap().stop, StopReason::Refusal);
        let torn = r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"a"}}]},"finish_reason":"length"}]}"#;
        let answer = assembled(&[torn, "[DONE]"]).unwrap();
        assert_eq!(answer.calls[0].input, Err(crate::answer::BadInput::Torn));
        assert!(answer.entries[0].as_str().contains(r#""arguments":"{}""#));
    }
}
