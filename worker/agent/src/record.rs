//! The turn that is open, as a record in words. Pure.
//!
//! Messages takes the calls of the open turn back only behind the thinking that stood before them, signed for these
//! messages by this model. Where the messages before it have changed, or the model, that thinking is gone. So a message of the
//! user says what was done in that turn, and the turn begins anew. Calls of earlier turns stay as they are.

use job::Json;

use crate::neutral::{self, Part};
use crate::raw::{Fields, items, quoted, raw};
use crate::wire::{Calls, Wire, messages};

const SO_FAR: &str = "This is the record of what you have done about it so far. Go on from it.";

impl Part {
    /// Says it in words.
    pub fn told(&self, by_model: bool) -> String {
        match self {
            Part::Text(text) => format!("{}: {text}", if by_model { "Agent" } else { "User" }),
            Part::Call { name, input, .. } => format!("Agent calls {name}: {input}"),
            Part::Result { text, is_error, .. } => {
                format!("{}: {text}", if *is_error { "Error" } else { "Result" })
            }
        }
    }
}

/// Returns a conversation without thinking as a provider takes it: what the open turn has called is told in words.
pub(crate) fn with_record(wire: Wire, mut conversation: Vec<Json>) -> Vec<Json> {
    if wire != Wire::Messages {
        return conversation;
    }
    let (mut began, mut behind_results, mut has_ended) = (0, false, false);
    let (mut made, mut answered) = (Vec::new(), Vec::new());
    for (at, message) in conversation.iter().enumerate() {
        match wire.calls(message.as_str()) {
            Calls::Made(calls) => {
                (behind_results, has_ended) = (false, calls.is_empty());
                made.extend(calls.into_iter().map(|call| call.id));
            }
            Calls::Answered(ids) => {
                // What is said behind results is one message with them, and goes on with their turn.
                behind_results |= !ids.is_empty();
                answered.extend(ids);
                has_ended = false;
                if !behind_results {
                    began = at + 1;
                    made.clear();
                }
            }
        }
    }
    let is_open = !has_ended && !made.is_empty() && made.iter().all(|id| answered.contains(id));
    if is_open {
        let record = record(&conversation[began..]);
        conversation.truncate(began);
        conversation.push(record);
    }
    conversation
}

fn record(turn: &[Json]) -> Json {
    let (mut blocks, mut text) = (Vec::new(), SO_FAR.to_owned());
    for message in turn {
        let Some(said) = neutral::read(Wire::Messages, message) else { continue };
        for part in &said.parts {
            text.push_str("\n\n");
            text.push_str(&part.told(said.by_model));
        }
        let images = images(message);
        if !images.is_empty() {
            blocks.push(block(&std::mem::take(&mut text)));
            blocks.extend(images);
        }
    }
    if !text.is_empty() {
        blocks.push(block(text.trim_start()));
    }
    let mut entry = Fields::default();
    entry.set("role", raw(quoted("user")));
    entry.set("content", raw(format!("[{}]", blocks.join(","))));
    Json::verbatim(&entry.write()).expect("an entry that was written here is JSON")
}

fn block(text: &str) -> String {
    format!(r#"{{"type":"text","text":{}}}"#, quoted(text))
}

/// Returns the images of a message's results, to the letter.
fn images(message: &Json) -> Vec<String> {
    let is_image =
        |text: &str| Fields::parse(text).is_ok_and(|block| block.text("type").as_deref() == Some("image"));
    let fields = Fields::parse(message.as_str()).unwrap_or_default();
    let results = messages::blocks(&fields).into_iter().filter(|block| block.raw("tool_use_id").is_some());
    let content =
        results.flat_map(|block| block.raw("content").and_then(|it| items(it).ok()).unwrap_or_default());
    content.map(|block| block.get().to_owned()).filter(|block| is_image(block)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(text: &str) -> Json {
        Json::parse(text).unwrap()
    }

    fn texts(all: &[Json]) -> Vec<&str> {
        all.iter().map(Json::as_str).collect()
    }

    const SAID: &str = r#"{"role":"user","content":[{"type":"text","text":"Add."}]}"#;
    const CALLED: &str = r#"{"role":"assistant","content":[{"type":"text","text":"I add."},{"type":"tool_use","id":"a","name":"add","input":{"n":1e5}}]}"#;
    const RESULT: &str = r#"{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":[{"type":"text","text":"7"},{"type":"image","source":{"type":"base64","media_type":"image/png","data":"eA=="}}]}]}"#;
    const BEHIND: &str = r#"{"role":"user","content":[{"type":"text","text":"The server is new."}]}"#;
    const ANSWERED: &str = r#"{"role":"assistant","content":[{"type":"text","text":"Seven."}]}"#;

    #[test]
    fn the_open_turn_is_told_with_its_images_and_others_stay() {
        let all: Vec<Json> = [SAID, CALLED, RESULT, BEHIND].map(json).into();
        let told = with_record(Wire::Messages, all.clone());
        assert_eq!(told.len(), 2);
        assert_eq!(told[0].as_str(), SAID);
        let record = told[1].as_str();
        for said in
            ["Agent: I add.", r#"Agent calls add: {\"n\":1e5}"#, "Result: 7", "User: The server is new."]
        {
            assert!(record.contains(said), "{said}: {record}");
        }
        assert!(record.contains(r#"{"type":"image","source":{"type":"base64""#));
        assert!(!record.contains("tool_use"), "{record}");
        for wire in [Wire::Chat, Wire::Responses] {
            assert_eq!(with_record(wire, all.clone()), all);
        }
        let ended = [SAID, CALLED, RESULT, ANSWERED, SAID];
        for closed in [&ended[..4], &ended] {
            let all = closed.iter().map(|text| json(text)).collect();
            assert_eq!(texts(&with_record(Wire::Messages, all)), closed);
        }
    }

    #[test]
    fn a_call_without_its_result_stays() {
        let all: Vec<Json> = [SAID, CALLED].map(json).into();
        assert_eq!(with_record(Wire::Messages, all.clone()), all);
        assert!(with_record(Wire::Messages, Vec::new()).is_empty());
    }
}
