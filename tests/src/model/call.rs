//! The calls to the ledger and its answers: the transactions of `shared/store`, under the same names.

use job::POISON_DEATHS;

use super::process::MAX_ATTEMPTS;
use super::row::{Job, WorkerId};

/// A run of a job as a worker knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// The job.
    pub job: Job,
    /// The id under which it was claimed.
    pub worker: WorkerId,
    /// Its fencing token.
    pub epoch: u8,
    /// Attempts spent before this run.
    pub attempts: u8,
    /// Deaths of workers that are charged to the job.
    pub deaths: u8,
    /// Iterations of the session before this run.
    pub before: u8,
    /// Whether some of those are not folded.
    pub resumed: bool,
    /// Iterations that the run has finished and knows to be in the ledger.
    pub own: u8,
    /// Those of them that it has folded.
    pub folded: u8,
    /// Whether it was told what became of its job's call.
    pub told: bool,
}

impl Run {
    /// Whether the job ends without being tried: no attempt is left, or it counts as poison.
    pub fn is_hopeless(&self) -> bool {
        self.attempts >= MAX_ATTEMPTS || u32::from(self.deaths) >= POISON_DEATHS
    }

    /// Whether one more death would prove that the job is the cause.
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
    /// The worker interrupted it; it is due at once.
    HandBack,
    /// It asks a person.
    Ask,
}

impl End {
    /// Whether the job ends with the run.
    pub fn is_end(self) -> bool {
        matches!(self, End::Succeeded | End::Failed | End::Cancelled)
    }
}

/// The end of a run to be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Conclusion {
    /// The worker that ran it.
    pub worker: WorkerId,
    /// The job.
    pub job: Job,
    /// The run's fencing token.
    pub epoch: u8,
    /// How it ended.
    pub end: End,
    /// Attempts spent, including this one if it is spent.
    pub attempts: u8,
    /// The session's iterations, if its state is written anew.
    pub fold: Option<u8>,
    /// Whether the worker continues with the session's next job.
    pub take_next: bool,
}

/// A call to the ledger; each is one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// A worker registers.
    Register(WorkerId),
    /// An insertion takes its place in the order of acceptance and is not committed yet.
    TakeNumber(Job),
    /// A producer accepts a job, to publish it next.
    Accept(Job),
    /// A worker asks for a job.
    Claim {
        /// The worker.
        worker: WorkerId,
        /// The job.
        job: Job,
        /// What it decides on, if that is not the current state.
        seen: Option<Decision>,
    },
    /// A worker appends one iteration.
    Checkpoint {
        /// The worker.
        worker: WorkerId,
        /// The job.
        job: Job,
        /// The run's fencing token.
        epoch: u8,
        /// The ordinal of the iteration within the run, from 0.
        ordinal: u8,
    },
    /// A worker folds a session within a run.
    Fold {
        /// The worker.
        worker: WorkerId,
        /// The job.
        job: Job,
        /// The run's fencing token.
        epoch: u8,
        /// The ordinal of its last iteration.
        ordinal: u8,
        /// The session's iterations with it.
        total: u8,
    },
    /// A worker ends a run.
    Conclude(Conclusion),
    /// A relay takes jobs that are due.
    TakeDue,
    /// The admitter that leads gives a job in the line its turn, if it is its turn in its session.
    Admit(Job),
    /// The admitter found a job's session busy: the job waits for that.
    Block(Job),
    /// The broker has confirmed a job's message.
    Confirm(Job),
    /// Jobs whose publish was never confirmed come due again.
    ReturnStuck,
    /// Queued jobs come due again when their queue is empty.
    ReturnVanished,
    /// A suspect has survived the time after which it killed before.
    Clear {
        /// The worker that runs it.
        worker: WorkerId,
        /// The job.
        job: Job,
        /// The run's fencing token.
        epoch: u8,
    },
    /// A worker was asked to end.
    Notice(WorkerId),
    /// A worker renews its lease.
    Beat(WorkerId),
    /// A worker ends in good order.
    Stop(WorkerId),
    /// Workers whose lease has expired are declared dead.
    DeclareDead,
    /// Jobs of dead workers come due again.
    Rescue,
    /// A client cancels a job.
    Cancel(Job),
    /// Jobs that are neither running nor wanted end.
    EndUnwanted,
    /// A person answers a job.
    Answer(Job),
    /// The time for an answer is over.
    TimeOut(Job),
    /// Time: a lease expires.
    LeaseRunsOut(WorkerId),
    /// Time: a job comes due.
    ComeDue(Job),
}

/// The decision of a claim about a job, from what it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The ledger does not know the job: it is inserted, and runs if its session is free.
    Insert {
        /// Whether the session is free.
        free: bool,
    },
    /// The job waits for a worker, and runs if it is its turn.
    Take {
        /// Whether it is its turn.
        free: bool,
    },
    /// Nothing is to be done.
    Leave,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The worker gets the job.
    Claimed(Run),
    /// The job has ended.
    Finished,
    /// A worker runs the job.
    Held,
    /// The job's turn comes later.
    Blocked,
    /// The job waits for something else.
    NotDue,
    /// The worker is dead.
    LeaseLost,
    /// An index that forbids a second runner stopped the claim; only a broken claim gets this.
    Refused,
}

/// The result of a cancel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cancelled {
    /// The cancel has ended it.
    Now,
    /// Its worker was asked to stop it.
    Stopping,
    /// The ledger did not know the job and has recorded its end.
    Unseen,
    /// It had ended before.
    Before,
}

/// The ledger's reply. Sets of jobs and of workers are bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It is done.
    Done,
    /// To an acceptance: whether the job is new.
    Accepted(bool),
    /// To a claim.
    Answer(Answer),
    /// To a checkpoint, a fold or the clearing of a suspect: whether it was recorded.
    Stands(bool),
    /// To a conclusion.
    Concluded {
        /// Whether it was recorded.
        recorded: bool,
        /// The session's next job, for the same worker.
        next: Option<Run>,
    },
    /// To a heartbeat: the epochs of the jobs that run there. `None` if the worker is dead.
    Beat(Option<[Option<u8>; super::row::JOBS]>),
    /// These jobs.
    Jobs(u8),
    /// These workers.
    Workers(u8),
    /// To a cancel.
    Cancelled(Cancelled),
    /// To a person's answer.
    Heard(Heard),
}

/// The result of a person's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heard {
    /// It counts.
    Counts,
    /// It counts when it is asked for.
    Early,
    /// It does not count.
    Refused,
}
