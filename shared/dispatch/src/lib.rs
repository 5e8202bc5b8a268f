//! Between ledger and broker: due jobs are published, jobs that no worker will end are ended, and callers get their replies.
//!
//! A [`Dispatch`] is what doors and workers call. A [`Relay`] is what keeps jobs moving when nobody calls: it runs in every worker and in
//! the producer, any number at a time, because each step takes rows that no other takes (`SKIP LOCKED`), or is true whoever
//! says it.
//!
//! This crate has never heard of harnesses or of outcomes. It never runs a job, and ends only those that nobody wants any more
//! or nothing can start any more.

mod about;
mod dispatch;
mod reply;
mod tick;
mod publish;
mod unwanted;
mod dead;
mod lost;
mod sweep;
mod rescue;
mod redate;
mod upkeep;
mod metrics;
mod relay;
mod leader;

pub use about::job_span;
pub use dispatch::Dispatch;
pub use leader::{Heard, Leader};
pub use lost::return_lost;
pub use relay::Relay;
pub use reply::Sending;
