//! The events of the model.

use super::call::End;
use super::row::{Job, WorkerId};

/// The fate of a call to the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Luck {
    /// It is executed, and the reply arrives.
    Heard,
    /// It is executed, but the reply is lost.
    ReplyLost,
    /// It is executed only after its caller has given up on it, perhaps much later.
    Late,
}

/// An event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The producer accepts a job.
    Accept(Job),
    /// The producer begins to accept a slow job: its number is taken, but not committed.
    TakeNumber(Job),
    /// A client publishes a job without the producer.
    PublishDirectly(Job),
    /// A relay publishes.
    Publish(Job),
    /// A relay notes the broker's confirm.
    Confirm(Job),
    /// A relay takes jobs that are due.
    TakeDue,
    /// The admitter that leads counts places, and chooses a job in the line.
    Pick(usize, Job),
    /// An admitter admits what it has chosen, if it still leads.
    Admit(usize),
    /// The admitter that leads writes down whether jobs wait in the line; while none do, it grants that new ones pass by it.
    Note,
    /// It goes on with a job whose session it found busy.
    Block(Job),
    /// Jobs that were in `publishing` for too long come due.
    ReturnStuck,
    /// Jobs that are queued, but in no queue, come due.
    ReturnVanished,
    /// The broker delivers to a process.
    Deliver(usize, Job),
    /// A broken claim reads before it waits.
    Read(usize),
    /// A process asks for the job that was delivered.
    Claim(usize, Luck),
    /// A run finishes an iteration.
    Checkpoint(usize, Luck),
    /// A run folds its session.
    Fold(usize, Luck),
    /// A run survives the time after which its job killed before.
    Outlive(usize),
    /// A run ends.
    Conclude(usize, End, Luck),
    /// A process renews its lease and compares the jobs.
    Beat(usize),
    /// A process hands back a job that the ledger believes to run there.
    HandBack(usize, Job, Luck),
    /// A process stops its run, because it has no lease.
    StopWithoutLease(usize),
    /// A drained process has no jobs left, and another one starts in its place.
    Leave(usize),
    /// Rescuers declare overdue workers dead.
    DeclareDead,
    /// Rescuers take the jobs of dead workers.
    Rescue,
    /// A sweep ends the jobs that are no longer wanted.
    EndUnwanted,
    /// A person answers a job.
    Answer(Job, Luck),
    /// A sweep finds that the time for an answer is over.
    TimeOut(Job, Luck),
    /// The call that hung arrives.
    ArriveLate,
    /// The lease of a worker expires.
    LeaseRunsOut(WorkerId),
    /// A job comes due.
    ComeDue(Job),
    /// Mishap: a process is killed, and starts again.
    Crash(usize),
    /// Mishap: a process is asked to drain.
    Drain(usize),
    /// Mishap: a process acks early, because its job takes long.
    AckEarly(usize),
    /// Mishap: a relay dies while it handles a job.
    LoseRelay(Job),
    /// Mishap: an admitter loses its leadership to another one, and does not know it yet.
    LoseLead,
    /// Mishap: the broker duplicates a message.
    Duplicate(Job),
    /// Mishap: a client cancels a job.
    Cancel(Job),
}
