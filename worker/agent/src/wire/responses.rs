//! OpenAI's Responses: an answer of items.
//!
//! Nothing is stored at the provider: every request has the whole conversation. So each item of an answer is an entry of
//! its own, and goes back as it came, also one of a kind that is not known here. Reasoning comes encrypted, and goes back
//! where it stood.
//!
//! Two things do not go back, because the provider would refuse them: reasoning that nothing follows (the limit of output
//! came first), and reasoning without its encrypted content, which would have to be stored there.
//!
//! Sources, at developers.openai.com/api/docs: "Streaming events" and "Responses" of the API reference, "Reasoning
//! models", "Function calling".

use std::borrow::Cow;
use std::collections::BTreeMap;

use job::Json;
use serde::Deserialize;
use serde_json::value::RawValue;
use tools::{Content, Output};

use super::{Calls, ERROR};
use crate::answer::{Answer, NoAnswer, StopReason, Tokens, ToolCall, entry, input, kept_input, storable};
use crate::raw::{Fields, items, quoted, raw};

/// An answer on its way.
#[derive(Default)]
pub(crate) struct Assembly {
    /// Items that have ended, by their place.
    items: BTreeMap<usize, Box<RawValue>>,
    end: Option<Response>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    output_index: Option<usize>,
    #[serde(borrow)]
    item: Option<&'a RawValue>,
    #[serde(borrow)]
    delta: Option<&'a RawValue>,
    #[serde(borrow)]
    response: Option<&'a RawValue>,
}

/// The answer as its last event has it.
#[derive(Deserialize)]
struct Response {
    #[serde(default)]
    model: String,
    #[serde(default)]
    status: String,
    output: Option<Vec<Box<RawValue>>>,
    usage: Option<Usage>,
    incomplete_details: Option<Incomplete>,
    error: Option<Problem>,
}

#[derive(Deserialize)]
struct Incomplete {
    reason: Option<String>,
}

