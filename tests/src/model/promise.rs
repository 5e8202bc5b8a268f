//! What must hold in every state.
//!
//! Most promises can be read off a state. Those about a single step (a stale write that took effect, an ack that came
//! too early) are marked in the ledger by the step that breaks them, and the mark stays.

use job::JobState;

use super::broken::Broken;
use super::ledger::Ledger;
use super::row::{JOBS, Row, SESSION_OF, SESSIONS};

/// A promise; the search reports by its name that it was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Promise {
    /// Only the newest run of a session commits.
    OneWriter = 1,
    /// A job is in one place, and its end is never written again.
    OneEnd = 2,
    /// Every finished iteration counts, once.
    CountedOnce = 4,
    /// The epochs of a session only grow.
    EpochsGrow = 8,
    /// A job that has begun keeps its turn.
    OneBegun = 16,
    /// No job begins while one that its session accepted earlier still waits.
    InOrder = 32,
    /// An attempt is spent by a failure or by the unannounced death of a worker, and by nothing else.
    AttemptsAreFailures = 64,
    /// A message is acked when its job is safe in the ledger.
    AckedWhenSafe = 128,
    /// A conclusion is answered "recorded" exactly when it is recorded.
    AnswersAreTrue = 256,
    /// When nothing more goes wrong, every accepted job ends.
    EveryJobEnds = 512,
    /// A job is charged with the death that proves it to be the cause only if its worker had no other suspect.
    CertainCulprit = 1024,
    /// What became of a call is decided once: what a person was told, the job is told.
    AnsweredOnce = 2048,
    /// A job that is not due yet holds up nobody in its session.
    NoneWaitsForLater = 4096,
    /// No more jobs with a limit key have a place than its max.
    WithinLimit = 8192,
    /// No session's next job is taken, and no new one published, while jobs are known to wait in the line.
    NonePassesTheLine = 16384,
}

/// The promises that a step has broken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Marks(u16);

impl Marks {
    /// Marks a promise as broken, if it is.
    pub fn mark(&mut self, promise: Promise, broken: bool) {
        if broken {
            self.0 |= promise as u16;
        }
    }

    /// Whether a step has broken it.
    pub fn has(self, promise: Promise) -> bool {
        self.0 & promise as u16 != 0
    }
}

impl Promise {
    /// All promises.
    pub const ALL: [Promise; 15] = [
        Promise::OneWriter,
        Promise::OneEnd,
        Promise::CountedOnce,
        Promise::EpochsGrow,
        Promise::OneBegun,
        Promise::InOrder,
        Promise::AttemptsAreFailures,
        Promise::AckedWhenSafe,
        Promise::AnswersAreTrue,
        Promise::EveryJobEnds,
        Promise::CertainCulprit,
        Promise::AnsweredOnce,
        Promise::NoneWaitsForLater,
        Promise::WithinLimit,
        Promise::NonePassesTheLine,
    ];

    /// The promise as a sentence.
    pub fn name(self) -> &'static str {
        match self {
            Promise::OneWriter => "only the newest run of a session commits",
            Promise::OneEnd => "a job ends once and stays ended",
            Promise::CountedOnce => "every finished iteration counts once",
            Promise::EpochsGrow => "the epochs of a session only grow",
            Promise::OneBegun => "a job that has begun keeps its turn",
            Promise::InOrder => "no job is overtaken in its session",
            Promise::AttemptsAreFailures => "attempts are spent by failures and deaths alone",
            Promise::AckedWhenSafe => "a message is acked when its job is safe",
            Promise::AnswersAreTrue => "a conclusion is answered recorded exactly when it is recorded",
            Promise::EveryJobEnds => "when nothing more goes wrong, every accepted job ends",
            Promise::AnsweredOnce => "what became of a call is decided once",
            Promise::NoneWaitsForLater => "no job waits for one that is not due yet",
            Promise::WithinLimit => "no more jobs with a limit key have a place than its max",
            Promise::NonePassesTheLine => "no job passes those that are known to wait in the line",
            Promise::CertainCulprit => "none of several suspects is charged with the death of their worker",
        }
    }

    /// Whether the ledger keeps it. That every job ends cannot be seen in one state of the ledger.
    pub fn holds_in(self, ledger: &Ledger) -> bool {
        if ledger.marks.has(self) {
            return false;
        }
        match self {
            Promise::OneEnd => (0..JOBS).all(|job| ledger.rows[job].is_none() || ledger.ends[job].is_none()),
            Promise::CountedOnce => (0..SESSIONS).all(|session| {
                // The folded iterations and the unfolded ones of its jobs add up to what the jobs did.
                let jobs = || (0..JOBS).filter(|job| SESSION_OF[*job] == session);
                let ended: u8 = jobs().filter_map(|job| Some(ledger.ends[job]?.iterations)).sum();
                let unfolded: u8 =
                    jobs().filter(|job| ledger.ends[*job].is_some()).map(|job| ledger.deltas[job]).sum();
                // What was folded within the run of a live job is not in a result yet.
                let within: u8 = ledger.of(session).map(|(_, row)| row.folded).sum();
                ledger.sessions[session].folded + unfolded == ended + within
            }),
            Promise::OneBegun => {
                (0..SESSIONS).all(|session| ledger.of(session).filter(|(_, row)| row.epoch > 0).count() <= 1)
            }
            Promise::NoneWaitsForLater => (0..SESSIONS).all(|session| {
                let in_line = |row: &Row| !row.is_later();
                let head = ledger
                    .of(session)
                    .map(|(_, row)| row)
                    .filter(|row| in_line(row))
                    .min_by_key(|row| row.seq);
                // What waits is behind the head, or a job has begun.
                head.is_none_or(|head| head.state != JobState::Blocked)
                    || ledger.of(session).any(|(_, row)| row.epoch > 0)
            }),
            Promise::AttemptsAreFailures => {
                let rows = ledger.rows.iter().flatten();
                rows.into_iter()
                    .all(|row| u32::from(row.attempts) == u32::from(row.failures) + row.killed.count_ones())
            }
            Promise::WithinLimit => ledger.places(Broken::None) <= 1,
            Promise::OneWriter
            | Promise::EpochsGrow
            | Promise::InOrder
            | Promise::AckedWhenSafe
            | Promise::AnswersAreTrue
            | Promise::EveryJobEnds
            | Promise::CertainCulprit
            | Promise::AnsweredOnce
            | Promise::NonePassesTheLine => true,
        }
    }
}
