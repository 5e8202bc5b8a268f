//! A job's way through the ledger: it is accepted and published, claimed by a worker, checkpointed and
//! concluded, or ended while it waits. Also the state of jobs, for callers that ask.

mod columns;
mod accept;
mod acceptance;
mod taken_keys;
mod labels;
mod backlog;
mod dispatch;
mod lost;
mod claimed;
mod claim;
mod checkpoint;
mod next;
mod conclude;
mod suspects;
mod cancel;
mod status;
mod list;
mod labelled;
mod follow;
mod facts;
mod failed;

pub use accept::Accepted;
pub use acceptance::{Acceptance, KnownJob, Taken};
pub use cancel::{Ask, Cancelled, EndedWaiting, Unwanted};
pub use checkpoint::CheckpointRow;
pub use claim::{Answer, ClaimRequest};
pub(crate) use claimed::read_claim;
pub use claimed::{Claim, Claimed, SessionState, Suspicion};
pub(crate) use columns::tenant_of;
pub use conclude::{Concluded, Conclusion, End, Fold};
pub use dispatch::DueJob;
pub use facts::{JobFacts, Turn};
pub use failed::{FailedJob, FailureFilter, Standing};
pub use follow::{EndedJob, LiveJob, LiveSession, STEPS, Step, StepPlace, Steps, StepsOf};
pub use list::{JobFilter, JobLine, Page};
pub(crate) use lost::pools_in;
pub(crate) use next::heads;
pub use status::{FleetCounts, JobView, SessionProgress};
pub use taken_keys::{JobKey, KeyCursor, KeyKind};
