//! A session's context as a conversation: what the next request is, and what is still to be done. Pure.
//!
//! A request is the last head's fields with the messages behind them, so each request extends the one before it to the
//! letter. What was said before the last head was said to another model, or with other tools: it is written anew, without
//! thinking, and a turn that was open then is told in words. Results that were checkpointed one by one are one message where
//! the wire wants it so.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use job::{JobId, Json};

mod digest;

use crate::answer::{StopReason, ToolCall};
use crate::marks::{Head, JobMark, TurnMark};
use crate::neutral::{self, CallIds};
use crate::raw::{Fields, items, raw};
use crate::record::with_record;
use crate::wire::{Calls, Wire, messages, responses};

pub(crate) use digest::Digest;
use digest::{Kind, Message};

/// A context as a conversation.
pub(crate) struct Transcript<'a> {
    /// What its entries are.
    kinds: &'a [Kind],
    /// The entries, in two parts.
    entries: [&'a [Json]; 2],
}

/// What comes next in a job.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Next {
    /// The job has not begun.
    Begin,
    /// Calls of tools have no result.
    Tools(Vec<ToolCall>),
    /// The model is called.
    Call,
    /// The model has ended, with this text.
    Ended(String),
}

impl<'a> Transcript<'a> {
    /// Returns the entry at this place.
    fn entry(&self, at: usize) -> Option<&'a Json> {
        let [first, second] = self.entries;
        first.get(at).or_else(|| second.get(at.checked_sub(first.len())?))
    }

    /// Returns the messages among the entries of these places.
    fn messages_of(&self, places: Range<usize>) -> impl Iterator<Item = (usize, &'a Message)> {
        let kinds = self.kinds[places.clone()].iter();
        places.zip(kinds).filter_map(|(at, kind)| match kind {
            Kind::Message(message) => Some((at, message)),
            _ => None,
        })
    }

    /// Returns the head in force at the end.
    pub fn head(&self) -> Option<&'a Head> {
        self.kinds.iter().rev().find_map(|kind| match kind {
            Kind::Head(head) => Some(head),
            _ => None,
        })
    }

    /// Returns where a job begins, and its mark.
    fn job(&self, job_id: JobId) -> Option<(usize, &'a JobMark)> {
        let found = self.kinds.iter().enumerate().rev().find_map(|(at, kind)| match kind {
            Kind::Job(mark) => Some((at, mark)),
            _ => None,
        });
        found.filter(|(_, mark)| mark.job_id == job_id)
    }

    /// Returns the answers of a job and the tokens that they used.
    pub fn used(&self, job_id: JobId) -> (u32, u64) {
        let Some((at, mark)) = self.job(job_id) else { return (0, 0) };
        self.turns(at).fold((mark.iterations, mark.tokens), |(count, tokens), turn| {
            (count.saturating_add(1), tokens.saturating_add(turn.input).saturating_add(turn.output))
        })
    }

    /// Returns the share of the window that a job has, in tokens, if it is noted.
    pub fn share(&self, job_id: JobId) -> Option<u64> {
        self.job(job_id).map(|(_, mark)| mark.context_tokens).filter(|share| *share > 0)
    }

    fn turns(&self, from: usize) -> impl Iterator<Item = &'a TurnMark> {
        self.kinds[from..].iter().filter_map(|kind| match kind {
            Kind::Turn(mark) => Some(mark),
            _ => None,
        })
    }

    /// Returns what comes next.
    pub fn next(&self, job_id: JobId) -> Next {
        let (Some((began, mark)), Some(_)) = (self.job(job_id), self.head()) else { return Next::Begin };
        let SoFar { open, answer, last } = self.so_far(began, mark);
        match last {
            _ if !open.is_empty() => Next::Tools(self.calls(&open)),
            Some(Last::Turn(stop)) if !stop.goes_on() => Next::Ended(self.text(answer)),
            _ => Next::Call,
        }
    }

    /// Returns what an answer has said so far whose rest is still to come.
    pub fn said_so_far(&self, job_id: JobId) -> String {
        let Some((began, mark)) = self.job(job_id) else { return String::new() };
        self.text(self.so_far(began, mark).answer)
    }

    /// Reads how far a job has come since its mark.
    fn so_far(&self, began: usize, mark: &'a JobMark) -> SoFar<'a> {
        let mut so_far = SoFar { open: Vec::new(), answer: (&mark.said, Vec::new()), last: None };
        for (at, kind) in self.kinds.iter().enumerate().skip(began) {
            match kind {
                Kind::Message(Message { by_model: true, calls, .. }) => {
                    so_far.answer.1.push(at);
                    so_far.open.extend(calls.iter().map(|id| (at, id.as_str())));
                    so_far.last = Some(Last::Message);
                }
                Kind::Message(Message { calls: answered, .. }) => {
                    so_far.open.retain(|(_, id)| !answered.iter().any(|answered| answered == id));
                    let is_cut = match so_far.last {
                        Some(Last::Turn(stop)) => stop.goes_on(),
                        Some(Last::Message) => false,
                        None => !mark.said.is_empty(),
                    };
                    // What is said in the middle of an answer does not end it.
                    if !(is_cut && answered.is_empty()) {
                        so_far.answer = ("", Vec::new());
                        so_far.last = Some(Last::Message);
                    }
                }
                Kind::Turn(turn) => so_far.last = Some(Last::Turn(turn.stop)),
                Kind::Head(_) | Kind::Job(_) | Kind::Call(_) | Kind::Other => {}
            }
        }
        so_far
    }

    fn text(&self, (compacted, places): (&str, Vec<usize>)) -> String {
        let texts =
            places.into_iter().filter_map(|at| self.spoken(at)).map(|(wire, entry)| said(wire, entry));
        [compacted.to_owned()].into_iter().chain(texts).collect()
    }

    /// Returns the message at this place, and its wire.
    fn spoken(&self, at: usize) -> Option<(Wire, &'a Json)> {
        let Kind::Message(message) = self.kinds.get(at)? else { return None };
        Some((message.wire, self.entry(at)?))
    }

    /// Returns these calls, each given with the place of its message.
    fn calls(&self, wanted: &[(usize, &str)]) -> Vec<ToolCall> {
        let mut places: Vec<usize> = wanted.iter().map(|(at, _)| *at).collect();
        places.dedup();
        let made = places.into_iter().filter_map(|at| self.spoken(at)).flat_map(|(wire, entry)| {
            match wire.calls(entry.as_str()) {
                Calls::Made(made) => made,
                Calls::Answered(_) => Vec::new(),
            }
        });
        made.filter(|call| wanted.iter().any(|(_, id)| *id == call.id)).collect()
    }

    /// Returns what the next request begins with that is already counted, in tokens, and the bytes of its messages since.
    pub fn weight(&self) -> (u64, usize) {
        let mut since = 0;
        for kind in self.kinds.iter().rev() {
            match kind {
                // Where a provider has counted nothing, bytes are what there is.
                Kind::Turn(turn) if turn.input > 0 => {
                    return (turn.input.saturating_add(turn.output), since);
                }
                Kind::Message(message) => since += message.size,
                Kind::Head(head) => {
                    let bytes = self.messages().iter().map(size).sum::<usize>();
                    return (0, bytes + head.bytes());
                }
                Kind::Turn(_) | Kind::Job(_) | Kind::Call(_) | Kind::Other => {}
            }
        }
        (0, since)
    }

    /// Returns the bytes of all entries but the last head, which no compaction makes smaller.
    pub fn bytes(&self) -> usize {
        let head = self.kinds.iter().rposition(|kind| matches!(kind, Kind::Head(_)));
        let others = (0..self.kinds.len()).filter(|at| Some(*at) != head);
        others.filter_map(|at| self.entry(at)).map(|entry| entry.as_str().len()).sum()
    }

    /// Returns whether the last answer was cut because the model's window was full.
    pub fn is_full(&self) -> bool {
        let last = self.kinds.iter().rev().find_map(|kind| match kind {
            Kind::Turn(turn) => Some(turn.stop),
            _ => None,
        });
        last == Some(StopReason::WindowFull)
    }

    /// Returns whether a call of this job that a person has approved was about to be made. Another job may have had a call
    /// of the same key.
    pub fn has_begun(&self, job_id: JobId, key: &str) -> bool {
        let own = self.job(job_id).map_or(&[][..], |(began, _)| &self.kinds[began..]);
        own.iter().any(|kind| matches!(kind, Kind::Call(mark) if mark.call_id == key))
    }

    /// Returns the last entry of this job in whose text this is.
    pub fn last_with(&self, job_id: JobId, text: &str) -> Option<&'a str> {
        let (began, _) = self.job(job_id)?;
        let own = (began..self.kinds.len()).rev().filter_map(|at| self.entry(at));
        own.map(Json::as_str).find(|entry| entry.contains(text))
    }

    /// Returns each call of this job that has a result, with the entry of that.
    pub fn results(&self, job_id: JobId) -> impl Iterator<Item = (ToolCall, &'a Json)> {
        let began = self.job(job_id).map_or(self.kinds.len(), |(began, _)| began);
        // A provider may number the calls of each answer anew.
        let mut made: HashMap<&str, usize> = HashMap::new();
        self.messages_of(began..self.kinds.len()).filter_map(move |(at, message)| {
            if message.by_model {
                made.extend(message.calls.iter().map(|id| (id.as_str(), at)));
                return None;
            }
            let id = message.calls.first()?;
            let call = self.calls(&[(*made.get(id.as_str())?, id.as_str())]).into_iter().next()?;
            Some((call, self.entry(at)?))
        })
    }

    /// Returns the body of the next request.
    pub fn request(&self) -> Option<String> {
        let head = self.head()?;
        Some(body(head, &self.messages()))
    }

    /// Returns the messages as the last head's wire has them.
    pub fn messages(&self) -> Vec<Json> {
        let Some(head) = self.head() else { return Vec::new() };
        let last = self.kinds.iter().rposition(|kind| matches!(kind, Kind::Head(_))).unwrap_or(0);
        let old = self.messages_of(0..last).filter_map(|(at, message)| Some((message.wire, self.entry(at)?)));
        let mut all = with_record(head.wire, anew(head.wire, old));
        all.extend(self.messages_of(last..self.kinds.len()).filter_map(|(at, message)| {
            let entry = self.entry(at)?;
            if message.goes_back { Some(entry.clone()) } else { messages::taken_back(entry) }
        }));
        all
    }
}

