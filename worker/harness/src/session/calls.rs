//! Tool calls that stand without an answer in a context window.
//!
//! An entry is looked at as text: only what a call or an answer is made of is read, so nothing else in it can be in the
//! way, and nothing of it changes.

use job::Json;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::Session;

/// What the model reads in place of a result.
const INTERRUPTED: &str = "interrupted: the job ended before this call had a result. It may have taken effect, in part or as a \
    whole. Look at what is there before you call again.";

impl Session {
    /// Returns answers for the tool calls in the context window that have none and will never get one. Models refuse a
    /// conversation in which a call has no answer.
    ///
    /// A call is a content block `{"type": "tool_use", "id": …}` (Anthropic's Messages API) or an entry of
    /// `tool_calls` (OpenAI's Chat Completions), or an item `{"type": "function_call", "call_id": …}` (Responses). Its
    /// answer is a block `{"type": "tool_result", "tool_use_id": …}`, a message with the role `tool` and its
    /// `tool_call_id`, or an item `function_call_output` with its `call_id`.
    pub fn answers_for_open_calls(&self) -> Vec<Json> {
        let mut blocks: Vec<String> = Vec::new();
        let mut calls: Vec<String> = Vec::new();
        let mut items: Vec<String> = Vec::new();
        for message in self.context_window.iter().filter_map(Message::of) {
            for block in list::<Block>(message.content) {
                match string(block.r#type).as_deref() {
                    Some("tool_use") => blocks.extend(string(block.id)),
                    Some("tool_result") => close(&mut blocks, block.tool_use_id),
                    _ => {}
                }
            }
            calls.extend(list::<Block>(message.tool_calls).into_iter().filter_map(|call| string(call.id)));
            if string(message.role).as_deref() == Some("tool") {
                close(&mut calls, message.tool_call_id);
            }
            match string(message.r#type).as_deref() {
                Some("function_call") => items.extend(string(message.call_id)),
                Some("function_call_output") => close(&mut items, message.call_id),
                _ => {}
            }
        }
        let blocks: Vec<_> = blocks
            .into_iter()
            .map(|id| json!({"type": "tool_result", "tool_use_id": id, "is_error": true, "content": INTERRUPTED}))
            .collect();
        let calls =
            calls.into_iter().map(|id| json!({"role": "tool", "tool_call_id": id, "content": INTERRUPTED}));
        let message = (!blocks.is_empty()).then(|| json!({"role": "user", "content": blocks}));
        let items = items
            .into_iter()
            .map(|id| json!({"type": "function_call_output", "call_id": id, "output": INTERRUPTED}));
        let answers = message.into_iter().chain(calls).chain(items);
        answers.map(|answer| Json::verbatim(&answer.to_string()).expect("it is JSON, and not deep")).collect()
    }
}

/// Takes an answered call out of those that are open.
fn close(open: &mut Vec<String>, answered: Option<&RawValue>) {
    let answered = string(answered);
    open.retain(|id| Some(id) != answered.as_ref());
}

/// An entry that is a message or an item.
#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    call_id: Option<&'a RawValue>,
    #[serde(borrow)]
    role: Option<&'a RawValue>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_calls: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_call_id: Option<&'a RawValue>,
}

impl<'a> Message<'a> {
    /// Reads an entry; `None` if it cannot hold a call or an answer. Every word that says so contains `tool` or
    /// `function_call`, unless it is written with escapes.
    fn of(entry: &'a Json) -> Option<Message<'a>> {
        let text = entry.as_str();
        if !text.contains("tool") && !text.contains("function_call") && !text.contains("\\u") {
            return None;
        }
        object(text)
    }
}

/// A content block, or a call in `tool_calls`.
#[derive(Deserialize)]
struct Block<'a> {
    #[serde(borrow)]
    r#type: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<&'a RawValue>,
    #[serde(borrow)]
    tool_use_id: Option<&'a RawValue>,
}

/// Reads an object. (Serde would also read a struct from a list of its values.)
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
    text.starts_with('{').then(|| serde_json::from_str(text).ok()).flatten()
}

/// Reads the objects of a list, and nothing from what is no list.
fn list<'a, T: Deserialize<'a>>(value: Option<&'a RawValue>) -> Vec<T> {
    let items: Vec<&RawValue> =
        value.and_then(|value| serde_json::from_str(value.get()).ok()).unwrap_or_default();
    items.into_iter().filter_map(|item| object(item.get())).collect()
}

fn string(value: Option<&RawValue>) -> Option<String> {
    value.and_then(|value| serde_json::from_str(value.get()).ok())
}
