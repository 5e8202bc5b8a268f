//! What it remembers of each conversation, and what it found.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::Value;

use super::answer::{Block, Said};
use super::letters::{first_difference, member};
use super::request::{Asking, Segment};
use super::wire::Speaks;

/// What is wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// It was refused, as the real provider would.
    Refused,
    /// It does not extend the last request of its conversation to the letter.
    Changed,
    /// It is shorter than the last request of its conversation.
    Shorter,
    /// It gives back another answer than it got.
    OtherAnswer,
    /// It gives back nothing of the answer that it got: that was given up.
    LeftOut,
}

/// A promise that the caller has broken.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The request's number, from one.
    pub request: u64,
    /// Its conversation.
    pub conversation: String,
    /// What is wrong.
    pub kind: FindingKind,
    /// What exactly, and where.
    pub message: String,
    /// The first byte of the body that is wrong, if it is one byte.
    pub byte: Option<usize>,
}

/// The last request of a conversation.
#[derive(Debug)]
struct Last {
    request: u64,
    segments: Vec<Segment>,
    /// Its answers: more than one if it came more than once.
    answers: Vec<Vec<Block>>,
}

/// A call of a tool that it made.
#[derive(Debug)]
struct Made {
    thought: bool,
}

#[derive(Debug, Default)]
pub(super) struct Memory {
    last: HashMap<u64, Last>,
    made: HashMap<String, Made>,
    pub findings: Vec<Finding>,
}

impl Memory {
    /// Whether it thought before it called a tool under this id.
    pub fn thought_before(&self, id: &str) -> bool {
        self.made.get(id).is_some_and(|made| made.thought)
    }

    pub fn conversations(&self) -> usize {
        self.last.len()
    }

    pub fn refused(&mut self, request: u64, message: &str) {
        let (conversation, message) = (String::new(), message.to_owned());
        self.findings.push(Finding {
            request,
            conversation,
            kind: FindingKind::Refused,
            message,
            byte: None,
        });
    }

    /// Compares a request with the last one of its conversation, and remembers it.
    pub fn asked(&mut self, request: u64, asking: &Asking) {
        let mut answers = Vec::new();
        if let Some(last) = self.last.remove(&asking.conversation) {
            match compared(&last, asking) {
                Ok(0) => answers = last.answers,
                Ok(_) => {}
                Err((kind, message, byte)) => {
                    let conversation = named(asking.conversation);
                    self.findings.push(Finding { request, conversation, kind, message, byte });
                }
            }
        }
        let last = Last { request, segments: asking.segments.clone(), answers };
        self.last.insert(asking.conversation, last);
    }

    /// Remembers an answer. Returns whether this request had one before.
    pub fn answered(&mut self, request: u64, asking: &Asking, said: &Said) -> bool {
        let blocks: Vec<Block> = said.blocks.iter().map(|(block, _)| block.clone()).collect();
        let thought = blocks.iter().any(|block| matches!(block, Block::Thinking { .. }));
        for block in &blocks {
            if let Block::Tool { id, .. } = block {
                self.made.insert(id.clone(), Made { thought });
            }
        }
        let last = self.last.get_mut(&asking.conversation).filter(|last| last.request == request);
        last.is_some_and(|last| {
            last.answers.push(blocks);
            last.answers.len() > 1
        })
    }
}

/// Returns the name of a conversation.
pub(super) fn named(conversation: u64) -> String {
    format!("{conversation:016x}")
}

type Wrong = (FindingKind, String, Option<usize>);

/// Returns how many parts a request has more than the last one.
fn compared(last: &Last, asking: &Asking) -> Result<usize, Wrong> {
    let before = last.request;
    for (was, is) in last.segments.iter().zip(&asking.segments) {
        if let Some(byte) = first_difference(&was.text, &is.text) {
            let message = format!(
                "{} is not what it was in request {before}, from its byte {byte}: it was `{}` and is `{}`",
                is.place,
                around(&was.text, byte),
                around(&is.text, byte)
            );
            let message = match was.place == is.place {
                true => message,
                false => format!("{} is where {} was in request {before}", is.place, was.place),
            };
            return Err((FindingKind::Changed, message, Some(is.at + byte)));
        }
    }
    let (had, has) = (last.segments.len(), asking.segments.len());
    if has < had {
        let next = &last.segments[has].place;
        return Err((FindingKind::Shorter, format!("it ends before {next} of request {before}"), None));
    }
    let added = &asking.segments[had..];
    if !added.is_empty() && !last.answers.is_empty() {
        let found: Vec<Result<(), Wrong>> =
            last.answers.iter().map(|answer| gives_back(asking.speaks, answer, added)).collect();
        if !found.iter().any(Result::is_ok) {
            if is_by_user(&added[0]) {
                let what = format!("{}: nothing of what was answered is before it", added[0].place);
                return Err((FindingKind::LeftOut, what, Some(added[0].at)));
            }
            return found.into_iter().next_back().unwrap_or(Ok(())).map(|()| 0);
        }
    }
    Ok(has - had)
}

/// Whether a segment is a person's message. Those of Messages have the role before their text.
fn is_by_user(segment: &Segment) -> bool {
    let is_user = |item: Value| item["role"] == "user";
    segment.text.starts_with("\"user\"") || serde_json::from_str(&segment.text).is_ok_and(is_user)
}