/// How far a job has come.
struct SoFar<'a> {
    /// Calls without a result, each with the place of its message.
    open: Vec<(usize, &'a str)>,
    /// The present answer, of which the limit of output may have made several messages: what of it was compacted, and the
    /// places of the others.
    answer: (&'a str, Vec<usize>),
    last: Option<Last>,
}

/// The last entry of a job, but for marks of its beginning.
enum Last {
    Message,
    Turn(StopReason),
}

/// Bytes that an image counts for. Providers count it by its pixels, up to some 5,000 tokens.
const IMAGE: usize = 15_000;
/// What stands before the bytes of an image, on each wire that has them.
pub(crate) const IMAGES: [&str; 2] = ["\"data\":\"", "\"image_url\":\"data:"];

/// Returns the bytes of a message, where an image counts by itself.
pub(crate) fn size(message: &Json) -> usize {
    let text = message.as_str();
    let mut bytes = text.len();
    for (at, mark) in IMAGES.iter().flat_map(|mark| text.match_indices(mark)) {
        let data = &text[at + mark.len()..];
        let length = data.find('"').unwrap_or(data.len());
        if length > IMAGE {
            bytes = bytes - length + IMAGE;
        }
    }
    bytes
}

/// Returns what the model says in an entry, as far as it is an answer.
fn said(wire: Wire, message: &Json) -> String {
    if wire == Wire::Responses
        && Fields::parse(message.as_str()).is_ok_and(|fields| responses::is_commentary(&fields))
    {
        return String::new();
    }
    let parts = neutral::read(wire, message).map(|said| said.parts).unwrap_or_default();
    let texts = parts.into_iter().filter_map(|part| match part {
        neutral::Part::Text(text) => Some(text),
        _ => None,
    });
    texts.collect()
}

/// Returns the wire of an entry that no head precedes.
fn guessed(entry: &str) -> Wire {
    let Ok(fields) = Fields::parse(entry) else { return Wire::Messages };
    let is_chat = fields.raw("tool_calls").is_some() || fields.raw("tool_call_id").is_some();
    // Messages writes `message` as well, but no such parts.
    let is_part = |part: &Fields| matches!(part.text("type").as_deref(), Some("input_text" | "output_text"));
    match fields.text("type").as_deref() {
        _ if is_chat => Wire::Chat,
        Some("function_call" | "function_call_output" | "reasoning") => Wire::Responses,
        Some("message") if responses::content(&fields).iter().any(is_part) => Wire::Responses,
        _ => Wire::Messages,
    }
}

/// Writes a conversation for a model that has not seen it. What the model said in several items in a row is one message
/// where the wire has it so.
pub(crate) fn anew<'m>(to: Wire, messages: impl IntoIterator<Item = (Wire, &'m Json)>) -> Vec<Json> {
    let messages: Vec<(Wire, &Json)> = messages.into_iter().collect();
    let is_kept = |from: Wire| (from, to) == (Wire::Messages, Wire::Messages);
    let is_mixed = to == Wire::Messages && messages.iter().any(|(from, _)| !is_kept(*from));
    let kept = messages.iter().filter(|(from, _)| is_mixed && is_kept(*from)).map(|(_, message)| *message);
    let mut ids = CallIds::of(kept);
    let mut all = Vec::new();
    let mut spoken: Option<neutral::Said> = None;
    let end = |spoken: &mut Option<neutral::Said>, all: &mut Vec<Json>| {
        all.extend(spoken.take().iter().flat_map(|said| neutral::write(to, said)));
    };
    for (from, message) in messages {
        if is_kept(from) {
            end(&mut spoken, &mut all);
            all.extend(without_thinking(message));
            continue;
        }
        let Some(mut said) = neutral::read(from, message) else { continue };
        if is_mixed {
            ids.give(&mut said);
        }
        match &mut spoken {
            Some(before) if said.by_model && from == Wire::Responses => before.parts.extend(said.parts),
            _ => {
                end(&mut spoken, &mut all);
                if said.by_model {
                    spoken = Some(said);
                } else {
                    all.extend(neutral::write(to, &said));
                }
            }
        }
    }
    end(&mut spoken, &mut all);
    all
}

