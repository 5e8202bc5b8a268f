//! What the entries of a context are, each read once in an attempt: a long context is gone through several times an
//! iteration. It holds no text of theirs.

use job::Json;

use super::{guessed, size};
use crate::marks::{CallMark, Entry, Head, JobMark, TurnMark, entry};
use crate::transcript::Transcript;
use crate::wire::{Calls, Wire, messages};

/// The entries of a context, read.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    kinds: Vec<Kind>,
    /// The wire of the last head.
    spoken: Option<Wire>,
}

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    Head(Head),
    Job(JobMark),
    Turn(TurnMark),
    Call(CallMark),
    Message(Message),
    /// A mark of a later version.
    Other,
}

/// A message, as far as what comes next depends on it.
#[derive(Debug)]
pub(super) struct Message {
    pub wire: Wire,
    /// Whether the model has said it.
    pub by_model: bool,
    /// The calls that it makes, or else answers.
    pub calls: Vec<String>,
    /// Whether the provider takes it back as it is.
    pub goes_back: bool,
    pub size: usize,
}

impl Digest {
    pub fn of<'e>(entries: impl IntoIterator<Item = &'e Json>) -> Digest {
        let mut digest = Digest::default();
        entries.into_iter().for_each(|entry| digest.push(entry));
        digest
    }

    /// Reads the next entry.
    pub fn push(&mut self, json: &Json) {
        self.kinds.push(match entry(json) {
            Some(Entry::Head(head)) => {
                self.spoken = Some(head.wire);
                Kind::Head(head)
            }
            Some(Entry::Job(mark)) => Kind::Job(mark),
            Some(Entry::Turn(mark)) => Kind::Turn(mark),
            Some(Entry::Call(mark)) => Kind::Call(mark),
            Some(Entry::Message(message)) => Kind::Message(self.message(message)),
            None => Kind::Other,
        });
    }

    fn message(&self, message: &Json) -> Message {
        // What was there before the first head is another harness's.
        let wire = self.spoken.unwrap_or_else(|| guessed(message.as_str()));
        let (by_model, calls) = match wire.calls(message.as_str()) {
            Calls::Made(made) => (true, made.into_iter().map(|call| call.id).collect()),
            Calls::Answered(ids) => (false, ids),
        };
        let goes_back = !by_model || wire != Wire::Messages || messages::goes_back(message.as_str());
        Message { wire, by_model, calls, goes_back, size: size(message) }
    }

    /// Returns the conversation of these entries: all that were read, in two parts.
    pub fn on<'a>(&'a self, entries: [&'a [Json]; 2]) -> Transcript<'a> {
        debug_assert_eq!(self.kinds.len(), entries[0].len() + entries[1].len(), "each entry is read once");
        Transcript { kinds: &self.kinds, entries }
    }
}
