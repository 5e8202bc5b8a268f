//! The ledger: every fact about a job. Each transaction has one name and one purpose.
//!
//! This is the only crate that speaks SQL at run time. It has never heard of RabbitMQ or of a harness: a
//! session's state goes in and out as JSON text, and only the harness knows what a delta means.
//!
//! # Rules
//! * **Lock first, decide second.** A transaction that decides about a session ([`Store::claim`],
//!   [`Store::conclude`], cancel, rescue) first locks the session rows in `session_id` order. It decides in a
//!   later statement, whose snapshot is fresh. A single statement that did both would decide on what it saw
//!   before it waited for the lock.
//! * **A session works on one job at a time, to its end**: a job that has begun (its epoch is above 0) keeps its turn
//!   through retries and rescues.
//! * **Job rows are locked in `job_id` order.** A checkpoint takes no session's lock, so it can meet a rescue,
//!   which does, at the same job rows. Because both take them in that order, they cannot deadlock. The relay
//!   never waits for a row: it skips locked ones. `database/locks.rs` lists every lock and the order in which
//!   they are taken.
//! * **Every write of a worker is fenced** by the job's epoch and the worker's id, which only a running job
//!   has. It takes a [`Claim`], which only the ledger makes. A write under a stale claim changes nothing and
//!   is answered with [`Fenced::Lost`].
//! * **A transaction is one network round trip**: its statements are prepared beforehand and sent together.
//! * **Lookups are lookups.** `harness_jobs` is often empty, and a planner that has seen it empty chooses
//!   joins that read all of it, including dead entries. So a row is looked up in a form that cannot become a
//!   join: in a scalar subquery or a `LATERAL … OFFSET 0`. Rows are changed by `= ANY(ARRAY(…))`, not by a
//!   join.
//! * **A loop pays for what it finds**, not for the length of the backlog. It goes from one pool or session
//!   to the next by an index (`pools_in!`), reads up to a bound, or continues where its last round stopped.
//! * **Calls are batched**: those that arrive while a transaction is under way share the next one.

// How Postgres is asked, and the handle that callers hold.
mod database;
mod store;

// What the ledger holds, by its subject.
mod jobs;
mod sessions;
mod workers;
mod scaling;
mod access;
mod inbox;
mod line;
mod schedules;
mod webhooks;
mod spend;

// How the ledger is kept in order, and how that is checked.
mod upkeep;
mod audit;

pub use access::{
    AccessHealth, ChangedTenant, EndingKey, FoundKey, KeyUse, KeyView, LogRow, MessageAct, NewKey, NewTicket,
    Principal, Rate, RateAnswer, RateRequest, RevokedKey, Scope, Scopes, TenantChange, TenantLimits,
    TenantView, UnknownScope,
};
pub use audit::{Audit, AuditScope, Checked, Kind, Offender};
pub use database::{ChangeReceiver, Clock, ClockStep, StoreConfig, StoreError};
pub use inbox::{ChangedRole, InboxBacklog, InboxBounds, InboxRow, InboxTurn, RoleView};
pub use jobs::{
    Acceptance, Accepted, Answer, Answered, Ask, COUNTED_TO, Cancelled, CheckpointRow, Claim, ClaimRequest,
    Claimed, Concluded, Conclusion, DueJob, End, EndedJob, EndedWaiting, FailedJob, FailureFilter,
    FleetCounts, FleetNow, Fold, HeldBack, InboxPlace, JobFacts, JobFilter, JobHead, JobKey, JobLine, JobNow,
    JobView, KeyCursor, KeyKind, KnownJob, LiveAndEnded, LiveJob, LiveSession, OpenInput, Page, PlaceInLine,
    PoolNow, RunFold, STEPS, SessionProgress, SessionState, Standing, Step, StepPlace, Steps, StepsOf,
    Suspicion, Taken, TenantNow, Turn, Unwanted,
};
pub use line::{
    Admitted, AdmittedJob, AskingPlace, BusyJob, ChangedLimit, ChangedPool, Entered, Grant, HIGHEST_LIMIT,
    HeldKeys, InFlight, LimitView, LineBounds, LineCount, LineFacts, LinePlace, LineTake, MOST_LIMITS,
    OldestInFlight, PoolCapacity, PoolSeen, PoolView, Since,
};
pub use scaling::{
    Asked, DecisionOutcome, DecisionView, DrainMark, Leadership, MARK_FOR, MarkView, NewDecision, PoolDemand,
    PoolGauges, WorkerView,
};
pub use schedules::{
    ChangedSchedule, CreatedSchedule, DueSchedule, Fired, Instant, MovedSchedule, NewSchedule,
    ScheduleBacklog, ScheduleView,
};
pub use sessions::{
    CheckpointView, Emptied, HistoryRow, SessionFilter, SessionHead, SessionLine, SessionView,
};
pub use spend::{
    AccountView, Budget, BudgetGauge, CacheEntry, CacheLookup, CallOutcome, CallTokens, GivenAnswer, Limit,
    Lookup, MOST_OF_A_CALL, NewCall, Period, RateUse, Reserved, Scope as SpendScope, Settled, SettledCall,
    ShutFor, ShutKey, SpendBy, SpendGauges, SpendPage, SpendPlace, SpendRow, StoredAnswer, Take, UnknownCall,
};
pub use store::Store;
pub use upkeep::{FreshLease, PartitionsAhead, Redating, Revived, Server};
pub use webhooks::{
    ChangedWebhook, DeliveryResult, DeliveryState, DeliveryView, DisabledBy, DueDelivery, NewWebhook,
    ResentFailed, Sent, WebhookBacklog, WebhookHealth, WebhookKeys, WebhookView,
};
pub use workers::{Beat, Durations, OlderWorker, Throughput, WorkerRegistration};

/// The answer to a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced<T> {
    /// The write is in the ledger.
    Done(T),
    /// Nothing was changed: the job has another epoch or another worker, or has ended, or another process
    /// holds the leadership.
    Lost,
}
