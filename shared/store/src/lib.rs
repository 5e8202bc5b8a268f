//! The ledger: every fact about a job, told in transactions that each have one name and one purpose.
//!
//! The only room that speaks SQL at run time. It has never heard of RabbitMQ or of a harness: a session's state
//! goes in and out as JSON text, and what a delta means is the harness's business.
//!
//! # Rules
//! * **Lock first, decide second.** A transaction that decides over a session ([`Store::claim`],
//!   [`Store::conclude`], cancel, rescue) first locks the session rows in `session_id` order and decides in a later
//!   statement, whose snapshot is fresh. One statement that does both would decide on what it saw before it waited.
//! * **A session works on one job at a time, to its end**: a job that has begun (its epoch is above 0) keeps its turn
//!   through retries and rescues.
//! * **Job rows are locked in `job_id` order** by those who may wait for each other without holding a session
//!   (rescue, checkpoint). The relay never waits for a row: it skips what is locked. `database/locks.rs` lists every lock and
//!   the order of all.
//! * **Every write of a worker is fenced** by the job's epoch, the worker's id and the state `running`: by a [`Claim`], which
//!   only the ledger makes. A write under a stale one changes nothing and is answered with [`Fenced::Lost`].
//! * **A transaction is one network round trip**: its statements are prepared beforehand and sent together.
//! * **Lookups are lookups.** `harness_jobs` is often empty, and a planner that has seen it so joins through all of it,
//!   dead entries included. So a row is looked up where no join can be made of it: in a scalar subquery or a `LATERAL …
//!   OFFSET 0`; and rows are changed by `= ANY(ARRAY(…))`, not by a join.
//! * **A loop pays for what it finds.** Before what lies there it goes from one pool or session to the next by an index
//!   (`pools_in!`), reads up to a bound, or goes on where its last round has stopped.
//! * **Calls are batched**: what arrives while a transaction is under way goes into the next one together.

mod database;
mod store;
mod jobs;
mod sessions;
mod workers;
mod scaling;
mod upkeep;
mod audit;

pub use audit::{Audit, AuditScope, Checked, Kind, Offender};
pub use database::{Clock, ClockStep, StoreConfig, StoreError};
pub use jobs::{
    Acceptance, Accepted, Answer, Ask, Cancelled, CheckpointRow, Claim, ClaimRequest, Claimed, Concluded,
    Conclusion, DeadFilter, DueJob, End, EndedWaiting, FailedJob, FleetCounts, Fold, JobView, KnownJob,
    SessionProgress, SessionState, Standing, Suspicion, Taken, Unwanted,
};
pub use scaling::{
    Asked, DecisionOutcome, DecisionView, DrainMark, Leadership, MARK_FOR, MarkView, NewDecision, PoolDemand,
    PoolReading, WorkerView,
};
pub use sessions::{CheckpointView, SessionView};
pub use store::Store;
pub use upkeep::{FreshLease, PartitionsAhead, Redating, Revived, Server};
pub use workers::{Beat, Durations, Pace, WorkerRegistration};

/// The answer to a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced<T> {
    /// It is in the ledger.
    Done(T),
    /// The job has another epoch, another worker or has ended; the leadership is somebody else's: nothing was changed.
    Lost,
}