/// An error: the event of this name, or what it holds.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Problem {
    code: Option<String>,
    message: Option<String>,
    error: Option<Box<Problem>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Usage {
    input_tokens: u64,
    output_tokens: u64,
    input_tokens_details: Option<Details>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

/// More items than any answer has.
const MOST_ITEMS: usize = 10_000;

impl Assembly {
    pub fn event(&mut self, data: &str) -> Result<Option<String>, NoAnswer> {
        let event: Event<'_> = serde_json::from_str(data).map_err(NoAnswer::garbage)?;
        match &*event.kind {
            "response.output_text.delta" => {
                let delta = event.delta.and_then(|delta| serde_json::from_str::<String>(delta.get()).ok());
                return Ok(delta.filter(|text| !text.is_empty()));
            }
            "response.output_item.done" => {
                let (Some(index), Some(item)) = (event.output_index, event.item) else {
                    return Err(NoAnswer::garbage("an item without its place"));
                };
                if index >= MOST_ITEMS {
                    return Err(NoAnswer::garbage(format!("an item with the number {index}")));
                }
                self.items.insert(index, item.to_owned());
            }
            "response.completed" | "response.incomplete" => {
                let response =
                    event.response.ok_or_else(|| NoAnswer::garbage("an end without its answer"))?;
                self.end = Some(serde_json::from_str(response.get()).map_err(NoAnswer::garbage)?);
            }
            "response.failed" => {
                let response = event.response.map(|response| serde_json::from_str(response.get()));
                let response: Option<Response> = response.transpose().map_err(NoAnswer::garbage)?;
                return Err(response.and_then(|response| response.error).unwrap_or_default().failed());
            }
            "error" => {
                let problem: Problem = serde_json::from_str(data).map_err(NoAnswer::garbage)?;
                return Err(problem.failed());
            }
            _ => {}
        }
        Ok(None)
    }

    pub fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    pub fn finish(self) -> Result<Answer, NoAnswer> {
        let end = self.end.ok_or(NoAnswer::NoEnd)?;
        let is_cut = end.status == "incomplete";
        // The end repeats all items; some servers leave them out there.
        let items = end.output.filter(|items| !items.is_empty());
        let items = items.unwrap_or_else(|| self.items.into_values().collect());
        let mut whole = Whole::default();
        let last = items.len();
        for (at, item) in items.iter().enumerate() {
            whole.take(item, is_cut && at + 1 == last)?;
        }
        let Whole { mut entries, text, refusal, calls } = whole;
        while entries.last().is_some_and(|(kind, _)| kind == REASONING) {
            entries.pop();
        }
        let reason = end.incomplete_details.and_then(|details| details.reason);
        let stop = match reason.as_deref().filter(|_| is_cut) {
            Some("content_filter") => StopReason::Refusal,
            Some("max_output_tokens") => StopReason::OutputLimit,
            _ if !calls.is_empty() => StopReason::Tools,
            _ if text.is_empty() && !refusal.is_empty() => StopReason::Refusal,
            _ => StopReason::End,
        };
        let text = if stop == StopReason::Refusal && text.is_empty() { refusal } else { text };
        let usage = end.usage.unwrap_or_default();
        let cache_read = usage.input_tokens_details.and_then(|details| details.cached_tokens);
        let tokens = Tokens {
            input: usage.input_tokens,
            cache_read: cache_read.unwrap_or_default(),
            output: usage.output_tokens,
        };
        let entries = entries.into_iter().map(|(_, entry)| entry).collect();
        Ok(Answer { entries, text: storable(text), calls, stop, model: end.model, tokens })
    }
}

const REASONING: &str = "reasoning";

/// What the items of an answer say together.
#[derive(Default)]
struct Whole {
    /// Each with its kind.
    entries: Vec<(String, Json)>,
    text: String,
    refusal: String,
    calls: Vec<ToolCall>,
}

impl Whole {
    fn take(&mut self, item: &RawValue, is_cut: bool) -> Result<(), NoAnswer> {
        let mut fields = Fields::parse(item.get()).map_err(NoAnswer::garbage)?;
        let kind = fields.text("type").ok_or_else(|| NoAnswer::garbage("an item without a type"))?;
        let mut written = Cow::Borrowed(item.get());
        match &*kind {
            "message" => {
                let (text, refusal) = message(&fields);
                if text.is_empty() && refusal.is_empty() {
                    return Ok(());
                }
                if !is_commentary(&fields) {
                    self.text.push_str(&text);
                }
                self.refusal.push_str(&refusal);
            }
            "function_call" => {
                let (call, arguments) =
                    (call(&fields, is_cut)?, fields.text("arguments").unwrap_or_default());
                if call.input.is_err() && kept_input(&arguments, is_cut) != arguments {
                    fields.set("arguments", raw(quoted("{}")));
                    written = Cow::Owned(fields.write());
                }
                self.calls.push(call);
            }
            REASONING if fields.text("encrypted_content").is_none() => return Ok(()),
            _ => {}
        }
        self.entries.push((kind, entry(Json::verbatim(&written))?));
        Ok(())
    }
}

impl Problem {
    fn failed(self) -> NoAnswer {
        let Problem { code, message, .. } =
            self.error.map_or_else(|| Problem { error: None, ..self }, |inner| *inner);
        NoAnswer::Failed { kind: code.unwrap_or_default(), message: message.unwrap_or_default() }
    }
}

/// Returns the text and the refusal of a message.
fn message(fields: &Fields) -> (String, String) {
    let (mut text, mut refusal) = (String::new(), String::new());
    for part in content(fields) {
        text.push_str(&part.text("text").unwrap_or_default());
        refusal.push_str(&part.text("refusal").unwrap_or_default());
    }
    (text, refusal)
}

/// Returns the parts of a message's content.
pub(crate) fn content(message: &Fields) -> Vec<Fields> {
    let content = message.raw("content").and_then(|content| items(content).ok()).unwrap_or_default();
    content.iter().filter_map(|part| Fields::parse(part.get()).ok()).collect()
}

/// Returns whether a message says what the model is about to do, and is no part of its answer.
pub(crate) fn is_commentary(message: &Fields) -> bool {
    message.text("phase").as_deref() == Some("commentary")
}

fn call(fields: &Fields, is_cut: bool) -> Result<ToolCall, NoAnswer> {
    let (Some(id), Some(name)) = (fields.text("call_id"), fields.text("name")) else {
        return Err(NoAnswer::garbage("a call without its id or name"));
    };
    let input = input(&fields.text("arguments").unwrap_or_default(), is_cut);
    Ok(ToolCall { id, name, input })
}

/// Returns the calls that an entry makes or answers.
pub(super) fn calls(entry: &str) -> Calls {
    let fields = Fields::parse(entry).unwrap_or_default();
    let role = fields.text("role");
    match fields.text("type").as_deref() {
        Some("function_call") => Calls::Made(call(&fields, false).into_iter().collect()),
        Some("function_call_output") => Calls::Answered(fields.text("call_id").into_iter().collect()),
        _ if role.is_some_and(|role| role != "assistant") => Calls::Answered(Vec::new()),
        _ => Calls::Made(Vec::new()),
    }
}

/// Writes a message.
pub(crate) fn said(role: &str, text: &str) -> String {
    let kind = if role == "assistant" { "output_text" } else { "input_text" };
    format!(r#"{{"type":"message","role":"{role}","content":[{{"type":"{kind}","text":{}}}]}}"#, quoted(text))
}

/// Writes a call.
pub(crate) fn called(id: &str, name: &str, arguments: &str) -> String {
    format!(
        r#"{{"type":"function_call","call_id":{},"name":{},"arguments":{}}}"#,
        quoted(id),
        quoted(name),
        quoted(arguments)
    )
}

/// Writes the result of a call: a text, or a list where it has images.
pub(super) fn result(call: &str, output: &Output) -> String {
    let has_images = output.content.iter().any(|content| matches!(content, Content::Image { .. }));
    let written = if has_images {
        let error = output.is_error.then(|| Content::Text(ERROR.trim_end().to_owned()));
        let parts = error.iter().chain(&output.content).map(|content| match content {
            Content::Text(text) => format!(r#"{{"type":"input_text","text":{}}}"#, quoted(text)),
            Content::Image { media_type, data } => {
                let url = quoted(&format!("data:{media_type};base64,{data}"));
                format!(r#"{{"type":"input_image","image_url":{url}}}"#)
            }
        });
        format!("[{}]", parts.collect::<Vec<_>>().join(","))
    } else {
        let text = output.text();
        quoted(&if output.is_error { format!("{ERROR}{text}") } else { text })
    };
    format!(r#"{{"type":"function_call_output","call_id":{},"output":{written}}}"#, quoted(call))
}

#[cfg(test)]
mod tests;
