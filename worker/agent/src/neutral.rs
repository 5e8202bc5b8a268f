//! What a message says, apart from its wire: for a session that goes on with another wire or model, and for summaries.
//!
//! Thinking stays behind: a provider takes it back from nobody but the model that thought it.

use std::collections::{HashMap, HashSet};

use job::Json;
use serde::Deserialize;
use serde_json::value::RawValue;
use tools::{Content, Ended, Output};

use crate::answer::{embedded, storable};
use crate::raw::{self, Fields, items, quoted};
use crate::wire::{Calls, ERROR, Wire, is_blank, messages, responses};

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    /// Whether the model said it.
    pub by_model: bool,
    /// What it says.
    pub parts: Vec<Part>,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Text(String),
    Call { id: String, name: String, input: String },
    Result { call: String, text: String, is_error: bool },
}

/// Reads a message of a wire. What has no counterpart on the other wire is left out, and so is what cannot be kept: from here
/// on it is ours.
pub(crate) fn read(wire: Wire, entry: &Json) -> Option<Said> {
    let mut said = match wire {
        Wire::Messages => from_messages(entry.as_str())?,
        Wire::Chat => from_chat(entry.as_str())?,
        Wire::Responses => from_responses(entry.as_str())?,
    };
    said.parts.iter_mut().for_each(Part::clean);
    said.parts.retain(|part| !matches!(part, Part::Text(text) if text.is_empty()));
    (!said.parts.is_empty()).then_some(said)
}

impl Part {
    fn clean(&mut self) {
        let texts = match self {
            Part::Text(text) => vec![text],
            Part::Call { id, name, .. } => vec![id, name],
            Part::Result { call, text, .. } => vec![call, text],
        };
        texts.into_iter().for_each(|text| *text = storable(std::mem::take(text)));
    }
}

/// The longest id or name that is taken over to Messages.
const LONGEST_NAME: usize = 64;

/// The ids of calls in a conversation that is written anew for Messages. It takes letters, digits, `_` and `-`, and each id once
/// in a request. Others write `functions.look:0`, and some number the calls of each answer anew. What does not fit, or was there
/// before, becomes an id of its place and the old one: the same at each rendering.
#[derive(Default)]
pub(crate) struct CallIds {
    taken: HashSet<String>,
    /// What became of each id last: a result answers the last call of its id.
    now: HashMap<String, String>,
    calls: usize,
}

impl CallIds {
    /// Notes the calls of messages that go to Messages to the letter.
    pub fn of<'m>(to_the_letter: impl Iterator<Item = &'m Json>) -> CallIds {
        let made = to_the_letter.flat_map(|message| match Wire::Messages.calls(message.as_str()) {
            Calls::Made(made) => made,
            Calls::Answered(_) => Vec::new(),
        });
        CallIds { taken: made.map(|call| call.id).collect(), ..CallIds::default() }
    }

    /// Gives the calls and results of the next message their ids.
    pub fn give(&mut self, said: &mut Said) {
        for part in &mut said.parts {
            match part {
                Part::Call { id, name, .. } => {
                    let given = self.next(id);
                    self.now.insert(std::mem::replace(id, given.clone()), given);
                    // A model may call what no tool is named.
                    if !is_name(name) {
                        *name = format!("_{}", plain(name));
                    }
                }
                Part::Result { call, .. } => {
                    if let Some(given) = self.now.get(call) {
                        call.clone_from(given);
                    }
                }
                Part::Text(_) => {}
            }
        }
    }

    fn next(&mut self, id: &str) -> String {
        self.calls += 1;
        let mut given = id.to_owned();
        if !is_name(id) || self.taken.contains(id) {
            given = format!("call_{}_{}", self.calls, plain(id));
        }
        while !self.taken.insert(given.clone()) {
            given.push('_');
        }
        given
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn is_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_plain)
}

