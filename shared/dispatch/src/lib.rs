//! Between ledger and broker: due jobs are published, jobs that no worker will end are ended, and callers get
//! their replies.
//!
//! Entry points (the producer's commands) and workers call a [`Dispatch`]. A [`Relay`] keeps jobs moving when
//! there is no call: it runs in every worker and in `producer relay`. Any number of relays can run at a time,
//! because each step takes rows that no other takes (`SKIP LOCKED`), or has the same effect whichever relay
//! does it.
//!
//! This crate has never heard of harnesses or of outcomes. It never runs a job, and ends only jobs that are
//! no longer wanted or can no longer start.

mod about;
mod leader;
mod dispatch;
mod reply;
mod tick;
mod publish;
mod changes;
mod unwanted;
mod dead;
mod lost;
mod sweep;
mod rescue;
mod redate;
mod upkeep;
mod taken_keys;
mod candidate;
mod inbox;
mod line;
mod schedules;
mod metrics;
mod relay;

pub use about::job_span;
pub use candidate::Candidate;
pub use dispatch::Dispatch;
pub use inbox::InboxRules;
pub use leader::{Heard, Leader};
pub use lost::return_lost;
pub use publish::Sent;
pub use relay::Relay;
pub use reply::Sending;
