//! What is due, in the order in which it became due: what is read again comes behind all that waits.

use std::collections::BTreeMap;

use super::Followed;

/// A place in the queue, by which an entry is taken out again.
pub(super) type Turn = u64;

#[derive(Default)]
pub(super) struct TopicQueue {
    last: Turn,
    entries: BTreeMap<Turn, Followed>,
}

impl TopicQueue {
    pub(super) fn push(&mut self, followed: Followed) -> Turn {
        self.last += 1;
        self.entries.insert(self.last, followed);
        self.last
    }

    pub(super) fn pop(&mut self) -> Option<Followed> {
        self.entries.pop_first().map(|(_, followed)| followed)
    }

    pub(super) fn remove(&mut self, turn: Turn) {
        self.entries.remove(&turn);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