/// Returns the beginning of an id or name, in letters that every provider takes.
fn plain(name: &str) -> String {
    let start = name.chars().take(LONGEST_NAME / 2);
    start.map(|c| if is_plain(c) { c } else { '_' }).collect()
}

fn from_messages(entry: &str) -> Option<Said> {
    let message = Fields::parse(entry).ok()?;
    let by_model = message.text("role")? == "assistant";
    if let Some(text) = message.text("content") {
        return Some(Said { by_model, parts: vec![Part::Text(text)] });
    }
    let part = |block: Fields| match &*block.text("type")? {
        "text" => block.text("text").filter(|text| !text.is_empty()).map(Part::Text),
        "tool_use" => Some(Part::Call {
            id: block.text("id")?,
            name: block.text("name")?,
            input: block.raw("input").unwrap_or("{}").to_owned(),
        }),
        "tool_result" => Some(Part::Result {
            call: block.text("tool_use_id")?,
            text: text_of(block.raw("content").unwrap_or("\"\"")),
            is_error: block.raw("is_error") == Some("true"),
        }),
        "image" | "document" => Some(Part::Text(format!("[{}]", block.text("type")?))),
        _ => None,
    };
    let parts = messages::blocks(&message).into_iter().filter_map(part).collect();
    Some(Said { by_model, parts })
}

/// Returns the text of a content that is a text or a list of blocks.
fn text_of(content: &str) -> String {
    if let Some(text) = raw::text(content) {
        return text;
    }
    let said = |block: Box<RawValue>| {
        let block = Fields::parse(block.get()).unwrap_or_default();
        let kind = || format!("[{}]", block.text("type").as_deref().unwrap_or("content"));
        block.text("text").unwrap_or_else(kind)
    };
    let texts: Vec<String> = items(content).unwrap_or_default().into_iter().map(said).collect();
    texts.join("\n")
}

#[derive(Deserialize)]
struct ChatEntry {
    role: String,
    content: Option<Box<RawValue>>,
    tool_call_id: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ChatCall>>,
}

#[derive(Deserialize)]
struct ChatCall {
    id: String,
    function: ChatFunction,
}

#[derive(Deserialize)]
struct ChatFunction {
    name: String,
    arguments: String,
}

fn from_chat(entry: &str) -> Option<Said> {
    let ChatEntry { role, content, tool_call_id, tool_calls } = serde_json::from_str(entry).ok()?;
    let text = content.map(|content| text_of(content.get())).filter(|text| !text.is_empty());
    let parts = match (&*role, tool_call_id) {
        ("tool", Some(call)) => {
            vec![result(call, text.unwrap_or_default())]
        }
        ("system" | "developer", _) => return None,
        _ => {
            let calls = tool_calls.unwrap_or_default().into_iter().map(|call| Part::Call {
                id: call.id,
                name: call.function.name,
                input: call.function.arguments,
            });
            text.map(Part::Text).into_iter().chain(calls).collect()
        }
    };
    Some(Said { by_model: role == "assistant", parts })
}

/// Reads a result of OpenAI's wires.
fn result(call: String, text: String) -> Part {
    match text.strip_prefix(ERROR) {
        Some(text) => Part::Result { call, text: text.to_owned(), is_error: true },
        None => Part::Result { call, text, is_error: false },
    }
}

fn from_responses(entry: &str) -> Option<Said> {
    let item = Fields::parse(entry).ok()?;
    let role = item.text("role");
    let by_model = role.as_deref() == Some("assistant");
    let parts = match item.text("type").as_deref() {
        Some("function_call") => {
            let (id, name) = (item.text("call_id")?, item.text("name")?);
            let input = item.text("arguments").unwrap_or_default();
            return Some(Said { by_model: true, parts: vec![Part::Call { id, name, input }] });
        }
        Some("function_call_output") => {
            let text = text_of(item.raw("output").unwrap_or("\"\""));
            vec![result(item.text("call_id")?, text)]
        }
        Some("message") | None if !matches!(role.as_deref()?, "system" | "developer") => {
            let text = text_of(item.raw("content").unwrap_or("\"\""));
            let text = if by_model { said_in(&item).unwrap_or(text) } else { text };
            if text.is_empty() { Vec::new() } else { vec![Part::Text(text)] }
        }
        _ => return None,
    };
    Some(Said { by_model, parts })
}

