//! OpenAI's Chat Completions: an answer of text and calls of functions.
//!
//! The arguments of a function are a text to this wire. They go back to the letter if they are a JSON object; other providers'
//! servers read them, and refuse what is none. Servers of others add fields of their own to a message and to its calls, such as
//! reasoning and signatures; these go back as well.
//!
//! Source: platform.openai.com/docs/api-reference/chat-streaming.

use job::Json;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::Calls;
use crate::answer::{Answer, NoAnswer, StopReason, Tokens, ToolCall, entry, input, kept_input, storable};
use crate::raw::{Fields, Pieces, items, quoted};

/// An answer on its way.
#[derive(Default)]
pub(crate) struct Assembly {
    model: String,
    text: Pieces,
    refusal: Pieces,
    calls: Vec<Function>,
    others: Others,
    stop: Option<String>,
    usage: Usage,
    ended: bool,
}

#[derive(Default)]
struct Function {
    id: String,
    name: String,
    arguments: Pieces,
    others: Others,
}

/// Fields that are not known here, in the order in which they came.
#[derive(Default)]
struct Others(Vec<(String, Other)>);

enum Other {
    /// A text grows in pieces.
    Text(Pieces),
    /// So does a list.
    List(Vec<Box<RawValue>>),
    /// Anything else comes whole.
    Whole(Box<RawValue>),
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
    delta: Fields,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
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
        let mut said = None;
        for (name, value) in delta.into_all() {
            match &*name {
                "role" => {}
                "content" => said = self.text.push(&value).filter(|text| !text.is_empty()),
                "refusal" => drop(self.refusal.push(&value)),
                "tool_calls" => {
                    let pieces = read::<Vec<Fields>>(&value)?.unwrap_or_default();
                    pieces.into_iter().try_for_each(|piece| self.call(piece))?;
                }
                _ => self.others.add(name, value),
            }
        }
        Ok(said)
    }

    /// Takes a piece of a call.
    fn call(&mut self, piece: Fields) -> Result<(), NoAnswer> {
        let index = piece.raw("index").and_then(|index| index.parse::<usize>().ok());
        let index = index.ok_or_else(|| NoAnswer::garbage("a call without its number"))?;
        if index >= MOST_CALLS {
            return Err(NoAnswer::garbage(format!("a call with the number {index}")));
        }
        if self.calls.len() <= index {
            self.calls.resize_with(index + 1, Function::default);
        }
        let call = &mut self.calls[index];
        for (name, value) in piece.into_all() {
            match &*name {
                "index" | "type" => {}
                "id" => call.id.push_str(&read::<String>(&value)?.unwrap_or_default()),
                "function" => {
                    let FunctionPiece { name, arguments } = read(&value)?.unwrap_or_default();
                    call.name.push_str(&name.unwrap_or_default());
                    arguments.and_then(|arguments| call.arguments.push(&arguments));
                }
                _ => call.others.add(name, value),
            }
        }
        Ok(())
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
        for (at, Function { id, name, arguments, others }) in self.calls.into_iter().enumerate() {
            if id.is_empty() || name.is_empty() {
                return Err(NoAnswer::garbage("a call without its id or name"));
            }
            let (is_cut, text) = (is_limited && at + 1 == last, arguments.text());
            let input = input(&text, is_cut);
            let goes_back = input.is_ok() || kept_input(&text, is_cut) == text;
            written.push(format!(
                r#"{{"id":{},"type":"function","function":{{"name":{},"arguments":{}}}{}}}"#,
                quoted(&id),
                quoted(&name),
                if goes_back { arguments.written() } else { quoted("{}") },
                others.write()
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
        let others = self.others.write();
        let written =
            format!(r#"{{"role":"assistant","content":{content}{calls_written}{refused}{others}}}"#);
        let entry = (!says_nothing).then(|| entry(Json::verbatim(&written))).transpose()?;
        let cache_read = self.usage.prompt_tokens_details.and_then(|details| details.cached_tokens);
        let tokens = Tokens {
            input: self.usage.prompt_tokens,
            cache_read: cache_read.unwrap_or_default(),
            output: self.usage.completion_tokens,
        };
        Ok(Answer { entries: entry.into_iter().collect(), text, calls, stop, model: self.model, tokens })
    }
}

impl Other {
    fn of(value: Box<RawValue>) -> Other {
        match value.get().as_bytes().first() {
            Some(b'"') => Other::Text(Pieces::begun(Some(value.get()))),
            Some(b'[') => items(value.get()).map_or_else(|_| Other::Whole(value), Other::List),
            _ => Other::Whole(value),
        }
    }
}

impl Others {
    /// Adds a piece of a field.
    fn add(&mut self, name: String, value: Box<RawValue>) {
        let kind = value.get().as_bytes().first();
        if kind == Some(&b'n') {
            return;
        }
        match (self.0.iter_mut().find(|(field, _)| *field == name), kind) {
            (Some((_, Other::Text(text))), Some(b'"')) => drop(text.push(&value)),
            (Some((_, Other::List(list))), Some(b'[')) => list.extend(items(value.get()).unwrap_or_default()),
            (Some((_, old)), _) => *old = Other::of(value),
            (None, _) => self.0.push((name, Other::of(value))),
        }
    }

    /// Writes them behind other fields.
    fn write(self) -> String {
        let fields = self.0.into_iter().map(|(name, field)| {
            let value = match field {
                Other::Text(text) => text.written(),
                Other::List(list) => {
                    let list: Vec<&str> = list.iter().map(|item| item.get()).collect();
                    format!("[{}]", list.join(","))
                }
                Other::Whole(value) => value.get().to_owned(),
            };
            format!(",{}:{value}", quoted(&name))
        });
        fields.collect()
    }
}

/// Reads a value that may be null.
fn read<T: DeserializeOwned>(value: &RawValue) -> Result<Option<T>, NoAnswer> {
    serde_json::from_str(value.get()).map_err(NoAnswer::garbage)
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
    fn what_a_server_adds_to_a_message_and_to_its_calls_goes_back_as_well() {
        let answer = assembled(&[
            r#"{"model":"m","choices":[{"delta":{"role":"assistant","content":null,"reasoning_content":"","audio":null}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"I l","reasoning_details":[{"z":1e5,"text":"I l"}]}}]}"#,
            r#"{"choices":[{"delta":{"reasoning_content":"ook.","reasoning_details":[{"text":"ook."}],"extra_content":{"b":1,"a": 2}}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"look","arguments":"{}"},"extra_content":{"google":{"thought_signature":"c2ln"}}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":null},"finish_reason":"tool_calls"}]}"#,
            "[DONE]",
        ])
        .unwrap();
        let entry = concat!(
            r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function","#,
            r#""function":{"name":"look","arguments":"{}"},"extra_content":{"google":{"thought_signature":"c2ln"}}}],"#,
            r#""reasoning_content":"I look.","reasoning_details":[{"z":1e5,"text":"I l"},{"text":"ook."}],"#,
            r#""extra_content":{"b":1,"a": 2}}"#,
        );
        assert_eq!(answer.entries[0].as_str(), entry);
        assert_eq!(answer.text, "", "reasoning is no answer");
        assert_eq!(calls(entry), Calls::Made(answer.calls));
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
            r#"{"role":"assistant","content":"a\u0000😀�","tool_calls":[{"id":"c","type":"function","#,
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
