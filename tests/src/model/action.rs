//! What can happen.

use super::call::End;
use super::row::{Job, WorkerId};

/// How a call to the ledger goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Luck {
    /// Done and answered.
    Heard,
    /// Done, but the reply is lost.
    ReplyLost,
    /// Not done before the caller has given up on it, but later, perhaps much later.
    Late,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The producer accepts a job.
    Accept(Job),
    /// The producer's acceptance of a job takes its number, and takes long.
    TakeNumber(Job),
    /// Somebody publishes a job past the producer.
    PublishDirectly(Job),
    /// A relay publishes.
    Publish(Job),
    /// A relay notes the broker's confirm.
    Confirm(Job),
    /// A relay takes what is due.
    TakeDue,
    /// What is in `publishing` for too long comes due.
    ReturnStuck,
    /// What is queued, but in no queue, comes due.
    ReturnVanished,
    /// The broker delivers to a process.
    Deliver(usize, Job),
    /// A broken claim reads before it waits.
    Read(usize),
    /// A process asks for the job that was delivered.
    Claim(usize, Luck),
    /// A run finishes an iteration.
    Checkpoint(usize, Luck),
    /// A run outlives the time after which it killed.
    Outlive(usize),
    /// A run ends.
    Conclude(usize, End, Luck),
    /// A process renews its lease, and compares.
    Beat(usize),
    /// A process hands back what the ledger believes to run there.
    HandBack(usize, Job, Luck),
    /// A process stops what it runs, because it has no lease.
    StopWithoutLease(usize),
    /// A drained process is empty, and another one starts in its place.
    Leave(usize),
    /// Rescuers declare the overdue dead.
    DeclareDead,
    /// Rescuers take the jobs of the dead.
    Rescue,
    /// Somebody ends the jobs that nobody wants.
    EndUnwanted,
    /// The call that hung arrives.
    ArriveLate,
    /// The lease of a worker runs out.
    LeaseRunsOut(WorkerId),
    /// A job's time comes.
    ComeDue(Job),
    /// Mishap: a process is killed, and starts again.
    Crash(usize),
    /// Mishap: a process is told to drain.
    Drain(usize),
    /// Mishap: a process acks early, because its job takes long.
    AckEarly(usize),
    /// Mishap: a relay dies with a job in its hands.
    LoseRelay(Job),
    /// Mishap: the broker has a message twice.
    Duplicate(Job),
    /// Mishap: somebody cancels a job.
    Cancel(Job),
}
