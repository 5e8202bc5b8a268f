//! How much a session may hold, and when it is to be written whole.

use crate::{Delta, Session, Stop};

/// How much may be appended to a session before it is written whole, in multiples of the most bytes of its state.
const MOST_APPENDED: usize = 4;
/// How much may lie there without being a part of the state any more, in bytes, beside as much as the state itself.
const SLACK: usize = 64 * 1024;

/// What lies there of a session: its state when it was last written whole, and what was appended since.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// The size of its state when it was last written whole, as JSON.
    pub folded: usize,
    /// Checkpoints since then.
    pub rows: usize,
    /// Their size as JSON.
    pub bytes: usize,
    /// Whether the state before the job is kept already, because the session was folded within its run.
    pub has_before: bool,
}

impl Parts {
    /// Whether more than half of what lies there is not of the present state any more: a context was replaced, memory was
    /// overwritten. What is written `beside` the state has to be outweighed as well.
    pub fn outweigh(&self, state: usize, beside: usize) -> bool {
        self.folded + self.bytes > SLACK + 2 * state + beside
    }
}

/// How much a session may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    /// The most bytes that its state may have as JSON.
    most: usize,
    /// An upper bound on its state's present size.
    held: usize,
    parts: Parts,
    /// What had been appended when the state was last measured for a fold.
    measured: usize,
    /// What the first fold within the run writes beside: the state before the job.
    before: usize,
    /// Whether more was appended before the run than may be, because the bound was lowered meanwhile.
    was_full: bool,
}

impl Room {
    /// Without a bound.
    pub(crate) const ENDLESS: Room = Room {
        most: usize::MAX,
        held: 0,
        parts: Parts { folded: 0, rows: 0, bytes: 0, has_before: false },
        measured: 0,
        before: 0,
        was_full: false,
    };

    pub(crate) fn new(most: usize, session: &Session, parts: Parts) -> Room {
        let held = session.bytes();
        let before = if parts.has_before { 0 } else { held };
        let was_full = parts.bytes > most.saturating_mul(MOST_APPENDED);
        Room { most, held, parts, measured: parts.bytes, before, was_full }
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    pub(crate) fn parts(&self) -> Parts {
        self.parts
    }

    /// Returns the room that is left after a delta, or an error if the delta does not fit.
    pub(crate) fn after(&self, delta: &Delta, session: &Session) -> Result<Room, Stop> {
        let bytes = delta.check()?;
        let Room { most, held, parts, .. } = *self;
        let parts = Parts { rows: parts.rows + 1, bytes: parts.bytes + bytes, ..parts };
        let most_appended = most.saturating_mul(MOST_APPENDED);
        // What takes the place of the whole context leads to a fold, and may pass once.
        let is_remedy = self.was_full && delta.replace_context && bytes <= most;
        if parts.bytes > most_appended && !is_remedy {
            return Err(Stop::OutputLimit(format!(
                "{} bytes were appended since the session was last written whole, expected at most {most_appended} \
                 ({MOST_APPENDED} times MAX_SESSION_BYTES); checkpoint less",
                parts.bytes
            )));
        }
        // The state is measured only when the sum of all parts is too large, since much may have been replaced.
        let mut held = held + bytes;
        if held > most {
            let mut after = session.clone();
            after.apply(delta);
            held = after.bytes();
            // A session that is already too large may still be made smaller.
            if held > most && held > session.bytes() {
                return Err(Stop::OutputLimit(format!(
                    "the session would have {held} bytes, expected at most {most} (MAX_SESSION_BYTES); \
                     replace its context by less, or remember less"
                )));
            }
        }
        Ok(Room { held, parts, was_full: self.was_full && !is_remedy, ..*self })
    }

    /// Returns whether the session is to be written whole within the run. To measure the state costs as much as it holds,
    /// so that is done when a context was replaced, and else each time that so much was appended as may lie there anyway.
    /// The first such fold of a job also writes the state before it, and so has to save that as well.
    pub(crate) fn is_to_be_folded(&mut self, replaced: bool, session: &Session) -> bool {
        let Parts { folded, bytes, .. } = self.parts;
        if folded + bytes <= SLACK || !(replaced || bytes - self.measured > SLACK) {
            return false;
        }
        self.measured = bytes;
        self.parts.outweigh(session.bytes(), self.before)
    }

    /// Notes that the session was written whole.
    pub(crate) fn fold(&mut self, session: &Session) {
        let folded = session.bytes();
        let parts = Parts { folded, rows: 0, bytes: 0, has_before: true };
        *self = Room { held: folded, parts, measured: 0, before: 0, ..*self };
    }
}
