//! The wires on which models are called: how an answer is put together from its events, and how our own entries look.

use std::collections::HashSet;

use job::Json;
use serde::{Deserialize, Serialize};
use tools::{Content, Output};

pub(crate) mod chat;
pub(crate) mod messages;
pub(crate) mod responses;

use crate::answer::{Answer, NoAnswer, ToolCall};
use crate::config::OpenAiApi;
use crate::raw::quoted;

/// Stands before the text of a result that is an error. OpenAI's wires have no mark for it.
pub(crate) const ERROR: &str = "Error: ";

/// A protocol for model calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wire {
    /// Anthropic's `/v1/messages`.
    Messages,
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// OpenAI's `/v1/responses`.
    Responses,
}

impl From<OpenAiApi> for Wire {
    fn from(api: OpenAiApi) -> Wire {
        match api {
            OpenAiApi::Chat => Wire::Chat,
            OpenAiApi::Responses => Wire::Responses,
        }
    }
}

impl Wire {
    /// Returns the wire of a model. Anthropic's names have begun alike since the first; all others speak OpenAI's, on the
    /// wire that the agent has chosen.
    pub fn of(model: &str, openai: OpenAiApi) -> Wire {
        if model.starts_with("claude") { Wire::Messages } else { openai.into() }
    }