/// Checks that what was added begins with an answer, to the letter where a provider looks at letters.
fn gives_back(speaks: Speaks, answer: &[Block], added: &[Segment]) -> Result<(), Wrong> {
    match speaks {
        Speaks::Messages => {}
        Speaks::Chat => return arguments(answer, added),
        Speaks::Responses => return items(answer, added).and_then(|()| arguments(answer, added)),
    }
    const ASSISTANT: &str = "\"assistant\"";
    let mut given = added.iter();
    for block in taken_back(answer) {
        let wrong = |segment: Option<&Segment>, what: &str| {
            let place = segment.map_or("its end", |segment| segment.place.as_str());
            (FindingKind::OtherAnswer, format!("{place}: {what}"), segment.map(|segment| segment.at))
        };
        let segment = given.next();
        let raw = segment.and_then(|segment| segment.text.strip_prefix(ASSISTANT));
        let Some(raw) = raw else { return Err(wrong(segment, "a part of the answer is missing here")) };
        let mut value: Value = serde_json::from_str(raw).unwrap_or_default();
        if value.is_string() {
            value = serde_json::json!({"type": "text", "text": value});
        }
        let same = match block {
            Block::Tool { id, name, input } => {
                let given = member(raw, "input").unwrap_or_default();
                if let Some(byte) = first_difference(input, given) {
                    let what = format!(
                        "the input of {id} differs from its byte {byte}: it was `{}` and is `{}`",
                        around(input, byte),
                        around(given, byte)
                    );
                    return Err(wrong(segment, &what));
                }
                value["id"] == **id && value["name"] == **name
            }
            Block::Thinking { text, signature } => {
                value["thinking"] == **text && value["signature"] == **signature
            }
            Block::Text(text) => value["type"] == "text" && value["text"] == **text,
            Block::Raw(raw) => serde_json::from_str::<Value>(raw).is_ok_and(|answered| answered == value),
        };
        if !same {
            return Err(wrong(segment, "it is not what was answered"));
        }
    }
    Ok(())
}

/// Returns what Messages takes back of an answer: no thought that was cut, no text that says nothing, no thought at
/// the end.
fn taken_back(answer: &[Block]) -> Vec<&Block> {
    let is_taken = |block: &&Block| match block {
        Block::Thinking { signature, .. } => !signature.is_empty(),
        Block::Text(text) => !text.trim().is_empty(),
        Block::Tool { .. } | Block::Raw(_) => true,
    };
    let mut taken: Vec<&Block> = answer.iter().filter(is_taken).collect();
    while taken.last().is_some_and(|block| matches!(block, Block::Thinking { .. })) {
        taken.pop();
    }
    taken
}

/// Checks that the items of Responses come back in their order. Those that nothing follows may be left out: reasoning
/// that was cut.
fn items(answer: &[Block], added: &[Segment]) -> Result<(), Wrong> {
    let mut given = added.iter().peekable();
    for (at, block) in answer.iter().enumerate() {
        let same = |segment: &&Segment| {
            let item: Value = serde_json::from_str(&segment.text).unwrap_or_default();
            let is = |field: &str, text: &str| item[field] == *text;
            match block {
                Block::Thinking { signature, .. } => {
                    let seal = item["encrypted_content"].as_str();
                    is("type", "reasoning") && seal.is_none_or(|seal| seal == signature)
                }
                Block::Text(text) => {
                    is("role", "assistant") && segment.text.contains(&Value::from(text.as_str()).to_string())
                }
                Block::Tool { id, name, .. } => is("call_id", id) && is("name", name),
                Block::Raw(raw) => serde_json::from_str::<Value>(raw).is_ok_and(|answered| answered == item),
            }
        };
        let may_be_left_out = match block {
            Block::Thinking { signature, .. } => signature.is_empty() || at + 1 == answer.len(),
            Block::Text(text) => text.is_empty(),
            Block::Tool { .. } | Block::Raw(_) => false,
        };
        if given.next_if(same).is_none() && !may_be_left_out {
            let segment = given.peek();
            let place = segment.map_or("its end", |segment| segment.place.as_str());
            let what = format!("{place}: it is not item {at} of what was answered");
            return Err((FindingKind::OtherAnswer, what, segment.map(|segment| segment.at)));
        }
    }
    Ok(())
}

/// Checks the arguments of OpenAI's calls, which are texts.
fn arguments(answer: &[Block], added: &[Segment]) -> Result<(), Wrong> {
    for block in answer {
        let Block::Tool { id, input, .. } = block else { continue };
        let written = Value::from(input.as_str()).to_string();
        let holds = |segment: &&Segment| segment.text.contains(id.as_str());
        match added.iter().find(holds) {
            Some(segment) if segment.text.contains(&written) => {}
            other => {
                let place = other.map_or("its end", |segment| segment.place.as_str());
                let what = format!("{place}: the arguments of {id} are not what was answered");
                return Err((FindingKind::OtherAnswer, what, other.map(|segment| segment.at)));
            }
        }
    }
    Ok(())
}

/// Returns some letters around a byte.
fn around(text: &str, byte: usize) -> String {
    let bytes = text.as_bytes();
    let from = byte.saturating_sub(20).min(bytes.len());
    String::from_utf8_lossy(&bytes[from..bytes.len().min(byte + 30)]).into_owned()
}
