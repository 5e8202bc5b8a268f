//! What the loop notes between the messages of a context: entries that no provider would send, and that are sent to none.
//!
//! | mark | says |
//! |---|---|
//! | head | which wire and model speak from here on, and what every request begins with, to the letter |
//! | job | that a job begins here, or goes on behind a compaction, with which share of the window, and what it had used and said by then |
//! | turn | what the answer before it used, and why it ended |
//! | call | that a call which a person has approved is about to be made |
//!
//! So a session's context alone says what comes next, on any worker.

use job::{JobId, Json};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::answer::StopReason;
use crate::raw::Fields;
use crate::wire::Wire;

/// What every request begins with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Head {
    harness: HeadKind,
    /// The model, as requests name it.
    pub model: String,
    /// Messages that come before all others: a system prompt, where the wire has it there.
    pub opening: Vec<Box<RawValue>>,
    /// The fields of a request, without its messages.
    pub request: Box<RawValue>,
    /// The wire.
    pub wire: Wire,
}

/// The beginning of a job, or of the rest of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct JobMark {
    harness: JobKind,
    /// The share of the window that it has, in tokens; 0 where none was noted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub context_tokens: u64,
    /// Answers of the job that were compacted.
    pub iterations: u32,
    /// The job.
    pub job_id: JobId,
    /// What an answer has said so far whose rest is still to come.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// The tokens that these used.
    pub tokens: u64,
}

/// The end of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TurnMark {
    harness: TurnKind,
    /// Tokens that were read.
    pub input: u64,
    /// Tokens that were written.
    pub output: u64,
    /// Why it ended.
    pub stop: StopReason,
}

/// The beginning of a call that had to wait for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallMark {
    harness: CallKind,
    /// Its key in the job.
    pub call_id: String,
}

macro_rules! kind {
    ($name:ident, $text:literal) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
        enum $name {
            #[serde(rename = $text)]
            This,
        }
    };
}
kind!(HeadKind, "head");
kind!(JobKind, "job");
kind!(TurnKind, "turn");
kind!(CallKind, "call");

/// One entry of a context.
#[derive(Clone, Debug)]
pub(crate) enum Entry<'a> {
    Head(Head),
    Job(JobMark),
    Turn(TurnMark),
    Call(CallMark),
    /// A message of the wire.
    Message(&'a Json),
}

impl Head {
    pub fn new(wire: Wire, model: &str, opening: Vec<Box<RawValue>>, request: Box<RawValue>) -> Head {
        Head { harness: HeadKind::This, model: model.to_owned(), opening, request, wire }
    }

    pub fn entry(&self) -> Json {
        written(self)
    }

    /// Returns its bytes in a request.
    pub fn bytes(&self) -> usize {
        self.request.get().len() + self.opening.iter().map(|opening| opening.get().len()).sum::<usize>()
    }
}

impl JobMark {
    pub fn begin(job_id: JobId, context_tokens: u64) -> JobMark {
        JobMark::go_on(job_id, (0, 0), String::new(), context_tokens)
    }

    /// Makes the mark of a job that goes on with less context. It stands behind what is left of that.
    pub fn go_on(
        job_id: JobId,
        (iterations, tokens): (u32, u64),
        said: String,
        context_tokens: u64,
    ) -> JobMark {
        JobMark { harness: JobKind::This, context_tokens, iterations, job_id, said, tokens }
    }

    pub fn entry(&self) -> Json {
        written(self)
    }
}

impl TurnMark {
    pub fn new(input: u64, output: u64, stop: StopReason) -> TurnMark {
        TurnMark { harness: TurnKind::This, input, output, stop }
    }

    pub fn entry(&self) -> Json {
        written(self)
    }
}

impl CallMark {
    pub fn new(call_id: &str) -> CallMark {
        CallMark { harness: CallKind::This, call_id: call_id.to_owned() }
    }

    pub fn entry(&self) -> Json {
        written(self)
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn written(mark: &impl Serialize) -> Json {
    Json::from_value(mark).expect("a mark can be kept")
}

/// Reads an entry. A mark of a later version is left out.
pub(crate) fn entry(json: &Json) -> Option<Entry<'_>> {
    let text = json.as_str();
    // Only a mark has the key; a message may have the word in its text.
    let is_mark = text.contains("\"harness\"")
        && Fields::parse(text).is_ok_and(|fields| fields.raw("harness").is_some());
    if !is_mark {
        return Some(Entry::Message(json));
    }
    let head = serde_json::from_str(text).map(Entry::Head);
    let job = || serde_json::from_str(text).map(Entry::Job);
    let turn = || serde_json::from_str(text).map(Entry::Turn);
    let call = || serde_json::from_str(text).map(Entry::Call);
    head.or_else(|_| job()).or_else(|_| turn()).or_else(|_| call()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::raw;

    #[test]
    fn marks_come_back_and_begin_alike() {
        let request = r#"{"model":"m","temperature":1e0,"max_tokens":16}"#;
        let head = Head::new(Wire::Messages, "m", Vec::new(), raw(request.to_owned()));
        let json = head.entry();
        assert!(json.as_str().starts_with("{\"harness\":\"head\""));
        let Some(Entry::Head(again)) = entry(&json) else { panic!("{json:?}") };
        assert_eq!((again.request.get(), again.wire), (request, Wire::Messages));
        assert!(!JobMark::begin(JobId::now(), 9).entry().as_str().contains("said"));
        let old = format!(r#"{{"harness":"job","iterations":0,"job_id":"{}","tokens":0}}"#, JobId::now());
        let old = Json::parse(&old).unwrap();
        assert!(matches!(entry(&old), Some(Entry::Job(mark)) if mark.context_tokens == 0), "{old:?}");
        let job = JobMark::go_on(JobId::now(), (3, 900), "It is ".to_owned(), 9);
        assert!(matches!(entry(&job.entry()), Some(Entry::Job(again)) if again == job));
        let turn = TurnMark::new(10, 2, StopReason::OutputLimit);
        assert!(matches!(entry(&turn.entry()), Some(Entry::Turn(again)) if again == turn));
        let message = Wire::Chat.said("the \"harness\": \"head\"");
        assert!(matches!(entry(&message), Some(Entry::Message(_))));
        assert!(entry(&Json::parse(r#"{"harness":"later"}"#).unwrap()).is_none());
    }
}