    /// Returns the name of its provider.
    pub fn provider(self) -> &'static str {
        match self {
            Wire::Messages => "anthropic",
            Wire::Chat | Wire::Responses => "openai",
        }
    }

    /// Returns the path of its requests.
    pub fn path(self) -> &'static str {
        match self {
            Wire::Messages => "/v1/messages",
            Wire::Chat => "/v1/chat/completions",
            Wire::Responses => "/v1/responses",
        }
    }

    /// Returns the field of a request that holds the conversation.
    pub fn conversation(self) -> &'static str {
        match self {
            Wire::Messages | Wire::Chat => "messages",
            Wire::Responses => "input",
        }
    }

    /// Returns the field of a request that limits its output.
    pub fn output_limit(self) -> &'static str {
        match self {
            Wire::Messages => "max_tokens",
            Wire::Chat => "max_completion_tokens",
            Wire::Responses => "max_output_tokens",
        }
    }

    /// Begins an answer.
    pub fn assembly(self) -> Assembly {
        match self {
            Wire::Messages => Assembly::Messages(messages::Assembly::default()),
            Wire::Chat => Assembly::Chat(chat::Assembly::default()),
            Wire::Responses => Assembly::Responses(responses::Assembly::default()),
        }
    }

    /// Writes what a user says.
    pub fn said(self, text: &str) -> Json {
        let text = match self {
            Wire::Messages => {
                format!(r#"{{"role":"user","content":[{{"type":"text","text":{}}}]}}"#, quoted(text))
            }
            Wire::Chat => format!(r#"{{"role":"user","content":{}}}"#, quoted(text)),
            Wire::Responses => responses::said("user", text),
        };
        ours(&text)
    }

    /// Writes the result of a call.
    pub fn result(self, call: &str, output: &Output) -> Json {
        match self {
            Wire::Messages => {
                // This wire refuses a text that says nothing, and takes a result without content.
                let content = output.content.iter().filter_map(|content| match content {
                    Content::Text(text) if is_blank(text) => None,
                    Content::Text(text) => Some(format!(r#"{{"type":"text","text":{}}}"#, quoted(text))),
                    Content::Image { media_type, data } => Some(format!(
                        r#"{{"type":"image","source":{{"type":"base64","media_type":{},"data":{}}}}}"#,
                        quoted(media_type),
                        quoted(data)
                    )),
                });
                let content = content.collect::<Vec<_>>().join(",");
                let is_error = if output.is_error { r#","is_error":true"# } else { "" };
                ours(&format!(
                    r#"{{"role":"user","content":[{{"type":"tool_result","tool_use_id":{},"content":[{content}]{is_error}}}]}}"#,
                    quoted(call)
                ))
            }
            // This wire takes text alone here.
            Wire::Chat => {
                let texts = output.content.iter().map(|content| match content {
                    Content::Text(text) => text.as_str(),
                    Content::Image { .. } => "[an image, which this model cannot be shown]",
                });
                let text = texts.collect::<Vec<_>>().join("\n");
                let text = if output.is_error { format!("{ERROR}{text}") } else { text };
                ours(&format!(
                    r#"{{"role":"tool","tool_call_id":{},"content":{}}}"#,
                    quoted(call),
                    quoted(&text)
                ))
            }
            Wire::Responses => ours(&responses::result(call, output)),
        }
    }

    /// Returns the calls of an assistant's entry, and of any other the calls whose results it holds.
    pub fn calls(self, entry: &str) -> Calls {
        match self {
            Wire::Messages => messages::calls(entry),
            Wire::Chat => chat::calls(entry),
            Wire::Responses => responses::calls(entry),
        }
    }
}

/// What an entry of the context has to do with tools.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Calls {
    /// The calls that an assistant makes; often none.
    Made(Vec<ToolCall>),
    /// The ids of calls that are answered here; often none.
    Answered(Vec<String>),
}

/// An answer on its way.
pub(crate) enum Assembly {
    /// Of Messages.
    Messages(messages::Assembly),
    /// Of Chat Completions.
    Chat(chat::Assembly),
    /// Of Responses.
    Responses(responses::Assembly),
}

impl Assembly {
    /// Takes the data of the next event. Returns the text that it adds.
    pub fn event(&mut self, data: &str) -> Result<Option<String>, NoAnswer> {
        match self {
            Assembly::Messages(assembly) => assembly.event(data),
            Assembly::Chat(assembly) => assembly.event(data),
            Assembly::Responses(assembly) => assembly.event(data),
        }
    }

    /// Returns whether its own end has come.
    pub fn has_ended(&self) -> bool {
        match self {
            Assembly::Messages(assembly) => assembly.has_ended(),
            Assembly::Chat(assembly) => assembly.has_ended(),
            Assembly::Responses(assembly) => assembly.has_ended(),
        }
    }

    /// Returns the whole answer. A result names its call by the id alone, so an answer whose calls share one is none: no
    /// provider would take it back with its results.
    pub fn finish(self) -> Result<Answer, NoAnswer> {
        let answer = match self {
            Assembly::Messages(assembly) => assembly.finish(),
            Assembly::Chat(assembly) => assembly.finish(),
            Assembly::Responses(assembly) => assembly.finish(),
        }?;
        let mut ids = HashSet::new();
        match answer.calls.iter().find(|call| call.id.is_empty() || !ids.insert(&call.id)) {
            Some(call) if call.id.is_empty() => Err(NoAnswer::garbage("a call without its id")),
            Some(call) => Err(NoAnswer::garbage(format!("two calls with the id {}", quoted(&call.id)))),
            None => Ok(answer),
        }
    }
}

/// Returns whether a text says nothing. Messages refuses a block of it.
pub(crate) fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

/// Returns an entry that this crate has written.
fn ours(text: &str) -> Json {
    Json::verbatim(text).expect("an entry that was written here is JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(wire: Wire, ids: [&str; 2]) -> Result<Answer, NoAnswer> {
        let [one, other] = ids;
        let events = match wire {
            Wire::Messages => {
                let block = |at: usize, id: &str| {
                    format!(
                        r#"{{"type":"content_block_start","index":{at},"content_block":{{"type":"tool_use","id":"{id}","name":"look","input":{{}}}}}}"#
                    )
                };
                let stop = r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"}}"#.to_owned();
                vec![block(0, one), block(1, other), stop, r#"{"type":"message_stop"}"#.to_owned()]
            }
            Wire::Chat => {
                let call = |at: usize, id: &str| {
                    format!(r#"{{"index":{at},"id":"{id}","function":{{"name":"look","arguments":"{{}}"}}}}"#)
                };
                let calls = [call(0, one), call(1, other)].join(",");
                let chunk = format!(
                    r#"{{"choices":[{{"delta":{{"tool_calls":[{calls}]}},"finish_reason":"tool_calls"}}]}}"#
                );
                vec![chunk, "[DONE]".to_owned()]
            }
            Wire::Responses => {
                let item = |id: &str| responses::called(id, "look", "{}");
                let items = [item(one), item(other)].join(",");
                vec![format!(
                    r#"{{"type":"response.completed","response":{{"status":"completed","output":[{items}]}}}}"#
                )]
            }
        };
        let mut assembly = wire.assembly();
        for event in events {
            assembly.event(&event)?;
        }
        assembly.finish()
    }

    #[test]
    fn an_answer_whose_calls_share_an_id_or_have_none_is_none() {
        for wire in [Wire::Messages, Wire::Chat, Wire::Responses] {
            assert_eq!(finished(wire, ["a", "b"]).expect("an answer").calls.len(), 2, "{wire:?}");
            let said = finished(wire, ["a", "a"]).expect_err("two alike").to_string();
            assert!(said.contains(r#"two calls with the id "a""#), "{wire:?}: {said}");
            let said = finished(wire, ["a", ""]).expect_err("one without").to_string();
            assert!(said.contains("a call without its id"), "{wire:?}: {said}");
        }
    }
}