/// Returns the text of a model's message of Responses, if it has its parts.
fn said_in(message: &Fields) -> Option<String> {
    let parts = responses::content(message);
    (!parts.is_empty()).then(|| parts.iter().filter_map(|part| part.text("text")).collect())
}

/// Writes a message on a wire: one entry, or one for each result where the wire has it so.
pub(crate) fn write(wire: Wire, said: &Said) -> Vec<Json> {
    let mut entries: Vec<Json> = Vec::new();
    if said.by_model {
        match wire {
            Wire::Messages => entries.extend(assistant_of_messages(&said.parts)),
            Wire::Chat => entries.extend(Json::parse(&assistant_of_chat(&said.parts))),
            Wire::Responses => entries.extend(said.parts.iter().filter_map(item_of_responses)),
        }
        return entries;
    }
    for part in &said.parts {
        match part {
            Part::Text(text) if wire == Wire::Messages && is_blank(text) => {}
            Part::Text(text) => entries.push(wire.said(text)),
            Part::Result { call, text, is_error } => {
                let ended = if *is_error { Ended::Failed } else { Ended::Done };
                let output =
                    Output { content: vec![Content::Text(text.clone())], is_error: *is_error, ended };
                entries.push(wire.result(call, &output));
            }
            Part::Call { .. } => {}
        }
    }
    entries
}

