//! The content of the tables.
//!
//! No transaction reads the fields `failures`, `killed` and `left`: they serve the promises.
//!
//! The deliveries of webhooks are no table here. A delivery is written by the statement that writes the end: `deliveries!`
//! stands in both statements of the store that insert into `harness_results`, and so in each step of the model that makes an
//! [`Ended`]. No transaction on a job reads a delivery, and what senders do with one changes no job, so no interleaving has an
//! end without its deliveries, or deliveries without an end, that the model could find. That each kind of end has them is
//! asserted by `process door::webhooks::each_kind_of_end_is_delivered_once_and_verifies_although_two_doors_serve`, and of a
//! ledger at work by the audit's check `deliveries`.

use job::{JobState, POISON_DEATHS};

use super::broken::Broken;
use super::call::End;

/// Jobs: two of one session and one of another. A scope uses some of them.
pub const JOBS: usize = 3;
/// Sessions.
pub const SESSIONS: usize = 2;
/// The session of each job. A session is an opaque key here, as it is in the ledger: sessions of two tenants are two
/// keys, so the model needs no tenants.
pub const SESSION_OF: [usize; JOBS] = [0, 0, 1];
/// Ids of workers: one per boot.
pub const WORKERS: usize = 8;

/// No place in the order of a session: that of a job which is not due for the first time.
pub const NO_PLACE: u8 = u8::MAX;

/// A job, as an index into the tables.
pub type Job = u8;
/// One boot of a worker, as an index into the table.
pub type WorkerId = u8;

/// A live job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// Its state.
    pub state: JobState,
    /// Whether it is due.
    pub due: bool,
    /// Its place in the order of its session; [`NO_PLACE`] until it is due for the first time.
    pub seq: u8,
    /// The fencing token of its last run; 0 before the first.
    pub epoch: u8,
    /// The worker that runs it.
    pub worker: Option<WorkerId>,
    /// Attempts spent.
    pub attempts: u8,
    /// Deaths of workers that are charged to it.
    pub deaths: u8,
    /// Whether its end was asked for.
    pub asked: bool,
    /// The ordinals of its present epoch that are in the ledger, as bits.
    pub landed: u8,
    /// How many ordinals of its present epoch were folded within the run.
    pub place: u8,
    /// Iterations of all its runs that were folded within them.
    pub folded: u8,
    /// Attempts that have failed.
    pub failures: u8,
    /// Workers that died, unannounced, while they ran it, and whose death was charged to it; as bits.
    pub killed: u8,
    /// How its last run ended.
    pub left: Option<End>,
}

/// A job's recorded end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ended {
    /// Succeeded, failed or cancelled.
    pub end: End,
    /// The epoch of its last run.
    pub epoch: u8,
    /// The worker that ended it; `None` if it ended while it waited.
    pub worker: Option<WorkerId>,
    /// Attempts spent.
    pub attempts: u8,
    /// Iterations of all its runs.
    pub iterations: u8,
}

/// What a job asks a person, and what became of it. Each job has one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Input {
    /// It is neither asked nor answered.
    #[default]
    None,
    /// It is answered, and not asked yet.
    Early,
    /// It is asked, and waits for its answer.
    Open,
    /// It is asked and answered.
    Answered,
    /// It is asked, and nobody has answered in time.
    TimedOut,
    /// Its job has ended without an answer.
    Left,
}

/// A session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Session {
    /// The newest epoch. Postgres counts for all sessions together, but epochs of two sessions are never compared.
    pub epoch: u8,
    /// The last place given in its order.
    pub seq: u8,
    /// Iterations at the last fold.
    pub folded: u8,
}

/// A worker's row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Lease {
    /// No such worker.
    #[default]
    Unknown,
    /// The lease is valid.
    Alive,
    /// The lease has expired, and no rescuer has noticed.
    Overdue,
    /// The worker has ended in good order.
    Stopped,
    /// Declared dead, for good.
    Dead,
}

impl Row {
    /// Whether one more death would prove that the job is the cause.
    pub fn is_suspect(&self) -> bool {
        u32::from(self.deaths) + 1 >= POISON_DEATHS
    }

    /// Makes the job due now.
    pub fn come_due(&mut self) {
        (self.state, self.due) = (JobState::Scheduled, true);
    }

    /// Whether the job waits for a worker. One that the ledger believes to run at the claiming worker waits too,
    /// because that worker does not run it. One that is due in a pool with a line waits for that.
    pub fn may_be_claimed(&self, broken: Broken, worker: WorkerId, line: bool) -> bool {
        let waits = match self.state {
            JobState::Publishing | JobState::Queued => true,
            JobState::Scheduled => self.due && self.seq < NO_PLACE && !line,
            JobState::Running => self.is_unknown_to(broken, worker),
            JobState::Waiting => broken == Broken::WaitingClaimed,
            _ => false,
        };
        waits && !self.asked
    }

    /// Whether the ledger believes that the job runs at a worker that knows it does not.
    pub fn is_unknown_to(&self, broken: Broken, worker: WorkerId) -> bool {
        self.worker == Some(worker) && broken != Broken::OwnLeaseReadAsForeign
    }

    /// Whether it has one of the places that a limit allows: its message is on its way, or it runs.
    pub fn has_place(&self, broken: Broken) -> bool {
        match self.state {
            JobState::Publishing | JobState::Queued => broken != Broken::MessagesNotCounted,
            state => state == JobState::Running,
        }
    }

    /// Whether it is not due yet, for the first time.
    pub fn is_later(&self) -> bool {
        self.state == JobState::Scheduled && self.epoch == 0 && !self.due
    }

    /// Whether no other job of its session may run.
    pub fn keeps_its_turn(&self, broken: Broken) -> bool {
        match broken {
            Broken::TurnGivenUp => self.state == JobState::Running,
            _ => self.epoch > 0,
        }
    }
}