/// Returns a message of Messages without its thinking and what the provider refuses, and else to the letter; none if
/// nothing is left.
pub(crate) fn without_thinking(message: &Json) -> Option<Json> {
    let mut fields = Fields::parse(message.as_str()).ok()?;
    if fields.text("content").is_some() {
        let said = neutral::read(Wire::Messages, message)?;
        return neutral::write(Wire::Messages, &said).into_iter().next();
    }
    let mut content = messages::blocks(&fields);
    let before = content.len();
    content.retain(|block| !messages::is_thinking(block) && !messages::is_refused(block));
    if content.is_empty() {
        return None;
    }
    if content.len() == before {
        return Some(message.clone());
    }
    fields.set("content", raw(messages::list(&content)));
    Json::verbatim(&fields.write()).ok()
}

/// Writes a request.
pub(crate) fn body(head: &Head, messages: &[Json]) -> String {
    let mut all: Vec<Cow<'_, str>> = head.opening.iter().map(|opening| opening.get().into()).collect();
    match head.wire {
        Wire::Messages => all.extend(merged(messages)),
        Wire::Chat | Wire::Responses => all.extend(messages.iter().map(|message| message.as_str().into())),
    }
    let fields = head.request.get().trim_end();
    let fields = fields.strip_suffix('}').unwrap_or(fields).trim_end();
    let comma = if fields.ends_with('{') { "" } else { "," };
    // A long conversation is copied once.
    let bytes: usize = all.iter().map(|message| message.len() + 1).sum();
    let mut body = String::with_capacity(fields.len() + bytes + 32);
    body.push_str(fields);
    body.push_str(comma);
    body.push_str(&format!("\"{}\":[", head.wire.conversation()));
    for (at, message) in all.iter().enumerate() {
        if at > 0 {
            body.push(',');
        }
        body.push_str(message);
    }
    body.push_str("]}");
    body
}

