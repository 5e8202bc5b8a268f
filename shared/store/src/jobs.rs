//! A job's way through the ledger: accepted and published, claimed by a worker, checkpointed and concluded; or ended while it
//! waits. And where jobs stand, for those who ask.

mod dispatch;
mod suspects;
mod claim;
mod checkpoint;
mod conclude;
mod cancel;
mod status;
mod dead;

pub use cancel::{Ask, Cancelled, EndedWaiting, Unwanted};
pub use checkpoint::CheckpointRow;
pub use claim::{Answer, ClaimRequest, Claimed, SessionState};
pub(crate) use conclude::heads;
pub use conclude::{Concluded, Conclusion, End, Fold};
pub use dead::{DeadFilter, FailedJob, Standing};
pub(crate) use dispatch::pools_in;
pub use dispatch::{Accepted, DueJob};
pub use status::{FleetCounts, JobView, SessionProgress};
pub use suspects::Suspicion;