/// There is none where nothing is said.
fn assistant_of_messages(parts: &[Part]) -> Option<Json> {
    let block = |part: &Part| match part {
        Part::Text(text) if is_blank(text) => None,
        Part::Text(text) => Some(format!(r#"{{"type":"text","text":{}}}"#, quoted(text))),
        Part::Call { id, name, input } => {
            // The other wire takes arguments that are no object; this one does not.
            let input = embedded(input, false);
            let input = input.as_ref().map_or("{}", Json::as_str);
            Some(format!(
                r#"{{"type":"tool_use","id":{},"name":{},"input":{input}}}"#,
                quoted(id),
                quoted(name)
            ))
        }
        Part::Result { .. } => None,
    };
    let blocks = parts.iter().filter_map(block).collect::<Vec<_>>().join(",");
    let entry = format!(r#"{{"role":"assistant","content":[{blocks}]}}"#);
    Json::parse(&entry).ok().filter(|_| !blocks.is_empty())
}

fn item_of_responses(part: &Part) -> Option<Json> {
    let item = match part {
        Part::Text(text) => responses::said("assistant", text),
        Part::Call { id, name, input } => responses::called(id, name, input),
        Part::Result { .. } => return None,
    };
    Json::parse(&item).ok()
}

fn assistant_of_chat(parts: &[Part]) -> String {
    let texts = parts.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let text = texts.collect::<Vec<_>>().join("\n");
    let calls = parts.iter().filter_map(|part| match part {
        Part::Call { id, name, input } => Some(format!(
            r#"{{"id":{},"type":"function","function":{{"name":{},"arguments":{}}}}}"#,
            quoted(id),
            quoted(name),
            quoted(input)
        )),
        _ => None,
    });
    let calls = calls.collect::<Vec<_>>().join(",");
    let content = if text.is_empty() { "null".to_owned() } else { quoted(&text) };
    if calls.is_empty() {
        format!(r#"{{"role":"assistant","content":{content}}}"#)
    } else {
        format!(r#"{{"role":"assistant","content":{content},"tool_calls":[{calls}]}}"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_conversation_says_the_same_on_the_other_wire_but_for_its_thinking() {
        let messages = [
            r#"{"role":"user","content":[{"type":"text","text":"Add."}]}"#,
            r#"{"role":"assistant","content":[{"type":"thinking","thinking":"Hm","signature":"x"},{"type":"text","text":"I add."},{"type":"tool_use","id":"t1","name":"add","input":{"z":1e5}}]}"#,
            r#"{"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"7"}],"is_error":true}]}"#,
        ];
        let chat: Vec<Json> = messages
            .iter()
            .filter_map(|entry| read(Wire::Messages, &Json::parse(entry).unwrap()))
            .flat_map(|said| write(Wire::Chat, &said))
            .collect();
        let chat_texts: Vec<&str> = chat.iter().map(Json::as_str).collect();
        assert_eq!(
            chat_texts,
            [
                r#"{"role":"user","content":"Add."}"#,
                r#"{"role":"assistant","content":"I add.","tool_calls":[{"id":"t1","type":"function","function":{"name":"add","arguments":"{\"z\":1e5}"}}]}"#,
                r#"{"role":"tool","tool_call_id":"t1","content":"Error: 7"}"#,
            ]
        );
        let back: Vec<Json> = chat
            .iter()
            .filter_map(|entry| read(Wire::Chat, entry))
            .flat_map(|said| write(Wire::Messages, &said))
            .collect();
        assert_eq!(back[0].as_str(), messages[0]);
        assert_eq!(
            back[1].as_str(),
            r#"{"role":"assistant","content":[{"type":"text","text":"I add."},{"type":"tool_use","id":"t1","name":"add","input":{"z":1e5}}]}"#
        );
        assert!(back[2].as_str().contains(r#""tool_use_id":"t1""#));
    }

    #[test]
    fn each_call_has_an_id_of_its_own_that_messages_takes_and_its_result_names_it() {
        let native = r#"{"role":"assistant","content":[{"type":"tool_use","id":"a","name":"f","input":{}}]}"#;
        let native = [Json::parse(native).unwrap()];
        let given = || {
            let mut ids = CallIds::of(native.iter());
            let mut all = Vec::new();
            for old in ["b", "a", "b", "functions.f:0", "call_5_b_", "b", "", "é"] {
                let call = Part::Call { id: old.to_owned(), name: "a.f".to_owned(), input: "{}".to_owned() };
                let text = String::new();
                let result = Part::Result { call: old.to_owned(), text, is_error: false };
                let mut said = Said { by_model: true, parts: vec![call, result] };
                ids.give(&mut said);
                let [Part::Call { id, name, .. }, Part::Result { call, .. }] = &said.parts[..] else {
                    panic!()
                };
                assert!(id == call && is_name(id) && name == "_a_f", "{said:?}");
                all.push(id.clone());
            }
            all
        };
        let expected = [
            "b",
            "call_2_a",
            "call_3_b",
            "call_4_functions_f_0",
            "call_5_b_",
            "call_6_b",
            "call_7_",
            "call_8__",
        ];
        assert_eq!(given(), expected);
        assert_eq!(given(), expected, "at each rendering");
    }

    #[test]
    fn what_cannot_be_kept_is_replaced_where_a_message_is_written_anew() {
        let said = r#"{"role":"assistant","content":[{"type":"text","text":"a\u0000\ud83d"}]}"#;
        let said = read(Wire::Messages, &Json::verbatim(said).unwrap()).unwrap();
        assert_eq!(said.parts, [Part::Text("a\u{fffd}\u{fffd}".to_owned())]);
        for wire in [Wire::Messages, Wire::Chat, Wire::Responses] {
            let entries = write(wire, &said);
            assert!(Json::parse(entries[0].as_str()).is_ok(), "{entries:?}");
            assert_eq!(read(wire, &entries[0]).unwrap(), said);
        }
        let chat = r#"{"role":"assistant","content":"a\u0000\ud83d","tool_calls":null}"#;
        assert_eq!(read(Wire::Chat, &Json::verbatim(chat).unwrap()).unwrap(), said);
    }
}