/// Makes one message of several that users say in a row. What a model said stays as it came: an answer that goes on after a
/// pause is a message of its own.
pub(crate) fn merged(messages: &[Json]) -> Vec<Cow<'_, str>> {
    let mut rows: Vec<(Cow<'_, str>, Vec<&Json>)> = Vec::new();
    for message in messages {
        let role = role(message.as_str());
        match rows.last_mut() {
            Some((last, row)) if *last == role && role == "user" => row.push(message),
            _ => rows.push((role, vec![message])),
        }
    }
    let written = rows.into_iter().map(|(role, row)| {
        if let [one] = &*row {
            return Cow::Borrowed(one.as_str());
        }
        let blocks = row.iter().flat_map(|message| {
            let fields = Fields::parse(message.as_str()).unwrap_or_default();
            fields.raw("content").and_then(|content| items(content).ok()).unwrap_or_default()
        });
        let blocks: Vec<String> = blocks.map(|block| block.get().to_owned()).collect();
        Cow::Owned(format!(r#"{{"role":"{role}","content":[{}]}}"#, blocks.join(",")))
    });
    written.collect()
}

/// Returns the role of a message. It comes first in those that are written here.
fn role(message: &str) -> Cow<'_, str> {
    let first = message.strip_prefix("{\"role\":\"").and_then(|rest| rest.split_once('"'));
    match first {
        Some((role, _)) => Cow::Borrowed(role),
        None => Cow::Owned(Fields::parse(message).unwrap_or_default().text("role").unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests;
