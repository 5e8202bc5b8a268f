//! What is said to the ledger, and what it answers: the transactions of `shared/store`, by the same names.

use job::POISON_DEATHS;

use super::process::MAX_ATTEMPTS;
use super::row::{Job, WorkerId};

/// A run of a job, as a worker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The job.
    pub job: Job,
    /// Under which id it was claimed.
    pub worker: WorkerId,
    /// Its fencing token.
    pub epoch: u8,
    /// Attempts spent before it.
    pub attempts: u8,
    /// Deaths of workers that the job is charged with.
    pub deaths: u8,
    /// Iterations of the session before it.
    pub before: u8,
    /// Whether some of them are not folded.
    pub resumed: bool,
    /// Iterations that it has finished and knows to be in the ledger.
    pub own: u8,
}

impl Run {
    /// Whether the job ends without being tried: no attempt is left, or it is taken for poison.
    pub fn is_hopeless(&self) -> bool {
        self.attempts >= MAX_ATTEMPTS || u32::from(self.deaths) >= POISON_DEATHS
    }

    /// Whether one more death would prove the job to be the cause.
    pub fn is_suspect(&self) -> bool {
        u32::from(self.deaths) + 1 == POISON_DEATHS
    }
}

/// How a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// With an output.
    Succeeded,
    /// For good.
    Failed,
    /// Because it was asked to.
    Cancelled,
    /// The attempt failed, and another one is due later.
    Retry,
    /// We interrupted it; it is due at once.
    HandBack,
}

impl End {
    /// Whether the job ends with the run.
    pub fn is_end(self) -> bool {
        matches!(self, End::Succeeded | End::Failed | End::Cancelled)
    }
}

/// The end of a run, as it is to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conclusion {
    /// Who ran it.
    pub worker: WorkerId,
    /// The job.
    pub job: Job,
    /// The run's fencing token.
    pub epoch: u8,
    /// How it ended.
    pub end: End,
    /// Attempts spent, this one included if it is.
    pub attempts: u8,
    /// The session's iterations, where its state is written anew.
    pub fold: Option<u8>,
    /// Whether the worker goes on with the session's next job.
    pub take_next: bool,
}

/// A question to the ledger; each is one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// A worker begins.
    Register(WorkerId),
    /// An insertion takes its place in the order of acceptance, and is not committed yet.
    TakeNumber(Job),
    /// A producer accepts a job, to publish it next.
    Accept(Job),
    /// A worker asks for a job.
    Claim {
        /// Who.
        worker: WorkerId,
        /// Which.
        job: Job,
        /// What it decides on, where that is not what it finds.
        seen: Option<Decision>,
    },
    /// A worker appends one iteration.
    Checkpoint {
        /// Who.
        worker: WorkerId,
        /// To which job.
        job: Job,
        /// The run's fencing token.
        epoch: u8,
        /// Which of the run's iterations, from 0.
        ordinal: u8,
    },
    /// A worker ends a run.
    Conclude(Conclusion),
    /// A relay takes what is due.
    TakeDue,
    /// The broker has confirmed a job's message.
    Confirm(Job),
    /// Jobs whose publish was never confirmed come due again.
    ReturnStuck,
    /// Queued jobs come due again when their queue is empty.
    ReturnVanished,
    /// A suspect has outlived the time after which it killed.
    Clear {
        /// Who runs it.
        worker: WorkerId,
        /// Which.
        job: Job,
        /// The run's fencing token.
        epoch: u8,
    },
    /// A worker was told to end.
    Notice(WorkerId),
    /// A worker renews its lease.
    Beat(WorkerId),
    /// A worker ends in good order.
    Stop(WorkerId),
    /// Workers whose lease has run out are dead.
    DeclareDead,
    /// Jobs of the dead come due again.
    Rescue,
    /// Somebody wants a job no more.
    Cancel(Job),
    /// Jobs that nobody runs and nobody wants end.
    EndUnwanted,
    /// Time: a lease runs out.
    LeaseRunsOut(WorkerId),
    /// Time: a job comes due.
    ComeDue(Job),
}

/// What a claim makes of a job, by what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The ledger has not seen it: it comes in, and runs if its session is free.
    Insert {
        /// Whether it is.
        free: bool,
    },
    /// It waits for a worker: it runs, if it is its turn.
    Take {
        /// Whether it is.
        free: bool,
    },
    /// There is nothing to be done.
    Leave,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// It is the worker's.
    Claimed(Run),
    /// It has ended.
    Finished,
    /// A worker runs it.
    Held,
    /// Its turn comes later.
    Blocked,
    /// It waits for something else.
    NotDue,
    /// The worker is dead.
    LeaseLost,
    /// An index that forbids a second runner has stopped it; only a broken claim comes to this.
    Refused,
}

/// What became of a job that was to be cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancelled {
    /// It has ended by this.
    Now,
    /// Its worker was asked to stop it.
    Stopping,
    /// The ledger did not know it, and has its end now.
    Unseen,
    /// It had ended before.
    Before,
}

/// What the ledger answers. Sets of jobs and of workers are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It is done.
    Done,
    /// To an acceptance: whether it is new.
    Accepted(bool),
    /// To a claim.
    Answer(Answer),
    /// To a checkpoint, or to the clearing of a suspect: whether it stands.
    Stands(bool),
    /// To a conclusion.
    Concluded {
        /// Whether it stands.
        recorded: bool,
        /// The session's next job, for the same worker.
        next: Option<Run>,
    },
    /// To a heartbeat: the epochs of the jobs that run there, or that the worker is dead.
    Beat(Option<[Option<u8>; super::row::JOBS]>),
    /// Those jobs.
    Jobs(u8),
    /// Those workers.
    Workers(u8),
    /// To a cancel.
    Cancelled(Cancelled),
}
